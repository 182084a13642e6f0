"""What runs a model, behind one small interface: ``expand`` continues prefixes, ``chat`` answers messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from medrefl_utils.generators.budget import Budget, Spent
from medrefl_utils.generators.calls import CallLog
from medrefl_utils.prompts import Messages
from medrefl_utils.records import Continuation, MedReflError, Sampling

Progress = Callable[[int], object]
"""Called with the number of continuations that were just finished."""

ENGINES = ("local", "vllm")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prefix:
    """Chat messages and the assistant's turn so far, as the tokens that the generator itself wrote and as their text.

    A generator that gives no tokens goes by the text.
    """

    messages: Messages
    token_ids: tuple[int, ...] = ()
    text: str = ""


@dataclass
class Usage:
    """What a generator has done so far: the ledger's lines."""

    calls: int = 0
    """continuations that were asked for"""
    prompt_tokens: int = 0
    """tokens of prompts and prefixes that were read (of an endpoint: as it counts them)"""
    completion_tokens: int = 0
    """tokens that were written, those of steps that were cut or merged included"""
    requests: int = 0
    """of an endpoint: HTTP requests that were answered"""
    reused: int = 0
    """requests to an endpoint, or batches of replies, that were on disk and cost nothing"""
    seconds: float = field(default=0.0, compare=False)
    """of writing; what was on disk counts with the time that it took then"""

    def since(self, before: Usage) -> dict[str, float]:
        """What was done after ``before`` (a copy of this)."""
        return {name: value - getattr(before, name) for name, value in asdict(self).items()}


class Generator(Protocol):
    """The interface that rollout and evaluation know; nothing asks which generator it is.

    A generator that names this as its base class need not say what has a body here.
    """

    usage: Usage
    key: str
    """names what would write: model, weights, quantization or endpoint; a part of every cache key"""
    about: dict[str, Any]
    """the same for a person, with what was found out about it: goes into the manifest"""
    budget: Budget = Budget()
    spent: Spent = Spent()
    """of the budget, what is on disk from earlier sessions included where the budget is for that, too"""

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        stop: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """``k`` continuations of each prefix, each drawn with a seed of its own: ``seeds[prefix][child]``."""
        ...

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """The model's whole answer to each list of messages, in their order."""
        rows = self.expand([Prefix(m) for m in messages], 1, None, sampling, [[s] for s in seeds], progress)
        return [row[0] for row in rows]

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that is put into the assistant's turn, without any that stand for its begin or end."""
        ...

    def steps(self, chain: Continuation, stop: str) -> list[Continuation]:
        """A chain that was written in one go, as the steps that ``expand`` with ``stop`` would have made of it."""
        ...

    def spread(self, work: Callable[[Generator, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """``work(generator, item)`` of each item, as the results come: here, or where the generator's workers are."""
        for item in items:
            yield item, work(self, item)


def open_generator(
    model: str,
    *,
    quantization: str = "none",
    max_rows: int = 0,
    engine: str = "local",
    workers: int = 0,
    endpoint: str = "",
    endpoint_model: str = "",
    concurrency: int = 16,
    calls: Path | None = None,
    budget: Budget | None = None,
) -> Generator:
    """What these parameters of a notebook name.

    An ``endpoint`` (and ``endpoint_model`` there) is taken before ``model``, which the ``engine`` runs in this process
    ("local": transformers; "vllm"). With ``workers`` so many Ray actors each have a generator of their own.

    What was written is kept in the folder ``calls`` and not asked for again: every reply of an endpoint; of a model
    in this process what ``chat`` wrote (of steps the rollout keeps its shards). The ``budget`` is, of an endpoint, for
    all that is in ``calls``; in this process for the session.

    Raises:
        MedReflError: an unknown engine, an extra that is not installed, and what the generators themselves raise.
    """
    if engine not in ENGINES:
        raise MedReflError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    if workers < 0:
        raise MedReflError(f"workers is {workers}, expected 0 (this process) or the number of Ray actors")
    here = dict(quantization=quantization, max_rows=max_rows, engine=engine)
    there = dict(endpoint=endpoint, endpoint_model=endpoint_model, concurrency=concurrency)
    if workers:
        from medrefl_utils.generators.ray import RayGenerator

        return RayGenerator(workers, model, calls=calls, budget=budget, **here, **there)
    return open_one(model, calls=calls, budget=budget, **here, **there)


def open_one(
    model: str,
    *,
    quantization: str,
    max_rows: int,
    engine: str,
    endpoint: str,
    endpoint_model: str,
    concurrency: int,
    calls: Path | None,
    budget: Budget | None,
    worker: int = 0,
    workers: int = 1,
) -> Generator:
    """A generator of this process, as ``open_generator``; ``worker`` of ``workers`` that share calls and budget."""
    log = CallLog(calls, f"worker-{worker}" if workers > 1 else "main")
    if endpoint:
        from medrefl_utils.generators.endpoint import EndpointGenerator

        limits = dict(budget=budget, workers=workers)
        return EndpointGenerator(endpoint, endpoint_model, log=log, concurrency=concurrency, **limits)
    budget = budget and budget.share(workers)
    if engine == "vllm":
        from medrefl_utils.generators.vllm import VllmGenerator

        return VllmGenerator(model, quantization=quantization, budget=budget)
    from medrefl_utils.generators.local import LocalGenerator

    return LocalGenerator(model, quantization=quantization, max_rows=max_rows, log=log, budget=budget)


def seed_of(*place: object) -> int:
    """A 64-bit seed for a place (run seed, question id, node's path ...): the same place, the same draws."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big")
