"""The in-process generator: transformers on the CPU or one GPU, each token decoded once.

A prefix is prefilled once and its cache repeated for its continuations. The caches of steps just written are kept, so
that expanding them reads one token instead of the whole prefix again. Every row draws from a random generator of
its own, so that a row's text does not depend on what shares its batch (but for floating-point ties); rows that have
ended leave the cache.
"""

from __future__ import annotations

import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.store import content_hash
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators import shared_prefix
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.call_log import CallLog, call_key
from medrefl_utils.models.generators.interface import Generator, Prefix, Progress, Usage
from medrefl_utils.models.generators.shared_prefix import Layers, PlainRows, Rows, next_logits, sliceable, take_trunks
from medrefl_utils.models.loading import load_model, load_tokenizer, model_key
from medrefl_utils.models.memory import GIB, free_bytes, is_out_of_memory, power_of_two, rows_that_fit

_COMPACT = 0.75
"""Ended rows are dropped from the cache once fewer than this share are alive: dropping copies the cache."""

_SMALL = 20_000_000
"""A model of fewer parameters decodes on one CPU thread: its matrices are too small to be worth handing out."""

_ROWS_SHARE = 0.6
"""Of the memory that is free: a quarter is for kept caches, the rest for what was not counted (ours)."""

Ids = tuple[int, ...]


