"""What runs a model, behind one small interface: ``expand`` continues prefixes, ``chat`` answers messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.budget import Budget, Spent

Progress = Callable[[int], object]
"""Called with the number of continuations that were just finished."""

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


def derive_seed(*place: object) -> int:
    """A 64-bit seed for a place (run seed, question id, node's path ...): the same place, the same draws."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big")
