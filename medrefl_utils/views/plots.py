"""The plots of the notebooks and the report: each function takes a table and returns a matplotlib Figure.

Colours are safe for colour-blind readers (orange is wrong, blue is correct, grey is the base model) and never the only
sign: a number, a mark or a hatch shows the same. Pyplot is not used, so no figure is shown or kept open implicitly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.store import write_whole
from medrefl_utils.trees.values import complete_steps
from medrefl_utils.views.display_text import font_families, wrap_text
from medrefl_utils.views.tree_layout import places, step_places

RIGHT, WRONG, BASE, INK = "#2166ac", "#d95f02", "#9a9a9a", "#222222"
VALUE_COLOURS = LinearSegmentedColormap.from_list("value", [WRONG, "#fdb863", "#f7f7f7", "#92c5de", RIGHT])
DPI = 150  # of saved plots

_SMALL_TREE = 16  # maximum number of steps for which their texts fit beside the values
# Per marked path: colour, line style, and its distance from the branch (inches).
_MARKS = {"left": (INK, ":", 0.0), "chosen": (RIGHT, "-", -0.035), "rejected": (WRONG, "--", 0.035)}
_FLAT = 0.02  # a smaller range of a training curve is shown as flat (ours)
_P = ParamSpec("_P")


class Picture(Figure):
    """A Figure that a notebook displays as a cell's value, without pyplot."""

    def _repr_png_(self) -> bytes:
        data = BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


