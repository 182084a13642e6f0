"""Run a model in this process with transformers, on the CPU or one GPU.

A prefix is prefilled once, and its key-value cache is repeated for its continuations. The caches of steps just written
are kept: to expand such a step, the model reads one token instead of the whole prefix. Every row draws from a random
generator of its own, so that a row's text does not depend on the rest of its batch (except for floating-point ties).
Rows that have ended leave the cache.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from transformers import DynamicCache

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.source_code import code_hash
from medrefl_utils.core.store import content_hash
from medrefl_utils.exam import steps as exam_steps
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.chat_templates import open_thinking, prompt_ids
from medrefl_utils.models.generators import continuous, drawing, ragged_rows, shared_prefix, token_cutting
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.call_log import CallLog, call_key, logged_continuation
from medrefl_utils.models.generators.continuous import ContinuousDecoder
from medrefl_utils.models.generators.drawing import Draw, Ids, Row
from medrefl_utils.models.generators.interface import Expansion, Generator, Prefix, Progress, Then, Usage
from medrefl_utils.models.generators.shared_prefix import (
    Layers,
    PlainRows,
    Rows,
    next_logits,
    size_of,
    sliceable,
    take_trunks,
)
from medrefl_utils.models.generators.token_cutting import StepCutter, vocabulary
from medrefl_utils.models.loading import load_model, load_tokenizer, model_key
from medrefl_utils.models.memory import GIB, free_bytes, is_out_of_memory, power_of_two, rows_that_fit

_COMPACT = 0.75
"""Drop ended rows from the cache when fewer than this share of rows is alive: dropping copies the cache."""

_SMALL = 20_000_000
"""A model with fewer parameters decodes on one CPU thread: its matrices are too small to share between threads."""

_ROWS_SHARE = 0.6
"""Share of the free memory for rows. A quarter is for kept caches, the rest for what is not counted (ours)."""


class LocalGenerator(Generator):
    """A model from a local folder or the hub, run in this process."""

    def __init__(
        self,
        model: str,
        *,
        quantization: str = "none",
        adapter: Path | None = None,
        max_rows: int = 0,
        keep_gib: float = 4.0,
        free: Callable[[], int] = free_bytes,
        log: CallLog | None = None,
        budget: Budget | None = None,
    ):
        """Load the model.

        Args:
            model: a folder or a hub id.
            quantization: see ``load_model``.
            adapter: folder of a LoRA adapter to load with the model.
            max_rows: maximum number of rows decoded together; 0: as many as fit (``rows_that_fit``) into a share of
                what ``free`` returns after the model is loaded. It is measured once and rounded to a power of two, so
                that another start on the same machine decodes the same batches if a similar amount is free.
            keep_gib: maximum size of the caches kept between calls [GiB]; at most a quarter of the free memory.
            free: returns the free memory [bytes].
            log: keeps what ``chat`` writes, batch by batch, and returns it in a later run.
            budget: limits on what this generator writes.

        Raises:
            MedReflError: ``max_rows`` is below 0; and what ``load_model`` and ``load_tokenizer`` raise.
        """
        if max_rows < 0:
            raise MedReflError(f"max_rows is {max_rows}, expected 0 (as many as fit) or a number of rows")
        self.key = model_key(model, quantization) + (f" {content_hash(adapter)}" if adapter else "")
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(model, quantization, adapter)
        small = self.model.device.type == "cpu" and self.model.num_parameters() < _SMALL
        self._threads = 1 if small else torch.get_num_threads()
        self.about = {"model": model, "quantization": quantization, "device": self.model.device.type}
        self.max_rows = max_rows
        left = free()
        self.keep_bytes = min(int(keep_gib * GIB), power_of_two(left / 4))
        self._for_rows = _ROWS_SHARE * left  # bytes
        self.did_not_fit = sys.maxsize  # the smallest number of rows that ran out of memory
        self.log, self.budget = log or CallLog(None), budget or Budget()
        self.spent = Spent()
        self.usage = Usage()
        """``prompt_tokens`` counts the tokens that the model read; tokens found in a kept cache do not count"""
        self._trunks: dict[Ids, Layers] = {}
        self._kept: dict[Ids, _Kept] = {}
        self._held = 0  # bytes
        self._looked_ahead = 0  # tokens drawn only to see that a step was complete
        self._cutters: dict[str, StepCutter] = {}
        self._rows_of = Rows if take_trunks(self.model) else PlainRows.of
        ends = self.model.generation_config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        mark = open_thinking(self.tokenizer)
        self.thinking_open, self.thinking_close = mark is not None, mark[1] if mark else None

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Return the token ids of a prompt, with the header of the assistant's turn."""
        return prompt_ids(self.tokenizer, [messages])[0]

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """Write ``k`` continuations of each prefix, in the order of the prefixes.

        A continuation ends where a step is complete (``steps``), at the model's end of turn, or at
        ``sampling.max_tokens``.

        Raises:
            MedReflError: a prompt leaves no room in the model's context, one prompt's continuations do not fit into
                memory, or the budget is too small.
        """
        return self._expand(prefixes, k, steps, sampling, seeds, progress, CallLog(None))

    def _expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None,
        log: CallLog,
    ) -> list[list[Continuation]]:
        prompts = prompt_ids(self.tokenizer, [p.messages for p in prefixes])
        ids = [(*prompt, *p.token_ids) for prompt, p in zip(prompts, prefixes, strict=True)]
        longest = max(map(len, ids), default=0)
        self.check_room(longest, sampling)
        # Kept caches serve the next call only: a search expands its whole frontier at once and does not return to it.
        kept, self._kept = self._kept, {}
        kept = {row: kept[row] for row in ids if row in kept}
        self._drop_trunks(kept.values())
        results: list[list[Continuation]] = [[] for _ in ids]
        # Kept prefixes stay in order, since neighbours share a trunk; others are sorted by length, for less padding.
        resumed = [i for i, row in enumerate(ids) if row in kept]
        fresh = sorted((i for i, row in enumerate(ids) if row not in kept), key=lambda i: len(ids[i]))
        for part in (resumed, fresh):
            while part:
                chosen = part[: self.prefixes_at_once(longest, k, sampling)]
                rows = [ids[i] for i in chosen]
                written = self._logged(log, rows, kept, k, steps, sampling, [s for i in chosen for s in seeds[i]])
                if written is None:
                    self._take_fewer(len(chosen), k, longest, sampling)
                    continue
                part = part[len(chosen) :]
                for place, i in enumerate(chosen):
                    results[i] = written[place * k : (place + 1) * k]
                if progress is not None:
                    progress(len(written))
        self._drop_trunks(self._kept.values())
        return results

    def _logged(
        self,
        log: CallLog,
        ids: list[Ids],
        kept: Mapping[Ids, _Kept],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: list[int],
    ) -> list[Continuation] | None:
        """Return what ``_written`` returns, or the same from the log, where a batch is one entry."""
        key = log.folder and call_key(self.key, _code(), ids, k, steps, asdict(sampling), seeds)
        if line := key and log.get(key):
            written, seconds = [logged_continuation(one) for one in line["written"]], line["seconds"]
            self.usage.reused += 1
        else:
            read = sum(len(row) for row in ids if row not in kept)
            if complaint := self.budget.complaint(
                self.spent, Spent(len(seeds), read, len(seeds) * sampling.max_tokens)
            ):
                raise MedReflError(f"model {self.about['model']}: {complaint}")
            start, ahead = time.perf_counter(), self._looked_ahead
            written = self._written(ids, kept, k, steps, sampling, seeds)
            if written is None:
                return None
            seconds, ahead = time.perf_counter() - start, self._looked_ahead - ahead
            if key:
                log.append(key, {"written": [asdict(one) for one in written], "seconds": seconds})
            self.spent += Spent(len(written), read, sum(row.length for row in written) + ahead)
            self.usage.prompt_tokens += read
            self.usage.completion_tokens += ahead
        self.usage.calls += len(written)
        self.usage.completion_tokens += sum(row.length for row in written)
        self.usage.seconds += seconds
        return written

    def _written(
        self,
        ids: list[Ids],
        kept: Mapping[Ids, _Kept],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: list[int],
    ) -> list[Continuation] | None:
        """Write the continuations of a batch of prefixes, all with kept caches or all without; None: out of memory."""
        try:
            with _threads(self._threads):
                batch = self._resume(ids, [kept[row] for row in ids]) if ids[0] in kept else self._read(ids)
                return self._decode(batch, k, steps, sampling, seeds)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return None

    def prefixes_at_once(self, longest: int, k: int, sampling: Sampling) -> int:
        """Return how many prefixes of at most ``longest`` tokens are continued together, ``k`` times each."""
        config, width, budget = self.model.config, self.model.dtype.itemsize, self._for_rows
        most = self.max_rows or rows_that_fit(
            config, prefix=longest, new=sampling.max_tokens, k=k, width=width, budget=budget
        )
        return max(1, min(most, self.did_not_fit // 2) // k)

    def _take_fewer(self, prefixes: int, k: int, longest: int, sampling: Sampling) -> None:
        """Halve the number of rows from now on, because these ran out of memory."""
        if prefixes == 1:
            raise MedReflError(
                f"out of memory with {k} continuations of one prompt of {longest} tokens, {sampling.max_tokens} new "
                "tokens each: use fewer continuations or tokens, a smaller model, or quantization nf4"
            )
        self.did_not_fit = prefixes * k
        fewer = max(1, prefixes // 2) * k
        warnings.warn(f"out of memory with {prefixes * k} rows decoded together: continuing with {fewer}", stacklevel=3)

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """Write the model's whole answer to each list of messages, in order; take what is in the log from there."""
        prefixes, each = [Prefix(m) for m in messages], [[seed] for seed in seeds]
        return [row[0] for row in self._expand(prefixes, 1, None, sampling, each, progress, self.log)]

    def encode(self, text: str) -> Ids:
        """Return the tokens of a text."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def cut(self, chain: Continuation, steps: str) -> list[Continuation]:
        """Cut a chain into steps, as ``expand`` would have ended them."""
        return self._cutter(steps).cut(chain, self.ends)

    def expand_onward(self, first: Sequence[Expansion], steps: str | None, sampling: Sampling, then: Then) -> None:
        """Write expansions and those that follow, each as soon as the one before it is complete.

        A model with another attention than torch's own writes all that wait together.

        Raises:
            MedReflError: see ``expand``.
        """
        if self._rows_of is not Rows:
            super().expand_onward(first, steps, sampling, then)
            return
        start = time.perf_counter()
        with _threads(self._threads), torch.inference_mode():
            ContinuousDecoder(self, self._cutter(steps) if steps else None, sampling).run(first, then)
        self.usage.seconds += time.perf_counter() - start

    def check_room(self, longest: int, sampling: Sampling) -> None:
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and longest + sampling.max_tokens > room:
            raise MedReflError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} new ones exceed the model's context of {room}"
            )

    @torch.inference_mode()
    def _read(self, ids: list[Ids]) -> _Batch:
        """Prefill prefixes, left-padded. Each becomes a trunk."""
        device = self.model.device
        cache = DynamicCache(config=self.model.config)
        width = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        logits = next_logits(self.model, tokens, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        if not sliceable(cache):
            return _Batch(ids, ids, PlainRows(self.model, cache, mask), logits)
        trunks = []
        for place, row in enumerate(ids):
            part = slice(width - len(row), width)
            trunk = [
                (layer.keys[place, :, part].clone(), layer.values[place, :, part].clone()) for layer in cache.layers
            ]
            trunks.append(trunk)
            if self._held + size_of(trunk) <= self.keep_bytes:
                self._held += size_of(trunk)
                self._trunks[row] = trunk
        none = [(keys[:, :0], values[:, :0]) for keys, values in trunks[0]]
        rows = self._rows_of(self.model, trunks, range(len(ids)), [none] * len(ids))
        return _Batch(ids, ids, rows, logits)

    @torch.inference_mode()
    def _resume(self, ids: list[Ids], kept: list[_Kept]) -> _Batch:
        """Continue kept prefixes: the model reads only their last token."""
        trunks = list(dict.fromkeys(one.trunk for one in kept))
        place = {trunk: i for i, trunk in enumerate(trunks)}
        group = [place[one.trunk] for one in kept]
        rows = self._rows_of(self.model, [self._trunks[t] for t in trunks], group, [one.own for one in kept])
        logits = rows.forward(torch.tensor([row[-1] for row in ids], device=self.model.device))
        return _Batch(ids, [one.trunk for one in kept], rows, logits)

    @torch.inference_mode()
    def _decode(
        self, batch: _Batch, k: int, steps: str | None, sampling: Sampling, seeds: list[int]
    ) -> list[Continuation]:
        lines = batch.rows
        if k > 1:
            lines.repeat(k)
        logits = batch.logits.repeat_interleave(k, 0)
        draw = Draw(sampling, seeds, [ids for ids in batch.ids for _ in range(k)], logits)
        rows = [Row(batch.ids[i // k], batch.trunks[i // k]) for i in range(len(seeds))]
        cutter = self._cutter(steps) if steps else None
        alive = list(range(len(rows)))
        for step in range(sampling.max_tokens):
            chosen, logprobs = draw(logits, alive, step)
            for i, token, logprob in zip(alive, chosen.tolist(), logprobs.tolist(), strict=True):
                rows[i].add(token, logprob, self.ends, cutter)
            going = [place for place, i in enumerate(alive) if rows[i].stop is None]
            last = not going or step + 1 == sampling.max_tokens
            compact = len(going) < _COMPACT * len(alive) or (len(going) == 1 and len(alive) > 1)
            if last or compact:
                self._keep(lines, [rows[i] for i in alive])
            if last:
                break
            if compact:
                lines.select(going)
                chosen = chosen[torch.tensor(going, device=chosen.device)]
                alive = [alive[place] for place in going]
            logits = lines.forward(chosen)
        self._looked_ahead += sum(row.looked_ahead for row in rows)
        return [row.finish(self.tokenizer) for row in rows]

    def _keep(self, lines: Rows | PlainRows, rows: list[Row]) -> None:
        """Keep the caches of finished steps for the next call, up to ``keep_bytes``."""
        if not sliceable(lines.cache) and isinstance(lines, PlainRows):
            return
        for place, row in enumerate(rows):
            ids = (*row.prefix, *row.token_ids)
            if row.stop != "boundary" or ids in self._kept or row.trunk not in self._trunks:
                continue
            own = lines.own(place, len(row.trunk), len(ids) - 1 - len(row.trunk))
            if self._held + size_of(own) > self.keep_bytes:
                return
            self._held += size_of(own)
            self._kept[ids] = _Kept(row.trunk, own)

    def _drop_trunks(self, kept: Iterable[_Kept]) -> None:
        """Drop the trunks that no kept step needs, and recount the bytes held."""
        kept = list(kept)
        self._trunks = {one.trunk: self._trunks[one.trunk] for one in kept}
        self._held = sum(map(size_of, [*self._trunks.values(), *(one.own for one in kept)]))

    def _cutter(self, steps: str) -> StepCutter:
        if steps not in self._cutters:
            self._cutters[steps] = StepCutter(self.tokenizer, self._vocabulary, steps)
        return self._cutters[steps]

    @cached_property
    def _vocabulary(self) -> list[str]:
        return vocabulary(self.tokenizer)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Run torch with ``n`` CPU threads inside this context; a training in the same process keeps its own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Kept:
    """A step's cache between calls: its trunk, and its own keys and values without the last token."""

    trunk: Ids
    own: Layers


@dataclass
class _Batch:
    """Prefixes that the model has read: their tokens, trunks and rows, and the logits of the next token."""

    ids: list[Ids]
    trunks: list[Ids]
    rows: Rows | PlainRows
    logits: torch.Tensor


@cache
def _code() -> str:
    """Return a hash of the code that writes: a change of the code invalidates the log."""
    modules = (sys.modules[__name__], continuous, drawing, ragged_rows, shared_prefix, token_cutting, exam_steps)
    return code_hash(*modules)
