"""Read what a server replied: its text, its thinking, how it ended, and where its step ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.thinking import open_mark
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.exam.steps import step_end
from medrefl_utils.models.generators.servers.features import Features

_FINISHES = {name: "length" for name in ("length", "max_tokens", "model_length")} | {"content_filter": "content_filter"}
"""What servers call the ends other than the model's own."""
_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Request:
    """What is asked: ``n`` continuations of the turn ``text`` after the messages, each one step or the whole turn."""

    messages: Messages
    text: str
    steps: str | None
    sampling: Sampling
    seed: int
    n: int


@dataclass(frozen=True)
class Choice:
    """One choice of a reply, whatever form the server gave it."""

    text: str
    thinking: str
    """the thinking, where the server separates it from the text"""
    finish: str
    """why it ended: "stop", "length" or "content_filter"""
    stopped_by: str | None
    """the stop sequence that ended it, "unknown" where the server does not tell; None: the model ended its turn"""
    logprob: float | None
    n_tokens: int


@dataclass(frozen=True)
class Reply:
    """A reply, with the numbers of tokens as the server counts them."""

    choices: tuple[Choice, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_reply(raw: Mapping[str, Any]) -> Reply:
    """Read a reply's JSON.

    ``content`` may be a text, a list of parts or null, and ``message`` may be null. The thinking may be the field
    ``reasoning_content`` or ``reasoning`` beside it, or parts of kind "thinking".
    """
    usage = raw.get("usage") if isinstance(raw.get("usage"), dict) else {}
    counts = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    choices = tuple(_choice(choice) for choice in raw.get("choices") or [] if isinstance(choice, dict))
    return Reply(choices, *(count if isinstance(count, int) else 0 for count in counts))


def continuation(
    reply: Reply, choice: Choice, request: Request, *, stop: str | None, can: Features
) -> Continuation | None:
    """Return a choice as the continuation of its request; None where ``stop`` cut it before its step was complete.

    Args:
        reply: the whole reply.
        choice: one of its choices.
        request: what was asked.
        stop: the stop sequence that was sent.
        can: what the server can do.
    """
    if request.text and can.repeats_turn and choice.text.startswith(request.text):
        choice = replace(choice, text=choice.text[len(request.text) :])
    if choice.finish == "content_filter":
        return Continuation("", (), None, "refused", refusal="the server's content filter stopped the reply")
    text = _whole_text(choice, request, can)
    size = len(choice.text) + len(choice.thinking)
    share = size / max(1, sum(len(other.text) + len(other.thinking) for other in reply.choices))
    whole = Continuation(
        text,
        (),
        choice.logprob,
        "length" if choice.finish == "length" else "end",
        choice.n_tokens or round(share * reply.completion_tokens),
    )
    if request.text:
        whole = replace(whole, text=_joined(request, text, can))
    if request.steps is None:
        return whole
    end = step_end(whole.text, request.steps)
    if end is not None:
        return replace(part_of(whole, whole.text[:end]), stop="boundary")
    stopped = choice.stopped_by is not None and choice.stopped_by in (stop, "unknown")
    if stop is None or choice.finish != "stop" or not stopped:
        return whole
    if step_end(whole.text + stop, request.steps) is None:
        return None
    return replace(whole, text=whole.text + stop, stop="boundary")


def part_of(whole: Continuation, text: str) -> Continuation:
    """Return a part of a continuation with its share of the tokens, by length; its log-probability is not known."""
    if text == whole.text:
        return whole
    return replace(whole, text=text, logprob=None, n_tokens=max(1, round(whole.n_tokens * len(text) / len(whole.text))))


def _choice(raw: Mapping[str, Any]) -> Choice:
    message = raw.get("message") if isinstance(raw.get("message"), dict) else {}
    text, thinking = _parts(message.get("content"))
    separate = (message.get(name) for name in ("reasoning_content", "reasoning"))
    thinking = thinking or next((one for one in separate if isinstance(one, str) and one.strip()), "")
    logprobs = raw.get("logprobs") if isinstance(raw.get("logprobs"), dict) else {}
    tokens = [one["logprob"] for one in logprobs.get("content") or [] if isinstance(one.get("logprob"), int | float)]
    if not text and isinstance(message.get("refusal"), str):
        text = message["refusal"]  # the model's own words, not the server's
    finish = str(raw.get("finish_reason") or "stop").lower()
    return Choice(
        text,
        thinking,
        _FINISHES.get(finish, "stop"),
        _stopped_by(raw),
        sum(tokens) if tokens else None,
        len(tokens),
    )


def _parts(content: Any) -> tuple[str, str]:  # noqa: ANN401 (anything that JSON holds)
    """Return text and thinking of a message's content: a text, a list of parts, or nothing."""
    if isinstance(content, str):
        return content, ""
    text, thinking = "", ""
    for part in content if isinstance(content, list) else []:
        if isinstance(part, str):
            text += part
        elif isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"):
            inner = next((part[name] for name in ("thinking", "reasoning", "text", "summary") if part.get(name)), "")
            thinking += "".join(_parts(inner))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            text += part["text"]
    return text, thinking


def _stopped_by(raw: Mapping[str, Any]) -> str | None:
    """Return the stop sequence that ended a choice; vLLM and SGLang tell it apart from the model's end of turn."""
    reason = raw.get("stop_reason", raw.get("matched_stop", "unknown"))
    if not isinstance(reason, str):
        return None
    return "unknown" if "stop" in reason.lower() else reason


def _whole_text(choice: Choice, request: Request, can: Features) -> str:
    """Return text and thinking as one text, with marks where the server has taken them away.

    A step of a turn that the server does not continue has no thinking: the model thinks anew before each step.
    """
    if not choice.thinking.strip():
        return choice.text
    if request.steps and (choice.text.strip() or not can.prefill):
        return choice.text
    mark = open_mark(request.text)
    opened = "" if mark else f"{_OPEN}\n"
    closed = f"\n{mark[1] if mark else _CLOSE}\n\n{choice.text}" if choice.text.strip() else ""
    return f"{opened}{choice.thinking.strip(chr(10))}{closed}"


def _joined(request: Request, text: str, can: Features) -> str:
    """Return a reply as it continues the turn so far."""
    if not can.prefill:  # the model was asked to go on, and may repeat the line that it goes on with
        begun = request.text.rpartition("\n")[2].strip()
        if begun and text.lstrip().startswith(begun):
            text = text.lstrip()[len(begun) :]
    if request.text.endswith(prompts.STEP_BOUNDARY):
        # A template that strips the turn, or a model that was asked to go on, repeats the line end.
        kept = can.prefill and can.trailing_space and can.stop_in_turn
        return text if kept else text.lstrip(prompts.STEP_BOUNDARY)
    last = request.text[-1:]
    if last.isspace():  # the request was sent without it, if the server takes no white space at the end
        return text if can.prefill and can.trailing_space else text.lstrip(" ")
    # A sentence ends before the space that follows it; some servers strip that space.
    breaks = request.steps == "sentence" or not can.prefill
    return f" {text}" if breaks and last.isascii() and text[:1].isalnum() else text
