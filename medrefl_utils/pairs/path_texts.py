"""Paths of a tree as text: the steps of a path are looked up in the table of steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question


@dataclass(frozen=True)
class PathText:
    """One path with its text, as long as the model wrote it."""

    nodes: list[int]
    value: float
    text: str
    n_tokens: int


def questions_by_id(questions: Iterable[Question], paths: pd.DataFrame) -> dict[str, Question]:
    """{question_id: question}. Raises MedReflError for a path whose question is not among them."""
    by_id = {question.question_id: question for question in questions}
    unknown = ~paths["question_id"].isin(by_id.keys())
    if unknown.any():
        first = paths.loc[unknown, "question_id"].iloc[0]
        raise MedReflError(f"question {first!r} has a tree and is not among the {len(by_id)} questions")
    return by_id


class StepReader:
    """Finds a path's steps by their ids: the table is sorted once, and text is read only of paths that are used."""

    def __init__(self, steps: pd.DataFrame, questions: pd.Series) -> None:
        self.questions = pd.Index(questions.unique())
        code = self.questions.get_indexer(steps["question_id"])
        self.rows = np.lexsort((steps["node_id"].to_numpy(), code))
        self.bounds = np.searchsorted(code[self.rows], np.arange(len(self.questions) + 1))
        self.nodes = steps["node_id"].to_numpy()[self.rows]
        self.text, self.n_tokens = steps["text"].array, steps["n_tokens"].to_numpy()

    def chains(self, paths: pd.DataFrame, places: npt.NDArray[np.intp]) -> Iterator[PathText]:
        """The chains of one question's paths at these places, each read when it is asked for."""
        question_id = paths["question_id"].iat[places[0]]
        path_nodes, value = paths["nodes"].array, paths["value"].array
        for place in places:
            nodes = path_nodes[place]
            text = "".join(self.texts(question_id, nodes)).rstrip()
            yield PathText(list(nodes), float(value[place]), text, self.n_tokens_of(question_id, nodes))

    def texts(self, question_id: str, nodes: Sequence[int]) -> list[str]:
        """The steps of a question as the model wrote them."""
        return list(self.text.take(self._rows(question_id, nodes)))

    def n_tokens_of(self, question_id: str, nodes: Sequence[int]) -> int:
        """How many tokens the steps have together, as the rollout counted them."""
        return int(self.n_tokens[self._rows(question_id, nodes)].sum())

    def _rows(self, question_id: str, nodes: Sequence[int]) -> npt.NDArray[np.intp]:
        code = self.questions.get_loc(question_id)
        low, high = self.bounds[code], self.bounds[code + 1]
        return self.rows[low + np.searchsorted(self.nodes[low:high], np.asarray(nodes, np.int64))]
