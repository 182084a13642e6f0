"""Intervals, tests and scores against values worked out by hand."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from medrefl_utils.core import RESPONSES, SCORES, MedReflError
from medrefl_utils.evaluation import (
    accuracy_interval,
    by_gold_position,
    detectable_gain,
    holm,
    mcnemar_exact,
    paired_difference,
    paired_gain,
    response_rates,
    score_responses,
    share_interval,
)
from medrefl_utils.views import scores_table
from tests.benchmarks.bench_coverage import coverage, coverage_of_adapters


@pytest.mark.parametrize(
    ("fixed", "broken", "same", "p"),
    [
        (5, 0, 3, 2 / 2**5),  # two tails of five heads
        (1, 9, 0, 2 * (1 + 10) / 2**10),
        (4, 4, 9, 1.0),
        (0, 0, 7, 1.0),
        (8, 2, 0, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar_is_the_binomial_test_of_what_differs(fixed: int, broken: int, same: int, p: float) -> None:
    base = [False] * fixed + [True] * broken + [True] * same
    other = [True] * fixed + [False] * broken + [True] * same
    assert mcnemar_exact(base, other) == pytest.approx(p)


def test_interval_of_one_run_is_that_of_a_binomial() -> None:
    interval = accuracy_interval([True] * 600 + [False] * 400)
    assert interval.estimate == 0.6
    # 1.96 sqrt(0.6 * 0.4 / 1000) = 0.0304
    assert interval.low == pytest.approx(0.6 - 0.0304, abs=0.002)
    assert interval.high == pytest.approx(0.6 + 0.0304, abs=0.002)


def test_runs_that_repeat_each_other_add_no_certainty() -> None:
    once = [True] * 60 + [False] * 40
    thrice, ids = once * 3, list(range(100)) * 3
    assert accuracy_interval(thrice, ids) == pytest.approx(accuracy_interval(once))
    clustered, naive = accuracy_interval(thrice, ids), accuracy_interval(thrice)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(3**0.5, rel=0.05)


def test_interval_agrees_with_scipys_bootstrap() -> None:
    correct = np.arange(500) % 7 < 4
    theirs = stats.bootstrap((correct,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    ours = accuracy_interval(correct)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_questions_asked_more_often_weigh_more() -> None:
    assert accuracy_interval([True, True, True, False], ["a", "a", "a", "b"]).estimate == 0.75


def test_where_all_are_right_the_interval_is_clopper_pearsons() -> None:
    low, high = stats.binomtest(24, 24).proportion_ci(0.95, "exact")
    assert accuracy_interval([True] * 24) == pytest.approx((1.0, low, high))
    assert accuracy_interval([False] * 24) == pytest.approx((0.0, 1 - high, 1 - low))


def test_gain_is_paired() -> None:
    base = [True] * 50 + [False] * 50
    other = [True] * 50 + [True] * 10 + [False] * 40
    gain = paired_gain(base, other)
    assert gain.estimate == pytest.approx(0.1)
    # one in ten changes, all for the better: sqrt(0.1 * 0.9 / 100) = 0.03, where unpaired it would be 0.07
    assert gain.low == pytest.approx(0.1 - 1.96 * 0.03, abs=0.012)
    assert gain.high == pytest.approx(0.1 + 1.96 * 0.03, abs=0.012)
    assert paired_gain(other, base) == pytest.approx((-gain.estimate, -gain.high, -gain.low), abs=0.011)


def test_no_difference_on_few_questions_proves_little() -> None:
    gain = paired_gain([True, False] * 12, [True, False] * 12)
    assert gain.estimate == 0 and gain.low == -gain.high
    assert gain.high == pytest.approx(1 - 0.025 ** (1 / 24))


def test_intervals_are_repeatable() -> None:
    correct, ids = np.arange(300) % 3 == 0, np.arange(300) // 3
    assert accuracy_interval(correct, ids, seed=3) == accuracy_interval(correct, ids, seed=3)


@pytest.mark.parametrize("n", [78, 400])
def test_intervals_cover(n: int) -> None:
    """The larger ones are simulated by ``make bench NAME=coverage``."""
    assert coverage(n) == pytest.approx((0.95, 0.95), abs=0.02)


def test_unequal_lengths_are_refused_with_both_counts() -> None:
    with pytest.raises(MedReflError, match="3 of the base and 2 of the other model"):
        paired_gain([True] * 3, [True] * 2)
    with pytest.raises(MedReflError, match="2 question ids for 3"):
        accuracy_interval([True] * 3, ["a", "b"])
    with pytest.raises(MedReflError, match="at least one"):
        accuracy_interval([])


def responses(model: str, answers: list[str | None], protocol: str = "greedy", run: int = 0) -> pd.DataFrame:
    """Answers to the questions q0, q1, ..., each with gold A."""
    frame = pd.DataFrame(index=range(len(answers)), columns=RESPONSES.names)
    return frame.assign(
        question_id=[f"q{i}" for i in range(len(answers))],
        source="clinic",
        model=model,
        protocol=protocol,
        run=run,
        answer=answers,
        gold="A",
        correct=[answer == "A" for answer in answers],
        n_tokens=[10 * (i + 1) for i in range(len(answers))],
        conflict=False,
        seconds=1.0,
    )


def test_scores_of_a_small_run() -> None:
    base = [
        responses("base", ["A", "B", None, "B"], "sampled", 0),
        responses("base", ["A", "A", "B", "B"], "sampled", 1),
    ]
    ours = [responses("medrefl", ["A", "A", "A", "B"], "sampled", 0), responses("medrefl", list("AABB"), "sampled", 1)]
    greedy = [responses("base", list("AB"))]
    table = pd.concat([*base, *ours, *greedy]).sample(frac=1, random_state=0)
    scores = score_responses(table).set_index(["protocol", "model"])
    assert list(score_responses(table).columns) == SCORES.names
    first, second = scores.loc[("sampled", "base")], scores.loc[("sampled", "medrefl")]
    assert (first.n, first.runs, first.accuracy, first.accuracy_published) == (4, 2, 3 / 8, 3 / 7)
    assert (first.unreadable, first.mean_tokens) == (1 / 8, 25)
    assert pd.isna(first.gain) and pd.isna(first.mcnemar_p) and pd.isna(first.fixed)
    assert (second.accuracy, second.gain, second.fixed, second.broken) == (5 / 8, 2 / 8, 2, 0)
    assert second.mcnemar_p == pytest.approx(0.5)  # of the first run: two changed, both for the better
    assert second.gain_low <= second.gain <= second.gain_high
    assert pd.isna(scores.loc[("greedy", "base")].gain)


def test_scores_become_a_table_of_the_schema() -> None:
    import pyarrow as pa

    table = pd.concat([responses("base", list("AABB")), responses("medrefl", list("AAAB"))])
    written = pa.Table.from_pandas(score_responses(table), schema=SCORES, preserve_index=False)
    assert written["fixed"].to_pylist() == [None, 1]


def test_scores_refuse_what_is_not_paired() -> None:
    base, other = responses("base", list("AAB")), responses("medrefl", list("AA"))
    with pytest.raises(MedReflError, match="3 of base and 2 of medrefl share 2"):
        score_responses(pd.concat([base, other]))
    with pytest.raises(MedReflError, match="3 of 6 repeat"):
        score_responses(pd.concat([base, base]))


def test_headline_shows_gain_interval_and_p() -> None:
    answers = [["B"] * 40 + ["A"] * 60, ["A"] * 20 + ["B"] * 20 + ["A"] * 60]
    frames = [responses(model, given) for model, given in zip(("base", "medrefl"), answers, strict=True)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(scores_table(score_responses(pd.concat([*frames, responses("base", list("AB"), "sampled")]))))
    text = console.export_text()
    greedy, sampled = (next(line for line in text.splitlines() if name in line) for name in ("greedy", "sampled"))
    assert "60.0" in greedy and "80.0" in greedy and "+20.0 [+1" in greedy and "1.9e-06" in greedy and "100" in greedy
    assert "50.0" in sampled and "-" in sampled


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.01], [0.01]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x .005, 3 x .01, 2 x .03, then no less
        ([0.6, 0.5], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm(given: list[float], corrected: list[float]) -> None:
    assert holm(given) == pytest.approx(corrected)


def test_detectable_gain_by_hand() -> None:
    # a fifth of 100 questions differ: sqrt(0.2 / 100) = 0.0447, times 1.960 + 0.842
    differences = [1.0] * 10 + [-1.0] * 10 + [0.0] * 80
    assert detectable_gain(differences) == pytest.approx(2.8016 * 0.04472, rel=1e-3)
    # runs that repeat each other add nothing
    assert detectable_gain(differences * 3, list(range(100)) * 3) == pytest.approx(detectable_gain(differences))
    assert detectable_gain([0.0] * 24) == pytest.approx(1 - 0.025 ** (1 / 24))
    with pytest.raises(MedReflError, match="no differences"):
        detectable_gain([])


def test_a_detectable_gain_is_seen_four_times_in_five() -> None:
    rng, n, seen = np.random.default_rng(1), 400, 0
    gain = detectable_gain([1.0, -1.0] * 40 + [0.0] * 320)  # a fifth of 400 differ
    assert gain == pytest.approx(0.0626, abs=1e-4)
    for _ in range(300):
        differ = rng.choice([1, -1, 0], size=n, p=[(0.2 + gain) / 2, (0.2 - gain) / 2, 0.8])
        seen += mcnemar_exact(differ < 0, differ > 0) < 0.05
    assert 0.7 < seen / 300 < 0.9


def test_a_question_counts_once_however_often_it_is_asked_and_stems_are_clusters() -> None:
    once = responses("base", ["A", "B", "B", "B"])
    again = pd.concat([once.iloc[:1].assign(run=run) for run in range(1, 6)])
    table = pd.concat([once, again]).assign(stem_id=lambda t: t["question_id"].replace({"q3": "q2"}))
    (scores,) = score_responses(table).itertuples()
    assert (scores.n, scores.clusters, scores.accuracy) == (4, 3, 0.25)
    assert response_rates(table)["accuracy"].estimate == 0.25


def test_rates_of_conflict_and_unreadable() -> None:
    table = responses("base", ["A", None, "B", None]).assign(conflict=[True, False, False, False])
    found = {name: interval.estimate for name, interval in response_rates(table).items()}
    assert found == {"accuracy": 0.25, "accuracy_published": 0.5, "unreadable": 0.5, "conflict": 0.25}
    assert "accuracy_published" not in response_rates(responses("base", [None, None]))


def test_scores_tell_lengths_runs_and_what_holm_leaves() -> None:
    tables = []
    for source, fixed in (("one", 6), ("two", 8)):
        base, ours = ["B"] * 10 + ["A"] * 10, ["A"] * fixed + ["B"] * (10 - fixed) + ["A"] * 10
        tables += [responses(m, a).assign(source=source) for m, a in (("base", base), ("medrefl", ours))]
        tables += [responses(m, a, run=1).assign(source=source) for m, a in (("base", base), ("medrefl", base))]
    scores = score_responses(pd.concat(tables)).set_index(["source", "model"])
    one, two = scores.loc[("one", "medrefl")], scores.loc[("two", "medrefl")]
    assert list(one.mcnemar_runs) == pytest.approx([2 / 2**6, 1.0])
    assert (one.holm_p, two.holm_p) == pytest.approx((2 / 2**6, 2 * 2 / 2**8))
    base = scores.loc[("one", "base")]
    # tokens are 10, 20, ... 200, and the second ten are right
    assert (base.mean_tokens_right, base.mean_tokens_wrong, base.tokens, base.seconds) == (155, 55, 4200, 40)
    assert pd.isna(base.holm_p) and base.mcnemar_runs is None or np.all(pd.isna(base.mcnemar_runs))


def test_accuracy_by_the_letter_of_the_right_option() -> None:
    table = responses("base", list("ABAB")).assign(gold=list("AABB"), correct=[True, False, False, True])
    rows = by_gold_position(table)[["gold", "n", "accuracy"]].to_records(index=False).tolist()
    assert rows == [("A", 2, 0.5), ("B", 2, 0.5)]


def test_stems_are_the_unit_of_every_interval_of_the_scores() -> None:
    """40 questions in 20 stems, both of a stem answered alike, are worth 20."""
    answers = list("AB" * 20), list("AAAB" * 10)
    tables = [responses(model, given) for model, given in zip(("base", "medrefl"), answers, strict=True)]
    doubled = pd.concat([pd.concat([t, t.assign(question_id=t["question_id"] + "-again")]) for t in tables])
    doubled["stem_id"] = doubled["question_id"].str.removesuffix("-again")
    alone = doubled.assign(stem_id=None)
    for table, factor in ((doubled, 1.0), (alone, 0.5**0.5)):
        whole, once = (score_responses(t).set_index("model").loc["medrefl"] for t in (table, pd.concat(tables)))
        for name in ("accuracy", "gain"):
            width, single = (row[f"{name}_high"] - row[f"{name}_low"] for row in (whole, once))
            assert width / single == pytest.approx(factor, rel=0.08), (name, factor)
    tested = score_responses(doubled).set_index("model").loc["medrefl", "detectable"]
    assert tested == pytest.approx(score_responses(pd.concat(tables)).set_index("model").loc["medrefl", "detectable"])


def test_small_samples_get_wider_intervals() -> None:
    """Of 12 values, half a plain percentile interval is 1.96 standard errors; with t and n / (n - 1) it is 2.30."""
    values = np.linspace(0.1, 0.9, 12)
    found = share_interval(values, n_boot=40_000)
    plain = 2 * stats.norm.ppf(0.975) * values.std() / 12**0.5
    wanted = stats.t.ppf(0.975, 11) * (12 / 11) ** 0.5 / stats.norm.ppf(0.975)
    assert (found.high - found.low) / plain == pytest.approx(wanted, rel=0.03) and wanted > 1.15


def test_holm_corrects_within_a_protocol_only() -> None:
    tables = []
    for protocol, fixed in (("greedy", 8), ("sampled", 6)):
        base, ours = ["B"] * 10 + ["A"] * 10, ["A"] * fixed + ["B"] * (10 - fixed) + ["A"] * 10
        tables += [responses("base", base, protocol), responses("medrefl", ours, protocol)]
    scores = score_responses(pd.concat(tables))
    tested = scores[scores["model"] == "medrefl"]
    assert tested["holm_p"].tolist() == pytest.approx(tested["mcnemar_p"].tolist()) == [2 / 2**8, 2 / 2**6]


def test_the_judge_fills_gaps_and_overrides_no_rule() -> None:
    table = responses("base", ["A", "A", "B", None, None]).assign(judged=["B", None, None, "A", "C"])
    found = response_rates(table)
    assert found["accuracy_judged"].estimate == pytest.approx(3 / 5) and found["accuracy"].estimate == 2 / 5


# --- differences that hold for other adapters ---


def grid(seed: int, adapters: int, n: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences of ``adapters`` adapters on ``n`` questions; each adapter has its own effect."""
    rng = np.random.default_rng(seed)
    cells = rng.choice([-1.0, 0.0, 1.0], size=(adapters, n), p=[0.1, 0.7, 0.2]) + rng.normal(0, spread, (adapters, 1))
    return cells, np.tile(np.arange(n), adapters), np.repeat(np.arange(adapters), n)


