"""Decode rows of unequal length together: a row joins, goes on and leaves while the others are written.

Each row shares the keys and values of its trunk (its question's prompt) with the other rows of the same tree, and has
own keys and values behind it, in one buffer with a line per row. A row that ends makes room: the last row takes its
line. So a decoding step copies nothing but the lines that move.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from medrefl_utils.models.generators.shared_prefix import (
    NAME,
    Layers,
    attended,
    cache_argument,
    decoding,
    from_groups,
    places_in_groups,
    sliceable,
    to_groups,
)

_ROOM = 32  # columns by which a full buffer grows


class _Lines(DynamicLayer):
    """A cache layer with one line of keys and values per row, each filled up to the row's own length."""

    def __init__(self, rows: RaggedRows):
        super().__init__()
        self.rows = rows
        self.sides: list[torch.Tensor] = []

    def reserve(self, like: torch.Tensor, lines: int, columns: int) -> None:
        """Have room for so many lines and columns; ``like`` [heads, any, width] gives the form of one line."""
        if not self.sides:
            self.lazy_initialization(like[None], like[None])
            self.sides = [like.new_zeros(0, like.shape[0], 0, like.shape[2])] * 2
        have = self.sides[0].shape
        if have[0] < lines or have[2] < columns:
            # Zeros, not any memory: masked columns are multiplied by a weight of 0.
            shape = (max(lines, have[0]), have[1], max(columns, have[2]), have[3])
            old, self.sides = self.sides, [side.new_zeros(shape) for side in self.sides]
            for side, before in zip(self.sides, old, strict=True):
                side[: have[0], :, : have[2]] = before

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object) -> tuple:
        """Write each row's next column and return the columns of all rows."""
        rows = self.rows
        for side, new in zip(self.sides, (key_states, value_states), strict=True):
            side[rows.line, :, rows.at] = new[:, :, 0]
        self.keys, self.values = (side[: len(rows), :, : rows.columns] for side in self.sides)
        return self.keys, self.values


class Trunks:
    """Keys and values of prompts that rows share, one slot each."""

    def __init__(self, device: torch.device):
        self.device = device
        self.layers: list[list[torch.Tensor]] = []
        self.ends: list[int] = []

    def add(self, trunks: Sequence[Layers]) -> list[int]:
        """Store trunks and return their slots."""
        first = len(self.ends)
        self.ends += [trunk[0][0].shape[1] for trunk in trunks]
        longest = max(self.ends)
        if not self.layers:
            self.layers = [[side.new_zeros(0, side.shape[0], 0, side.shape[2]) for side in pair] for pair in trunks[0]]
        for number, sides in enumerate(self.layers):
            for which, side in enumerate(sides):
                slots, heads, columns, width = side.shape
                if slots < len(self.ends) or columns < longest:
                    more = slots if len(self.ends) <= slots else max(len(self.ends), 2 * slots)
                    sides[which] = side.new_zeros(more, heads, max(longest, columns), width)
                    sides[which][:slots, :, :columns] = side
                for slot, trunk in enumerate(trunks, first):
                    sides[which][slot, :, : self.ends[slot]] = trunk[number][which]
        return list(range(first, len(self.ends)))

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all trunks but these, which get the slots 0, 1 and so on."""
        for sides in self.layers:
            for side in sides:
                side[: len(slots)] = side[list(slots)]
        self.ends = [self.ends[slot] for slot in slots]

    def arrange(self, slots: Sequence[int]) -> None:
        """Prepare the attention of rows with these trunks."""
        self.lengths = torch.tensor(self.ends, device=self.device)
        least = torch.finfo(torch.float32).min
        self.mask = torch.where(torch.arange(max(self.ends), device=self.device) < self.lengths[:, None], 0.0, least)
        self.group = torch.tensor(slots, device=self.device)
        self.place, self.widest = places_in_groups(self.group, len(self.ends))

    def attend(self, layer: int, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attention of [rows, heads, queries, width] over each row's trunk, and its log-sum-exp."""
        keys, values = (side[: len(self.ends), :, : self.mask.shape[1]] for side in self.layers[layer])
        grouped = to_groups(query, self.place, self.widest, len(self.ends))
        over, total = attended(grouped, keys, values, self.mask[:, None, None])
        return tuple(from_groups(one, self.place, self.widest, query.shape[1]) for one in (over, total))


