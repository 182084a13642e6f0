"""Define the frozen records that rooms exchange: ``Question``, ``Answer``, ``Sampling``, ``Continuation``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medrefl_utils.core.errors import MedReflError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One exam question: a stem, options {letter: text} and one gold letter, the letter of the right option."""

    question_id: str
    stem: str
    options: Mapping[str, str]
    gold: str
    source: str = ""
    split: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer that was read from a response: its letter (None: unreadable) and the rule that read it.

    ``stated_letter`` is the letter as written, None where the response gives only an option's text. ``conflict`` is
    true where letter and text belong to different options; then ``letter`` is that of the text.
    """

    letter: str | None
    rule: str
    stated_letter: str | None = None
    conflict: bool = False


@dataclass(frozen=True)
class Sampling:
    """How a model samples its next token.

    ``temperature`` 0 is greedy decoding; ``max_tokens`` limits one continuation. Raises MedReflError for a value out of
    range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not ok:
                raise MedReflError(f"sampling: {name} is {getattr(self, name)}, expected {expected}")


@dataclass(frozen=True)
class Continuation:
    """What a generator wrote after a prefix.

    ``stop`` is the reason why it ended: "boundary" (a step is complete), "end" (the model closed its turn), "length"
    (the token limit) or "refused" (a server refused the prompt, and ``refusal`` has its words). ``logprob`` is the sum
    of the tokens' log-probabilities in nats, under the model without temperature and top-p; ``logprobs`` are the
    tokens' own, where the generator gives them. ``n_tokens`` is the number of tokens where ``token_ids`` is empty.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float | None
    stop: str
    n_tokens: int = 0
    logprobs: tuple[float, ...] = ()
    refusal: str = ""

    @property
    def length(self) -> int:
        """Return the number of tokens written."""
        return len(self.token_ids) or self.n_tokens
