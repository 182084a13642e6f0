"""Write a run's result tables as CSV and Markdown, and compare the run with the published results."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import SCORES
from medrefl_utils.core.store import read_manifest, read_table, write_text
from medrefl_utils.evaluation.composition import compare_bases
from medrefl_utils.exam.benchmarks import benchmark_registry
from medrefl_utils.views.plots import points

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
    """Return one row per row of Med-REFL's README: the published accuracies, and ours if model and benchmark match.

    Our accuracy is scored as published (unreadable answers are left out), under the published protocol if it was run,
    else under the protocol that is named. The gain and its interval are strict.

    Args:
        scores: rows of ``core.SCORES``; ``source`` is a benchmark's name, or the stem of one of its files.
        model: the base model of the run, a hub id or a folder.

    Returns:
        benchmark, model, base, medrefl, gain (percent and points, published), ours_base, ours_medrefl, ours_gain,
        ours_low, ours_high (NaN if not run) and protocol ("not run").
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


def compare_with_medreason(composition: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return one row per published row of MedReason, and ours if model and benchmark match.

    Ours is strict, unlike the published accuracy: an unreadable answer counts as wrong.

    Args:
        composition: what ``evaluation.compare_bases`` returns; without rows where the run has no baseline.
        model: the base that the run's fine-tuning started from.

    Returns:
        benchmark, model, base (None if not published), tuned (percent), and ours (text, or "not run").
    """
    registry = benchmark_registry()
    known, mine = registry.benchmarks, registry.published_name(model)
    rows = []
    for row in registry.medreason:
        found = known.get(row.benchmark)
        names = {row.benchmark, *(Path(file).stem for file in (found.files if found else ()))}
        ran = row.model == mine and len(composition) > 0
        ours = _ours_of_medreason(composition[composition["source"].isin(names)]) if ran else NOT_RUN
        rows.append((found.title if found else row.benchmark, row.model, row.base, row.tuned, ours))
    return pd.DataFrame(rows, columns=["benchmark", "model", "base", "tuned", "ours"])


def _ours_of_medreason(composition: pd.DataFrame) -> str:
    ran = set(composition["protocol"])
    protocol = next((name for name in ("greedy", *_PREFERRED) if name in ran), None)
    if protocol is None:
        return NOT_RUN
    rows = composition[composition["protocol"] == protocol]
    base, tuned = rows[rows["against"].isna()].iloc[0], rows[rows["arm"] == "+ MedReason"].iloc[0]
    gain, low, high = (points(100 * tuned[name]) for name in ("gain", "gain_low", "gain_high"))
    return f"{100 * base.accuracy:.1f} to {100 * tuned.accuracy:.1f} ({gain} [{low}, {high}]), {protocol}"


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
    """Return the base model that a run was evaluated with; "" if the manifest does not name it."""
    stages = read_manifest(run).get("stages", {})
    return str(stages.get("05_benchmark_evaluation", {}).get("parameters", {}).get("model", ""))


def write_result_tables(run: RunFiles, baseline: str = "") -> list[Path]:
    """Write ``tables/scores`` and ``tables/published`` as CSV (all digits) and Markdown (rounded); return the paths.

    With the folder of a ``baseline``, ``tables/composition`` compares both methods on both bases.

    Raises:
        MedReflError: the run has no scores.
    """
    scores = read_table(run.scores, SCORES)
    published = compare_with_published(scores, evaluated_model(run))
    tables = [("scores", scores, _readable(scores)), ("published", published, published_text(published))]
    if baseline:
        composition = compare_bases(Path(baseline), run.root)
        tables.append(("composition", composition, _readable(composition)))
    files = []
    for name, table, text in tables:
        csv, markdown = run.tables / f"{name}.csv", run.tables / f"{name}.md"
        files.append(write_text(csv, table.to_csv(index=False, lineterminator="\n")))
        files.append(write_text(markdown, _markdown(text)))
    return files


def _readable(scores: pd.DataFrame) -> pd.DataFrame:
    """Format scores or a composition as text: percent and points with one decimal."""
    text = scores.drop(columns="mcnemar_runs", errors="ignore").astype(object)
    for column in text:
        if column in _SHARES:
            text[column] = [f"{100 * value:.1f}" if pd.notna(value) else "" for value in scores[column]]
        elif column in _GAINS:
            text[column] = [points(100 * value) if pd.notna(value) else "" for value in scores[column]]
        elif column.startswith("mean_tokens") or column == "seconds":
            text[column] = [f"{value:.0f}" if pd.notna(value) else "" for value in scores[column]]
        elif column in ("mcnemar_p", "holm_p"):
            text[column] = [f"{value:.2g}" if pd.notna(value) else "" for value in scores[column]]
    return text


def published_text(published: pd.DataFrame) -> pd.DataFrame:
    """Format rows of ``compare_with_published`` as text: benchmark, model, published, ours."""
    return pd.DataFrame(
        {
            "benchmark": published["benchmark"],
            "model": published["model"],
            "published": [f"{r.base:.2f} to {r.medrefl:.2f} ({points(r.gain, 2)})" for r in published.itertuples()],
            "ours": [ours_text(row) for row in published.to_dict("records")],
        }
    )


def ours_text(row: dict[str, object]) -> str:
    """Format our results of a row of ``compare_with_published``, or "not run"."""
    if row["protocol"] == NOT_RUN:
        return NOT_RUN
    shown = " to ".join(f"{row[name]:.1f}" for name in ("ours_base", "ours_medrefl") if pd.notna(row[name]))
    if pd.notna(row["ours_gain"]):
        gain, low, high = (points(row[name]) for name in ("ours_gain", "ours_low", "ours_high"))
        shown += f" ({gain} [{low}, {high}])"
    return f"{shown}, {row['protocol']}"


def _markdown(table: pd.DataFrame) -> str:
    cells = [["" if pd.isna(cell) else str(cell) for cell in line] for line in table.astype(object).to_numpy()]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
