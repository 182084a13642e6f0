"""Decode rows that share a prefix: the shared keys and values are stored once, and read once per decoding step.

The rows of a reasoning tree share their question's prompt; siblings also share the path to their parent. This is most
of what they attend to. The attention over a shared part is one matrix product for all its rows. It is merged with the
attention over the row's own tokens by their log-sum-exp, which is the same sum in another order. Own tokens are in
buffers with room to grow, so that a decoding step copies nothing. When rows end, only own tokens are copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "medrefl_trunk"
_ROOM = 32  # columns by which a full buffer grows

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


class _Own(DynamicLayer):
    """A cache layer that writes into a larger buffer; ``keys`` and ``values`` are views of its filled part."""

    def fill(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy [rows, heads, columns, width] into a buffer with room behind."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._buffers = [self._roomy(keys), self._roomy(values)]
        self._view(keys.shape[2])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple:
        """Write one column and return all columns."""
        filled = self.keys.shape[2]
        if filled == self._buffers[0].shape[2]:
            self.fill(self.keys, self.values)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, filled : filled + 1] = new
        self._view(filled + 1)
        return self.keys, self.values

    def _view(self, columns: int) -> None:
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)

    @staticmethod
    def _roomy(part: torch.Tensor) -> torch.Tensor:
        rows, heads, columns, width = part.shape
        out = part.new_empty(rows, heads, columns + _ROOM, width)
        out[:, :, :columns] = part
        return out


class _Shared:
    """Keys and values that the rows of a group share: stored and read once per group."""

    def __init__(self, parts: Sequence[Layers], group: Sequence[int], device: torch.device):
        """Store the groups' keys and values ``parts``; ``group[row]`` is the group of a row."""
        lengths = [part[0][0].shape[1] for part in parts]
        longest = max(lengths)
        self.layers = [
            tuple(_padded([part[layer][side] for part in parts], longest) for side in (0, 1))
            for layer in range(len(parts[0]))
        ]
        # Parts begin at column 0. The mask is a finite number, since a part may have no columns at all.
        self.lengths = torch.tensor(lengths, device=device)
        least = torch.finfo(torch.float32).min
        self.mask = torch.where(torch.arange(longest, device=device) < self.lengths[:, None], 0.0, least)
        self.group = torch.tensor(group, device=device)
        self._arrange()

    def attend(self, layer: int, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attention of [rows, heads, queries, width] over each row's shared part, and its log-sum-exp."""
        heads = query.shape[1]
        keys, values = self.layers[layer]
        grouped = to_groups(query, self.place, self.widest, len(self.lengths))
        over, total = attended(grouped, keys, values, self.mask[:, None, None])
        return tuple(from_groups(one, self.place, self.widest, heads) for one in (over, total))

    def take(self, rows: torch.Tensor) -> None:
        """Keep only these rows, in this order; a row may occur more than once."""
        self.group = self.group[rows]
        self._arrange()

    def of(self, row: int) -> Layers:
        """Return the keys and values that a row shares."""
        group = int(self.group[row])
        end = int(self.lengths[group])
        return [(keys[group, :, :end], values[group, :, :end]) for keys, values in self.layers]

    def _arrange(self) -> None:
        """Compute each row's place among the rows of its group, where a product has them side by side."""
        counts = torch.bincount(self.group, minlength=len(self.lengths))
        alive = counts.nonzero()[:, 0]
        if 2 * len(alive) <= len(counts):
            self.layers = [(keys[alive], values[alive]) for keys, values in self.layers]
            self.lengths, self.mask = self.lengths[alive], self.mask[alive]
            self.group = torch.searchsorted(alive, self.group)
        self.place, self.widest = places_in_groups(self.group, len(self.lengths))


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


class Rows:
    """Rows that are decoded together: what they share, and the keys and values of each row's new tokens.

    ``trunks`` are distinct and ``group[row]`` is a row's trunk. ``path[row]`` holds the row's tokens after the trunk
    (possibly none); copies of the row share them.
    """

    def __init__(self, model: PreTrainedModel, trunks: Sequence[Layers], group: Sequence[int], path: Sequence[Layers]):
        self.model, self.device = model, model.device
        self.shared = [_Shared(trunks, group, self.device)]
        if any(part[0][0].shape[1] for part in path):
            self.shared.append(_Shared(path, range(len(path)), self.device))
        self.cache = Cache(layers=[_Own() for _ in trunks[0]])
        for layer, (keys, values) in zip(self.cache.layers, trunks[0], strict=True):
            layer.fill(*(part.new_empty(len(group), part.shape[0], 0, part.shape[2]) for part in (keys, values)))

    def __len__(self) -> int:
        return len(self.shared[0].group)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token [rows] to each row; return next-token logits [rows, vocabulary] in float32."""
        before = sum(part.lengths[part.group] for part in self.shared)
        with decoding(self):
            out = self.model(
                input_ids=tokens[:, None],
                # The shape of a finished 4D mask: the model does not change it, and ``attend`` has its own masks.
                attention_mask=torch.zeros(len(tokens), 1, 1, 1, device=self.device),
                position_ids=(before + self.cache.layers[0].keys.shape[2])[:, None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1].float()

    def repeat(self, k: int) -> None:
        """Repeat each row ``k`` times."""
        self._take(torch.arange(len(self), device=self.device).repeat_interleave(k))

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        self._take(torch.tensor(rows, device=self.device))

    def own(self, row: int, trunk: int, columns: int) -> Layers:
        """Return a copy of the keys and values of a row's first ``columns`` tokens after its ``trunk`` tokens."""
        path = self.shared[1].of(row) if len(self.shared) > 1 else None
        out = []
        for number, layer in enumerate(self.cache.layers):
            sides = (layer.keys[row], layer.values[row])
            if path is None:
                out.append(tuple(side[:, :columns].clone() for side in sides))
            else:
                out.append(tuple(torch.cat(both, 1)[:, :columns] for both in zip(path[number], sides, strict=True)))
        return out

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the attention [rows, heads, width] of scaled queries [rows, heads, width] over earlier tokens."""
        rows, heads, width = query.shape
        few = key.shape[1]  # heads of keys and values; several query heads share one
        query = query.view(rows, few, heads // few, width)
        parts = [part.attend(layer, query) for part in self.shared]
        over, total = attended(query, key, value)
        for other, its_total in parts:
            share = torch.sigmoid(its_total - total)
            over = over + (other - over) * share.to(over.dtype)
            total = torch.logaddexp(total, its_total)
        return over.reshape(rows, heads, width)

    def _take(self, rows: torch.Tensor) -> None:
        for layer in self.cache.layers:
            layer.fill(layer.keys[rows], layer.values[rows])
        for part in self.shared:
            part.take(rows)


class PlainRows:
    """The same for models with another attention (sliding windows, soft caps ...): one cache row per row."""

    def __init__(self, model: PreTrainedModel, cache: Cache, mask: torch.Tensor):
        """Use a ``cache`` whose rows are left-padded as in ``mask`` [rows, columns]."""
        self.model, self.cache, self.mask = model, cache, mask
        self.begin = mask.shape[1] - mask.sum(1)

    @classmethod
    def of(
        cls, model: PreTrainedModel, trunks: Sequence[Layers], group: Sequence[int], own: Sequence[Layers]
    ) -> PlainRows:
        """Make rows from the arguments of ``Rows``; each gets a copy of its trunk."""
        whole = [
            [
                tuple(torch.cat(sides, 1) for sides in zip(*layers, strict=True))
                for layers in zip(trunks[g], part, strict=True)
            ]
            for g, part in zip(group, own, strict=True)
        ]
        lengths = [row[0][0].shape[1] for row in whole]
        width = max(lengths)
        cache = DynamicCache(config=model.config)
        for layer in range(len(whole[0])):
            cache.update(*(_padded([row[layer][side] for row in whole], width, left=True) for side in (0, 1)), layer)
        column = torch.arange(width, device=model.device)
        return cls(model, cache, (column >= width - torch.tensor(lengths, device=model.device)[:, None]).long())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See ``Rows.forward``."""
        position = self.mask.sum(1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        return next_logits(self.model, tokens[:, None], self.mask, position[:, None], self.cache)

    def repeat(self, k: int) -> None:
        """See ``Rows.repeat``."""
        self.cache.batch_repeat_interleave(k)
        self.mask, self.begin = self.mask.repeat_interleave(k, 0), self.begin.repeat_interleave(k, 0)

    def select(self, rows: Sequence[int]) -> None:
        """See ``Rows.select``."""
        chosen = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(chosen)
        self.mask, self.begin = self.mask[chosen], self.begin[chosen]

    def own(self, row: int, trunk: int, columns: int) -> Layers:
        """See ``Rows.own``."""
        start = int(self.begin[row]) + trunk
        part = slice(start, start + columns)
        return [(layer.keys[row, :, part].clone(), layer.values[row, :, part].clone()) for layer in self.cache.layers]


def next_logits(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, cache: Cache
) -> torch.Tensor:
    """Return next-token logits [rows, vocabulary] in float32."""
    out = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1].float()


def sliceable(cache: Cache) -> bool:
    """Say whether every layer holds all tokens; a sliding window has dropped its first ones."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def take_trunks(model: PreTrainedModel) -> bool:
    """Make the model decode ``Rows``; return False and leave it unchanged if its logits would differ.

    Only torch's own attention is replaced, and only if both agree on two made-up prompts.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    cache = DynamicCache(config=base.config)
    if before != "sdpa" or not sliceable(cache):
        return False
    prompts = torch.arange(2 * 7, device=model.device).view(2, 7) % model.config.vocab_size
    with torch.inference_mode():
        plain = model(input_ids=prompts, use_cache=False).logits[:, -1].float()
        model(input_ids=prompts[:, :-2], past_key_values=cache, use_cache=True)
        trunks = [[(layer.keys[i], layer.values[i]) for layer in cache.layers] for i in range(len(prompts))]
        none = [[(keys[:, :0], values[:, :0]) for keys, values in trunk] for trunk in trunks]
        try:
            base.set_attn_implementation(NAME)
            rows = Rows(model, trunks, range(len(prompts)), none)
            rows.forward(prompts[:, -2])
            apart = float((rows.forward(prompts[:, -1]) - plain).abs().max())
        except (AttributeError, TypeError, ValueError, RuntimeError):
            apart = float("inf")
    same = apart <= (2e-4 if plain.dtype == base.dtype else 0.1) * max(1.0, float(plain.abs().max()))
    if not same:
        base.set_attn_implementation(before)
    return same


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


def _padded(rows: Sequence[torch.Tensor], width: int, left: bool = False) -> torch.Tensor:
    """Stack rows of [heads, tokens, size] into one tensor [rows, heads, width, size], padded with zeros."""
    heads, _, size = rows[0].shape
    out = rows[0].new_zeros(len(rows), heads, width, size)
    for place, row in enumerate(rows):
        n = row.shape[1]
        out[place, :, width - n if left else 0 : width if left else n] = row
    return out


def size_of(layers: Layers) -> int:
    """Return the bytes of keys and values."""
    return sum(keys.nbytes + values.nbytes for keys, values in layers)
