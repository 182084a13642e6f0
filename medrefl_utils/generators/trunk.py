"""Decoding of rows that begin alike: what they share, the trunk, is kept once and read once a step for all of them.

The rows of a reasoning tree share their question's prompt, which is most of what they attend to. A row's attention is
that over its trunk, computed for all rows of the trunk in one product, merged with that over its own tokens by their
log-sum-exp (the same sum in another order). Own tokens lie in buffers with room to grow, so that a step copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "medrefl_trunk"
_ROOM = 32  # columns by which a full buffer grows

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one row, [heads, tokens, width] for each layer."""

_NOW: ContextVar[Rows | None] = ContextVar("rows that are decoded now", default=None)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The model's attention: over trunk and own tokens while rows are decoded, else torch's own."""
    rows = _NOW.get()
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return rows.attend(module.layer_idx, query[:, :, 0] * scale, key, value)[:, None], None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Own(DynamicLayer):
    """A cache layer that writes into a buffer with room; ``keys`` and ``values`` are views of what is filled."""

    def fill(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take [rows, heads, columns, width], with room behind."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._buffers = [self._roomy(keys), self._roomy(values)]
        self._view(keys.shape[2])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple:
        """Write one column; returns all."""
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


class Rows:
    """Rows that are decoded together: their trunks, and the keys and values of their own tokens.

    ``trunks`` are distinct; ``group[row]`` is a row's trunk, ``own[row]`` its own tokens so far (may be of none).
    """

    def __init__(self, model: PreTrainedModel, trunks: Sequence[Layers], group: Sequence[int], own: Sequence[Layers]):
        self.model, self.device = model, model.device
        lengths = [trunk[0][0].shape[1] for trunk in trunks]
        self.longest = max(lengths)
        self.trunks = [
            tuple(_padded([trunk[layer][side] for trunk in trunks], self.longest, left=False) for side in (0, 1))
            for layer in range(len(trunks[0]))
        ]
        # Trunks begin at column 0; columns behind a shorter one are masked.
        column = torch.arange(self.longest, device=self.device)
        self.trunk_length = torch.tensor(lengths, device=self.device)
        self.trunk_mask = torch.where(column < self.trunk_length[:, None], 0.0, -torch.inf)
        self.group = torch.tensor(group, device=self.device)
        filled = [part[0][0].shape[1] for part in own]
        self.columns = max(filled)
        self.start = torch.tensor([self.columns - n for n in filled], device=self.device)
        self.cache = Cache(layers=[_Own() for _ in self.trunks])
        for number, layer in enumerate(self.cache.layers):
            layer.fill(*(_padded([part[number][side] for part in own], self.columns, left=True) for side in (0, 1)))
        self._arrange()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token [rows] to each row; next-token logits [rows, vocabulary], in 32 bit."""
        position = self.trunk_length[self.group] + self.columns - self.start
        self.columns += 1
        column = torch.arange(self.columns, device=self.device)
        self.own_mask = torch.where(column >= self.start[:, None], 0.0, -torch.inf)[:, None, None]
        token = _NOW.set(self)
        try:
            out = self.model(
                input_ids=tokens[:, None],
                # Of the shape of a mask that is ready, which the model then leaves alone; the masks are ours.
                attention_mask=self.own_mask,
                position_ids=position[:, None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        finally:
            _NOW.reset(token)
        return out.logits[:, -1].float()

    def repeat(self, k: int) -> None:
        """Each row ``k`` times."""
        self._take(torch.arange(len(self.group), device=self.device).repeat_interleave(k))

    def select(self, rows: Sequence[int]) -> None:
        """Only these rows."""
        self._take(torch.tensor(rows, device=self.device))

    def own(self, row: int, trunk: int, columns: int) -> Layers:
        """A copy of the keys and values of a row's first ``columns`` own tokens, those after its ``trunk`` tokens."""
        start = int(self.start[row])
        part = slice(start, start + columns)
        return [(layer.keys[row, :, part].clone(), layer.values[row, :, part].clone()) for layer in self.cache.layers]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention [rows, heads, width] of scaled queries [rows, heads, width] over trunk and own tokens."""
        rows, heads, width = query.shape
        shared = key.shape[1]  # heads of keys and values, each for several of the queries'
        query = query.view(rows, shared, heads // shared, width)
        trunk_key, trunk_value = self.trunks[layer]
        grouped = self._to_groups(query)
        over_trunk, trunk_sum = _attended(grouped, trunk_key, trunk_value, self.trunk_mask[:, None, None])
        over_trunk, trunk_sum = self._to_rows(over_trunk, shared), self._to_rows(trunk_sum, shared)
        over_own, own_sum = _attended(query, key, value, self.own_mask)
        share = torch.sigmoid(trunk_sum - own_sum).to(query.dtype)
        return (over_own + (over_trunk - over_own) * share).reshape(rows, heads, width)

    def _take(self, rows: torch.Tensor) -> None:
        for layer in self.cache.layers:
            layer.fill(layer.keys[rows], layer.values[rows])
        self.group, self.start = self.group[rows], self.start[rows]
        self._arrange()

    def _arrange(self) -> None:
        """Each row's place among the rows of its trunk: rows lie side by side in a product, trunk by trunk."""
        counts = torch.bincount(self.group, minlength=len(self.trunk_length))
        alive = counts.nonzero()[:, 0]
        if 2 * len(alive) <= len(counts):
            self.trunks = [(keys[alive], values[alive]) for keys, values in self.trunks]
            self.trunk_length, self.trunk_mask = self.trunk_length[alive], self.trunk_mask[alive]
            self.group = torch.searchsorted(alive, self.group)
            counts = counts[alive]
        self.widest = int(counts.max())
        order = self.group.argsort(stable=True)
        first = counts.cumsum(0) - counts
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(len(order), device=self.device) - first[self.group[order]]
        self.place += self.group * self.widest

    def _to_groups(self, query: torch.Tensor) -> torch.Tensor:
        _, shared, each, width = query.shape
        out = query.new_zeros(len(self.trunk_length) * self.widest, shared, each, width)
        out[self.place] = query
        out = out.view(-1, self.widest, shared, each, width).transpose(1, 2)
        return out.reshape(-1, shared, self.widest * each, width)

    def _to_rows(self, grouped: torch.Tensor, shared: int) -> torch.Tensor:
        width = grouped.shape[-1]
        out = grouped.view(len(grouped), shared, self.widest, -1, width).transpose(1, 2)
        return out.reshape(len(grouped) * self.widest, shared, -1, width)[self.place]


class PlainRows:
    """The same for models with another attention (sliding windows, soft caps ...): one cache row a row."""

    def __init__(self, model: PreTrainedModel, cache: Cache, mask: torch.Tensor):
        """``cache`` holds the rows left-padded, as ``mask`` [rows, columns] says."""
        self.model, self.cache, self.mask = model, cache, mask
        self.begin = mask.shape[1] - mask.sum(1)

    @classmethod
    def of(
        cls, model: PreTrainedModel, trunks: Sequence[Layers], group: Sequence[int], own: Sequence[Layers]
    ) -> PlainRows:
        """Rows made as ``Rows`` are: each with a copy of its trunk."""
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
    """Next-token logits [rows, vocabulary], in 32 bit."""
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
    """Whether every layer holds all tokens; a sliding window has forgotten its first ones."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def take_trunks(model: PreTrainedModel) -> bool:
    """Have the model decode ``Rows``; False, and the model left as it was, where its logits would not be the same.

    Only torch's own attention is replaced, and only if a trial on two made-up prompts agrees with it.
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


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [rows, heads, queries, width] over [rows, heads, keys, width], and the log-sum-exp of its scores."""
    scores = (query @ key.transpose(-1, -2)).float() + mask
    top = scores.amax(-1, keepdim=True)
    weight = (scores - top).exp_()
    total = weight.sum(-1, keepdim=True)
    return (weight / total).to(value.dtype) @ value, top + total.log()


def _padded(rows: Sequence[torch.Tensor], width: int, left: bool) -> torch.Tensor:
    """Rows of [heads, tokens, size] as one tensor [rows, heads, width, size], zeros on one side."""
    heads, _, size = rows[0].shape
    out = rows[0].new_zeros(len(rows), heads, width, size)
    for place, row in enumerate(rows):
        n = row.shape[1]
        out[place, :, width - n if left else 0 : width if left else n] = row
    return out
