"""Stage 01: grow a tree of reasoning steps for each question.

Trees grow level by level, all trees of a shard together: from each open step the generator draws ``branching[depth]``
children, each with a seed made of the run's seed, the question and the child's place in its tree. Identical
siblings are merged into one row whose ``weight`` counts the steps of the unmerged tree that it stands for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from medrefl_utils import prompts
from medrefl_utils.answers import extract_answer
from medrefl_utils.generators import Generator, Prefix, seed_of
from medrefl_utils.records import STEPS, MedReflError, Question, Sampling
from medrefl_utils.store import read_table, table_key, write_table

UNFINISHED = ("wrong", "drop")


@dataclass(frozen=True)
class Growth:
    """The shape of the trees. A step deeper than ``branching`` is long has one child."""

    branching: tuple[int, ...] = (3, 2, 2)
    """children of a step at depth 0, 1, ..."""
    max_depth: int = 12
    """steps on a path; a path that is longer is a leaf without an answer"""
    max_path_tokens: int = 1024
    """tokens on a path; likewise"""
    ask_answer: bool = False
    """ask a path that ends without an answer for one: "Answer:" is written for it, and the model goes on (ours)"""
    unfinished: str = "wrong"
    """what a leaf without a readable answer counts as: "wrong", or "drop" to leave it out"""

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise MedReflError(f"branching is {list(self.branching)}, expected at least one number, each at least 1")
        if self.max_depth < 1:
            raise MedReflError(f"max_depth is {self.max_depth}, expected at least 1")
        if self.unfinished not in UNFINISHED:
            raise MedReflError(f"unfinished is {self.unfinished!r}, expected one of {', '.join(UNFINISHED)}")

    def children(self, depth: int) -> int:
        """How many children a step at this depth gets."""
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
    weight: int = 1
    logprob: float | None = None
    depth: int = 0
    stop: str | None = None
    answer: str | None = None
    asked: bool = False

    def path(self) -> list[_Node]:
        """The steps from the root's child to this one."""
        return [*self.parent.path(), self] if self.parent else []

    def prefix(self) -> Prefix:
        return Prefix(prompts.exam(self.question), tuple(t for step in self.path() for t in step.token_ids))


def grow(
    questions: Sequence[Question],
    generator: Generator,
    *,
    growth: Growth,
    sampling: Sampling,
    seed: int,
    bar: tqdm | None = None,
) -> pd.DataFrame:
    """The trees of these questions as one table of steps, with the columns of ``records.STEPS``.

    ``sampling.max_tokens`` bounds one step. Questions come out in their order, each tree in the order it grew.
    """
    roots = [_Node(question, 0, None, "") for question in questions]
    trees = {id(root): [root] for root in roots}
    frontier = [(root, root) for root in roots]
    depth = 0
    asked: list[tuple[_Node, _Node]] = []
    while frontier:
        k = growth.children(depth)
        drawn = generator.expand(
            [node.prefix() for _, node in frontier],
            k,
            prompts.STEP_BOUNDARY,
            sampling,
            [[seed_of(seed, n.question.question_id, f"{n.place}.{i}") for i in range(k)] for _, n in frontier],
        )
        depth += 1
        opened = []
        for (root, node), continuations in zip(frontier, drawn, strict=True):
            tree = trees[id(root)]
            merged: dict[tuple[int, ...], _Node] = {}
            for i, written in enumerate(continuations):
                if written.token_ids in merged:
                    merged[written.token_ids].weight += node.weight
                    continue
                child = _Node(
                    node.question, len(tree), node, f"{node.place}.{i}", written.text, written.token_ids,
                    node.weight, written.logprob, depth,
                )  # fmt: skip
                child.stop, child.answer = _ending(child, written.stop, growth)
                if growth.ask_answer and written.stop == "end" and child.stop == "unreadable":
                    # What ended the turn goes, so that the turn can go on.
                    child.stop, child.asked, child.token_ids = None, True, written.token_ids[:-1]
                    asked.append((root, child))
                merged[written.token_ids] = child
                tree.append(child)
            opened += [(root, child) for child in merged.values() if child.stop is None and not child.asked]
        frontier = opened
        if bar is not None:
            _show(bar, trees, frontier)
    _ask(asked, trees, generator, sampling, seed)
    nodes = [node for root in roots for node in _kept(trees[id(root)], growth)]
    return pd.DataFrame([_row(node) for node in nodes], columns=STEPS.names)


