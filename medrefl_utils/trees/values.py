"""Compute step values V, solution values S and remain values R of reasoning trees, for many trees in one pass.

A tree is a set of rows. ``node_id`` is an integer, unique within its question. ``parent_id`` is the step that the row
continues; it is null for the root (the question). A leaf is a row that no row continues; only leaves have an outcome,
+1 or -1. Rows may be in any order. Every table is validated when it is read.

``weight`` counts the identical steps of the unmerged tree that a row represents. C and W count leaves, so only leaf
weights enter them. The leaves below a merged inner step already count its copies; the inner weight would count them
twice. So a merged inner step has the value of the leaves of all its copies, and every step above it has the same value
as in the unmerged tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import STEPS, VALUES

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]

_INT32 = np.iinfo(np.int32)
_BLOCK = 2**17  # rows
_DENSE = 8  # maximum keys per row for which an array over all keys is worth its memory


@dataclass(frozen=True)
class Forest:
    """All trees of a table. Arrays are aligned with its rows; ``parent`` and ``levels`` hold row positions."""

    node: _Ints
    parent: _Ints  # -1 for a root
    levels: list[_Ints]  # the rows at depth 0, 1, 2, ...
    by_node: _Ints  # rows sorted by question (as they first appear), then node_id
    leaf: _Mask
    outcome: _Floats
    weight: _Floats

    @cached_property
    def counts(self) -> tuple[_Floats, _Floats]:
        """Return C and W of each row: right and wrong leaves at or below it. Sums of whole float64 are exact."""
        right = np.where(self.leaf & (self.outcome > 0), self.weight, 0.0)
        wrong = np.where(self.leaf & (self.outcome < 0), self.weight, 0.0)
        for level in self.levels[:0:-1]:
            np.add.at(right, self.parent[level], right[level])
            np.add.at(wrong, self.parent[level], wrong[level])
        return right, wrong

    @cached_property
    def value(self) -> _Floats:
        """Return V of each row."""
        right, wrong = self.counts
        return (right - wrong) / (right + wrong)

    @cached_property
    def total(self) -> _Floats:
        """Return the sum of V from the root's child to each row; S and R are differences of it, divided by lengths."""
        total = np.zeros(len(self.node))
        for level in self.levels[1:]:
            total[level] = total[self.parent[level]] + self.value[level]
        return total

    @cached_property
    def depth(self) -> _Ints:
        """Return the depth of each row; 0 for a root."""
        depth = np.zeros(len(self.node), np.int64)
        for number, level in enumerate(self.levels):
            depth[level] = number
        return depth

    def climb(self, leaves: _Ints) -> tuple[_Ints, npt.NDArray[np.int32]]:
        """Return the paths to these leaves: the start of each and the end of the last; their rows from the top."""
        starts = np.concatenate([[0], np.cumsum(self.depth[leaves])])
        flat = np.empty(int(starts[-1]), np.int32)  # row positions; no table has 2**31 rows
        at, spot = leaves, starts[1:] - 1
        while len(at):  # all paths at once, without those that have reached the root
            flat[spot] = at
            at, spot = self.parent[at], spot - 1
            inside = self.parent[at] >= 0
            at, spot = at[inside], spot[inside]
        return starts, flat


def step_values(steps: pd.DataFrame) -> pd.Series:
    """Return the step value V(s) = (C - W) / (C + W) over the leaves at or below each step (method figure).

    Args:
        steps: table with question_id, node_id, parent_id and outcome, and weight if leaves were merged.

    Returns:
        V in [-1, 1], with the index and order of ``steps``. A leaf's V is its outcome.

    Raises:
        MedReflError: a tree is malformed; names the question and the node.
    """
    value = [read_forest(block).value for block in _blocks(steps)]
    return pd.Series(np.concatenate(value), index=steps.index, name="value")


def value_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Return C, W and V of every step and root, row by row, with the columns of ``schemas.VALUES``.

    Raises the errors of ``step_values``.
    """
    return pd.concat([_value_table(block, read_forest(block)) for block in _blocks(steps)], ignore_index=True)


def paths(steps: pd.DataFrame) -> pd.DataFrame:
    """Return every path from a root's child to a leaf, one row per leaf, in order of question and leaf id.

    Columns: question_id, node_id (of the leaf), nodes (ids of the path in order), answer (null if ``steps`` has no
    such column), outcome, value and weight. ``value`` is the solution value S: the mean of V over the path's steps,
    without the root (method figure). Raises the errors of ``step_values``.
    """
    return pd.concat([_paths(block, read_forest(block)) for block in _blocks(steps)], ignore_index=True)


def values_and_paths(steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return ``value_table`` and ``paths`` of one table, which is read and checked only once."""
    tables, chains = [], []
    for block in _blocks(steps):
        forest = read_forest(block)
        tables.append(_value_table(block, forest))
        chains.append(_paths(block, forest))
    return pd.concat(tables, ignore_index=True), pd.concat(chains, ignore_index=True)


