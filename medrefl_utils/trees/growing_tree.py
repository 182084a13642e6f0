"""One growing tree of stage 01: its shape, its steps, and why a path ends.

A path ends at the end of the model's turn, at a line that states an answer, or at a limit. A line inside an open
thinking ends nothing. The letter of a leaf is what ``extract_answer`` reads in the whole path, as stage 05 reads a
response (**ours**).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Question
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import extract_answer, split_thinking, states_answer
from medrefl_utils.exam.steps import STEP_KINDS, content_start, split_into_steps
from medrefl_utils.models.generators.interface import Expansion, Prefix, derive_seed

UNFINISHED = ("wrong", "drop")
MODES = ("stepwise", "full-path")

_LONG_STEP = 40
"""A shorter step, such as "That makes sense.", may come twice in a path that is in no loop (ours) [characters]."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class SearchSettings:
    """The shape of the trees. Steps beyond a limit are drawn by the seed, left out of the table, and counted."""

    branching: tuple[int, ...] = (3, 2, 2)
    """children of a step at depth 0, 1, ...; deeper steps have one. full-path: chains drawn in round 0, 1, ..."""
    max_depth: int = 1000
    """maximum number of steps on a path; a longer path is a leaf without an answer"""
    max_path_tokens: int = 1024
    """maximum number of tokens on a path; a longer path is a leaf without an answer"""
    force_answer: bool = False
    """add "Answer:" to a path that ends without an answer, and let the model complete it (ours)"""
    unfinished: str = "wrong"
    """a leaf without a readable answer counts as "wrong", or is left out ("drop")"""
    search_mode: str = "stepwise"
    """"stepwise", or "full-path": whole chains, cut into steps; later rounds branch from steps of the tree"""
    max_frontier: int = 0
    """maximum number of steps of a question expanded per level (full-path: per round); 0 means no limit"""
    max_leaves: int = 0
    """maximum number of leaves of a question; 0 means no limit"""
    target_right: int = 0
    """stop a question at this many right and ``target_wrong`` wrong leaves; 0 and 0 mean no target"""
    target_wrong: int = 0
    """see ``target_right``; leaves that state no answer do not count, because no pair is made of them"""
    steps: str = "line"
    """what a step is: "line", "paragraph" or "sentence" (``exam.steps``)"""

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise MedReflError(f"branching is {list(self.branching)}, expected at least one number, each at least 1")
        if self.max_depth < 1:
            raise MedReflError(f"max_depth is {self.max_depth}, expected at least 1")
        for name, choices in (("unfinished", UNFINISHED), ("search_mode", MODES), ("steps", STEP_KINDS)):
            if getattr(self, name) not in choices:
                raise MedReflError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        for name in ("max_frontier", "max_leaves", "target_right", "target_wrong"):
            if getattr(self, name) < 0:
                raise MedReflError(f"{name} is {getattr(self, name)}, expected at least 0 (0 means no limit)")
        if self.search_mode == "full-path" and len(self.branching) > 1 and not self.max_frontier:
            raise MedReflError(
                "max_frontier is 0, but search_mode full-path needs the number of steps that a round branches from"
            )

    def children(self, depth: int) -> int:
        """Return the number of children of a step at this depth."""
        return self.branching[depth] if depth < len(self.branching) else 1

    def limits(self) -> bool:
        """Say whether something limits the steps of a question, so that its levels are complete before they go on."""
        return bool(self.max_frontier or self.max_leaves or self.target_right or self.target_wrong)


@dataclass
class Node:
    """A step of a growing tree, with what its continuation needs."""

    question: Question
    node_id: int
    parent: Node | None
    place: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    n_tokens: int = 0
    weight: int = 1
    logprob: float | None = None
    depth: int = 0
    stop: str | None = None
    answer: str | None = None
    asked: bool = False
    cut: bool = False
    children: dict[object, Node] = field(default_factory=dict)

    def path(self) -> list[Node]:
        """Return the steps from the root's child to this one."""
        steps, node = [], self
        while node.parent is not None:
            steps.append(node)
            node = node.parent
        return steps[::-1]

    def prefix(self) -> Prefix:
        path = self.path()
        ids = tuple(token for step in path for token in step.token_ids)
        return Prefix(prompts.exam(self.question), ids, "".join(step.text for step in path))

    def turn(self) -> int:
        """Return the step's number among its siblings."""
        return int(self.place.rpartition(".")[2])

    def right(self) -> bool:
        return self.answer == self.question.gold


