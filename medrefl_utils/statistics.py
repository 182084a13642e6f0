"""Accuracy, gain and their uncertainty; what a run's responses amount to.

Questions are the units that are drawn, so every interval resamples questions: the responses to one question over
several runs stand or fall together (a cluster). The tests are scipy's; only the clustering is ours.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from medrefl_utils.records import SCORES, MedReflError

_LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate with its 95% interval, as shares of 1."""

    estimate: float
    low: float
    high: float


def mcnemar_exact(base: Sequence[bool], other: Sequence[bool]) -> float:
    """Two-sided p of the exact McNemar test: among the questions on which the two differ, each is as often right.

    Args:
        base: whether the base answered each question right, one response a question.
        other: the same for the other model, in the same order.
    """
    base, other = _paired(base, other)
    fixed, broken = int((~base & other).sum()), int((base & ~other).sum())
    return float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def accuracy_interval(
    correct: Sequence[bool], clusters: Sequence[Hashable] | None = None, n_boot: int = 10_000, seed: int = 0
) -> Interval:
    """Share of right responses with its 95% bootstrap interval.

    Args:
        correct: one entry a response.
        clusters: each response's question id; None where every response is to another question.
        n_boot: bootstrap samples.
        seed: of the bootstrap.
    """
    return _bootstrap(np.asarray(correct, dtype=bool).astype(float), clusters, n_boot, seed, bounds=(0.0, 1.0))


def paired_gain(
    base: Sequence[bool],
    other: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Accuracy of ``other`` minus accuracy of ``base`` on the same questions, with its 95% paired bootstrap interval.

    Arguments as in ``accuracy_interval``; entry i of both belongs to the same question and run.
    """
    base, other = _paired(base, other)
    return _bootstrap(other.astype(float) - base, clusters, n_boot, seed, bounds=(-1.0, 1.0))


def _paired(base: Sequence[bool], other: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    if len(base) != len(other) or not len(base):
        raise MedReflError(f"pairs: {len(base)} responses of the base and {len(other)} of the other, expected as many")
    return np.asarray(base, dtype=bool), np.asarray(other, dtype=bool)


def _bootstrap(
    scores: np.ndarray, clusters: Sequence[Hashable] | None, n_boot: int, seed: int, bounds: tuple[float, float]
) -> Interval:
    """Mean of the scores with an expanded percentile interval over resampled clusters.

    The percentile interval is too narrow for small samples by the factor that Student's t and n / (n - 1) make up
    for; its levels are widened by that (Hesterberg 2015, "What teachers should know about the bootstrap", sec. 5.2).
    """
    if not len(scores):
        raise MedReflError("bootstrap: no responses, expected at least one")
    if clusters is not None and len(clusters) != len(scores):
        raise MedReflError(f"bootstrap: {len(clusters)} question ids for {len(scores)} responses")
    codes = np.arange(len(scores)) if clusters is None else pd.factorize(pd.Series(list(clusters)))[0]
    cells = np.stack([np.bincount(codes, weights=scores), np.bincount(codes)], axis=1)
    # Clusters with the same sum and size are alike: a sample of clusters is one multinomial draw over the kinds.
    kinds, counts = np.unique(cells, axis=0, return_counts=True)
    n, estimate = len(cells), float(scores.mean())
    if len(kinds) == 1 or n == 1:
        # All questions alike: resampling sees no spread. How large a share of others has n questions with none of them
        # at this level (Clopper-Pearson)?
        hidden = 1 - ((1 - _LEVEL) / 2) ** (1 / n)
        low, high = bounds
        return Interval(estimate, estimate - hidden * (estimate - low), estimate + hidden * (high - estimate))
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=n_boot) @ kinds
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - _LEVEL) / 2, n - 1))
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def score_responses(responses: pd.DataFrame, n_boot: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """One row per source, protocol and model, with the columns of ``records.SCORES``.

    Args:
        responses: rows of ``records.RESPONSES``.
        n_boot: bootstrap samples of each interval.
        seed: of the bootstrap.

    Raises:
        MedReflError: a question answered twice in one run, or base and adapter that answered different questions.
    """
    keys = ["source", "protocol", "model", "question_id", "run"]
    if repeated := int(responses.duplicated(keys).sum()):
        raise MedReflError(f"responses: {repeated} of {len(responses)} repeat a question within a run")
    rows = []
    for (source, protocol), group in responses.groupby(["source", "protocol"], sort=False):
        models = dict(tuple(group.sort_values(["run", "question_id"]).groupby("model")))
        for model in ("base", "medrefl"):
            if model not in models:
                continue
            row = {"source": source, "protocol": protocol, "model": model, **_accuracy(models[model], n_boot, seed)}
            if model == "medrefl" and "base" in models:
                row |= _gain(models["base"], models[model], n_boot, seed, f"{source}, {protocol}")
            rows.append(row)
    scores = pd.DataFrame(rows, columns=SCORES.names)
    return scores.astype({"n": "int32", "runs": "int32", "fixed": "Int32", "broken": "Int32"})


def _accuracy(responses: pd.DataFrame, n_boot: int, seed: int) -> dict[str, float]:
    strict = accuracy_interval(responses["correct"].to_numpy(), responses["question_id"], n_boot, seed)
    read = responses["answer"].notna()
    return {
        "n": responses["question_id"].nunique(),
        "runs": responses["run"].nunique(),
        "accuracy": strict.estimate,
        "accuracy_low": strict.low,
        "accuracy_high": strict.high,
        "accuracy_published": float(responses.loc[read, "correct"].mean()) if read.any() else np.nan,
        "unreadable": float(1 - read.mean()),
        "mean_tokens": float(responses["n_tokens"].mean()),
    }


def _gain(base: pd.DataFrame, other: pd.DataFrame, n_boot: int, seed: int, where: str) -> dict[str, float]:
    pairs = base.merge(other, on=["question_id", "run"], suffixes=("_base", ""), validate="one_to_one")
    if not len(pairs) == len(base) == len(other):
        raise MedReflError(
            f"responses of {where}: {len(base)} of base and {len(other)} of medrefl share {len(pairs)} questions"
            " and runs, expected all"
        )
    before, after = (pairs[name].to_numpy(dtype=bool) for name in ("correct_base", "correct"))
    first = (pairs["run"] == pairs["run"].min()).to_numpy()
    gain = paired_gain(before, after, pairs["question_id"], n_boot, seed)
    return {
        "gain": gain.estimate,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "fixed": int((~before & after).sum()),
        "broken": int((before & ~after).sum()),
        "mcnemar_p": mcnemar_exact(before[first], after[first]),
    }
