"""Describe what a server with OpenAI's API accepts, and learn it from what it refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from medrefl_utils.core.records import Sampling
from medrefl_utils.exam.prompts import Messages

FLAGS = {"continue_final_message": True, "add_generation_prompt": False}
PENALTIES: dict[str, dict[str, Any]] = {"repetition_penalty": {}, "repeat_penalty": {"repeat_last_n": 131_072}}
"""Names of the repetition penalty (vLLM and SGLang; llama.cpp), and what is sent with it.

llama.cpp counts the last 64 tokens unless it is told how many. It refuses -1 and reserves memory for the number.
"""


@dataclass(frozen=True)
class Features:
    """Features of a server."""

    prefill: bool = True
    """it continues a half-written assistant turn"""
    flags: bool = True
    """it accepts ``continue_final_message``, which vLLM and SGLang need to continue a turn"""
    prefix_mark: bool = False
    """it continues a turn that is marked with ``"prefix": true`` (Mistral, DeepSeek)"""
    repeats_turn: bool = False
    """its reply begins with the half-written turn (llama.cpp since 2026)"""
    trailing_space: bool = True
    """the half-written turn may end in white space"""
    stop: bool = True
    """it accepts a stop sequence"""
    stop_in_turn: bool = True
    """a stop sequence works in a continued turn: the chat template keeps the turn's last line end"""
    choices: bool = True
    """it returns ``n`` choices"""
    logprobs: bool = True
    seed: bool = True
    temperature: bool = True
    """it accepts a temperature; else its own is used"""
    top_p: bool = True
    temperature_with_top_p: bool = True
    """it accepts both in one request; else only the one that differs from 1, or the temperature"""
    penalty_name: str | None = None
    """the name under which it heeds a repetition penalty; "" where it heeds none; None: not found out"""
    max_name: str = "max_tokens"
    min_tokens: int = 1
    """smallest maximum number of tokens that it accepts"""
    thinking_close: str = ""
    """the mark that closes the thinking that the chat template opens; "" where it opens none"""


def request_body(
    messages: Messages, text: str, sampling: Sampling, can: Features, *, n: int, stop: str | None, seed: int
) -> dict[str, Any]:
    """Return the JSON of a chat request, with what the server accepts.

    Args:
        messages: the prompt.
        text: the assistant's turn so far, which the server continues; "" begins a turn.
        sampling: how tokens are drawn.
        can: what the server accepts.
        n: number of choices.
        stop: a stop sequence.
        seed: of the first choice.
    """
    body: dict[str, Any] = {"messages": list(messages)}
    if text:
        turn = {"role": "assistant", "content": text if can.trailing_space else text.rstrip()}
        body["messages"].append(turn | ({"prefix": True} if can.prefix_mark else {}))
        body |= FLAGS if can.flags else {}
    if can.temperature and (can.temperature_with_top_p or not _by_top_p(sampling)):
        body["temperature"] = sampling.temperature
    if can.top_p and (can.temperature_with_top_p or not can.temperature or _by_top_p(sampling)):
        body["top_p"] = sampling.top_p
    penalty = "repetition_penalty" if can.penalty_name is None else can.penalty_name
    if sampling.repetition_penalty != 1.0 and penalty:
        body |= {penalty: sampling.repetition_penalty} | PENALTIES[penalty]
    return body | {
        can.max_name: max(sampling.max_tokens, can.min_tokens),
        **({"n": n} if n > 1 and can.choices else {}),
        **({"stop": [stop]} if stop and can.stop else {}),
        **({"seed": seed % 2**31} if can.seed else {}),
        **({"logprobs": True} if can.logprobs else {}),
    }


def lost_sampling(sampling: Sampling, can: Features) -> list[str]:
    """Return the settings of ``sampling`` that the server does not heed, such as "temperature 0"."""
    both = can.temperature_with_top_p
    lost = {
        f"temperature {sampling.temperature:g}": sampling.temperature != 1 and not can.temperature,
        f"top_p {sampling.top_p:g}": sampling.top_p != 1
        and not (can.top_p and (both or not can.temperature or _by_top_p(sampling))),
        f"repetition_penalty {sampling.repetition_penalty:g}": sampling.repetition_penalty != 1
        and can.penalty_name == "",
    }
    return [name for name, is_lost in lost.items() if is_lost]


def _by_top_p(sampling: Sampling) -> bool:
    """Say whether top-p is the one setting to send: it differs from 1, and the temperature does not."""
    return sampling.temperature == 1 and sampling.top_p != 1


def learn_from(can: Features, told: str, parameter: str = "", *, guess: bool = False) -> Features | None:
    """Return what the server accepts after a refusal; None where nothing was learned.

    Args:
        can: what was believed so far.
        told: the server's own words.
        parameter: the parameter that it names as refused, if any.
        guess: if its words name nothing, leave out one feature after another.
    """
    less = _learned(can, told, parameter)
    if less != can:
        return less
    if guess:
        for change in _GUESSES:
            less = replace(can, **change)
            if less != can:
                return less
    return None


