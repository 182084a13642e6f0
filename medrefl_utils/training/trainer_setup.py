"""What DPO and supervised fine-tuning share: trainer arguments, memory trial, checkpoints, progress and saving."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from peft import LoraConfig
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.source_code import code_hash
from medrefl_utils.core.store import read_table, table_key, write_table, write_text
from medrefl_utils.models.loading import device
from medrefl_utils.models.memory import is_out_of_memory
from medrefl_utils.training.health_checks import TrainingFinding
from medrefl_utils.training.learned import TRAINED
from medrefl_utils.training.settings import EfficiencySettings, MonitorSettings

HELD_OUT_EVALUATIONS = 4
"""Number of evaluations of the held-out rows per training: one per quarter (ours)."""

_Arguments = TypeVar("_Arguments", bound=TrainingArguments)


class TrainingSettings(Protocol):
    """The settings that decide what is learned, as far as both trainings have them."""

    learning_rate: float
    epochs: int
    batch_size: int
    gradient_accumulation: int


def optimizer_steps(rows: int, settings: TrainingSettings) -> int:
    """Return the number of optimizer steps of a training on so many rows."""
    return settings.epochs * math.ceil(rows / (settings.batch_size * settings.gradient_accumulation))


def training_arguments(
    kind: type[_Arguments],
    folder: Path,
    settings: TrainingSettings,
    economy: EfficiencySettings,
    *,
    run_name: str,
    seed: int,
    steps: int,
    upkeep: MonitorSettings,
    evaluate: bool,
    **own: Any,  # noqa: ANN401 (arguments of ``kind``)
) -> _Arguments:
    """Return the arguments of a trainer.

    Args:
        kind: TRL's class of arguments, ``DPOConfig`` or ``SFTConfig``.
        folder: where the trainer writes its checkpoints.
        settings: what is learned.
        economy: time and memory.
        run_name: name of the training in an experiment tracker.
        seed: seed of the order of the rows and of the initial adapter.
        steps: optimizer steps of the whole training.
        upkeep: its checkpoints and trackers.
        evaluate: whether there are held-out rows.
        own: arguments of ``kind`` alone.

    Raises:
        MedReflError: a gradient_accumulation that the processes cannot share evenly.
    """
    gpu = device() == "cuda"
    return kind(
        output_dir=str(folder),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=_share(settings.gradient_accumulation),
        max_grad_norm=1.0,
        max_length=None,  # the rows have their lengths already
        gradient_checkpointing=economy.gradient_checkpointing,
        activation_offloading=economy.activation_offloading,
        optim="paged_adamw_8bit" if economy.optimizer == "paged_adamw_8bit" else "adamw_torch",
        train_sampling_strategy="group_by_length" if economy.group_by_length else "random",
        bf16=economy.dtype == torch.bfloat16,
        fp16=economy.dtype == torch.float16,
        use_cpu=not gpu,
        remove_unused_columns=False,  # keeps "length", by which rows are grouped
        logging_steps=1,
        logging_nan_inf_filter=False,  # shows a NaN as a NaN, not as the mean of earlier steps
        eval_strategy="steps" if evaluate else "no",
        eval_steps=max(1, math.ceil(steps / HELD_OUT_EVALUATIONS)),
        save_strategy="steps" if upkeep.checkpoint_folder else "no",
        save_steps=upkeep.checkpoint_every,
        save_total_limit=2,
        report_to=list(upkeep.report_to),
        run_name=run_name,
        project="medrefl",
        disable_tqdm=True,  # ``Watch`` has its own bar, which papermill can forward
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=gpu,
        **own,
    )


def _share(accumulation: int) -> int:
    """Return the number of forward passes per optimizer step of each process."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if accumulation % processes:
        raise MedReflError(
            f"training: gradient_accumulation is {accumulation}, which {processes} processes cannot share "
            f"evenly; expected a multiple of {processes}"
        )
    return accumulation // processes


def lora_config(rank: int, alpha: int) -> LoraConfig:
    """Return the adapter's config: no dropout, on all linear layers (published)."""
    return LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )  # fmt: skip


