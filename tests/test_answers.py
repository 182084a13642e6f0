"""Phrasings that models use, each with the letter a careful reader would write down."""

import csv
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrefl_utils.core import Answer, MedReflError
from medrefl_utils.exam.answers.reader import EXPLICIT, extract_answer, split_thinking, states_answer

OPTIONS = {"A": "Aspirin", "B": "Hepatitis B vaccine", "C": "Vitamin D", "D": "Escherichia coli", "E": "B lymphocytes"}

TEN = dict(
    zip(
        "ABCDEFGHIJ",
        ("Amiodarone Bisoprolol Captopril Digoxin Enalapril Furosemide Glyburide Heparin Ibuprofen Labetalol").split(),
        strict=True,
    )
)
YES_NO_MAYBE = {"A": "yes", "B": "no", "C": "maybe"}

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
    ("The answer is E. coli infection", "D"),  # a species by its genus initial
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
    "Answer: None of the above",
    "A patient came in.",
    "I think it is hard",
    "<think>Perhaps **A**, it seems most likely",
]
# The ways of other models and benchmarks; None where a careful reader would not choose either.
PHRASINGS = [
    (OPTIONS, "My final answer is B.", "B"),
    (OPTIONS, "Answer - C", "C"),
    (OPTIONS, "ANSWER: D", "D"),
    (OPTIONS, "Ans: B", "B"),
    (OPTIONS, "**Final Answer**: **(D)**", "D"),
    (OPTIONS, "The final answer is $\\boxed{\\text{B}}$.", "B"),
    (OPTIONS, "$$\\boxed{\\mathbf{D}}$$", "D"),
    (OPTIONS, "\\boxed{Vitamin D}", "C"),
    (OPTIONS, "\\boxed{\\textbf{(E)} B lymphocytes}", "E"),
    (OPTIONS, "\\boxed{A} is wrong at second thought, so \\boxed{D}", "D"),
    (OPTIONS, '{"answer": "b"}', "B"),
    (OPTIONS, '{"Answer": "E"}', "E"),
    (OPTIONS, '{"reason": "...", "answer": ["D"]}', "D"),
    (OPTIONS, '{"reason":"..","answer":"A","confidence":0.9}', "A"),
    (OPTIONS, "{'reason': 'x', 'answer': 'C'", "C"),
    (OPTIONS, '{"final_answer": "D. Escherichia coli"}', "D"),
    (OPTIONS, '{"choice": "B"}', "B"),
    (OPTIONS, '{"answer_choice": "C"}', "C"),
    (OPTIONS, '"answer": C', "C"),
    (OPTIONS, '{"reason": "B is tempting", "answer": A}', "A"),
    (OPTIONS, '```json\n{\n  "reason": "x",\n  "answer": "E"\n}\n```', "E"),
    (OPTIONS, '{"answer": "A", "C"}', None),
    (OPTIONS, '{"answer": ["A","C"]}', None),
    (OPTIONS, '{"reason": "no idea", "answer": null}', None),
    (OPTIONS, '{"reason": "x", "answer": "None of the above"}', None),
    (OPTIONS, '{"reason": "x", "answer": ""}', None),
    (OPTIONS, "{“reason”: “x”, “answer”: “D”}", "D"),
    (OPTIONS, "Option (C) is the correct answer.", "C"),
    (OPTIONS, "**Option D** is correct.", "D"),
    (OPTIONS, "So, option E is the best answer.", "E"),
    (OPTIONS, "I believe the correct answer would be option B.", "B"),
    (OPTIONS, "The best answer choice is D.", "D"),
    (OPTIONS, "The correct answer to this question is therefore A.", "A"),
    (OPTIONS, "Therefore, A is the most likely answer.", "A"),
    (OPTIONS, "Hence C.", "C"),
    (OPTIONS, "C is the answer.", "C"),
    (OPTIONS, "It must be D.", "D"),
    (
        OPTIONS,
        "<think>I first thought D.</think>\n\nThe culture grew gram-negative rods.\n\n**Answer: D. Escherichia coli**",
        "D",
    ),
    (OPTIONS, "okay so the answer is A... no\n</think>\n\n**C**", "C"),
    (OPTIONS, "<think>\n\n</think>\n\nB", "B"),
    (OPTIONS, "<think>I think the answer is A", "A"),
    (OPTIONS, "<think>Perhaps A, perhaps B. The answer must be one of the two.", None),
    (OPTIONS, "## Thinking\n\nThe answer is A.\n\n## Final Response\n\nI cannot say.", None),
    (
        OPTIONS,
        "### Reasoning:\nThe best fit so far is **A**.\n\n### Conclusion:\nThe organism is D. Escherichia coli",
        "D",
    ),
    (OPTIONS, "## Thinking\n\nA or B?\n\n## Final Answer\n\nC. Vitamin D", "C"),
    (OPTIONS, "### Conclusion\nThe patient is ill.\n", None),
    (OPTIONS, "The best choice is **A**.\n\n### Conclusion\nThe patient should be treated at once.", "A"),
    (
        OPTIONS,
        "<|begin_of_thought|>A it is<|end_of_thought|><|begin_of_solution|>The answer is B<|end_of_solution|>",
        "B",
    ),
    (OPTIONS, "<answer> (B) </answer>", "B"),
    (OPTIONS, "<answer>B: Hepatitis B vaccine</answer>", "B"),
    (OPTIONS, "The answer is hepatitis B vaccine.", "B"),
    (OPTIONS, "The cause is E. coli, so the answer is D.", "D"),
    (OPTIONS, "E. coli causes this. The answer: D", "D"),
    (OPTIONS, "She lacks vitamin D and has hepatitis B.", "C"),
    (OPTIONS, "Vitamin D deficiency explains it; therefore option C.", "C"),
    (OPTIONS, "A 40-year-old man has a fever. B cells are few. The answer is E.", "E"),
    (OPTIONS, "I would not choose A. I would choose C.", "C"),
    (OPTIONS, "The answer is not A. The answer is not B either.", None),
    (OPTIONS, "It is A, B or C.", None),
    (OPTIONS, "Both A and C are correct.", None),
    (OPTIONS, "Either option A or option B.", None),
    (OPTIONS, "The answer is A... wait, actually the answer is C.", "C"),
    (OPTIONS, "A seemed right at first, but option A is incorrect. The correct one is option D.", "D"),
    (OPTIONS, "Options A, B, and E are incorrect; option C is correct.", "C"),
    (
        OPTIONS,
        "Option A is wrong: it thins the blood. Option B is wrong. Option E is wrong. That leaves option D.",
        "D",
    ),
    (OPTIONS, "A: Aspirin - no\nB: Hepatitis B vaccine - no\nC: Vitamin D - yes\nAnswer: C", "C"),
    (OPTIONS, "The most likely agent is Escherichia colli.", "D"),
    (OPTIONS, "The best therapy is vitamine D.", "C"),
    (OPTIONS, "The best prevention is the hepatitis-B vaccine", "B"),
    (OPTIONS, "The best treatment is Asprin.", "A"),
    (OPTIONS, "The answer is B: Vitamin D", "C"),
    (OPTIONS, "The answer is B (Vitamin D)", "C"),
    (OPTIONS, "**B. Vitamin D**", "C"),
    (OPTIONS, "Answer: E) Escherichia coli", "D"),
    (OPTIONS, '{"answer": "A: Vitamin D"}', "C"),
    (OPTIONS, "The answer is B: a kind of jab", "B"),
    # The last statement stands: nothing that an earlier sentence chose overrules it.
    (OPTIONS, "The most likely cause is Escherichia coli. Answer: A", "A"),
    (TEN, "The answer is J.", "J"),
    (TEN, "The answer is I.", "I"),
    (TEN, "(I) Ibuprofen", "I"),
    (TEN, "I think the answer is F", "F"),
    (TEN, "I would give heparin.", "H"),
    (TEN, "**J**", "J"),
    (TEN, '{"answer": "I"}', "I"),
    (TEN, "\\boxed{F}", "F"),
    (TEN, "I believe it's hard.", None),
    (TEN, "The best choice is option I.", "I"),
    (TEN, "I: Ibuprofen", "I"),
    (YES_NO_MAYBE, "yes", "A"),
    (YES_NO_MAYBE, "The answer is no", "B"),
    (YES_NO_MAYBE, "Answer: maybe", "C"),
    (YES_NO_MAYBE, "**Answer: Yes**", "A"),
    (YES_NO_MAYBE, '{"answer": "no"}', "B"),
    (YES_NO_MAYBE, "A", "A"),
    (YES_NO_MAYBE, "The answer is B: no", "B"),
    (YES_NO_MAYBE, "No. The trial showed no effect.", "B"),
    (YES_NO_MAYBE, "Yes, it does.", "A"),
    (OPTIONS, "Correct option: C", "C"),
    (OPTIONS, "Correct Answer: [D]", "D"),
    (OPTIONS, "The right answer is 'E'", "E"),
    (OPTIONS, "✅ B", "B"),
    (OPTIONS, "The answer is **C. Vitamin D**.", "C"),
    (OPTIONS, "answer is c", "C"),
    (OPTIONS, "I'd go with B.", "B"),
    (OPTIONS, "I'm going with D here", "D"),
    (OPTIONS, "Let's pick C.", "C"),
    (OPTIONS, "- **C. Vitamin D** ✅\n- **A. Aspirin**: does not help.", "C"),
    (OPTIONS, "Best answer: (A) Aspirin", "A"),
    (OPTIONS, "> C", "C"),
    (OPTIONS, "C.\n\nExplanation: A is for pain.", "C"),
    (OPTIONS, "C\n\nA is for pain.", "C"),
    (OPTIONS, "The answer is A/C", None),
    (OPTIONS, "The answer is A & C", None),
    (OPTIONS, "The answers are A and B", None),
    (OPTIONS, "Answer: D\n\nExplanation: A is wrong. B is wrong.", "D"),
    (OPTIONS, "It's D", "D"),
    (OPTIONS, "The correct diagnosis is therefore D", "D"),
    (OPTIONS, "Which option is best? Let me think. Final: E", "E"),
    (OPTIONS, "The most likely answer, therefore, is D.", "D"),
    (OPTIONS, "The answer here is clearly (b).", "B"),
]


