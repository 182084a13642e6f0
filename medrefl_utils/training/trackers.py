"""Report a training to experiment trackers by the trainer's own ``report_to``. No tracker is a dependency."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from medrefl_utils.core.errors import MedReflError

if TYPE_CHECKING:
    from transformers import Trainer

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
"""{name in ``report_to``: packages, one of which must be installed}"""


def check_trackers(report_to: Sequence[str]) -> None:
    """Raise MedReflError if a tracker is unknown or its package is not installed. Nothing heavy is imported."""
    for name in report_to:
        if name not in TRACKERS:
            raise MedReflError(f"training: report_to names {name!r}, expected some of {', '.join(TRACKERS)}, or none")
        if not any(map(find_spec, TRACKERS[name])):
            raise MedReflError(f"training: report_to names {name}, which is not installed: pip install {name}")


def keep_tensorboard_in(trainer: Trainer, folder: Path) -> None:
    """Let TensorBoard's files go to ``folder``, unless TENSORBOARD_LOGGING_DIR is set.

    By default they would go to the trainer's folder of checkpoints, which is removed after a complete training.
    """
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)
