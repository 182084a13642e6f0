"""A real model with real questions through every stage: SmolLM2-135M-Instruct on MedQA.

Skipped without the model (`medrefl model smollm2` makes it) or without the benchmark's file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from medrefl_utils.core import PAIRS, RESPONSES, STEPS, RunFiles, read_table
from medrefl_utils.exam import extract_answer, read_questions
from medrefl_utils.exam.steps import has_content
from medrefl_utils.models.smollm2 import DEFAULT_FOLDER
from medrefl_utils.runs import DEFAULT_STAGES

SMALLER = {
    "01_tree_rollout.n_questions": 4,
    "01_tree_rollout.branching": "[3, 2]",
    "01_tree_rollout.max_path_tokens": 128,
    "03_pair_construction.max_per_kind": 2,
    "03_pair_construction.max_reflection_pairs": 1,
    "05_benchmark_evaluation.offset": 5,
    "05_benchmark_evaluation.n_questions": 2,
    "05_benchmark_evaluation.max_new_tokens": 48,
    "05_benchmark_evaluation.self_correction_questions": 1,
}


@pytest.fixture(scope="module")
def run(root: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    model = Path(os.environ.get("MEDREFL_SMOLLM2", root / DEFAULT_FOLDER))
    if not (model / "config.json").is_file():
        pytest.skip("no SmolLM2 (medrefl model smollm2)")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("notebooks", "medrefl_utils"):
        (checkout / name).symlink_to(root / name)
    (checkout / "params").mkdir()
    profile = checkout / "params" / "smollm2_cpu.yaml"
    profile.write_text((root / "params" / "smollm2_cpu.yaml").read_text())
    exam = shared_data / "benchmarks" / "medqa_usmle_5op_test.jsonl"
    values = {"shared.questions": exam, "shared.model": model} | SMALLER
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "medrefl_utils", "run", str(profile), *sets]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    return RunFiles(checkout / "runs" / "smollm2_cpu")


pytestmark = pytest.mark.timeout(1600)


def test_every_stage_ran_and_left_its_artifacts(run: RunFiles) -> None:
    manifest = json.loads(run.manifest.read_text())
    assert set(manifest["stages"]) == set(DEFAULT_STAGES)
    assert run.report.stat().st_size > 100_000 and (run.adapter / "adapter_model.safetensors").is_file()


def test_no_step_is_empty_and_leaves_say_what_the_reader_reads(run: RunFiles, shared_data: Path) -> None:
    steps = read_table(run.steps, STEPS)
    path = shared_data / "benchmarks" / "medqa_usmle_5op_test.jsonl"
    asked = {question.question_id: question for _, question in read_questions(str(path)).questions}
    inner = steps[steps["kind"] == "step"]
    assert len(inner) > 10 and inner["text"].map(has_content).all()
    text = steps.set_index(["question_id", "node_id"])["text"]
    parent = steps.set_index(["question_id", "node_id"])["parent_id"]
    read = 0
    for leaf in steps[steps["stop"].isin(["answer", "unreadable"])].itertuples():
        node, parts = leaf.node_id, []
        while pd.notna(parent[leaf.question_id, node]):
            parts.append(text[leaf.question_id, node])
            node = int(parent[leaf.question_id, node])
        letter = extract_answer("".join(reversed(parts)), asked[leaf.question_id].options).letter
        assert letter == (leaf.answer if isinstance(leaf.answer, str) else None)
        assert leaf.outcome == (1.0 if letter == asked[leaf.question_id].gold else -1.0)
        read += 1
    assert read > 5


def test_pairs_end_as_they_should(run: RunFiles, shared_data: Path) -> None:
    pairs = read_table(run.pairs, PAIRS)
    path = shared_data / "benchmarks" / "medqa_usmle_5op_test.jsonl"
    asked = {question.question_id: question for _, question in read_questions(str(path)).questions}
    assert "reasoning" in set(pairs["kind"])  # of so few paths, a random pair is mostly a reasoning pair, and left out
    for pair in pairs.itertuples():
        question = asked[pair.question_id]
        assert extract_answer(pair.chosen[0]["content"], question.options).letter == question.gold
        assert extract_answer(pair.rejected[0]["content"], question.options).letter != question.gold


def test_base_and_adapter_answered_the_same_questions(run: RunFiles) -> None:
    responses = read_table(run.responses, RESPONSES)
    assert set(responses["model"]) == {"base", "medrefl"}
    by_model = responses.groupby("model")["question_id"].agg(set)
    assert by_model["base"] == by_model["medrefl"] and len(by_model["base"]) == 2
