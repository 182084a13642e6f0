"""Measure self-correction: continue from a wrong step, or from a finished answer, and read the final answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from tqdm import tqdm

from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.core.schemas import CONTINUATIONS
from medrefl_utils.evaluation.correction_rates import RIGHT_ANSWER, WRONG_ANSWER, WRONG_STEP, reconsiders
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import extract_answer
from medrefl_utils.models.generators.interface import Generator, Prefix, derive_seed
from medrefl_utils.trees.corrections import locate_errors
from medrefl_utils.trees.values import paths


def starting_points(steps: pd.DataFrame, seed: int, margin: float = 0.0) -> pd.DataFrame:
    """Draw the starting points: one wrong and one right path per question.

    The wrong path states an answer, and its first wrong step (``trees.locate_errors``) is not its last step. A question
    without a wrong path of this kind, or without a right path, is left out.

    Args:
        steps: trees of the base on held-out questions, columns of STEPS.
        seed: seed of the draw.
        margin: smallest fall of V that counts as an error.

    Returns:
        Three rows per question, one per place of ``correction_rates.PLACES``: ``question_id``, ``behind`` (the place),
        ``nodes`` (steps of the beginning), ``prefix`` (their text), ``before`` (the answer of the path), and
        ``wrong_share``: the share of wrong answers among those that the trees state, mean over all their questions.
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
    table = pd.DataFrame(rows, columns=["question_id", "behind", "nodes", "prefix", "before"])
    return table.assign(wrong_share=_wrong_share(steps))


def _wrong_share(steps: pd.DataFrame) -> float:
    leaves = steps[steps["stop"] == "answer"]
    wrong = (leaves["weight"] * (leaves["outcome"] < 0)).groupby(leaves["question_id"]).sum()
    return float((wrong / leaves["weight"].groupby(leaves["question_id"]).sum()).mean())


def continue_from(
    begun: pd.DataFrame,
    questions: Mapping[str, Question],
    generator: Generator,
    *,
    model: str,
    sampling: Sampling,
    seed: int,
    run: int = 0,
    samples: int = 1,
) -> pd.DataFrame:
    """Let a model continue each starting point: columns of CONTINUATIONS.

    After a finished answer, the model's turn continues with "Wait,". The seed of a text is derived from ``seed``, its
    question, its place and its sample, not from the model, which pairs base and adapter. A continuation without an
    answer keeps the answer of the finished path; after a wrong step, where there is none, its answer is unreadable.

    Args:
        begun: rows of ``starting_points``.
        questions: {question_id: question}.
        generator: the model.
        model: its name in the table.
        sampling: sampling of the continuations.
        seed: seed of the continuations.
        run: number of the repetition, from 0; it only names the rows.
        samples: continuations of each starting point.
    """
    texts = [
        row.prefix if row.behind == WRONG_STEP else row.prefix.rstrip() + prompts.ask_to_reconsider()
        for row in begun.itertuples()
    ]
    prefixes = [
        Prefix(prompts.exam(questions[name]), tuple(generator.encode(text)), text)
        for name, text in zip(begun["question_id"], texts, strict=True)
    ]
    # The first sample's seed has no number: it is the one of a run with a single sample.
    numbers = [(), *((number,) for number in range(1, samples))]
    seeds = [[derive_seed(seed, row.question_id, row.behind, *n) for n in numbers] for row in begun.itertuples()]
    with tqdm(total=len(prefixes) * samples, desc=f"{model}, repairs", unit="text") as bar:
        written = generator.expand(prefixes, samples, None, sampling, seeds, bar.update)
    rows = []
    replies = [
        (row, sample, reply)
        for row, all_ in zip(begun.to_dict("records"), written, strict=True)
        for sample, reply in enumerate(all_)
    ]
    for row, sample, reply in replies:
        question = questions[row["question_id"]]
        read = reply.text if row["behind"] != WRONG_STEP else row["prefix"] + reply.text
        # After a wrong step the turn goes on inside the template's thinking; after a finished answer it is closed.
        inside = generator.thinking_open and row["behind"] == WRONG_STEP
        answer = extract_answer(read, question.options, thinking_open=inside).letter
        if answer is None and row["behind"] != WRONG_STEP:
            answer = row["before"]
        rows.append(
            row
            | {
                "model": model,
                "run": run,
                "sample": sample,
                "gold": question.gold,
                "text": reply.refusal or reply.text,
                "answer": answer,
            }
            | {"reconsiders": row["behind"] != WRONG_STEP or reconsiders(reply.text)}
            | {"n_tokens": reply.length, "stop": reply.stop}
        )
    return pd.DataFrame(rows, columns=CONTINUATIONS.names)


def _one_each(paths_: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw one path per question by the seed."""
    return paths_.groupby("question_id", sort=False).sample(1, random_state=seed)


def example_continuations(repairs: pd.DataFrame, models: Sequence[str] = ("base", "medrefl")) -> pd.DataFrame:
    """Return the continuations of one wrong step that only the second model corrects, or else of any wrong step."""
    behind = repairs[(repairs["behind"] == WRONG_STEP) & (repairs["sample"] == 0)]
    right = behind.assign(right=behind["answer"] == behind["gold"]).pivot_table(
        index="question_id", columns="model", values="right", aggfunc="first"
    )
    first, second = models
    mended = right.index[~right[first].astype(bool) & right[second].astype(bool)] if len(right) else []
    chosen = [*mended, *right.index][:1]
    return behind[behind["question_id"].isin(chosen)]
