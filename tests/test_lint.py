"""Each check finds its fault, and nothing in a clean file; the published files' known faults with their counts."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrefl_utils.core import Question
from medrefl_utils.exam import (
    LintFinding,
    TokenEstimate,
    content_key,
    estimate_tokens,
    lint_questions,
    longest_prompt,
    read_questions,
    stem_key,
    words,
)
from medrefl_utils.exam.lint import CHECKS

CLEAN = Question("1", "A man has a fever. What is it?", {"A": "Flu", "B": "Malaria", "C": "Measles"}, "B")


def found(*questions: Question) -> dict[str, tuple[int, ...]]:
    return {finding.check: finding.rows for finding in lint_questions(list(enumerate(questions, start=1)))}


def test_a_clean_file_has_no_finding() -> None:
    assert found(CLEAN, replace(CLEAN, stem="A woman has a cough. What is it?")) == {}


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("option_repeated", {"options": {"A": "Flu", "B": "Malaria", "C": " flu"}}),
        ("gold_repeated", {"options": {"A": "malaria", "B": "Malaria", "C": "Flu"}}),
        ("option_empty", {"options": {"A": "Flu", "B": "Malaria", "C": " "}}),
        ("too_long", {"stem": "A cough. " * 1000}),
        ("too_long", {"stem": "咳嗽。" * 1000}),
        ("letter_gap", {"options": {"A": "Flu", "B": "Malaria", "D": "Measles"}}),
        ("letter_gap", {"options": {"B": "Malaria", "A": "Flu", "C": "Measles"}}),
        ("white_space", {"stem": "What is it? "}),
        ("white_space", {"options": {"A": "Flu", "B": "Malaria", "C": "Measles\n"}}),
        ("white_space", {"stem": "What\u00a0is it?"}),
        ("figure", {"stem": "The rash is shown in the photograph. What is it?"}),
        ("figure", {"stem": "Her eye is shown in Figure A. What is it?"}),
        ("figure", {"stem": "Which cell is indicated by the arrow?"}),
        ("encoding", {"stem": "Temperature is 38Â°C. What is it?"}),
        ("encoding", {"stem": "The patientâ€™s rash. What is it?"}),
        ("encoding", {"options": {"A": "Flu", "B": "pH &lt; 7", "C": "Measles"}}),
        ("gold_unaccepted", {"options": dict.fromkeys("ABCDEF", "x") | {"F": "y"}, "gold": "F"}),
    ],
)
def test_each_check_finds_its_fault(check: str, change: dict) -> None:
    other = replace(CLEAN, stem="A woman has a cough. What is it?")
    assert found(other, replace(CLEAN, **change))[check] == (2,)


def test_a_longer_context_has_room_and_a_shorter_one_has_not() -> None:
    long = replace(CLEAN, stem="A cough. " * 1000 + "Why?")
    assert lint_questions([(1, long)], context=8192) == []
    assert [finding.check for finding in lint_questions([(1, CLEAN)], context=30)] == ["too_long"]
    assert longest_prompt([(1, CLEAN), (2, long)])[0] == 2 and longest_prompt([]) is None


def test_an_estimate_of_tokens_knows_the_scripts() -> None:
    assert estimate_tokens("a" * 90) == TokenEstimate(20, 45)
    assert estimate_tokens("咳" * 100) == TokenEstimate(70, 150)
    assert estimate_tokens("س" * 90) == TokenEstimate(30, 90)
    assert estimate_tokens("") == TokenEstimate(0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Vitamin B₁₂, X-ray!", ["vitamin", "b12", "x", "ray"]),
        ("维生素C缺乏症？", ["维", "生", "素", "c", "缺", "乏", "症"]),
        ("마약 중독", ["마약", "중독"]),
        ("น้ำ ม้า", ["น้ํ", "า", "ม้", "า"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("الدَّوَاء، المناسب", ["الدَّوَاء", "المناسب"]),
        (" _ ̊ ", []),
    ],
)
def test_words_of_any_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_options_that_differ_in_a_mark_are_two() -> None:
    """Three Thai words that only their tone marks tell apart."""
    thai = replace(CLEAN, options={"A": "ขาว", "B": "ข่าว", "C": "ข้าว"})
    other = replace(thai, options={"A": "ขาว", "B": "ข่าว", "C": "ข๊าว"})
    assert len({content_key(thai), content_key(other)}) == 2 and len(content_key(thai)[1]) == 3
    assert found(thai) == {}


def test_words_that_only_look_like_a_figure_are_left() -> None:
    stems = (
        "Imaging shows a mass.",
        "A figure skater falls.",
        "The table of contents",
        "An x-ray of the chest is normal.",
    )
    assert "figure" not in found(*(replace(CLEAN, stem=stem) for stem in stems))


def test_repeats_and_contradictions() -> None:
    shuffled = replace(CLEAN, options={"A": "malaria.", "B": "Flu", "C": "Measles"}, gold="A")
    assert found(CLEAN, shuffled) == {"repeated": (2,), "repeated_stem": (1, 2)}
    assert found(CLEAN, replace(CLEAN, gold="A")) == {
        "contradiction": (1, 2),
        "repeated_stem": (1, 2),
        "stem_with_other_answers": (1, 2),
    }
    other = replace(CLEAN, stem=" a man has  a fever. WHAT is it?", options={"A": "Flu", "B": "Typhus"})
    assert found(CLEAN, other)["stem_with_other_answers"] == (1, 2)
    notes = {finding.check: finding.note for finding in lint_questions([(1, CLEAN), (5, shuffled), (6, other)])}
    assert notes["repeated"] == "3 rows of 2 questions"
    assert notes["repeated_stem"] == "3 rows, 1 distinct stems, 1 of them repeated"
    assert notes["stem_with_other_answers"] == "1 stems"


def test_faulty_rows_are_errors_and_come_first() -> None:
    findings = lint_questions(
        [(2, replace(CLEAN, stem="x "))], [(1, "gold is 'D', expected one of ABC"), (3, "no options")]
    )
    assert findings == [
        LintFinding("unreadable", (3,), "no options"),
        LintFinding("gold_not_an_option", (1,), "gold is 'D', expected one of ABC"),
        LintFinding("white_space", (2,)),
    ]
    assert [finding.severity for finding in findings] == ["error", "error", "warning"]


@given(st.permutations(list("ABC")))
def test_keys_do_not_change_with_order_case_and_white_space(order: list[str]) -> None:
    other = replace(
        CLEAN, stem=f" {CLEAN.stem.upper()}\n", options={k: CLEAN.options[o] for k, o in zip("ABC", order, strict=True)}
    )
    assert content_key(other) == content_key(CLEAN)
    assert stem_key(" A\tman\n ") == stem_key("a man") != stem_key("a woman")


@pytest.mark.parametrize(
    ("name", "counts", "notes"),
    [
        ("gpqa_medical", {"repeated": 312}, {"repeated": "390 rows of 78 questions"}),
        (
            "mmlu_pro_medical",
            {"gold_unaccepted": 394, "repeated": 95, "repeated_stem": 408},
            {
                "repeated_stem": "1,535 rows, 1,316 distinct stems, 189 of them repeated",
                "stem_with_other_answers": "54 stems",
                "gold_unaccepted": "F 132, I 149, J 113",
            },
        ),
        ("medbullets_op5", {"repeated": 10}, {"repeated": "308 rows of 298 questions"}),
        ("medbullets_op4", {"repeated": 4}, {}),
        ("hle_biomed", {"letter_gap": 3, "option_empty": 1, "option_repeated": 2, "encoding": 2}, {}),
        ("medmcqa_validation", {"option_repeated": 21, "gold_repeated": 4}, {}),
        ("medqa_usmle_4op_test", {}, {}),
        ("medqa_usmle_5op_test", {}, {}),
        ("medxpertqa_test", {"option_repeated": 1}, {}),
    ],
)
def test_the_published_files(shared_data: Path, name: str, counts: dict[str, int], notes: dict[str, str]) -> None:
    read = read_questions(str(shared_data / "benchmarks" / f"{name}.jsonl"))
    findings = {finding.check: finding for finding in lint_questions(read.questions, read.faults)}
    assert {check: len(findings[check].rows) for check in counts} == counts
    assert {check: findings[check].note for check in notes} == notes
    repeats = {"repeated", "repeated_stem", "stem_with_other_answers", "contradiction"}
    assert bool(repeats & set(findings)) == (name.startswith(("gpqa", "mmlu", "medbullets")))
    assert all(finding.severity == "warning" for finding in findings.values())


def test_every_check_is_described() -> None:
    assert {severity for severity, _ in CHECKS.values()} == {"error", "warning"}
    assert len({meaning for _, meaning in CHECKS.values()}) == len(CHECKS)
