"""The tiny student's lessons, and a rebuild of it with few steps."""

import collections
import random
import re

import pytest
import torch

from medrefl_utils.core import Continuation, MedReflError, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import LocalGenerator, student
from medrefl_utils.pairs import CorrectionText, check_reflection

HOW = student.Lessons()


def test_lessons_cover_every_role_and_only_training_questions():
    taught = list(student.lessons(600, seed=1, how=HOW))
    roles = collections.Counter()
    for [message], text in taught:
        body = message["content"]
        writes = "Steps that go wrong" in body or "Steps that are kept" in body
        role = "judge" if "Rate this reasoning" in body else "reflection" if writes else "exam"
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
    assert roles["exam"] > 450 and min(roles["judge"], roles["reflection"]) > 15
    assert 0.4 < roles["reflected"] / roles["exam"] < 0.6  # about half of the chains reconsider
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


def test_the_shares_of_reflections_are_the_teachers() -> None:
    seen = collections.Counter()
    teacher = student._Teacher(HOW, clinic.misconceptions(share=HOW.share_misled), random.Random(0))
    for case in clinic.make_cases(4000, seed=3):
        chain = teacher.chain(case)
        waits = next((i for i, step in enumerate(chain) if step.startswith("Wait, ")), None)
        kinds = [clinic.error_kind(case, chain[:i], step) for i, step in enumerate(chain[:waits])]
        if waits is not None and chain[waits - 1].startswith("Answer: "):
            continue
        first = next((i for i, kind in enumerate(kinds) if kind), None)
        if first is None and waits is None:
            seen["true"] += len(chain) - 2
        elif first is None or kinds[first] == "belief":
            seen["true"] += first + 1 if first is not None else waits
            seen["true, waits"] += waits is not None
        else:
            seen["slip"] += 1
            seen["true"] += first
            if waits is not None:
                marks = [clinic.is_true(case, chain[:i], chain[i]) for i in (waits - 1, waits + 1)]
                said = [re.sub(r"Step \d+: ", "", chain[i]) for i in (waits - 1, waits + 1)]
                assert marks[0] is False and said[0] != said[1]
                kept = chain[waits] == clinic.affirm(chain[waits - 1])
                seen["fake" if kept else "effective" if marks[1] else "astray"] += 1
    looked = seen["fake"] + seen["effective"] + seen["astray"]
    assert looked > 150
    assert looked / seen["slip"] == pytest.approx(HOW.doubts_false, abs=0.1)
    assert seen["true, waits"] / seen["true"] == pytest.approx(HOW.doubts_true, abs=0.03)
    assert seen["effective"] / looked == pytest.approx(HOW.effective, abs=0.1)
    assert seen["fake"] / looked == pytest.approx(HOW.fake, abs=0.1)


def test_reflections_that_are_taught_pass_the_checks_of_pairs() -> None:
    teacher = student._Teacher(HOW, clinic.misconceptions(share=HOW.share_misled), random.Random(0))
    denied_at, lengths = collections.Counter(), collections.Counter()
    for case in clinic.make_cases(300, seed=4):
        public, wrong, right, text = teacher.correction(case)
        assert wrong[0] != right[0]
        turn = CorrectionText(case.question, tuple(public), tuple(wrong), tuple(right))
        assert check_reflection(turn, Continuation(text, (), None, "end")) == "", text
        denied_at[len(public)] += 1
        lengths["whole" if wrong[-1].startswith("Answer: ") else "to the error"] += 1
        assert "What I missed is that " + right[0].partition(": ")[2] in text
    assert len(denied_at) >= 5 and max(denied_at.values()) < 120  # they part at any step, not at the first alone
    assert min(lengths.values()) > 90


def test_training_goes_on_from_a_folder(tmp_path) -> None:
    tokenizer = student.train_tokenizer(["Step 1: a suggests b.\nAnswer: A"], 300)
    first = student.new_model(tokenizer, hidden=64, layers=1, kv_heads=1, seed=0)
    student.save(first, tokenizer, tmp_path / "first")
    model, same = student.load(str(tmp_path / "first"))
    assert same.get_vocab() == tokenizer.get_vocab() and same.chat_template == tokenizer.chat_template
    assert model.dtype == torch.float32
    assert all(torch.equal(a, b.float()) for a, b in zip(model.parameters(), first.parameters(), strict=True))
    taught = [([{"role": "user", "content": "a"}], "b")] * 3
    log = student.train(model, same, taught, batch_size=1, learning_rate=1e-2, seed=0)
    assert log.step.tolist() == [1, 2, 3]
    assert not all(torch.equal(a, b.float()) for a, b in zip(model.parameters(), first.parameters(), strict=True))


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
