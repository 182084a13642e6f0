"""Show two or more runs side by side: training curves and scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from medrefl_utils.views.plots import BASE, RIGHT, WRONG, Picture, styled
from medrefl_utils.views.summary_tables import gain_text, p_text

# Safe for colour-blind readers; the line style tells runs apart as well.
_LOOKS = [(RIGHT, "-"), (WRONG, "--"), ("#5b5b5b", ":"), ("#1b9e77", "-."), ("#b2abd2", "-")]


@styled
def training_of_runs(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot DPO loss, reward margin and reward accuracy of several runs: moving averages over 10% of each run's steps.

    Args:
        logs: {name of the run: its table TRAINING}, one or more.
    """
    figure = Picture((10.5, 3.6), layout="constrained")
    panels = (("loss", "DPO loss (nats)"), ("margin", "reward margin (β × nats)"), ("accuracy", "reward accuracy"))
    for axes, (column, label) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.axhline({"loss": np.log(2), "margin": 0.0, "accuracy": 0.5}[column], color=BASE, lw=1, ls=":")
        for place, (name, log) in enumerate(logs.items()):
            colour, line_style = _LOOKS[place % len(_LOOKS)]
            known = log[log[column].notna()]
            smooth = known[column].rolling(max(1, len(known) // 10), min_periods=1).mean()
            axes.plot(known["step"], smooth, color=colour, ls=line_style, lw=1.6, label=name)
        axes.set(xlabel="training step", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if column == "accuracy":
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(logs), 4))
    return figure


def runs_side_by_side(compared: pd.DataFrame, first: str) -> pd.DataFrame:
    """Return the scores of later runs beside those of the first one, as text for a notebook.

    Args:
        compared: what ``evaluation.compare_with_first`` returns.
        first: name of the first run.

    Returns:
        Index benchmark, protocol, model and run; columns: the accuracy of the first run and of the other one in
        percent, the gain in points with its 95% interval, McNemar's p, and the number of common questions.
    """
    rows = [
        {
            **{"benchmark": row.source, "protocol": row.protocol, "model": row.model, "run": row.run},
            **{f"{first} %": f"{100 * row.accuracy_first:.1f}", "run %": f"{100 * row.accuracy:.1f}"},
            **{"gain, points [95%]": gain_text(row), "McNemar p": p_text(row.mcnemar_p), "questions": f"{row.n:,}"},
        }
        for row in compared.itertuples()
    ]
    return pd.DataFrame(rows).set_index(["benchmark", "protocol", "model", "run"])