class LocalGenerator(Generator):
    """A model of a local folder or hub id, run in this process."""

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
            adapter: folder of one to be put on top.
            max_rows: rows decoded together, at most; 0: as many as fit (``rows_that_fit``) into a share of what
                ``free`` says once the model is there. Asked once and rounded to powers of two, so that another start
                on the same machine decodes the same batches, unless much else has come or gone there.
            keep_gib: of caches kept between calls, at most; nor more than a quarter of what is free.
            free: bytes of memory that are free.
            log: what ``chat`` writes goes there batch by batch, and is taken from there.
            budget: for what this generator writes.

        Raises:
            MedReflError: a ``max_rows`` below 0, and what ``load_model`` and ``load_tokenizer`` raise.
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
        self._did_not_fit = sys.maxsize  # the fewest rows for which memory ran out
        self.log, self.budget = log or CallLog(None), budget or Budget()
        self.spent = Spent()
        self.usage = Usage()
        """its ``prompt_tokens`` are those of prefixes that were read; those found in a kept cache do not count"""
        self._trunks: dict[Ids, Layers] = {}
        self._kept: dict[Ids, _Kept] = {}
        self._held = 0  # bytes
        self._rows_of = Rows if take_trunks(self.model) else PlainRows.of
        ends = self.model.generation_config.eos_token_id
        self._ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The token ids of a prompt, the header of the assistant's turn included."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        stop: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """``k`` continuations of each prefix, in the prefixes' order.

        A continuation ends after the token that completes ``stop`` (one character; never before the text has
        something other than white space), at the model's end of turn, or at ``sampling.max_tokens``.

        Raises:
            MedReflError: a prompt that leaves no room in the model's context, or whose continuations alone do not fit
                into the memory; or a budget that leaves none.
        """
        return self._expand(prefixes, k, stop, sampling, seeds, progress, CallLog(None))

    def _expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        stop: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None,
        log: CallLog,
    ) -> list[list[Continuation]]:
        prompts = {id(p.messages): p.messages for p in prefixes}  # siblings share theirs
        prompt_ids = {name: self.prompt_ids(messages) for name, messages in prompts.items()}
        ids = [(*prompt_ids[id(p.messages)], *p.token_ids) for p in prefixes]
        longest = max(map(len, ids), default=0)
        self._check_room(longest, sampling)
        # Kept caches serve the very next call: a search expands its whole frontier at once, then never comes back.
        kept, self._kept = self._kept, {}
        kept = {row: kept[row] for row in ids if row in kept}
        self._drop_trunks(kept.values())
        results: list[list[Continuation]] = [[] for _ in ids]
        # Kept ones in their order, in which what shares a trunk stands together; others by length, for the padding.
        resumed = [i for i, row in enumerate(ids) if row in kept]
        fresh = sorted((i for i, row in enumerate(ids) if row not in kept), key=lambda i: len(ids[i]))
        for part in (resumed, fresh):
            while part:
                chosen = part[: self._prefixes_at_once(longest, k, sampling)]
                rows = [ids[i] for i in chosen]
                written = self._logged(log, rows, kept, k, stop, sampling, [s for i in chosen for s in seeds[i]])
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
        stop: str | None,
        sampling: Sampling,
        seeds: list[int],
    ) -> list[Continuation] | None:
        """As ``_written``, or from the log. A batch is taken whole, so that a rerun's are made of the same rows."""
        key = log.folder and call_key(self.key, _code(), ids, k, stop, asdict(sampling), seeds)
        if line := key and log.get(key):
            written, seconds = [_continuation(one) for one in line["written"]], line["seconds"]
            self.usage.reused += 1
        else:
            read = sum(len(row) for row in ids if row not in kept)
            if complaint := self.budget.complaint(
                self.spent, Spent(len(seeds), read, len(seeds) * sampling.max_tokens)
            ):
                raise MedReflError(f"model {self.about['model']}: {complaint}")
            start = time.perf_counter()
            written = self._written(ids, kept, k, stop, sampling, seeds)
            if written is None:
                return None
            seconds = time.perf_counter() - start
            if key:
                log.append(key, {"written": [asdict(one) for one in written], "seconds": seconds})
            self.spent += Spent(len(written), read, sum(row.length for row in written))
            self.usage.prompt_tokens += read
        self.usage.calls += len(written)
        self.usage.completion_tokens += sum(row.length for row in written)
        self.usage.seconds += seconds
        return written

    def _written(
        self,
        ids: list[Ids],
        kept: Mapping[Ids, _Kept],
        k: int,
        stop: str | None,
        sampling: Sampling,
        seeds: list[int],
    ) -> list[Continuation] | None:
        """The continuations of a batch of prefixes, of which all are kept or none is; None where memory ran out."""
        try:
            with _threads(self._threads):
                batch = self._resume(ids, [kept[row] for row in ids]) if ids[0] in kept else self._read(ids)
                return self._decode(batch, k, stop, sampling, seeds)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _prefixes_at_once(self, longest: int, k: int, sampling: Sampling) -> int:
        """How many prefixes of at most ``longest`` tokens are continued together, ``k`` times each."""
        config, width, budget = self.model.config, self.model.dtype.itemsize, self._for_rows
        most = self.max_rows or rows_that_fit(
            config, prefix=longest, new=sampling.max_tokens, k=k, width=width, budget=budget
        )
        return max(1, min(most, self._did_not_fit // 2) // k)

    def _take_fewer(self, prefixes: int, k: int, longest: int, sampling: Sampling) -> None:
        """From now on half the rows, since the memory did not suffice for these."""
        if prefixes == 1:
            raise MedReflError(
                f"out of memory with {k} continuations of one prompt: of {longest} tokens, and {sampling.max_tokens} "
                "new ones each; take fewer of either, a smaller model, or quantization nf4"
            )
        self._did_not_fit = prefixes * k
        fewer = max(1, prefixes // 2) * k
        warnings.warn(f"out of memory with {prefixes * k} rows decoded together: going on with {fewer}", stacklevel=3)

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """The model's whole answer to each list of messages, in their order; from the log as far as it is there."""
        prefixes, each = [Prefix(m) for m in messages], [[seed] for seed in seeds]
        return [row[0] for row in self._expand(prefixes, 1, None, sampling, each, progress, self.log)]

    def encode(self, text: str) -> Ids:
        """The text's tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def steps(self, chain: Continuation, stop: str) -> list[Continuation]:
        """The chain cut after each token that completes ``stop``, as ``expand`` would have ended it."""
        boundary, pieces = self._tokens_with(stop), []
        row = _Row()
        for token, logprob in zip(chain.token_ids, chain.logprobs, strict=True):
            row.add(token, logprob, self._ends, boundary, self._blank)
            if row.stop is not None:
                pieces.append(row.finish(self.tokenizer))
                row = _Row()
        return [*pieces, row.finish(self.tokenizer)] if row.token_ids else pieces

    def _check_room(self, longest: int, sampling: Sampling) -> None:
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
            if self._held + _bytes(trunk) <= self.keep_bytes:
                self._held += _bytes(trunk)
                self._trunks[row] = trunk
        none = [(keys[:, :0], values[:, :0]) for keys, values in trunks[0]]
        rows = self._rows_of(self.model, trunks, range(len(ids)), [none] * len(ids))
        return _Batch(ids, ids, rows, logits)

    @torch.inference_mode()
    def _resume(self, ids: list[Ids], kept: list[_Kept]) -> _Batch:
        """Take up kept prefixes, of which only the last token is read."""
        trunks = list(dict.fromkeys(one.trunk for one in kept))
        place = {trunk: i for i, trunk in enumerate(trunks)}
        group = [place[one.trunk] for one in kept]
        rows = self._rows_of(self.model, [self._trunks[t] for t in trunks], group, [one.own for one in kept])
        logits = rows.forward(torch.tensor([row[-1] for row in ids], device=self.model.device))
        return _Batch(ids, [one.trunk for one in kept], rows, logits)

    @torch.inference_mode()
    def _decode(
        self, batch: _Batch, k: int, stop: str | None, sampling: Sampling, seeds: list[int]
    ) -> list[Continuation]:
        lines = batch.rows
        if k > 1:
            lines.repeat(k)
        logits = batch.logits.repeat_interleave(k, 0)
        draw = _Draw(sampling, seeds, [ids for ids in batch.ids for _ in range(k)], logits)
        rows = [_Row(batch.ids[i // k], batch.trunks[i // k]) for i in range(len(seeds))]
        boundary = self._tokens_with(stop) if stop else frozenset()
        alive = list(range(len(rows)))
        for step in range(sampling.max_tokens):
            chosen, logprobs = draw(logits, alive, step)
            for i, token, logprob in zip(alive, chosen.tolist(), logprobs.tolist(), strict=True):
                rows[i].add(token, logprob, self._ends, boundary, self._blank)
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
        return [row.finish(self.tokenizer) for row in rows]

    def _keep(self, lines: Rows | PlainRows, rows: list[_Row]) -> None:
        """Keep the caches of finished steps for the next call, as far as ``keep_bytes`` goes."""
        if not sliceable(lines.cache) and isinstance(lines, PlainRows):
            return
        for place, row in enumerate(rows):
            ids = (*row.prefix, *row.token_ids)
            if row.stop != "boundary" or ids in self._kept or row.trunk not in self._trunks:
                continue
            own = lines.own(place, len(row.trunk), len(ids) - 1 - len(row.trunk))
            if self._held + _bytes(own) > self.keep_bytes:
                return
            self._held += _bytes(own)
            self._kept[ids] = _Kept(row.trunk, own)

    def _drop_trunks(self, kept: Iterable[_Kept]) -> None:
        """Forget the trunks that no kept step hangs on, and count anew what is held."""
        kept = list(kept)
        self._trunks = {one.trunk: self._trunks[one.trunk] for one in kept}
        self._held = sum(map(_bytes, [*self._trunks.values(), *(one.own for one in kept)]))

    def _tokens_with(self, stop: str) -> frozenset[int]:
        return frozenset(i for i, text in enumerate(self._vocabulary) if stop in text)

    @cached_property
    def _blank(self) -> frozenset[int]:
        return frozenset(i for i, text in enumerate(self._vocabulary) if not text.strip())

    @cached_property
    def _vocabulary(self) -> list[str]:
        return self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Torch with ``n`` CPU threads for a while; others in this process (a training) keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Kept:
    """A step's cache between calls: which trunk it hangs on, and its own keys and values, the last token left out."""

    trunk: Ids
    own: Layers


@dataclass
class _Batch:
    """Prefixes that have been read: their tokens and trunks, their rows, the next token's logits."""

    ids: list[Ids]
    trunks: list[Ids]
    rows: Rows | PlainRows
    logits: torch.Tensor


@dataclass
class _Row:
    """One continuation in the making."""

    prefix: Ids = ()
    trunk: Ids = ()
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: str | None = None
    written: bool = False

    def add(self, token: int, logprob: float, ends: set[int], boundary: frozenset[int], blank: frozenset[int]) -> None:
        """Take the next token, unless the row has ended (it then waits for the cache to be compacted)."""
        if self.stop is not None:
            return
        self.logprobs.append(logprob)
        self.token_ids.append(token)
        self.written = self.written or (token not in blank and token not in ends)
        if token in ends:
            self.stop = "end"
        elif self.written and token in boundary:
            self.stop = "boundary"

    def finish(self, tokenizer: PreTrainedTokenizerBase) -> Continuation:
        text = tokenizer.decode(self.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        stop, logprobs = self.stop or "length", tuple(self.logprobs)
        return Continuation(text, tuple(self.token_ids), sum(logprobs), stop, len(self.token_ids), logprobs)


@cache
def _code() -> str:
    """What writes, beside the model: other code, other replies."""
    return call_key(*(inspect.getsource(module) for module in (sys.modules[__name__], shared_prefix)))


def _continuation(kept: dict[str, Any]) -> Continuation:
    return Continuation(**kept | {"token_ids": tuple(kept["token_ids"]), "logprobs": tuple(kept["logprobs"])})


def _bytes(layers: Layers) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in layers)


class _Draw:
    """Draws each row's next token with the row's own uniform numbers, by the inverse of its distribution."""

    def __init__(self, sampling: Sampling, seeds: list[int], prefixes: Sequence[Ids], logits: torch.Tensor):
        """Of rows that begin with ``prefixes``; ``logits`` [rows, vocabulary] say what there is to draw from."""
        self.sampling = sampling
        self.uniform = None
        if sampling.temperature > 0:
            draws = [np.random.Generator(np.random.Philox(s)).random(sampling.max_tokens) for s in seeds]
            self.uniform = torch.tensor(np.array(draws), dtype=torch.float64, device=logits.device)
        self.seen = None
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            for row, ids in enumerate(prefixes):
                self.seen[row, torch.tensor(ids, device=logits.device)] = True

    def __call__(self, logits: torch.Tensor, alive: list[int], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [rows] and their log-probabilities [rows] under the model itself, before any sampling setting."""
        logprobs = logits.log_softmax(-1)
        rows = torch.tensor(alive, device=logits.device)
        if self.seen is not None:
            penalty = self.sampling.repetition_penalty
            punished = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self.seen[rows], punished, logits)
        if self.uniform is None:
            chosen = logits.argmax(-1)
        else:
            chosen = self._invert(logits / self.sampling.temperature, self.uniform[rows, step])
        if self.seen is not None:
            self.seen[rows, chosen] = True
        return chosen, logprobs.gather(1, chosen[:, None])[:, 0]

    def _invert(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        mass = logits.softmax(-1).double()
        order = None
        if self.sampling.top_p < 1:
            mass, order = mass.sort(stable=True, dim=-1, descending=True)
            mass = torch.where(mass.cumsum(-1) - mass < self.sampling.top_p, mass, 0.0)
        mass = mass.cumsum(-1)
        place = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True).clamp(max=mass.shape[-1] - 1)
        return (place if order is None else order.gather(1, place))[:, 0]
