"""How long the sides of pairs are in the student's own tokens; what is too long, and sides that differ too much.

DPO sums log-probabilities over a response, so that a side that is nearly always the longer one teaches length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam.prompts import STEP_BOUNDARY, Messages
from medrefl_utils.pairs.pair_table import replace_sides

OVERLONG_PAIRS = ("drop", "truncate")
END = 1
"""The token that ends the turn, which training adds to a side."""


class Counter(Protocol):
    """The student's tokenizer, as far as lengths go."""

    def prompts(self, messages: Sequence[Messages]) -> list[int]:
        """Tokens of each prompt in the chat template, the header of the assistant's turn included."""
        ...

    def texts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        ...


def count_tokens(pairs: pd.DataFrame, counter: Counter) -> pd.DataFrame:
    """The pairs with ``prompt_tokens``, ``chosen_tokens`` and ``rejected_tokens`` counted by ``counter``."""
    return pairs.assign(
        prompt_tokens=counter.prompts(pairs["prompt"].tolist()),
        **{f"{side}_tokens": counter.texts([m[0]["content"] for m in pairs[side]]) for side in ("chosen", "rejected")},
    )


def apply_length_limit(
    pairs: pd.DataFrame, counter: Counter, *, max_length: int, overlong_pairs: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The measured pairs whose prompt and longer side fit into ``max_length``, the end of the turn counted.

    ``overlong_pairs`` "drop" leaves the others out (counted as ``overlong``). "truncate" takes lines off the end of a
    side until it fits (``truncated`` counts the pairs), and leaves out pairs of which nothing or no difference remains
    (``overlong``); a truncated side ends before its answer. Raises MedReflError for a parameter out of its range.
    """
    if overlong_pairs not in OVERLONG_PAIRS:
        raise MedReflError(f"pairs: overlong_pairs is {overlong_pairs!r}, expected one of {', '.join(OVERLONG_PAIRS)}")
    if max_length < 1:
        raise MedReflError(f"pairs: max_length is {max_length}, expected at least 1")
    longer = pairs[["chosen_tokens", "rejected_tokens"]].max(axis=1)
    fits = pairs["prompt_tokens"] + longer + END <= max_length
    dropped = {"overlong": int((~fits).sum()), "truncated": 0}
    if fits.all() or overlong_pairs == "drop":
        return pairs[fits].reset_index(drop=True), dropped
    rows = []
    for fit, pair in zip(fits, pairs.to_dict("records"), strict=True):
        room = max_length - END - pair["prompt_tokens"]
        if not fit:
            texts = [_cut(pair[side][0]["content"], room, counter) for side in ("chosen", "rejected")]
            if not all(texts) or texts[0] == texts[1]:
                continue
            pair = replace_sides(pair, *texts)
            dropped["truncated"] += 1
        rows.append(pair)
    dropped["overlong"] = len(pairs) - len(rows)
    return count_tokens(pd.DataFrame(rows, columns=PAIRS.names), counter), dropped


def length_imbalance(pairs: pd.DataFrame) -> pd.DataFrame:
    """By kind: ``pairs``, mean tokens of both sides, their ``ratio`` (chosen by rejected), share ``chosen_longer``."""
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
    """A line for each kind whose mean lengths differ by more than the share ``tolerance``: DPO would learn length."""
    return [
        f"{row.Index}: chosen sides have {row.chosen:.0f} tokens and rejected ones {row.rejected:.0f} on average "
        f"({100 * (row.ratio - 1):+.0f}%, the chosen one is longer in {row.chosen_longer:.0%} of {row.pairs} pairs): "
        "DPO would learn length; length_match balances"
        for row in length_imbalance(pairs).itertuples()
        if not 1 / (1 + tolerance) <= row.ratio <= 1 + tolerance
    ]


def match_lengths(pairs: pd.DataFrame, tolerance: float) -> tuple[pd.DataFrame, int]:
    """The pairs without the most one-sided of each kind, until its mean lengths differ by at most ``tolerance``.

    From the kind's longer side the pairs with the greatest surplus go first (ties: the later ones), and no more of them
    than it takes (**ours**). Returns the rest in their order, and how many went. Raises MedReflError for a tolerance
    below 0.
    """
    if tolerance < 0:
        raise MedReflError(f"pairs: the tolerance of lengths is {tolerance}, expected at least 0")
    kept = []
    for places in pairs.groupby("kind", sort=False).indices.values():
        chosen, rejected = (pairs[f"{side}_tokens"].to_numpy(np.float64)[places] for side in ("chosen", "rejected"))
        if chosen.sum() < rejected.sum():
            chosen, rejected = rejected, chosen
        order = np.argsort(chosen - rejected, kind="stable")
        # Sums over the pairs that remain when all after the n-th are gone.
        fits = np.cumsum(chosen[order]) <= (1 + tolerance) * np.cumsum(rejected[order])
        n = int(np.flatnonzero(fits)[-1]) + 1 if fits.any() else 0
        kept.append(places[order[:n]])
    rows = np.sort(np.concatenate(kept)) if kept else np.zeros(0, int)
    return pairs.iloc[rows].reset_index(drop=True), len(pairs) - len(rows)


def _cut(text: str, room: int, counter: Counter) -> str:
    """The first lines of a text that have at most ``room`` tokens together."""
    lines = text.split(STEP_BOUNDARY)
    while lines and counter.texts([STEP_BOUNDARY.join(lines)])[0] > room:
        lines.pop()
    return STEP_BOUNDARY.join(lines)
