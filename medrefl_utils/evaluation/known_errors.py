"""Measure how a model reconsiders on the clinic, where the truth of each step is known.

Other exams know the right letter only, so ``self_correction`` locates a wrong step by the values of a tree. Here the
clinic itself says which step of a response is the first false one, and whether it is a slip or a belief. All
definitions are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from tqdm import tqdm

from medrefl_utils.core.records import Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.exam.answers.reader import extract_answer
from medrefl_utils.models.generators.interface import Generator, Prefix, derive_seed

BEGINNINGS = ("slip", "belief", "true step", "wrong answer", "right answer")
"""Where a beginning ends: at the first false step, by its kind; at a true step; or at a finished answer."""


def known_beginnings(cases: Iterable[clinic.Case], responses: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Cut responses behind their first false step, behind a true step, and behind their first answer.

    A response counts up to its first reflection, so that nothing is reconsidered yet. The true step is drawn by the
    seed from those before the first false one.

    Args:
        cases: cases of the clinic.
        responses: one response per case, columns ``question_id`` and ``response``.
        seed: seed of the draw.

    Returns:
        Up to three rows per case: ``question_id``, ``behind`` (one of BEGINNINGS), ``prefix`` (text of the beginning).
    """
    told = responses.set_index("question_id")["response"]
    rng = np.random.default_rng(seed)
    rows = []
    for case in cases:
        name = case.question.question_id
        steps = told[name].strip().split("\n")
        waits = next((i for i, step in enumerate(steps) if step.startswith("Wait")), len(steps))
        steps = steps[:waits]
        marks = [clinic.is_true(case, steps[:i], step) for i, step in enumerate(steps)]
        kinds = [clinic.error_kind(case, steps[:i], step) for i, step in enumerate(steps)]
        first = next((i for i, kind in enumerate(kinds) if kind), len(steps))
        ends = {str(kinds[first]): first} if first < len(steps) else {}
        # The check of the options and the answer follow from the steps, so they are no step to reconsider.
        true = [i for i, mark in enumerate(marks[: min(first, max(len(steps) - 2, 0))]) if mark]
        ends |= {"true step": int(rng.choice(true))} if true else {}
        if steps and steps[-1].startswith("Answer: "):
            ends["right answer" if marks[-1] else "wrong answer"] = len(steps) - 1
        for behind, end in ends.items():
            rows.append({"question_id": name, "behind": behind, "prefix": "\n".join(steps[: end + 1])})
    return pd.DataFrame(rows, columns=["question_id", "behind", "prefix"])


def second_looks(
    cases: Iterable[clinic.Case],
    begun: pd.DataFrame,
    generator: Generator,
    *,
    samples: int,
    sampling: Sampling,
    seed: int,
) -> pd.DataFrame:
    """Let a model continue each beginning, on its own and behind "Wait,", and read the final answer.

    Args:
        cases: the cases of the beginnings.
        begun: rows of ``known_beginnings``.
        generator: the model.
        samples: continuations of each beginning and way, at least 1.
        sampling: how they are drawn.
        seed: seed of the continuations.

    Returns:
        One row per continuation: ``question_id``, ``behind``, ``prompted`` ("Wait," was written for the model),
        ``waits`` (the next step is a reflection), ``right`` (it ends at the gold answer). A finished answer is
        continued behind "Wait," only; a continuation without an answer keeps it.
    """
    by_id: Mapping[str, clinic.Case] = {case.question.question_id: case for case in cases}
    asked = [
        (row, prompted)
        for row in begun.itertuples()
        for prompted in ((True,) if row.behind.endswith("answer") else (False, True))
    ]
    texts = [
        row.prefix + (prompts.ask_to_reconsider() if prompted else prompts.STEP_BOUNDARY) for row, prompted in asked
    ]
    prefixes = [
        Prefix(prompts.exam(by_id[row.question_id].question), generator.encode(text), text)
        for (row, _), text in zip(asked, texts, strict=True)
    ]
    seeds = [[derive_seed(seed, row.question_id, row.behind, i) for i in range(samples)] for row, _ in asked]
    with tqdm(total=samples * len(asked), desc="second looks", unit="text") as bar:
        written = generator.expand(prefixes, samples, None, sampling, seeds, bar.update)
    rows = []
    for (row, prompted), text, replies in zip(asked, texts, written, strict=True):
        question = by_id[row.question_id].question
        for reply in replies:
            answer = extract_answer(text + reply.text, question.options).letter
            rows.append(
                {"question_id": row.question_id, "behind": row.behind, "prompted": prompted}
                | {"waits": prompted or reply.text.startswith("Wait"), "right": answer == question.gold}
            )
    return pd.DataFrame(rows, columns=["question_id", "behind", "prompted", "waits", "right"])


def second_look_rates(looks: pd.DataFrame) -> pd.DataFrame:
    """Return, per place of BEGINNINGS, ``beginnings`` (number) and shares of the continuations, 0 to 1.

    ``waits``: the next step is a reflection, unprompted. ``right``: an unprompted continuation ends at the gold answer.
    ``right_after_wait``: one behind "Wait," does.
    """
    groups = looks.groupby("behind")
    alone, prompted = looks[~looks["prompted"]].groupby("behind"), looks[looks["prompted"]].groupby("behind")
    table = pd.DataFrame(
        {
            "beginnings": groups["question_id"].nunique(),
            "waits": alone["waits"].mean(),
            "right": alone["right"].mean(),
            "right_after_wait": prompted["right"].mean(),
        }
    )
    return table.reindex([place for place in BEGINNINGS if place in table.index])
