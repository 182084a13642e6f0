r"""Reads the chosen letter from a response, by rules alone: no model, no randomness, linear time.

What the model tells the user is read, never its thinking. The rules, strongest first (ours):

1. ``json``, ``boxed``, ``stated``: "answer": "B", \boxed{B}, "Answer: B", "the answer is ... B"; the last one stands.
2. ``lone``: a line that is a letter and nothing else, or the text's beginning with "B." or "B)".
3. ``label``: a marked letter (**B**, 'B', (B), option B, "B: its text") in a sentence that chooses, else the only one.
4. ``text``: an option's text in a sentence that chooses, else the only option that is named at all; ``misspelled``: a
   text that is nearly one option's, in a sentence that chooses.

Where letter and exact text disagree, the text is what the model meant: ``conflict``. Each rule looks for a few rare
words or for capitals that stand alone, and reads around them from the end: this is what makes it fast.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from medrefl_utils.core.records import LETTERS, Answer

# What reasoning models write before and between their thinking and what they tell the user.
_THINKING = ("<think>", "<thinking>", "## Thinking", "<|begin_of_thought|>")
# The marks before a final response; those with "#" may stand in any heading. A conclusion is read first, not alone.
_FINAL = (
    ("<", ("</think>", "</thinking>", "<|end_of_thought|>", "<|begin_of_solution|>")),
    ("#", ("# Final Response", "# Final Answer")),
)
_CONCLUSION = (("#", ("# Conclusion", "# Answer", "# Solution")),)
# A final response is short; the middle of a longer one is a model in a loop, and is not read.
_HEAD, _TAIL = 4_000, 8_000

_OPEN = re.compile(r"[\s\"'“‘`*_(\[{<$\\:]{0,8}")
_FILLER = re.compile(
    r"(?:(?:the|(?-i:an?)|most|likely|probably|best|correct|right|final|answer|option|choice|letter|is|be|would|indeed|"
    r"definitely|clearly|closest|therefore|thus|so|text|textbf|mathbf|mathrm|boxed|given|not\s(?-i:[A-Z]),?\sbut)\b"
    r"[\s\"'“”‘’`*_(\[{:,\\]{1,6}){1,8}",
    re.IGNORECASE,
)
# The words that a claim begins with; what stands before and after each is matched in lower case.
_VALUED = ("answer", "option", "choice", "letter")
_CLAIM_WORDS = (*_VALUED, "boxed", "fbox", "choose", "select", "pick", "o with", "ing with", "ans:", "final:")
_BOXED = re.compile(r"(?<=\\)(?:boxed|fbox)\s?\{")
_CHOOSE = re.compile(
    r"(?:(?<!\w)(?:choose|select|pick)|(?<=\bg)o with|(?<=\bgo)ing with)\b(?<!not choose)(?<!n't choose)(?<!not select)"
    r"(?<!n't select)(?<!not pick)(?<!n't pick)(?<!not go with)(?<!n't go with)"
)
_KEY_HEAD = re.compile(r"[\"'“](?:\w{1,20}[ _])?\Z")
_KEY_TAIL = re.compile(r"\w{6}(?:_idx|_letter|_choice|_option)?[\"'”]\s{0,4}[:=]")
_RANKED_HEAD = re.compile(r"(?<!\w)(?:correct|best|right|final|appropriate|closest|suitable|likely)\s\Z")
_STATED_TAIL = re.compile(
    r"\w{6}\b(?:,?\s(?!is\b)[\w'’-]{1,24}){0,10}?(?:,?\s(?:is|be)\b|[\"'”*_\s]{0,4}(?:[:=]|[-–—]\s))|(?<=<)answer>"
)
_MOST = "appropriate|probable|suitable|consistent|accurate|relevant|important|common|plausible|effective|useful|helpful"
_CHOOSES = re.compile(
    rf"\b(?:answer|(?:most|more) (?:likely|probably|closely|directly|significant|expected|{_MOST})|best|correct|"
    r"closest|therefore|thus|so,|hence|choose|chosen|choice|would be|should be|is likely|suggests?|indicates?|"
    r"consistent with)\b"
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
# A sentence's last character, or the line feeds after one. "is: E. Citalopram" is one sentence, and so is "The answer
# is:" with the line that follows it.
_SENTENCE_END = re.compile(
    r"[.!?\n](?:(?<=[^:\n ]\n)\n*|(?<!\n)(?:(?<!\W[A-Z]\.)|(?<=ption [A-Z]\.)|(?<=hoice [A-Z]\.))"
    r"[\"'”’*]{0,3}\s+(?=[A-Z\"'“‘*{(]))"
)
_WORD = re.compile(r"[^\W_]+|[<>=+%↑↓≥≤±/]")
_PROSE = re.compile(r" [a-z]{2,24} (?!the\b|this\b|it\b|of\b|that\b)")
_ABBREVIATED = re.compile(r"\. (?!(?:because|since|as|this|the|it|due)\b)[a-z]")
_CONNECTED = re.compile(r"(?:^|[,:]\s|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore|that|and|making)\s)$")
_IS_CHOSEN = re.compile(r"\s(?:is|would be|seems|remains)\s(?:the\s)?(?:most|best|correct|right|answer)\b")
# "Hence C.", "It must be D": the last words.
_POINTED = re.compile(r"\b(?:is|be|it['’]s|remains|hence|therefore|thus|so)\s([A-Z])[.!\s]{0,3}\Z", re.IGNORECASE)
_JOINED = re.compile(r"[\"'”’*).,\s]{0,6}(?:and|or|and/or|&|/)\s{0,2}")
_NAMED_HEAD = re.compile(r"\b(?:option|choice|letter|answer)\s[\"'“‘*(]{0,4}\Z", re.IGNORECASE)
_MARKS = "\"'“‘*(["
_MARK_HEAD = re.compile(r"[\"'“‘*(\[]{1,4}\Z")
_MARK_TAIL = re.compile(r"[\"'”’*)\]:.]{0,6}")
_LINE = re.compile(r"[\s*_\"'(\[{#>$✅✔→]{0,8}[A-Z][\s*_\"')\]}.,:!$]{0,8}\Z")


@dataclass(frozen=True)
class _Found:
    """What a rule read: the letter that is meant ("": two are named) and the letter that is written, if one is."""

    letter: str
    written: str | None = None


def _fold(text: str) -> str:
    """The text's words and signs, case and punctuation gone, with a space on both sides of each."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _lower(text: str) -> str:
    """The text in lower case, position by position."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


@dataclass(frozen=True)
class _Reader:
    """What the rules need to know of one set of options."""

    letters: str
    alone: re.Pattern[str]
    second: re.Pattern[str]
    small: re.Pattern[str]
    opening: re.Pattern[str]
    texts: tuple[tuple[str, str], ...]  # (folded text, letter), longest first; ambiguous texts left out
    by_first: Mapping[str, tuple[tuple[list[str], str], ...]]  # first word -> (words, letter), longest first

    def text_at(self, text: str, at: int) -> tuple[str, int] | None:
        """The letter of the option whose text begins at a position, and where that text ends."""
        first = _WORD.search(text, at, at + 60)
        if first is None or first.start() > at + 12:
            return None
        for words, letter in self.by_first.get(first[0].casefold(), ()):
            here = list(islice(_WORD.finditer(text, first.start()), len(words)))
            if [word[0].casefold() for word in here] == words:
                return letter, here[-1].end()
        return None

    def alone_in(self, text: str) -> list[int]:
        """Where letters stand alone, in order. One search a letter is several times faster than one of all letters."""
        found = []
        for letter in self.letters:
            at = text.find(letter)
            while at >= 0:
                if self.alone.match(text, at):
                    found.append(at)
                at = text.find(letter, at + 1)
        return sorted(found)

    def value_at(self, text: str, at: int) -> _Found | None:
        """What is stated at a position: a letter, an option's text, or both."""
        at = _OPEN.match(text, at).end()
        written = None
        if (named := self.text_at(text, at)) is None:
            if (label := self.alone.match(text, at)) is None:
                small = self.small.match(text, at)
                return _Found(small["letter"].upper(), small["letter"].upper()) if small else None
            written = label[0]
            named = self.text_at(text, label.end())
        letter, end = named or (written, label.end())
        if _TAKEN_BACK.match(text, end):
            return None
        second = self.second.match(text, end)
        if second and second["letter"] != letter:
            return _Found("", written)
        # "A patient", "I think", "E. coli"
        if named is None and ((letter in "AI" and _PROSE.match(text, end)) or _ABBREVIATED.match(text, end)):
            return None
        return _Found(letter, written)

    def named_in(self, text: str) -> list[str]:
        """The letters of the options whose text stands in a text; a text inside a longer one does not count."""
        folded, named = _fold(text), []
        for option, letter in self.texts:
            if option in folded:
                named.append(letter)
                folded = folded.replace(option, " \0 ")
        return named

    def nearly(self, text: str) -> set[str]:
        """The letters of the options (6 signs and more) that a text spells with a slip or two."""
        words, found = _fold(text).split(), set()
        for option, letter in self.texts:
            if len(option) < 8 or len(words) < (n := len(option.split())):
                continue
            matcher = difflib.SequenceMatcher(None, "", option.strip(), autojunk=False)
            for i in range(len(words) - n + 1):
                matcher.set_seq1(" ".join(words[i : i + n]))
                if min(matcher.real_quick_ratio(), matcher.quick_ratio()) > 0.85 and matcher.ratio() > 0.85:
                    found.add(letter)
                    break
        return found


