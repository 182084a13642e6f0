"""How much memory a DPO training takes at its peak, and decoding, from the model's config and lengths alone.

    predict(Shape.named("meta-llama/Llama-3.1-8B-Instruct"), lengths, settings=settings).gib
    rows_that_fit(config, prefix=300, new=128, k=3, width=2, budget=20 * GIB)

What is counted of a training: the base in NF4 (embeddings, head and norms in 16 bit), the adapter with its gradients
and optimizer states in 32 bit, what one forward pass keeps for the backward pass, the largest working set of that pass,
and the library's own share. The activations are counted tensor by tensor of a Llama-like layer under PEFT's LoRA: tests
hold them to what torch keeps, and the peak of a small model's step to what torch takes. The constants at the top are
ours, to be checked on each card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import psutil
from transformers import AutoConfig, PreTrainedConfig

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import resolve_model

GIB = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes a weight: 4 bits, and an 8-bit scale for each 64 weights, with double quantization (QLoRA, section 3)."""
CONTEXT = 0.6 * GIB
"""CUDA context and library workspaces (ours: 0.4 to 0.7 GiB by card)."""
FRAGMENTED = 1.05
"""What the caching allocator holds for what is asked of it (ours)."""
HEAD_TILE = 4096 * 32768
"""Numbers of one tile of TRL's fused head, at most."""
DRAWING = 64
"""Bytes a row and word of the vocabulary while a token is drawn: log-probabilities, and masses in 64 bit, sorted."""
MOST_ROWS = 1024
"""Rows decoded together, at most (ours: most rows of a step end early, so that many must begin to fill a batch)."""


@dataclass(frozen=True)
class Memory:
    """Predicted peak of a training in bytes, by what it is for."""

    weights: float
    adapter: float
    activations: float
    working: float
    context: float

    @property
    def gib(self) -> float:
        """All of it, in GiB."""
        return (self.weights + self.adapter + FRAGMENTED * (self.activations + self.working) + self.context) / GIB


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-like model (Llama, Qwen2, Mistral ...) that memory depends on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    @classmethod
    def named(cls, model: str) -> ModelShape:
        """Of a folder or a hub id; raises MedReflError for one that cannot be had, or whose config lacks a size."""
        name = resolve_model(model)
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            found = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MedReflError(f"model {model}: its config does not load: {found}") from error
        return cls.of(config)

    @classmethod
    def of(cls, config: PreTrainedConfig) -> ModelShape:
        """Read from a transformers config; raises MedReflError where it lacks one of the sizes."""
        text = config.get_text_config()
        try:
            return cls(
                hidden=text.hidden_size,
                layers=text.num_hidden_layers,
                heads=text.num_attention_heads,
                kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
                head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
                vocabulary=text.vocab_size,
                tied=bool(getattr(text, "tie_word_embeddings", False)),
            )
        except AttributeError as error:
            raise MedReflError(f"memory: the config of a {config.model_type} model lacks a size: {error}") from error

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's seven linear maps: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, m = self.hidden, self.intermediate
        return [(h, q), (h, kv), (h, kv), (q, h), (h, m), (h, m), (m, h)]

    @property
    def linear_weights(self) -> int:
        """Weights of all linear maps but the head."""
        return self.layers * sum(i * o for i, o in self.linears)

    @property
    def other_weights(self) -> int:
        """Weights of embeddings, head and norms, which stay in 16 bit."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def cached(self) -> int:
        """Numbers that a token's keys and values are, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA of this rank on all linear maps but the head."""
        return self.layers * rank * sum(i + o for i, o in self.linears)


def kept_per_token(shape: ModelShape, rank: int, width: int) -> int:
    """Bytes that a layer keeps of each token for the backward pass, without gradient checkpointing.

    ``width``: bytes a number of the computation: 2 under autocast to 16 bit, or 4.
    """
    q, h, m = shape.heads * shape.head_dim, shape.hidden, shape.intermediate
    norms = 2 * 4 * h  # RMSNorm computes in 32 bit
    inputs = width * (2 * h + m)  # q, k, v and gate, up read the same tensor; o reads what the attention keeps
    lora = 7 * rank * width
    attention = width * 4 * q + 4 * shape.heads  # q, k and v, repeated to all heads, and what comes out
    gated = 3 * m * width
    return norms + inputs + lora + attention + gated


