"""Accuracy, gain and their uncertainty. Pure.

Every interval resamples questions, because the responses to one question in several runs are not independent (a
cluster). Where each run has its own adapter, the interval also holds what another adapter could have given
(``paired_difference``). The tests are scipy's; only the clustering is ours.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import SCORES

_LEVEL = 0.95
_POWER = 0.8


class Interval(NamedTuple):
    """An estimate with its 95% interval, as shares of 1."""

    estimate: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference, as shares of 1: estimate, 95% interval, two-sided p, and what could have been detected."""

    estimate: float
    low: float
    high: float
    p: float
    detectable: float


def mcnemar_exact(base: Sequence[bool], other: Sequence[bool]) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    Null hypothesis: where the two models differ, both are equally often right.

    Args:
        base: whether the base answered each question correctly, one response per question.
        other: the same for the other model, in the same order.
    """
    base, other = _paired(base, other)
    fixed, broken = int((~base & other).sum()), int((base & ~other).sum())
    return float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, step-down): at most 1, in the given order."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected[np.argsort(order, kind="stable")].tolist()


def detectable_gain(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Return the smallest gain that a paired comparison of this size detects (5% level, two-sided, 80% power).

    Normal approximation: (z_.975 + z_.80) standard errors of the mean difference under the null hypothesis. Where all
    responses agree: the smallest share of changed questions that would be detected (as in ``accuracy_interval``).

    Args:
        differences: accuracy of the other minus accuracy of the base, one entry per question (or response).
        clusters: cluster of each entry; None means that every entry is its own cluster.
    """
    scores = np.asarray(differences, dtype=float)
    if not len(scores):
        raise MedReflError("detectable gain: no differences, expected at least one")
    codes = np.arange(len(scores)) if clusters is None else pd.factorize(pd.Series(list(clusters)))[0]
    sums = np.bincount(codes, weights=scores)
    if not sums.any():
        return float(1 - ((1 - _LEVEL) / 2) ** (1 / len(sums)))
    error = np.sqrt((sums**2).sum()) / len(scores)
    return float((stats.norm.ppf(1 - (1 - _LEVEL) / 2) + stats.norm.ppf(_POWER)) * error)


