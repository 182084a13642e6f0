"""Changed questions by hand, through a generator and with the tiny student."""

import numpy as np
import pandas as pd
import pytest

from medrefl_utils.core import RESPONSES, ROBUSTNESS, Continuation, Question
from medrefl_utils.evaluation import (
    QUESTION_CHANGES,
    changed_question,
    collect_responses,
    compare_robustness,
    evaluate,
    make_protocol,
)
from medrefl_utils.evaluation.robustness import NONE_OF_THE_OTHERS, misleading_letter
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import LocalGenerator, Usage

EXAM = [
    Question(f"q{n}", f"Which {n}?", {letter: f"{letter.lower()}{n}" for letter in "ABCD"}, "ABCD"[n % 4], "exam")
    for n in range(24)
]


def test_each_change_by_hand():
    question = EXAM[1]
    assert changed_question(question, "", 0) == changed_question(question, "misled", 0) == question
    other = changed_question(question, "none-of-the-others", 0)
    assert other.options == {"A": "a1", "B": NONE_OF_THE_OTHERS, "C": "c1", "D": "d1"} and other.gold == "B"
    orders = {tuple(changed_question(q, "shuffled", 0).options.values()) for q in EXAM}
    assert len(orders) == 24 and any(o != tuple(q.options.values()) for o, q in zip(sorted(orders), EXAM, strict=True))
    for q in EXAM:
        mixed = changed_question(q, "shuffled", 0)
        assert mixed.options[mixed.gold] == q.options[q.gold] and sorted(mixed.options.values()) == sorted(
            q.options.values()
        )
    letters = [misleading_letter(q.options, q.gold, q.question_id, 0) for q in EXAM]
    assert all(letter != q.gold for letter, q in zip(letters, EXAM, strict=True)) and len(set(letters)) == 4
    assert letters == [misleading_letter(q.options, q.gold, q.question_id, 0) for q in EXAM]
    assert letters != [misleading_letter(q.options, q.gold, q.question_id, 1) for q in EXAM]


class Follows:
    """Answers with the colleague's letter where there is one, else with the first option of the list that it likes."""

    thinking_open, thinking_close = False, None

    def __init__(self, likes: str):
        self.likes, self.seen, self.usage = likes, [], Usage()

    def chat(self, messages, sampling, seeds, progress=None):
        self.seen += [message[-1]["content"] for message in messages]
        return [
            Continuation(f"Answer: {self._letter(text)}", (1,), None, "end") for text in self.seen[-len(messages) :]
        ]

    def _letter(self, text: str) -> str:
        if "A colleague" in text:
            return text.split("the answer is ")[1][0]
        lines = [line for line in text.splitlines() if line[1:3] == ". "]
        return next((line[0] for line in lines if line[3:].startswith(self.likes)), "A")


def asked(model: str, likes: str) -> pd.DataFrame:
    ways = [make_protocol(name, max_tokens=9) for name in ("greedy", *QUESTION_CHANGES)]
    generator = Follows(likes)
    tables = [collect_responses(EXAM, generator, model=model, protocol=way, seed=3) for way in ways]
    plain = [prompts.exam(question)[0]["content"] for question in EXAM]
    assert generator.seen[:24] == plain
    misled = generator.seen[24:48]
    assert all(
        one.startswith(two) and "A colleague says that the answer is" in one
        for one, two in zip(misled, plain, strict=True)
    )
    assert NONE_OF_THE_OTHERS in generator.seen[-1]
    return pd.concat(tables, ignore_index=True)


def test_the_comparison_by_hand():
    """Who likes c0, c1, ... is right in 6 of 24, follows its colleague always, and takes no notice of the order."""
    found = compare_robustness(asked("base", "c"), seed=3).set_index("protocol")
    assert list(found.reset_index()[ROBUSTNESS.names]) == ROBUSTNESS.names and found["n"].tolist() == [24] * 3
    assert found["accuracy_greedy"].tolist() == [6 / 24] * 3
    misled = found.loc["misled"]
    wanted = [misleading_letter(q.options, q.gold, q.question_id, 3) for q in EXAM]
    assert misled["accuracy"] == 0 and misled["followed"] == 1 and misled["difference"] == -6 / 24
    assert misled["followed_greedy"] == pytest.approx(wanted.count("C") / 24)
    assert misled["changed"] == pytest.approx(1 - wanted.count("C") / 24)
    assert misled["difference_low"] < -6 / 24 < misled["difference_high"] < 0
    # the liked text is chosen wherever it stands
    assert found.loc["shuffled", "changed"] == 0 and found.loc["shuffled", "accuracy"] == 6 / 24
    # where c was right, its text is gone, and A is chosen: wrong
    none = found.loc["none-of-the-others"]
    assert none["changed"] == 6 / 24 and none["accuracy"] == 0 and pd.isna(none["followed"])


def test_a_model_that_prefers_a_letter_changes_its_option():
    shuffled = compare_robustness(asked("base", "nothing"), seed=3).set_index("protocol").loc["shuffled"]
    moved = [changed_question(q, "shuffled", 3).options["A"] != q.options["A"] for q in EXAM]
    assert shuffled["changed"] == pytest.approx(np.mean(moved)) and 0.5 < np.mean(moved) < 1


def test_without_greedy_there_is_nothing_to_compare():
    table = asked("base", "c")
    assert compare_robustness(table[table["protocol"] != "greedy"], seed=3).empty
    assert compare_robustness(table[table["protocol"] == "greedy"], seed=3).empty
    assert set(table["source"]) == {"exam"} and list(table) == RESPONSES.names


class Settles(Follows):
    """A judge that reads whatever option B shows."""

    def chat(self, messages, sampling, seeds, progress=None):
        self.seen += [message[-1]["content"] for message in messages]
        return [Continuation("Settles on: B", (1,), None, "end") for _ in messages]


def test_a_judge_is_shown_the_options_as_they_were_asked(tmp_path):
    class Mumbles(Follows):
        def chat(self, messages, sampling, seeds, progress=None):
            return [Continuation("hm", (1,), None, "end") for _ in messages]

    judge = Settles("")
    way = make_protocol("shuffled", max_tokens=9)
    evaluate(EXAM, Mumbles(""), tmp_path, model="base", protocols=[way], seed=3, judge=judge)
    for question, seen in zip(EXAM, judge.seen, strict=True):
        assert prompts.question_block(changed_question(question, "shuffled", 3)) in seen


def test_the_students_answers_to_changed_questions_are_read(tiny_student):
    exam = clinic.make_exam(30, seed=8, split="test")
    student = LocalGenerator(tiny_student)
    ways = [make_protocol(name, max_tokens=256) for name in ("greedy", "misled", "shuffled")]
    table = pd.concat([collect_responses(exam, student, model="base", protocol=w, seed=0) for w in ways])
    found = compare_robustness(table, seed=0).set_index("protocol")
    assert table.groupby("protocol")["answer"].apply(lambda c: c.isna().mean()).max() <= 0.1
    assert found.loc["shuffled", "accuracy"] > 0.35 and 0 < found.loc["shuffled", "changed"] < 0.8
