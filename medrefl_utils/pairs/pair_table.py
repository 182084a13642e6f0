"""Preference pairs from valued trees: the value-ranked chains of the method, its reflections, and their control.

Reasoning: of each question the correct paths are ranked by S ("excellent right paths") and so are the wrong ones
("confusing error paths": wrong, but through good-looking steps); the best of both sides are crossed. Reflection: a
wrong path is left for another, through a reflection; the best corrections that end right are crossed with the best that
end wrong. Random CoT: paths drawn blindly from the same trees. What a model writes comes in as text: this is all pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam.answers import extract_answer
from medrefl_utils.exam.prompts import Messages

PAIR_KINDS = ("reasoning", "reflection_mid", "reflection_post", "random_cot")

_STATED = frozenset({"json", "boxed", "stated"})
"""The rules of ``extract_answer`` by which a prompt is caught giving its answer away in so many words."""


def select_kinds(pairs: pd.DataFrame, kinds: Sequence[str]) -> pd.DataFrame:
    """The pairs of these kinds, in their order. Raises MedReflError for a kind that there is not."""
    unknown = [kind for kind in kinds if kind not in PAIR_KINDS]
    if unknown or not kinds:
        found = f"{unknown[0]!r} is" if unknown else "no kind is"
        raise MedReflError(f"pairs: {found} given, expected some of {', '.join(PAIR_KINDS)}")
    return pairs[pairs["kind"].isin(kinds)].reset_index(drop=True)


def check_pair_texts(pairs: pd.DataFrame) -> None:
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


def sample_at_most(table: pd.DataFrame, n: int, seed: int) -> tuple[pd.DataFrame, int]:
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


def replace_sides(pair: Mapping[str, object], chosen: str, rejected: str) -> dict[str, object]:
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


def pair_row(
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
    return replace_sides(pair, *sides)


def _messages(prompt: Iterable[Mapping[str, str]]) -> Messages:
    """Messages as read from a table, as plain dicts."""
    return [dict(message) for message in prompt]
