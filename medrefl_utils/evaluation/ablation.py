"""Ablation: train adapters on different kinds of pairs and compare them.

An arm is named by its kinds of pairs, joined by "+"; "reflection" means both kinds of reflection pairs. All arms have
the same number of pairs, and so of optimizer steps. All answer the same held-out questions and continue from the same
starting points (``self_correction``), under the same seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.core.schemas import ABLATION, CONTINUATIONS, RESPONSES, TRAINING
from medrefl_utils.core.store import read_table, table_key, write_table
from medrefl_utils.evaluation.correction_rates import self_correction_rates
from medrefl_utils.evaluation.protocols import Protocol
from medrefl_utils.evaluation.responses import collect_responses
from medrefl_utils.evaluation.self_correction import continue_from
from medrefl_utils.evaluation.statistics import score_responses
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.pairs.pair_table import select_kinds
from medrefl_utils.training.dpo import DpoSettings, train_dpo
from medrefl_utils.training.settings import MonitorSettings


def draw_equal_arms(pairs: pd.DataFrame, arms: Sequence[str], *, n: int = 0, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Draw the same number of pairs for each arm.

    Args:
        pairs: columns of PAIRS.
        arms: names of the arms.
        n: pairs per arm; 0 means as many as the smallest arm has.
        seed: seed of the draw.

    Raises:
        MedReflError: an arm with fewer than ``n`` pairs, without pairs, or with an unknown kind.
    """
    of_arm = {arm: select_kinds(pairs, kinds_of(arm)) for arm in arms}
    smallest = min(of_arm, key=lambda name: len(of_arm[name]))
    if len(of_arm[smallest]) < max(n, 1):
        raise MedReflError(
            f"ablation: the arm {smallest!r} has {len(of_arm[smallest])} pairs, expected {n or 'at least 1'}: lower"
            " pairs_per_arm, or make more pairs with 01_tree_rollout and 03_pair_construction"
        )
    n = n or len(of_arm[smallest])
    return {name: table.sample(n, random_state=seed).reset_index(drop=True) for name, table in of_arm.items()}


def kinds_of(arm: str) -> list[str]:
    """Return the kinds of pairs that an arm's name means."""
    named = [name.strip() for name in arm.split("+")]
    return [kind for name in named for kind in (_REFLECTION if name == "reflection" else (name,))]


_REFLECTION = ("reflection_mid", "reflection_post")


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
    runs_on: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a model's responses to the exam and its continuations of the starting points; save both in ``folder``.

    Files of the same key are read instead, so an interrupted ablation resumes.

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
        *([runs_on] if runs_on else []),
    )
    if not all(table_key(folder / name) == key for name in files):
        generator = open_generator()
        asked = [
            collect_responses(exam, generator, model=model, protocol=p, seed=seed).assign(run=run) for p in protocols
        ]
        by_id = {question.question_id: question for question in exam}
        repairs = continue_from(begun, by_id, generator, model=model, sampling=sampling, seed=seed, run=run)
        write_table(folder / "responses.parquet", pd.concat(asked, ignore_index=True), RESPONSES, key=key)
        write_table(folder / "continuations.parquet", repairs, CONTINUATIONS, key=key)
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


def ablation_results(responses: pd.DataFrame, repairs: pd.DataFrame, n_pairs: int) -> pd.DataFrame:
    """Compare the arms with the base: columns of ABLATION, the base first.

    Args:
        responses: columns of RESPONSES; ``model`` is "base" or an arm, and each seed is one run.
        repairs: columns of CONTINUATIONS of the same models and runs.
        n_pairs: pairs per arm.
    """
    base = responses[responses["model"] == "base"]
    claims = self_correction_rates(repairs)
    rows = []
    for arm in dict.fromkeys(responses["model"]):
        mine = responses[responses["model"] == arm]
        both = base if arm == "base" else pd.concat([base, mine.assign(model="medrefl")])
        scores = score_responses(both)
        shares = claims[claims["model"] == arm].set_index("figure")
        for row in scores[scores["model"] == ("base" if arm == "base" else "medrefl")].to_dict("records"):
            rows.append(
                {name: row[name] for name in _OF_SCORES}
                | {"arm": arm, "n_pairs": 0 if arm == "base" else n_pairs}
                | {"gains": [] if arm == "base" else _gains(base, mine, row["protocol"])}
                | {
                    f"{name}{end}": shares.loc[figure, column]
                    for figure, name in _OF_CLAIMS.items()
                    for end, column in (("", "share"), ("_low", "low"), ("_high", "high"))
                }
            )
    return pd.DataFrame(rows, columns=ABLATION.names)


_OF_SCORES = ("protocol", "n", "runs", "accuracy", "accuracy_low", "accuracy_high", "gain", "gain_low", "gain_high")
_OF_CLAIMS = {
    "repair rate": "repair",
    "fake reflection rate": "fake",
    "wrong to right": "mends",
    "right to wrong": "breaks",
}


def _gains(base: pd.DataFrame, mine: pd.DataFrame, protocol: str) -> list[float]:
    by_run = [
        t[t["protocol"] == protocol].astype({"correct": float}).groupby("run")["correct"].mean() for t in (base, mine)
    ]
    return (by_run[1] - by_run[0]).tolist()


def _texts(exam: Sequence[Question], begun: pd.DataFrame) -> list[str]:
    return [f"{q.question_id} {q.stem} {dict(q.options)}" for q in exam] + begun["prefix"].tolist()


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
