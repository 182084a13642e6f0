"""The error locator and the corrections, by hand on the figure's tree and against all pairs of nodes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrefl_utils.core import MedReflError
from medrefl_utils.trees import corrections as module
from medrefl_utils.trees import locate_errors, paths, rank_corrections, remain_values
from tests.test_values import FIGURE, forests, plain

# V: 1 = -1/3, 2 = 1/5, 3 = 0, 4 = -1, 5 = 0, 6 = -1, 7 = 1; leaves 8 = 1, 9 = -1, 10 = -1, 11 = 1, 12 = 13 = 1; root 0.


def errors(steps: pd.DataFrame, margin: float = 0.0) -> dict[int, int | None]:
    located = locate_errors(steps, margin)
    return {
        leaf: None if pd.isna(node) else int(node) for leaf, node in zip(located.leaf, located.node_id, strict=True)
    }


def test_remain_values_of_the_figures_tree() -> None:
    remain = remain_values(FIGURE).set_index(["leaf", "node_id"])["value"]
    assert remain[8, 1] == pytest.approx((-1 / 3 + 0 + 1) / 3)
    assert remain[8, 3] == pytest.approx(1 / 2)
    assert remain[8, 8] == pytest.approx(1)
    assert remain[12, 2] == pytest.approx((1 / 5 + 1 + 1) / 3)
    assert len(remain) == 2 + 2 + 6 * 3


def test_errors_of_the_figures_tree() -> None:
    # 1 falls from the root's 0 to -1/3 while 2 has 1/5; on 2's side 6 falls from 1/5 to -1 and 5 to 0.
    assert errors(FIGURE) == {4: 1, 6: 6, 9: 1, 10: 5}
    # A fall of at least 1/2: 1 falls by 1/3 only, 4 by 2/3, 9 by 1; 5 falls by 1/5, 10 by 1.
    assert errors(FIGURE, 0.5) == {4: 4, 6: 6, 9: 9, 10: 10}
    assert errors(FIGURE, 1 / 3) == {4: 1, 6: 6, 9: 1, 10: 10}  # at least: 1/3 is enough
    assert errors(FIGURE, 1.5) == {4: None, 6: None, 9: None, 10: None}
    with pytest.raises(MedReflError, match="margin is 2.5, expected 0 to 2"):
        locate_errors(FIGURE, 2.5)


def test_a_tree_that_is_all_wrong_has_no_error() -> None:
    wrong = FIGURE.assign(outcome=FIGURE["outcome"].where(FIGURE["outcome"].isna(), -1.0))
    assert set(errors(wrong).values()) == {None}
    table, dropped = rank_corrections(wrong, locate_errors(wrong), kind="post")
    assert table.empty and dropped["no_error"] == 8


def test_corrections_in_the_middle_of_the_figures_tree() -> None:
    table, dropped = rank_corrections(FIGURE, locate_errors(FIGURE), kind="mid")
    # Paths 4 and 9 err at 1: 9 stands for both, since its S, -4/9, is above -2/3. Path 6 errs at its leaf.
    assert dropped == {"unreadable": 0, "no_error": 0, "error_ends_path": 1, "same_error": 1}
    shown = table[["wrong_leaf", "left", "taken", "leaf", "effective"]].values.tolist()
    assert shown == [
        [9, 1, 2, 12, True],
        [9, 1, 2, 13, True],
        [9, 1, 2, 11, True],
        [9, 1, 2, 10, False],
        [9, 1, 2, 6, False],
        [10, 5, 7, 12, True],  # takes up 5's sibling
        [10, 5, 7, 13, True],
        [10, 5, 1, 8, True],  # branches off at the question, above the error
        [10, 5, 1, 9, False],
        [10, 5, 1, 4, False],
        [10, 5, 6, 6, False],  # 6 itself is as wrong as can be
    ]
    best = table.iloc[0]
    # V(2) - V(1) = 1/5 + 1/3; S(12) - S(9) = 11/15 + 4/9; R(2, 12) - R(1, 9) = 11/15 + 4/9.
    assert best["gain_step"] == pytest.approx(8 / 15)
    assert best["gain_path"] == best["gain_rest"] == pytest.approx(53 / 45)
    assert best["action"] == pytest.approx((8 / 15 + 2 * 53 / 45) / 3)
    # 10 leaves at 5, with R(5, 10) = -1/2 and S = -4/15, for 6: V -1, S -2/5, R -1.
    row = table[(table.wrong_leaf == 10) & (table.leaf == 6)].iloc[0]
    assert row[["gain_step", "gain_path", "gain_rest"]].tolist() == pytest.approx([-1, -2 / 5 + 4 / 15, -1 / 2])


def test_corrections_after_the_end_leave_the_leaf() -> None:
    table, dropped = rank_corrections(FIGURE, locate_errors(FIGURE), kind="post", weights=(2.0, 0.0, 0.0))
    assert sum(dropped.values()) == 0
    assert (table["left"] == table["wrong_leaf"]).all()
    assert table["wrong_leaf"].unique().tolist() == [4, 6, 9, 10]
    six = table[table["wrong_leaf"] == 6]  # its error is itself: all else branches off before it
    assert sorted(six["leaf"]) == [4, 8, 9, 10, 11, 12, 13]
    assert six.iloc[0]["action"] == pytest.approx(2)  # V(7) - V(6)
    four = table[table["wrong_leaf"] == 4]  # it errs at 1: 8 and 9 branch off after the error
    assert sorted(four["leaf"]) == [6, 10, 11, 12, 13]
    assert four[["taken"]].eq(2).all().all()
    assert four["action"].tolist() == pytest.approx([1.2] * 5)  # V(2) - V(4), whatever the path
    assert four["leaf"].tolist() == [11, 12, 13, 6, 10]  # ties to the lower leaf


def test_top_k_keeps_the_best_of_both_ways_to_end() -> None:
    located = locate_errors(FIGURE)
    everything, _ = rank_corrections(FIGURE, located, kind="post")
    best, _ = rank_corrections(FIGURE, located, kind="post", top_k=1)
    expected = everything.groupby(["wrong_leaf", "effective"], sort=False).head(1).reset_index(drop=True)
    pd.testing.assert_frame_equal(best, expected)
    assert len(best) == 8


def test_a_model_may_say_where_the_error_is() -> None:
    told = pd.DataFrame({"question_id": ["figure"] * 2, "leaf": [9, 10], "node_id": [3, None]})
    table, dropped = rank_corrections(FIGURE, told, kind="mid")
    assert table["left"].unique().tolist() == [3] and dropped["no_error"] == 1
    assert sorted(table["leaf"]) == [4, 6, 10, 11, 12, 13]
    with pytest.raises(MedReflError, match="'figure': the located error 5 is not a step of the path to leaf 9"):
        rank_corrections(FIGURE, told.assign(node_id=[5, 5]), kind="mid")
    with pytest.raises(MedReflError, match="the located error 99 is not a step of the path to leaf 9"):
        rank_corrections(FIGURE, told.assign(node_id=[99, 5]), kind="mid")
    with pytest.raises(MedReflError, match="leaf 8 does not end a wrong path"):
        rank_corrections(FIGURE, told.assign(leaf=[8, 10], node_id=[3, None]), kind="mid")


def test_what_states_no_answer_is_neither_corrected_nor_taken_up() -> None:
    stop = FIGURE["outcome"].notna().map({True: "answer", False: None})
    cut = FIGURE.assign(stop=stop.mask(FIGURE["node_id"].isin([9, 6]), "tokens"))
    table, dropped = rank_corrections(cut, locate_errors(cut), kind="post")
    assert dropped["unreadable"] == 2
    assert table["wrong_leaf"].unique().tolist() == [4, 10] and not table["leaf"].isin([6, 9]).any()


def test_impossible_parameters_are_refused() -> None:
    located = locate_errors(FIGURE)
    with pytest.raises(MedReflError, match="kind is 'after', expected one of mid, post"):
        rank_corrections(FIGURE, located, kind="after")
    with pytest.raises(MedReflError, match=r"weights are \[1, -1, 1\], expected three"):
        rank_corrections(FIGURE, located, kind="mid", weights=(1, -1, 1))
    with pytest.raises(MedReflError, match="top_k is 0"):
        rank_corrections(FIGURE, located, kind="mid", top_k=0)


def brute(table: pd.DataFrame, kind: str, margin: Fraction) -> set[tuple]:
    """All pairs of nodes: (question, w, s, t, p, parts) of every correction that the definition allows."""
    value, solution = plain(table)
    parent = {(r.question_id, r.node_id): None if pd.isna(r.parent_id) else r.parent_id for r in table.itertuples()}
    outcome = {(r.question_id, r.node_id): r.outcome for r in table.itertuples()}
    found = set()
    wrongs = {}
    for (question, leaf), (nodes, s_w) in solution.items():
        if outcome[question, leaf] > 0:
            continue
        for node in nodes:
            up = (question, parent[question, node])
            better = [n for n in parent if n[0] == question and parent[n] == up[1] and value[n] > value[question, node]]
            fall = value[up] - value[question, node]
            if fall > 0 and fall >= margin and better:
                if kind == "post" or node != leaf:
                    wrongs.setdefault((question, node), []).append((-s_w, leaf, nodes))
                break
    for (question, error), candidates in wrongs.items():
        for _, w, nodes in sorted(candidates)[: 1 if kind == "mid" else None]:
            left = error if kind == "mid" else w
            before = [None, *nodes][: nodes.index(error) + 1]  # the steps above the error; None is the question
            for (other, p), (steps, s_p) in solution.items():
                if other != question:
                    continue
                for i, t in enumerate(steps):
                    above = steps[i - 1] if i else None
                    if above in before and t not in nodes:
                        r_t = sum(value[question, n] for n in steps[i:]) / (len(steps) - i)
                        j = nodes.index(left)
                        r_s = sum(value[question, n] for n in nodes[j:]) / (len(nodes) - j)
                        gains = (value[question, t] - value[question, left], s_p - solution[question, w][1], r_t - r_s)
                        found.add((question, w, left, t, p, *(round(float(g), 9) + 0.0 for g in gains)))
    return found


@given(forests(), st.sampled_from(["mid", "post"]), st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([1, 7, 10**6]))
def test_any_forest_has_the_corrections_of_the_definition(table, kind, margin, block) -> None:
    size, module._BLOCK = module._BLOCK, block
    try:
        ours, _ = rank_corrections(table, locate_errors(table, margin), kind=kind, weights=(0.2, 0.3, 0.5))
        best, _ = rank_corrections(table, locate_errors(table, margin), kind=kind, weights=(0.2, 0.3, 0.5), top_k=2)
    finally:
        module._BLOCK = size
    gains = ours[["gain_step", "gain_path", "gain_rest"]]
    names = ["question_id", "wrong_leaf", "left", "taken", "leaf"]
    rows = {(*ids, *(round(g, 9) + 0.0 for g in parts)) for ids, parts in zip(
        ours[names].itertuples(index=False), gains.itertuples(index=False), strict=True)}  # fmt: skip
    assert len(rows) == len(ours)
    assert rows == brute(table, kind, Fraction(margin))
    assert ours["action"].to_numpy() == pytest.approx(gains.to_numpy() @ np.array([0.2, 0.3, 0.5]))
    assert ours["action"].between(-2, 2).all()
    outcome = table.set_index(["question_id", "node_id"])["outcome"]
    assert [outcome[key] > 0 for key in zip(ours.question_id, ours.leaf, strict=True)] == ours["effective"].tolist()
    solution = paths(table).set_index(["question_id", "node_id"])["value"]
    assert ours["wrong_value"].tolist() == pytest.approx(
        [solution[key] for key in zip(ours.question_id, ours.wrong_leaf, strict=True)]
    )
    expected = ours.groupby(["question_id", "wrong_leaf", "effective"], sort=False).head(2).reset_index(drop=True)
    pd.testing.assert_frame_equal(best, expected)


@given(forests(), st.randoms())
def test_row_order_changes_nothing(table, random) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    key = ["question_id", "wrong_leaf", "leaf"]
    ours, other = (
        rank_corrections(t, locate_errors(t), kind="post")[0].sort_values(key, ignore_index=True)
        for t in (table, table.iloc[order])
    )
    pd.testing.assert_frame_equal(ours, other)


def test_no_rows_give_no_corrections() -> None:
    table, dropped = rank_corrections(FIGURE.iloc[:0], locate_errors(FIGURE.iloc[:0]), kind="mid")
    assert table.empty and "action" in table and sum(dropped.values()) == 0
