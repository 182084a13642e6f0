"""Tokenize pairs for training exactly as rollout and evaluation tokenize the same prompt and text.

A chat template may trim a message, remove thinking, or add text after the end of the turn. So only the prompt is
rendered with the template, as a generator does. A side is the tokens of its text, followed by one end-of-turn token, at
which a generator stops.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.models.chat_templates import render_prompt
from medrefl_utils.pairs.pair_table import check_pair_texts

SIDES = ("chosen", "rejected")
_MARK = "MEDREFL"


def end_of_turn(tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()) -> int:
    """Return the token that ends the assistant's turn: the template's token if a generator stops at it, else the eos.

    Generators stop at the tokenizer's eos token and at ``ends``, the end tokens of the generation config.
    """
    turn = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]
    text = render_prompt(tokenizer, turn, add_generation_prompt=False)
    after = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False).input_ids
    return after[0] if after and after[0] in {*ends, tokenizer.eos_token_id} else tokenizer.eos_token_id


def generation_end_tokens(config: Any) -> set[int]:  # noqa: ANN401 (a GenerationConfig, or None)
    """Return the end tokens of a generation config, which has one, a list, or none."""
    ends = getattr(config, "eos_token_id", None)
    return set(ends if isinstance(ends, list) else [ends]) - {None}


def tokenize_pairs(
    pairs: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, *, end: int, max_length: int
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Tokenize pairs, in their order, and truncate them at ``max_length``.

    A side is truncated where prompt and side exceed ``max_length``. A pair is dropped where the prompt leaves no room,
    or where both sides are the same after truncation.

    Args:
        pairs: columns of PAIRS.
        tokenizer: the base's tokenizer.
        end: token that ends a side (``end_of_turn``).
        max_length: maximum number of tokens of prompt and side.

    Returns:
        Columns ``pair_id``, ``question_id``, ``kind``, ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, ``length``
        (tokens of the prompt and the longer side); and the counts ``cut`` and ``left_out``.

    Raises:
        MedReflError: a side without text, or no pair is left.
    """
    check_pair_texts(
        pairs[["pair_id", "prompt", "chosen", "rejected"]]
    )  # without the columns of token counts, which are computed here
    prompts = [render_prompt(tokenizer, list(messages)) for messages in pairs["prompt"]]
    heads = tokenizer(prompts, add_special_tokens=False).input_ids if prompts else []
    texts = {side: [messages[0]["content"] for messages in pairs[side]] for side in SIDES}
    ids = {s: tokenizer(t, add_special_tokens=False).input_ids if t else [] for s, t in texts.items()}
    rows, counts = [], {"cut": 0, "left_out": 0}
    for row, head, chosen, rejected in zip(pairs.itertuples(), heads, ids["chosen"], ids["rejected"], strict=True):
        room = max(0, max_length - len(head))
        whole = [[*chosen, end], [*rejected, end]]
        sides = [side[:room] for side in whole]
        if not room or sides[0] == sides[1]:
            counts["left_out"] += 1
            continue
        counts["cut"] += sides != whole
        length = len(head) + max(map(len, sides))
        rows.append((row.pair_id, row.question_id, row.kind, head, *sides, length))
    if not rows:
        raise MedReflError(
            f"training: none of {len(pairs)} pairs has two different sides within max_length {max_length}: "
            f"the shortest prompt has {min(map(len, heads), default=0)} tokens; raise max_length"
        )
    names = ["pair_id", "question_id", "kind", "prompt_ids", "chosen_ids", "rejected_ids", "length"]
    return pd.DataFrame(rows, columns=names), counts


def shared_prefix_length(chosen: Sequence[int], rejected: Sequence[int]) -> int:
    """Return the number of tokens at the beginning that both sides share."""
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))


def pair_lengths(ids: pd.DataFrame) -> pd.DataFrame:
    """Return ``prompt_tokens``, ``chosen_tokens``, ``rejected_tokens`` and ``shared_tokens`` of tokenized pairs.

    As in PAIRS, a side is counted without its end-of-turn token.
    """
    sides = {f"{side}_tokens": ids[f"{side}_ids"].str.len() - 1 for side in SIDES}
    shared = [shared_prefix_length(*both) for both in zip(ids.chosen_ids, ids.rejected_ids, strict=True)]
    return pd.DataFrame({"prompt_tokens": ids["prompt_ids"].str.len(), **sides, "shared_tokens": shared}, dtype=int)


def row_tokens(ids: pd.DataFrame, shared_prefix: bool) -> pd.Series:
    """Return the tokens per pair in a forward pass: both sequences, or one row with the common prefix once."""
    lengths = pair_lengths(ids)
    prompt, chosen, rejected = lengths.prompt_tokens, lengths.chosen_tokens + 1, lengths.rejected_tokens + 1
    if not shared_prefix:
        return 2 * prompt + chosen + rejected
    return prompt + chosen + rejected - lengths.shared_tokens + 1  # the last shared token begins both branches
