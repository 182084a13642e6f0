"""Words of a text in any script, and an estimate of its length in tokens. No model runs here."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass


def _ranges(points: list[int]) -> str:
    """Return the inside of a character class that matches these code points."""
    starts = [p for p, before in zip(points, [-2, *points], strict=False) if p != before + 1]
    ends = [p for p, after in zip(points, [*points[1:], -2], strict=True) if p != after - 1]
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True))


MARKS = _ranges([point for point in range(0x300, 0xFE30) if unicodedata.category(chr(point)).startswith("M")])
"""Combining marks, for a character class: vowels of Thai and Hindi, vowel points of Arabic and Hebrew.

Python's ``\\w`` leaves them out, so that a word of these scripts would break at each of them."""

# Scripts that write no space between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han. One character is one word.
_UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_SPACED_WORD = f"[^\\W_{_UNSPACED}](?:[^\\W_{_UNSPACED}]|[{MARKS}])*"
_WORD = re.compile(f"(?=[{_UNSPACED}])[^\\W_][{MARKS}]*|{_SPACED_WORD}")
_WIDE = re.compile(f"[{_UNSPACED}\u3000-\u303f\uac00-\ud7af\uff00-\uffef]")
_LATIN = re.compile(r"[\x00-\u024f]")


def words(text: str) -> list[str]:
    """Return the words of a text, case-folded and NFKC-normalised, without punctuation.

    A character of a script without spaces (Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer) is a word of its own,
    with its combining marks. Every other word is a run of letters, digits and marks.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class TokenEstimate:
    """The number of tokens of a text, without its tokenizer: most tokenizers are between ``low`` and ``high``."""

    low: int
    high: int


def estimate_tokens(text: str) -> TokenEstimate:
    """Estimate the number of tokens of a text from its characters and their scripts (ours).

    Latin text has 2 to 4.5 characters per token: a large vocabulary needs few tokens, a small vocabulary or a table of
    laboratory values needs many. Chinese, Japanese, Korean and Thai have 0.7 to 1.5 tokens per character. Arabic,
    Cyrillic, Devanagari and other alphabets have 1 to 3 characters per token.
    """
    wide, latin = len(_WIDE.findall(text)), len(_LATIN.findall(text))
    other = len(text) - wide - latin
    return TokenEstimate(round(latin / 4.5 + 0.7 * wide + other / 3), round(latin / 2 + 1.5 * wide + other))
