"""Reasoning, reflection and random pairs: ranks, what is left out and why, and the checks of each row."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from medrefl_utils.core import PAIRS, MedReflError, Question
from medrefl_utils.exam import load_questions, prompts
from medrefl_utils.pairs import (
    candidates_of,
    correction_texts,
    pair_id,
    prompt_states_answer,
    random_pairs,
    reasoning_pairs,
    reflection_candidates,
    reflection_pairs,
    restraint_candidates,
    sample_at_most,
    select_kinds,
    side_fault,
)
from medrefl_utils.trees import locate_errors, paths, rank_corrections

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
    # By the sum of the ranks, so that the best right path does not take all places: not (9, 10) with ranks 0 and 2.
    three = table([*MIXED, ("q1", 10, 2, "Answer: B\n", -1.0, "answer", 3)])
    pairs, dropped = make(three, top_k=3, max_per_question=3)
    assert leaves(pairs) == [(9, 6), (9, 8), (4, 6)]
    assert dropped["cap"] == 6


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


@pytest.mark.parametrize(
    ("node", "text", "reason", "found", "kept"),
    [
        # 9 and 4 are right, 6 and 8 wrong; the pairs are (9, 6), (9, 8), (4, 6), (4, 8).
        (9, "Answer: B\n", "chosen_elsewhere", "[3, 9] and [1, 6]: chosen ends at B, expected the gold A", 2),
        (9, "Who knows\n", "chosen_elsewhere", "[3, 9] and [1, 6]: chosen ends at no answer, expected the gold A", 2),
        (6, "Answer: A.\n", "rejected_right", "[3, 9] and [1, 6]: rejected ends at the gold answer A", 2),
    ],
)
def test_a_pair_that_would_teach_the_wrong_thing_is_dropped_and_counted_with_an_example(
    node: int, text: str, reason: str, found: str, kept: int
) -> None:
    steps = table(MIXED)
    steps.loc[steps["node_id"] == node, "text"] = text
    pairs, dropped = make(steps)
    assert len(pairs) == kept and node not in {n for pair in leaves(pairs) for n in pair}
    assert dropped.faults == {reason: 2}
    assert dropped.examples[reason].startswith(f"question 'q1', pair of nodes {found}")


def test_a_side_that_begins_inside_the_templates_thinking_is_read_as_one() -> None:
    """Without a closing mark "Option A is right, but" is a thought and no answer."""
    steps = table(MIXED)
    steps.loc[steps["node_id"] == 9, "text"] = "Option A is right, but\n"
    for inside, dropped_by in ((False, {}), (True, {"chosen_elsewhere": 2})):
        pairs, dropped = make(steps, thinking_open=inside)
        assert dropped.faults == dropped_by and len(pairs) == 4 - 2 * inside
        questions = [Question("q1", "What helps q1?", OPTIONS, "A")]
        like = make(table(MIXED))[0]
        drawn, left_out = random_pairs(
            questions, steps, paths(steps), like, prompt=prompt, seed=0, thinking_open=inside
        )
        # other paths are drawn instead, but the two that are left are reasoning pairs
        assert len(drawn) == 4 - 2 * inside and left_out.get("chosen_elsewhere", 0) == 2 * inside
        assert left_out["shared"] == 2 * inside
    question, said = Question("q1", "What?", OPTIONS, "A"), "Option A is right, but"
    assert side_fault(question, "Answer: A", said)[0] == "rejected_right"
    assert side_fault(question, "Answer: A", said, thinking_open=True) == ("", "")


def test_two_sides_of_the_same_text_are_no_pair() -> None:
    steps = table(MIXED)
    steps.loc[steps["node_id"] == 1, "text"] = "Step 1: rash.\n"
    steps.loc[steps["node_id"] == 6, "text"] = "Answer: A\n"  # a wrong path with the text of the right path to 9
    pairs, dropped = make(steps, top_k=1)
    assert pairs.empty and dropped.faults == {"same_text": 1}
    assert "chosen and rejected are the same text" in dropped.examples["same_text"]


def test_a_dropped_pair_leaves_its_place_under_the_cap_to_the_next() -> None:
    steps = table(MIXED)
    steps.loc[steps["node_id"] == 9, "text"] = "Answer: B\n"
    pairs, dropped = make(steps, max_per_question=1)
    assert leaves(pairs) == [(4, 6)] and dropped["cap"] == 1 and dropped.faults == {"chosen_elsewhere": 2}


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


def test_a_prompt_that_states_the_answer_drops_its_pairs() -> None:
    def telling(question: Question) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"What helps? The answer is {question.gold}."}]

    def harmless(question: Question) -> list[dict[str, str]]:
        return [{"role": "user", "content": 'Is it B? A zelorin pump helps. End with the line "Answer: X".'}]

    questions, steps = [Question("q1", "?", OPTIONS, "A")], table(MIXED)
    options = {"top_k": 1, "min_margin": 0.0, "max_per_question": 1}
    pairs, dropped = reasoning_pairs(questions, steps, paths(steps), prompt=telling, **options)
    assert pairs.empty and dropped.faults == {"prompt_states_answer": 1}
    assert dropped.examples["prompt_states_answer"].endswith("the prompt states the gold answer A")
    assert len(reasoning_pairs(questions, steps, paths(steps), prompt=harmless, **options)[0]) == 1


DRUGS = {"A": "Warfarin", "B": "Heparin", "C": "Aspirin", "D": "Atorvastatin"}


@pytest.mark.parametrize(
    ("stem", "options", "gold", "states"),
    [
        ("Which cranial nerve slows the heart?", {"A": "VII", "B": "IX", "C": "X", "D": "XII"}, "C", False),
        ("Which vitamin?", {"A": "K", "B": "X", "C": "D", "D": "C"}, "B", False),
        ("She needs an oral anticoagulant. Choose the correct answer:", DRUGS, "A", False),
        ("She needs an oral anticoagulant. The correct answer is:", DRUGS, "A", False),
        ("The best option is:", DRUGS, "A", False),
        ("Choose the correct answer: A. Warfarin B. Heparin C. Aspirin D. Atorvastatin", DRUGS, "A", False),
        ("Which drug? The answer is A.", DRUGS, "A", True),
        ("Which drug? Answer: A", DRUGS, "A", True),
        ("Which drug? The answer is B.", DRUGS, "A", False),  # a false hint is no leak
    ],
)
def test_what_a_prompt_states(stem: str, options: dict[str, str], gold: str, states: bool) -> None:
    question = Question("q", stem, options, gold)
    assert prompt_states_answer(question, prompts.exam(question)) is states
    assert prompt_states_answer(question, prompts.exam_json(question)) is states


@pytest.mark.parametrize("name", ["nerve.jsonl", "choose.jsonl"])
def test_exams_whose_prompt_only_seems_to_state_the_answer_give_pairs(name: str, shared_data: Path) -> None:
    file = shared_data / "cases" / "chain" / name
    if not file.is_file():
        pytest.skip("the cases are not here")
    questions = load_questions(str(file), split="train")
    rows = []
    for question in questions:
        wrong = next(letter for letter in question.options if letter != question.gold)
        rows += [
            (question.question_id, 0, None, "", NAN, None, 0),
            (question.question_id, 1, 0, f"Step 1: so.\nAnswer: {question.gold}", 1.0, "answer", 5),
            (question.question_id, 2, 0, f"Step 1: no.\nAnswer: {wrong}", -1.0, "answer", 5),
        ]
    steps = table(rows)
    limits = {"top_k": 1, "min_margin": 0.0, "max_per_question": 1}
    pairs, dropped = reasoning_pairs(questions, steps, paths(steps), prompt=prompts.exam, **limits)
    assert set(pairs["question_id"]) == {question.question_id for question in questions} and not dropped.faults


# V: root 0, 1 = 0, 2 = 1, 3 = -1, 4 = 1, 9 = -1. The wrong path to 8 errs at 3, those to 10 and 12 at 9.
# S: 5 and 11 have 1, 6 has 2/3, 8 has -2/3, 10 and 12 have -1.
TWO_WAYS = [
    ("q1", 0, None, "", NAN, None, 0),
    ("q1", 1, 0, "Step 1: fever.\n", NAN, None, 4),
    ("q1", 2, 0, "Step 1: rash.\n", NAN, None, 4),
    ("q1", 3, 1, "Step 2: so it is oxpril.\n", NAN, None, 7),
    ("q1", 4, 1, "Step 2: so it is zelorin.\n", NAN, None, 7),
    ("q1", 5, 2, "Answer: A", 1.0, "answer", 3),
    ("q1", 6, 4, "Answer: A", 1.0, "answer", 3),
    ("q1", 8, 3, "Answer: C", -1.0, "answer", 3),
    ("q1", 9, 0, "Step 1: nothing at all.\n", NAN, None, 5),
    ("q1", 10, 9, "Answer: B", -1.0, "answer", 3),
    ("q1", 11, 2, "Answer: A, surely", 1.0, "answer", 5),
    ("q1", 12, 9, "Answer: C", -1.0, "answer", 3),
]


def candidates(kind: str, **parameters: float) -> tuple[pd.DataFrame, dict[str, int]]:
    steps = table(TWO_WAYS)
    ranked, _ = rank_corrections(steps, locate_errors(steps), kind=kind)
    return reflection_candidates(ranked, **({"top_k": 1, "min_margin": 0.0, "max_per_question": 10} | parameters))


def reflected(kind: str, written=lambda key: f"Wait,  I go to {key[2]}.\n", **parameters: float):
    steps = table(TWO_WAYS)
    found, _ = candidates(kind, **parameters)
    asked = correction_texts([QUESTION], steps, paths(steps), found)
    texts = {key: written(key) for key in asked if written(key)}
    return reflection_pairs([QUESTION], steps, paths(steps), found, texts, kind=f"reflection_{kind}", prompt=prompt)


QUESTION = Question("q1", "What helps?", OPTIONS, "A")


def test_candidates_cross_the_best_corrections_of_both_ways() -> None:
    found, dropped = candidates("mid")
    assert found[
        ["wrong_leaf", "left", "taken_chosen", "leaf_chosen", "taken_rejected", "leaf_rejected"]
    ].values.tolist() == [
        [8, 3, 2, 5, 9, 10],
        [10, 9, 2, 5, 1, 8],
    ]
    assert dropped == {"no_effective": 0, "no_invalid": 0, "margin": 0, "cap": 0}
    assert (found["action_chosen"] > found["action_rejected"]).all()
    # By ranks, then 8 before 10, since S(8) is more confusing: 5, 11, 6 against 10, 12 and against 8.
    found, dropped = candidates("mid", top_k=3, max_per_question=4)
    assert found[["wrong_leaf", "leaf_chosen", "leaf_rejected"]].values.tolist() == [
        *([8, 5, 10], [10, 5, 8]),
        *([8, 5, 12], [8, 11, 10]),
    ]
    assert dropped["cap"] == 5
    # A: (2 + 5/3 + 2) / 3 and (0 - 1/3 + 0) / 3 for 8; 2 and (1 + 1/3 + 1/3) / 3 for 10, which are 1.44 apart.
    assert found.loc[0, ["action_chosen", "action_rejected"]].tolist() == pytest.approx([17 / 9, -1 / 9])
    found, dropped = candidates("mid", min_margin=1.9)
    assert found["wrong_leaf"].tolist() == [8] and dropped["margin"] == 1
    with pytest.raises(MedReflError, match="max_per_question is 0"):
        candidates("mid", max_per_question=0)


def test_a_wrong_path_with_one_way_to_end_gives_no_pair() -> None:
    steps = table([row for row in TWO_WAYS if row[1] not in (9, 10, 12)])
    ranked, _ = rank_corrections(steps, locate_errors(steps), kind="mid")
    found, dropped = reflection_candidates(ranked, top_k=2, min_margin=0.0, max_per_question=9)
    assert found.empty and dropped["no_invalid"] == 1


def test_a_turn_says_what_is_shared_what_goes_wrong_and_what_replaces_it() -> None:
    steps = table(TWO_WAYS)
    found, _ = candidates("mid", top_k=3)
    asked = correction_texts([QUESTION], steps, paths(steps), found)
    assert len(asked) == 3 + 2 + 3 + 1
    assert asked["q1", 3, 6].public == ("Step 1: fever.\n",)
    assert asked["q1", 3, 6].wrong == ("Step 2: so it is oxpril.\n",)
    assert asked["q1", 3, 6].right == ("Step 2: so it is zelorin.\n", "Answer: A")
    assert asked["q1", 3, 5].public == ()  # branches off at the question: both steps were wrong
    assert asked["q1", 3, 5].wrong == ("Step 1: fever.\n", "Step 2: so it is oxpril.\n")


def test_a_pair_in_the_middle_shares_the_wrong_step_and_parts_at_the_reflection() -> None:
    pairs, dropped = reflected("mid")
    pair = pairs.iloc[0]
    assert pair["kind"] == "reflection_mid" and dropped == {"no_reflection": 0, "duplicate": 0}
    assert pair["chosen"][0]["content"] == (
        "Step 1: fever.\nStep 2: so it is oxpril.\nWait, I go to 5.\nStep 1: rash.\nAnswer: A"
    )
    assert pair["rejected"][0]["content"] == (
        "Step 1: fever.\nStep 2: so it is oxpril.\nWait, I go to 10.\nStep 1: nothing at all.\nAnswer: B"
    )
    assert (pair["left_nodes"], pair["chosen_nodes"], pair["rejected_nodes"]) == ([1, 3], [2, 5], [9, 10])
    assert (pair["chosen_taken"], pair["rejected_taken"]) == (2, 9)
    assert pair["chosen_value"] == 1 and pair["rejected_value"] == -1
    assert pair["chosen_action"] > pair["rejected_action"]
    assert pair["chosen_reflection"] == "Wait,  I go to 5.\n"  # as the model wrote it
    assert pa.Table.from_pandas(pairs, schema=PAIRS, preserve_index=False).num_rows == len(pairs) == 2


def test_a_pair_after_the_end_begins_with_the_whole_wrong_path() -> None:
    pair = reflected("post")[0].iloc[0]
    begins = "Step 1: fever.\nStep 2: so it is oxpril.\nAnswer: C\nWait, I go to "
    assert all(pair[side][0]["content"].startswith(begins) for side in ("chosen", "rejected"))
    assert pair["chosen"][0]["content"].endswith("Answer: A") and pair["rejected"][0]["content"].endswith("Answer: B")
    assert pair["left_nodes"] == [1, 3, 8]


def test_a_fake_side_affirms_the_wrong_step_and_goes_on() -> None:
    steps = table(TWO_WAYS)
    found, dropped = candidates("mid", invalid="fake")
    sides = ["wrong_leaf", "left", "taken_chosen", "leaf_chosen", "taken_rejected", "leaf_rejected", "action_rejected"]
    assert found[sides].values.tolist() == [[8, 3, 2, 5, 3, 8, 0], [10, 9, 2, 5, 9, 10, 0]]
    assert dropped == {"no_effective": 0, "no_invalid": 0, "margin": 0, "cap": 0}
    asked = correction_texts([QUESTION], steps, paths(steps), found)
    assert (asked["q1", 3, 8].public, asked["q1", 3, 8].right) == (("Step 1: fever.\n",), ())
    assert asked["q1", 3, 8].wrong == ("Step 2: so it is oxpril.\n",)
    pair = reflected("mid", invalid="fake")[0].iloc[0]
    assert pair["chosen"] == reflected("mid")[0].iloc[0]["chosen"]
    assert pair["rejected"][0]["content"] == ("Step 1: fever.\nStep 2: so it is oxpril.\nWait, I go to 8.\nAnswer: C")
    assert (pair["rejected_nodes"], pair["rejected_taken"], pair["rejected_value"]) == ([1, 3, 8], 8, -2 / 3)
    with pytest.raises(MedReflError, match="invalid is 'wrong', expected astray or fake"):
        candidates("mid", invalid="wrong")


def test_a_fake_side_after_a_finished_path_repeats_its_answer() -> None:
    steps = table(TWO_WAYS)
    asked = correction_texts([QUESTION], steps, paths(steps), candidates("post", invalid="fake")[0])
    assert asked["q1", 8, 8].wrong == ("Step 1: fever.\n", "Step 2: so it is oxpril.\n", "Answer: C")
    assert (asked["q1", 8, 8].public, asked["q1", 8, 8].right) == ((), ())
    pair = reflected("post", invalid="fake")[0].iloc[0]
    begins = "Step 1: fever.\nStep 2: so it is oxpril.\nAnswer: C\nWait, I go to "
    assert pair["rejected"][0]["content"] == begins + "8.\nAnswer: C"
    assert pair["chosen"][0]["content"].startswith(begins) and pair["rejected_taken"] == 8


def test_a_wrong_path_that_all_others_mend_has_a_fake_side_but_none_that_goes_astray() -> None:
    steps = table([row for row in TWO_WAYS if row[1] not in (9, 10, 12)])
    ranked, _ = rank_corrections(steps, locate_errors(steps), kind="mid")
    found, dropped = reflection_candidates(ranked, top_k=2, min_margin=0.0, max_per_question=9, invalid="fake")
    assert found["leaf_rejected"].tolist() == [8, 8] and dropped["no_invalid"] == 0
    found, dropped = reflection_candidates(ranked, top_k=2, min_margin=5.0, max_per_question=9, invalid="fake")
    assert found.empty and dropped["margin"] == 2


def test_restraint_affirms_a_right_step_against_leaving_it() -> None:
    steps = table(TWO_WAYS)
    located = locate_errors(steps)
    limits = {"weights": (1, 1, 1), "top_k": 1, "min_margin": 0.0, "max_per_question": 10}
    ranked, found, dropped = candidates_of("reflection_keep", steps, paths(steps), located, **limits)
    assert ranked["wrong_leaf"].unique().tolist() == [8, 10]
    assert found.drop(columns="action_rejected").values.tolist() == [
        ["q1", 5, 2, 2, 5, 0, 1, 8],
        ["q1", 5, 2, 2, 5, 0, 9, 10],
    ]
    assert dropped["turned_twice"] == dropped["ends_path"] == 0
    asked = correction_texts([QUESTION], steps, paths(steps), found)
    assert (asked["q1", 2, 5].wrong, asked["q1", 2, 5].right) == (("Step 1: rash.\n",), ())
    assert asked["q1", 2, 8].wrong == ("Step 1: rash.\n",)
    assert asked["q1", 2, 8].right == ("Step 1: fever.\n", "Step 2: so it is oxpril.\n", "Answer: C")
    texts = {key: f"Wait, I go to {key[2]}." for key in asked}
    pairs, lost = reflection_pairs([QUESTION], steps, paths(steps), found, texts, kind="reflection_keep", prompt=prompt)
    assert not lost.faults and set(pairs["kind"]) == {"reflection_keep"}
    assert pairs["chosen"][0][0]["content"] == "Step 1: rash.\nWait, I go to 5.\nAnswer: A"
    assert [side[0]["content"] for side in pairs["rejected"]] == [
        "Step 1: rash.\nWait, I go to 8.\nStep 1: fever.\nStep 2: so it is oxpril.\nAnswer: C",
        "Step 1: rash.\nWait, I go to 10.\nStep 1: nothing at all.\nAnswer: B",
    ]
    assert pairs["left_nodes"].tolist() == [[2], [2]] and pairs["chosen_taken"].tolist() == [5, 5]
    assert pairs["rejected_taken"].tolist() == [1, 9] and pairs["rejected_action"].isna().all()
    assert pa.Table.from_pandas(pairs, schema=PAIRS, preserve_index=False).num_rows == 2


def test_restraint_needs_a_step_to_go_on_with_and_two_new_paths() -> None:
    rows = [
        ("q1", 0, None, "", NAN, None, 0),
        ("q1", 1, 0, "Step 1: fever.\n", NAN, None, 4),
        ("q1", 2, 1, "Answer: A", 1.0, "answer", 3),
        ("q1", 3, 1, "Step 2: so it is oxpril.\n", NAN, None, 7),
        ("q1", 4, 3, "Answer: B", -1.0, "answer", 3),
    ]
    steps = table(rows)
    ranked, _ = rank_corrections(steps, locate_errors(steps), kind="mid")
    mid, _ = reflection_candidates(ranked, top_k=1, min_margin=0.0, max_per_question=9, invalid="fake")
    found, dropped = restraint_candidates(mid, paths(steps))
    assert found.empty and dropped == {"turned_twice": 0, "ends_path": 1}
    mid, _ = candidates("mid", top_k=2)  # the same two paths, with two sides to reject
    both = mid[(mid["wrong_leaf"] == 8) & (mid["leaf_chosen"] == 5)]
    assert len(both) == 2
    found, dropped = restraint_candidates(both, paths(table(TWO_WAYS)))
    assert found["leaf_rejected"].tolist() == [8] and dropped["turned_twice"] == 1


def test_a_pair_without_both_reflections_is_dropped_and_counted() -> None:
    pairs, dropped = reflected("mid", lambda key: None if key[2] == 10 else f"Wait, {key[2]}.")
    assert len(pairs) == 1 and dropped["no_reflection"] == 1


def test_two_sides_with_the_same_reflection_teach_nothing_about_reflecting() -> None:
    pairs, dropped = reflected(
        "mid", lambda key: {10: "Wait,\nI  Err.", 5: "wait, I err."}.get(key[2], f"I go to {key[2]}.")
    )
    assert len(pairs) == 1 and dropped.faults == {"same_reflection": 1}
    assert dropped.examples["same_reflection"] == "question 'q1', step left 3: both reflections are 'wait, i err.'"
    assert "Wait, I go to 5" not in pairs["chosen"][0][0]["content"]


def test_a_side_that_ends_elsewhere_drops_its_reflection_pair() -> None:
    steps = table(TWO_WAYS)
    steps.loc[steps["node_id"] == 5, "text"] = "Answer: B"  # a tree with a false outcome
    found, _ = candidates("mid")
    texts = {key: f"Wait, {key[2]}." for key in correction_texts([QUESTION], steps, paths(steps), found)}
    pairs, dropped = reflection_pairs(
        [QUESTION], steps, paths(steps), found, texts, kind="reflection_mid", prompt=prompt
    )
    assert pairs.empty and dropped.faults == {"chosen_elsewhere": 2}
    assert "chosen ends at B, expected the gold A" in dropped.examples["chosen_elsewhere"]


def random_like(like: pd.DataFrame, steps: pd.DataFrame, seed: int = 0, **options: int):
    questions = [Question(name, f"What helps {name}?", OPTIONS, "A") for name in steps["question_id"].unique()]
    return random_pairs(questions, steps, paths(steps), like, prompt=prompt, seed=seed, **options)


def test_random_pairs_match_the_reasoning_pairs_in_number_and_question() -> None:
    steps = pd.concat([table(MIXED), table(MIXED).assign(question_id="q0"), table(MIXED).assign(question_id="q2")])
    like, _ = make(steps, max_per_question=3)
    like = like[~((like["question_id"] == "q2") & (like.index > 6))]
    pairs, dropped = random_like(like, steps)
    assert pairs["question_id"].tolist() == like["question_id"].tolist() and dropped == {"short": 0, "shared": 0}
    assert set(pairs["kind"]) == {"random_cot"} and pairs["pair_id"].is_unique
    assert not set(pairs["pair_id"]) & set(like["pair_id"])
    pd.testing.assert_frame_equal(pairs, random_like(like.sample(frac=1, random_state=1).sort_index(), steps)[0])
    different = [random_like(like, steps, seed)[0]["pair_id"].tolist() for seed in range(4)]
    assert len({tuple(ids) for ids in different}) > 1


def test_random_pairs_are_nearest_in_length_among_their_draws() -> None:
    steps = table(MIXED)
    like, _ = make(steps, max_per_question=1)  # 9 against 6: 8 and 7 tokens
    matched = {tuple(leaves(random_like(like, steps, seed, draws=100)[0])) for seed in range(9)}
    assert matched <= {((4, 6),), ((9, 8),)}  # one token off, as near as another pair comes
    blind = {tuple(leaves(random_like(like, steps, seed, draws=1)[0])) for seed in range(40)}
    assert len(blind) == 5  # three right paths, two wrong ones that state an answer, without the reasoning pair itself


def test_a_fifth_of_the_random_pairs_at_most_are_reasoning_pairs() -> None:
    """A small tree has one pair alone, which is its reasoning pair; a large one has two others per reasoning pair."""
    small = [MIXED[i] for i in (0, 1, 2, 4, 8)]
    names = [f"s{n}" for n in range(4)] + [f"l{n}" for n in range(3)]
    steps = pd.concat([table(small if n[0] == "s" else MIXED).assign(question_id=n) for n in names])
    like, _ = make(steps, max_per_question=2)
    kept: dict[int, list[str]] = {}
    for seed in range(5):
        pairs, dropped = random_like(like, steps, seed)
        texts = {
            name: list(zip(*(t[side].map(str) for side in ("chosen", "rejected")), strict=True))
            for name, t in (("random", pairs), ("reasoning", like))
        }
        shared = [
            question
            for question, sides in zip(pairs["question_id"], texts["random"], strict=True)
            if sides in texts["reasoning"] and question[0] == "s"
        ]
        # 6 pairs of the large trees are not shared: 1 in 5 of 7 pairs may be
        assert len(pairs) == 7 and len(shared) == 1 and dropped["shared"] == 3 and dropped["short"] == 0
        kept[seed] = shared
    assert len({*map(tuple, kept.values())}) > 1 and kept[0] == [
        q for q in random_like(like, steps, 0)[0]["question_id"] if q[0] == "s"
    ]


def test_a_random_pair_that_fails_is_replaced_by_another_draw() -> None:
    steps = table(MIXED)
    like, _ = make(steps, max_per_question=1)
    steps.loc[steps["node_id"] == 9, "text"] = "Answer: B\n"
    pairs, dropped = random_like(like, steps, draws=100)  # 9 against 6 is nearest, but ends elsewhere
    assert leaves(pairs) == [(4, 6)] and dropped["short"] == 0 and set(dropped.faults) == {"chosen_elsewhere"}


def test_random_pairs_run_out_and_count_what_is_missing() -> None:
    steps = table(MIXED)
    like, _ = make(steps)
    pairs, dropped = random_like(pd.concat([like, like]), steps)
    # 6 pairs for 8: 4 of them are the reasoning pairs, of which 1 may stand beside 4 others, and there are 2
    assert len(pairs) == 2 and pairs["pair_id"].is_unique and dropped == {"short": 2, "shared": 4}
    with pytest.raises(MedReflError, match="random_cot_draws is 0"):
        random_like(like, steps, draws=0)


def test_at_most_so_many_of_a_kind_are_taken_by_the_seed_in_their_order() -> None:
    numbers = pd.DataFrame({"n": range(50)})
    kept, left = sample_at_most(numbers, 10, seed=3)
    assert len(kept) == 10 and left == 40 and kept["n"].is_monotonic_increasing
    assert kept.equals(sample_at_most(numbers, 10, seed=3)[0]) and not kept.equals(
        sample_at_most(numbers, 10, seed=4)[0]
    )
    for n in (0, 50, 60):
        assert sample_at_most(numbers, n, seed=3)[1] == 0
    with pytest.raises(MedReflError, match="at most -1 of a kind"):
        sample_at_most(numbers, -1, seed=3)


def test_kinds_are_chosen_by_name() -> None:
    both = pd.concat([make(table(MIXED))[0], reflected("mid")[0]])
    assert set(select_kinds(both, ["reflection_mid", "random_cot"])["kind"]) == {"reflection_mid"}
    with pytest.raises(MedReflError, match="'reflection' is given, expected some of reasoning, reflection_mid"):
        select_kinds(both, ["reflection"])
    with pytest.raises(MedReflError, match="no kind is given"):
        select_kinds(both, [])


@pytest.mark.parametrize("column", ["text", "n_tokens", "stop"])
def test_trees_without_texts_have_values_but_make_no_pair(column: str) -> None:
    with pytest.raises(MedReflError, match=f"pairs: the table of steps lacks {column}: found question_id"):
        make(table(MIXED).drop(columns=column))
