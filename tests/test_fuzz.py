"""Whatever a file or a model's reply holds, a parser reads it or raises the project's own error, of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medrefl_utils.core import Answer, Continuation, MedReflError
from medrefl_utils.evaluation import read_responses
from medrefl_utils.exam import (
    STEP_KINDS,
    Rows,
    clinic,
    extract_answer,
    lint_questions,
    load_questions,
    prompts,
    read_questions,
    split_into_steps,
    states_answer,
)
from medrefl_utils.pairs import CorrectionText, check_reflection, read_scores
from medrefl_utils.runs import STAGES, load_profile, notebook_parameters
from medrefl_utils.trees.model_locator import _step_of
from medrefl_utils.views import rates_table

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
CASES = clinic.make_cases(3, seed=4)
QUESTIONS = [case.question for case in CASES]
EXAM = Rows("exam", list(enumerate(QUESTIONS, 1)), [])

# A file is written anew for each example, in one folder.
few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
many = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from("ABCDE") | st.just("\ud800")
VALUE = st.recursive(SCALAR, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4), max_leaves=8)


def told(parse: Callable[[], Any]) -> Any:
    """What it returns, or None where it raises our error, which names something."""
    try:
        return parse()
    except MedReflError as error:
        assert len(str(error)) > 10
        return None


# --- parameters ------------------------------------------------------------------------------------------------------

_NAMES = sorted({name for path in NOTEBOOKS.values() for name in notebook_parameters(path)} | {"run", "sed"})
_SECTIONS = ["shared", "stages", *NOTEBOOKS]
PROFILES = st.dictionaries(
    st.sampled_from(_SECTIONS) | TEXT,
    st.dictionaries(st.sampled_from(_NAMES) | TEXT, VALUE, max_size=3) | VALUE,
    max_size=3,
)
YAML = st.text("ab:-[]{}&*!|>%@`'\"#,? \n\t\\01.eE~=<", max_size=60)


@few
@given(st.binary(max_size=200) | YAML.map(str.encode) | YAML.map(lambda text: f"shared:\n  seed: {text}".encode()))
@example(b"shared:\n  seed: !!int ''")
@example(b"shared:\n  seed: 0x")
@example(b"shared:\n  seed: 0b_")
@example(b"shared:\n  seed: 1:99:9_")
@example(b"shared:\n  <<: *x")
@example(b"shared:\n  <<: [1]")
@example(b"? [a]\n: b")
@example(b"shared: {=: 1}")
@example(b"--- a\n--- b\n")
def test_any_profile(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "p.yaml").write_bytes(data)
    told(lambda: load_profile(tmp_path / "p.yaml", NOTEBOOKS, root=ROOT))


@few
@given(PROFILES)
def test_any_sections_and_keys(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content, allow_unicode=False))
    loaded = told(lambda: load_profile(tmp_path / "p.yaml", NOTEBOOKS, root=ROOT))
    if loaded:
        json.dumps({name: dict(values) for name, values in loaded.parameters.items()}).encode()


@few
@given(YAML | TEXT, st.sampled_from(_SECTIONS) | TEXT, st.sampled_from(_NAMES) | TEXT)
def test_any_override(tmp_path: Path, text: str, section: str, key: str) -> None:
    (tmp_path / "p.yaml").write_text("shared:\n  seed: 1\n")
    for override in (text, f"{section}.{key}={text}"):
        told(lambda: load_profile(tmp_path / "p.yaml", NOTEBOOKS, root=ROOT, overrides=[override]))  # noqa: B023


# --- questions -------------------------------------------------------------------------------------------------------

FIELDS = ["question", "stem", "options", "choices", "opa", "opb", "A", "B", "gold", "answer_idx", "cop", "answer", "id"]
FIELDS += ["context", "CONTEXTS", "split", "source", "QUESTION", "final_decision"]
GOOD = {"question": "Which?", "options": {"A": "one", "B": "two"}, "answer_idx": "A"}
OPTIONS = st.dictionaries(st.sampled_from("ABCDE") | TEXT, TEXT | VALUE, max_size=5) | st.lists(VALUE, max_size=5)
ROWS = st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=6) | st.builds(
    lambda options, gold, stem: GOOD | {"options": options, "answer_idx": gold, "question": stem},
    OPTIONS,
    st.sampled_from("ABCDE") | VALUE,
    TEXT | st.just("Which?"),
)


@few
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@given(data=st.binary(max_size=300) | TEXT.map(str.encode))
@example(data=b"PAR1\x00\x00\x00\x00PAR1")
@example(data=b'a,b\n"\n')
@example(data=b"\x00,\x00\n\x00")
@example(data=b"NaN")
@example(data=b"1e999999")
@example(data=b'{"question": "Q", "options": [1, 2], "answer": 1e400}')
@example(data=b"9" * 5000)
def test_any_bytes_as_questions(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"exam.{suffix}"
    path.write_bytes(data)
    told(lambda: load_questions(str(path)))


@few
@given(st.lists(ROWS | VALUE, max_size=4))
def test_any_rows_as_questions(tmp_path: Path, rows: list[Any]) -> None:
    for name, text in (("exam.jsonl", "\n".join(map(json.dumps, rows))), ("exam.json", json.dumps(rows))):
        (tmp_path / name).write_text(text)
        read = told(lambda: read_questions(str(tmp_path / name)))  # noqa: B023
        if read:
            assert len(read.questions) + len(read.faults) == len(rows)
            lint_questions(read.questions, read.faults)
            for _, question in read.questions:
                assert len(question.options) >= 2 and question.gold in question.options
                prompts.question_block(question).encode()


# --- what models write -----------------------------------------------------------------------------------------------

PHRASES = st.sampled_from(
    [
        "Answer: B",
        "the answer is (C)",
        "\\boxed{A}",
        '{"reason": "x", "answer": "D"}',
        "A or B",
        "not C",
        "**E**",
        "```json",
    ]
    + [
        "</think>",
        "## Final Response",
        "Correctness: 4/5",
        "Logic: 2",
        "First wrong step: 3",
        "Step 2:",
        "[1]",
        "\n",
        "Wait,",
    ]
    + [text for question in QUESTIONS for text in question.options.values()]
)
WRITTEN = st.lists(PHRASES | TEXT, max_size=8).flatmap(
    lambda parts: st.sampled_from(["", " ", "\n"]).map(lambda s: s.join(parts))
)


@many
@given(WRITTEN, st.sampled_from(QUESTIONS))
@example("(" * 5000, QUESTIONS[0])
@example("answer is " * 2000, QUESTIONS[0])
@example('{"answer": ' * 2000, QUESTIONS[0])
@example("\\boxed{" * 2000, QUESTIONS[0])
@example("A, " * 3000, QUESTIONS[0])
def test_any_response_has_an_answer_or_none(text: str, question: Any) -> None:
    found = extract_answer(text, question.options)
    assert isinstance(found, Answer) and (found.letter is None or found.letter in question.options)
    assert "\n" not in "".join(prompts.split_steps(text))
    states_answer(text, question.options)
    for kind in STEP_KINDS:
        assert "".join(split_into_steps(text, kind)) == text


@many
@given(WRITTEN, st.sampled_from(["end", "length", "boundary"]), st.sampled_from(CASES))
@example("Correctness: " * 2000, "end", CASES[0])
@example("I was given " * 2000, "end", CASES[0])
@example("option " * 3000, "end", CASES[0])
@example("9" * 5000, "end", CASES[0])
def test_any_reflection_judgement_and_located_step(text: str, stop: str, case: Any) -> None:
    reply = Continuation(text, (), None, stop)
    chain = tuple(clinic.solve(case))
    fault = check_reflection(CorrectionText(case.question, chain[:1], chain[1:2], chain[2:]), reply)
    assert fault in ("", "empty", "cut", "leak", "letter") and (text.strip() or fault == "empty")
    scores, unreadable = read_scores(reply)
    assert (scores is None) == bool(unreadable) and (scores is None or all(1 <= score <= 5 for score in scores))
    step, unreadable = _step_of(len(chain))(reply)
    assert (step is None) == bool(unreadable) and (step is None or 1 <= step <= len(chain))


# --- written responses -----------------------------------------------------------------------------------------------

RESPONSE = st.dictionaries(
    st.sampled_from(["response", "id", "question_id", "model", "protocol", "run", "options", "stem", "gold", "label"])
    | st.sampled_from(["content", "n_tokens", "stop", "temperature"]),
    VALUE | WRITTEN | st.sampled_from([question.question_id for question in QUESTIONS]),
    max_size=6,
)
TIED = st.builds(
    lambda question, response, name, value: {"question_id": question.question_id, "response": response, name: value},
    st.sampled_from(QUESTIONS),
    WRITTEN,
    st.sampled_from(["model", "protocol", "run", "options", "stop", "n_tokens", "seconds", "response", "gold"]),
    VALUE,
)


@few
@given(st.lists(RESPONSE, max_size=4) | st.lists(TIED, min_size=1, max_size=4))
def test_any_rows_as_responses(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = told(lambda: read_responses(tmp_path / "said.jsonl", EXAM))
    if table is not None:
        assert len(table) == len(rows)
        told(lambda: rates_table(table))


@few
@given(st.binary(max_size=300), st.sampled_from(["jsonl", "json", "csv", "parquet"]))
def test_any_bytes_as_responses(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"said.{suffix}"
    path.write_bytes(data)
    with suppress(MedReflError):
        read_responses(path, EXAM)