def roll_out(
    questions: Sequence[Question],
    generator: Generator,
    folder: Path,
    *,
    growth: Growth,
    sampling: Sampling,
    seed: int,
    model_key: str,
    shard_size: int = 64,
) -> pd.DataFrame:
    """Grow all trees in shards of whole questions, each written to ``folder`` as soon as it is done.

    A shard on disk that was made from the same questions, prompts, growth, sampling, seed and ``model_key`` is kept,
    so that a rerun after an interruption goes on where it stopped. Returns all steps.
    """
    common = [prompts.version(), asdict(growth), asdict(sampling), seed, model_key]
    wanted = set()
    with tqdm(total=len(questions), desc="trees", unit="question") as bar:
        for start in range(0, len(questions), shard_size):
            shard = questions[start : start + shard_size]
            key = _digest([[[q.question_id, q.stem, dict(q.options), q.gold] for q in shard], *common])
            path = folder / f"part-{start // shard_size:05d}.parquet"
            wanted.add(path)
            if table_key(path) != key:
                steps = grow(shard, generator, growth=growth, sampling=sampling, seed=seed, bar=bar)
                write_table(path, steps, STEPS, key=key)
            bar.update(len(shard))
    for stale in set(folder.glob("part-*.parquet")) - wanted:
        stale.unlink()
    return read_table(folder, STEPS)


def _ask(
    asked: Sequence[tuple[_Node, _Node]],
    trees: dict[int, list[_Node]],
    generator: Generator,
    sampling: Sampling,
    seed: int,
) -> None:
    """Give each path that ended without an answer a last step that states one."""
    if not asked:
        return
    lines = ["Answer:" if not node.text or node.text.endswith("\n") else "\nAnswer:" for _, node in asked]
    heads = [tuple(generator.encode(line)) for line in lines]
    drawn = generator.expand(
        [
            Prefix(prompts.exam(n.question), n.prefix().token_ids + head)
            for (_, n), head in zip(asked, heads, strict=True)
        ],
        1,
        prompts.STEP_BOUNDARY,
        replace(sampling, max_tokens=min(sampling.max_tokens, 16)),
        [[seed_of(seed, node.question.question_id, f"{node.place}.answer")] for _, node in asked],
    )
    for (root, node), line, head, [written] in zip(asked, lines, heads, drawn, strict=True):
        tree = trees[id(root)]
        leaf = _Node(
            node.question, len(tree), node, f"{node.place}.answer", line + written.text, head + written.token_ids,
            node.weight, written.logprob, node.depth + 1,
        )  # fmt: skip
        leaf.answer = extract_answer("".join(step.text for step in leaf.path()), node.question.options).letter
        leaf.stop = "answer" if leaf.answer else "unreadable"
        tree.append(leaf)


def _ending(child: _Node, stop: str, growth: Growth) -> tuple[str | None, str | None]:
    """Why a step is a leaf, and the letter it states; (None, None) where the path goes on."""
    path = child.path()
    text = "".join(step.text for step in path)
    if stop == "end" or prompts.states_answer(child.text):
        letter = extract_answer(text, child.question.options).letter
        return ("answer" if letter else "unreadable"), letter
    if not child.text.strip():
        return "empty", None
    if stop == "length" or sum(len(step.token_ids) for step in path) >= growth.max_path_tokens:
        return "tokens", None
    if child.text.strip() in {step.text.strip() for step in path[:-1]}:
        return "repeat", None
    if child.depth >= growth.max_depth:
        return "depth", None
    return None, None


def _kept(tree: list[_Node], growth: Growth) -> list[_Node]:
    """The tree's nodes; with ``unfinished="drop"`` without its unanswered leaves and what leads to those alone."""
    if growth.unfinished == "wrong":
        return tree
    keep = {id(step) for node in tree if node.stop == "answer" for step in node.path()}
    return [node for node in tree if id(node) in keep or (node.parent is None and keep)]


def _row(node: _Node) -> dict[str, object]:
    leaf = node.stop is not None
    return {
        "question_id": node.question.question_id,
        "node_id": node.node_id,
        "parent_id": None if node.parent is None else node.parent.node_id,
        "depth": node.depth,
        "kind": "leaf" if leaf else "root" if node.parent is None else "step",
        "text": node.text,
        "token_ids": list(node.token_ids),
        "answer": node.answer,
        "outcome": (1.0 if node.answer == node.question.gold else -1.0) if leaf else float("nan"),
        "stop": node.stop,
        "weight": node.weight,
        "n_tokens": len(node.token_ids),
        "logprob": node.logprob,
    }


def _show(bar: tqdm, trees: dict[int, list[_Node]], frontier: Sequence[object]) -> None:
    leaves = [node for tree in trees.values() for node in tree if node.stop is not None]
    right = sum(node.answer == node.question.gold for node in leaves)
    bar.set_postfix(open=len(frontier), right=right, wrong=len(leaves) - right)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
