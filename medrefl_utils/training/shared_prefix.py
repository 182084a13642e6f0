"""DPO that computes the common prefix of chosen and rejected once: a thin subclass of TRL's trainer.

A pair is one row instead of two: the shared prefix (the prompt, and in reflection pairs the steps before the sides
diverge), the rest of the chosen side, the rest of the rejected side. Each rest has the positions that it would have
alone, and the attention mask separates the two. The last shared token is repeated at the beginning of both rests, so
that it predicts the first token of each. Losses and gradients equal TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.training.dpo_loss import sigmoid_dpo_loss
from medrefl_utils.training.token_ids import shared_prefix_length

IGNORED = -100
"""Label of a position that is not in the loss, as in transformers."""
PADDED, PADDED_BF16_CPU = 8, 32
"""Rows are padded to a multiple of this length. CUDA copies the mask where the length is no multiple of 8. In bf16, a
CPU compiles and keeps kernels for each new length: half a GiB for 64 pairs of a 54M Llama."""
PREFIX, CHOSEN, REJECTED, PAD = range(4)
TIE = 1e-3
"""Nats by which the two log-ratios must differ to be ranked; less is rounding (ours)."""

Batch = Mapping[str, torch.Tensor]


class PairTrainer(DPOTrainer):
    """TRL's trainer for pairs that are token ids already (``tokenize_pairs``), so no chat template is applied."""

    def _prepare_dataset(self, dataset: Dataset, *args: object) -> Dataset:
        return dataset

    def use_references(self, train: pd.DataFrame, held_out: pd.DataFrame) -> None:
        """Use these reference log-probabilities: columns ``chosen``, ``rejected``, one row per pair, in nats."""
        self.train_dataset = self.with_references(self.train_dataset, train)
        if self.eval_dataset is not None:
            self.eval_dataset = self.with_references(self.eval_dataset, held_out)
        self.precompute_ref_logps = True

    @staticmethod
    def with_references(data: Dataset, logps: pd.DataFrame) -> Dataset:
        """Return the pairs with their reference log-probabilities, under the names that a batch needs."""
        chosen, rejected = logps["chosen"].tolist(), logps["rejected"].tolist()
        return data.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def _precompute_ref_logps(self, dataset: Dataset, *args: object) -> Dataset:
        return dataset  # set by ``use_references``

    def reference(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities [pairs] of chosen and rejected under the base, without the adapter."""
        return self.compute_ref_log_probs(self.model, batch)


@dataclass
class SharedPrefixCollator:
    """Collate pairs into rows, in place of TRL's collator.

    Tensors, all [pairs, tokens]: ``input_ids``, ``position_ids``, ``part`` (PREFIX, CHOSEN, REJECTED, PAD) and
    ``shift_labels`` (the next token of the same side where it is part of a response, else IGNORED). Reference
    log-probabilities are [pairs].
    """

    pad_token_id: int
    multiple: int = PADDED

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return rows padded on the right to the longest row, rounded up to ``multiple``."""
        rows = [self._row(e["prompt_ids"], e["chosen_ids"], e["rejected_ids"]) for e in examples]
        width = -(-max(len(row[0]) for row in rows) // self.multiple) * self.multiple
        blank = (self.pad_token_id, 0, PAD, IGNORED)
        names = ("input_ids", "position_ids", "part", "shift_labels")
        batch = {
            name: torch.tensor([row[i] + [blank[i]] * (width - len(row[0])) for row in rows])
            for i, name in enumerate(names)
        }
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in examples[0]:
                batch[name] = torch.tensor([e[name] for e in examples])
        return batch

    @staticmethod
    def _row(prompt: list[int], chosen: list[int], rejected: list[int]) -> tuple[list[int], ...]:
        shared = shared_prefix_length(chosen, rejected)
        prefix = [*prompt, *chosen[:shared]]
        start = len(prefix) - 1  # the last shared token begins both branches
        branches = [[prefix[-1], *side[shared:]] for side in (chosen, rejected)]
        tokens = prefix[:-1] + branches[0] + branches[1]
        labels = [IGNORED] * (len(prompt) - 1) + prefix[len(prompt) :]
        positions, parts = list(range(start)), [PREFIX] * start
        for part, branch in zip((CHOSEN, REJECTED), branches, strict=True):
            labels += [*branch[1:], IGNORED]
            positions += range(start, start + len(branch))
            parts += [part] * len(branch)
        return tokens, positions, parts, labels


class SharedPrefixTrainer(PairTrainer):
    """``PairTrainer`` whose forward pass computes a shared prefix once; sigmoid loss only, as Med-REFL uses it."""

    def __init__(self, model: PreTrainedModel, **options: Any):  # noqa: ANN401 (DPOTrainer's own)
        """Set up ``DPOTrainer`` with ``SharedPrefixCollator``.

        Raises:
            MedReflError: a model that ignores a custom attention mask.
        """
        check_attention(model)
        args, tokenizer = options["args"], options["processing_class"]
        multiple = PADDED_BF16_CPU if args.use_cpu and args.bf16 else PADDED
        options["data_collator"] = SharedPrefixCollator(tokenizer.pad_token_id, multiple)
        super().__init__(model=model, **options)

    def reference(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities [pairs] of chosen and rejected under the base, without the adapter."""
        model = self.accelerator.unwrap_model(self.model)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            use_adapter(model, adapter_name=None),
            self.accelerator.autocast(),
        ):
            shared, chosen, rejected, _ = self._logps(self.model, batch)
        return shared + chosen, shared + rejected

    def _logps(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return log-probabilities [pairs]: shared response tokens, both rests, end token of the chosen side."""
        part, labels = batch["part"], batch["shift_labels"]
        logps = model(
            input_ids=batch["input_ids"],
            attention_mask=attention_mask(part, self._dtype()),
            position_ids=batch["position_ids"],
            shift_labels=labels,
            use_cache=False,
            fused_lm_head=True,
        ).log_probs
        sums = [(logps * (part == which)).sum(1) for which in (PREFIX, CHOSEN, REJECTED)]
        at = torch.arange(part.shape[1], device=part.device)
        last = torch.where((part == CHOSEN) & (labels != IGNORED), at, -1).amax(1)
        ends = logps.gather(1, last.clamp(min=0)[:, None])[:, 0]
        return *sums, torch.where(last >= 0, ends, sums[0].new_tensor(float("nan")))

    @property
    def _unwrapped(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model).get_base_model()

    def _dtype(self) -> torch.dtype:
        device = self.accelerator.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self._unwrapped.dtype

    def _compute_loss(
        self, model: torch.nn.Module, inputs: Batch, return_outputs: bool
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        shared, chosen, rejected, ends = self._logps(model, inputs)
        # The shared tokens add the same to both sides, so they have no gradient.
        shared = shared.detach()
        if self.precompute_ref_logps:
            references = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            references = self.reference(inputs)
        ratios = shared + chosen - references[0], shared + rejected - references[1]
        loss, chosen_rewards, rejected_rewards = sigmoid_dpo_loss(*ratios, beta=self.beta)
        self._note(
            {
                "rewards/chosen": chosen_rewards,
                "rewards/rejected": rejected_rewards,
                "rewards/accuracies": _ranked(ratios[0] - ratios[1]),
                "rewards/margins": self.beta * (ratios[0] - ratios[1]),
                "logps/chosen": shared + chosen,
                "logps/rejected": shared + rejected,
                "logps/end": ends,
            }
        )
        return (loss, None) if return_outputs else loss

    def _note(self, values: Mapping[str, torch.Tensor]) -> None:
        """Store the means over the pairs of all processes, under TRL's names, for the next log."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            metrics[name].append(self.accelerator.gather(value.detach()).nanmean().item())


def _ranked(difference: torch.Tensor) -> torch.Tensor:
    """Return 1 where the chosen side has the higher log-ratio, 0 where the rejected side has, and 1/2 for a tie.

    Before the first update both ratios are 0 up to rounding, so their order means nothing.
    """
    return torch.where(difference.abs() < TIE, 0.5, (difference > 0).float())


def attention_mask(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask [pairs, 1, tokens, tokens] that is added to the attention scores.

    A token attends to the prefix and to its own side, up to itself: 0 there, the lowest number of ``dtype`` elsewhere.
    A boolean mask would be converted, and kept, by each layer.

    Args:
        part: [pairs, tokens], see ``SharedPrefixCollator``.
        dtype: data type of the attention scores.
    """
    query, key = part[:, :, None], part[:, None, :]
    causal = torch.ones(part.shape[1], part.shape[1], dtype=torch.bool, device=part.device).tril()
    allowed = (causal & ((key == PREFIX) | (key == query)))[:, None]
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model whose attention ignores our mask, because it would be trained wrongly.

    Raises:
        MedReflError: an attention implementation other than sdpa and eager, or layers with a sliding window.
    """
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        raise MedReflError(
            f"training: shared_prefix needs sdpa or eager attention, the model has {config._attn_implementation}: "
            "set shared_prefix to false"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        others = ", ".join(sorted(kinds - {"full_attention"}))
        raise MedReflError(
            f"training: shared_prefix needs full attention, the model has {others}: set shared_prefix to false"
        )
