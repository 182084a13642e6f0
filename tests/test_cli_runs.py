"""The commands about runs and parameters: list, show, compare, clean, params, benchmarks, run --limit."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from typer.testing import CliRunner, Result

from medrefl_utils.core import (
    RESPONSES,
    SCORES,
    TRAINING,
    MedReflError,
    Question,
    RunFiles,
    write_manifest,
    write_table,
)
from medrefl_utils.evaluation import changed_answers, compare_with_first, response_row, score_responses
from medrefl_utils.exam import benchmark_registry, extract_answer
from medrefl_utils.runs import STAGES, differing_parameters, list_runs, load_profile, notebook_parameters
from medrefl_utils.runs.cli import app
from medrefl_utils.runs.profiles import limit_questions
from medrefl_utils.runs.stages import FOLLOWS
from medrefl_utils.views import runs_side_by_side
from tests import toy
from tests.conftest import ROOT

NOTEBOOKS = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
OPTIONS = {"A": "aspirin", "B": "rest", "C": "surgery"}
QUESTIONS = [Question(f"q{i}", f"What helps patient {i}?", OPTIONS, "A", "exam") for i in range(4)]
SAID = {"one": {"base": "AABB", "medrefl": "AAAB"}, "two": {"base": "AABB", "medrefl": "ABAA"}}


def make_run(folder: Path, said: dict[str, str], beta: float, *, shuffled: bool = False) -> RunFiles:
    """A finished run: what each model answered to the four questions, its scores, a training log and a manifest."""
    files, rows = RunFiles(folder), []
    for model, letters in said.items():
        for question, letter in zip(QUESTIONS, letters, strict=True):
            if shuffled:  # the same options in another order: B is right
                question = replace(question, options={"A": "rest", "B": "aspirin", "C": "surgery"}, gold="B")
                letter = {"A": "B", "B": "A"}[letter]
            text = f"So.\nAnswer: {letter}"
            empty = dict.fromkeys(RESPONSES.names)
            rows.append(
                empty
                | response_row(question, extract_answer(text, question.options))
                | {"model": model, "protocol": "greedy", "run": 0, "response": text, "n_tokens": 5, "seconds": 0.5}
            )
    table = pd.DataFrame(rows)
    for model in said:
        write_table(files.responses / f"{model}_greedy.parquet", table[table["model"] == model], RESPONSES)
    write_table(files.scores, score_responses(table), SCORES)
    log = pd.DataFrame({name: [0.69, 0.5, 0.4] for name in TRAINING.names}).assign(step=[1, 2, 3])
    write_table(files.training, log, TRAINING)
    done = {"key": "k", "seconds": 90.0, "tokens": 1234, "outputs": {}, "figures": {}}
    stages = {name: done | {"parameters": {"run": "x"}} for name in ("01_tree_rollout", "05_benchmark_evaluation")}
    stages["04_dpo_lora_4bit"] = done | {"parameters": {"beta": beta, "run": f"runs/{folder.name}"}}
    stages["06_report"] = {"running": "k"}
    manifest = {
        "date": "2026-11-28",
        "machine": {"cores": 2, "memory_gib": 23.5},
        "profile": "params/p.yaml",
        "overrides": [f"04.beta={beta}"],
        "stages": stages,
    }
    write_manifest(files, manifest)
    return files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's folder with two runs and one whose manifest is broken."""
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    make_run(tmp_path / "runs/one", SAID["one"], 0.1)
    make_run(tmp_path / "runs/two", SAID["two"], 0.3, shuffled=True)
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/manifest.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def medrefl(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_list_shows_each_run_with_its_stages_and_its_result(here: Path) -> None:
    done = medrefl("list")
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "one 2026-11-28 01 04-05 06? 50.0 -> 75.0% (+25.0 [" in text and "exam, greedy, n 4" in text
    assert "broken" in text and "is not JSON" in text, "one that cannot be read does not hide the others"
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = {run["name"]: run for run in json.loads(medrefl("list", "--json").stdout)}
    assert found["one"]["stages"][0] == {"stage": "01_tree_rollout", "state": "done", "seconds": 90.0, "tokens": 1234}
    assert found["one"]["stages"][-1]["state"] == "interrupted"
    assert [run.fault != "" for run in sorted(list_runs(here / "runs"), key=lambda run: run.name)] == [
        True,
        False,
        False,
    ]


def test_without_a_run_list_says_what_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.chdir(tmp_path)
    done = medrefl("list")
    assert done.exit_code == 2 and done.stderr.endswith(
        "no run there, expected folders with a manifest.json; medrefl run makes one\n"
    )


@pytest.mark.parametrize("name", ["one", "runs/one"])
def test_show_tells_stages_changed_parameters_and_results(here: Path, name: str) -> None:
    done = medrefl("show", "two" if name == "one" else name)
    assert done.exit_code == 0, done.output
    assert "profile: params/p.yaml 04.beta=" in done.stdout and "1.5 min" in done.stdout
    assert "machine: 2 cores, 23.5 GiB of memory\n" in done.stdout
    changed = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("beta")]
    assert changed == ([] if name == "one" else [["beta", "0.1", "0.3", "04"]]), "0.3 is the notebook's default"
    assert "Accuracy on exam" in done.stdout and "75.0" in done.stdout
    assert json.loads(medrefl("show", name, "--json").stdout)["manifest"]["profile"] == "params/p.yaml"


