"""pass@k against every draw of k samples, and paired between the models."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from medrefl_utils.core import PASS_AT_K, MedReflError
from medrefl_utils.evaluation import pass_at_k, pass_rates
from tests.test_statistics import responses


@pytest.mark.parametrize(("n", "right"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (7, 7)])
def test_it_is_the_share_of_all_draws_with_a_right_one(n: int, right: int) -> None:
    samples = [True] * right + [False] * (n - right)
    for k in range(1, n + 1):
        drawn = list(combinations(samples, k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(any(draw) for draw in drawn) / len(drawn))
    with pytest.raises(MedReflError, match=rf"pass@{n + 1}: {right} of {n} samples"):
        pass_at_k(n, right, n + 1)


def test_it_is_unbiased() -> None:
    """The plain estimate 1 - (1 - c / n)^k is too low: of 16 samples at p = 0.1, 0.344 is the truth for k = 4."""
    drawn = np.random.default_rng(0).binomial(16, 0.1, 20_000)
    truth = 1 - 0.9**4
    assert np.mean([pass_at_k(16, right, 4) for right in drawn]) == pytest.approx(truth, abs=0.005)
    assert np.mean(1 - (1 - drawn / 16) ** 4) < truth - 0.01


def samples(model: str, right: np.ndarray) -> pd.DataFrame:
    """Sampled responses of the shape (samples, questions)."""
    return pd.concat(
        [responses(model, ["A" if one else "B" for one in row], "sampled", run) for run, row in enumerate(right)]
    )


def test_rates_of_two_models_are_paired() -> None:
    rng = np.random.default_rng(1)
    base, ours = rng.random((2, 16, 60)) < np.array([0.3, 0.5])[:, None, None]
    ours[:, 0] = True
    table = pd.concat([samples("base", base), samples("medrefl", ours), responses("base", ["A"] * 60)])
    found = pass_rates(table)
    assert list(found) == PASS_AT_K.names
    rows = found.set_index(["model", "k"])
    assert found[["model", "k"]].to_numpy().tolist() == [[m, k] for m in ("base", "medrefl") for k in (1, 4, 16)]
    assert rows.loc[("base", 1), "share"] == pytest.approx(base.mean())
    assert rows.loc[("medrefl", 16), "share"] == pytest.approx(ours.any(axis=0).mean())
    each = {m: [pass_at_k(16, int(c), 4) for c in t.sum(axis=0)] for m, t in (("base", base), ("medrefl", ours))}
    apart = np.subtract(each["medrefl"], each["base"])
    row = rows.loc[("medrefl", 4)]
    assert row["difference"] == pytest.approx(apart.mean())
    error = apart.std(ddof=1) / 60**0.5
    assert row["difference_high"] - row["difference_low"] == pytest.approx(2 * 2.0 * error, rel=0.06)
    assert pd.isna(rows.loc[("base", 4), "difference"]) and set(found["samples"]) == {16} and set(found["n"]) == {60}


def test_too_few_samples_give_no_k_and_unequal_ones_are_refused() -> None:
    four = samples("base", np.ones((5, 3), bool))
    assert pass_rates(four)["k"].tolist() == [1, 4]
    assert pass_rates(samples("base", np.ones((1, 3), bool))).empty
    with pytest.raises(MedReflError, match="clinic, base: 4 to 5 samples"):
        pass_rates(four.iloc[:-1])
