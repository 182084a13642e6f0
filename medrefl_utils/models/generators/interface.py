"""The interface of all generators: ``expand`` continues prefixes, ``chat`` answers messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.budget import Budget, Spent

Progress = Callable[[int], object]
"""A function that gets the number of continuations that were just finished."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prefix:
    """Chat messages and the start of the assistant's turn, as the generator's own tokens and as their text.

    A generator that returns no tokens uses the text.
    """

    messages: Messages
    token_ids: tuple[int, ...] = ()
    text: str = ""


@dataclass(frozen=True, eq=False)
class Expansion:
    """A prefix to be continued, once per seed; ``of`` is the caller's own."""

    prefix: Prefix
    seeds: Sequence[int]
    of: Any = None


Then = Callable[[Expansion, list[Continuation]], Sequence[Expansion] | None]
"""A function that gets an expansion's continuations as soon as all are complete. It returns further expansions; none;
or None, if it decides later whether these steps go on."""


@dataclass
class Usage:
    """What a generator has used so far."""

    calls: int = 0
    """continuations requested"""
    prompt_tokens: int = 0
    """tokens of prompts and prefixes that were read (an endpoint: as the server counts them)"""
    completion_tokens: int = 0
    """tokens written, with those of steps that were cut or merged"""
    requests: int = 0
    """endpoint: chat requests that were answered, probes included"""
    probes: int = 0
    """endpoint: those of the requests that found out what the server accepts"""
    reused: int = 0
    """replies that were read from the log at no cost"""
    seconds: float = field(default=0.0, compare=False)
    """time spent on writing; a reply from the log counts with the time that it took when it was written"""

    def since(self, before: Usage) -> dict[str, float]:
        """Return what was used after ``before``, a copy of this object."""
        return {name: value - getattr(before, name) for name, value in asdict(self).items()}


class Generator(Protocol):
    """The interface that search and evaluation use; no caller asks which generator it has.

    A generator that names this class as its base inherits the methods that have a body here.
    """

    usage: Usage
    key: str
    """names what writes: model, weights, quantization or endpoint; a part of every cache key"""
    about: dict[str, Any]
    """the same for a person, with what was found out about it; recorded in the manifest"""
    budget: Budget = Budget()
    spent: Spent = Spent()
    """the used part of the budget; an endpoint's includes earlier sessions that are in its log"""
    thinking_open: bool = False
    """the chat template opens the thinking ("<think>"), so that every response begins inside it"""
    thinking_close: str | None = None
    """the mark that closes the thinking that the chat template opens; None where it opens none"""

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """Write ``k`` continuations of each prefix.

        Args:
            prefixes: what is continued.
            k: number of continuations of each prefix.
            steps: each continuation is one step of this kind (``exam.steps.STEP_KINDS``); None: the whole turn.
            sampling: how tokens are drawn; ``max_tokens`` limits one continuation.
            seeds: ``seeds[prefix][child]`` seeds one continuation.
            progress: called with the number of continuations that are complete since the last call.
        """
        ...

    def expand_onward(self, first: Sequence[Expansion], steps: str | None, sampling: Sampling, then: Then) -> None:
        """Write the continuations of expansions, and of those that ``then`` returns for each complete one.

        No expansion waits for another, where a generator can do that; here all that wait are written together.

        Args:
            first: the first expansions.
            steps: see ``expand``.
            sampling: see ``expand``.
            then: gets each complete expansion, in any order.
        """
        waiting = list(first)
        while waiting:
            k = len(waiting[0].seeds)
            now = [one for one in waiting if len(one.seeds) == k]
            waiting = [one for one in waiting if len(one.seeds) != k]
            rows = self.expand([one.prefix for one in now], k, steps, sampling, [one.seeds for one in now])
            for one, row in zip(now, rows, strict=True):
                waiting += then(one, row) or ()

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """Write the model's whole answer to each list of messages, in order."""
        rows = self.expand([Prefix(m) for m in messages], 1, None, sampling, [[s] for s in seeds], progress)
        return [row[0] for row in rows]

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that is put into the assistant's turn, without begin and end tokens."""
        ...

    def cut(self, chain: Continuation, steps: str) -> list[Continuation]:
        """Cut a chain that was written in one go into the steps that ``expand`` would have written one by one."""
        ...

    def spread(self, work: Callable[[Generator, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield each item with ``work(generator, item)``, as results arrive: here, or on the generator's workers."""
        for item in items:
            yield item, work(self, item)


def derive_seed(*place: object) -> int:
    """Return a 64-bit seed for a place (run seed, question id, path of a node ...): equal places, equal seeds."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big")
