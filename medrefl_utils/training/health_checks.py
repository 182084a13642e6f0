"""What can go wrong in a DPO training, read from its log while it runs: a line for each finding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

KINDS = ("not_finite", "flat_margin", "chance", "collapse", "length")
"""The names that ``stop_on`` takes."""
WINDOW = 10
"""Optimizer steps that a finding is the mean of."""
PATIENCE = 30
"""Optimizer steps before a margin that stays at 0, or an accuracy at chance, is a finding: three windows (ours)."""
FLAT = 1e-3
"""A mean margin nearer to 0 than this has not moved: at beta 0.1, a hundredth of a nat."""
COLLAPSED = 0.5
"""The share of its log-probability under the reference that the chosen side may lose (ours)."""


@dataclass(frozen=True)
class TrainingFinding:
    """One of ``KINDS``, the optimizer step it was seen at, and a line that says what was found and what to do."""

    kind: str
    step: int
    line: str


def check_training_log(
    log: pd.DataFrame, *, beta: float, pairs_per_step: int, warmup_steps: int = 0
) -> list[TrainingFinding]:
    """Findings after the log's last step (columns of ``records.TRAINING``), at most one of each kind.

    Non-finite numbers count at once (a lone non-finite gradient norm does not: an fp16 loss scaler skips such a step);
    all else is the mean of the last ``WINDOW`` steps. All thresholds are ours.
    """
    if log.empty:
        return []
    step, found = int(log["step"].iloc[-1]), {}
    if not math.isfinite(log["loss"].iloc[-1]):
        found["not_finite"] = f"the loss is {log['loss'].iloc[-1]}: lower learning_rate, or compute in bf16 or fp32"
    elif len(log) >= 3 and not np.isfinite(log["grad_norm"].tail(3)).any():
        found["not_finite"] = "the gradient was not finite in three steps on end: lower learning_rate"
    last = log.tail(WINDOW)
    if len(log) >= PATIENCE + warmup_steps and "not_finite" not in found:
        margin, accuracy = last["margin"].mean(), last["accuracy"].mean()
        if abs(margin) < FLAT:
            found["flat_margin"] = f"the margin still is {margin:.5f}: the adapter learns nothing; raise learning_rate"
        chance = 0.5 + 1.0 / math.sqrt(pairs_per_step * len(last))  # two standard errors of a coin
        if accuracy <= chance:
            found["chance"] = (
                f"{accuracy:.0%} of the pairs are ranked right, as a coin would (up to {chance:.0%}): "
                "raise learning_rate, or look at the pairs"
            )
    if len(log) >= WINDOW and "not_finite" not in found:
        lost = -(last["chosen_reward"] / beta).mean()
        reference = -(last["chosen_logprob"] - last["chosen_reward"] / beta).mean()
        if reference > 0 and lost > COLLAPSED * reference:
            found["collapse"] = (
                f"the chosen responses lost {lost:.0f} of {reference:.0f} nats against the reference: the model moves "
                "away from both sides; lower learning_rate or raise beta"
            )
    ends = log["end_logprob"].dropna()
    if len(ends) >= 2 * WINDOW:
        before, now = ends.head(WINDOW).mean(), ends.tail(WINDOW).mean()
        if before - now > math.log(2):
            found["length"] = (
                f"the model ends its turn after a chosen response with probability {math.exp(now):.2f}, "
                f"{math.exp(before):.2f} at first: its responses grow; balance the sides' lengths (length_match of 03)"
            )
    return [TrainingFinding(kind, step, line) for kind, line in found.items()]