def test_an_unknown_run_is_one_line_with_the_nearest_name(here: Path) -> None:
    done = medrefl("show", "oen")
    assert done.exit_code == 2
    assert done.stderr == "error: oen: no such run (did you mean 'one'?); medrefl list shows all runs\n"


def test_compare_prints_a_table_json_or_csv(here: Path) -> None:
    done = medrefl("compare", "one", "runs/two")
    assert done.exit_code == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert "A: one" in done.stdout and "B: two" in done.stdout and "…" not in done.stdout
    rows = json.loads(medrefl("compare", "one", "two", "--json").stdout)
    by_model = {row["model"]: row for row in rows}
    assert by_model["medrefl"]["accuracy_first"] == 0.75 and by_model["medrefl"]["gain"] == 0.0
    assert by_model["base"]["n"] == 4 and by_model["base"]["accuracy_judged"] is None, "a NaN is null"
    table = list(csv.DictReader(io.StringIO(medrefl("compare", "one", "two", "--csv").stdout)))
    assert {row["model"]: float(row["accuracy"]) for row in table} == {"base": 0.5, "medrefl": 0.75}
    both = medrefl("compare", "one", "two", "--csv", "--json")
    assert both.exit_code == 2 and "exclude each other" in both.stderr


def test_clean_lists_trees_of_other_settings_and_removes_them_only_when_told(here: Path) -> None:
    assert medrefl("clean").stdout == "no trees of other settings\n"
    shards = RunFiles(here / "runs/one").shards
    sizes = {"used.parquet": 500_000, "superseded/a.parquet": 1_000_000, "held_out/superseded/b.parquet": 250_000,
             "held_out/c.parquet": 1, "d.damaged": 50_000}  # fmt: skip
    for name, size in sizes.items():
        (shards / name).parent.mkdir(parents=True, exist_ok=True)
        (shards / name).write_bytes(b"x" * size)
    assert medrefl("clean").stdout == f"{here / 'runs/one'}: 3 shards, 1.3 MB\n" == medrefl("clean", "one").stdout
    assert sum(path.is_file() for path in shards.rglob("*")) == len(sizes)
    assert medrefl("clean", "two", "--remove").stdout == "no trees of other settings\n"
    assert medrefl("clean", "one", "--remove").stdout == f"{here / 'runs/one'}: 3 shards, 1.3 MB, removed\n"
    left = {path.relative_to(shards).as_posix() for path in shards.rglob("*") if path.is_file()}
    assert left == {"used.parquet", "held_out/c.parquet"}


def test_params_are_the_notebooks_own(here: Path) -> None:
    done = medrefl("params", "dpo")
    assert done.exit_code == 0 and "04_dpo_lora_4bit: parameters" in done.stdout
    found = json.loads(medrefl("params", "--json").stdout)
    assert list(found) == list(NOTEBOOKS)
    for stage, own in found.items():
        assert own.keys() == notebook_parameters(NOTEBOOKS[stage]).keys()
        assert all(parameter["meaning"] for parameter in own.values()), stage
    assert found["04_dpo_lora_4bit"]["beta"] == {
        **{"name": "beta", "annotation": "float", "default": 0.3},
        "meaning": "KL penalty strength of DPO (published: 0.1; the tiny student needs more)",
    }
    unknown = medrefl("params", "08_nothing")
    assert unknown.exit_code == 2 and "'08_nothing' is not a stage; expected a number" in unknown.stderr


