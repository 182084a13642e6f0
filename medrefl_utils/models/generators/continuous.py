"""Write texts without a barrier: each is handed out as soon as it is complete, and a tree's step goes on at once.

Rows join and leave the decoding at any token (continuous batching). A step that goes on stays in its line of the cache;
its copies are for siblings. New rows join in an order that depends on tokens alone, never on the clock, so that the
same expansions give the same batches again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.budget import Spent
from medrefl_utils.models.generators.decoding import Decoding, decode_fewer, not_even_one
from medrefl_utils.models.generators.drawing import Ids, Row, draw_tokens, uniform_numbers
from medrefl_utils.models.generators.interface import Expansion, Then
from medrefl_utils.models.generators.ragged_rows import RaggedRows
from medrefl_utils.models.generators.shared_prefix import Layers, next_logits, size_of
from medrefl_utils.models.generators.token_cutting import StepCutter
from medrefl_utils.models.memory import is_out_of_memory

_READ_AT_ONCE = 16_384
"""Maximum number of tokens, padding included, that are read in one pass (ours)."""
_FREE_TO_READ = 8
"""New prompts wait until one row in so many is free, so that several are read in one pass (ours)."""


@dataclass(eq=False)
class _Group:
    """The continuations of one expansion. ``worst`` is what they may cost; ``counted``: the budget counts it."""

    expansion: Expansion
    worst: Spent
    counted: bool = False
    rows: list[Row] = field(default_factory=list)
    left: int = 0
    read: int = 0


@dataclass(eq=False)
class _Line:
    """A row that is decoded or waits, its group and seed. ``uniform``: its numbers, drawn when it first joins."""

    row: Row
    group: _Group
    seed: int
    uniform: np.ndarray | None = None

    @property
    def ids(self) -> Ids:
        """All tokens so far. The model reads the last one next; keys and values are of those before it."""
        return (*self.row.prefix, *self.row.token_ids)

    @property
    def columns(self) -> int:
        """How many own keys and values the row has behind its trunk."""
        return len(self.row.prefix) + len(self.row.token_ids) - 1 - len(self.row.trunk)


class ContinuousDecoder:
    """Decodes the continuations of expansions, and of those that the caller asks for when one is complete."""

    def __init__(self, generator: Decoding, cutter: StepCutter | None, sampling: Sampling):
        """Prepare to decode; ``cutter`` finds the end of a step (None: a continuation is the whole turn)."""
        self.generator, self.cutter, self.sampling = generator, cutter, sampling
        self.rows = RaggedRows(generator.model)
        self.lines: list[_Line] = []
        self.tokens: list[int] = []
        # Rows that wait, in lists of rows with the same tokens: those that follow others, and the first ones.
        self.resumed: deque[list[_Line]] = deque()
        self.fresh: deque[list[_Line]] = deque()
        self.slots: dict[Ids, int] = {}
        self.kept: dict[Ids, tuple[Ids, Layers]] = {}
        self.held = 0  # bytes
        self.undecided: dict[Ids, list[Ids]] = {}
        self.in_flight = Spent()
        self.joining: list[list[_Line]] = []
        self.seen: torch.Tensor | None = None
        self.prompts: dict[int, tuple[Messages, Ids]] = {}

    def run(self, first: Sequence[Expansion], then: Then) -> None:
        """Write all expansions, and those that ``then`` returns.

        Raises:
            MedReflError: a prefix leaves no room in the model's context, one prefix's continuations do not fit into
                memory, or the budget is too small.
        """
        self.fresh.extend(self._lines_of(expansion, to_read=True) for expansion in first)
        while self.lines or self.resumed or self.fresh:
            try:
                self._join()
                ended = self._step()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._take_fewer()
                continue
            if ended:
                self._finish(ended, then)

    def _lines_of(self, expansion: Expansion, *, to_read: bool = False) -> list[_Line]:
        """Return the lines of an expansion, after checking that it has room in the context."""
        generator, k = self.generator, len(expansion.seeds)
        messages = expansion.prefix.messages
        if id(messages) not in self.prompts:  # siblings share theirs; kept here, so that no other gets the same id
            self.prompts[id(messages)] = messages, tuple(generator.prompt_ids(messages))
        prompt = self.prompts[id(messages)][1]
        ids = (*prompt, *expansion.prefix.token_ids)
        generator.check_room(len(ids), self.sampling)
        worst = Spent(k, len(ids) if to_read else 0, k * self.sampling.max_tokens)
        group = _Group(expansion, worst, rows=[Row(ids, prompt[:-1]) for _ in expansion.seeds], left=k)
        return [_Line(row, group, seed) for row, seed in zip(group.rows, expansion.seeds, strict=True)]

    def _afford(self, group: _Group) -> bool:
        """Say whether the budget has room for a group beside those in flight, which may cost less than feared.

        Raises:
            MedReflError: it has no room, and nothing is in flight.
        """
        if group.counted:
            return True
        complaint = self.generator.budget.complaint(self.generator.spent, self.in_flight + group.worst)
        if complaint and not self.in_flight.calls:
            raise MedReflError(f"model {self.generator.about['model']}: {complaint}")
        if not complaint:
            self.in_flight += group.worst
            group.counted = True
        return group.counted

    def _join(self) -> None:
        """Let waiting rows join while there is room and budget: first those behind a step, then the first ones."""
        if not (self.resumed or self.fresh):
            return
        n, room = len(self.lines), self._room()
        self.joining = []
        for queue in (self.resumed, self.fresh):
            if queue is self.fresh and n and room - n < max(1, room // _FREE_TO_READ):
                break
            while queue and (not n or n + len(queue[0]) <= room) and self._afford(queue[0][0].group):
                n += len(queue[0])
                self.joining.append(queue.popleft())
        if not self.joining:
            return
        own = self._own_parts(self.joining)
        self.rows.add([self.slots[lines[0].row.trunk] for lines in self.joining], own)
        joining, self.joining = self.joining, []
        first = len(self.lines)
        for lines in joining:
            self._set(len(self.lines), lines[0])
        for place, lines in enumerate(joining, first):
            self._copy(place, lines[1:])

    def _copy(self, place: int, lines: Sequence[_Line]) -> None:
        """Let lines with the same tokens as the one at ``place`` join behind the others."""
        if lines:
            self.rows.copy(place, len(lines))
            for line in lines:
                self._set(len(self.lines), line)

    def _set(self, place: int, line: _Line) -> None:
        """Let a line be at a place, an old one or the next."""
        ids = line.ids
        if line.uniform is None and self.sampling.temperature > 0:
            line.uniform = uniform_numbers(line.seed, self.sampling)
        if place == len(self.lines):
            self.lines.append(line)
            self.tokens.append(ids[-1])
        else:
            self.lines[place], self.tokens[place] = line, ids[-1]
        if self.sampling.repetition_penalty != 1.0:
            device = self.rows.device
            if self.seen is None or place >= len(self.seen):
                vocabulary = self.generator.model.get_output_embeddings().weight.shape[0]
                more = torch.zeros(max(64, place), vocabulary, dtype=torch.bool, device=device)
                self.seen = more if self.seen is None else torch.cat([self.seen, more])
            self.seen[place] = False
            self.seen[place, torch.tensor(ids, device=device)] = True

    def _room(self) -> int:
        """Return how many rows fit together."""
        waiting = [queue[0][0] for queue in (self.resumed, self.fresh) if queue]
        longest = max(len(line.row.prefix) + len(line.row.token_ids) for line in (*self.lines, *waiting))
        return self.generator.prefixes_at_once(longest, 1, self.sampling)

    def _own_parts(self, joining: Sequence[list[_Line]]) -> list[Layers]:
        """Return each row's own keys and values: kept ones, or read now with the trunk, several in one pass."""
        own: list[Layers | None] = []
        for lines in joining:
            trunk, ids = lines[0].row.trunk, lines[0].ids
            kept = self._take(ids)
            own.append(kept if trunk in self.slots else None)
        missing = [i for i, layers in enumerate(own) if layers is None]
        if missing:
            self._drop_trunks(joining)
        missing.sort(key=lambda i: len(joining[i][0].ids))
        while missing:
            width = [len(joining[i][0].ids) - 1 for i in missing]
            n = max(1, sum((place + 1) * columns <= _READ_AT_ONCE for place, columns in enumerate(width)))
            part, missing = missing[:n], missing[n:]
            read = self._read([joining[i][0].ids[:-1] for i in part])
            trunks: dict[Ids, Layers] = {}
            for i, layers in zip(part, read, strict=True):
                line = joining[i][0]
                end = len(line.row.trunk)
                if line.row.trunk not in self.slots:
                    trunks[line.row.trunk] = [tuple(side[:, :end] for side in pair) for pair in layers]
                own[i] = [tuple(side[:, end:] for side in pair) for pair in layers]
                line.group.read += len(line.ids)
                self.generator.usage.prompt_tokens += len(line.ids)
            if trunks:
                self.slots |= dict(zip(trunks, self.rows.trunks.add(list(trunks.values())), strict=True))
        return own

    def _read(self, ids: Sequence[Ids]) -> list[Layers]:
        """Let the model read token sequences, left-padded; return the keys and values of each."""
        device, width = self.rows.device, max(map(len, ids))
        pad = self.generator.tokenizer.pad_token_id
        tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        cache = DynamicCache(config=self.generator.model.config)
        next_logits(self.generator.model, tokens, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        return [
            [(layer.keys[i, :, width - len(row) :], layer.values[i, :, width - len(row) :]) for layer in cache.layers]
            for i, row in enumerate(ids)
        ]

    def _drop_trunks(self, joining: Sequence[list[_Line]]) -> None:
        """Drop the trunks that no row has or is about to have, and that have no kept keys and values behind them."""
        waiting = chain.from_iterable((*joining, *self.resumed))
        used = {line.row.trunk for line in chain(self.lines, waiting)} | {trunk for trunk, _ in self.kept.values()}
        kept = [trunk for trunk in self.slots if trunk in used]
        if len(kept) < len(self.slots):
            self.rows.keep_trunks([self.slots[trunk] for trunk in kept])
            self.slots = {trunk: slot for slot, trunk in enumerate(kept)}

    def _step(self) -> list[int]:
        """Write the next token of each row; return the places of the rows that have ended."""
        n, device = len(self.lines), self.rows.device
        logits = self.rows.forward(self.tokens)
        uniform = None
        if self.sampling.temperature > 0:
            draws = [line.uniform[len(line.row.token_ids)] for line in self.lines]
            uniform = torch.tensor(draws, dtype=torch.float64, device=device)
        seen = None if self.seen is None else self.seen[:n]
        chosen, logprobs = draw_tokens(logits, self.sampling, uniform, seen)
        if self.seen is not None:
            self.seen[torch.arange(n, device=device), chosen] = True
        self.tokens = chosen.tolist()
        self.generator.usage.completion_tokens += n
        ended = []
        for place, (line, token, logprob) in enumerate(zip(self.lines, self.tokens, logprobs.tolist(), strict=True)):
            row = line.row
            row.add(token, logprob, self.generator.ends, self.cutter)
            if row.stop is None and len(row.token_ids) == self.sampling.max_tokens:
                row.stop = "length"
            if row.stop is not None:
                ended.append(place)
        return ended

    def _finish(self, ended: list[int], then: Then) -> None:
        """Hand out the groups that are complete, continue their steps in place, and let the other rows leave."""
        for place in ended:
            self.lines[place].group.left -= 1
        here: dict[Ids, int] = {}
        complete: dict[_Group, None] = {}
        for place in ended:
            line = self.lines[place]
            if not line.group.left:
                complete[line.group] = None
            if line.row.stop == "boundary":
                if line.group.left:
                    self._keep(place)
                else:
                    here[line.ids] = place
        waiting: list[list[_Line]] = []
        for group in complete:
            waiting += self._handed_out(group, here, then)
        room, stay = self._room(), set()
        for lines in waiting:
            place = here.get(lines[0].ids)
            full = len(lines) > 1 and len(self.lines) + len(lines) - 1 > room
            if place is None or full or not self._afford(lines[0].group):
                if place is not None:
                    self._keep(place)
                self.resumed.append(lines)
                continue
            stay.add(place)
            self.rows.cut(place, lines[0].columns)
            self._set(place, lines[0])
            self._copy(place, lines[1:])
        self._leave([place for place in ended if place not in stay])

    def _handed_out(self, group: _Group, here: dict[Ids, int], then: Then) -> list[list[_Line]]:
        """Hand out a complete group; return the lines of the expansions that follow."""
        generator = self.generator
        written = [row.finish(generator.tokenizer) for row in group.rows]
        tokens = sum(len(row.token_ids) + row.looked_ahead for row in group.rows)
        generator.usage.calls += len(written)
        generator.spent += Spent(len(written), group.read, tokens)
        self.in_flight -= group.worst
        group.counted = False
        more = then(group.expansion, written)
        trunk = group.rows[0].trunk
        steps = [(*row.prefix, *row.token_ids) for row in group.rows if row.stop == "boundary"]
        if more is None:
            for ids in steps:
                if ids in here:
                    self._keep(here[ids])
            self.undecided.setdefault(trunk, []).extend(steps)
            return []
        waiting = [self._lines_of(expansion) for expansion in more]
        wanted = {lines[0].ids for lines in waiting}
        for ids in (*self.undecided.pop(trunk, ()), *steps):
            if ids not in wanted:
                self._take(ids)
        return waiting

    def _leave(self, places: list[int]) -> None:
        for place, row in self.rows.remove(places):
            self.lines[place], self.tokens[place] = self.lines[row], self.tokens[row]
            if self.seen is not None:
                self.seen[place] = self.seen[row]
        del self.lines[len(self.rows) :], self.tokens[len(self.rows) :]
        if len(self.slots) > 2 * len(self.lines):  # a step computes with all trunks, used or not
            self._drop_trunks([])

    def _keep(self, place: int) -> None:
        """Keep a copy of a complete step's keys and values, if ``keep_bytes`` has room."""
        line = self.lines[place]
        if line.ids in self.kept:
            return
        own = self.rows.own(place, line.columns)
        if self.held + size_of(own) <= self.generator.keep_bytes:
            self.kept[line.ids] = line.row.trunk, own
            self.held += size_of(own)

    def _take(self, ids: Ids) -> Layers | None:
        """Return kept keys and values, which are then kept no more; None where there are none."""
        _, own = self.kept.pop(ids, (None, None))
        self.held -= size_of(own) if own is not None else 0
        return own

    def _take_fewer(self) -> None:
        """Let rows wait and decode fewer from now on, because these ran out of memory."""
        n, joining, self.joining = len(self.lines), self.joining, []
        tried = n + sum(map(len, joining))
        if joining:
            self.resumed.extendleft(reversed(joining))
        if tried == 1 or (not n and len(joining) == 1):
            line = joining[0][0] if joining else self.lines[0]
            raise not_even_one(tried, len(line.row.prefix), self.sampling)
        decode_fewer(self.generator, tried, tried // 2)
        if not joining:
            self.resumed.extendleft([line] for line in reversed(self.lines[tried // 2 :]))
            self._leave(list(range(tried // 2, n)))
