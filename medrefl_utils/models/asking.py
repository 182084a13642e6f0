"""Ask a model many prompts, check each reply, and ask again for those that fail.

A reply that fails its check is asked for again with another seed, at most twice, then given up and counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tqdm import tqdm

from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.interface import Generator, derive_seed

ATTEMPTS = 3
_T = TypeVar("_T")


@dataclass
class Reply(Generic[_T]):
    """One prompt with all that came of it; ``value`` is None where every attempt was refused."""

    messages: Messages
    value: _T | None = None
    replies: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


ReplyReader = Callable[[Continuation], "tuple[_T | None, str]"]
"""Reads a reply: its value and "", or None and what is wrong with it in a word."""


def ask_until_valid(
    generator: Generator,
    asked: Sequence[tuple[Messages, ReplyReader[_T]]],
    *,
    sampling: Sampling,
    seed: int,
    title: str,
) -> list[Reply[_T]]:
    """Ask all prompts together, and those whose reply is refused again, until ``ATTEMPTS`` are made.

    A prompt's seeds are made of ``seed``, its own text and the attempt: what else is asked changes nothing.
    """
    results: list[Reply[_T]] = [Reply(messages) for messages, _ in asked]
    waiting = list(range(len(asked)))
    with tqdm(total=len(asked), desc=title, unit="reply") as bar:
        for attempt in range(ATTEMPTS):
            if not waiting:
                break
            seeds = [derive_seed(seed, title, asked[i][0], attempt) for i in waiting]
            refused = []
            for i, reply in zip(waiting, generator.chat([asked[i][0] for i in waiting], sampling, seeds), strict=True):
                value, fault = asked[i][1](reply)
                results[i].replies.append(reply.text)
                if value is None:
                    results[i].faults.append(fault)
                    refused.append(i)
                results[i].value = value
            bar.update(len(waiting) - len(refused))
            bar.set_postfix(asked_again=len(refused))
            waiting = refused
    return results


def count_faults(asked: Sequence[Reply[_T]], name: str) -> dict[str, int]:
    """How many were given up, by what was wrong with the last attempt."""
    return dict(Counter(f"{name}_{one.faults[-1]}" for one in asked if one.value is None))
