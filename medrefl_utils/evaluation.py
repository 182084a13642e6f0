"""Stage 05: ask a model every question of a benchmark, by one or more protocols, and read its answers."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from medrefl_utils import prompts
from medrefl_utils.answers import extract_answer
from medrefl_utils.generators import Generator, Prefix, seed_of
from medrefl_utils.lint import content_key
from medrefl_utils.prompts import Messages
from medrefl_utils.records import RESPONSES, Answer, Continuation, MedReflError, Question, Sampling
from medrefl_utils.reflections import ask
from medrefl_utils.store import write_table

PROTOCOLS = ("published", "greedy", "sampled", "self-consistency", "budget")
_FORCED_TOKENS = 24  # room for an answer that was asked for
_SETTLES = re.compile(r"settles on\W{0,6}(none\b|[A-Z]\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Protocol:
    """A way to ask: its name and the sampling of each run.

    ``vote``: the runs are one response, the answer that most of them give. ``budget``: thinking is cut at the
    samplings' ``max_tokens`` and the answer is asked for.
    """

    name: str
    samplings: tuple[Sampling, ...]
    vote: bool = False
    budget: bool = False


def published_temperature(u: float) -> float:
    """The u-quantile of the published density of temperatures on [0.2, 1.0]; its missing 0.05 falls on 1.0.

    Density 0.5 + 2.5 (t - 0.2) up to 0.6, 1.5 up to 0.8, 1.5 - 2.5 (t - 0.8) up to 1.0 (Med-REFL's evaluation script).
    """
    if u <= 0.4:
        return 0.2 + (np.sqrt(0.25 + 5 * u) - 0.5) / 2.5
    if u <= 0.7:
        return 0.6 + (u - 0.4) / 1.5
    return 0.8 + (1.5 - np.sqrt(2.25 - 5 * (min(u, 0.95) - 0.7))) / 2.5


def published_top_p(u: float) -> float:
    """The u-quantile of the published top-p: uniform on [0.2, 0.6) with probability 0.3, else on [0.6, 1.0)."""
    return 0.2 + 0.4 * u / 0.3 if u < 0.3 else 0.6 + 0.4 * (u - 0.3) / 0.7


def protocol(
    name: str,
    *,
    seed: int = 0,
    runs: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 8192,
    repetition_penalty: float = 1.0,
    samples: int = 10,
    budget: int = 1024,
) -> Protocol:
    """A protocol by name.

    Args:
        name: one of ``PROTOCOLS``. ``published``: three runs, each with one temperature and one top-p that are drawn
            from ``seed`` (rounded to two digits, as published), repetition penalty 1.1. ``greedy``: one run.
            ``sampled``: ``runs`` runs. ``self-consistency``: ``samples`` samples and a majority vote. ``budget``:
            greedy, thinking cut at ``budget`` tokens.
        seed: of what ``published`` draws.
        runs: responses a question of ``sampled``.
        temperature: of ``sampled`` and ``self-consistency``, as is ``top_p``.
        top_p: see ``temperature``.
        max_tokens: of a response.
        repetition_penalty: of all but ``published``; 1 is none.
        samples: votes of ``self-consistency``.
        budget: tokens of thinking.

    Raises:
        MedReflError: an unknown name.
    """
    drawn = Sampling(temperature, top_p, max_tokens, repetition_penalty)
    greedy = Sampling(0.0, 1.0, max_tokens, repetition_penalty)
    if name == "published":
        uniform = np.random.default_rng(seed).random((3, 2))
        drawn = [
            Sampling(round(float(published_temperature(t)), 2), round(float(published_top_p(p)), 2), max_tokens, 1.1)
            for t, p in uniform
        ]
        return Protocol(name, tuple(drawn))
    if name == "greedy":
        return Protocol(name, (greedy,))
    if name == "sampled":
        return Protocol(name, (drawn,) * runs)
    if name == "self-consistency":
        return Protocol(name, (drawn,) * samples, vote=True)
    if name == "budget":
        return Protocol(name, (replace(greedy, max_tokens=budget),), budget=True)
    raise MedReflError(f"protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")


def identity(question: Question) -> dict[str, str]:
    """The columns that tie a response to its question: ``question_id``, ``stem_id`` and ``content``."""
    stem, texts = content_key(question)
    return {"question_id": question.question_id, "stem_id": _hash(stem), "content": _hash(stem, *sorted(texts))}


def response_row(question: Question, answer: Answer) -> dict[str, Any]:
    """The columns of ``records.RESPONSES`` that a question and the answer read from a response fill."""
    return {
        **identity(question),
        "stem": question.stem,
        "options": list(question.options.items()),
        "source": question.source,
        "answer": answer.letter,
        "rule": answer.rule,
        "stated_letter": answer.stated_letter,
        "conflict": answer.conflict,
        "gold": question.gold,
        "correct": answer.letter == question.gold,
        "judged": None,
    }


def respond(
    questions: Sequence[Question],
    generator: Generator,
    *,
    model: str,
    protocol: Protocol,
    seed: int,
    form: str = "steps",
) -> pd.DataFrame:
    """One response for each question and run, with the columns of ``records.RESPONSES``.

    A response's seed is made of ``seed``, its question and its run, not of the model: base and adapter draw with the
    same numbers, which pairs them. ``form`` is how the question is put: one of ``prompts.FORMS``.
    """
    if form not in prompts.FORMS:
        raise MedReflError(f"form is {form!r}, expected one of {', '.join(prompts.FORMS)}")
    rows = []
    with tqdm(total=len(questions) * len(protocol.samplings), desc=f"{model}, {protocol.name}", unit="response") as bar:
        for run, sampling in enumerate(protocol.samplings):
            before = generator.usage.seconds
            messages = [prompts.FORMS[form](question) for question in questions]
            written = _written(questions, messages, generator, protocol, sampling, seed, run, bar.update)
            seconds = (generator.usage.seconds - before) / max(1, len(questions))
            rows += [
                response_row(question, extract_answer(response.text, question.options))
                | {
                    **{"model": model, "protocol": protocol.name, "run": run, "response": response.text},
                    **{"n_tokens": response.length, "stop": response.stop, "seconds": seconds},
                    **{"temperature": sampling.temperature, "top_p": sampling.top_p},
                }
                for question, response in zip(questions, written, strict=True)
            ]
    table = pd.DataFrame(rows, columns=RESPONSES.names).astype({"judged": "str"})
    return _vote(table) if protocol.vote else table


def _written(
    questions: Sequence[Question],
    messages: Sequence[Messages],
    generator: Generator,
    protocol: Protocol,
    sampling: Sampling,
    seed: int,
    run: int,
    progress: Callable[[int], object],
) -> list[Continuation]:
    seeds = [seed_of(seed, question.question_id, run) for question in questions]
    written = generator.chat(messages, sampling, seeds, progress)
    cut = [i for i, response in enumerate(written) if protocol.budget and response.stop == "length"]
    if cut:
        asked = [prompts.ask_for_answer(written[i].text) for i in cut]
        prefixes = [
            Prefix(messages[i], written[i].token_ids + generator.encode(text), written[i].text + text)
            for i, text in zip(cut, asked, strict=True)
        ]
        forced = replace(sampling, max_tokens=_FORCED_TOKENS)
        answers = generator.expand(prefixes, 1, None, forced, [[seeds[i]] for i in cut])
        for i, text, prefix, (answer,) in zip(cut, asked, prefixes, answers, strict=True):
            ids = prefix.token_ids + answer.token_ids
            whole = written[i].text + text + answer.text
            written[i] = Continuation(whole, ids, None, "forced", written[i].length + answer.length)
    return written


def _vote(samples: pd.DataFrame) -> pd.DataFrame:
    """One row a question: the first of the samples whose answer most of them give; unreadable ones have no vote.

    Among answers with as many votes the one that was given first wins. Tokens and time are those of all samples.
    """
    rows = []
    for _, group in samples.groupby("question_id", sort=False):
        votes = Counter(answer for answer in group["answer"] if isinstance(answer, str))
        winner = max(votes, key=votes.get) if votes else None  # a Counter keeps the order of first votes
        first = group[group["answer"] == winner] if votes else group
        rows.append(
            first.iloc[0].to_dict()
            | {"run": 0, "n_tokens": group["n_tokens"].sum(), "seconds": group["seconds"].sum()}
            | {"rule": f"vote {votes[winner]}/{len(group)}" if votes else "none"}
        )
    return pd.DataFrame(rows, columns=samples.columns)


def evaluate(
    questions: Sequence[Question],
    generator: Generator,
    folder: Path,
    *,
    model: str,
    protocols: Sequence[Protocol],
    seed: int,
    form: str = "steps",
    judge: Generator | None = None,
) -> pd.DataFrame:
    """The responses of one model under each protocol, each written to ``folder`` as ``<model>_<protocol>.parquet``.

    A ``judge`` reads the answers that the rules leave (see ``judged``).
    """
    tables = []
    for protocol in protocols:
        table = respond(questions, generator, model=model, protocol=protocol, seed=seed, form=form)
        if judge is not None:
            table = judged(table, questions, judge, seed=seed)
        write_table(folder / f"{model}_{protocol.name}.parquet", table, RESPONSES)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def judged(responses: pd.DataFrame, questions: Sequence[Question], judge: Generator, *, seed: int) -> pd.DataFrame:
    """The responses with ``judged`` filled in: the letter that a model reads where the rules read none.

    ``answer`` and ``correct`` stay those of the rules, so that both figures can be shown. A reply that names no option
    of the question is asked for again, at most twice; what the judge cannot read either stays null.
    """
    by_id = {question.question_id: question for question in questions}
    unread = responses[responses["answer"].isna()]
    asked = [
        (prompts.read_answer(by_id[row.question_id], row.response), _settled(by_id[row.question_id]))
        for row in unread.itertuples()
    ]
    found = ask(judge, asked, sampling=Sampling(0.0, 1.0, _FORCED_TOKENS), seed=seed, title="answers read")
    letters = pd.Series([one.value or None for one in found], index=unread.index, dtype="str")
    return responses.assign(judged=letters.reindex(responses.index))


def _settled(question: Question) -> Callable[[Continuation], tuple[str | None, str]]:
    """Reads a judge's reply: a letter, "" for none, or None where it says neither."""

    def read(reply: Continuation) -> tuple[str | None, str]:
        named = _SETTLES.findall(reply.text)
        letter = named[-1].upper() if named else None
        if letter == "NONE":
            return "", ""
        return (letter, "") if letter in question.options else (None, "unreadable")

    return read


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
