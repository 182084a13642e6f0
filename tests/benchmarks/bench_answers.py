"""Measure how fast answers are read: responses per second on one core, and seconds for one megabyte of text.

The published outputs are measured only if ``../shared/published_outputs`` exists.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from medrefl_utils.exam import extract_answer
from tests.benchmarks.measure import Measurement
from tests.conftest import ROOT

GOAL = 20_000  # responses of 2,000 characters per second
OPTIONS = {
    "A": "Left ventricular failure",
    "B": "Acute pericarditis with effusion",
    "C": "Pulmonary embolism",
    "D": "Vitamin D deficiency",
    "E": "Atypical pneumonia",
}
PROSE = (
    "The patient's age, the sudden onset and the examination narrow the choice. While {0} could explain the "
    "fever, it does not fit the normal radiograph. A history of surgery makes {1} more probable, and the oxygen "
    "saturation supports this. Blood cultures grew no E. coli. "
)
ENDS = (
    "Therefore, the answer is: C: 'Pulmonary embolism'.",
    "The most likely diagnosis is **C**: 'Pulmonary embolism'.",
    '{"reason": "The onset was sudden.", "answer": "C"}',
    "So, the correct choice is option C.",
    "\\boxed{C}",
    "The most likely diagnosis is pulmonary embolism.",
)


def _made(n: int) -> list[tuple[str, dict[str, str]]]:
    texts = list(OPTIONS.values())
    prose = "".join(PROSE.format(texts[i % 5], texts[(i + 1) % 5]) for i in range(6))
    return [(f"{prose}{end:>{2_000 - len(prose)}}", OPTIONS) for end in ENDS for _ in range(n // len(ENDS))]


def _published(folder: Path) -> list[tuple[str, dict[str, str]]]:
    lines = (folder / "published_outputs/huatuo_o1_8b_medqa_run0.jsonl").read_text().splitlines()
    exam = (folder / "benchmarks/medqa_usmle_5op_test.jsonl").read_text().splitlines()
    return [(json.loads(r)["reason"], json.loads(q)["options"]) for r, q in zip(lines, exam, strict=True)]


def _rate(rows: Sequence[tuple[str, dict[str, str]]]) -> float:
    """Responses of 2,000 characters per second of processor time, the best of five repeats."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for response, options in rows:
            extract_answer(response, options)
        best = min(best, time.process_time() - start)
    return sum(len(response) for response, _ in rows) / 2_000 / best


def main() -> Iterator[Measurement]:
    """Yield the two rates and the time of one megabyte, each beside its goal."""
    detail = {"peer": "the goal, in responses per second"}
    yield Measurement("made", _rate(_made(3_000)), GOAL, 1, "/s", less_is_better=False, details=detail)
    if (ROOT.parent / "shared/published_outputs").is_dir():
        rows = _published(ROOT.parent / "shared")
        yield Measurement("huatuo", _rate(rows), GOAL, 1, "/s", less_is_better=False, details=detail)
    text = "The answer is B or **C**. " * 40_000
    start = time.process_time()
    extract_answer(text, OPTIONS)
    yield Measurement("megabyte", time.process_time() - start, 0.2, 1, details={"peer": "the goal, in seconds"})
