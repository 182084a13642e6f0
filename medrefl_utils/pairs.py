"""Preference pairs from valued trees: the value-ranked chains of the method.

Of each question the correct paths are ranked by S ("excellent right paths") and so are the wrong ones ("confusing
error paths": wrong, but through good-looking steps); the best of both sides are crossed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrefl_utils.answers import extract_answer
from medrefl_utils.prompts import Messages
from medrefl_utils.records import PAIRS, MedReflError, Question


@dataclass(frozen=True)
class _Chain:
    """One path with its text, as long as the model wrote it."""

    nodes: list[int]
    value: float
    text: str
    n_tokens: int


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
    by_id = {question.question_id: question for question in questions}
    unknown = ~paths["question_id"].isin(by_id.keys())
    if unknown.any():
        first = paths.loc[unknown, "question_id"].iloc[0]
        raise MedReflError(f"question {first!r} has a tree and is not among the {len(by_id)} questions")

    ranked, dropped = _ranked(steps, paths)
    dropped |= {"duplicate": 0, "margin": 0, "cap": 0}
    read = _StepReader(steps, ranked["question_id"])
    sides = ranked.groupby(["question_id", "outcome"], sort=False).indices
    rows: list[dict[str, object]] = []
    for question_id in sorted(ranked["question_id"].unique()):
        right, right_repeats = _best(read.chains(ranked, sides[question_id, 1.0]), top_k)
        wrong, wrong_repeats = _best(read.chains(ranked, sides[question_id, -1.0]), top_k)
        dropped["duplicate"] += right_repeats + wrong_repeats
        ranks = sorted(((i, j) for i in range(len(right)) for j in range(len(wrong))), key=lambda ij: (sum(ij), ij))
        apart = [(right[i], wrong[j]) for i, j in ranks if right[i].value - wrong[j].value >= min_margin]
        dropped["margin"] += len(ranks) - len(apart)
        dropped["cap"] += max(len(apart) - max_per_question, 0)
        rows += _checked(by_id[question_id], prompt(by_id[question_id]), "reasoning", apart[:max_per_question])
    return pd.DataFrame(rows, columns=PAIRS.names), dropped


def pair_id(kind: str, prompt: Messages, chosen: Messages, rejected: Messages) -> str:
    """A pair's name, of its content alone: the first 16 hex digits of the SHA-256 of all four as JSON."""
    content = json.dumps([kind, prompt, chosen, rejected], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


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


class _StepReader:
    """Finds a path's steps by their ids: the table is sorted once, and text is read only of paths that are used."""

    def __init__(self, steps: pd.DataFrame, questions: pd.Series) -> None:
        self.questions = pd.Index(questions.unique())
        code = self.questions.get_indexer(steps["question_id"])
        self.rows = np.lexsort((steps["node_id"].to_numpy(), code))
        self.bounds = np.searchsorted(code[self.rows], np.arange(len(self.questions) + 1))
        self.nodes = steps["node_id"].to_numpy()[self.rows]
        self.text, self.n_tokens = steps["text"].array, steps["n_tokens"].to_numpy()

    def chains(self, paths: pd.DataFrame, places: npt.NDArray[np.intp]) -> Iterator[_Chain]:
        """The chains of one question's paths at these places, each read when it is asked for."""
        code = self.questions.get_loc(paths["question_id"].iat[places[0]])
        low, high = self.bounds[code], self.bounds[code + 1]
        path_nodes, value = paths["nodes"].array, paths["value"].array
        for place in places:
            nodes = path_nodes[place]
            rows = self.rows[low + np.searchsorted(self.nodes[low:high], nodes)]
            text = "".join(self.text.take(rows)).rstrip()
            yield _Chain(list(nodes), float(value[place]), text, int(self.n_tokens[rows].sum()))


def _best(chains: Iterator[_Chain], top_k: int) -> tuple[list[_Chain], int]:
    """The first ``top_k`` chains of different text, and how many repeats were met on the way."""
    best: dict[str, _Chain] = {}
    repeats = 0
    for chain in chains:
        repeats += chain.text in best
        best.setdefault(chain.text, chain)
        if len(best) == top_k:
            break
    return list(best.values()), repeats


def _checked(
    question: Question, prompt: Messages, kind: str, pairs: list[tuple[_Chain, _Chain]]
) -> Iterator[dict[str, object]]:
    """The rows of the pairs, each checked: what would teach the wrong thing stops the stage."""
    for chosen, rejected in pairs:
        where = f"question {question.question_id!r}, pair of nodes {chosen.nodes} and {rejected.nodes}"
        if chosen.text == rejected.text:
            raise MedReflError(f"{where}: chosen and rejected are the same text")
        answer = extract_answer(chosen.text, question.options).letter
        if answer != question.gold:
            raise MedReflError(f"{where}: chosen ends at {answer or 'no answer'}, expected the gold {question.gold}")
        if extract_answer(rejected.text, question.options).letter == question.gold:
            raise MedReflError(f"{where}: rejected ends at the gold answer {question.gold}")
        sides = [[{"role": "assistant", "content": chain.text}] for chain in (chosen, rejected)]
        yield {
            "pair_id": pair_id(kind, prompt, *sides),
            "question_id": question.question_id,
            "kind": kind,
            "prompt": prompt,
            "chosen": sides[0],
            "rejected": sides[1],
            "chosen_nodes": chosen.nodes,
            "rejected_nodes": rejected.nodes,
            "chosen_value": chosen.value,
            "rejected_value": rejected.value,
            "chosen_tokens": chosen.n_tokens,
            "rejected_tokens": rejected.n_tokens,
        }
