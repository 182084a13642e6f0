"""Stage 04: DPO of a LoRA adapter on a 4-bit base, a thin layer on TRL, PEFT and bitsandbytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from medrefl_utils.models import device, load_model, load_tokenizer
from medrefl_utils.records import MedReflError


@dataclass(frozen=True)
class Dpo:
    """The training's settings; the defaults are the published ones (Med-REFL's training configuration)."""

    beta: float = 0.1
    rank: int = 64
    alpha: int = 16
    learning_rate: float = 1e-5
    warmup_steps: int = 10
    epochs: int = 1
    batch_size: int = 4
    accumulation: int = 16
    max_length: int = 5000
    quantization: str = "nf4"
    """ours: the published training kept the base in 16 bit"""

    def __post_init__(self) -> None:
        for name in ("beta", "rank", "alpha", "learning_rate", "epochs", "batch_size", "accumulation", "max_length"):
            if getattr(self, name) <= 0:
                raise MedReflError(f"training: {name} is {getattr(self, name)}, expected above 0")


def train_dpo(pairs: pd.DataFrame, model: str, folder: Path, *, dpo: Dpo, seed: int) -> pd.DataFrame:
    """Train an adapter on pairs (columns of ``records.PAIRS``) and save it, with the tokenizer, in ``folder``.

    The reference is the base with the adapter off. Returns a row per optimizer step: ``step``, ``loss``,
    ``margin`` (reward of chosen minus rejected), ``accuracy`` (share of pairs with a positive margin),
    ``chosen_logprob`` and ``rejected_logprob`` (nats a response), ``grad_norm``, ``learning_rate``.

    Raises:
        MedReflError: no pairs, or what ``load_model`` raises.
    """
    if pairs.empty:
        raise MedReflError("training: there are no pairs to train on; see the counts of 03_pair_construction")
    tokenizer = load_tokenizer(model)
    base = load_model(model, dpo.quantization)
    # Merged kinds are shuffled here once; the trainer's own sampler is seeded too.
    rows = pairs.sample(frac=1, random_state=seed)
    data = Dataset.from_list([{side: list(row[side]) for side in _SIDES} for row in rows.to_dict("records")])
    log = _Log(steps=dpo.epochs * math.ceil(len(rows) / (dpo.batch_size * dpo.accumulation)))
    trainer = DPOTrainer(
        model=base,
        args=_arguments(folder, dpo, seed),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=dpo.rank, lora_alpha=dpo.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)
    keep_adapter_in_32_bit(trainer.model)
    with log.bar:
        trainer.train()
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    return pd.DataFrame(log.rows)


_SIDES = ("prompt", "chosen", "rejected")


def keep_adapter_in_32_bit(model: torch.nn.Module) -> None:
    """Undo TRL's cast of a QLoRA adapter to bf16, in which steps of 1e-5 are lost to rounding."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _arguments(folder: Path, dpo: Dpo, seed: int) -> DPOConfig:
    gpu = device() == "cuda"
    bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return DPOConfig(
        output_dir=str(folder),
        beta=dpo.beta,
        learning_rate=dpo.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=dpo.warmup_steps,
        num_train_epochs=dpo.epochs,
        per_device_train_batch_size=dpo.batch_size,
        gradient_accumulation_steps=dpo.accumulation,
        max_grad_norm=1.0,
        max_length=dpo.max_length,
        gradient_checkpointing=gpu,
        optim="paged_adamw_8bit" if gpu else "adamw_torch",
        bf16=bf16,
        fp16=gpu and not bf16,
        use_cpu=not gpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,  # the log has a bar of its own, which papermill can pass on
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=gpu,
    )


class _Log(TrainerCallback):
    """Collects what the trainer logs at each optimizer step, and shows it in a bar."""

    _NAMES = {
        "loss": "loss",
        "rewards/margins": "margin",
        "rewards/accuracies": "accuracy",
        "logps/chosen": "chosen_logprob",
        "logps/rejected": "rejected_logprob",
        "grad_norm": "grad_norm",
        "learning_rate": "learning_rate",
    }

    def __init__(self, steps: int) -> None:
        self.rows: list[dict[str, float]] = []
        self.bar = tqdm(total=steps, desc="DPO", unit="step")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Called by the trainer after each optimizer step, and once at the end with the totals."""
        if logs and "loss" in logs:
            values = {name: float(logs[key]) for key, name in self._NAMES.items() if key in logs}
            self.rows.append({"step": state.global_step, **values})
            self.bar.update(state.global_step - self.bar.n)
            self.bar.set_postfix({name: f"{values[name]:.3f}" for name in ("loss", "margin", "accuracy")})
