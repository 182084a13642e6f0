"""Second looks on the clinic: beginnings by the truth of their steps, and the rates, by hand."""

import pandas as pd

from medrefl_utils.core import Continuation, Sampling
from medrefl_utils.evaluation import known_beginnings, second_look_rates, second_looks
from medrefl_utils.exam import clinic
from medrefl_utils.models import LocalGenerator

TINY = "medrefl_utils/models/tiny_student"


def _case(kind: str) -> clinic.Case:
    return next(case for case in clinic.make_cases(100, seed=5, split="test") if case.kind == kind)


def _told(case: clinic.Case, steps: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"question_id": [case.question.question_id], "response": ["\n".join(steps)]})


def test_beginnings_end_behind_the_first_false_step_a_true_one_and_the_first_answer():
    case = _case("test")
    truth = clinic.solve(case)
    n = len(case.findings)
    lost = f"Step 2: {case.findings[1]} leaves nobody."
    wrong = f"Step {n + 1}: {case.disease} is confirmed by nothing."

    def ends(steps: list[str]) -> dict[str, int]:
        begun = known_beginnings([case], _told(case, steps), seed=0)
        assert all("\n".join(steps).startswith(prefix) for prefix in begun["prefix"])
        return {row.behind: row.prefix.count("\n") + 1 for row in begun.itertuples()}

    found = ends(truth)
    assert found.pop("true step") in range(1, len(truth) - 1) and found == {"right answer": len(truth)}
    other = next(letter for letter in case.question.options if letter != case.question.gold)
    slipped = [truth[0], lost, *truth[2:-1], f"Answer: {other}"]
    assert ends(slipped) == {"slip": 2, "true step": 1, "wrong answer": len(slipped)}
    believed = [*truth[:n], wrong, *truth[n + 1 :]]
    found = ends(believed)
    assert found.pop("true step") in range(1, n + 1) and found == {"belief": n + 1, "right answer": len(truth)}
    # What comes after a reflection is not used: this chain reconsiders its first step.
    assert ends([truth[0], clinic.affirm(truth[0]), lost, *truth[2:]]) == {}
    assert ends(["It is C."]) == {}


class _Writer(LocalGenerator):
    """The tiny student's tokenizer with replies by hand, so that each rate can be counted."""

    def expand(self, prefixes, k, steps, sampling, seeds, progress=None):
        assert steps is None and all(len(row) == k for row in seeds)
        replies = {
            "slip": ["Wait, no.\nAnswer: {gold}", "Step 3: x.\nAnswer: {other}"],
            "Wait,": [" no.\nAnswer: {gold}", " it holds."],
        }
        written = []
        for prefix in prefixes:
            texts = replies["Wait," if prefix.text.endswith("\nWait,") else "slip"]
            written.append([Continuation(text.format(**self.letters), (1,), None, "end") for text in texts])
        return written


def test_rates_by_hand():
    case = _case("test")
    truth = clinic.solve(case)
    other = next(letter for letter in case.question.options if letter != case.question.gold)
    steps = [truth[0], f"Step 2: {case.findings[1]} leaves nobody.", *truth[2:-1], f"Answer: {other}"]
    begun = known_beginnings([case], _told(case, steps), seed=0)
    writer = _Writer(TINY)
    writer.letters = {"gold": case.question.gold, "other": other}
    looks = second_looks([case], begun, writer, samples=2, sampling=Sampling(1.0, 1.0, 64), seed=0)
    assert len(looks) == 2 * (2 + 2 + 1)  # a finished answer goes on behind "Wait," only
    rates = second_look_rates(looks)
    assert rates.index.tolist() == ["slip", "true step", "wrong answer"]
    assert rates["beginnings"].tolist() == [1, 1, 1]
    assert rates["waits"].tolist()[:2] == [0.5, 0.5] and pd.isna(rates.loc["wrong answer", "waits"])
    assert rates["right"].tolist()[:2] == [0.5, 0.5]
    assert rates["right_after_wait"].tolist() == [0.5, 0.5, 0.5]


def test_the_student_goes_on_from_beginnings():
    cases = clinic.make_cases(6, seed=5, split="test")
    told = pd.concat([_told(case, clinic.solve(case)) for case in cases])
    begun = known_beginnings(cases, told, seed=0)
    looks = second_looks(cases, begun, LocalGenerator(TINY), samples=1, sampling=Sampling(1.0, 1.0, 96), seed=0)
    assert len(looks) == 18 and 0.2 < looks["right"].mean()  # a guess is right in less than a quarter
    assert looks.loc[looks["prompted"], "waits"].all()
    assert second_look_rates(looks)["beginnings"].tolist() == [6, 6]
