"""Paths between the entities of a question and of its answer: the shortest ones within limits, and a choice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.models.generators.interface import derive_seed


@dataclass(frozen=True)
class KnowledgePath:
    """A path in a graph: its nodes, and the relations of each of its ``len(nodes) - 1`` edges."""

    nodes: tuple[int, ...]
    relations: tuple[tuple[str, ...], ...]


class _Search:
    """The nodes at distance 0, 1, 2 ... from one node; a level is expanded when it is first asked for."""

    def __init__(self, graph: KnowledgeGraph, start: int) -> None:
        self.indptr, self.indices = graph.adjacency.indptr, graph.adjacency.indices
        self.distance = np.full(len(graph.nodes), -1, dtype=np.int8)
        self.distance[start] = 0
        self.levels = [np.array([start], dtype=np.int64)]

    def level(self, depth: int) -> np.ndarray:
        while len(self.levels) <= depth:
            near = _neighbours(self.indptr, self.indices, self.levels[-1])
            new = near[self.distance[near] < 0]
            self.distance[new] = len(self.levels)
            # A scan of the distances is faster than a sort of ``new``, which has a node once per edge that leads to it.
            self.levels.append(np.flatnonzero(self.distance == len(self.levels)))
        return self.levels[depth]

    def cost(self) -> int:
        """Return the number of edges that the next level's expansion reads."""
        last = self.levels[-1]
        return int((self.indptr[last + 1] - self.indptr[last]).sum())


def shortest_paths(
    graph: KnowledgeGraph, sources: Sequence[int], targets: Sequence[int], *, max_hops: int, max_paths: int, seed: int
) -> list[KnowledgePath]:
    """Return the shortest paths from each source to each target.

    All shortest paths of a pair are found; if there are more than ``max_paths``, a sample of that size is drawn
    uniformly from all of them, without repetition. The sample of a pair depends on the seed and on the two nodes only.

    Args:
        graph: the graph.
        sources: node numbers, such as the entities of the question.
        targets: node numbers, such as the entities of the answer. A pair of a node with itself has no path.
        max_hops: a pair whose distance is greater has no path; at least 1.
        max_paths: largest number of paths of a pair; at least 1 (published: 50).
        seed: of the samples.

    Returns:
        The paths, ordered by source, target and nodes.

    Raises:
        MedReflError: a limit below 1.
    """
    if max_hops < 1 or max_paths < 1:
        raise MedReflError(f"max_hops is {max_hops} and max_paths is {max_paths}, expected at least 1")
    found = []
    searches: dict[int, _Search] = {}
    for source in dict.fromkeys(map(int, sources)):
        for target in dict.fromkeys(map(int, targets)):
            if source == target:
                continue
            for node in (source, target):
                if node not in searches:
                    searches[node] = _Search(graph, node)
            found += _paths_of_pair(
                graph, searches[source], searches[target], max_hops, max_paths, (seed, source, target)
            )
    return found


def _paths_of_pair(
    graph: KnowledgeGraph, here: _Search, there: _Search, max_hops: int, max_paths: int, place: tuple[int, int, int]
) -> list[KnowledgePath]:
    meeting = _meet(here, there, max_hops)
    if meeting is None:
        return []
    i, j, middle = meeting
    before, after = _layers(here, middle, i), _layers(there, middle, j)
    layers = [*before[::-1], middle, *after]
    steps = _steps(graph, layers)
    total = int(steps[0].ways[0])
    if total <= max_paths:
        chosen: Sequence[int] = range(total)
    else:
        seed, source, target = place
        keys = [graph.keys[node] for node in (source, target)]
        chosen = _draw(random.Random(derive_seed("paths", seed, keys)), total, max_paths)
    paths = []
    for number in chosen:
        nodes = _unrank(number, layers, steps)
        relations = tuple(graph.relations(a, b) for a, b in zip(nodes, nodes[1:], strict=False))
        paths.append(KnowledgePath(nodes, relations))
    return paths


def _draw(rng: random.Random, total: int, k: int) -> list[int]:
    """Return ``k`` different numbers below ``total``, which may be greater than a machine's integer, in order."""
    if total <= 4 * k:
        return sorted(rng.sample(range(total), k))
    drawn: set[int] = set()
    while len(drawn) < k:
        drawn.add(rng.randrange(total))
    return sorted(drawn)


def _meet(here: _Search, there: _Search, max_hops: int) -> tuple[int, int, np.ndarray] | None:
    """Return depths i and j, i + j the distance, and the nodes at depth i of ``here`` and j of ``there``."""
    i = j = 0
    for hops in range(max_hops + 1):
        if hops > 0:
            # One search goes a level deeper: one that has it already, else the cheaper one.
            if len(here.levels) > i + 1:
                i += 1
            elif len(there.levels) > j + 1:
                j += 1
            elif here.cost() <= there.cost():
                i += 1
            else:
                j += 1
        level = here.level(i)
        there.level(j)
        middle = level[there.distance[level] == j]
        if len(middle):
            return i, j, middle
        if not len(level) or not len(there.level(j)):
            return None
    return None


