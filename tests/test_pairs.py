"""Reasoning pairs: ranks, what is left out and why, and the checks that stop the stage."""

from __future__ import annotations

import hashlib

import pandas as pd
import pyarrow as pa
import pytest

from medrefl_utils.pairs import pair_id, reasoning_pairs
from medrefl_utils.records import PAIRS, MedReflError, Question
from medrefl_utils.values import paths

NAN = float("nan")
OPTIONS = {"A": "zelorin", "B": "marvutide", "C": "oxpril"}
STEP = ["question_id", "node_id", "parent_id", "text", "outcome", "stop", "n_tokens"]

# V: 1 = 1/3, 2 = -1, 3 = 1. S: 4 and 5 = 2/3, 6 = -1/3; 7 = -1 (unreadable) and 8 = -1; 9 = 1.
MIXED = [
    ("q1", 0, None, "", NAN, None, 0),
    ("q1", 1, 0, "Step 1: fever.\n", NAN, None, 4),
    ("q1", 2, 0, "Step 1: nothing.\n", NAN, None, 3),
    ("q1", 3, 0, "Step 1: rash.\n", NAN, None, 5),
    ("q1", 4, 1, "Answer: A\n", 1.0, "answer", 3),
    ("q1", 5, 1, "Thus it is so.\nAnswer: A \n\n", 1.0, "answer", 7),
    ("q1", 6, 1, "Answer: B\n", -1.0, "answer", 3),
    ("q1", 7, 2, "Who knows", -1.0, "tokens", 9),
    ("q1", 8, 2, "Answer: C\n", -1.0, "answer", 3),
    ("q1", 9, 3, "Answer: A\n", 1.0, "answer", 3),
]


def table(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=STEP)


def prompt(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.stem}]


def make(steps: pd.DataFrame, **parameters: float) -> tuple[pd.DataFrame, dict[str, int]]:
    ids = steps["question_id"].unique()
    questions = [Question(name, f"What helps {name}?", OPTIONS, "A") for name in ids]
    options = {"top_k": 2, "min_margin": 0.0, "max_per_question": 10} | parameters
    return reasoning_pairs(questions, steps, paths(steps), prompt=prompt, **options)  # type: ignore[arg-type]


def leaves(pairs: pd.DataFrame) -> list[tuple[int, int]]:
    return [(c[-1], r[-1]) for c, r in zip(pairs["chosen_nodes"], pairs["rejected_nodes"], strict=True)]


def test_the_best_right_and_the_most_confusing_wrong_paths_are_crossed() -> None:
    pairs, dropped = make(table(MIXED))
    assert leaves(pairs) == [(9, 6), (9, 8), (4, 6), (4, 8)]
    assert pairs["chosen_value"].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert pairs["rejected_value"].tolist() == pytest.approx([-1 / 3, -1, -1 / 3, -1])
    assert pairs["chosen_tokens"].tolist() == [8, 8, 7, 7]
    assert pairs["rejected_tokens"].tolist() == [7, 6, 7, 6]
    assert dropped == {
        **{"all_right": 0, "all_wrong": 0, "none_stated": 0, "unreadable": 1},
        **{"duplicate": 0, "margin": 0, "cap": 0},
    }


def test_a_pair_holds_the_conversation_and_its_provenance() -> None:
    pairs, _ = make(table(MIXED), top_k=3)
    pair = pairs[[nodes == [1, 5] for nodes in pairs["chosen_nodes"]]].iloc[0]
    assert pair["prompt"] == [{"role": "user", "content": "What helps q1?"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "Step 1: fever.\nThus it is so.\nAnswer: A"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "Step 1: fever.\nAnswer: B"}]
    assert (pair["question_id"], pair["kind"], pair["rejected_nodes"]) == ("q1", "reasoning", [1, 6])


def test_the_table_has_the_documented_columns_and_types() -> None:
    for frame in (make(table(MIXED))[0], make(table(MIXED), min_margin=2.0)[0]):
        assert list(frame.columns) == PAIRS.names
        assert pa.Table.from_pandas(frame, schema=PAIRS, preserve_index=False).schema.names == PAIRS.names


