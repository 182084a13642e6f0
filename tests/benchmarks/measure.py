"""Report a measurement: one line on the terminal, one JSON file with the description of the machine."""

from __future__ import annotations

import json
import re
import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medrefl_utils.runs import provenance

RESULTS = Path("runs/bench")


def own_peak() -> float:
    """Return the peak of this process's own memory [GiB].

    Linux's ``ru_maxrss`` would not do: a child process begins with the peak of its parent.
    """
    if sys.platform == "linux":
        return int(re.search(r"VmHWM:\D*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@dataclass(frozen=True)
class Measurement:
    """Our figure and a peer's, both measured in the same run.

    ``ratio`` says how many times better ours is: peer / ours if less is better (seconds, bytes), ours / peer if more is
    better (rates). ``goal`` is the smallest ratio that passes.
    """

    case: str
    ours: float
    peer: float
    goal: float
    unit: str = "s"
    less_is_better: bool = True
    peer_at_least: bool = False
    """the peer was stopped before its end: its figure, and so the ratio, is a lower bound"""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Return how many times better our figure is."""
        return self.peer / self.ours if self.less_is_better else self.ours / self.peer

    @property
    def ok(self) -> bool:
        """Return whether the ratio reaches the goal."""
        return self.ratio >= self.goal

    def line(self, name: str) -> str:
        """Return ``bench NAME ours peer ratio goal ok|short``, separated by spaces."""
        title = f"{name}/{self.case}" if self.case else name
        more = ">" if self.peer_at_least else ""
        ours, peer = f"{self.ours:.4g}{self.unit}", f"{more}{self.peer:.4g}{self.unit}"
        return f"bench {title} {ours} {peer} {more}{self.ratio:.2f} {self.goal:g} {'ok' if self.ok else 'short'}"


def write(name: str, measurements: list[Measurement], folder: Path = RESULTS) -> Path:
    """Write ``NAME.json`` with machine, versions, revision and every measurement, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [asdict(m) | {"ratio": m.ratio, "ok": m.ok} for m in measurements]
    where = {"machine": provenance.machine(), "versions": provenance.versions(), "git": provenance.git(Path.cwd())}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, **where, "results": results}, indent=2) + "\n", encoding="utf-8")
    return path
