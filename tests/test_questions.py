"""Every shape in which questions come, and every fault that stops them."""

import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrefl_utils.core import LETTERS, QUESTIONS, MedReflError, Question
from medrefl_utils.exam import load_questions, questions_from_table, questions_table

TEXTS = ["one", "two", "three"]
ROW = {"question": "Which?", "options": {"A": "one", "B": "two", "C": "three"}, "answer_idx": "B"}
Lines = Callable[..., str]


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    def write(*rows: Any, name: str = "exam.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        ROW | {"answer": "something else"},
        {"question": "Which?", "options": {"A": "one", "B": "two", "C": "three"}, "label": "B"},
        {"question": "Which?", "options": {"A": "one", "B": "two", "C": "three"}, "answer": "two"},
        {"question": "Which?", "options": {"a": "one", "b": "two", "c": "three", "d": None}, "answer": "b "},
        {"question": "Which?", "options": ["one", "two", "three"], "answer": "B", "answer_index": 1},
        {"question": "Which?", "choices": ["one", "two", "three"], "answer": ["b"]},
        {"question": "Which?", "options": [{"key": k, "value": v} for k, v in ROW["options"].items()], "answer": "two"},
        {"question": "Which?", "opa": "one", "opb": "two", "opc": "three", "cop": "b"},
        {"question": "Which?", "option1": "one", "option2": "two", "option3": "three", "correct_option": "option2"},
        {"Question": "Which?", "Options": "A. one\nB. two\nC. three", "Answer": "B"},
        {"qtext": "Which?", "ra": 2, "answers": [{"aid": n, "atext": t} for n, t in enumerate(TEXTS, start=1)]},
        {"question": "Which?", "choices": {"text": TEXTS, "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"question": {"stem": "Which?", "choices": [{"text": t, "label": k} for k, t in ROW["options"].items()]}}
        | {"answerKey": "B"},
        {"question": "Which?", "answers": dict(zip("abc", TEXTS, strict=True)), "correct_answers": ["b"]},
        {"question": "Which?", "answer_a": "one", "answer_b": "two", "answer_c": "three", "correct_answers": ["b"]},
        {"problem_text": "Which?", "choices": TEXTS, "answer": "(B)"},
        {"question": "Which?", "option": ROW["options"], "answer": "B. two"},
        {"question": "Which?", "options": dict(zip("①②③", TEXTS, strict=True)), "answer": "②"},
        {"question": "Which?", "options": dict(zip("أبج", TEXTS, strict=True)), "answer": "ب"},
        {
            "question": "Which?",
            "options": [{"letter": k, "content": t} for k, t in ROW["options"].items()],
            "label": "B",
        },
        {"stem": "Which?", "options": '{"A": "one", "B": "two", "C": "three"}', "gold": "B"},
    ],
)
def test_every_shape_is_one_question(lines: Lines, row: dict[str, Any]) -> None:
    (question,) = load_questions(lines(row))
    assert (question.stem, question.options, question.gold) == ("Which?", ROW["options"], "B")
    assert question.source == "exam" and len(question.question_id) == 16


def test_texts_stay_as_they_are(lines: Lines) -> None:
    row = {
        "question": 'A "line"\u2028\nand more',
        "options": {"B": 'x\n"', "A": "", "P": "µ"},
        "answer_idx": "P",
        "id": 7,
    }
    (question,) = load_questions(lines("", json.dumps(row, ensure_ascii=False), ""))
    assert question == Question("7", row["question"], row["options"], "P", "exam")
    assert list(question.options) == ["B", "A", "P"]


def test_ids_are_of_the_content(lines: Lines) -> None:
    first = load_questions(lines(ROW, ROW | {"question": "What?"}))
    second = load_questions(lines(ROW | {"question": "What?", "note": 1}, ROW, name="other.jsonl"))
    assert [q.question_id for q in first] == [q.question_id for q in reversed(second)]


def test_repeats_are_one_question(lines: Lines) -> None:
    other = ROW | {"options": {"A": "one", "B": "four"}}
    with pytest.warns(UserWarning, match=r"exam.jsonl: 2 of 4 rows repeat a question"):
        questions = load_questions(lines(ROW, other, ROW, ROW))
    assert [q.options["B"] for q in questions] == ["two", "four"]


def test_offset_and_limit_count_distinct_questions(lines: Lines) -> None:
    path = lines(*({**ROW, "question": f"Q{i}"} for i in (0, 0, 1, 2, 3)))
    with pytest.warns(UserWarning, match="1 of 5"):
        assert [q.stem for q in load_questions(path, limit=2, offset=1)] == ["Q1", "Q2"]
    for offset, limit in ((9, None), (-1, None), (0, 0)):
        with pytest.raises(MedReflError, match="offset"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_questions(path, offset=offset, limit=limit)


def test_split_of_the_rows_filters(lines: Lines) -> None:
    path = lines({**ROW, "split": "train"}, {**ROW, "question": "Q", "split": "test"})
    assert [q.stem for q in load_questions(path, split="test")] == ["Q"]
    assert len(load_questions(path)) == 2
    assert load_questions(lines(ROW), split="test")[0].split == "test"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**ROW, "answer_idx": "D"}, r"exam.jsonl:2: gold is 'D', expected one of ABC$"),
        ({**ROW, "answer_idx": None}, "2: no gold answer"),
        ({"question": "Q", "options": ["x", "y"], "cop": -1}, "2: gold is -1, expected one of AB"),
        ({**ROW, "answer_idx": "A,C"}, "2: gold is 'A,C' under 'answer_idx': 2 right answers, expected one"),
        ({**ROW, "answer_idx": ["A", "C"]}, "2: gold is .* 2 right answers, expected one"),
        ({**ROW, "question": " "}, "2: stem is empty"),
        ({**ROW, "question": 5}, "2: stem is not text"),
        ({**ROW, "options": {"A": "one"}, "answer_idx": "A"}, "2: 1 option, expected at least two"),
        ({"question": "Q", "answer_idx": "A"}, "2: no options"),
        ({**ROW, "options": {"AB": "one", "B": "two"}}, "2: option 'AB', expected a letter"),
        ({**ROW, "options": {"b": "one", "B": "two"}}, "2: option B is given twice"),
        ({**ROW, "options": {"A": {}, "B": "two"}}, "2: option A is not text"),
        ({**ROW, "options": ["x"] * 27}, "2: 27 options, expected at most 26"),
        ({**ROW, "question": "\ud800"}, "2: a text holds half a surrogate"),
        ('{"question": "Q", ', "2: not JSON"),
        ("[" * 100_000, "2: not JSON"),
        ("[1]", "2: a JSON list, expected an object"),
        ({**ROW, "id": 1}, "2: id '1' is already the id of row 1"),
    ],
)
def test_a_faulty_row_stops_with_file_and_line(lines: Lines, bad: Any, message: str) -> None:
    with pytest.raises(MedReflError, match=message) as error:
        load_questions(lines({**ROW, "question": "first", "id": 1}, bad))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_contradicting_gold_is_refused(lines: Lines) -> None:
    with pytest.raises(MedReflError, match="exam.jsonl:3: gold is 'A', but row 1 has the same question with 'B'"):
        load_questions(lines(ROW, {**ROW, "question": "Q"}, {**ROW, "answer_idx": "A"}))


