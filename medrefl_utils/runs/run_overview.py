"""Summarise the runs of a folder, one run, and what differs between runs: ``medrefl list``, ``medrefl show``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import ABLATION, SCORES
from medrefl_utils.core.store import read_manifest, read_table

State = Literal["done", "by hand", "interrupted"]


@dataclass(frozen=True)
class StageState:
    """A recorded stage of a run; "by hand": its notebook ran outside the chain. ``seconds`` is None if unknown."""

    stage: str
    state: State
    seconds: float | None
    tokens: int


@dataclass(frozen=True)
class RunSummary:
    """A run: its recorded stages in order, and its main result in words. ``fault`` says why it cannot be read."""

    name: str
    date: str
    stages: tuple[StageState, ...]
    headline: str
    fault: str = ""

    @property
    def stage_numbers(self) -> str:
        """Return the numbers of the finished stages: "01-04 06"; one that was interrupted has a question mark."""
        done = [int(stage.stage[:2]) for stage in self.stages if stage.state != "interrupted"]
        broken = [f"{stage.stage[:2]}?" for stage in self.stages if stage.state == "interrupted"]
        parts: list[list[int]] = []
        for number in sorted(done):
            if parts and number == parts[-1][-1] + 1:
                parts[-1].append(number)
            else:
                parts.append([number])
        spans = [f"{part[0]:02d}" if len(part) == 1 else f"{part[0]:02d}-{part[-1]:02d}" for part in parts]
        return " ".join([*spans, *broken])


def list_runs(folder: Path) -> list[RunSummary]:
    """Return the runs of a folder, the newest first; a run whose manifest cannot be read has a ``fault``.

    Args:
        folder: the folder of all runs, such as ``runs``.
    """
    files = [RunFiles(path.parent) for path in folder.glob("*/manifest.json")]
    return [summarise_run(run) for run in sorted(files, key=lambda run: run.manifest.stat().st_mtime, reverse=True)]


def summarise_run(files: RunFiles) -> RunSummary:
    """Return the summary of one run; a manifest or table that cannot be read is its ``fault``."""
    changed = datetime.fromtimestamp(files.manifest.stat().st_mtime).date().isoformat()
    try:
        manifest = read_manifest(files)
        recorded = manifest.get("stages", {})
        stages = tuple(_state(name, recorded[name]) for name in sorted(recorded))
        return RunSummary(files.root.name, str(manifest.get("date") or changed), stages, headline(files, recorded))
    except MedReflError as error:
        return RunSummary(files.root.name, changed, (), "", str(error))


def headline(files: RunFiles, recorded: Mapping[str, Any]) -> str:
    """Return the main result of a run in words: the gain of its last protocol, else of its best arm, else its size.

    Args:
        files: the run's files.
        recorded: the manifest's stages.
    """
    if files.scores.exists():
        scores = read_table(files.scores, SCORES)
        ours = scores[(scores["model"] == "medrefl") & scores["gain"].notna()]
        if len(ours):
            row = ours.iloc[-1]
            gain = f"{100 * row['gain']:+.1f} [{100 * row['gain_low']:+.1f}, {100 * row['gain_high']:+.1f}]"
            where = f"{row['source']}, {row['protocol']}, n {row['n']:,}"
            return f"{100 * (row['accuracy'] - row['gain']):.1f} -> {100 * row['accuracy']:.1f}% ({gain}), {where}"
    if files.ablation.exists():
        table = read_table(files.ablation, ABLATION)
        if len(gains := table[table["gain"].notna()]):
            best = gains.loc[gains["gain"].idxmax()]
            return f"best of {gains['arm'].nunique()} arms: {best['arm']} {100 * best['gain']:+.1f}, {best['protocol']}"
    for stage, figure, unit in (
        ("04_dpo_lora_4bit", "pairs", "pairs trained on"),
        ("03_pair_construction", "pairs", "pairs"),
        ("01_tree_rollout", "questions", "questions with trees"),
    ):
        if isinstance(n := recorded.get(stage, {}).get("figures", {}).get(figure), int):
            return f"{n:,} {unit}"
    return ""


def runs_table(runs: Iterable[RunSummary]) -> Table:
    """Return a table of runs: name, date, finished stages and main result."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "date", "stages", "result"):
        table.add_column(column, overflow="fold", no_wrap=column == "date")
    for run in runs:
        result = Text(run.fault, style="red") if run.fault else Text(run.headline)
        table.add_row(Text(run.name), run.date, run.stage_numbers, result)
    return table


def stages_table(run: RunSummary) -> Table:
    """Return a table of a run's stages: state, time and generated tokens."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "state", "time", "tokens"):
        table.add_column(column, justify="left" if column in ("stage", "state") else "right", no_wrap=True)
    for stage in run.stages:
        time = "-" if stage.seconds is None else f"{stage.seconds / 60:.1f} min"
        table.add_row(stage.stage, stage.state, time, f"{stage.tokens:,}" if stage.tokens else "-")
    return table


def changed_parameters(manifest: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the parameters of a run that differ from their notebooks' defaults: parameter, value, default, stages.

    Args:
        manifest: of the run.
        defaults: {notebook: {parameter: default}}.
    """
    rows: dict[tuple[str, str, str], list[str]] = {}
    for stage, entry in sorted(manifest.get("stages", {}).items()):
        for name, value in entry.get("parameters", {}).items():
            known = defaults.get(stage, {})
            if name != "run" and name in known and value != known[name]:
                rows.setdefault((name, str(value), str(known[name])), []).append(stage[:2])
    found = [(name, value, default, " ".join(stages)) for (name, value, default), stages in rows.items()]
    return pd.DataFrame(found, columns=["parameter", "value", "default", "stages"])


def differing_parameters(manifests: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the parameters that are not the same in all runs, as text; rows: stage and parameter, columns: runs.

    Args:
        manifests: {name of the run: its manifest}; an empty cell stands for a stage that the run has not executed.
    """
    values = {
        name: {
            (stage, parameter): str(value)
            for stage, entry in sorted(manifest.get("stages", {}).items())
            for parameter, value in entry.get("parameters", {}).items()
            if parameter != "run"
        }
        for name, manifest in manifests.items()
    }
    table = pd.DataFrame(values, dtype=object).fillna("")
    table.index = pd.MultiIndex.from_tuples(list(table.index), names=["stage", "parameter"])
    return table[table.nunique(axis=1) > 1]


def _state(name: str, entry: Mapping[str, Any]) -> StageState:
    state: State = "interrupted" if "running" in entry else "done" if entry.get("key") else "by hand"
    return StageState(name, state, entry.get("seconds") or None, entry.get("tokens", 0))
