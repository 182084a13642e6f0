"""Whether a stage is skipped: the hashes of all that decides what it makes, compared with those of its last run.

A stage is unchanged when its notebook's code, its parameters, the package modules it imports, its input artifacts and
the files its parameters name have the hashes of its last run, and its outputs still have theirs. Inputs count by
content: a stage that ran again and made the same bytes starts nothing below it.
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
from medrefl_utils.runs.stages import Stage


@dataclass(frozen=True)
class Decision:
    """Whether a stage will run, and why; ``why`` is "unchanged" for one that is skipped."""

    stage: Stage
    run: bool
    why: str


def decide(stage: Stage, entry: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]], files: RunFiles) -> Decision:
    """Compare a stage with its last run.

    Args:
        stage: the stage.
        entry: what the manifest says of its last run; empty if there was none.
        now: the stage's ``ingredients`` now.
        files: the run's files, whose outputs are hashed again.
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
    """All that decides what a stage will make, in named parts, so that a change can be explained.

    Args:
        stage: the stage.
        notebook: its notebook in the checkout at ``root``.
        parameters: its resolved parameters.
        files: the run's files, whose inputs are hashed.
        root: the checkout.
        package: the folder of the code that the notebooks import.

    Returns:
        ``notebook``, ``parameters``, ``code``, ``inputs`` and ``files``, each {name: hash or value}.
    """
    parameters = {name: value for name, value in parameters.items() if name != "run"}
    inputs = {}
    for artifact in stage.reads:
        path: Path = getattr(files, artifact)
        if path.exists():
            inputs[path.name] = content_hash(path)
    named = {text for value in parameters.values() for text in _named_files(value, root)}
    return {
        "notebook": {"code": provenance.notebook_hash(notebook)},
        "parameters": parameters,
        "code": provenance.code_hashes(notebook, package),
        "inputs": inputs,
        "files": {text: content_hash(root / text) for text in sorted(named)},
    }


def stage_key(found: Mapping[str, Any]) -> str:
    """The hash (sha256, hex) of a stage's ``ingredients``."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _named_files(value: Any, root: Path) -> list[str]:  # noqa: ANN401 (a parameter's value)
    # A text without any mark of a path counts too when it is one here: "medrefl_utils/models/tiny_student".
    texts = value if isinstance(value, list) else [value]
    texts = [text for text in texts if isinstance(text, str) and text] + local_paths(value)
    runs = (root / "runs").resolve()
    here = {text: (root / text).resolve() for text in texts if os.path.exists(root / text)}
    return [text for text, path in here.items() if not (path.is_relative_to(runs) or runs.is_relative_to(path))]


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
