"""Write the report of a run: one HTML file that needs no network and no script, for screen, phone and paper.

All text of a model or a file is untrusted: the template escapes every value, and the page's content security policy
lets a browser load nothing and run nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.image import imread

from medrefl_utils.core.freshness import find_out_of_date
from medrefl_utils.core.records import Question
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import CHAINS, CONTINUATIONS, PASS_AT_K, RESPONSES, ROBUSTNESS, SCORES, SELF_CORRECTION
from medrefl_utils.core.store import MADE_BY, read_manifest, read_table, write_text
from medrefl_utils.evaluation.composition import compare_bases
from medrefl_utils.exam.benchmarks import trained_questions
from medrefl_utils.knowledge.chains.table import chain_figures, marked_steps
from medrefl_utils.views.plots import DPI, points
from medrefl_utils.views.result_files import (
    compare_with_medreason,
    compare_with_published,
    evaluated_model,
    ours_text,
)
from medrefl_utils.views.score_tables import trained_note
from medrefl_utils.views.static_html import (
    CHANGES,
    Tree,
    answer_view,
    environment,
    pair_view,
    paired_answers,
    read_tables,
)
from medrefl_utils.views.summary_tables import key_figure_texts
from medrefl_utils.views.verdict import cautions, verdicts

_HIDDEN = ("ingredients", "key")  # parts of a stage's manifest entry that only the chain uses

_RESULTS = "accuracy.png"  # the plot that stands at the top

# Texts for the reasons why a leaf ended (STEPS.stop) with outcome -1.
_ENDINGS = {
    "answer": "wrong answer",
    "unreadable": "no readable answer",
    "depth": "truncated: maximum depth",
    "tokens": "truncated: maximum tokens",
    "empty": "stopped: empty step",
    "repeat": "stopped: repeated step",
}

# Captions of the plots that the notebooks save, in the order of the stages.
_CAPTIONS = {
    "chain_paths": "Paths of a knowledge graph from one question (left) to its right option; thick: chosen",
    "chains": "Knowledge chains: the filter's right answers, and the steps that the graph supports",
    "outcomes": "Share of correct leaves per question",
    "tree": "Reasoning tree of one question, coloured by step value V",
    "values_by_depth": "Step values V by depth",
    "pair_margins": "Margin of the pairs: S(chosen) − S(rejected)",
    "pair_lengths": "Length difference of the two sides of the pairs",
    "pair_reasoning": "A reasoning pair in its tree",
    "pair_reflection_mid": "A pair with a reflection at the first wrong step, in its tree",
    "pair_reflection_post": "A pair with a reflection after a finished wrong path, in its tree",
    "pair_reflection_keep": "A pair with a reflection on a right step, in its tree",
    "pair_random_cot": "A random pair in its tree",
    "sft_training": "Fine-tuning: cross-entropy of the responses",
    "training": "DPO training; thin: each step, thick: moving average over 10% of steps",
    "accuracy": "Accuracy of base and adapter",
}


def write_report(run: RunFiles, note: str = "", baseline: str = "") -> Path:
    """Write ``report.html`` from the run's tables, plots (``figures/*.png``) and manifest; return its path.

    Sections without material (no plots, no pairs, no corrected answer) say so in a sentence.

    Args:
        run: the run's files.
        note: a banner for the top of the page.
        baseline: folder of the run on the original base, for the comparison of both methods on both bases; "" for none.

    Raises:
        MedReflError: a table is missing; the message names the file and the notebook that makes it.
    """
    scores, responses = read_table(run.scores, SCORES), read_table(run.responses, RESPONSES)
    tables = read_tables(run)
    questions, steps = tables.questions, tables.steps
    manifest = read_manifest(run)
    stages = manifest.get("stages", {})

    examples = [pair_view(pair) for pair in _example_pairs(tables.pairs, tables.order)]
    example = examples[0]["question_id"] if examples else next(iter(tables.order), None)
    opened = {node for side in ("chosen", "rejected") for node in (examples[0]["nodes"][side] if examples else ())}
    composition = compare_bases(Path(baseline), run.root) if baseline else pd.DataFrame()
    page = _environment().get_template("report.html.j2")
    html = page.render(
        name=run.root.name,
        note=note,
        verdicts=verdicts(scores),
        cautions=[*_mixed(run), *cautions(run, scores)],
        versions=manifest.get("versions", {}),
        facts=_facts(manifest, questions, steps, scores),
        results=_results(scores),
        trained=_trained(responses, evaluated_model(run)),
        judged=bool(scores["accuracy_judged"].notna().any()),
        rates=_self_correction(run),
        wrong_share=_wrong_share(run),
        passes=_pass_rates(run),
        robust=read_table(run.robustness, ROBUSTNESS).to_dict("records") if run.robustness.exists() else [],
        published=[
            row | {"ours": ours_text(row)}
            for row in compare_with_published(scores, evaluated_model(run)).to_dict("records")
        ],
        composition=_composition(composition),
        medreason=compare_with_medreason(composition, _tuned_from(stages)).to_dict("records"),
        results_chart=_plot(run.figures / _RESULTS) if (run.figures / _RESULTS).exists() else None,
        plots=[_plot(path) for path in sorted(run.figures.glob("*.png"), key=_place) if path.name != _RESULTS],
        tree=_tree(tables.tree(example), opened) if example else None,
        pairs=[pair | {"question": questions.get(pair["question_id"])} for pair in examples],
        corrected=_corrected(responses),
        chains=_chains(run),
        leaves=_leaves(steps),
        reported={stage: key_figure_texts(entry.get("figures", {})) for stage, entry in stages.items()},
        costs=[(stage, entry.get("seconds"), _tokens(stage, entry)) for stage, entry in stages.items()],
        outputs=[(f, digest) for entry in stages.values() for f, digest in entry.get("outputs", {}).items()],
        whole=json.dumps(_readable(manifest), indent=2, ensure_ascii=False),
    )
    return write_text(run.report, html)


def _mixed(run: RunFiles) -> list[str]:
    """Return a sentence if the tables that the report shows do not belong together."""
    shown = [artifact for artifact, maker in MADE_BY.items() if maker < "06"]
    line = find_out_of_date(run, shown).line()
    return [f"{line[0].upper()}{line[1:]}."] if line else []


def _self_correction(run: RunFiles) -> list[dict[str, Any]]:
    """Return, per rate of ``self_correction_rates``, the rows of both models (None if missing) and their counts."""
    if not run.self_correction.exists():
        return []
    return [
        {"name": name, "texts": "/".join(dict.fromkeys(f"{row['n']:,}" for row in rows.values()))}
        | {model: rows.get(key) for model, key in (("base", "base"), ("ours", "medrefl"))}
        for name, group in read_table(run.self_correction, SELF_CORRECTION).groupby("figure", sort=False)
        for rows in [{row["model"]: row for row in group.to_dict("records")}]
    ]


def _wrong_share(run: RunFiles) -> float | None:
    """Return the weight in net self-correction: the share of wrong answers in the base's trees."""
    if not run.continuations.exists() or (shares := read_table(run.continuations, CONTINUATIONS)["wrong_share"]).empty:
        return None
    return float(shares.iloc[0])