def _learned(can: Features, told: str, parameter: str) -> Features:
    named = {name for name, words in _NAMED.items() if parameter == name or words.search(told)}
    if _NO_TRAILING_SPACE.search(told) and can.trailing_space:
        return replace(can, trailing_space=False)
    if _NO_PREFILL.search(told):
        if re.search(r"\bprefix\b", told) and not can.prefix_mark and can.prefill:
            return replace(can, prefix_mark=True)
        return replace(can, prefill=False, prefix_mark=False)
    if can.temperature_with_top_p and {"temperature", "top_p"} <= named and _NOT_TOGETHER.search(told):
        return replace(can, temperature_with_top_p=False)
    if least := _least_tokens(told, parameter):
        return replace(can, min_tokens=max(can.min_tokens, least))
    if can.max_name == "max_tokens" and ("max_completion_tokens" in told or _MAX_TOKENS_REFUSED.search(told)):
        return replace(can, max_name="max_completion_tokens")
    if can.max_name == "max_completion_tokens" and _MAX_COMPLETION_REFUSED.search(told):
        return replace(can, max_name="max_tokens")
    less = can
    for name in named:
        less = replace(less, **_WITHOUT[name])
    return less


def _least_tokens(told: str, parameter: str) -> int:
    """Return the smallest maximum number of tokens that a refusal asks for; 0 where it asks for none."""
    about = re.search(r"max_(?:completion_|output_|new_)?tokens", f"{told} {parameter}")
    if about and (found := re.search(_LEAST, told, re.IGNORECASE)):
        return int(found["least"]) + (found["above"] is not None)
    return 0


_QUOTE = r"['\"`‘’“”*]"
_NAMED = {
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
    "top_p": re.compile(r"\btop_?p\b", re.IGNORECASE),
    # Common words count only as the name of a parameter.
    "stop": re.compile(
        rf"{_QUOTE}stop{_QUOTE}|\bstop[\s_-]?(?:sequence|word|string|token|param)|param\w*:? stop\b|\bstop:",
        re.IGNORECASE,
    ),
    "n": re.compile(
        rf"{_QUOTE}n{_QUOTE}|\bparam\w*:? n\b|(?<![\w'’])n(?:: | ?(?:=|>|!=|must be|should be|is not supported))|"
        r"(?:multiple|number of|several) (?:\w+ )?(?:choices|completions|candidates|responses)|candidate_?count",
        re.IGNORECASE,
    ),
    "logprobs": re.compile(r"log_?prob", re.IGNORECASE),
    "seed": re.compile(
        rf"{_QUOTE}seed{_QUOTE}|\bparam\w*:? seed\b|\bseed\b[^.]{{0,30}}(?:support|permit|allow|recogni)|"
        r"(?:unsupported|unknown|unrecognized|unexpected)[^.]{0,40}\bseed\b",
        re.IGNORECASE,
    ),
    "repetition_penalty": re.compile(r"repetition_penalty|repeat_(?:penalty|last_n)", re.IGNORECASE),
    "flags": re.compile(r"continue_final_message|add_generation_prompt", re.IGNORECASE),
}
_WITHOUT: dict[str, dict[str, Any]] = {
    "n": {"choices": False},
    **{name: {name: False} for name in ("temperature", "top_p", "stop", "logprobs", "seed")},
    "repetition_penalty": {"penalty_name": ""},
    "flags": {"flags": False},
}
_NOT_TOGETHER = re.compile(
    r"\bboth\b|together|only one|one of|same time|either|mutually|simultaneous|combin|alter .* not|in conjunction",
    re.IGNORECASE,
)
_NO_TRAILING_SPACE = re.compile(
    r"trailing (?:white ?-?space|space|newline|line)|end(?:s|ing)? (?:in|with) (?:a |any )?(?:trailing )?"
    r"(?:white ?-?space|space|newline)",
    re.IGNORECASE,
)
_NO_PREFILL = re.compile(
    r"prefill|pre-fill|conversation must end|(?:end|finish|conclude)s? with (?:an? )?['\"`]?user|"
    r"(?:last|final) (?:message|role|turn)[^.]{0,60}(?:user|assistant)|expected last role|"
    r"assistant[^.]{0,40}(?:last|final) (?:message|turn|role)|partial (?:assistant )?(?:message|mode)",
    re.IGNORECASE,
)
_MAX_TOKENS_REFUSED = re.compile(
    r"\bmax_tokens\b[^.]{0,40}(?:not supported|unsupported|deprecated|not permitted|unknown|unrecognized|not allowed)|"
    r"(?:not supported|unsupported|deprecated|extra inputs|unknown|unrecognized|unexpected)[^.]{0,40}\bmax_tokens\b",
    re.IGNORECASE,
)
_MAX_COMPLETION_REFUSED = re.compile(_MAX_TOKENS_REFUSED.pattern.replace("max_tokens", "max_completion_tokens"), re.I)
_LEAST = (
    r"(?:at least|minimum(?: value)?(?: is| of)?|>=|greater than or equal to|no less than|not be less than|"
    r"(?P<above>(?<!or )greater than|more than|above|(?<![=<])>))[^\d\n]{0,20}(?P<least>\d{1,5})"
)
_GUESSES: tuple[dict[str, Any], ...] = (
    {"flags": False},
    {"logprobs": False},
    {"choices": False},
    {"seed": False},
    {"top_p": False},
    {"prefill": False},
    {"stop": False},
    {"temperature": False},
    {"max_name": "max_completion_tokens"},
)
"""What to leave out, one after another, where a refusal names nothing; the most unusual first."""