@pytest.mark.parametrize(("options", "response", "letter"), PHRASINGS)
def test_reads_what_models_write(options: dict[str, str], response: str, letter: str | None) -> None:
    assert extract_answer(response, options).letter == letter


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("The answer is B: Vitamin D", Answer("C", "stated", "B", True)),
        ("Answer: E) Escherichia coli", Answer("D", "stated", "E", True)),
        ('{"reason": "x", "answer": "A: Vitamin D"}', Answer("C", "json", "A", True)),
        ("The best choice is option B: 'Vitamin D'.", Answer("C", "stated", "B", True)),
        ("The most likely cause is **E**: 'Escherichia coli'.", Answer("D", "label", "E", True)),
        ("The answer is B: a kind of jab", Answer("B", "stated", "B", False)),  # a text that is no option
        ("The answer is C: Vitamin D", Answer("C", "stated", "C", False)),
        ("The answer is vitamin D", Answer("C", "stated", None, False)),
        # what another sentence chose in words does not overrule a letter
        ('The most likely cause is Escherichia coli. {"answer": "A"}', Answer("A", "json", "A", False)),
        # ... but one JSON object is one statement, where its reason names one option and turns nowhere
        ('{"reason": "The best fit is Escherichia coli.", "answer": "A"}', Answer("D", "json", "A", True)),
        ('{"reason": "Escherichia coli seems best. Wait, no.", "answer": "A"}', Answer("A", "json", "A", False)),
        # ... but not where the letter's own text, or the other's letter, stands there too
        ('Not aspirin: the best is vitamin D, so {"answer": "A"}', Answer("A", "json", "A", False)),
        ('D, Escherichia coli, is the most likely. {"answer": "A"}', Answer("A", "json", "A", False)),
        ('Escherichia coli was seen. {"answer": "A"}', Answer("A", "json", "A", False)),
        ("Answer: A or B", Answer(None, "several", "A", False)),
        ("Hm.", Answer(None, "none", None, False)),
    ],
)
def test_where_letter_and_text_disagree_the_text_counts(response: str, expected: Answer) -> None:
    assert extract_answer(response, OPTIONS) == expected


