"""Train a LoRA adapter on a 4-bit base with DPO (stage 04): a thin layer on TRL, PEFT and bitsandbytes."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import TRAINING
from medrefl_utils.core.store import whole_folder
from medrefl_utils.models.loading import load_model, load_tokenizer, model_key
from medrefl_utils.models.memory import ModelShape, memory_advice
from medrefl_utils.training import health_checks, learned, shared_prefix
from medrefl_utils.training.learned import warmup_of
from medrefl_utils.training.reference_cache import reference_logprobs
from medrefl_utils.training.settings import (
    EfficiencySettings,
    MonitorSettings,
    check_above_zero,
    check_held_out_share,
)
from medrefl_utils.training.shared_prefix import PairTrainer, SharedPrefixTrainer
from medrefl_utils.training.token_ids import (
    end_of_turn,
    generation_end_tokens,
    pair_lengths,
    row_tokens,
    tokenize_pairs,
)
from medrefl_utils.training.trackers import keep_tensorboard_in
from medrefl_utils.training.trainer_setup import (
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


@dataclass(frozen=True)
class DpoSettings:
    """Settings that decide what is learned. The defaults are published (Med-REFL's training configuration)."""

    beta: float = 0.1
    lora_rank: int = 64
    lora_alpha: int = 16
    learning_rate: float = 1e-5
    warmup_steps: int = 10
    """optimizer steps of warm-up; a short training has fewer, see ``learned.warmup_of``"""
    epochs: int = 1
    batch_size: int = 4
    gradient_accumulation: int = 16
    max_length: int = 5000
    quantization: str = "nf4"
    """quantization of the base: "nf4" (ours) or "none"; the published training uses a 16-bit base"""
    held_out_share: float = 0.0
    """share of the questions whose pairs are held out and evaluated"""

    def __post_init__(self) -> None:
        names = ("beta", "lora_rank", "lora_alpha", "learning_rate", "epochs")
        check_above_zero(self, (*names, "batch_size", "gradient_accumulation", "max_length"))
        check_held_out_share(self.held_out_share)


def train_dpo(
    pairs: pd.DataFrame,
    model: str,
    folder: Path,
    *,
    dpo: DpoSettings,
    seed: int,
    economy: EfficiencySettings | None = None,
    upkeep: MonitorSettings | None = None,
) -> pd.DataFrame:
    """Train an adapter on pairs and save it, with the tokenizer, in ``folder``.

    The reference is the base without the adapter. An interrupted training resumes from its last complete checkpoint if
    ``upkeep`` saves checkpoints. A training that is complete in ``folder`` is not repeated.

    Under a launcher (torchrun, accelerate) the processes share the ``batch_size * gradient_accumulation`` pairs of an
    optimizer step, so the result is that of one process.

    Args:
        pairs: columns of PAIRS.
        model: the base, a local folder or a hub id.
        folder: folder of the adapter.
        dpo: what is learned.
        seed: seed of the order of the pairs, of the held-out questions and of the initial adapter.
        economy: time and memory; None uses the defaults.
        upkeep: checkpoints, cache and warnings; None uses the defaults.

    Returns:
        The log: columns of TRAINING, one row per optimizer step.

    Raises:
        MedReflError: no pairs; a gradient_accumulation that the processes cannot share evenly; too little memory for
            the longest batch (the message says what to lower); a finding in ``upkeep.stop_on``; or an error of
            ``load_model``.
    """
    economy, upkeep = economy or EfficiencySettings(), upkeep or MonitorSettings()
    if pairs.empty:
        raise MedReflError(
            "training: there are no pairs to train on; 03_pair_construction shows why pairs were dropped"
        )
    tokenizer = load_tokenizer(model)
    base = load_model(model, dpo.quantization, dtype=economy.dtype)
    end = end_of_turn(tokenizer, generation_end_tokens(base.generation_config))
    ids, limit = tokenize_pairs(pairs, tokenizer, end=end, max_length=dpo.max_length)
    if any(limit.values()):
        warnings.warn(
            f"training: of {len(pairs)} pairs, {limit['cut']} are truncated at max_length {dpo.max_length}, and "
            f"{limit['left_out']} are dropped because both sides are the same after truncation",
            stacklevel=2,
        )
    train, held_out = split_held_out(ids, dpo.held_out_share, seed)
    key = training_key(
        [model_key(model, dpo.quantization), asdict(dpo), asdict(economy), seed],
        ids[["prompt_ids", "chosen_ids", "rejected_ids"]],
        (sys.modules[__name__], shared_prefix, learned),
    )
    if (log := finished_log(folder, key, TRAINING)) is not None:
        return log
    kept = None if upkeep.checkpoint_folder is None else upkeep.checkpoint_folder / key
    steps = optimizer_steps(len(train), dpo)
    check = partial(_findings, dpo=dpo, steps=steps)
    watch = Watch("DPO", steps, upkeep, read=training_log, check=check, shown=("loss", "margin", "accuracy"))
    trainer = (SharedPrefixTrainer if economy.shared_prefix else PairTrainer)(
        model=base,
        args=_arguments(kept or folder, folder.parent.name, dpo, economy, seed, steps, upkeep, bool(len(held_out))),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(held_out) if len(held_out) else None,
        processing_class=tokenizer,
        peft_config=lora_config(dpo.lora_rank, dpo.lora_alpha),
        callbacks=[watch],
        **({} if economy.shared_prefix else {"data_collator": DataCollatorForPreference(tokenizer.pad_token_id)}),
    )
    trainer.remove_callback(PrinterCallback)
    keep_tensorboard_in(trainer, folder.with_name("tensorboard"))
    if trainer.args.deepspeed_plugin is None:  # DeepSpeed needs one data type and keeps its own 32-bit copies
        keep_adapter_in_32_bit(trainer.model)
    # Autocast converts the adapter's input. PEFT would first copy it to 32 bit, for each linear layer.
    with disable_input_dtype_casting(trainer.model, active=economy.dtype != torch.float32), watch.bar:
        try_longest_batch(trainer, train, dpo, economy)
        add_references(trainer, train, held_out, model_key(model, dpo.quantization), economy, upkeep.references)
        trainer.train(resume_from_checkpoint=None if kept is None else last_checkpoint(kept))
    watch.raise_if_stopped()
    log = training_log(trainer.state.log_history)
    if not trainer.is_world_process_zero():
        trainer.save_model(str(folder))  # all processes gather a sharded model; the first one writes it
        return log
    with whole_folder(folder) as beside:
        save_adapter(trainer, beside, tokenizer, log, TRAINING, key)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    return log


def try_longest_batch(trainer: PairTrainer, ids: pd.DataFrame, dpo: DpoSettings, economy: EfficiencySettings) -> None:
    """Run one forward and backward pass of the batch with the most tokens, so memory runs out now or not at all.

    Raises:
        MedReflError: out of memory; the message names the parameters to lower, and the values to try.
    """
    if trainer.accelerator.num_processes > 1:
        return  # the model is not sharded yet
    tokens = row_tokens(ids, economy.shared_prefix)
    rows = ids.loc[tokens.sort_values(ascending=False, kind="stable").index[: dpo.batch_size]]
    try:
        with memory_trial(trainer, economy, lambda: _advice(trainer, rows, dpo, economy)):
            trainer.precompute_ref_logps = True  # the pass of the reference keeps no activations
            given = PairTrainer.with_references(_dataset(rows), pd.DataFrame(0.0, rows.index, ["chosen", "rejected"]))
            batch = trainer._prepare_inputs(trainer.data_collator(given.to_list()))
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
    finally:
        trainer.precompute_ref_logps = False


def _advice(trainer: PairTrainer, rows: pd.DataFrame, dpo: DpoSettings, economy: EfficiencySettings) -> str:
    """Say that these rows ran out of memory, and which parameters to lower."""
    longest, shape = int(rows["length"].max()), ModelShape.of(trainer.model.config)
    problem = f"training: out of memory on the longest batch ({len(rows)} pairs, up to {longest} tokens): "
    return problem + memory_advice(shape, pair_lengths(rows), settings=asdict(dpo) | asdict(economy))


def add_references(
    trainer: PairTrainer,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    base: str,
    economy: EfficiencySettings,
    folder: Path | None,
) -> int:
    """Give the trainer the log-probabilities of the reference; return how many pairs had to be computed.

    Cached values in ``folder`` are used. With several processes the trainer computes them during training, because each
    process would compute all of them here.
    """
    if trainer.accelerator.num_processes > 1:
        return len(train)
    trainer.model.eval()

    def compute(rows: pd.DataFrame) -> tuple[list[float], list[float]]:
        batch = trainer._prepare_inputs(trainer.data_collator(_dataset(rows).to_list()))
        chosen, rejected = trainer.reference(batch)
        return chosen.tolist(), rejected.tolist()

    both = pd.concat([train, held_out])
    name = f"{base} {economy.dtype}"
    size = trainer.args.per_device_train_batch_size
    logps, computed = reference_logprobs(both, compute, base=name, folder=folder, batch_size=size)
    trainer.use_references(logps.iloc[: len(train)], logps.iloc[len(train) :])
    return computed


def training_log(history: Sequence[dict[str, float]]) -> pd.DataFrame:
    """Convert the trainer's log history to the columns of TRAINING."""
    return history_table(history, _TRAIN, _HELD_OUT, TRAINING)


_TRAIN = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
    "rewards/chosen": "chosen_reward",
    "logps/end": "end_logprob",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
_HELD_OUT = {
    "eval_loss": "held_out_loss",
    "eval_rewards/margins": "held_out_margin",
    "eval_rewards/accuracies": "held_out_accuracy",
}


def _dataset(ids: pd.DataFrame) -> Dataset:
    columns = ["prompt_ids", "chosen_ids", "rejected_ids", "length"]
    return Dataset.from_dict({name: ids[name].tolist() for name in columns})


def _findings(
    log: pd.DataFrame, pairs_per_step: int, *, dpo: DpoSettings, steps: int
) -> list[health_checks.TrainingFinding]:
    warmup = warmup_of(dpo.warmup_steps, steps)
    return health_checks.check_training_log(log, beta=dpo.beta, pairs_per_step=pairs_per_step, warmup_steps=warmup)


def _arguments(
    folder: Path,
    run_name: str,
    dpo: DpoSettings,
    economy: EfficiencySettings,
    seed: int,
    steps: int,
    upkeep: MonitorSettings,
    evaluate: bool,
) -> DPOConfig:
    same = {"seed": seed, "steps": steps, "upkeep": upkeep, "evaluate": evaluate, "run_name": run_name}
    warmup = warmup_of(dpo.warmup_steps, steps)
    return training_arguments(DPOConfig, folder, dpo, economy, **same, beta=dpo.beta, warmup_steps=warmup)
