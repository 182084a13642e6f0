"""Models' ways of writing through the notebooks 01 to 05: a plain one, one whose template opens the thinking, channels.

A server in the tests writes each style; one kernel executes the five notebooks one after the other, as a user does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from medrefl_utils.core import PAIRS, RESPONSES, SCORES, STEPS, RunFiles, read_manifest, read_table
from medrefl_utils.exam import extract_answer
from tests.conftest import ROOT
from tests.server import serving
from tests.test_styles import QUESTION, STYLES, other_answer

NOTEBOOKS = ("01_tree_rollout", "02_step_valuation", "03_pair_construction", "04_dpo_lora_4bit")
NOTEBOOKS += ("05_benchmark_evaluation",)
OPENED = "<think>\n"  # what the template of a DeepSeek-R1 distill puts behind a prompt


def exam_file(path: Path, stems: list[str]) -> str:
    """Write questions with these stems and the styles' options, and return the path."""
    rows = [{"id": s, "question": s, "options": QUESTION.options, "answer_idx": QUESTION.gold} for s in stems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def execute(notebooks: dict[str, dict[str, Any]], folder: Path) -> None:
    """Execute notebooks in one kernel, each with parameters of its own behind those of its cell."""
    cells = []
    for name, parameters in notebooks.items():
        for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
            if cell.cell_type != "code":
                continue
            cells.append(nbformat.v4.new_code_cell(cell.source))
            if "parameters" in cell.metadata.get("tags", []):
                given = "".join(f"{key} = {value!r}\n" for key, value in parameters.items())
                cells.append(nbformat.v4.new_code_cell(given))
    book = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(book, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("name", ["llama31", "deepseek_r1", "gpt_oss"])
def test_a_style_passes_every_notebook(name: str, tmp_path: Path) -> None:
    style = STYLES[name]
    texts = [style.right, style.wrong, other_answer(style)]
    letters = {text: extract_answer(text, QUESTION.options, thinking_open=style.thinking_open).letter for text in texts}
    assert [letters[text] == QUESTION.gold for text in texts] == [True, False, False]
    asked = ["Which oral drug is monitored by INR?", "Which drug does vitamin K reverse, by mouth?"]
    held_out = [f"An old man takes a tablet for atrial fibrillation. Which one, in case {i}?" for i in range(4)]
    run = str(tmp_path / "run")
    served = {"names": {"m"}, "loads": "/v1/load_lora_adapter", "template": OPENED if style.thinking_open else ""}
    with serving(texts=texts, **served) as server:
        at = {"run": run, "endpoint": server.url, "endpoint_model": "m"}
        execute(
            {
                NOTEBOOKS[0]: at
                | {"questions": exam_file(tmp_path / "train.jsonl", asked), "n_questions": 2, "branching": [4] * 8},
                NOTEBOOKS[1]: {"run": run},
                NOTEBOOKS[2]: at
                | {"kinds": ["reasoning"], "evaluation_questions": exam_file(tmp_path / "test.jsonl", held_out)}
                | {"n_evaluation_questions": 0},
                NOTEBOOKS[3]: {"run": run, "kinds": ["reasoning"], "held_out_share": 0.0, "lora_rank": 4},
                NOTEBOOKS[4]: at
                | {"questions": str(tmp_path / "test.jsonl"), "n_questions": 0, "protocols": ["sampled"], "n_runs": 3}
                | {"self_correction_questions": 0},
            },
            ROOT / "notebooks",
        )
    files = RunFiles(Path(run))
    steps = read_table(files.steps, STEPS)
    leaves = steps[steps["kind"] == "leaf"]
    for _, tree in leaves.groupby("question_id"):  # as a careful reader reads the three responses
        assert dict(zip(tree["answer"], tree["outcome"], strict=True)) == {
            letter: 1.0 if letter == QUESTION.gold else -1.0 for letter in letters.values()
        }
    assert set(leaves["stop"]) == {"answer"}
    pairs = read_table(files.pairs, PAIRS)
    assert set(pairs["question_id"]) == set(steps["question_id"]) and set(pairs["kind"]) == {"reasoning"}
    for pair in pairs.itertuples():
        chosen, rejected = (
            extract_answer(side[0]["content"], QUESTION.options, thinking_open=style.thinking_open).letter
            for side in (pair.chosen, pair.rejected)
        )
        assert chosen == QUESTION.gold != rejected in letters.values()
    responses = read_table(files.responses, RESPONSES)
    assert len(responses) == 2 * 3 * len(held_out)
    read = responses.astype({"answer": object})
    assert all(letters[text] == answer for text, answer in zip(read["response"], read["answer"], strict=True))
    right = (responses["response"] == style.right).groupby(responses["model"]).mean()
    scores = read_table(files.scores, SCORES).set_index("model")
    assert scores["accuracy"].to_dict() == pytest.approx(right.to_dict())
    assert scores["unreadable"].eq(0).all()
    about = read_manifest(files)["stages"][NOTEBOOKS[0]]["figures"]["generator"]
    assert about["thinking_close"] == ("</think>" if style.thinking_open else "")
