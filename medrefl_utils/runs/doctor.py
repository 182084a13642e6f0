"""``medrefl doctor``: check this machine, predict which models fit, and find what would stop a run.

``models.memory`` predicts what fits. With a profile, it uses the profile's models and settings, and pairs that fill
``max_length``. Without a profile, it uses common model sizes in NF4, one pair of 1,000 tokens per side at a time,
gradient checkpointing, and a LoRA of rank 64.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.models.memory import (
    GIB,
    ModelShape,
    experts_text,
    longest_chains,
    longest_pairs,
    parameters_text,
    predict_decoding,
    predict_training,
)
from medrefl_utils.runs.profiles import Profile
from medrefl_utils.runs.stages import DEFAULT_STAGES

Verdict = Literal["ok", "note", "stop"]
_QWEN, _TIED = 152_064, {"vocabulary": 151_936, "tied": True}
SIZES = {
    "0.5B": ModelShape(896, 24, 14, 2, 64, 4864, **_TIED),
    "1.5B": ModelShape(1536, 28, 12, 2, 128, 8960, **_TIED),
    "3B": ModelShape(2048, 36, 16, 2, 128, 11_008, **_TIED),
    "8B": ModelShape(4096, 32, 32, 8, 128, 14_336, 128_256, tied=False),
    "14B": ModelShape(5120, 48, 40, 8, 128, 13_824, _QWEN, tied=False),
    "32B": ModelShape(5120, 64, 40, 8, 128, 27_648, _QWEN, tied=False),
}
"""Model sizes to try, smallest first: the sizes of Qwen 2.5, and Llama 3.1 8B. The largest that fits is reported."""
_USUAL = {
    "quantization": "nf4", "lora_rank": 64, "batch_size": 1, "max_length": 1000, "shared_prefix": True,
    "gradient_checkpointing": True, "activation_offloading": False, "optimizer": "adamw",
}  # fmt: skip
_MIN_PYTHON = (3, 11)
_MIN_DISK, _MIN_MEMORY = 2.0, 2.0  # GiB, for a smoke run and its models
_ENOUGH_DISK = 10.0  # GiB; with less, adapters and checkpoints of the hub soon do not fit
_SMALL = 1e8  # parameters; the prediction holds for larger models
_ROWS, _TOKENS = 8, 2048
"""Batch size of decoding, and tokens per continuation with its prompt: a useful minimum (ours)."""


@dataclass(frozen=True)
class Check:
    """One row of the table: what was checked, what was found, whether it would stop a run, and why."""

    name: str
    found: str
    verdict: Verdict = "ok"
    why: str = ""


@dataclass(frozen=True)
class Machine:
    """What determines which models fit: GiB of GPU memory (None without a GPU), of RAM, and free on the disk."""

    card: str | None
    card_memory: float | None
    memory: float
    disk: float
    dtype: str


def memory_needed(
    shape: ModelShape, *, training: bool, settings: Mapping[str, Any] | None = None, width: int = 2
) -> float:
    """Predict the GiB that a model needs to generate, or to be trained on pairs or chains that fill ``max_length``.

    Args:
        shape: the model's shape.
        training: predict training instead of generation: fine-tuning where ``settings`` has ``full_finetuning``, else
            DPO.
        settings: parameters as ``models.predict_training`` takes them; by default this module's common settings.
        width: bytes per number of the computation (2 for bf16 and fp16).
    """
    settings = settings or _USUAL
    if training:
        longest = longest_chains if "full_finetuning" in settings else longest_pairs
        lengths = longest(settings["max_length"], settings["batch_size"])
        return predict_training(shape, lengths, settings=settings, width=width).gib
    quantization = settings.get("quantization", "none")
    return predict_decoding(shape, quantization=quantization, rows=_ROWS, tokens=_TOKENS, width=width) / GIB


def largest_model(room: float, *, training: bool) -> str | None:
    """Return the largest of ``SIZES`` that fits into ``room`` GiB in NF4; None if none fits."""
    fitting = [name for name, shape in SIZES.items() if memory_needed(shape, training=training) <= room]
    return fitting[-1] if fitting else None


def inspect_machine(root: Path) -> Machine:
    """Describe this machine, as torch sees it; ``root`` is the folder whose disk is measured."""
    import torch

    from medrefl_utils.models.loading import compute_dtype

    card = memory = None
    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        card, memory = f"{seen.name} (compute {seen.major}.{seen.minor})", seen.total_memory / 2**30
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    dtype = str(compute_dtype()).removeprefix("torch.")
    return Machine(card, memory, pages / 2**30, shutil.disk_usage(root).free / 2**30, dtype)


def check_machine(machine: Machine, profile: Profile | None = None, root: Path = Path()) -> list[Check]:
    """Return all checks, in the order of the table. A profile adds a check for each model of its stages.

    ``root`` is the checkout.
    """
    checks = [_python(), _packages(metadata.requires("medrefl") or ()), _four_bit(), _card(machine), _dtype(machine)]
    checks += [_memory(machine), _disk(machine), _fits(machine)]
    return checks + (list(_models(machine, profile, root)) if profile else [])


def checks_table(checks: Iterable[Check]) -> Table:
    """Format the checks as a table for a terminal."""
    shown = Table(title="medrefl doctor", title_justify="left", box=None)
    for column in ("", "found", "", ""):
        shown.add_column(column, overflow="fold")
    styles = {"ok": "green", "note": "yellow", "stop": "bold red"}
    for check in checks:
        shown.add_row(check.name, Text(check.found), Text(check.verdict, styles[check.verdict]), Text(check.why))
    return shown


def _python() -> Check:
    least = ".".join(map(str, _MIN_PYTHON))
    old = sys.version_info < _MIN_PYTHON
    return Check("python", platform.python_version(), "stop" if old else "ok", f"expected {least} or newer" * old)


def _packages(requirements: Iterable[str]) -> Check:
    """Check that every declared dependency is installed in a version of its range."""
    wanted = [Requirement(text) for text in requirements if "extra ==" not in text]
    faults = []
    for one in wanted:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            faults.append(f"{one.name} is missing")
        else:
            if not one.specifier.contains(version, prereleases=True):
                faults.append(f"{one.name} is {version}, expected {one.specifier}")
    good = f"{len(wanted) - len(faults)} of {len(wanted)} as declared"
    return Check("packages", good, "stop" if faults else "ok", "; ".join(faults))


def _four_bit() -> Check:
    try:
        import bitsandbytes
    except Exception as error:  # a library that does not load can raise anything
        return Check("bitsandbytes", "does not load", "stop", f"{type(error).__name__}: {error}"[:160])
    return Check("bitsandbytes", bitsandbytes.__version__)


def _card(machine: Machine) -> Check:
    if machine.card is None:
        return Check(
            "card", "none", "note", "models run on the CPU: the tiny student takes minutes, a 7B model is too slow"
        )
    return Check("card", f"{machine.card}, {machine.card_memory:.1f} GiB")


def _dtype(machine: Machine) -> Check:
    why = {"float16": "the card, such as a T4, has no bf16", "float32": "no card"}
    return Check("computes in", machine.dtype, "ok", why.get(machine.dtype, ""))


def _memory(machine: Machine) -> Check:
    short = machine.memory < _MIN_MEMORY
    return Check(
        "memory", f"{machine.memory:.1f} GiB", "stop" if short else "ok", f"expected {_MIN_MEMORY} GiB" * short
    )


def _disk(machine: Machine) -> Check:
    found = f"{machine.disk:.1f} GiB free"
    if machine.disk < _MIN_DISK:
        return Check("disk", found, "stop", f"expected {_MIN_DISK} GiB")
    if machine.disk < _ENOUGH_DISK:
        return Check("disk", found, "note", "the checkpoint of an 8B model has 16 GB")
    return Check("disk", found)


def _fits(machine: Machine) -> Check:
    if machine.card_memory is None:
        return Check(
            "fits in NF4", "small models", "note", "larger models fit in memory, but are too slow without a card"
        )
    trained, written = (largest_model(machine.card_memory, training=training) for training in (True, False))
    shown = [f"up to {size}" if size else "nothing" for size in (trained, written)]
    found = f"{shown[0]} to train, {shown[1]} to generate"
    return Check("fits in NF4", found, "ok" if trained else "note", "" if trained else "no model can be trained on it")


def _models(machine: Machine, profile: Profile, root: Path) -> Iterator[Check]:
    """Yield a check for each model of the profile, with the memory of the stage that needs most."""
    uses: dict[str, list[tuple[bool, Mapping[str, Any]]]] = {}
    for stage, parameters in profile.before_tuning(root).items():
        if stage not in (profile.stages or DEFAULT_STAGES) or parameters.get("endpoint"):
            continue  # a server has its own machine
        if model := parameters.get("model"):
            uses.setdefault(model, []).append((stage.startswith(("04", "09")), parameters))
    room, where = (machine.card_memory, "the card") if machine.card else (machine.memory, "memory")
    for model, ways in uses.items():
        try:
            shape = ModelShape.named(model)
        except MedReflError as error:
            yield Check("model", model, "stop", str(error).removeprefix(f"model {model}: "))
            continue
        size = f"{model}, {parameters_text(shape.weights)}"
        if shape.weights < _SMALL:
            yield Check("model", size, "ok", "fits anywhere")
            continue
        width = 2 if machine.card else 4
        needed = max(memory_needed(shape, training=training, settings=given, width=width) for training, given in ways)
        verdict, why = "stop" if needed > room else "ok", f"needs about {needed:.1f} GiB, {where} has {room:.1f}"
        if shape.expert_weights and any(given.get("quantization") == "nf4" for _, given in ways):
            why += f"; {experts_text(shape.expert_weights)}"
        yield Check("model", size, verdict, why)
