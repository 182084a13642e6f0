r"""Reads the chosen letter from a response, by rules alone: no model, no randomness, linear time.

The rules, strongest first (ours):

1. ``json``, ``boxed``, ``stated``: "answer": "B", \boxed{B}, "Answer: B", "the answer is ... B"; the last one stands.
2. ``lone``: a line that is a letter and nothing else, or the response's beginning with "B." or "B)".
3. ``label``: a marked letter (**B**, 'B', (B), option B, "B: its text") in a sentence that chooses, else the only one.
4. ``text``: an option's text in a sentence that chooses, else the only option that is named at all.

A letter followed by the exact text of another option gives that option: the text is what the model meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from medrefl_utils.records import LETTERS, Answer

# What reasoning models write before and between their thinking and what they tell the user.
_THINKING = ("<think>", "<thinking>", "## Thinking")
_FINAL = ("</think>", "</thinking>", "# Final Response", "# Final Answer")
# A final response is short; the middle of a longer one is a model in a loop, and is not read.
_HEAD, _TAIL = 4_000, 8_000

_OPEN = r"[\s\"'“‘`*_(\[{<$\\:]{0,8}"
_FILLER = re.compile(
    r"(?:(?:the|(?-i:an?)|most|likely|probably|best|correct|right|final|answer|option|choice|letter|is|be|would|indeed|"
    r"definitely|clearly|closest|therefore|thus|so|text|textbf|mathbf|mathrm|boxed|given|not\s(?-i:[A-Z]),?\sbut)\b"
    r"[\s\"'“”‘’`*_(\[{:,\\]{1,6}){1,8}",
    re.IGNORECASE,
)
_CLAIM = re.compile(
    r"(?P<boxed>\\(?:boxed|fbox)\s?\{)"
    r"|(?P<json>[\"'“](?:\w{1,20}[ _])?answer(?:_idx|_letter)?[\"'”]\s{0,4}[:=])"
    r"|(?P<stated>\b(?:answer|(?:correct|best|right|final|appropriate|closest|suitable|likely)\s(?:option|choice|letter))\b"
    r"(?:\s(?!is\b)[\w'’-]{1,24}){0,10}?(?:\s(?:is|be)\b|[\"'”*_\s]{0,4}[:=])"
    r"|<answer>|(?<!not\s)(?<!n't\s)\b(?:choose|select|pick|go\swith|going\swith)\b)",
    re.IGNORECASE,
)
_MOST = "appropriate|probable|suitable|consistent|accurate|relevant|important|common|plausible|effective|useful|helpful"
_CHOOSES = re.compile(
    rf"\b(?:answer|(?:most|more) (?:likely|probably|closely|directly|significant|expected|{_MOST})|best|correct|"
    r"closest|therefore|thus|so,|hence|choose|chosen|choice|would be|should be|is likely|suggests?|indicates?|"
    r"consistent with)\b",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"[^.,;\n]{0,80}?\s(?:is|as|remains|would be|seems)\s(?:the\s)?(?:most|best|correct|right|answer)\b"
)
# What stands before an option that is passed over, and after one that is taken back.
_NOT = (
    r"(?:n['’]t|\b(?:not|another|unlike|rather than|instead of|other than|opposed to|except|less likely|rule[sd]? out|"
    r"ruling out|exclud\w+|eliminat\w+))\b"
)
_PASSED = re.compile(
    rf"{_NOT}[^.;:]{{0,60}}$|(?:^|[,;]\s)(?:while|although|though|whereas)\b[^.;:,]{{0,60}}$", re.IGNORECASE
)
_PASSED_CLAUSE = re.compile(rf"{_NOT}[^.;:,]{{0,80}}", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"[^.,;\n]{0,80}?\s(?:(?:is|are|was|would be|seems?|can be|could be)\s(?:also\s)?(?:not|incorrect|wrong|less|"
    r"unlikely|excluded|eliminated|ruled)|isn['’]t|wouldn['’]t|does\snot|doesn['’]t|would\snot|cannot|can['’]t)\b",
    re.IGNORECASE,
)
# "is: E. Citalopram" is one sentence, and so is "The answer is:" with the line that follows it.
_SENTENCE = re.compile(r"(?<=[.!?])(?<!\W[A-Z]\.)[\"'”’*]{0,3}\s+(?=[A-Z\"'“‘*{(])|(?<![:\n ])\n+")
_WORD = re.compile(r"[^\W_]+|[<>=+%↑↓≥≤±/]")
_PROSE = re.compile(r" [a-z]{2,24} (?!the\b|this\b|it\b|of\b|that\b)")
_ABBREVIATED = re.compile(r"\. (?!(?:because|since|as|this|the|it|due)\b)[a-z]")
_CONNECTED = re.compile(r"(?:^|[,:]\s|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|that|and|making)\s)$")
_IS_CHOSEN = re.compile(r"\s(?:is|would be|seems|remains)\s(?:the\s)?(?:most|best|correct|right|answer)\b")
_JOINED = re.compile(r"[\"'”’*).,\s]{0,6}(?:and|or|and/or|&|/)\s{0,2}")


def _fold(text: str) -> str:
    """The text's words and signs, case and punctuation gone, with a space on both sides of each."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


