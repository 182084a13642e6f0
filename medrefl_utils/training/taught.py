"""Keep with a model the questions that it was trained on, so that no evaluation asks them unnoticed.

A model that stage 09 or ``medrefl merge`` makes has a table of these questions in its folder, those of its base
included. So a later run knows them, whatever became of the run that made the model. ``push_to_hub`` leaves the table
out, because some exams ask that their questions are not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import ASKED, PAIRS, QUESTIONS
from medrefl_utils.core.store import read_table, write_table
from medrefl_utils.exam.contamination import find_overlaps, remove_overlaps
from medrefl_utils.exam.prompts import read_exam
from medrefl_utils.exam.questions import questions_from_table

TAUGHT_QUESTIONS = "taught_questions.parquet"
"""The table in a model's folder: columns of ``schemas.ASKED``."""


def asked_questions(prompts: pd.DataFrame) -> list[Question]:
    """Return the questions that prompts ask, without a gold letter; columns of ``schemas.ASKED``.

    Of a prompt that is not ours, the whole last message counts as the stem.
    """
    found = []
    for row in prompts.itertuples():
        stem, options = read_exam(row.prompt) or (row.prompt[-1]["content"], {})
        found.append(Question(row.question_id, stem, options, ""))
    return found


def taught_questions(model: str) -> list[Question]:
    """Return the questions that a model was fine-tuned on, from the table in its folder; [] where it has none."""
    file = Path(model) / TAUGHT_QUESTIONS
    return asked_questions(read_table(file, ASKED)) if file.is_file() else []


def write_taught_questions(folder: Path, examples: pd.DataFrame | None, *, base: str) -> None:
    """Write the table of the questions that the model in ``folder`` was trained on; no table where none is known.

    Args:
        folder: of a model or an adapter.
        examples: what it was trained on: columns ``question_id`` and ``prompt``; None where it is not known.
        base: its base, whose own table is taken over.
    """
    before = Path(base) / TAUGHT_QUESTIONS
    tables = [read_table(before, ASKED)] if before.is_file() else []
    tables += [] if examples is None else [examples[ASKED.names].drop_duplicates("question_id")]
    if tables:
        write_table(folder / TAUGHT_QUESTIONS, pd.concat(tables, ignore_index=True), ASKED)


def check_untaught(held_out: Sequence[Question], run: RunFiles, model: str) -> int:
    """Check that an evaluation asks no question that its models were trained on.

    Args:
        held_out: the questions of the evaluation.
        run: the run's files; the questions that its pairs are of are training questions.
        model: the base, a folder or a hub id; so are the questions that it was fine-tuned on, if its folder says so.

    Returns:
        The number of training questions that were compared.

    Raises:
        MedReflError: a training question is in the evaluation.
    """
    with_pairs = set(read_table(run.pairs, PAIRS)["question_id"])
    trained = [q for q in questions_from_table(read_table(run.questions, QUESTIONS)) if q.question_id in with_pairs]
    remove_overlaps(trained, find_overlaps(trained, held_out), contaminated="stop")
    taught = taught_questions(model)
    refuse_taught(taught, held_out, f"the base {model}")
    return len(trained) + len(taught)


def refuse_taught(taught: Sequence[Question], held_out: Sequence[Question], who: str) -> None:
    """Refuse an evaluation of a model on questions that it was fine-tuned on.

    Args:
        taught: the questions that it was fine-tuned on.
        held_out: the questions of the evaluation.
        who: the model, as the message names it.

    Raises:
        MedReflError: with the count and the first such question.
    """
    if len(found := find_overlaps(taught, held_out)):
        first = found.iloc[0]
        raise MedReflError(
            f"{who} was fine-tuned on {found['other_id'].nunique()} of the {len(held_out)} evaluation questions, the "
            f"first {first.other_id!r} as {first.question_id!r} ({first.how}): expected none; evaluate on other "
            "questions, or fine-tune on chains without them (08_knowledge_chains.contaminated=drop)"
        )
