"""Grow reasoning trees, step by step or from whole chains: the search of stage 01.

All trees of a call grow together, one level (or one round of chains) at a time. Each child has its own seed, derived
from the run's seed, the question and the child's place in its tree. Random choices of what is cut are seeded the same
way. So the other questions of a call do not change a tree. Identical siblings are one row; its ``weight`` counts the
steps of the unmerged tree that it represents.

A path ends at the end of the model's turn, at a line that states an answer, or at a limit. A line inside an open
thinking ends nothing. The letter of a leaf is what ``extract_answer`` reads in the whole path, as stage 05 reads a
response (**ours**).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Question, Sampling
from medrefl_utils.core.schemas import STEPS
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import extract_answer, split_thinking, states_answer
from medrefl_utils.exam.steps import STEP_KINDS, content_start, split_into_steps
from medrefl_utils.models.generators.interface import Generator, Prefix, derive_seed

UNFINISHED = ("wrong", "drop")
MODES = ("stepwise", "full-path")

Watch = Callable[[int, int, int], object]
"""A function that gets the numbers of open steps, right leaves and wrong leaves after each level."""

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


@dataclass
class _Node:
    """A step of a growing tree, with what its continuation needs."""

    question: Question
    node_id: int
    parent: _Node | None
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
    children: dict[object, _Node] = field(default_factory=dict)

    def path(self) -> list[_Node]:
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

    def right(self) -> bool:
        return self.answer == self.question.gold


class _Tree:
    """A growing tree: its nodes in the order in which they were made, the open ones, and counts of what was cut."""

    def __init__(self, question: Question, growth: SearchSettings, seed: int, thinking_open: bool):
        self.growth, self.seed, self.thinking_open = growth, seed, thinking_open
        self.root = _Node(question, 0, None, "")
        self.nodes = [self.root]
        self.open = [self.root]
        self.asked: list[_Node] = []
        self.refusal = ""
        self.counts: Counter[str] = Counter()

    def add(self, parent: _Node, place: str, written: Continuation, weight: int) -> _Node:
        """Add a child with this text; if an identical sibling exists, add to its weight and return it."""
        key = written.token_ids or written.text
        if key in parent.children:
            self.counts["merged"] += 1
            parent.children[key].weight += weight
            return parent.children[key]
        child = _Node(
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

    def leaves(self) -> list[_Node]:
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

    def limit(self, fresh: Sequence[_Node], depth: int) -> None:
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

    def kept(self) -> list[_Node]:
        """Return the nodes that are neither cut nor dropped as unfinished, nor lead to such nodes only."""
        drop = self.growth.unfinished == "drop"
        if not drop and not any(node.cut for node in self.nodes):
            return self.nodes
        ends = [node for node in self.leaves() if node.stop == "answer" or not drop]
        keep = {id(step) for node in ends for step in node.path()}
        return [node for node in self.nodes if id(node) in keep or (node.parent is None and keep)]

    def _ending(self, child: _Node, stop: str) -> tuple[str | None, str | None]:
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

    def _answered(self, child: _Node, text: str) -> bool:
        """Say whether a line of a step states an answer, outside of a thinking."""
        lines = split_into_steps(child.text, "line")
        if not any(_states_answer(line, child.question) for line in lines):
            return False
        return bool(split_thinking(text, thinking_open=self.thinking_open)[1].strip())

    def _keep(self, nodes: Sequence[_Node], n: int, why: str, depth: int) -> None:
        kept = {node.node_id for node in self.draw(nodes, n, why, depth)}
        self._cut([node for node in nodes if node.node_id not in kept], why)

    def _cut(self, nodes: Sequence[_Node], why: str) -> None:
        for node in nodes:
            node.cut = True
        self.counts[f"cut_{why}"] += len(nodes)


def grow_trees(
    questions: Sequence[Question],
    generator: Generator,
    *,
    growth: SearchSettings,
    sampling: Sampling,
    seed: int,
    watch: Watch | None = None,
    counts: Counter[str] | None = None,
    dropped: DropCounts | None = None,
) -> pd.DataFrame:
    """Grow a tree for each question.

    Args:
        questions: the roots.
        generator: writes the steps.
        growth: the shape of the trees.
        sampling: how tokens are drawn; ``max_tokens`` limits one step.
        seed: the run's seed.
        watch: called after each level.
        counts: is added to: ``merged`` siblings, leaves by why they ended (``ended_answer``, ``ended_run_on`` ...),
            steps cut by a limit (``cut_open``, ``cut_leaves``) or because the targets were reached (``cut_decided``).
        dropped: is added to: questions without a tree, because a server refused one of their prompts (``refused``).

    Returns:
        One table of all steps with the columns of ``core.schemas.STEPS``. Questions keep their order; the rows of a
        tree are in the order in which it grew.
    """
    trees = [_Tree(question, growth, seed, generator.thinking_open) for question in questions]
    if growth.search_mode == "full-path":
        _chains(trees, generator, growth, sampling, watch)
    else:
        _levels(trees, generator, growth, sampling, watch)
    _ask(trees, generator, sampling)
    if counts is not None:
        for tree in trees:
            counts.update(tree.counts)
    for tree in trees:
        if tree.refusal and dropped is not None:
            dropped.drop("refused", f"question {tree.root.question.question_id!r}: {tree.refusal}")
    return pd.DataFrame([_row(node) for tree in trees for node in tree.kept()], columns=STEPS.names)


def _levels(
    trees: Sequence[_Tree], generator: Generator, growth: SearchSettings, sampling: Sampling, watch: Watch | None
) -> None:
    """Expand all open steps of all trees, level by level."""
    depth = 0
    while frontier := [(tree, node) for tree in trees for node in tree.open]:
        k = growth.children(depth)
        places = [[f"{node.place}.{i}" for i in range(k)] for _, node in frontier]
        drawn = _drawn(frontier, places, k, growth.steps, sampling, generator)
        depth += 1
        fresh: dict[int, dict[int, _Node]] = {id(tree): {} for tree in trees}
        for (tree, node), names, continuations in zip(frontier, places, drawn, strict=True):
            for place, written in zip(names, [] if tree.refusal else continuations, strict=not tree.refusal):
                child = tree.add(node, place, written, node.weight)
                fresh[id(tree)][child.node_id] = child
        for tree in [tree for tree in trees if not tree.refusal]:
            tree.limit(list(fresh[id(tree)].values()), depth)
        _report(trees, watch)


def _chains(
    trees: Sequence[_Tree], generator: Generator, growth: SearchSettings, sampling: Sampling, watch: Watch | None
) -> None:
    """Draw rounds of whole chains: the first from the question, the others from inner steps, drawn by the seed."""
    whole = replace(sampling, max_tokens=growth.max_path_tokens)
    branched: set[int] = set()
    for turn, k in enumerate(growth.branching):
        starts = []
        for tree in trees:
            if tree.refusal:
                continue
            inner = [n for n in tree.nodes if n.stop is None and not n.asked and n.parent and id(n) not in branched]
            chosen = tree.draw(inner, growth.max_frontier, "branch", turn) if turn else [tree.root]
            if tree.decided():
                tree.counts["cut_decided"] += len(chosen)
                chosen = []
            if growth.max_leaves and turn:
                fitting = tree.draw(chosen, max(0, growth.max_leaves - len(tree.leaves())) // k, "leaves", turn)
                tree.counts["cut_leaves"] += k * (len(chosen) - len(fitting))
                chosen = fitting
            branched.update(map(id, chosen))
            starts += [(tree, node) for node in chosen]
        if growth.max_leaves and not turn:
            k = min(k, growth.max_leaves)
        if not starts:
            break
        places = [[f"{node.place}.{turn}:{i}" for i in range(k)] for _, node in starts]
        drawn = _drawn(starts, places, k, None, whole, generator)
        for (tree, node), names, chains in zip(starts, places, drawn, strict=True):
            for place, chain in zip(names, [] if tree.refusal else chains, strict=not tree.refusal):
                _add_chain(tree, node, place, generator.cut(chain, growth.steps), sampling.max_tokens)
        for tree in trees:
            tree.open = []
        _report(trees, watch)


def _add_chain(tree: _Tree, start: _Node, place: str, steps: Sequence[Continuation], longest: int) -> None:
    """Add a chain's steps to the tree, along the steps that other chains share with it, up to its first ending."""
    node = start
    for number, step in enumerate(steps):
        if step.length > longest:
            step = replace(step, stop="length")
        node = tree.add(node, f"{place}.{number}", step, 1)
        if node.stop or node.asked:
            return


