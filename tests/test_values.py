"""Step values, solution values and the checks of the trees' table."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrefl_utils.core import VALUES, MedReflError
from medrefl_utils.trees import paths, step_values, value_table, values_and_paths
from medrefl_utils.trees import values as module

NAN = float("nan")

# The method figure: the root's left child has a step with leaves +1, -1 and a leaf -1; its right child has a step with
# leaves -1, +1, a leaf -1, and a step with leaves +1, +1.
FIGURE = pd.DataFrame(
    [
        (0, None, NAN),
        (1, 0, NAN),
        (2, 0, NAN),
        (3, 1, NAN),
        (4, 1, -1.0),
        (5, 2, NAN),
        (6, 2, -1.0),
        (7, 2, NAN),
        (8, 3, 1.0),
        (9, 3, -1.0),
        (10, 5, -1.0),
        (11, 5, 1.0),
        (12, 7, 1.0),
        (13, 7, 1.0),
    ],
    columns=["node_id", "parent_id", "outcome"],
).assign(question_id="figure", answer=[*[None] * 4, "B", None, "C", None, *"ABCAAA"])


def tree(*rows: tuple[int, int | None, float], question: str = "q", **columns: list) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["node_id", "parent_id", "outcome"])
    return table.assign(question_id=question, **columns)


def test_the_figures_tree_to_the_last_bit() -> None:
    value = step_values(FIGURE).set_axis(FIGURE["node_id"])
    assert value[[1, 2, 3, 4, 5, 6, 7]].tolist() == [-1 / 3, 1 / 5, 0.0, -1.0, 0.0, -1.0, 1.0]
    assert value[0] == 0.0  # 4 right and 4 wrong below the question
    assert value[[8, 9, 10, 11, 12, 13]].tolist() == [1, -1, -1, 1, 1, 1]


def test_value_table_has_the_counts_and_the_documented_columns() -> None:
    table = value_table(FIGURE)
    assert list(table.columns) == VALUES.names
    by_node = table.set_index("node_id")
    assert by_node.loc[1, ["right", "wrong"]].tolist() == [1, 2]
    assert by_node.loc[2, ["right", "wrong"]].tolist() == [3, 2]
    assert by_node.loc[0, ["right", "wrong"]].tolist() == [4, 4]
    assert by_node.loc[10, ["right", "wrong"]].tolist() == [0, 1]


def test_paths_of_the_figures_tree() -> None:
    table = paths(FIGURE)
    assert [list(nodes) for nodes in table["nodes"]] == [
        [1, 4],
        [2, 6],
        [1, 3, 8],
        [1, 3, 9],
        [2, 5, 10],
        [2, 5, 11],
        [2, 7, 12],
        [2, 7, 13],
    ]
    assert table["node_id"].tolist() == [4, 6, 8, 9, 10, 11, 12, 13]
    assert table["answer"].tolist() == ["B", "C", "A", "B", "C", "A", "A", "A"]
    assert table["outcome"].tolist() == [-1, -1, 1, -1, -1, 1, 1, 1]
    assert table["weight"].tolist() == [1] * 8
    by_hand = [-2 / 3, -2 / 5, 2 / 9, -4 / 9, -4 / 15, 2 / 5, 11 / 15, 11 / 15]
    assert table["value"].to_numpy() == pytest.approx(by_hand, abs=1e-15)


def test_a_merged_leaf_counts_as_often_as_it_stands_for() -> None:
    merged = tree((0, None, NAN), (1, 0, NAN), (2, 1, 1.0), (3, 1, -1.0), weight=[1, 1, 3, 1])
    assert step_values(merged).tolist() == [0.5, 0.5, 1, -1]
    assert paths(merged)["weight"].tolist() == [3, 1]


def test_merged_inner_siblings_pool_their_leaves() -> None:
    # Step x was drawn twice, with leaves (+, +) and (+, -), and step y once, with a leaf -; all right leaves are alike.
    unmerged = tree(
        *[(0, None, NAN), (1, 0, NAN), (2, 0, NAN), (3, 0, NAN)],
        *[(4, 1, 1.0), (5, 1, 1.0), (6, 2, 1.0), (7, 2, -1.0), (8, 3, -1.0)],
    )
    merged = tree(
        *[(0, None, NAN), (1, 0, NAN), (3, 0, NAN), (4, 1, 1.0), (7, 1, -1.0), (8, 3, -1.0)],
        weight=[1, 2, 1, 3, 1, 1],
    )
    right, wrong = 3, 2
    assert step_values(unmerged)[0] == step_values(merged)[0] == (right - wrong) / (right + wrong)
    assert step_values(merged)[1] == 0.5  # of x's four leaves three are right
    assert step_values(merged)[2] == step_values(unmerged)[3] == -1


@pytest.mark.parametrize(
    ("rows", "columns", "says"),
    [
        ([(0, None, NAN), (1, 0, 1.0), (7, None, NAN), (8, 7, 1.0)], {}, "node 7: a second root"),
        ([(0, None, NAN), (1, 0, 1.0), (2, 9, 1.0)], {}, "node 2: its parent 9 is not in the table"),
        ([(0, None, NAN), (1, 0, 1.0), (2, 4, NAN), (3, 2, NAN), (4, 3, NAN), (5, 4, 1.0)], {}, "node 2: its parents"),
        ([(0, None, NAN), (1, 0, 1.0), (5, 4, 1.0), (4, 4, NAN)], {}, "node 4: its parents form a cycle"),
        ([(1, 2, NAN), (2, 1, NAN)], {}, "node 1: its parents form a cycle"),
        ([(0, None, NAN), (1, 0, 1.0), (2, 1, 1.0)], {}, "node 1: outcome 1 on an inner step"),
        ([(0, None, -1.0), (1, 0, 1.0)], {}, "node 0: outcome -1 on an inner step"),
        ([(0, None, NAN), (1, 0, 1.0), (2, 0, NAN)], {}, "node 2: nothing continues it and it has no outcome"),
        ([(0, None, NAN), (1, 0, 0.5)], {}, "node 1: outcome 0.5, expected"),
        ([(0, None, NAN), (1, 0, 1.0), (1, 0, -1.0)], {}, "node 1: the id occurs twice"),
        ([(0, None, NAN)], {}, "node 0: the tree is only its root"),
        ([(0, None, 1.0)], {}, "node 0: the tree is only its root"),
        ([(0, None, NAN), (1, 0, 1.0)], {"weight": [1, 0]}, "node 1: weight 0, expected"),
        ([(0, None, NAN), (1, 0, 1.0)], {"weight": [1.0, NAN]}, "node 1: weight nan, expected"),
        ([(0, None, NAN), (1.5, 0, 1.0)], {}, "node 1.5: node_id 1.5 is not a 32-bit whole number"),
        ([(0, None, NAN), (2**40, 0, 1.0)], {}, "is not a 32-bit whole number"),
    ],
)
def test_a_malformed_tree_is_named_with_its_question_and_node(rows: list, columns: dict, says: str) -> None:
    table = pd.concat([FIGURE.assign(weight=1), tree(*rows, question="bad", **columns)], ignore_index=True)
    table["weight"] = table["weight"] if columns else 1
    for function in (step_values, value_table, paths):
        with pytest.raises(MedReflError) as error:
            function(table)
        assert str(error.value).startswith("question 'bad', node ")
        assert says in str(error.value)
        assert "\n" not in str(error.value)


def test_a_parent_in_another_question_is_missing() -> None:
    other = tree((0, None, NAN), (1, 0, 1.0), (2, 1, 1.0), question="other").drop(index=1)
    with pytest.raises(MedReflError, match="question 'other', node 2: its parent 1 is not in the table"):
        step_values(pd.concat([FIGURE, other]))


def test_an_id_beyond_a_questions_own_is_not_taken_for_the_next_questions() -> None:
    first = tree((0, None, NAN), (1, 0, 1.0), (2, 4, 1.0), question="first")
    second = tree((0, None, NAN), (1, 0, NAN), (2, 1, 1.0), question="second")
    with pytest.raises(MedReflError, match="question 'first', node 2: its parent 4 is not in the table"):
        step_values(pd.concat([first, second]))
    with pytest.raises(MedReflError, match="question 'second', node 1: its parent -1 is not in the table"):
        step_values(pd.concat([first.iloc[:2], second.assign(parent_id=[None, -1, 1])]))


def test_a_missing_column_or_question_is_named() -> None:
    with pytest.raises(MedReflError, match="steps: no column 'outcome', found node_id"):
        step_values(FIGURE.drop(columns="outcome"))
    with pytest.raises(MedReflError, match="steps: row 3 has no question_id"):
        step_values(FIGURE.assign(question_id=["figure"] * 3 + [None] * 11))


def test_no_rows_give_no_rows() -> None:
    assert len(step_values(FIGURE.iloc[:0])) == len(value_table(FIGURE.iloc[:0])) == len(paths(FIGURE.iloc[:0])) == 0


@pytest.mark.parametrize("dtype", ["Int32", "int32[pyarrow]", "float64", "object"])
def test_every_way_to_hold_a_null_parent_is_read(dtype: str) -> None:
    parent = pd.Series([None if p != p else int(p) for p in FIGURE["parent_id"]], dtype=dtype)
    assert step_values(FIGURE.assign(parent_id=parent)).tolist() == step_values(FIGURE).tolist()


def test_a_path_as_deep_as_a_long_rollout() -> None:
    deep = 5000
    chain = tree((0, None, NAN), *[(i, i - 1, NAN) for i in range(1, deep)], (deep, deep - 1, -1.0))
    assert set(step_values(chain)) == {-1.0}
    assert list(paths(chain)["nodes"][0]) == list(range(1, deep + 1))


@st.composite
def forests(draw: st.DrawFn) -> pd.DataFrame:
    """One to four trees of any shape, ids neither dense nor sorted, rows shuffled; leaves have a weight."""
    tables = []
    for question in range(draw(st.integers(1, 4))):
        n = draw(st.integers(2, 25))
        parents = [draw(st.integers(0, i - 1)) for i in range(1, n)]
        ids = draw(st.lists(st.integers(-1000, 2**31 - 1), min_size=n, max_size=n, unique=True))
        inner = set(parents)
        outcome = [NAN if i in inner else draw(st.sampled_from([1.0, -1.0])) for i in range(n)]
        weight = draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
        parent_ids = pd.array([None] + [ids[p] for p in parents], dtype="Int64")
        columns = {"node_id": ids, "parent_id": parent_ids, "outcome": outcome, "weight": weight}
        tables.append(pd.DataFrame({"question_id": f"q{question}"} | columns))
    table = pd.concat(tables, ignore_index=True)
    return table.loc[draw(st.permutations(range(len(table))))]


def plain(table: pd.DataFrame) -> tuple[dict, dict]:
    """The definitions as written: V by recursion over the children, S as the mean of V over a path's steps."""
    rows = {(r.question_id, r.node_id): r for r in table.itertuples()}
    children: dict = {}
    for (question, node), row in rows.items():
        if not pd.isna(row.parent_id):
            children.setdefault((question, row.parent_id), []).append((question, node))

    def counts(step: tuple) -> tuple[int, int]:
        if step not in children:
            weight = int(rows[step].weight)
            return (weight, 0) if rows[step].outcome == 1 else (0, weight)
        below = [counts(child) for child in children[step]]
        return sum(c for c, _ in below), sum(w for _, w in below)

    value = {step: Fraction(c - w, c + w) for step in rows for c, w in [counts(step)]}
    solution = {}
    for step in rows:
        if step not in children:
            path, at = [], step
            while not pd.isna(rows[at].parent_id):
                path.append(at)
                at = (at[0], rows[at].parent_id)
            solution[step] = ([node for _, node in reversed(path)], sum(value[s] for s in path) / len(path))
    return value, solution


