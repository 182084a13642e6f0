"""Preflight names the questions that are longer than the model's context, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from medrefl_utils.core import MedReflError, RunFiles
from medrefl_utils.runs import STAGES, check_inputs, load_profile, notebook_parameters, run_profile
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


SERVER = {"endpoint": "http://localhost:1/v1", "endpoint_model": "m"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"endpoint": "http://localhost:1/v1"}, "endpoint is http://localhost:1/v1, but endpoint_model is empty"),
        ({"endpoint_adapter": "a"}, "endpoint_adapter is a, but endpoint is empty: give the server of the base"),
        ({"adapter_endpoint": "http://x/v1"}, "adapter_endpoint is http://x/v1, but endpoint is empty"),
        (SERVER | {"adapter_endpoint": "http://localhost:1/v1/"}, "adapter_endpoint is the endpoint itself"),
        (
            SERVER | {"endpoint_adapter": "m"},
            "endpoint_adapter and endpoint_model are both m: base and adapter are the",
        ),
        ({"judge_endpoint": "http://x/v1"}, "judge_endpoint is http://x/v1, but judge is off: give the name of its"),
    ],
)
def test_a_server_that_cannot_serve_the_evaluation_is_refused(values, message, tmp_path: Path) -> None:
    name = "05_benchmark_evaluation"
    path = toy.profile(tmp_path, {"shared": {"run": "x"}, name: values})
    parameters = load_profile(path, NOTEBOOKS, root=ROOT).parameters[name]
    with pytest.raises(MedReflError) as raised:
        check_inputs({name: parameters}, RunFiles(tmp_path / "run"), ())
    assert str(raised.value).startswith(f"{name}: {message}")


GROUP = """quantization engine max_rows workers endpoint endpoint_model concurrency
requests_per_minute tokens_per_minute max_wait max_calls max_tokens max_cost input_price output_price""".split()


def test_what_runs_the_model_has_the_same_parameters_in_every_stage_that_generates() -> None:
    """One group: names, types, defaults and words."""
    stages = ("01_tree_rollout", "03_pair_construction", "05_benchmark_evaluation", "07_ablation")
    of_stage = {stage: notebook_parameters(NOTEBOOKS[stage]) for stage in stages}
    lines = {stage: [line for line in tagged(stage) if line.split(":")[0] in GROUP] for stage in stages}
    assert all(set(GROUP) <= of_stage[stage].keys() for stage in stages)
    assert len({tuple(some) for some in lines.values()}) == 1 and len(lines[stages[0]]) == len(GROUP)


def tagged(stage: str) -> list[str]:
    cells = json.loads(NOTEBOOKS[stage].read_text())["cells"]
    [cell] = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(cell["source"]).splitlines()


def test_the_run_prints_the_note(tmp_path: Path) -> None:
    toy.checkout(tmp_path)
    console = Console(record=True, width=120)
    profile = tmp_path / "params" / "toy.yaml"
    run_profile(profile, root=tmp_path, stages=toy.STAGES[:1], console=console, preflight=lambda *_: ["two are long"])
    assert "note: two are long" in console.export_text()
