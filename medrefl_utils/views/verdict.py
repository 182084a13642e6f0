"""Say in sentences what a run shows: the gain per benchmark and protocol, and why it may show nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import PAIRS, SELF_CORRECTION
from medrefl_utils.core.store import read_manifest, read_table
from medrefl_utils.training.learned import why_nothing_learned
from medrefl_utils.views.plots import points

FEW = 0.05
"""A kind of pair with a smaller share of the training pairs can hardly have taught anything (ours)."""
FEW_TEXTS = 30
"""Rates of fewer texts have intervals of more than 30 points (ours)."""
TOO_SMALL = 0.1
"""A comparison that can detect only larger gains than this, 10 points, is too small to tell (ours)."""


def verdicts(scores: pd.DataFrame) -> list[str]:
    """Return one sentence per benchmark and protocol: whether the adapter answers better than its base.

    A difference is shown if its 95% interval excludes 0.

    Args:
        scores: rows of ``core.SCORES``; a protocol without both models gives no sentence.
    """
    compared = scores[(scores["model"] == "medrefl") & scores["gain"].notna()]
    return [_verdict(row) for row in compared.to_dict("records")]


def _verdict(row: Mapping[str, Any]) -> str:
    where = f"{row['source']}, {row['protocol']}"
    base = f"{100 * (row['accuracy'] - row['gain']):.1f}"
    numbers = f"{base}% to {100 * row['accuracy']:.1f}%, {_points(row['gain'])} points"
    numbers += f" [{_points(row['gain_low'])}, {_points(row['gain_high'])}], {_asked(row)}"
    if row["gain_low"] > 0:
        return f"{where}: the adapter answers more questions correctly than its base ({numbers})."
    if row["gain_high"] < 0:
        return f"{where}: the adapter answers fewer questions correctly than its base ({numbers})."
    shown = f", which can show gains of about {100 * row['detectable']:.0f} points" if row["detectable"] > 0 else ""
    return f"{where}: no difference between adapter and base is shown ({numbers}{shown})."


def cautions(run: RunFiles, scores: pd.DataFrame) -> list[str]:
    """Return sentences on why the results of a run may show nothing; an empty list if nothing is known.

    Checked are a training that cannot have changed the model (``training.why_nothing_learned``), kinds of pairs that it
    hardly had (``FEW``), too few texts for self-correction (``FEW_TEXTS``), and too few questions (``TOO_SMALL``).

    Args:
        run: the run's files.
        scores: rows of ``core.SCORES``.
    """
    found = [f"Nothing may have been learned: {why}." for why in [why_nothing_learned(run.adapter)] if why]
    found += [*_hardly_trained(run), *_few_texts(run)]
    few = scores[(scores["model"] == "medrefl") & (scores["detectable"] > TOO_SMALL)]
    for row in few.to_dict("records"):
        least = f"{100 * row['detectable']:.0f} points"
        found.append(f"{row['source']}, {row['protocol']}: {_asked(row)} can show only gains of about {least} or more.")
    return found


def _hardly_trained(run: RunFiles) -> list[str]:
    trained = read_manifest(run).get("stages", {}).get("04_dpo_lora_4bit", {}).get("parameters", {})
    if not trained.get("kinds") or not run.pairs.exists():
        return []
    kinds = read_table(run.pairs, PAIRS)["kind"]
    counts = {kind: int((kinds == kind).sum()) for kind in trained["kinds"]}
    few = [f"{n} {kind}" for kind, n in counts.items() if n < FEW * sum(counts.values())]
    if not few:
        return []
    return [f"Of {sum(counts.values()):,} training pairs, {' and '.join(few)}: this run does not show what they teach."]


def _few_texts(run: RunFiles) -> list[str]:
    if not run.self_correction.exists():
        return []
    rates = read_table(run.self_correction, SELF_CORRECTION)
    counts = rates.loc[rates["figure"] == "net self-correction", "n"]
    few = not counts.empty and counts.min() < FEW_TEXTS
    return [f"Self-correction rests on {counts.min()} texts, which is too few to tell."] if few else []


def _asked(row: Mapping[str, Any]) -> str:
    return f"{row['n']:,} question{'s' * (row['n'] != 1)}"


def _points(share: float) -> str:
    return points(100 * share)
