"""The locator against the clinic's truth, by hand and on a chain whose false step is known."""

import pandas as pd
import pytest

from medrefl_utils.core import STEPS, MedReflError, Question
from medrefl_utils.exam import clinic
from medrefl_utils.trees import locate_errors, locator_precision, paths

CASE = clinic.make_cases(1, seed=5)[0]
NAME = CASE.question.question_id
NAN = float("nan")


def tree(texts: list[str], question_id: str = NAME) -> pd.DataFrame:
    """One path of these steps; it ends wrong."""
    rows = [dict.fromkeys(STEPS.names) | {"node_id": 0, "text": "", "outcome": NAN, "weight": 1}]
    for place, text in enumerate(texts, start=1):
        last = place == len(texts)
        row = {"node_id": place, "parent_id": place - 1, "text": text, "outcome": -1.0 if last else NAN, "weight": 1}
        rows.append(dict.fromkeys(STEPS.names) | row)
    return pd.DataFrame(rows).assign(question_id=question_id)


def wrong_chain() -> list[str]:
    """A chain of the clinic whose steps are true up to its options; then a wrong letter."""
    chain = clinic.solve(CASE)
    wrong = next(letter for letter in CASE.question.options if letter != CASE.question.gold)
    return [f"{line}\n" for line in chain[:-1]] + [f"Answer: {wrong}"]


def counted(texts: list[str], node: int | None, question: Question = CASE.question) -> dict[str, int]:
    steps = tree(texts, question.question_id)
    located = pd.DataFrame({"question_id": [question.question_id], "leaf": [len(texts)], "node_id": [node]})
    return {
        k: n for k, n in locator_precision(located, paths(steps), steps, {question.question_id: question}).items() if n
    }


def test_exact_early_and_late():
    texts = wrong_chain()
    assert counted(texts, len(texts)) == {"exact": 1}
    assert counted(texts, 1) == {"early": 1}
    texts[0] = "Step 1: dappled pulse suggests nothing.\n"
    assert counted(texts, 1) == {"exact": 1}
    assert counted(texts, 2) == counted(texts, len(texts)) == {"late": 1}
    assert counted(texts, None) == {"not located": 1}
    # two lines in one step: the step is false where one of them is
    assert counted([texts[1] + texts[0], *texts[2:]], 1) == {"exact": 1}
    assert counted(["Who knows"], 1) == {"no false step": 1}


def test_another_exam_is_not_judged():
    assert counted(["Answer: B"], 1, Question("q", "Which?", {"A": "a", "B": "b"}, "A", "exam")) == {}
    moved = Question(NAME, "another stem", CASE.question.options, CASE.question.gold, "clinic")
    assert counted(["Answer: B"], 1, moved) == {}


def test_a_fall_that_chance_explains_does_not_count():
    """1 of 2 leaves is right; below the step 0 of 1 (p 0.5); of 16, 8 right and below the step 0 of 8 (p 0.004)."""
    rows = [("q", 0, None, NAN), ("q", 1, 0, 1.0), ("q", 2, 0, -1.0)]
    rows += [("r", 0, None, NAN), ("r", 1, 0, NAN), ("r", 2, 0, NAN)]
    rows += [("r", 3 + i, 1 + i // 8, 1.0 if i < 8 else -1.0) for i in range(16)]
    steps = pd.DataFrame(rows, columns=["question_id", "node_id", "parent_id", "outcome"]).assign(weight=1)
    found = {
        p: locate_errors(steps, by_chance=p).drop_duplicates("question_id")["node_id"].tolist() for p in (1.0, 0.5, 0.1)
    }
    assert found[1.0] == found[0.5] == [2, 2]
    assert pd.isna(found[0.1][0]) and found[0.1][1] == 2
    assert pd.isna(locate_errors(steps, by_chance=0.0038)["node_id"]).all()  # 0.5^8 = 0.0039
    assert locate_errors(steps, by_chance=0.004)["node_id"].notna().sum() == 8
    with pytest.raises(MedReflError, match="by_chance is 0, expected above 0"):
        locate_errors(steps, by_chance=0)
