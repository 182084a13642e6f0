"""``medrefl doctor``: what this machine has, what fits on it, and what would stop a run before it starts.

The sizes are estimates (**ours**), for decoders of the Llama and Qwen kind in NF4, pairs of about 1,000 tokens a side,
one pair at a time, gradient checkpointing, a LoRA of rank 64: they say whether to try, not how much to the megabyte.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from medrefl_utils.hub import resolve_model
from medrefl_utils.profiles import Profile
from medrefl_utils.records import MedReflError

Verdict = Literal["ok", "note", "stop"]
SIZES = (0.5, 1.5, 3.0, 8.0, 14.0, 32.0)
"""Billions of parameters that are tried, the largest that fits being named."""
_LEAST_PYTHON = (3, 11)
_LEAST_DISK, _LEAST_MEMORY = 2.0, 2.0  # GiB: a smoke run and its models
_ENOUGH_DISK = 10.0  # GiB: below it adapters and hub checkpoints soon do not fit
_SMALL = 0.1  # billions of parameters, from which the estimate holds
_GIB_A_BILLION = {"nf4": 0.70, "none": 1.86}
"""Weights: 4 bits and their constants for the linear layers, 16 bits for embeddings and head; else 16 bits for all."""
_WORKING = 2.5  # GiB: CUDA itself, and keys and values of a few dozen continuations
_TRAINING, _TRAINING_A_BILLION = 3.5, 0.33  # GiB: activations and logits of one pair; adapter, its gradient and Adam's


@dataclass(frozen=True)
class Check:
    """One line of the table: what was looked at, what was found, whether it would stop a run, and why."""

    name: str
    found: str
    verdict: Verdict = "ok"
    why: str = ""


@dataclass(frozen=True)
class Machine:
    """What decides what fits: GiB of the card (None: there is none), of memory, and free on the disk."""

    card: str | None
    card_memory: float | None
    memory: float
    disk: float
    dtype: str


def need(billions: float, *, quantization: str = "nf4", training: bool) -> float:
    """GiB that a model of so many parameters takes, to write or to be trained by DPO (an estimate, **ours**)."""
    weights = _GIB_A_BILLION[quantization] * billions
    return weights + _WORKING + (_TRAINING + _TRAINING_A_BILLION * billions if training else 0.0)


def largest(room: float, *, training: bool) -> float | None:
    """The largest of ``SIZES`` that fits into so many GiB in NF4; None where not even the smallest does."""
    fitting = [size for size in SIZES if need(size, training=training) <= room]
    return max(fitting, default=None)


def billions(model: str) -> float | None:
    """A model's parameters in billions: of a folder by the size of its weights, of a hub id by its name ("7B")."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2 / 1e9  # 16 bits each
    named = re.findall(r"(\d+(?:\.\d+)?)[bB](?![A-Za-z])", model)
    return float(named[-1]) if named else None


def look(root: Path) -> Machine:
    """This machine, through torch; ``root`` is where the runs go."""
    import torch

    from medrefl_utils.models import compute_dtype

    card = memory = None
    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        card, memory = f"{seen.name} (compute {seen.major}.{seen.minor})", seen.total_memory / 2**30
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    dtype = str(compute_dtype()).removeprefix("torch.")
    return Machine(card, memory, pages / 2**30, shutil.disk_usage(root).free / 2**30, dtype)


def examine(machine: Machine, profile: Profile | None = None) -> list[Check]:
    """All checks, in the order of the table; a profile adds those of its models."""
    checks = [_python(), _packages(metadata.requires("medrefl") or ()), _four_bit(), _card(machine), _dtype(machine)]
    checks += [_memory(machine), _disk(machine), _fits(machine)]
    return checks + (list(_models(machine, profile)) if profile else [])


def table(checks: Iterable[Check]) -> Table:
    """The checks as a table for a terminal."""
    shown = Table(title="medrefl doctor", title_justify="left", box=None)
    for column in ("", "found", "", ""):
        shown.add_column(column, overflow="fold")
    styles = {"ok": "green", "note": "yellow", "stop": "bold red"}
    for check in checks:
        shown.add_row(check.name, Text(check.found), Text(check.verdict, styles[check.verdict]), Text(check.why))
    return shown


def _python() -> Check:
    least = ".".join(map(str, _LEAST_PYTHON))
    old = sys.version_info < _LEAST_PYTHON
    return Check("python", platform.python_version(), "stop" if old else "ok", f"expected {least} or newer" * old)


def _packages(requirements: Iterable[str]) -> Check:
    """Whether all that the package declares is installed, and in its range."""
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
    except Exception as error:  # a library that does not load raises what it likes
        return Check("bitsandbytes", "does not load", "stop", f"{type(error).__name__}: {error}"[:160])
    return Check("bitsandbytes", bitsandbytes.__version__)


def _card(machine: Machine) -> Check:
    if machine.card is None:
        return Check(
            "card", "none", "note", "models run on the CPU: the tiny student in minutes, a 7B model not at all"
        )
    return Check("card", f"{machine.card}, {machine.card_memory:.1f} GiB")


def _dtype(machine: Machine) -> Check:
    why = {"float16": "the card has no bf16, as a T4: fp16 it is", "float32": "without a card"}
    return Check("computes in", machine.dtype, "ok", why.get(machine.dtype, ""))


def _memory(machine: Machine) -> Check:
    short = machine.memory < _LEAST_MEMORY
    return Check(
        "memory", f"{machine.memory:.1f} GiB", "stop" if short else "ok", f"expected {_LEAST_MEMORY} GiB" * short
    )


def _disk(machine: Machine) -> Check:
    found = f"{machine.disk:.1f} GiB free"
    if machine.disk < _LEAST_DISK:
        return Check("disk", found, "stop", f"expected {_LEAST_DISK} GiB")
    if machine.disk < _ENOUGH_DISK:
        return Check("disk", found, "note", "an 8B model's checkpoint is 16 GB")
    return Check("disk", found)


def _fits(machine: Machine) -> Check:
    if machine.card_memory is None:
        return Check("fits in NF4", "small models", "note", "memory would hold more, but without a card time ends it")
    trained, written = (largest(machine.card_memory, training=training) for training in (True, False))
    shown = [f"up to {size:g}B" if size else "nothing" for size in (trained, written)]
    found = f"{shown[0]} to train, {shown[1]} to write"
    return Check("fits in NF4", found, "ok" if trained else "note", "" if trained else "no model can be trained on it")


def _models(machine: Machine, profile: Profile) -> Iterator[Check]:
    """The models that the profile's stages load, each with what it needs in the stage that needs most."""
    uses: dict[str, list[tuple[str, bool]]] = {}
    for stage, parameters in profile.parameters.items():
        if model := parameters.get("model"):
            uses.setdefault(model, []).append((parameters.get("quantization", "none"), stage.startswith("04")))
    room, where = (machine.card_memory, "the card") if machine.card else (machine.memory, "memory")
    for model, ways in uses.items():
        try:
            resolve_model(model)
        except MedReflError as error:
            yield Check("model", model, "stop", str(error))
            continue
        size = billions(model)
        if size is None:
            yield Check("model", model, "note", "its size is not in its name")
            continue
        if size < _SMALL:
            yield Check("model", f"{model}, {1000 * size:.2g} million parameters", "ok", "fits anywhere")
            continue
        needed = max(need(size, quantization=quantization, training=training) for quantization, training in ways)
        verdict = "stop" if needed > room else "ok"
        yield Check("model", f"{model}, {size:.2g}B", verdict, f"needs about {needed:.1f} GiB, {where} has {room:.1f}")
