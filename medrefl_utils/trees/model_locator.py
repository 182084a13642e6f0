"""Locate the first wrong step of a wrong path by asking a model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.records import Continuation, Question, Sampling
from medrefl_utils.exam import prompts
from medrefl_utils.models.asking import ReplyReader, ask_until_valid
from medrefl_utils.models.generators.interface import Generator

_LOCATED = re.compile(
    r"(?:first wrong step|step)\W{0,6}(\d{1,4})|^\W{0,4}(\d{1,4})\W{0,4}$", re.IGNORECASE | re.MULTILINE
)


def locate_errors_by_model(
    questions: Mapping[str, Question],
    steps: pd.DataFrame,
    paths: pd.DataFrame,
    generator: Generator,
    *,
    sampling: Sampling,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Where each wrong path first errs in a model's eyes: the table that ``corrections`` takes, and what was left out.

    Asked are the wrong paths that state an answer, of the questions that have a right path too. ``locator_unreadable``
    counts those for which no step of the path was named; they have no located error.
    """
    has_right = paths["outcome"].gt(0).groupby(paths["question_id"]).transform("any")
    stated = steps.loc[steps["stop"] == "answer", ["question_id", "node_id"]]
    wrong = paths[has_right & (paths["outcome"] < 0)].merge(stated, on=["question_id", "node_id"])
    text = steps.set_index(["question_id", "node_id"])["text"]
    asked = []
    for path in wrong.itertuples():
        chain = text.loc[[(path.question_id, node) for node in path.nodes]].tolist()
        asked.append((prompts.locate(questions[path.question_id], chain), _step_of(len(chain))))
    found = ask_until_valid(generator, asked, sampling=sampling, seed=seed, title="errors")
    nodes = [
        None if one.value is None else int(path[one.value - 1]) for one, path in zip(found, wrong["nodes"], strict=True)
    ]
    located = pd.DataFrame({"question_id": wrong["question_id"], "leaf": wrong["node_id"]})
    unreadable = sum(one.value is None for one in found)
    return located.assign(node_id=pd.array(nodes, dtype="Int32")), {"locator_unreadable": unreadable}


def _step_of(n: int) -> ReplyReader[int]:
    def read(reply: Continuation) -> tuple[int | None, str]:
        named = [int(a or b) for a, b in _LOCATED.findall(reply.text)]
        return (named[0], "") if named and 1 <= named[0] <= n else (None, "unreadable")

    return read
