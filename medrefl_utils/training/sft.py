"""Fine-tune a base on chains of reasoning (stage 09): a thin layer on TRL's SFTTrainer, PEFT and bitsandbytes."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import AutoConfig, PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from medrefl_utils.core.dropped_rows import DropCounts, check_dropped, check_some_left
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import resolve_model
from medrefl_utils.core.schemas import SFT_TRAINING
from medrefl_utils.core.store import table_notes, whole_folder, write_table
from medrefl_utils.models.loading import load_model, load_tokenizer, model_key
from medrefl_utils.models.memory import ModelShape, memory_advice
from medrefl_utils.training import health_checks
from medrefl_utils.training.adapters import merge_adapter
from medrefl_utils.training.settings import (
    EfficiencySettings,
    MonitorSettings,
    check_above_zero,
    check_held_out_share,
)
from medrefl_utils.training.taught import write_taught_questions
from medrefl_utils.training.token_ids import chain_lengths, end_of_turn, generation_end_tokens, tokenize_chains
from medrefl_utils.training.trackers import keep_tensorboard_in
from medrefl_utils.training.trainer_setup import (
    TRAINED,
    Watch,
    finished_log,
    history_table,
    keep_adapter_in_32_bit,
    last_checkpoint,
    lora_config,
    memory_trial,
    optimizer_steps,
    save_adapter,
    split_held_out,
    training_arguments,
    training_key,
)

IGNORED = -100
"""Label of a token that is not in the loss, as in transformers."""


@dataclass(frozen=True)
class SftSettings:
    """Settings that decide what is learned. The defaults are published (MedReason's training), but for the adapter."""

    full_finetuning: bool = False
    """train all weights, in 32 bit (published); else a LoRA adapter on the base (ours)"""
    lora_rank: int = 64
    lora_alpha: int = 16
    learning_rate: float = 5e-6
    """published, for a full fine-tuning; an adapter needs more"""
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    epochs: int = 3
    batch_size: int = 4
    gradient_accumulation: int = 32
    max_length: int = 8192
    """maximum number of tokens of prompt and completion; longer examples are left out (published: truncated)"""
    quantization: str = "nf4"
    """quantization of the base under the adapter: "nf4" (ours) or "none"; a full fine-tuning needs "none" """
    held_out_share: float = 0.0
    """share of the questions whose chains are held out and evaluated"""

    def __post_init__(self) -> None:
        names = ("lora_rank", "lora_alpha", "learning_rate", "epochs", "batch_size", "gradient_accumulation")
        check_above_zero(self, (*names, "max_length"))
        check_held_out_share(self.held_out_share)
        if not 0 <= self.warmup_share < 1:
            raise MedReflError(f"training: warmup_share is {self.warmup_share}, expected a share from 0 to below 1")
        if self.weight_decay < 0:
            raise MedReflError(f"training: weight_decay is {self.weight_decay}, expected at least 0")
        if self.full_finetuning and self.quantization != "none":
            raise MedReflError(
                f"training: full_finetuning is true and quantization is {self.quantization}: 4-bit weights cannot be "
                "trained; set quantization to none, or full_finetuning to false"
            )


@dataclass(frozen=True)
class SftResult:
    """A fine-tuning: its log (columns of SFT_TRAINING), the examples left out, and a line on the merged model."""

    log: pd.DataFrame
    dropped: DropCounts
    examples: int
    """number of examples that were trained on or held out"""
    tokens: int
    """tokens of these examples, prompts included, in one epoch"""
    merged: str
    """how well the merged model agrees with base and adapter; "" after a full fine-tuning"""


def train_sft(
    examples: pd.DataFrame,
    model: str,
    folder: Path,
    *,
    adapter: Path,
    sft: SftSettings,
    seed: int,
    max_dropped: float = 0.5,
    economy: EfficiencySettings | None = None,
    upkeep: MonitorSettings | None = None,
) -> SftResult:
    """Fine-tune a base on prompts and completions, and write the model to ``folder``.

    The loss is the cross-entropy of the completion's tokens; the prompt has none. Each response token of an optimizer
    step counts the same, whatever the batch it is in. Without ``full_finetuning`` an adapter is trained, written to
    ``adapter``, and merged into the 16-bit base. Both folders keep the questions of the examples. An interrupted
    training resumes from its last complete checkpoint if ``upkeep`` saves checkpoints. A training that is complete in
    ``folder`` is not repeated.

    Args:
        examples: columns ``question_id``, ``prompt`` and ``completion`` (``sft_examples``).
        model: the base, a local folder or a hub id.
        folder: folder of the model; what is there is replaced.
        adapter: folder of the adapter; a full fine-tuning removes it.
        sft: what is learned.
        seed: seed of the order of the examples, of the held-out questions and of the initial adapter.
        max_dropped: largest share of the examples that may be dropped (``tokenize_chains``).
        economy: time and memory; None uses the defaults.
        upkeep: checkpoints and warnings; None uses the defaults.

    Raises:
        MedReflError: no examples, or too many that are dropped; too little memory for the longest batch (the message
            says what to lower); a finding in ``upkeep.stop_on``; or an error of ``load_model`` or ``merge_adapter``.
    """
    economy, upkeep = economy or EfficiencySettings(), upkeep or MonitorSettings()
    tokenizer = load_tokenizer(model)
    stored = load_model(model, sft.quantization, dtype=torch.float32 if sft.full_finetuning else economy.dtype)
    end = end_of_turn(tokenizer, generation_end_tokens(stored.generation_config))
    ids, dropped = tokenize_chains(examples, tokenizer, end=end, max_length=sft.max_length)
    check_dropped("training: examples", dropped, len(ids), max_dropped)
    check_some_left("training: examples", len(ids), dropped, "raise max_length, or see 08_knowledge_chains")
    key = training_key(
        [model_key(model, sft.quantization), asdict(sft), asdict(economy), seed],
        ids[["prompt_ids", "completion_ids"]],
        (sys.modules[__name__],),
    )
    if (log := finished_log(folder, key, SFT_TRAINING)) is None:
        if sft.full_finetuning:
            shutil.rmtree(adapter, ignore_errors=True)
            kind = AutoConfig.from_pretrained(resolve_model(model), trust_remote_code=False).dtype or torch.float32
            log = _train(stored, tokenizer, ids, folder, key, sft, seed, economy, upkeep, kind)
        else:
            if (log := finished_log(adapter, key, SFT_TRAINING)) is None:
                log = _train(stored, tokenizer, ids, adapter, key, sft, seed, economy, upkeep)
            del stored
            shutil.rmtree(folder, ignore_errors=True)
            agreement = merge_adapter(adapter, folder, base=model, examples=examples)
            write_table(folder / TRAINED, log, SFT_TRAINING, key=key, notes={"merged": agreement.line()})
    for place in (folder, adapter):
        if place.exists():
            write_taught_questions(place, examples, base=model)
    merged = table_notes(folder / TRAINED).get("merged", "")
    return SftResult(log, dropped, len(ids), int(ids["length"].sum()), merged)


def _train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    ids: pd.DataFrame,
    folder: Path,
    key: str,
    sft: SftSettings,
    seed: int,
    economy: EfficiencySettings,
    upkeep: MonitorSettings,
    stored_as: torch.dtype = torch.float32,
) -> pd.DataFrame:
    """Train on tokenized chains, write the adapter or the model (as ``stored_as``) to ``folder``; return the log."""
    train, held_out = split_held_out(ids, sft.held_out_share, seed)
    kept = None if upkeep.checkpoint_folder is None else upkeep.checkpoint_folder / key
    steps = optimizer_steps(len(train), sft)
    warmup = math.ceil(sft.warmup_share * steps)
    check = partial(_findings, warmup_steps=warmup)
    watch = Watch("SFT", steps, upkeep, read=sft_log, check=check, shown=("loss", "accuracy"))
    trainer = SFTTrainer(
        model=model,
        args=training_arguments(
            SFTConfig,
            kept or folder,
            sft,
            economy,
            run_name=folder.parent.name,
            seed=seed,
            steps=steps,
            upkeep=upkeep,
            evaluate=bool(len(held_out)),
            warmup_steps=warmup,
            weight_decay=sft.weight_decay,
            dataset_kwargs={"skip_prepare_dataset": True},  # the rows are token ids with their labels
        ),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(held_out) if len(held_out) else None,
        data_collator=DataCollatorForLanguageModeling(tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=None if sft.full_finetuning else lora_config(sft.lora_rank, sft.lora_alpha),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    keep_tensorboard_in(trainer, folder.with_name("sft_tensorboard"))
    keep_adapter_in_32_bit(trainer.model)
    # Autocast converts the adapter's input. PEFT would first copy it to 32 bit, for each linear layer.
    casting = contextlib.nullcontext()
    if not sft.full_finetuning:
        casting = disable_input_dtype_casting(trainer.model, active=economy.dtype != torch.float32)
    with casting, watch.bar:
        try_longest_batch(trainer, train, sft, economy)
        trainer.train(resume_from_checkpoint=None if kept is None else last_checkpoint(kept))
    watch.raise_if_stopped()
    log = sft_log(trainer.state.log_history)
    with whole_folder(folder) as beside:
        if sft.full_finetuning:
            trainer.model.to(stored_as).save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            write_table(beside / TRAINED, log, SFT_TRAINING, key=key)
        else:
            save_adapter(trainer, beside, tokenizer, log, SFT_TRAINING, key)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    return log


def try_longest_batch(trainer: SFTTrainer, ids: pd.DataFrame, sft: SftSettings, economy: EfficiencySettings) -> None:
    """Run one forward and backward pass of the batch with the most tokens, so memory runs out now or not at all.

    Raises:
        MedReflError: out of memory; the message names the parameters to lower, and the values to try.
    """
    rows = ids.loc[ids["length"].sort_values(ascending=False, kind="stable").index[: sft.batch_size]]

    def advice() -> str:
        longest, shape = int(rows["length"].max()), ModelShape.of(trainer.model.config)
        problem = f"training: out of memory on the longest batch ({len(rows)} examples, up to {longest} tokens): "
        return problem + memory_advice(shape, chain_lengths(rows), settings=asdict(sft) | asdict(economy))

    with memory_trial(trainer, economy, advice):
        batch = trainer._prepare_inputs(trainer.data_collator(_dataset(rows).to_list()))
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()


def sft_log(history: Sequence[dict[str, float]]) -> pd.DataFrame:
    """Convert the trainer's log history to the columns of SFT_TRAINING."""
    return history_table(history, _TRAIN, _HELD_OUT, SFT_TRAINING)


_TRAIN = {
    "loss": "loss",
    "mean_token_accuracy": "accuracy",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
_HELD_OUT = {"eval_loss": "held_out_loss", "eval_mean_token_accuracy": "held_out_accuracy"}


def _dataset(ids: pd.DataFrame) -> Dataset:
    prompts, completions = ids["prompt_ids"].tolist(), ids["completion_ids"].tolist()
    both = list(zip(prompts, completions, strict=True))
    return Dataset.from_dict(
        {
            "input_ids": [prompt + completion for prompt, completion in both],
            "labels": [[IGNORED] * len(prompt) + completion for prompt, completion in both],
            "length": ids["length"].tolist(),
        }
    )


def _findings(log: pd.DataFrame, rows_per_step: int, *, warmup_steps: int) -> list[health_checks.TrainingFinding]:
    return health_checks.check_sft_log(log, warmup_steps=warmup_steps)
