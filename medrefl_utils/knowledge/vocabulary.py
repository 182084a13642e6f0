"""The linker's word lists (``vocabulary.yaml``): synonyms, longer terms, and common words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from medrefl_utils.knowledge.names import orders, stem, stems

_FILE = Path(__file__).with_name("vocabulary.yaml")


@dataclass(frozen=True)
class Vocabulary:
    """The lists of ``vocabulary.yaml``, by the stems of their words."""

    groups: dict[tuple[str, ...], list[list[str]]]
    """stems of a name -> the groups of synonyms that it is in"""
    heads: frozenset[str]
    longer_terms: frozenset[tuple[str, ...]]
    common_words: frozenset[tuple[str, ...]]

    def synonyms(self, name: str) -> Iterator[str]:
        """Yield the other names of what has this name."""
        seen = {stems(name)}
        for key in orders(name):
            for group in self.groups.get(key, []):
                for other in group:
                    if stems(other) not in seen:
                        seen.add(stems(other))
                        yield other


@cache
def vocabulary() -> Vocabulary:
    """Return the lists of ``vocabulary.yaml``."""
    data = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for group in data["synonyms"]:
        for name in group:
            groups.setdefault(stems(name), []).append(group)
    return Vocabulary(
        groups=groups,
        heads=frozenset(map(stem, data["heads"])),
        longer_terms=frozenset(map(stems, data["longer_terms"])),
        common_words=frozenset(map(stems, data["common_words"])),
    )
