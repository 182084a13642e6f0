"""Compare two or more runs: paired scores against the first run, and the answers that changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import RESPONSES
from medrefl_utils.core.store import read_table
from medrefl_utils.evaluation.scoring import compare_runs

CHANGES = ("right to right", "wrong to right", "right to wrong", "wrong to wrong")
"""How a response of the first run and one of another run differ; the answer of "wrong to wrong" may differ too."""
_PLACE = ["source", "protocol", "model"]


def compare_with_first(runs: Sequence[Path]) -> pd.DataFrame:
    """Compare each later run with the first one, on the questions that both were asked.

    Args:
        runs: folders of two or more runs; the first is the reference.

    Returns:
        The columns of ``compare_runs`` and ``run`` (the later run's name): a row per later run, benchmark, protocol and
        model. The questions of two rows may differ, since each pair of runs is compared on what both were asked.

    Raises:
        MedReflError: fewer than two runs, two with one name, or the errors of ``compare_runs``.
    """
    names = [run.name for run in runs]
    if len(runs) < 2 or len(set(names)) < len(names):
        raise MedReflError(f"comparison: found the runs {', '.join(names) or 'none'}, expected two or more that differ")
    first, *others = runs
    return pd.concat([compare_runs(first, run).assign(run=run.name) for run in others], ignore_index=True)


def changed_answers(a: Path, b: Path) -> pd.DataFrame:
    """Return the responses of two runs to the same questions, side by side.

    Args:
        a: folder of the first run.
        b: folder of the second run.

    Returns:
        Columns source, protocol, model, question_id, run (repetition), stem, gold_text, answer_first, answer_second
        (the options' texts, since two runs may show options in another order; null if unreadable), response_first,
        response_second and change (one of CHANGES). The order is that of the first run.

    Raises:
        MedReflError: a run has no responses, or the two share no question of a benchmark, protocol and model.
    """
    key = [*_PLACE, "content", "run"]
    first, second = (_with_texts(read_table(RunFiles(run).responses, RESPONSES)) for run in (a, b))
    columns = ["correct", "answer_text", "response"]
    both = first.merge(second[[*key, *columns]].drop_duplicates(key), on=key, suffixes=("_first", "_second"))
    if both.empty:
        raise MedReflError(f"{a} and {b}: no question that both were asked by the same protocol, expected some")
    words = {True: "right", False: "wrong"}
    before, after = (both[name].astype(bool).map(words) for name in ("correct_first", "correct_second"))
    both = both.rename(columns={f"answer_text_{run}": f"answer_{run}" for run in ("first", "second")})
    names = [*_PLACE, "question_id", "run", "stem", "gold_text", "answer_first", "answer_second"]
    return both.assign(change=before + " to " + after)[[*names, "response_first", "response_second", "change"]]


def _with_texts(responses: pd.DataFrame) -> pd.DataFrame:
    """Add the texts of the answer and of the gold option: letters of two runs may stand for other options."""
    options = [dict(pairs) for pairs in responses["options"]]
    return responses.assign(
        answer_text=[own.get(letter) for own, letter in zip(options, responses["answer"], strict=True)],
        gold_text=[own.get(letter) for own, letter in zip(options, responses["gold"], strict=True)],
    )