def test_a_pairs_id_is_of_its_content_alone() -> None:
    chosen, rejected = [{"role": "assistant", "content": "ä"}], [{"role": "assistant", "content": "b"}]
    asked = [{"role": "user", "content": "?"}]
    json = (
        '["reasoning", [{"content": "?", "role": "user"}], [{"content": "ä", "role": "assistant"}], '
        '[{"content": "b", "role": "assistant"}]]'
    )
    assert pair_id("reasoning", asked, chosen, rejected) == hashlib.sha256(json.encode()).hexdigest()[:16]
    assert pair_id("random_cot", asked, chosen, rejected) != pair_id("reasoning", asked, chosen, rejected)
    renamed = table(MIXED).assign(node_id=lambda t: t["node_id"] + 100, parent_id=lambda t: t["parent_id"] + 100)
    assert make(renamed)[0]["pair_id"].tolist() == make(table(MIXED))[0]["pair_id"].tolist()
    assert make(table(MIXED))[0]["pair_id"].is_unique


def test_row_order_changes_nothing() -> None:
    two = pd.concat([table(MIXED), table(MIXED).assign(question_id="q0")])
    shuffled = two.sample(frac=1, random_state=3)
    first, second = make(two), make(shuffled)
    pd.testing.assert_frame_equal(first[0], second[0])
    assert first[1] == second[1]
    assert first[0]["question_id"].tolist() == ["q0"] * 4 + ["q1"] * 4


def test_a_margin_and_a_cap_are_counted() -> None:
    pairs, dropped = make(table(MIXED), min_margin=1.2)
    assert leaves(pairs) == [(9, 6), (9, 8), (4, 8)]  # S 2/3 and -1/3 are 1 apart
    assert dropped["margin"] == 1
    pairs, dropped = make(table(MIXED), max_per_question=3)
    assert leaves(pairs) == [(9, 6), (9, 8), (4, 6)]
    assert dropped["cap"] == 1


def test_one_sided_questions_give_no_pair() -> None:
    root = (0, None, "", NAN, None, 0)
    rows = [
        *[("right", *root), ("right", 1, 0, "Answer: A", 1.0, "answer", 1)],
        *[("wrong", *root), ("wrong", 1, 0, "Answer: B", -1.0, "answer", 1)],
        *[("cut", *root), ("cut", 1, 0, "Answer: A", 1.0, "answer", 1), ("cut", 2, 0, "Step 1", -1.0, "depth", 1)],
    ]
    pairs, dropped = make(table(rows + MIXED))
    assert set(pairs["question_id"]) == {"q1"}
    assert (dropped["all_right"], dropped["all_wrong"], dropped["none_stated"]) == (1, 1, 1)
    assert dropped["unreadable"] == 1  # of the question that gave pairs
    pairs, _ = make(table(rows))
    assert len(pairs) == 0


def test_a_text_reached_by_two_leaves_counts_once() -> None:
    # Leaf 10 says what leaf 9 says, split elsewhere; both have S = 1, and the lower id stands.
    twin = [
        ("q1", 11, 0, "Step 1: rash.\nAns", NAN, None, 6),
        ("q1", 10, 11, "wer: A", 1.0, "answer", 2),
    ]
    pairs, dropped = make(table(MIXED + twin))
    assert leaves(pairs) == [(9, 6), (9, 8), (4, 6), (4, 8)]
    assert dropped["duplicate"] == 1


def test_what_would_teach_the_wrong_thing_stops_the_stage() -> None:
    steps = table(MIXED)
    steps.loc[steps["node_id"] == 9, "text"] = "Answer: B\n"
    with pytest.raises(MedReflError, match=r"question 'q1', pair of nodes \[3, 9\] and \[1, 6\]: chosen ends at B"):
        make(steps)
    steps.loc[steps["node_id"] == 9, "text"] = "Who knows\n"
    with pytest.raises(MedReflError, match="chosen ends at no answer, expected the gold A"):
        make(steps)
    steps = table(MIXED)
    steps.loc[steps["node_id"] == 6, "text"] = "Answer: A\n"
    with pytest.raises(MedReflError, match=r"nodes \[3, 9\] and \[1, 6\]: rejected ends at the gold answer A"):
        make(steps)
    steps.loc[steps["node_id"] == 1, "text"] = "Step 1: rash.\n"
    with pytest.raises(MedReflError, match="chosen and rejected are the same text"):
        make(steps)


def test_a_missing_question_and_a_bad_parameter_are_named() -> None:
    with pytest.raises(MedReflError, match="question 'q1' has a tree and is not among the 0 questions"):
        reasoning_pairs(
            [],
            table(MIXED),
            paths(table(MIXED)),
            prompt=prompt,
            top_k=1,
            min_margin=0.0,
            max_per_question=1,
        )
    with pytest.raises(MedReflError, match="top_k is 0, expected at least 1"):
        make(table(MIXED), top_k=0)