class RaggedRows:
    """Rows that are decoded together; each has a trunk, and own tokens of any number."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.device = model, model.device
        self.trunks = Trunks(self.device)
        self.slots: list[int] = []
        self.filled: list[int] = []
        self.cache: Cache | None = None
        self.columns = 0
        self._arranged = False

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, slots: Sequence[int], own: Sequence[Layers]) -> None:
        """Add rows behind the others: the slots of their trunks, and their own keys and values (any number)."""
        if not slots:
            return
        first, lengths = len(self), [layers[0][0].shape[1] for layers in own]
        self._reserve(own[0], first + len(own), max(lengths) + 1)
        for number, layer in enumerate(self.cache.layers):
            for which, side in enumerate(layer.sides):
                for line, (layers, end) in enumerate(zip(own, lengths, strict=True), first):
                    side[line, :, :end] = layers[number][which]
        self.slots += slots
        self.filled += lengths
        self._arranged = False

    def copy(self, row: int, times: int) -> None:
        """Add copies of a row behind the others."""
        first, end = len(self), self.filled[row]
        self._reserve(None, first + times, 0)
        for layer in self.cache.layers:
            for side in layer.sides:
                side[first : first + times, :, :end] = side[row, :, :end]
        self.slots += [self.slots[row]] * times
        self.filled += [end] * times
        self._arranged = False

    def cut(self, row: int, columns: int) -> None:
        """Keep a row's first own tokens."""
        self.filled[row] = columns

    def own(self, row: int, columns: int) -> Layers:
        """Return a copy of the keys and values of a row's first own tokens."""
        return [tuple(side[row, :, :columns].clone() for side in layer.sides) for layer in self.cache.layers]

    def remove(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Remove rows; return (place, row) of the rows that took a place that became free."""
        left, gone = len(self) - len(rows), set(rows)
        moves = list(
            zip(
                sorted(row for row in gone if row < left),
                (row for row in range(left, len(self)) if row not in gone),
                strict=True,
            )
        )
        if moves:
            places, movers = ([move[i] for move in moves] for i in (0, 1))
            end = max(self.filled[row] for row in movers)
            for layer in self.cache.layers:
                for side in layer.sides:
                    side[places, :, :end] = side[movers, :, :end]
        for place, row in moves:
            self.slots[place], self.filled[place] = self.slots[row], self.filled[row]
        del self.slots[left:], self.filled[left:]
        self._arranged = False
        return moves

    def keep_trunks(self, slots: Sequence[int]) -> None:
        """Drop all trunks but these, which get the slots 0, 1 and so on; no row may have another one."""
        self.trunks.keep(slots)
        place = {slot: i for i, slot in enumerate(slots)}
        self.slots = [place[slot] for slot in self.slots]
        self._arranged = False

    def forward(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each row; return next-token logits [rows, vocabulary] in float32."""
        if not self._arranged:
            self.trunks.arrange(self.slots)
            self.line = torch.arange(len(self), device=self.device)
            self._arranged = True
        self.columns = max(self.filled) + 1
        self._reserve(None, len(self), self.columns)
        self.at = torch.tensor(self.filled, device=self.device)
        least = torch.finfo(torch.float32).min
        self._mask = torch.where(torch.arange(self.columns, device=self.device) <= self.at[:, None], 0.0, least)
        with decoding(self):
            out = self.model(
                input_ids=torch.tensor(tokens, device=self.device)[:, None],
                # The shape of a finished 4D mask: the model does not change it, and ``attend`` has its own masks.
                attention_mask=torch.zeros(len(self), 1, 1, 1, device=self.device),
                position_ids=(self.trunks.lengths[self.trunks.group] + self.at)[:, None],
                use_cache=True,
                logits_to_keep=1,
                **cache_argument(self.model, self.cache),
            )
        self.filled = [end + 1 for end in self.filled]
        return out.logits[:, -1].float()

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the attention [rows, heads, width] of scaled queries [rows, heads, width] over earlier tokens."""
        rows, heads, width = query.shape
        few = key.shape[1]  # heads of keys and values; several query heads share one
        query = query.view(rows, few, heads // few, width)
        other, its_total = self.trunks.attend(layer, query)
        over, total = attended(query, key, value, self._mask[:, None, None])
        share = torch.sigmoid(its_total - total)
        return (over + (other - over) * share.to(over.dtype)).reshape(rows, heads, width)

    def _reserve(self, like: Layers | None, lines: int, columns: int) -> None:
        """Have room for so many lines and columns, and for some more, so that buffers seldom grow."""
        if self.cache is None:
            self.cache = Cache(layers=[_Lines(self) for _ in like])
        have = self.cache.layers[-1].sides[0].shape if self.cache.layers[-1].sides else (0, 0, 0, 0)
        lines = 0 if lines <= have[0] else max(lines, have[0] + have[0] // 2)
        columns = 0 if columns <= have[2] else columns + _ROOM
        if lines or columns:
            for number, layer in enumerate(self.cache.layers):
                layer.reserve(like[number][0] if like is not None else layer.sides[0][0], lines, columns)


def take_trunks(model: PreTrainedModel) -> bool:
    """Make the model decode ``RaggedRows``; return False and leave it unchanged if its logits would differ.

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
        model(input_ids=prompts[:, :-2], use_cache=True, **cache_argument(model, cache))
        trunks = [[(layer.keys[i], layer.values[i]) for layer in cache.layers] for i in range(len(prompts))]
        none = [[(keys[:, :0], values[:, :0]) for keys, values in trunk] for trunk in trunks]
        try:
            base.set_attn_implementation(NAME)
            rows = RaggedRows(model)
            rows.add(rows.trunks.add(trunks), none)
            rows.forward(prompts[:, -2].tolist())
            apart = float((rows.forward(prompts[:, -1].tolist()) - plain).abs().max())
        except (AttributeError, TypeError, ValueError, RuntimeError):
            apart = float("inf")
    same = apart <= (2e-4 if plain.dtype == base.dtype else 0.1) * max(1.0, float(plain.abs().max()))
    if not same:
        base.set_attn_implementation(before)
    return same
