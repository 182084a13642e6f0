"""Compare the training questions of a run with the questions of its evaluation before anything runs.

Stages 03, 05 and 07 make the same comparison (``exam.contamination``), hours later. A base that was fine-tuned has the
questions that it was taught in its folder (``training.taught``).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import PAIRS, QUESTIONS, TAUGHT
from medrefl_utils.core.store import read_table
from medrefl_utils.exam.lint import content_key
from medrefl_utils.exam.questions import questions_from_table
from medrefl_utils.runs.stages import FINE_TUNING

_ROLLOUT, _PAIRS = "01_tree_rollout", "03_pair_construction"
_ASKING = ("05_benchmark_evaluation", "07_ablation")
_DROP = f"--set {_PAIRS}.contaminated=drop"

Load = Callable[[str, str], Sequence[Question] | None]
"""Called with a stage and its parameter of a question source; None where the source is not on this machine."""


def check_overlaps(
    stages: Mapping[str, Mapping[str, Any]], files: RunFiles, given: Container[str], load: Load
) -> list[str]:
    """Compare training and evaluation questions of the stages that will run.

    Args:
        stages: {stage that will run: its parameters}; a stage without a source of questions is left out.
        files: the run's files.
        given: artifacts that exist and that none of these stages writes.
        load: returns the questions of a source.

    Returns:
        Notes: how many questions stage 03 will drop, and sources that are not on this machine.

    Raises:
        MedReflError: a stage would stop because a training question is in its evaluation, one of the pairs or one that
            the base was fine-tuned on; names the parameter to set.
    """
    # A second, which a refused profile need not wait.
    from medrefl_utils.exam.contamination import find_overlaps
    from medrefl_utils.training.taught import refuse_taught

    taught = {stage: _taught(stages, files, given, stages[stage]) for stage in _ASKING if stage in stages}
    sources = {_ROLLOUT: "questions", _PAIRS: "evaluation_questions", **dict.fromkeys(_ASKING, "questions")}
    stages = {stage: values for stage, values in stages.items() if sources.get(stage) in values}
    comparing = [stage for stage in (_PAIRS, *_ASKING) if stage in stages]
    if not comparing:
        return []
    for stage in (name for name in _ASKING if name in stages and taught[name]):
        if (asked := load(stage, "questions")) is not None:
            refuse_taught(taught[stage], asked, f"{stage}: the base {stages[stage]['model']}")
    training, notes = _training(stages, files, given, load), []
    if training is None:
        return [_unseen(comparing[0], stages[_ROLLOUT]["questions"])] if _ROLLOUT in stages else []
    compared: set[Any] = set()
    if _PAIRS in stages:
        values = stages[_PAIRS]
        asked = load(_PAIRS, "evaluation_questions")
        if asked is None:
            return [_unseen(_PAIRS, values["evaluation_questions"])]
        found = find_overlaps(training, asked, threshold=values["overlap_threshold"])
        training, note = _after_drop(training, found, asked, values)
        notes += note
        compared = {content_key(question) for question in asked}
    for stage in (name for name in _ASKING if name in stages):
        asked = load(stage, "questions")
        if asked is None:
            notes.append(_unseen(stage, stages[stage]["questions"]))
            continue
        # What stage 03 has compared with its own threshold is not compared again: 05 and 07 use the default.
        default = _PAIRS not in stages or stages[_PAIRS]["overlap_threshold"] <= 0.75
        left = [question for question in asked if not (default and content_key(question) in compared)]
        if left and len(found := find_overlaps(training, left)):
            raise MedReflError(
                f"{stage}: {_overlap(found, training, stages[stage]['questions'])}: leave"
                f" {_PAIRS}.evaluation_questions as those of {_ASKING[0]}, and add {_DROP}, which leaves them out"
            )
    return notes


def _taught(
    stages: Mapping[str, Mapping[str, Any]], files: RunFiles, given: Container[str], asking: Mapping[str, Any]
) -> list[Question]:
    """Return the questions that the base of an evaluation was, or will be, fine-tuned on, as far as they are known."""
    from medrefl_utils.training.taught import asked_questions, taught_questions

    base = asking.get("model", "")
    if FINE_TUNING not in stages or Path(base).resolve() != files.sft_model.resolve():
        return taught_questions(base) if base else []
    chains = stages[FINE_TUNING]["chains"] or ("chains" in given and files.chains)
    taught = taught_questions(stages[FINE_TUNING]["model"])
    if chains:
        table = read_table(Path(chains), TAUGHT)
        taught += asked_questions(table[table["kept"].astype(bool)])
    return taught


def _training(
    stages: Mapping[str, Mapping[str, Any]], files: RunFiles, given: Container[str], load: Load
) -> Sequence[Question] | None:
    """Return the questions to train on: those of 01, else of the run; of these, those with pairs if 03 does not run."""
    if _ROLLOUT in stages:
        return load(_ROLLOUT, "questions")
    if "questions" not in given:
        return None
    training = questions_from_table(read_table(files.questions, QUESTIONS))
    if _PAIRS not in stages and "pairs" in given:
        taught = set(read_table(files.pairs, PAIRS)["question_id"])
        training = [question for question in training if question.question_id in taught]
    return training


def _after_drop(
    training: Sequence[Question], found: pd.DataFrame, asked: Sequence[Question], values: Mapping[str, Any]
) -> tuple[list[Question], list[str]]:
    """Return the training questions that stage 03 keeps, and a note on the others."""
    if found.empty:
        return list(training), []
    told = _overlap(found, training, values["evaluation_questions"])
    if values["contaminated"] == "stop":
        raise MedReflError(f"{_PAIRS}: {told}: remove them, or add {_DROP}, which leaves them out")
    left = [question for question in training if question.question_id not in set(found["question_id"])]
    if not left:
        raise MedReflError(f"{_PAIRS}: {told}, so nothing is left to train on: give other questions to {_ROLLOUT}")
    return left, [f"{_PAIRS} will leave them out: {told}"]


def _overlap(found: pd.DataFrame, training: Sequence[Question], source: str) -> str:
    first, n = found.iloc[0], found["question_id"].nunique()
    return (
        f"{n} of {len(training)} training questions are in the evaluation {source}, the first"
        f" {first.question_id!r} as {first.other_id!r} ({first.how})"
    )


def _unseen(stage: str, source: str) -> str:
    return f"{source} is on the hub, so training and evaluation questions are not compared before {stage}"
