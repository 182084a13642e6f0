"""Train a LoRA adapter on a 4-bit base with DPO (stage 04): a thin layer on TRL, PEFT and bitsandbytes."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import TRAINING
from medrefl_utils.core.store import read_table, table_key, whole_folder, write_table, write_text
from medrefl_utils.models.loading import compute_dtype, device, load_model, load_tokenizer, model_key
from medrefl_utils.models.memory import ModelShape, is_out_of_memory, memory_advice
from medrefl_utils.training import health_checks, shared_prefix
from medrefl_utils.training.reference_cache import reference_logprobs
from medrefl_utils.training.shared_prefix import PairTrainer, SharedPrefixTrainer
from medrefl_utils.training.token_ids import (
    end_of_turn,
    generation_end_tokens,
    pair_lengths,
    row_tokens,
    tokenize_pairs,
)
from medrefl_utils.training.trackers import check_trackers, keep_tensorboard_in

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRAINED = "training.parquet"
"""File in an adapter's folder: the log of its training, with the key of that training."""
HELD_OUT_EVALUATIONS = 4
"""Number of evaluations of the held-out pairs per training: one per quarter (ours)."""


@dataclass(frozen=True)
class DpoSettings:
    """Settings that decide what is learned. The defaults are published (Med-REFL's training configuration)."""

    beta: float = 0.1
    lora_rank: int = 64
    lora_alpha: int = 16
    learning_rate: float = 1e-5
    warmup_steps: int = 10
    epochs: int = 1
    batch_size: int = 4
    gradient_accumulation: int = 16
    max_length: int = 5000
    quantization: str = "nf4"
    """quantization of the base: "nf4" (ours) or "none"; the published training uses a 16-bit base"""
    held_out_share: float = 0.0
    """share of the questions whose pairs are held out and evaluated"""

    def __post_init__(self) -> None:
        for name in (
            "beta",
            "lora_rank",
            "lora_alpha",
            "learning_rate",
            "epochs",
            "batch_size",
            "gradient_accumulation",
            "max_length",
        ):
            if getattr(self, name) <= 0:
                raise MedReflError(f"training: {name} is {getattr(self, name)}, expected above 0")
        if not 0 <= self.held_out_share < 1:
            raise MedReflError(f"training: held_out_share is {self.held_out_share}, expected a share from 0 to below 1")


@dataclass(frozen=True)
class EfficiencySettings:
    """Settings that decide time and memory, not what is learned; measured effects: ``notebooks/measurements.md``."""

    shared_prefix: bool = True
    """compute the common prefix of both sides once"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    activation_offloading: bool = False
    """keep activations in CPU memory; GPU training only"""
    optimizer: str = "adamw"
    """"adamw", or "paged_adamw_8bit": 8-bit states that move to CPU memory when GPU memory is full"""
    group_by_length: bool = False
    """group pairs of similar length into a batch: less padding, another order"""
    compute_dtype: str = "auto"
    """fp32, bf16, fp16, or "auto": depends on the GPU, see ``models.loading.compute_dtype``"""

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "paged_adamw_8bit"):
            raise MedReflError(f"training: optimizer is {self.optimizer!r}, expected adamw or paged_adamw_8bit")
        if self.compute_dtype not in ("auto", *DTYPES):
            raise MedReflError(f"training: compute_dtype is {self.compute_dtype!r}, expected auto, {', '.join(DTYPES)}")
        if self.activation_offloading and device() != "cuda":
            raise MedReflError(
                "training: activation_offloading needs a GPU: on a CPU activations are in CPU memory already"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The data type that ``compute_dtype`` names."""
        return compute_dtype() if self.compute_dtype == "auto" else DTYPES[self.compute_dtype]


