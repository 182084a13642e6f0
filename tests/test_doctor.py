"""What the doctor finds, and what it takes for a fault."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig

from medrefl_utils.models import longest_pairs, predict_training
from medrefl_utils.runs import Machine, Profile, doctor

T4 = Machine("Tesla T4 (compute 7.5)", 14.7, 12.7, 70.0, "float16")
LAPTOP = Machine(None, None, 16.0, 100.0, "float32")


def found(machine: Machine, profile: Profile | None = None) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.check_machine(machine, profile)}


def profile(model: str, quantization: str = "nf4") -> Profile:
    used = {"model": model, "quantization": quantization}
    training = used | {
        "lora_rank": 64, "batch_size": 1, "max_length": 4096, "shared_prefix": True, "gradient_checkpointing": True,
        "activation_offloading": False, "optimizer": "paged_adamw_8bit",
    }  # fmt: skip
    return Profile("p.yaml", "p", {"01_tree_rollout": used, "04_dpo_lora_4bit": training, "06_report": {}})


def test_a_t4_computes_in_fp16_and_holds_an_8b_model_in_4_bit() -> None:
    checks = found(T4)
    assert checks["card"].found == "Tesla T4 (compute 7.5), 14.7 GiB"
    assert checks["computes in"].found == "float16" and "no bf16" in checks["computes in"].why
    assert checks["fits in NF4"].found == "up to 8B to train, up to 14B to generate"
    assert {check.verdict for check in checks.values()} == {"ok"}


def test_what_a_model_needs_is_what_the_plan_predicts() -> None:
    shape = doctor.SIZES["8B"]
    usual = {"lora_rank": 64, "batch_size": 1, "shared_prefix": True, "gradient_checkpointing": True}
    usual |= {"quantization": "nf4", "max_length": 1000, "activation_offloading": False, "optimizer": "adamw"}
    assert (
        doctor.memory_needed(shape, training=True)
        == predict_training(shape, longest_pairs(1000, 1), settings=usual).gib
    )
    # By hand: 6.98 billion weights in linear maps at 0.5158 bytes, 1.05 others at 2; 8 rows of 2,048 tokens at 131,072
    # bytes and a draw of 128,256 words at 64; 0.6 GiB of libraries.
    by_hand = (0.51587 * 6.9793e9 + 2 * 1.05093e9 + 8 * (2048 * 131_072 + 64 * 128_256)) / 2**30 + 0.6
    assert doctor.memory_needed(shape, training=False) == pytest.approx(by_hand, rel=1e-3)
    assert doctor.memory_needed(shape, training=False, settings={"quantization": "none"}) > 16
    assert doctor.largest_model(14.7, training=True) == "8B" and doctor.largest_model(1.0, training=True) is None


def test_the_sizes_are_those_of_their_names() -> None:
    for name, shape in doctor.SIZES.items():
        assert (shape.linear_weights + shape.other_weights) / 1e9 == pytest.approx(float(name[:-1]), rel=0.07)


def test_without_a_card_only_small_models_are_promised() -> None:
    checks = found(LAPTOP)
    assert (checks["card"].found, checks["card"].verdict) == ("none", "note")
    assert checks["fits in NF4"].found == "small models"


def test_little_room_stops_a_run() -> None:
    checks = found(replace(LAPTOP, memory=1.0, disk=1.5))
    assert (checks["memory"].verdict, checks["disk"].verdict) == ("stop", "stop")
    assert found(replace(LAPTOP, disk=5.0))["disk"].verdict == "note"


def test_a_package_that_is_missing_or_too_old_stops_a_run() -> None:
    check = doctor._packages(["no-such-package>=1", "numpy>=999", "pandas>=1", "sphinx; extra == 'docs'"])
    assert check.verdict == "stop" and check.found == "1 of 3 as declared"
    assert "no-such-package is missing" in check.why and "expected >=999" in check.why
    assert doctor._packages(["pandas>=1"]).verdict == "ok"


def test_a_profiles_models_must_be_there_and_fit(tiny_student: str, tmp_path: Path) -> None:
    assert found(T4, profile(tiny_student))["model"].why == "fits anywhere"
    missing = found(T4, profile("./nowhere"))["model"]
    assert missing.verdict == "stop" and "no such folder" in missing.why
    folder = tmp_path / "large"
    folder.mkdir()
    for text in ("{}", "{", '{"model_type": "none-such"}'):
        (folder / "config.json").write_text(text)
        broken = found(T4, profile(str(folder)))["model"]
        assert broken.verdict == "stop" and broken.why.startswith("its config does not load: ")
    LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    ).save_pretrained(folder)  # fmt: skip
    fits = found(T4, profile(str(folder)))["model"]
    assert (fits.found, fits.verdict) == (f"{folder}, 8.03 billion parameters", "ok")
    assert fits.why == "needs about 11.9 GiB, the card has 14.7"
    assert found(T4, profile(str(folder), "none"))["model"].verdict == "stop"
    assert "memory has 16.0" in found(LAPTOP, profile(str(folder), "none"))["model"].why


def test_the_command_prints_a_table_and_its_exit_code_tells(root: Path, tmp_path: Path) -> None:
    def medrefl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "medrefl_utils", "doctor", *words]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)

    good = medrefl("params/smoke.yaml")
    assert good.returncode == 0, good.stdout + good.stderr
    for name in ("python", "packages", "card", "computes in", "memory", "disk", "fits in NF4", "model"):
        assert f" {name} " in good.stdout
    (tmp_path / "p.yaml").write_text("shared:\n  model: nobody/none-7B\n")
    bad = medrefl(str(tmp_path / "p.yaml"))
    assert bad.returncode == 1 and "stop" in bad.stdout and "HF_HUB_OFFLINE" in " ".join(bad.stdout.split())
    assert medrefl(str(tmp_path / "none.yaml")).returncode == 2
    changed = medrefl(str(tmp_path / "p.yaml"), "--set", "shared.model=medrefl_utils/models/tiny_student")
    assert changed.returncode == 0 and "fits anywhere" in changed.stdout
    alone = medrefl("--set", "shared.seed=1")
    assert alone.returncode == 2 and "--set changes a profile: name one" in alone.stderr
