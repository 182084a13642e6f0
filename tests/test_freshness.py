"""Old and new results of one run: what changed, and which notebooks to run again, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from medrefl_utils.core import RunFiles, find_out_of_date, open_stage, read_manifest, record_stage, write_manifest

READS = {
    "01_tree_rollout": [],
    "02_step_valuation": ["questions", "steps"],
    "03_pair_construction": ["questions", "steps", "values"],
    "04_dpo_lora_4bit": ["questions", "pairs"],
}
WRITES = {
    "01_tree_rollout": ["questions", "steps"],
    "02_step_valuation": ["values"],
    "03_pair_construction": ["pairs"],
    "04_dpo_lora_4bit": ["adapter"],
}


def run_by_hand(run: RunFiles, stage: str, content: str = "") -> None:
    """Do what a notebook does: open the stage, write its files, record them. A file holds what it was made from."""
    open_stage(run, stage, READS[stage], {"seed": 3})
    for artifact in WRITES[stage]:
        path: Path = getattr(run, artifact)
        if artifact in ("steps", "adapter"):
            path.mkdir(parents=True, exist_ok=True)
            path = path / "part"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{stage} {content}")
    record_stage(run, stage, [getattr(run, artifact) for artifact in WRITES[stage]], {})


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    run = RunFiles(tmp_path / "runs" / "hand")
    for stage in READS:
        run_by_hand(run, stage, "first")
    return run


def test_a_notebook_run_by_hand_records_its_inputs_and_parameters(run: RunFiles) -> None:
    entry = read_manifest(run)["stages"]["03_pair_construction"]
    assert entry["inputs"].keys() == {"questions.parquet", "steps", "values.parquet"}
    assert entry["parameters"] == {"seed": 3}
    assert find_out_of_date(run).line() == ""


def test_what_was_made_from_older_trees_is_named_with_the_notebooks_to_run(run: RunFiles) -> None:
    run_by_hand(run, "01_tree_rollout", "more questions")
    found = find_out_of_date(run, ["questions", "pairs"])  # what 04 reads
    assert found.changed == {"03_pair_construction": ["questions.parquet", "steps"],
                             "02_step_valuation": ["questions.parquet", "steps"]}  # fmt: skip
    assert found.replaced == {} and found.again == ["02_step_valuation", "03_pair_construction"]
    assert found.line() == (
        "old and new results are mixed (questions.parquet and steps changed after 02_step_valuation; questions.parquet "
        "and steps changed after 03_pair_construction): run 02_step_valuation and 03_pair_construction again, in this "
        "order"
    )
    assert find_out_of_date(run, ["questions", "steps"]).line() == ""  # what 02 reads


def test_a_stage_below_a_stale_one_runs_again_though_its_own_inputs_are_the_same(run: RunFiles) -> None:
    run_by_hand(run, "01_tree_rollout", "more")
    run_by_hand(run, "03_pair_construction", "first")  # 02 was forgotten; the pairs are the same bytes
    found = find_out_of_date(run)
    assert list(found.changed) == ["02_step_valuation", "04_dpo_lora_4bit"]
    assert found.again == ["02_step_valuation", "03_pair_construction", "04_dpo_lora_4bit"]


def test_the_same_bytes_again_are_the_same(run: RunFiles) -> None:
    run_by_hand(run, "01_tree_rollout", "first")
    assert find_out_of_date(run).line() == ""


def test_a_file_that_changed_after_its_stage_is_said_once(run: RunFiles) -> None:
    run.pairs.write_text("without the pairs that I dislike")
    assert find_out_of_date(run, ["pairs"]).line() == (
        "pairs.parquet is not what 03_pair_construction wrote: run 03_pair_construction again, unless you changed it "
        "on purpose"
    )
    assert find_out_of_date(run).again == ["04_dpo_lora_4bit"]


def test_inputs_are_those_of_the_start(run: RunFiles) -> None:
    """Another notebook may write them anew while this one runs."""
    open_stage(run, "03_pair_construction", READS["03_pair_construction"])
    run_by_hand(run, "02_step_valuation", "meanwhile")
    record_stage(run, "03_pair_construction", [run.pairs], {})
    assert find_out_of_date(run, ["pairs"]).changed == {"03_pair_construction": ["values.parquet"]}


def test_what_an_earlier_version_recorded_and_what_is_gone_are_not_called_mixed(run: RunFiles) -> None:
    manifest = read_manifest(run)
    del manifest["stages"]["03_pair_construction"]["inputs"]
    write_manifest(run, manifest)
    run.values.write_text("other")
    assert find_out_of_date(run, ["pairs"]).line() == ""
    run.values.unlink()
    assert find_out_of_date(run).line() == ""
    assert find_out_of_date(RunFiles(run.root.parent / "new")).line() == ""