@lru_cache(maxsize=64)
def _patterns(letters: str) -> dict[str, re.Pattern[str]]:
    letter = rf"(?P<letter>[{letters}])(?![\w’]|'\w|-\w)"
    return {
        "alone": re.compile(rf"(?<![\w.-]){letter}"),
        "second": re.compile(
            rf"(?:[\s\"'”’*).,]{{0,4}}(?:(?:and|or|and/or|,)\s|[/&])|[\"'”’]\s?,)[\s\"'“‘*(]{{0,4}}(?:option )?{letter}"
        ),
        # "answer: b"
        "small": re.compile(rf"(?P<letter>[{letters.lower()}])[\s.)\]}}\"'*]{{0,6}}(?:\n|\Z)"),
        "opening": re.compile(rf"[\s*_\"'(\[:]{{0,8}}{letter}\*{{0,2}}(?:[):]|\.(?!\s[a-z]))"),
    }


@lru_cache(maxsize=4096)
def _reader(options: tuple[tuple[str, str], ...]) -> _Reader | None:
    options = tuple((letter, text) for letter, text in options if len(letter) == 1 and letter in LETTERS)
    if not options:
        return None
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
    by_first: dict[str, list[tuple[list[str], str]]] = {}
    for text, letter in texts:
        words = text.split()
        by_first.setdefault(words[0], []).append((words, letter))
    letters = "".join(letter for letter, _ in options)
    return _Reader(
        letters,
        **_patterns(letters),
        texts=tuple(texts),
        by_first={first: tuple(found) for first, found in by_first.items()},
    )


