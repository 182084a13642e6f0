"""Put a model behind a wrong step, or behind a finished answer, and see whether it comes back (``claims``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from tqdm import tqdm

from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.core.schemas import CONTINUATIONS
from medrefl_utils.evaluation.correction_rates import RIGHT_ANSWER, WRONG_ANSWER, WRONG_STEP, reconsiders
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers import extract_answer
from medrefl_utils.models.generators.interface import Generator, Prefix, derive_seed
from medrefl_utils.trees.corrections import locate_errors
from medrefl_utils.trees.values import paths


def starting_points(steps: pd.DataFrame, seed: int, margin: float = 0.0) -> pd.DataFrame:
    """Where models are put: of each question's tree one wrong and one right path, drawn by the seed.

    The wrong path states an answer and errs, by structure (``corrections.locate_errors``), before its last step; so
    only questions whose tree has a right path too take part, and each takes part in all three places. Returns three
    rows a question: ``question_id``, ``behind`` (one of ``claims.BEHIND``), ``nodes`` (the steps of the beginning),
    ``prefix`` (their text) and ``before`` (the answer of the path it was taken from).

    Args:
        steps: trees, rows of ``records.STEPS``; grown by the base, on held-out questions.
        seed: of the draw.
        margin: least fall of V that is an error.
    """
    key = ["question_id", "node_id"]
    located = locate_errors(steps, margin).rename(columns={"node_id": "error", "leaf": "node_id"})
    stated = steps.loc[steps["stop"] == "answer", key]
    chains = paths(steps).merge(stated, on=key).merge(located, on=key, how="left")
    errs = (chains["outcome"] < 0) & chains["error"].notna() & (chains["error"] != chains["node_id"])
    wrong = _one_each(chains[errs], seed).set_index("question_id")
    right = _one_each(chains[chains["outcome"] > 0], seed).set_index("question_id")
    text = steps.set_index(key)["text"].to_dict()
    rows = []
    for question in [question for question in wrong.index if question in right.index]:
        path, other = wrong.loc[question], right.loc[question]
        upto = list(path["nodes"])[: list(path["nodes"]).index(path["error"]) + 1]
        for behind, nodes, before in (
            (WRONG_STEP, upto, path["answer"]),
            (WRONG_ANSWER, list(path["nodes"]), path["answer"]),
            (RIGHT_ANSWER, list(other["nodes"]), other["answer"]),
        ):
            prefix = "".join(text[question, node] for node in nodes)
            rows.append({"question_id": question, "behind": behind, "nodes": nodes, "prefix": prefix, "before": before})
    return pd.DataFrame(rows, columns=["question_id", "behind", "nodes", "prefix", "before"])


def continue_from(
    begun: pd.DataFrame,
    questions: Mapping[str, Question],
    generator: Generator,
    *,
    model: str,
    sampling: Sampling,
    seed: int,
    run: int = 0,
) -> pd.DataFrame:
    """What a model writes behind each of the ``beginnings``: rows of ``records.REPAIRS``.

    Behind a finished answer it has said "Wait," already, in its own turn. The seed of a text is made of ``seed``, its
    question and its place, not of the model, which pairs base and adapter. A model that gives no new answer keeps the
    old one; behind a wrong step, where it has given none, that is an unreadable answer.
    """
    texts = [
        row.prefix if row.behind == WRONG_STEP else row.prefix.rstrip() + prompts.ask_to_reconsider()
        for row in begun.itertuples()
    ]
    prefixes = [
        Prefix(prompts.exam(questions[name]), tuple(generator.encode(text)), text)
        for name, text in zip(begun["question_id"], texts, strict=True)
    ]
    seeds = [[derive_seed(seed, row.question_id, row.behind)] for row in begun.itertuples()]
    with tqdm(total=len(prefixes), desc=f"{model}, repairs", unit="text") as bar:
        written = generator.expand(prefixes, 1, None, sampling, seeds, bar.update)
    rows = []
    for row, [reply] in zip(begun.to_dict("records"), written, strict=True):
        question = questions[row["question_id"]]
        read = reply.text if row["behind"] != WRONG_STEP else row["prefix"] + reply.text
        answer = extract_answer(read, question.options).letter
        if answer is None and row["behind"] != WRONG_STEP:
            answer = row["before"]
        rows.append(
            row
            | {"model": model, "run": run, "gold": question.gold, "text": reply.text, "answer": answer}
            | {"reconsiders": row["behind"] != WRONG_STEP or reconsiders(reply.text)}
            | {"n_tokens": reply.length, "stop": reply.stop}
        )
    return pd.DataFrame(rows, columns=CONTINUATIONS.names)


def _one_each(paths_: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One path of each question, by the seed."""
    return paths_.groupby("question_id", sort=False).sample(1, random_state=seed)


def example_continuations(repairs: pd.DataFrame, models: Sequence[str] = ("base", "medrefl")) -> pd.DataFrame:
    """One beginning behind a wrong step from which the second model came back and the first did not; else any."""
    behind = repairs[repairs["behind"] == WRONG_STEP]
    right = behind.assign(right=behind["answer"] == behind["gold"]).pivot_table(
        index="question_id", columns="model", values="right", aggfunc="first"
    )
    first, second = models
    mended = right.index[~right[first].astype(bool) & right[second].astype(bool)] if len(right) else []
    chosen = [*mended, *right.index][:1]
    return behind[behind["question_id"].isin(chosen)]
