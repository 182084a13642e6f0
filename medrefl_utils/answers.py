r"""Reads the chosen letter from a response, by rules alone: no model, no randomness, linear time.

Better none than wrong: a response that names no option clearly, or several, has no answer. The steps:

1. Fold full-width signs, typographic quotes and struck-out text (``~~B~~``).
2. Set the thinking aside (``split_thinking``). In a thinking that was cut, only a final form of answer counts.
3. Read the last explicit statement: ``json``, ``boxed``, ``stated`` (``answer_statements``). Denials, hypotheticals and
   answers of others do not count. A statement that no rule can read ends the search: nothing before it is read.
4. Look for a retraction after it ("wait, that's wrong"): then what follows the retraction is the answer, or there is none.
5. Without an explicit statement, read in this order (``answer_hints``): ``lone`` letter, ``verdict`` ("B is correct"),
   ``label`` (a marked letter in a sentence that chooses), ``text`` (an option's text), ``misspelled``.

``several``: the answer names two options, and no option says both. ``none``: no rule reads an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from medrefl_utils import answer_hints as hints
from medrefl_utils.answer_hints import Found
from medrefl_utils.answer_options import Options, prepare
from medrefl_utils.answer_statements import (
    ASSERTED,
    DENIED,
    DOUBTFUL,
    SUPPOSED,
    UNREADABLE,
    Rules,
    Statement,
    active,
    holds,
    lower,
    statements,
)
from medrefl_utils.answer_thinking import split_thinking
from medrefl_utils.records import LETTERS, Answer, MedReflError

__all__ = ["EXPLICIT", "extract_answer", "split_thinking", "states_answer"]

EXPLICIT = frozenset({"json", "boxed", "stated"})
"""The rules that read an answer which is stated in so many words."""

# What a model tells after its thinking is short; the middle of a longer text is a model in a loop, and is not read.
_HEAD, _TAIL = 4_000, 8_000

_FOLDED = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ", 0xA0: " ", 0x202F: " ", 0x200B: " ", 0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0xFF61: "。",
    0x060C: ",", 0x0410: "A", 0x0421: "C",
}  # fmt: skip
_SMALL_OPTION = re.compile(r"option ([a-z])(?=[).:,;*\"']|\s*(?:\Z|\n)|\s(?:is|was|because|since)\b)")
_CLOSERS = " \n.!*\"')]}$_`"
_HTML = re.compile(r"</?(b|i|p|strong|em|br|div|span|u|h\d|li|ul|ol|code|pre)\s?/?>", re.IGNORECASE)
_SMALL_ALONE = re.compile(
    r"(?:\A|\b(?:[Ii]t's|[Ii]t is|[Cc]hoice|[Oo]ption|[Ll]etter|[Cc]hoose|[Pp]ick)\s)[a-j](?=\s(?:is|was)\s(?:correct|right|the)|[.!]?\s*\Z)"
)
_PERCENT = re.compile(r"(?<=\d)(?:\s?\\%|\s%)")
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~")
_CONCLUSION = re.compile(r"#(?!#)\s{0,3}\**(?:conclusion|answer|solution)\**[^\w\n]*\n", re.IGNORECASE)
_STEP = re.compile(r"\W{0,4}step\s?\d", re.IGNORECASE)

# --- retractions in English ---
_RETRACTION_WORDS = (
    "wait", "mistake", "error", "wrong", "no,", "no.", "no:", "no;", "nope", "actually", "correct", "scratch", "rather,", "meant",
    "reconsider", "rethink", "edit", "update", "revised", "take", "mis", "second", "second thought", "reflection", "no longer", "sorry", "oops", "hold on", "not right", "cannot be", "can't be",
)  # fmt: skip
_DOUBTS = ("wait", "no, ", "actually", "mistake", "wrong", "second thought", "correction", "oops", "no. ")
_TAKES_BACK = re.compile(
    r"(?:(?:\A|[.!?…,\n—–-]\s{0,2}|\bhmm+[,.]?\s|\bwait[,.!]?\s|\bno[,.!]\s|\bactually[,.]?\s|\boh[,.]?\s|\bbut\s)"
    r"(?:i(?:'ve| have)? (?:just )?(?:made|make) (?:an?|another|one) (?:\w+ )?(?:mistake|error)|i (?:was|am) (?:wrong|mistaken)|i'm wrong|"
    r"my mistake|scratch that|i(?:'m| am) (?:no longer|not) sure|i meant|i mean\b|correction\b|sorry\b|oops\b|strike that)|"
    r"\n\W{0,4}(?:edit|update|revised(?: answer)?|corrected(?: answer)?)\W{0,3}:|\bi take (?:that|it) back\b|\bi (?:just )?(?:misread|misunderstood|misinterpreted|misjudged)\b|"
    r"\A[\s.…!,\"'*)—–-]{0,6}(?:wrong|incorrect)[.!,]|"
    r"\b(?:or rather|i meant to say|no longer sure)\b|"
    r"(?:\A[\s.…!,\"'*)—–-]{0,6}|\bhmm+[,.]?\s|\bwait[,.!]?\s|\bno[,.!]\s|\bactually[,.]?\s|\boh[,.]?\s|\bbut\s)"
    r"(?:(?:that|this|it|(?:this|that|my|the above) answer)(?:'s| is| was| seems)(?: clearly)? (?:wrong|incorrect|not right|not correct|a mistake(?! to)|an error(?! to))|"
    r"(?:that|this|it) (?:isn't|wasn't) (?:right|correct)|(?:that|this|it) (?:cannot|can't|can not) be(?: right| correct| so|(?=[.,;!—])|\Z)))"
)
_PAUSES = re.compile(
    r"(?:\A|[.!?…,;:\n—–(>-]\s{0,2}|\bhmm+[,.]?\s)[\"'*]{0,2}(?:wait\b|actually\b|hold on|"
    r"on (?:second thought|reflection|reconsideration)|let me (?:reconsider|re-?think|re-?check|correct|re-?examine|re-?evaluate)|"
    r"no[,.;:!—–]|no wait|nope\b|rather,)"
)
_CORRECTED = re.compile(
    r"(?:\b(?:no|nope|wait|actually|be|is|it['’]s|that['’]s|meant|mean|so|rather|correction|instead|therefore|thus|hence|with|choose|answer|say|"
    r"sorry|oops|thought|reflection|now|edit|update|to|leaves|leaving)\b[\s,.:;!—–-]{1,4}|:\s)(?:the answer is |i meant |it['’]s |it is |option |choice |letter )?[\"'“‘*(\[]{0,3}"
)


def _fold(text: str) -> str:
    """Full-width signs, curly quotes, escaped quotes and struck-out text in their plain form."""
    if not text.isascii():
        text = text.translate(_FOLDED)
    if "~~" in text:
        text = _STRUCK.sub(" ", text)
    if "option " in text:
        text = _SMALL_OPTION.sub(lambda small: f"option {small[1].upper()}", text)
    if "<" in text:
        text = _HTML.sub(lambda tag: "\n" if tag[1][0] in "bp" and tag[1] != "b" else "", text)
    if "&nbsp;" in text:
        text = text.replace("&nbsp;", " ")
    if len(text) < 60:
        text = _SMALL_ALONE.sub(lambda small: small[0][:-1] + small[0][-1].upper(), text)
    if "%" in text:
        text = _PERCENT.sub("%", text)
    if '\\"' in text:
        text = text.replace('\\"', '"')
    return text


class _Reading(NamedTuple):
    """A text that is read, and what reading it needs."""

    text: str
    low: str
    languages: list[Rules]
    options: Options

    def after(self, at: int) -> _Reading:
        """The rest of the text from a position."""
        return _Reading(self.text[at:], self.low[at:], self.languages, self.options)


def _read(reading: _Reading, told: bool, final_only: bool) -> tuple[Found, str] | None:
    """(Letter, rule) of a text; None where no rule reads one. ``told`` is False inside a thinking."""
    doubtful: Statement | None = None
    denied: set[str] = set()
    supposed: set[str] = set()
    for statement in statements(reading.text, reading.low, reading.languages, reading.options):
        if statement.stance == DENIED:
            denied.add(statement.letter)
        if statement.stance == SUPPOSED:
            supposed.add(statement.letter)
        if statement.stance == DOUBTFUL:
            doubtful = doubtful or statement
        if statement.stance == UNREADABLE:
            return Found(""), "none"
        if statement.stance != ASSERTED:
            continue
        if final_only and not (statement.label or not reading.text[statement.end :].strip(_CLOSERS)):
            return None
        if statement.letter and statement.letter in denied:
            return Found(""), "none"
        return _checked(reading, statement, told)
    if doubtful:
        return Found(doubtful.letter, doubtful.written), "stated"
    hinted = _hinted(reading) if told else None
    return (Found(""), "none") if hinted and hinted[0].letter in denied | supposed else hinted


def _checked(reading: _Reading, statement: Statement, told: bool) -> tuple[Found, str]:
    """A statement, unless what follows it takes it back; for several options, the one that is settled on later."""
    rest = reading.after(statement.end)
    found = Found(statement.letter, statement.written)
    if not statement.letter:
        settled = hints.settled_later(rest.text, rest.low, rest.options)
        return (settled, "label") if settled else (found, "several")
    retraction, strong = _retraction(rest)
    if retraction < 0:
        return found, statement.rule
    corrected = _corrected(rest.after(retraction))
    if corrected is None and strong:
        return Found(""), "none"
    if corrected is None:
        named = {rest.text[at] for at in rest.options.alone_in(rest.text[: retraction + 400]) if at >= retraction}
        named |= set(rest.options.named_in(rest.text[retraction : retraction + 400]))
        return (found, statement.rule) if named <= {found.letter} else (Found(""), "none")
    return corrected, statement.rule


def _around(low: str, words: tuple[str, ...]) -> list[tuple[int, int]]:
    """The stretches of a text around its words, joined where they overlap."""
    places: list[int] = []
    for word in words:
        at = low.rfind(word)
        while at >= 0:
            places.append(at)
            at = low.rfind(word, 0, at)
    stretches: list[tuple[int, int]] = []
    for at in sorted(places):
        if stretches and at - 40 <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], at + 60)
        else:
            stretches.append((max(0, at - 40), at + 60))
    return stretches


def _retraction(rest: _Reading) -> tuple[int, bool]:
    """Where the last retraction begins, -1 without one, and whether it takes the answer back for certain."""
    at, strong = -1, False
    if len(rest.low) > 3:
        for begin, end in _around(rest.low, _RETRACTION_WORDS):
            for mark in _PAUSES.finditer(rest.low, begin, end):
                at = max(at, mark.start())
            for mark in _TAKES_BACK.finditer(rest.low, begin, end):
                at, strong = max(at, mark.start()), True
    for rules in rest.languages:
        for mark in rules.retraction.finditer(rest.low):
            if mark.start() >= at:
                at, strong = mark.start(), True
    return at, strong


def _corrected(rest: _Reading) -> Found | None:
    """What a retraction puts in the answer's place: a letter that it points at, or what the rules read."""
    if found := _pointed_at(rest):
        return found
    hinted = _hinted(rest)
    return hinted[0] if hinted and hinted[0].letter else None


