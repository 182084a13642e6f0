"""Logs of lm-evaluation-harness 0.4.13 and Inspect 0.3.285, in the shapes that these versions write."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.evaluation import clinic_questions, read_responses
from medrefl_utils.exam import clinic, read_benchmark

GUMS = "Which vitamin deficiency of vitamin C causes bleeding gums in sailors?"
BONE = "Which bone of the thigh is the longest bone of the human body?"
EXAM = [
    {"question": GUMS, "options": {"A": "none", "B": "rickets", "C": "scurvy", "D": "pellagra"}, "answer_idx": "C"},
    {"question": BONE, "options": {"A": "tibia", "B": "femur", "C": "ulna", "D": "radius"}, "answer_idx": "B"},
]
SHOWN = {GUMS: ["rickets", "scurvy", "pellagra", "none"], BONE: ["tibia", "femur", "ulna", "radius"]}
"""The options as the other tool showed them; B is right in both."""


@pytest.fixture
def exam(tmp_path: Path):
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in EXAM))
    return read_benchmark(str(path))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def doc(number: int, stem: str) -> dict[str, Any]:
    """The hub's MedQA, which the task medqa_4options reads."""
    endings = {f"ending{i}": text for i, text in enumerate(SHOWN[stem])}
    return {"id": number, "sent1": stem, "sent2": "", **endings, "label": 1}


def sample(number: int, stem: str, resps: Any, target: str, **changed: Any) -> dict[str, Any]:
    """A row of samples_TASK_DATE.jsonl."""
    first = resps[0] if isinstance(resps[0][0], str) else [pair for (pair,) in resps]
    return {
        **{"doc_id": number, "doc": doc(number, stem), "target": target, "resps": resps, "filtered_resps": first},
        **{"arguments": {"gen_args_0": {"arg_0": f"Question: {stem}\nAnswer:", "arg_1": {"until": ["\n\n"]}}}},
        **{"filter": "none", "metrics": ["acc"], "doc_hash": "d", "prompt_hash": "p", "target_hash": "t", "acc": 0.0},
        **changed,
    }


def likelihoods(*values: float) -> list[list[list[str]]]:
    return [[[str(value), "False"]] for value in values]


FOLDER = "out/Qwen__Qwen2.5-0.5B-Instruct"
DATE = "2026-11-28T00-51-34.308136"


def test_lm_evals_log_likelihoods_choose_the_likeliest_option(tmp_path: Path, exam) -> None:
    rows = [sample(0, GUMS, likelihoods(-3, -0.5, -2, -4), "1"), sample(1, BONE, likelihoods(-0.1, -0.5, -2, -4), "1")]
    table = read_responses(write(tmp_path / FOLDER / f"samples_medqa_4options_{DATE}.jsonl", rows), exam)
    assert table["answer"].tolist() == ["B", "A"] and table["gold"].tolist() == ["B", "B"]
    assert table["correct"].tolist() == [True, False] and set(table["rule"]) == {"log-likelihood"}
    assert set(table["model"]) == {"Qwen/Qwen2.5-0.5B-Instruct"} and set(table["protocol"]) == {"log-likelihood"}
    assert dict(table["options"][0])["B"] == "scurvy", "as the tool showed them"


def test_mutual_information_adds_likelihoods_without_the_question_which_do_not_count(tmp_path: Path, exam) -> None:
    rows = [sample(0, GUMS, likelihoods(-3, -0.5, -2, -4, -0.1, -0.1, -0.1, -0.1), "1")]
    table = read_responses(write(tmp_path / f"samples_t_{DATE}.jsonl", rows), exam)
    assert table["answer"].tolist() == ["B"]
    rows[0]["resps"].pop()
    with pytest.raises(MedReflError, match="7 log-likelihoods, expected one for each of 4 options"):
        read_responses(write(tmp_path / f"samples_t_{DATE}.jsonl", rows), exam)


def test_lm_evals_texts_are_read_once_for_all_filters_and_each_repetition_is_a_run(tmp_path: Path, exam) -> None:
    rows = [
        sample(0, GUMS, [["Answer: B", "Answer: A"]], "B", filter=name, filtered_resps=["B"])
        for name in ("strict-match", "flexible-extract")
    ]
    path = write(tmp_path / FOLDER / f"samples_mine_{DATE}.jsonl", rows)
    with pytest.warns(UserWarning, match="2 responses read, 1 left out: the same sample, under another filter"):
        table = read_responses(path, exam)
    assert table["answer"].tolist() == ["B", "A"] and table["run"].tolist() == [0, 1]
    assert set(table["protocol"]) == {"given"}