def styled(plot: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Give a plot the common style, whatever the user's matplotlib settings are."""

    @wraps(plot)
    def in_style(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        style = {
            **{"font.family": font_families(), "font.size": 10, "figure.dpi": 120},
            **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888"},
            **{"axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlepad": 10},
            **{"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK},
            **{"legend.frameon": False, "hatch.linewidth": 0.6, "text.parse_math": False},
        }
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(style)
            return plot(*args, **kwargs)

    return in_style


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG (for the report) and SVG; return the PNG's path.

    ``path`` has no suffix; its folder is created. The same figure gives the same bytes.
    """
    file = path.with_name(f"{path.name}.png")
    with mpl.rc_context({"svg.hashsalt": "medrefl"}):
        for suffix, how in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": DPI})):
            write_whole(file.with_suffix(suffix), partial(figure.savefig, format=suffix[1:], **how))
    return file


class Live:
    """A plot of a growing table, updated while a notebook's cell runs; outside a notebook it does nothing.

    ``draw`` makes the figure. It is called at most every ``seconds``, so that drawing takes little of a stage's time.
    """

    def __init__(self, draw: Callable[[pd.DataFrame], Figure], seconds: float = 5.0) -> None:
        self.draw, self.seconds, self.drawn = draw, seconds, -math.inf
        self.handle: Any = None

    def __call__(self, table: pd.DataFrame) -> None:
        """Draw the current table, unless the last drawing is more recent than ``seconds``."""
        from IPython import get_ipython
        from IPython.display import display

        if getattr(get_ipython(), "kernel", None) is None or time.monotonic() - self.drawn < self.seconds:
            return
        figure = self.draw(table)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.monotonic()

    def close(self) -> None:
        """Remove the plot; a later cell shows the final one."""
        if self.handle is not None:
            self.handle.update({"text/plain": ""}, raw=True)


def signed(value: float, digits: int = 2) -> str:
    """Format a value with its sign: +0.20, −0.33, 0. The sign repeats what the colour shows."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    zeros = f"{0:.{digits}f}"
    return "0" if text[1:] == zeros else text.removesuffix(zeros[1:])


def points(value: float, digits: int = 1) -> str:
    """Format percentage points with their sign and all digits, so that they align in a column: +4.0, −0.5, 0.0."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if text.strip("+−0.") else text[1:]


@styled
def tree(
    steps: pd.DataFrame,
    values: pd.DataFrame,
    question_id: str,
    marked: Mapping[str, Sequence[int]] | None = None,
    kind: str = "",
) -> Figure:
    """Draw the tree of one question, each step coloured by V; leaves show their answer and ✓ or ✗.

    The tree is drawn from left to right. A tree of up to 16 steps is drawn as an indented list instead, with the texts
    of the steps, cut to two lines.

    Args:
        steps: the table STEPS; the columns that ``trees.step_values`` needs are enough.
        values: the table VALUES.
        question_id: the question.
        marked: paths to draw: {"chosen", "rejected" or "left" (the wrong path before a correction): node ids}.
        kind: kind of pair, written before the question's id in the title.

    Raises:
        MedReflError: the question has no tree, or its tree is malformed.
    """
    rows_of_tree = steps[steps["question_id"] == question_id]
    if rows_of_tree.empty:
        raise MedReflError(f"question {question_id!r} has no tree in this table of steps")
    table = complete_steps(rows_of_tree).merge(values, on=["question_id", "node_id"], how="left")
    rows = {row.node_id: row for row in table.itertuples()}
    children: dict[int, list[int]] = {node: [] for node in rows}
    root = 0
    for node in sorted(rows):
        if pd.isna(rows[node].parent_id):
            root = node
        else:
            children[int(rows[node].parent_id)].append(node)
    texts = len(rows) <= _SMALL_TREE
    place = step_places(children, root) if texts else places(children, root)
    depth = max(x for x, _ in place.values())
    height = max(y for _, y in place.values()) + 1

    column, line = (0.32, 0.4) if texts else (1.15, 0.34)  # inches a depth and a line
    named = f"{kind.replace('_', ' ')}, {question_id}" if kind else question_id
    title = f"{named}: {rows[root].right:.0f} correct and {rows[root].wrong:.0f} wrong leaves"
    width = max(column * depth + (6.4 if texts else 1.3), 0.3 + 0.1 * len(title) + 2.8 * bool(marked))
    size = (width, line * height + 0.7)
    figure = Picture(size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)  # in inches, so that boxes have the same shape in a tree of any size
    at = {node: (0.5 + column * x, 0.75 + line * y) for node, (x, y) in place.items()}
    for node, below in children.items():
        for child in below:
            (x0, y0), (x1, y1) = at[node], at[child]
            turn = x1 - 0.45  # below the parent's box in a list, otherwise close to the child
            axes.plot([x0, turn, turn, x1], [y0, y0, y1, y1], color="#b5b5b5", lw=1, zorder=1)
    parent = {child: node for node, below in children.items() for child in below}
    for name, nodes in (marked or {}).items():
        colour, line_style, lift = _MARKS[name]
        for node in nodes:
            (x0, y0), (x1, y1) = at[parent[node]], at[node]
            bend = x1 - 0.45 + lift
            axes.plot(
                [x0, bend, bend, x1], [y0 + lift, y0 + lift, y1 + lift, y1 + lift], line_style, color=colour, lw=2
            )
        axes.plot([], [], line_style, color=colour, lw=2, label="wrong path" if name == "left" else name)
    if marked:
        figure.legend(loc="upper right", ncols=len(marked), fontsize=8, borderaxespad=0.3)
    for node, row in rows.items():
        _draw_step(axes, at[node], row, room=width - at[node][0] if texts else 0, is_leaf=not children[node])
    axes.text(0.15, 0.3, title, weight="bold", size=11)
    return figure


def pair_tree(steps: pd.DataFrame, values: pd.DataFrame, pair: pd.Series) -> Figure:
    """Draw the tree of a pair's question with the paths of both sides, and the wrong path before a reflection."""
    names = {"left": "left_nodes", "chosen": "chosen_nodes", "rejected": "rejected_nodes"}
    marked = {name: pair[column] for name, column in names.items() if pair[column] is not None}
    return tree(steps, values, pair["question_id"], marked, pair["kind"])


def _draw_step(axes: Axes, at: tuple[float, float], row: Any, *, room: float, is_leaf: bool) -> None:
    """Draw a step's box, its weight and, if ``room`` (inches from the box's middle) is not 0, its text."""
    x, y = at
    label = signed(row.value)
    if is_leaf:
        label = f"{row.answer if isinstance(row.answer, str) else '?'} {'✓' if row.outcome > 0 else '✗'}"
    box = FancyBboxPatch((x - 0.3, y - 0.11), 0.6, 0.22, boxstyle="round,pad=0.02", mutation_aspect=1)
    box.set(facecolor=VALUE_COLOURS((row.value + 1) / 2), edgecolor=INK, linewidth=0.8, zorder=2)
    axes.add_patch(box)
    ink = "white" if abs(row.value) > 0.75 else INK
    axes.text(x, y, label, ha="center", va="center_baseline", size=8.5, color=ink, zorder=3)
    beside = 0.36
    if row.weight > 1:
        weight = axes.text(x + beside, y, f"×{row.weight}", ha="left", va="center_baseline", size=7.5, zorder=3)
        weight.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # a marked path may cross it
        beside += 0.09 * len(weight.get_text()) + 0.1
    if room:
        text = "the question" if pd.isna(row.parent_id) else " ".join(row.text.split())
        lines = wrap_text(text, int((room - beside - 0.1) / 0.073), max_lines=2)
        axes.text(x + beside, y, "\n".join(lines), va="center", size=8, linespacing=1.2, zorder=3)


@styled
def values_by_depth(values: pd.DataFrame, steps: pd.DataFrame) -> Figure:
    """Plot, per depth, the share of steps whose V is -1, below 0, 0, above 0 or +1, with mean V and their number."""
    table = values.merge(steps[["question_id", "node_id", "depth"]], on=["question_id", "node_id"])
    table = table[table["depth"] > 0]
    bins = [-np.inf, -1, -1e-12, 1e-12, 1 - 1e-12, np.inf]
    names = ["−1: all wrong", "below 0 (−)", "0", "above 0 (+)", "+1: all correct"]
    kind = pd.cut(table["value"], bins, labels=names)
    share = pd.crosstab(table["depth"], kind, normalize="index").reindex(columns=names, fill_value=0.0)
    by_depth = table.groupby("depth")["value"].agg(["mean", "size"])

    figure = Picture((max(7.4, 2.6 + 0.75 * len(share)), 4.2), layout="constrained")
    axes = figure.subplots()
    bottom = np.zeros(len(share))
    hatches = ["///", "/", "", "\\", "\\\\\\"]
    for place, (name, hatch) in enumerate(zip(names, hatches, strict=True)):
        bars = axes.bar(share.index, share[name], 0.8, bottom=bottom, color=VALUE_COLOURS(place / 4), label=name)
        for bar in bars:
            bar.set(hatch=hatch, edgecolor="white" if hatch else "#bbbbbb", linewidth=0 if hatch else 0.6)
        bottom += share[name].to_numpy()
    for depth, mean, size in by_depth.itertuples():
        axes.text(depth, 1.015, f"{signed(mean)}\nn {size:,}", ha="center", va="bottom", size=7.5)
    axes.set(xlabel="depth (steps from the question)", ylabel="share of steps", ylim=(0, 1))
    decided = share[names[0]] + share[names[-1]]
    first, last = share.index.min(), share.index.max()
    title = (
        f"All leaves below a step agree (V = ±1): {decided[first]:.0%} of steps at depth {first}, "
        f"{decided[last]:.0%} at depth {last}\n(above the bars: mean V and number of steps n)"
    )
    figure.suptitle(
        title, x=0.01, ha="left", size=11, weight="bold"
    )  # over the whole figure: the axes of two depths are narrow
    axes.set_xticks(share.index)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", title="V")
    return figure


@styled
def outcomes(steps: pd.DataFrame) -> Figure:
    """Plot a histogram of the questions' share of correct leaves, each leaf counted with its weight."""
    leaves = steps[steps["outcome"].notna()]
    right = (leaves["weight"] * (leaves["outcome"] > 0)).groupby(leaves["question_id"]).sum()
    share = right / leaves["weight"].groupby(leaves["question_id"]).sum()
    mixed = share[(share > 0) & (share < 1)]
    counts = [int((share == 0).sum()), *np.histogram(mixed, np.linspace(0, 1, 11))[0], int((share == 1).sum())]

    figure = Picture((7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    middle = np.linspace(0.05, 0.95, 10)
    places = [-0.12, *middle, 1.12]
    colours = [WRONG, *VALUE_COLOURS(middle), RIGHT]
    bars = axes.bar(places, counts, 0.09, color=colours, edgecolor=INK, linewidth=0.6)
    axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts], size=8, padding=2)
    axes.set_xticks([-0.12, 0, 0.2, 0.4, 0.6, 0.8, 1, 1.12])
    axes.set_xticklabels(["all\nwrong", "0%", "20%", "40%", "60%", "80%", "100%", "all\ncorrect"])
    axes.set(xlabel="share of correct leaves per question", ylabel="number of questions")
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_title(f"{len(mixed):,} of {len(share):,} questions have both correct and wrong leaves")
    return figure


@styled
def pair_margins(pairs: pd.DataFrame) -> Figure:
    """Plot a histogram of the margin in S between the two sides of a pair, by kind of pair."""
    margin = pairs["chosen_value"] - pairs["rejected_value"]
    kinds = list(dict.fromkeys(pairs["kind"]))
    figure = Picture((7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    if kinds:
        low = min(0.0, np.floor(margin.min() * 10) / 10)
        bins = np.arange(low, 2.05, 0.1)
        colours = [RIGHT, "#92c5de", "#fdb863", BASE, "#f7f7f7"][: len(kinds)]
        shares = [margin[pairs["kind"] == kind] for kind in kinds]
        _, _, drawn = axes.hist(shares, bins, stacked=True, color=colours, label=kinds, edgecolor="white")
        hatches = ["", "///", "\\\\\\", "...", "xxx"]
        for bars, hatch in zip(drawn if len(kinds) > 1 else [drawn], hatches, strict=False):
            for bar in bars:
                bar.set_hatch(hatch)
        axes.axvline(margin.median(), color=INK, lw=1, ls="--", label=f"median {signed(margin.median())}")
        axes.legend()
        wider = (margin > 0).mean()
        title = f"In {wider:.0%} of {len(pairs):,} pairs the chosen path has the higher S"
    else:
        title = "No pairs"
    axes.set(xlabel="margin S(chosen) − S(rejected)", ylabel="number of pairs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_title(title)
    return figure


@styled
def pair_lengths(pairs: pd.DataFrame) -> Figure:
    """Plot how many tokens longer the chosen side is, by kind of pair: box plots, with the mean as a diamond."""
    kinds = list(dict.fromkeys(pairs["kind"]))
    figure = Picture((7.2, 1.3 + 0.62 * max(1, len(kinds))), layout="constrained")
    axes = figure.subplots()
    sides = pairs[["chosen_tokens", "rejected_tokens"]].astype(float)
    surplus = sides["chosen_tokens"] - sides["rejected_tokens"]
    if kinds:
        drawn = axes.boxplot(
            [surplus[pairs["kind"] == kind] for kind in kinds],
            orientation="horizontal",
            widths=0.5,
            showmeans=True,
            patch_artist=True,
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": BASE},
            meanprops={"marker": "D", "markersize": 5, "markerfacecolor": WRONG, "markeredgecolor": INK},
            medianprops={"color": INK},
        )
        for box in drawn["boxes"]:
            box.set(facecolor="#d1e5f0", edgecolor=INK)
        means = sides.groupby(pairs["kind"]).mean()
        labels = [f"{kind}\n{means.loc[kind].iloc[0]:.0f} vs. {means.loc[kind].iloc[1]:.0f}" for kind in kinds]
        axes.set_yticks(range(1, len(kinds) + 1), labels)
        axes.invert_yaxis()
        axes.axvline(0, color=BASE, lw=1, ls="--", zorder=0)
        longer = (surplus > 0).mean()
        title = f"In {longer:.0%} of {len(pairs):,} pairs the chosen side is longer"
    else:
        title = "No pairs"
    axes.set(xlabel="chosen − rejected (tokens); labels: mean tokens of chosen vs. rejected")
    axes.set_title(title)
    return figure


@styled
def training_curves(log: pd.DataFrame) -> Figure:
    """Plot DPO loss, reward margin and reward accuracy: each step (thin), moving average over 10% of steps (thick).

    A title gives the first step and the mean of the last 20% of steps, which the run records. ``log`` has one row per
    logged step: step, loss, margin (of the rewards, beta times nats), accuracy (0 to 1).
    """
    figure = Picture((10.5, 3.2), layout="constrained")
    panels = (
        ("loss", "DPO loss (nats)", RIGHT, np.log(2), "ln 2: no preference"),
        ("margin", "reward margin (β × nats)", WRONG, 0.0, "no preference"),
        ("accuracy", "reward accuracy", INK, 0.5, "chance"),
    )
    for axes, (name, label, colour, level, level_name) in zip(figure.subplots(1, 3), panels, strict=True):
        known = log[log[name].notna()]
        axes.axhline(level, color=BASE, lw=1, ls="--", label=level_name)
        window = max(1, len(known) // 10)
        axes.plot(known["step"], known[name], color=colour, marker="o" if len(known) < 40 else "", ms=3, lw=0.6)
        axes.plot(known["step"], known[name].rolling(window, min_periods=1).mean(), color=colour, lw=1.8)
        first, last = known[name].head(1).mean(), known[name].tail(max(1, len(known) // 5)).mean()
        shown = {"loss": "{:.2f}".format, "margin": signed, "accuracy": "{:.0%}".format}[name]
        axes.set_title(f"{label.split(' (')[0]}: {shown(first)} → {shown(last)}")
        axes.set(xlabel="training step", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(fontsize=8)
        axes.ticklabel_format(axis="y", useOffset=False)
        if np.ptp(axes.get_ylim()) < _FLAT:  # rounding errors are no curve
            axes.set_ylim(level - _FLAT, level + _FLAT)
        if name == "accuracy":
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


@styled
def loss_curve(log: pd.DataFrame) -> Figure:
    """Plot a training loss and its moving average over 20 steps.

    ``log`` has ``step`` and ``loss`` (nats per token), and may have ``held_out_loss`` (NaN where it was not measured).
    """
    figure = Picture((7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    smooth = log["loss"].rolling(20, min_periods=1).mean()
    axes.plot(log["step"], log["loss"], color=BASE, lw=0.6, label="each step")
    axes.plot(log["step"], smooth, color=RIGHT, lw=1.6, label="moving average of 20 steps")
    if "held_out_loss" in log and len(asked := log[log["held_out_loss"].notna()]):
        axes.plot(asked["step"], asked["held_out_loss"], color=WRONG, marker="s", ls="--", label="held-out questions")
    axes.set(xlabel="training step", ylabel="loss (nats per token)", ylim=(0, None))
    axes.set_title(f"Loss: {log['loss'].iloc[0]:.2f} → {smooth.iloc[-1]:.2f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


@styled
def accuracy_bars(scores: pd.DataFrame) -> Figure:
    """Plot strict accuracy of base and adapter with 95% intervals: a panel per benchmark, a group per protocol."""
    sources = list(dict.fromkeys(scores["source"]))
    protocols = list(dict.fromkeys(scores["protocol"]))
    width = max(4.2, 1.2 + 1.7 * len(protocols))
    figure = Picture((min(width * len(sources), 14), 4.2), layout="constrained")
    grid = figure.subplots(1, len(sources), squeeze=False, sharey=True)[0]
    looks = {"base": (BASE, "", "base"), "medrefl": (RIGHT, "///", "Med-REFL")}
    for axes, source in zip(grid, sources, strict=True):
        of_source = scores[scores["source"] == source]
        for offset, (model, (colour, hatch, name)) in zip((-0.2, 0.2), looks.items(), strict=True):
            rows = of_source[of_source["model"] == model].set_index("protocol").reindex(protocols)
            error = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
            place = np.arange(len(protocols)) + offset
            bars = axes.bar(place, rows["accuracy"], 0.36, yerr=error, capsize=4, color=colour, label=name)
            for bar in bars:
                bar.set(hatch=hatch, edgecolor="white")
            for x, row in zip(place, rows.itertuples(), strict=True):
                if not np.isnan(row.accuracy):
                    high = max(row.accuracy_high, row.accuracy)
                    axes.text(x, high + 0.015, f"{row.accuracy:.1%}", ha="center", va="bottom", size=8.5)
        axes.set_xticks(range(len(protocols)), [_group_name(of_source, protocol) for protocol in protocols])
        axes.set_ylim(0, 1.08)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        questions = int(of_source["n"].max())
        axes.set_title(f"{source}: {questions:,} questions")
    grid[0].set_ylabel("accuracy, 95% interval")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


_LOWER_IS_BETTER = ("right to wrong", "fake reflection rate")


@styled
def ablation(contrasts: pd.DataFrame) -> Figure:
    """Plot each arm's paired difference to the base with its 95% interval, a panel per figure.

    Args:
        contrasts: rows of ``core.CONTRASTS``. A filled mark: the interval excludes 0 and Holm's p is below 0.05; it has
            the colour of right or wrong answers.
    """
    shown = contrasts[contrasts["against"] == "base"]
    figures, arms = (list(dict.fromkeys(shown[name])) for name in ("figure", "arm"))
    across = min(4, max(1, len(figures)))
    down = -(-len(figures) // across) if figures else 1
    size = (2.6 * across + 1.6, down * (1.0 + 0.45 * max(1, len(arms))))
    figure = Picture(size, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, name in zip(grid.ravel(), figures, strict=False):
        rows = shown[shown["figure"] == name].set_index("arm").reindex(arms)
        for place, row in enumerate(rows.itertuples()):
            middle, low, high = (100 * value for value in (row.difference, row.low, row.high))
            sure = row.holm_p < 0.05 and (row.low > 0 or row.high < 0)
            better = (middle > 0) != (name in _LOWER_IS_BETTER)
            colour = (RIGHT if better else WRONG) if sure else INK
            drawn = {"fmt": "o", "capsize": 3, "color": colour, "mfc": colour if sure else "white"}
            axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], **drawn)
            label = points(middle)
            axes.annotate(label, (middle, place), (0, 6), textcoords="offset points", ha="center", size=8)
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_title(name)
        axes.set_xlabel("points against the base, 95% interval")
        axes.margins(x=0.12)
    for axes in grid.ravel()[len(figures) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(arms)), arms)
        axes.set_ylim(len(arms) - 0.4, -0.7)
    return figure


def _group_name(scores: pd.DataFrame, protocol: str) -> str:
    """Return a protocol's label with its measured gain."""
    gain = scores.loc[(scores["protocol"] == protocol) & scores["gain"].notna(), "gain"]
    return f"{protocol}\n{points(100 * gain.iloc[0])} points" if len(gain) else protocol