def share_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 10_000,
    seed: int = 0,
    *,
    adapters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Return the mean of values with its 95% bootstrap interval.

    Args:
        values: one entry per response, within ``bounds``.
        clusters: question id of each response; None means that every response has its own question.
        n_boot: bootstrap samples.
        seed: seed of the bootstrap.
        adapters: adapter of each response, as in ``paired_difference``; None means that there is one.
        bounds: smallest and largest possible value.
    """
    return _bootstrap(np.asarray(values, dtype=float), clusters, n_boot, seed, bounds, adapters)[0]


def paired_difference(
    differences: Sequence[float],
    clusters: Sequence[Hashable],
    adapters: Sequence[Hashable],
    n_boot: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Difference:
    """Return a mean paired difference whose interval holds for other questions and for other adapters.

    A hierarchical bootstrap. Questions are resampled, each with the responses of all adapters. An adapter's own effect
    is drawn from Student's t with R - 1 degrees of freedom, R adapters; its variance is the variance of the adapters'
    means beyond what their answers to single questions explain, s^2 / R, as in a two-way analysis of variance. Few
    adapters cannot be resampled: of 5, the percentiles are too narrow, and the noise of single answers counts three
    times (Owen 2007, "The pigeonhole bootstrap"). With one adapter the interval holds for that adapter only.

    The p-value inverts the interval: it is below 0.05 where the interval excludes 0. ``detectable`` is the smallest
    difference that this variance detects with 80% power at the 5% level: (z_.975 + z_.80) standard errors, where a
    standard error is half the interval's width divided by z_.975.

    Args:
        differences: one entry per question and adapter: value of the one minus value of the other, within ``bounds``.
        clusters: question of each entry.
        adapters: adapter (or run) of each entry; each has entries of every question.
        n_boot: bootstrap samples.
        seed: seed of the bootstrap.
        bounds: smallest and largest possible difference.

    Raises:
        MedReflError: no differences, or an adapter that misses a question.
    """
    scores = np.asarray(differences, dtype=float)
    found, drawn = _bootstrap(scores, clusters, n_boot, seed, bounds, adapters)
    z, power = stats.norm.ppf(1 - (1 - _LEVEL) / 2), stats.norm.ppf(_POWER)
    detectable = (found.high - found.low) / 2 * (z + power) / z
    n = pd.Series(list(clusters)).nunique()
    if drawn is None:
        edge = bounds[0] if found.estimate > 0 else bounds[1]
        return Difference(*found, float(min(1.0, 2 * (edge / (edge - found.estimate)) ** n)), float(detectable))
    beyond = (drawn <= 0) if found.estimate > 0 else (drawn >= 0)
    spread = stats.norm.ppf((1 + beyond.sum()) / (1 + n_boot)) / np.sqrt(n / (n - 1))
    return Difference(*found, float(min(1.0, 2 * stats.t.cdf(spread, n - 1))), float(detectable))


def accuracy_interval(
    correct: Sequence[bool], clusters: Sequence[Hashable] | None = None, n_boot: int = 10_000, seed: int = 0
) -> Interval:
    """Return the share of right responses with its 95% bootstrap interval.

    Args:
        correct: one entry per response.
        clusters: question id of each response; None means that every response has its own question.
        n_boot: bootstrap samples.
        seed: seed of the bootstrap.
    """
    return share_interval(np.asarray(correct, dtype=bool), clusters, n_boot, seed)


def paired_gain(
    base: Sequence[bool],
    other: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the accuracy of ``other`` minus that of ``base``, with its 95% paired bootstrap interval.

    Arguments as in ``accuracy_interval``. Entry i of both belongs to the same question and run.
    """
    base, other = _paired(base, other)
    return _bootstrap(other.astype(float) - base, clusters, n_boot, seed, bounds=(-1.0, 1.0))[0]


