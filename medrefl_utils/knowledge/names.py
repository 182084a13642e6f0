"""Words and names: the forms in which a text may write a node's name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_WORD = re.compile(r"[^\W\d_]+(?:['’][sS]\b)?|\d+")
_REMARK = re.compile(r"\s*\((?:disease|disorder|finding|body structure|substance|usp)\)\s*$", re.IGNORECASE)
FUNCTION_WORDS = frozenset("a an at by for from her his in of on the their to with".split())
"""Words that may stand inside a name in another order: "pain in the chest"."""


@dataclass(frozen=True)
class Word:
    """A word of a text: its place, and the stem by which it is compared."""

    start: int
    end: int
    stem: str


def words_of(text: str) -> list[Word]:
    """Return the words of a text; a number is a word of its own ("B12" has two)."""
    return [Word(match.start(), match.end(), stem(match[0])) for match in _WORD.finditer(text)]


@lru_cache(maxsize=1 << 18)
def stem(word: str) -> str:
    """Return a word without case, accents, possessive, plural, and British spelling: "Oedemas" and "edema" agree.

    It is lighter than a stemmer of the language: "hypertensive" and "hypertension" differ.
    """
    word = word.casefold()
    if not word.isascii():
        word = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c)).replace("’", "'")
    word = word.removesuffix("'s").replace("ae", "e").replace("oe", "e")
    if len(word) > 4 and word.endswith("our"):
        word = f"{word[:-3]}or"
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if len(word) > 4 and word.endswith(("sse", "she", "che", "xe", "ze")):  # "headaches" and "headache" agree
        return word[:-1]
    if len(word) > 4 and word.endswith(("sis", "xis")):
        return f"{word[:-2]}e"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def stems(name: str) -> tuple[str, ...]:
    """Return the stems of a name's words."""
    return tuple(stem(match[0]) for match in _WORD.finditer(name))


def orders(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the stems of a name as it is written, then those of an inverted name ("Abdomen, Acute") put right."""
    name = _REMARK.sub("", name)
    yield stems(name)
    parts = [part.strip() for part in name.split(", ")]
    if len(parts) > 1:
        yield stems(" ".join(parts[::-1]))
        if len(parts) > 2:
            yield stems(" ".join([*parts[1:], parts[0]]))


def bag(found: tuple[str, ...]) -> tuple[str, ...]:
    """Return stems without function words, in alphabetical order: the same for every order of the words."""
    return tuple(sorted(one for one in found if one not in FUNCTION_WORDS))


def is_code(name: str) -> bool:
    """Return whether a name is an abbreviation or a symbol in capitals, which a text must write in capitals too."""
    letters = [c for c in name if c.isalpha()]
    return len(name) <= 6 and bool(letters) and all(c.isupper() for c in letters)