@pytest.mark.parametrize("final", ["I cannot say.", "Both A and C are possible.", "The answer is not D."])
def test_the_thinking_is_never_read_where_a_final_response_exists(final: str) -> None:
    for begin, end in (("<think>", "</think>"), ("## Thinking\n", "\n## Final Response\n"), ("", "</think>")):
        assert extract_answer(f"{begin}The answer is D.{end}{final}", OPTIONS).letter is None
        assert extract_answer(f"{begin}{final}{end}The answer is D.", OPTIONS).letter == "D"


@pytest.mark.parametrize(("response", "letter"), READ)
def test_reads(response: str, letter: str) -> None:
    assert extract_answer(response, OPTIONS).letter == letter


@pytest.mark.parametrize("response", UNREAD)
def test_leaves_unread(response: str) -> None:
    assert extract_answer(response, OPTIONS).letter is None


CASES = [json.loads(line) for line in (Path(__file__).parent / "data/answer_cases.jsonl").read_text().splitlines()]


def read(case: dict[str, object]) -> str | None:
    opened = bool(case.get("thinking_open"))
    return extract_answer(case["response"], case["options"], thinking_open=opened).letter


@pytest.mark.parametrize("by", ["kind", "language"])
def test_own_cases(by: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Cases written by hand from how models answer; a wrong letter counts worse than none. The rules are tuned on them.

    Cases that no rule reads stay in the file, so that the shares show what is missing.
    """
    asked, right, wrong = Counter(), Counter(), []
    for case in CASES:
        letter = read(case)
        asked[case[by]] += 1
        right[case[by]] += letter == case["expected"]
        if letter not in (None, case["expected"]):
            wrong.append((case["response"], letter, case["expected"]))
    with capsys.disabled():
        print(f"\nown cases read as expected, by {by}:")
        for name, n in sorted(asked.items()):
            print(f"  {name:24} {right[name]:4} of {n:4}  {right[name] / n:.1%}")
    assert asked.total() >= 400
    assert right.total() / asked.total() >= 0.975
    assert min(right[name] / n for name, n in asked.items()) >= 0.8
    assert wrong == []


HELD_OUT = Path(__file__).parent / "data/answer_heldout.jsonl"


def test_held_out_cases(capsys: pytest.CaptureFixture[str]) -> None:
    """Responses that were not tuned on: written before their author read the rules, and since then only counted.

    They measure what the rules make of a response that they do not know. 79% were read as expected and 4% as a wrong
    letter before the rules of reviews, eliminations and turns were added, 83% and 3% after. To keep the measure, add
    no rule for a case of this file: write a new case of its kind into ``answer_cases.jsonl``.
    """
    cases = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    read_as = Counter(
        "as expected" if (letter := read(case)) == case["expected"] else "none" if letter is None else "a wrong letter"
        for case in cases
    )
    with capsys.disabled():
        print(f"\nheld-out cases, {len(cases)}:", *(f"{name} {n / len(cases):.1%}" for name, n in read_as.items()))
    assert len(cases) == 110
    assert read_as["as expected"] >= 91
    assert read_as["a wrong letter"] <= 3


def test_cases_of_bug_reports(shared_data: Path) -> None:
    """Each of the published half is read as expected."""
    path = shared_data / "cases" / "answers.jsonl"
    if not path.is_file():
        pytest.skip("no cases/answers.jsonl")
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(case["response"], read(case)) for case in cases if read(case) != case["expected"]] == []


DRUGS = {"A": "Warfarin", "B": "Heparin", "C": "Aspirin", "D": "Clopidogrel"}


@pytest.mark.parametrize(
    "text",
    [
        "One might think the answer is A, but this ignores the HIT.",
        "Initially I thought the answer is A, but the INR makes C more appropriate.",
        "Some would say that the answer is A; that would be wrong here.",
        "So the answer could be B.",
        "The answer is probably B, but let me check the other options first.",
        "The attending's answer is A.",
        "We choose A as the first hypothesis to test.",
        "Let's select A and see whether it fits the labs.",
        "The answer is A unless the platelets are low, and they are.",
        "The answer was thought to be A, however the guideline says D.",
        "I was inclined to say the answer is B; the platelets argue for D.",
        "最初我认为答案是A,但是考虑到妊娠,B更合适。",
        "Zuerst dachte ich, die Antwort ist A, aber C passt besser.",
        "The answer might be C.",
        "The answer may be C, I need to check.",
        "Perhaps the answer is C.",
        "I'd pick A first, then check B.",
        "So the answer is likely B, but the INR needs a look.",
    ],
)
def test_an_open_or_reported_opinion_states_no_answer(text: str) -> None:
    assert not states_answer(text, DRUGS)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B, because warfarin may take days.", "B"),
        ("The most likely answer is D.", "D"),
        ("Answer: B (it could also be given later)", "B"),
        ("Initially the INR was 1.2, so the answer is B.", "B"),
        ("Therefore, the answer is C.", "C"),
        ("综合考虑,最可能的答案是B。", "B"),
        ("Die richtige Antwort ist C.", "C"),
    ],
)
def test_a_plain_statement_states_its_answer(text: str, letter: str) -> None:
    assert states_answer(text, DRUGS)
    assert extract_answer(text, DRUGS).letter == letter


VITAMINS = {"A": "Vitamin A", "B": "Vitamin B1 (thiamine)", "C": "Vitamin C", "D": "Vitamin D"}


@pytest.mark.parametrize(
    "response",
    [
        "Answer: B. thiamine deficiency",
        "The answer is B. thiamine deficiency",
        "Answer: B. beriberi is due to thiamine deficiency.",
        "Step 3: C. seems best.\nAnswer: B. thiamine deficiency",
        "C. Vitamin C is plausible but wrong.\nAnswer: B. thiamine deficiency explains the beriberi.",
        "Answer: C? No, B.",
        "Step 2: The most likely choice is vitamin C.\nI overlooked the edema.\nAnswer: B",
    ],
)
def test_the_last_stated_answer_stands(response: str) -> None:
    assert extract_answer(response, VITAMINS).letter == "B"


@pytest.mark.parametrize("later", ["E. faecalis", "I do not know", "none of the above", "42", "the spleen"])
def test_nothing_before_a_label_that_is_not_read_is_read(later: str) -> None:
    assert extract_answer(f"C. seems best. The best choice is C.\nAnswer: {later}", VITAMINS).letter is None


def test_an_option_whose_text_is_one_letter() -> None:
    """As in MedQA's test, line 824: the instruction "Answer: X" states nothing where X is an option's text."""
    options = {"A": "VII", "B": "XIIa", "C": "VIIa", "D": "X", "E": "XII"}
    instruction = 'End with the line "Answer: X", where X is the letter of the best option.'
    assert extract_answer(instruction, options).letter is None
    assert extract_answer("Answer: X", options).letter is None
    assert extract_answer("Answer: D. X", options).letter == "D"
    assert extract_answer("The answer is factor X.", options).letter == "D"
    assert extract_answer("Answer: XII", options).letter == "E"
    assert extract_answer("Answer: X", dict.fromkeys("VWX", "") | {"X": "none"}).letter == "X"


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("Answer: C", True),
        ("**Answer: C. Warfarin**", True),
        ("Antwort: C", True),
        ("\\boxed{C}", True),
        ('{"answer": "C"}', True),
        ("## Final Answer\n\nC. Warfarin", True),
        ("**Answer:**\nC", True),
        ("答案：C", True),
        ("Therefore, the answer is C.", True),
        ("Answer choices A and B are not oral", False),
        ("Answer A is an antiplatelet", False),
        ("## Final Answer", False),
        ("**Answer:**", False),
        ("Answer:", False),
        ("Answer: A or B", False),
        ("Answer: I do not know", False),
        ("Step 4: the answer is B", False),
        ("Step 1: Answer: no", False),
        ("C. Warfarin", False),
        ("The answer cannot be A.", False),
        ("If she were pregnant, the answer would be B.", False),
        ("Answering this needs care.", False),
        ("", False),
    ],
)
def test_states_answer(text: str, states: bool) -> None:
    options = {"A": "Aspirin", "B": "Heparin", "C": "Warfarin", "D": "Atorvastatin"}
    assert states_answer(text, options) is states
    if states:
        assert extract_answer(text, options).rule in EXPLICIT


@pytest.mark.parametrize(
    ("response", "thinking_open", "told"),
    [
        ("Answer: B", False, "Answer: B"),
        ("<think>a</think>b", False, "b"),
        ("a</think>b", True, "b"),
        ("a", True, ""),
        ("<think>a", False, ""),
        ("<THINK>a</THINK>b", False, "b"),
        ("[THINK]a[/THINK]b", False, "b"),
        ("<unused94>thought\na<unused95>b", False, "b"),
        ("◁think▷a◁/think▷b", False, "b"),
        ("<seed:think>a</seed:think>b", False, "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", False, "b"),
        ("analysisaassistantfinalb", False, "b"),
        ("## Thinking\n\na\n\n## Final Response\n\nb", False, "\n\nb"),
        ("## 思考过程\n\na\n\n## 最终回复\n\nb", False, "\n\nb"),
        ("**Thinking:** a\n\n**Final Response:** b", False, " b"),
        ("<think>a</think>b<think>c", False, ""),
    ],
)
def test_split_thinking(response: str, thinking_open: bool, told: str) -> None:
    thinking, rest = split_thinking(response, thinking_open=thinking_open)
    assert (rest, thinking + rest) == (told, response)


def test_in_a_thinking_that_was_cut_only_a_final_form_counts() -> None:
    for opened, begin in ((True, ""), (False, "<think>"), (False, "[THINK]")):
        for text in ("Option B (Hepatitis B vaccine) is given by", "The answer is B? Let me check", "B is right, but"):
            assert extract_answer(begin + text, OPTIONS, thinking_open=opened).letter is None
        for text in ("So it is vitamin D.\n\nFinal Answer: C", "Thus \\boxed{C} is", "Hence the answer is C."):
            assert extract_answer(begin + text, OPTIONS, thinking_open=opened).letter == "C"


def test_refuses_options_that_are_no_letters() -> None:
    for options in (["Aspirin", "Heparin"], "AB", None):
        with pytest.raises(MedReflError, match="expected a mapping"):
            extract_answer("Answer: A", options)
    for key in ("a", "1", "AB", ""):
        with pytest.raises(MedReflError, match="expected a capital letter"):
            extract_answer("Answer: A", {key: "Aspirin"})
    with pytest.raises(MedReflError, match="B is NoneType"):
        extract_answer("Answer: A", {"A": "Aspirin", "B": None})


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
        "A is wrong. B is right.": "verdict",
        "The best treatment is Asprin.": "misspelled",
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
    "答案是",
    "정답은",
    "la respuesta es ",
    "die Antwort ist nicht ",
    "Wait, ",
    "Actually, no. ",
    "if ",
    "✅",
    "~~",
    "## Final Answer\n",
    "[/THINK]",
    "◁think▷",
    "，",
    "Ｂ",
    "1,000",
    "2.5",
    "\n",
]
TEXT = st.lists(st.one_of(st.sampled_from([*FRAGMENTS, *OPTIONS, *OPTIONS.values()]), st.text(max_size=8))).map("".join)


@settings(max_examples=500, deadline=None)
@given(TEXT, st.dictionaries(st.sampled_from("ABCDEFGHIJ"), st.text(max_size=12), max_size=10))
def test_never_raises_and_answers_with_an_option(response: str, options: dict[str, str]) -> None:
    for given_options in (options, OPTIONS):
        answer = extract_answer(response, given_options)
        assert answer.letter is None or answer.letter in given_options
        assert answer == extract_answer(response, given_options)
        assert answer.rule in {*EXPLICIT, "lone", "verdict", "label", "text", "misspelled", "several", "none"}
        opened = extract_answer(response, given_options, thinking_open=True)
        assert opened.letter is None or opened.letter in given_options
        assert not states_answer(response, given_options) or answer.rule in EXPLICIT
    for opens in (False, True):
        assert "".join(split_thinking(response, thinking_open=opens)) == response


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "B ",
            "**B** or ",
            "answer ",
            "answer is ",
            "\\boxed{",
            "(",
            "\n",
            " ",
            "<think>",
            "Hepatitis B ",
            "'A\"",
            "not ",
        ),
        *(
            "A, ",
            "Answer: A and ",
            "Answer: A\nWait, ",
            "A is wrong ",
            "A: Aspirin ",
            "no, ",
            "I would choose ",
            "~~",
            "#",
            "|",
        ),
        *(
            "答案是",
            "选",
            "A错误",
            "정답은 A ",
            "la respuesta es ",
            "no es A sino ",
            "die antwort ist ",
            "ответ ",
            "คำตอบคือ ",
            "10,000",
        ),
        *(
            '"answer": "A", ',
            '{"answer": ',
            "</think>",
            "# Final Answer\n",
            "if ",
            "A? no, ",
            "all of ",
            "A\n",
            "is not ",
            "...",
            "2-",
        ),
    ],
)
def test_a_megabyte_is_read_at_once(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    extract_answer(text, OPTIONS)
    start = time.process_time()
    extract_answer(text, OPTIONS)
    # 0.1 to 0.35 s on a busy machine. A rule that reads a text again for each of its matches takes minutes.
    assert time.process_time() - start < 1.0


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


def test_agrees_with_labels_by_hand(shared_data: Path) -> None:
    """330 of the 1,273 published responses, read before the rules were seen to read them.

    Hard (240 of 282): several marked letters or none, or a named option that is not the marked one; the 90 others are
    a random sample of 991, so that the shares below are weighted by 282 and 991.
    """
    outputs = (shared_data / "published_outputs/huatuo_o1_8b_medqa_run0.jsonl").read_text().splitlines()
    exam = (shared_data / "benchmarks/medqa_usmle_5op_test.jsonl").read_text().splitlines()
    agreed: dict[str, list[bool]] = {"0": [], "1": []}
    with (Path(__file__).parent / "data/huatuo_labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            line = int(row["line"]) - 1
            answer = extract_answer(json.loads(outputs[line])["reason"], json.loads(exam[line])["options"])
            agreed[row["hard"]].append((answer.letter or "") == row["letter"])
    easy, hard = (sum(agreed[stratum]) / len(agreed[stratum]) for stratum in "01")
    assert (len(agreed["1"]), len(agreed["0"])) == (240, 90)
    assert hard >= 0.95
    assert (282 * hard + 991 * easy) / 1273 >= 0.99
