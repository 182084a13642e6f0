"""Run a model in this process with transformers, on the CPU or one GPU.

A prefix is prefilled once, and its key-value cache is copied for its continuations; a step that goes on is not read
again. Every row draws from a random generator of its own, so that a row's text does not depend on the rows beside it
(except for floating-point ties).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path

import torch

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.source_code import code_hash
from medrefl_utils.core.store import content_hash
from medrefl_utils.exam import steps as exam_steps
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.chat_templates import open_thinking, prompt_ids
from medrefl_utils.models.generators import (
    continuous,
    drawing,
    plain_decoder,
    ragged_rows,
    shared_prefix,
    token_cutting,
)
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.call_log import CallLog, call_key, logged_continuation
from medrefl_utils.models.generators.continuous import ContinuousDecoder
from medrefl_utils.models.generators.drawing import Ids
from medrefl_utils.models.generators.interface import Expansion, Generator, Prefix, Progress, Then, Usage
from medrefl_utils.models.generators.plain_decoder import PlainDecoder
from medrefl_utils.models.generators.ragged_rows import take_trunks
from medrefl_utils.models.generators.token_cutting import StepCutter, vocabulary
from medrefl_utils.models.loading import load_model, load_tokenizer, model_key
from medrefl_utils.models.memory import GIB, free_bytes, power_of_two, rows_that_fit

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
            keep_gib: maximum size of the caches kept of steps that wait [GiB]; at most a quarter of the free memory.
            free: returns the free memory [bytes].
            log: keeps what ``chat`` writes, answer by answer, and returns it in a later run.
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
        self._cutters: dict[str, StepCutter] = {}
        self._decoder = ContinuousDecoder if take_trunks(self.model) else PlainDecoder
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
        written: list[list[Continuation]] = [[] for _ in prefixes]

        def told(one: Expansion, rows: list[Continuation]) -> tuple[()]:
            written[one.of] = rows
            if progress is not None:
                progress(k)
            return ()

        first = [Expansion(prefix, own, i) for i, (prefix, own) in enumerate(zip(prefixes, seeds, strict=True))]
        self._write(first, steps, sampling, told)
        return written

    def prefixes_at_once(self, longest: int, k: int, sampling: Sampling) -> int:
        """Return how many prefixes of at most ``longest`` tokens are continued together, ``k`` times each."""
        config, width, budget = self.model.config, self.model.dtype.itemsize, self._for_rows
        most = self.max_rows or rows_that_fit(
            config, prefix=longest, new=sampling.max_tokens, k=k, width=width, budget=budget
        )
        return max(1, min(most, self.did_not_fit // 2) // k)

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """Write the model's whole answer to each list of messages, in order; take what is in the log from there.

        Raises:
            MedReflError: see ``expand``, or the log cannot be written. What is written so far is in the log.
        """
        written: list[Continuation | None] = [None] * len(messages)
        keys = self._keys(messages, sampling, seeds)
        for i, key in enumerate(keys):
            if key and (line := self.log.get(key)):
                written[i] = logged_continuation(line["written"])
                self.usage.calls += 1
                self.usage.reused += 1
                self.usage.completion_tokens += written[i].length
                self.usage.seconds += line["seconds"]
        missing = [i for i, one in enumerate(written) if one is None]
        if progress is not None and len(missing) < len(written):
            progress(len(written) - len(missing))
        before = time.perf_counter()

        def told(one: Expansion, rows: list[Continuation]) -> tuple[()]:
            nonlocal before
            now = time.perf_counter()
            written[one.of] = rows[0]
            if key := keys[one.of]:
                self.log.append(key, {"written": asdict(rows[0]), "seconds": now - before})
            before = now
            if progress is not None:
                progress(1)
            return ()

        self._write([Expansion(Prefix(messages[i]), (seeds[i],), i) for i in missing], None, sampling, told)
        return written

    def _keys(self, messages: Sequence[Messages], sampling: Sampling, seeds: Sequence[int]) -> list[str | None]:
        """Return the log's key of each answer; None without a log."""
        if self.log.folder is None:
            return [None] * len(messages)
        prompts = prompt_ids(self.tokenizer, messages)
        how = asdict(sampling)
        return [call_key(self.key, _code(), ids, how, seed) for ids, seed in zip(prompts, seeds, strict=True)]

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
        self._write(first, steps, sampling, then)

    def _write(self, first: Sequence[Expansion], steps: str | None, sampling: Sampling, then: Then) -> None:
        start = time.perf_counter()
        with _threads(self._threads), torch.inference_mode():
            self._decoder(self, self._cutter(steps) if steps else None, sampling).run(first, then)
        self.usage.seconds += time.perf_counter() - start

    def check_room(self, longest: int, sampling: Sampling) -> None:
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and longest + sampling.max_tokens > room:
            raise MedReflError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} new ones exceed the model's context of {room}"
            )

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


@cache
def _code() -> str:
    """Return a hash of the code that writes: a change of the code invalidates the log."""
    decoders = (continuous, plain_decoder, drawing, ragged_rows, shared_prefix)
    return code_hash(sys.modules[__name__], *decoders, token_cutting, exam_steps)
