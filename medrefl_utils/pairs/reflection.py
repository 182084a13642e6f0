"""Reflection pairs: leave a wrong path, reflect, and switch to another path of the same tree.

The best corrections that end at the gold answer are crossed with the best corrections that end wrong ("astray"), or
with a reflection that affirms the wrong path and goes on with it ("fake", ours). Pairs of restraint (ours) teach the
reverse: on a right path, a reflection that affirms it against one that leaves it for a wrong path. Pure: the
reflections come in as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from medrefl_utils.trees.corrections import rank_corrections

INVALID_SIDES = ("astray", "fake")
"""What the rejected side of a mid or post pair does: switch to another wrong path, or affirm the wrong one."""


CANDIDATES = ["question_id", "wrong_leaf", "left"] + [
    f"{name}_{side}" for side in ("chosen", "rejected") for name in ("taken", "leaf", "action")
]
"""Columns of a table of candidates."""


@dataclass(frozen=True)
class CorrectionText:
    """A correction as text: the steps that both paths share, the wrong steps, and the steps that replace them.

    No replacing steps: the reflection affirms the steps ``wrong``, true or not, and goes on with their path.
    """

    question: Question
    public: tuple[str, ...]
    wrong: tuple[str, ...]
    right: tuple[str, ...]


CorrectionKey = tuple[str, int, int]
"""Names a correction: question_id, the step at which the wrong path is left, the leaf of the path switched to.

The leaf of the path itself names the affirmation of that step; with the leaf as the step, that of the whole path.
"""


def candidates_of(
    kind: str,
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    located: pd.DataFrame,
    *,
    weights: Sequence[float],
    top_k: int,
    min_margin: float,
    max_per_question: int,
    invalid: str = "astray",
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Rank the corrections of wrong paths and choose the candidate pairs of one kind of reflection.

    Args:
        kind: "reflection_mid", "reflection_post" or "reflection_keep".
        steps: trees, columns of STEPS.
        paths: ``trees.paths(steps)``.
        located: first wrong steps, see ``trees.locate_errors``.
        weights: weights of the parts of A, see ``trees.rank_corrections``.
        top_k, min_margin, max_per_question, invalid: see ``reflection_candidates``.

    Returns:
        The ranked corrections, the candidates, and the counts of what is left out on the way.

    Raises:
        MedReflError: a parameter out of its range.
    """
    left_at = "post" if kind == "reflection_post" else "mid"
    ranked, dropped = rank_corrections(steps, located, kind=left_at, weights=weights, top_k=top_k)
    found, lost = reflection_candidates(
        ranked, top_k=top_k, min_margin=min_margin, max_per_question=max_per_question, invalid=invalid
    )
    dropped |= lost
    if kind == "reflection_keep":
        found, lost = restraint_candidates(found, paths)
        dropped |= lost
    return ranked, found, dropped


