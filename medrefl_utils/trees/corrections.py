"""Locate the error of a wrong path, and rank its corrections by their action value A.

A correction leaves a wrong path w at a step s and takes a step t of another path p of the same tree. t branches off
before the error: its parent is on w, above the wrong step (**ours**: any step above, also the question). Each path that
does not contain the wrong step branches off w at exactly one place. So a correction is a pair (w, p), and t is the
first step of p that is not on w.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binom

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.trees.values import Forest, read_forest, remain_values_of

_Ints = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]

KINDS = ("mid", "post")
EQUAL_WEIGHTS = (1.0, 1.0, 1.0)
_NOISE = 1e-9
"""Values are quotients of counts; a smaller difference is rounding noise."""
_BLOCK = 2_000_000
"""Number of corrections in memory at the same time, before the best are selected."""


def locate_errors(steps: pd.DataFrame, margin: float = 0.0, by_chance: float = 1.0) -> pd.DataFrame:
    """Return the first wrong step of each wrong path, located by the tree's structure (**ours**).

    The first wrong step is the first step whose V is lower than its parent's, by at least ``margin``. The parent's V is
    the weighted mean of its children's, so such a step always has a better sibling. V comes from few leaves, so it
    falls by chance too: with ``by_chance`` below 1, only falls count that are too large for the noise of the counts.
    That is a one-sided binomial test: as few right leaves below the step as there are, of as many leaves, where each is
    right with the parent's share C / (C + W).

    Args:
        steps: table of steps, as ``values.step_values`` takes it.
        margin: minimum fall of V, in [0, 2].
        by_chance: largest p-value of a fall that counts, above 0 and at most 1; 1 counts every fall.

    Returns:
        One row per wrong path, in the order of ``values.paths``: question_id, leaf (of the path), node_id (of the
        wrong step; null if no step falls by the margin).

    Raises:
        MedReflError: the margin or by_chance is out of range; and the errors of ``values.step_values``.
    """
    if not 0 <= margin <= 2:
        raise MedReflError(f"corrections: margin is {margin}, expected 0 to 2")
    if not 0 < by_chance <= 1:
        raise MedReflError(f"corrections: by_chance is {by_chance}, expected above 0 and at most 1")
    forest = read_forest(steps)
    right, wrong_leaves = forest.counts
    leaves = right + wrong_leaves
    first = np.full(len(forest.node), -1)
    for level in forest.levels[1:]:
        fall = forest.value[forest.parent[level]] - forest.value[level]
        falls = (fall > _NOISE) & (fall >= margin - _NOISE)
        if by_chance < 1:
            share = right[forest.parent[level]] / leaves[forest.parent[level]]
            falls &= binom.cdf(right[level], leaves[level], share) <= by_chance
        here = np.where(falls, level, -1)
        above = first[forest.parent[level]]
        first[level] = np.where(above >= 0, above, here)
    wrong = forest.by_node[(forest.leaf & (forest.outcome < 0))[forest.by_node]]
    found = first[wrong]
    nodes = pd.Series(forest.node[found], dtype="Int32").mask(found < 0)
    return pd.DataFrame(
        {
            "question_id": steps["question_id"].iloc[wrong].array,
            "leaf": forest.node[wrong].astype(np.int32),
            "node_id": nodes,
        }
    )


def rank_corrections(
    steps: pd.DataFrame,
    located: pd.DataFrame,
    *,
    kind: str,
    weights: Sequence[float] = EQUAL_WEIGHTS,
    top_k: int | None = None,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rank the corrections of every wrong path with a located error, best first; count the paths left out.

    A path that states no answer (``stop`` is not "answer") is neither corrected nor used as a correction, because it
    concludes nothing (**ours**). If several paths have the same wrong step, "mid" corrects the one with the highest S:
    their texts up to the error are the same (**ours**). Time grows with the number of corrections, memory with the
    number of those kept.

    Args:
        steps: table of steps; a table without ``stop`` counts every path as stating an answer.
        located: wrong steps, from ``locate_errors`` or from a model in the same columns.
        kind: "mid" leaves the path at the wrong step; "post" leaves it after its end, at its leaf.
        weights: weights of the three parts of A (method.md; equal: **ours**).
        top_k: keep this many effective and this many invalid corrections of each path; None: all.

    Returns:
        A table and counts. The table has one row per correction: question_id, wrong_leaf and wrong_value (w and its S),
        left (s), taken (t), leaf (of p), effective (p ends right), the parts of A (``gain_step`` V(t) - V(s),
        ``gain_path`` S(p) - S(w), ``gain_rest`` R(t, p) - R(s, w)), and ``action``: A, their weighted mean, in
        [-2, 2]. Rows are sorted by question and w as in ``values.paths``; then effective first; then by falling A; ties
        by leaf id. The counts are of wrong paths left out: ``unreadable``, ``no_error`` (no error located),
        ``error_ends_path`` (mid: the wrong step is the leaf), ``same_error`` (mid: another path has the same error).

    Raises:
        MedReflError: kind, weights or top_k is out of range, or a located step is not on its wrong path.
    """
    if kind not in KINDS:
        raise MedReflError(f"corrections: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if len(weights) != 3 or min(weights) < 0 or sum(weights) == 0:
        raise MedReflError(f"corrections: weights are {list(weights)}, expected three of at least 0, not all 0")
    if top_k is not None and top_k < 1:
        raise MedReflError(f"corrections: top_k is {top_k}, expected at least 1")
    forest = read_forest(steps)
    stated = (steps["stop"] == "answer").to_numpy(np.bool_) if "stop" in steps else np.ones(len(steps), np.bool_)
    wrong, error, dropped = _to_correct(steps, forest, stated, located, kind)
    tables = [_ranked(steps, forest, block, weights, top_k) for block in _blocks(forest, stated, wrong, error, kind)]
    return pd.concat(tables, ignore_index=True), dropped


def _to_correct(
    steps: pd.DataFrame, forest: Forest, stated: _Mask, located: pd.DataFrame, kind: str
) -> tuple[_Ints, _Ints, dict[str, int]]:
    """Return the rows of the wrong paths' leaves and of their wrong steps, in the order of ``values.paths``."""
    rows = steps[["question_id", "node_id"]].reset_index(drop=True).reset_index(names="row")
    rows["node_id"] = rows["node_id"].astype("Int64")
    both = located[["question_id", "leaf", "node_id"]].astype({"leaf": "Int64", "node_id": "Int64"})
    leaves = both.merge(rows.rename(columns={"node_id": "leaf"}), on=["question_id", "leaf"], how="left")
    errors = both.merge(rows, on=["question_id", "node_id"], how="left")
    leaf = leaves["row"].fillna(-1).to_numpy(np.int64)
    error = errors["row"].fillna(-1).to_numpy(np.int64)
    named = both["node_id"].notna().to_numpy(np.bool_)

    def stop_at(fault: _Mask, text: str) -> None:
        if fault.any():
            row = both.iloc[int(np.argmax(fault))]
            raise MedReflError(f"corrections: question {row['question_id']!r}: {text.format(**row)}")

    known = (leaf >= 0) & forest.leaf[leaf] & (forest.outcome[leaf] < 0)
    stop_at(~known, "leaf {leaf} does not end a wrong path")
    starts, flat = forest.climb(leaf)
    spot = starts[:-1] + forest.depth[error] - 1
    on_path = (error >= 0) & (forest.depth[error] > 0) & (flat[np.minimum(spot, len(flat) - 1)] == error)
    stop_at(named & ~on_path, "the located error {node_id} is not a step of the path to leaf {leaf}")

    readable = stated[leaf]
    ends_path = named & (error == leaf) & (kind == "mid")
    keep = readable & named & ~ends_path
    dropped = {
        "unreadable": int((~readable).sum()),
        "no_error": int((readable & ~named).sum()),
        "error_ends_path": int((readable & ends_path).sum()),
        "same_error": 0,
    }
    leaf, error = leaf[keep], error[keep]
    if kind == "mid":
        solution = forest.total[leaf] / forest.depth[leaf]
        order = np.lexsort((forest.node[leaf], -np.round(solution, 12), error))
        first = order[np.unique(error[order], return_index=True)[1]]
        dropped["same_error"] = len(leaf) - len(first)
        leaf, error = leaf[first], error[first]
    place = _place(forest)
    order = np.argsort(place[leaf])
    return leaf[order], error[order], dropped


def _place(forest: Forest) -> _Ints:
    """Return each row's rank by question and node_id: the order of ``values.paths``."""
    place = np.empty(len(forest.node), np.int64)
    place[forest.by_node] = np.arange(len(forest.node))
    return place


@dataclass(frozen=True)
class _Block:
    """Corrections as row positions of the forest: w's leaf, s, t and p's leaf."""

    wrong: _Ints
    left: _Ints
    taken: _Ints
    leaf: _Ints


def _blocks(forest: Forest, stated: _Mask, wrong: _Ints, error: _Ints, kind: str) -> Iterator[_Block]:
    """Yield all corrections of these wrong paths, a number of wrong paths at a time; at least one block.

    In depth-first order, the leaves below a step are a range. So the paths that branch off w at an ancestor a of the
    error are two ranges: the leaves below a, without the leaves below a's child on w.
    """
    below, start = _leaf_ranges(forest)
    walk = np.empty(int(forest.leaf.sum()), np.int64)
    leaves = np.flatnonzero(forest.leaf)
    walk[start[leaves]] = leaves
    starts, flat = forest.climb(walk)

    # One row per wrong path and ancestor of its error; ``child`` is the ancestor's child on the path.
    height = forest.depth[error]
    of = np.repeat(np.arange(len(wrong)), height)
    level = np.arange(len(of)) - np.repeat(np.cumsum(height) - height, height)
    child = flat[starts[start[wrong[of]]] + level].astype(np.int64)
    above = forest.parent[child]
    size = below[above] - below[child]
    of, level, child, above, size = (array[size > 0] for array in (of, level, child, above, size))

    cut = np.searchsorted(np.cumsum(size), np.arange(_BLOCK, int(size.sum()) + _BLOCK, _BLOCK))
    bounds = np.unique(np.concatenate([[0], np.searchsorted(of, of[np.minimum(cut, max(len(of) - 1, 0))]), [len(of)]]))
    for low, high in zip(bounds[:-1], bounds[1:], strict=True) if len(of) else [(0, 0)]:
        part = slice(low, high)
        count = size[part]
        at = np.repeat(np.arange(low, high), count)
        k = np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count)
        spot = start[above[at]] + k
        spot += np.where(spot >= start[child[at]], below[child[at]], 0)
        leaf = walk[spot]
        taken = flat[starts[spot] + level[at]].astype(np.int64)
        keep = stated[leaf]
        w = wrong[of[at]]
        left = w if kind == "post" else error[of[at]]
        yield _Block(w[keep], left[keep], taken[keep], leaf[keep])


