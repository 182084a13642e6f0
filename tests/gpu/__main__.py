"""Measure everything on one card: ``python -m tests.gpu [--minutes 12] [--only NAME] [--scale tiny] OUT``.

Each part runs in a process of its own with a time limit, in order of worth; one that fails stops no other. OUT gets
``results.json`` (rewritten after each part), ``table.md``, ``memory.png``, ``speed.png``, ``profile.txt`` and
``log.txt``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SECONDS = {"correctness": 90, "chain": 120, "training": 240, "rollout": 180, "profiling": 30}
"""{part: seconds of 12 minutes}; a part that needs less leaves the rest to those behind it"""
START = 25
"""seconds that a process may take beyond its share, to import and to end by itself"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and write OUT; return 1 if a part failed or a check does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=12.0, help="time limit of all parts together (12)")
    parser.add_argument("--only", choices=SECONDS, metavar="NAME", help=f"one part: {', '.join(SECONDS)}")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny runs on a CPU, on small models")
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        return run_here(given.only, given.scale, given.seconds, given.part)
    import torch

    if given.scale == "full" and not torch.cuda.is_available():
        print("no CUDA card here: nothing is measured (--scale tiny tries the parts on a CPU)", file=sys.stderr)
        return 1
    given.out.mkdir(parents=True, exist_ok=True)
    end, parts = time.monotonic() + 60 * given.minutes, [given.only] if given.only else list(SECONDS)
    (given.out / "log.txt").write_text("")
    from tests.gpu.summary import machine, write

    results = {"machine": machine(), "scale": given.scale, "minutes": given.minutes, "parts": {}}
    for i, part in enumerate(parts):
        left = end - time.monotonic() - START
        share = left * SECONDS[part] / sum(SECONDS[name] for name in parts[i:])
        results["parts"][part] = found = run_part(part, given.scale, share, given.out)
        print(f"{part}: {found['status']}, {len(found['rows'])} rows, {found['seconds']:.0f} s", flush=True)
        write(results, given.out)
    failed = any(part["status"] != "done" for part in results["parts"].values())
    return int(failed or any(row.get("ok") is False for part in results["parts"].values() for row in part["rows"]))


def run_part(part: str, scale: str, seconds: float, out: Path) -> dict[str, Any]:
    """Run one part in its own process group; return its status, seconds and rows, whole or not."""
    if seconds <= 0:
        return {"status": "no time left", "seconds": 0.0, "rows": []}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, (out / "log.txt").open("a") as log:
        rows = Path(folder) / "rows.jsonl"
        log.write(f"\n===== {part}\n")
        log.flush()
        words = [sys.executable, "-m", "tests.gpu", "--only", part, "--scale", scale, "--seconds", str(seconds)]
        process = subprocess.Popen(
            [*words, "--part", str(rows), str(out)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "HF_HUB_OFFLINE": "1"} | os.environ
            | {"TQDM_DISABLE": "1"},
        )  # fmt: skip
        try:
            status = "done" if process.wait(seconds + START) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # also what the part has started
            except ProcessLookupError:
                pass
            process.wait()
        found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    done = {"status": status, "seconds": time.monotonic() - start, "rows": found}
    if status == "failed":
        done["said"] = (out / "log.txt").read_text()[-1500:]
    return done


def run_here(part: str, scale: str, seconds: float, path: Path) -> int:
    """Run one part in this process, and write each row as soon as it is measured."""
    from tests.gpu.scale import SCALES, Deadline

    with path.open("w", encoding="utf-8") as file:

        def add(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()
            print({name: value for name, value in row.items() if name != "text"}, flush=True)

        importlib.import_module(f"tests.gpu.{part}").measure(SCALES[scale], Deadline(seconds), add)
    return 0


if __name__ == "__main__":
    sys.exit(main())
