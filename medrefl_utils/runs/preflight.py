"""What a run needs, looked at before anything starts: a test file that is broken costs a second here, not a night.

Each check is the very loader that a stage will use, or reads no more than headers; the error is the loader's own line.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.core.store import read_table
from medrefl_utils.exam.benchmarks import check_question_source, load_benchmark
from medrefl_utils.exam.questions import load_questions
from medrefl_utils.models.folder_checks import check_adapter_base, resolve_checked_model
from medrefl_utils.pairs.pair_table import check_pair_texts
from medrefl_utils.trees.search import SearchSettings

LEAST_FREE = 200_000_000
"""Bytes that must be free on the run's disk: a smoke run's artifacts many times over, and room to say what is wrong."""

_ROLLOUT, _TRAINING, _EVALUATION = "01_tree_rollout", "04_dpo_lora_4bit", "05_benchmark_evaluation"

_QUESTION_PARAMETERS = (
    ("questions", "split", "n_questions", "offset"),
    ("evaluation_questions", "evaluation_split", "n_evaluation_questions", "evaluation_offset"),
)

Parameters = Mapping[str, Any]


def check_inputs(stages: Mapping[str, Parameters], files: RunFiles, given: Container[str]) -> None:
    """Look at all that the stages which will run read, and at the place they write to.

    Args:
        stages: {stage: its parameters}.
        files: the run's.
        given: artifacts (names of ``RunFiles``) that these stages read and none of them makes.

    Raises:
        MedReflError: the first thing that would stop a stage.
    """
    for stage, values in stages.items():
        _check_settings(stage, values)
    for model in dict.fromkeys(model for values in stages.values() for model in _models(values)):
        resolve_checked_model(model)
    asked: set[tuple[Any, ...]] = set()
    for stage, values in stages.items():
        for names in _QUESTION_PARAMETERS:
            if names[0] in values:
                _check_questions(stage, values, names, asked)
    if "pairs" in given and _TRAINING in stages:
        check_pair_texts(read_table(files.pairs, PAIRS))
    if "adapter" in given and _EVALUATION in stages:
        check_adapter_base(files.adapter, stages[_EVALUATION]["model"])
    check_disk_space(files.root)


def check_disk_space(folder: Path) -> None:
    """Make the run's folder, if need be, and see that it can be written and has ``LEAST_FREE`` bytes to fill."""
    standing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not standing.is_dir():
        raise MedReflError(f"{standing}: is a file, expected the run's folder, or none")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"medrefl")
    except OSError as error:
        raise MedReflError(f"{folder}: cannot be written: {error.strerror}") from None
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        raise MedReflError(f"{folder}: {free / 1e6:,.0f} MB are free there, expected at least {LEAST_FREE / 1e6:,.0f}")


def _check_settings(stage: str, values: Parameters) -> None:
    """What more than one parameter decides, or the machine."""
    if "branching" in values:
        SearchSettings(
            tuple(values["branching"]), search_mode=values["search_mode"], max_frontier=values["max_frontier"]
        )
    if values.get("endpoint") and not values["endpoint_model"]:
        raise MedReflError(f"{stage}: endpoint is {values['endpoint']}, but endpoint_model names no model there")
    if values.get("activation_offloading"):
        from medrefl_utils.training.dpo import EfficiencySettings

        EfficiencySettings(activation_offloading=True)


def _models(values: Parameters) -> list[str]:
    """The models that a stage loads: its own, and a judge that is neither off, nor itself, nor at an endpoint."""
    judge = values.get("judge", "off")
    judges = [judge] if judge not in ("off", "self") and not values.get("judge_endpoint") else []
    return [values["model"], *judges] if "model" in values else judges


def _check_questions(stage: str, values: Parameters, names: Sequence[str], asked: set[tuple[Any, ...]]) -> None:
    """Load what the stage's notebook will load, once where stages ask for the same."""
    questions, split, limit, offset = (values[name] for name in names)
    load = load_questions if stage == _ROLLOUT else load_benchmark
    seed = values["seed"] if "seed" in values else values["seeds"][0]
    asking = (load, questions, split, limit or None, offset, seed)
    if asking in asked or not check_question_source(questions):
        return
    asked.add(asking)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stage will say it
        load(questions, split=split, limit=limit or None, offset=offset, seed=seed)
