"""Write reflections with a model, check them, and ask again for those that fail."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.schemas import REFLECTIONS
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import split_thinking
from medrefl_utils.models.asking import ReplyReader, ask_until_valid, count_faults
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.pairs.reflection import CorrectionKey, CorrectionText
from medrefl_utils.pairs.reflection_checks import NONSENSE, check_reflection, reflection_text


def write_reflections(
    turns: Mapping[CorrectionKey, CorrectionText], generator: Generator, *, sampling: Sampling, seed: int
) -> tuple[pd.DataFrame, DropCounts]:
    """Write a reflection for each correction.

    Args:
        turns: the corrections, see ``correction_texts``.
        generator: the model that writes.
        sampling: sampling of its replies.
        seed: seed of its replies.

    Returns:
        A table with the columns of REFLECTIONS in the order of the corrections, and the counts: ``reflection_`` and the
        fault of the last attempt, see ``check_reflection``. Those in ``NONSENSE`` are selections, as a low score of a
        judge is; the others are faults.
    """
    opened = bool(turns) and generator.thinking_open  # without turns there may be no generator
    asked = ask_until_valid(
        generator,
        [(prompts.reflection(t.question, t.public, t.wrong, t.right), _reader_of(t, opened)) for t in turns.values()],
        sampling=sampling,
        seed=seed,
        title="reflections",
    )
    rows = [
        (question_id, left, leaf, one.messages[-1]["content"], one.replies, one.faults, one.value)
        for (question_id, left, leaf), one in zip(turns, asked, strict=True)
    ]
    where = [f"question {question_id!r}" for question_id, _, _ in turns]
    return pd.DataFrame(rows, columns=REFLECTIONS.names), count_faults(asked, "reflection", where, NONSENSE)


def accepted_reflections(written: pd.DataFrame) -> dict[CorrectionKey, str]:
    """Return the reflections that passed, {correction: text}, from a table with the columns of REFLECTIONS.

    A text is as the model wrote it, without the writer's own thinking.
    """
    passed = written[written["text"].notna()]
    return {(row.question_id, row.left, row.leaf): split_thinking(row.replies[-1])[1] for row in passed.itertuples()}


def _reader_of(turn: CorrectionText, thinking_open: bool) -> ReplyReader[str]:
    """Make a reader that accepts a reflection for this correction."""

    def read(reply: Continuation) -> tuple[str | None, str]:
        fault = check_reflection(turn, reply, thinking_open=thinking_open)
        return (None, fault) if fault else (reflection_text(reply.text), "")

    return read
