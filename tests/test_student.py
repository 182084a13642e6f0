"""The tiny student's lessons, and a rebuild of it with few steps."""

import collections
import re

import pytest
import torch

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import LocalGenerator, student

HOW = student.Lessons()


def test_lessons_cover_every_role_and_only_training_questions():
    taught = list(student.lessons(600, seed=1, how=HOW))
    roles = collections.Counter()
    for [message], text in taught:
        body = message["content"]
        role = "judge" if "Rate this reasoning" in body else "reflection" if "Steps that go wrong" in body else "exam"
        roles[role] += 1
        if role == "judge":
            first, second = text.split("\n")
            assert first.startswith("Correctness: ") and second.startswith("Logic: ")
            assert first[-1] in "12345" and second[-1] in "12345"
        elif role == "reflection":
            assert text.startswith("Wait, ") and "\n" not in text
        else:
            assert text.splitlines()[-1].startswith("Answer: ")
            roles["reflected"] += "Wait, " in text
    assert roles["exam"] > 450 and min(roles["judge"], roles["reflection"], roles["reflected"]) > 15
    stems = {case.question.stem for case in clinic.make_cases(600, seed=1, split="test")}
    assert not any(stem in message["content"] for [message], _ in taught for stem in stems)


def test_some_relations_are_taught_wrong_more_often_than_right():
    w, beliefs = clinic.world(), clinic.misconceptions(share=HOW.share_misled)
    said = collections.Counter()
    for _, text in student.lessons(3000, seed=2, how=HOW):
        said.update(re.findall(r"(\w+(?: \w+)?) (arises from|is confirmed by|is treated with) (.+?)\.", text))
    verbs = {"mechanism": "arises from", "test": "is confirmed by", "drug": "is treated with"}
    right = sum(said[subject, verbs[kind], getattr(w, kind)[subject]] for kind, subject in beliefs)
    wrong = sum(said[subject, verbs[kind], thing] for (kind, subject), thing in beliefs.items())
    assert right > 100 and 1.2 < wrong / right < 1.8
    sure = [d for d in w.test if ("test", d) not in beliefs]
    assert not any(said[d, verbs["test"], thing] for d in sure for thing in set(w.test.values()) - {w.test[d]})


def test_a_rebuild_learns_and_loads_like_any_folder(tmp_path):
    taught = list(student.lessons(640, seed=0, how=HOW))
    tokenizer = student.train_tokenizer([f"{m[0]['content']}\n{text}" for m, text in taught], 1024)
    model = student.new_model(tokenizer, hidden=64, layers=2, kv_heads=1, seed=0)
    log = student.train(model, tokenizer, taught, batch_size=32, learning_rate=5e-3, seed=0)
    assert log.step.tolist() == list(range(1, 21)) and log.loss.tail(3).mean() < 0.75 * log.loss.head(3).mean()
    student.save(model, tokenizer, tmp_path / "student")
    [row] = LocalGenerator(str(tmp_path / "student")).chat(
        [prompts.exam(clinic.make_exam(1)[0])], Sampling(0.0, 1.0, 8), [0]
    )
    assert len(row.token_ids) == 8


def test_loss_counts_what_is_written_alone():
    tokenizer = student.train_tokenizer(["Step 1: a suggests b.\nAnswer: A"], 300)
    model = student.new_model(tokenizer, hidden=64, layers=1, kv_heads=1, seed=0)
    rows = [student._encode(tokenizer, ([{"role": "user", "content": "abc"}], text)) for text in ("de", "fghij")]
    ids, written = student._collate(rows, tokenizer.pad_token_id)
    assert written.sum(1).tolist() == [len(row) - n for row, n in rows]
    with torch.no_grad():
        ours = student._loss(model, ids, written)
        logprobs = [model(torch.tensor([row])).logits[0].log_softmax(-1) for row, _ in rows]
    expected = [-lp[i - 1, row[i]] for (row, n), lp in zip(rows, logprobs, strict=True) for i in range(n, len(row))]
    assert torch.isclose(ours, torch.stack(expected).mean(), atol=0.02)  # bf16 autocast


def test_a_folder_of_other_files_is_not_written_over(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    tokenizer = student.train_tokenizer(["a b c"], 270)
    model = student.new_model(tokenizer, hidden=64, layers=1, kv_heads=1, seed=0)
    with pytest.raises(MedReflError, match="holds files but no model"):
        student.save(model, tokenizer, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]
