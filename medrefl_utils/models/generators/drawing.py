"""Draw tokens: one uniform number per row and token, so that a row's text does not depend on the rows beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.models.generators.token_cutting import StepCutter, text_after

Ids = tuple[int, ...]
"""Token ids."""


@dataclass
class Row:
    """One continuation that is being written."""

    prefix: Ids
    trunk: Ids
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: str | None = None
    may_end: bool = False
    looked_ahead: int = 0

    def add(self, token: int, logprob: float, ends: set[int], cutter: StepCutter | None) -> None:
        """Add the next token. A row that has ended stays as it is until the cache is compacted."""
        if self.stop is not None:
            return
        self.logprobs.append(logprob)
        self.token_ids.append(token)
        if token in ends:
            self.stop = "end"
        elif cutter is not None:
            self.may_end = self.may_end or cutter.may_end(token)
            length = cutter.end(self.token_ids, self._before) if self.may_end else None
            if length is not None:
                self.stop, self.looked_ahead = "boundary", len(self.token_ids) - length
                del self.token_ids[length:], self.logprobs[length:]

    def finish(self, tokenizer: PreTrainedTokenizerBase) -> Continuation:
        text = text_after(tokenizer, self._before, self.token_ids)
        stop, logprobs = self.stop or "length", tuple(self.logprobs)
        return Continuation(text, tuple(self.token_ids), sum(logprobs), stop, len(self.token_ids), logprobs)

    @property
    def _before(self) -> int | None:
        return self.prefix[-1] if self.prefix else None


def uniform_numbers(seed: int, sampling: Sampling) -> np.ndarray:
    """Return a row's uniform numbers from its seed, one for each token that it may write."""
    return np.random.Generator(np.random.Philox(seed)).random(sampling.max_tokens)


def draw_tokens(
    logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor | None, seen: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw each row's next token: the inverse of its cumulative distribution at the row's uniform number.

    Args:
        logits: [rows, vocabulary], float32.
        sampling: how tokens are drawn.
        uniform: [rows], float64; None draws the most likely token.
        seen: [rows, vocabulary], the tokens of each row so far; None without a repetition penalty.

    Returns:
        Tokens [rows], and their log-probabilities [rows] under the model, before any sampling setting.
    """
    logprobs = logits.log_softmax(-1)
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if uniform is None:
        chosen = logits.argmax(-1)
    else:
        chosen = _invert(logits / sampling.temperature, uniform, sampling.top_p)
    return chosen, logprobs.gather(1, chosen[:, None])[:, 0]


def _invert(logits: torch.Tensor, uniform: torch.Tensor, top_p: float) -> torch.Tensor:
    mass = logits.softmax(-1).double()
    order = None
    if top_p < 1:
        mass, order = mass.sort(stable=True, dim=-1, descending=True)
        mass = torch.where(mass.cumsum(-1) - mass < top_p, mass, 0.0)
    mass = mass.cumsum(-1)
    place = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True).clamp(max=mass.shape[-1] - 1)
    return (place if order is None else order.gather(1, place))[:, 0]