@given(forests())
def test_any_forest_has_the_values_of_the_plain_definition(table: pd.DataFrame) -> None:
    value, solution = plain(table)
    ours = step_values(table)
    assert ours.index.equals(table.index)
    for question, node, v in zip(table["question_id"], table["node_id"], ours, strict=True):
        assert v == float(value[question, node])
    found = paths(table)
    assert len(found) == len(solution)
    for row in found.itertuples():
        nodes, mean = solution[row.question_id, row.node_id]
        assert list(row.nodes) == nodes
        assert row.value == pytest.approx(float(mean), abs=1e-12)


@given(forests(), st.booleans(), st.sampled_from([1, 20]))
def test_a_table_in_parts_is_as_in_one(table: pd.DataFrame, together: bool, block: int) -> None:
    table = table.sort_values("question_id", kind="stable") if together else table
    whole = (*values_and_paths(table), value_table(table), paths(table), step_values(table))
    size, module._BLOCK = module._BLOCK, block
    try:
        assert not together or block > 1 or len(module._blocks(table)) == table["question_id"].nunique()
        parts = (*values_and_paths(table), value_table(table), paths(table), step_values(table))
    finally:
        module._BLOCK = size
    for one, other in zip(whole, parts, strict=True):
        assert one.equals(other) and one.index.equals(other.index)


