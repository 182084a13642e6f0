"""Measure the sides of pairs in tokens of the model to be trained, limit their length, and balance both sides.

DPO sums log-probabilities over a response. So it learns length where one side is longer in most pairs. Pure: the
tokenizer comes in as a ``Counter``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam.prompts import STEP_BOUNDARY, Messages
from medrefl_utils.exam.steps import split_into_steps
from medrefl_utils.pairs.pair_table import replace_sides

OVERLONG_PAIRS = ("drop", "truncate")
END = 1
"""Tokens that training adds to a side: the end of the turn."""


class Counter(Protocol):
    """Counts tokens with the tokenizer of the model to be trained (``models.TokenCounter``)."""

    def prompts(self, messages: Sequence[Messages]) -> list[int]:
        """Count the tokens of each prompt in the chat template, with the header of the assistant's turn."""
        ...

    def texts(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text alone."""
        ...


def count_tokens(pairs: pd.DataFrame, counter: Counter) -> pd.DataFrame:
    """Return the pairs with ``prompt_tokens``, ``chosen_tokens`` and ``rejected_tokens``, counted by ``counter``."""
    return pairs.assign(
        prompt_tokens=counter.prompts(pairs["prompt"].tolist()),
        **{f"{side}_tokens": counter.texts([m[0]["content"] for m in pairs[side]]) for side in ("chosen", "rejected")},
    )


def apply_length_limit(
    pairs: pd.DataFrame, counter: Counter, *, max_length: int, overlong_pairs: str
) -> tuple[pd.DataFrame, DropCounts]:
    """Keep the pairs whose prompt and longer side, with the end of the turn, have at most ``max_length`` tokens.

    Args:
        pairs: measured pairs (``count_tokens``).
        counter: counts the tokens of truncated sides.
        max_length: tokens of prompt and response together, at least 1.
        overlong_pairs: "drop" drops the other pairs. "truncate" removes lines from the end of a side until it fits, or
            sentences where its first line is too long, and
            drops a pair if a side is empty or both sides are the same afterwards. A truncated side has no answer.

    Returns:
        The pairs and the counts: ``overlong`` (fault: dropped pairs), ``truncated`` (pairs that are kept).

    Raises:
        MedReflError: a parameter out of its range.
    """
    if overlong_pairs not in OVERLONG_PAIRS:
        raise MedReflError(f"pairs: overlong_pairs is {overlong_pairs!r}, expected one of {', '.join(OVERLONG_PAIRS)}")
    if max_length < 1:
        raise MedReflError(f"pairs: max_length is {max_length}, expected at least 1")
    longer = pairs[["chosen_tokens", "rejected_tokens"]].max(axis=1)
    fits = pairs["prompt_tokens"] + longer + END <= max_length
    dropped = DropCounts({"overlong": 0, "truncated": 0})
    if fits.all():
        return pairs.reset_index(drop=True), dropped
    rows = []
    for fit, pair in zip(fits, pairs.to_dict("records"), strict=True):
        room = max_length - END - pair["prompt_tokens"]
        if not fit and overlong_pairs == "drop":
            dropped.drop("overlong", _overlong(pair, max_length))
            continue
        if not fit:
            texts = [_cut(pair[side][0]["content"], room, counter) for side in ("chosen", "rejected")]
            if not all(texts) or texts[0] == texts[1]:
                dropped.drop("overlong", _overlong(pair, max_length))
                continue
            pair = replace_sides(pair, *texts)
            dropped["truncated"] += 1
        rows.append(pair)
    kept = pd.DataFrame(rows, columns=PAIRS.names)
    return (count_tokens(kept, counter) if dropped["truncated"] else pairs[fits].reset_index(drop=True)), dropped


def length_imbalance(pairs: pd.DataFrame) -> pd.DataFrame:
    """Compare the lengths of both sides per kind.

    Columns: ``pairs``, mean tokens ``chosen`` and ``rejected``, their ``ratio``, share of pairs ``chosen_longer``.
    """
    longer = pairs["chosen_tokens"] > pairs["rejected_tokens"]
    table = (
        pairs.assign(longer=longer)
        .groupby("kind", sort=False)
        .agg(
            pairs=("kind", "size"),
            chosen=("chosen_tokens", "mean"),
            rejected=("rejected_tokens", "mean"),
            chosen_longer=("longer", "mean"),
        )
    )
    table.insert(3, "ratio", table["chosen"] / table["rejected"])
    return table


def length_warnings(pairs: pd.DataFrame, tolerance: float) -> list[str]:
    """Return a warning for each kind whose mean lengths differ by more than the share ``tolerance``."""
    return [
        f"{row.Index}: chosen sides have {row.chosen:.0f} tokens and rejected ones {row.rejected:.0f} on average "
        f"({100 * (row.ratio - 1):+.0f}%, the chosen one is longer in {row.chosen_longer:.0%} of {row.pairs} pairs): "
        "DPO would learn length; set length_match to balance them"
        for row in length_imbalance(pairs).itertuples()
        if not 1 / (1 + tolerance) <= row.ratio <= 1 + tolerance
    ]


def match_lengths(pairs: pd.DataFrame, tolerance: float) -> tuple[pd.DataFrame, int]:
    """Drop the most one-sided pairs of each kind until its mean lengths differ by at most the share ``tolerance``.

    The pairs in which the longer side exceeds the other one most are dropped first (ties: later pairs first), and no
    more than necessary (ours).

    Returns:
        The other pairs in their order, and the number of dropped pairs.

    Raises:
        MedReflError: a tolerance below 0.
    """
    if tolerance < 0:
        raise MedReflError(f"pairs: length_tolerance is {tolerance}, expected at least 0")
    kept = []
    for places in pairs.groupby("kind", sort=False).indices.values():
        chosen, rejected = (pairs[f"{side}_tokens"].to_numpy(np.float64)[places] for side in ("chosen", "rejected"))
        if chosen.sum() < rejected.sum():
            chosen, rejected = rejected, chosen
        order = np.argsort(chosen - rejected, kind="stable")
        # Sums over the pairs that remain when all after the n-th are dropped.
        fits = np.cumsum(chosen[order]) <= (1 + tolerance) * np.cumsum(rejected[order])
        n = int(np.flatnonzero(fits)[-1]) + 1 if fits.any() else 0
        kept.append(places[order[:n]])
    rows = np.sort(np.concatenate(kept)) if kept else np.zeros(0, int)
    return pairs.iloc[rows].reset_index(drop=True), len(pairs) - len(rows)


def _cut(text: str, room: int, counter: Counter) -> str:
    """Return the first lines that have at most ``room`` tokens together, or the first sentences if no line fits."""
    lines = text.split(STEP_BOUNDARY)
    kept = _longest([STEP_BOUNDARY.join(lines[:n]) for n in range(len(lines), 0, -1)], room, counter)
    if kept.strip():
        return kept
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    sentences = split_into_steps(lines[first], "sentence")
    return _longest(["".join(sentences[:n]).rstrip() for n in range(len(sentences) - 1, 0, -1)], room, counter)


def _longest(texts: Iterable[str], room: int, counter: Counter) -> str:
    """Return the first text that has at most ``room`` tokens, "" where none has."""
    return next((text for text in texts if counter.texts([text])[0] <= room), "")


def _overlong(pair: Mapping[str, object], max_length: int) -> str:
    longer = max(pair["chosen_tokens"], pair["rejected_tokens"])
    return (
        f"pair {pair['pair_id']!r}: {pair['prompt_tokens']:.0f} tokens of the prompt and {longer:.0f} of the longer "
        f"side exceed max_length {max_length}"
    )
