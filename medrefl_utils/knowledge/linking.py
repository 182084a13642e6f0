"""Link a text to a graph: find the mentions of its nodes, offline and without a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.names import FUNCTION_WORDS, Word, bag, is_code, orders, words_of
from medrefl_utils.knowledge.negation import negated_spans
from medrefl_utils.knowledge.similar_names import SimilarNames, is_misspelling
from medrefl_utils.knowledge.vocabulary import vocabulary

RULES = ("exact", "word order", "synonym", "n-grams")
"""How a mention was found, the surest first."""
_GAP = re.compile(r"[ \t\xa0\-–—/'’]*")  # no line break: it separates the items of a list
_LONGEST = 12  # words of a name that is looked for
_SHORTEST = 6  # letters of a name that is looked for by n-grams
_NEAREST = 10  # names that are compared with a part of a text
_NO_NODE = -1  # a longer term that is no node


@dataclass(frozen=True)
class Mention:
    """A part of a text that names a node: ``text[start:end]``, with a score of 0 to 1.

    ``rule`` says how it was found: one of ``RULES``, or what ``link_by_model`` names.
    """

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

    A name is found as it is written ("exact"), in another order of its words ("word order": "pain in the chest"), by a
    synonym of the graph or of ``vocabulary.yaml``, and last by character n-grams ("n-grams"), which find misspellings.

    Args:
        graph: the graph.
        types: link to nodes of these types only; by default to all.
        min_similarity: smallest cosine of a match by n-grams, 0 to 1 (ours); above 1, there is none. A match must
            also be a misspelling (``similar_names.is_misspelling``), so this limits the candidates only.

    Raises:
        MedReflError: the graph has no node of a type in ``types``.
    """

    def __init__(
        self, graph: KnowledgeGraph, *, types: Sequence[str] | None = None, min_similarity: float = 0.4
    ) -> None:
        self.graph, self.min_similarity = graph, min_similarity
        known = set(graph.nodes["type"])
        for wanted in types or ():
            if wanted not in known:
                raise MedReflError(f"the graph has no node of type {wanted!r}; it has {', '.join(sorted(known))}")
        self._words = vocabulary()
        self._names: dict[tuple[str, ...], list[_Name]] = {}
        self._bags: dict[tuple[str, ...], list[_Name]] = {}
        self._anatomy = set(np.flatnonzero(graph.nodes["type"] == "anatomy").tolist())
        degrees = graph.degree.tolist()
        for node, (kind, name, synonyms) in enumerate(
            zip(graph.nodes["type"], graph.nodes["name"], graph.nodes["synonyms"], strict=True)
        ):
            if types is None or kind in types:
                self._add(node, degrees[node], name, [*synonyms, *self._words.synonyms(name)])

    def _add(self, node: int, degree: int, name: str, synonyms: Sequence[str]) -> None:
        for place, text in enumerate([name, *synonyms]):
            code = is_code(text)
            for order, key in enumerate(orders(text)):
                too_common = not code and (key in self._words.common_words or len("".join(key)) <= 2)
                if key and len(key) <= _LONGEST and not too_common:
                    rule = 2 if place else min(order, 1)
                    self._names.setdefault(key, []).append(_Name(rule, degree, node, code))
                    if not place and len(shuffled := bag(key)) > 1:
                        self._bags.setdefault(shuffled, []).append(_Name(1, degree, node, code))

    @cached_property
    def _similar(self) -> tuple[list[tuple[str, ...]], SimilarNames, set[str]]:
        """The names of 6 letters or more, their index, and all words of names."""
        keys = [key for key in self._names if sum(map(len, key)) >= _SHORTEST]
        return keys, SimilarNames([" ".join(key) for key in keys]), {word for key in self._names for word in key}

    def link(self, text: str) -> list[Mention]:
        """Return the mentions of nodes in a text, in its order. They do not overlap: the longest match wins.

        Where several nodes have the same name, the best rule decides, then the largest number of neighbours. Nothing
        is found inside a longer term that the graph does not have ("blood pressure"). A mention whose finding is denied
        ("no fever") is marked ``negated``.
        """
        words = words_of(text)
        covered = bytearray(len(text))
        taken = self._longest(self._matches(text, words), covered)
        if self.min_similarity <= 1:
            taken += self._longest(self._misspelt(text, words, covered), covered)
        denied = negated_spans(text)
        return [
            replace(m, negated=any(start <= m.start and m.end <= end for start, end in denied))
            for m in sorted(taken, key=lambda m: m.start)
        ]

    def _longest(self, found: Iterable[Mention], covered: bytearray) -> list[Mention]:
        """Return the longest mentions that do not overlap, and mark what they cover."""
        taken = []
        for mention in sorted(found, key=lambda m: (m.start - m.end, RULES.index(m.rule), -m.score, m.start)):
            if not any(covered[mention.start : mention.end]):
                covered[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
                if mention.node >= 0:
                    taken.append(mention)
        return taken

    def _matches(self, text: str, words: Sequence[Word]) -> Iterator[Mention]:
        for i, j, key in _windows(text, words, _LONGEST):
            start, end = words[i].start, words[j].end
            if key in self._words.longer_terms:
                yield Mention(start, end, text[start:end], _NO_NODE, 1.0, RULES[0])
            candidates = self._names.get(key, [])
            if j > i and words[i].stem not in FUNCTION_WORDS and words[j].stem not in FUNCTION_WORDS:
                candidates = candidates + self._bags.get(bag(key), [])
            # An abbreviation in capitals is matched by capitals only.
            fitting = [c for c in candidates if not c.code or text[start:end].isupper()]
            if fitting:
                best = min(fitting, key=_Name.order)
                yield Mention(start, end, text[start:end], best.node, 1.0, RULES[best.rule])
                if j + 1 < len(words) and self._is_part(best.node, text, words[j], words[j + 1]):
                    end = words[j + 1].end
                    yield Mention(start, end, text[start:end], _NO_NODE, 1.0, RULES[-1])

    def _is_part(self, node: int, text: str, last: Word, following: Word) -> bool:
        """Return whether the next word makes a longer term of a name: "heart failure", "urea nitrogen"."""
        if following.stem not in self._words.heads or not _GAP.fullmatch(text, last.end, following.start):
            return False
        return node in self._anatomy or following.stem == "nitrogen"

    def _misspelt(self, text: str, words: Sequence[Word], covered: bytearray) -> Iterator[Mention]:
        """Yield matches by n-grams, in what is not covered yet, for names of up to three words."""
        keys, similar, known = self._similar
        places = []
        for i, j, key in _windows(text, words, 3):
            unknown = any(len(word) >= _SHORTEST and word not in known for word in key)
            if unknown and not any(covered[words[i].start : words[j].end]):
                places.append((i, j, key))
        nearest, cosines = similar.nearest([" ".join(key) for _, _, key in places], _NEAREST)
        for (i, j, key), names, scores in zip(places, nearest, cosines, strict=True):
            for place, score in zip(names, scores, strict=True):
                if place >= 0 and score >= self.min_similarity and is_misspelling(key, keys[place], known):
                    best = min(self._names[keys[place]], key=_Name.order)
                    start, end = words[i].start, words[j].end
                    yield Mention(start, end, text[start:end], best.node, round(float(score), 4), RULES[3])
                    break


def _windows(text: str, words: Sequence[Word], longest: int) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Yield (first word, last word, stems) of each run of up to ``longest`` words with no punctuation between them."""
    for i in range(len(words)):
        key: tuple[str, ...] = ()
        for j in range(i, min(i + longest, len(words))):
            if j > i and not _GAP.fullmatch(text, words[j - 1].end, words[j].start):
                break
            key = (*key, words[j].stem)
            yield i, j, key


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
