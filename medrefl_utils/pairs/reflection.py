"""Reflection pairs: leave a wrong path, reflect, and switch to another path of the same tree.

The best corrections that end at the gold answer are crossed with the best corrections that end wrong. Pure: the
reflections come in as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.pairs.pair_table import pair_row
from medrefl_utils.pairs.path_forms import insert_reflection
from medrefl_utils.pairs.path_texts import StepReader, questions_by_id


@dataclass(frozen=True)
class CorrectionText:
    """A correction as text: the steps that both paths share, the wrong steps, and the steps that replace them."""

    question: Question
    public: tuple[str, ...]
    wrong: tuple[str, ...]
    right: tuple[str, ...]


CorrectionKey = tuple[str, int, int]
"""Names a correction: question_id, the step at which the wrong path is left, the leaf of the path switched to."""


def reflection_candidates(
    corrections: pd.DataFrame, *, top_k: int, min_margin: float, max_per_question: int
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Choose which corrections become pairs: a row per pair, and the counts of what is left out.

    Args:
        corrections: table of ``trees.rank_corrections``.
        top_k: effective and invalid corrections per wrong path, those with the highest A, that are crossed; at least 1.
        min_margin: smallest A(chosen) - A(rejected), in [-4, 4].
        max_per_question: pairs per question, at least 1. The best ranks are kept; among equal ranks, those of the wrong
            path with the higher S, which is the more confusing one.

    Returns:
        Columns question_id, wrong_leaf, left, and taken, leaf and action with ``_chosen`` and ``_rejected``; and the
        counts ``no_effective``, ``no_invalid`` (wrong paths), ``margin`` and ``cap`` (pairs). All are selections.

    Raises:
        MedReflError: a parameter out of its range.
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
    """Return the distinct corrections of the candidates as text: each needs one reflection."""
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
    thinking_open: bool = False,
) -> tuple[pd.DataFrame, DropCounts]:
    """Make pairs of kind "reflection_mid" or "reflection_post" (columns of PAIRS), and count what is left out.

    Both sides begin with the same wrong path, up to where it is left. The chosen side continues with an effective
    reflection and a path to the gold answer, the rejected side with an invalid reflection and a path to a wrong answer.
    A reflection is a line of its own. In a model's own form (thinking, final section) it is placed as
    ``path_forms.insert_reflection`` says; that placement is ours.

    Args:
        questions: at least those of the paths.
        steps: trees, columns of STEPS.
        paths: ``trees.paths(steps)``.
        candidates: table of ``reflection_candidates``.
        reflections: {correction: text}, see ``accepted_reflections``.
        kind: "reflection_mid" or "reflection_post".
        prompt: turns a question into the messages that ask it.
        thinking_open: the chat template opened the thinking, so that every path begins inside it.

    Returns:
        The pairs and the counts. Selections: ``no_reflection`` (a side's reflection was refused; ``write_reflections``
        counts these) and ``duplicate`` (the content of an earlier pair). Faults: ``same_reflection`` (both sides
        reflect in the same words, so the pair does not teach which reflection is better) and ``PAIR_FAULTS``.

    Raises:
        MedReflError: a question that is missing.
    """
    by_id = questions_by_id(questions, paths)
    texts = correction_texts(by_id.values(), steps, paths, candidates)
    nodes = _paths_of(paths, candidates)
    value = dict(zip(zip(paths["question_id"], paths["node_id"], strict=True), paths["value"], strict=True))
    dropped = DropCounts({"no_reflection": 0, "duplicate": 0})
    rows: dict[str, dict[str, object]] = {}
    for row in candidates.itertuples():
        keys = [(row.question_id, row.left, leaf) for leaf in (row.leaf_chosen, row.leaf_rejected)]
        if any(key not in reflections for key in keys):
            dropped["no_reflection"] += 1
            continue
        said = [" ".join(reflections[key].split()).casefold() for key in keys]
        if said[0] == said[1]:
            example = f"question {row.question_id!r}, step left {row.left}: both reflections are {said[0][:480]!r}"
            dropped.drop("same_reflection", example)
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
        finished = kind == "reflection_post"
        sides = [_reflected(texts[key], reflections[key], finished) for key in keys]
        pair = pair_row(question, prompt(question), kind, sides, provenance, dropped, thinking_open=thinking_open)
        if pair is not None:
            dropped["duplicate"] += pair["pair_id"] in rows
            rows.setdefault(pair["pair_id"], pair)
    return pd.DataFrame(list(rows.values()), columns=PAIRS.names), dropped


def _reflected(correction: CorrectionText, reflection: str, finished: bool) -> str:
    public = "".join(correction.public)
    wrong, right = (public + "".join(steps) for steps in (correction.wrong, correction.right))
    return insert_reflection(wrong, right, len(public), reflection, finished=finished)


def _paths_of(paths: pd.DataFrame, candidates: pd.DataFrame) -> dict[tuple[str, int], list[int]]:
    """Return the node ids of the paths of the candidates' questions: {(question_id, leaf): nodes}."""
    here = paths[paths["question_id"].isin(candidates["question_id"])]
    keys = zip(here["question_id"], here["node_id"], strict=True)
    return {key: [int(node) for node in nodes] for key, nodes in zip(keys, here["nodes"], strict=True)}
