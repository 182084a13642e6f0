"""What runs a model, behind one small interface: ``expand`` continues prefixes, ``chat`` answers messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from medrefl_utils.prompts import Messages
from medrefl_utils.records import Continuation, Sampling

Progress = Callable[[int], object]
"""Called with the number of continuations that were just finished."""


@dataclass(frozen=True)
class Prefix:
    """Chat messages and the assistant's turn so far, as the tokens that the generator itself wrote."""

    messages: Messages
    token_ids: tuple[int, ...] = ()


class Generator(Protocol):
    """The interface that rollout and evaluation know; nothing asks which generator it is."""

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
        """The model's whole answer to each list of messages."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that is put into the assistant's turn, without any that stand for its begin or end."""
        ...


def seed_of(*place: object) -> int:
    """A 64-bit seed for a place (run seed, question id, node's path ...): the same place, the same draws."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big")