def _pass_rates(run: RunFiles) -> list[dict[str, Any]]:
    """Return, per benchmark and k, pass@k of both models (None if missing); empty where there were no samples."""
    if not run.pass_at_k.exists():
        return []
    return [
        {"source": source, "k": k, "base": rows.get("base"), "ours": rows.get("medrefl")}
        for (source, k), group in read_table(run.pass_at_k, PASS_AT_K).groupby(["source", "k"], sort=False)
        for rows in [{row["model"]: row for row in group.to_dict("records")}]
    ]


def _composition(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of ``compare_bases`` with NaN as None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _tuned_from(stages: Mapping[str, Any]) -> str:
    """Return the base that the run's fine-tuning started from; "" if it has none."""
    return str(stages.get("09_sft_lora_4bit", {}).get("parameters", {}).get("model", ""))


def _chains(run: RunFiles) -> dict[str, Any] | None:
    """Return the figures of the knowledge chains, and the first kept chain as an example; None for a run without."""
    if not run.chains.exists():
        return None
    table = read_table(run.chains, CHAINS)
    kept = table[table["kept"]]
    example = None if kept.empty else kept.iloc[0].to_dict()
    return {
        "figures": chain_figures(table),
        "example": example and example | {"steps": marked_steps(example).to_dict("records")},
    }


def _tokens(stage: str, entry: Mapping[str, Any]) -> str:
    """Return the tokens that a stage generated, or that stage 04 or 09 trained on, as text."""
    if not (tokens := entry.get("tokens")):
        return "-"
    return f"{tokens:,}{' (trained on)' * stage.startswith(('04', '09'))}"


def _environment() -> jinja2.Environment:
    made = environment()
    made.filters |= {"percent": _percent, "points": _points, "p_value": _p_value, "seconds": _seconds}
    return made


def _facts(
    manifest: Mapping[str, Any], questions: Mapping[str, Question], steps: pd.DataFrame, scores: pd.DataFrame
) -> list[tuple[str, str]]:
    """Return facts of the run as (label, text); facts that the manifest does not have are left out."""
    parameters = [p for stage in manifest.get("stages", {}).values() for p in [stage.get("parameters", {})]]
    models = list(dict.fromkeys(str(p["model"]) for p in parameters if p.get("model")))
    seeds = {f"{stage} {k}": v for stage, of_stage in manifest.get("seeds", {}).items() for k, v in of_stage.items()}
    machine, git = manifest.get("machine", {}), manifest.get("git", {})
    sources = sorted({q.source for q in questions.values() if q.source})
    tested = scores.groupby("source", sort=False)["n"].max()
    facts = {
        "profile": manifest.get("profile"),
        "date": manifest.get("date"),
        "overrides (--set)": ", ".join(manifest.get("overrides", [])),
        "model": ", ".join(models),
        "questions": f"{len(questions):,} from {', '.join(sources) or 'an unnamed source'}",
        "trees": f"{steps['question_id'].nunique():,} with {int(steps['parent_id'].notna().sum()):,} steps",
        "evaluated on": ", ".join(f"{source}: {n:,} questions" for source, n in tested.items()),
        "seeds": _seed_text(seeds),
        "machine": ", ".join(
            f"{name.removesuffix('_gib')} {value}{' GiB' * name.endswith('_gib')}" for name, value in machine.items()
        ),
        "code": f"{git['revision'][:12]}{', with uncommitted changes' if git.get('dirty') else ''}"
        if git.get("revision")
        else "",
    }
    return [(label, text) for label, text in facts.items() if text]


def _seed_text(seeds: Mapping[str, object]) -> str:
    """Return one number if all stages have the same seed, otherwise each seed."""
    if len(set(map(str, seeds.values()))) == 1:
        return str(next(iter(seeds.values())))
    return ", ".join(f"{name} {value}" for name, value in seeds.items())


def _results(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, per benchmark and protocol, the rows of both models (None if missing)."""
    rows = []
    for (source, protocol), group in scores.groupby(["source", "protocol"], sort=False):
        models = {row["model"]: row for row in group.to_dict("records")}
        rows.append({"source": source, "protocol": protocol, "base": models.get("base"), "ours": models.get("medrefl")})
    return rows


def _trained(responses: pd.DataFrame, model: str) -> dict[str, str]:
    """Return {benchmark: sentence} where the base model was trained on some of the questions asked, by the registry."""
    asked = {source: set(group["question_id"]) for source, group in responses.groupby("source", sort=False)}
    found = {source: trained_questions(model, source, ids) for source, ids in asked.items()}
    return {source: trained_note(one, len(asked[source])) for source, one in found.items() if one}


def _example_pairs(pairs: pd.DataFrame, order: Sequence[str]) -> list[dict[str, Any]]:
    """Return one pair per kind: the pair with the widest margin of the first question in ``order`` that has one.

    A random pair can have the same two texts as a reasoning pair. Such a repetition is shown only if the kind has no
    other pair.
    """
    place = pairs["question_id"].map({question: place for place, question in enumerate(order)})
    ranked = pairs.assign(place=place, narrow=pairs["rejected_value"] - pairs["chosen_value"])
    ranked = ranked.sort_values(["place", "narrow", "pair_id"])
    found: list[dict[str, Any]] = []
    for kind in sorted(ranked["kind"].unique(), key=lambda kind: (kind != "reasoning", kind)):
        rows = ranked[ranked["kind"] == kind].to_dict("records")
        shown = [_texts(pair) for pair in found]
        found.append(next((pair for pair in rows if _texts(pair) not in shown), rows[0]))
    return found


def _texts(pair: Mapping[str, Any]) -> tuple[str, str]:
    return pair["chosen"][0]["content"], pair["rejected"][0]["content"]


def _tree(tree: Tree, opened: set[int]) -> dict[str, Any]:
    """Return a tree for display: its question, its steps (those in ``opened`` are shown open) and its corrections."""
    return tree.summary() | {"outline": list(tree.outline(opened)), "pairs": []}


def _corrected(responses: pd.DataFrame) -> dict[str, Any] | None:
    """Return an example that is wrong with the base and right with the adapter: short, with a readable answer."""
    both = paired_answers(responses)
    fixed = both[both["change"] == CHANGES[0]]
    if fixed.empty:
        return None
    length = fixed["response_base"].str.len() + fixed["response_ours"].str.len()
    ranked = fixed.assign(length=length, unread=fixed["answer_base"].isna())
    row = ranked.sort_values(["unread", "length", "source", "question_id", "protocol", "run"]).iloc[0].to_dict()
    return answer_view(row) | {"n": len(fixed), "of": len(both)}


def _leaves(steps: pd.DataFrame) -> list[tuple[str, int]]:
    """Count the leaves by how they ended; merged identical leaves count with their weight."""
    leaves = steps[steps["outcome"].notna()]
    right = leaves["outcome"] > 0
    by_stop = leaves[~right].groupby("stop")["weight"].sum()
    counts = [("correct answer", int(leaves.loc[right, "weight"].sum()))]
    return counts + [(_ENDINGS.get(str(stop), str(stop)), int(n)) for stop, n in by_stop.items()]


def _readable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    stages = {
        stage: {name: value for name, value in entry.items() if name not in _HIDDEN}
        for stage, entry in manifest.get("stages", {}).items()
    }
    return dict(manifest) | ({"stages": stages} if stages else {})


def _plot(path: Path) -> tuple[str, str, int]:
    """Return a plot's caption, its data URL and its width in CSS pixels."""
    return _caption(path), *_png(path)


def _caption(path: Path) -> str:
    return _CAPTIONS.get(path.stem, path.stem.replace("_", " "))


def _place(path: Path) -> tuple[int, str]:
    """Sort plots in the order of the notebooks that save them; other plots follow by name."""
    known = list(_CAPTIONS)
    return (known.index(path.stem) if path.stem in known else len(known), path.name)


def _png(path: Path) -> tuple[str, int]:
    """Return a plot as a data URL, and its width in CSS pixels (96 per inch), so that its text has the page's size."""
    width = round(96 * imread(path).shape[1] / DPI)
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), width


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".replace("-", "−")


def _points(share: float) -> str:
    return points(100 * share)


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes > 1 else f"{seconds:.0f} s"
