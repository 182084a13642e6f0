"""The questions that a model was trained on stay with it, and no evaluation asks them unnoticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from medrefl_utils.core import ASKED, PAIRS, QUESTIONS, MedReflError, Question, RunFiles, write_table
from medrefl_utils.exam import clinic, prompts, questions_table
from medrefl_utils.training import check_untaught, taught_questions, write_taught_questions

EXAM = clinic.make_exam(6, seed=1)


def asked(*questions: Question) -> pd.DataFrame:
    rows = [(question.question_id, prompts.exam(question), "more") for question in questions]
    return pd.DataFrame(rows, columns=[*ASKED.names, "completion"])


@pytest.mark.parametrize(
    "question",
    [
        *EXAM[:2],
        Question("1", "One line.\n\nAnother one:\nA. not an option\n\nB. nor this", {"A": "x", "B": "y"}, "B"),
        Question("2", "What?", {"C": "first. A. second", "F": "", "G": "ends: Answer: X"}, "F"),
    ],
)
def test_a_prompt_is_read_as_the_question_that_it_asks(question: Question) -> None:
    assert prompts.read_exam(prompts.exam(question)) == (question.stem, dict(question.options))


@pytest.mark.parametrize(
    "text", ["What helps?", "What helps?\n\nA. x\nB. y", prompts.exam(EXAM[0])[0]["content"] + "."]
)
def test_another_prompt_is_not_read(text: str) -> None:
    assert prompts.read_exam([{"role": "user", "content": text}]) is None
    assert prompts.read_exam(prompts.exam_json(EXAM[0])) is None


def test_a_model_knows_its_own_questions_and_those_of_its_base(tmp_path: Path) -> None:
    base, tuned, again = (tmp_path / name for name in ("base", "tuned", "again"))
    write_taught_questions(base, None, base="a/base-on-the-hub")
    assert not base.exists() and taught_questions(str(base)) == taught_questions("a/base-on-the-hub") == []
    write_taught_questions(tuned, pd.concat([asked(*EXAM[:2])] * 2), base=str(base))  # two chains of a question
    write_taught_questions(again, asked(EXAM[2]), base=str(tuned))
    known = [[question.question_id for question in taught_questions(str(folder))] for folder in (tuned, again)]
    assert known == [[one.question_id for one in EXAM[:n]] for n in (2, 3)]
    first = taught_questions(str(again))[0]
    assert (first.stem, first.options) == (EXAM[0].stem, EXAM[0].options)


@pytest.mark.parametrize("ours", [True, False], ids=["our prompt", "another prompt"])
def test_an_evaluation_on_a_question_of_the_pairs_or_of_the_base_is_refused(tmp_path: Path, ours: bool) -> None:
    files, base = RunFiles(tmp_path / "run"), tmp_path / "base"
    write_table(files.questions, questions_table(EXAM[:2]), QUESTIONS)
    message = [{"role": "user", "content": "x"}]
    pair = dict.fromkeys(PAIRS.names) | {"pair_id": "p", "question_id": EXAM[0].question_id, "prompt": message}
    write_table(files.pairs, pd.DataFrame([pair | {"chosen": message, "rejected": message}]), PAIRS)
    examples = asked(EXAM[2])
    if not ours:
        examples["prompt"] = [[{"role": "user", "content": EXAM[2].stem}]]
    write_taught_questions(base, examples, base="")
    assert check_untaught([EXAM[1], *EXAM[3:]], files, str(base)) == 2  # EXAM[1] has a tree and no pair
    with pytest.raises(MedReflError, match="1 of 1 training questions are in the evaluation"):
        check_untaught(EXAM[:1], files, str(base))
    reworded = replace(EXAM[2], question_id="again", stem=EXAM[2].stem.upper())
    line = (
        rf"the base \S+ was fine-tuned on 1 of the 2 evaluation questions, the first 'again' as '{EXAM[2].question_id}'"
    )
    with pytest.raises(MedReflError, match=line):
        check_untaught([EXAM[4], reworded], files, str(base))
    assert check_untaught([reworded], files, "another/base") == 1