def _leaf_ranges(forest: Forest) -> tuple[_Ints, _Ints]:
    """Return, for each row, the number of leaves at or below it, and the rank of the first in depth-first order."""
    below = forest.leaf.astype(np.int64)
    for level in forest.levels[:0:-1]:
        np.add.at(below, forest.parent[level], below[level])
    start = np.zeros(len(below), np.int64)
    for depth, level in enumerate(forest.levels):
        before = np.cumsum(below[level]) - below[level]
        if depth:  # siblings are adjacent in a level: count the leaves between a step and its first sibling
            parent = forest.parent[level]
            opens = np.concatenate([[True], parent[1:] != parent[:-1]])
            before += start[parent] - before[opens][np.cumsum(opens) - 1]
        start[level] = before
    return below, start


def _ranked(
    steps: pd.DataFrame, forest: Forest, block: _Block, weights: Sequence[float], top_k: int | None
) -> pd.DataFrame:
    w, s, t, p = block.wrong, block.left, block.taken, block.leaf
    solution = np.divide(forest.total, forest.depth, where=forest.depth > 0, out=np.zeros(len(forest.depth)))
    gains = (
        forest.value[t] - forest.value[s],
        solution[p] - solution[w],
        remain_values_of(forest, t, p) - remain_values_of(forest, s, w),
    )
    shares = np.asarray(weights, np.float64) / sum(weights)
    action = sum((share * gain for share, gain in zip(shares, gains, strict=True)), np.zeros(len(w)))
    right = forest.outcome[p] > 0
    place = _place(forest)
    order = np.lexsort((place[p], -np.round(action, 12), ~right, place[w]))
    if top_k is not None:
        group = 2 * place[w[order]] + ~right[order]
        opens = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]])) if len(group) else np.zeros(0, int)
        rank = np.arange(len(group)) - np.repeat(opens, np.diff([*opens, len(group)]))
        order = order[rank < top_k]
    w, s, t, p = w[order], s[order], t[order], p[order]
    return pd.DataFrame(
        {
            "question_id": steps["question_id"].iloc[w].array,
            "wrong_leaf": forest.node[w].astype(np.int32),
            "wrong_value": solution[w],
            "left": forest.node[s].astype(np.int32),
            "taken": forest.node[t].astype(np.int32),
            "leaf": forest.node[p].astype(np.int32),
            "effective": right[order],
            **{name: gain[order] for name, gain in zip(("gain_step", "gain_path", "gain_rest"), gains, strict=True)},
            "action": action[order],
        }
    )
