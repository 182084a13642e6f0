"""Measure how often a 95% interval contains the true value, over 1,000 simulated benchmarks per size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medrefl_utils.evaluation import accuracy_interval, paired_difference, paired_gain
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


def coverage_of_adapters(
    n: int, adapters: int, spread: float, samples: int, simulations: int = 1000, n_boot: int = 1000
) -> float:
    """Return the share of simulated ablations whose interval of a difference contains the true difference.

    Args:
        n: questions, of different difficulty (mean 0.6); the arm changes each by its own amount (SD 0.1, mean 0).
        adapters: adapters of the arm; each has its own effect on all questions.
        spread: standard deviation of these effects.
        samples: continuations per question and adapter, of the base and of the arm.
        simulations: simulated ablations.
        n_boot: bootstrap samples of each interval.
    """
    rng, inside = np.random.default_rng(n + adapters), 0
    codes, runs = np.tile(np.arange(n), adapters), np.repeat(np.arange(adapters), n)
    for seed in range(simulations):
        skill = 0.3 + 0.6 * rng.beta(1.0, 1.0, n)
        arm = skill + rng.normal(0, 0.1, n) + rng.normal(0, spread, adapters)[:, None]
        base = rng.binomial(samples, np.tile(skill, (adapters, 1)))
        apart = (rng.binomial(samples, np.clip(arm, 0, 1)) - base) / samples
        found = paired_difference(apart.ravel(), codes, runs, n_boot, seed)
        inside += found.low <= 0 <= found.high
    return inside / simulations


def main() -> Iterator[Measurement]:
    """Yield how many points the coverage is away from 95%; the goal is at most two."""
    for n in (78, 400, 1273):
        for name, share in zip(("accuracy", "gain"), coverage(n), strict=True):
            off = max(0.01, abs(100 * share - 95))
            yield Measurement(f"{name}_{n}", off, 2.0, 1, "pt", details={"covered": share, "peer": "points allowed"})
    for n, adapters, spread, samples in ((200, 5, 0.0, 16), (200, 5, 0.03, 16), (800, 3, 0.02, 1), (800, 5, 0.02, 1)):
        share = coverage_of_adapters(n, adapters, spread, samples)
        name = f"difference_{n}x{adapters}x{samples}_sd{spread:g}"
        off = max(0.01, abs(100 * share - 95))
        yield Measurement(name, off, 2.0, 1, "pt", details={"covered": share, "peer": "points allowed"})
