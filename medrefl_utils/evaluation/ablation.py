"""Ablation: train adapters on different kinds of pairs and compare them.

All arms (``arms``) have the same number of pairs, and so of optimizer steps. All answer the same held-out questions and
continue from the same starting points (``self_correction``), under the same seeds. So each comparison is paired, with
the base and between arms, and its interval holds for other adapters and other questions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import ABLATION, CONTINUATIONS, CONTRASTS, RESPONSES, TRAINING
from medrefl_utils.core.store import read_manifest, read_table, table_key, write_table
from medrefl_utils.evaluation.correction_rates import NET, correction_marks, paired_values
from medrefl_utils.evaluation.protocols import Protocol
from medrefl_utils.evaluation.responses import collect_responses
from medrefl_utils.evaluation.self_correction import continue_from
from medrefl_utils.evaluation.statistics import holm, paired_difference, share_interval
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.training.dpo import DpoSettings, train_dpo
from medrefl_utils.training.settings import MonitorSettings


def evaluate_arm(
    folder: Path,
    open_generator: Callable[[], Generator],
    *,
    model: str,
    run: int,
    exam: Sequence[Question],
    protocols: Sequence[Protocol],
    begun: pd.DataFrame,
    sampling: Sampling,
    seed: int,
    key: str,
    samples: int = 1,
    runs_on: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a model's responses to the exam and its continuations of the starting points; save both in ``folder``.

    Files of the same key are read instead, so an interrupted ablation resumes. Prompts that a server refused are
    returned (``drop_refused`` counts them) and not saved: the files then have no key, and a rerun asks again, because
    the server may accept them. The other replies are in the log.

    Args:
        folder: folder of the arm's files.
        open_generator: loads the model; called only if it is needed.
        model: name of the arm, or "base".
        run: number of the repetition, from 0.
        exam: held-out questions.
        protocols: how the questions are asked.
        begun: starting points (``starting_points``).
        sampling: sampling of the continuations.
        seed: seed of responses and continuations.
        key: hash of the model.
        samples: continuations of each starting point.
        runs_on: what runs it, if that is a server or another engine: its replies differ.

    Returns:
        Columns of RESPONSES, columns of CONTINUATIONS.
    """
    files = {"responses.parquet": RESPONSES, "continuations.parquet": CONTINUATIONS}
    key = _digest(
        key,
        model,
        run,
        seed,
        [asdict(p) for p in protocols],
        asdict(sampling),
        *_texts(exam, begun),
        samples,
        *([runs_on] if runs_on else []),
    )
    if not all(table_key(folder / name) == key for name in files):
        generator = open_generator()
        asked = [
            collect_responses(exam, generator, model=model, protocol=p, seed=seed).assign(run=run) for p in protocols
        ]
        by_id = {question.question_id: question for question in exam}
        responses = pd.concat(asked, ignore_index=True)
        repairs = continue_from(
            begun, by_id, generator, model=model, sampling=sampling, seed=seed, run=run, samples=samples
        )
        for (name, schema), table in zip(files.items(), (responses, repairs), strict=True):
            refused = table["stop"] == "refused"
            write_table(folder / name, table[~refused], schema, key="" if refused.any() else key)
        return responses, repairs
    return tuple(read_table(folder / name, schema) for name, schema in files.items())


def train_arm(
    pairs: pd.DataFrame, model: str, folder: Path, *, dpo: DpoSettings, seed: int, model_key: str, references: Path
) -> str:
    """Train an adapter into ``folder/adapter``, unless it exists with the same pairs, model, settings and seed.

    The log-probabilities of the reference are cached in ``references`` for the other seeds and arms. Returns the key of
    the adapter's inputs.
    """
    key = _digest(model_key, asdict(dpo), seed, *pairs["pair_id"])
    if table_key(folder / "training.parquet") != key:
        upkeep = MonitorSettings(references=references)
        log = train_dpo(pairs, model, folder / "adapter", dpo=dpo, seed=seed, upkeep=upkeep)
        write_table(folder / "training.parquet", log, TRAINING, key=key)
    return key


