"""Tokenize pairs and chains for training exactly as rollout and evaluation tokenize the same prompt and text.

A chat template may trim a message, remove thinking, or add text after the end of the turn. So only the prompt is
rendered with the template, as a generator does. A side, or a chain's completion, is the tokens of its text, followed by
one end-of-turn token, at which a generator stops.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.models.chat_templates import open_thinking, render_prompt
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


def tokenize_chains(
    chains: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, *, end: int, max_length: int
) -> tuple[pd.DataFrame, DropCounts]:
    """Tokenize prompts with their completions, in their order. A row that fails a check is dropped and counted.

    No row is truncated: half a chain teaches the model to stop without an answer. Where the chat template opens the
    thinking, the completion's own opening mark is left out, as a generator writes none.

    Args:
        chains: columns ``question_id``, ``prompt`` and ``completion`` (messages; the completion is one turn of the
            assistant).
        tokenizer: the base's tokenizer.
        end: token that ends a completion (``end_of_turn``).
        max_length: maximum number of tokens of prompt and completion, the end token included.

    Returns:
        Columns ``question_id``, ``prompt_ids``, ``completion_ids`` (with the end token), ``length``; and the counts by
        reason: ``malformed`` (a turn without text, or of another role), ``thinking_not_closed`` (the template opens a
        thinking that the completion does not close), ``end_inside`` (the completion contains the end token) and
        ``too_long``.
    """
    opened, dropped, kept = open_thinking(tokenizer), DropCounts(), []
    for row in chains.itertuples():
        reason, found = _chain_fault(row.prompt, row.completion, opened)
        if reason:
            dropped.drop(reason, f"question {row.question_id!r}: {found}")
        else:
            kept.append((row.question_id, list(row.prompt), _as_generated(row.completion[0]["content"], opened)))
    texts = [[render_prompt(tokenizer, prompt) for _, prompt, _ in kept], [text for _, _, text in kept]]
    heads, tails = (tokenizer(of, add_special_tokens=False).input_ids if of else [] for of in texts)
    rows = []
    for (question, _, _), head, tail in zip(kept, heads, tails, strict=True):
        length = len(head) + len(tail) + 1
        if end in tail:
            dropped.drop("end_inside", f"question {question!r}: the completion contains the token that ends a turn")
        elif length > max_length:
            found = f"{len(head):,} tokens of the prompt and {len(tail) + 1:,} of the completion"
            dropped.drop("too_long", f"question {question!r}: {found}, expected at most max_length {max_length:,}")
        else:
            rows.append((question, head, [*tail, end], length))
    return pd.DataFrame(rows, columns=["question_id", "prompt_ids", "completion_ids", "length"]), dropped


def _chain_fault(
    prompt: Sequence[Mapping[str, str]], completion: Sequence[Mapping[str, str]], opened: tuple[str, str] | None
) -> tuple[str, str]:
    """Return why a row cannot be taught, in a word and a sentence; both are empty where it can."""
    turns = [*prompt, *completion]
    roles = [turn.get("role") for turn in turns]
    if not all(isinstance(turn.get("content"), str) and turn["content"].strip() for turn in turns):
        return "malformed", "a turn has no text, expected text in each turn"
    if len(completion) != 1 or roles[-2:] != ["user", "assistant"]:
        return "malformed", f"turns of {', '.join(map(str, roles))}, expected a user's turn and one of the assistant"
    if opened and opened[1] not in completion[0]["content"]:
        return "thinking_not_closed", f"no {opened[1]} in the completion, while the chat template writes {opened[0]}"
    return "", ""


def _as_generated(text: str, opened: tuple[str, str] | None) -> str:
    """Return a completion without the mark that the chat template has already written."""
    begun = text.lstrip()
    return begun.removeprefix(opened[0]).lstrip("\n") if opened and begun.startswith(opened[0]) else text


def chain_lengths(ids: pd.DataFrame) -> pd.DataFrame:
    """Return ``prompt_tokens`` and ``completion_tokens`` (without the end-of-turn token) of tokenized chains."""
    lengths = {"prompt_tokens": ids["prompt_ids"].str.len(), "completion_tokens": ids["completion_ids"].str.len() - 1}
    return pd.DataFrame(lengths, dtype=int)


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
