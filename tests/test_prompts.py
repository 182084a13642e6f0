"""The prompts' text and the step format they ask for."""

import pytest

from medrefl_utils.core import Question
from medrefl_utils.exam import prompts, split_thinking

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


def test_a_chains_writer_is_told_the_right_option_only_if_wanted():
    for answer_in_prompt in (True, False):
        [chain] = prompts.reasoning_chain(QUESTION, ["cough -[x]-> rest "], answer_in_prompt=answer_in_prompt)
        [choice] = prompts.choose_paths(QUESTION, ["a", "b"], 1, answer_in_prompt=answer_in_prompt)
        for text in (chain["content"], choice["content"]):
            assert ("The right option is B" in text) == answer_in_prompt
    assert "[1] cough -[x]-> rest\n" in chain["content"] and "Answer: X" in chain["content"]
    assert "[1] a\n[2] b\n" in choice["content"] and "at most 1 of them" in choice["content"]
    [alone] = prompts.reasoning_chain(QUESTION, [], answer_in_prompt=False)
    assert alone["content"] == chain["content"].replace("Connections:\n[1] cough -[x]-> rest\n\n", "")


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


@pytest.mark.parametrize(
    ("cut", "asked"),
    [
        ("Step 1: HIT", "\nAnswer:"),
        ("<think>HIT</think>\nSo", "\nAnswer:"),
        ("<think>\nHIT", "\n</think>\n\nAnswer:"),
        ("<think>a</think>b<think>HIT", "\n</think>\n\nAnswer:"),
        ("<thinking>HIT", "\n</thinking>\n\nAnswer:"),
        ("<thought>HIT", "\n</thought>\n\nAnswer:"),
        ("<seed:think>HIT", "\n</seed:think>\n\nAnswer:"),
        ("[THINK]HIT", "\n[/THINK]\n\nAnswer:"),
        ("◁think▷HIT", "\n◁/think▷\n\nAnswer:"),
        ("<|think|>HIT", "\n<|/think|>\n\nAnswer:"),
        ("<unused94>thought\nHIT", "\n<unused95>\n\nAnswer:"),
        ("<|begin_of_thought|>HIT", "\n<|end_of_thought|>\n\nAnswer:"),
        ("<|START_THINKING|>HIT", "\n<|END_THINKING|>\n\nAnswer:"),
        ("<|thought_start|>HIT", "\n<|thought_end|>\n\nAnswer:"),
        ("<|channel>thought\nHIT", "\n<channel|>\n\nAnswer:"),
        (
            "<|channel|>analysis<|message|>HIT",
            "\n<|end|><|start|>assistant<|channel|>final<|message|>\n\nAnswer:",
        ),
        ("【思考】HIT", "\n【回答】\n\nAnswer:"),
        ("analysisHIT", "\nassistantfinal\n\nAnswer:"),
        ("Thinking...\nHIT", "\n...done thinking.\n\nAnswer:"),
        ("## Thinking\n\nHIT", "\n\n## Final Response\n\nThe answer is"),
        ("**Thought process**\nHIT", "\n\n## Final Response\n\nThe answer is"),
        ("## 思考过程\n\nHIT", "\n\n## 最终回复\n\nThe answer is"),
        ("## 사고 과정\n\nHIT", "\n\n## 최종 답변\n\nThe answer is"),
    ],
)
def test_a_thinking_that_was_cut_is_closed_with_its_own_mark(cut, asked):
    assert prompts.ask_for_answer(cut) == asked
    assert split_thinking(f"{cut}{asked} B")[1].endswith(asked.splitlines()[-1] + " B")


@pytest.mark.parametrize(
    ("cut", "closing", "asked"),
    [
        ("HIT", None, "\n</think>\n\nAnswer:"),
        ("HIT", "[/THINK]", "\n[/THINK]\n\nAnswer:"),
        ("HIT <think> HIT", "</seed:think>", "\n</seed:think>\n\nAnswer:"),  # the template's mark is the outer one
        ("[THINK]HIT", None, "\n[/THINK]\n\nAnswer:"),
        ("HIT</think>\nSo", "</think>", "\nAnswer:"),
        ("HIT[/THINK]So", "[/THINK]", "\nAnswer:"),
    ],
)
def test_a_thinking_that_the_template_opened_is_closed_with_the_templates_mark(cut, closing, asked):
    assert prompts.ask_for_answer(cut, thinking_open=True, closing=closing) == asked
    assert split_thinking(f"{cut}{asked} B", thinking_open=True)[1].endswith("Answer: B")
