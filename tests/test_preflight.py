"""Preflight names the questions that are longer than the model's context, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from medrefl_utils.core import RunFiles
from medrefl_utils.runs import STAGES, check_inputs, load_profile, run_profile
from tests import toy
from tests.conftest import ROOT

NOTEBOOKS = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
OPTIONS = {"A": "Aspirin", "B": "Heparin"}


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    stems = {"short": "Which drug lowers fever?", "long": "cough and fever " * 2_000}
    rows = [{"id": name, "question": stem, "options": OPTIONS, "answer_idx": "A"} for name, stem in stems.items()]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def notes(exam: Path, tmp_path: Path, **values: object) -> list[str]:
    path = toy.profile(tmp_path, {"shared": {"run": "x"}, "01_tree_rollout": {"questions": str(exam), **values}})
    parameters = load_profile(path, NOTEBOOKS, root=ROOT).parameters
    model = {"model": str(ROOT / "medrefl_utils" / "models" / "tiny_student")}
    return check_inputs({"01_tree_rollout": parameters["01_tree_rollout"] | model}, RunFiles(tmp_path / "run"), ())


def test_a_question_longer_than_the_context_is_named(exam: Path, tmp_path: Path) -> None:
    [note] = notes(exam, tmp_path)
    assert note.startswith("01_tree_rollout will leave out 1 of 2 questions that are too long; question 'long': ")
    assert note.endswith(
        "tokens of the prompt and 1,152 of the response, expected at most the model's context of 4,096"
    )


def test_what_fits_gives_no_note_and_a_server_is_not_judged(exam: Path, tmp_path: Path) -> None:
    assert notes(exam, tmp_path, endpoint="http://localhost:1/v1", endpoint_model="m") == []
    exam.write_text(exam.read_text().splitlines()[0] + "\n")
    assert notes(exam, tmp_path) == []


def test_the_run_prints_the_note(tmp_path: Path) -> None:
    toy.checkout(tmp_path)
    console = Console(record=True, width=120)
    profile = tmp_path / "params" / "toy.yaml"
    run_profile(profile, root=tmp_path, stages=toy.STAGES[:1], console=console, preflight=lambda *_: ["two are long"])
    assert "note: two are long" in console.export_text()