class Tree:
    """A growing tree: its nodes in the order in which they were made, the open ones, and counts of what was cut."""

    def __init__(self, question: Question, growth: SearchSettings, seed: int, thinking_open: bool):
        self.growth, self.seed, self.thinking_open = growth, seed, thinking_open
        self.root = Node(question, 0, None, "")
        self.nodes = [self.root]
        self.open = [self.root]
        self.asked: list[Node] = []
        self.level: list[tuple[Node, list[Continuation]]] = []
        self.refusal = ""
        self.counts: Counter[str] = Counter()

    def add(self, parent: Node, place: str, written: Continuation, weight: int) -> Node:
        """Add a child with this text; if an identical sibling exists, add to its weight and return it."""
        key = written.token_ids or written.text
        if key in parent.children:
            self.counts["merged"] += 1
            parent.children[key].weight += weight
            return parent.children[key]
        child = Node(
            parent.question, len(self.nodes), parent, place, written.text, written.token_ids, written.length,
            weight, written.logprob, parent.depth + 1,
        )  # fmt: skip
        child.stop, child.answer = self._ending(child, written.stop)
        if self.growth.force_answer and written.stop == "end" and child.stop == "unreadable":
            # Remove the token that ended the turn, so that the turn can go on.
            child.stop, child.asked, child.token_ids = None, True, written.token_ids[:-1]
            child.n_tokens = len(child.token_ids) or child.n_tokens
            self.asked.append(child)
        if child.stop:
            run_on = child.stop == "tokens" and _tokens(child.path()) < self.growth.max_path_tokens
            self.counts["ended_run_on" if run_on else f"ended_{child.stop}"] += 1
        parent.children[key] = child
        self.nodes.append(child)
        return child

    def refuse(self, refusal: str) -> None:
        """Give the tree up: a server refused one of its prompts, and a part of a tree would give wrong values."""
        self.refusal, self.open, self.asked, self.nodes = refusal, [], [], []

    def expansions(self, nodes: Sequence[Node]) -> list[Expansion]:
        """Return what these steps need: one continuation per child, each with the seed of its place."""
        return [
            Expansion(
                node.prefix(),
                [
                    derive_seed(self.seed, node.question.question_id, f"{node.place}.{i}")
                    for i in range(self.growth.children(node.depth))
                ],
                (self, node),
            )
            for node in nodes
        ]

    def grow(self, node: Node, written: list[Continuation]) -> list[Expansion] | None:
        """Add a step's children; return what is expanded next, or None until the level is complete.

        Without a limit, children are expanded at once. A limit is drawn among all steps of a level.
        """
        if refused := [one.refusal for one in written if one.stop == "refused"]:
            self.refuse(refused[0])
        if self.refusal:
            return []
        self.level.append((node, written))
        if self.growth.limits() and len(self.level) < len(self.open):
            return None
        level, self.level = sorted(self.level, key=lambda one: one[0].node_id), []
        fresh: dict[int, Node] = {}
        for parent, continuations in level:
            for i, one in enumerate(continuations):
                child = self.add(parent, f"{parent.place}.{i}", one, parent.weight)
                fresh[child.node_id] = child
        if self.growth.limits():
            self.limit(list(fresh.values()), node.depth + 1)
            return self.expansions(self.open)
        return self.expansions([child for child in fresh.values() if child.stop is None and not child.asked])

    def number(self) -> None:
        """Give the steps their numbers, level by level, whatever the order in which they were complete."""
        self.nodes, level = [], [self.root]
        while level:
            for node in level:
                node.node_id = len(self.nodes)
                self.nodes.append(node)
            children = [sorted(node.children.values(), key=Node.turn) for node in level]
            level = [child for siblings in children for child in siblings]
        self.asked.sort(key=lambda node: node.node_id)

    def leaves(self) -> list[Node]:
        return [node for node in self.nodes if node.stop is not None and not node.cut]

    def decided(self) -> bool:
        """Say whether the tree has reached its targets of right and wrong leaves."""
        if not (self.growth.target_right or self.growth.target_wrong):
            return False
        stated = [leaf.right() for leaf in self.leaves() if leaf.answer is not None]
        return sum(stated) >= self.growth.target_right and len(stated) - sum(stated) >= self.growth.target_wrong

    def draw(self, nodes: Sequence[_T], n: int, *what: object) -> list[_T]:
        """Draw ``n`` of the nodes and keep their order; the seed depends on the question and on ``what`` is drawn."""
        if len(nodes) <= n:
            return list(nodes)
        place = derive_seed(self.seed, self.root.question.question_id, *what)
        return [nodes[i] for i in sorted(np.random.Generator(np.random.Philox(place)).permutation(len(nodes))[:n])]

    def limit(self, fresh: Sequence[Node], depth: int) -> None:
        """Keep those of the new steps that are expanded next as ``open``; cut what is beyond the limits."""
        self.open = [node for node in fresh if node.stop is None and not node.asked]
        if self.decided():
            self._cut(self.open, "decided")
        elif self.growth.max_leaves:
            # Every open step leads to at least one leaf: draw from both alike, so that no kind of path is preferred.
            waiting = [node for node in fresh if not node.asked]
            before = len(self.leaves()) - sum(node.stop is not None for node in waiting)
            self._keep(waiting, max(0, self.growth.max_leaves - before), "leaves", depth)
        self.open = [node for node in self.open if not node.cut]
        if self.growth.max_frontier:
            self._keep(self.open, self.growth.max_frontier, "open", depth)
            self.open = [node for node in self.open if not node.cut]

    def kept(self) -> list[Node]:
        """Return the nodes that are neither cut nor dropped as unfinished, nor lead to such nodes only."""
        drop = self.growth.unfinished == "drop"
        if not drop and not any(node.cut for node in self.nodes):
            return self.nodes
        ends = [node for node in self.leaves() if node.stop == "answer" or not drop]
        keep = {id(step) for node in ends for step in node.path()}
        return [node for node in self.nodes if id(node) in keep or (node.parent is None and keep)]

    def _ending(self, child: Node, stop: str) -> tuple[str | None, str | None]:
        """Return why a step is a leaf and the letter that its path states; (None, None) if the path goes on."""
        path = child.path()
        text = "".join(step.text for step in path)
        if stop == "end" or self._answered(child, text):
            letter = extract_answer(text, child.question.options, thinking_open=self.thinking_open).letter
            return ("answer" if letter else "unreadable"), letter
        if not child.text.strip():
            return "empty", None
        if stop == "length" or _tokens(path) >= self.growth.max_path_tokens:
            return "tokens", None
        if _repeats(child.text, [step.text for step in path[:-1]]):
            return "repeat", None
        if child.depth >= self.growth.max_depth:
            return "depth", None
        return None, None

    def _answered(self, child: Node, text: str) -> bool:
        """Say whether a line of a step states an answer, outside of a thinking."""
        lines = split_into_steps(child.text, "line")
        if not any(_states_answer(line, child.question) for line in lines):
            return False
        return bool(split_thinking(text, thinking_open=self.thinking_open)[1].strip())

    def _keep(self, nodes: Sequence[Node], n: int, why: str, depth: int) -> None:
        kept = {node.node_id for node in self.draw(nodes, n, why, depth)}
        self._cut([node for node in nodes if node.node_id not in kept], why)

    def _cut(self, nodes: Sequence[Node], why: str) -> None:
        for node in nodes:
            node.cut = True
        self.counts[f"cut_{why}"] += len(nodes)


