"""Ask a model many prompts, check each reply, and ask again for the replies that fail.

A reply that fails its check is asked for again with another seed, at most twice. Then it is given up and counted. A
prompt that a server refuses is given up at once (fault: ``refused``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tqdm import tqdm

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.interface import Generator, derive_seed

ATTEMPTS = 3
"""How often a prompt is asked at most (ours)."""
_SHOWN = 120
_T = TypeVar("_T")


@dataclass
class Reply(Generic[_T]):
    """A prompt with every reply to it; ``value`` is None where every attempt failed its check."""

    messages: Messages
    value: _T | None = None
    replies: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


ReplyReader = Callable[[Continuation], "tuple[_T | None, str]"]
"""Reads a reply: (its value, ""), or (None, what is wrong with it in one word)."""


def ask_until_valid(
    generator: Generator,
    asked: Sequence[tuple[Messages, ReplyReader[_T]]],
    *,
    sampling: Sampling,
    seed: int,
    title: str,
) -> list[Reply[_T]]:
    """Ask all prompts in one batch, and again those whose reply fails, up to ``ATTEMPTS`` times.

    The seed of an attempt is derived from ``seed``, ``title``, the prompt's text and the attempt's number. So the other
    prompts of the batch change nothing. ``title`` is also the label of the progress bar.
    """
    results: list[Reply[_T]] = [Reply(messages) for messages, _ in asked]
    waiting = list(range(len(asked)))
    with tqdm(total=len(asked), desc=title, unit="reply") as bar:
        for attempt in range(ATTEMPTS):
            if not waiting:
                break
            seeds = [derive_seed(seed, title, asked[i][0], attempt) for i in waiting]
            failed = []
            for i, reply in zip(waiting, generator.chat([asked[i][0] for i in waiting], sampling, seeds), strict=True):
                if reply.stop == "refused":
                    results[i].replies.append(reply.refusal)
                    results[i].faults.append("refused")
                    continue
                value, fault = asked[i][1](reply)
                results[i].replies.append(reply.text)
                if value is None:
                    results[i].faults.append(fault)
                    failed.append(i)
                results[i].value = value
            bar.update(len(waiting) - len(failed))
            bar.set_postfix(asked_again=len(failed))
            waiting = failed
    return results


def count_faults(asked: Sequence[Reply[_T]], name: str, where: Sequence[str]) -> DropCounts:
    """Count the prompts that were given up, as ``<name>_<fault of the last attempt>``.

    ``where`` names each prompt's row, for the example of each reason ("question 'q1'").
    """
    dropped = DropCounts()
    for one, place in zip(asked, where, strict=True):
        if one.value is None:
            told = one.replies[-1] if one.faults[-1] == "refused" else f"reply {excerpt(one.replies[-1])}"
            dropped.drop(f"{name}_{one.faults[-1]}", f"{place}, {told}")
    return dropped


def excerpt(text: str) -> str:
    """Return the beginning of a text as one quoted line of at most 120 characters, for a message."""
    line = " ".join(text.split())
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")
