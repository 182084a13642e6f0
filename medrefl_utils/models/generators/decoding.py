"""What the two decoders in this process share: what they need of their generator, and memory that runs out."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.interface import Usage


class Decoding(Protocol):
    """What a decoder needs of a ``LocalGenerator``; its attributes say what they are."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: set[int]
    about: dict[str, Any]
    usage: Usage
    budget: Budget
    spent: Spent
    keep_bytes: int
    did_not_fit: int

    def prompt_ids(self, messages: Messages) -> list[int]: ...  # noqa: D102
    def check_room(self, longest: int, sampling: Sampling) -> None: ...  # noqa: D102
    def prefixes_at_once(self, longest: int, k: int, sampling: Sampling) -> int: ...  # noqa: D102


def decode_fewer(generator: Decoding, tried: int, fewer: int) -> None:
    """Note that so many rows did not fit, and say with how many the decoding goes on."""
    generator.did_not_fit = tried
    warnings.warn(f"out of memory with {tried} rows decoded together: continuing with {fewer}", stacklevel=5)


def not_even_one(k: int, longest: int, sampling: Sampling) -> MedReflError:
    """Return the error of one prompt, ``longest`` tokens long, whose ``k`` continuations do not fit into memory."""
    return MedReflError(
        f"out of memory with {k} continuations of one prompt of {longest} tokens, {sampling.max_tokens} new tokens "
        "each: use fewer continuations or tokens, a smaller model, or quantization nf4"
    )