def keep_adapter_in_32_bit(model: torch.nn.Module) -> None:
    """Convert trainable parameters to 32 bit. TRL casts a QLoRA adapter to bf16, where updates of 1e-5 round to 0."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def memory_trial(trainer: Trainer, economy: EfficiencySettings, advice: Callable[[], str]) -> Iterator[None]:
    """Run the block, a forward and backward pass, beside what the optimizer will take, and leave nothing behind.

    The pass checkpoints and offloads as the training will. The memory of AdamW's states is allocated meanwhile, except
    for paged states, which can leave the GPU.

    Raises:
        MedReflError: out of memory; the message is ``advice()``.
    """
    trainer.model.train()
    if economy.gradient_checkpointing:  # the trainer itself does this at the beginning of the training
        enable_checkpointing(trainer.model)
    states: list[torch.Tensor] = []
    try:
        if economy.optimizer == "adamw":
            states = [torch.empty_like(p) for p in trainer.model.parameters() if p.requires_grad for _ in range(2)]
        with trainer.maybe_activation_offload_context:
            yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MedReflError(advice()) from None
    finally:
        states.clear()
        trainer.model.zero_grad(set_to_none=True)
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0


def enable_checkpointing(model: torch.nn.Module) -> None:
    """Let a model recompute its activations in the backward pass, as the trainer does."""
    # transformers has renamed it; the older versions that we allow know the older name only.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def split_held_out(ids: pd.DataFrame, held_out: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split tokenized rows into training rows, shuffled, and held-out rows; a question is never in both.

    Args:
        ids: columns of ``tokenize_pairs`` or ``tokenize_chains``.
        held_out: share of the questions, 0 to below 1; at least one question stays in training.
        seed: seed of split and order.
    """
    rng = np.random.default_rng(seed)
    questions = rng.permutation(ids["question_id"].unique())
    asked = set(questions[: min(round(held_out * len(questions)), len(questions) - 1)])
    apart = ids["question_id"].isin(asked)
    # The trainer's sampler shuffles again with the same seed.
    return ids[~apart].sample(frac=1, random_state=seed), ids[apart]


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, or None; its state file is written last, so an incomplete one has none."""
    whole = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            whole.append((json.loads(state.read_text(encoding="utf-8"))["global_step"], str(state.parent)))
        except (ValueError, KeyError):
            continue
    return max(whole)[1] if whole else None


def training_key(parts: Sequence[object], tokens: pd.DataFrame, modules: Sequence[ModuleType]) -> str:
    """Return the hash of everything a training depends on; a checkpoint or a result is reused under the same key.

    Args:
        parts: JSON values: model, settings, seed.
        tokens: columns of token ids.
        modules: the modules whose code computes the training.
    """
    ids = tokens.to_json(orient="values")
    hashes = [hashlib.sha256(ids.encode()).hexdigest(), code_hash(*modules, sys.modules[__name__])]
    return hashlib.sha256(json.dumps([*parts, *hashes], sort_keys=True).encode()).hexdigest()[:16]


def finished_log(folder: Path, key: str, schema: pa.Schema) -> pd.DataFrame | None:
    """Return the log of the training whose result is in ``folder`` if it has this key, else None."""
    return read_table(folder / TRAINED, schema) if table_key(folder / TRAINED) == key else None


def save_adapter(
    trainer: Trainer, folder: Path, tokenizer: PreTrainedTokenizerBase, log: pd.DataFrame, schema: pa.Schema, key: str
) -> None:
    """Write the adapter, the tokenizer and the training log into ``folder``, a new one."""
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])  # PEFT writes them in the random order of a set
    write_text(config, json.dumps(settings, indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    write_table(folder / TRAINED, log, schema, key=key)


def history_table(
    history: Sequence[Mapping[str, float]], names: Mapping[str, str], held_out: Mapping[str, str], schema: pa.Schema
) -> pd.DataFrame:
    """Convert a trainer's log history to a table with one row per optimizer step.

    Args:
        history: the trainer's.
        names: {the trainer's name: column} of a training step.
        held_out: the same of an evaluation.
        schema: the table's; its first column is ``step``.
    """
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        chosen = names if "loss" in entry else held_out if "eval_loss" in entry else {}
        if chosen:
            found = {name: float(entry[key]) for key, name in chosen.items() if key in entry}
            rows.setdefault(int(entry["step"]), {}).update(found)
    log = pd.DataFrame([{"step": step, **values} for step, values in sorted(rows.items())], columns=schema.names)
    return log.astype({"step": int} | {name: float for name in schema.names[1:]})


class Watch(TrainerCallback):
    """Follow a trainer's log: progress bar, live curves, and findings, each kind once.

    ``read`` makes the log from the trainer's history, ``check`` finds faults in it (log, rows per optimizer step), and
    ``shown`` are the columns beside the bar.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        upkeep: MonitorSettings,
        *,
        read: Callable[[Sequence[dict[str, float]]], pd.DataFrame],
        check: Callable[[pd.DataFrame, int], Sequence[TrainingFinding]],
        shown: Sequence[str],
    ) -> None:
        self.upkeep, self.read, self.check, self.shown = upkeep, read, check, tuple(shown)
        self.told: set[str] = set()
        self.stopped: TrainingFinding | None = None
        self.bar = tqdm(total=steps, desc=title, unit="step")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Handle a log entry of the trainer: after each optimizer step, after each evaluation, and at the end."""
        if not logs or not {"loss", "eval_loss"} & logs.keys():
            return
        log = self.read(state.log_history)
        self.bar.update(state.global_step - self.bar.n)
        self.bar.set_postfix({name: f"{log[name].iloc[-1]:.3f}" for name in self.shown})
        if self.upkeep.show is not None and state.is_world_process_zero and "loss" in logs:
            self.upkeep.show(log)
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        for finding in self.check(log, per_step):
            if finding.kind in self.upkeep.stop_on:
                self.stopped, control.should_training_stop = finding, True
            elif finding.kind not in self.told:
                self.bar.write(f"training, step {finding.step}: {finding.line}", file=sys.stderr)
            self.told.add(finding.kind)

    def raise_if_stopped(self) -> None:
        """Raise MedReflError where a finding stopped the training."""
        if self.stopped:
            raise MedReflError(f"training: stopped at step {self.stopped.step}: {self.stopped.line}")
