"""Check a written reflection: empty, truncated, leaking what was given, or naming the letter before its reasons."""

from __future__ import annotations

import re

from medrefl_utils.core.records import Continuation
from medrefl_utils.exam.answers import extract_answer
from medrefl_utils.pairs.reflection import CorrectionText

# "The key is", "a different branch" and "a solution was given" are good medicine.
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
_NAMES = frozenset({"json", "boxed", "stated", "lone", "label"})


def check_reflection(turn: CorrectionText, reply: Continuation) -> str:
    """What is wrong with a reflection, in a word, or ""; see ``write_reflections``."""
    text = " ".join(reply.text.split())
    if not text:
        return "empty"
    if reply.stop == "length":
        return "cut"
    if _LEAK.search(text):
        return "leak"
    options = turn.question.options
    told = {turn.question.gold, extract_answer("".join(turn.right), options).letter or turn.question.gold}
    for sentence in _SENTENCE.split(text)[:-1] or [text]:
        chosen = extract_answer(sentence, options)
        if chosen.letter in told and chosen.rule in _NAMES or told & set(_OPTION.findall(sentence)):
            return "letter"
    return ""
