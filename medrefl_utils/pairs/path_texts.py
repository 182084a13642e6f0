"""Look up the text of paths in the table of steps."""

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
    """A path: node ids, solution value S, text without trailing white space, and tokens."""

    nodes: list[int]
    value: float
    text: str
    n_tokens: int


def questions_by_id(questions: Iterable[Question], paths: pd.DataFrame) -> dict[str, Question]:
    """Return {question_id: question}. Raises MedReflError for a path whose question is missing."""
    by_id = {question.question_id: question for question in questions}
    unknown = ~paths["question_id"].isin(by_id.keys())
    if unknown.any():
        first = paths.loc[unknown, "question_id"].iloc[0]
        raise MedReflError(f"question {first!r} has a tree and is not among the {len(by_id)} questions")
    return by_id


def check_step_columns(steps: pd.DataFrame, *names: str) -> None:
    """Raise MedReflError where the table of steps lacks a column that pairs need, and ``step_values`` does not."""
    if missing := [name for name in names if name not in steps]:
        raise MedReflError(
            f"pairs: the table of steps lacks {', '.join(missing)}: found {', '.join(map(str, steps.columns))},"
            " expected the columns of core.STEPS"
        )


class StepReader:
    """Find the steps of a path by their node ids. The table is sorted once; only the texts that are used are read.

    Raises MedReflError for a table of steps without texts or numbers of tokens.
    """

    def __init__(self, steps: pd.DataFrame, questions: pd.Series) -> None:
        check_step_columns(steps, "text", "n_tokens")
        self.questions = pd.Index(questions.unique())
        code = self.questions.get_indexer(steps["question_id"])
        self.rows = np.lexsort((steps["node_id"].to_numpy(), code))
        self.bounds = np.searchsorted(code[self.rows], np.arange(len(self.questions) + 1))
        self.nodes = steps["node_id"].to_numpy()[self.rows]
        self.text, self.n_tokens = steps["text"].array, steps["n_tokens"].to_numpy()

    def chains(self, paths: pd.DataFrame, places: npt.NDArray[np.intp]) -> Iterator[PathText]:
        """Yield the paths of one question at these places of ``paths``; each text is read when it is asked for."""
        question_id = paths["question_id"].iat[places[0]]
        path_nodes, value = paths["nodes"].array, paths["value"].array
        for place in places:
            nodes = path_nodes[place]
            text = "".join(self.texts(question_id, nodes)).rstrip()
            yield PathText(list(nodes), float(value[place]), text, self.n_tokens_of(question_id, nodes))

    def texts(self, question_id: str, nodes: Sequence[int]) -> list[str]:
        """Return the texts of these steps of a question, as the model wrote them."""
        return list(self.text.take(self._rows(question_id, nodes)))

    def n_tokens_of(self, question_id: str, nodes: Sequence[int]) -> int:
        """Return the number of tokens of these steps together, as counted in the rollout."""
        return int(self.n_tokens[self._rows(question_id, nodes)].sum())

    def _rows(self, question_id: str, nodes: Sequence[int]) -> npt.NDArray[np.intp]:
        code = self.questions.get_loc(question_id)
        low, high = self.bounds[code], self.bounds[code + 1]
        return self.rows[low + np.searchsorted(self.nodes[low:high], np.asarray(nodes, np.int64))]
