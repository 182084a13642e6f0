"""Predict the peak memory of DPO training and of decoding from the model's config and the lengths alone.

    predict_training(ModelShape.named("meta-llama/Llama-3.1-8B-Instruct"), lengths, settings=settings).gib
    rows_that_fit(config, prefix=300, new=128, k=3, width=2, budget=20 * GIB)

The prediction of a training adds up the base (linear maps in NF4; embeddings, head, norms and fused experts in 16 bit),
the adapter with its gradients and optimizer states in 32 bit, the activations that one forward pass keeps for the
backward pass, the largest working set of that pass, and the CUDA context. Activations are counted tensor by tensor
for a Llama layer under PEFT's LoRA. Tests compare them with what torch keeps, and with the peak of a small model's
step. The constants at the top are ours; check them on each card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import psutil
from transformers import PreTrainedConfig

from medrefl_utils.models.model_shape import ModelShape

GIB = 2**30
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight: 4 bits, and an 8-bit scale per 64 weights, with double quantization (QLoRA, section 3)."""
CONTEXT = 0.6 * GIB
"""Bytes of the CUDA context and library workspaces (ours: 0.4 to 0.7 GiB, by card)."""
FRAGMENTED = 1.05
"""Bytes that torch's caching allocator reserves per byte allocated (ours)."""
HEAD_TILE = 4096 * 32768
"""Most numbers in one tile of TRL's fused output head."""
DRAWING = 64
"""Bytes per row and vocabulary entry while a token is sampled: log-probabilities, and sorted 64-bit probabilities."""
MOST_ROWS = 1024
"""Most rows decoded together (ours: most rows of a step end early, so many must start to keep a batch full)."""


@dataclass(frozen=True)
class Memory:
    """Predicted peak memory of a training in bytes, by purpose.

    ``adapter``: the trained weights' gradients and optimizer states, and under LoRA the adapter itself.
    """

    weights: float
    adapter: float
    activations: float
    working: float
    context: float

    @property
    def gib(self) -> float:
        """The sum of the parts, in GiB."""
        return (self.weights + self.adapter + FRAGMENTED * (self.activations + self.working) + self.context) / GIB


def kept_per_token(shape: ModelShape, rank: int, width: int) -> int:
    """Return the bytes that a layer keeps per token for the backward pass, without gradient checkpointing.

    ``rank``: of the LoRA; 0 for a full fine-tuning. ``width``: bytes per number of the computation: 2 under autocast to
    16 bit, else 4.
    """
    q, h, m = shape.heads * shape.head_dim, shape.hidden, shape.intermediate
    norms = 2 * 4 * h  # RMSNorm computes in 32 bit
    inputs = width * (2 * h + m)  # q, k, v share one input, gate and up another; o reads the attention output
    lora = 7 * rank * width
    attention = width * 4 * q + 4 * shape.heads  # q, k, v repeated to all heads, and the output
    gated = 3 * m * width
    return norms + inputs + lora + attention + gated


def predict_training(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], width: int = 2
) -> Memory:
    """Predict the peak memory of training on pairs or chains of these lengths.

    Args:
        shape: shape of the base.
        lengths: ``prompt_tokens``, ``chosen_tokens``, ``rejected_tokens`` of the pairs (columns of
            ``schemas.PAIRS``). ``shared_tokens``, the number of tokens that both sides begin with, is optional; it
            counts as 0 where it is missing. Of chains: ``prompt_tokens``, ``completion_tokens``.
        settings: the parameters of 04_dpo_lora_4bit or 09_sft_lora_4bit by name: quantization, lora_rank, batch_size,
            max_length, shared_prefix (04), full_finetuning (09), gradient_checkpointing, activation_offloading,
            optimizer.
        width: bytes per number of the computation: 2 (bf16, fp16) or 4 (fp32).
    """
    full = settings.get("full_finetuning", False)
    rank = 0 if full else settings["lora_rank"]
    rows, longest = _largest_batch(lengths, settings)
    tokens = rows * longest
    # A full fine-tuning keeps its weights in 32 bit; autocast keeps a 16-bit copy of the linear maps for the backward
    # pass.
    copies = width * (shape.linear_weights if width < 4 else 0)
    weights = 4 * shape.weights + copies if full else _weights(shape, settings["quantization"], width)
    states = 2 if settings["optimizer"] == "paged_adamw_8bit" else 8
    kept = kept_per_token(shape, rank, width) * tokens
    border = width * shape.hidden * tokens
    if settings["gradient_checkpointing"]:
        activations = shape.layers * border + kept
    elif settings["activation_offloading"]:
        activations = 5 * kept  # tensors that TRL holds while they move to the main memory
    else:
        activations = shape.layers * kept
    if settings["gradient_checkpointing"] and settings["activation_offloading"]:
        activations = 5 * border + kept
    # The backward pass of the gated map holds the gradients of both factors and one dequantized weight.
    dequantized = width * max(i * o for i, o in shape.linears) if settings["quantization"] == "nf4" else 0
    working = 2 * width * shape.intermediate * tokens + dequantized
    # DPO with a shared prefix has one mask for all layers. A padded batch of chains has a boolean one, which each layer
    # converts and keeps; a batch of one chain has none.
    masks = 1 if "chosen_tokens" in lengths or settings["gradient_checkpointing"] else shape.layers
    mask = 0 if "completion_tokens" in lengths and rows == 1 else masks * width * rows * longest**2
    head = 4 * shape.hidden * tokens + width * min(HEAD_TILE, tokens * shape.vocabulary)
    return Memory(
        weights=weights,
        adapter=(4 + states) * shape.weights if full else (4 + 4 + states) * shape.adapter(rank),
        activations=activations + mask,
        working=max(working, head),
        context=CONTEXT,
    )