def _after(text: str, marks: tuple[tuple[str, tuple[str, ...]], ...]) -> int:
    """Where the last of the marks ends, 0 without one; a mark is looked for where its first sign occurs."""
    ends = (at + len(m) for sign, of_sign in marks if sign in text for m in of_sign if (at := text.rfind(m)) >= 0)
    return max(ends, default=0)


def _finals(response: str) -> Iterator[tuple[str, bool]]:
    """(What the model tells the user, whether it does), narrowest first; False where its thinking has no end."""
    final, told = response[_after(response, _FINAL) :].strip(), True
    if not final:
        final, told = response, False
    elif len(final) >= len(response.strip()):
        told = not final.startswith(_THINKING)
    final = final if len(final) <= _HEAD + _TAIL else f"{final[:_HEAD]}\n{final[-_TAIL:]}"
    if told and (at := _after(final, _CONCLUSION)) and final[at:].strip():
        yield final[at:].strip(), True
    yield final, told


def _claims(final: str, low: str, reader: _Reader) -> Iterator[tuple[_Found, str, int]]:
    """(What is stated, rule, position) of each stated answer, last one first."""
    at = {word: found for word in _CLAIM_WORDS if (found := low.rfind(word)) >= 0}
    while at:
        word = max(at, key=at.get)
        start = at[word]
        rule, end = _claim(low, word, start)
        if rule:
            found = reader.value_at(final, end)
            if found is None and (filler := _FILLER.match(final, _OPEN.match(final, end).end())):
                found = reader.value_at(final, filler.end())
            if found is not None:
                yield found, rule, end
        at[word] = low.rfind(word, 0, start)
        if at[word] < 0:
            del at[word]


