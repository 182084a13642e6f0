"""What an OpenAI-compatible server can do, and the request that finds it out."""

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
    """What a server can do."""

    prefill: bool = True
    """it continues an assistant turn that is half written"""
    flags: bool = True
    """it takes vLLM's and SGLang's ``continue_final_message``, which that needs there"""
    stop: bool = True
    """a stop works there too: the turn's last line end is not lost in the chat template"""
    choices: bool = True
    """it gives ``n`` choices"""
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
"""A word of the server's complaint, and what is left out then; without such a word one after another."""


def disable_refused(can: Features, complaint: str) -> Features | None:
    """The same less one thing that may be what the server complains of; None where nothing is left."""
    for word, change in _REFUSALS:
        less = replace(can, **change)
        if word in complaint and less != can:
            return less
    return None


def probe_body(can: Features, stop: bool) -> dict[str, Any]:
    """The request that is answered with "5" by a server that continues the half-written turn."""
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
