"""Repair and fake reflection rate by hand, and what counts as a reflection."""

import numpy as np
import pandas as pd
import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.evaluation import reconsiders, self_correction_rates


def repairs(model: str, *rows: tuple[str, str, str, bool]) -> pd.DataFrame:
    """Rows (behind, before, answer, reconsiders) of questions whose gold is A."""
    columns = ["behind", "before", "answer", "reconsiders"]
    numbers = [sum(row[0] == other[0] for other in rows[:i]) for i, row in enumerate(rows)]
    return pd.DataFrame(rows, columns=columns).assign(
        model=model, run=0, sample=0, gold="A", wrong_share=0.4, question_id=[f"q{n}" for n in numbers]
    )


BASE = repairs(
    "base",
    ("wrong step", "B", "A", False),
    ("wrong step", "B", "B", True),
    ("wrong step", "C", "D", True),
    ("wrong step", "C", None, False),
    ("wrong answer", "B", "B", True),
    ("wrong answer", "B", "B", True),
    ("wrong answer", "C", "A", True),
    ("wrong answer", "C", "D", True),
    ("right answer", "A", "A", True),
    ("right answer", "A", "B", True),
)


def shares(table: pd.DataFrame, model: str = "base") -> dict[str, float]:
    return table[table["model"] == model].set_index("figure")["share"].to_dict()


def test_the_rates_by_hand():
    found = shares(self_correction_rates(BASE))
    # q0: 0.4 x 0 - 0.6 x 0; q1: 0.4 x 0 - 0.6 x 1; the wrong answers of q2 and q3 have no right one beside them
    assert found.pop("net self-correction") == pytest.approx(-0.3)
    assert found == {
        "repair rate": 0.25,
        "reconsiders": 0.5,
        "fake, unasked": 0.5,  # of the two that say so, one keeps B
        "fake reflection rate": 0.5,
        "wrong to right": 0.25,
        "right to wrong": 0.5,
    }


def test_the_difference_is_paired_and_left_out_where_the_texts_are_others():
    better = BASE.assign(model="medrefl").copy()
    better.loc[better["behind"] == "wrong step", ["answer", "reconsiders"]] = [["A", False]] * 4
    found = self_correction_rates(pd.concat([BASE, better])).set_index(["model", "figure"])
    repair = found.loc[("medrefl", "repair rate")]
    assert repair["share"] == 1 and repair["difference"] == 0.75 and repair["difference_low"] >= 0
    assert found.loc[("medrefl", "fake, unasked")]["n"] == 0
    assert found.loc["base"]["difference"].isna().all()
    assert pd.isna(found.loc[("medrefl", "fake, unasked"), "difference"])
    kept = found.loc[("medrefl", "fake reflection rate")]
    assert kept["difference"] == 0 and kept["difference_low"] < 0 < kept["difference_high"]


def test_net_is_what_accuracy_gains_if_each_answer_is_reconsidered():
    """Share wrong x wrong to right - share right x right to wrong, where all questions have both starting points."""
    rng = np.random.default_rng(0)
    rows = [(place, before, rng.choice(["A", "B"]), True) for place, before in PLACES * 50]
    table = repairs("base", *rows)
    found = shares(self_correction_rates(table))
    net = 0.4 * found["wrong to right"] - 0.6 * found["right to wrong"]
    assert found["net self-correction"] == pytest.approx(net)
    # who always changes its answer has no fake reflection, and loses
    always = table.assign(model="medrefl", answer=table["behind"].map({"wrong answer": "C", "right answer": "B"}))
    told = self_correction_rates(pd.concat([table, always])).set_index(["model", "figure"]).loc["medrefl"]
    assert told.loc["fake reflection rate", "share"] == 0
    row = told.loc["net self-correction"]
    assert row["share"] == pytest.approx(-0.6) and row["difference"] == pytest.approx(-0.6 - net)
    assert row["difference_high"] < 0 and row["low"] >= -1


def test_samples_of_a_question_add_no_certainty_where_they_repeat_each_other():
    rows = [("wrong step", "B", "AB"[i % 2], False) for i in range(60)]
    once = repairs("base", *rows)
    often = pd.concat([once.assign(sample=sample) for sample in range(8)])
    for table in (once, often):
        other = table.assign(model="medrefl", answer="A")
        row = self_correction_rates(pd.concat([table, other])).set_index(["model", "figure"])
        row = row.loc[("medrefl", "repair rate")]
        assert row["difference"] == 0.5 and row["difference_low"] == pytest.approx(0.37, abs=0.02)


PLACES = [("wrong answer", "B"), ("right answer", "A")]


def test_a_model_put_elsewhere_than_the_base_is_refused():
    other = BASE.assign(model="medrefl").iloc[1:]
    with pytest.raises(MedReflError, match="medrefl has 3 starting points and base has 4; 3 of them are the same"):
        self_correction_rates(pd.concat([BASE, other]))


def test_nothing_to_put_behind_is_no_error():
    found = self_correction_rates(BASE.iloc[:0])
    assert found.empty
    only_wrong = self_correction_rates(BASE[BASE["behind"] == "wrong step"])
    assert only_wrong.set_index("figure").loc["right to wrong", "n"] == 0 and only_wrong["share"].isna().sum() == 4


@pytest.mark.parametrize(
    "text",
    [
        "Wait, it is not so that the pulse is dappled.",
        "Hmm, the lactate does not fit.",
        "Let me re-examine the history.",
        "let me double-check this",
        "On second thought the murmur is systolic.",
        "I overlooked the eosinophils.",
        "I may have been wrong about the valve.",
        "I made a mistake above.",
        "That was not right.",
        "That can't be right: he is afebrile.",
    ],
)
def test_what_says_that_it_reconsiders(text):
    assert reconsiders(f"Step 3: dyspnea suggests A.\n{text}\nStep 4: so B.")


@pytest.mark.parametrize(
    "text",
    [
        "Step 1: the patient was kept waiting for hours.",
        "Step 2: awaiting cultures, start ceftriaxone.",
        "The right answer is B, for the left ventricle is thick.",
        "He missed his dialysis and holds on to water.",
        "It is not likely to be sarcoidosis.",
        "Mistaken identity of the sample is excluded.",
    ],
)
def test_what_does_not(text):
    assert not reconsiders(text)
