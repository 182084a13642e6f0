"""The thinker: rewrite both sides of a pair as flowing thought that keeps its answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.records import Continuation, Question, Sampling
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers import extract_answer
from medrefl_utils.models.asking import ReplyReader, ask_until_valid
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.pairs.pair_table import replace_sides


def rewrite_as_thought(
    pairs: pd.DataFrame,
    questions: Mapping[str, Question],
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The pairs with both sides rewritten as flowing thought by the thinker (method.md; off by default in 03).

    A rewriting must end at the answer of its original, and not at the token limit. A pair of which one side fails, or
    whose sides came out alike, is left out, as ``thinker_`` and what was wrong: ``empty``, ``cut``, ``answer`` or
    ``same``.
    """
    asked = []
    for pair in pairs.itertuples():
        question = questions[pair.question_id]
        for side in (pair.chosen, pair.rejected):
            text = side[0]["content"]
            asked.append((prompts.thinker(question, prompts.split_steps(text)), _same_answer(question, text)))
    thought = ask_until_valid(generator, asked, sampling=sampling, seed=seed, title="thinker")
    dropped: Counter[str] = Counter()
    rows = []
    for pair, *sides in zip(pairs.to_dict("records"), thought[::2], thought[1::2], strict=True):
        failed = [side.faults[-1] for side in sides if side.value is None]
        if failed or sides[0].value == sides[1].value:
            dropped[f"thinker_{failed[0] if failed else 'same'}"] += 1
        else:
            rows.append(replace_sides(pair, sides[0].value, sides[1].value))
    return pd.DataFrame(rows, columns=PAIRS.names), dict(dropped)


def _same_answer(question: Question, text: str) -> ReplyReader[str]:
    letter = extract_answer(text, question.options).letter

    def read(reply: Continuation) -> tuple[str | None, str]:
        if not reply.text.strip():
            return None, "empty"
        if reply.stop == "length":
            return None, "cut"
        if extract_answer(reply.text, question.options).letter != letter:
            return None, "answer"
        return reply.text.strip(), ""

    return read
