"""Read the answer of a JSON object: its keys tell an answer from a reason and from a rejected option.

The object need not be valid: it may be truncated, in single quotes, or without its braces.
"""

from __future__ import annotations

import re

from medrefl_utils.exam.answers.options import Options, Value
from medrefl_utils.exam.answers.statements import ASSERTED, DENIED, UNREADABLE, Statement, prose
from medrefl_utils.exam.answers.text import holds, lower

_KEY = re.compile(r"[\"'“]([A-Za-z][\w \-]{1,30})[\"'”]\s{0,4}[:=]")
_KEY_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_KEY_CORE = frozenset(("answer", "answers", "choice", "option", "letter", "prediction"))
# Keys that may also hold a text: they count only where an option stands there, and no key of the others occurs.
_KEY_ALSO = frozenset(
    (
        "ans",
        "final",
        "pred",
        "selection",
        "conclusion",
        "verdict",
        "result",
        "guess",
        "pick",
        "decision",
        "label",
        "output",
        "likely",
        "correct",
    )
)
_KEY_WORDS = (
    _KEY_CORE
    | _KEY_ALSO
    | frozenset(
        "good new revised updated corrected final correct best right my the selected chosen model predicted idx index "
        "text key id your is most after reflection review".split()
    )
)
_FINAL_KEYS = frozenset(("good", "final", "correct", "new", "revised", "updated", "corrected"))


def json_answers(text: str, options: Options) -> tuple[Statement | None, int, int, list[Statement]]:
    """Return the answer of a JSON object, the span of that object, and what keys such as ``wrong_answer`` deny."""
    found: list[tuple[bool, Statement]] = []
    denied: list[Statement] = []
    also: list[tuple[bool, Statement]] = []
    first = -1
    for key in _KEY.finditer(text):
        words = {word.lower() for word in _KEY_WORD.findall(key[1])}
        if not words & _KEY_CORE:
            if words & _KEY_ALSO and words <= _KEY_WORDS and (value := options.value_at(text, key.end())):
                statement = Statement(key.start(), value.end, value.letter, value.written, "json", ASSERTED, True)
                also.append((bool(words & _FINAL_KEYS), statement))
            continue
        value = _json_value(text, key.end(), options)
        if not words <= _KEY_WORDS:
            if value:
                denied.append(Statement(key.start(), value.end, value.letter, None, "json", DENIED, True))
            continue
        first = key.start() if first < 0 else first
        if value is None:
            statement = Statement(key.start(), key.end(), "", None, "json", UNREADABLE, True)
        else:
            statement = Statement(key.start(), value.end, value.letter, value.written, "json", ASSERTED, True)
        found.append((bool(words & _FINAL_KEYS), statement))
    if not found and also:
        found, first = also, also[0][1].at
    if not found and (likely := _most_likely(text, options)):
        found, first = [(True, likely)], likely.at
    if not found:
        return None, -1, -1, denied
    readable = [pair for pair in found if pair[1].stance == ASSERTED] or found
    final = [statement for is_final, statement in readable if is_final] or [statement for _, statement in readable]
    begin = text.rfind("{", 0, first)
    end = text.rfind("}") + 1
    chosen = _meant(final[-1], text, max(begin, 0), options)
    if begin < 0:
        return chosen, first, chosen.end, []
    return chosen, begin, end if end > chosen.end else len(text), []


_SHARE = re.compile(r"[\"']([A-Z])[\"'](?:\s?:\s?)[\"']?(\d{0,3}\.?\d{1,4})\s?(%?)[\"']?(?=\s?[,}])")


def _most_likely(text: str, options: Options) -> Statement | None:
    """Return the option with the highest share in an object such as {"A": 0.1, "B": 0.9}, whose shares add up to 1."""
    shares = {share[1]: share for share in _SHARE.finditer(text) if share[1] in options.letters}
    values = {letter: float(share[2]) / (100 if share[3] else 1) for letter, share in shares.items()}
    if (
        len(values) < 2
        or len(values) < len(options.letters) - 1
        or not 0.95 <= sum(values.values()) <= 1.05
        or (1 in values.values() and len(values) < len(options.letters))
    ):
        return None
    best = max(values, key=values.__getitem__)
    if sum(value == values[best] for value in values.values()) > 1:
        return None
    return Statement(shares[best].start(), shares[best].end(), best, best, "json", ASSERTED, True)


_TURNS = re.compile(
    r"n['’]t\b|\b(?:not|but|however|wait|although|though|while|whereas|instead|rather|first|initially|tempt\w*|if|"
    r"unless|seems?|"
    r"actually|mistake|wrong|incorrect|would|could|might|may be)\b"
)


_TURNING = tuple(
    (
        "n't|not|but|however|wait|though|while|whereas|instead|rather|first|initially|tempt|if|unless|seem|actually|"
        "mistake|"
        "wrong|incorrect|would|could|might|may be"
    ).split("|")
)


def _meant(answer: Statement, text: str, begin: int, options: Options) -> Statement:
    """Return the answer of a JSON object, where its bare letter and the reason before it are one statement.

    Where that reason names one option by its text, another one, without any turn of thought, and the letter's own text
    occurs nowhere, the text is what the model meant.
    """
    reason = text[begin : answer.at]
    if answer.stance != ASSERTED or answer.written != answer.letter or not reason.strip(' {\n"'):
        return answer
    if holds(low := lower(reason), _TURNING) and _TURNS.search(low):
        return answer
    named = options.named_in(reason)
    if len(named) != 1 or named[0] == answer.letter:
        return answer
    if answer.letter in options.named_in(text) or any(reason[at] == named[0] for at in options.alone_in(reason)):
        return answer
    return answer._replace(letter=named[0])


def _json_value(text: str, at: int, options: Options) -> Value | None:
    value = options.value_at(text, at)
    if value:
        return value
    string = re.compile(r"\s{0,4}[\[{\"'“\s]{0,6}([^\"”\n]{0,200})").match(text, at)
    return prose(text, string.start(1), string.end(1), options) if string and string[1].strip() else None
