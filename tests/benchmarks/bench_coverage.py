"""How often a 95% interval holds the truth: 1,000 simulated benchmarks each, of 78, 400 and 1,273 questions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medrefl_utils.evaluation import accuracy_interval, paired_gain
from tests.benchmarks.measure import Measurement


def coverage(n: int, simulations: int = 1000, n_boot: int = 1000) -> tuple[float, float]:
    """Shares of simulated benchmarks whose interval of accuracy, and of gain, holds the true value.

    ``n`` questions of uneven difficulty, asked in three runs; a tenth of them are pairs that share a stem and fall
    together. The base is right with the question's own probability (mean 0.6), the other with 0.9 of it.
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
    """Points from 95%, against the two that are allowed."""
    for n in (78, 400, 1273):
        for name, share in zip(("accuracy", "gain"), coverage(n), strict=True):
            off = max(0.01, abs(100 * share - 95))
            yield Measurement(f"{name}_{n}", off, 2.0, 1, "pt", details={"covered": share, "peer": "points allowed"})