def _pointed_at(rest: _Reading) -> Found | None:
    """The letter that a retraction points at: "no, C", "I meant B", "it should be C"."""
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


def _hinted(reading: _Reading) -> tuple[Found, str] | None:
    """The answer of a text without an explicit statement."""
    text, low, options = reading.text, reading.low, reading.options
    at, strong = _retraction(reading) if reading.languages or holds(low, _DOUBTS) else (-1, False)
    if at > 0:
        corrected = _pointed_at(reading.after(at))
        if corrected or strong:
            return (corrected, "label") if corrected else _hinted(reading.after(at + 1))
    letters = options.alone_in(text)
    if found := hints.lone(text, letters, options):
        return found, "lone"
    if (":" in text or low.startswith("ans")) and (found := hints.labelled(text, options)):
        return found, "stated"
    if letters:
        found, wrong = hints.verdicts(text, low, letters, reading.languages, options)
        if found:
            return found, "verdict"
        found = hints.marked(text, low, letters, options) or hints.pointed(text, low, letters, options)
        if found and found.letter not in wrong:
            return found, "label" if found.letter else "several"
    return hints.by_text(text, reading.languages, options)


@lru_cache(maxsize=4096)
def _prepared(items: tuple[tuple[str, str], ...]) -> Options:
    for letter, text in items:
        if len(letter) != 1 or letter not in LETTERS:
            raise MedReflError(f"options: key {letter!r}, expected a capital letter A to Z")
        if not isinstance(text, str):
            raise MedReflError(f"options: {letter} is {type(text).__name__}, expected a text")
    return prepare(items)


