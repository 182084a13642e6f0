"""Summary tables of a run and its stages, for terminal and notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table


def scores_table(scores: pd.DataFrame) -> Table:
    """Return the table of accuracies: base, Med-REFL, gain with 95% interval, exact McNemar p, number of questions.

    Args:
        scores: rows of ``core.SCORES``; one line per benchmark and protocol.
    """
    sources = scores["source"].nunique()
    named = f" on {scores['source'].iloc[0]}" if sources == 1 else ""
    table = Table(title=f"Accuracy{named} (strict: an unreadable answer counts as wrong)")
    headers = ("protocol", "base %", "Med-REFL %", "gain, points [95%]", "McNemar p", "n")
    for column in headers if sources == 1 else ("benchmark", *headers):
        table.add_column(column, justify="left" if column in ("protocol", "benchmark") else "right", no_wrap=True)
    for (source, protocol), rows in scores.groupby(["source", "protocol"], sort=False):
        models = {row.model: row for row in rows.itertuples()}
        base, ours = models.get("base"), models.get("medrefl")
        cells = [protocol, _percent(base), _percent(ours), *_gain(ours), f"{(ours or base).n:,}"]
        table.add_row(*(cells if sources == 1 else [source, *cells]))
    return table


def self_correction_table(rates: pd.DataFrame) -> Table:
    """Return the table of self-correction rates in percent, with the difference to the base in points.

    Args:
        rates: rows of ``core.SELF_CORRECTION`` of the models "base" and "medrefl"; one line per rate.
    """
    table = Table(title="Self-correction: continue from a wrong step, or after a finished answer and 'Wait,'")
    for column in ("rate", "base %", "Med-REFL %", "difference [95%]", "texts"):
        table.add_column(column, justify="left" if column == "rate" else "right", no_wrap=True)
    for name, rows in rates.groupby("figure", sort=False):
        models = {row.model: row for row in rows.itertuples()}
        net = name == "net self-correction"
        shares = [_share(models.get(model), "share", signed=net) for model in ("base", "medrefl")]
        ours = models.get("medrefl")
        counts = dict.fromkeys(f"{row.n:,}" for row in rows.itertuples())
        table.add_row(name, *shares, _between(ours, "difference", signed=True), "/".join(counts))
    return table


def pass_at_k_table(rates: pd.DataFrame, scores: pd.DataFrame) -> Table:
    """Return pass@k of base and adapter in percent, with the gain, under the greedy accuracy where it was measured.

    Args:
        rates: rows of ``core.PASS_AT_K``.
        scores: rows of ``core.SCORES`` of the same run.
    """
    samples = f", {rates['samples'].max():,} samples per question" if len(rates) else ""
    table = _plain(f"pass@k{samples}", "protocol", "base %", "Med-REFL %", "gain, points [95%]", "n")
    for source in dict.fromkeys(rates["source"]):
        table.add_row(source, style="bold")
        greedy = scores[(scores["source"] == source) & (scores["protocol"] == "greedy")]
        models = {row.model: row for row in greedy.itertuples()}
        base, ours = models.get("base"), models.get("medrefl")
        if base or ours:
            table.add_row(" greedy", _percent(base), _percent(ours), _gain(ours)[0], f"{(ours or base).n:,}")
        for k, rows in rates[rates["source"] == source].groupby("k", sort=True):
            models = {row.model: row for row in rows.itertuples()}
            base, ours = models.get("base"), models.get("medrefl")
            gain = _between(ours, "difference", signed=True)
            table.add_row(f" pass@{k}", _share(base, "share"), _share(ours, "share"), gain, f"{rows['n'].max():,}")
    return table


def robustness_table(robustness: pd.DataFrame) -> Table:
    """Return what changed questions do to the accuracy and the answers of base and adapter, in percent and points.

    The caption says how many answers are the suggested wrong one, without and with the suggestion.

    Args:
        robustness: rows of ``core.ROBUSTNESS``.
    """
    title = "Changed questions, greedy, in %; other: another option is chosen"
    table = _plain(title, "protocol", "arm", "before", "after", "points [95%]", "other")
    captions = []
    for row in robustness.itertuples():
        before, after, other = (_share(row, name) for name in ("accuracy_greedy", "accuracy", "changed"))
        table.add_row(row.protocol, row.model, before, after, _between(row, "difference", signed=True), other)
        if not pd.isna(row.followed):
            told = f"{_share(row, 'followed_greedy')}% without the suggestion, {_share(row, 'followed')}% with it"
            captions.append(f"{row.model}: the suggested wrong answer is given by {told}")
    table.caption = "\n".join(captions)
    return table


def ablation_table(ablation: pd.DataFrame) -> Table:
    """Return the table of an ablation: accuracy, gain with 95% interval, and gain per seed, for base and arms.

    Arms that were not trained are named in the last lines.

    Args:
        ablation: rows of ``core.ABLATION``.
    """
    first = ablation.iloc[0]
    pairs = ablation["n_pairs"].max()
    title = f"{pairs:,} pairs per arm, {int(first['n']):,} questions, {int(first['runs'])} seeds"
    table = _plain(title, "arm", "protocol", "acc. %", "gain, points", "per seed")
    for row in ablation[ablation["left_out"].isna()].itertuples():
        seeds = " ".join(f"{100 * gain:+.1f}" for gain in row.gains) or "-"
        table.add_row(row.arm, row.protocol, _share(row, "accuracy"), _between(row, "gain", signed=True), seeds)
    left_out = ablation[ablation["left_out"].notna()]
    table.caption = "\n".join(f"{row.arm}: {row.left_out}" for row in left_out.itertuples())
    return table


def ablation_self_correction_table(ablation: pd.DataFrame) -> Table:
    """Return the self-correction of base and arms: net in points with its 95% interval, parts and repair rate in %.

    Args:
        ablation: rows of ``core.ABLATION``.
    """
    title = "Self-correction after 'Wait,', in %; repair: after a wrong step"
    table = _plain(title, "arm", "net, points", "to right", "to wrong", "fake", "repair")
    for row in ablation[ablation["left_out"].isna()].drop_duplicates("arm").itertuples():
        parts = [_share(row, name) for name in ("mends", "breaks", "fake", "repair")]
        table.add_row(row.arm, _between(row, "net", signed=True), *parts)
    return table


def contrasts_table(contrasts: pd.DataFrame, figures: Sequence[str] = ()) -> Table:
    """Return the paired differences of the arms, in points, with 95% intervals and Holm's p; a section per figure.

    The caption says which difference the measured variance could detect with 80% power, at best and at worst.

    Args:
        contrasts: rows of ``core.CONTRASTS``.
        figures: the figures to show; none means all.
    """
    table = _plain("Differences, paired by question and seed; p by Holm", "arm", "against", "points [95%]", "p")
    captions = []
    for figure, rows in contrasts.groupby("figure", sort=False):
        if figures and figure not in figures:
            continue
        table.add_row(figure, style="bold")
        for row in rows.to_dict("records"):
            ends = (f"{100 * row[name]:+.1f}" for name in ("difference", "low", "high"))
            table.add_row(f" {row['arm']}", row["against"], "{} [{}, {}]".format(*ends), p_text(row["holm_p"]))
        table.add_section()
        low, high = (f"{100 * rows['detectable'].agg(end):.1f}" for end in ("min", "max"))
        counted = f"{rows['n'].max():,} questions and {rows['runs'].max()} seeds"
        captions.append(f"{figure}: {counted} detect {low} to {high} points with 80% power")
    table.caption = "\n".join(captions)
    return table


def composition_table(composition: pd.DataFrame) -> Table:
    """Return the table of both methods on both bases: accuracy of each arm, and each gain with its 95% interval.

    Args:
        composition: what ``evaluation.compare_bases`` returns.
    """
    asked = " to ".join(f"{n:,}" for n in sorted({composition["n"].min(), composition["n"].max()}))
    title = f"MedReason, Med-REFL and both: {asked} questions, paired; p by McNemar"
    table = _plain(title, "arm", "acc. %", "against", "gain, points", "p")
    for (source, protocol), rows in composition.groupby(["source", "protocol"], sort=False):
        table.add_row(f"{source}, {protocol}", style="bold")
        for row in rows.itertuples():
            against = row.against if isinstance(row.against, str) else "-"
            p = "-" if pd.isna(row.mcnemar_p) else p_text(row.mcnemar_p)
            table.add_row(f" {row.arm}", _share(row, "accuracy"), against, _between(row, "gain", signed=True), p)
        table.add_section()
    return table


def key_figures_table(figures: Mapping[str, Any]) -> pd.DataFrame:
    """Return the key numbers that a stage records, as text: one row per number."""
    return pd.DataFrame(key_figure_texts(figures), columns=["figure", "this run"]).set_index("figure").rename_axis(None)


def key_figure_texts(figures: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Return the key numbers of a stage as (name, text). Nested names are joined, with the prefix ``above``."""
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
    """Return a table without lines between columns, which fits 80 characters."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for column in columns:
        left = column in ("arm", "protocol", "against")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    return table


def _share(row: object | None, name: str, *, signed: bool = False) -> str:
    return "-" if row is None or pd.isna(getattr(row, name)) else f"{100 * getattr(row, name):{'+' * signed}.1f}"


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
    """Format the gain of a row of ``core.SCORES`` with its interval, in points."""
    return f"{100 * row.gain:+.1f} [{100 * row.gain_low:+.1f}, {100 * row.gain_high:+.1f}]"


def p_text(p: float) -> str:
    """Format a p-value with three decimals, or in scientific notation below 0.001."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"