def complete_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Return trees with all columns of ``schemas.STEPS``, for views of trees that were not made by the rollout.

    A column that is missing is filled: depth, kind and weight from the tree; ``text`` is empty, the rest is null.
    Raises the errors of ``step_values``.
    """
    forest = read_forest(steps)
    kind = np.where(forest.leaf, "leaf", np.where(forest.parent < 0, "root", "step"))
    known = {"depth": forest.depth, "kind": kind, "weight": forest.weight.astype(np.int64), "text": ""}
    return steps.assign(**{name: known.get(name) for name in STEPS.names if name not in steps})


def _blocks(steps: pd.DataFrame) -> list[pd.DataFrame]:
    """Split the table into parts of whole trees that fit into the CPU cache; scattered rows give one part."""
    code, names = pd.factorize(steps["question_id"]) if "question_id" in steps else (np.zeros(0, int), [])
    turns = np.flatnonzero(code[1:] != code[:-1]) + 1
    if len(turns) + 1 != len(names):  # a question's rows are not contiguous, or an id is null
        return [steps]
    cuts = np.searchsorted(turns, np.arange(_BLOCK, len(code), _BLOCK))
    bounds = [0, *dict.fromkeys(turns[cuts[cuts < len(turns)]].tolist()), len(code)]
    return [steps.iloc[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _value_table(steps: pd.DataFrame, forest: Forest) -> pd.DataFrame:
    right, wrong = forest.counts
    table = {
        "question_id": steps["question_id"].reset_index(drop=True),
        "node_id": forest.node.astype(np.int32),
        "right": right,
        "wrong": wrong,
        "value": forest.value,
    }
    return pd.DataFrame(table)[VALUES.names]


def _paths(steps: pd.DataFrame, forest: Forest) -> pd.DataFrame:
    leaves = forest.by_node[forest.leaf[forest.by_node]]
    starts, flat = forest.climb(leaves)
    nodes = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(forest.node[flat].astype(np.int32)))
    answer = steps["answer"].iloc[leaves].array if "answer" in steps else np.full(len(leaves), None, object)
    return pd.DataFrame(
        {
            "question_id": steps["question_id"].iloc[leaves].array,
            "node_id": forest.node[leaves].astype(np.int32),
            # Arrow lists: millions of Python lists would need more memory than the steps
            "nodes": pd.Series(pd.arrays.ArrowExtensionArray(nodes)),
            "answer": answer,
            "outcome": forest.outcome[leaves],
            "value": forest.total[leaves] / forest.depth[leaves],
            "weight": forest.weight[leaves].astype(np.int64),
        }
    )


def remain_values(steps: pd.DataFrame) -> pd.DataFrame:
    """Return R of every step of every path: the mean of V from the step (included: **ours**) to the path's end.

    Columns: question_id, leaf (of the path), node_id (of the step) and value. Paths are in the order of ``paths``,
    steps from the root's child down. Raises the errors of ``step_values``.
    """
    forest = read_forest(steps)
    leaves = forest.by_node[forest.leaf[forest.by_node]]
    starts, flat = forest.climb(leaves)
    ends = np.repeat(leaves, np.diff(starts))
    return pd.DataFrame(
        {
            "question_id": steps["question_id"].iloc[ends].array,
            "leaf": forest.node[ends].astype(np.int32),
            "node_id": forest.node[flat].astype(np.int32),
            "value": remain_values_of(forest, flat, ends),
        }
    )


def remain_values_of(forest: Forest, step: _Ints, leaf: _Ints) -> _Floats:
    """Return R(step, path to the leaf) for pairs of row positions of the forest's table."""
    before = forest.total[forest.parent[step]]
    return (forest.total[leaf] - before) / (forest.depth[leaf] - forest.depth[step] + 1)


