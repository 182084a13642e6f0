"""``python -m tests.benchmarks [NAME ...]``: run these benchmarks, all if none is named, and print the results.

A benchmark is a module ``bench_NAME.py`` with ``main() -> Iterable[Measurement]``. The exit code is 1 if a goal is
missed, 2 for an unknown name.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tests.benchmarks import measure


def main(names: list[str], folder: Path = Path(__file__).parent) -> int:
    known = sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))
    unknown = [name for name in names if name not in known]
    if unknown or not known:
        problem = f"no benchmark is named {unknown[0]!r}" if unknown else "there is no benchmark yet"
        print(f"{problem}; there are: {', '.join(known) or 'none'}", file=sys.stderr)
        return 2 if unknown else 0
    short = 0
    for name in names or known:
        measurements = []
        for measurement in importlib.import_module(f"tests.benchmarks.bench_{name}").main():
            print(measurement.line(name), flush=True)
            measurements.append(measurement)
            short += not measurement.ok
        measure.write(name, measurements)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
