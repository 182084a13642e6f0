"""Find out what a server accepts, with a small request that asks for all of it.

A server may also ignore what it does not know, without a word. So a repetition penalty is tried out (``find_penalty``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from medrefl_utils.core.records import Sampling
from medrefl_utils.exam.answers.thinking import open_mark, unopened_close
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.servers.client import Refused, ServerClient
from medrefl_utils.models.generators.servers.features import FLAGS, PENALTIES, Features, learn_from, request_body
from medrefl_utils.models.generators.servers.replies import Reply

COUNT: Messages = [{"role": "user", "content": "Write the numbers from 1 to 20, one on each line and nothing else."}]
COUNTED = "1\n2\n3\n4\n"
"""The turn so far: a server that continues it answers "5", unless its model cannot count."""
_YES: Messages = [{"role": "user", "content": "Reply with the word yes and nothing else."}]
YES_20_TIMES: Messages = [
    {"role": "user", "content": "Write the word yes 20 times, one on each line and nothing else."}
]
_YES_BEGUN = "yes\n" * 4
_STRONG = 2.0
"""A repetition penalty that shows; the largest that SGLang accepts."""
_FEW = 4
"""With fewer repeated words, a text does not tell whether a penalty is heeded (ours)."""
_TOKENS = (6, 256, 2048)
"""Maximum numbers of tokens to try: a reasoning model may use many before its first visible one."""
_PENALTY_TOKENS = (64, 2048)
_REFUSALS = 30

Ask = Callable[[dict[str, Any]], Awaitable[Reply]]
"""Sends a request's JSON and returns the reply."""


async def probe(ask: Ask, client: ServerClient, model: str) -> Features:
    """Return what a server accepts.

    Raises:
        Refused: it accepts no form of the request.
    """
    can, choices = await _continue_count(ask, Features(), client, model)
    return replace(can, choices=choices, thinking_close=await _opened_thinking(ask, can, client, model))


async def find_penalty(ask: Ask, can: Features) -> Features:
    """Return what the server accepts, with the name under which it heeds a repetition penalty.

    The same repetitive turn is continued by greedy decoding: twice without a penalty, then with a strong one under each
    name. A penalty counts if it changes the text; where the first two texts differ already, if it halves the
    repetitions. The name is "" if none counts. It stays None where that cannot be told, because the text without a
    penalty is refused or hardly repeats.
    """
    plain: list[str] = []
    for _ in range(2):
        try:
            can, text = await _yes_text(ask, can, 1.0)
        except Refused:
            return can
        plain.append(text)
    least = min(map(_repetitions, plain))
    if least < _FEW:
        return can
    for name in PENALTIES:
        try:
            told, text = await _yes_text(ask, replace(can, penalty_name=name), _STRONG)
        except Refused:
            continue
        heeded = text != plain[0] if plain[0] == plain[1] else _repetitions(text) < least / 2
        if heeded:
            return told
    return replace(can, penalty_name="")


async def _yes_text(ask: Ask, can: Features, penalty: float) -> tuple[Features, str]:
    """Let the server go on with "yes" on each line; return what it accepts, and what it wrote."""
    turn = _YES_BEGUN if can.prefill else ""
    size = 0
    for _ in range(_REFUSALS):
        sampling = Sampling(0.0, 1.0, _PENALTY_TOKENS[size], penalty)
        try:
            reply = await ask(request_body(YES_20_TIMES, turn, sampling, can, n=1, stop=None, seed=0))
        except Refused as refused:
            less = learn_from(can, refused.told, refused.parameter)
            if less is None or (penalty != 1 and less.penalty_name == ""):
                raise
            can = less
            continue
        text = reply.choices[0].text
        if text.strip() or reply.choices[0].finish != "length" or size + 1 == len(_PENALTY_TOKENS):
            break
        size += 1
    return can, text.removeprefix(turn if can.repeats_turn else "")


