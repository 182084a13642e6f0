"""Recognize one question's options in a text: a letter, an option's text, or several options joined.

``Options.value_at`` reads what is written at one position. It returns None where a capital letter is an article
("A statin"), a pronoun ("I think"), a genus ("E. coli"), a name's initial ("A. B. is 40") or a formula ("H = 3"), and
where a number only begins like an option ("2.5", "10,000", "L4-L5").
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from medrefl_utils.exam.answers.words import AFTER_ARTICLE, AFTER_PRONOUN, EPITHETS, GOES_ON

# A number with its sign, separators and range is one token: "-2", "1,000", "2-4", "L4/L5", "25%".
TOKEN = re.compile(
    r"(?:(?<![\w)\]%])[-−](?=\.?\d))?(?:[^\W\d_]*+\d[^\W_]*+(?:[.,:/–−-][^\W\d_]*+\d[^\W_]*+)*+|\.\d++)%?"
    r"|[^\W_]++|[<>=+%↑↓≥≤±/]"
)
_FIRST = re.compile(r"[^\W_]|[-−](?=\.?\d)|\.(?=\d)|[<>=+%↑↓≥≤±/]")
_ENDS = re.compile(r"[.!?;]\s")
_DIGIT = re.compile(r"\d")
_THOUSANDS = re.compile(r"[-−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?")
# Signs that may precede a value: blanks, quotes, Markdown, brackets, LaTeX.
OPEN = re.compile(
    r"(?:[\s\"'“‘`*_(\[{<$:：>=「『《•✅✔→➡∴⇒#|]|-(?!\.?\d)|\\(?:textbf|textit|text|mathbf|mathrm|boxed|fbox|bf|rm|,|\(|"
    r"\[|!|;|\")){0,12}+"
)
_CLOSE = re.compile(r"[\s\"'”’`*_)\]}.:：,\-–—>|」』》$\\]{0,12}")
# Letters that may not touch an option's letter. Chinese, Japanese, Korean, Thai, Arabic and Hindi letters may.
_TOUCHING = r"0-9A-Za-z_\u00aa-\u02af\u0370-\u052f"
_SMALL_BEHIND = re.compile(r"[a-z]")
_WORD_AFTER = re.compile(r"[ \t]+([^\W\d_]+)")
_INITIAL = re.compile(r"\.\s?[A-Z]\.")
_SPECIES = re.compile(r"\.?\s([a-z]{3,})")
_FORMULA = re.compile(r"\s?(?:[=>≥≤≈±×]\s?[\d\\.-]|\^|<(?![/|]))|\s?[+]\s?\d")
_ARTICLE_NUMBER = re.compile(r"[ \t]\d")
_BEST_VERB = re.compile(r"[ \t]+best\s(?:matches|fits|explains|describes|answers|represents|accounts)\b")
_PART_OF_MORE = re.compile(r"[-–/]\w|[.,:]\d|%")
_JOIN = re.compile(
    r"[\s\"'”’*)\].]{0,6}(?P<join>→\s?|->\s?|[,;、/&+|=]\s{0,2}(?:possibly|maybe|perhaps|then|and/or|and|or|und|oder|"
    r"y|o|et|ou|e|"
    r"и|или|أو|و|或|和)?|(?:and/or|and|or|nor|plus|then|followed by|through|to|vs\.?|versus|"
    r"und|oder|y|o|et|ou|e|и|или|أو|و|या|और|หรือ|และ|và|hoặc|ve|veya|ya da)"
    r"(?=[\s\"'*(])|와|과|또는|및|이나|나|と|や|または|か|"
    r"或者|或|和|与|與|及)[\s\"'“‘*(\[]{0,5}(?:(?:option|choice|letter|either|both|maybe|perhaps|"
    r"possibly)\s)?[\s\"'“‘*(\[]{0,3}"
)
_OR = re.compile(
    r"or\b|to\b|through|→|->|=|vs|versus|\||nor|oder|\bo\b|\bu\b|\bou\b|или|أو|या|หรือ|hoặc|veya|ya da|또는|이나|나|"
    r"または|か|"
    r"或|/"
)
_OWN_CLAUSE = re.compile(
    r"[\s\"'”’*).]{0,5}\s(?:is|are|was|were|being|would|can|cannot|could|does|do|did|has|have|may|might|because|will|"
    r"acts?|"
    r"causes?)\b"
)
_DENIED_CLAUSE = re.compile(
    r"[\s\"'”’*).]{0,5}\s(?:is|would be|was)\s(?:not|wrong|incorrect|ruled|excluded|less|unlikely)\b"
)
TAKEN_BACK = re.compile(
    r"[^.,;:\n]{0,60}?\s(?:(?:is|are|was|would be|seems?|can be|could be)\s(?:also\s|clearly\s|definitely\s)?(?:not|"
    r"incorrect|wrong|"
    r"less|unlikely|excluded|eliminated|ruled|false|tempting)|isn['’]t|wouldn['’]t|does\snot|doesn['’]t|would\snot|"
    r"cannot|can['’]t)\b",
    re.IGNORECASE,
)
_BOUND = re.compile(r"[<>≥≤]\s?\Z")
_NUMERAL = re.compile(r"[ivxlc]+[a-e]?|.*\d.*")
_EVERY = re.compile(
    r"(?:all|each|every one) of (?:the above|these|those|them|the (?:options|choices|answers))|all (?:the )?above", re.I
)
_NO_ONE = re.compile(
    r"none(?: of (?:the above|(?:the|these|those) (?:options|choices|answers)|these|those|them))?|"
    r"no(?:ne)? (?:of )?the above",
    re.I,
)
_ALL = re.compile(r"all(?=[.!\s*]*(?:\Z|\n))", re.I)
_PHRASE_ENDS = re.compile(r"\s*(?:[.!,;:)*\"'\n}\]]|\Z|\s(?:are|is|apply|applies|were|fits?|matches|match)\b)")
_BOTH = re.compile(r"(?:both\s)?\(?([A-Z])\)?(?:\s?(?:,|and|&|\+)\s?\(?([A-Z])\)?)+(?:\s(?:only|are correct))?", re.I)
_ALL_TWO = re.compile(r"both(?: of (?:the above|these|them))?", re.I)
_ORDER = re.compile(
    r"(?:Perform|Obtain|Order|Start|Give|Administer|Begin|Initiate|Prescribe|Add|Recommend|Do|Schedule|Request|Arrange|"
    r"Insert|Place)\s(?:an?\s|the\s)?([^,;]+)",
    re.I,
)
_PREPOSITION = re.compile(r"([^,;()]+?)\s(?:of|in|with|for|from|by|to)\s")
_NUMBER_LIST = re.compile(r"(?:[IVX]+|\d)(?:,\s?(?:[IVX]+|\d))*,?\s(?:and|&)\s(?:[IVX]+|\d)(?: only)?")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_SMALL_NUMBER = re.compile(r"(?<![\w.,/-])(?:[1-9]|1[0-2])(?=\s[a-z])")
_BRACKETED = re.compile(r"[\s*_\"']{0,3}[(\[]\s?(?:[Oo]ption\s|[Cc]hoice\s)?([A-Z])[)\]]")
_UNSPACED = re.compile(r"[\u0600-\u06ff\u0900-\u0dff\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Value(NamedTuple):
    """What is written at a position: the letter that is meant ("": several), the letter as written, and its end."""

    letter: str
    written: str | None
    end: int


def _normal(token: str) -> str:
    token = token.casefold().replace("−", "-")
    if "," in token and _THOUSANDS.fullmatch(token):
        token = token.replace(",", "")
    return f"0{token}" if token.startswith(".") else token


def _bounded(folded: str, option: str) -> int:
    """Count how often a text names an option as a bound or a part of a ratio ("> 20", "5 mg/kg"), and so not itself."""
    if not option[1].isdigit():
        return 0
    return folded.count(f"{option}/ ") + sum(folded.count(f" {sign}{option}") for sign in "<>≥≤")


def fold(text: str) -> str:
    """Return the text's tokens in lower case without punctuation, with a space on both sides of each."""
    tokens = TOKEN.findall(text.casefold())
    return f" {' '.join(map(_normal, tokens) if _DIGIT.search(text) else tokens)} "


