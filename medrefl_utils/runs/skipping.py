"""Decide whether a stage is skipped: compare the hashes of everything that determines its outputs with its last run.

A stage is skipped if these have the same hashes as in its last run: the notebook's code, the parameters, the imported
modules of the package, the input artifacts, the files that parameters name, and the outputs. Inputs are compared by
content: if a stage runs again and writes the same bytes, the stages after it are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.store import content_hash
from medrefl_utils.runs import provenance
from medrefl_utils.runs.profiles import local_paths
from medrefl_utils.runs.stages import OTHER_RUNS, Stage


@dataclass(frozen=True)
class Decision:
    """Whether a stage will run, and why; ``why`` is "unchanged" for a skipped stage."""

    stage: Stage
    run: bool
    why: str


def decide(stage: Stage, entry: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]], files: RunFiles) -> Decision:
    """Compare a stage with its last run; return the decision.

    Args:
        stage: the stage.
        entry: the manifest's entry of its last run; empty if it never ran.
        now: the stage's current ``ingredients``.
        files: the run's files; the outputs in it are hashed again.
    """
    if "running" in entry:
        return Decision(stage, True, "was interrupted")
    if not {"key", "outputs"} <= entry.keys():
        return Decision(stage, True, "run by hand since" if entry.get("outputs") else "new")
    why = [] if entry["key"] == stage_key(now) else _differences(entry.get("ingredients", {}), now)
    for name, digest in entry["outputs"].items():
        output = files.root / name
        if not output.exists():
            why.append(f"output missing: {name}")
        elif content_hash(output) != digest:
            why.append(f"output changed: {name}")
    return Decision(stage, bool(why), "; ".join(why) or "unchanged")


def ingredients(
    stage: Stage, notebook: Path, parameters: Mapping[str, Any], files: RunFiles, *, root: Path, package: Path
) -> dict[str, dict[str, Any]]:
    """Return everything that determines a stage's outputs, in named parts, so that a change can be explained.

    Args:
        stage: the stage.
        notebook: its notebook in the checkout at ``root``.
        parameters: its resolved parameters.
        files: the run's files; the inputs in it are hashed.
        root: the checkout.
        package: the folder of the package that the notebooks import.

    Returns:
        {"notebook", "parameters", "code", "inputs", "files"}, each {name: hash or value}.
    """
    parameters = {name: value for name, value in parameters.items() if name != "run"}
    inputs = {}
    for artifact in stage.reads:
        path: Path = getattr(files, artifact)
        if path.exists():
            inputs[path.name] = content_hash(path)
    for name in OTHER_RUNS.keys() & {name for name, value in parameters.items() if value}:
        for path in (getattr(RunFiles(root / parameters[name]), artifact) for artifact in OTHER_RUNS[name]):
            if path.exists():
                inputs[f"{parameters[name]}/{path.name}"] = content_hash(path)
    named = {text for value in parameters.values() for text in _named_files(value, root)}
    return {
        "notebook": {"code": provenance.notebook_hash(notebook)},
        "parameters": parameters,
        "code": provenance.code_hashes(notebook, package),
        "inputs": inputs,
        "files": {text: content_hash(root / text) for text in sorted(named)},
    }


def stage_key(found: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of a stage's ``ingredients``."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _named_files(value: Any, root: Path) -> list[str]:  # noqa: ANN401 (a parameter's value)
    # A text that does not look like a path counts too if the path exists: "medrefl_utils/models/tiny_student".
    texts = value if isinstance(value, list) else [value]
    texts = [text for text in texts if isinstance(text, str) and text] + local_paths(value)
    runs = (root / "runs").resolve()
    here = {text: (root / text).resolve() for text in texts if os.path.exists(root / text)}
    # A folder in runs/ is where a stage writes, such as its checkpoints; a file there is another run's table.
    apart = {text: path for text, path in here.items() if path.is_file() or not path.is_relative_to(runs)}
    return [text for text, path in apart.items() if not runs.is_relative_to(path)]


def _differences(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    words = {"notebook": "notebook", "code": "code", "inputs": "input", "files": "file", "parameters": "parameter"}
    found = []
    for part, word in words.items():
        old, new = before.get(part, {}), now[part]
        for name in sorted(old.keys() | new.keys()):
            if part == "parameters" and old.get(name) != new.get(name):
                found.append(f"{name}: {old.get(name)!r} -> {new.get(name)!r}")
            elif old.get(name) != new.get(name):
                found.append(f"{word} changed" + (f": {name}" if part != "notebook" else ""))
    return found or ["changed"]
