"""Link a text to a graph: find the mentions of its nodes, offline and without a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.names import FUNCTION_WORDS, Word, bag, is_code, orders, words_of
from medrefl_utils.knowledge.negation import negated_spans

RULES = ("exact", "word order", "synonym", "n-grams")
"""How a mention was found, the surest first."""
_GAP = re.compile(r"[\s\-–—/'’]*")
_LONGEST = 12  # words of a name that is looked for


@dataclass(frozen=True)
class Mention:
    """A part of a text that names a node: ``text[start:end]``, by one of ``RULES``, with a score of 0 to 1."""

    start: int
    end: int
    text: str
    node: int
    score: float
    rule: str
    negated: bool = False


@dataclass(frozen=True)
class _Name:
    """A form of a node's name; smaller is better."""

    rule: int
    degree: int
    node: int
    code: bool

    def order(self) -> tuple[int, int, int]:
        return self.rule, -self.degree, self.node


class Linker:
    """Finds the mentions of a graph's nodes in texts; the index of names is built once.

    Args:
        graph: the graph.
        types: link to nodes of these types only; by default to all.

    Raises:
        MedReflError: the graph has no node of a type in ``types``.
    """

    def __init__(self, graph: KnowledgeGraph, *, types: Sequence[str] | None = None) -> None:
        self.graph = graph
        known = set(graph.nodes["type"])
        for wanted in types or ():
            if wanted not in known:
                raise MedReflError(f"the graph has no node of type {wanted!r}; it has {', '.join(sorted(known))}")
        self._names: dict[tuple[str, ...], list[_Name]] = {}
        self._bags: dict[tuple[str, ...], list[_Name]] = {}
        for node, (kind, name, synonyms) in enumerate(
            zip(graph.nodes["type"], graph.nodes["name"], graph.nodes["synonyms"], strict=True)
        ):
            if types is None or kind in types:
                self._add(node, name, synonyms)

    def _add(self, node: int, name: str, synonyms: Iterable[str]) -> None:
        degree = int(self.graph.degree[node])
        for place, text in enumerate([name, *synonyms]):
            code = is_code(text)
            for order, key in enumerate(orders(text)):
                if key and len(key) <= _LONGEST and len("".join(key)) > 2:
                    rule = 2 if place else min(order, 1)
                    self._names.setdefault(key, []).append(_Name(rule, degree, node, code))
            if not place and len(shuffled := bag(key)) > 1:
                self._bags.setdefault(shuffled, []).append(_Name(1, degree, node, code))

    def link(self, text: str) -> list[Mention]:
        """Return the mentions of nodes in a text, in its order. They do not overlap: the longest match wins.

        Where several nodes have the same name, the best rule decides, then the largest number of neighbours. A
        mention whose finding is denied ("no fever") is marked ``negated``.
        """
        words = words_of(text)
        found = list(self._matches(text, words))
        found.sort(key=lambda m: (m.start - m.end, RULES.index(m.rule), m.start))
        taken: list[Mention] = []
        covered = bytearray(len(text))
        for mention in found:
            if not any(covered[mention.start : mention.end]):
                covered[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
                taken.append(mention)
        denied = negated_spans(text)
        return [
            replace(m, negated=any(start <= m.start and m.end <= end for start, end in denied))
            for m in sorted(taken, key=lambda m: m.start)
        ]

    def _matches(self, text: str, words: Sequence[Word]) -> Iterable[Mention]:
        for i, first in enumerate(words):
            key: tuple[str, ...] = ()
            for j in range(i, min(i + _LONGEST, len(words))):
                if j > i and not _GAP.fullmatch(text, words[j - 1].end, words[j].start):
                    break
                key = (*key, words[j].stem)
                start, end = first.start, words[j].end
                candidates = self._names.get(key, [])
                if j > i and first.stem not in FUNCTION_WORDS and words[j].stem not in FUNCTION_WORDS:
                    candidates = candidates + self._bags.get(bag(key), [])
                # An abbreviation in capitals is matched by capitals only.
                fitting = [c for c in candidates if not c.code or text[start:end].isupper()]
                if fitting:
                    best = min(fitting, key=_Name.order)
                    yield Mention(start, end, text[start:end], best.node, 1.0, RULES[best.rule])


_LINKERS: WeakKeyDictionary[KnowledgeGraph, dict[tuple[str, ...] | None, Linker]] = WeakKeyDictionary()


def link_entities(text: str, graph: KnowledgeGraph, *, types: Sequence[str] | None = None) -> list[Mention]:
    """Return the mentions of a graph's nodes in a text (``Linker.link``); the index is kept as long as the graph.

    Args:
        text: a question's stem, an option, a step of a chain.
        graph: the graph.
        types: link to nodes of these types only.

    Raises:
        MedReflError: the graph has no node of a type in ``types``.
    """
    linkers = _LINKERS.setdefault(graph, {})
    key = None if types is None else tuple(types)
    if key not in linkers:
        linkers[key] = Linker(graph, types=types)
    return linkers[key].link(text)