def test_a_folder_of_tasks_is_read_and_questions_of_other_benchmarks_are_left_out(tmp_path: Path, exam) -> None:
    other = {"question": "Which city?", "choices": ["Rome", "Paris"], "answer": 1, "subject": "geography"}
    write(tmp_path / FOLDER / f"samples_a_{DATE}.jsonl", [sample(0, GUMS, [["Answer: B"]], "B")])
    write(tmp_path / FOLDER / f"samples_b_{DATE}.jsonl", [sample(0, BONE, [["Answer: B"]], "B")])
    write(tmp_path / FOLDER / f"samples_c_{DATE}.jsonl", [sample(0, BONE, [["Paris"]], "1", doc=other)])
    results = tmp_path / FOLDER / f"results_{DATE}.json"
    results.write_text(json.dumps({"results": {}, "model_name": "Qwen/Qwen2.5-0.5B-Instruct"}))
    with pytest.warns(UserWarning, match="1 left out: questions that are not in exam"):
        table = read_responses(tmp_path / "out", exam)
    assert table["correct"].tolist() == [True, True] and set(table["model"]) == {"Qwen/Qwen2.5-0.5B-Instruct"}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            sample(0, GUMS, [["Answer: B"]], "A"),
            "its gold answer is 'rickets', but that of the question .* is 'scurvy'",
        ),
        (sample(0, GUMS, [["B"]], "B", doc={"text": "x"}), "doc is not a multiple-choice question .*: no stem"),
        (sample(0, GUMS, [["B"]], "B", doc="x"), "doc is a str, expected an object"),
        (sample(0, GUMS, [[1.5]], "B"), "resps holds neither texts nor log-likelihoods"),
    ],
    ids=["gold", "doc", "doc-text", "resps"],
)
def test_samples_that_fit_nothing_are_one_line(tmp_path: Path, exam, row: dict[str, Any], line: str) -> None:
    with pytest.raises(MedReflError, match=line):
        read_responses(write(tmp_path / f"samples_t_{DATE}.jsonl", [row]), exam)


def turn(content: Any) -> dict[str, Any]:
    message = {"id": "m", "role": "assistant", "content": content, "model": "mockllm/model", "source": "generate"}
    choices = [{"message": message, "stop_reason": "stop"}]
    return {"model": "mockllm/model", "choices": choices, "completion": content if isinstance(content, str) else ""}


def inspected(number: str, stem: str, output: dict[str, Any], epoch: int = 1, **changed: Any) -> dict[str, Any]:
    """A sample of an Inspect log."""
    return {
        **{"id": number, "epoch": epoch, "input": stem, "choices": SHOWN[stem], "target": "B", "output": output},
        **{"messages": [], "scores": {"choice": {"value": "C"}}, "attachments": {}, "metadata": {}, "store": {}},
        **changed,
    }


def header() -> dict[str, Any]:
    about = {"eval_id": "e1", "task": "mc", "model": "mockllm/model", "dataset": {"samples": 2}}
    return {"version": 2, "status": "success", "eval": about, "plan": {}, "stats": {}}


SAMPLES = [
    inspected("q0", GUMS, turn("ANSWER: B")),
    inspected(
        "q1", BONE, turn([{"type": "reasoning", "reasoning": "Maybe A?"}, {"type": "text", "text": "ANSWER: B"}])
    ),
    inspected("q0", GUMS, turn("attachment://abc"), 2, attachments={"abc": "It is rickets.\n\nANSWER: A"}),
    inspected("q1", BONE, {"model": "mockllm/model", "choices": [], "completion": ""}, 2, error={"message": "timeout"}),
]


