"""Check a written reflection: empty, truncated, leaking the key, or naming the letter before its reasons. Pure."""

from __future__ import annotations

import re

from medrefl_utils.core.records import Continuation
from medrefl_utils.exam.answers.reader import EXPLICIT, extract_answer, split_thinking
from medrefl_utils.pairs.reflection import CorrectionText

# Not leaks, but good medicine: "The key is", "a different branch", "a solution was given".
_LEAK = re.compile(
    r"\b(?:answer key|ground truth|gold (?:answer|letter|option)|the key (?:says|shows|gives|has)"
    r"|(?:other|another|second|alternative|replacement|reference|provided|given) (?:paths?|chains?)"
    r"|(?:replacement|replacing|reference|provided|given) (?:steps?|answer|solution)|steps that replace"
    r"|(?:steps?|answer|path) (?:(?:that|which) )?(?:I )?(?:was|were|is|are|has been|have been) "
    r"(?:given|shown|told|provided|supplied)"
    r"|I (?:was|am|have been|had been) (?:given|shown|told|provided)\b[^.]{0,40}"
    r"\b(?:answer|steps?|solution|path|key))\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_OPTION = re.compile(r"\b(?i:option|choice|letter|answer)\W{0,4}([A-Z])\b")
_NAMES = EXPLICIT | {"lone", "label"}
"""The rules of ``extract_answer`` that read a letter, not an option's text."""


def check_reflection(turn: CorrectionText, reply: Continuation, *, thinking_open: bool = False) -> str:
    """Say what is wrong with a reflection in one word, or return "".

    The writer's own thinking, before its reply, is left out. ``empty``: no text. ``cut``: the token limit was reached.
    ``leak``: it mentions that a key or other steps were shown. ``letter``: before its last sentence it names, as an
    answer, the gold letter or the letter that the new steps lead to. ``thinking_open``: the writer's chat template
    opened its thinking. The rules are ours.
    """
    text = reflection_text(reply.text, thinking_open=thinking_open)
    if not reply.text.strip():
        return "empty"
    if reply.stop == "length":
        return "cut"
    if not text:
        return "empty"
    if _LEAK.search(text):
        return "leak"
    options = turn.question.options
    told = {turn.question.gold, extract_answer("".join(turn.right), options).letter or turn.question.gold}
    for sentence in _SENTENCE.split(text)[:-1] or [text]:
        chosen = extract_answer(sentence, options)
        if chosen.letter in told and chosen.rule in _NAMES or told & set(_OPTION.findall(sentence)):
            return "letter"
    return ""


def reflection_text(reply: str, *, thinking_open: bool = False) -> str:
    """Return the reflection in a reply, without the writer's own thinking, on one line."""
    return " ".join(split_thinking(reply, thinking_open=thinking_open)[1].split())
