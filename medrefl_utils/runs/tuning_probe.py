"""Fine-tune on a few examples, to predict what stage 09 takes on all of them; and predict its memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import QUESTIONS, STEPS, TAUGHT
from medrefl_utils.core.store import read_table
from medrefl_utils.models.loading import load_tokenizer
from medrefl_utils.models.memory import ModelShape, fit_training, longest_chains
from medrefl_utils.runs.distributed_training import tuning_settings
from medrefl_utils.runs.stages import FINE_TUNING
from medrefl_utils.training.settings import MonitorSettings
from medrefl_utils.training.sft import train_sft
from medrefl_utils.training.sft_targets import sft_examples
from medrefl_utils.training.token_ids import chain_lengths, end_of_turn, tokenize_chains
from medrefl_utils.training.trainer_setup import HELD_OUT_EVALUATIONS

_PASSES = 6
"""Batches to train on."""
_FORWARD = 1 / 3
"""Cost of a forward pass, as a share of a training step's forward and backward pass (ours)."""


def tuning_memory(settings: Mapping[str, Any], run: RunFiles, card: float | None = None) -> list[str]:
    """Return lines on the memory of stage 09: with the longest of its examples, and with the longest possible."""
    shape, limit = ModelShape.named(settings["model"]), settings["max_length"]
    most = fit_training(shape, longest_chains(limit, settings["batch_size"]), settings=settings, card=card)
    lines = [f"{FINE_TUNING}, examples filling max_length {limit}: {most.line()}"]
    if (examples := _examples(settings, run)) is None:
        return lines
    ids = _ids(examples, settings)
    longest = fit_training(shape, chain_lengths(ids), settings=settings, card=card)
    return [f"{FINE_TUNING}, the {len(ids)} examples, up to {ids.length.max()} tokens: {longest.line()}", *lines]


def probe_tuning(settings: Mapping[str, Any], run: RunFiles, files: RunFiles) -> tuple[float, str]:
    """Train on a few of the run's examples; return the seconds of stage 09 on all of them, and how that was estimated.

    Loading and merging are done once and not scaled. Nothing is trained where the examples are not made yet, or where
    the training would not fit on this machine.

    Args:
        settings: parameters of the stage.
        run: the run's files.
        files: where the probe writes its model.
    """
    if (examples := _examples(settings, run)) is None:
        return 0.0, "not measured: what it trains on is not made yet"
    lengths = chain_lengths(_ids(examples, settings))
    if fit_training(ModelShape.named(settings["model"]), lengths, settings=settings).changes != {}:
        return 0.0, "not measured: it does not fit on this machine"
    sft, economy, _ = tuning_settings(settings, files)
    few = examples.sample(min(len(examples), _PASSES * sft.batch_size), random_state=0)
    stamps = [time.perf_counter()]
    upkeep = MonitorSettings(stop_on=(), show=lambda log: stamps.append(time.perf_counter()))
    probe = replace(sft, epochs=1, gradient_accumulation=1, held_out_share=0.0)
    train_sft(
        few, settings["model"], files.sft_model, adapter=files.sft_adapter, sft=probe, seed=settings["seed"],
        max_dropped=1.0, economy=economy, upkeep=upkeep,
    )  # fmt: skip
    whole = time.perf_counter() - stamps[0]
    first, last = stamps[1], stamps[-1]
    behind = len(few) - sft.batch_size  # examples after the first step
    an_example = (last - first) / behind if behind > 0 else whole / len(few)
    passes = (1 - sft.held_out_share) * sft.epochs + sft.held_out_share * HELD_OUT_EVALUATIONS * _FORWARD
    seconds = max(0.0, whole - an_example * len(few)) + an_example * len(examples) * passes
    return seconds, f"{len(few)} of {len(examples)} examples, {sft.epochs} epoch{'s' * (sft.epochs != 1)}"


def _examples(settings: Mapping[str, Any], run: RunFiles) -> pd.DataFrame | None:
    """Return what stage 09 will train on, or None where its chains, or the trees of a control, are not made yet."""
    chains, trees = Path(settings["chains"]) if settings["chains"] else run.chains, RunFiles(Path(settings["own_run"]))
    own = settings["targets"] == "own"
    if not chains.exists() or (own and not (trees.steps.exists() and trees.questions.exists())):
        return None
    taught = (read_table(trees.steps, STEPS), read_table(trees.questions, QUESTIONS)) if own else None
    same = dict(n=settings["n_examples"], seed=settings["seed"], own=taught)
    return sft_examples(read_table(chains, TAUGHT), settings["targets"], **same)[0]


def _ids(examples: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    tokenizer = load_tokenizer(settings["model"])
    return tokenize_chains(examples, tokenizer, end=end_of_turn(tokenizer), max_length=settings["max_length"])[0]
