"""Measure DPO: ``train_dpo`` on a published architecture with random weights in NF4.

First ours beside TRL's ``DPOTrainer`` on the same pairs. Then the largest ``max_length`` that trains under each cap on
the card's memory, with its speed and its peak, beside the peak that ``medrefl plan`` predicts (goal: within 15%).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medrefl_utils.core import MedReflError
from medrefl_utils.models import ModelShape, context_length, load_model, load_tokenizer, memory, predict_training
from medrefl_utils.training import DpoSettings, EfficiencySettings, MonitorSettings, train_dpo
from tests.gpu.random_models import drawn_weights, save_architecture
from tests.gpu.scale import Add, Deadline, Scale, card_gib, clean_memory, on_card, peak_gib, wait

PAIRS, PROMPT, STEP = 4, 300, 128
CONTEXT_GIB = memory.CONTEXT / memory.GIB
"""Of the card's memory, what CUDA itself takes by our prediction; torch does not count it."""


@dataclass(frozen=True)
class Trial:
    """A finished training: tokens per second after its first step, and peak memory [GiB] (None without a card)."""

    rate: float
    peak: float | None


def settings(scale: Scale) -> tuple[DpoSettings, EfficiencySettings]:
    """Return the settings of all trainings: one pair per forward pass, two per optimizer step."""
    card = on_card()
    economy = EfficiencySettings(
        gradient_checkpointing=True,
        optimizer="paged_adamw_8bit" if card else "adamw",
        compute_dtype="auto" if card else "fp32",
    )
    return DpoSettings(batch_size=1, gradient_accumulation=2, warmup_steps=1, lora_rank=scale.rank), economy


