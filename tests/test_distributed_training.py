"""Training by a launcher: two processes learn what one does; the profile's settings are the notebook's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from medrefl_utils.core import PAIRS, TRAINING, MedReflError, RunFiles, read_manifest, read_table, write_table
from medrefl_utils.runs import STAGES, load_profile, notebook_parameters, training_settings, tuning_settings
from medrefl_utils.runs.distributed_training import STAGE
from medrefl_utils.training import DpoSettings, EfficiencySettings, SftSettings, trainer_setup
from tests.models import make_pairs

ROOT = Path(__file__).parents[1]
PUBLISHED = ("llama31_8b", "qwen25_7b", "huatuo_o1_8b", "medreason_8b")
COLAB = ("colab_t4", "colab_l4", "colab_a100")


def test_two_processes_learn_what_one_does(tiny_student, tmp_path, root):
    launchers = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }
    logs, adapters = {}, {}
    for name, launcher in launchers.items():
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [*launcher, "-m", "tests.distributed_job", tiny_student, str(tmp_path / name)],
            cwd=root, capture_output=True, text=True, timeout=280, env=os.environ | {"PYTHONPATH": str(root)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        logs[name] = pd.read_json(tmp_path / name / "log.json")
        adapters[name] = load_file(tmp_path / name / "adapter_model.safetensors")
    assert len(logs["one"]) == len(logs["two"]) == 3  # 24 pairs, 8 a step, whoever reads them
    # Not the accuracy: before the adapter has moved, which side is ahead is a matter of rounding.
    for column in ("loss", "margin", "chosen_logprob", "grad_norm"):
        assert (logs["one"][column] - logs["two"][column]).abs().max() < 1e-3, column
    assert (logs["one"].loss - logs["two"].loss).abs().max() < 1e-4
    assert all(torch.allclose(t, adapters["two"][k], atol=1e-4) for k, t in adapters["one"].items())


def test_an_accumulation_that_cannot_be_shared_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MedReflError, match="accumulation is 16, which 3 processes cannot share evenly"):
        trainer_setup._share(16)
    assert trainer_setup._share(9) == 3


def test_train_by_command_makes_what_the_notebook_makes(root, tiny_student):
    files = RunFiles(root / "runs" / "test_train")
    shutil.rmtree(files.root, ignore_errors=True)
    rows = [{name: row.get(name) for name in PAIRS.names} for row in make_pairs(8)]
    pairs = pd.DataFrame(rows, dtype=object).assign(prompt_tokens=90, chosen_tokens=100, rejected_tokens=100)
    try:
        command = [
            sys.executable,
            "-m",
            "medrefl_utils",
            "train",
            "params/smoke.yaml",
            "--set",
            "shared.run=test_train",
        ]

        def run():
            return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)

        done = run()
        assert done.returncode == 2 and "pairs.parquet is missing: 03_pair_construction makes it" in done.stderr
        write_table(files.pairs, pairs, PAIRS)
        done = run()
        assert done.returncode == 0, done.stderr
        log = read_table(files.training, TRAINING)
        assert f"{len(log)} optimizer steps, last loss {log.loss.iloc[-1]:.4f}" in done.stdout
        assert (files.adapter / "README.md").is_file() and (files.adapter / "tokenizer.json").is_file()
        assert list(read_manifest(files)["stages"]) == [STAGE]
        assert not (files.root / "checkpoints").exists() or not list((files.root / "checkpoints").iterdir())
    finally:
        shutil.rmtree(files.root, ignore_errors=True)


def test_the_notebooks_parameters_are_all_settings(tmp_path):
    values = {p.name: p.default for p in notebook_parameters(ROOT / "notebooks" / f"{STAGE}.ipynb").values()}
    dpo, economy, upkeep = training_settings(values, RunFiles(tmp_path / "runs" / "x"))
    used = {*vars(dpo), *vars(economy), "checkpoint_folder", "checkpoint_every", "cache_references"}
    used |= {"stop_on", "report_to"}
    assert set(values) - used == {"run", "model", "kinds", "seed", "licences"}
    assert economy == EfficiencySettings() and dpo.held_out_share == values["held_out_share"]
    assert upkeep.references == tmp_path / "runs" / "references"
    assert upkeep.checkpoint_folder == tmp_path / "runs" / "x" / "checkpoints"


def profile(name):
    notebooks = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    return load_profile(ROOT / "params" / f"{name}.yaml", notebooks, root=ROOT).parameters


def test_the_fine_tuning_profile_is_the_published_setting():
    sft, economy, _ = tuning_settings(profile("medreason_8b_sft")["09_sft_lora_4bit"], RunFiles(Path("runs/x")))
    published = SftSettings(full_finetuning=True, quantization="none", batch_size=1, gradient_accumulation=128)
    assert sft == published  # whose other defaults are the published ones
    assert economy.optimizer == "adamw" and economy.compute_dtype == "bf16"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_profiles_are_the_published_setting(name):
    values = profile(name)[STAGE]
    dpo, economy, _ = training_settings(values, RunFiles(Path("runs/x")))
    assert dpo == DpoSettings(quantization="none")  # whose defaults are the published ones
    assert economy.optimizer == "adamw" and economy.compute_dtype == "bf16"


@pytest.mark.parametrize("name", COLAB)
def test_the_colab_profiles_keep_the_effective_batch_and_the_method(name):
    values = profile(name)[STAGE]
    dpo, economy, _ = training_settings(values, RunFiles(Path("runs/x")))
    assert (
        dpo.batch_size * dpo.gradient_accumulation == 64
        and dpo.quantization == "nf4"
        and economy.gradient_checkpointing
    )
    assert (dpo.beta, dpo.lora_rank, dpo.lora_alpha, dpo.learning_rate, dpo.epochs) == (0.1, 64, 16, 1e-5, 1)
    assert economy.compute_dtype == ("fp16" if name == "colab_t4" else "bf16")


@pytest.mark.parametrize("name", [*PUBLISHED, *COLAB, "colab_t4_session", "medreason_8b_sft"])
def test_every_value_of_a_profile_has_its_source(name):
    for line in (ROOT / "params" / f"{name}.yaml").read_text().splitlines():
        key = line.strip().split(":")[0]
        if line.startswith("  ") and key not in ("run", "split"):
            why = line.partition("  # ")[2]
            assert why.startswith(("ours", "published", "QLoRA", "LLaMA-Factory", "one of")), line


@pytest.mark.parametrize(("name", "kind"), [("fsdp2", "FSDP"), ("zero3", "DEEPSPEED")])
def test_accelerate_reads_the_launch_files(name, kind):
    from accelerate.commands.config.config_args import ClusterConfig

    path = ROOT / "params" / "accelerate" / f"{name}.yaml"
    config = ClusterConfig.from_yaml_file(str(path))
    assert str(config.distributed_type).endswith(kind)
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "bf16"
