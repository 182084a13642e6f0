"""The thinker: rewrite both sides of a pair as flowing thought that keeps its answer."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Continuation, Question, Sampling
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import extract_answer, split_thinking
from medrefl_utils.models.asking import ReplyReader, ask_until_valid, excerpt
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.pairs.pair_table import replace_sides


def rewrite_as_thought(
    pairs: pd.DataFrame,
    questions: Mapping[str, Question],
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
    thinking_open: bool = False,
) -> tuple[pd.DataFrame, DropCounts]:
    """Rewrite both sides of each pair as flowing thought with the thinker (method.md; off by default in notebook 03).

    A rewritten side must keep the answer of its original and must not be truncated at the token limit. The thinker's
    own thinking, before its reply, is left out. ``thinking_open``: the chat template of the model that wrote the sides
    opened the thinking, so that they begin inside it.

    Returns:
        The pairs whose sides both pass, and the counts. Faults: ``thinker_empty``, ``thinker_cut``, ``thinker_answer``
        (another answer, or none) and ``thinker_same`` (both sides have become the same text).
    """
    asked = []
    for pair in pairs.itertuples():
        question = questions[pair.question_id]
        for side in (pair.chosen, pair.rejected):
            text = side[0]["content"]
            reader = _same_answer(question, text, thinking_open, generator.thinking_open)
            asked.append((prompts.thinker(question, prompts.split_steps(text)), reader))
    thought = ask_until_valid(generator, asked, sampling=sampling, seed=seed, title="thinker")
    dropped = DropCounts()
    rows = []
    for pair, *sides in zip(pairs.to_dict("records"), thought[::2], thought[1::2], strict=True):
        failed = [side for side in sides if side.value is None]
        if failed or sides[0].value == sides[1].value:
            fault = failed[0].faults[-1] if failed else "same"
            reply = excerpt((failed or sides)[0].replies[-1])
            dropped.drop(f"thinker_{fault}", f"question {pair['question_id']!r}, reply {reply}")
        else:
            rows.append(replace_sides(pair, sides[0].value, sides[1].value))
    return pd.DataFrame(rows, columns=PAIRS.names), dropped


def _same_answer(question: Question, text: str, thinking_open: bool, thinker_open: bool) -> ReplyReader[str]:
    """Make a reader that accepts a rewritten side with the answer of ``text``.

    ``thinking_open`` is for the sides, old and new; ``thinker_open`` for the thinker's reply.
    """
    letter = extract_answer(text, question.options, thinking_open=thinking_open).letter

    def read(reply: Continuation) -> tuple[str | None, str]:
        _, told = split_thinking(reply.text, thinking_open=thinker_open)
        if reply.stop == "length":
            return None, "cut" if reply.text.strip() else "empty"
        if not told.strip():
            return None, "empty"
        if extract_answer(told, question.options, thinking_open=thinking_open).letter != letter:
            return None, "answer"
        return told.strip(), ""

    return read
