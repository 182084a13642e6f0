"""What the parts share: the sizes of a scale, a deadline, and memory readings that also work without a card."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from medrefl_utils.models import GIB

Add = Callable[[dict[str, Any]], None]
"""A part calls it with each row that it has measured, so that a part that runs out of time keeps its rows."""


@dataclass(frozen=True)
class Scale:
    """Sizes of all parts."""

    name: str
    architectures: tuple[str, ...]
    """of the training and of the rollout; the first one also of caps and profile"""
    caps: tuple[float, ...]
    """caps on the card's memory [GiB]; 0: no cap"""
    length: int
    """tokens of prompt and response in the comparison with TRL and in the profile"""
    longest: int
    """first guess of the largest cut-off length where no card tells its memory"""
    rank: int
    """of the LoRA"""
    questions: int
    """grown in the rollout"""
    rows: int
    """continuations decoded together"""
    overrides: tuple[str, ...]
    """of the smoke chain"""


SCALES = {
    "full": Scale(
        "full", ("llama31_8b", "qwen25_7b"), (22.0, 39.0, 15.0, 0.0), 2048, 4096, rank=64, questions=24, rows=256,
        overrides=(),
    ),
    "tiny": Scale(
        "tiny", ("tiny",), (0.0,), 448, 448, rank=4, questions=2, rows=16,
        overrides=(
            "01_tree_rollout.n_questions=16", "05_benchmark_evaluation.n_questions=6",
            "05_benchmark_evaluation.protocols=[greedy]", "05_benchmark_evaluation.self_correction_questions=1",
            "03_pair_construction.max_reflection_pairs=2",
        ),
    ),
}  # fmt: skip


class Deadline:
    """Seconds that a part may take, from now on."""

    def __init__(self, seconds: float):
        self.seconds, self._start = seconds, time.monotonic()

    def left(self) -> float:
        """Return the seconds that are left; negative when they are over."""
        return self.seconds - (time.monotonic() - self._start)


def on_card() -> bool:
    """Return whether there is a CUDA card."""
    return torch.cuda.is_available()


def clean_memory() -> None:
    """Free what no tensor holds and count the peak anew."""
    gc.collect()
    if on_card():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """Return the most memory that torch had reserved on the card [GiB]; None without a card."""
    return torch.cuda.max_memory_reserved() / GIB if on_card() else None


def card_gib() -> float | None:
    """Return the card's memory [GiB]; None without a card."""
    return torch.cuda.get_device_properties(0).total_memory / GIB if on_card() else None


def wait() -> None:
    """Wait until the card has done what it was given."""
    if on_card():
        torch.cuda.synchronize()
