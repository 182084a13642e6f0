"""Cut tokens into steps where ``exam.steps.step_end`` cuts their text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from medrefl_utils.core.records import Continuation
from medrefl_utils.exam.steps import SIGNS, has_content, step_end


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the text of each token, by id."""
    return tokenizer.batch_decode([[i] for i in range(len(tokenizer))])


def text_after(tokenizer: PreTrainedTokenizerBase, before: int | None, token_ids: Sequence[int]) -> str:
    """Return the text of tokens as it reads after the token ``before``.

    Some tokenizers drop the space that a text begins with; a step in the middle of a line keeps it.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    alone = tokenizer.decode(token_ids, **options)
    if before is None:
        return alone
    first = tokenizer.decode([before], **options)
    both = tokenizer.decode([before, *token_ids], **options)
    return both[len(first) :] if both.startswith(first) else alone


class StepCutter:
    """Finds the end of a step of one kind in tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], steps: str):
        """Prepare to cut.

        Args:
            tokenizer: the model's.
            texts: the text of each token, by id.
            steps: one of ``exam.steps.STEP_KINDS``.
        """
        self.tokenizer, self.steps = tokenizer, steps
        signs = (*SIGNS[steps], "\ufffd")  # the last: a part of a character, which may be a sign
        self._signs = frozenset(i for i, text in enumerate(texts) if any(sign in text for sign in signs))

    def may_end(self, token: int) -> bool:
        """Say whether a step may be complete from this token on. Before such a token there is nothing to decode."""
        return token in self._signs

    def end(self, token_ids: Sequence[int], before: int | None) -> int | None:
        """Return the number of tokens of the first complete step after the token ``before``; None: not yet.

        The token in which the step ends belongs to it as a whole. Tokens that were only needed to see that the step is
        complete, such as the first word of the next sentence, do not.
        """
        text = text_after(self.tokenizer, before, token_ids)
        end = step_end(text, self.steps)
        if end is None:
            return None
        n = len(token_ids)
        while n > 1:
            shorter = text_after(self.tokenizer, before, token_ids[: n - 1])
            if len(shorter) < end or not text.startswith(shorter):
                break
            n -= 1
        return n

    def cut(self, chain: Continuation, ends: Collection[int], before: int | None = None) -> list[Continuation]:
        """Cut a chain that was written in one go into steps, as they would have been written one by one.

        What follows the last step and says nothing by itself, such as the end of the turn, belongs to that step.
        """
        bounds, begin, may_end = [0], 0, False
        for n, token in enumerate(chain.token_ids, 1):
            may_end = may_end or self.may_end(token)
            while may_end and token not in ends:
                previous = chain.token_ids[begin - 1] if begin else before
                length = self.end(chain.token_ids[begin:n], previous)
                if length is None:
                    break
                begin += length
                bounds.append(begin)
                may_end = any(map(self.may_end, chain.token_ids[begin:n]))
        rest = text_after(self.tokenizer, chain.token_ids[begin - 1] if begin else before, chain.token_ids[begin:])
        if len(bounds) > 1 and not has_content(rest):
            bounds.pop()
        bounds.append(len(chain.token_ids))
        return [
            self._piece(chain, low, high, before)
            for low, high in zip(bounds[:-1], bounds[1:], strict=True)
            if high > low
        ]

    def _piece(self, chain: Continuation, low: int, high: int, before: int | None) -> Continuation:
        text = text_after(self.tokenizer, chain.token_ids[low - 1] if low else before, chain.token_ids[low:high])
        logprobs = chain.logprobs[low:high]
        stop = chain.stop if high == len(chain.token_ids) else "boundary"
        return Continuation(text, chain.token_ids[low:high], sum(logprobs), stop, high - low, logprobs)
