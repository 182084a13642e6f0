"""The stages of the chain: which notebook reads and writes which artifacts, and where the checkout is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.store import MADE_BY

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Stage:
    """A notebook of the chain and the artifacts (names of RunFiles) it reads and writes.

    What it reads and no stage writes (the figures) is hashed when it is there, and not asked for.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def _stage(name: str, *reads: str) -> Stage:
    return Stage(name, reads, tuple(artifact for artifact, maker in MADE_BY.items() if maker == name))


STAGES = (
    _stage("01_tree_rollout"),
    _stage("02_step_valuation", "questions", "steps"),
    _stage("03_pair_construction", "questions", "steps", "values"),
    _stage("04_dpo_lora_4bit", "questions", "pairs"),
    _stage("05_benchmark_evaluation", "questions", "pairs", "adapter"),
    _stage("06_report", *(artifact for artifact, maker in MADE_BY.items() if maker < "06"), "figures"),
    _stage("07_ablation", "questions", "pairs"),
)
FOLLOWS = {
    "03_pair_construction": (
        "05_benchmark_evaluation",
        {
            "evaluation_questions": "questions",
            "evaluation_split": "split",
            "evaluation_offset": "offset",
            "n_evaluation_questions": "n_questions",
        },
    )
}
"""What 03 compares the training questions with is what 05 will ask, unless the profile says otherwise."""
DEFAULT_STAGES = tuple(stage.name for stage in STAGES[:6])
"""What runs where a profile does not name its own ``stages``."""


def repository_root() -> Path:
    """The checkout: the nearest folder from here upwards that has the notebooks, else the one around the package."""
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE.parent):
        if (folder / "notebooks" / f"{STAGES[0].name}.ipynb").is_file():
            return folder
    raise MedReflError(f"{here}: no notebooks/{STAGES[0].name}.ipynb here or above: run this in a checkout of medrefl")


def enter_repository() -> None:
    """Go to the checkout's root, wherever Jupyter started the kernel (it starts it beside the notebook)."""
    os.chdir(repository_root())