def mean_squares(cells: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of a two-way analysis of variance, summed cell by cell: adapters, questions, residual."""
    (rows, columns), mean = cells.shape, cells.sum() / cells.size
    by_row = [sum(cells[r]) / columns for r in range(rows)]
    by_column = [sum(cells[:, c]) / rows for c in range(columns)]
    rest = sum((cells[r, c] - by_row[r] - by_column[c] + mean) ** 2 for r in range(rows) for c in range(columns))
    adapters = columns * sum((m - mean) ** 2 for m in by_row) / (rows - 1)
    questions = rows * sum((m - mean) ** 2 for m in by_column) / (columns - 1)
    return adapters, questions, rest / ((rows - 1) * (columns - 1))


def test_the_interval_is_that_of_a_two_way_analysis_of_variance() -> None:
    cells, questions, adapters = grid(1, 40, 300, 0.1)
    of_adapters, of_questions, rest = mean_squares(cells)
    error = ((of_adapters + of_questions - rest) / cells.size) ** 0.5
    found = paired_difference(cells.ravel(), questions, adapters, n_boot=20_000, bounds=(-2.0, 2.0))
    assert found.estimate == pytest.approx(cells.mean())
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, rel=0.04)
    assert found.detectable == pytest.approx(2.8016 * error, rel=0.05)


def test_few_adapters_that_differ_make_the_interval_wide_and_equal_ones_do_not() -> None:
    cells, questions, adapters = grid(3, 5, 300, 0.1)
    of_adapters, of_questions, rest = mean_squares(cells)
    between = (of_adapters - rest) / 300
    found = paired_difference(cells.ravel(), questions, adapters, n_boot=20_000, bounds=(-2.0, 2.0))
    # Student's t with 4 degrees of freedom, convolved with the noise of the questions: simulated here on its own.
    rng = np.random.default_rng(0)
    drawn = rng.standard_t(4, 200_000) * (between / 5) ** 0.5 + rng.normal(
        0, (of_questions / cells.size) ** 0.5, 200_000
    )
    assert found.high - found.low == pytest.approx(np.subtract(*np.quantile(drawn, [0.975, 0.025])), rel=0.05)
    alike = np.tile(cells[0] - cells[0].mean(), (5, 1))
    same = paired_difference(alike.ravel(), questions, adapters, bounds=(-2.0, 2.0))
    one = paired_difference(alike[0], np.arange(300), np.zeros(300), bounds=(-2.0, 2.0))
    assert (*same[:3], same.detectable) == pytest.approx((*one[:3], one.detectable), abs=1e-9)


def test_one_adapter_gives_the_paired_gain() -> None:
    base, other = np.arange(200) % 3 == 0, np.arange(200) % 2 == 0
    found = paired_difference(other.astype(float) - base, np.arange(200), np.zeros(200))
    gain = paired_gain(base, other)
    assert found[:3] == pytest.approx(tuple(gain))
    assert found.detectable == pytest.approx(detectable_gain(other.astype(float) - base), rel=0.12)


def test_p_is_below_a_twentieth_where_the_interval_excludes_nothing_else() -> None:
    seen = set()
    for seed in range(40):
        cells, questions, adapters = grid(seed, 4, 60, 0.05)
        found = paired_difference(cells.ravel(), questions, adapters, n_boot=4000, bounds=(-2.0, 2.0))
        outside = found.low > 0 or found.high < 0
        seen.add(outside)
        assert outside == (found.p < 0.05) or found.p == pytest.approx(0.05, abs=0.004), found
    assert seen == {True, False}
    t = stats.ttest_1samp(grid(7, 1, 80, 0.0)[0][0], 0)
    close = paired_difference(grid(7, 1, 80, 0.0)[0][0], np.arange(80), np.zeros(80), n_boot=100_000)
    assert close.p == pytest.approx(t.pvalue, rel=0.25)


def test_where_every_question_gains_p_is_the_sign_tests() -> None:
    found = paired_difference([1.0] * 8, range(8), [0] * 8)
    assert found.p == pytest.approx(stats.binomtest(8, 8).pvalue) and found.low > 0
    none = paired_difference([0.0] * 8, range(8), [0] * 8)
    assert none.p == 1 and none.low < 0 < none.high


def test_adapters_with_other_questions_are_refused() -> None:
    with pytest.raises(MedReflError, match=r"adapters have \[3, 2\] responses, expected the same questions"):
        paired_difference([0.0, 1.0, 1.0, 0.0, 1.0], [0, 1, 2, 0, 1], [0, 0, 0, 1, 1])


@pytest.mark.parametrize(("adapters", "spread"), [(5, 0.0), (5, 0.04), (3, 0.04)])
def test_intervals_cover_the_next_adapter(adapters: int, spread: float) -> None:
    """More sizes are simulated by ``make bench NAME=coverage``."""
    assert coverage_of_adapters(120, adapters, spread, 16, simulations=400, n_boot=500) == pytest.approx(
        0.95, abs=0.035
    )