def read_forest(steps: pd.DataFrame) -> Forest:
    """Read and check the trees of a table. MedReflError names the first fault in ids, shape or leaves."""
    for name in ("question_id", "node_id", "parent_id", "outcome"):
        if name not in steps:
            raise MedReflError(f"steps: no column {name!r}, found {', '.join(map(str, steps.columns))}")
    question, names = pd.factorize(steps["question_id"])
    if (question < 0).any():
        raise MedReflError(f"steps: row {int(np.argmax(question < 0))} has no question_id")

    def stop_at(fault: _Mask, text: str) -> None:
        if fault.any():
            row = int(np.argmax(fault))
            ids = ("node_id", "parent_id", "outcome", "weight")
            found = {name: steps[name].iloc[row] for name in ids if name in steps}
            where = f"question {names[question[row]]!r}, node {_shown(found['node_id'])}"
            raise MedReflError(f"{where}: {text.format(**{name: _shown(value) for name, value in found.items()})}")

    root = steps["parent_id"].isna().to_numpy(np.bool_)
    node = _numbers(steps["node_id"])
    parent_id = np.where(root, 0.0, _numbers(steps["parent_id"]))
    for name, ids in (("node_id", node), ("parent_id", parent_id)):
        whole = (ids == np.floor(ids)) & (ids >= _INT32.min) & (ids <= _INT32.max)
        stop_at(~whole, f"{name} {{{name}}} is not a 32-bit whole number")
    node, parent_id = node.astype(np.int64), parent_id.astype(np.int64)

    # One integer identifies a step of any question, so that an array finds each parent's row.
    low = int(node.min(initial=0))
    span = int(node.max(initial=0)) - low + 1
    find = _Finder(question * span + (node - low), len(names) * span)
    stop_at(find.twice, "the id occurs twice")

    parent = np.full(len(node), -1)
    child = np.flatnonzero(~root)
    offset = parent_id[child] - low
    inside = (offset >= 0) & (offset < span)
    found = find.rows(np.where(inside, question[child] * span + offset, 0))
    missing = np.zeros(len(node), np.bool_)
    missing[child] = ~inside | (found < 0)
    stop_at(missing, "its parent {parent_id} is not in the table")
    parent[child] = found

    roots = np.flatnonzero(root)
    second = np.ones(len(node), np.bool_)
    second[roots[np.unique(question[roots], return_index=True)[1]]] = False
    stop_at(second & root, "a second root (parent_id is null)")

    levels = _levels(parent, roots)
    reached = np.zeros(len(node), np.bool_)
    for level in levels:
        reached[level] = True
    stop_at(_on_cycle(parent, ~reached), "its parents form a cycle")

    leaf = np.ones(len(node), np.bool_)
    leaf[parent[child]] = False
    outcome = _numbers(steps["outcome"])
    weight = _numbers(steps["weight"]) if "weight" in steps else np.ones(len(node))
    stop_at(leaf & root, "the tree is only its root: no step continues it")
    stop_at(~leaf & ~np.isnan(outcome), "outcome {outcome} on an inner step, expected NaN")
    stop_at(leaf & np.isnan(outcome), "nothing continues it and it has no outcome: a leaf needs +1 or -1")
    stop_at(leaf & (np.abs(outcome) != 1), "outcome {outcome}, expected +1 or -1")
    stop_at(leaf & ~((weight >= 1) & (weight == np.floor(weight))), "weight {weight}, expected a whole number from 1")
    return Forest(node, parent, levels, find.by_key, leaf, outcome, weight)


class _Finder:
    """Finds rows by their keys, whole numbers from 0 to ``bound``: with an array if they are dense, else by bisection.

    ``twice`` marks repeated keys (all rows but one); ``by_key`` is the row positions in key order.
    """

    def __init__(self, keys: _Ints, bound: int) -> None:
        if bound <= _DENSE * len(keys):
            self.rows_of = np.full(bound, -1, np.int32)
            self.rows_of[keys] = np.arange(len(keys), dtype=np.int32)
            self.ordered = None
            self.by_key = self.rows_of[self.rows_of >= 0].astype(np.int64)
            self.twice = self.rows_of[keys] != np.arange(len(keys))
        else:
            self.by_key = np.argsort(keys, kind="stable")
            self.ordered = keys[self.by_key]
            self.twice = np.zeros(len(keys), np.bool_)
            self.twice[self.by_key[1:]] = self.ordered[1:] == self.ordered[:-1]

    def rows(self, keys: _Ints) -> _Ints:
        """Return the row of each key; -1 if there is none."""
        if self.ordered is None:
            return self.rows_of[keys].astype(np.int64)
        spot = np.minimum(np.searchsorted(self.ordered, keys), len(self.ordered) - 1)
        return np.where(self.ordered[spot] == keys, self.by_key[spot], -1)


def _levels(parent: _Ints, roots: _Ints) -> list[_Ints]:
    """Return the rows by depth, from the roots down; rows on or below a cycle are in no level."""
    count = np.bincount(parent[parent >= 0], minlength=len(parent))
    children = np.argsort(parent, kind="stable")[len(parent) - int(count.sum()) :]
    first = np.cumsum(count) - count  # where a row's children start
    levels, level = [], roots
    while len(level):
        levels.append(level)
        size = count[level]
        skipped = np.repeat(first[level] - (np.cumsum(size) - size), size)
        level = children[skipped + np.arange(len(skipped))]
    return levels


def _on_cycle(parent: _Ints, unreached: _Mask) -> _Mask:
    """Mark the unreached rows that are on a cycle, not only below one: those that remain after peeling leaves."""
    left = unreached.copy()
    degree = np.bincount(parent[unreached], minlength=len(parent))
    bare = np.flatnonzero(left & (degree == 0))
    while len(bare):
        left[bare] = False
        np.subtract.at(degree, parent[bare], 1)
        up = np.unique(parent[bare])
        bare = up[left[up] & (degree[up] == 0)]
    return left


def _numbers(column: pd.Series) -> _Floats:
    """Return a column as float64; null and text become NaN, which the check of the column rejects."""
    return pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _shown(value: object) -> str:
    """Return a number of the table for an error message: 3.0 (pandas uses floats in a column with null) reads 3."""
    return str(int(value)) if isinstance(value, float | np.floating) and value == value // 1 else str(value)
