"""Run the smoke chain (``params/smoke.yaml``) on this machine, and return seconds per stage and the gain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pandas as pd

from medrefl_utils.core import SCORES, RunFiles, read_table
from tests.conftest import ROOT
from tests.gpu.scale import Add, Deadline, Scale

RUN = "runs/gpu_smoke"


def measure(scale: Scale, deadline: Deadline, add: Add) -> None:
    """Run all stages anew, then add a row per finished stage and a row per score.

    Raises:
        RuntimeError: a stage failed; the message ends with what it printed.
    """
    words = [
        sys.executable,
        "-m",
        "medrefl_utils",
        "run",
        "params/smoke.yaml",
        "--force",
        "--set",
        "shared.run=gpu_smoke",
    ]
    words += [word for override in scale.overrides for word in ("--set", override)]
    files = RunFiles(ROOT / RUN)
    shutil.rmtree(files.root, ignore_errors=True)  # this measurement's own folder; an old manifest would be read below
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, deadline.left()))
    except subprocess.TimeoutExpired:
        done = None
    manifest = json.loads(files.manifest.read_text()) if files.manifest.is_file() else {}
    for stage, entry in manifest.get("stages", {}).items():
        add({"case": "stage", "stage": stage, "seconds": entry.get("seconds")})
    if done is None:
        raise RuntimeError("the chain ran out of time")
    if done.returncode:
        raise RuntimeError(f"the chain ended with exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    columns = ["protocol", "model", "n", "accuracy", "gain", "gain_low", "gain_high"]
    for row in read_table(files.scores, SCORES)[columns].to_dict("records"):
        add({"case": "score"} | {name: value for name, value in row.items() if pd.notna(value)})
