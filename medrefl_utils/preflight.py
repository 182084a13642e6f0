"""What a run needs, looked at before anything starts: a test file that is broken costs a second here, not a night.

Each check is the very loader that a stage will use, or reads no more than headers; the error is the loader's own line.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from medrefl_utils.benchmarks import check_source, load_benchmark
from medrefl_utils.folders import check_adapter_base, checked_model
from medrefl_utils.pairs import check_texts
from medrefl_utils.questions import load_questions
from medrefl_utils.records import PAIRS, MedReflError, RunFiles
from medrefl_utils.search import Growth
from medrefl_utils.store import read_table

LEAST_FREE = 200_000_000
"""Bytes that must be free on the run's disk: a smoke run's artifacts many times over, and room to say what is wrong."""

_ROLLOUT, _TRAINING, _EVALUATION = "01_tree_rollout", "04_dpo_lora_4bit", "05_benchmark_evaluation"

Parameters = Mapping[str, Any]


def preflight(stages: Mapping[str, Parameters], files: RunFiles, given: Container[str]) -> None:
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
        checked_model(model)
    asked: set[tuple[Any, ...]] = set()
    for stage, values in stages.items():
        if "questions" in values:
            _check_questions(stage, values, asked)
    if "pairs" in given and _TRAINING in stages:
        check_texts(read_table(files.pairs, PAIRS))
    if "adapter" in given and _EVALUATION in stages:
        check_adapter_base(files.adapter, stages[_EVALUATION]["model"])
    check_room(files.root)


def check_room(folder: Path) -> None:
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
        Growth(tuple(values["branching"]), mode=values["mode"], max_open=values["max_open"])
    if values.get("endpoint") and not values["endpoint_model"]:
        raise MedReflError(f"{stage}: endpoint is {values['endpoint']}, but endpoint_model names no model there")
    if values.get("activation_offloading"):
        from medrefl_utils.training import Economy

        Economy(activation_offloading=True)


def _models(values: Parameters) -> list[str]:
    """The models that a stage loads: its own, and a judge that is neither off, nor itself, nor at an endpoint."""
    judge = values.get("judge", "off")
    judges = [judge] if judge not in ("off", "self") and not values.get("judge_endpoint") else []
    return [values["model"], *judges] if "model" in values else judges


def _check_questions(stage: str, values: Parameters, asked: set[tuple[Any, ...]]) -> None:
    """Load what the stage's notebook will load, once where stages ask for the same."""
    load = load_questions if stage == _ROLLOUT else load_benchmark
    seed = values["seed"] if "seed" in values else values["seeds"][0]
    asking = (load, values["questions"], values["split"], values["n_questions"] or None, values["offset"], seed)
    if asking in asked or not check_source(values["questions"]):
        return
    asked.add(asking)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stage will say it
        load(values["questions"], split=values["split"], limit=asking[3], offset=values["offset"], seed=seed)
