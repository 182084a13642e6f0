"""The prompts' text and the step format they ask for."""

import pytest

from medrefl_utils.core import Question
from medrefl_utils.exam import prompts

QUESTION = Question("q1", " A man coughs. ", {"A": "wait", "B": 'say "ah"\nthen rest'}, "B")


def test_exam_shows_stem_options_and_format():
    [message] = prompts.exam(QUESTION)
    assert message["role"] == "user"
    assert message["content"].startswith('A man coughs.\n\nA. wait\nB. say "ah" then rest\n\n')
    assert "Step 1:" in message["content"] and "Answer: X" in message["content"]


def test_no_prompt_holds_the_key():
    shown = [
        prompts.exam(QUESTION),
        prompts.reflection(QUESTION, ["Step 1: a"], ["Step 2: b"], ["Step 2: c"]),
        prompts.judge(QUESTION, ["Step 1: a"]),
    ]
    for [message] in shown:
        assert "Answer: B" not in message["content"] and "gold" not in message["content"]


def test_reflection_names_the_five_parts_in_order_and_the_steps():
    [message] = prompts.reflection(QUESTION, [], ["Step 1: b"], ["Step 1: c", "Answer: B"])
    text = message["content"]
    parts = ["flaw", "overlooked", "knowledge missed", "bridge", "guideline"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert "Steps so far:\n(none)" in text and "Steps that go wrong:\nStep 1: b" in text


@pytest.mark.parametrize(
    ("line", "numbered"),
    [("Step 4: the answer is B", True), ("**Step 1:** no", True), ("Answer: B", False), ("A step 2 years ago", False)],
)
def test_a_numbered_step_begins_with_its_number(line, numbered):
    assert prompts.is_numbered_step(line) is numbered


def test_split_steps_leaves_blank_lines_out():
    assert prompts.split_steps("Step 1: a\n\n Step 2: b\nAnswer: C\n") == ["Step 1: a", "Step 2: b", "Answer: C"]