def test_benchmarks_are_all_of_the_registry_and_those_on_this_machine_are_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "data").mkdir()
    (here / "data/medqa_usmle_4op_test.jsonl").touch()
    monkeypatch.setenv("MEDREFL_BENCHMARKS", str(here / "data"))
    found = json.loads(medrefl("benchmarks", "--json").stdout)
    assert found.keys() == benchmark_registry().benchmarks.keys()
    assert (
        found["medqa_4op"]["file"] == str(here / "data/medqa_usmle_4op_test.jsonl") and not found["medqa_5op"]["file"]
    )
    text = medrefl("benchmarks").stdout
    assert all(name in text for name in ("clinic", *found))


def test_a_limit_holds_in_every_notebook_and_gives_the_run_another_name(tmp_path: Path) -> None:
    sections = {"shared": {"run": "big"}, "01_tree_rollout": {"n_questions": 500}}
    sections["05_benchmark_evaluation"] = {"n_questions": 0}
    profile = load_profile(toy.profile(tmp_path, sections), NOTEBOOKS, root=ROOT, follows=FOLLOWS)
    small = limit_questions(profile, 30)
    numbers = {stage: values["n_questions"] for stage, values in small.parameters.items() if "n_questions" in values}
    assert numbers["01_tree_rollout"] == 30 and numbers["05_benchmark_evaluation"] == 30, "0 means all"
    assert small.parameters["03_pair_construction"]["n_evaluation_questions"] == 30
    assert small.run == "big_limit30"
    assert {values["run"] for values in small.parameters.values() if "run" in values} == {"runs/big_limit30"}
    assert profile.parameters["01_tree_rollout"]["n_questions"] == 500
    _, said = toy.run(toy.checkout(tmp_path / "toy"), limit=3, dry_run=True)
    assert "runs/t_limit3: stages that would run" in said


# --- several runs ----------------------------------------------------------------------------------------------------


def test_runs_are_compared_with_the_first_and_answers_by_their_texts(here: Path) -> None:
    make_run(here / "runs/three", {"base": "CCCC", "medrefl": "AAAA"}, 0.1)
    runs = [here / "runs" / name for name in ("one", "two", "three")]
    compared = compare_with_first(runs)
    medrefl_rows = compared[compared["model"] == "medrefl"].set_index("run")
    assert medrefl_rows["gain"].to_dict() == {"two": 0.0, "three": 0.25}
    shown = runs_side_by_side(compared, "one")
    assert shown.loc[("exam", "greedy", "base", "three"), "run %"] == "0.0"
    changed = changed_answers(runs[0], runs[1]).query("model == 'medrefl'")
    assert changed["change"].tolist() == ["right to right", "right to wrong", "right to right", "wrong to right"]
    assert changed["answer_first"].tolist() == ["aspirin", "aspirin", "aspirin", "rest"]
    assert changed["answer_second"].tolist() == ["aspirin", "rest", "aspirin", "aspirin"], "whatever the letters were"
    with pytest.raises(MedReflError, match="found the runs one, expected two or more"):
        compare_with_first(runs[:1])


def test_parameters_that_differ_are_listed() -> None:
    runs = {"a": {"01": {"x": 1, "y": [2]}}, "b": {"01": {"x": 1, "y": [3]}, "04": {"z": 1.0}}}
    manifests = {
        name: {"stages": {stage: {"parameters": own | {"run": name}} for stage, own in stages.items()}}
        for name, stages in runs.items()
    }
    found = differing_parameters(manifests)
    assert found.index.tolist() == [("01", "y"), ("04", "z")]
    assert found["a"].tolist() == ["[2]", ""] and found["b"].tolist() == ["[3]", "1.0"]
    assert differing_parameters({"a": {}, "b": {}}).empty


def test_the_notebook_that_compares_runs(here: Path, tmp_path: Path) -> None:
    done = papermill.execute_notebook(
        ROOT / "notebooks/compare_runs.ipynb", tmp_path / "out.ipynb", {"folders": ["runs/one", "runs/two"]}, cwd=here,
        kernel_name="python3", progress_bar=False,
    )  # fmt: skip
    outputs = {cell["id"]: cell.get("outputs", []) for cell in nbformat.convert(done, 4).cells}
    tables = {
        name: "".join(out.get("data", {}).get("text/plain", "") for out in found) for name, found in outputs.items()
    }
    assert "beta" in tables["compare-04"] and "0.3" in tables["compare-04"]
    assert any("image/png" in out.get("data", {}) for out in outputs["compare-06"])
    assert "two" in tables["compare-08"] and "75.0" in tables["compare-08"]
    assert "right to wrong" in tables["compare-10"]
    assert "What helps patient 1?" in tables["compare-12"]
    printed = "".join(out.get("text", "") for out in outputs["compare-14"])  # a slow kernel prints in several pieces
    assert "gold: aspirin" in printed and "--- two: rest" in printed
