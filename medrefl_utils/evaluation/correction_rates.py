"""The method's own claim in figures: does a model that went wrong come back, and does its reflection change anything?

A model is put behind a beginning that is not its own choice (``records.REPAIRS``): a path up to its first wrong step,
or a whole path, right or wrong, after which it has said "Wait,". What it makes of it gives the **repair rate** and the
**fake reflection rate** (method.md names both and gives no formula: the definitions here are ours).
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import SELF_CORRECTION
from medrefl_utils.evaluation.statistics import paired_gain, share_interval

WRONG_STEP, WRONG_ANSWER, RIGHT_ANSWER = "wrong step", "wrong answer", "right answer"
PLACES = (WRONG_STEP, WRONG_ANSWER, RIGHT_ANSWER)

_RECONSIDERS = re.compile(
    r"\b(?:wait|hold on|hmm+|on second thought|on reflection"
    r"|(?:let me|i should|i must|i need to) (?:re-?\w+|double-?check|check (?:this|that) again|think again|correct)"
    r"|i (?:was|may be|might be|may have been) (?:wrong|mistaken)|i (?:made|have made) (?:a mistake|an error)"
    r"|i (?:overlooked|misread|misjudged|missed)|that (?:is|was|can(?:no|')t be) (?:not )?(?:wrong|right|correct)"
    r"|correcting myself|reconsider(?:ing)?|re-?examin\w+|re-?evaluat\w+)\b",
    re.IGNORECASE,
)


def reconsiders(text: str) -> bool:
    """Whether a text says that it takes something back or looks again ("Wait", "on second thought", "I overlooked")."""
    return _RECONSIDERS.search(text) is not None


def self_correction_rates(repairs: pd.DataFrame, n_boot: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """What ``repairs`` (rows of ``records.REPAIRS``) amount to: rows of ``records.CLAIMS``, of each model in order.

    - repair rate: behind a wrong step, the share that reaches the gold answer.
    - reconsiders: behind a wrong step, the share that says so unasked; **fake, unasked** is the share of those that
      still give the answer that the wrong path gave.
    - fake reflection rate: behind a wrong answer and "Wait,", the share that keeps that answer.
    - wrong to right, right to wrong: what the same reflection does behind wrong and behind right answers.

    Intervals draw questions (the runs of one stand or fall together). Differences are to the model "base", on the same
    questions and runs; there is none for a share of other texts in each model.

    Raises:
        MedReflError: a model that was put behind other beginnings than the base.
    """
    rows = []
    for model in dict.fromkeys(repairs["model"]):
        mine = _marks(repairs[repairs["model"] == model])
        base = _marks(repairs[repairs["model"] == "base"])
        for figure, (behind, mark, shared) in _FIGURES.items():
            table = mine[(mine["behind"] == behind) & mine[mark].notna()]
            row = {"model": model, "figure": figure, "n": len(table)}
            if len(table):
                found = share_interval(table[mark].astype(float), table["question_id"], n_boot, seed)
                row |= {"share": found.estimate, "low": found.low, "high": found.high}
            if shared and model != "base" and len(base) and len(table):
                row |= _difference(base[base["behind"] == behind], table, mark, n_boot, seed)
            rows.append(row)
    return pd.DataFrame(rows, columns=SELF_CORRECTION.names)


_FIGURES = {
    "repair rate": (WRONG_STEP, "right", True),
    "reconsiders": (WRONG_STEP, "says", True),
    "fake, unasked": (WRONG_STEP, "fake_unasked", False),
    "fake reflection rate": (WRONG_ANSWER, "kept", True),
    "wrong to right": (WRONG_ANSWER, "right", True),
    "right to wrong": (RIGHT_ANSWER, "wrong", True),
}
"""figure -> where the model was put, what counts, and whether each model has the same denominator."""


def _marks(repairs: pd.DataFrame) -> pd.DataFrame:
    right = repairs["answer"] == repairs["gold"]
    kept = repairs["answer"] == repairs["before"]
    says = repairs["reconsiders"].astype(bool)
    return repairs.assign(right=right, wrong=~right, kept=kept, says=says, fake_unasked=kept.where(says, np.nan))


def _difference(base: pd.DataFrame, mine: pd.DataFrame, mark: str, n_boot: int, seed: int) -> dict[str, float]:
    key = ["question_id", "run"]
    both = base.merge(mine, on=key, suffixes=("_base", ""), validate="one_to_one")
    if not len(both) == len(base) == len(mine):
        raise MedReflError(
            f"repairs: {mine['model'].iloc[0]} was put behind {len(mine)} beginnings and base behind {len(base)}, of"
            f" which {len(both)} are the same: expected all"
        )
    gain = paired_gain(both[f"{mark}_base"], both[mark], both["question_id"], n_boot, seed)
    return {"difference": gain.estimate, "difference_low": gain.low, "difference_high": gain.high}
