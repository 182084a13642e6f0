"""Find the questions whose prompt does not fit into a model's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import AutoConfig, PreTrainedConfig

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import one_line, resolve_model
from medrefl_utils.core.records import Question
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.loading import TokenCounter, load_tokenizer

_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")


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


def drop_too_long(
    questions: Sequence[Question], model: str | None, *, prompt: Callable[[Question], Messages], new_tokens: int
) -> tuple[list[Question], DropCounts]:
    """Drop the questions whose prompt and response do not fit into a model's context.

    Args:
        questions: in the order to keep.
        model: folder or hub id; only its config and its tokenizer are read. None, as behind a server: nothing is known
            of its context, and no question is dropped here; the server refuses what is too long.
        prompt: how a question is asked, such as ``exam.prompts.exam``.
        new_tokens: tokens that the model may write after the prompt.

    Returns:
        The other questions, and the counts (fault: ``too_long``).

    Raises:
        MedReflError: there is no such model, or its config or tokenizer does not load.
    """
    questions, dropped = list(questions), DropCounts()
    context = None if model is None else context_length(model)
    if context is None:
        return questions, dropped
    lengths = TokenCounter(load_tokenizer(model)).prompts([prompt(question) for question in questions])
    kept = []
    for question, tokens in zip(questions, lengths, strict=True):
        if tokens + new_tokens <= context:
            kept.append(question)
        else:
            dropped.drop(
                "too_long",
                f"question {question.question_id!r}: {tokens:,} tokens of the prompt and {new_tokens:,} of the "
                f"response, expected at most the model's context of {context:,}",
            )
    return kept, dropped
