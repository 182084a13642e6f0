"""DPO that reads what chosen and rejected share once: a thin subclass of TRL's trainer.

A pair is one row instead of two: the shared prefix (the prompt, and in reflection pairs the steps up to where the
sides part), the rest of the chosen side, the rest of the rejected side. Each rest goes on with the positions that it
would have by itself, and the attention mask keeps the two apart. The last shared token opens both rests, so that it
can predict the first token of each. Losses and gradients are TRL's.
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
"""The label of a position that predicts nothing, as in transformers."""
PADDED, PADDED_BF16_CPU = 8, 32
"""Rows are padded to a multiple of it. Of one that is none of 8, CUDA would copy the mask to pad it; in bf16 a CPU
makes kernels for each length that it meets and keeps them, half a GiB over 64 pairs of a 54M Llama."""
PREFIX, CHOSEN, REJECTED, PAD = range(4)

Batch = Mapping[str, torch.Tensor]


class PairTrainer(DPOTrainer):
    """TRL's trainer on pairs that are token ids already (``preferences.pair_ids``): no template cuts in again."""

    def _prepare_dataset(self, dataset: Dataset, *args: object) -> Dataset:
        return dataset

    def use_references(self, train: pd.DataFrame, held_out: pd.DataFrame) -> None:
        """Train and evaluate against these reference log-probabilities: ``chosen``, ``rejected``, a row a pair."""
        self.train_dataset = self.with_references(self.train_dataset, train)
        if self.eval_dataset is not None:
            self.eval_dataset = self.with_references(self.eval_dataset, held_out)
        self.precompute_ref_logps = True

    @staticmethod
    def with_references(data: Dataset, logps: pd.DataFrame) -> Dataset:
        """The pairs with their reference log-probabilities, as a batch must have them."""
        chosen, rejected = logps["chosen"].tolist(), logps["rejected"].tolist()
        return data.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def _precompute_ref_logps(self, dataset: Dataset, *args: object) -> Dataset:
        return dataset  # they are there: ``use_references``

    def reference(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [pairs] of the chosen and rejected sides under the base, the adapter off."""
        return self.compute_ref_log_probs(self.model, batch)


@dataclass
class SharedPrefixCollator:
    """Pairs to rows. ``torch_call`` of TRL's collator, with these tensors, all [pairs, tokens]:

    ``input_ids``, ``position_ids``, ``part`` (PREFIX, CHOSEN, REJECTED, PAD) and ``shift_labels`` (the next token of
    the same side where it is part of a response, else IGNORED). The references come as [pairs].
    """

    pad_token_id: int
    multiple: int = PADDED

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows padded on the right to the longest, and on to ``multiple``."""
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
        start = len(prefix) - 1  # the last shared token opens both branches
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
    """``PairTrainer`` whose forward pass reads a shared prefix once; the sigmoid loss alone, as Med-REFL uses it."""

    def __init__(self, model: PreTrainedModel, **options: Any):  # noqa: ANN401 (DPOTrainer's own)
        """As ``DPOTrainer``, with the collator set.

        Raises:
            MedReflError: a model that does not attend through a mask of our own.
        """
        check_attention(model)
        args, tokenizer = options["args"], options["processing_class"]
        multiple = PADDED_BF16_CPU if args.use_cpu and args.bf16 else PADDED
        options["data_collator"] = SharedPrefixCollator(tokenizer.pad_token_id, multiple)
        super().__init__(model=model, **options)

    def reference(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [pairs] of the chosen and rejected sides under the base, the adapter off."""
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
        """Log-probabilities [pairs]: of the shared response tokens, of both rests, of the chosen side's end token."""
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
        # What both sides share adds the same to both, so that no gradient comes of it.
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
                "rewards/accuracies": (ratios[0] > ratios[1]).float(),
                "rewards/margins": self.beta * (ratios[0] - ratios[1]),
                "logps/chosen": shared + chosen,
                "logps/rejected": shared + rejected,
                "logps/end": ends,
            }
        )
        return (loss, None) if return_outputs else loss

    def _note(self, values: Mapping[str, torch.Tensor]) -> None:
        """Keep the means over all processes' pairs, under TRL's names, for the next log."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            metrics[name].append(self.accelerator.gather(value.detach()).nanmean().item())


def attention_mask(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What each token may read, [pairs, 1, tokens, tokens]: the prefix and its own side, up to itself.

    0 where it may and the lowest number of ``dtype`` where not, to be added to the scores. Of a boolean mask each layer
    would make and keep numbers of its own.
    """
    query, key = part[:, :, None], part[:, None, :]
    causal = torch.ones(part.shape[1], part.shape[1], dtype=torch.bool, device=part.device).tril()
    allowed = (causal & ((key == PREFIX) | (key == query)))[:, None]
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model whose attention does not heed our mask, rather than train it on a wrong one.

    Raises:
        MedReflError: an attention other than sdpa and eager, or layers with a sliding window.
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
