"""Preference pairs from valued trees: the value-ranked chains of the method, its reflections, and their control.

Reasoning: of each question the correct paths are ranked by S ("excellent right paths") and so are the wrong ones
("confusing error paths": wrong, but through good-looking steps); the best of both sides are crossed. Reflection: a
wrong path is left for another, through a reflection; the best corrections that end right are crossed with the best that
end wrong. Random CoT: paths drawn blindly from the same trees. What a model writes comes in as text: this is all pure.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrefl_utils.answers import extract_answer
from medrefl_utils.prompts import STEP_BOUNDARY, Messages
from medrefl_utils.records import PAIRS, MedReflError, Question

KINDS = ("reasoning", "reflection_mid", "reflection_post", "random_cot")

_STATED = frozenset({"json", "boxed", "stated"})
"""The rules of ``extract_answer`` by which a prompt is caught giving its answer away in so many words."""


@dataclass(frozen=True)
class _Chain:
    """One path with its text, as long as the model wrote it."""

    nodes: list[int]
    value: float
    text: str
    n_tokens: int


@dataclass(frozen=True)
class Turn:
    """A correction as text: the steps that both paths share, those that go wrong, and those that replace them."""

    question: Question
    public: tuple[str, ...]
    wrong: tuple[str, ...]
    right: tuple[str, ...]


Correction = tuple[str, int, int]
"""What names a turn: question_id, the step after which the wrong path is left, the leaf of the path taken up."""


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
    by_id = _by_id(questions, paths)
    ranked, dropped = _ranked(steps, paths)
    dropped |= {"duplicate": 0, "margin": 0, "cap": 0}
    read = _StepReader(steps, ranked["question_id"])
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
                _row(question, prompt(question), "reasoning", [side.text for side in sides], _provenance(sides))
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
    by_id = _by_id(questions, paths)
    ranked, _ = _ranked(steps, paths[paths["question_id"].isin(like["question_id"])])
    read = _StepReader(steps, ranked["question_id"])
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
            rows.append(_row(question, prompt(question), "random_cot", [s.text for s in sides], _provenance(sides)))
    return pd.DataFrame(rows, columns=PAIRS.names), {"short": short}


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


def turns(
    questions: Iterable[Question], steps: pd.DataFrame, paths: pd.DataFrame, candidates: pd.DataFrame
) -> dict[Correction, Turn]:
    """The distinct corrections of the candidates, as text: what a reflection is to be written for."""
    by_id = _by_id(questions, paths)
    read = _StepReader(steps, candidates["question_id"])
    nodes = _paths_of(paths, candidates)
    found: dict[Correction, Turn] = {}
    for row in candidates.itertuples():
        for taken, leaf in ((row.taken_chosen, row.leaf_chosen), (row.taken_rejected, row.leaf_rejected)):
            wrong, right = nodes[row.question_id, row.wrong_leaf], nodes[row.question_id, leaf]
            at, end = right.index(taken), wrong.index(row.left) + 1
            parts = (right[:at], wrong[at:end], right[at:])
            texts = (tuple(read.texts(row.question_id, part)) for part in parts)
            found[row.question_id, row.left, leaf] = Turn(by_id[row.question_id], *texts)
    return found


def reflection_pairs(
    questions: Iterable[Question],
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    candidates: pd.DataFrame,
    reflections: Mapping[Correction, str],
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
    by_id = _by_id(questions, paths)
    texts = turns(by_id.values(), steps, paths, candidates)
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
        pair = _row(question, prompt(question), kind, sides, provenance)
        dropped["duplicate"] += pair["pair_id"] in rows
        rows.setdefault(pair["pair_id"], pair)
    return pd.DataFrame(list(rows.values()), columns=PAIRS.names), dropped


def of_kinds(pairs: pd.DataFrame, kinds: Sequence[str]) -> pd.DataFrame:
    """The pairs of these kinds, in their order. Raises MedReflError for a kind that there is not."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        found = f"{unknown[0]!r} is" if unknown else "no kind is"
        raise MedReflError(f"pairs: {found} given, expected some of {', '.join(KINDS)}")
    return pairs[pairs["kind"].isin(kinds)].reset_index(drop=True)


def check_texts(pairs: pd.DataFrame) -> None:
    """Raise MedReflError, naming the pair, where prompt or side (see ``records.PAIRS``) has no text or no tokens."""
    for name in ("prompt", "chosen", "rejected"):
        empty = [
            not len(side) or not all((message["content"] or "").strip() for message in side) for side in pairs[name]
        ]
        if any(empty):
            pair = pairs["pair_id"].iloc[empty.index(True)]
            raise MedReflError(f"pairs: pair {pair!r}: {name} is empty, expected messages with text")
        tokens = f"{name}_tokens"
        if tokens in pairs and not (counted := pairs[tokens].fillna(0) > 0).all():
            pair, found = pairs.loc[~counted, ["pair_id", tokens]].iloc[0]
            found = 0 if found == 0 else "missing"
            raise MedReflError(f"pairs: pair {pair!r}: {tokens} is {found}, expected the tokens of a text")