def interaction_interval(
    base: Sequence[bool],
    first: Sequence[bool],
    second: Sequence[bool],
    both: Sequence[bool],
    clusters: Sequence[Hashable] | None = None,
    n_boot: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return what two changes gain together beyond the sum of their single gains, with its 95% paired interval.

    The estimate is (both - first) - (second - base), in accuracy. Other arguments as in ``accuracy_interval``; entry i
    of all belongs to the same question and run.
    """
    one, two = _paired(base, second)
    three, four = _paired(first, both)
    scores = (four.astype(float) - three) - (two.astype(float) - one)
    return _bootstrap(scores, clusters, n_boot, seed, bounds=(-2.0, 2.0))[0]


def _paired(base: Sequence[bool], other: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    if len(base) != len(other) or not len(base):
        raise MedReflError(
            f"paired responses: {len(base)} of the base and {len(other)} of the other model, expected as many"
        )
    return np.asarray(base, dtype=bool), np.asarray(other, dtype=bool)


def _bootstrap(
    scores: np.ndarray,
    clusters: Sequence[Hashable] | None,
    n_boot: int,
    seed: int,
    bounds: tuple[float, float],
    adapters: Sequence[Hashable] | None = None,
) -> tuple[Interval, np.ndarray | None]:
    """Return the mean of the scores with an expanded percentile interval over resampled clusters, and the draws.

    The percentile interval is too narrow for small samples. Its levels are widened by Student's t and n / (n - 1)
    (Hesterberg 2015, "What teachers should know about the bootstrap", sec. 5.2). There are no draws where all clusters
    are equal.
    """
    if not len(scores):
        raise MedReflError("bootstrap: no responses, expected at least one")
    if clusters is not None and len(clusters) != len(scores):
        raise MedReflError(f"bootstrap: {len(clusters)} question ids for {len(scores)} responses")
    codes = np.arange(len(scores)) if clusters is None else pd.factorize(pd.Series(list(clusters)))[0]
    cells = np.stack([np.bincount(codes, weights=scores), np.bincount(codes)], axis=1)
    # Clusters with the same sum and size are equal: a sample of clusters is one multinomial draw over the kinds.
    kinds, counts = np.unique(cells, axis=0, return_counts=True)
    n, estimate = len(cells), float(scores.mean())
    between, runs = (0.0, 1) if adapters is None else _between_adapters(scores, codes, adapters)
    if n == 1 or (len(kinds) == 1 and not between):
        # All questions are equal, so resampling shows no spread. The bound is the largest share of other questions that
        # n questions can miss at this level (Clopper-Pearson).
        hidden = 1 - ((1 - _LEVEL) / 2) ** (1 / n)
        low, high = bounds
        return Interval(estimate, estimate - hidden * (estimate - low), estimate + hidden * (high - estimate)), None
    rng = np.random.default_rng(seed)
    sums = rng.multinomial(n, counts / n, size=n_boot) @ kinds
    drawn = sums[:, 0] / sums[:, 1]
    if between:
        drawn = drawn + np.sqrt(between / runs) * rng.standard_t(runs - 1, size=n_boot)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - _LEVEL) / 2, n - 1))
    low, high = np.clip(np.quantile(drawn, [tail, 1 - tail]), *bounds)
    return Interval(estimate, float(low), float(high)), drawn


def _between_adapters(scores: np.ndarray, codes: np.ndarray, adapters: Sequence[Hashable]) -> tuple[float, int]:
    """Return the variance of the adapters' true means, at least 0, and the number of adapters.

    It is the variance of their means, less what the noise of their answers to single questions gives it.
    """
    rows, names = pd.factorize(pd.Series(list(adapters)))
    shape = (len(names), int(codes.max()) + 1)
    place = rows * shape[1] + codes
    sums, sizes = (np.bincount(place, weights=w, minlength=shape[0] * shape[1]).reshape(shape) for w in (scores, None))
    if (sizes != sizes[0]).any():
        raise MedReflError(
            f"bootstrap: adapters have {sizes.sum(axis=1).astype(int).tolist()} responses, expected the same questions"
        )
    if shape[0] == 1 or shape[1] == 1:
        return 0.0, shape[0]
    n = sizes[0].sum()
    means = sums.sum(axis=1) / n
    apart = sums - sizes * means[:, None]
    noise = ((apart - apart.mean(axis=0)) ** 2).sum() / n**2 / (shape[0] - 1) * shape[1] / (shape[1] - 1)
    return max(0.0, float(means.var(ddof=1) - noise)), shape[0]


def score_responses(responses: pd.DataFrame, n_boot: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Score responses: one row per source, protocol and model, columns of SCORES.

    Args:
        responses: columns of RESPONSES.
        n_boot: bootstrap samples of each interval.
        seed: seed of the bootstrap.

    Raises:
        MedReflError: a question that is answered twice in one run, or base and adapter with different questions.
    """
    keys = ["source", "protocol", "model", "question_id", "run"]
    if repeated := int(responses.duplicated(keys).sum()):
        raise MedReflError(f"responses: {repeated} of {len(responses)} repeat a question within a run, expected 0")
    responses = _with_stems(responses)
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
    for _, tested in scores[scores["mcnemar_p"].notna()].groupby("protocol"):
        scores.loc[tested.index, "holm_p"] = holm(tested["mcnemar_p"])
    whole = {"n": "int32", "clusters": "int32", "runs": "int32", "tokens": "int64", "fixed": "Int32", "broken": "Int32"}
    return scores.astype(whole | {"holm_p": "float64"})


def response_rates(responses: pd.DataFrame, n_boot: int = 10_000, seed: int = 0) -> dict[str, Interval]:
    """Return accuracies and rates of one model's responses, each with its interval.

    Keys: ``accuracy`` (strict: unreadable is wrong), ``unreadable``, ``conflict`` (stated letter and option text
    disagree), ``accuracy_judged`` (strict, with the judge's letters; only if a judge read any), ``accuracy_published``
    (unreadable answers are left out; only if any answer is readable).

    Each distinct question counts once, however often it was asked; intervals resample stems. Only
    ``accuracy_published`` counts responses.
    """
    responses = _with_stems(responses)
    read = responses[responses["answer"].notna()]
    marks = responses.assign(unread=responses["answer"].isna(), conflict=responses["conflict"].fillna(False))
    marks = marks.astype({"correct": float, "unread": float, "conflict": float})
    each = marks.groupby("question_id").agg(
        {"correct": "mean", "unread": "mean", "conflict": "mean", "stem_id": "first"}
    )
    found = {
        name: share_interval(each[column], each["stem_id"], n_boot, seed)
        for name, column in (("accuracy", "correct"), ("unreadable", "unread"), ("conflict", "conflict"))
    }
    if responses["judged"].notna().any():
        right = (responses["answer"].fillna(responses["judged"]) == responses["gold"]).astype(float)
        each = marks.assign(right=right).groupby("question_id").agg({"right": "mean", "stem_id": "first"})
        found["accuracy_judged"] = share_interval(each["right"], each["stem_id"], n_boot, seed)
    if len(read):
        found["accuracy_published"] = accuracy_interval(read["correct"].to_numpy(), read["stem_id"], n_boot, seed)
    return found


def _with_stems(responses: pd.DataFrame) -> pd.DataFrame:
    """Make each question without a known stem its own cluster."""
    return responses.assign(stem_id=responses["stem_id"].fillna(responses["question_id"]))


def by_gold_position(responses: pd.DataFrame) -> pd.DataFrame:
    """Return the strict accuracy by the letter of the right option: one row per protocol, model and gold letter."""
    grouped = responses.astype({"correct": float}).groupby(["protocol", "model", "gold"], sort=True)["correct"]
    return grouped.agg(n="size", accuracy="mean").reset_index()


def _accuracy(responses: pd.DataFrame, n_boot: int, seed: int) -> dict[str, float]:
    found = response_rates(responses, n_boot, seed)
    tokens = responses.groupby(responses["correct"].astype(bool))["n_tokens"].mean()
    return {
        "n": responses["question_id"].nunique(),
        "clusters": responses["stem_id"].nunique(),
        "runs": responses["run"].nunique(),
        "accuracy": found["accuracy"].estimate,
        "accuracy_low": found["accuracy"].low,
        "accuracy_high": found["accuracy"].high,
        "accuracy_published": found["accuracy_published"].estimate if "accuracy_published" in found else np.nan,
        "accuracy_judged": found["accuracy_judged"].estimate if "accuracy_judged" in found else np.nan,
        "unreadable": found["unreadable"].estimate,
        "conflict": found["conflict"].estimate,
        "mean_tokens": float(responses["n_tokens"].mean()),
        "mean_tokens_right": float(tokens.get(True, np.nan)),
        "mean_tokens_wrong": float(tokens.get(False, np.nan)),
        "tokens": int(responses["n_tokens"].sum()),
        "seconds": float(responses["seconds"].sum()),
    }


def _gain(base: pd.DataFrame, other: pd.DataFrame, n_boot: int, seed: int, where: str) -> dict[str, float]:
    pairs = base.merge(other, on=["question_id", "run"], suffixes=("_base", ""), validate="one_to_one")
    if not len(pairs) == len(base) == len(other):
        raise MedReflError(
            f"responses of {where}: {len(base)} of base and {len(other)} of medrefl share {len(pairs)} questions"
            " and runs, expected all"
        )
    before, after = (pairs[name].to_numpy(dtype=bool) for name in ("correct_base", "correct"))
    each = (
        pairs.assign(gain=after.astype(float) - before).groupby("question_id").agg({"gain": "mean", "stem_id": "first"})
    )
    gain = _bootstrap(each["gain"].to_numpy(), each["stem_id"], n_boot, seed, bounds=(-1.0, 1.0))[0]
    by_run = [mcnemar_exact(before[run], after[run]) for run in pairs.groupby("run").indices.values()]
    return {
        "gain": gain.estimate,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "detectable": detectable_gain(each["gain"], each["stem_id"]),
        "fixed": int((~before & after).sum()),
        "broken": int((before & ~after).sum()),
        "mcnemar_p": by_run[0],
        "mcnemar_runs": by_run,
    }
