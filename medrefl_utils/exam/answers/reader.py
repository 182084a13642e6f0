r"""Read the chosen letter from a response, by rules alone: no model, no randomness, linear time.

No answer is better than a wrong one: a response that names no option clearly, or several, has none. The steps:

1. Fold full-width signs, typographic quotes and struck-out text (``~~B~~``).
2. Set the thinking aside (``split_thinking``). In a truncated thinking, only a final form of answer counts. A question
   that the model invents after its answer is not read.
3. Read the last explicit statement: ``json``, ``boxed``, ``stated`` (``statements``). Denials, hypotheticals,
   earlier opinions and answers of others do not count (``opinions``). A statement that no rule can read ends the
   search: nothing before it is read.
4. Look for a retraction after it ("wait, that's wrong"), or a turn ("However, ... D is the answer", ``turns``): then
   the answer is what follows, or none.
5. Without an explicit statement, read in this order (``implied``): a ``lone`` letter, a ``verdict`` ("A is wrong. B is
   right.", a review of all options, an elimination), a ``label`` (a marked letter in a sentence that chooses), an
   option's ``text``, a ``misspelled`` text. A text that is truncated in mid-sentence, or that only describes, refuses
   or mentions an option (``refusals``), chooses none.

``several``: the answer names two options, and no option says both. ``none``: no rule reads an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from heapq import merge
from itertools import islice

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import LETTERS, Answer
from medrefl_utils.exam.answers import hints
from medrefl_utils.exam.answers.hints import Found
from medrefl_utils.exam.answers.implied import Reading, read_correction, read_implied
from medrefl_utils.exam.answers.json_objects import json_answers
from medrefl_utils.exam.answers.languages import Rules, active, foreign
from medrefl_utils.exam.answers.options import Options, prepare
from medrefl_utils.exam.answers.retractions import find_retraction
from medrefl_utils.exam.answers.statements import (
    ASSERTED,
    DENIED,
    DOUBTFUL,
    SUPPOSED,
    UNREADABLE,
    Statement,
    english,
)
from medrefl_utils.exam.answers.text import clause_begin, lower, plain, straight
from medrefl_utils.exam.answers.thinking import TAG_CLOSE, split_thinking
from medrefl_utils.exam.answers.turns import read_on

__all__ = ["EXPLICIT", "extract_answer", "split_thinking", "states_answer"]

EXPLICIT = frozenset({"json", "boxed", "stated"})
"""The rules that read an explicitly stated answer."""

# A final answer is short. A longer text is usually a repetition loop, so its middle is not read.
_HEAD, _TAIL = 4_000, 8_000

_CLOSERS = " \n.!*\"')]}$_`"
_CONCLUSION = re.compile(r"#(?!#)\s{0,3}\**(?:conclusion|answer|solution)\**[^\w\n]*\n", re.IGNORECASE)
_ANSWER_HEAD = re.compile(
    r"(?:#|\*\*)[^\n]{0,20}(?:answer|response|reply|答案|回复|回答|답변|답|respuesta|réponse|antwort|resposta|risposta|ответ|"
    r"الإجابة|उत्तर|คำตอบ|trả lời|đáp án|cevap)[^\w\n]{0,6}\Z",
    re.IGNORECASE,
)
NUMBERED_STEP = re.compile(r"\W{0,4}step\s?\d", re.IGNORECASE)
"""The beginning of a numbered step, as in "Step 4: ..."."""


def _statements(text: str, low: str, languages: list[Rules], options: Options) -> Iterator[Statement]:
    """Yield the explicit statements of a text, last one first; of a JSON object with an answer, only that answer."""
    structured, begin, end, other = None, -1, -1, []
    if ("{" in text or '"answer' in low or "'answer" in low) and ('":' in text or '" :' in text or "':" in text):
        structured, begin, end, other = json_answers(text, options)
        yield from other
    streams = [english(text, low, options)]
    if languages:
        streams.append(sorted(foreign(text, low, languages, options), key=lambda s: -s.at))
    every = merge(*streams, key=lambda statement: -statement.at) if len(streams) > 1 else streams[0]
    if structured is None:
        yield from every
        return
    yielded = end >= len(text)
    if yielded:  # nothing follows the object
        yield structured
    for statement in every:
        if statement.at >= end:
            yield statement
            continue
        if not yielded:
            yielded = True
            yield structured
        if statement.at < begin:
            yield statement
    if not yielded:
        yield structured


def _read(reading: Reading, visible: bool, final_only: bool) -> tuple[Found, str] | None:
    """Return (letter, rule) of a text; None where no rule reads one. ``visible`` is False inside a thinking."""
    doubtful: Statement | None = None
    denied: set[str] = set()
    supposed: set[str] = set()
    maybe: set[str] = set()
    for statement in _statements(reading.text, reading.low, reading.languages, reading.options):
        if statement.stance == DENIED:
            denied.add(statement.letter)
        if statement.stance == SUPPOSED:
            supposed.add(statement.letter)
        if statement.stance == DOUBTFUL:
            doubtful = doubtful or statement
            maybe.add(statement.letter)
        if statement.stance == UNREADABLE:
            return Found(""), "none"
        if statement.stance != ASSERTED:
            continue
        if final_only and not (statement.label or not reading.text[statement.end :].strip(_CLOSERS)):
            return None
        if statement.letter and statement.letter in denied:
            return Found(""), "none"
        return _checked(reading, statement, visible)
    if doubtful:
        if doubtful.letter in supposed | denied or len(maybe) > 1:
            return Found(""), "none"
        return Found(doubtful.letter, doubtful.written), "stated"
    hinted = read_implied(reading) if visible else None
    return (Found(""), "none") if hinted and hinted[0].letter in denied | supposed else hinted


def _checked(reading: Reading, statement: Statement, visible: bool) -> tuple[Found, str]:
    """Return a statement's answer, or what a later retraction leaves; for several options, the one settled on later."""
    rest = reading.after(statement.end)
    found = Found(statement.letter, statement.written)
    if not statement.letter:
        settled = hints.settled_later(rest.text, rest.low, rest.options)
        return (settled, "label") if settled else (found, "several")
    retraction, strong = find_retraction(rest.low, rest.languages)
    if retraction < 0:
        return read_on(rest, found, statement.rule)
    corrected = read_correction(rest.after(retraction))
    if corrected is None and strong:
        return Found(""), "none"
    if corrected is None and (turned := read_on(rest, found, statement.rule))[0] != found:
        return turned
    if corrected is None:
        named = {rest.text[at] for at in rest.options.alone_in(rest.text[: retraction + 400]) if at >= retraction}
        named |= set(rest.options.named_in(rest.text[retraction : retraction + 400]))
        return (found, statement.rule) if named <= {found.letter} else (Found(""), "none")
    return corrected, statement.rule