@dataclass(frozen=True)
class Options:
    """One question's options, prepared for reading."""

    letters: str
    alone: re.Pattern[str]
    small: re.Pattern[str]
    texts: tuple[tuple[str, str], ...]  # (folded text, letter), longest first; ambiguous texts left out
    by_first: Mapping[str, tuple[tuple[list[str], str], ...]]  # first token -> (tokens, letter), longest first
    exact: Mapping[str, tuple[tuple[str, str], ...]]  # first character -> (text as given, letter), longest first
    initials: frozenset[str]  # first characters of the texts: most positions need no further look
    begins: frozenset[str]  # first two characters of the texts
    unspaced: tuple[tuple[str, str], ...]  # (text of a script without word boundaries, letter), longest first
    raw: tuple[tuple[str, str], ...]  # (text as given, letter)
    short_names: tuple[tuple[str, str], ...]  # (folded name that counts only where an answer stands, letter)
    joint: Mapping[frozenset[str], str]  # letters -> the option that says them ("Both A and B")
    every: str  # the letter of "All of the above", or ""
    no_one: str  # the letter of "None of the above", or ""

    def text_at(self, text: str, at: int) -> tuple[str, int] | None:
        """Return the letter of the option whose text begins at a position, and where that text ends."""
        for option, letter in self.unspaced:
            if text.startswith(option, at):
                return letter, at + len(option)
        begun = text[at : at + 2]
        if begun.isascii() and begun.isalpha() and len(begun) == 2 and begun.lower() not in self.begins:
            return None
        sign = _FIRST.search(text, at, at + 13)
        if sign is None or sign[0].casefold() not in self.initials or _ENDS.search(text, at, sign.start()):
            return None
        at = sign.start()
        for option, letter in self.exact.get(text[at], ()):
            end = at + len(option)
            if text.startswith(option, at) and not text[end : end + 1].isalnum() and not _PART_OF_MORE.match(text, end):
                return letter, end
        first = TOKEN.match(text, at, at + 80)
        if first is None:
            return None
        if found := self.by_first.get(_normal(first[0])):
            for words, letter in found:
                here = list(islice(TOKEN.finditer(text, first.start()), len(words)))
                if [_normal(word[0]) for word in here] == words:
                    end = here[-1].end()
                    if words[-1][-1].isdigit() or len(words[-1]) < 4:
                        if _PART_OF_MORE.match(text, end):
                            continue
                    return letter, end
        if not self.every and not self.no_one:
            return None
        for letter, phrases in ((self.every, (_EVERY, _ALL)), (self.no_one, (_NO_ONE,))):
            said = next((said for phrase in phrases if (said := phrase.match(text, first.start()))), None)
            if letter and said and _PHRASE_ENDS.match(text, said.end()):
                return letter, said.end()
        return None

    def alone_in(self, text: str) -> list[int]:
        """Return the positions of single letters, in order, without a genus ("E. coli").

        One search per letter is faster than one for all.
        """
        found = []
        for letter in self.letters:
            at = text.find(letter)
            while at >= 0:
                if not _SMALL_BEHIND.match(text, at + 1) and self.alone.match(text, at):
                    if text[at + 1 : at + 3] != ". " or not _is_genus(text, at):
                        found.append(at)
                at = text.find(letter, at + 1)
        found.sort()
        return found

    def is_letter(self, text: str, at: int) -> bool:
        """Say whether the single capital at a position can be an option's letter, by what follows it."""
        end, letter = at + 1, text[at]
        follows = text[end : end + 1]
        if follows in ("", "\n", ")", "]", "}", '"', "*", ":"):
            return True
        if follows == "." or follows.isspace():
            species = _SPECIES.match(text, end)
            if species and species[1] in EPITHETS or _INITIAL.match(text, end):
                return False
        if follows == ">" and text[at - 1 : at] == "<":
            return True
        if follows in " =<>≥≤≈±×^+" and _FORMULA.match(text, end):
            return False
        word = _WORD_AFTER.match(text, end)
        if word is None:
            return letter != "A" or _ARTICLE_NUMBER.match(text, end) is None
        if letter == "A" and _BEST_VERB.match(text, end):
            return True
        allowed = AFTER_ARTICLE if letter == "A" else AFTER_PRONOUN if letter == "I" else GOES_ON
        if word[1].casefold() in allowed or word[1] == letter or _UNSPACED.match(word[1]):
            return True
        named = self.text_at(text, end)
        return named is not None and named[0] == letter

    def letter_at(self, text: str, at: int) -> int | None:
        """Return where the option's letter at a position ends, None without one. A small one needs a bracket."""
        if self.alone.match(text, at):
            return at + 1 if self.is_letter(text, at) else None
        small = self.small.match(text, at)
        if small is None:
            return None
        species = _SPECIES.match(text, at + 1)
        return None if species and species[1] in EPITHETS else at + 1

    def one_at(self, text: str, at: int) -> Value | None:
        """Return the single option at a position. Where letter and exact text disagree on a line, the text counts."""
        if named := self.text_at(text, at):
            letter = _BRACKETED.match(text, named[1])
            if letter and letter[1] in self.letters:
                return Value(named[0], letter[1], letter.end())
            return Value(named[0], None, named[1])
        end = self.letter_at(text, at)
        if end is None:
            return None
        written = text[at].upper()
        closed = _CLOSE.match(text, end).end()
        named = self.text_at(text, closed)
        if named is None or (
            named[0] != written
            and (
                "\n" in text[end:closed]
                or _OWN_CLAUSE.match(text, named[1])
                or TAKEN_BACK.match(text, named[1])
                or (text[end : end + 1] == "." and (own := _BRACKETED.match(text, named[1])) and own[1] == named[0])
            )
        ):
            return Value(written, written, end)
        return Value(named[0], written, named[1])

    def value_at(self, text: str, at: int) -> Value | None:
        """Return what is written at a position: one option, or several joined ("A or B", "aspirin and warfarin").

        Several are one option where that option says them ("Both A and B", "All of the above"), else "".
        """
        at = OPEN.match(text, at).end()
        first = self.one_at(text, at)
        if first is None or (first.written is None and text[at : at + 1].isdigit() and _BOUND.search(text, at - 3, at)):
            return None
        letters, end, all_hold = [first.letter], first.end, True
        while (join := _JOIN.match(text, end)) and len(letters) < 26:
            more = self.one_at(text, join.end())
            own_clause = _OWN_CLAUSE if join["join"][0] in ",;、" else _DENIED_CLAUSE
            if more is None or own_clause.match(text, more.end):
                break
            letters.append(more.letter)
            all_hold = all_hold and not _OR.search(join["join"])
            end = more.end
        if len(set(letters)) == 1:
            return first
        return Value(self.joined(letters) if all_hold else "", first.written, end)

    def joined(self, letters: list[str]) -> str:
        """Return the option that means several ("Both A and B"), or ""."""
        said = frozenset(letters)
        if self.every and said - {self.every} == set(self.letters) - {self.every, self.no_one}:
            return self.every
        return self.joint.get(said, "")

    def named_in(self, text: str) -> list[str]:
        """Return the letters of the options whose text a text contains; one inside a longer one does not count."""
        named = []
        if self.texts:
            folded = fold(text)
            for option, letter in self.texts:
                if option in folded and folded.count(option) > _bounded(folded, option):
                    named.append(letter)
                    folded = folded.replace(option, " \0 ")
        for option, letter in self.unspaced:
            if option in text:
                named.append(letter)
                text = text.replace(option, "\0")
        for letter, phrase in ((self.every, _EVERY), (self.no_one, _NO_ONE)):
            if letter and letter not in named:
                for said in phrase.finditer(text):
                    if said[0].lower() != "none" and _PHRASE_ENDS.match(text, said.end()):
                        named.append(letter)
                        break
        return list(dict.fromkeys(named))

    def shortened(self, text: str) -> set[str]:
        """Return the letters of the options that a text in place of an answer names in short ("A chest X-ray")."""
        folded = fold(text)
        return {letter for name, letter in self.short_names if name in folded}

    def nearly(self, text: str) -> set[str]:
        """Return the letters of the options (6 characters and more) that a text misspells slightly."""
        words, found = fold(text).split(), set()
        for option, letter in self.texts:
            if len(option) < 8 or len(words) < (n := len(option.split())):
                continue
            matcher = difflib.SequenceMatcher(None, "", option.strip(), autojunk=False)
            fixed = [i for i, word in enumerate(option.split()) if len(word) < 4 or _NUMERAL.fullmatch(word)]
            for i in range(len(words) - n + 1):
                if any(words[i + k] != option.split()[k] for k in fixed):  # "factor ix" is not nearly "factor x"
                    continue
                matcher.set_seq1(" ".join(words[i : i + n]))
                if min(matcher.real_quick_ratio(), matcher.quick_ratio()) > 0.85 and matcher.ratio() > 0.85:
                    found.add(letter)
                    break
        return found

    def described(self, text: str) -> set[str]:
        """Return the letters of the options whose every word begins like one of the text ("CT scan of the abdomen")."""
        stems = {word[:5] for word in fold(text).split()}
        return {
            letter
            for option, letter in self.texts
            if len(words := option.split()) > 1
            and option.replace(" ", "").isalpha()
            and all(word[:5] in stems for word in words)
        }


