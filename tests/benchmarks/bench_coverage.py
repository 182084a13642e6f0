"""Measure how often a 95% interval contains the true value, over 1,000 simulated benchmarks per size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medrefl_utils.evaluation import accuracy_interval, paired_gain
from tests.benchmarks.measure import Measurement


def coverage(n: int, simulations: int = 1000, n_boot: int = 1000) -> tuple[float, float]:
    """Return the shares of simulated benchmarks whose interval of accuracy, and of gain, contains the true value.

    A benchmark has ``n`` questions of different difficulty, each asked in three runs. A tenth of the questions share a
    stem with another one and form a cluster. The base answers a question correctly with its own probability (mean
    0.6), the other model with 0.9 of that probability.
    """
    rng, accurate, gained = np.random.default_rng(n), 0, 0
    stems = np.concatenate([np.repeat(np.arange(n // 20), 2), np.arange(n // 20, n - n // 20)])
    clusters = np.repeat(stems, 3)
    for seed in range(simulations):
        skill = rng.beta(1.2, 0.8, stems.max() + 1)[stems]
        base, other = rng.random((n, 3)) < skill[:, None], rng.random((n, 3)) < 0.9 * skill[:, None]
        accuracy = accuracy_interval(base.ravel(), clusters, n_boot, seed)
        gain = paired_gain(base.ravel(), other.ravel(), clusters, n_boot, seed)
        accurate += accuracy.low <= 0.6 <= accuracy.high
        gained += gain.low <= -0.06 <= gain.high
    return accurate / simulations, gained / simulations


def main() -> Iterator[Measurement]:
    """Yield how many points the coverage is away from 95%; the goal is at most two."""
    for n in (78, 400, 1273):
        for name, share in zip(("accuracy", "gain"), coverage(n), strict=True):
            off = max(0.01, abs(100 * share - 95))
            yield Measurement(f"{name}_{n}", off, 2.0, 1, "pt", details={"covered": share, "peer": "points allowed"})
