"""Let a model choose the paths of a question by their numbers, so that it can invent none (ours)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.thinking import split_thinking
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.paths import describe_path
from medrefl_utils.knowledge.question_paths import QuestionPaths
from medrefl_utils.models.asking import ask_until_valid, count_faults
from medrefl_utils.models.generators.interface import Generator

_SHOWN = 40
"""Paths that a model is shown to choose from: those that the rule puts first (ours)."""
_CHOSEN = re.compile(r"chosen\W{0,6}(?P<list>none\b|\[?\d+\]?(?:(?:\s*(?:,|;|and|&)\s*)+\[?\d+\]?)*)", re.IGNORECASE)


def choose_paths_by_model(
    found: Sequence[QuestionPaths],
    graph: KnowledgeGraph,
    generator: Generator,
    *,
    max_chosen: int,
    answer_in_prompt: bool,
    sampling: Sampling,
    seed: int,
) -> tuple[list[QuestionPaths], DropCounts]:
    """Let a model choose each question's paths by their numbers, so that it can invent none.

    Returns:
        The questions in their order; one whose reply names no path is ``left_out``. And the counts (fault:
        ``choice_unreadable``).
    """
    asking = [one for one in found if not one.gap]
    shown = [one.ranked[:_SHOWN] for one in asking]
    texts = [[describe_path(graph, path) for path in paths] for paths in shown]
    asked = ask_until_valid(
        generator,
        [
            (
                prompts.choose_paths(one.question, text, max_chosen, answer_in_prompt=answer_in_prompt),
                partial(read_choice, n=len(text), most=max_chosen, thinking_open=generator.thinking_open),
            )
            for one, text in zip(asking, texts, strict=True)
        ],
        sampling=sampling,
        seed=seed,
        title="paths",
    )
    where = [f"question {one.question.question_id!r}" for one in asking]
    chosen = {
        one.question.question_id: tuple(paths[number - 1] for number in reply.value or ())
        for one, paths, reply in zip(asking, shown, asked, strict=True)
    }
    kept = [
        replace(one, chosen=chosen[name], left_out="" if chosen[name] else "no_choice")
        if (name := one.question.question_id) in chosen
        else one
        for one in found
    ]
    return kept, count_faults(asked, "choice", where)


def read_choice(
    reply: Continuation, *, n: int, most: int, thinking_open: bool = False
) -> tuple[tuple[int, ...] | None, str]:
    """Read "Chosen: 3, 7" from a model's reply: the last such line counts.

    Returns:
        (numbers without repetitions, at most ``most``; () for "none"), or (None, "unreadable") where there is no such
        line, it was truncated, or a number is not from 1 to ``n``.
    """
    lines = list(_CHOSEN.finditer(split_thinking(reply.text, thinking_open=thinking_open)[1]))
    if reply.stop == "length" or not lines:
        return None, "unreadable"
    numbers = tuple(dict.fromkeys(map(int, re.findall(r"\d+", lines[-1]["list"]))))
    if any(not 1 <= number <= n for number in numbers):
        return None, "unreadable"
    return numbers[:most], ""
