"""Write what was measured: JSON, a Markdown table per part, two plots, the profiler's tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt

from medrefl_utils.runs import provenance
from tests.conftest import ROOT
from tests.gpu.scale import card_gib, on_card

HIDDEN = ("case", "text", "partial")


def machine() -> dict[str, Any]:
    """Describe card, driver, machine, package versions and revision."""
    card = {"name": torch.cuda.get_device_name(), "gib": round(card_gib(), 1)} if on_card() else None
    about = {"card": card, "cuda": torch.version.cuda, **provenance.machine()}
    return about | {"versions": provenance.versions(), "git": provenance.git(ROOT)}


def write(results: Mapping[str, Any], out: Path) -> None:
    """Write all files but the log into ``out``, from what was measured so far."""
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (out / "table.md").write_text(markdown(results), encoding="utf-8")
    rows = {part: found["rows"] for part, found in results["parts"].items()}
    texts = [f"{row['case']}\n{row['text']}" for row in rows.get("profiling", []) if "text" in row]
    if texts:
        (out / "profile.txt").write_text("\n\n".join(texts), encoding="utf-8")
    plot_memory([row for row in rows.get("training", []) if row.get("peak_gib") and "cap_gib" in row], out)
    plot_speed(rows, out)


def markdown(results: Mapping[str, Any]) -> str:
    """Return a heading with card and versions, then a table per part and case."""
    about = results["machine"]
    card = f"{about['card']['name']}, {about['card']['gib']} GiB" if about["card"] else f"no card: {about['cpu']}"
    used = ", ".join(f"{name} {v}" for name, v in about["versions"].items() if v)
    revision = (about["git"]["revision"] or "unknown")[:10] + (" with changes" if about["git"]["dirty"] else "")
    lines = [f"# {card}", "", f"Scale {results['scale']}, Python {about['python']}, {used}. Revision {revision}.", ""]
    for part, found in results["parts"].items():
        lines += [f"## {part}: {found['status']}, {found['seconds']:.0f} s", ""]
        if "said" in found:
            lines += ["```", *found["said"].splitlines()[-12:], "```", ""]
        final = {id(row) for row in found["rows"] if not row.get("partial")}
        rows = [row for row in found["rows"] if id(row) in final or found["status"] != "done"]
        for case in dict.fromkeys(row["case"] for row in rows if "text" not in row):
            lines += [f"**{case}**", "", *table([row for row in rows if row["case"] == case]), ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Yield the lines of a Markdown table with every key of the rows as a column."""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in HIDDEN]
    yield "| " + " | ".join(name.replace("_", " ") for name in columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(shown(row.get(name)) for name in columns) + " |"


def shown(value: Any) -> str:
    """Return a value as a table cell: four significant digits, no bar."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
    return text.replace("|", "\\|").replace("\n", " ")


def plot_memory(rows: list[dict[str, Any]], out: Path) -> None:
    """Plot measured and predicted peak memory per cap."""
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    names = [f"{row['cap_gib']:g} GiB" if row["cap_gib"] else "no cap" for row in rows]
    names = [f"{name}\n{row['length']:,} tokens" for name, row in zip(names, rows, strict=True)]
    for shift, (key, label, color) in enumerate(
        (("peak_gib", "measured (torch)", "#0072B2"), ("predicted_gib", "predicted (with CUDA's own)", "#E69F00"))
    ):
        axis.bar(
            [i + 0.4 * shift - 0.2 for i in range(len(rows))], [row[key] for row in rows], 0.4, label=label, color=color
        )
    axis.set_xticks(range(len(rows)), names)
    axis.set_ylabel("peak memory [GiB]")
    axis.set_title("DPO of the first architecture in NF4: largest length per cap")
    axis.legend(frameon=False)
    figure.savefig(out / "memory.png", dpi=130)
    plt.close(figure)


def plot_speed(rows: Mapping[str, list[dict[str, Any]]], out: Path) -> None:
    """Plot tokens per second of ours beside the peers: training, then rollout."""
    trained = [row for row in rows.get("training", []) if row.get("case") == "speed" and "tokens_per_second" in row]
    grown = [row for row in rows.get("rollout", []) if "generate" in row]
    if not trained and not grown:
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for row, color in ((row, {"ours": "#0072B2", "trl": "#999999"}[row["trainer"]]) for row in trained):
        axes[0].bar(f"{row['pairs']}\n{row['trainer']}", row["tokens_per_second"], color=color)
    for row in grown:
        name = f"{row['model']}\n{'16 bit' if row['weights'] == 'none' else 'NF4'}"
        axes[1].bar(f"{name}\nours", row["rollout"], color="#0072B2")
        axes[1].bar(f"{name}\ngenerate", row["generate"], color="#999999")
    axes[0].set_title("DPO")
    axes[1].set_title("Tree rollout")
    for axis in axes:
        axis.set_ylabel("tokens per second")
        axis.tick_params("x", labelsize=7)
    figure.savefig(out / "speed.png", dpi=130)
    plt.close(figure)