def _layers(search: _Search, middle: np.ndarray, depth: int) -> list[np.ndarray]:
    """Return the nodes between the search's start and the middle that are on a shortest path, from the middle on."""
    layers, last = [], middle
    for distance in range(depth - 1, -1, -1):
        near = _neighbours(search.indptr, search.indices, last)
        last = np.unique(near[search.distance[near] == distance])
        layers.append(last)
    return layers


@dataclass(frozen=True)
class _Steps:
    """The edges from one layer to the next: those of the layer's node i are ``places[start[i] : start[i + 1]]``."""

    start: np.ndarray
    places: np.ndarray
    ways: np.ndarray
    """number of ways from each node of the layer to the last layer"""


def _steps(graph: KnowledgeGraph, layers: Sequence[np.ndarray]) -> list[_Steps]:
    """Return the edges between consecutive layers, with the number of ways; the last layer is one node."""
    steps: list[_Steps] = []
    ways = np.ones(len(layers[-1]), dtype=np.int64)
    place = np.full(len(graph.nodes), -1, dtype=np.int64)
    indptr, indices = graph.adjacency.indptr, graph.adjacency.indices
    for layer, following in zip(layers[-2::-1], layers[:0:-1], strict=True):
        place[following] = np.arange(len(following))
        to = place[_neighbours(indptr, indices, layer)]
        place[following] = -1
        owner = np.repeat(np.arange(len(layer)), indptr[layer + 1] - indptr[layer])
        kept = to >= 0
        start = np.searchsorted(owner[kept], np.arange(len(layer) + 1))
        places = to[kept]
        if ways.dtype != object and ways[places].astype(float).sum() > 2**62:
            ways = ways.astype(object)  # Python's integers do not overflow
        ways = np.add.reduceat(ways[places], start[:-1])
        steps.insert(0, _Steps(start, places, ways))
    return steps


def _unrank(number: int, layers: Sequence[np.ndarray], steps: Sequence[_Steps]) -> tuple[int, ...]:
    """Return the path with this number, in the order of the nodes' numbers."""
    place = 0  # the first layer is one node
    nodes = [int(layers[0][0])]
    for depth, step in enumerate(steps):
        following = step.places[step.start[place] : step.start[place + 1]]
        ways = steps[depth + 1].ways[following] if depth + 1 < len(steps) else np.ones(len(following), dtype=np.int64)
        end = np.cumsum(ways)
        chosen = int(np.searchsorted(end, number, side="right"))
        number -= int(end[chosen - 1]) if chosen else 0
        place = int(following[chosen])
        nodes.append(int(layers[depth + 1][place]))
    return tuple(nodes)


def _neighbours(indptr: np.ndarray, indices: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Return the neighbours of all these nodes, with repetitions."""
    if len(nodes) == 1:
        return indices[indptr[nodes[0]] : indptr[nodes[0] + 1]]
    start, size = indptr[nodes].astype(np.int64), (indptr[nodes + 1] - indptr[nodes]).astype(np.int64)
    # Place k of the result is entry k - (end of the earlier nodes' entries) of its own node.
    offset = np.repeat(start - np.cumsum(size) + size, size)
    return indices[offset + np.arange(len(offset))]


def choose_paths(graph: KnowledgeGraph, paths: Sequence[KnowledgePath], k: int) -> list[KnowledgePath]:
    """Return at most ``k`` paths of each pair of ends (published: 3), those through the least connected nodes.

    A hub, such as a common symptom, joins almost any two nodes and explains little. So a path costs the sum of the
    logarithms of its inner nodes' degrees. Equal costs are decided by the nodes' numbers. Source: ours, after the
    degree-weighted path count of Himmelstein and Baranzini (2015).
    """

    def cost(path: KnowledgePath) -> tuple[float, tuple[int, ...]]:
        inner = np.asarray(path.nodes[1:-1], dtype=np.int64)
        return round(float(np.log(graph.degree[inner]).sum()), 9), path.nodes

    by_ends: dict[tuple[int, int], list[KnowledgePath]] = {}
    for path in paths:
        by_ends.setdefault((path.nodes[0], path.nodes[-1]), []).append(path)
    return [path for group in by_ends.values() for path in sorted(set(group), key=cost)[: max(0, k)]]


def describe_path(graph: KnowledgeGraph, path: KnowledgePath) -> str:
    """Return a path as text: "name -[relation]-> name <-[relation]- name".

    The arrow points as the graph's row does; a relation in both directions has an arrow to the right.
    Several relations between two nodes are separated by "; ".
    """
    text = graph.names[path.nodes[0]]
    for a, b in zip(path.nodes, path.nodes[1:], strict=False):
        there, back = graph.directed_relations(a, b)
        only_back = [name for name in back if name not in there]
        right = f"-[{'; '.join([*there, *(f'inverse of {name}' for name in only_back)])}]->"
        arrow = right if there else f"<-[{'; '.join(back)}]-"
        text += f" {arrow} {graph.names[b]}"
    return text