def predict_decoding(shape: ModelShape, *, quantization: str, rows: int, tokens: int, width: int = 2) -> float:
    """Predict the bytes to decode ``rows`` rows of up to ``tokens`` tokens, prompt and model weights included."""
    return _weights(shape, quantization, width) + CONTEXT + rows * _row(shape, tokens, width)


def _weights(shape: ModelShape, quantization: str, width: int) -> float:
    """Return the bytes of the weights: linear maps in ``quantization``, all else in ``width`` bytes per number."""
    return (NF4_BYTES if quantization == "nf4" else width) * shape.linear_weights + width * shape.other_weights


def _row(shape: ModelShape, tokens: int, width: int) -> float:
    """Return the bytes of one decoding row: its cache of ``tokens`` tokens, and its sampling."""
    return width * shape.cached * tokens + DRAWING * shape.vocabulary


def rows_that_fit(config: PreTrainedConfig, *, prefix: int, new: int, k: int, width: int, budget: float) -> int:
    """Return how many rows, ``k`` per prefix, decode together in ``budget`` bytes: a power of two up to MOST_ROWS.

    The count assumes that each row fills its ``new`` tokens and has its own copy of the ``prefix`` tokens, as in some
    models. While a prefix is read, it takes two more copies and one layer's activations. ``width``: bytes per number
    of the computation.

    Raises:
        MedReflError: the config lacks a size.
    """
    shape = ModelShape.of(config, count=False)
    row = _row(shape, prefix + new, width)
    reading = width * (2 * shape.cached + 3 * shape.intermediate + 6 * shape.hidden) * prefix
    return power_of_two(min(MOST_ROWS, k * budget / (k * row + reading)))


def power_of_two(number: float) -> int:
    """Return the largest power of two that is at most ``number``, and at least 1."""
    return 1 << (max(1, int(number)).bit_length() - 1)


