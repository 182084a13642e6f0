"""Models' ways of writing, from the first token to the leaf's letter: own texts with each model's marks.

Every style has a response that ends at the gold letter and one that does not; both begin alike. A scripted generator
and a real HTTP server write them. What is expected is what a careful reader says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from medrefl_utils.core import Continuation, Question, Sampling
from medrefl_utils.evaluation import Protocol, collect_responses
from medrefl_utils.exam import STEP_KINDS, extract_answer, prompts, split_into_steps, step_end
from medrefl_utils.exam.steps import has_content
from medrefl_utils.models import EndpointGenerator, Usage
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.pairs import correction_texts, reasoning_pairs, reflection_candidates, reflection_pairs
from medrefl_utils.training import tokenize_pairs
from medrefl_utils.trees import SearchSettings, grow_trees, locate_errors, paths, rank_corrections
from tests.models import save_tokenizer
from tests.server import serving

QUESTION = Question(
    "q",
    "Which oral drug is monitored by INR?",
    {"A": "Aspirin", "B": "Heparin", "C": "Warfarin", "D": "Atorvastatin"},
    "C",
)
SAMPLING = Sampling(1.0, 1.0, 500)


@dataclass(frozen=True)
class Style:
    """Two responses, right and wrong, and the lines that the right one is cut into."""

    right: str
    wrong: str
    lines: tuple[str, ...]
    thinking_open: bool = False


STYLES = {
    "llama31": Style(
        "Let's look at the options one by one:\n\nStep 1: Answer choices A and B are not oral anticoagulants.\n\n"
        "Step 2: Warfarin is monitored by INR.\n\nAnswer: C",
        "Let's look at the options one by one:\n\nStep 1: Answer choices A and B are not oral anticoagulants.\n\n"
        "Step 2: Atorvastatin is monitored by INR.\n\nAnswer: D",
        (
            "Let's look at the options one by one:\n\nStep 1: Answer choices A and B are not oral anticoagulants.\n",
            "\nStep 2: Warfarin is monitored by INR.\n",
            "\nAnswer: C",
        ),
    ),
    "qwen25": Style(
        "### Step 1: Identify the test\nThe INR measures the prothrombin time.\n\n### Step 2: Identify the drug\n"
        "Warfarin prolongs it.\n\n### Final Answer\n\\[\n\\boxed{C}\n\\]",
        "### Step 1: Identify the test\nThe INR measures the prothrombin time.\n\n### Step 2: Identify the drug\n"
        "Heparin prolongs it.\n\n### Final Answer\n\\[\n\\boxed{B}\n\\]",
        (
            "### Step 1: Identify the test\nThe INR measures the prothrombin time.\n",
            "\n### Step 2: Identify the drug\nWarfarin prolongs it.\n",
            "\n### Final Answer\n\\[\n\\boxed{C}\n",
        ),
    ),
    "huatuo_o1": Style(
        "\n\n## Thinking\n\nOkay, the INR. Let me think.\n\nThe answer is B, I guess.\n\nOh wait, heparin is not oral, "
        "so it is warfarin.\n\n## Final Response\n\nThe drug that is monitored by INR is **C. Warfarin**.",
        "\n\n## Thinking\n\nOkay, the INR. Let me think.\n\nThe answer is B, I guess.\n\nYeah, heparin."
        "\n\n## Final Response\n\nThe drug that is monitored by INR is **B. Heparin**.",
        (
            "\n\n## Thinking\n\nOkay, the INR. Let me think.\n",
            "\nThe answer is B, I guess.\n",
            "\nOh wait, heparin is not oral, so it is warfarin.\n",
            "\n## Final Response\n\nThe drug that is monitored by INR is **C. Warfarin**.",
        ),
    ),
    "medreason": Style(
        "## Thinking\n\n### Finding Reasoning Paths:\n1. INR -> vitamin K -> warfarin.\n\n### Reasoning Process:\n"
        "1. **INR**: It shows the effect of vitamin K antagonists.\n\n### Conclusion:\nWarfarin is the drug.\n\n"
        "## Final Answer\nC. Warfarin\n",
        "## Thinking\n\n### Finding Reasoning Paths:\n1. INR -> vitamin K -> warfarin.\n\n### Reasoning Process:\n"
        "1. **INR**: It shows the effect of platelets.\n\n### Conclusion:\nAspirin is the drug.\n\n"
        "## Final Answer\nA. Aspirin\n",
        (
            "## Thinking\n\n### Finding Reasoning Paths:\n1. INR -> vitamin K -> warfarin.\n",
            "\n### Reasoning Process:\n1. **INR**: It shows the effect of vitamin K antagonists.\n",
            "\n### Conclusion:\nWarfarin is the drug.\n",
            "\n## Final Answer\nC. Warfarin\n",
        ),
    ),
    "deepseek_r1": Style(
        "Okay, so the question is about the INR.\n\nFinal answer: B\n\nWait, heparin is given by injection.\n"
        "</think>\n\nWarfarin is oral.\n\n**Answer:** C",
        "Okay, so the question is about the INR.\n\nFinal answer: B\n\nYes, that should be it.\n</think>\n\n"
        "Heparin it is.\n\n**Answer:** B",
        (
            "Okay, so the question is about the INR.\n",
            "\nFinal answer: B\n",
            "\nWait, heparin is given by injection.\n",
            "</think>\n\nWarfarin is oral.\n",
            "\n**Answer:** C",
        ),
        thinking_open=True,
    ),
    "qwen3": Style(
        "<think>\nOkay, the INR.\n\nAnswer: D? No, that lowers cholesterol.\n</think>\n\nThe correct answer is **C**.",
        "<think>\nOkay, the INR.\n\nAnswer: D? Maybe, it is oral.\n</think>\n\nThe correct answer is **D**.",
        (
            "<think>\nOkay, the INR.\n",
            "\nAnswer: D? No, that lowers cholesterol.\n",
            "</think>\n\nThe correct answer is **C**.",
        ),
    ),
    "gpt_oss": Style(
        "<|channel|>analysis<|message|>The INR.\nAnswer is C since warfarin is oral.<|end|><|start|>assistant"
        "<|channel|>final<|message|>**Answer: C**\n\nWarfarin is monitored by INR.",
        "<|channel|>analysis<|message|>The INR.\nAnswer is A since aspirin is oral.<|end|><|start|>assistant<|channel|>"
        "final<|message|>**Answer: A**\n\nAspirin is monitored by INR.",
        (
            "<|channel|>analysis<|message|>The INR.\n",
            "Answer is C since warfarin is oral.<|end|><|start|>assistant<|channel|>final<|message|>**Answer: C**\n",
        ),
    ),
    "gpt_oss_without_marks": Style(
        "analysisThe INR.\nWarfarin is oral.assistantfinalAnswer: C",
        "analysisThe INR.\nAspirin is oral.assistantfinalAnswer: A",
        ("analysisThe INR.\n", "Warfarin is oral.assistantfinalAnswer: C"),
    ),
    "medgemma": Style(
        "<unused94>thought\nThe user asks about the INR.\nAnswer: B\nNo, that is not oral.\n<unused95>**Answer:**\nC",
        "<unused94>thought\nThe user asks about the INR.\nAnswer: B\nYes.\n<unused95>**Answer:**\nB",
        (
            "<unused94>thought\nThe user asks about the INR.\n",
            "Answer: B\n",
            "No, that is not oral.\n",
            "<unused95>**Answer:**\nC",
        ),
    ),
    "magistral": Style(
        "[THINK]\nThe INR is meant.\nIs it B? Not oral.\n[/THINK]\nThe drug is warfarin, so the answer is \\boxed{C}.",
        "[THINK]\nThe INR is meant.\nIs it B? It may be.\n[/THINK]\nThe drug is heparin, so the answer is \\boxed{B}.",
        (
            "[THINK]\nThe INR is meant.\n",
            "Is it B? Not oral.\n",
            "[/THINK]\nThe drug is warfarin, so the answer is \\boxed{C}.",
        ),
    ),
    "one_long_paragraph": Style(
        "The INR is for vitamin K antagonists, e.g. warfarin. Answer A is an antiplatelet. Dr. Duke used 2.5 mg p.o. "
        "in 1950. The answer is C.",
        "The INR is for vitamin K antagonists, e.g. warfarin. Answer A is an antiplatelet. But it is oral. "
        "The answer is A.",
        (
            "The INR is for vitamin K antagonists, e.g. warfarin. Answer A is an antiplatelet. Dr. Duke used 2.5 mg "
            "p.o. in 1950. The answer is C.",
        ),
    ),
    "json": Style(
        '```json\n{\n  "reason": "It is a vitamin K antagonist.",\n  "answer": "C"\n}\n```',
        '```json\n{\n  "reason": "It is a vitamin K antagonist.",\n  "answer": "D"\n}\n```',
        ('```json\n{\n  "reason": "It is a vitamin K antagonist.",\n', '  "answer": "C"\n'),
    ),
}


class Written(Generator):
    """A generator that writes given responses by characters, in turn among those that begin as the turn does."""

    key, about = "written", {}

    def __init__(self, texts: tuple[str, ...], thinking_open: bool = False):
        self.texts, self.thinking_open = texts, thinking_open

    def expand(self, prefixes, k, steps, sampling, seeds, progress=None):
        rows = []
        for prefix in prefixes:
            begun = [text.removeprefix(prefix.text) for text in self.texts if text.startswith(prefix.text)]
            rows.append([self._row(begun[i % len(begun)], steps) for i in range(k)])
        return rows

    def cut(self, chain, steps):
        texts = split_into_steps(chain.text, steps) or [chain.text]
        return [self._continuation(text, "end" if n == len(texts) else "boundary") for n, text in enumerate(texts, 1)]

    def _row(self, text: str, steps: str | None) -> Continuation:
        ends = (step_end(text[:n], steps) for n in range(len(text) + 1)) if steps else iter(())
        end = next((end for end in ends if end is not None), None)
        return self._continuation(text[:end], "end" if end is None else "boundary")

    @staticmethod
    def _continuation(text: str, stop: str) -> Continuation:
        return Continuation(text, tuple(map(ord, text)), -1.0, stop)


def leaves_of(tree: pd.DataFrame) -> dict[str, tuple[str | None, str, float]]:
    """Each leaf by the text of its path: letter, why it ended, outcome."""
    rows = tree.astype({"answer": object}).set_index("node_id")
    rows["answer"] = rows["answer"].where(rows["answer"].notna(), None)
    chains = paths(tree)
    return {
        "".join(rows.loc[nodes, "text"]): (rows.loc[leaf, "answer"], rows.loc[leaf, "stop"], rows.loc[leaf, "outcome"])
        for nodes, leaf in zip(chains["nodes"], chains["node_id"], strict=True)
    }


def check_leaves(tree: pd.DataFrame, style: Style) -> None:
    """Both responses are in the tree with the letters that they state; each inner step says something."""
    wrong = extract_answer(style.wrong, QUESTION.options).letter
    found = leaves_of(tree)
    assert sorted(found.values()) == sorted([("C", "answer", 1.0), (wrong, "answer", -1.0)])
    for text, (letter, _, _) in found.items():
        whole = style.right if letter == "C" else style.wrong
        assert whole.startswith(text) and letter == extract_answer(whole, QUESTION.options).letter
        assert extract_answer(text, QUESTION.options).letter == letter  # as stages 05 and 03 read it
        assert extract_answer(text.strip(), QUESTION.options).letter == letter
    assert tree.text[tree.kind == "step"].map(has_content).all()


@pytest.mark.parametrize("mode", ["stepwise", "full-path"])
@pytest.mark.parametrize("steps", STEP_KINDS)
@pytest.mark.parametrize("name", STYLES)
def test_leaves_are_what_a_careful_reader_expects(name: str, steps: str, mode: str) -> None:
    style = STYLES[name]
    generator = Written((style.right, style.wrong), style.thinking_open)
    growth = SearchSettings((2, 2, 2, 2, 2, 2, 2, 2), steps=steps, search_mode=mode, max_frontier=8)
    tree = grow_trees([QUESTION], generator, growth=growth, sampling=SAMPLING, seed=0)
    check_leaves(tree, style)
    if steps == "line":
        rows = tree.set_index("node_id")
        right = next(nodes for nodes, s in zip(*(paths(tree)[c] for c in ("nodes", "outcome")), strict=True) if s > 0)
        *inner, last = rows.loc[right, "text"]
        assert tuple(inner) == style.lines[:-1]
        rest = style.right.removeprefix("".join(style.lines))  # below the answer, such as the end of a code fence
        assert last == style.lines[-1] + (rest if mode == "full-path" and not has_content(rest) else "")
        assert rows.text[rows.depth == 1].nunique() == (len(style.lines) == 1) + 1  # the first step is common to both


@pytest.mark.parametrize("steps", STEP_KINDS)
@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if not style.thinking_open])
def test_the_leaves_are_the_same_over_http(name: str, steps: str) -> None:
    style = STYLES[name]
    with serving(texts=[style.right, style.wrong]) as server:
        generator = EndpointGenerator(server.url, "m")
        growth = SearchSettings((4, 4, 4, 4, 4, 4, 4, 4), steps=steps)
        tree = grow_trees([QUESTION], generator, growth=growth, sampling=SAMPLING, seed=0)
    check_leaves(tree, style)


def test_half_of_the_leaves_are_right_where_half_of_the_chains_are() -> None:
    """Also where nothing but a heading and an option says the answer, and the turn goes on after it."""
    for ending in (
        "## Final Answer\n{}\n\nI hope this helps.",
        "**Answer:**\n\n{}",
        "**Final answer**: {}",
        "# Answer\n**{}**\n",
    ):
        texts = tuple("Step 1: INR.\n\n" + ending.format(option) for option in ("C. Warfarin", "B. Heparin"))
        growth = SearchSettings((1, 2))
        tree = grow_trees([QUESTION], Written(texts), growth=growth, sampling=SAMPLING, seed=0)
        assert sorted(tree.outcome.dropna()) == [-1.0, 1.0], ending


PARTS = [line for style in STYLES.values() for line in (*style.lines, style.wrong)]


@given(
    texts=st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join), min_size=1, max_size=3),
    steps=st.sampled_from(STEP_KINDS),
    thinking_open=st.booleans(),
    mode=st.sampled_from(["stepwise", "full-path"]),
)
def test_a_leafs_letter_is_what_the_reader_of_responses_reads_in_its_path(texts, steps, thinking_open, mode) -> None:
    """Whatever a model writes; but for paths that a limit or a loop cut, which state nothing (method.md)."""
    growth = SearchSettings((3, 2), steps=steps, search_mode=mode, max_frontier=4, max_path_tokens=10**6)
    sampling = replace(SAMPLING, max_tokens=10**6)
    generator = Written(tuple(texts), thinking_open)
    tree = grow_trees([QUESTION], generator, growth=growth, sampling=sampling, seed=0)
    for text, (letter, stop, outcome) in leaves_of(tree).items():
        read = extract_answer(text, QUESTION.options, thinking_open=thinking_open).letter
        assert stop in ("answer", "unreadable", "repeat", "empty")
        if stop in ("answer", "unreadable"):
            assert letter == read and (stop == "answer") == (letter is not None)
        assert outcome == (1.0 if letter == QUESTION.gold else -1.0)


def other_answer(style: Style) -> str:
    """The right response with another letter at its end."""
    for right, wrong in (("C. Warfarin", "D. Atorvastatin"), ("Warfarin (C)", "Atorvastatin (D)")):
        if right in style.right:
            return wrong.join(style.right.rsplit(right, 1))
    return "D".join(style.right.rsplit("C", 1)).replace("warfarin, so the answer", "atorvastatin, so the answer")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return save_tokenizer(tmp_path_factory.mktemp("qwen25"), "qwen25")


@pytest.mark.parametrize("name", STYLES)
def test_pairs_of_each_kind_end_as_they_should_and_keep_the_models_form(name: str, tokenizer) -> None:
    """Reasoning and reflection pairs, their token ids, and what stage 05 reads in the same texts."""
    style = STYLES[name]
    texts = (style.right, style.wrong, other_answer(style))
    assert [extract_answer(text, QUESTION.options).letter for text in texts[::2]] == ["C", "D"]
    generator = Written(texts, style.thinking_open)
    growth = SearchSettings((3,) * 10, steps="line")
    tree = grow_trees([QUESTION], generator, growth=growth, sampling=SAMPLING, seed=0)
    chains, form = paths(tree), dict(prompt=prompts.exam, thinking_open=style.thinking_open)
    limits = dict(top_k=3, min_margin=0.0, max_per_question=9)
    made = [reasoning_pairs([QUESTION], tree, chains, **form, **limits)[0]]
    for kind in ("mid", "post"):
        ranked, _ = rank_corrections(tree, locate_errors(tree), kind=kind, top_k=3)
        chosen, _ = reflection_candidates(ranked, **limits)
        keys = correction_texts([QUESTION], tree, chains, chosen)
        thoughts = {key: f"Wait, I overlooked the INR of option {number}." for number, key in enumerate(keys)}
        pairs, _ = reflection_pairs([QUESTION], tree, chains, chosen, thoughts, kind=f"reflection_{kind}", **form)
        made.append(pairs)
    pairs = pd.concat(made, ignore_index=True)
    assert len(made[0]) >= 1 and (len(made[2]) >= 1 or name == "json")  # JSON has no step before its answer to share
    marks = [
        m for m in ("</think>", "[/THINK]", "<unused95>", "## Final Response", "## Final Answer") if m in style.right
    ]
    for pair in pairs.itertuples():
        sides = pair.chosen[0]["content"], pair.rejected[0]["content"]
        read = [extract_answer(side, QUESTION.options, thinking_open=style.thinking_open).letter for side in sides]
        assert read[0] == "C" and read[1] in ("A", "B", "D"), pair
        for side in sides:
            assert [side.count(mark) for mark in marks] == [1] * len(marks), side
            assert side.count("Wait, I overlooked") == (pair.kind != "reasoning")
    ids, _ = tokenize_pairs(pairs, tokenizer, end=tokenizer.eos_token_id, max_length=5000)
    for pair, row in zip(pairs.itertuples(), ids.itertuples(), strict=True):
        assert tokenizer.decode(row.chosen_ids[:-1]) == pair.chosen[0]["content"]
        assert row.chosen_ids[-1] == row.rejected_ids[-1] == tokenizer.eos_token_id
    for text, letter in zip(texts, ("C", None, "D"), strict=True):
        way = Protocol("greedy", (SAMPLING,))
        table = collect_responses([QUESTION], Answering(text, style.thinking_open), model="base", protocol=way, seed=0)
        expected = letter or extract_answer(style.wrong, QUESTION.options, thinking_open=style.thinking_open).letter
        assert table["answer"].tolist() == [expected] and table["correct"].tolist() == [expected == "C"]


class Answering(Written):
    """A generator that answers with one text."""

    usage = Usage()

    def __init__(self, text: str, thinking_open: bool = False):
        super().__init__((text,), thinking_open)