def predict_training(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], width: int = 2
) -> Memory:
    """Peak memory of training on pairs of these lengths.

    Args:
        shape: of the base.
        lengths: ``prompt_tokens``, ``chosen_tokens``, ``rejected_tokens`` of the pairs (columns of ``records.PAIRS``);
            ``shared_tokens``, how many tokens both sides begin with, counts as 0 where it is missing.
        settings: the parameters of 04_dpo_lora_4bit by name: quantization, lora_rank, batch_size, max_length,
            shared_prefix, gradient_checkpointing, activation_offloading, optimizer.
        width: bytes a number of the computation: 2 (bf16, fp16) or 4 (fp32).
    """
    rank = settings["lora_rank"]
    rows, longest = _largest_batch(lengths, settings)
    tokens = rows * longest
    weights = _weights(shape, settings["quantization"], width)
    states = 2 if settings["optimizer"] == "paged_adamw_8bit" else 8
    kept = kept_per_token(shape, rank, width) * tokens
    border = width * shape.hidden * tokens
    if settings["gradient_checkpointing"]:
        activations = shape.layers * border + kept
    elif settings["activation_offloading"]:
        activations = 5 * kept  # TRL's stash of tensors on their way
    else:
        activations = shape.layers * kept
    if settings["gradient_checkpointing"] and settings["activation_offloading"]:
        activations = 5 * border + kept
    # The backward pass of the gated map: the gradients of both its factors, and one dequantised weight.
    dequantised = width * max(i * o for i, o in shape.linears) if settings["quantization"] == "nf4" else 0
    working = 2 * width * shape.intermediate * tokens + dequantised
    mask = width * rows * longest**2  # one for all layers
    head = 4 * shape.hidden * tokens + width * min(HEAD_TILE, tokens * shape.vocabulary)
    return Memory(
        weights=weights,
        adapter=(4 + 4 + states) * shape.adapter(rank),
        activations=activations + mask,
        working=max(working, head),
        context=CONTEXT,
    )


def predict_decoding(shape: ModelShape, *, quantization: str, rows: int, tokens: int, width: int = 2) -> float:
    """Bytes that so many rows take to decode up to ``tokens`` tokens, prompt and all, with the model itself."""
    return _weights(shape, quantization, width) + CONTEXT + rows * _row(shape, tokens, width)


def _weights(shape: ModelShape, quantization: str, width: int) -> float:
    """Bytes of the model itself: the linear maps in ``quantization``, all else in ``width`` bytes a number."""
    return (NF4_BYTES if quantization == "nf4" else width) * shape.linear_weights + width * shape.other_weights


def _row(shape: ModelShape, tokens: int, width: int) -> float:
    """Bytes of a row that decodes: its cache of so many tokens, and its draw."""
    return width * shape.cached * tokens + DRAWING * shape.vocabulary


def rows_that_fit(config: PreTrainedConfig, *, prefix: int, new: int, k: int, width: int, budget: float) -> int:
    """How many rows, ``k`` for each prefix, decode together in ``budget`` bytes: a power of two, from 1 to MOST_ROWS.

    Counted as if each row filled its ``new`` tokens and had its own copy of the ``prefix`` tokens, as some models'
    have; a prefix is held twice more, and read by a layer, while it becomes a trunk. ``width``: bytes a number of the
    computation. Raises MedReflError for a config that lacks a size.
    """
    shape = ModelShape.of(config)
    row = _row(shape, prefix + new, width)
    reading = width * (2 * shape.cached + 3 * shape.intermediate + 6 * shape.hidden) * prefix
    return power_of_two(min(MOST_ROWS, k * budget / (k * row + reading)))


def power_of_two(number: float) -> int:
    """The largest power of two that is at most ``number``, and at least 1."""
    return 1 << (max(1, int(number)).bit_length() - 1)


def free_bytes() -> int:
    """Bytes that are free for models here: the GPU's if there is one, else the main memory's."""
    import torch

    if not torch.cuda.is_available():
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # what torch holds, and would use again
    return torch.cuda.mem_get_info()[0] + unused


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, of a GPU's or the main memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def longest_that_fits(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], gib: float, width: int = 2
) -> int | None:
    """The largest ``max_length`` predicted to fit in ``gib``, in steps of 64 tokens; None where none does."""
    for length in range(int(settings["max_length"]) // 64 * 64, 63, -64):
        if predict_training(shape, lengths, settings={**settings, "max_length": length}, width=width).gib <= gib:
            return length
    return None


def changes_that_fit(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], gib: float, width: int = 2
) -> dict[str, Any] | None:
    """The parameters to change, and to what, until the training is predicted to fit in ``gib``.

    Empty where it fits as it is, None where nothing makes it fit. In this order, each only as far as it goes: what
    trains the same first (smaller batches with the same effective batch, checkpointing), then the base in 4 bit, then
    a shorter ``max_length``.
    """
    changed: dict[str, Any] = {}
    while predict_training(shape, lengths, settings={**settings, **changed}, width=width).gib > gib:
        one = _next_change({**settings, **changed})
        if not one:
            length = longest_that_fits(shape, lengths, settings={**settings, **changed}, gib=gib, width=width)
            return None if length is None else {**changed, "max_length": length}
        changed |= one
    return changed


