"""Attention of rows that share a prefix: the shared keys and values are stored once, and read once per decoding step.

The rows of a reasoning tree share their question's prompt, which is most of what they attend to. The attention over a
shared part is one matrix product for all its rows. It is merged with the attention over the row's own tokens by their
log-sum-exp, which is the same sum in another order.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "medrefl_trunk"
Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one row: [heads, tokens, width] for each layer."""


class Attending(Protocol):
    """Rows that are decoded: they compute their own attention."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the attention [rows, heads, width] of scaled queries [rows, heads, width] over earlier tokens."""
        ...


_NOW: ContextVar[Attending | None] = ContextVar("rows that are decoded now", default=None)


@contextmanager
def decoding(rows: Attending) -> Iterator[None]:
    """Let these rows compute the attention of the model's next forward passes."""
    token = _NOW.set(rows)
    try:
        yield
    finally:
        _NOW.reset(token)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention over shared and own tokens while rows are decoded; otherwise use torch's own."""
    rows = _NOW.get()
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return rows.attend(module.layer_idx, query[:, :, 0] * scale, key, value)[:, None], None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def places_in_groups(group: torch.Tensor, groups: int) -> tuple[torch.Tensor, int]:
    """Return each row's place where a product has the rows of its group side by side, and the size of the largest.

    ``group`` [rows] holds numbers below ``groups``.
    """
    counts = torch.bincount(group, minlength=groups)
    widest = int(counts.max())
    order = group.argsort(stable=True)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - first[group[order]]
    return place + group * widest, widest


def to_groups(query: torch.Tensor, place: torch.Tensor, widest: int, groups: int) -> torch.Tensor:
    """Return queries of rows, [rows, heads, queries, width], as [groups, heads, widest * queries, width]."""
    _, heads, each, width = query.shape
    out = query.new_zeros(groups * widest, heads, each, width)
    out[place] = query
    out = out.view(-1, widest, heads, each, width).transpose(1, 2)
    return out.reshape(-1, heads, widest * each, width)


def from_groups(grouped: torch.Tensor, place: torch.Tensor, widest: int, heads: int) -> torch.Tensor:
    """Undo ``to_groups`` for a result [groups, heads, widest * queries, width]."""
    width = grouped.shape[-1]
    out = grouped.view(len(grouped), heads, widest, -1, width).transpose(1, 2)
    return out.reshape(len(grouped) * widest, heads, -1, width)[place]


def next_logits(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, cache: Cache
) -> torch.Tensor:
    """Return next-token logits [rows, vocabulary] in float32."""
    out = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=position,
        use_cache=True,
        logits_to_keep=1,
        **cache_argument(model, cache),
    )
    return out.logits[:, -1].float()


def cache_argument(model: PreTrainedModel, cache: Cache) -> dict[str, Cache]:
    """Return a cache under the name of the class's argument: in transformers 5.24 `cache`, before `past_key_values`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {_cache_name(type(base)): cache}


@lru_cache
def _cache_name(kind: type[PreTrainedModel]) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def sliceable(cache: Cache) -> bool:
    """Say whether every layer holds all tokens; a sliding window has dropped its first ones."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention of [rows, heads, queries, width] over [rows, heads, keys, width], and its log-sum-exp."""
    scores = (query @ key.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    top = scores.amax(-1, keepdim=True)
    weight = (scores - top).exp_()
    total = weight.sum(-1, keepdim=True)
    return (weight / total).to(value.dtype) @ value, top + total.log()


def size_of(layers: Layers) -> int:
    """Return the bytes of keys and values."""
    return sum(keys.nbytes + values.nbytes for keys, values in layers)
