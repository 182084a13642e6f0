"""Text helpers of the answer reader: plain form, lower case, sentence bounds."""

from __future__ import annotations

import re

_FOLDED = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ", 0xA0: " ", 0x202F: " ", 0x200B: " ", 0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0xFF61: "。",
    0x060C: ",",
}  # fmt: skip
_CYRILLIC = re.compile(r"(?<=[:—(*\s])[АС](?=[\s.)*]{0,3}(?:\n|\Z))")
_SMALL_OPTION = re.compile(r"option ([a-z])(?=[).:,;*\"']|\s*(?:\Z|\n)|\s(?:is|was|because|since)\b)")
_HTML = re.compile(r"</?(b|i|p|strong|em|br|div|span|u|h\d|li|ul|ol|code|pre|final|solution)\s?/?>", re.IGNORECASE)
_BREAKS = frozenset(("br", "p", "pre", "final", "solution"))
_SMALL_ALONE = re.compile(
    r"(?:\A|\b(?:[Ii]t's|[Ii]t is|[Cc]hoice|[Oo]ption|[Ll]etter|[Cc]hoose|[Pp]ick)\s)[a-j](?=\s(?:is|"
    r"was)\s(?:correct|right|the)|[.!]?\s*\Z)"
)
_PERCENT = re.compile(r"(?<=\d)(?:\s?\\%|\s%)")
_TEXT_JOIN = re.compile(r"\\text\{\s*(or|and|,|/)\s*\}")
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~")

# Words before a rejected option, and after a retracted one.
NOT = (
    r"(?:n['’]t|\b(?:not|no (?:sign|signs|evidence|indication|history) of|never|nor|neither|another|unlike|"
    r"rather than|instead of|other than|opposed to|except|less likely|"
    r"rule[sd]? out|ruling out|exclud\w+|eliminat\w+|least|(?:preferred|better|superior|safer) (?:over|than|to)|"
    r"avoid (?:picking|choosing|selecting|option))\b|(?:cannot|"
    r"can['’]t|unlikely to|hardly) be\s[\"'*(]{0,3}$)"
)
PASSED = re.compile(
    rf"{NOT}[^.;:]{{0,60}}$|(?:^|[,;]\s)(?:while|although|though|whereas)\b[^.;:,]{{0,60}}$", re.IGNORECASE
)
# A sentence's last character, or the line feeds after one. "is: E. Citalopram" is one sentence, and so is "The answer
# is:" with the line that follows it.
SENTENCE_END = re.compile(
    r"[.!?\n。！？।](?:(?<=[。！？।])|(?<=[^:\n ]\n)\n*|(?<!\n)(?:(?<!\W[A-Z]\.)|(?<=ption [A-Z]\.)|(?<=hoice [A-Z]\.))"
    r"[\"'”’*]{0,3}\s+(?=[A-Z\"'“‘*{(]))"
)
MARK_TAIL = re.compile(r"[\"'”’*)\]:.]{0,6}")
IF = re.compile(
    r"\b(?:if(?! (?:i (?:had to|have to|must)|(?:i (?:am|was|were) )?(?:forced|pressed)))|were|suppose|unless|"
    r"when would|why not|let['’]s (?:say|assume|suppose)|assum(?:e|ing)|imagine)\b"
)


def straight(text: str) -> str:
    """Return a text with full-width signs and curly quotes in their plain form, position by position."""
    return text if text.isascii() else text.translate(_FOLDED)


def plain(text: str) -> str:
    """Return a text with signs and quotes in their plain form, and without struck-out text."""
    if not text.isascii():
        text = _CYRILLIC.sub(lambda letter: "A" if letter[0] == "А" else "C", text.translate(_FOLDED))
    if "~" in text:
        text = _STRUCK.sub(" ", text)
    if "option " in text:
        text = _SMALL_OPTION.sub(lambda small: f"option {small[1].upper()}", text)
    if "<" in text:
        text = _HTML.sub(lambda tag: "\n" if tag[1] in _BREAKS else "", text)
    if "&" in text:
        text = text.replace("&nbsp;", " ")
    if len(text) < 60:
        text = _SMALL_ALONE.sub(lambda small: small[0][:-1] + small[0][-1].upper(), text)
    if "%" in text:
        text = _PERCENT.sub("%", text)
    if "\\" in text:
        text = _TEXT_JOIN.sub(r" \1 ", text)
        text = text.replace('\\"', '"')
    return text


def lower(text: str) -> str:
    """Return the text in lower case, position by position."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def holds(low: str, words: tuple[str, ...]) -> bool:
    """Say whether a text holds one of the words. A loop over ``rfind`` is several times faster than ``any``."""
    rfind = low.rfind
    for word in words:
        if rfind(word) >= 0:
            return True
    return False


def clause_begin(low: str, at: int) -> int:
    """Return where the sentence around a position begins, at most 220 characters before it."""
    floor = max(0, at - 220)
    begin = floor
    for sign in ("\n", ". ", "? ", "! ", "。", "! ", "।"):
        found = low.rfind(sign, begin, at)
        if found >= 0:
            begin = found + len(sign)
    return begin


def sentence_end(text: str, at: int) -> int:
    """Return where the sentence around a position ends, at most 300 characters after it."""
    end = min(len(text), at + 300)
    for sign in ("\n", ". ", "? ", "! ", "。", "।"):
        found = text.find(sign, at, end)
        if found >= 0:
            end = found + 1
    return end