def write_eval(path: Path, samples: list[dict[str, Any]], *, zstandard: bool) -> Path:
    """A .eval file: Inspect compresses by Zstandard (method 93) since 2025, by Deflate before."""
    files = {"header.json": header(), "summaries.json": [], "_journal/start.json": {"version": 2}}
    files |= {f"samples/{s['id']}_epoch_{s['epoch']}.json": s for s in samples}
    if not zstandard:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, json.dumps(content))
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, pa.compress(json.dumps(content).encode(), codec="zstd", asbytes=True))
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # where the headers name the method
        at = data.find(mark)
        while at >= 0:
            struct.pack_into("<H", data, at + place, 93)
            at = data.find(mark, at + 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["json", "deflate", "zstandard"])
def test_inspects_logs(tmp_path: Path, exam, kind: str) -> None:
    if kind == "json":
        path = tmp_path / "log.json"
        path.write_text(json.dumps(header() | {"samples": SAMPLES}))
    else:
        path = write_eval(tmp_path / "log.eval", SAMPLES, zstandard=kind == "zstandard")
    with pytest.warns(UserWarning, match="3 responses read, 1 left out: a sample that ended without a response"):
        table = read_responses(path, exam)
    assert table["answer"].tolist() == ["B", "B", "A"] and table["run"].tolist() == [0, 0, 1]
    assert table["correct"].tolist() == [True, True, False]
    assert table["response"][1] == "<think>Maybe A?</think>\nANSWER: B" and set(table["model"]) == {"mockllm/model"}


def test_one_log_in_both_forms_counts_once_and_a_sample_may_hold_a_whole_prompt(tmp_path: Path, exam) -> None:
    prompt = f"Answer the following question.\n\n{BONE}\n\nA) tibia\nB) femur"
    whole = inspected("1", BONE, turn("ANSWER: B"), input=[{"role": "user", "content": prompt}], target="B")
    del whole["choices"]
    (tmp_path / "logs").mkdir()
    write_eval(tmp_path / "logs/log.eval", [whole], zstandard=True)
    (tmp_path / "logs/log.json").write_text(json.dumps(header() | {"samples": [whole]}))
    table = read_responses(tmp_path / "logs", exam)
    assert table["correct"].tolist() == [True] and table["stem"].tolist() == [BONE]


def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, exam) -> None:
    (tmp_path / "a.eval").write_bytes(b"nonsense")
    with pytest.raises(MedReflError, match="a.eval: not an Inspect log"):
        read_responses(tmp_path / "a.eval", exam)
    with pytest.raises(MedReflError, match="b.eval: no header.json or no samples"):
        read_responses(write_eval(tmp_path / "b.eval", [], zstandard=False), exam)
    with pytest.raises(MedReflError, match="c.eval: no such file"):
        read_responses(tmp_path / "c.eval", exam)
    failed = write_eval(tmp_path / "d.eval", SAMPLES[-1:], zstandard=False)
    with pytest.raises(
        MedReflError, match=r"no responses in it \(1 left out: a sample that ended without a response\)"
    ):
        read_responses(failed, exam)
    mixed = [sample(0, GUMS, [["B"]], "B"), {"question": GUMS, "response": "B"}]
    with pytest.raises(MedReflError, match="holds lm-eval and plain rows, expected one kind of file"):
        read_responses(write(tmp_path / "mixed.jsonl", mixed), exam)


def test_a_question_and_a_response_are_enough_also_inside_a_prompt(tmp_path: Path, exam) -> None:
    shot = f"Question: {GUMS}\nAnswer: scurvy\n\nQuestion: {BONE}\nAnswer:"
    for name in ("question", "prompt"):
        rows = [{name: GUMS, "response": "Answer: C"}, {name: shot, "response": "Answer: B"}]
        table = read_responses(write(tmp_path / "r.jsonl", rows), exam)
        assert table["correct"].tolist() == [True, True] and table["stem"].tolist() == [GUMS, BONE], name


def test_the_clinics_questions_are_known_by_id_and_by_text(tmp_path: Path) -> None:
    asked = clinic.make_exam(3, 0, "test")
    rows = [{"question": q.stem, "response": f"Answer: {q.gold}"} for q in asked]
    for path in (
        write(tmp_path / "text.jsonl", rows),
        write(tmp_path / "id.jsonl", [row | {"id": q.question_id} for row, q in zip(rows, asked, strict=True)]),
    ):
        table = read_responses(path, clinic_questions(path))
        assert table["correct"].all() and table["question_id"].tolist() == [q.question_id for q in asked]
