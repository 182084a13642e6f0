"""Measure values, paths and S of 5 million steps beside anytree (build, then post-order walk) on a slice of them.

It also measures whether the time per step stays constant as the table grows, and the peak memory. Each measurement runs
in its own process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from medrefl_utils.trees import value_table, values_and_paths
from tests.benchmarks.measure import Measurement

STEPS_PER_TREE = 100
TREES, SMALL, SLICE = 50_000, 500, 500
REPEATS = 3
MEMORY_GIB = 2.5

_ALONE = """
import json, sys, time
from tests.benchmarks.bench_values import forest, ours
from tests.benchmarks.measure import own_peak
steps = forest(int(sys.argv[1]))
seconds = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    ours(steps)
    seconds.append(time.perf_counter() - start)
print(json.dumps([min(seconds), own_peak()]))
"""


def forest(trees: int) -> pd.DataFrame:
    """Make trees of one shape as a table of steps: 3 x 2 x 2 branches, then one child per step; random outcomes."""
    parent, front = [-1], [0]
    for children in (3, 2, 2, *[1] * 6):
        front = [_grown(parent, node) for node in front for _ in range(children)]
    for node in front[: STEPS_PER_TREE - len(parent)]:
        _grown(parent, node)
    one = np.array(parent)
    leaf = np.ones(len(one), bool)
    leaf[one[1:]] = False
    outcome = np.random.default_rng(0).choice(np.float32([-1, 1]), (trees, len(one)))
    return pd.DataFrame(
        {
            "question_id": pd.array(np.repeat([f"question-{i:06d}" for i in range(trees)], len(one)), dtype="str"),
            "node_id": np.tile(np.arange(len(one), dtype=np.int32), trees),
            "parent_id": np.tile(np.where(one < 0, np.nan, one), trees),
            "answer": None,
            "outcome": np.where(leaf, outcome, np.float32("nan")).ravel(),
            "weight": np.ones(trees * len(one), np.int32),
        }
    )


def _grown(parent: list[int], node: int) -> int:
    parent.append(node)
    return len(parent) - 1


def ours(steps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute C, W and V of every step, and every path with its S."""
    return values_and_paths(steps)


def anytrees(steps: pd.DataFrame) -> list[float]:
    """Compute V of every step with anytree: build each tree, walk it in post-order. Paths and S are left out."""
    from anytree import Node, PostOrderIter

    nodes: dict[tuple[str, int], Node] = {}
    roots = []
    rows = zip(steps["question_id"], steps["node_id"], steps["parent_id"], steps["outcome"], strict=True)
    for question, node, parent, outcome in rows:
        above = nodes.get((question, parent))
        nodes[question, node] = made = Node(node, parent=above, outcome=outcome)
        if above is None:
            roots.append(made)
    for root in roots:
        for node in PostOrderIter(root):
            if node.is_leaf:
                node.right, node.wrong = float(node.outcome > 0), float(node.outcome < 0)
            else:
                node.right = sum(child.right for child in node.children)
                node.wrong = sum(child.wrong for child in node.children)
            node.value = (node.right - node.wrong) / (node.right + node.wrong)
    return [node.value for node in nodes.values()]


def _seconds(work: Callable[[pd.DataFrame], object], steps: pd.DataFrame) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        work(steps)
        best = min(best, time.perf_counter() - start)
    return best


def _alone(trees: int, repeats: int) -> tuple[float, float]:
    """Return the seconds of the best run and the peak memory (GiB) of a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(trees), str(repeats)], capture_output=True, text=True, check=True
    )
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def main(trees: int = TREES) -> Iterator[Measurement]:
    """Yield the three measurements on ``trees`` trees of ``STEPS_PER_TREE`` steps each."""
    part = forest(SLICE)
    assert np.allclose(value_table(part)["value"], anytrees(part))
    whole = trees * STEPS_PER_TREE
    seconds, peak = _alone(trees, REPEATS)
    small, _ = _alone(SMALL, REPEATS)
    per_step = 1e6 * seconds / whole
    peer = 1e6 * _seconds(anytrees, part) / len(part)
    sizes = {"steps": whole, "slice": len(part), "seconds": seconds}
    yield Measurement("time per step, beside anytree", per_step, peer, goal=50, unit="us", details=sizes)
    small_step = 1e6 * small / (SMALL * STEPS_PER_TREE)
    details = {
        "steps": [SMALL * STEPS_PER_TREE, whole],
        "meaning": "time per step of the small table, divided by that of the whole",
    }
    yield Measurement("scaling", per_step, small_step, goal=0.8, unit="us", details=details)
    details = {"steps": whole, "meaning": "the peer is the limit", "includes": "the table itself and the interpreter"}
    yield Measurement("peak memory", peak, MEMORY_GIB, goal=1, unit="GiB", details=details)
