"""Judge chosen sides with a model: correctness and logic, 1 to 5 each."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Question, Sampling
from medrefl_utils.exam import prompts
from medrefl_utils.models.asking import ask_until_valid
from medrefl_utils.models.generators.interface import Generator

_SCORE = r"{}\W{{0,6}}([1-5])(?![\d.])(?:\s*/\s*5)?"
_SCORES = tuple(re.compile(_SCORE.format(name), re.IGNORECASE) for name in ("correctness", "logic"))


def judge_pairs(
    pairs: pd.DataFrame,
    questions: Mapping[str, Question],
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
    min_judge_score: int,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The pairs whose chosen side a judge gives at least ``min_judge_score`` for both correctness and logic, 1 to 5.

    The rejected side is meant to be wrong, and is not judged (**ours**). The judge's prompt, raw reply and scores are
    kept in ``judgement``. Left out: ``judge_unreadable`` (no scores after all attempts) and ``judged_low``.
    """
    if not 1 <= min_judge_score <= 5:
        raise MedReflError(f"judge: the least score is {min_judge_score}, expected 1 to 5")
    chains = [prompts.split_steps(side[0]["content"]) for side in pairs["chosen"]]
    asked = ask_until_valid(
        generator,
        [
            (prompts.judge(questions[name], c), read_scores)
            for name, c in zip(pairs["question_id"], chains, strict=True)
        ],
        sampling=sampling,
        seed=seed,
        title="judge",
    )
    judgements = [
        one.value
        and {
            "prompt": one.messages[-1]["content"],
            "reply": one.replies[-1],
            "correctness": one.value[0],
            "logic": one.value[1],
        }
        for one in asked
    ]
    keep = [one.value is not None and min(one.value) >= min_judge_score for one in asked]
    low = sum(one.value is not None for one in asked) - sum(keep)
    judged = pairs.assign(judgement=pd.Series(judgements, index=pairs.index, dtype=object))
    unreadable = sum(one.value is None for one in asked)
    return judged[keep].reset_index(drop=True), {"judge_unreadable": unreadable, "judged_low": low}


def read_scores(reply: Continuation) -> tuple[tuple[int, int] | None, str]:
    """Correctness and logic from a judge's reply, in whatever order; of several the last ones stand."""
    found = [pattern.findall(reply.text) for pattern in _SCORES]
    if not all(found):
        return None, "unreadable"
    return (int(found[0][-1]), int(found[1][-1])), ""
