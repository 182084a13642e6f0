"""Write a run's result tables as CSV and Markdown; and compare its accuracy with the published accuracy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import SCORES
from medrefl_utils.core.store import read_manifest, read_table, write_text
from medrefl_utils.exam.benchmarks import benchmark_registry
from medrefl_utils.views.plots import signed

NOT_RUN = "not run"
_PREFERRED = ("published", "sampled", "self-consistency", "greedy", "budget")
_SHARES = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "accuracy_published",
    "accuracy_judged",
    "unreadable",
    "conflict",
)
_GAINS = ("gain", "gain_low", "gain_high", "detectable")


def compare_with_published(scores: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return a row for each row of Med-REFL's README: its figures, and ours where the run has its model and benchmark.

    Our accuracy is scored the published way (unreadable answers left out). It is that of the published protocol where
    the run has it, else of the protocol that the row names. The gain and its interval are strict.

    Args:
        scores: rows of ``schemas.SCORES``; ``source`` is a benchmark's name, or the stem of one of its files.
        model: the base model of the run, a hub id or a folder.

    Returns:
        benchmark, model, base, medrefl, gain (published, percent and points), ours_base, ours_medrefl, ours_gain,
        ours_low, ours_high (NaN where it was not run) and protocol ("not run").
    """
    known, ours = benchmark_registry(), benchmark_registry().published_name(model)
    rows = []
    for name, benchmark in known.benchmarks.items():
        mine = scores[scores["source"].isin({name, *(Path(file).stem for file in benchmark.files)})]
        for published, (base, medrefl) in benchmark.published.items():
            row = {"benchmark": benchmark.title, "model": published, "base": base, "medrefl": medrefl}
            row |= {"gain": round(medrefl - base, 2), "protocol": NOT_RUN}
            rows.append(row | (_ours(mine) if published == ours else {}))
    names = ["benchmark", "model", "base", "medrefl", "gain", "ours_base", "ours_medrefl", "ours_gain", "ours_low"]
    return pd.DataFrame(rows, columns=[*names, "ours_high", "protocol"])


def _ours(scores: pd.DataFrame) -> dict[str, object]:
    ran = set(scores["protocol"])
    protocol = next((name for name in _PREFERRED if name in ran), None)
    if protocol is None:
        return {}
    models = {row.model: row for row in scores[scores["protocol"] == protocol].itertuples()}
    found: dict[str, object] = {"protocol": protocol}
    for model, row in models.items():
        found[f"ours_{model}"] = 100 * row.accuracy_published
    if tuned := models.get("medrefl"):
        found |= {"ours_gain": 100 * tuned.gain, "ours_low": 100 * tuned.gain_low, "ours_high": 100 * tuned.gain_high}
    return found


def evaluated_model(run: RunFiles) -> str:
    """Return the base model that a run was evaluated with; "" where its manifest does not say."""
    stages = read_manifest(run).get("stages", {})
    return str(stages.get("05_benchmark_evaluation", {}).get("parameters", {}).get("model", ""))


def write_result_tables(run: RunFiles) -> list[Path]:
    """Write ``tables/scores`` and ``tables/published`` as CSV (all digits) and Markdown (rounded); return the paths.

    Raises:
        MedReflError: a run without scores.
    """
    scores = read_table(run.scores, SCORES)
    published = compare_with_published(scores, evaluated_model(run))
    files = []
    for name, table, text in (
        ("scores", scores, _readable(scores)),
        ("published", published, published_text(published)),
    ):
        csv, markdown = run.tables / f"{name}.csv", run.tables / f"{name}.md"
        files.append(write_text(csv, table.to_csv(index=False, lineterminator="\n")))
        files.append(write_text(markdown, _markdown(text)))
    return files


def _readable(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores as text: percent and points with one digit."""
    text = scores.drop(columns="mcnemar_runs").astype(object)
    for column in text:
        if column in _SHARES:
            text[column] = [f"{100 * value:.1f}" if pd.notna(value) else "" for value in scores[column]]
        elif column in _GAINS:
            text[column] = [signed(100 * value, 1) if pd.notna(value) else "" for value in scores[column]]
        elif column.startswith("mean_tokens") or column == "seconds":
            text[column] = [f"{value:.0f}" if pd.notna(value) else "" for value in scores[column]]
        elif column in ("mcnemar_p", "holm_p"):
            text[column] = [f"{value:.2g}" if pd.notna(value) else "" for value in scores[column]]
    return text


def published_text(published: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``compare_with_published`` as text: benchmark, model, published and ours."""
    return pd.DataFrame(
        {
            "benchmark": published["benchmark"],
            "model": published["model"],
            "published": [f"{r.base:.2f} to {r.medrefl:.2f} ({signed(r.gain, 2)})" for r in published.itertuples()],
            "ours": [ours_text(row) for row in published.to_dict("records")],
        }
    )


def ours_text(row: dict[str, object]) -> str:
    """Return our figures of a row of ``compare_with_published`` as text, or "not run"."""
    if row["protocol"] == NOT_RUN:
        return NOT_RUN
    shown = " to ".join(f"{row[name]:.1f}" for name in ("ours_base", "ours_medrefl") if pd.notna(row[name]))
    if pd.notna(row["ours_gain"]):
        gain, low, high = (signed(row[name], 1) for name in ("ours_gain", "ours_low", "ours_high"))
        shown += f" ({gain} [{low}, {high}])"
    return f"{shown}, {row['protocol']}"


def _markdown(table: pd.DataFrame) -> str:
    cells = [["" if pd.isna(cell) else str(cell) for cell in line] for line in table.astype(object).to_numpy()]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
