"""Measure DPO on one CUDA card: ``train_dpo`` on an 8B architecture with random weights in NF4.

    python -m tests.gpu.bench_training [--caps 15 22 39] [--layers 32]

``set_per_process_memory_fraction`` caps the memory of the card. Per cap it finds the longest ``max_length`` at which
training finishes on pairs of that length (one pair per forward pass, checkpointing, LoRA of rank 64). It prints tokens
per second, peak memory, and the prediction of ``medrefl plan``, which should be within 15%. No figure has been measured
yet.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from medrefl_utils.core import MedReflError
from medrefl_utils.models import GIB, ModelShape, predict_training
from medrefl_utils.models.memory import longest_that_fits
from medrefl_utils.training import DpoSettings, EfficiencySettings, MonitorSettings, train_dpo
from tests.gpu.bench_rollout import model_folder

PAIRS, PROMPT, STEP = 6, 300, 128
DPO = DpoSettings(batch_size=1, gradient_accumulation=2)
ECONOMY = EfficiencySettings(gradient_checkpointing=True, optimizer="paged_adamw_8bit", compute_dtype="bf16")


@dataclass(frozen=True)
class Trial:
    """A finished training: tokens per second after its first step, and peak memory in GiB."""

    rate: float
    peak: float


def make_pairs(length: int, words: int) -> pd.DataFrame:
    """Make PAIRS pairs of random words (one token each): prompt and either side have ``length`` tokens together."""
    rng = np.random.default_rng(0)

    def message(role: str, tokens: int) -> list[dict[str, str]]:
        # Odd word numbers only: an even one may end a line.
        return [{"role": role, "content": " ".join(f"w{2 * i + 1}" for i in rng.integers(2, words // 2 - 1, tokens))}]

    side = length - PROMPT - 1  # one token ends the turn
    return pd.DataFrame(
        {"pair_id": str(i), "question_id": str(i), "kind": "bench", "prompt": message("user", PROMPT)}
        | {name: message("assistant", side) for name in ("chosen", "rejected")}
        for i in range(PAIRS)
    )


def lengths(length: int) -> pd.DataFrame:
    """Return the token counts of one of these pairs, as ``models.predict_training`` takes them."""
    side = length - PROMPT - 1
    return pd.DataFrame({"prompt_tokens": [PROMPT], "chosen_tokens": [side], "rejected_tokens": [side]})


def trained(
    model: str, length: int, words: int, dpo: DpoSettings = DPO, economy: EfficiencySettings = ECONOMY
) -> Trial | None:
    """Train on pairs of this length; return None if memory ran out."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    try:
        with tempfile.TemporaryDirectory() as out:
            train_dpo(
                make_pairs(length, words), model, Path(out) / "adapter", dpo=replace(dpo, max_length=length), seed=0,
                economy=economy, upkeep=MonitorSettings(show=lambda log: times.append(time.perf_counter())),
            )  # fmt: skip
    except (MedReflError, torch.OutOfMemoryError) as error:
        if isinstance(error, MedReflError) and "out of memory" not in str(error):
            raise
        return None
    pairs = (len(times) - 1) * dpo.batch_size * dpo.gradient_accumulation
    peak = torch.cuda.max_memory_reserved() / GIB if torch.cuda.is_available() else float("nan")
    return Trial(pairs * (2 * length - PROMPT) / (times[-1] - times[0]), peak)


def longest(trial: Callable[[int], Trial | None], guess: int) -> tuple[int, Trial] | None:
    """Find the longest multiple of STEP that trains, starting at a guess; None if 3 * STEP does not train."""
    low, best, high, at = 0, None, None, max(3, guess // STEP)
    while high is None or high - low > 1:
        if (found := trial(at * STEP)) is not None:
            low, best = at, found
        else:
            high = at
        if high is None:
            at += max(1, at // 8)
        elif best is None:
            if at == 3:
                return None
            at = max(3, at - max(1, at // 8))
        else:
            at = (low + high) // 2
    return low * STEP, best


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 without a CUDA card, or if a prediction is off by more than 15%."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--caps",
        type=float,
        nargs="+",
        default=[15.0, 22.0, 39.0],
        metavar="GIB",
        help="caps on the memory of the card",
    )
    parser.add_argument("--layers", type=int, default=32, help="layers of the model; 32 make 8B parameters")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA card here: nothing is measured", file=sys.stderr)
        return 1
    table = Table("cap, GiB", "max_length", "tokens/s", "peak, GiB", "predicted", "off by", title=None)
    table.title, off = torch.cuda.get_device_name(), []
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder), given.layers)
        shape, settings = ModelShape.named(model), asdict(DPO) | asdict(ECONOMY)
        for gib in given.caps:
            total = torch.cuda.get_device_properties(0).total_memory / GIB
            torch.cuda.set_per_process_memory_fraction(min(1.0, gib / total))
            guess = longest_that_fits(shape, lengths(20_000), settings=settings | {"max_length": 20_000}, gib=gib)
            found = longest(lambda length: trained(model, length, shape.vocabulary), guess or 3 * STEP)
            if found is None:
                table.add_row(f"{gib:g}", "none", "", "", "", "")
                continue
            length, trial = found
            predicted = predict_training(shape, lengths(length), settings=settings | {"max_length": length}).gib
            # The cap counts torch's memory only; the prediction also counts the CUDA context.
            off.append(predicted / trial.peak - 1)
            table.add_row(
                f"{gib:g}", str(length), f"{trial.rate:.0f}", f"{trial.peak:.1f}", f"{predicted:.1f}", f"{off[-1]:+.0%}"
            )
    Console().print(table)
    return int(any(abs(one) > 0.15 for one in off))


if __name__ == "__main__":
    sys.exit(main())