def _repetitions(text: str) -> int:
    """Return how many words of a text have come before in it."""
    return len(words := text.split()) - len(set(words))


async def _continue_count(ask: Ask, can: Features, client: ServerClient, model: str) -> tuple[Features, bool]:
    """Let the server continue a count; return what it accepts, and whether it returned two choices."""
    size, stop = 0, "\n"
    for _ in range(_REFUSALS):
        text = COUNTED if can.prefill else ""
        sampling = Sampling(1.0, 1.0, _TOKENS[size])
        try:
            reply = await ask(request_body(COUNT, text, sampling, can, n=2, stop=stop, seed=0))
        except Refused as refused:
            if _is_cut(refused.told) and size + 1 < len(_TOKENS):
                size += 1
                continue
            if (less := learn_from(can, refused.told, refused.parameter, guess=True)) is None:
                raise
            can = less
            continue
        first = reply.choices[0]
        if not first.text.strip() and size + 1 < len(_TOKENS) and (first.finish == "length" or first.thinking):
            size += 1
        elif not first.text.strip() and stop:
            stop, can = None, replace(can, stop_in_turn=False)
        else:
            break
    counts = first.text.removeprefix(COUNTED).strip().startswith("5")
    return (
        replace(
            can,
            prefill=can.prefill and (counts or await _shows_turn(client, model)),
            repeats_turn=can.prefill and first.text.startswith(COUNTED),
            logprobs=can.logprobs and first.logprob is not None,
        ),
        can.choices and len(reply.choices) == 2,
    )


async def _opened_thinking(ask: Ask, can: Features, client: ServerClient, model: str) -> str:
    """Return the mark that closes the thinking that the chat template opens, "" where a reply begins outside of one.

    llama.cpp renders a prompt on request, and vLLM tokenizes and detokenizes one. If that prompt opens no thinking,
    neither does another. Otherwise a short reply is read: it has a closing mark without an opening one, unless the
    server separates the thinking.
    """
    rendered = await _rendered(client, model, _YES)
    mark = None if rendered is None else open_mark(rendered.rpartition(_YES[0]["content"])[2])
    if rendered is not None and mark is None:
        return ""
    for size in _TOKENS[1:]:
        try:
            reply = await ask(request_body(_YES, "", Sampling(1.0, 1.0, size), can, n=1, stop=None, seed=0))
        except Refused:
            return ""
        first = reply.choices[0]
        if first.thinking or open_mark(first.text[:40]):
            return ""
        if mark is not None:
            return mark[1]
        if first.finish != "length":
            break
    return unopened_close(first.text) or ""


async def _shows_turn(client: ServerClient, model: str) -> bool:
    """Say whether the server's prompt ends with a half-written turn: the proof for a model that does not count."""
    rendered = await _rendered(client, model, [*COUNT, {"role": "assistant", "content": COUNTED}])
    return rendered is not None and rendered.rstrip().endswith(COUNTED.rstrip())


async def _rendered(client: ServerClient, model: str, messages: Messages) -> str | None:
    """Return the prompt of these messages in the server's chat template; None where the server does not show it."""
    status, shown = await client.ask_route("/apply-template", {"messages": messages})
    if status == 200 and isinstance(shown, dict) and isinstance(shown.get("prompt"), str):
        return shown["prompt"]
    flags = FLAGS if messages[-1]["role"] == "assistant" else {"add_generation_prompt": True}
    asked = {"model": model, "messages": messages} | flags
    status, shown = await client.ask_route("/tokenize", asked)
    tokens = shown.get("tokens") if status == 200 and isinstance(shown, dict) else None
    if not isinstance(tokens, list):
        return None
    status, shown = await client.ask_route("/detokenize", {"model": model, "tokens": tokens})
    return shown.get("prompt") if status == 200 and isinstance(shown, dict) else None


def _is_cut(told: str) -> bool:
    """Say whether a refusal means that the tokens did not suffice for a visible one (reasoning models)."""
    return "output limit" in told or "could not finish" in told.lower()