@dataclass(frozen=True)
class _Reader:
    """What the rules need to know of one set of options."""

    letter: re.Pattern[str]
    mark: re.Pattern[str]
    lone: re.Pattern[str]
    opening: re.Pattern[str]
    open: re.Pattern[str]
    second: re.Pattern[str]
    small: re.Pattern[str]
    texts: tuple[tuple[str, str], ...]  # (folded text, letter), longest first; ambiguous texts left out
    first_words: frozenset[str]
    reach: int

    def text_at(self, text: str, at: int) -> tuple[str, int] | None:
        """The letter of the option whose text begins at a position, and where that text ends."""
        word = _WORD.search(text, at, at + 60)
        if word is None or word.start() > at + 12 or word[0].casefold() not in self.first_words:
            return None
        words = list(_WORD.finditer(text, at, at + self.reach))
        here = f" {' '.join(word[0].casefold() for word in words)} "
        for option, letter in self.texts:
            if here.startswith(option):
                return letter, words[len(option.split()) - 1].end()
        return None

    def value_at(self, text: str, at: int) -> str | None:
        """The letter that is stated at a position, as a letter, as an option's text, or as both; "" for two letters."""
        at = self.open.match(text, at).end()
        label = None
        if (named := self.text_at(text, at)) is None:
            if (label := self.letter.match(text, at)) is None:
                small = self.small.match(text, at)
                return small["letter"].upper() if small else None
            named = self.text_at(text, label.end())
        letter, end = named or (label["letter"], label.end())
        if _TAKEN_BACK.match(text, end):
            return None
        second = self.second.match(text, end)
        if second and second["letter"] != letter:
            return ""
        # "A patient", "I think", "E. coli"
        if named is None and ((letter in "AI" and _PROSE.match(text, end)) or _ABBREVIATED.match(text, end)):
            return None
        return letter

    def named_in(self, text: str) -> list[str]:
        """The letters of the options whose text stands in a text; a text inside a longer one does not count."""
        folded, named = _fold(text), []
        for option, letter in self.texts:
            if option in folded:
                named.append(letter)
                folded = folded.replace(option, " \0 ")
        return named


@lru_cache(maxsize=64)
def _patterns(letters: str) -> dict[str, re.Pattern[str]]:
    letter = rf"(?P<letter>[{letters}])(?![\w’]|'\w|-\w)"
    return {
        "letter": re.compile(letter),
        "second": re.compile(
            rf"[\s\"'”’*).,]{{0,4}}(?:(?:and|or|and/or|,)\s|[/&])[\s\"'“‘*(]{{0,4}}(?:option )?{letter}"
        ),
        # "answer: b"
        "small": re.compile(rf"(?P<letter>[{letters.lower()}])[\s.)\]}}\"'*]{{0,6}}(?:\n|\Z)"),
        "mark": re.compile(
            r"(?:(?i:\b(?:option|choice|letter|answer)\s)[\"'“‘*(]{0,4}|(?P<open>[\"'“‘*(\[]{1,4})|(?P<bare>(?<![\w.-])))"
            rf"{letter}(?P<close>[\"'”’*)\]:.]{{0,6}})"
        ),
        "lone": re.compile(rf"^[\s*_\"'(\[{{#>$]{{0,8}}{letter}[\s*_\"')\]}}.,:!$]{{0,8}}$", re.MULTILINE),
        "opening": re.compile(rf"[\s*_\"'(\[:]{{0,8}}{letter}\*{{0,2}}(?:[):]|\.(?!\s[a-z]))"),
        "open": re.compile(_OPEN),
    }


@lru_cache(maxsize=4096)
def _reader(options: tuple[tuple[str, str], ...]) -> _Reader:
    owners: dict[str, list[str]] = {}
    for letter, text in options:
        owners.setdefault(_fold(text), []).append(letter)
    texts = [
        (text, letters[0])
        for text, letters in owners.items()
        # A text such as "B" is not told from a letter.
        if len(letters) == 1 and text.strip() and text.strip().upper() not in dict(options)
    ]
    texts.sort(key=lambda option: -len(option[0]))
    return _Reader(
        **_patterns("".join(letter for letter, _ in options)),
        texts=tuple(texts),
        first_words=frozenset(text.split()[0] for text, _ in texts),
        reach=max((len(text) for _, text in options), default=0) + 40,
    )