@lru_cache(maxsize=4096)
def _prepared(items: tuple[tuple[str, str], ...]) -> Options:
    for letter, text in items:
        if len(letter) != 1 or letter not in LETTERS:
            raise MedReflError(f"options: key {letter!r}, expected a capital letter A to Z")
        if not isinstance(text, str):
            raise MedReflError(f"options: {letter} is {type(text).__name__}, expected a text")
    return prepare(tuple((letter, straight(text)) for letter, text in items))


def _options(options: Mapping[str, str]) -> Options | None:
    if not isinstance(options, Mapping):
        raise MedReflError(f"options: {type(options).__name__}, expected a mapping of letters to texts")
    return _prepared(tuple(options.items())) if options else None


def _texts(response: str, thinking_open: bool) -> Iterator[tuple[str, bool, str]]:
    """Yield (a text to read, whether the user sees it, what precedes it), narrowest first."""
    thinking, visible = split_thinking(response, thinking_open=thinking_open)
    visible = plain(visible.strip())
    if not visible:
        closed = list(TAG_CLOSE.finditer(response, max(0, len(response.rstrip()) - 30)))
        yield _within(plain(response[: closed[-1].start()] if closed else response)), False, ""
        return
    if "#" in visible and (headings := list(_CONCLUSION.finditer(visible))):
        yield _within(visible[headings[-1].start() :]), True, ""
    yield _within(visible), True, thinking[-50:]