def test_all_faults_are_counted(lines: Lines) -> None:
    bad = {**ROW, "answer_idx": "D"}
    with pytest.raises(MedReflError, match=r"exam.jsonl:2: .* \(and 2 more faulty rows of 4\)$"):
        load_questions(lines(ROW, bad, "{", bad))


@pytest.mark.parametrize("name", ["exam.jsonl", "exam.json", "exam.csv", "exam.parquet"])
def test_what_is_no_text_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"", b"\xff\xfe\x00caf\xe9\n"):
        path.write_bytes(content)
        with pytest.raises(MedReflError, match=name) as error:
            load_questions(str(path))
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(MedReflError, match="no such file"):
        load_questions(str(path))


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "exam.xlsx").touch()
    with pytest.raises(MedReflError, match="expected .jsonl, .json, .parquet, .csv, .tsv"):
        load_questions(str(tmp_path / "exam.xlsx"))


def test_json_array_and_lines_under_the_same_name(lines: Lines) -> None:
    rows = [{**ROW, "question": f"Q{i}"} for i in range(3)]
    expected = load_questions(lines(*rows))
    assert load_questions(lines(json.dumps(rows, indent=1), name="exam.json")) == expected
    assert load_questions(lines(*rows, name="exam.json")) == expected
    with pytest.raises(MedReflError, match=r"exam.json:2: not JSON"):
        load_questions(lines("[", "oops]", name="exam.json"))


