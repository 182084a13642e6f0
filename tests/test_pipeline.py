"""The chain as a user runs it: the real notebooks, the real student, the command line."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from medrefl_utils.core import (
    CONTINUATIONS,
    OVERLAPS,
    PAIRS,
    QUESTIONS,
    REFLECTIONS,
    RESPONSES,
    SCORES,
    SELF_CORRECTION,
    STEPS,
    TRAINING,
    VALUES,
    RunFiles,
    content_hash,
    read_table,
)
from medrefl_utils.pairs import PAIR_KINDS
from medrefl_utils.runs import DEFAULT_STAGES

pytestmark = pytest.mark.timeout(900)  # the small run takes minutes where other work has the cores


def medrefl(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "medrefl_utils", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)


def check_artifacts(files: RunFiles, by_hand: str = "") -> None:
    """Every artifact is whole and as the manifest says; the notebook run ``by_hand`` has no entry of the chain's."""
    for path, schema in (
        (files.questions, QUESTIONS),
        (files.steps, STEPS),
        (files.values, VALUES),
        (files.pairs, PAIRS),
        (files.training, TRAINING),
        (files.responses, RESPONSES),
        (files.scores, SCORES),
        (files.held_out_trees, STEPS),
        (files.continuations, CONTINUATIONS),
        (files.self_correction, SELF_CORRECTION),
    ):
        assert len(read_table(path, schema)) > 0, path
    assert read_table(files.overlaps, OVERLAPS).empty
    assert "text" in read_table(files.reflections, REFLECTIONS)  # what a student that guesses wrote may all be refused
    assert {"README.md", "train.parquet", "dataset_info.json"} <= {f.name for f in files.exports.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        f.name for f in files.adapter.iterdir()
    }
    assert files.report.read_text().lstrip().lower().startswith("<!doctype html>")
    manifest = json.loads(files.manifest.read_text())
    assert tuple(manifest["stages"]) == DEFAULT_STAGES and manifest["versions"]["torch"] and manifest["git"]
    for stage, entry in manifest["stages"].items():
        for name, digest in entry["outputs"].items():
            assert content_hash(files.root / name) == digest
        if stage == by_hand:
            continue
        assert entry["key"] and entry["seconds"] > 0 and entry["outputs"]
        book = nbformat.read(files.notebooks / f"{stage}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
    assert manifest["stages"]["01_tree_rollout"]["tokens"] > 0


@pytest.fixture(scope="module")
def small_run(root):
    """A small run of the smoke profile; its folder is removed at the end."""
    files = RunFiles(root / "runs" / "test_smoke")
    shutil.rmtree(files.root, ignore_errors=True)
    command = [
        *("run", "params/smoke.yaml", "--set", "shared.run=test_smoke"),
        *("--set", "01_tree_rollout.n_questions=24", "--set", "03_pair_construction.max_reflection_pairs=0"),
        *("--set", "05.n_questions=40", "--set", "05.self_correction_questions=8"),
    ]
    yield files, command, medrefl(root, *command)
    shutil.rmtree(files.root)


def test_the_smoke_chain_makes_every_artifact_and_ends_with_the_table(small_run):
    files, _, done = small_run
    assert done.returncode == 0, done.stdout + done.stderr
    check_artifacts(files)
    table = done.stdout[done.stdout.index("report: runs/test_smoke/report.html") :]
    assert "sampled" in table and "greedy" in table and "McNemar p" in table
    assert "40" in table


def test_what_the_tables_say_fits_together(small_run):
    files, _, _ = small_run
    steps, values = read_table(files.steps, STEPS), read_table(files.values, VALUES)
    pairs, scores = read_table(files.pairs, PAIRS), read_table(files.scores, SCORES)
    valued = steps.merge(values, on=["question_id", "node_id"], validate="one_to_one").set_index(
        ["question_id", "node_id"]
    )
    assert len(valued) == len(steps)
    gold = read_table(files.questions, QUESTIONS).set_index("question_id").gold
    for pair in pairs.itertuples():
        path = valued.loc[[(pair.question_id, node) for node in pair.chosen_nodes]]
        assert path.value.mean() == pytest.approx(pair.chosen_value)
        if pair.kind in ("reasoning", "random_cot"):
            assert "".join(path.text).rstrip() == pair.chosen[0]["content"]
        else:
            left = valued.loc[[(pair.question_id, node) for node in pair.left_nodes]]
            taken = path.text.iloc[list(pair.chosen_nodes).index(pair.chosen_taken) :]
            passage = " ".join(pair.chosen_reflection.split())
            assert f"{''.join(left.text).rstrip()}\n{passage}\n{''.join(taken).rstrip()}" == pair.chosen[0]["content"]
            assert (pair.kind == "reflection_post") == (left.stop.iloc[-1] == "answer")
        assert path.answer.iloc[-1] == gold[pair.question_id]
        assert valued.loc[(pair.question_id, pair.rejected_nodes[-1])].answer != gold[pair.question_id]
    # Of so few, all reflections of the student may be refused.
    assert {"reasoning", "random_cot"} <= set(pairs.kind) <= set(PAIR_KINDS)
    assert (pairs.kind == "random_cot").sum() <= (pairs.kind == "reasoning").sum()
    responses = read_table(files.responses, RESPONSES)
    for row in scores.itertuples():
        mine = responses[(responses.model == row.model) & (responses.protocol == row.protocol)]
        assert len(mine) == row.n * row.runs == 40
        assert mine.correct.mean() == pytest.approx(row.accuracy)
    assert pd.isna(scores.loc[scores.model == "base", "gain"]).all()


def test_fake_sides_and_restraint_with_reflections_by_the_truth(small_run, root):
    files, _, _ = small_run
    other = RunFiles(root / "runs" / "test_truth")
    shutil.rmtree(other.root, ignore_errors=True)
    try:
        shutil.copytree(files.root, other.root)
        kinds = ["reflection_mid", "reflection_post", "reflection_keep"]
        parameters = {"run": "runs/test_truth", "kinds": kinds, "max_reflection_pairs": 0}
        parameters |= {"invalid_side": "fake", "reflection_writer": "clinic"}
        notebook = root / "notebooks" / "03_pair_construction.ipynb"
        papermill.execute_notebook(notebook, None, parameters, cwd=root, progress_bar=False, kernel_name="python3")
        pairs, written = read_table(other.pairs, PAIRS), read_table(other.reflections, REFLECTIONS)
        assert set(pairs.kind) == set(kinds) and written["text"].notna().mean() > 0.9
        assert "the clinic's truth" in (other.exports / "README.md").read_text()
        for pair in pairs.itertuples():
            denies, affirms = pair.chosen_reflection, pair.rejected_reflection
            if pair.kind == "reflection_keep":
                denies, affirms = affirms, denies
            else:  # the rejected side goes on with the path that both sides begin with
                assert list(pair.rejected_nodes)[: len(pair.left_nodes)] == list(pair.left_nodes)
            assert "not so that" in denies or "only a guess" in denies
            assert "It holds" in affirms
    finally:
        shutil.rmtree(other.root, ignore_errors=True)


def processor_seconds() -> float:
    """Of the commands so far. Unlike the time on the clock, it does not grow where other work has the cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_second_time_executes_nothing_and_is_quick(small_run, root):
    _, command, _ = small_run
    before = processor_seconds()
    again = medrefl(root, *command)
    assert again.returncode == 0 and 0 < processor_seconds() - before < 20
    assert again.stdout.count("unchanged, skipped") == len(DEFAULT_STAGES)
    assert "McNemar p" in again.stdout


def test_another_learning_rate_starts_at_training(small_run, root):
    _, command, _ = small_run
    plan = medrefl(root, *command, "--dry-run", "--set", "04_dpo_lora_4bit.learning_rate=0.0005")
    assert plan.returncode == 0
    decided = {line.split()[0]: line.split()[1] for line in plan.stdout.splitlines() if line.strip()[:2].isdigit()}
    assert decided == dict(zip(DEFAULT_STAGES, ["skip"] * 3 + ["run"] * 3, strict=True))


def test_a_missing_model_is_one_line_within_five_seconds(root):
    before = processor_seconds()
    done = medrefl(root, "run", "params/smoke.yaml", "--set", "shared.run=test_none", "--set", "shared.model=./nowhere")
    assert done.returncode == 2 and 0 < processor_seconds() - before < 5
    assert "nowhere" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (root / "runs" / "test_none").exists()


def test_a_notebook_opened_alone_makes_what_it_needs(root, tmp_path):
    """The last notebook in an empty folder: everything above it runs first, with the defaults of its notebook."""
    shutil.copytree(root / "notebooks", tmp_path / "notebooks")
    (tmp_path / "medrefl_utils").symlink_to(root / "medrefl_utils")
    for name, old, new in (("01_tree_rollout", "n_questions: int = 600", "n_questions: int = 24"),
                           ("03_pair_construction", "max_reflection_pairs: int = 16", "max_reflection_pairs: int = 8"),
                           ("05_benchmark_evaluation", "n_questions: int = 200", "n_questions: int = 24"),
                           ("05_benchmark_evaluation", "questions: int = 16  #", "questions: int = 4  #")):  # fmt: skip
        notebook = tmp_path / "notebooks" / f"{name}.ipynb"
        text = notebook.read_text()
        assert text.count(old) == 1
        notebook.write_text(text.replace(old, new))
    executed = papermill.execute_notebook(
        tmp_path / "notebooks" / "06_report.ipynb", None, cwd=tmp_path, progress_bar=False, kernel_name="python3"
    )
    said = "".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert "runs/demo has no questions.parquet yet: running 01_tree_rollout, 02_step_valuation" in said
    assert "warning: " not in said  # all of it was made just now
    check_artifacts(RunFiles(tmp_path / "runs" / "demo"), by_hand="06_report")