def make_pairs(length: int, words: int, shared: int = 0) -> pd.DataFrame:
    """Make PAIRS pairs of random words (one token each): prompt and either side have ``length`` tokens together.

    ``shared`` of the tokens of a side are the same on both sides, as in a reflection pair.
    """
    rng = np.random.default_rng(0)

    def text(tokens: int) -> str:
        # Odd word numbers only: an even one may end a line.
        return " ".join(f"w{2 * i + 1}" for i in rng.integers(2, words // 2 - 1, tokens))

    def message(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    side = length - PROMPT - 1  # one token ends the turn
    rows = []
    for i in range(PAIRS):
        row: dict[str, Any] = {"pair_id": str(i), "question_id": str(i), "kind": "bench"}
        row["prompt"] = message("user", text(PROMPT))
        start = text(shared) + " " if shared else ""
        rows.append(row | {name: message("assistant", start + text(side - shared)) for name in ("chosen", "rejected")})
    return pd.DataFrame(rows)


def lengths(length: int) -> pd.DataFrame:
    """Return the token counts of one of these pairs, as ``models.predict_training`` takes them."""
    side = length - PROMPT - 1
    return pd.DataFrame({"prompt_tokens": [PROMPT], "chosen_tokens": [side], "rejected_tokens": [side]})


def train(model: str, pairs: pd.DataFrame, length: int, scale: Scale) -> Trial | None:
    """Train on pairs of ``length`` tokens with ``train_dpo``; return None if memory ran out."""
    dpo, economy = settings(scale)
    clean_memory()
    times: list[float] = []

    def show(log: pd.DataFrame) -> None:
        wait()
        times.append(time.perf_counter())

    try:
        with tempfile.TemporaryDirectory() as out:
            train_dpo(
                pairs, model, Path(out) / "adapter", dpo=replace(dpo, max_length=length), seed=0, economy=economy,
                upkeep=MonitorSettings(show=show),
            )  # fmt: skip
    except (MedReflError, torch.OutOfMemoryError) as error:
        if isinstance(error, MedReflError) and "out of memory" not in str(error):
            raise
        return None
    done = (len(times) - 1) * dpo.batch_size * dpo.gradient_accumulation
    return Trial(done * (2 * length - PROMPT) / (times[-1] - times[0]), peak_gib())


def train_trl(model: str, pairs: pd.DataFrame, length: int, scale: Scale) -> Trial | None:
    """Train on the same pairs with TRL's ``DPOTrainer``: its defaults, but for what is learned and the batch size."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    dpo, economy = settings(scale)
    clean_memory()
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait()
            times.append(time.perf_counter())

    try:
        with tempfile.TemporaryDirectory() as out:
            trainer = DPOTrainer(
                model=load_model(model, dpo.quantization, dtype=economy.dtype),
                args=DPOConfig(
                    output_dir=out, num_train_epochs=1, learning_rate=dpo.learning_rate, max_length=None,
                    per_device_train_batch_size=dpo.batch_size, gradient_accumulation_steps=dpo.gradient_accumulation,
                    bf16=economy.dtype == torch.bfloat16, fp16=economy.dtype == torch.float16, use_cpu=not on_card(),
                    save_strategy="no", report_to="none", disable_tqdm=True,
                ),
                train_dataset=Dataset.from_pandas(pairs[["prompt", "chosen", "rejected"]]),
                processing_class=load_tokenizer(model),
                peft_config=LoraConfig(
                    r=dpo.lora_rank, lora_alpha=dpo.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
                ),
                callbacks=[Clock()],
            )  # fmt: skip
            trainer.train()
    except torch.OutOfMemoryError:
        return None
    done = (len(times) - 1) * dpo.batch_size * dpo.gradient_accumulation
    return Trial(done * (2 * length - PROMPT) / (times[-1] - times[0]), peak_gib())


def longest(
    trial: Callable[[int], Trial | None], guess: int, deadline: Deadline, largest: int = 10**6
) -> tuple[int, Trial | None, bool]:
    """Find the largest multiple of STEP that trains, up to 3% or one STEP, starting at a guess.

    Returns:
        The length and its trial (0 and None if 3 * STEP does not train), and whether the search was complete: where
        time ran out, larger lengths may train too.
    """
    low, best, high, at = 0, None, None, max(3, min(guess, largest) // STEP)
    while (high is None or high - low > max(1, 0.03 * low)) and at * STEP <= largest:
        if best is not None and deadline.left() < 0:
            return low * STEP, best, False
        if (found := trial(at * STEP)) is not None:
            low, best = at, found
        else:
            high = at
        if high is None:
            at += max(1, at // 8)
        elif best is None:
            if at == 3:
                return 0, None, True
            at = max(3, at - max(1, at // 8))
        else:
            at = (low + high) // 2
    return low * STEP, best, True


@contextmanager
def capped(gib: float) -> Iterator[None]:
    """Cap torch's memory on the card so that it and CUDA's own take ``gib`` together; 0 sets no cap."""
    if not gib or not on_card():
        yield
        return
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(gib - CONTEXT_GIB, 1.0) / card_gib()))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def beside_trl(model: str, scale: Scale, add: Add) -> None:
    """Measure ours and TRL on pairs that share their prompt only, then on pairs that share half of a side."""
    words = ModelShape.named(model).vocabulary
    for kind, share in (("reasoning", 0.0), ("reflection", 0.5)):
        pairs = make_pairs(scale.length, words, shared=int(share * (scale.length - PROMPT)))
        for name, trainer in (("ours", train), ("trl", train_trl)):
            row = {"case": "speed", "pairs": kind, "trainer": name, "length": scale.length}
            found = trainer(model, pairs, scale.length, scale)
            if found is None:
                add(row | {"out_of_memory": True})
                continue
            add(row | {"tokens_per_second": found.rate, "peak_gib": found.peak})


def under_cap(model: str, cap: float, scale: Scale, deadline: Deadline, add: Add) -> None:
    """Measure the largest length under a cap, and what was predicted for it."""
    shape = ModelShape.named(model)
    dpo, economy = settings(scale)
    chosen = asdict(dpo) | asdict(economy)
    card = card_gib()
    if cap and card and cap > card:
        add({"case": "cap", "cap_gib": cap, "skipped": f"the card has {card:.1f} GiB"})
        return
    gib, guess, largest = cap or card, scale.longest, context_length(model)
    if gib:
        most = lengths(largest)
        guess = memory.longest_that_fits(shape, most, settings=chosen | {"max_length": largest}, gib=gib) or 3 * STEP
    else:
        largest = min(largest, 2 * scale.longest)  # a CPU: memory is not the limit
    with capped(cap):
        length, trial, complete = longest(
            lambda length: train(model, make_pairs(length, shape.vocabulary), length, scale), guess, deadline, largest
        )
    row = {"case": "cap", "cap_gib": cap, "length": length, "complete": complete}
    if trial is None:
        add(row)
        return
    predicted = predict_training(shape, lengths(length), settings=chosen | {"max_length": length}).gib
    row |= {"tokens_per_second": trial.rate, "peak_gib": trial.peak, "predicted_gib": predicted}
    if trial.peak is not None:  # the prediction counts CUDA's own memory, torch's peak does not
        row["off"] = predicted / (trial.peak + CONTEXT_GIB) - 1
    add(row)


def measure(scale: Scale, deadline: Deadline, add: Add) -> None:
    """Measure both trainers, then each cap, in the time that is left."""
    with tempfile.TemporaryDirectory() as folder, drawn_weights():
        model = save_architecture(Path(folder) / scale.architectures[0], scale.architectures[0])
        beside_trl(model, scale, add)
        for i, cap in enumerate(scale.caps):
            share = Deadline(max(deadline.left(), 0) / (len(scale.caps) - i))
            under_cap(model, cap, scale, share, add)
