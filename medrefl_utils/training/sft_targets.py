"""Choose what supervised fine-tuning teaches: the kept chains, or a control with as many examples.

A fine-tuned model may gain from the form of the answer, from the letters, or from more text of its own. The controls
separate these from what the chains say. All of them have the same number of examples (design: ours).
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.exam import prompts
from medrefl_utils.exam.questions import questions_from_table
from medrefl_utils.trees.values import paths

TARGETS = ("chains", "letters", "own")
"""What is taught: the chains; the gold letters alone; the model's own right chains (rejection sampling)."""


def sft_examples(
    chains: pd.DataFrame,
    targets: str = "chains",
    *,
    n: int = 0,
    seed: int = 0,
    own: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> tuple[pd.DataFrame, DropCounts]:
    """Return the examples of a fine-tuning, and how many chains were left out, by the filter's reason.

    Args:
        chains: columns of TAUGHT. Only kept chains count.
        targets: one of ``TARGETS``. "letters" has the questions of the chains, each answered by its gold letter. "own"
            has right paths of trees: one of each question before a second one of any.
        n: number of examples; 0 means as many as there are kept chains.
        seed: of the draw.
        own: the steps (columns of STEPS) and questions (columns of QUESTIONS) of the trees for "own".

    Returns:
        Columns ``question_id``, ``prompt`` and ``completion`` (messages).

    Raises:
        MedReflError: no kept chain, fewer examples than ``n``, or "own" without trees.
    """
    if targets not in TARGETS:
        raise MedReflError(f"targets is {targets!r}, expected one of {', '.join(TARGETS)}")
    kept = chains[chains["kept"].astype(bool)].reset_index(drop=True)
    dropped = DropCounts(chains.loc[~chains["kept"].astype(bool), "reason"].fillna("not kept").value_counts().to_dict())
    if kept.empty:
        raise MedReflError(f"chains: none of {len(chains)} is kept, expected at least one; see 08_knowledge_chains")
    n = n or len(kept)
    if targets == "own":
        if own is None:
            raise MedReflError("targets is own, which needs a run with trees: set own_run to its folder")
        return _own_chains(*own, n, seed), dropped
    if n > len(kept):
        raise MedReflError(f"n_examples is {n}, expected at most the {len(kept)} kept chains")
    kept = kept.sample(n, random_state=seed).sort_index().reset_index(drop=True)
    if targets == "letters":
        kept = kept.assign(completion=[_turn(f"Answer: {letter}") for letter in kept["gold"]])
    return kept[["question_id", "prompt", "completion"]], dropped


def _own_chains(steps: pd.DataFrame, questions: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Draw ``n`` distinct right paths, evenly over the questions."""
    found = paths(steps)
    texts = steps.set_index(["question_id", "node_id"])["text"]
    by_question: dict[str, dict[str, None]] = {}
    for row in found[found["outcome"] > 0].itertuples():
        text = "".join(texts.loc[[(row.question_id, node) for node in row.nodes]]).strip()
        by_question.setdefault(row.question_id, {})[text] = None
    rng = random.Random(f"own chains {seed}")
    order = rng.sample(sorted(by_question), len(by_question))
    shuffled = {question: rng.sample(list(by_question[question]), len(by_question[question])) for question in order}
    rounds = range(max(map(len, shuffled.values()), default=0))
    drawn = [(q, shuffled[q][turn]) for turn in rounds for q in order if turn < len(shuffled[q])][:n]
    if len(drawn) < n:
        raise MedReflError(
            f"own chains: the trees have {len(drawn)} distinct right paths, expected {n}: grow more trees, or set "
            f"n_examples to {len(drawn)} here and in the run to compare with"
        )
    asked = {question.question_id: prompts.exam(question) for question in questions_from_table(questions)}
    rows = [{"question_id": q, "prompt": asked[q], "completion": _turn(text)} for q, text in drawn]
    return pd.DataFrame(rows)


def _turn(text: str) -> list[Mapping[str, str]]:
    return [{"role": "assistant", "content": text}]