@given(forests())
def test_rows_are_found_alike_by_an_array_and_by_bisection(table: pd.DataFrame) -> None:
    found = []
    dense = module._DENSE
    try:
        for module._DENSE in (0, 2**40):
            small = table.assign(node_id=table["node_id"] % 100_000, parent_id=table["parent_id"] % 100_000)
            try:
                found.append(values_and_paths(small))
            except MedReflError as error:  # ids that are alike now
                found.append((str(error).split(":")[1], None))
    finally:
        module._DENSE = dense
    if isinstance(found[0][0], str):
        assert found[0] == found[1]
    else:
        for ours, other in zip(*found, strict=True):
            pd.testing.assert_frame_equal(ours, other)
        pd.testing.assert_frame_equal(found[0][0], value_table(small))
        pd.testing.assert_frame_equal(found[0][1], paths(small))


@given(forests(), st.randoms())
def test_row_order_changes_nothing(table: pd.DataFrame, random: object) -> None:
    order = list(range(len(table)))
    random.shuffle(order)  # type: ignore[attr-defined]
    key = ["question_id", "node_id"]

    def sorted_by_id(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.sort_values(key, ignore_index=True)

    shuffled = table.iloc[order]
    pd.testing.assert_frame_equal(sorted_by_id(value_table(shuffled)), sorted_by_id(value_table(table)))
    ours, other = sorted_by_id(paths(shuffled)), sorted_by_id(paths(table))
    assert ours.drop(columns="nodes").equals(other.drop(columns="nodes"))
    assert ours["nodes"].tolist() == other["nodes"].tolist()


@given(forests())
def test_weights_equal_the_unmerged_tree(table: pd.DataFrame) -> None:
    """Each leaf written out as often as its weight says leaves every inner step as it was."""
    times = np.where(table["outcome"].notna(), table["weight"], 1)
    copies = table.loc[np.repeat(table.index, times)].drop(columns="weight").reset_index(drop=True)
    again = copies.duplicated(["question_id", "node_id"])
    copies["node_id"] = np.where(again, -2000 - np.arange(len(copies)), copies["node_id"])  # ids that no tree has
    inner = table["outcome"].isna()
    merged, unmerged = value_table(table)[inner.to_numpy()], value_table(copies)[copies["outcome"].isna()]
    key = ["question_id", "node_id"]
    pd.testing.assert_frame_equal(
        merged.sort_values(key, ignore_index=True), unmerged.sort_values(key, ignore_index=True), check_exact=True
    )
