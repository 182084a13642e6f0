"""Write a chain from paths by rule, without a model: the same paths give the same steps. Pure.

The steps have the form in which the tiny student reasons, so that training on them changes what it knows and not how it
writes: findings are eliminated one by one, then the relations of the path follow, then the options are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from medrefl_utils.knowledge.chains.phrases import edge_sentences
from medrefl_utils.knowledge.chains.text import ChainText
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.paths import KnowledgePath
from medrefl_utils.knowledge.question_paths import QuestionPaths

_LISTED = 12
"""Nodes that a step lists at most; of more, those that later steps keep, and the number of the others (ours)."""
_ASIDE = 3
"""Paths beside the main one that are told (ours)."""


def rule_chain(found: QuestionPaths, graph: KnowledgeGraph) -> ChainText:
    """Return the chain along a question's chosen paths: at least one path must be chosen.

    The *pivot* is the node next to the question's entities to which most of them are linked, and near to the answer,
    such as the disease that has all findings. Each linked entity is a step that says which nodes of the pivot's type go
    with it and with all entities before it. Then each edge from the pivot to the answer is a step. The edges of paths
    from other entities come first. The conclusion compares the options with the path's end.
    """
    sources = list(dict.fromkeys(one.node for one in found.asked if not one.negated))
    pivot, main = _pivot(found, graph, sources)
    aside = [path for path in found.chosen if pivot not in graph.neighbours(path.nodes[0]) and pivot not in path.nodes]
    steps = [*_eliminations(graph, sources, pivot), *_sentences(graph, main.nodes[1:])]
    before = dict.fromkeys(sentence for path in aside[:_ASIDE] for sentence in _sentences(graph, path.nodes))
    question = found.question
    marks = [
        f"{letter}. {' '.join(text.split())} {'yes' if letter == question.gold else 'no'}"
        for letter, text in question.options.items()
    ]
    told = [sentence for sentence in before if sentence not in steps]
    return ChainText((*told, *steps), (", ".join(marks) + ".",), question.gold)


def _sentences(graph: KnowledgeGraph, nodes: Sequence[int]) -> list[str]:
    """Return the sentences of a path's edges, in order."""
    return [sentence for a, b in pairwise(nodes) for sentence in edge_sentences(graph, a, b)]


def _pivot(found: QuestionPaths, graph: KnowledgeGraph, sources: Sequence[int]) -> tuple[int, KnowledgePath]:
    """Return the pivot and the first chosen path through it to the right option; an edge after it costs an entity."""
    ends = {one.node for one in found.answers[found.question.gold]}
    paths = [path for path in found.chosen if path.nodes[-1] in ends] or list(found.chosen)
    linked = {
        node: len(set(graph.neighbours(node).tolist()).intersection(sources)) for node in {p.nodes[1] for p in paths}
    }
    through = Counter(path.nodes[1] for path in paths)
    rest = {path.nodes[1]: len(path.nodes) - 2 for path in reversed(paths)}
    pivot = min(linked, key=lambda node: (rest[node] - linked[node], -through[node], int(graph.degree[node]), node))
    return pivot, next(path for path in paths if path.nodes[1] == pivot)


def _eliminations(graph: KnowledgeGraph, sources: Sequence[int], pivot: int) -> Iterator[str]:
    """Yield a step per entity that is linked to the pivot: the nodes of the pivot's type that are left after it."""
    types = graph.nodes["type"].to_numpy()
    linked = [node for node in sources if pivot in graph.neighbours(node)]
    near = [{int(n) for n in graph.neighbours(node) if types[n] == types[pivot]} for node in linked]
    last = set.intersection(*near)
    left: set[int] | None = None
    for node, these in zip(linked, near, strict=True):
        verb = "suggests" if left is None else "leaves"
        left = these if left is None else left & these
        yield f"{graph.names[node]} {verb} {_listed(graph, left, last, pivot)}."
    if left and len(left) > 1:
        yield f"{graph.names[pivot]} fits best."


def _listed(graph: KnowledgeGraph, nodes: set[int], last: set[int], pivot: int) -> str:
    """Return the nodes' names; of many, the pivot and those that are left in the end, and how many others there are."""
    if len(nodes) <= _LISTED:
        return ", ".join(graph.names[node] for node in sorted(nodes))
    shown = sorted(sorted(last, key=lambda node: (node != pivot, node))[:_LISTED])
    names = ", ".join(graph.names[node] for node in shown)
    return f"{names} and {len(nodes) - len(shown):,} others"
