"""The tables that a run and its stages end with."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table


def scores_table(scores: pd.DataFrame) -> Table:
    """Base and Med-REFL accuracy, the gain with its 95% interval, exact McNemar p, n questions; one row a protocol.

    Args:
        scores: rows of ``records.SCORES``.
    """
    sources = scores["source"].nunique()
    named = f" on {scores['source'].iloc[0]}" if sources == 1 else ""
    table = Table(title=f"Accuracy{named}, strict: an unreadable answer is wrong")
    headers = ("protocol", "base %", "Med-REFL %", "gain, points [95%]", "McNemar p", "n")
    for column in headers if sources == 1 else ("benchmark", *headers):
        table.add_column(column, justify="left" if column in ("protocol", "benchmark") else "right", no_wrap=True)
    for (source, protocol), rows in scores.groupby(["source", "protocol"], sort=False):
        models = {row.model: row for row in rows.itertuples()}
        base, ours = models.get("base"), models.get("medrefl")
        cells = [protocol, _percent(base), _percent(ours), *_gain(ours), f"{(ours or base).n:,}"]
        table.add_row(*(cells if sources == 1 else [source, *cells]))
    return table


def self_correction_table(claims: pd.DataFrame) -> Table:
    """Repair, reflection and their differences to the base, in percent and points; one row a figure.

    Args:
        claims: rows of ``records.CLAIMS`` of the models "base" and "medrefl".
    """
    table = Table(title="Behind a wrong step, or a finished answer and 'Wait,'")
    for column in ("figure", "base %", "Med-REFL %", "difference [95%]", "texts"):
        table.add_column(column, justify="left" if column == "figure" else "right", no_wrap=True)
    for figure, rows in claims.groupby("figure", sort=False):
        models = {row.model: row for row in rows.itertuples()}
        shares = [_share(models.get(name), "share") for name in ("base", "medrefl")]
        ours = models.get("medrefl")
        counts = dict.fromkeys(f"{row.n:,}" for row in rows.itertuples())
        table.add_row(figure, *shares, _between(ours, "difference", signed=True), "/".join(counts))
    return table


def ablation_table(ablation: pd.DataFrame) -> Table:
    """Base and arms of an ablation: accuracy, gain with its 95% interval, and the gain of each seed.

    Args:
        ablation: rows of ``records.ABLATION``.
    """
    first = ablation.iloc[0]
    pairs = ablation["n_pairs"].max()
    title = f"{pairs:,} pairs an arm, {first['n']:,} questions, {first['runs']} seeds"
    table = _plain(title, "arm", "protocol", "acc. %", "gain, points", "by seed")
    for row in ablation.itertuples():
        seeds = " ".join(f"{100 * gain:+.1f}" for gain in row.gains) or "-"
        table.add_row(row.arm, row.protocol, _share(row, "accuracy"), _between(row, "gain", signed=True), seeds)
    return table


def ablation_self_correction_table(ablation: pd.DataFrame) -> Table:
    """Base and arms of an ablation: repair rate and fake reflection rate in percent, with 95% intervals.

    Args:
        ablation: rows of ``records.ABLATION``.
    """
    table = _plain("Behind a wrong step; behind a wrong answer and 'Wait,'", "arm", "repair %", "fake reflection %")
    for row in ablation.drop_duplicates("arm").itertuples():
        table.add_row(row.arm, _between(row, "repair"), _between(row, "fake"))
    return table


def key_figures_table(figures: Mapping[str, Any]) -> pd.DataFrame:
    """A stage's headline figures, as it records them, as text: a row a figure."""
    return pd.DataFrame(key_figure_texts(figures), columns=["figure", "this run"]).set_index("figure").rename_axis(None)


def key_figure_texts(figures: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """A stage's headline figures as (name, text), nested ones with their names joined below ``above``."""
    found: list[tuple[str, str]] = []
    for name, value in figures.items():
        label = f"{above}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            found += key_figure_texts(value, f"{label}: ")
        elif value is None or value != value:  # a NaN is null in a manifest
            found.append((label, "-"))
        elif isinstance(value, Integral) and not isinstance(value, bool):
            found.append((label, f"{value:,}"))
        elif isinstance(value, Real) and not isinstance(value, bool):
            found.append((label, f"{value:.4g}"))
        else:
            found.append((label, str(value)))
    return found


def _plain(title: str, *columns: str) -> Table:
    """A table that fits 80 characters: no lines between columns."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("arm", "protocol") else "right", no_wrap=True)
    return table


def _share(row: object | None, name: str) -> str:
    return "-" if row is None or pd.isna(getattr(row, name)) else f"{100 * getattr(row, name):.1f}"


def _between(row: object | None, name: str, *, signed: bool = False) -> str:
    if row is None or pd.isna(getattr(row, name)):
        return "-"
    middle, low, high = (f"{100 * getattr(row, name + end):{'+' * signed}.1f}" for end in ("", "_low", "_high"))
    return f"{middle} [{low}, {high}]"


def _percent(row: object | None) -> str:
    return "-" if row is None else f"{100 * row.accuracy:.1f}"


def _gain(row: object | None) -> tuple[str, str]:
    return ("-", "-") if row is None or pd.isna(row.gain) else (gain_text(row), p_text(row.mcnemar_p))


def gain_text(row: object) -> str:
    """The gain of a row of ``records.SCORES`` with its interval, in points."""
    return f"{100 * row.gain:+.1f} [{100 * row.gain_low:+.1f}, {100 * row.gain_high:+.1f}]"


def p_text(p: float) -> str:
    """A p-value, with three digits or as a power of ten."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"