def test_csv_with_its_own_names(lines: Lines) -> None:
    path = lines("text,A,B,C,key", '"One\nline",0.50,007,,b', "Two,x,y,z,C", name="exam.csv")
    first, second = load_questions(path, fields={"stem": "text", "gold": "key"})
    assert (first.stem, first.options, first.gold) == ("One\nline", {"A": "0.50", "B": "007"}, "B")
    assert second.gold == "C"
    with pytest.raises(MedReflError, match="fields names 'answer'"):
        load_questions(path, fields={"answer": "key"})
    with pytest.raises(MedReflError, match="exam.csv:2: not 5 cells"):
        load_questions(lines("question,A,B,C,gold", "Q,x", name="exam.csv"))


def test_other_separators_and_a_mark_of_byte_order(lines: Lines) -> None:
    with pytest.raises(
        MedReflError, match=r"the header is one column, 'question;A;B;answer'; is it separated by ';'\?"
    ):
        load_questions(lines("question;A;B;answer", "q;x;y;A", name="exam.csv"))
    with pytest.raises(MedReflError, match=r"is it separated by tabs\? save it as .tsv"):
        load_questions(lines("question\tA\tB\tanswer", "q\tx\ty\tB", name="exam.csv"))
    (question,) = load_questions(lines("question\tA\tB\tanswer", "q\tx, z\ty\tB", name="exam.tsv"))
    assert (question.options, question.gold) == ({"A": "x, z", "B": "y"}, "B")
    for name, rows in (("exam.csv", ("question,A,B,answer", "q,x,y,B")), ("exam.jsonl", (json.dumps(ROW),))):
        (question,) = load_questions(lines("\ufeff" + rows[0], *rows[1:], name=name))
        assert question.gold == "B"


def test_rows_by_source_and_by_split(lines: Lines) -> None:
    content = {"MedQA": [ROW], "MedMCQA": [{**ROW, "question": "Q", "source": "own"}], "empty": []}
    questions = load_questions(lines(json.dumps(content), name="eval.json"))
    assert [(q.stem, q.source) for q in questions] == [("Which?", "MedQA"), ("Q", "own")]
    content = {"train": [ROW], "test": [{**ROW, "question": "Q"}]}
    (question,) = load_questions(lines(json.dumps(content), name="splits.json"), split="test")
    assert (question.stem, question.split, question.source) == ("Q", "test", "splits")


def test_gpqas_own_file_has_its_right_answer_in_any_place(lines: Lines) -> None:
    names = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3"
    questions = load_questions(lines(names, *(f"Q{i},right,w1,w2,w3" for i in range(80)), name="gpqa.csv"))
    assert all(q.options[q.gold] == "right" for q in questions)
    assert all(8 < sum(q.gold == letter for q in questions) < 34 for letter in "ABCD")  # 20 each, sd 3.9


def test_parquet_fills_missing_letters_with_null(tmp_path: Path) -> None:
    rows = [ROW, {"question": "Q", "options": {"A": "x", "D": "y"}, "answer_idx": "D"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "exam.parquet")
    questions = load_questions(str(tmp_path / "exam.parquet"))
    assert [q.options for q in questions] == [ROW["options"], {"A": "x", "D": "y"}]


def test_a_runs_own_questions_load_again(tmp_path: Path) -> None:
    questions = [Question("q1", "Which?", {"B": "two", "A": "one"}, "A", "bench", "test")]
    pq.write_table(questions_table(questions), tmp_path / "questions.parquet")
    assert load_questions(str(tmp_path / "questions.parquet")) == questions


def test_a_folder_that_datasets_knows(tmp_path: Path) -> None:
    folder = tmp_path / "my_exam"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([ROW, {**ROW, "question": "Q"}]), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist([{**ROW, "question": "T"}]), folder / "test.parquet")
    assert [(q.stem, q.source, q.split) for q in load_questions(str(folder), split="test")] == [
        ("T", "my_exam", "test")
    ]
    with pytest.raises(MedReflError, match="split is empty, expected one of train, test"):
        load_questions(str(folder))
    with pytest.raises(MedReflError, match="my_exam"):
        load_questions(str(folder), split="dev")


