"""What each parameter of 04's economy saves or costs in a training on a CPU, against its default.

The base, LoRA and reflection pairs of ``bench_training``, PAIRS of them in one optimizer step; jobs in processes of
their own, which take turns. Time is the whole job's, memory the process's peak. ``activation_offloading`` needs a GPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import bench_training
from tests.benchmarks.measure import Measurement

PAIRS = 16
FOUR = {"batch_size": 4, "gradient_accumulation": 4}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "shared_prefix=false": {"economy": {"shared_prefix": False}},
    "gradient_checkpointing=true": {"economy": {"gradient_checkpointing": True}},
    "optimizer=paged_adamw_8bit": {"economy": {"optimizer": "paged_adamw_8bit"}},
    "compute_dtype=fp32": {"economy": {"compute_dtype": "fp32"}},
    "batch_size=4": {"dpo": FOUR},
    "batch_size=4,group_by_length=true": {"dpo": FOUR, "economy": {"group_by_length": True}},
}
"""Each with what differs from the default: a pair a forward pass, bf16, and the parameters as 04 has them."""


def job(name: str, folder: Path, out: Path) -> dict[str, object]:
    """One of the variants, in the process that this is called in."""
    return bench_training.ours(folder, out, **VARIANTS[name])


def main() -> Iterator[Measurement]:
    """For each variant: its time and memory by the default's. The goal: but for noise, the default is no slower."""
    with tempfile.TemporaryDirectory() as place:
        folder = bench_training.write_inputs(Path(place), "reflection", PAIRS)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
        for turn in range(bench_training.ROUNDS):
            for name, results in runs.items():
                out = folder / f"{name}{turn}"
                results.append(bench_training.alone(name, sys.executable, folder, out, __name__))
        seconds = {name: min(r["seconds"] for r in results) for name, results in runs.items()}
        peaks = {name: min(r["gib"] for r in results) for name, results in runs.items()}
        for name in list(VARIANTS)[1:]:
            yield Measurement(name, seconds["default"], seconds[name], 0.9, details={"runs": runs[name]})
            yield Measurement(f"{name},memory", peaks["default"], peaks[name], 0, "GiB")
