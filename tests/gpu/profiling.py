"""Profile one decoding step and one training step with ``torch.profiler``: where the time of each goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from medrefl_utils.models import LocalGenerator, ModelShape
from medrefl_utils.training import MonitorSettings, train_dpo
from tests.gpu.random_models import drawn_weights, save_architecture
from tests.gpu.rollout import open_rows
from tests.gpu.scale import Add, Deadline, Scale, clean_memory, on_card
from tests.gpu.training import make_pairs, settings

TOP = 12
"""rows of each table"""


def summarise(profiled: profile, what: str, add: Add) -> None:
    """Add the operations that take most time by themselves, with their share, and the table as text."""
    events = profiled.key_averages()
    own = [event for event in events if not event.key.startswith("ProfilerStep")]  # the profiler's own frame
    name = "self_device_time_total" if on_card() else "self_cpu_time_total"
    total = sum(getattr(event, name) for event in own) or 1
    for event in sorted(own, key=lambda e: -getattr(e, name))[:TOP]:
        took = getattr(event, name)
        add({"case": what, "operation": event.key, "calls": event.count, "ms": took / 1e3, "share": took / total})
    add({"case": f"{what}, table", "text": events.table(sort_by=name, row_limit=2 * TOP)})


def decoding_step(model: str, scale: Scale, add: Add) -> None:
    """Profile the fourth step of ``scale.rows`` rows."""
    generator = LocalGenerator(model, quantization="nf4", max_rows=scale.rows)
    rows, tokens = open_rows(generator, scale.rows)
    with torch.inference_mode():
        for _ in range(3):
            rows.forward(tokens)
        with profile(activities=activities()) as profiled:
            rows.forward(tokens)
    summarise(profiled, "decoding step", add)


def training_step(model: str, scale: Scale, add: Add) -> None:
    """Profile the second optimizer step of ``train_dpo``."""
    words = ModelShape.named(model).vocabulary
    dpo, economy = settings(scale)
    with (
        tempfile.TemporaryDirectory() as out,
        profile(
            activities=activities(),
            schedule=schedule(wait=0, warmup=1, active=1, repeat=1),
            on_trace_ready=lambda one: summarise(one, "training step", add),
        ) as profiled,
    ):
        train_dpo(
            make_pairs(scale.length, words), model, Path(out) / "adapter", dpo=dpo, seed=0, economy=economy,
            upkeep=MonitorSettings(show=lambda log: profiled.step()),
        )  # fmt: skip


def activities() -> list[ProfilerActivity]:
    """Return what the profiler looks at on this machine."""
    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_card() else [])


def measure(scale: Scale, deadline: Deadline, add: Add) -> None:
    """Profile both steps on the first architecture in NF4."""
    with tempfile.TemporaryDirectory() as folder, drawn_weights():
        model = save_architecture(Path(folder) / scale.architectures[0], scale.architectures[0])
        decoding_step(model, scale, add)
        clean_memory()
        training_step(model, scale, add)
