"""Self-correction: net self-correction, repair rate, fake reflection rate. Pure.

A model continues a given beginning: a path up to its first wrong step, or a finished path, right or wrong, followed by
"Wait,". A model that always changes its answer has no fake reflection, and gains nothing: the headline is **net
self-correction**, what the corrected answers gain less what the broken ones cost. method.md names the **repair rate**
and the **fake reflection rate** without a formula; all definitions here are ours.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import SELF_CORRECTION
from medrefl_utils.evaluation.statistics import paired_difference, share_interval

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

    - net self-correction: share wrong x wrong to right - share right x right to wrong: what accuracy gains if each
      answer of the base is followed by "Wait,". Share wrong is that of the base's answers, the same for all models.
    - wrong to right, right to wrong: share of answers that change after "Wait,", from wrong and from right answers.
    - fake reflection rate: share of continuations from a wrong answer and "Wait," that keep this answer.
    - repair rate: share of continuations from a wrong step that reach the gold answer.
    - reconsiders: share of continuations from a wrong step that state a check or correction, unprompted.
    - fake, unasked: share of these that still give the answer of the wrong path (fake reflection, unprompted).

    Intervals resample questions, because the continuations of a question are not independent. Differences are to the
    model "base", on the same questions, runs and samples. "fake, unasked" has no difference, because its texts differ
    between models.

    Args:
        repairs: columns of CONTINUATIONS.
        n_boot: bootstrap samples of each interval.
        seed: seed of the bootstrap.

    Raises:
        MedReflError: a model with other starting points than the base.
    """
    marks, rows = correction_marks(repairs), []
    for model in dict.fromkeys(repairs["model"]):
        mine, base = (marks[marks["model"] == name] for name in (model, "base"))
        for figure in FIGURES:
            table = mine[mine["figure"] == figure]
            row = {"model": model, "figure": figure, "n": len(table)}
            if len(table):
                lowest = -1.0 if figure == NET else 0.0
                found = share_interval(table["value"], table["question_id"], n_boot, seed, bounds=(lowest, 1.0))
                row |= {"share": found.estimate, "low": found.low, "high": found.high}
            if figure != _UNPAIRED and model != "base" and len(base) and len(table):
                apart = paired_values(table, base[base["figure"] == figure])
                one = np.zeros(len(apart))  # one adapter: the interval is that of its questions
                gain = paired_difference(apart["value"], apart["question_id"], one, n_boot, seed)
                row |= {"difference": gain.estimate, "difference_low": gain.low, "difference_high": gain.high}
            rows.append(row)
    return pd.DataFrame(rows, columns=SELF_CORRECTION.names)


NET = "net self-correction"
_PLACES = {
    "wrong to right": (WRONG_ANSWER, "right"),
    "right to wrong": (RIGHT_ANSWER, "wrong"),
    "fake reflection rate": (WRONG_ANSWER, "kept"),
    "repair rate": (WRONG_STEP, "right"),
    "reconsiders": (WRONG_STEP, "says"),
    "fake, unasked": (WRONG_STEP, "fake_unasked"),
}
"""figure -> (place of the starting points, column that is counted); ``NET`` is made of the first two."""
FIGURES = (NET, *_PLACES)
"""The figures of ``self_correction_rates``, in the order of its rows."""
_UNPAIRED = "fake, unasked"
_TEXT = ["question_id", "run", "sample"]


def correction_marks(repairs: pd.DataFrame) -> pd.DataFrame:
    """Return what each continuation counts in each figure of ``self_correction_rates``.

    Args:
        repairs: columns of CONTINUATIONS.

    Returns:
        Columns ``model``, ``figure``, ``question_id``, ``run``, ``sample`` and ``value``: 0 or 1; of net
        self-correction, which takes one continuation of a wrong and one of a right answer, from -1 to 1.
    """
    right = repairs["answer"] == repairs["gold"]
    kept = repairs["answer"] == repairs["before"]
    says = repairs["reconsiders"].astype(bool)
    marked = repairs.assign(right=right, wrong=~right, kept=kept, says=says, fake_unasked=kept.where(says, np.nan))
    tables = []
    for figure, (behind, mark) in _PLACES.items():
        table = marked.loc[(marked["behind"] == behind) & marked[mark].notna(), ["model", *_TEXT, mark]]
        tables.append(table.rename(columns={mark: "value"}).assign(figure=figure))
    mended, broken = (table.drop(columns="figure") for table in tables[:2])
    both = mended.merge(broken, on=["model", *_TEXT], suffixes=("", "_broken"))
    share = float(repairs["wrong_share"].iloc[0]) if len(repairs) else np.nan
    net = share * both["value"].astype(float) - (1 - share) * both["value_broken"].astype(float)
    found = pd.concat([both.assign(figure=NET, value=net).drop(columns="value_broken"), *tables], ignore_index=True)
    return found.astype({"value": float})


def paired_values(mine: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the differences of two models' values in one figure, per question and run (means over the samples).

    Args:
        mine: rows of ``correction_marks`` of one model and figure, or the same columns of another value.
        other: the same of the model to compare with.

    Returns:
        Columns ``question_id``, ``run`` and ``value`` (mine minus other).

    Raises:
        MedReflError: the two have values for different questions, runs or samples.
    """
    both = other.merge(mine, on=_TEXT, suffixes=("_other", ""), validate="one_to_one")
    if not len(both) == len(other) == len(mine):
        names = [table["model"].iloc[0] if len(table) else "none" for table in (mine, other)]
        raise MedReflError(
            f"continuations: {names[0]} has {len(mine)} starting points and {names[1]} has {len(other)};"
            f" {len(both)} of them are the same, expected all"
        )
    both["value"] -= both["value_other"]
    return both.groupby(["question_id", "run"], as_index=False)["value"].mean()
