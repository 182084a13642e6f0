"""Grow reasoning trees, step by step or from whole chains: the search of stage 01.

All trees of a call grow together. A step goes on as soon as its siblings are complete, whatever the others do; a tree
with a limit on open steps or leaves waits for its level, and a round of chains for its round. Each child has its own
seed, derived from the run's seed, the question and the child's place in its tree. Random choices of what is cut are
seeded the same way. So neither the other questions of a call nor the order of completion change a tree. Identical
siblings are one row; its ``weight`` counts the steps of the unmerged tree that it represents.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Continuation, Question, Sampling
from medrefl_utils.core.schemas import STEPS
from medrefl_utils.exam.answers.reader import extract_answer
from medrefl_utils.models.generators.interface import Expansion, Generator, Prefix, derive_seed
from medrefl_utils.trees.growing_tree import Node, SearchSettings, Tree, table_row

Watch = Callable[[int, int, int], object]
"""A function that gets the numbers of open steps, right leaves and wrong leaves, as trees grow."""

_SHOWN_EVERY = 0.5
"""Seconds between two calls of a ``Watch``."""


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
        watch: called as the trees grow.
        counts: is added to: ``merged`` siblings, leaves by why they ended (``ended_answer``, ``ended_run_on`` ...),
            steps cut by a limit (``cut_open``, ``cut_leaves``) or because the targets were reached (``cut_decided``).
        dropped: is added to: questions without a tree, because a server refused one of their prompts (``refused``).

    Returns:
        One table of all steps with the columns of ``core.schemas.STEPS``. Questions keep their order; the rows of a
        tree are in the order in which it grew.
    """
    trees = [Tree(question, growth, seed, generator.thinking_open) for question in questions]
    if growth.search_mode == "full-path":
        _chains(trees, generator, growth, sampling, watch)
    else:
        _stepwise(trees, generator, growth, sampling, watch)
    _ask(trees, generator, sampling)
    if counts is not None:
        for tree in trees:
            counts.update(tree.counts)
    for tree in trees:
        if tree.refusal and dropped is not None:
            dropped.drop("refused", f"question {tree.root.question.question_id!r}: {tree.refusal}")
    return pd.DataFrame([table_row(node) for tree in trees for node in tree.kept()], columns=STEPS.names)


def _stepwise(
    trees: Sequence[Tree], generator: Generator, growth: SearchSettings, sampling: Sampling, watch: Watch | None
) -> None:
    """Expand the open steps of all trees, each tree at its own pace."""
    shown = time.monotonic()

    def then(expansion: Expansion, written: list[Continuation]) -> list[Expansion] | None:
        nonlocal shown
        tree, node = expansion.of
        more = tree.grow(node, written)
        if watch is not None and time.monotonic() - shown > _SHOWN_EVERY:
            shown = time.monotonic()
            _report(trees, watch)
        return more

    first = [one for tree in trees for one in tree.expansions([tree.root])]
    generator.expand_onward(first, growth.steps, sampling, then)
    for tree in trees:
        if not tree.refusal:
            tree.number()
    _report(trees, watch)


def _chains(
    trees: Sequence[Tree], generator: Generator, growth: SearchSettings, sampling: Sampling, watch: Watch | None
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


def _add_chain(tree: Tree, start: Node, place: str, steps: Sequence[Continuation], longest: int) -> None:
    """Add a chain's steps to the tree, along the steps that other chains share with it, up to its first ending."""
    node = start
    for number, step in enumerate(steps):
        if step.length > longest:
            step = replace(step, stop="length")
        node = tree.add(node, f"{place}.{number}", step, 1)
        if node.stop or node.asked:
            return


def _drawn(
    frontier: Sequence[tuple[Tree, Node]],
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


def _ask(trees: Sequence[Tree], generator: Generator, sampling: Sampling) -> None:
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
        leaf = Node(
            node.question, len(tree.nodes), node, f"{node.place}.answer", line + written.text,
            head + written.token_ids, len(head) + written.length, node.weight, written.logprob, node.depth + 1,
        )  # fmt: skip
        text = "".join(step.text for step in leaf.path())
        leaf.answer = extract_answer(text, node.question.options, thinking_open=tree.thinking_open).letter
        leaf.stop = "answer" if leaf.answer else "unreadable"
        tree.counts[f"ended_{leaf.stop}"] += 1
        tree.nodes.append(leaf)


def _report(trees: Sequence[Tree], watch: Watch | None) -> None:
    if watch is not None:
        leaves = [leaf.right() for tree in trees for leaf in tree.leaves()]
        inner = (node for tree in trees for node in tree.nodes if not (node.stop or node.asked or node.cut))
        watch(sum(not node.children for node in inner), sum(leaves), len(leaves) - sum(leaves))
