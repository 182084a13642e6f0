"""A gold answer by number is decided from the whole file or refused; fields that disagree are refused."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.exam import Rows, lint_questions, load_benchmark, load_questions, read_questions

TEXTS = ["w", "x", "y", "z"]
NUMBERS = dict(zip("ABCD", "1234", strict=True))


def exam(folder: Path, *rows: dict[str, Any], name: str = "exam.jsonl") -> str:
    path = folder / name
    stems = ({"question": f"Q{i}?"} | row for i, row in enumerate(rows))
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in stems), encoding="utf-8")
    return str(path)


def numbered(folder: Path, *golds: Any, field: str = "answer", **columns: Any) -> str:
    return exam(folder, *({"options": TEXTS, field: gold} | columns for gold in golds))


def golds(read: Rows) -> str:
    return "".join(question.gold for _, question in read.questions)


@pytest.mark.parametrize("field", ["answer", "cop", "label", "answer_idx", "gold", "correct_answers"])
def test_the_whole_file_proves_the_base_or_no_row_is_read(tmp_path: Path, field: str) -> None:
    read = read_questions(numbered(tmp_path, 0, 1, 2, field=field))
    assert golds(read) == "ABC" and read.numbering == (f"gold field {field!r}: positions from 0 (row 1 has 0)",)
    read = read_questions(numbered(tmp_path, 1, 2, 4, field=field))
    assert golds(read) == "ABD"
    assert read.numbering == (f"gold field {field!r}: positions from 1 (row 3 has 4, the number of its options)",)
    path = numbered(tmp_path, 1, 2, 3, field=field)
    with pytest.raises(MedReflError, match=rf"exam.jsonl:1: gold is 1 under '{field}': .* set answer_base to 0 or 1"):
        load_questions(path)
    assert len(read_questions(path).faults) == 3
    assert [finding.check for finding in lint_questions([], read_questions(path).faults)] == ["gold_ambiguous"]


def test_both_proofs_prove_nothing(tmp_path: Path) -> None:
    read = read_questions(numbered(tmp_path, 0, 1, 4))
    assert not read.questions and "row 1 has 0, but row 3 has 4 with as many options" in read.faults[1][1]


@pytest.mark.parametrize(("base", "expected"), [(0, "BCD"), ("0", "BCD"), (1, "ABC"), ("1", "ABC")])
def test_a_given_base_is_taken(tmp_path: Path, base: int | str, expected: str) -> None:
    assert "".join(q.gold for q in load_questions(numbered(tmp_path, 1, 2, 3), answer_base=base)) == expected
    assert "".join(q.gold for q in load_benchmark(numbered(tmp_path, 1, 2, 3), answer_base=base)) == expected
    read = read_questions(numbered(tmp_path, 1, 2, 5), answer_base=base)
    assert [number for number, _ in read.faults] == [3] and "expected one of ABCD or a position" in read.faults[0][1]


@pytest.mark.parametrize("base", [2, "one", "", None, True, -1])
def test_another_base_is_refused(tmp_path: Path, base: Any) -> None:
    with pytest.raises(MedReflError, match="answer_base is .*, expected 0, 1 or auto"):
        load_questions(numbered(tmp_path, 0), answer_base=base)
    with pytest.raises(MedReflError, match="answer_base is .*, expected 0, 1 or auto"):
        load_questions("clinic", limit=1, answer_base=base)


def test_cells_of_a_csv_file_are_numbers_too(tmp_path: Path) -> None:
    path = tmp_path / "exam.csv"
    path.write_text("question,A,B,C,answer\nq,x,y,z,1\nr,x,y,z,3.0\n")
    assert golds(read_questions(str(path))) == "AC"


@pytest.mark.parametrize(
    "columns",
    [{"subject": "doctor", "year": 2022, "q_number": 7}, {"Category": "Nursing", "Human Accuracy": 0.4}],
    ids=["KorMedMCQA", "KMMLU"],
)
def test_known_shapes_need_no_proof_but_yield_to_one(tmp_path: Path, columns: dict[str, Any]) -> None:
    texts = dict(zip("ABCD", ["2", "3", "4", "1"], strict=True))  # as a text, 2 would be A
    rows = [columns | texts | {"answer": n} for n in (1, 2, 3)]
    assert golds(read_questions(exam(tmp_path, *rows))) == "ABC"
    letters = columns | dict(zip("ABCD", TEXTS, strict=True))
    assert golds(read_questions(exam(tmp_path, letters | {"answer": 0}, letters | {"answer": 2}))) == "AC"


def test_an_option_that_is_missing_moves_the_proof(tmp_path: Path) -> None:
    rows = [
        {"A": "w", "B": "x", "C": "y", "D": None, "answer": 3},
        {"A": "w", "B": "x", "C": "y", "D": "z", "answer": 2},
    ]
    assert golds(read_questions(exam(tmp_path, *rows))) == "CB"


@pytest.mark.parametrize(
    "row",
    [
        {"answer_idx": "A", "answer": "x"},
        {"answer_idx": "A", "label": "B"},
        {"answer": "B", "answer_index": 0},
        {"answer": "A", "answer_index": 1},
        {"answer": "B", "label": 2},
        {"answer": "A", "label": 1},
        {"answer_idx": "A", "cop": 3},
        {"answer_idx": "A", "answer": "F"},
        {"answer_idx": 3, "answer": "w"},
        {"answer_idx": "D", "answer": "B. x"},
    ],
)
def test_fields_that_disagree_are_refused_with_file_and_row(tmp_path: Path, row: dict[str, Any]) -> None:
    path = exam(tmp_path, {"options": TEXTS, "answer_idx": "C"}, {"options": TEXTS} | row)
    with pytest.raises(MedReflError, match=r"exam.jsonl:2: gold is given twice, and the fields disagree: ") as error:
        load_questions(path)
    assert all(name in str(error.value) for name in row)
    assert [f.check for f in lint_questions([], read_questions(path).faults)] == ["gold_disagrees"]


@pytest.mark.parametrize(
    "row",
    [
        {"answer_idx": "B", "answer": " X"},
        {"answer_idx": "B", "answer": "A long explanation."},
        {"answer": "B", "answer_index": 1, "label": "b"},
        {"answer_idx": "B", "cop": 2},
        {"answer_idx": "B", "cop": 1},
        {"answer": "B", "label": None, "cop": ""},
    ],
)
def test_fields_that_agree_are_one_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    assert golds(read_questions(exam(tmp_path, {"options": TEXTS} | row))) == "B"


def test_one_row_that_disagrees_does_not_decide_for_the_others(tmp_path: Path) -> None:
    rows = [{"options": TEXTS, "answer": "ABCD"[n], "cop": n} for n in (1, 2, 2)]
    read = read_questions(exam(tmp_path, *rows, {"options": TEXTS, "answer": "B", "cop": 2}))
    assert golds(read) == "BCC" and [number for number, _ in read.faults] == [4]


def test_a_number_among_numbers_is_refused_unless_something_settles_it(tmp_path: Path) -> None:
    for given in (2, 2.0):
        path = exam(tmp_path, {"options": NUMBERS, "answer": given})
        with pytest.raises(
            MedReflError, match=r"exam.jsonl:1: gold is .* as an option's text it is B, counted from 0 C"
        ):
            load_questions(path)
    assert golds(read_questions(path, answer_base=0)) == "C" and golds(read_questions(path, answer_base=1)) == "B"
    assert golds(read_questions(exam(tmp_path, {"options": NUMBERS, "answer": 2, "answer_idx": "B"}))) == "B"
    # The file counts from 0, but a 2 among numbers may still be the text.
    read = read_questions(exam(tmp_path, {"options": TEXTS, "answer": 0}, {"options": NUMBERS, "answer": 2}))
    assert golds(read) == "A" and "the options are numbers" in read.faults[0][1]


def test_a_numeric_text_is_a_text_where_the_file_tells(tmp_path: Path) -> None:
    assert golds(read_questions(exam(tmp_path, {"options": NUMBERS, "answer": "3"}))) == "C"
    path = tmp_path / "exam.csv"
    path.write_text("question,A,B,C,answer\nq,1,2,3,2\nr,red,blue,z,blue\n")
    assert golds(read_questions(str(path))) == "BB"
    path.write_text("question,A,B,C,answer\nq,3,1,2,2\n")
    assert "the options are numbers" in read_questions(str(path)).faults[0][1]


def test_blood_groups(tmp_path: Path) -> None:
    groups = {"A": "0", "B": "A", "C": "B", "D": "AB"}
    rows = [{"answer": "AB"}, {"answer": "A", "answer_idx": "B"}, {"answer": "B"}]
    assert golds(read_questions(exam(tmp_path, *({"options": groups} | row for row in rows)))) == "DBC"


def test_class_labels_count_from_a_whatever_the_number(tmp_path: Path) -> None:
    names = ["question", "opa", "opb", "opc", "opd"]
    features = datasets.Features({name: datasets.Value("string") for name in names})
    features["cop"] = datasets.ClassLabel(names=list("abcd"))
    rows = [dict(zip(names, [f"Q{n}?", *TEXTS], strict=True)) | {"cop": n} for n in (1, 2)]
    folder = tmp_path / "folder"
    folder.mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(folder / "train.parquet"))
    for source in (folder / "train.parquet", folder):
        assert [q.gold for q in load_questions(str(source))] == ["B", "C"]
