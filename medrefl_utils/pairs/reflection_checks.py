"""Check a written reflection. Pure.

Its form: empty, truncated, leaking the key, or naming the letter before its reasons. Its sense, as far as words tell:
it denies what the wrong steps never said, or it claims again what it denies. Whether it is true is not checked.
"""

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
# "A. zelorin yes, B. oxpril no.": the letter of an option ends no clause.
_CLAUSE = re.compile(r"(?<=[.!?;])(?<!\b[A-Z]\.)\s+")
_SAID = r"(?:said|say|wrote|write|stated?|claimed?)"
_MEANT = r"(?:thought|think|assumed?|believed?|supposed?|inferr?(?:ed)?|concluded?|held|hold)"
_WRONGLY = r"(?:wrongly|falsely|mistakenly|incorrectly)"
# These deny a sentence that was spoken, so that the wrong steps must have it.
_DENIES_WORDS = re.compile(
    r"\bit(?:(?: is|['’]s| was) not| isn['’]t| wasn['’]t) (?:so|true|correct|right|the case) that\s+(.+)"
    r"|\bit(?: is|['’]s| was) (?:false|wrong|untrue|incorrect) that\s+(.+)"
    rf"|\bI {_WRONGLY} {_SAID}(?: that)?\s+(.+)"
    rf"|\bI was (?:wrong|mistaken) (?:to {_SAID}|(?:in )?(?:saying|writing|stating|claiming))(?: that)?\s+(.+)",
    re.IGNORECASE,
)
# These deny a thought. It need not have been spoken, but it cannot be claimed again.
_DENIES_THOUGHT = re.compile(
    rf"\bI {_WRONGLY} {_MEANT}(?: that)?\s+(.+)"
    rf"|\bI was (?:wrong|mistaken) (?:to {_MEANT}|(?:in )?(?:thinking|assuming|believing|concluding))(?: that)?\s+(.+)",
    re.IGNORECASE,
)
# What follows what is denied: a reason, or the opposite.
_TAIL = re.compile(
    r"(?:,|:|\s[-–—]|\s(?=because\b))\s*(?:because|since|but|so|which|while|although|though|given|when)\b.*", re.I
)
_MISSED = r"(?:had )?(?:missed|overlooked|forgot|forgotten|ignored)"
_CLAIMS = re.compile(
    r"^(?:(?:wait|so|but|and|thus|hence|therefore|then|no|rather|instead|in (?:fact|truth|reality)|actually)[,:]?\s+"
    rf"|what I {_MISSED} (?:is|was) that\s+|I {_MISSED} (?:the fact )?that\s+"
    r"|the truth is that\s+|it is (?:so|true|the case) that\s+)*",
    re.IGNORECASE,
)
_FILLERS = frozenset("a an the is are was were be been it its this that there of in on at to for by as so".split())
_OVERLAP = 0.8
"""Share of a denied clause's words that one wrong step must exceed, if it has not the clause itself (ours)."""
_OPTION = re.compile(r"\b(?i:option|choice|letter|answer)\W{0,4}([A-Z])\b")
_NAMES = EXPLICIT | {"lone", "label"}
"""The rules of ``extract_answer`` that read a letter, not an option's text."""

NONSENSE = ("unsaid", "contradiction", "denies")
"""The findings of ``check_reflection`` on what a reflection says, not on its form."""


def check_reflection(turn: CorrectionText, reply: Continuation, *, thinking_open: bool = False) -> str:
    """Say what is wrong with a reflection in one word, or return "".

    The writer's own thinking, before its reply, is left out. ``empty``: no text. ``cut``: the token limit was reached.
    ``leak``: it mentions that a key or other steps were shown. ``letter``: before its last sentence it names, as an
    answer, the gold letter or the letter that the new steps lead to. ``unsaid``: it denies a sentence that is not among
    the wrong steps ("it is not so that ..."). ``contradiction``: it claims what it denies. ``denies``: it should affirm
    its steps, and denies a sentence. ``thinking_open``: the writer's chat template opened its thinking. The rules are
    ours.
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
    clauses = _CLAUSE.split(text)
    spoken, thought = (
        [found for clause in clauses if (found := _denied(pattern, clause))]
        for pattern in (_DENIES_WORDS, _DENIES_THOUGHT)
    )
    if not turn.right and (spoken or thought):
        return "denies"
    if not all(_is_said(clause, turn) for clause in spoken):
        return "unsaid"
    claims = [_words(_CLAIMS.sub("", clause)) for clause in clauses]
    return "contradiction" if any(_words(clause) in claims for clause in (*spoken, *thought)) else ""


def _denied(pattern: re.Pattern[str], clause: str) -> str:
    """Return the sentence that a clause denies, or ""; a single word is none."""
    match = pattern.search(clause)
    found = _TAIL.sub("", next(filter(None, match.groups()))) if match else ""
    return found if len(_words(found)) > 1 else ""


def _is_said(denied: str, turn: CorrectionText) -> bool:
    """Return whether one of the wrong steps says a denied sentence: its words in a row, or nearly all of its words.

    In the second case, the other words may neither be those of the steps that replace the wrong ones, nor of an option:
    they make it another sentence.
    """
    words = _words(denied)
    elsewhere = {word for text in (*turn.right, *turn.question.options.values()) for word in _words(text)}
    for step in turn.wrong:
        said = _words(step)
        if any(said[at : at + len(words)] == words for at in range(len(said))):
            return True
        others = [word for word in words if word not in said]
        if len(words) - len(others) > _OVERLAP * len(words) and elsewhere.isdisjoint(others):
            return True
    return False


def _words(text: str) -> list[str]:
    """Return the words of a text in lower case, without those that carry no claim."""
    return [word for word in re.findall(r"\w+", text.casefold()) if word not in _FILLERS]


def reflection_text(reply: str, *, thinking_open: bool = False) -> str:
    """Return the reflection in a reply, without the writer's own thinking, on one line."""
    return " ".join(split_thinking(reply, thinking_open=thinking_open)[1].split())