def free_bytes() -> int:
    """Return the bytes that are free for models: of the GPU if there is one, else of the main memory."""
    import torch

    if not torch.cuda.is_available():
        return psutil.virtual_memory().available
    unused = (
        torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    )  # reserved by torch, and free for its next tensors
    return torch.cuda.mem_get_info()[0] + unused


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch ran out of memory, on a GPU or in the main memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def longest_that_fits(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], gib: float, width: int = 2
) -> int | None:
    """Return the largest ``max_length`` predicted to fit in ``gib``, in steps of 64 tokens; None where none fits."""
    for length in range(int(settings["max_length"]) // 64 * 64, 63, -64):
        if predict_training(shape, lengths, settings={**settings, "max_length": length}, width=width).gib <= gib:
            return length
    return None


def changes_that_fit(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], gib: float, width: int = 2
) -> dict[str, Any] | None:
    """Return the parameters to change, with their new values, so that the training is predicted to fit in ``gib``.

    Empty where it fits unchanged; None where no change makes it fit. Changes come in this order: those that train the
    same (smaller batches at the same effective batch size, gradient checkpointing), then the 4-bit base, then a
    shorter ``max_length``. A full fine-tuning becomes one of an adapter before the base becomes 4-bit.
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
    """Whether a training fits.

    ``memory`` is the predicted peak, ``gib`` the memory that ``where`` names, ``changes`` what ``changes_that_fit``
    returns. ``parameters``: those of the base; ``experts``: weights of fused experts that NF4 leaves in 16 bit, 0
    without NF4.
    """

    memory: Memory
    gib: float
    where: str
    changes: dict[str, Any] | None
    parameters: int
    experts: int

    def line(self) -> str:
        """Return one line: predicted peak with its parts, available memory, and what to change if it does not fit."""
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in vars(self.memory).items())
        peak = f"predicted peak memory {self.memory.gib:.3g} GiB for {parameters_text(self.parameters)} ({parts})"
        line = f"{peak} of {self.gib:.3g} {self.where}"
        if self.experts:
            line += f" ({experts_text(self.experts)})"
        if self.changes is None:
            return f"{line}: does not fit, whatever is changed"
        return f"{line}: to fit, {changes_text(self.changes)}" if self.changes else line


def fit_training(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], card: float | None = None
) -> Fit:
    """Predict whether training on pairs of these lengths fits on a card of ``card`` GiB, or else on this machine.

    ``settings``: those of ``predict_training``, with gradient_accumulation and compute_dtype. Without a card the free
    main memory counts, and the computation is in 32 bit unless ``compute_dtype`` names another type.
    """
    where = "on the card"
    if card is None and (card := card_gib()) is None:
        card, where = free_bytes() / GIB, "free here, without a card"
    width = {"fp32": 4, "auto": 2 if where == "on the card" else 4}.get(settings["compute_dtype"], 2)
    memory = predict_training(shape, lengths, settings=settings, width=width)
    changes = changes_that_fit(shape, lengths, settings=settings, gib=card, width=width)
    experts = shape.expert_weights if settings["quantization"] == "nf4" else 0
    return Fit(memory, card, where, changes, shape.weights, experts)


def parameters_text(parameters: int) -> str:
    """Return a number of parameters in words, such as "46.7 billion parameters"."""
    if parameters < 1e8:
        return f"{parameters / 1e6:.3g} million parameters"
    return f"{parameters / 1e9:.3g} billion parameters"


def experts_text(experts: int) -> str:
    """Return the words that tell how many weights of fused experts NF4 leaves in 16 bit."""
    return f"{experts / 1e9:.3g}B weights of fused experts stay in 16 bit under nf4"


def longest_pairs(max_length: int, pairs: int) -> pd.DataFrame:
    """Return the lengths of the largest pairs within ``max_length``: both sides fill it and share no token."""
    side = [max_length] * pairs
    return pd.DataFrame({"prompt_tokens": 0, "chosen_tokens": side, "rejected_tokens": side})


def longest_chains(max_length: int, chains: int) -> pd.DataFrame:
    """Return the lengths of the longest chains within ``max_length``, the token that ends a turn left out."""
    return pd.DataFrame({"prompt_tokens": 0, "completion_tokens": [max_length - 1] * chains})


def changes_text(changes: Mapping[str, Any]) -> str:
    """Return the result of ``changes_that_fit`` in words."""
    words = [f"{name} to {str(value).lower() if value is True else value}" for name, value in changes.items()]
    return "set " + ", ".join(words) + (", which trains the same" if changes.keys() <= _TRAINS_THE_SAME else "")


def memory_advice(
    shape: ModelShape, lengths: pd.DataFrame, *, settings: Mapping[str, Any], gib: float | None = None
) -> str:
    """Return which parameters to lower, and to what, after a batch of these lengths ran out of memory.

    The advice is one step in the order of ``changes_that_fit``, whatever was predicted. ``gib``: memory of the card;
    this machine's card where it is None.
    """
    if one := _next_change(settings):
        return changes_text(one)
    gib = card_gib() if gib is None else gib
    fitting = None if gib is None else longest_that_fits(shape, lengths, settings=settings, gib=gib)
    longer_side = lengths.drop(columns=["prompt_tokens", "shared_tokens"], errors="ignore").max(axis=1)
    longest = min(int((lengths["prompt_tokens"] + longer_side).max()), settings["max_length"])
    shorter = max(64, min(fitting or longest, longest * 3 // 4))
    told = "chains are left out" if "completion_tokens" in lengths else "pairs are truncated, or left out by 03's"
    return f"{changes_text({'max_length': shorter})}: longer {told}"


_TRAINS_THE_SAME = {"batch_size", "gradient_accumulation", "gradient_checkpointing"}


def _next_change(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the next change that saves memory and drops no tokens; empty where none is left."""
    if settings["batch_size"] > 1:
        half = settings["batch_size"] // 2
        raised = -(-settings["batch_size"] * settings["gradient_accumulation"] // half)
        return {"batch_size": half, "gradient_accumulation": raised}
    if not settings["gradient_checkpointing"]:
        return {"gradient_checkpointing": True}
    if settings.get("full_finetuning"):
        return {"full_finetuning": False}
    return {"quantization": "nf4"} if settings["quantization"] == "none" else {}


def card_gib() -> float | None:
    """Return the GiB of the GPU, used and free; None without a GPU."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else None


def _largest_batch(lengths: pd.DataFrame, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return rows and padded tokens per row of the batch with the longest pairs or chains."""
    prompt = lengths["prompt_tokens"].to_numpy()
    if "completion_tokens" in lengths:
        whole = prompt + lengths["completion_tokens"].to_numpy() + 1
        return min(int(settings["batch_size"]), len(lengths)), int(min(whole.max(), settings["max_length"]))
    room = np.maximum(settings["max_length"] - prompt, 0)
    chosen, rejected = (np.minimum(lengths[f"{s}_tokens"].to_numpy() + 1, room) for s in ("chosen", "rejected"))
    size = min(int(settings["batch_size"]), len(lengths))
    if not settings["shared_prefix"]:
        return 2 * size, int((prompt + np.maximum(chosen, rejected)).max())
    shared = np.minimum(lengths.get("shared_tokens", pd.Series(0, lengths.index)).to_numpy(), room)
    return size, int((prompt + chosen + rejected - shared + 1).max())