def _final(response: str) -> tuple[str, bool]:
    """What the model tells the user, and whether it does: False where its thinking has no end."""
    at = max((found + len(mark) for mark in _FINAL if (found := response.rfind(mark)) >= 0), default=0)
    final, told = response[at:].strip(), True
    if not final:
        final, told = response, False
    elif at == 0:
        told = not response.lstrip().startswith(_THINKING)
    return (final if len(final) <= _HEAD + _TAIL else f"{final[:_HEAD]}\n{final[-_TAIL:]}"), told


def _claims(final: str, reader: _Reader) -> Iterator[tuple[str, str, int]]:
    """(letter, rule, position) of each stated answer, "" for one that names two letters."""
    for claim in _CLAIM.finditer(final):
        letter = reader.value_at(final, claim.end())
        if letter is None and (filler := _FILLER.match(final, reader.open.match(final, claim.end()).end())):
            letter = reader.value_at(final, filler.end())
        if letter is not None:
            yield letter, claim.lastgroup or "stated", claim.end()


def _lone(final: str, reader: _Reader) -> str | None:
    lines = reader.lone.findall(final)
    if lines:
        return lines[-1]
    opening = reader.opening.match(final)
    if opening is None:
        return None
    named = reader.text_at(final, opening.end())
    return named[0] if named else opening["letter"]


def _labels(final: str, reader: _Reader) -> Iterator[tuple[str, bool]]:
    """(letter, chosen) of each marked letter that is not passed over, "" for two joined by "and" or "or".

    ``chosen``: the letter's sentence makes a choice.
    """
    for sentence in _SENTENCE.split(final):
        cue = _CHOOSES.search(sentence)
        cued_from = cue.start() if cue else len(sentence)
        last, last_end = "", 0
        for label in reader.mark.finditer(sentence):
            start, end = label.span()
            named = reader.text_at(sentence, end)
            if label["bare"] is not None and not named:
                opens = ":" in label["close"] and not sentence[:start].strip()
                judged = _IS_CHOSEN.match(sentence, end) and _CONNECTED.search(sentence, max(0, start - 20), start)
                if not opens and not judged:
                    continue
            if label["open"] and not label["close"]:  # 'A brief trial of ...'
                continue
            letter, end = named or (label["letter"], end)
            if _PASSED.search(sentence, max(0, start - 80), start) or _TAKEN_BACK.match(sentence, end):
                continue
            joined = last not in ("", letter) and _JOINED.fullmatch(sentence, last_end, start)
            yield "" if joined else letter, start >= cued_from or bool(_CHOSEN.match(sentence, end))
            last, last_end = letter, end


def _labelled(final: str, reader: _Reader) -> str | None:
    labels = list(_labels(final, reader))
    if chosen := [letter for letter, chooses in labels if chooses]:
        return chosen[-1]
    letters = {letter for letter, _ in labels}
    return letters.pop() if len(letters) == 1 else None


def _named(final: str, reader: _Reader) -> str | None:
    chosen = [
        named[0]
        for sentence in _SENTENCE.split(final)
        if _CHOOSES.search(sentence) and len(named := reader.named_in(_PASSED_CLAUSE.sub("", sentence))) == 1
    ]
    if chosen:
        return chosen[-1]
    everywhere = reader.named_in(final)
    return everywhere[0] if len(everywhere) == 1 else None


def extract_answer(response: str, options: Mapping[str, str]) -> Answer:
    """The option a response chooses.

    Args:
        response: the whole text a model wrote; where its thinking is marked, what follows the thinking is read, and of
            a thinking without an end only an answer that is stated in so many words.
        options: letter -> text, letters A to Z.

    Returns:
        The letter (always one of ``options``) and the rule that read it; ``Answer(None, "none")`` where the response
        chooses nothing, ``Answer(None, "several")`` where its choice names two letters. Never raises.
    """
    lettered = tuple((letter, text) for letter, text in options.items() if len(letter) == 1 and letter in LETTERS)
    if not lettered:
        return Answer(None, "none")
    reader = _reader(lettered)
    final, told = _final(response)
    claims = list(_claims(final, reader))
    if claims:
        letter, rule, at = claims[-1]
        if letter:
            return Answer(letter, rule)
        # "The answer is A or C. ... However, the most likely is C."
        settled = [label for label, chosen in _labels(final[at:], reader) if chosen and label]
        return Answer(settled[-1], "label") if settled else Answer(None, "several")
    if told:
        for rule, read in (("lone", _lone), ("label", _labelled), ("text", _named)):
            if (found := read(final, reader)) is not None:
                return Answer(found, rule) if found else Answer(None, "several")
    return Answer(None, "none")
