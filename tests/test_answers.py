"""Phrasings that models use, each with the letter a careful reader would write down."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrefl_utils.answers import extract_answer

OPTIONS = {"A": "Aspirin", "B": "Hepatitis B vaccine", "C": "Vitamin D", "D": "Escherichia coli", "E": "B lymphocytes"}

READ = [
    # stated
    ("Answer: B", "B"),
    ("Step 1: fever suggests A B\nCheck: A no B yes\nAnswer: B\n", "B"),
    ("Answer: A\nNo, wait.\nAnswer: C", "C"),
    ("**Answer:** C", "C"),
    ("**Answer: C**", "C"),
    ("Final answer: c", "C"),
    ("<answer>C</answer>", "C"),
    ("The answer is (E).", "E"),
    ("The answer is\n\nD", "D"),
    ("The answer is **B**: 'Hepatitis B vaccine'.", "B"),
    ("The correct answer is option C.", "C"),
    ("The correct option is B.", "B"),
    ("Therefore, the answer to the question is:\n\n**B**: 'Hepatitis B vaccine'", "B"),
    ("The answer is vitamin D", "C"),
    ("The answer is C, not D.", "C"),
    ("The answer is not B but C", "C"),
    ("I would choose D because of the culture", "D"),
    ("So we go with C) Vitamin D", "C"),
    ("Answer: A. because it thins the blood", "A"),
    # JSON, also broken or fenced
    ('{"reason": "x", "answer": "D"}', "D"),
    ('{"reason": "The answer is B at first sight.", "answer": "A" }', "A"),
    ("```json\n{'answer': 'D: Escherichia coli'}\n```", "D"),
    ('{"reason": "x", "answer": "Aspirin"', "A"),
    ('{"reason": "The drug to avoid is: A. Aspirin."}', "A"),
    # boxed
    (r"so \boxed{C}", "C"),
    (r"\boxed{\text{C. Vitamin D}}", "C"),
    ("The final answer is: $\\boxed{E}$", "E"),
    # a letter by itself
    ("B", "B"),
    ("B.", "B"),
    ("(C)", "C"),
    ("C. Vitamin D", "C"),
    ("C) because", "C"),
    ("### Final Answer\nE", "E"),
    # marked letters
    ("The most likely cause is **D: 'Escherichia coli'**. While **B** may prevent disease, it is no cause.", "D"),
    ("The best choice for this patient would be option 'A': 'Aspirin'.", "A"),
    ("The most likely agent is \"D': 'Escherichia coli'. Vitamin D plays no role.", "D"),
    ("Giving aspirin (Option A) is the most appropriate step.", "A"),
    ("B is correct.", "B"),
    ("Option B is correct.", "B"),
    ("The finding is:\n\nD: 'Escherichia coli'.", "D"),
    # taken back
    ("B is not the best option. The best option is A.", "A"),
    ("The best treatment is **B**: 'Hepatitis B vaccine' is not the best option, the closest choice is **A**.", "A"),
    ('The most likely is "A": Aspirin. However, this seems unlikely. More likely, it is due to "C": Vitamin D.', "C"),
    ("The answer is A or C. However, the most likely one is **C**: 'Vitamin D'.", "C"),
    # letter and text disagree: the text wins; a text that is no option leaves the letter
    ("The answer is A: Vitamin D", "C"),
    ("The answer is A: a blood thinner", "A"),
    # text alone
    ("The patient needs vitamin D.", "C"),
    ("The most appropriate therapy is vitamin D, not aspirin.", "C"),
    ("Thus, B lymphocytes are the cause.", "E"),
    # the final response counts, not the thinking
    ("<think>The answer is A</think>The answer is B", "B"),
    ("## Thinking\nThe answer is A.\n\n## Final Response\n\nThe most likely is **D**.", "D"),
    ("## Thinking\nSo the answer is A.", "A"),
]
UNREAD = [
    "",
    "A or B",
    "The answer is A or B.",
    "The answer is A and C.",
    "Answer: A, C",
    "Answer: A/B",
    "The best answer is: **A**: Aspirin, and **C**: Vitamin D.",
    "This is best described as C) 'Vitamin D' or D) 'Escherichia coli'.",
    "The answer is not B.",
    "The answer is E. coli infection",
    "Answer: None of the above",
    "A patient came in.",
    "I think it is hard",
    "<think>Perhaps **A**, it seems most likely",
]


@pytest.mark.parametrize(("response", "letter"), READ)
def test_reads(response: str, letter: str) -> None:
    assert extract_answer(response, OPTIONS).letter == letter


@pytest.mark.parametrize("response", UNREAD)
def test_leaves_unread(response: str) -> None:
    assert extract_answer(response, OPTIONS).letter is None


def test_names_its_rule() -> None:
    rules = {
        "Answer: B": "stated",
        '"answer": "B"': "json",
        r"\boxed{B}": "boxed",
        "B": "lone",
        "The best is **B**.": "label",
        "Give vitamin D.": "text",
        "Answer: A or B": "several",
        "Hm.": "none",
    }
    assert {text: extract_answer(text, OPTIONS).rule for text in rules} == rules


def test_reads_only_letters_that_are_options() -> None:
    options = {"A": "left", "B": "right"}
    assert extract_answer("The answer is C.", options).letter is None
    assert extract_answer("The answer is J.", {"I": "left", "J": "right"}).letter == "J"
    assert extract_answer("Answer: A", {}).letter is None


def test_options_that_are_letters_or_begin_with_an_article() -> None:
    assert extract_answer("The answer is A", {"A": "B", "B": "A"}).letter == "A"
    begins = {"A": "A brief trial", "B": "A long trial"}
    assert extract_answer("The best step is option B: 'A long trial'.", begins).letter == "B"
    assert extract_answer("The best step is 'A long trial'.", begins).letter == "B"


def test_options_with_newlines_quotes_and_signs() -> None:
    options = {"A": 'Wait\n"', "B": "LOD > 3", "C": "LOD < 3", "D": "“Let's talk”"}
    assert extract_answer("The correct one is A: 'Wait'", options).letter == "A"
    assert extract_answer("Most likely LOD < 3.", options).letter == "C"
    assert extract_answer('The best reply is "Let\'s talk"', options).letter == "D"


FRAGMENTS = [
    "Answer:",
    "the answer is",
    '"answer": "',
    "\\boxed{",
    "**",
    "option ",
    "</think>",
    "<think>",
    "not ",
    " or ",
]
TEXT = st.lists(st.one_of(st.sampled_from([*FRAGMENTS, *OPTIONS, *OPTIONS.values()]), st.text(max_size=8))).map("".join)


@settings(max_examples=500, deadline=None)
@given(TEXT, st.dictionaries(st.sampled_from("ABCDEFGHIJ"), st.text(max_size=12), max_size=10))
def test_never_raises_and_answers_with_an_option(response: str, options: dict[str, str]) -> None:
    for given_options in (options, OPTIONS):
        answer = extract_answer(response, given_options)
        assert answer.letter is None or answer.letter in given_options
        assert answer == extract_answer(response, given_options)


@pytest.mark.parametrize(
    "piece",
    ["B ", "**B** or ", "answer ", "answer is ", "\\boxed{", "(", "\n", " ", "<think>", "Hepatitis B ", "'A\"", "not "],
)
def test_a_megabyte_is_read_at_once(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    extract_answer(text, OPTIONS)
    start = time.process_time()
    extract_answer(text, OPTIONS)
    assert time.process_time() - start < 0.2


def test_published_responses(shared_data: Path) -> None:
    """Huatuo-o1-8B on the 5-option MedQA: a careful hand estimate is 69.5% strict, 69.8% of the readable."""
    outputs = shared_data / "published_outputs" / "huatuo_o1_8b_medqa_run0.jsonl"
    exam = shared_data / "benchmarks" / "medqa_usmle_5op_test.jsonl"
    with outputs.open(encoding="utf-8") as responses, exam.open(encoding="utf-8") as questions:
        rows = [(json.loads(r), json.loads(q)) for r, q in zip(responses, questions, strict=True)]
    letters = [extract_answer(r["reason"], q["options"]).letter for r, q in rows]
    right = sum(letter == q["answer_idx"] for letter, (_, q) in zip(letters, rows, strict=True))
    assert 100 * right / len(rows) == pytest.approx(69.5, abs=0.6)
    assert 100 * right / (len(rows) - letters.count(None)) == pytest.approx(69.8, abs=0.6)
    assert letters.count(None) <= 12
    # read by hand: taken back, two answers, text of another letter, a JSON field after another claim
    read = {
        72: "A",
        75: "A",
        142: "A",
        250: "D",
        334: None,
        382: "E",
        467: "E",
        508: "C",
        541: "C",
        678: None,
        817: None,
    }
    read |= {859: "D", 931: "E", 976: "A", 1027: "B", 1050: "C", 1058: "D", 1145: "E", 1208: "D", 1242: "C"}
    assert {index: letters[index] for index in read} == read
