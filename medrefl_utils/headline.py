"""The table that a run ends with."""

from __future__ import annotations

import pandas as pd
from rich.table import Table


def headline(scores: pd.DataFrame) -> Table:
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