@pytest.mark.parametrize("silent", [False, True])
def test_a_hub_out_of_reach_is_one_line_within_five_seconds(silent: bool) -> None:
    server = socket.create_server(("127.0.0.1", 0))  # takes connections and says nothing
    port = server.getsockname()[1]
    if not silent:
        server.close()
    code = (
        "import time; from medrefl_utils.exam import load_questions; start = time.monotonic()\n"
        "try: load_questions('somebody/exam', split='test')\n"
        "except Exception as error: print(type(error).__name__, time.monotonic() - start, error, sep='|')"
    )
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    env |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "NO_PROXY": "*"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    server.close()
    kind, seconds, message = done.stdout.strip().split("|")
    assert kind == "MedReflError" and float(seconds) < 5 and done.stderr == ""
    assert message.startswith("somebody/exam: no such file, and not available on the hub")


def test_an_unknown_id_without_the_hub() -> None:
    start = time.monotonic()
    with pytest.raises(MedReflError, match="somebody/exam"):
        load_questions("somebody/exam", split="test")
    assert time.monotonic() - start < 5


def test_the_clinic() -> None:
    questions = load_questions("clinic", split="test", limit=4, offset=3, seed=1)
    assert questions == load_questions("clinic", split="test", limit=7, seed=1)[3:]
    assert all(question.gold in question.options for question in questions)
    with pytest.raises(MedReflError, match=r"n_questions 0 \(all\) has no end here"):
        load_questions("clinic")


@pytest.mark.parametrize(
    ("name", "distinct", "repeated", "letters"),
    [
        ("gpqa_medical", 78, 312, 4),
        ("hle_biomed", 103, 0, 22),
        ("medbullets_op4", 304, 4, 4),
        ("medbullets_op5", 298, 10, 5),
        ("medmcqa_validation", 4183, 0, 4),
        ("medqa_usmle_4op_test", 1273, 0, 4),
        ("medqa_usmle_5op_test", 1273, 0, 5),
        ("medxpertqa_test", 1449, 0, 10),
        ("mmlu_pro_medical", 1440, 95, 10),
    ],
)
def test_published_benchmarks(shared_data: Path, name: str, distinct: int, repeated: int, letters: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        questions = load_questions(str(shared_data / "benchmarks" / f"{name}.jsonl"))
    assert len(questions) == len({q.question_id for q in questions}) == distinct
    assert max(len(q.options) for q in questions) == letters
    # Python tells of what another test left open when it happens to collect it.
    told = [str(w.message).split(": ")[-1].split(" of ")[0] for w in caught if w.category is not ResourceWarning]
    assert told == ([str(repeated)] if repeated else [])
    assert questions_from_table(questions_table(questions).to_pandas()) == questions


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def any_question(draw: st.DrawFn) -> Question:
    letters = draw(st.lists(st.sampled_from(LETTERS), min_size=2, max_size=26, unique=True))
    options = {letter: draw(WORDS) for letter in letters}
    return Question(draw(WORDS), draw(WORDS), options, draw(st.sampled_from(letters)), draw(WORDS), draw(WORDS))


@settings(max_examples=100, deadline=None)
@given(st.lists(any_question(), max_size=4))
def test_a_table_keeps_every_question(questions: list[Question]) -> None:
    table = questions_table(questions)
    assert table.schema == QUESTIONS
    for stored in (table, table.to_pandas()):
        back = questions_from_table(stored)
        assert back == questions and [list(q.options) for q in back] == [list(q.options) for q in questions]