def _is_genus(text: str, at: int) -> bool:
    species = _SPECIES.match(text, at + 1)
    return species is not None and species[1] in EPITHETS


@lru_cache(maxsize=64)
def _patterns(letters: str) -> dict[str, re.Pattern[str]]:
    return {
        "alone": re.compile(
            rf"(?<![{_TOUCHING}.-])[{letters}](?![{_TOUCHING}]|['’](?!(?:d[ıiuü]r|t[ıiuü]r|s\s(?:wrong|right|correct|"
            rf"incorrect|out|not|the))\b)[A-Za-z]|[-–]\w|\.\w\w)"
        ),
        "small": re.compile(
            rf"(?<![{_TOUCHING}.-])[{letters.lower()}](?:\.(?!\w)|(?=[)\]:}}\"'*,;<]|\s*(?:\n|\Z)|\s+(?:because|"
            rf"since|as|due)\b|"
            r"\s[-–—]|\s(?:is|was)\s(?:correct|right|the)\b))"
        ),
    }


def _aliases(text: str) -> Iterator[str]:
    """Return a text's other names.

    With a number in words, without and inside its brackets, a species with its genus as an initial.
    """
    if (number := _SMALL_NUMBER.search(text)) and len(text.split()) > 1:
        yield f"{text[: number.start()]}{_NUMBER_WORDS[int(number[0])]}{text[number.end() :]}"
    if _NUMBER_LIST.fullmatch(text.strip()):
        yield re.sub(r",?\s(?:and|&)\s", ", ", text)
    inside = re.fullmatch(r"\s*([^()]{3,})\(([^()]{3,})\)\s*", text)
    if inside:
        yield from (part.strip() for part in inside.groups())
    species = re.fullmatch(r"\s*([A-Z])[a-z]{3,} ([a-z]{3,})\s*", text)
    if _ALL_TWO.fullmatch(text.strip().rstrip(".")):
        yield "both"
    if species and species[2] in EPITHETS:
        yield f"{species[1]}. {species[2]}"


