"""The filter: its rates by hand, its log, and its controls; with the tiny student the chains lift the pass rate."""

from __future__ import annotations

import math

import pytest

from medrefl_utils.core import Continuation, MedReflError, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.knowledge import (
    Linker,
    find_question_paths,
    load_graph,
    other_questions,
    pass_rates,
    rule_chain,
)
from medrefl_utils.knowledge.chains.filter import filter_fault
from medrefl_utils.models import CallLog, LocalGenerator

CASES = clinic.make_cases(6, seed=8)
QUESTIONS = [case.question for case in CASES]
CHAINS = {question.question_id: [f"This is {question.question_id}.", "So it goes."] for question in QUESTIONS}
HOW = dict(samples=2, sampling=Sampling(1.0, 1.0, 16), seed=3)


class Begun:
    """A generator that is right twice after a question's own chain, once without one, never after another's."""

    key, thinking_open = "begun", False

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def expand(self, prefixes, k, steps, sampling, seeds, progress=None):
        rows = []
        for prefix, own in zip(prefixes, seeds, strict=True):
            assert steps is None and prefix.token_ids == tuple(prefix.text.encode()) and len(own) == k
            question = next(q for q in QUESTIONS if prompts.exam(q) == prefix.messages)
            wrong = next(letter for letter in question.options if letter != question.gold)
            n_right = 1 if not prefix.text else 2 if question.question_id in prefix.text else 0
            self.asked += [(question.question_id, prefix.text, seed) for seed in own]
            rows.append(
                [
                    Continuation(f"Answer: {question.gold if i < n_right else wrong}", (), 0.0, "end", 3)
                    for i in range(k)
                ]
            )
            progress(k)
        return rows


def test_rates_by_hand_and_nothing_is_asked_twice(tmp_path) -> None:
    one = Begun()
    found = pass_rates(QUESTIONS, CHAINS, one, log=CallLog(tmp_path, "filter"), **HOW)
    assert found["question_id"].tolist() == [question.question_id for question in QUESTIONS]
    assert found[["pass_with", "pass_without", "pass_other"]].to_numpy().tolist() == [[1.0, 0.5, 0.0]] * 6
    assert len(one.asked) == 6 * 3 * 2
    first = next(question.question_id for question in QUESTIONS)
    begun = [(text, seed) for name, text, seed in one.asked if name == first]
    assert begun[0][0] == f"Step 1: This is {first}.\nStep 2: So it goes.\n" and begun[2][0] == ""
    # The three conditions draw with the same seeds.
    assert [seed for _, seed in begun[:2]] == [seed for _, seed in begun[2:4]] == [seed for _, seed in begun[4:]]

    again = Begun()
    kept = pass_rates(QUESTIONS, CHAINS, again, log=CallLog(tmp_path, "filter"), **HOW)
    assert kept.equals(found) and again.asked == []
    other = pass_rates(QUESTIONS, CHAINS, again, log=CallLog(tmp_path, "filter"), **(HOW | {"seed": 4}))
    assert len(again.asked) == 36 and len(other) == 6


def test_the_same_chain_of_two_questions_is_asked_once() -> None:
    one, same = Begun(), dict.fromkeys(CHAINS, ["So it goes.", "And on."])
    found = pass_rates(QUESTIONS, same, one, log=CallLog(None), **HOW)
    assert len(one.asked) == len(set(one.asked)) == 6 * 2 * 2 and list(found["pass_with"]) == list(found["pass_other"])


def test_another_questions_chain_serves_once_and_fits_the_letters() -> None:
    many = [case.question for case in clinic.make_cases(40, seed=9)]
    others = other_questions(many, seed=0)
    assert all(name != other for name, other in others.items())
    assert sorted(others.values()) == sorted(others)
    size = {question.question_id: len(question.options) for question in many}
    assert sum(size[name] != size[other] for name, other in others.items()) == 2  # where the circle changes its size
    assert other_questions(many, seed=1) != others
    assert other_questions(many[:1], seed=0) == {many[0].question_id: None}


def test_a_single_chain_has_no_other(tmp_path) -> None:
    found = pass_rates(QUESTIONS[:1], CHAINS, Begun(), log=CallLog(None), **HOW)
    assert math.isnan(found["pass_other"].iloc[0]) and found["pass_with"].iloc[0] == 1.0
    with pytest.raises(MedReflError, match="filter_samples is 0, expected at least 1"):
        pass_rates(QUESTIONS[:1], CHAINS, Begun(), log=CallLog(None), **(HOW | {"samples": 0}))


def test_a_refused_prompt_is_no_wrong_answer_and_is_asked_again(tmp_path) -> None:
    class Refusing(Begun):
        def expand(self, prefixes, k, *rest):
            rows = super().expand(prefixes, k, *rest)
            refused = Continuation("", (), None, "refused")
            return [[refused] * k if not prefix.text else row for prefix, row in zip(prefixes, rows, strict=True)]

    found = pass_rates(QUESTIONS, CHAINS, Refusing(), log=CallLog(tmp_path, "filter"), **HOW)
    assert found[["pass_with", "pass_without", "pass_other"]].isna().all(axis=None)
    assert filter_fault(found.iloc[0], min_pass=0.0, min_lift=-1.0) == "filter_refused"
    again = pass_rates(QUESTIONS, CHAINS, Begun(), log=CallLog(tmp_path, "filter"), **HOW)
    assert again["pass_without"].notna().all()


@pytest.mark.parametrize(
    ("with_", "without", "fault"), [(1.0, 0.0, ""), (0.5, 0.5, "low_lift"), (0.25, 0.0, "low_pass"), (0.75, 0.5, "")]
)
def test_why_the_filter_refuses(with_: float, without: float, fault: str) -> None:
    assert filter_fault({"pass_with": with_, "pass_without": without}, min_pass=0.5, min_lift=0.25) == fault


def test_the_student_answers_after_its_chain_and_not_after_anothers(tmp_path, tiny_student) -> None:
    graph = load_graph("clinic", folder=tmp_path)
    questions = [case.question for case in clinic.make_cases(16, seed=31)]
    found = find_question_paths(
        questions, graph, Linker(graph).link, max_hops=4, max_paths=50, paths_per_pair=3, max_chosen=12, seed=0
    )
    chains = {one.question.question_id: rule_chain(one, graph).steps for one in found}
    how = dict(samples=2, sampling=Sampling(1.0, 1.0, 256), seed=0, log=CallLog(None))
    rates = pass_rates(questions, chains, LocalGenerator(tiny_student), **how).mean(numeric_only=True)
    assert rates["pass_with"] > 0.8
    assert rates["pass_with"] - rates["pass_without"] > 0.15 and rates["pass_without"] - rates["pass_other"] > 0.1
