"""Robustness: ask the same question changed, greedily, and compare with the unchanged question.

- ``misled``: the question's turn ends with a colleague's wrong answer. (Such a change takes MedReason-8B from 50.4 to
  24.4%: arXiv 2505.11462.)
- ``shuffled``: the options are in another order.
- ``none-of-the-others``: the right option's text is replaced, so it can only be found by ruling out the others.

Each change is drawn from the seed and the question's id, so all models see the same. The wording is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import ROBUSTNESS
from medrefl_utils.evaluation.statistics import paired_difference, share_interval
from medrefl_utils.exam import prompts
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.exam.questions import with_shuffled_options

QUESTION_CHANGES = ("misled", "shuffled", "none-of-the-others")
NONE_OF_THE_OTHERS = "None of the other options"
_UNCHANGED = "greedy"


def changed_question(question: Question, change: str, seed: int) -> Question:
    """Return the question as a protocol of ``QUESTION_CHANGES`` asks it; other names change nothing."""
    if change == "shuffled":
        return with_shuffled_options(question, seed)
    if change == "none-of-the-others":
        return replace(question, options={**question.options, question.gold: NONE_OF_THE_OTHERS})
    return question


def changed_messages(messages: Messages, question: Question, change: str, seed: int) -> Messages:
    """Return the messages that ask the question; ``misled`` adds a wrong answer to the user's turn."""
    if change != "misled":
        return messages
    letter = misleading_letter(question.options, question.gold, question.question_id, seed)
    return prompts.mislead(messages, letter, question.options[letter])


def misleading_letter(options: Iterable[str], gold: str, question_id: str, seed: int) -> str:
    """Draw the wrong letter that ``misled`` suggests, from the seed and the question's id."""
    wrong = [letter for letter in options if letter != gold]
    digest = hashlib.sha256(f"misled {seed} {question_id}".encode()).digest()
    return wrong[int.from_bytes(digest[:8], "big") % len(wrong)]


def compare_robustness(responses: pd.DataFrame, seed: int, n_boot: int = 10_000) -> pd.DataFrame:
    """Compare each changed protocol with "greedy", question by question: columns of ROBUSTNESS.

    Args:
        responses: columns of RESPONSES. Without the protocol "greedy" or a changed one the table is empty.
        seed: seed of the responses, and so of the changes; also of the bootstrap.
        n_boot: bootstrap samples of each interval.
    """
    rows = []
    for (source, model), table in responses.groupby(["source", "model"], sort=False):
        before = table[table["protocol"] == _UNCHANGED].set_index("question_id")
        for change in [name for name in QUESTION_CHANGES if (table["protocol"] == name).any() and len(before)]:
            after = table[table["protocol"] == change].set_index("question_id")
            both = before.index.intersection(after.index)
            found = _row(before.loc[both], after.loc[both], change, seed, n_boot)
            rows.append({"source": source, "model": model, "protocol": change} | found)
    return pd.DataFrame(rows, columns=ROBUSTNESS.names)


def _row(before: pd.DataFrame, after: pd.DataFrame, change: str, seed: int, n_boot: int) -> dict[str, float]:
    stems = before["stem_id"].fillna(before.index.to_series())
    was, now = before["correct"].astype(float), after["correct"].astype(float)
    lost = paired_difference(now - was, stems, np.zeros(len(now)), n_boot, seed)
    pairs = zip(before.to_dict("records"), after.to_dict("records"), strict=True)
    moved = [_chosen(one, change) != _chosen(two, change) for one, two in pairs]
    changed = share_interval(moved, stems, n_boot, seed)
    row = {"n": len(now), "accuracy_greedy": was.mean(), "accuracy": now.mean(), "changed": changed.estimate}
    row |= {"changed_low": changed.low, "changed_high": changed.high}
    row |= {"difference": lost.estimate, "difference_low": lost.low, "difference_high": lost.high}
    if change == "misled":
        asked = zip(after.index, after["options"], after["gold"], strict=True)
        told = [misleading_letter(dict(options), gold, name, seed) for name, options, gold in asked]
        row |= {"followed_greedy": (before["answer"] == told).mean(), "followed": (after["answer"] == told).mean()}
    return row


def _chosen(response: dict[str, object], change: str) -> str | None:
    """Return the option that a response chose: by its text if the letters moved, else by its letter; None for none."""
    letter = response["answer"]
    if not isinstance(letter, str):
        return None
    return dict(response["options"]).get(letter) if change == "shuffled" else letter
