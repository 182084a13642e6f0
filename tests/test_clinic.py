"""The clinic's exam behaves like one: its truth is consistent, its splits are disjoint, its errors are errors."""

import random
import re

import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.exam import clinic, extract_answer

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


def test_a_solver_goes_on_after_given_steps():
    rng, beliefs = random.Random(0), clinic.misconceptions()
    for case in CASES[:200]:
        chain = clinic.solve(case, rng, slip=0.3, misled=0.8, beliefs=beliefs)
        for told in range(len(chain) - 1):
            again = clinic.solve(case, rng, before=chain[:told])
            assert again[:told] == chain[:told] and again[-1].startswith("Answer: ")
            assert [step.partition(":")[0] for step in again[:-1]] == [f"Step {i}" for i in range(1, len(again))]
        # Without errors of its own it ends where the chain ends, once the chain's thing is stated.
        assert clinic.solve(case, rng, before=chain[:-2])[-2:-1] == chain[-2:-1]


def test_another_step_is_true_or_false_as_asked():
    rng, beliefs = random.Random(0), clinic.misconceptions(share=1.0)
    found = {True: 0, False: 0}
    for case in CASES[:200]:
        truth = clinic.solve(case)
        for at, said in enumerate(truth[:-2]):
            assert clinic.another_step(case, truth[:at], said, rng, right=True) is None  # the truth is one
            other = clinic.another_step(case, truth[:at], said, rng, right=False, beliefs=beliefs)
            if other is not None:
                assert other != said and clinic.is_true(case, truth[:at], other) is False
                assert other.partition(":")[0] == said.partition(":")[0]
                assert clinic.another_step(case, truth[:at], other, rng, right=True) == said
                found[False] += 1
            found[True] += 1
    assert found[False] > 0.85 * found[True]  # where one disease is left, a slip may lose none


def test_truth_after_a_reflection_counts_from_the_finding_that_is_taken_up():
    case = next(case for case in CASES if len(case.findings) == 4 and case.kind == "test")
    truth = clinic.solve(case)
    slip = clinic.another_step(case, truth[:1], truth[1], random.Random(0), right=False)
    wrong = clinic.solve(case, before=[truth[0], slip])
    wait = clinic.reflect(slip, truth[1])
    chain = [*wrong, wait, *truth[1:]]
    marks = [clinic.is_true(case, chain[:i], step) for i, step in enumerate(chain)]
    assert marks[:2] == [True, False] and marks[len(wrong)] is None
    assert marks[len(wrong) + 1 :] == [True] * len(truth[1:])
    kinds = [clinic.error_kind(case, chain[:i], step) for i, step in enumerate(chain)]
    assert kinds[:2] == [None, "slip"] and not any(kinds[len(wrong) :])
    fake = [*wrong, clinic.affirm(slip), wrong[-1]]
    assert clinic.is_true(case, fake[:-2], fake[-2]) is None


def test_kinds_of_errors_by_hand():
    case = CASES[0]
    w = clinic.world()
    assert clinic.error_kind(case, [], f"Step 5: {case.disease} arises from nothing.") == "belief"
    assert clinic.error_kind(case, [], f"Step 5: {case.disease} arises from {w.mechanism[case.disease]}.") is None
    assert clinic.error_kind(case, [], "Step 4: nobody fits best.") == "slip"
    assert clinic.error_kind(case, [], f"Step 1: {case.findings[0]} suggests nobody.") == "slip"
    assert clinic.error_kind(case, [], "Answer: Z") is None  # it follows from the steps


def test_a_question_can_have_2_to_10_options_and_the_exam_stays_as_it_is():
    cases = clinic.make_cases(300, seed=5, n_options=range(2, 11))
    assert {len(case.question.options) for case in cases} == set(range(2, 11))
    for case in cases:
        assert len(set(case.question.options.values())) == len(case.question.options)
        assert clinic.solve(case)[-1] == f"Answer: {case.question.gold}"
    assert clinic.make_cases(20, seed=5) == clinic.make_cases(20, seed=5, n_options=(4, 5)) == CASES[:20]
    for sizes in ((1, 2), (4, 11), ()):
        with pytest.raises(MedReflError, match=r"n_options is .*expected numbers from 2 to 10"):
            clinic.make_cases(1, n_options=sizes)


def test_an_affirmation_keeps_the_step_and_the_answer():
    case = CASES[0]
    chain = clinic.solve(case, random.Random(1), slip=1.0)
    for step in chain[:-2]:
        text = clinic.affirm(step)
        assert "\n" not in text and step.partition(": ")[2].rstrip(".") in text
        told = extract_answer("\n".join([*chain, text, chain[-1]]), case.question.options)
        assert f"Answer: {told.letter}" == chain[-1]
