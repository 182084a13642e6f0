"""Which pairs make the gain: adapters from different kinds of pairs, as many each, under the same seeds.

An arm is the kinds of pairs it trains on, joined by "+"; "reflection" is both kinds of reflection. Every arm gets the
same number of pairs, so the same number of optimizer steps, and is asked the same held-out questions and put behind the
same beginnings (``repair``).
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
from medrefl_utils.training.dpo import DpoSettings, MonitorSettings, train_dpo


def draw_equal_arms(pairs: pd.DataFrame, arms: Sequence[str], *, n: int = 0, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The pairs of each arm, the same number for all, drawn by the seed; ``n`` 0 is as many as the poorest arm has.

    Raises:
        MedReflError: an arm with fewer than ``n`` pairs, with none, or of a kind that there is not.
    """
    of_arm = {arm: select_kinds(pairs, kinds_of(arm)) for arm in arms}
    poorest = min(of_arm, key=lambda name: len(of_arm[name]))
    if len(of_arm[poorest]) < max(n, 1):
        raise MedReflError(
            f"ablation: the arm {poorest!r} has {len(of_arm[poorest])} pairs, expected {n or 'at least 1'}: lower"
            " n_pairs, or let 01 and 03 make more"
        )
    n = n or len(of_arm[poorest])
    return {name: table.sample(n, random_state=seed).reset_index(drop=True) for name, table in of_arm.items()}


def kinds_of(arm: str) -> list[str]:
    """The kinds of pairs (``records.PAIRS``) that an arm's name stands for."""
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
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A model's responses to the exam and what it writes behind the beginnings, as ``run``; kept in ``folder``.

    What a file of the same ``key`` holds is not asked again, so that an interrupted ablation goes on where it stopped.
    """
    files = {"responses.parquet": RESPONSES, "continuations.parquet": CONTINUATIONS}
    key = _digest(key, model, run, seed, [asdict(p) for p in protocols], asdict(sampling), *_texts(exam, begun))
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
    """Train an adapter into ``folder/adapter`` unless it is there from the same pairs, model and settings.

    The reference's log-probabilities are kept in ``references``, where the other seeds and arms find them. Returns the
    key of what the adapter was made of.
    """
    key = _digest(model_key, asdict(dpo), seed, *pairs["pair_id"])
    if table_key(folder / "training.parquet") != key:
        upkeep = MonitorSettings(references=references)
        log = train_dpo(pairs, model, folder / "adapter", dpo=dpo, seed=seed, upkeep=upkeep)
        write_table(folder / "training.parquet", log, TRAINING, key=key)
    return key


def ablation_results(responses: pd.DataFrame, repairs: pd.DataFrame, n_pairs: int) -> pd.DataFrame:
    """Base and arms: rows of ``records.ABLATION``, the base first.

    Args:
        responses: of "base" and of every arm (in ``model``), one run a seed.
        repairs: likewise.
        n_pairs: that every arm was trained on.
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
