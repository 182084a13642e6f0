"""Rows of the table of pairs: build them, check them, select them.

A row that fails a check is dropped and counted (``pair_row``); a call that is wrong raises. Pure: no model, no file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam.answers.reader import EXPLICIT, extract_answer
from medrefl_utils.exam.prompts import Messages

PAIR_KINDS = ("reasoning", "reflection_mid", "reflection_post", "reflection_keep", "random_cot")
PAIR_FAULTS = ("same_text", "chosen_elsewhere", "rejected_right", "prompt_states_answer")
"""Why ``pair_row`` drops a pair."""

_PLACEHOLDER = re.compile(r"[\"“]answer(?:[\"”]\s*:\s*[\"“]|\s*:\s*)X[\"”]", re.IGNORECASE)
"""The form of the answer that a prompt asks for: ``"Answer: X"``, ``"answer": "X"``."""


def select_kinds(pairs: pd.DataFrame, kinds: Sequence[str]) -> pd.DataFrame:
    """Return the pairs of these kinds, in their order. Raises MedReflError for an unknown kind, or for none."""
    unknown = [kind for kind in kinds if kind not in PAIR_KINDS]
    if unknown or not kinds:
        found = f"{unknown[0]!r} is" if unknown else "no kind is"
        raise MedReflError(f"pairs: {found} given, expected some of {', '.join(PAIR_KINDS)}")
    return pairs[pairs["kind"].isin(kinds)].reset_index(drop=True)


def check_pair_texts(pairs: pd.DataFrame) -> None:
    """Raise MedReflError, naming the pair, where the prompt or a side (columns of PAIRS) has no text or no tokens."""
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
            raise MedReflError(f"pairs: pair {pair!r}: {tokens} is {found}, expected at least 1")


def sample_at_most(table: pd.DataFrame, n: int, seed: int) -> tuple[pd.DataFrame, int]:
    """Draw ``n`` rows by the seed, in their order; return them and how many are left out. ``n`` 0 takes all rows."""
    if n < 0:
        raise MedReflError(f"pairs: at most {n} of a kind, expected 0 (all) or more")
    if n in (0, *range(len(table), n + 1)):
        return table, 0
    kept = np.sort(np.random.default_rng(seed).choice(len(table), n, replace=False))
    return table.iloc[kept].reset_index(drop=True), len(table) - n


def pair_id(kind: str, prompt: Messages, chosen: Messages, rejected: Messages) -> str:
    """Name a pair by its content: the first 16 hex digits of the SHA-256 of kind, prompt and both sides as JSON."""
    content = json.dumps([kind, prompt, chosen, rejected], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def replace_sides(pair: Mapping[str, object], chosen: str, rejected: str) -> dict[str, object]:
    """Return the pair with other texts for its sides, and with the ``pair_id`` of the new content."""
    sides = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {
        **pair,
        "pair_id": pair_id(str(pair["kind"]), _messages(pair["prompt"]), *sides),
        "chosen": sides[0],
        "rejected": sides[1],
    }


def side_fault(question: Question, chosen: str, rejected: str, *, thinking_open: bool = False) -> tuple[str, str]:
    """Say why two sides would teach the wrong thing: (one of PAIR_FAULTS, what was found), or ("", "").

    ``same_text``: both sides are the same. ``chosen_elsewhere``: the chosen side does not end at the gold answer.
    ``rejected_right``: the rejected side does. ``thinking_open``: the chat template opened the thinking, so that both
    sides begin inside it.
    """
    if chosen == rejected:
        return "same_text", "chosen and rejected are the same text"
    answer = extract_answer(chosen, question.options, thinking_open=thinking_open).letter
    if answer != question.gold:
        return "chosen_elsewhere", f"chosen ends at {answer or 'no answer'}, expected the gold {question.gold}"
    if extract_answer(rejected, question.options, thinking_open=thinking_open).letter == question.gold:
        return "rejected_right", f"rejected ends at the gold answer {question.gold}, expected another answer or none"
    return "", ""


def prompt_states_answer(question: Question, prompt: Messages) -> bool:
    """Say whether a prompt states its gold answer explicitly, as in "The answer is C".

    What every prompt holds is no statement: the list of options, and the form that is asked for (``"Answer: X"``, also
    where X is the text of an option). Nor is a stem that ends "Choose the correct answer:", or one that lists the texts
    of all options itself. The rule is ours.
    """
    listed = {f"{letter}. {' '.join(text.split())}" for letter, text in question.options.items()}
    for message in prompt:
        lines = [line for line in message["content"].split("\n") if line.strip() not in listed]
        text = _PLACEHOLDER.sub("", "\n".join(lines))
        told = extract_answer(text, question.options)
        if told.letter == question.gold and told.rule in EXPLICIT:
            low = text.casefold()
            return not all(option.casefold() in low for option in question.options.values())
    return False


def pair_row(
    question: Question,
    prompt: Messages,
    kind: str,
    sides: Sequence[str],
    provenance: Mapping[str, object],
    dropped: DropCounts,
    *,
    thinking_open: bool = False,
) -> dict[str, object] | None:
    """Build a row of PAIRS, or count in ``dropped`` why there is none (PAIR_FAULTS) and return None.

    ``sides`` are the texts of chosen and rejected; columns that this kind of pair does not fill are null.
    ``thinking_open``: see ``side_fault``.
    """
    reason, found = side_fault(question, *sides, thinking_open=thinking_open)
    if not reason and prompt_states_answer(question, prompt):
        reason, found = "prompt_states_answer", f"the prompt states the gold answer {question.gold}"
    if reason:
        nodes = f"{provenance['chosen_nodes']} and {provenance['rejected_nodes']}"
        dropped.drop(reason, f"question {question.question_id!r}, pair of nodes {nodes}: {found}")
        return None
    empty = dict.fromkeys(PAIRS.names)
    pair = {**empty, "question_id": question.question_id, "kind": kind, "prompt": prompt, **provenance}
    return replace_sides(pair, *sides)


def _messages(prompt: Iterable[Mapping[str, str]]) -> Messages:
    """Return messages as read from a table as plain dicts."""
    return [dict(message) for message in prompt]
