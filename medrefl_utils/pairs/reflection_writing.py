"""What a model writes for the pairs: reflections, the judge's scores, flowing thought, and where a path first errs.

Each reply is read and checked; one that fails is asked for again with another seed, at most twice, then given up and
counted by what was wrong with it last. Nothing here asks which generator it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.schemas import REFLECTIONS
from medrefl_utils.exam import prompts
from medrefl_utils.models.asking import ReplyReader, ask_until_valid, count_faults
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.pairs.reflection import CorrectionKey, CorrectionText
from medrefl_utils.pairs.reflection_checks import check_reflection


def write_reflections(
    turns: Mapping[CorrectionKey, CorrectionText], generator: Generator, *, sampling: Sampling, seed: int
) -> tuple[pd.DataFrame, dict[str, int]]:
    """A reflection for each turn: a table with the columns of REFLECTIONS in the turns' order.

    Left out, as ``reflection_`` and what was wrong with the last attempt: ``empty``; ``cut`` (at the token limit);
    ``leak`` (it gives away that a key or another path was shown); ``letter`` (before its last sentence it names the
    gold letter, or that which the new steps lead to, as an answer: the letter before the reasons).
    """
    asked = ask_until_valid(
        generator,
        [(prompts.reflection(t.question, t.public, t.wrong, t.right), _reader_of(t)) for t in turns.values()],
        sampling=sampling,
        seed=seed,
        title="reflections",
    )
    rows = [
        (question_id, left, leaf, one.messages[-1]["content"], one.replies, one.faults, one.value)
        for (question_id, left, leaf), one in zip(turns, asked, strict=True)
    ]
    return pd.DataFrame(rows, columns=REFLECTIONS.names), count_faults(asked, "reflection")


def accepted_reflections(written: pd.DataFrame) -> dict[CorrectionKey, str]:
    """The reflections of a REFLECTIONS table that passed, as the model wrote them, by what they are for."""
    passed = written[written["text"].notna()]
    return {(row.question_id, row.left, row.leaf): row.replies[-1] for row in passed.itertuples()}


def _reader_of(turn: CorrectionText) -> ReplyReader[str]:
    def read(reply: Continuation) -> tuple[str | None, str]:
        fault = check_reflection(turn, reply)
        return (None, fault) if fault else (" ".join(reply.text.split()), "")

    return read
