"""Written responses, ours and others': how they are tied to their questions, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from medrefl_utils.core import RESPONSES, MedReflError, Question, RunFiles, write_table
from medrefl_utils.evaluation import clinic_questions, compare_runs, read_responses, response_row
from medrefl_utils.exam import Rows, extract_answer, lint_questions, read_questions, with_shuffled_options
from medrefl_utils.exam.clinic import make_exam
from medrefl_utils.views import comparison_table, findings_table, rates_table
from tests.test_cli import medrefl

QUESTIONS = [
    Question("q1", "What helps?", {"A": "aspirin", "B": "rest", "C": "surgery"}, "A", "exam"),
    Question("q2", "What harms?", {"A": "sleep", "B": "smoke", "C": "fruit"}, "B", "exam"),
    Question("q3", "Which bone?", {"A": "femur", "B": "tibia", "C": "ulna"}, "A", "exam"),
]
EXAM = Rows("exam", list(enumerate(QUESTIONS, start=1)), [])
SAID = ["Answer: A", "The answer is A", "I cannot tell."]


@pytest.fixture
def written(tmp_path: Path):
    def write(*rows: dict, name: str = "responses.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return write


def rows_with(**columns: list) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def text_of(table) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_tied_by_id_in_any_order(written) -> None:
    path = written(*rows_with(id=["q3", "q1", "q2"], output=["Answer: B", *SAID[:2]]))
    table = read_responses(path, EXAM)
    assert list(table.columns) == RESPONSES.names
    assert table["question_id"].tolist() == ["q3", "q1", "q2"]
    assert table["correct"].tolist() == [False, True, False]
    assert set(table["run"]) == {0} and set(table["source"]) == {"exam"}


def test_a_response_that_begins_inside_the_templates_thinking(written) -> None:
    """Without a closing mark, "Option A is right, but" is a thought and no answer."""
    path = written(*rows_with(id=["q1", "q2"], output=["Option A is right, but", "Option B?</think>Answer: A"]))
    assert read_responses(path, EXAM)["answer"].tolist() == ["A", "A"]
    assert read_responses(path, EXAM, thinking_open=True)["answer"].fillna("-").tolist() == ["-", "A"]


def test_an_id_twice_is_a_second_run(written) -> None:
    table = read_responses(written(*rows_with(id=["q1", "q1", "q2"], output=SAID)), EXAM)
    assert table["run"].tolist() == [0, 1, 0]


def test_tied_by_what_the_question_says(written) -> None:
    reordered = {"A": "rest", "B": "aspirin", "C": "surgery"}
    rows = rows_with(
        question=["what  helps?", "What harms?"], options=[reordered, QUESTIONS[1].options], answer_idx=["B", "B"],
        prediction=["The answer is B", "smoke"],
    )  # fmt: skip
    table = read_responses(written(*rows), EXAM)
    assert table["correct"].tolist() == [True, True]
    with pytest.raises(MedReflError, match="1 of 2 questions are not in exam, expected none"):
        read_responses(written(rows[0], rows[1] | {"question": "Other?"}), EXAM)


def test_tied_by_line_only_where_all_gold_letters_agree(written) -> None:
    table = read_responses(written(*rows_with(reason=SAID, ideal_answer=["A", "B", "a"])), EXAM)
    assert table["question_id"].tolist() == ["q1", "q2", "q3"]
    assert table["answer"].tolist()[:2] == ["A", "A"] and pd.isna(table["answer"][2])
    with pytest.raises(MedReflError, match="by line, the gold letters agree on 2 of 3 rows, expected all: refused"):
        read_responses(written(*rows_with(reason=SAID, ideal_answer=["A", "B", "C"])), EXAM)
    with pytest.raises(MedReflError, match="2 rows without ids and 3 rows of exam, expected as many"):
        read_responses(written(*rows_with(reason=SAID[:2], ideal_answer=["A", "B"])), EXAM)
    with pytest.raises(MedReflError, match="rows have no id, no question and no gold letter, expected one of them"):
        read_responses(written(*rows_with(reason=SAID)), EXAM)


def test_a_repeated_question_is_one_question_in_several_runs(written) -> None:
    twice = Rows("exam", [*EXAM.questions, (4, replace(QUESTIONS[0], question_id="q1 again"))], [])
    path = written(*rows_with(reason=[*SAID, "Answer: C"], ideal_answer=["A", "B", "A", "A"]))
    table = read_responses(path, twice)
    assert table["question_id"].tolist() == ["q1", "q2", "q3", "q1"]
    assert table["run"].tolist() == [0, 0, 0, 1]


def test_what_does_not_belong_is_refused(written, tmp_path: Path) -> None:
    with pytest.raises(MedReflError, match="1 of 3 ids are not in exam"):
        read_responses(written(*rows_with(id=["q1", "q2", "q9"], output=SAID)), EXAM)
    contents = [response_row(q, extract_answer("", q.options))["content"] for q in QUESTIONS]
    known = rows_with(id=["q1", "q2", "q3"], output=SAID, content=contents)
    assert len(read_responses(written(*known), EXAM)) == 3
    with pytest.raises(
        MedReflError,
        match=r"1 of 3 responses have the id of a question with another text \(the first is row 3\): refused",
    ):
        read_responses(written(*known[:2], known[2] | {"content": contents[0]}), EXAM)
    with pytest.raises(MedReflError, match="by id, the gold letters agree on 2 of 3"):
        read_responses(written(*rows_with(id=["q1", "q2", "q3"], output=SAID, gold=["A", "B", "C"])), EXAM)
    with pytest.raises(MedReflError, match=r"1 of 2 rows have no text under 'output' \(the first is row 2, with id"):
        read_responses(written({"id": "q1", "output": "A"}, {"id": "q2"}), EXAM)
    with pytest.raises(MedReflError, match="no text under 'answer'"):
        read_responses(written(*rows_with(id=["q1"], output=["A"])), EXAM, "answer")
    with pytest.raises(MedReflError, match="no such file"):
        read_responses(tmp_path / "none.jsonl", EXAM)
    with pytest.raises(MedReflError, match=r"responses.jsonl:1: not JSON"):
        path = tmp_path / "responses.jsonl"
        path.write_text("{")
        read_responses(path, EXAM)


def test_the_id_of_one_question_and_the_text_of_another_are_refused(written) -> None:
    stems = ["What helps?", "what HARMS", "Which bone of the arm?"]
    rows = rows_with(id=["q1", "q2", "q3"], question=stems, output=SAID)
    with pytest.raises(MedReflError, match=r"1 of 3 .* another text \(the first is row 3, 'Which bone of the arm\?'\)"):
        read_responses(written(*rows), EXAM)
    rows[2]["question"] = "Which\n bone"
    assert len(read_responses(written(*rows), EXAM)) == 3


def test_a_whole_prompt_may_hold_the_question(written) -> None:
    long = replace(QUESTIONS[0], stem="A man of 50 has a headache. What helps?")
    prompt = f"Answer as a doctor. {long.stem} (A) aspirin (B) rest"
    for text, is_same in ((prompt, True), (prompt.replace("50", "60"), False)):
        path = written({"id": "q1", "question": text, "response": "Answer: A"})
        if is_same:
            assert read_responses(path, Rows("exam", [(1, long)], []))["correct"].all()
        else:
            with pytest.raises(MedReflError, match="with another text"):
                read_responses(path, Rows("exam", [(1, long)], []))


def test_options_that_are_not_the_questions_are_refused(written) -> None:
    row = {"id": "q1", "options": {"A": "aspirin", "B": "tea"}, "gold": "A", "output": "A"}
    with pytest.raises(MedReflError, match="row 1: its options are not those of the question 'q1'"):
        read_responses(written(row), EXAM)


def test_tied_by_the_questions_text_alone(written) -> None:
    rows = rows_with(question=["which bone", "What  helps?"], response=["Answer: B", "Answer: A"])
    table = read_responses(written(*rows), EXAM)
    assert table["question_id"].tolist() == ["q3", "q1"] and table["correct"].tolist() == [False, True]
    with pytest.raises(MedReflError, match="1 of 2 questions are not in exam"):
        read_responses(written(rows[0], rows[1] | {"question": "What else?"}), EXAM)
    twin = replace(QUESTIONS[0], question_id="q4", options={"A": "x", "B": "y"})
    with pytest.raises(MedReflError, match=r"the text of 1 of 2 rows \(the first is row 2\) is that of several"):
        read_responses(written(*rows), replace(EXAM, questions=[*EXAM.questions, (4, twin)]))
    shuffled = {"A": "rest", "B": "aspirin", "C": "surgery"}
    path = written({"question": "What helps?", "options": shuffled, "response": "Answer: B"})
    assert read_responses(path, EXAM)["correct"].all()


@pytest.mark.parametrize("golds", [["A", "B", "A"], [0, 1, 0], [1, 2, 1], ["aspirin", "smoke", "Femur"]])
def test_the_gold_answer_may_be_under_answer_and_in_any_form(written, golds: list) -> None:
    assert len(read_responses(written(*rows_with(reason=SAID, answer=golds)), EXAM)) == 3
    with pytest.raises(MedReflError, match="the gold letters agree on 2 of 3 rows"):
        read_responses(written(*rows_with(reason=SAID, answer=[*golds[:2], "C"])), EXAM)


def test_beside_an_id_answer_is_the_models(written) -> None:
    assert len(read_responses(written(*rows_with(id=["q1", "q2"], output=SAID[:2], answer=["C", "C"])), EXAM)) == 2


def test_the_clinics_questions_are_made_from_their_ids(written, tmp_path: Path) -> None:
    case = make_exam(8, seed=3, split="test")[7]
    path = written({"id": case.question_id, "response": f"Answer: {case.gold}"})
    done = medrefl(tmp_path, "score", str(path), "--benchmark", "clinic")
    assert done.returncode == 0 and "100.0" in done.stdout, done.stderr
    with pytest.raises(MedReflError, match="the id 'q1' is not one of the clinic"):
        clinic_questions(written({"id": "q1", "response": "A"}))


def test_a_model_that_was_trained_on_some_of_the_questions_is_marked(written) -> None:
    exam = [replace(q, question_id=f"Text-{n}", source="x") for n, q in zip((0, 1, 1001), QUESTIONS, strict=True)]
    rows = Rows("medxpertqa_reasoning", list(enumerate(exam, start=1)), [])
    path = written(*rows_with(id=[q.question_id for q in exam], output=["Answer: B", "Answer: A", "Answer: A"]))
    table = read_responses(path, rows)
    shown = " ".join(text_of(rates_table(table, "UCSC-VLAA/MedReason-8B")).split())
    assert "MedReason-8B was trained on 2 of these 3 questions: MedXpertQA Text-0 to Text-1000" in shown
    assert re.search(r"without the questions of its training † .* 100\.0 \[.*, n 1 ", shown)
    assert "†" not in text_of(rates_table(table)) and "†" not in text_of(rates_table(table, "Qwen/Qwen3-8B"))


def test_lint_says_how_an_exam_was_read(tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}?", "options": ["x", "y", "z"], "answer": n} for n in (1, 3)]
    (tmp_path / "exam.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = medrefl(tmp_path, "lint", "exam.jsonl", "--context", "20")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["exam: 2 questions read, rows refused: 0", "row 1: Q1?"]
    assert "  gold: A, x" in lines and "too_long" in done.stdout
    assert "gold field 'answer': positions from 1 (row 2 has 3, the number of its options)" in lines
    assert any(line.startswith("longest prompt: row 1, an estimated 3") for line in lines)
    assert "  gold: B, y" in medrefl(tmp_path, "lint", "exam.jsonl", "--answer-base", "0").stdout
    done = medrefl(tmp_path, "lint", "exam.jsonl", "--answer-base", "2")
    assert (done.returncode, done.stderr) == (2, "error: answer_base is '2', expected 0, 1 or auto\n")


def own(question: Question, text: str, **columns) -> dict:
    told = {"n_tokens": 3, "stop": "end", "seconds": 0.1, "temperature": 0.0, "top_p": 1.0}
    row = response_row(question, extract_answer(text, question.options))
    return told | row | {"model": "base", "protocol": "greedy", "run": 0, "response": text} | columns


def test_our_own_responses_are_read_with_the_options_as_shown(tmp_path: Path) -> None:
    shown = [with_shuffled_options(question, seed=3) for question in QUESTIONS]
    assert any(a.gold != b.gold for a, b in zip(shown, QUESTIONS, strict=True))
    rows = [
        own(question, f"Answer: {question.gold}", model=model) for question in shown for model in ("base", "medrefl")
    ]
    write_table(tmp_path / "responses/base_greedy.parquet", pd.DataFrame(rows), RESPONSES)
    table = read_responses(tmp_path / "responses", EXAM)
    assert table["correct"].all() and len(table) == 6
    assert table.groupby("model")["question_id"].nunique().to_dict() == {"base": 3, "medrefl": 3}
    text = text_of(rates_table(table))
    assert re.search(r"strict.* 100\.0 \[.*, 100\.0\] .* 100\.0 \[", text)
    assert "base, greedy" in text and "medrefl, greedy" in text


def test_runs_are_compared_on_what_both_were_asked(tmp_path: Path) -> None:
    for run, texts in (("a", ("A", "A", "B")), ("b", ("A", "B", "B"))):
        rows = [own(q, f"Answer: {t}") for q, t in zip(QUESTIONS, texts, strict=True)]
        rows += [own(replace(QUESTIONS[0], question_id="x", stem=f"only {run}"), "Answer: A")]
        write_table(RunFiles(tmp_path / run).responses / "base.parquet", pd.DataFrame(rows), RESPONSES)
    table = comparison_table(compare_runs(tmp_path / "a", tmp_path / "b"), ("runs/a" * 9, "b"))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    line = next(line for line in lines if "greedy" in line)
    assert line.split()[:5] == ["greedy", "base", "33.3", "66.7", "+33.3"] and line.split()[-2:] == ["1.000", "3"]
    text = " ".join(lines)
    assert "B: b" in text and "benchmark: exam" in text and "3 questions show one of" in " ".join(text.split())
    other = [own(q, "Answer: A", protocol="sampled") for q in QUESTIONS]
    write_table(RunFiles(tmp_path / "c").responses / "base.parquet", pd.DataFrame(other), RESPONSES)
    with pytest.raises(MedReflError, match="no question that both were asked by the same protocol"):
        compare_runs(tmp_path / "a", tmp_path / "c")
    with pytest.raises(MedReflError, match="responses is missing: 05_benchmark_evaluation makes it"):
        compare_runs(tmp_path / "a", tmp_path / "none")


def test_findings_show_counts_and_rows() -> None:
    rows = [(i, replace(QUESTIONS[0], stem=f"{i}? ")) for i in range(1, 12)]
    assert "11" in text_of(findings_table("exam", lint_questions(rows))) and "7, 8, …" in text_of(
        findings_table("exam", lint_questions(rows))
    )
    assert "nothing found" in text_of(findings_table("exam", []))


OUTPUTS = "published_outputs/huatuo_o1_8b_medqa_run0.jsonl"


def test_the_published_outputs_against_the_file_they_were_made_on(shared_data: Path) -> None:
    exam = shared_data / "benchmarks/medqa_usmle_5op_test.jsonl"
    done = medrefl(shared_data, "score", OUTPUTS, "--benchmark", str(exam))
    assert done.returncode == 0, done.stderr
    cells = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    shown = {name.split(":")[0].strip(): value.split()[0] for _, name, value, _ in cells}
    assert float(shown["strict"]) == pytest.approx(69.5, abs=0.6)
    assert float(shown["as published"]) == pytest.approx(69.8, abs=0.6)
    assert shown["questions"] == "1,273"


def test_the_published_outputs_against_the_file_that_ships_with_them(shared_data: Path) -> None:
    exam = shared_data / "benchmarks/medqa_usmle_4op_test.jsonl"
    done = medrefl(shared_data, "score", OUTPUTS, "--benchmark", str(exam))
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "the gold letters agree on 673 of 1,273 rows, expected all: refused" in done.stderr


def test_lint_exits_with_1_where_there_is_an_error(tmp_path: Path) -> None:
    good = {"question": "Which? ", "options": ["x", "y"], "answer": "A"}
    (tmp_path / "exam.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good | {"answer": "C"}))
    done = medrefl(tmp_path, "lint", "exam.jsonl")
    assert done.returncode == 1 and "gold_not_an_option" in done.stdout and "white_space" in done.stdout
    (tmp_path / "exam.jsonl").write_text(json.dumps(good))
    assert medrefl(tmp_path, "lint", "exam.jsonl").returncode == 0
    done = medrefl(tmp_path, "lint", "none.jsonl")
    assert (done.returncode, done.stderr) == (2, "error: none.jsonl: no such file\n")


def test_every_row_of_a_benchmark_with_repeats_is_scored(shared_data: Path, tmp_path: Path) -> None:
    """As published, GPQA's 78 questions stand five times: 390 responses are five runs of 78."""
    rows = read_questions(str(shared_data / "benchmarks/gpqa_medical.jsonl"))
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps({"reason": "Answer: A", "ideal_answer": q.gold}) for _, q in rows.questions))
    table = read_responses(path, rows)
    assert (len(table), table["question_id"].nunique(), table["run"].nunique()) == (390, 78, 5)
