"""The stages of the chain: which artifacts each notebook reads and writes, and where the checkout is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.store import MADE_BY

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Stage:
    """A notebook of the chain, with the artifacts (attribute names of RunFiles) that it reads and writes.

    An artifact that no stage writes (the saved plots in ``figures``) is optional: it is hashed if it exists.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def _stage(name: str, *reads: str) -> Stage:
    return Stage(name, reads, tuple(artifact for artifact, maker in MADE_BY.items() if maker == name))


FINE_TUNING = "09_sft_lora_4bit"
STAGES = (
    _stage("08_knowledge_chains"),
    _stage(FINE_TUNING, "chains"),
    _stage("01_tree_rollout"),
    _stage("02_step_valuation", "questions", "steps"),
    _stage("03_pair_construction", "questions", "steps", "values"),
    _stage("04_dpo_lora_4bit", "questions", "pairs"),
    _stage("05_benchmark_evaluation", "questions", "pairs", "adapter"),
    _stage("06_report", *(artifact for artifact, maker in MADE_BY.items() if maker < "06"), "figures"),
    _stage("07_ablation", "questions", "pairs"),
)
"""All stages in the order in which they run: fine-tuning makes the base that the trees start from."""
CONTINUES = {
    FINE_TUNING: (
        "01_tree_rollout",
        "03_pair_construction",
        "04_dpo_lora_4bit",
        "05_benchmark_evaluation",
        "07_ablation",
    )
}
"""{stage that writes a model: the stages that use it where a profile says ``continue_from``}"""
BASELINE = (
    "01_tree_rollout",
    "02_step_valuation",
    "03_pair_construction",
    "04_dpo_lora_4bit",
    "05_benchmark_evaluation",
)
"""The stages that a baseline runs: Med-REFL on the model that fine-tuning starts from."""
OTHER_RUNS = {"own_run": ("questions", "steps"), "baseline": ("responses",)}
"""{parameter that names the folder of another run: the artifacts that a stage reads there}"""
_HELD_OUT = {
    "evaluation_questions": "questions",
    "evaluation_split": "split",
    "evaluation_offset": "offset",
    "n_evaluation_questions": "n_questions",
    "evaluation_answer_base": "answer_base",
}
FOLLOWS = {
    "03_pair_construction": ("05_benchmark_evaluation", _HELD_OUT),
    "08_knowledge_chains": ("05_benchmark_evaluation", _HELD_OUT),
    "05_benchmark_evaluation": ("01_tree_rollout", {"steps": "steps"}),
    "07_ablation": ("01_tree_rollout", {"steps": "steps"}),
}
"""{stage: (other stage, {own parameter: its parameter})}: what a profile leaves out is as in the other stage.

Stages 03 and 08 compare the training questions with those that stage 05 asks. Stages 05 and 07 cut steps as 01 does.
"""
DEFAULT_STAGES = tuple(stage.name for stage in STAGES if "01" <= stage.name < "07")
"""The notebooks that run if a profile has no list ``stages``."""


def repository_root() -> Path:
    """Return the checkout: the nearest folder upwards that has the notebooks, else the one around the package.

    Raises:
        MedReflError: there is no checkout, as after installing the wheel alone.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE.parent):
        if (folder / "notebooks" / "01_tree_rollout.ipynb").is_file():
            return folder
    raise MedReflError(
        f"{here}: no notebooks/01_tree_rollout.ipynb here or in a folder above: this command needs the notebooks, so "
        "run it in a git checkout of medrefl"
    )


def enter_repository() -> None:
    """Change to the checkout's root. Jupyter starts a kernel in the notebook's folder."""
    os.chdir(repository_root())