def run_arms(
    drawn: Mapping[int, Mapping[str, pd.DataFrame]],
    folder: Path,
    base: Generator,
    open_adapter: Callable[..., Generator],
    *,
    model: str,
    model_key: str,
    dpo: DpoSettings,
    references: Path,
    protocols: Mapping[int, Sequence[Protocol]],
    exam: Sequence[Question],
    begun: pd.DataFrame,
    sampling: Sampling,
    samples: int,
    runs_on: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every arm under every seed, and ask base and arms; what is finished in ``folder`` is read instead.

    Args:
        drawn: {seed: {arm: its pairs}} (``draw_equal_arms``).
        folder: gets a folder per arm and seed.
        base: the base model.
        open_adapter: opens the base with an adapter, whose folder it takes as ``adapter``.
        model: the base model: a folder or hub id.
        model_key: its hash.
        dpo: settings of the training.
        references: folder of the reference's cached log-probabilities.
        protocols: {seed: how the questions are asked}.
        exam: held-out questions.
        begun: starting points (``starting_points``).
        sampling: sampling of the continuations.
        samples: continuations of each starting point.
        runs_on: as in ``evaluate_arm``.

    Returns:
        Columns of RESPONSES, columns of CONTINUATIONS, of the base and all arms; each seed is one run.
    """
    asked = []
    for run, (seed, arms) in enumerate(drawn.items()):

        def ask(name: str, opened: Callable[[], Generator], key: str, run: int = run, seed: int = seed) -> None:
            asked.append(
                evaluate_arm(
                    folder / f"{name}-{seed}",
                    opened,
                    model=name,
                    run=run,
                    exam=exam,
                    protocols=protocols[seed],
                    begun=begun,
                    sampling=sampling,
                    seed=seed,
                    key=key,
                    samples=samples,
                    runs_on=runs_on,
                )
            )

        ask("base", lambda: base, model_key)
        for arm, pairs in arms.items():
            print(f"seed {seed}: {arm}")
            place = folder / f"{arm}-{seed}"
            key = train_arm(pairs, model, place, dpo=dpo, seed=seed, model_key=model_key, references=references)
            ask(arm, partial(open_adapter, adapter=place / "adapter"), key)
    responses, repairs = (pd.concat(tables, ignore_index=True) for tables in zip(*asked, strict=True))
    return responses, repairs


def pairs_lost(files: RunFiles) -> dict[str, int]:
    """Return what notebook 03 left out: {"<kind or step>_<reason>": count}; empty where it is not recorded."""
    figures = read_manifest(files).get("stages", {}).get("03_pair_construction", {}).get("figures", {})
    start = "dropped_"
    return {name.removeprefix(start): n for name, n in figures.items() if name.startswith(start) and isinstance(n, int)}


def ablation_results(
    responses: pd.DataFrame, repairs: pd.DataFrame, n_pairs: int, left_out: Mapping[str, str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare the arms with the base and with one another.

    Args:
        responses: columns of RESPONSES; ``model`` is "base" or an arm, and each seed is one run.
        repairs: columns of CONTINUATIONS of the same models and runs.
        n_pairs: pairs per arm.
        left_out: {arm that was not trained: why}.

    Returns:
        Columns of ABLATION, the base first and the arms that were left out last; columns of CONTRASTS: each arm against
        the base, then each pair of arms. Holm's correction is over the arms, and over the pairs of arms, of a figure.
    """
    marks = _marks(responses, repairs)
    contrasts = compare_arms(marks)
    against_base = contrasts[contrasts["against"] == "base"].set_index(["arm", "figure"])
    rows = []
    for arm in dict.fromkeys(responses["model"]):
        of_arm = {figure: table for figure, table in marks[marks["model"] == arm].groupby("figure", sort=False)}
        claims = {name: _share(of_arm.get(figure)) for figure, name in _OF_CLAIMS.items()}
        for protocol in dict.fromkeys(responses["protocol"]):
            table = of_arm[f"accuracy, {protocol}"]
            row = {"arm": arm, "protocol": protocol, "n_pairs": 0 if arm == "base" else n_pairs, "gains": []}
            row |= {"n": table["question_id"].nunique(), "runs": table["run"].nunique()}
            row |= _ends("accuracy", _share(table))
            if arm != "base":
                found = against_base.loc[(arm, f"accuracy, {protocol}")]
                row |= _ends("gain", (found["difference"], found["low"], found["high"]))
                apart = table.groupby("run")["value"].mean() - _of_base(marks, protocol).groupby("run")["value"].mean()
                row["gains"] = apart.tolist()
            for name, interval in claims.items():
                row |= _ends(name, interval)
            rows.append(row)
    rows += [{"arm": arm, "left_out": why, "n_pairs": 0, "gains": []} for arm, why in (left_out or {}).items()]
    table = pd.DataFrame(rows, columns=ABLATION.names).astype({"left_out": object, "protocol": object})
    return table.astype({"n": "Int32", "runs": "Int32"}), contrasts


def compare_arms(marks: pd.DataFrame) -> pd.DataFrame:
    """Compare each arm with the base, and each two arms, in each figure: columns of CONTRASTS.

    Args:
        marks: one row per model, figure, question, run and sample, with ``value`` and ``cluster`` (stem or question).
    """
    models = dict.fromkeys(marks["model"])
    arms = [model for model in models if model != "base"]
    families = [[(arm, "base") for arm in arms] if "base" in models else []]
    families.append([(arm, other) for place, arm in enumerate(arms) for other in arms[place + 1 :]])
    clusters = marks.drop_duplicates("question_id").set_index("question_id")["cluster"]
    rows = []
    for figure, of_figure in marks.groupby("figure", sort=False):
        of_model = dict(tuple(of_figure.groupby("model")))
        for family in families:
            made = [
                {"figure": figure, "arm": arm, "against": other} | _contrast(of_model[arm], of_model[other], clusters)
                for arm, other in family
            ]
            corrected = holm([row["p"] for row in made])
            rows += [row | {"holm_p": p} for row, p in zip(made, corrected, strict=True)]
    return pd.DataFrame(rows, columns=CONTRASTS.names)


_OF_CLAIMS = {
    NET: "net",
    "wrong to right": "mends",
    "right to wrong": "breaks",
    "fake reflection rate": "fake",
    "repair rate": "repair",
}


def _contrast(mine: pd.DataFrame, other: pd.DataFrame, clusters: pd.Series) -> dict[str, float]:
    apart = paired_values(mine, other)
    found = paired_difference(apart["value"], apart["question_id"].map(clusters), apart["run"])
    named = {"difference": found.estimate, "low": found.low, "high": found.high}
    counts = {"n": apart["question_id"].nunique(), "runs": apart["run"].nunique()}
    return counts | named | {"p": found.p, "detectable": found.detectable}


def _marks(responses: pd.DataFrame, repairs: pd.DataFrame) -> pd.DataFrame:
    """Return what each response and each continuation counts, in one table (``compare_arms``)."""
    answers = pd.DataFrame(
        {
            "model": responses["model"],
            "figure": "accuracy, " + responses["protocol"].astype(str),
            "question_id": responses["question_id"],
            "run": responses["run"],
            "sample": responses.groupby(["model", "protocol", "question_id", "run"]).cumcount(),
            "value": responses["correct"].astype(float),
        }
    )
    claims = correction_marks(repairs)
    marks = pd.concat([answers, claims[claims["figure"].isin(_OF_CLAIMS)]], ignore_index=True)
    stems = responses.drop_duplicates("question_id").set_index("question_id")["stem_id"]
    known = marks["question_id"].map(stems[stems.notna()].to_dict())
    return marks.assign(cluster=known.astype(object).where(known.notna(), marks["question_id"]))


def _of_base(marks: pd.DataFrame, protocol: str) -> pd.DataFrame:
    return marks[(marks["model"] == "base") & (marks["figure"] == f"accuracy, {protocol}")]


def _share(table: pd.DataFrame | None) -> tuple[float, float, float]:
    """Return a share with its interval over questions and adapters; NaN where nothing was counted."""
    if table is None or table.empty:
        return (np.nan,) * 3
    each = table.groupby(["run", "question_id"], as_index=False).agg({"value": "mean", "cluster": "first"})
    lowest = -1.0 if table["figure"].iloc[0] == NET else 0.0
    return share_interval(each["value"], each["cluster"], adapters=each["run"], bounds=(lowest, 1.0))


def _ends(name: str, interval: Sequence[float]) -> dict[str, float]:
    return {f"{name}{end}": value for end, value in zip(("", "_low", "_high"), interval, strict=True)}


def _texts(exam: Sequence[Question], begun: pd.DataFrame) -> list[str]:
    return [f"{q.question_id} {q.stem} {dict(q.options)}" for q in exam] + begun["prefix"].tolist()


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
