"""Self-correction: repair rate and fake reflection rate. Pure.

A model continues a given beginning: a path up to its first wrong step, or a finished path, right or wrong, followed by
"Wait,". The continuations give the **repair rate** and the **fake reflection rate**. method.md names both rates without
a formula; the definitions here are ours.
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
    """Say whether a text states that it checks or corrects itself ("Wait", "on second thought", "I overlooked")."""
    return _RECONSIDERS.search(text) is not None


def self_correction_rates(repairs: pd.DataFrame, n_boot: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Compute the self-correction rates of each model: columns of SELF_CORRECTION, models in order.

    - repair rate: share of continuations from a wrong step that reach the gold answer.
    - reconsiders: share of continuations from a wrong step that state a check or correction, unprompted.
    - fake, unasked: share of these that still give the answer of the wrong path (fake reflection, unprompted).
    - fake reflection rate: share of continuations from a wrong answer and "Wait," that keep this answer.
    - wrong to right, right to wrong: share of answers that change after "Wait,", from wrong and from right answers.

    Intervals resample questions, because the runs of a question are not independent. Differences are to the model
    "base", on the same questions and runs. "fake, unasked" has no difference, because its texts differ between models.

    Args:
        repairs: columns of CONTINUATIONS.
        n_boot: bootstrap samples of each interval.
        seed: seed of the bootstrap.

    Raises:
        MedReflError: a model with other starting points than the base.
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
"""figure -> (place of the starting points, column that is counted, whether all models have the same denominator)."""


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
            f"continuations: {mine['model'].iloc[0]} has {len(mine)} starting points and base has {len(base)};"
            f" {len(both)} of them are the same, expected all"
        )
    gain = paired_gain(both[f"{mark}_base"], both[mark], both["question_id"], n_boot, seed)
    return {"difference": gain.estimate, "difference_low": gain.low, "difference_high": gain.high}