def reflection_candidates(
    corrections: pd.DataFrame, *, top_k: int, min_margin: float, max_per_question: int, invalid: str = "astray"
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Choose which corrections become pairs: a row per pair, and the counts of what is left out.

    Args:
        corrections: table of ``trees.rank_corrections``.
        top_k: effective and invalid corrections per wrong path, those with the highest A, that are crossed; at least 1.
        min_margin: smallest A(chosen) - A(rejected), in [-4, 4].
        max_per_question: pairs per question, at least 1. The best ranks are kept; among equal ranks, those of the wrong
            path with the higher S, which is the more confusing one.
        invalid: one of INVALID_SIDES. Going on with the same path changes nothing, so the A of "fake" is 0.

    Returns:
        Columns question_id, wrong_leaf, left, and taken, leaf and action with ``_chosen`` and ``_rejected``; and the
        counts ``no_effective``, ``no_invalid`` (wrong paths), ``margin`` and ``cap`` (pairs). All are selections. A
        side that goes on with its path has ``taken`` equal to ``left``, and the path's own leaf.

    Raises:
        MedReflError: a parameter out of its range.
    """
    for name, value in (("top_k", top_k), ("max_per_question", max_per_question)):
        if value < 1:
            raise MedReflError(f"reflection pairs: {name} is {value}, expected at least 1")
    if invalid not in INVALID_SIDES:
        raise MedReflError(f"reflection pairs: invalid is {invalid!r}, expected {' or '.join(INVALID_SIDES)}")
    path = ["question_id", "wrong_leaf"]
    ranks = corrections.groupby([*path, "effective"], sort=False).cumcount()
    best = corrections.assign(rank=ranks)[ranks < top_k]
    shared = [*path, "left", "wrong_value"]
    rejected = best[~best["effective"]]
    if invalid == "fake":
        rejected = best.drop_duplicates(path).assign(
            taken=lambda t: t["left"], leaf=lambda t: t["wrong_leaf"], action=0.0, rank=0
        )
    crossed = best[best["effective"]].merge(
        rejected, on=shared, suffixes=("_chosen", "_rejected"), validate="many_to_many"
    )
    ways = corrections.groupby(path)["effective"].agg(["any", "all"])
    apart = crossed[crossed["action_chosen"] - crossed["action_rejected"] >= min_margin]
    order = apart.assign(
        ranks=apart["rank_chosen"] + apart["rank_rejected"], confusing=-apart["wrong_value"]
    ).sort_values(["question_id", "ranks", "confusing", "wrong_leaf", "rank_chosen"], ignore_index=True)
    kept = order[order.groupby("question_id").cumcount() < max_per_question].reset_index(drop=True)
    dropped = {
        "no_effective": int((~ways["any"]).sum()),
        "no_invalid": int(ways["all"].sum()) if invalid == "astray" else 0,
        "margin": len(crossed) - len(apart),
        "cap": len(apart) - len(kept),
    }
    return kept[CANDIDATES], dropped


def restraint_candidates(candidates: pd.DataFrame, paths: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Turn candidates of kind mid around: the right path is in doubt where the wrong path parts from it.

    The chosen side affirms the right path's first own step and goes on. The rejected side leaves this step for that of
    the wrong path, and ends wrong. Ours.

    Args:
        candidates: table of ``reflection_candidates``, of corrections of kind "mid".
        paths: ``trees.paths(steps)``.

    Returns:
        A table with the same columns, where ``wrong_leaf`` is the right path's, and no A of the rejected side; and the
        counts ``turned_twice`` (the same two paths) and ``ends_path`` (the step is the right path's last).
    """
    nodes = _paths_of(paths, candidates)
    twice = candidates.duplicated(["question_id", "taken_chosen", "leaf_chosen", "wrong_leaf"])
    rows = []
    for row in candidates[~twice].itertuples():
        right, wrong = nodes[row.question_id, row.leaf_chosen], nodes[row.question_id, row.wrong_leaf]
        step = row.taken_chosen
        if step == row.leaf_chosen:
            continue
        kept = (row.leaf_chosen, step, step, row.leaf_chosen, 0.0)
        rows.append((row.question_id, *kept, wrong[right.index(step)], row.wrong_leaf, float("nan")))
    dropped = {"turned_twice": int(twice.sum()), "ends_path": int((~twice).sum()) - len(rows)}
    return pd.DataFrame(rows, columns=CANDIDATES), dropped


def correction_texts(
    questions: Iterable[Question], steps: pd.DataFrame, paths: pd.DataFrame, candidates: pd.DataFrame
) -> dict[CorrectionKey, CorrectionText]:
    """Return the distinct corrections of the candidates as text: each needs one reflection."""
    by_id = questions_by_id(questions, paths)
    read = StepReader(steps, candidates["question_id"])
    nodes = _paths_of(paths, candidates)
    found: dict[CorrectionKey, CorrectionText] = {}
    for row in candidates.itertuples():
        wrong = nodes[row.question_id, row.wrong_leaf]
        end = wrong.index(row.left) + 1
        for taken, leaf in ((row.taken_chosen, row.leaf_chosen), (row.taken_rejected, row.leaf_rejected)):
            if leaf != row.wrong_leaf:
                right = nodes[row.question_id, leaf]
                at = right.index(taken)
                parts = (right[:at], wrong[at:end], right[at:])
            elif end == len(wrong):
                parts = ([], wrong, [])
            else:
                parts = (wrong[: end - 1], wrong[end - 1 : end], [])
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
    """Make pairs of one kind of reflection (columns of PAIRS), and count what is left out.

    Both sides begin with the same path, up to where it is left or affirmed: a wrong one, or a right one in a pair of
    restraint. The chosen side continues with a reflection and a path to the gold answer, the rejected side with another
    reflection and a path to a wrong answer. After a finished path, an affirmation repeats its last step, the answer.
    A reflection is a line of its own. In a model's own form (thinking, final section) it is placed as
    ``path_forms.insert_reflection`` says; that placement is ours.

    Args:
        questions: at least those of the paths.
        steps: trees, columns of STEPS.
        paths: ``trees.paths(steps)``.
        candidates: table of ``reflection_candidates``, or of ``restraint_candidates``.
        reflections: {correction: text}, see ``accepted_reflections``.
        kind: "reflection_mid", "reflection_post" or "reflection_keep".
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
    read = StepReader(steps, candidates["question_id"])
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
        left = wrong[: wrong.index(row.left) + 1]
        # A side that goes on with its path continues after the step left; after the whole path, with its answer.
        goes_on = wrong[min(len(left), len(wrong) - 1)]
        taken = [goes_on if step == row.left else step for step in (row.taken_chosen, row.taken_rejected)]
        provenance = {
            "chosen_nodes": chosen,
            "rejected_nodes": rejected,
            "chosen_value": value[row.question_id, chosen[-1]],
            "rejected_value": value[row.question_id, rejected[-1]],
            "left_nodes": left,
            "chosen_taken": taken[0],
            "rejected_taken": taken[1],
            "chosen_action": row.action_chosen,
            "rejected_action": row.action_rejected,
            "chosen_reflection": reflections[keys[0]],
            "rejected_reflection": reflections[keys[1]],
        }
        begun = "".join(read.texts(row.question_id, left))
        sides = []
        for path, step, key in zip((chosen, rejected), taken, keys, strict=True):
            texts = read.texts(row.question_id, path)
            at = len("".join(texts[: path.index(step)]))
            finished = kind == "reflection_post"
            sides.append(insert_reflection(begun, "".join(texts), at, reflections[key], finished=finished))
        pair = pair_row(question, prompt(question), kind, sides, provenance, dropped, thinking_open=thinking_open)
        if pair is not None:
            dropped["duplicate"] += pair["pair_id"] in rows
            rows.setdefault(pair["pair_id"], pair)
    return pd.DataFrame(list(rows.values()), columns=PAIRS.names), dropped


def _paths_of(paths: pd.DataFrame, candidates: pd.DataFrame) -> dict[tuple[str, int], list[int]]:
    """Return the node ids of the paths of the candidates' questions: {(question_id, leaf): nodes}."""
    here = paths[paths["question_id"].isin(candidates["question_id"])]
    keys = zip(here["question_id"], here["node_id"], strict=True)
    return {key: [int(node) for node in nodes] for key, nodes in zip(keys, here["nodes"], strict=True)}
