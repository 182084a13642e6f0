"""Compare what two generators write by greedy decoding, and tell floating-point ties from differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medrefl_utils.core import Continuation
from medrefl_utils.models import LocalGenerator, Prefix

TIE = 0.01
"""Two tokens whose logits differ by less are a tie: both engines round in 32 bit, in another order [nats]."""


@dataclass(frozen=True)
class Comparison:
    """How many continuations are equal, how many first differ at a tie, and the others."""

    equal: int
    ties: int
    different: list[tuple[str, str, float]]
    """both texts, and the gap at the first token that differs [nats]"""
    largest_logprob_difference: float


def compare(
    local: LocalGenerator,
    prefixes: Sequence[Prefix],
    ours: Sequence[Continuation],
    others: Sequence[Continuation],
) -> Comparison:
    """Compare text, token ids, stop reason and log-probabilities of continuations of the same prefixes."""
    equal, ties, different, largest = 0, 0, [], 0.0
    for prefix, one, other in zip(prefixes, ours, others, strict=True):
        if (one.text, one.token_ids, one.stop) == (other.text, other.token_ids, other.stop):
            equal += 1
            apart = [abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)]
            largest = max(largest, *apart)
            continue
        gap = gap_where_they_part(local, prefix, one.token_ids, other.token_ids)
        ties += gap < TIE
        if gap >= TIE:
            different.append((one.text, other.text, gap))
    return Comparison(equal, ties, different, largest)


@torch.inference_mode()
def gap_where_they_part(local: LocalGenerator, prefix: Prefix, ours: Sequence[int], others: Sequence[int]) -> float:
    """Return by how much the model prefers our token where two continuations first differ [nats]."""
    n = next((n for n, (a, b) in enumerate(zip(ours, others, strict=False)) if a != b), None)
    if n is None:  # one is a part of the other: they ended for another reason
        return float("inf")
    ids = [*local.prompt_ids(prefix.messages), *prefix.token_ids, *ours[:n]]
    logits = local.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    return float((logits[ours[n]] - logits[others[n]]).abs())
