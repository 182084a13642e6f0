"""The plot of notebook 08: the filter's answers with and without chains, and what the graph says of the steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from medrefl_utils.evaluation.statistics import share_interval
from medrefl_utils.views.plots import BASE, RIGHT, WRONG, Picture, styled

_CONDITIONS = {"with": "with\nits chain", "without": "without\na chain", "other": "with another\nquestion's chain"}
_MARKS = {"supported": (RIGHT, ""), "contradicted": (WRONG, "///"), "unknown": (BASE, "...")}


@styled
def chains(table: pd.DataFrame) -> Figure:
    """Plot the filter's pass rates with 95% intervals, and the chains' steps by the graph's mark.

    Args:
        table: rows of ``core.CHAINS``.
    """
    figure = Picture((8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _pass_rates(left, table[table["pass_with"].notna()])
    _marks(right, table[table["chain"].notna()])
    return figure


def _pass_rates(axes: Axes, rated: pd.DataFrame) -> None:
    for place, condition in enumerate(_CONDITIONS):
        rates = rated[f"pass_{condition}"].dropna().to_numpy()
        if not len(rates):
            continue
        share, low, high = share_interval(rates)
        look = dict(color=RIGHT if condition == "with" else BASE, hatch="" if condition == "with" else "///")
        axes.bar(place, share, 0.6, yerr=[[share - low], [high - share]], capsize=4, edgecolor="white", **look)
        axes.text(place, high + 0.02, f"{share:.1%}", ha="center", va="bottom", size=8.5)
    axes.set_xticks(range(len(_CONDITIONS)), _CONDITIONS.values())
    axes.set(ylim=(0, 1.1), ylabel="right answers, 95% interval")
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(f"Filter: {len(rated):,} chains" if len(rated) else "No filter")


def _marks(axes: Axes, chains: pd.DataFrame) -> None:
    counts = {mark: int(chains[mark].sum()) for mark in _MARKS}
    total = max(1, sum(counts.values()))
    for place, (mark, (colour, hatch)) in enumerate(_MARKS.items()):
        axes.barh(place, counts[mark] / total, 0.6, color=colour, hatch=hatch, edgecolor="white")
        axes.text(counts[mark] / total + 0.02, place, f"{counts[mark] / total:.1%}", va="center", size=8.5)
    axes.set_yticks(range(len(_MARKS)), _MARKS)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.15), xlabel="share of steps")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_title(f"{sum(counts.values()):,} steps, held against the graph")