@dataclass(frozen=True)
class MonitorSettings:
    """What a training saves while it runs, and when it warns or stops."""

    checkpoint_folder: Path | None = None
    """folder for checkpoints, for example on Google Drive; None saves no checkpoints"""
    checkpoint_every: int = 20
    """optimizer steps between checkpoints"""
    references: Path | None = None
    """folder of the cached log-probabilities of the reference, for other seeds and ablations; None caches nothing"""
    stop_on: Sequence[str] = ("not_finite",)
    """findings (``health_checks.KINDS``) that stop the training; other findings are warnings"""
    report_to: Sequence[str] = ()
    """experiment trackers (``trackers.TRACKERS``); TensorBoard's files go beside the adapter"""
    show: Callable[[pd.DataFrame], object] | None = field(default=None, compare=False)
    """called after each optimizer step with the log up to that step"""

    def __post_init__(self) -> None:
        unknown = [name for name in self.stop_on if name not in health_checks.KINDS]
        if unknown:
            raise MedReflError(
                f"training: stop_on names {unknown[0]!r}, expected some of {', '.join(health_checks.KINDS)}"
            )
        check_trackers(self.report_to)
        if self.checkpoint_every < 1:
            raise MedReflError(f"training: checkpoint_every is {self.checkpoint_every}, expected at least 1")


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
    key = _key(model_key(model, dpo.quantization), dpo, economy, seed, ids)
    if (log := _trained(folder, key)) is not None:
        return log
    kept = None if upkeep.checkpoint_folder is None else upkeep.checkpoint_folder / key
    steps = dpo.epochs * math.ceil(len(train) / (dpo.batch_size * dpo.gradient_accumulation))
    watch = _Watch(steps, dpo, upkeep)
    trainer = (SharedPrefixTrainer if economy.shared_prefix else PairTrainer)(
        model=base,
        args=_arguments(kept or folder, folder.parent.name, dpo, economy, seed, steps, upkeep, bool(len(held_out))),
        train_dataset=_dataset(train),
        eval_dataset=_dataset(held_out) if len(held_out) else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=dpo.lora_rank,
            lora_alpha=dpo.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
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
    if watch.stopped:
        raise MedReflError(f"training: stopped at step {watch.stopped.step}: {watch.stopped.line}")
    log = training_log(trainer.state.log_history)
    if not trainer.is_world_process_zero():
        trainer.save_model(str(folder))  # all processes gather a sharded model; the first one writes it
        return log
    with whole_folder(folder) as beside:
        trainer.save_model(str(beside))
        (beside / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
        _order_modules(beside / "adapter_config.json")
        tokenizer.save_pretrained(beside)
        write_table(beside / TRAINED, log, TRAINING, key=key)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    return log


def _order_modules(config: Path) -> None:
    """Sort the trained modules in an adapter's config: PEFT writes them in the random order of a set."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    write_text(config, json.dumps(settings, indent=2) + "\n")


def _trained(folder: Path, key: str) -> pd.DataFrame | None:
    """Return the log of the adapter in ``folder`` if it comes from the training with this key, else None."""
    return read_table(folder / TRAINED, TRAINING) if table_key(folder / TRAINED) == key else None


def split_held_out(ids: pd.DataFrame, held_out: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split tokenized pairs into training pairs, shuffled, and held-out pairs; a question is never in both.

    Args:
        ids: columns of ``tokenize_pairs``.
        held_out: share of the questions, 0 to below 1; at least one question stays in training.
        seed: seed of split and order.
    """
    rng = np.random.default_rng(seed)
    questions = rng.permutation(ids["question_id"].unique())
    asked = set(questions[: min(round(held_out * len(questions)), len(questions) - 1)])
    apart = ids["question_id"].isin(asked)
    # The trainer's sampler shuffles again with the same seed.
    return ids[~apart].sample(frac=1, random_state=seed), ids[apart]


def keep_adapter_in_32_bit(model: torch.nn.Module) -> None:
    """Convert trainable parameters to 32 bit. TRL casts a QLoRA adapter to bf16, where updates of 1e-5 round to 0."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def try_longest_batch(trainer: PairTrainer, ids: pd.DataFrame, dpo: DpoSettings, economy: EfficiencySettings) -> None:
    """Run one forward and backward pass of the batch with the most tokens, so memory runs out now or not at all.

    The memory of AdamW's states is allocated meanwhile, except for paged states, which can leave the GPU.

    Raises:
        MedReflError: out of memory; the message names the parameters to lower, and the values to try.
    """
    if trainer.accelerator.num_processes > 1:
        return  # the model is not sharded yet
    tokens = row_tokens(ids, economy.shared_prefix)
    rows = ids.loc[tokens.sort_values(ascending=False, kind="stable").index[: dpo.batch_size]]
    trainer.model.train()
    states: list[torch.Tensor] = []
    try:
        if economy.optimizer == "adamw":
            states = [torch.empty_like(p) for p in trainer.model.parameters() if p.requires_grad for _ in range(2)]
        trainer.precompute_ref_logps = True  # the pass of the reference keeps no activations
        given = PairTrainer.with_references(_dataset(rows), pd.DataFrame(0.0, rows.index, ["chosen", "rejected"]))
        batch = trainer._prepare_inputs(trainer.data_collator(given.to_list()))
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        longest = int(rows["length"].max())
        problem = f"training: out of memory on the longest batch ({len(rows)} pairs, up to {longest} tokens): "
        shape, settings = ModelShape.of(trainer.model.config), asdict(dpo) | asdict(economy)
        raise MedReflError(problem + memory_advice(shape, pair_lengths(rows), settings=settings)) from None
    finally:
        states.clear()
        trainer.precompute_ref_logps = False
        trainer.model.zero_grad(set_to_none=True)
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0


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


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint, or None; its state file is written last, so an incomplete one has none."""
    whole = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            whole.append((json.loads(state.read_text(encoding="utf-8"))["global_step"], str(state.parent)))
        except (ValueError, KeyError):
            continue
    return max(whole)[1] if whole else None


def training_log(history: Sequence[dict[str, float]]) -> pd.DataFrame:
    """Convert the trainer's log history to the columns of TRAINING."""
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        names = _TRAIN if "loss" in entry else _HELD_OUT if "eval_loss" in entry else {}
        if names:
            found = {name: float(entry[key]) for key, name in names.items() if key in entry}
            rows.setdefault(int(entry["step"]), {}).update(found)
    log = pd.DataFrame([{"step": step, **values} for step, values in sorted(rows.items())], columns=TRAINING.names)
    return log.astype({"step": int} | {name: float for name in TRAINING.names[1:]})


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


def _key(model: str, dpo: DpoSettings, economy: EfficiencySettings, seed: int, ids: pd.DataFrame) -> str:
    """Return the hash of everything a training depends on; a checkpoint or an adapter is reused under the same key."""
    tokens = ids[["prompt_ids", "chosen_ids", "rejected_ids"]].to_json(orient="values")
    code = "".join(inspect.getsource(module) for module in (sys.modules[__name__], shared_prefix))
    parts = [model, asdict(dpo), asdict(economy), seed]
    parts += [hashlib.sha256(text.encode()).hexdigest() for text in (tokens, code)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


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
    gpu = device() == "cuda"
    return DPOConfig(
        output_dir=str(folder),
        beta=dpo.beta,
        learning_rate=dpo.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=dpo.warmup_steps,
        num_train_epochs=dpo.epochs,
        per_device_train_batch_size=dpo.batch_size,
        per_device_eval_batch_size=dpo.batch_size,
        gradient_accumulation_steps=_share(dpo.gradient_accumulation),
        max_grad_norm=1.0,
        max_length=None,  # truncated already, with a warning
        gradient_checkpointing=economy.gradient_checkpointing,
        activation_offloading=economy.activation_offloading,
        optim="paged_adamw_8bit" if economy.optimizer == "paged_adamw_8bit" else "adamw_torch",
        train_sampling_strategy="group_by_length" if economy.group_by_length else "random",
        bf16=economy.dtype == torch.bfloat16,
        fp16=economy.dtype == torch.float16,
        use_cpu=not gpu,
        remove_unused_columns=False,  # keeps "length", by which pairs are grouped
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
        disable_tqdm=True,  # ``_Watch`` has its own bar, which papermill can forward
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=gpu,
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


class _Watch(TrainerCallback):
    """Follow the trainer's log: progress bar, live curves, and findings of ``health_checks``, each kind once."""

    def __init__(self, steps: int, dpo: DpoSettings, upkeep: MonitorSettings) -> None:
        self.dpo, self.upkeep = dpo, upkeep
        self.told: set[str] = set()
        self.stopped: health_checks.TrainingFinding | None = None
        self.bar = tqdm(total=steps, desc="DPO", unit="step")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Handle a log entry of the trainer: after each optimizer step, after each evaluation, and at the end."""
        if not logs or "loss" not in logs:
            return
        log = training_log(state.log_history)
        self.bar.update(state.global_step - self.bar.n)
        self.bar.set_postfix({name: f"{log[name].iloc[-1]:.3f}" for name in ("loss", "margin", "accuracy")})
        if self.upkeep.show is not None and state.is_world_process_zero:
            self.upkeep.show(log)
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        for finding in health_checks.check_training_log(
            log, beta=self.dpo.beta, pairs_per_step=per_step, warmup_steps=self.dpo.warmup_steps
        ):
            if finding.kind in self.upkeep.stop_on:
                self.stopped, control.should_training_stop = finding, True
            elif finding.kind not in self.told:
                self.bar.write(f"training, step {finding.step}: {finding.line}", file=sys.stderr)
            self.told.add(finding.kind)