def _claim(low: str, word: str, at: int) -> tuple[str, int]:
    """The rule of the claim whose word stands at a position, and where its value begins; ("", 0) for other words."""
    if word in ("boxed", "fbox"):
        claim = _BOXED.match(low, at)
        return ("boxed", claim.end()) if claim else ("", 0)
    if word in ("ans:", "final:"):
        return ("", 0) if low[at - 1 : at].isalnum() else ("stated", at + len(word))
    if word not in _VALUED:
        claim = _CHOOSE.match(low, at)
        return ("stated", claim.end()) if claim else ("", 0)
    if (key := _KEY_TAIL.match(low, at)) and _KEY_HEAD.search(low, max(0, at - 23), at):
        return "json", key.end()
    if low[at - 1 : at].isalnum() or (word != "answer" and not _RANKED_HEAD.search(low, max(0, at - 14), at)):
        return "", 0
    claim = _STATED_TAIL.match(low, at)
    return ("stated", claim.end()) if claim else ("", 0)


def _lone(final: str, letters: list[int], reader: _Reader) -> _Found | None:
    for at in reversed(letters):
        begin, end = final.rfind("\n", 0, at) + 1, final.find("\n", at)
        end = len(final) if end < 0 else end
        if end - begin <= 17 and _LINE.match(final, begin, end):
            return _Found(final[at], final[at])
    opening = reader.opening.match(final)
    if opening is None:
        return None
    named = reader.text_at(final, opening.end())
    return _Found(named[0] if named else opening["letter"], opening["letter"])


def _labels(final: str, low: str, letters: list[int], reader: _Reader) -> Iterator[tuple[_Found, bool]]:
    """(Label, chosen) of each marked letter that is not passed over, last one first.

    Two letters joined by "and" or "or" are "". ``chosen``: the letter's sentence makes a choice.
    """
    letters = [at for at in letters if _may_mark(final, at, reader)]
    while letters:
        begin, stop = _sentence_at(final, letters[-1])
        first = bisect_left(letters, begin)
        yield from reversed(list(_labels_of(final, low, begin, stop, letters[first:], reader)))
        letters = letters[:first]


def _may_mark(final: str, at: int, reader: _Reader) -> bool:
    """Whether a letter could be a label: a look at its neighbours spares most letters the look at their sentence."""
    if (at and final[at - 1] in _MARKS) or _NAMED_HEAD.search(final, max(0, at - 14), at):
        return True
    end = _MARK_TAIL.match(final, at + 1).end()
    return ":" in final[at + 1 : end] or bool(_IS_CHOSEN.match(final, end)) or reader.text_at(final, end) is not None


def _sentence_at(final: str, at: int) -> tuple[int, int]:
    """Begin and end of the sentence around a position; nearby first, since most sentences are short."""
    begin = 0
    for low in (max(0, at - 300), 0):
        ends = [end.end() for end in _SENTENCE_END.finditer(final, low, at + 1) if end.end() <= at]
        if ends:
            begin = ends[-1]
            break
    end = _SENTENCE_END.search(final, at)
    return begin, end.end() if end else len(final)


def _labels_of(
    final: str, low: str, begin: int, stop: int, letters: list[int], reader: _Reader
) -> Iterator[tuple[_Found, bool]]:
    """The labels of one sentence, in order."""
    sentence, cued_from = final[begin:stop], -1
    last, last_end, done = "", 0, 0
    for at in (at - begin for at in letters):
        if at < done:  # inside the text of the option before it
            continue
        head = _NAMED_HEAD.search(sentence, max(done, at - 14), at)
        head = head or _MARK_HEAD.search(sentence, max(done, at - 4), at)
        start, close = head.start() if head else at, _MARK_TAIL.match(sentence, at + 1)[0]
        end = at + 1 + len(close)
        named = reader.text_at(sentence, end)
        if head is None and not named:
            opens = ":" in close and not sentence[:start].strip()
            judged = _IS_CHOSEN.match(sentence, end) and _CONNECTED.search(sentence, max(0, start - 20), start)
            if not opens and not judged:
                continue
        if head and not close and not head[0][0].isalpha():  # 'A brief trial of ...'
            continue
        letter, done = named or (sentence[at], end)
        if _PASSED.search(sentence, max(0, start - 80), start) or _TAKEN_BACK.match(sentence, done):
            continue
        if cued_from < 0:
            cue = _CHOOSES.search(low, begin, stop)
            cued_from = cue.start() - begin if cue else len(sentence)
        joined = last not in ("", letter) and _JOINED.fullmatch(sentence, last_end, start)
        yield (
            _Found("" if joined else letter, sentence[at]),
            start >= cued_from or bool(_CHOSEN.match(sentence, done)),
        )
        last, last_end = letter, done


