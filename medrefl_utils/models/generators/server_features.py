"""Describe what an OpenAI-compatible server can do, and make the request that finds it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from medrefl_utils.exam.prompts import Messages

COUNT: Messages = [
    {"role": "user", "content": "Write the numbers from 1 to 20, one on each line and nothing else."},
    {"role": "assistant", "content": "1\n2\n3\n4\n"},
]
FLAGS = {"continue_final_message": True, "add_generation_prompt": False}


@dataclass(frozen=True)
class Features:
    """Features of a server."""

    prefill: bool = True
    """it continues a half-written assistant turn"""
    flags: bool = True
    """it accepts ``continue_final_message``, which vLLM and SGLang need to continue a turn"""
    stop: bool = True
    """a stop sequence works in a continued turn: the chat template keeps the turn's last line end"""
    choices: bool = True
    """it returns ``n`` choices"""
    logprobs: bool = True
    seed: bool = True
    max_name: str = "max_tokens"


_REFUSALS = (
    ("max_completion_tokens", {"max_name": "max_completion_tokens"}),
    ("logprobs", {"logprobs": False}),
    ("continue_final_message", {"flags": False}),
    ("add_generation_prompt", {"flags": False}),
    ("seed", {"seed": False}),
    ("", {"flags": False}),
    ("", {"logprobs": False}),
    ("", {"choices": False}),
    ("", {"seed": False}),
)
"""A word in the server's error message, and what to leave out; without such a word, try one after another."""


def disable_refused(can: Features, complaint: str) -> Features | None:
    """Return the features without the one that the error message may be about; None if none is left to remove."""
    for word, change in _REFUSALS:
        less = replace(can, **change)
        if word in complaint and less != can:
            return less
    return None


def probe_body(can: Features, stop: bool) -> dict[str, Any]:
    """Return the probe request; a server that continues a half-written turn answers "5"."""
    return {
        "messages": COUNT,
        "temperature": 1.0 if can.choices else 0.0,
        can.max_name: 6,
        **({"n": 2} if can.choices else {}),
        **({"stop": ["\n"]} if stop else {}),
        **({"seed": 0} if can.seed else {}),
        **({"logprobs": True} if can.logprobs else {}),
        **({"extra_body": FLAGS} if can.flags else {}),
    }
