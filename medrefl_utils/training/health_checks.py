"""Check the log of a training for failures while it runs: one line per finding. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

KINDS = ("not_finite", "flat_margin", "chance", "collapse", "length")
"""Kinds of findings of DPO, the values of ``stop_on`` in stage 04."""
SFT_KINDS = ("not_finite", "flat_loss", "overfitting")
"""Kinds of findings of supervised fine-tuning, the values of ``stop_on`` in stage 09."""
WINDOW = 10
"""Optimizer steps over which a value is averaged."""
PATIENCE = 30
"""Optimizer steps before a margin near 0, or an accuracy at chance level, is a finding: three windows (ours)."""
FLAT = 1e-3
"""A smaller mean margin counts as 0: at beta 0.1 it is a hundredth of a nat (ours)."""
COLLAPSED = 0.5
"""Largest share of its log-probability under the reference that the chosen side may lose (ours)."""
FELL = 0.01
"""Least share of its first mean that the loss of a fine-tuning must lose (ours)."""
ROSE = 0.05
"""Largest share by which the held-out loss may rise above its lowest value (ours)."""


@dataclass(frozen=True)
class TrainingFinding:
    """A finding: one of ``KINDS`` or ``SFT_KINDS``, its optimizer step, and a line: found, and what to do."""

    kind: str
    step: int
    line: str


def check_training_log(
    log: pd.DataFrame, *, beta: float, pairs_per_step: int, warmup_steps: int = 0
) -> list[TrainingFinding]:
    """Return the findings at the log's last step, at most one of each kind.

    Non-finite numbers count at once, except for a single non-finite gradient norm: an fp16 loss scaler skips that step.
    Other values are averaged over the last ``WINDOW`` steps. All thresholds are ours.

    Args:
        log: columns of TRAINING.
        beta: KL penalty strength of the training.
        pairs_per_step: pairs per optimizer step.
        warmup_steps: warm-up steps of the training.
    """
    if log.empty:
        return []
    step, found = int(log["step"].iloc[-1]), _not_finite(log)
    last = log.tail(WINDOW)
    if len(log) >= PATIENCE + warmup_steps and "not_finite" not in found:
        margin, accuracy = last["margin"].mean(), last["accuracy"].mean()
        if abs(margin) < FLAT:
            found["flat_margin"] = f"the margin is still {margin:.5f}: the adapter learns nothing; raise learning_rate"
        chance = 0.5 + 1.0 / math.sqrt(pairs_per_step * len(last))  # two standard errors above chance
        if accuracy <= chance:
            found["chance"] = (
                f"{accuracy:.0%} of the pairs are ranked correctly, which is chance level (up to {chance:.0%}): "
                "raise learning_rate, or inspect the pairs"
            )
    if len(log) >= WINDOW and "not_finite" not in found:
        lost = -(last["chosen_reward"] / beta).mean()
        reference = -(last["chosen_logprob"] - last["chosen_reward"] / beta).mean()
        if reference > 0 and lost > COLLAPSED * reference:
            found["collapse"] = (
                f"the chosen responses lost {lost:.0f} of {reference:.0f} nats relative to the reference: the model "
                "moves away from both sides; lower learning_rate or raise beta"
            )
    ends = log["end_logprob"].dropna()
    if len(ends) >= 2 * WINDOW:
        before, now = ends.head(WINDOW).mean(), ends.tail(WINDOW).mean()
        if before - now > math.log(2):
            found["length"] = (
                f"the model ends its turn after a chosen response with probability {math.exp(now):.2f}, at first "
                f"{math.exp(before):.2f}: its responses become longer; set length_match in 03_pair_construction"
            )
    return [TrainingFinding(kind, step, line) for kind, line in found.items()]


def check_sft_log(log: pd.DataFrame, *, warmup_steps: int = 0) -> list[TrainingFinding]:
    """Return the findings at the last step of a fine-tuning's log, at most one of each kind. All thresholds are ours.

    Args:
        log: columns of SFT_TRAINING.
        warmup_steps: warm-up steps of the training.
    """
    if log.empty:
        return []
    step, found = int(log["step"].iloc[-1]), _not_finite(log)
    if len(log) >= PATIENCE + warmup_steps and not found:
        first, last = log["loss"].head(WINDOW).mean(), log["loss"].tail(WINDOW).mean()
        if last > (1 - FELL) * first:
            found["flat_loss"] = (
                f"the loss was {first:.3f} and is {last:.3f}: the model learns nothing; raise learning_rate"
            )
    asked = log[["step", "held_out_loss"]].dropna()
    if len(asked) >= 2:
        lowest, now = asked.loc[asked["held_out_loss"].idxmin()], asked["held_out_loss"].iloc[-1]
        if now > (1 + ROSE) * lowest["held_out_loss"]:
            found["overfitting"] = (
                f"the held-out loss rose from {lowest['held_out_loss']:.3f} at step {lowest['step']:.0f} to {now:.3f}: "
                "the model memorizes its chains; lower epochs or learning_rate"
            )
    return [TrainingFinding(kind, step, line) for kind, line in found.items()]


def _not_finite(log: pd.DataFrame) -> dict[str, str]:
    """Return the finding of a loss that is no number, or of a gradient that stays infinite."""
    if not math.isfinite(log["loss"].iloc[-1]):
        return {"not_finite": f"the loss is {log['loss'].iloc[-1]}: lower learning_rate, or compute in bf16 or fp32"}
    if len(log) >= 3 and not np.isfinite(log["grad_norm"].tail(3)).any():
        return {"not_finite": "the gradient was not finite in three consecutive steps: lower learning_rate"}
    return {}
