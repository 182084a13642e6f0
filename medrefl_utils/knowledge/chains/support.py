"""Hold each step of a chain against the graph: supported, contradicted or unknown.

A graph is never complete, so a missing edge alone says nothing. It contradicts a step only where a relation is
*functional*: each node of one type has exactly one neighbour of another type, as each disease of the clinic has one
mechanism. The rules are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.linking import Mention

SUPPORT = ("supported", "contradicted", "unknown")
_FEWEST = 5
"""Nodes that must have such a neighbour before a relation counts as functional."""
_EXACTLY_ONE = 0.99
"""Share of them that must have exactly one."""


class SupportChecker:
    """Marks steps by a graph; ``link`` links the entities of a step's text."""

    def __init__(self, graph: KnowledgeGraph, link: Callable[[str], Sequence[Mention]]) -> None:
        self.graph, self.link = graph, link

    def marks(self, steps: Sequence[str]) -> list[str]:
        """Return a mark of ``SUPPORT`` for each step."""
        return [self.mark(step) for step in steps]

    def mark(self, step: str) -> str:
        """Return the mark of one step.

        - ``contradicted``: the step names a node and one of a type to which its relation is functional, but not the
          right one; and that one belongs to no other named node.
        - ``supported``: it names at least two nodes, and the graph joins each of them with another one of them.
        - ``unknown``: else. A step that negates one of its entities is unknown as well.
        """
        mentions = self.link(step)
        nodes = list(dict.fromkeys(one.node for one in mentions))
        if len(nodes) < 2 or any(one.negated for one in mentions):
            return "unknown"
        near = {node: set(self.graph.neighbours(node).tolist()) for node in nodes}
        if any(self._contradicts(a, nodes, near) for a in nodes):
            return "contradicted"
        joined = all(near[node].intersection(nodes) for node in nodes)
        return "supported" if joined else "unknown"

    def _contradicts(self, a: int, nodes: Sequence[int], near: dict[int, set[int]]) -> bool:
        types = self._types
        for kind in {types[node] for node in nodes} - {types[a]}:
            if not self.functional[types[a], kind]:
                continue
            named = [node for node in nodes if types[node] == kind]
            of_a = [node for node in near[a] if types[node] == kind]
            same = {node for node in nodes if types[node] == types[a]}
            if of_a and not set(of_a) & set(named) and any(not near[node] & same for node in named):
                return True
        return False

    @cached_property
    def functional(self) -> np.ndarray:
        """(types, types) whether nodes of the first type have exactly one neighbour of the second type."""
        n = len(self.kinds)
        functional = np.zeros((n, n), dtype=bool)
        joins = (self.graph.adjacency.astype(bool)).astype(np.int32)
        joins.data[:] = 1
        for kind in range(n):
            count = joins @ (self._types == kind).astype(np.int32)
            for other in set(range(n)) - {kind}:
                counts = count[(self._types == other) & (count > 0)]
                functional[other, kind] = len(counts) >= _FEWEST and np.mean(counts == 1) >= _EXACTLY_ONE
        return functional

    @cached_property
    def kinds(self) -> list[str]:
        """The graph's node types, sorted."""
        return sorted(self.graph.nodes["type"].unique())

    @cached_property
    def _types(self) -> np.ndarray:
        place = {kind: number for number, kind in enumerate(self.kinds)}
        return self.graph.nodes["type"].map(place).to_numpy()
