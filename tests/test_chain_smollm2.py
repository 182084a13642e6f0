"""A real model writes chains of real questions along a real graph: SmolLM2-135M on MedQA and a sample of Hetionet.

Skipped without the model (`medrefl model smollm2` makes it), the benchmark's file or the graph.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from medrefl_utils.core import CHAINS, Continuation, RunFiles, read_table
from medrefl_utils.exam import extract_answer, read_questions
from medrefl_utils.knowledge import read_chain
from medrefl_utils.models.smollm2 import DEFAULT_FOLDER

STAGE = "08_knowledge_chains"
SETTINGS = {
    "quantization": "none",
    "split": "test",
    "n_questions": 8,
    "writer": "model",
    "max_new_tokens": 96,
    "filter_samples": 1,
    "max_filter_tokens": 16,
    "min_pass": 0.0,
    "max_dropped": 1.0,
    "n_evaluation_questions": 5,
}
FAULTS = {"empty", "cut", "leak", "unreadable", "elsewhere", "letter", "short"}

pytestmark = pytest.mark.timeout(1600)


@pytest.fixture(scope="module")
def exam(shared_data: Path) -> Path:
    return shared_data / "benchmarks" / "medqa_usmle_5op_test.jsonl"


@pytest.fixture(scope="module")
def table(root: Path, shared_data: Path, exam: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    model = Path(os.environ.get("MEDREFL_SMOLLM2", root / DEFAULT_FOLDER))
    graph = shared_data / "knowledge" / "hetionet_sample.csv"
    if not (model / "config.json").is_file() or not graph.is_file():
        pytest.skip("no SmolLM2 (medrefl model smollm2) or no graph")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("notebooks", "medrefl_utils"):
        (checkout / name).symlink_to(root / name)
    profile = checkout / "smol.yaml"
    named = {"model": str(model), "questions": str(exam), "graph": str(graph)}
    profile.write_text(yaml.safe_dump({"stages": [STAGE], "shared": {"run": "smol"}, STAGE: SETTINGS | named}))
    command = [sys.executable, "-m", "medrefl_utils", "run", str(profile)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1500)
    said = done.stdout + done.stderr
    # So small a model may write no chain that passes. Then the stage stops, and its table is there all the same.
    assert done.returncode == 0 or "08_knowledge_chains: chains: none is left" in said, said[-3000:]
    return read_table(RunFiles(checkout / "runs" / "smol").chains, CHAINS)


def test_every_question_has_its_row_and_its_reason(table: pd.DataFrame) -> None:
    assert len(table) == 8 and table["question_id"].is_unique
    gaps = {"no_entity", "no_answer_entity", "no_path"}
    assert set(table["reason"].dropna()) <= gaps | {f"chain_{fault}" for fault in FAULTS}
    asked = table[table["n_paths"] > 0]
    assert len(asked) and asked["paths"].map(len).between(1, 12).all()
    assert asked["writer_prompt"].str.contains("<-[", regex=False).any()


def test_every_reply_is_kept_with_why_it_was_refused(table: pd.DataFrame, exam: Path) -> None:
    asked = {question.question_id: question for _, question in read_questions(str(exam)).questions}
    for row in table[table["n_paths"] > 0].itertuples():
        refused = len(row.faults)
        assert len(row.replies) == min(3, refused + 1) and set(row.faults) <= FAULTS
        accepted = len(row.replies) > refused
        assert accepted == isinstance(row.chain, str) == row.kept
        if accepted:
            question = asked[row.question_id]
            assert extract_answer(row.completion[0]["content"], question.options).letter == question.gold
            assert len(row.support) == row.n_steps >= 2 and row.pass_with in (0.0, 1.0)


def test_the_readers_verdict_is_the_same_a_second_time(table: pd.DataFrame, exam: Path) -> None:
    asked = {question.question_id: question for _, question in read_questions(str(exam)).questions}
    for row in table[table["n_paths"] > 0].itertuples():
        for reply, fault in zip(row.replies, row.faults, strict=False):
            stop = "length" if fault == "cut" else "end"
            assert read_chain(Continuation(reply, (), 0.0, stop), asked[row.question_id])[1] == fault
