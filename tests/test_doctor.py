"""What the doctor finds, and what it takes for a fault."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from medrefl_utils import doctor
from medrefl_utils.doctor import Machine
from medrefl_utils.profiles import Profile

T4 = Machine("Tesla T4 (compute 7.5)", 14.7, 12.7, 70.0, "float16")
LAPTOP = Machine(None, None, 16.0, 100.0, "float32")


def found(machine: Machine, profile: Profile | None = None) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine(machine, profile)}


def profile(model: str, quantization: str = "nf4") -> Profile:
    used = {"model": model, "quantization": quantization}
    return Profile("p.yaml", "p", {"01_tree_rollout": used, "04_dpo_lora_4bit": used, "06_report": {}})


def test_a_t4_computes_in_fp16_and_holds_an_8b_model_in_4_bit() -> None:
    checks = found(T4)
    assert checks["card"].found == "Tesla T4 (compute 7.5), 14.7 GiB"
    assert checks["computes in"].found == "float16" and "no bf16" in checks["computes in"].why
    assert checks["fits in NF4"].found == "up to 8B to train, up to 14B to write"
    assert {check.verdict for check in checks.values()} == {"ok"}


def test_what_a_model_needs_by_hand() -> None:
    # An 8B model: 5.6 of weights, 2.5 of working room; to train 3.5 and 2.64 more. In 16 bits the weights are 14.88.
    assert doctor.need(8, training=False) == pytest.approx(8.1)
    assert doctor.need(8, training=True) == pytest.approx(14.24)
    assert doctor.need(8, quantization="none", training=False) == pytest.approx(17.38)
    assert doctor.largest(14.7, training=True) == 8 and doctor.largest(3.0, training=True) is None


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


def test_a_models_size_is_in_its_name_or_its_folder(tiny_student: str) -> None:
    assert doctor.billions("Qwen/Qwen2.5-7B-Instruct") == 7
    assert doctor.billions("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B") == 1.5
    assert doctor.billions("someone/model-v2-big") is None
    assert doctor.billions(tiny_student) == pytest.approx(0.00092, rel=0.01)


def test_a_profiles_models_must_be_there_and_fit(tiny_student: str, tmp_path: Path) -> None:
    assert found(T4, profile(tiny_student))["model"].why == "fits anywhere"
    missing = found(T4, profile("./nowhere"))["model"]
    assert missing.verdict == "stop" and "no such folder" in missing.why
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with open(folder / "model.safetensors", "wb") as weights:
        weights.truncate(16 * 10**9)  # 8B parameters of 16 bits, none of them on the disk
    fits = found(T4, profile(str(folder)))["model"]
    assert fits.verdict == "ok" and fits.why == "needs about 14.2 GiB, the card has 14.7"
    assert found(T4, profile(str(folder), "none"))["model"].verdict == "stop"


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
