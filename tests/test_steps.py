"""Where a step ends: on hand-written texts of each kind, as a law of growing texts, and in tokens as in text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medrefl_utils.core import Continuation
from medrefl_utils.exam import STEP_KINDS, split_into_steps, step_end
from medrefl_utils.exam.steps import SIGNS, has_content
from medrefl_utils.models import load_tokenizer
from medrefl_utils.models.generators.token_cutting import StepCutter, text_after, vocabulary

PIECES = (
    "\n",
    "\n\n",
    " ",
    ". ",
    "? ",
    "! ",
    ": ",
    "Step 1:",
    "Step 2. ",
    "## Thinking",
    "### Step 3: Labs",
    "**Answer:**",
    "**C. Warfarin**",
    "Answer: B",
    "A",
    "B. ",
    "vitamin K. ",
    "The INR is 3. ",
    "Give 0.5 mg",
    " p.o. b.i.d. ",
    "Dr. Smith",
    "E. coli",
    "e.g. ",
    "no. 5",
    "No. ",
    "<think>",
    "</think>",
    "```json",
    "```",
    "---",
    '{"answer": "B"}',
    "1. ",
    "- ",
    "患者有高血压。",
    "需要治疗！",
    "Wait",
    "It",
    " acts",
    "*",
    '."',
    "…",
    "...",
    "the",
    "The other drugs",
    "é",
    "\t",
    "|end_header_id>",
    "Final Answer",
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
KINDS = st.sampled_from(STEP_KINDS)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Step 1: a\nStep 2: b\nAnswer: C", ["Step 1: a\n", "Step 2: b\n", "Answer: C"]),
        ("\n\na\n\n\nb\n", ["\n\na\n", "\n\nb\n"]),
        (
            "## Thinking\n\nSo a.\n\n## Final Answer\n\nIt is B.",
            ["## Thinking\n\nSo a.\n", "\n## Final Answer\n\nIt is B."],
        ),
        ("Step 1:\nLook.\nStep 2\nThink.\n3.\nEnd.", ["Step 1:\nLook.\n", "Step 2\nThink.\n", "3.\nEnd."]),
        ("**Answer:**\nC\n", ["**Answer:**\nC\n"]),
        ("## Final Answer\nC. Warfarin\n", ["## Final Answer\nC. Warfarin\n"]),
        ("**Answer**\n\n**C. Warfarin**\n\nIt is oral.", ["**Answer**\n\n**C. Warfarin**\n", "\nIt is oral."]),
        (
            "**A. Aspirin**\nNot by INR.\n**B. Heparin**\nNot oral.",
            ["**A. Aspirin**\nNot by INR.\n", "**B. Heparin**\nNot oral."],
        ),
        ("## Answer: C\nIt is oral.", ["## Answer: C\n", "It is oral."]),
        ("<think>\na\n</think>\n\nb", ["<think>\na\n", "</think>\n\nb"]),
        ("[THINK]\na\n[/THINK]\nb", ["[THINK]\na\n", "[/THINK]\nb"]),
        ("<unused94>thought\na\n<unused95>b", ["<unused94>thought\na\n", "<unused95>b"]),
        ('a\n```json\n{\n"answer": "B"\n}\n```', ["a\n", '```json\n{\n"answer": "B"\n}\n```']),
        ("a\n---\nb\n***", ["a\n", "---\nb\n***"]),
        ("Let me look at each option:\nA is no.\n", ["Let me look at each option:\nA is no.\n"]),
        ("**The INR is high.**\nb", ["**The INR is high.**\n", "b"]),
        ("# 思考\n\n患者。\n\n**答案：**\nB", ["# 思考\n\n患者。\n", "\n**答案：**\nB"]),
        ("\n\n", ["\n\n"]),
        ("", []),
    ],
)
def test_a_line_takes_with_it_what_says_nothing(text: str, steps: list[str]) -> None:
    assert split_into_steps(text, "line") == steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Step 1: a\nstill a\n\nStep 2: b\n\n\nAnswer: C", ["Step 1: a\nstill a\n\n", "Step 2: b\n\n", "\nAnswer: C"]),
        ("## Thinking\n\na\n\n## Final Response\n\nb", ["## Thinking\n\na\n\n", "## Final Response\n\nb"]),
        ("**Step 1:**\n\n- a\n- b\n \n**Answer:**\n\nC\n", ["**Step 1:**\n\n- a\n- b\n \n", "**Answer:**\n\nC\n"]),
    ],
)
def test_a_paragraph_ends_at_a_blank_line(text: str, steps: list[str]) -> None:
    assert split_into_steps(text, "paragraph") == steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("The INR is high. She takes warfarin. Answer: C", ["The INR is high.", " She takes warfarin.", " Answer: C"]),
        (
            "Dr. Smith gave 0.5 mg of heparin i.v. to Mr. Ray vs. placebo. Then?",
            ["Dr. Smith gave 0.5 mg of heparin i.v. to Mr. Ray vs. placebo.", " Then?"],
        ),
        (
            "Give 5 mg p.o. b.i.d. for a week, e.g. in the U.S. Navy. Stop.",
            ["Give 5 mg p.o. b.i.d. for a week, e.g. in the U.S. Navy.", " Stop."],
        ),
        (
            "It grew E. coli. The drug of no. 5 is best. He said no. Really? Yes!",
            ["It grew E. coli.", " The drug of no. 5 is best.", " He said no.", " Really?", " Yes!"],
        ),
        (
            "Warfarin blocks vitamin K. Its INR is 3. That is high.",
            ["Warfarin blocks vitamin K.", " Its INR is 3.", " That is high."],
        ),
        ("The answer is B. The others are not oral.", ["The answer is B.", " The others are not oral."]),
        ("Answer: C. Warfarin", ["Answer: C. Warfarin"]),
        (
            "1. Aspirin is bad. 2. Heparin is bad. Step 3. Think.",
            ["1. Aspirin is bad.", " 2. Heparin is bad.", " Step 3. Think."],
        ),
        (
            'He says "stop." Then (as I said.) **It ends.** So.',
            ['He says "stop."', " Then (as I said.)", " **It ends.**", " So."],
        ),
        ("Hmm... Let me see. is it?", ["Hmm... Let me see. is it?"]),
        ("## Thinking\n\nFirst. Second.\nThird.", ["## Thinking\n\nFirst.", " Second.\n", "Third."]),
        ("患者有高血压。需要治疗！答案是B。", ["患者有高血压。", "需要治疗！", "答案是B。"]),
        (
            "Jones et al. 2010 found Fig. 2 (approx. 3.5 mmol/L). So B.",
            ["Jones et al. 2010 found Fig. 2 (approx. 3.5 mmol/L).", " So B."],
        ),
    ],
)
def test_a_sentence_ends_at_its_full_stop_and_not_at_an_abbreviation_or_a_dose(text: str, steps: list[str]) -> None:
    assert split_into_steps(text, "sentence") == steps


@given(TEXTS, KINDS)
@example("The answer is B. The", "sentence")
@example("a. \nB", "sentence")
def test_where_a_step_ends_does_not_change_as_the_text_grows(text: str, steps: str) -> None:
    """A generator that looks at each token and one that reads the whole reply cut at the same place."""
    found = {step_end(text[:n], steps) for n in range(len(text) + 1)} - {None}
    end = step_end(text, steps)
    assert found == ({end} if end is not None else set())
    if end is not None:
        assert 0 < end <= len(text) and has_content(text[:end])
        assert any(sign in text for sign in SIGNS[steps])


@given(TEXTS, KINDS)
def test_steps_join_to_the_text_and_each_says_something(text: str, steps: str) -> None:
    pieces = split_into_steps(text, steps)
    assert "".join(pieces) == text
    assert all(map(has_content, pieces)) or len(pieces) == 1


@pytest.fixture(scope="module")
def tokenizer(tiny_student):
    return load_tokenizer(tiny_student)


@given(text=TEXTS, steps=KINDS)
def test_tokens_are_cut_where_their_text_is(tokenizer, text: str, steps: str) -> None:
    """Step by step and from the whole chain; a token that goes on after the end of a step belongs to it as a whole."""
    ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    cutter = StepCutter(tokenizer, vocabulary(tokenizer), steps)
    end = tokenizer.eos_token_id
    chain = Continuation(text, (*ids, end), -1.0, "end", len(ids) + 1, (-0.5,) * (len(ids) + 1))
    pieces = cutter.cut(chain, {end})
    assert tuple(token for piece in pieces for token in piece.token_ids) == chain.token_ids
    assert "".join(piece.text for piece in pieces) == text_after(tokenizer, None, ids)
    assert [piece.stop for piece in pieces] == ["boundary"] * (len(pieces) - 1) + ["end"]
    grown, begin = [], 0
    for n in range(1, len(ids) + 1):
        while begin < n and (length := cutter.end(ids[begin:n], ids[begin - 1] if begin else None)) is not None:
            grown.append(ids[begin : begin + length])
            begin += length
    expected = [piece.token_ids for piece in pieces[:-1]]
    assert grown[: len(expected)] == expected and len(grown) - len(expected) in (0, 1)
    for piece in pieces[:-1]:
        cut = step_end(piece.text + "\n\nThen", steps)
        assert cut is not None and piece.text[cut:].strip(" \n\t") == ""


@pytest.fixture(scope="module")
def stripping(tmp_path_factory):
    """A tokenizer that drops the space at the beginning of a text, as Llama 2's and Mistral's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁He", "▁is", "▁old", ".", "▁She", "▁not", "\n"]
    bpe = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def test_a_sentence_in_the_middle_of_a_line_keeps_its_space(stripping) -> None:
    assert stripping.decode([4, 1]) == "She is"  # the space is gone
    chain = Continuation("He is old. She is not.", (0, 1, 2, 3, 4, 1, 5, 3), -8.0, "end", 8, (-1.0,) * 8)
    pieces = StepCutter(stripping, vocabulary(stripping), "sentence").cut(chain, {99})
    assert [(piece.text, piece.stop) for piece in pieces] == [("He is old.", "boundary"), (" She is not.", "end")]