def take_at_most(table: pd.DataFrame, n: int, seed: int) -> tuple[pd.DataFrame, int]:
    """``n`` rows of a table, drawn by the seed and in their order, and how many are left out; 0 takes all."""
    if n < 0:
        raise MedReflError(f"pairs: at most {n} of a kind, expected 0 (all) or more")
    if n in (0, *range(len(table), n + 1)):
        return table, 0
    kept = np.sort(np.random.default_rng(seed).choice(len(table), n, replace=False))
    return table.iloc[kept].reset_index(drop=True), len(table) - n


def pair_id(kind: str, prompt: Messages, chosen: Messages, rejected: Messages) -> str:
    """A pair's name, of its content alone: the first 16 hex digits of the SHA-256 of all four as JSON."""
    content = json.dumps([kind, prompt, chosen, rejected], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def with_texts(pair: Mapping[str, object], chosen: str, rejected: str) -> dict[str, object]:
    """The pair with other texts for its sides, and the ``pair_id`` that goes with them."""
    sides = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {
        **pair,
        "pair_id": pair_id(str(pair["kind"]), _messages(pair["prompt"]), *sides),
        "chosen": sides[0],
        "rejected": sides[1],
    }


def check_sides(question: Question, chosen: str, rejected: str, where: str) -> None:
    """Raises MedReflError, beginning with ``where``, for sides that would teach the wrong thing.

    The two are one; the chosen side does not end at the gold answer; the rejected one does.
    """
    if chosen == rejected:
        raise MedReflError(f"{where}: chosen and rejected are the same text")
    answer = extract_answer(chosen, question.options).letter
    if answer != question.gold:
        raise MedReflError(f"{where}: chosen ends at {answer or 'no answer'}, expected the gold {question.gold}")
    if extract_answer(rejected, question.options).letter == question.gold:
        raise MedReflError(f"{where}: rejected ends at the gold answer {question.gold}")


def _row(
    question: Question, prompt: Messages, kind: str, sides: Sequence[str], provenance: Mapping[str, object]
) -> dict[str, object]:
    """A checked row of PAIRS; what no kind of pair fills is null."""
    nodes = f"{provenance['chosen_nodes']} and {provenance['rejected_nodes']}"
    where = f"question {question.question_id!r}, pair of nodes {nodes}"
    check_sides(question, *sides, where)
    for message in prompt:
        told = extract_answer(message["content"], question.options)
        if told.letter == question.gold and told.rule in _STATED:
            raise MedReflError(f"{where}: the prompt states the gold answer {question.gold}")
    empty = dict.fromkeys(PAIRS.names)
    pair = {**empty, "question_id": question.question_id, "kind": kind, "prompt": prompt, **provenance}
    return with_texts(pair, *sides)


def _provenance(sides: Sequence[_Chain]) -> dict[str, object]:
    chosen, rejected = sides
    return {
        "chosen_nodes": chosen.nodes,
        "rejected_nodes": rejected.nodes,
        "chosen_value": chosen.value,
        "rejected_value": rejected.value,
        "chosen_tokens": chosen.n_tokens,
        "rejected_tokens": rejected.n_tokens,
    }


def _reflected(turn: Turn, reflection: str) -> str:
    before = "".join((*turn.public, *turn.wrong)).rstrip()
    return STEP_BOUNDARY.join((before, " ".join(reflection.split()), "".join(turn.right).rstrip()))


def _messages(prompt: Iterable[Mapping[str, str]]) -> Messages:
    """Messages as read from a table, as plain dicts."""
    return [dict(message) for message in prompt]


def _by_id(questions: Iterable[Question], paths: pd.DataFrame) -> dict[str, Question]:
    by_id = {question.question_id: question for question in questions}
    unknown = ~paths["question_id"].isin(by_id.keys())
    if unknown.any():
        first = paths.loc[unknown, "question_id"].iloc[0]
        raise MedReflError(f"question {first!r} has a tree and is not among the {len(by_id)} questions")
    return by_id


def _paths_of(paths: pd.DataFrame, candidates: pd.DataFrame) -> dict[tuple[str, int], list[int]]:
    """The node ids of the paths of the candidates' questions, by question and leaf."""
    here = paths[paths["question_id"].isin(candidates["question_id"])]
    keys = zip(here["question_id"], here["node_id"], strict=True)
    return {key: [int(node) for node in nodes] for key, nodes in zip(keys, here["nodes"], strict=True)}


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
        question_id = paths["question_id"].iat[places[0]]
        path_nodes, value = paths["nodes"].array, paths["value"].array
        for place in places:
            nodes = path_nodes[place]
            text = "".join(self.texts(question_id, nodes)).rstrip()
            yield _Chain(list(nodes), float(value[place]), text, self.n_tokens_of(question_id, nodes))

    def texts(self, question_id: str, nodes: Sequence[int]) -> list[str]:
        """The steps of a question as the model wrote them."""
        return list(self.text.take(self._rows(question_id, nodes)))

    def n_tokens_of(self, question_id: str, nodes: Sequence[int]) -> int:
        """How many tokens the steps have together, as the rollout counted them."""
        return int(self.n_tokens[self._rows(question_id, nodes)].sum())

    def _rows(self, question_id: str, nodes: Sequence[int]) -> npt.NDArray[np.intp]:
        code = self.questions.get_loc(question_id)
        low, high = self.bounds[code], self.bounds[code + 1]
        return self.rows[low + np.searchsorted(self.nodes[low:high], np.asarray(nodes, np.int64))]


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
