"""Reasoning pairs by solution value S, and their control, random CoT pairs.

Per question, correct paths and wrong paths are each ranked by S ("excellent right paths", "confusing error paths":
wrong, but through good-looking steps). The best of both sides are crossed. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.pairs.pair_table import pair_row
from medrefl_utils.pairs.path_texts import PathText, StepReader, check_step_columns, questions_by_id

MAX_SHARED = 0.2
"""Largest share of the random pairs that may be reasoning pairs (ours)."""


def reasoning_pairs(
    questions: Iterable[Question],
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    *,
    prompt: Callable[[Question], Messages],
    top_k: int,
    min_margin: float,
    max_per_question: int,
    thinking_open: bool = False,
) -> tuple[pd.DataFrame, DropCounts]:
    """Make pairs of kind "reasoning" (columns of PAIRS), and count what is left out by reason.

    Per question, the ``top_k`` right paths and the ``top_k`` wrong paths with the highest S are crossed (README,
    figure). Ties go to the lower leaf id, so the order of the rows changes nothing.

    Args:
        questions: at least those of the paths.
        steps: trees, columns of STEPS.
        paths: ``trees.paths(steps)``.
        prompt: turns a question into the messages that ask it.
        top_k: paths of each side, at least 1.
        min_margin: smallest S(chosen) - S(rejected), in [-2, 2].
        max_per_question: pairs per question, at least 1; the best ranks are kept.
        thinking_open: the chat template opened the thinking, so that every path begins inside it.

    Returns:
        The pairs and the counts. Selections: ``all_right``, ``all_wrong``, ``none_stated`` (questions without a wrong
        path, without a right path, without a wrong path that states an answer), ``unreadable`` (wrong paths of the
        other questions that state no answer, ours), ``duplicate`` (paths with the text of a better path), ``margin``
        and ``cap`` (pairs). Faults: ``pair_table.PAIR_FAULTS``, each only where it occurs.

    Raises:
        MedReflError: a parameter out of its range, a question that is missing, or steps without texts.
    """
    for name, value in (("top_k", top_k), ("max_per_question", max_per_question)):
        if value < 1:
            raise MedReflError(f"reasoning pairs: {name} is {value}, expected at least 1")
    by_id = questions_by_id(questions, paths)
    ranked, left_out = _ranked(steps, paths)
    dropped = DropCounts({**left_out, "duplicate": 0, "margin": 0, "cap": 0})
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
        question, room = by_id[question_id], max_per_question
        for sides in apart:
            if not room:
                dropped["cap"] += 1
            elif row := _row(question, prompt(question), "reasoning", sides, dropped, thinking_open):
                rows.append(row)
                room -= 1
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
    thinking_open: bool = False,
) -> tuple[pd.DataFrame, DropCounts]:
    """Make pairs of kind "random_cot", the control of the ablation: a random right path against a random wrong path.

    There is one pair per pair of ``like``, of the same question. Of ``draws`` random pairs of paths, the pair whose two
    lengths are nearest to those of its counterpart is used (ours: more draws match the lengths better and are less
    random). No two paths are paired twice. A wrong path that states no answer is not drawn.

    A control that is the treatment controls nothing: in a small tree most random pairs are reasoning pairs. So a pair
    with the texts of a reasoning pair is drawn only where a question has no other, and at most ``MAX_SHARED`` of all
    pairs are kept that are reasoning pairs too, by the seed (ours).

    Args:
        questions: at least those of the paths.
        steps: trees, columns of STEPS.
        paths: ``trees.paths(steps)``.
        like: reasoning pairs.
        prompt: turns a question into the messages that ask it.
        seed: seed of the draws.
        draws: random pairs of paths per pair, at least 1.
        thinking_open: the chat template opened the thinking, so that every path begins inside it.

    Returns:
        The pairs and the counts. Selections: ``short`` (pairs that are missing because a question has no more paths),
        ``shared`` (reasoning pairs beyond ``MAX_SHARED``). Faults: ``pair_table.PAIR_FAULTS``; another pair is drawn
        instead.

    Raises:
        MedReflError: a parameter out of its range, or a question that is missing.
    """
    if draws < 1:
        raise MedReflError(f"random pairs: random_cot_draws is {draws}, expected at least 1")
    by_id = questions_by_id(questions, paths)
    ranked, _ = _ranked(steps, paths[paths["question_id"].isin(like["question_id"])])
    read = StepReader(steps, ranked["question_id"])
    places = ranked.groupby(["question_id", "outcome"], sort=False).indices
    rows: list[dict[str, object]] = []
    repeats: list[bool] = []
    dropped = DropCounts({"short": 0, "shared": 0})
    for question_id, wanted in like.groupby("question_id"):
        right, _ = _best(read.chains(ranked, places[question_id, 1.0]), len(ranked))
        wrong, _ = _best(read.chains(ranked, places[question_id, -1.0]), len(ranked))
        theirs = set(zip(map(_side_text, wanted["chosen"]), map(_side_text, wanted["rejected"]), strict=True))
        crossed = [(a, b) for a in right for b in wrong]
        unused = [sides for sides in crossed if (sides[0].text, sides[1].text) not in theirs]
        shared = [sides for sides in crossed if (sides[0].text, sides[1].text) in theirs]
        rng = random.Random(f"random cot {seed} {question_id}")
        for nodes in zip(wanted["chosen_nodes"], wanted["rejected_nodes"], strict=True):
            lengths = [read.n_tokens_of(question_id, side) for side in nodes]
            row = None
            while (unused or shared) and row is None:
                pool = unused or shared
                repeated = pool is shared
                sides = pool.pop(_nearest(pool, lengths, rng, draws))
                row = _row(by_id[question_id], prompt(by_id[question_id]), "random_cot", sides, dropped, thinking_open)
            if row is None:
                dropped["short"] += 1
            else:
                rows.append(row)
                repeats.append(repeated)
    places_of_shared = [place for place, repeated in enumerate(repeats) if repeated]
    most = int(MAX_SHARED / (1 - MAX_SHARED) * (len(rows) - len(places_of_shared)) + 1e-9)
    dropped["shared"] = max(0, len(places_of_shared) - most)
    gone = set(random.Random(f"random cot {seed}").sample(places_of_shared, dropped["shared"]))
    rows = [row for place, row in enumerate(rows) if place not in gone]
    return pd.DataFrame(rows, columns=PAIRS.names), dropped


def _side_text(side: Sequence[Mapping[str, str]]) -> str:
    return side[0]["content"]


_Sides = tuple[PathText, PathText]
"""The chosen and the rejected path."""


def _nearest(unused: Sequence[_Sides], lengths: Sequence[int], rng: random.Random, draws: int) -> int:
    """Return the place of the pair, of ``draws`` random pairs, whose two lengths are nearest to ``lengths``."""
    drawn = rng.sample(range(len(unused)), min(draws, len(unused)))
    return min(drawn, key=lambda i: sum(abs(side.n_tokens - n) for side, n in zip(unused[i], lengths, strict=True)))


def _row(
    question: Question, prompt: Messages, kind: str, sides: _Sides, dropped: DropCounts, thinking_open: bool
) -> dict[str, object] | None:
    texts = [side.text for side in sides]
    return pair_row(question, prompt, kind, texts, _provenance(sides), dropped, thinking_open=thinking_open)


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
    """Return the paths of the questions that have both sides, highest S first, and the counts of what is left out."""
    key = ["question_id", "node_id"]
    check_step_columns(steps, "stop", "text", "n_tokens")
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
    """Return the first ``top_k`` chains with different texts, and how many repeats came before the last of them."""
    best: dict[str, PathText] = {}
    repeats = 0
    for chain in chains:
        repeats += chain.text in best
        best.setdefault(chain.text, chain)
        if len(best) == top_k:
            break
    return list(best.values()), repeats
