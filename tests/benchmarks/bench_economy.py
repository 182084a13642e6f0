"""Measure what each efficiency parameter of notebook 04 saves or costs on a CPU, compared with its default.

Base, LoRA and reflection pairs are those of ``bench_training``; one optimizer step reads PAIRS pairs. Each job runs in
its own process, and the jobs alternate. Time is that of the whole job; memory is the peak of the process.
``activation_offloading`` needs a GPU and is not measured here.
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
"""What each variant changes from the default: one pair per forward pass, bf16, and the parameters of notebook 04."""


def job(name: str, folder: Path, out: Path) -> dict[str, object]:
    """Run one of the variants in this process, and return its seconds and losses."""
    return bench_training.ours(folder, out, **VARIANTS[name])


def main() -> Iterator[Measurement]:
    """Yield time and memory of each variant beside the default. The goal: the default is not slower, noise aside."""
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
