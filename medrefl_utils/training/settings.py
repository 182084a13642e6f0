"""Settings that every training takes: time and memory, and what it saves and reports while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.models.loading import compute_dtype, device
from medrefl_utils.training import health_checks
from medrefl_utils.training.trackers import check_trackers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EfficiencySettings:
    """Settings that decide time and memory, not what is learned; measured effects: ``notebooks/measurements.md``."""

    shared_prefix: bool = True
    """DPO: compute the common prefix of both sides once"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    activation_offloading: bool = False
    """keep activations in CPU memory; GPU training only"""
    optimizer: str = "adamw"
    """"adamw", or "paged_adamw_8bit": 8-bit states that move to CPU memory when GPU memory is full"""
    group_by_length: bool = False
    """group rows of similar length into a batch: less padding, another order"""
    compute_dtype: str = "auto"
    """fp32, bf16, fp16, or "auto": depends on the GPU, see ``models.loading.compute_dtype``"""

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "paged_adamw_8bit"):
            raise MedReflError(f"training: optimizer is {self.optimizer!r}, expected adamw or paged_adamw_8bit")
        if self.compute_dtype not in ("auto", *DTYPES):
            raise MedReflError(f"training: compute_dtype is {self.compute_dtype!r}, expected auto, {', '.join(DTYPES)}")
        if self.activation_offloading and device() != "cuda":
            raise MedReflError(
                "training: activation_offloading needs a GPU: on a CPU activations are in CPU memory already"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The data type that ``compute_dtype`` names."""
        return compute_dtype() if self.compute_dtype == "auto" else DTYPES[self.compute_dtype]


@dataclass(frozen=True)
class MonitorSettings:
    """What a training saves while it runs, and when it warns or stops."""

    checkpoint_folder: Path | None = None
    """folder for checkpoints, for example on Google Drive; None saves no checkpoints"""
    checkpoint_every: int = 20
    """optimizer steps between checkpoints"""
    references: Path | None = None
    """DPO: folder of the cached log-probabilities of the reference, for other seeds and ablations; None caches none"""
    stop_on: Sequence[str] = ("not_finite",)
    """findings (``health_checks.KINDS``, ``SFT_KINDS``) that stop the training; other findings are warnings"""
    report_to: Sequence[str] = ()
    """experiment trackers (``trackers.TRACKERS``); TensorBoard's files go beside the result"""
    show: Callable[[pd.DataFrame], object] | None = field(default=None, compare=False)
    """called after each optimizer step with the log up to that step"""

    def __post_init__(self) -> None:
        known = tuple(dict.fromkeys((*health_checks.KINDS, *health_checks.SFT_KINDS)))
        unknown = [name for name in self.stop_on if name not in known]
        if unknown:
            raise MedReflError(f"training: stop_on names {unknown[0]!r}, expected some of {', '.join(known)}")
        check_trackers(self.report_to)
        if self.checkpoint_every < 1:
            raise MedReflError(f"training: checkpoint_every is {self.checkpoint_every}, expected at least 1")


def check_above_zero(settings: object, names: Sequence[str]) -> None:
    """Raise MedReflError where one of these settings is not above 0."""
    for name in names:
        if getattr(settings, name) <= 0:
            raise MedReflError(f"training: {name} is {getattr(settings, name)}, expected above 0")


def check_held_out_share(share: float) -> None:
    """Raise MedReflError where the share of held-out questions is not from 0 to below 1."""
    if not 0 <= share < 1:
        raise MedReflError(f"training: held_out_share is {share}, expected a share from 0 to below 1")
