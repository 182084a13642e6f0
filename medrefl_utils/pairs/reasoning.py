"""Reasoning pairs by solution value S, and their control, random CoT pairs.

Per question the correct paths are ranked by S ("excellent right paths") and so are the wrong ones ("confusing error
paths": wrong, but through good-looking steps). The best of both sides are crossed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.pairs.pair_table import pair_row
from medrefl_utils.pairs.path_texts import PathText, StepReader, questions_by_id


def reasoning_pairs(
    questions: Iterable[Question],
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    *,
    prompt: Callable[[Question], Messages],
    top_k: int,
    min_margin: float,
    max_per_question: int,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Pairs of kind "reasoning" with the columns of PAIRS, and what was left out, counted by reason.

    ``paths`` is what ``values.paths(steps)`` gives; ``prompt`` turns a question into the messages that ask it. Of each
    question the ``top_k`` paths of either side with the highest S are crossed (README, figure). A pair's S must differ
    by at least ``min_margin`` (chosen minus rejected, in [-2, 2]); at most ``max_per_question`` are kept, those of the
    best ranks first. Ties go to the lower leaf id, so the same tables give the same pairs, whatever their rows' order.

    Left out: ``all_right``, ``all_wrong`` and ``none_stated`` (questions: no wrong path, no right one, no wrong one
    that states an answer), ``unreadable`` (wrong paths that state no answer, in the other questions: what states
    nothing confuses nobody, **ours**), ``duplicate`` (paths of the same text as a better one of their side, as far
    down as the ranks were read), ``margin`` and ``cap`` (pairs).

    Raises MedReflError if a parameter is out of its range, if a question is missing, and, naming question and nodes,
    if a chosen text does not end at the gold answer, a rejected one does, or the two are one.
    """
    for name, value in (("top_k", top_k), ("max_per_question", max_per_question)):
        if value < 1:
            raise MedReflError(f"reasoning pairs: {name} is {value}, expected at least 1")
    by_id = questions_by_id(questions, paths)
    ranked, dropped = _ranked(steps, paths)
    dropped |= {"duplicate": 0, "margin": 0, "cap": 0}
    read = StepReader(steps, ranked["question_id"])
    places = ranked.groupby(["question_id", "outcome"], sort=False).indices
    rows: list[dict[str, object]] = []
    for question_id in sorted(ranked["question_id"].unique()):
        right, right_repeats = _best(read.chains(ranked, places[question_id, 1.0]), top_k)
        wrong, wrong_repeats = _best(read.chains(ranked, places[question_id, -1.0]), top_k)
        dropped["duplicate"] += right_repeats + wrong_repeats
        ranks = sorted(((i, j) for i in range(len(right)) for j in range(len(wrong))), key=lambda ij: (sum(ij), ij))
        apart = [(right[i], wrong[j]) for i, j in ranks if right[i].value - wrong[j].value >= min_margin]
        dropped["margin"] += len(ranks) - len(apart)
        dropped["cap"] += max(len(apart) - max_per_question, 0)
        question = by_id[question_id]
        for sides in apart[:max_per_question]:
            rows.append(
                pair_row(question, prompt(question), "reasoning", [side.text for side in sides], _provenance(sides))
            )
    return pd.DataFrame(rows, columns=PAIRS.names), dropped


def random_pairs(
    questions: Iterable[Question],
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    like: pd.DataFrame,
    *,
    prompt: Callable[[Question], Messages],
    seed: int,
    draws: int = 2,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Pairs of kind "random_cot", the ablation's control: a random right path against a random wrong one.

    One for each pair of ``like`` (reasoning pairs), of its question, so that number and questions are the same. Of
    ``draws`` random pairs of paths the one is taken whose two lengths are nearest to those of the pair it stands
    against (**ours**: more draws match better and are less random). No two paths are paired twice; where a question
    has no more, ``short`` counts what is missing. A wrong path that states no answer is not drawn.

    Raises MedReflError as ``reasoning_pairs`` does.
    """
    if draws < 1:
        raise MedReflError(f"random pairs: draws is {draws}, expected at least 1")
    by_id = questions_by_id(questions, paths)
    ranked, _ = _ranked(steps, paths[paths["question_id"].isin(like["question_id"])])
    read = StepReader(steps, ranked["question_id"])
    places = ranked.groupby(["question_id", "outcome"], sort=False).indices
    rows: list[dict[str, object]] = []
    short = 0
    for question_id, wanted in like.groupby("question_id"):
        right, _ = _best(read.chains(ranked, places[question_id, 1.0]), len(ranked))
        wrong, _ = _best(read.chains(ranked, places[question_id, -1.0]), len(ranked))
        unused = [(a, b) for a in right for b in wrong]
        rng = random.Random(f"random cot {seed} {question_id}")
        for nodes in zip(wanted["chosen_nodes"], wanted["rejected_nodes"], strict=True):
            if not unused:
                short += 1
                continue
            lengths = [read.n_tokens_of(question_id, side) for side in nodes]
            drawn = rng.sample(range(len(unused)), min(draws, len(unused)))
            nearest = min(
                drawn, key=lambda i: sum(abs(s.n_tokens - n) for s, n in zip(unused[i], lengths, strict=True))
            )
            sides = unused.pop(nearest)
            question = by_id[question_id]
            rows.append(pair_row(question, prompt(question), "random_cot", [s.text for s in sides], _provenance(sides)))
    return pd.DataFrame(rows, columns=PAIRS.names), {"short": short}


def _provenance(sides: Sequence[PathText]) -> dict[str, object]:
    chosen, rejected = sides
    return {
        "chosen_nodes": chosen.nodes,
        "rejected_nodes": rejected.nodes,
        "chosen_value": chosen.value,
        "rejected_value": rejected.value,
        "chosen_tokens": chosen.n_tokens,
        "rejected_tokens": rejected.n_tokens,
    }


def _ranked(steps: pd.DataFrame, paths: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The paths of the questions that have both sides, highest S first, and the counts of what is left out."""
    key = ["question_id", "node_id"]
    leaves = steps.loc[steps["outcome"].notna(), [*key, "stop"]]
    table = paths.merge(leaves, on=key, how="left", validate="one_to_one")
    right = table["outcome"] > 0
    stated = ~right & (table["stop"] == "answer")

    def anywhere(paths_: pd.Series) -> pd.Series:
        return paths_.groupby(table["question_id"]).transform("any")

    def questions(paths_: pd.Series) -> int:
        return int(table.loc[paths_, "question_id"].nunique())

    has_right, has_wrong, has_stated = anywhere(right), anywhere(~right), anywhere(stated)
    mixed = has_right & has_stated
    dropped = {
        "all_right": questions(~has_wrong),
        "all_wrong": questions(~has_right),
        "none_stated": questions(has_right & has_wrong & ~has_stated),
        "unreadable": int((mixed & ~right & ~stated).sum()),
    }
    kept = table[mixed & (right | stated)]
    return kept.sort_values(["value", "node_id"], ascending=[False, True], ignore_index=True), dropped


def _best(chains: Iterator[PathText], top_k: int) -> tuple[list[PathText], int]:
    """The first ``top_k`` chains of different text, and how many repeats were met on the way."""
    best: dict[str, PathText] = {}
    repeats = 0
    for chain in chains:
        repeats += chain.text in best
        best.setdefault(chain.text, chain)
        if len(best) == top_k:
            break
    return list(best.values()), repeats
