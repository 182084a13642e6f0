"""What a training can have learned: its warm-up, and the adapters that are still their base."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from medrefl_utils.core import TRAINING, write_table
from medrefl_utils.training import DpoSettings, train_dpo, warmup_of, why_nothing_learned
from tests.test_dpo import PAIRS_24


@pytest.mark.parametrize(
    ("asked", "steps", "found"),
    [
        (10, 515, 10),  # the published run: 33,000 pairs in batches of 64
        (10, 50, 10),
        (10, 49, 10),  # a fifth, rounded up
        (10, 41, 9),
        (5, 3, 1),
        (5, 2, 1),
        (5, 1, 0),  # one step of warm-up would be the whole training, with learning rate 0
        (0, 100, 0),
        (1, 1, 0),
    ],
)
def test_warm_up_never_outlasts_the_training(asked: int, steps: int, found: int) -> None:
    assert warmup_of(asked, steps) == found


def test_one_step_learns_and_is_called_too_few(tiny_student: str, tmp_path: Path) -> None:
    dpo = DpoSettings(learning_rate=1e-3, batch_size=4, gradient_accumulation=1, max_length=1024)
    log = train_dpo(PAIRS_24.head(4), tiny_student, tmp_path / "adapter", dpo=dpo, seed=0)
    assert log["learning_rate"].tolist() == [1e-3]
    assert log["accuracy"].tolist() == [0.5]  # before the first update both sides are equal: ties, not errors
    assert why_nothing_learned(tmp_path / "adapter") == (
        "the training had only 1 optimizer step: too few to show what the method does (at least 10)"
    )


def adapter(folder: Path, rates: list[float] | None, b: float, dtype: torch.dtype = torch.float32) -> Path:
    """An adapter's folder with the weights and the log that the check reads."""
    weights = {
        "base_model.q_proj.lora_A.weight": torch.ones(2, 3, dtype=dtype),
        "base_model.q_proj.lora_B.weight": torch.zeros(3, 2, dtype=dtype),
    }
    weights["base_model.q_proj.lora_B.weight"][1, 1] = b
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    if rates is not None:
        log = pd.DataFrame({name: np.ones(len(rates)) for name in TRAINING.names})
        write_table(
            folder / "training.parquet", log.assign(step=range(1, len(rates) + 1), learning_rate=rates), TRAINING
        )
    return folder


def test_why_an_adapter_can_have_learned_nothing(tmp_path: Path) -> None:
    good = [1e-4] * 10
    assert why_nothing_learned(adapter(tmp_path, good, b=0.1)) == ""
    assert why_nothing_learned(adapter(tmp_path, [0.0, *good], b=0.1)) == ""  # one step of warm-up
    same = "every LoRA matrix B of the adapter is 0, so base and adapter are the same model"
    assert why_nothing_learned(adapter(tmp_path, good, b=0.0)) == same
    assert why_nothing_learned(adapter(tmp_path, [0.0], b=0.0)) == (
        f"{same}; the training had 1 optimizer step, all with learning rate 0"
    )
    few = "the training had only 4 optimizer steps, 2 of them with learning rate 0: too few"
    assert why_nothing_learned(adapter(tmp_path, [0.0, 0.0, 1e-4, 1e-5], b=0.1)).startswith(few)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_looked_at_too(tmp_path: Path, dtype: torch.dtype) -> None:
    assert "every LoRA matrix B" in why_nothing_learned(adapter(tmp_path, None, b=0.0, dtype=dtype))
    assert why_nothing_learned(adapter(tmp_path, None, b=0.1, dtype=dtype)) == ""


def test_an_adapter_of_another_program_is_checked_as_far_as_it_can_be(tmp_path: Path) -> None:
    assert why_nothing_learned(adapter(tmp_path / "none", None, b=0.1)) == ""
    assert why_nothing_learned(tmp_path / "nowhere") == ""
    (tmp_path / "none" / "adapter_model.safetensors").write_bytes(b"not one")
    (tmp_path / "none" / "training.parquet").write_bytes(b"nor this")
    assert why_nothing_learned(tmp_path / "none") == ""