# The marks with which a base model begins another question, or a chat goes on with another turn.
_NEXT_QUESTION = re.compile(
    r"\n[\s*]{0,6}(?:#{1,6}\s{0,3}\**(?:new |next |another )?(?:question|instruction|input|problem|exercise)\b|"
    r"\**(?:q|question|human|user|next question|new question|another question)\s?#?\d{0,4}\**\s?[:.)]\**\s?)"
)
_NEXT_TURN = re.compile(
    r"<\|(?:im_start\|>\s?user|user\|>|start_header_id\|>\s?user|endoftext\|>|im_end\|>|eot_id\|>)|\[inst\]|"
    r"<start_of_turn>user"
)


def _own_part(reading: Reading, visible: bool) -> Reading:
    """Return the text before a question that the model invents after its answer; the whole text without one."""
    low = reading.low
    marks = [mark.start() for mark in islice(_NEXT_QUESTION.finditer(low), 20)]
    if "<|" in low or "[inst]" in low or "<start_of" in low:
        marks += [mark.start() for mark in islice(_NEXT_TURN.finditer(low), 20)]
    for at in sorted(marks):
        part = Reading(reading.text[:at], low[:at], active(low[:at]), reading.options)
        read = _read(part, visible, not visible)
        if read and read[0].letter and read[1] in _OWN_RULES:
            return part
    return reading


_OWN_RULES = EXPLICIT | {"lone"}


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
    for text, visible, before in _texts(response, thinking_open):
        low = lower(text)
        reading = Reading(text, low, active(low), prepared)
        read = _read(_own_part(reading, visible), visible, not visible)
        if read is None:
            continue
        found, rule = read
        if not found.letter:
            return Answer(None, "several" if rule != "none" else "none", found.written)
        if response in ("a\n", "i\n"):  # a line that goes on: the first word of a step
            return Answer(None, "none")
        if rule == "lone" and before and _ANSWER_HEAD.search(before):
            rule = "stated"
        return Answer(found.letter, rule, found.written, found.written not in (None, found.letter))
    return Answer(None, "none")


def states_answer(text: str, options: Mapping[str, str]) -> bool:
    r"""Say whether a piece of a chain states its answer, in a form that ``extract_answer`` reads.

    True for "Answer: C", "**Antwort: C**", ``\boxed{C}``, JSON, and a heading with the answer on the next line. False
    for a numbered step ("Step 4: the answer is B"), a lone heading, and a sentence about options ("Answer A is ...").
    """
    if NUMBERED_STEP.match(text):
        return False
    answer = extract_answer(text, options)
    if answer.letter is None or answer.rule not in EXPLICIT:
        return False
    return answer.rule != "stated" or not _is_hedged(text, _prepared(tuple(options.items())))


# Before a statement: a word that leaves it open. After it: a word that turns away from it.
_HEDGE = re.compile(
    r"\b(?:could|might|may|probably|perhaps|maybe|possibly|presumably|(?<!most )likely|would|vielleicht|wahrscheinlich|"
    r"vermutlich|probablement|peut-être|probablemente|quizás?|tal vez|talvez|provavelmente|forse|probabilmente|"
    r"возможно|"
    r"вероятно|наверное|belki|muhtemelen|có thể|có lẽ)\b|(?<!最)可能(?!性)|大概|也许|也許|"
    r"おそらく|たぶん|かもしれ|아마|ربما|शायद|อาจ|"
    r"น่าจะ"
)
_REST = re.compile(
    r"[^\w]*\b(?:but|however|unless|although|though|yet)\b|[^.!?\n]{0,40}[,;—–-]\s?(?:but|however|unless|yet)\b|"
    r"[^.!?\n。]{0,20}(?:但|,\s?(?:pero|aber|mais|mas|ma|но|ama|nhưng)\b|لكن|लेकिन|แต่|지만|が、)|"
    r"[^.!?\n]{0,30}\b(?:let me (?:check|verify|see|think|first)|needs? (?:checking|to be checked)|"
    r"to be (?:checked|verified))"
)


def _is_hedged(text: str, options: Options) -> bool:
    """Say whether a text's last statement leaves the answer open: "is probably B", "is B, but let me check"."""
    text = plain(split_thinking(text)[1].strip())
    low = lower(text)
    for statement in _statements(text, low, active(low), options):
        if statement.stance in (ASSERTED, DOUBTFUL):
            if statement.label:
                return False
            begin = clause_begin(low, statement.at)
            before = low[begin : statement.end]
            return _HEDGE.search(before) is not None or _REST.match(low, statement.end) is not None
    return False
