"""Find the questions whose prompt does not fit into a model's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import AutoConfig, PreTrainedConfig

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import one_line, resolve_model
from medrefl_utils.core.records import Question
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.loading import TokenCounter

_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_SHOWN = 3


@dataclass(frozen=True)
class ContextSplit:
    """Questions by whether their prompt leaves room for ``new_tokens`` in a context of ``context`` tokens.

    ``fitting`` keeps the order of the questions; ``too_long`` is {question_id: prompt tokens}.
    """

    fitting: list[Question]
    too_long: dict[str, int]
    context: int | None
    new_tokens: int

    def line(self) -> str:
        """Return one line that counts the questions that are too long and names the first of them; empty for none."""
        if not self.too_long:
            return ""
        named = ", ".join(f"{name} ({tokens:,} tokens)" for name, tokens in list(self.too_long.items())[:_SHOWN])
        rest = f" and {len(self.too_long) - _SHOWN} more" if len(self.too_long) > _SHOWN else ""
        counted = f"{len(self.too_long)} of {len(self.fitting) + len(self.too_long)} questions are left out"
        limit = f"the model's context of {self.context:,} tokens less {self.new_tokens:,} for the response"
        return f"{counted}: their prompt exceeds {limit}: {named}{rest}"


def context_length(model: str) -> int | None:
    """Return how many tokens a model folder or hub id reads at most; None where its config states no limit.

    Only the config is read. Raises MedReflError where there is no such model or its config does not load.
    """
    name = resolve_model(model)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise MedReflError(f"model {model}: its config does not load: {one_line(error)}") from error
    return config_context(config)


def config_context(config: PreTrainedConfig) -> int | None:
    """Return the context length that a transformers config states; None where it states none (as of ALiBi, Mamba)."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in _NAMES)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def split_by_context(
    questions: Sequence[Question],
    counter: TokenCounter,
    *,
    prompt: Callable[[Question], Messages],
    context: int | None,
    new_tokens: int,
) -> ContextSplit:
    """Split questions into those that fit into the context and those that do not.

    Args:
        questions: in the order to keep.
        counter: of the model's tokenizer.
        prompt: how a question is asked, such as ``exam.prompts.exam``.
        context: tokens that the model reads at most (``context_length``); None is no limit.
        new_tokens: tokens that must remain for what the model writes: of a tree, those of a path and one step more.
    """
    questions = list(questions)
    if context is None:
        return ContextSplit(questions, {}, None, new_tokens)
    lengths = counter.prompts([prompt(question) for question in questions])
    long = {q.question_id: n for q, n in zip(questions, lengths, strict=True) if n + new_tokens > context}
    return ContextSplit([q for q in questions if q.question_id not in long], long, context, new_tokens)
