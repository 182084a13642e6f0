"""Stage 05: ask a model every question of a benchmark and read its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from medrefl_utils import prompts
from medrefl_utils.answers import extract_answer
from medrefl_utils.generators import Generator, seed_of
from medrefl_utils.records import RESPONSES, Question, Sampling
from medrefl_utils.store import write_table


@dataclass(frozen=True)
class Protocol:
    """A way to ask: its name, how many times each question is asked, and the sampling."""

    name: str
    sampling: Sampling
    runs: int = 1


def respond(
    questions: Sequence[Question], generator: Generator, *, model: str, protocol: Protocol, seed: int
) -> pd.DataFrame:
    """One response for each question and run, with the columns of ``records.RESPONSES``.

    A response's seed is made of ``seed``, its question and its run, not of the model: base and adapter draw with the
    same numbers, which pairs them.
    """
    asked = [(run, question) for run in range(protocol.runs) for question in questions]
    with tqdm(total=len(asked), desc=f"{model}, {protocol.name}", unit="response") as bar:
        written = generator.chat(
            [prompts.exam(question) for _, question in asked],
            protocol.sampling,
            [seed_of(seed, question.question_id, run) for run, question in asked],
            bar.update,
        )
    rows = []
    for (run, question), response in zip(asked, written, strict=True):
        answer = extract_answer(response.text, question.options)
        rows.append(
            {
                "question_id": question.question_id,
                "source": question.source,
                "model": model,
                "protocol": protocol.name,
                "run": run,
                "response": response.text,
                "answer": answer.letter,
                "rule": answer.rule,
                "stated_letter": answer.stated_letter,
                "conflict": answer.conflict,
                "gold": question.gold,
                "correct": answer.letter == question.gold,
                "n_tokens": len(response.token_ids),
                "stop": response.stop,
                "temperature": protocol.sampling.temperature,
                "top_p": protocol.sampling.top_p,
            }
        )
    return pd.DataFrame(rows, columns=RESPONSES.names)


def evaluate(
    questions: Sequence[Question],
    generator: Generator,
    folder: Path,
    *,
    model: str,
    protocols: Sequence[Protocol],
    seed: int,
) -> pd.DataFrame:
    """The responses of one model under each protocol, each written to ``folder`` as ``<model>_<protocol>.parquet``."""
    tables = []
    for protocol in protocols:
        table = respond(questions, generator, model=model, protocol=protocol, seed=seed)
        write_table(folder / f"{model}_{protocol.name}.parquet", table, RESPONSES)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
