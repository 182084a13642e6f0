"""How much a training can have learned: its warm-up, its steps, and whether the adapter's weights moved."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError, safe_open

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import TRAINING
from medrefl_utils.core.store import read_table

TRAINED = "training.parquet"
"""File in the folder of an adapter or a model: the log of its training, with the key of that training."""
WARMUP_SHARE = 0.2
"""Largest share of the optimizer steps that warm-up takes (ours); the published 10 steps are 2% of theirs."""
FEW_STEPS = 10
"""A training of fewer optimizer steps is too short to judge the method by (ours)."""


def warmup_of(warmup_steps: int, steps: int) -> int:
    """Return the warm-up steps of a training of ``steps`` optimizer steps.

    These are ``warmup_steps``, but at most a fifth of the steps, rounded up, and never all of them: the first step of a
    warm-up has learning rate 0, so a training of one step would change nothing. The limit is ours.
    """
    return min(warmup_steps, math.ceil(WARMUP_SHARE * steps), max(steps - 1, 0))


def why_nothing_learned(adapter: Path) -> str:
    """Say why an adapter cannot have learned anything, or hardly anything; return "" where nothing speaks against it.

    Checked are the adapter's weights (LoRA adds B·A, so it is the base where every B is 0) and the log of its training:
    steps whose learning rate was 0, and fewer than ``FEW_STEPS`` optimizer steps. The rules are ours.

    Args:
        adapter: the adapter's folder. One without our log, or in another format, is checked as far as it can be.
    """
    lines = []
    if _is_base(adapter / "adapter_model.safetensors"):
        lines.append("every LoRA matrix B of the adapter is 0, so base and adapter are the same model")
    with suppress(MedReflError):  # no log, or that of another training
        lines += _short(read_table(adapter / TRAINED, TRAINING))
    return "; ".join(lines)


def _short(log: pd.DataFrame) -> list[str]:
    idle = int((log["learning_rate"] == 0).sum())
    steps = f"{len(log)} optimizer step{'s' * (len(log) != 1)}"
    if idle == len(log):
        return [f"the training had {steps}, all with learning rate 0"]
    if len(log) < FEW_STEPS:
        zero = f", {idle} of them with learning rate 0" if idle else ""
        return [f"the training had only {steps}{zero}: too few to show what the method does (at least {FEW_STEPS})"]
    return []


def _is_base(weights: Path) -> bool:
    """Return whether all matrices B in a file of LoRA weights are 0; False for a file that has none."""
    try:
        with safe_open(weights, framework="np") as file:
            names = [name for name in file.keys() if ".lora_B." in name]  # noqa: SIM118 (not a dict)
            bf16 = any(file.get_slice(name).get_dtype() == "BF16" for name in names)
        # numpy has no bf16; importing torch for the other types would double the report's time.
        with safe_open(weights, framework="pt" if bf16 else "np") as file:
            return bool(names) and not any(bool(file.get_tensor(name).any()) for name in names)
    except (OSError, SafetensorError):
        return False
