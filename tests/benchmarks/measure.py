"""How a measurement is told: one line on the terminal, one JSON file with the machine's description."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medrefl_utils.runs import provenance

RESULTS = Path("runs/bench")


@dataclass(frozen=True)
class Measurement:
    """Ours against a peer's, both measured in this very run.

    ``ratio`` says how much better ours is (2 = twice as good): peer / ours where less is better (seconds, bytes), ours
    / peer where more is better (rates). ``goal`` is the ratio that is asked for.
    """

    case: str
    ours: float
    peer: float
    goal: float
    unit: str = "s"
    less_is_better: bool = True
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times better ours is."""
        return self.peer / self.ours if self.less_is_better else self.ours / self.peer

    @property
    def ok(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio >= self.goal

    def line(self, name: str) -> str:
        """``bench NAME ours peer ratio goal ok|short``, fields split by blanks."""
        title = f"{name}/{self.case}" if self.case else name
        ours, peer = f"{self.ours:.4g}{self.unit}", f"{self.peer:.4g}{self.unit}"
        return f"bench {title} {ours} {peer} {self.ratio:.2f} {self.goal:g} {'ok' if self.ok else 'short'}"


def write(name: str, measurements: list[Measurement], folder: Path = RESULTS) -> Path:
    """Write ``NAME.json``: machine, versions, revision and every measurement."""
    folder.mkdir(parents=True, exist_ok=True)
    results = [asdict(m) | {"ratio": m.ratio, "ok": m.ok} for m in measurements]
    where = {"machine": provenance.machine(), "versions": provenance.versions(), "git": provenance.git(Path.cwd())}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, **where, "results": results}, indent=2) + "\n", encoding="utf-8")
    return path