def _states_answer(line: str, question: Question) -> bool:
    """Say whether a line, with the headings before it, states an answer; a numbered step states none."""
    start = content_start(line)
    if start is None:
        return False
    alone = states_answer(line[start:], question.options)
    return alone or (start > 0 and not prompts.is_numbered_step(line[start:]) and states_answer(line, question.options))


def _repeats(text: str, before: Sequence[str]) -> bool:
    """Say whether a step shows that the model is in a loop.

    It does if it equals the step before it, or any step of the path if it is long or numbered.
    """
    text, others = text.strip(), [other.strip() for other in before]
    tells = len(text) >= _LONG_STEP or prompts.is_numbered_step(text)
    return text in (others if tells else others[-1:])


def _tokens(path: Sequence[Node]) -> int:
    return sum(step.n_tokens for step in path)


def table_row(node: Node) -> dict[str, object]:
    """Return a step's row of the table STEPS."""
    leaf = node.stop is not None
    given = bool(node.token_ids) or not node.n_tokens
    return {
        "question_id": node.question.question_id,
        "node_id": node.node_id,
        "parent_id": None if node.parent is None else node.parent.node_id,
        "depth": node.depth,
        "kind": "leaf" if leaf else "root" if node.parent is None else "step",
        "text": node.text,
        "token_ids": list(node.token_ids) if given else None,
        "answer": node.answer,
        "outcome": (1.0 if node.right() else -1.0) if leaf else float("nan"),
        "stop": node.stop,
        "weight": node.weight,
        "n_tokens": node.n_tokens,
        "logprob": node.logprob,
    }