def _short_names(text: str) -> Iterator[str]:
    """Return names that mean an option only where an answer stands, as they may mean other things elsewhere.

    Without the verb of an order ("Obtain a chest X-ray"), or what follows a preposition ("Biopsy of the lesion").
    """
    if order := _ORDER.fullmatch(text.strip()):
        yield order[1]
    if (head := _PREPOSITION.match(text.strip())) and len(head[1]) > 4:
        yield head[1]


def _joint_letters(text: str, options: Mapping[str, str]) -> frozenset[str]:
    """Return the letters that an option's text names ("Both A and B", "A, B and C"), or an empty set."""
    text = text.strip().rstrip(".")
    if not _BOTH.fullmatch(text):
        return frozenset()
    named = frozenset(re.findall(r"\b[A-Z]\b", text))
    return named if named <= options.keys() else frozenset()


def _common(rows: list[list[str]]) -> int:
    """Return how many words all texts begin with; 0 for two texts, which may begin alike by chance."""
    return len(os.path.commonprefix(rows)) if len(rows) > 2 else 0


def _unique(items: tuple[tuple[str, str], ...], owners: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the short names that only one option has, and that begin no other option's text."""
    found: dict[str, set[str]] = {}
    words = [fold(text).split() for _, text in items]
    first, last = _common(words), _common([row[::-1] for row in words])
    for (letter, text), row in zip(items, words, strict=True):
        parts = (row[first:], row[: len(row) - last], row[first : len(row) - last])
        for name in (*_short_names(text), *(" ".join(part) for part in parts if part != row)):
            if len(name) > 1 and not _DIGIT.search(name):
                found.setdefault(fold(name), set()).add(letter)
    return [
        (name, next(iter(letters)))
        for name, letters in found.items()
        if len(letters) == 1 and not any(text.startswith(name) for text, of in owners.items() if of != letters)
    ]


def _initials(named: list[tuple[str, str]], every: str, no_one: str) -> frozenset[str]:
    first = {text[1] for text, _ in named} | set("ae" if every else "") | set("n" if no_one else "")
    return frozenset(first | ({"."} if "0" in first else set()) | ({"−"} if "-" in first else set()))


def _begins(named: list[tuple[str, str]], every: str, no_one: str) -> frozenset[str]:
    more = ("al", "ea", "ev") * bool(every) + ("no",) * bool(no_one)
    return frozenset((*(text[1:3] for text, _ in named), *more))


@lru_cache(maxsize=4096)
def prepare(items: tuple[tuple[str, str], ...]) -> Options:
    """Return the options of one question, prepared for reading: ``items`` are (letter, text)."""
    options = dict(items)
    owners: dict[str, set[str]] = {}
    aliases: dict[str, set[str]] = {}
    for letter, text in items:
        owners.setdefault(fold(text), set()).add(letter)
        for alias in _aliases(text):
            aliases.setdefault(fold(alias), set()).add(letter)
    for alias, letters in aliases.items():
        owners.setdefault(alias, letters)
    named = [
        (text, next(iter(letters)))
        for text, letters in owners.items()
        # An option text "B" cannot be distinguished from a letter.
        if len(letters) == 1 and text.strip() and text.strip().upper() not in options
    ]
    named.sort(key=lambda option: -len(option[0]))
    raw = {letter: text.strip() for letter, text in items}
    unspaced = [(raw[letter], letter) for text, letter in named if _UNSPACED.search(raw[letter])]
    short_names = _unique(items, owners)
    by_first: dict[str, list[tuple[list[str], str]]] = {}
    for text, letter in named:
        by_first.setdefault(text.split()[0], []).append((text.split(), letter))
    texts = [(text, letter) for text, letter in named if (raw[letter], letter) not in unspaced]
    exact: dict[str, tuple[tuple[str, str], ...]] = {}
    known = {letter for _, letter in named}
    for letter in sorted(known, key=lambda letter: -len(raw[letter])):
        if raw[letter][-1:].isalnum() and raw[letter].upper() not in options:
            exact[raw[letter][0]] = (*exact.get(raw[letter][0], ()), (raw[letter], letter))
    joint = {said: letter for letter, text in items if (said := _joint_letters(text, options))}
    for number, (letter, text) in enumerate(items):  # "Metformin and insulin", where both are options
        parts = [owners.get(fold(part), set()) for part in re.split(r",\s*(?:and\s)?|\s(?:and|&|\+)\s", text)]
        if len(parts) > 1 and all(len(part) == 1 for part in parts):
            joint.setdefault(frozenset().union(*parts), letter)
        if number == 2 and _ALL_TWO.fullmatch(text.strip().rstrip(".")):
            joint.setdefault(frozenset(letter for letter, _ in items[:2]), letter)
    letters = "".join(options)
    every = next((letter for letter, text in items if _EVERY.fullmatch(text.strip().rstrip("."))), "")
    no_one = next((letter for letter, text in items if _NO_ONE.fullmatch(text.strip().rstrip("."))), "")
    return Options(
        letters,
        **_patterns(letters),
        texts=tuple(texts),
        by_first={first: tuple(found) for first, found in by_first.items()},
        exact=exact,
        initials=_initials(named, every, no_one),
        begins=_begins(named, every, no_one),
        unspaced=tuple(sorted(unspaced, key=lambda option: -len(option[0]))),
        raw=tuple((raw[letter], letter) for letter in known),
        short_names=tuple(short_names),
        joint=joint,
        every=every,
        no_one=no_one,
    )
