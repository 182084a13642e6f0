"""The parts of a path's text in each model's form, and where a reflection is placed in it: by hand."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from medrefl_utils.core import Question
from medrefl_utils.exam.answers.reader import extract_answer
from medrefl_utils.pairs import correction_texts, insert_reflection, reflection_candidates, reflection_pairs, split_form
from medrefl_utils.trees import locate_errors, paths, rank_corrections

OPTIONS = {"A": "Heparin", "B": "Aspirin", "C": "Warfarin"}
QUESTION = Question("q", "Which oral drug is monitored by INR?", OPTIONS, "C")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Step 1: a.\nAnswer: B", ("", "Step 1: a.\nAnswer: B", "", "")),
        ("<think>\na\n</think>\n\nAnswer: B", ("<think>\n", "a\n", "</think>", "\n\nAnswer: B")),
        ("a\n</think>\nAnswer: B", ("", "a\n", "</think>", "\nAnswer: B")),  # the template opened the thinking
        ("<think>a\nb", ("<think>", "a\nb", "", "")),  # the beginning of a path
        ("<think>\n", ("<think>\n", "", "", "")),
        ("<think>\na\n</think>\n", ("<think>\n", "a\n", "</think>", "\n")),
        ("## Thinking\n\na\n\n## Final Response\n", ("## Thinking\n\n", "a\n\n", "## Final Response", "\n")),
        ("## Final Answer\nB. Aspirin", ("", "", "## Final Answer", "\nB. Aspirin")),
        ("1. a\n**Answer:**\n", ("", "1. a\n", "**Answer:**", "\n")),
        (
            "## Thinking\n\na\n\n## Final Response\n\nIt is B.",
            ("## Thinking\n\n", "a\n\n", "## Final Response", "\n\nIt is B."),
        ),
        ("1. a\n2. b\n\n## Final Answer\n\nB. Aspirin", ("", "1. a\n2. b\n\n", "## Final Answer", "\n\nB. Aspirin")),
        ("1. a\n**Answer:**\nB", ("", "1. a\n", "**Answer:**", "\nB")),
        ("1. a\n**Answer:** B", ("", "1. a\n**Answer:** B", "", "")),  # a plain last line
        ("### Step 1: a\n### Step 2: b\nAnswer: B", ("", "### Step 1: a\n### Step 2: b\nAnswer: B", "", "")),
        (
            "<think>\n### Step 1: a\n</think>\n\n## Final Answer\nB",
            ("<think>\n", "### Step 1: a\n", "</think>\n\n## Final Answer", "\nB"),
        ),
        ("[THINK]a[/THINK]B", ("[THINK]", "a", "[/THINK]", "B")),
        ("◁think▷a◁/think▷B", ("◁think▷", "a", "◁/think▷", "B")),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>B",
            (
                "<|channel|>analysis<|message|>",
                "a",
                "<|end|><|start|>assistant<|channel|>final<|message|>",
                "B",
            ),
        ),
        ("<think>\n\n</think>\n\nStep 1: a\nAnswer: B", ("<think>\n\n</think>", "\n\nStep 1: a\nAnswer: B", "", "")),
    ],
)
def test_the_parts_of_a_path(text: str, parts: tuple[str, str, str, str]) -> None:
    form = split_form(text)
    assert (form.opening, form.reasoning, form.closing, form.final) == parts


WAIT = "Wait,\n  INR belongs to warfarin."
ASTRAY = "Wait,\n  INR belongs to heparin."


@pytest.mark.parametrize(
    ("wrong", "right", "taken", "expected"),
    [
        (  # plain: the whole wrong path, as ever
            "Step 1: a.\nAnswer: B\n",
            "Step 1: c.\nAnswer: C",
            "",
            "Step 1: a.\nAnswer: B\nWait, INR belongs to warfarin.\nStep 1: c.\nAnswer: C",
        ),
        (
            "<think>\nIt thins blood.\nSo aspirin.\n</think>\n\nAnswer: B",
            "<think>\nIt thins blood.\nINR is followed.\n</think>\n\nAnswer: C",
            "INR is",
            "<think>\nIt thins blood.\nSo aspirin.\nWait, INR belongs to warfarin.\nINR is followed.\n"
            "</think>\n\nAnswer: C",
        ),
        (  # the other path branches off at the question: its opening mark does not come twice
            "<think>Aspirin.\n</think>\nAnswer: B",
            "<think>Warfarin.\n</think>\nAnswer: C",
            "",
            "<think>Aspirin.\nWait, INR belongs to warfarin.\nWarfarin.\n</think>\nAnswer: C",
        ),
        (  # the template opened the thinking
            "Aspirin.\n</think>\nAnswer: B",
            "Warfarin.\n</think>\nAnswer: C",
            "",
            "Aspirin.\nWait, INR belongs to warfarin.\nWarfarin.\n</think>\nAnswer: C",
        ),
        (
            "## Thinking\n\nIt thins.\nAspirin.\n\n## Final Response\n\nThe answer is B.",
            "## Thinking\n\nIt thins.\nWarfarin.\n\n## Final Response\n\nThe answer is C.",
            "Warfarin.",
            "## Thinking\n\nIt thins.\nAspirin.\nWait, INR belongs to warfarin.\nWarfarin.\n\n"
            "## Final Response\n\nThe answer is C.",
        ),
        (
            "1. It thins.\n2. Aspirin.\n\n## Final Answer\nB. Aspirin",
            "1. It thins.\n2. Warfarin.\n\n## Final Answer\nC. Warfarin",
            "2. Warfarin",
            "1. It thins.\n2. Aspirin.\nWait, INR belongs to warfarin.\n2. Warfarin.\n\n## Final Answer\nC. Warfarin",
        ),
        (  # both paths are the same up to the words of the final section
            "<think>\nIt thins.\n</think>\n\nAnswer: B",
            "<think>\nIt thins.\n</think>\n\nAnswer: C",
            "Answer: C",
            "<think>\nIt thins.\nAnswer: B\nWait, INR belongs to warfarin.\n</think>\n\nAnswer: C",
        ),
        (  # the wrong step is in the final section: its words stay, the shared line does not come twice
            "<think>It thins.</think> One is oral. So aspirin. The answer is B.",
            "<think>It thins.</think> One is oral. So warfarin. The answer is C.",
            "So warfarin",
            "<think>It thins.</think> One is oral. So aspirin. The answer is B.\nWait, INR belongs to warfarin.\n"
            "So warfarin. The answer is C.",
        ),
        (  # the other path goes on thinking
            "<think>\nIt thins.\n</think>\n\nSo aspirin.\nAnswer: B",
            "<think>\nIt thins.\nINR is followed.\n</think>\n\nAnswer: C",
            "INR is",
            "<think>\nIt thins.\nSo aspirin.\nAnswer: B\nWait, INR belongs to warfarin.\nINR is followed.\n"
            "</think>\n\nAnswer: C",
        ),
        (  # only the options differ
            "1. It thins.\n\n## Final Answer\nB. Aspirin",
            "1. It thins.\n\n## Final Answer\nC. Warfarin",
            "C. Warfarin",
            "1. It thins.\nB. Aspirin\nWait, INR belongs to warfarin.\n## Final Answer\nC. Warfarin",
        ),
        (  # a heading at the very beginning leaves no empty line
            "**Answer:**\nAspirin, as it thins.\nAnswer: B",
            "**Answer:**\nWarfarin, as INR shows.\nAnswer: C",
            "Warfarin,",
            "Aspirin, as it thins.\nAnswer: B\nWait, INR belongs to warfarin.\n**Answer:**\nWarfarin, as INR shows.\n"
            "Answer: C",
        ),
        (  # an empty thinking on one side only
            "<think>\n\n</think>\n\nAspirin.\nAnswer: B",
            "<think>\nWarfarin.\n</think>\nAnswer: C",
            "",
            "<think>\nAspirin.\nAnswer: B\nWait, INR belongs to warfarin.\nWarfarin.\n</think>\nAnswer: C",
        ),
        (
            "<think>\nAspirin.\n</think>\nAnswer: B",
            "<think>\n\n</think>\n\nWarfarin.\nAnswer: C",
            "",
            "<think>\n\n</think>\n\nAspirin.\nWait, INR belongs to warfarin.\nWarfarin.\nAnswer: C",
        ),
        (  # a plain wrong path of a model that thinks on the other one
            "Aspirin.\nAnswer: B",
            "<think>\nWarfarin.\n</think>\nAnswer: C",
            "",
            "<think>\nAspirin.\nAnswer: B\nWait, INR belongs to warfarin.\nWarfarin.\n</think>\nAnswer: C",
        ),
        (  # an empty thinking stays at the front
            "<think>\n\n</think>\n\nAspirin.\nAnswer: B",
            "<think>\n\n</think>\n\nWarfarin.\nAnswer: C",
            "Warfarin",
            "<think>\n\n</think>\n\nAspirin.\nAnswer: B\nWait, INR belongs to warfarin.\nWarfarin.\nAnswer: C",
        ),
    ],
)
def test_a_finished_paths_reflection_follows_its_last_step_of_reasoning(
    wrong: str, right: str, taken: str, expected: str
) -> None:
    text = insert_reflection(wrong, right, right.index(taken), WAIT, finished=True)
    assert text == expected
    assert extract_answer(text, OPTIONS).letter == "C"
    for mark in ("<think>", "</think>", "## Thinking", "## Final Response", "## Final Answer"):
        assert text.count(mark) <= 1


@pytest.mark.parametrize(
    ("wrong", "right", "taken", "expected"),
    [
        (
            "<think>\nIt thins.\nAspirin.\n",
            "<think>\nIt thins.\nWarfarin.\n</think>\nAnswer: C",
            "Warfarin.",
            "<think>\nIt thins.\nAspirin.\nWait, INR belongs to warfarin.\nWarfarin.\n</think>\nAnswer: C",
        ),
        (  # left at the closing mark: the other path brings its own
            "## Thinking\n\nAspirin.\n\n## Final Response\n",
            "## Thinking\n\nAspirin.\nNo, warfarin.\n\n## Final Response\n\nThe answer is C.",
            "No, warfarin.",
            "## Thinking\n\nAspirin.\nWait, INR belongs to warfarin.\nNo, warfarin.\n\n"
            "## Final Response\n\nThe answer is C.",
        ),
        (  # left at the opening mark
            "<think>\n",
            "<think>Warfarin.\n</think>\nAnswer: C",
            "",
            "<think>\nWait, INR belongs to warfarin.\nWarfarin.\n</think>\nAnswer: C",
        ),
        (  # left among the words of the final section, after a shared one
            "<think>\nIt thins.\n</think>\nOne is oral.\nIt is taken with food.\n",
            "<think>\nIt thins.\n</think>\nOne is oral.\nIt is monitored.\nAnswer: C",
            "It is monitored.",
            "<think>\nIt thins.\n</think>\nOne is oral.\nIt is taken with food.\nWait, INR belongs to warfarin.\n"
            "It is monitored.\nAnswer: C",
        ),
        (  # left inside the final section: its words hold the wrong step, and only the mark goes
            "<think>\nIt thins.\n</think>\nIt is taken with food.\n",
            "<think>\nIt thins.\n</think>\nIt is monitored.\nAnswer: C",
            "It is monitored.",
            "<think>\nIt thins.\nIt is taken with food.\nWait, INR belongs to warfarin.\n"
            "</think>\nIt is monitored.\nAnswer: C",
        ),
    ],
)
def test_a_reflection_in_the_middle_stands_inside_the_thinking(
    wrong: str, right: str, taken: str, expected: str
) -> None:
    assert insert_reflection(wrong, right, right.index(taken), WAIT, finished=False) == expected


FORMS = {
    "plain": ("", ""),
    "think": ("<think>\n", "</think>\n\n"),
    "template": ("", "</think>\n\n"),
    "empty": ("<think>\n\n</think>\n\n", ""),
    "magistral": ("[THINK]", "[/THINK]"),
    "huatuo": ("## Thinking\n\n", "## Final Response\n\n"),
    "medreason": ("", "## Final Answer\n"),
    "harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
}


def path(form: tuple[str, str], shared: int, own: str, reasoning: int, final: int, answer: str) -> list[str]:
    """The steps of a path: the first ``shared`` ones are common to every path of its form and size."""
    names = [f"Line {i} {'shared' if i < shared else own}.\n" for i in range(reasoning + final)] + [answer]
    opening, closing = form
    return [opening * (i == 0) + closing * (i == reasoning) + name for i, name in enumerate(names)]


@pytest.mark.parametrize("name", FORMS)
def test_wherever_two_paths_part_the_wrong_steps_are_kept_and_one_final_section_is_left(name: str) -> None:
    marks = [mark.strip() for mark in FORMS[name] if mark]
    for shared, reasoning, final in itertools.product(range(4), (1, 2), (0, 1, 2)):
        wrong = path(FORMS[name], shared, "bad", reasoning, final, "Answer: B")
        right = path(FORMS[name], shared, "good", reasoning, final, "Answer: C")
        parts = next(i for i, (a, b) in enumerate(zip(wrong, right, strict=True)) if a != b)
        for left in range(parts + 1, len(wrong) + 1):
            taken, finished = len("".join(right[:parts])), left == len(wrong)
            text = insert_reflection("".join(wrong[:left]), "".join(right), taken, WAIT, finished=finished)
            assert [text.count(mark) for mark in marks] == [1] * len(marks), text
            before, after = text.split("Wait, INR belongs to warfarin.")
            lost = wrong[parts].removeprefix(FORMS[name][0]).removeprefix(FORMS[name][1]).strip()
            assert lost in before and lost not in after, text
            assert after.count("good") == "".join(right).count("good") and "good" not in before
            assert text.count("shared") == "".join(right).count("shared"), text
            assert extract_answer(text, OPTIONS, thinking_open=name == "template").letter == "C", text


def test_pairs_of_a_tree_in_the_form_of_a_thinking_model() -> None:
    nan = float("nan")
    rows = [
        ("q", 0, None, "", nan, None, 0),
        ("q", 1, 0, "<think>\n", nan, None, 1),
        ("q", 2, 1, "Aspirin thins blood.\n", nan, None, 4),
        ("q", 3, 1, "INR follows warfarin.\n", nan, None, 4),
        ("q", 4, 2, "</think>\n\nAnswer: B", -1.0, "answer", 4),
        ("q", 5, 3, "</think>\n\nAnswer: C", 1.0, "answer", 4),
        ("q", 6, 1, "Heparin is old.\n", nan, None, 4),
        ("q", 7, 6, "</think>\n\nAnswer: A", -1.0, "answer", 4),
        ("q", 8, 3, "Surely.\n</think>\n\nAnswer: C", 1.0, "answer", 6),
    ]
    columns = ["question_id", "node_id", "parent_id", "text", "outcome", "stop", "n_tokens"]
    steps = pd.DataFrame(rows, columns=columns)
    made = {}
    for kind in ("mid", "post"):
        ranked, _ = rank_corrections(steps, locate_errors(steps), kind=kind)
        found, _ = reflection_candidates(ranked, top_k=1, min_margin=0.0, max_per_question=1)
        right = {row.node_id for row in steps.itertuples() if row.outcome == 1.0}
        keys = correction_texts([QUESTION], steps, paths(steps), found)
        texts = {key: WAIT if key[2] in right else ASTRAY for key in keys}
        made[kind], dropped = reflection_pairs(
            [QUESTION], steps, paths(steps), found, texts,
            kind=f"reflection_{kind}", prompt=lambda question: [{"role": "user", "content": question.stem}],
        )  # fmt: skip
        assert not dropped.faults
    for kind, pairs in made.items():
        [pair] = pairs.to_dict("records")
        chosen, rejected = (
            f"<think>\nAspirin thins blood.\nWait, INR belongs to {drug}.\n" for drug in ("warfarin", "heparin")
        )
        assert pair["chosen"][0]["content"] == f"{chosen}INR follows warfarin.\n</think>\n\nAnswer: C", kind
        assert pair["rejected"][0]["content"] == f"{rejected}Heparin is old.\n</think>\n\nAnswer: A", kind
