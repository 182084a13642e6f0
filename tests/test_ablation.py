"""Arms of equal size; an ablation from its notebook, whole and after an interruption."""

import re
import shutil

import pandas as pd
import pytest

from medrefl_utils.core import ABLATION, PAIRS, MedReflError, RunFiles, read_table
from medrefl_utils.evaluation import ablation
from tests.test_pipeline import medrefl

KINDS = ["reasoning"] * 9 + ["reflection_mid"] * 3 + ["reflection_post"] * 2 + ["random_cot"] * 7
TABLE = pd.DataFrame({"kind": KINDS, "pair_id": [f"p{i}" for i in range(len(KINDS))]})
ARMS = ["reasoning", "reflection", "reasoning+reflection", "random_cot"]


def test_every_arm_gets_as_many_pairs_as_the_poorest_has():
    arms = ablation.draw_equal_arms(TABLE, ARMS, seed=1)
    assert {arm: len(table) for arm, table in arms.items()} == dict.fromkeys(ARMS, 5)
    assert set(arms["reflection"]["kind"]) == {"reflection_mid", "reflection_post"}
    assert set(arms["random_cot"]["kind"]) == {"random_cot"}
    assert set(arms["reasoning+reflection"]["kind"]) <= {"reasoning", "reflection_mid", "reflection_post"}
    assert arms["reasoning"].equals(ablation.draw_equal_arms(TABLE, ARMS, seed=1)["reasoning"])
    assert not arms["reasoning"].equals(ablation.draw_equal_arms(TABLE, ARMS, seed=2)["reasoning"])


def test_too_few_pairs_and_an_unknown_arm_are_refused():
    with pytest.raises(MedReflError, match=r"the arm 'reflection' has 5 pairs, expected 6: lower pairs_per_arm"):
        ablation.draw_equal_arms(TABLE, ARMS, n=6)
    with pytest.raises(MedReflError, match=r"'thinking' is given, expected some of reasoning"):
        ablation.draw_equal_arms(TABLE, ["reasoning+thinking"])


@pytest.mark.timeout(600)
def test_the_ablations_profile_ends_with_the_table_and_goes_on_where_it_stopped(root):
    files = RunFiles(root / "runs" / "test_ablation")
    shutil.rmtree(files.root, ignore_errors=True)
    small = {
        "shared.run": "test_ablation",
        "01_tree_rollout.n_questions": 32,
        "03_pair_construction.n_evaluation_questions": 40,
        "07_ablation.n_questions": 24,
        "07_ablation.self_correction_questions": 12,
        "07_ablation.pairs_per_arm": 8,
        "07_ablation.seeds": "[0, 1]",
        "07_ablation.arms": "[reasoning, reflection]",
        "07_ablation.batch_size": 4,
    }
    command = ["run", "params/ablation.yaml", *(f"--set={key}={value}" for key, value in small.items())]
    try:
        done = medrefl(root, *command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "8 pairs per arm, 24 questions, 2 seeds" in done.stdout and "fake reflection %" in done.stdout
        assert re.search(r"^ *reflection +sampled +\d+\.\d +[+-]\d", done.stdout, re.MULTILINE)
        table = read_table(files.ablation, ABLATION)
        assert table["arm"].drop_duplicates().tolist() == ["base", "reasoning", "reflection"]
        assert set(table["protocol"]) == {"sampled", "greedy"} and set(table["n"]) == {24} and set(table["runs"]) == {2}
        tuned = table[table["arm"] != "base"]
        assert all(len(gains) == 2 for gains in tuned["gains"])
        assert tuned["gain"].tolist() == pytest.approx([sum(gains) / 2 for gains in tuned["gains"]])
        assert table["repair"].between(0, 1).all() and table["fake"].between(0, 1).all()
        assert not files.scores.exists() and (files.figures / "ablation.png").exists()
        assert len(read_table(files.pairs, PAIRS)) > 8

        kept = (files.arms / "reasoning-0" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
        lost = files.arms / "reflection-1" / "responses.parquet"
        before = lost.read_bytes()
        lost.unlink()
        notebook = root / "notebooks" / "07_ablation.ipynb"
        import papermill

        papermill.execute_notebook(
            notebook, None, {**_parameters(files), "run": "runs/test_ablation"}, cwd=root, progress_bar=False
        )
        assert lost.read_bytes()[:4] == before[:4] == b"PAR1"
        assert (files.arms / "reasoning-0" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == kept
        assert read_table(files.ablation, ABLATION).equals(table)
    finally:
        shutil.rmtree(files.root, ignore_errors=True)


def _parameters(files: RunFiles) -> dict[str, object]:
    import json

    return json.loads(files.manifest.read_text())["parameters"]["07_ablation"]