def _drawn(
    frontier: Sequence[tuple[_Tree, _Node]],
    places: Sequence[Sequence[str]],
    k: int,
    steps: str | None,
    sampling: Sampling,
    generator: Generator,
) -> list[list[Continuation]]:
    """Draw ``k`` continuations of each open step, each with the seed of its place."""
    seeds = [
        [derive_seed(tree.seed, node.question.question_id, place) for place in names]
        for (tree, node), names in zip(frontier, places, strict=True)
    ]
    drawn = generator.expand([node.prefix() for _, node in frontier], k, steps, sampling, seeds)
    for (tree, _), row in zip(frontier, drawn, strict=True):
        for written in row:
            if written.stop == "refused" and not tree.refusal:
                tree.refuse(written.refusal)
    return drawn


def _ask(trees: Sequence[_Tree], generator: Generator, sampling: Sampling) -> None:
    """Add a last step that states an answer to each path that ended without one."""
    asked = [(tree, node) for tree in trees for node in tree.asked]
    if not asked:
        return
    lines = ["Answer:" if not node.text or node.text.endswith("\n") else "\nAnswer:" for _, node in asked]
    heads = [tuple(generator.encode(line)) for line in lines]
    prefixes = [node.prefix() for _, node in asked]
    drawn = generator.expand(
        [
            Prefix(p.messages, p.token_ids + head, p.text + line)
            for p, head, line in zip(prefixes, heads, lines, strict=True)
        ],
        1,
        "line",
        replace(sampling, max_tokens=min(sampling.max_tokens, 16)),
        [[derive_seed(tree.seed, node.question.question_id, f"{node.place}.answer")] for tree, node in asked],
    )
    for (tree, node), line, head, [written] in zip(asked, lines, heads, drawn, strict=True):
        if written.stop == "refused":
            tree.refuse(written.refusal)
        if tree.refusal:
            continue
        leaf = _Node(
            node.question, len(tree.nodes), node, f"{node.place}.answer", line + written.text,
            head + written.token_ids, len(head) + written.length, node.weight, written.logprob, node.depth + 1,
        )  # fmt: skip
        text = "".join(step.text for step in leaf.path())
        leaf.answer = extract_answer(text, node.question.options, thinking_open=tree.thinking_open).letter
        leaf.stop = "answer" if leaf.answer else "unreadable"
        tree.counts[f"ended_{leaf.stop}"] += 1
        tree.nodes.append(leaf)


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


def _tokens(path: Sequence[_Node]) -> int:
    return sum(step.n_tokens for step in path)


def _row(node: _Node) -> dict[str, object]:
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


def _report(trees: Sequence[_Tree], watch: Watch | None) -> None:
    if watch is not None:
        leaves = [leaf.right() for tree in trees for leaf in tree.leaves()]
        watch(sum(len(tree.open) for tree in trees), sum(leaves), len(leaves) - sum(leaves))
