"""Write reflections with a model, check them, and ask again for those that fail; or, on the clinic, by the truth."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.schemas import REFLECTIONS
from medrefl_utils.exam import clinic, prompts
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
        [(_prompt_of(turn), _reader_of(turn, opened)) for turn in turns.values()],
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


def write_by_truth(turns: Mapping[CorrectionKey, CorrectionText]) -> tuple[pd.DataFrame, DropCounts]:
    """Write reflections on the clinic's questions by rule, as a writer who knows the truth (ours).

    A correction denies the first false step of the wrong ones, and claims the first that replaces them. An affirmation
    keeps the first false step, or the first step where all are true: it is a fake reflection, or a right one.

    Args:
        turns: the corrections, see ``correction_texts``.

    Returns:
        As ``write_reflections`` does; a reflection that fails its checks is not asked for again.

    Raises:
        MedReflError: a question that is not of the clinic.
    """
    rows, dropped = [], DropCounts()
    for (question_id, left, leaf), turn in turns.items():
        case = clinic.case_of(turn.question)
        steps = [*turn.public, *turn.wrong]
        own = range(len(turn.public), len(steps))
        claimed = next((step for step in turn.right if not clinic.is_reflection(step)), turn.wrong[0])
        false = (i for i in own if clinic.error_kind(case, steps[:i], steps[i]) and steps[i] != claimed)
        looked_at = steps[next(false, own[0])]
        text = clinic.reflect(looked_at, claimed) if turn.right else clinic.affirm(looked_at)
        fault = check_reflection(turn, Continuation(text, (), None, "end"))
        if fault in NONSENSE:
            dropped[f"reflection_{fault}"] += 1
        elif fault:
            dropped.drop(f"reflection_{fault}", f"question {question_id!r}, reply {text[:200]!r}")
        asked = _prompt_of(turn)[-1]["content"]
        rows.append((question_id, left, leaf, asked, [text], [fault] if fault else [], None if fault else text))
    return pd.DataFrame(rows, columns=REFLECTIONS.names), dropped


def _prompt_of(turn: CorrectionText) -> prompts.Messages:
    """Return the messages that ask for a correction, or for an affirmation where nothing replaces the steps."""
    if turn.right:
        return prompts.reflection(turn.question, turn.public, turn.wrong, turn.right)
    return prompts.affirmation(turn.question, turn.public, turn.wrong)


def _reader_of(turn: CorrectionText, thinking_open: bool) -> ReplyReader[str]:
    """Make a reader that accepts a reflection for this correction."""

    def read(reply: Continuation) -> tuple[str | None, str]:
        fault = check_reflection(turn, reply, thinking_open=thinking_open)
        return (None, fault) if fault else (reflection_text(reply.text), "")

    return read