def _labelled(final: str, low: str, letters: list[int], reader: _Reader) -> _Found | None:
    seen: dict[str, _Found] = {}
    for label, chosen in _labels(final, low, letters, reader):
        if chosen:
            return label
        seen[label.letter] = label
    return seen.popitem()[1] if len(seen) == 1 else None


def _sentences(final: str) -> Iterator[str]:
    begin = 0
    for end in _SENTENCE_END.finditer(final):
        yield final[begin : end.end()]
        begin = end.end()
    yield final[begin:]


def _choosing(final: str) -> Iterator[str]:
    """The sentences that choose, without what they pass over; last one first."""
    for sentence in reversed(list(_sentences(final))):
        if _CHOOSES.search(_lower(sentence)):
            yield _PASSED_CLAUSE.sub("", sentence)


def _named(final: str, reader: _Reader) -> tuple[_Found, str] | None:
    for sentence in _choosing(final):
        if len(named := reader.named_in(sentence)) == 1:
            return _Found(named[0]), "text"
    if everywhere := reader.named_in(final):
        return (_Found(everywhere[0]), "text") if len(everywhere) == 1 else None
    for sentence in islice(_choosing(final), 5):
        if len(near := reader.nearly(sentence[-400:])) == 1:
            return _Found(near.pop()), "misspelled"
    return None


def _meant(found: _Found, final: str, low: str, options: Mapping[str, str], reader: _Reader) -> str:
    """The letter that a bare letter stands for: another one's where only that one's exact text is chosen in words.

    "The mediator is IL-4. Answer: D", where E is IL-4 and no word of D's text occurs.
    """
    letter = found.letter
    if found.written != letter or options[letter].strip().lower() in low:
        return letter
    others = [other for other, text in options.items() if other != letter and text.strip().lower() in low]
    if len(others) != 1 or any(final[at] == others[0] for at in reader.alone_in(final)):
        return letter
    theirs = set(_fold(options[others[0]]).split())
    if any(len(word) > 3 and word in low for word in set(_fold(options[letter]).split()) - theirs):
        return letter
    return others[0] if any(reader.named_in(sentence) == others for sentence in _choosing(final)) else letter


def _read(final: str, low: str, told: bool, reader: _Reader) -> tuple[_Found, str] | None:
    claim = next(_claims(final, low, reader), None)
    if claim:
        found, rule, at = claim
        if found.letter:
            return found, rule
        # "The answer is A or C. ... However, the most likely is C."
        rest, low = final[at:], low[at:]
        labels = _labels(rest, low, reader.alone_in(rest), reader)
        settled = next((label for label, chosen in labels if chosen and label.letter), None)
        return (settled, "label") if settled else (found, "several")
    if not told:
        return None
    if letters := reader.alone_in(final):
        if found := _lone(final, letters, reader):
            return found, "lone"
        if found := _labelled(final, low, letters, reader):
            return found, "label"
        pointed = _POINTED.search(final, max(0, letters[-1] - 12))
        if pointed and pointed.start(1) == letters[-1]:
            return _Found(pointed[1], pointed[1]), "label"
    return _named(final, reader)


def extract_answer(response: str, options: Mapping[str, str]) -> Answer:
    """The option a response chooses.

    Args:
        response: the whole text a model wrote; where its thinking is marked, what follows the thinking is read, and of
            a thinking without an end only an answer that is stated in so many words.
        options: letter -> text, letters A to Z.

    Returns:
        The letter (always one of ``options``), the rule that read it, the letter as written and whether it is another
        option's than the text beside it; ``Answer(None, "none")`` where the response chooses nothing,
        ``Answer(None, "several")`` where its choice names two letters. Never raises.
    """
    reader = _reader(tuple(options.items()))
    if reader is None:
        return Answer(None, "none")
    for final, told in _finals(response):
        low = _lower(final)
        if (read := _read(final, low, told, reader)) is None:
            continue
        found, rule = read
        if not found.letter:
            return Answer(None, "several", found.written)
        letter = _meant(found, final, low, options, reader)
        return Answer(letter, rule, found.written, found.written not in (None, letter))
    return Answer(None, "none")
