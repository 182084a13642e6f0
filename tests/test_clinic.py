"""The clinic's exam behaves like one: its truth is consistent, its splits are disjoint, its errors are errors."""

import random
import re

import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.exam import clinic

CASES = clinic.make_cases(400, seed=5, split="train") + clinic.make_cases(400, seed=5, split="test")


def test_a_question_has_one_answer_and_lettered_options():
    for case in CASES:
        options = case.question.options
        assert list(options) == list("ABCDE")[: len(options)] and len(options) in (4, 5)
        assert len(set(options.values())) == len(options)
        assert clinic.world().having(case.findings) == (case.disease,)
        assert options[case.question.gold] == clinic.world().target(case.disease, case.kind)
        assert all(finding in case.question.stem for finding in case.findings)


def test_every_kind_letter_and_number_of_options_comes_up():
    assert {case.kind for case in CASES} == set(clinic.KINDS)
    assert {case.question.gold for case in CASES} == set("ABCDE")
    assert {len(case.findings) for case in CASES} == {3, 4}


def test_distractors_share_findings_with_the_truth():
    w = clinic.world()
    diagnoses = [case for case in CASES if case.kind == "diagnosis"]
    for case in diagnoses:
        for text in set(case.question.options.values()) - {case.disease}:
            assert w.shows[text] & w.shows[case.disease]


def test_train_and_test_combine_different_things():
    combined = {
        split: {(c.disease, frozenset(c.findings)) for c in CASES if c.question.split == split}
        for split in ("train", "test")
    }
    assert combined["train"] and combined["test"] and not combined["train"] & combined["test"]
    # ... also across seeds: the split is of the world, not of the draw.
    other = {(c.disease, frozenset(c.findings)) for c in clinic.make_cases(400, seed=6, split="test")}
    assert not combined["train"] & other


def test_the_same_seed_gives_the_same_exam_and_any_part_of_it():
    assert clinic.make_exam(20, seed=1) == clinic.make_exam(20, seed=1)
    assert clinic.make_exam(20, seed=1)[5:] == clinic.make_exam(15, seed=1, offset=5)
    assert clinic.make_exam(20, seed=1) != clinic.make_exam(20, seed=2)
    assert len({q.question_id for q in clinic.make_exam(500, seed=1)}) == 500


def test_an_unknown_split_is_refused():
    with pytest.raises(MedReflError, match="split is 'dev', expected 'train' or 'test'"):
        clinic.make_exam(1, split="dev")


def test_every_step_of_the_true_chain_is_true():
    for case in CASES:
        chain = clinic.solve(case)
        assert chain[-1] == f"Answer: {case.question.gold}"
        assert all(clinic.is_true(case, chain[:i], step) for i, step in enumerate(chain))


def test_a_solver_who_errs_is_caught_at_a_step_whenever_the_letter_is_wrong():
    rng, beliefs = random.Random(0), clinic.misconceptions()
    wrong = 0
    for case in CASES:
        chain = clinic.solve(case, rng, slip=0.3, misled=0.8, beliefs=beliefs)
        marks = [clinic.is_true(case, chain[:i], step) for i, step in enumerate(chain)]
        assert None not in marks
        if chain[-1] != f"Answer: {case.question.gold}":
            wrong += 1
            assert False in marks[:-1], chain
    assert wrong > 100


def test_misconceptions_are_wrong_and_of_relatives():
    w = clinic.world()
    beliefs = clinic.misconceptions(share=1.0)
    assert len(beliefs) == 30 + 30 + len(set(w.mechanism.values()))
    for (kind, subject), thing in beliefs.items():
        assert thing != getattr(w, kind)[subject] and thing in getattr(w, kind).values()
    assert 0 < len(clinic.misconceptions(share=0.3)) < len(beliefs)


def test_is_true_by_hand():
    case = CASES[0]
    w = clinic.world()
    first, second = case.findings[:2]
    having = w.having([first])
    assert clinic.is_true(case, [], f"Step 1: {first} suggests {', '.join(having)}.") is True
    assert clinic.is_true(case, [], f"Step 1: {first} suggests {', '.join(having[1:])}.") is False
    both = ", ".join(w.having([first, second]))
    assert clinic.is_true(case, [f"Step 1: {first} suggests x."], f"Step 2: {second} leaves {both}.") is True
    assert clinic.is_true(case, [], f"Step 2: {second} leaves {both}.") is (
        set(w.having([second])) == set(both.split(", "))
    )
    assert clinic.is_true(case, [], f"{case.disease} arises from {w.mechanism[case.disease]}.") is True
    assert clinic.is_true(case, [], f"{case.disease} arises from nothing.") is False
    assert clinic.is_true(case, [], "The weather is fine.") is None


def test_a_reflection_is_one_line_in_the_first_person_without_a_letter():
    text = clinic.reflect("Step 3: amber sweat leaves arvosis.", "Step 3: amber sweat leaves belkitis.")
    assert "\n" not in text and " I " in text
    assert text.index("it is not so") < text.index("overlooked") < text.index("missed") < text.index("evidence")
    assert "amber sweat leaves belkitis" in text and not re.search(r"\b[A-E]\b", text)