@dataclass(frozen=True)
class Fit:
    """Whether a training fits: its predicted peak, the GiB that ``where`` there are, and ``changes_that_fit``."""

    memory: Memory
    gib: float
    where: str
    changes: dict[str, Any] | None

    def line(self) -> str:
        """The peak and its parts, what there is, and what to change if that is not enough."""
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in vars(self.memory).items())
        line = f"predicted peak memory {self.memory.gib:.3g} GiB ({parts}) of {self.gib:.3g} {self.where}"
        if self.changes is None:
            return f"{line}: does not fit, whatever is changed"
        return f"{line}: to fit, {changes_text(self.changes)}" if self.changes else line


def fit_training(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], card: float | None = None
) -> Fit:
    """Whether training on pairs of these lengths fits on a card of ``card`` GiB, or else on this machine.

    ``settings`` are those of ``predict``, with gradient_accumulation and compute_dtype. Without a card the free
    main memory counts, and the computation is in 32 bit unless ``compute_dtype`` says otherwise.
    """
    where = "on the card"
    if card is None and (card := card_gib()) is None:
        card, where = free_bytes() / GIB, "free here, without a card"
    width = {"fp32": 4, "auto": 2 if where == "on the card" else 4}.get(settings["compute_dtype"], 2)
    memory = predict_training(shape, lengths, settings=settings, width=width)
    changes = changes_that_fit(shape, lengths, settings=settings, gib=card, width=width)
    return Fit(memory, card, where, changes)


def longest_pairs(max_length: int, pairs: int) -> pd.DataFrame:
    """The lengths of the largest pairs that ``max_length`` lets through: two sides that fill it and share nothing."""
    side = [max_length] * pairs
    return pd.DataFrame({"prompt_tokens": 0, "chosen_tokens": side, "rejected_tokens": side})


def changes_text(changes: Mapping[str, Any]) -> str:
    """``changes_that_fit`` in words."""
    words = [f"{name} to {str(value).lower() if value is True else value}" for name, value in changes.items()]
    return "set " + ", ".join(words) + (", which trains the same" if changes.keys() <= _TRAINS_THE_SAME else "")


def memory_advice(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], gib: float | None = None
) -> str:
    """Which parameters to lower, and to what, when the batch of these lengths did not fit, whatever was predicted.

    One step in the order of ``changes_that_fit``. ``gib`` is the memory that the card has; without a card there is
    none to ask.
    """
    if one := _next_change(settings):
        return changes_text(one)
    gib = card_gib() if gib is None else gib
    fitting = None if gib is None else longest_that_fits(shape, lengths, settings=settings, gib=gib)
    longer_side = lengths[["chosen_tokens", "rejected_tokens"]].max(axis=1)
    longest = min(int((lengths["prompt_tokens"] + longer_side).max()), settings["max_length"])
    shorter = max(64, min(fitting or longest, longest * 3 // 4))
    return f"{changes_text({'max_length': shorter})}: longer pairs are cut, or left out by 03's"


_TRAINS_THE_SAME = {"batch_size", "gradient_accumulation", "gradient_checkpointing"}


def _next_change(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The next parameter that saves memory and costs no tokens; empty where none is left."""
    if settings["batch_size"] > 1:
        half = settings["batch_size"] // 2
        raised = -(-settings["batch_size"] * settings["gradient_accumulation"] // half)
        return {"batch_size": half, "gradient_accumulation": raised}
    if not settings["gradient_checkpointing"]:
        return {"gradient_checkpointing": True}
    return {"quantization": "nf4"} if settings["quantization"] == "none" else {}


def card_gib() -> float | None:
    """GiB of the GPU, in use or not; None where there is none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else None


def _largest_batch(lengths: pd.DataFrame, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and padded tokens of the batch with the longest pairs."""
    prompt = lengths["prompt_tokens"].to_numpy()
    room = np.maximum(settings["max_length"] - prompt, 0)
    chosen, rejected = (np.minimum(lengths[f"{s}_tokens"].to_numpy() + 1, room) for s in ("chosen", "rejected"))
    size = min(int(settings["batch_size"]), len(lengths))
    if not settings["shared_prefix"]:
        return 2 * size, int((prompt + np.maximum(chosen, rejected)).max())
    shared = np.minimum(lengths.get("shared_tokens", pd.Series(0, lengths.index)).to_numpy(), room)
    return size, int((prompt + chosen + rejected - shared + 1).max())
