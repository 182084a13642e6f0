"""Read the answer of a text that states none explicitly, or of what follows a retraction.

The rules of ``hints``, ``verdicts``, ``reviews`` and ``mentions`` in their order, strongest first.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from medrefl_utils.exam.answers import hints
from medrefl_utils.exam.answers.hints import Found
from medrefl_utils.exam.answers.languages import Rules
from medrefl_utils.exam.answers.mentions import by_text
from medrefl_utils.exam.answers.options import Options
from medrefl_utils.exam.answers.retractions import doubts, find_retraction
from medrefl_utils.exam.answers.reviews import eliminated, may_review, review
from medrefl_utils.exam.answers.verdicts import verdicts

_CORRECTED = re.compile(
    r"(?:\b(?:no|nope|wait|actually|be|been|make that|make it|is|it['’]s|that['’]s|meant|mean|so|rather|"
    r"correction|instead|therefore|thus|"
    r"hence|with|choose|answer|say|"
    r"sorry|oops|thought|reflection|now|edit|update|to|leaves|leaving)\b[\s,.:;!—–-]{1,4}|:\s)(?:the answer is |"
    r"i meant |it['’]s |it is |option |choice |letter )?[\"'“‘*(\[]{0,3}"
)


class Reading(NamedTuple):
    """A text to read, in lower case too, with its languages and options."""

    text: str
    low: str
    languages: list[Rules]
    options: Options

    def after(self, at: int) -> Reading:
        """Return the rest of the text from a position."""
        return Reading(self.text[at:], self.low[at:], self.languages, self.options)


def read_correction(rest: Reading) -> Found | None:
    """Return what replaces a retracted answer: a letter that the retraction points at, or what the rules read."""
    if found := pointed_at(rest):
        return found
    hinted = read_implied(rest)
    if hinted and hinted[0].letter:
        return hinted[0]
    return _sole(rest) if rest.languages else None


def _sole(rest: Reading) -> Found | None:
    """Return the only letter of a short correction in another language than English: "いや、違います。Cです"."""
    near = rest.text[:80]
    letters = rest.options.alone_in(near)
    if len(letters) != 1 or any(
        rules.negation.search(rest.low, letters[0], letters[0] + 12) for rules in rest.languages
    ):
        return None
    at = letters[0]
    if len(near[at + 1 :].strip(" .!。*")) > 4 or hints.denied_around(rest.text, rest.low, at, at + 1):
        return None
    return Found(near[at], near[at])


def pointed_at(rest: Reading) -> Found | None:
    """Return the letter that a retraction points at: "no, C", "I meant B", "it should be C"."""
    options, found = rest.options, None
    for pattern in [_CORRECTED, *(rules.joins for rules in rest.languages)]:
        for pointer in pattern.finditer(rest.low):
            begin = pointer.end()
            while begin > pointer.start() and rest.text[begin - 1] in "([\"'*":
                begin -= 1
            if options.letter_at(rest.text, pointer.end()) is None:
                continue
            if hints.denied_around(rest.text, rest.low, pointer.start(), pointer.end() + 1):
                continue
            value = options.value_at(rest.text, pointer.end())
            found = Found(value.letter, value.written) if value else found
    return found


_LAST_POINT = re.compile(
    r"(?:\A|[\n.!]\s{0,3})(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore)[,:]?\s(?:it['’]s |"
    r"it is )?[\"'*(\[]{0,3}([A-Z])[)\]\"'*.!\s]{0,4}\Z"
)


def read_implied(reading: Reading) -> tuple[Found, str] | None:
    """Return the answer of a text without an explicit statement."""
    text, low, options = reading.text, reading.low, reading.options
    at, strong = find_retraction(low, reading.languages) if reading.languages or doubts(low) else (-1, False)
    if at > 0:
        corrected = pointed_at(reading.after(at))
        if corrected or strong:
            return (corrected, "label") if corrected else read_implied(reading.after(at + 1))
    letters = options.alone_in(text)
    if found := hints.lone(text, letters, options):
        return found, "lone"
    if (last := _LAST_POINT.search(text, max(0, len(text) - 40))) and options.letter_at(text, last.start(1)):
        return Found(last[1], last[1]), "label"
    if (":" in text or low.startswith("ans")) and (found := hints.labelled(text, options)):
        return found, "stated"
    if len(letters) == 1 and not reading.languages and (found := hints.chosen(text, low, letters, options)):
        return found, "label"
    if letters:
        right, wrong = verdicts(text, low, letters, reading.languages, options)
        if right:
            return Found(right, right), "verdict"
        if read := _reviewed(reading, letters):
            return read
        if left := eliminated(text, low, letters, wrong, options):
            return Found(left), "verdict"
        found = hints.marked(text, low, letters, options) or hints.pointed(text, low, letters, options)
        if found and found.letter not in wrong:
            return found, "label" if found.letter else "several"
    elif read := _reviewed(reading, letters):
        return read
    return by_text(text, reading.languages, options)


def _reviewed(reading: Reading, letters: list[int]) -> tuple[Found, str] | None:
    """Return the answer of a text that reviews the options one by one: what follows the review, or what it leaves."""
    if not may_review(reading.text, letters, reading.options):
        return None
    found = review(reading.text, reading.low, reading.options)
    if found is None:
        return None
    later = read_implied(reading.after(found.end)) if reading.text[found.end :].strip() else None
    if found.letter is None or later is None or later[0].letter == found.letter:
        return later or ((Found(found.letter), "verdict") if found.letter else None)
    return later if later[1] in ("label", "lone", "stated", "verdict") else (Found(""), "none")