def _options(options: Mapping[str, str]) -> Options | None:
    if not isinstance(options, Mapping):
        raise MedReflError(f"options: {type(options).__name__}, expected a mapping of letters to texts")
    return _prepared(tuple(options.items())) if options else None


def _texts(response: str, thinking_open: bool) -> Iterator[tuple[str, bool]]:
    """(A text to read, whether it is told to the user), narrowest first."""
    _, told = split_thinking(response, thinking_open=thinking_open)
    told = _fold(told.strip())
    if not told:
        yield _within(_fold(response)), False
        return
    if "#" in told and (headings := list(_CONCLUSION.finditer(told))):
        yield _within(told[headings[-1].start() :]), True
    yield _within(told), True


def _within(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n{text[-_TAIL:]}"


def extract_answer(response: str, options: Mapping[str, str], *, thinking_open: bool = False) -> Answer:
    """Read the option that a response chooses.

    Args:
        response: the whole text that a model wrote.
        options: letter (A to Z) -> text.
        thinking_open: the chat template opened the thinking, so that the response begins inside it. Where no mark
            closes it, only a final form of answer counts ("Answer: B", a box, JSON, or a last sentence that states it).

    Returns:
        The letter (one of ``options``), the rule that read it, the letter as written, and whether that letter belongs
        to another option than the text beside it. ``Answer(None, "none")`` where the response chooses nothing,
        ``Answer(None, "several")`` where its choice names several options. Never raises for any response.

    Raises:
        MedReflError: options that are no mapping, or a key that is no capital letter.
    """
    prepared = _options(options)
    if prepared is None:
        return Answer(None, "none")
    for text, told in _texts(response, thinking_open):
        low = lower(text)
        reading = _Reading(text, low, active(low), prepared)
        read = _read(reading, told, not told)
        if read is None:
            continue
        found, rule = read
        if not found.letter:
            return Answer(None, "several" if rule != "none" else "none", found.written)
        return Answer(found.letter, rule, found.written, found.written not in (None, found.letter))
    return Answer(None, "none")


def states_answer(text: str, options: Mapping[str, str]) -> bool:
    """Say whether a piece of a chain states its answer, in a form that ``extract_answer`` reads.

    True for "Answer: C", "**Antwort: C**", ``\\boxed{C}``, JSON, and a heading with the answer on the next line. False for a
    numbered step ("Step 4: the answer is B"), a lone heading, and a sentence about options ("Answer A is ...").
    """
    if _STEP.match(text):
        return False
    answer = extract_answer(text, options)
    return answer.letter is not None and answer.rule in EXPLICIT
