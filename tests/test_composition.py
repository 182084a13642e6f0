"""MedReason, Med-REFL and both: the table by hand, and a small run of the profile that makes it in one command."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from medrefl_utils.core import CHAINS, RESPONSES, SFT_TRAINING, MedReflError, RunFiles, content_hash, read_table
from medrefl_utils.core.store import write_table
from medrefl_utils.evaluation import compare_bases, interaction_interval, mcnemar_exact
from medrefl_utils.evaluation.composition import BEYOND_SUM
from medrefl_utils.views import compare_with_medreason, composition_table

# Right answers to ten questions, by hand: base 4, + MedReason 6, + Med-REFL 7, both 9.
RIGHT = {
    ("baseline", "base"): "1111000000",
    ("run", "base"): "1111110000",
    ("baseline", "medrefl"): "1110111100",
    ("run", "medrefl"): "1111111110",
}


def responses(place: str, protocol: str = "greedy", ids: str = "q") -> pd.DataFrame:
    rows = [
        dict.fromkeys(RESPONSES.names)
        | {"question_id": f"{ids}{i}", "stem_id": f"s{i}", "content": f"c{i}", "source": "clinic", "model": model}
        | {"protocol": protocol, "run": 0, "response": "", "answer": "A", "gold": "A" if right == "1" else "B"}
        | {"correct": right == "1", "n_tokens": 1, "seconds": 0.0, "conflict": False, "options": [("A", "x")]}
        for (where, model), marks in RIGHT.items()
        if where == place
        for i, right in enumerate(marks)
    ]
    return pd.DataFrame(rows)


def write(folder: Path, table: pd.DataFrame) -> Path:
    for model, part in table.groupby("model"):
        write_table(RunFiles(folder).responses / f"{model}_greedy.parquet", part, RESPONSES)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """The second run names its questions otherwise and in another order: they are paired by content."""
    return tuple(write(tmp_path / name, responses(name, ids=name).iloc[::-1]) for name in ("baseline", "run"))


def test_each_arm_and_each_gain_is_as_counted_by_hand(runs: tuple[Path, Path]) -> None:
    found = compare_bases(*runs)
    assert found[["arm", "against"]].astype(object).where(found[["arm", "against"]].notna(), None).values.tolist() == [
        ["base", None], ["+ MedReason", "base"], ["+ Med-REFL", "base"], ["both", "base"], ["both", "+ MedReason"],
        ["both", "+ Med-REFL"], ["both", BEYOND_SUM],
    ]  # fmt: skip
    assert found.accuracy.round(6).tolist() == [0.4, 0.6, 0.7, 0.9, 0.9, 0.9, 0.9] and set(found.n) == {10}
    # 90 - 60 = 30 points by Med-REFL on the tuned base, 30 on the original one: nothing beyond the sum.
    assert found.gain[1:].round(6).tolist() == [0.2, 0.3, 0.5, 0.3, 0.2, 0.0]
    # Exact McNemar: 2 of 2, 4 of 5 (one broken), 5 of 5, 3 of 3, 2 of 2 changed answers.
    assert found.mcnemar_p[1:6].tolist() == pytest.approx([0.5, 0.375, 0.0625, 0.25, 0.5])
    # Holm: 5 * 0.0625, then 4 * 0.25, which the rest cannot fall below.
    assert found.holm_p[1:6].tolist() == pytest.approx([1.0, 1.0, 0.3125, 1.0, 1.0])
    assert found.gain_low[3] > 0 and (found.gain_low[1:] <= found.gain[1:]).all()
    assert found.gain_low[6] < 0 < found.gain_high[6] and np.isnan(found.mcnemar_p[6])


def test_only_questions_of_all_four_arms_count(runs: tuple[Path, Path], tmp_path: Path) -> None:
    less = responses("run")
    write(tmp_path / "less", less[~((less.model == "medrefl") & less.question_id.isin(["q0", "q9"]))])
    found = compare_bases(runs[0], tmp_path / "less")
    assert set(found.n) == {8} and found.accuracy[0] == pytest.approx(3 / 8)
    write(tmp_path / "other", responses("run", protocol="sampled"))
    with pytest.raises(MedReflError, match="no question that base and adapter of both answered by the same protocol"):
        compare_bases(runs[0], tmp_path / "other")
    with pytest.raises(MedReflError, match="responses is missing: 05_benchmark_evaluation makes it"):
        compare_bases(tmp_path / "none", runs[1])


def test_two_changes_that_mend_the_same_questions_gain_less_than_their_sum() -> None:
    base, one = [0] * 20, [1] * 10 + [0] * 10
    same = interaction_interval(base, one, one, one)
    assert same.estimate == -0.5 and same.high < 0
    apart = interaction_interval(base, one, one[::-1], [1] * 20)
    assert apart.estimate == 0 and mcnemar_exact(base, one) < 0.01


def test_the_table_and_the_published_rows(runs: tuple[Path, Path]) -> None:
    found = compare_bases(*runs)
    table = composition_table(found)
    cells = [list(column.cells) for column in table.columns]
    arms = ["base", "+ MedReason", "+ Med-REFL", "both", "both", "both", "both"]
    assert cells[0] == ["clinic, greedy", *(f" {arm}" for arm in arms)]
    assert cells[1][1] == "40.0" and cells[2][1:3] == ["-", "base"] and cells[3][2].startswith("+20.0 [")
    assert cells[4][1] == "-" and cells[4][2] == "0.500" and cells[4][7] == "-"
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    assert "…" not in console.file.getvalue()
    published = compare_with_medreason(found, "org/none")
    assert set(published.ours) == {"not run"} and len(published) == 11
    row = published[(published.benchmark == "MedBullets, 4 options") & (published.model == "Llama3.1-8B")].iloc[0]
    assert (row.base, row.tuned) == (48.7, 57.5)
    ours = compare_with_medreason(found.assign(source="medbullets_4op"), "meta-llama/Llama-3.1-8B-Instruct")
    ran = ours[ours.ours != "not run"]
    assert ran.benchmark.tolist() == ["MedBullets, 4 options"] and ran.model.tolist() == ["Llama3.1-8B"]
    assert ran.ours.iloc[0].startswith("40.0 to 60.0 (+20.0 [") and ran.ours.iloc[0].endswith("greedy")


@pytest.fixture(scope="module")
def composed(root: Path):
    """A small run of the clinic's profile; its folders are removed at the end."""
    command = [
        *(sys.executable, "-m", "medrefl_utils", "run", "params/medreason_clinic.yaml"),
        *("--set", "shared.run=test_medreason", "--set", "08.n_questions=40", "--set", "08.filter_samples=1"),
        *("--set", "01.n_questions=16", "--set", "05.n_questions=24", "--set", "05.self_correction_questions=4"),
    ]
    files = RunFiles(root / "runs" / "test_medreason")
    places = (files.root, files.root.with_name("test_medreason_baseline"))
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1500)
    yield files, command, done
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.timeout(1600)
def test_one_command_makes_chains_fine_tunes_and_runs_med_refl_on_both_bases(composed, root: Path) -> None:
    files, _, done = composed
    assert done.returncode == 0, done.stdout + done.stderr
    chains, log = read_table(files.chains, CHAINS), read_table(files.sft_training, SFT_TRAINING)
    assert chains["kept"].sum() >= 30 and len(log) > 0
    assert (files.sft_model / "config.json").is_file() and (files.sft_adapter / "adapter_config.json").is_file()
    manifest = json.loads(files.manifest.read_text())
    stages = manifest["stages"]
    assert list(stages)[:2] == ["08_knowledge_chains", "09_sft_lora_4bit"] and len(stages) == 8
    assert stages["01_tree_rollout"]["inputs"]["sft_model"] == content_hash(files.sft_model)
    assert stages["05_benchmark_evaluation"]["parameters"]["model"] == "runs/test_medreason/sft_model"
    beside = RunFiles(files.root.with_name("test_medreason_baseline"))
    assert "medrefl_utils/models/tiny_student" in json.loads(beside.manifest.read_text())["stages"][
        "05_benchmark_evaluation"]["parameters"]["model"]  # fmt: skip
    assert stages["06_report"]["inputs"][f"runs/{beside.root.name}/responses"] == content_hash(beside.responses)
    found = compare_bases(beside.root, files.root)
    assert set(found.n) == {24} and set(found.protocol) == {"sampled", "greedy"}
    table = done.stdout[done.stdout.index("MedReason, Med-REFL and both: 24 questions") :]
    assert "+ MedReason" in table and "sum of the two gains" in table
    page = files.report.read_text()
    assert "<h3>MedReason, Med-REFL and both</h3>" in page and "Published results of MedReason" in page
    assert (files.root / "tables" / "composition.md").read_text().count("\n") == 2 + 14


@pytest.mark.timeout(1600)
def test_a_second_time_nothing_runs_and_another_target_starts_at_fine_tuning(composed, root: Path) -> None:
    _, command, _ = composed
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and again.stdout.count("unchanged, skipped") == 5 + 8
    other = subprocess.run(
        [*command, "--dry-run", "--set", "09.targets=letters"], cwd=root, capture_output=True, text=True, timeout=300
    )
    decided = [line.split()[:2] for line in other.stdout.splitlines() if line.strip()[:2].isdigit()]
    assert [what for _, what in decided] == ["skip"] * 5 + ["skip"] + ["run"] * 7
