"""Fonts and line breaks for text in any script."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from functools import cache

_LATIN_FONT = "DejaVu Sans"  # it also has Greek, Cyrillic and Arabic
# Fonts of Linux, macOS and Windows for what it lacks; those that the machine has are used, in this order.
_FALLBACKS = (
    *(
        "Noto Sans CJK SC",
        "Noto Sans CJK JP",
        "Source Han Sans SC",
        "WenQuanYi Zen Hei",
        "PingFang SC",
        "Hiragino Sans",
    ),
    *("Microsoft YaHei", "SimHei", "Malgun Gothic", "Noto Naskh Arabic", "Noto Sans Arabic", "Noto Sans Hebrew"),
    *("Noto Sans Devanagari", "Nirmala UI", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Leelawadee UI"),
)
_TOKEN = re.compile(r"\s+|[^\s\u1100-\U0003ffff]+|.", re.DOTALL)


@cache
def font_families() -> list[str]:
    """Return font families for matplotlib: DejaVu Sans, then those of this machine that have other scripts."""
    # Imported here: the wrapping needs no fonts.
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    return [_LATIN_FONT, *(name for name in _FALLBACKS if name in known)]


def display_width(text: str) -> int:
    """Return the width of a text in columns: 2 for a wide character (Chinese, Japanese, Korean), 0 for a mark."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text
    )


def wrap_text(text: str, width: int, max_lines: int, placeholder: str = " …") -> list[str]:
    """Break a text into at most ``max_lines`` lines of ``width`` columns; the rest becomes the placeholder.

    A text of narrow characters is broken at spaces, by ``textwrap``. A wide character may begin a line anywhere: its
    script has no spaces.
    """
    if display_width(text) == len(text):
        return textwrap.wrap(text, width, max_lines=max_lines, placeholder=placeholder)
    lines = [""]
    for token in _TOKEN.findall(" ".join(text.split())):
        if display_width(lines[-1] + token) > width and lines[-1]:
            lines.append("")
        lines[-1] += token if lines[-1] or not token.isspace() else ""
    lines = [line.rstrip() for line in lines if line.strip()]
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and display_width(last + placeholder) > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip() + placeholder]
