"""Reflection pairs: leave a wrong path, reflect, and continue on another path of the same tree.

The best corrections that end at the gold answer are crossed with the best that end wrong. Pure: the reflections come
in as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam.prompts import STEP_BOUNDARY, Messages
from medrefl_utils.pairs.pair_table import pair_row
from medrefl_utils.pairs.path_texts import StepReader, questions_by_id


@dataclass(frozen=True)
class CorrectionText:
    """A correction as text: the steps that both paths share, those that go wrong, and those that replace them."""

    question: Question
    public: tuple[str, ...]
    wrong: tuple[str, ...]
    right: tuple[str, ...]


CorrectionKey = tuple[str, int, int]
"""What names a turn: question_id, the step after which the wrong path is left, the leaf of the path taken up."""


def reflection_candidates(
    corrections: pd.DataFrame, *, top_k: int, min_margin: float, max_per_question: int
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Which corrections are set against one another: a row per pair to be, and what was left out, by reason.

    ``corrections`` is a table of ``corrections.corrections``. Of each wrong path the ``top_k`` effective and the
    ``top_k`` invalid corrections with the highest A are crossed. A pair's A must differ by at least ``min_margin``
    (chosen minus rejected, in [-4, 4]); of a question at most ``max_per_question`` are kept: those of the best ranks,
    then those of the wrong path with the higher S, which is the more confusing.

    Columns question_id, wrong_leaf, left, and taken, leaf and action with ``_chosen`` and ``_rejected``. Left out:
    ``no_effective`` and ``no_invalid`` (wrong paths), ``margin`` and ``cap`` (pairs).
    """
    for name, value in (("top_k", top_k), ("max_per_question", max_per_question)):
        if value < 1:
            raise MedReflError(f"reflection pairs: {name} is {value}, expected at least 1")
    path = ["question_id", "wrong_leaf"]
    ranks = corrections.groupby([*path, "effective"], sort=False).cumcount()
    best = corrections.assign(rank=ranks)[ranks < top_k]
    shared = [*path, "left", "wrong_value"]
    crossed = best[best["effective"]].merge(
        best[~best["effective"]], on=shared, suffixes=("_chosen", "_rejected"), validate="many_to_many"
    )
    ways = corrections.groupby(path)["effective"].agg(["any", "all"])
    apart = crossed[crossed["action_chosen"] - crossed["action_rejected"] >= min_margin]
    order = apart.assign(
        ranks=apart["rank_chosen"] + apart["rank_rejected"], confusing=-apart["wrong_value"]
    ).sort_values(["question_id", "ranks", "confusing", "wrong_leaf", "rank_chosen"], ignore_index=True)
    kept = order[order.groupby("question_id").cumcount() < max_per_question].reset_index(drop=True)
    dropped = {
        "no_effective": int((~ways["any"]).sum()),
        "no_invalid": int(ways["all"].sum()),
        "margin": len(crossed) - len(apart),
        "cap": len(apart) - len(kept),
    }
    names = [f"{name}_{side}" for side in ("chosen", "rejected") for name in ("taken", "leaf", "action")]
    return kept[["question_id", "wrong_leaf", "left", *names]], dropped


def correction_texts(
    questions: Iterable[Question], steps: pd.DataFrame, paths: pd.DataFrame, candidates: pd.DataFrame
) -> dict[CorrectionKey, CorrectionText]:
    """The distinct corrections of the candidates, as text: what a reflection is to be written for."""
    by_id = questions_by_id(questions, paths)
    read = StepReader(steps, candidates["question_id"])
    nodes = _paths_of(paths, candidates)
    found: dict[CorrectionKey, CorrectionText] = {}
    for row in candidates.itertuples():
        for taken, leaf in ((row.taken_chosen, row.leaf_chosen), (row.taken_rejected, row.leaf_rejected)):
            wrong, right = nodes[row.question_id, row.wrong_leaf], nodes[row.question_id, leaf]
            at, end = right.index(taken), wrong.index(row.left) + 1
            parts = (right[:at], wrong[at:end], right[at:])
            texts = (tuple(read.texts(row.question_id, part)) for part in parts)
            found[row.question_id, row.left, leaf] = CorrectionText(by_id[row.question_id], *texts)
    return found


def reflection_pairs(
    questions: Iterable[Question],
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    candidates: pd.DataFrame,
    reflections: Mapping[CorrectionKey, str],
    *,
    kind: str,
    prompt: Callable[[Question], Messages],
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Pairs of kind "reflection_mid" or "reflection_post" of these candidates, and what was left out.

    Both sides begin with the wrong path as far as it is gone; the chosen side goes on with an effective reflection and
    its path to the gold answer, the rejected one with an invalid reflection and its path to a wrong one. A reflection
    stands on a line of its own. Left out: ``no_reflection`` (a side's was refused, so it is not in ``reflections``) and
    ``duplicate`` (the text of an earlier pair). Raises MedReflError as ``reasoning_pairs`` does.
    """
    by_id = questions_by_id(questions, paths)
    texts = correction_texts(by_id.values(), steps, paths, candidates)
    nodes = _paths_of(paths, candidates)
    value = dict(zip(zip(paths["question_id"], paths["node_id"], strict=True), paths["value"], strict=True))
    dropped = {"no_reflection": 0, "duplicate": 0}
    rows: dict[str, dict[str, object]] = {}
    for row in candidates.itertuples():
        keys = [(row.question_id, row.left, leaf) for leaf in (row.leaf_chosen, row.leaf_rejected)]
        if any(key not in reflections for key in keys):
            dropped["no_reflection"] += 1
            continue
        question, wrong = by_id[row.question_id], nodes[row.question_id, row.wrong_leaf]
        chosen, rejected = (nodes[row.question_id, key[2]] for key in keys)
        provenance = {
            "chosen_nodes": chosen,
            "rejected_nodes": rejected,
            "chosen_value": value[row.question_id, chosen[-1]],
            "rejected_value": value[row.question_id, rejected[-1]],
            "left_nodes": wrong[: wrong.index(row.left) + 1],
            "chosen_taken": row.taken_chosen,
            "rejected_taken": row.taken_rejected,
            "chosen_action": row.action_chosen,
            "rejected_action": row.action_rejected,
            "chosen_reflection": reflections[keys[0]],
            "rejected_reflection": reflections[keys[1]],
        }
        sides = [_reflected(texts[key], reflections[key]) for key in keys]
        pair = pair_row(question, prompt(question), kind, sides, provenance)
        dropped["duplicate"] += pair["pair_id"] in rows
        rows.setdefault(pair["pair_id"], pair)
    return pd.DataFrame(list(rows.values()), columns=PAIRS.names), dropped


def _reflected(turn: CorrectionText, reflection: str) -> str:
    before = "".join((*turn.public, *turn.wrong)).rstrip()
    return STEP_BOUNDARY.join((before, " ".join(reflection.split()), "".join(turn.right).rstrip()))


def _paths_of(paths: pd.DataFrame, candidates: pd.DataFrame) -> dict[tuple[str, int], list[int]]:
    """The node ids of the paths of the candidates' questions, by question and leaf."""
    here = paths[paths["question_id"].isin(candidates["question_id"])]
    keys = zip(here["question_id"], here["node_id"], strict=True)
    return {key: [int(node) for node in nodes] for key, nodes in zip(keys, here["nodes"], strict=True)}
