"""Measure the locator where the truth is known: on the clinic, whose steps can be checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from medrefl_utils.core.records import Question
from medrefl_utils.exam import clinic

_CLINIC_ID = re.compile(r"clinic-(\d+)-(train|test)-(\d+)")
VERDICTS = ("exact", "early", "late", "not located", "no false step")


def locator_precision(
    located: pd.DataFrame, paths: pd.DataFrame, steps: pd.DataFrame, questions: Mapping[str, Question]
) -> dict[str, int]:
    """Count how often the located step of a wrong path is its first false step by ``clinic.is_true``.

    Args:
        located: wrong steps, from ``locate_errors`` or ``locate_errors_by_model``.
        paths: ``trees.paths(steps)``.
        steps: trees, columns of STEPS.
        questions: {question_id: question}; questions that are not the clinic's are left out.

    Returns:
        {verdict: wrong paths}: ``exact``; ``early`` (a true step is named); ``late`` (a false step stands before it);
        ``not located``; ``no false step`` (a step was located and none is false). All are 0 for another exam.
    """
    text = steps.set_index(["question_id", "node_id"])["text"].to_dict()
    nodes = {(row.question_id, row.node_id): list(row.nodes) for row in paths.itertuples()}
    counts = dict.fromkeys(VERDICTS, 0)
    cases: dict[str, clinic.Case | None] = {}
    for row in located.itertuples():
        name = row.question_id
        if name not in cases:
            cases[name] = _case(questions[name])
        if cases[name] is None:
            continue
        path = nodes[name, row.leaf]
        false = _first_false(cases[name], [text[name, node] for node in path])
        if pd.isna(row.node_id):
            counts["not located"] += 1
        elif false is None:
            counts["no false step"] += 1
        else:
            place = path.index(int(row.node_id))
            counts["exact" if place == false else "early" if place < false else "late"] += 1
    return counts


def _case(question: Question) -> clinic.Case | None:
    """Return the truth behind a question of the clinic; None for another exam's question."""
    match = _CLINIC_ID.fullmatch(question.question_id)
    if match is None:
        return None
    [case] = clinic.make_cases(1, int(match[1]), match[2], int(match[3]))
    return replace(case, question=question) if case.question.stem == question.stem else None


def _first_false(case: clinic.Case, texts: list[str]) -> int | None:
    """Return the place of the first step with a line that is false; None if there is none."""
    before: list[str] = []
    for place, text in enumerate(texts):
        for line in text.splitlines():
            if clinic.is_true(case, before, line.strip()) is False:
                return place
            before.append(line.strip())
    return None
