"""Ask a model all questions of a benchmark, with one or more protocols, and read its answers (stage 05)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Answer, Continuation, Question, Sampling
from medrefl_utils.core.schemas import RESPONSES
from medrefl_utils.core.store import write_table
from medrefl_utils.evaluation.protocols import Protocol
from medrefl_utils.evaluation.robustness import changed_messages, changed_question
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.reader import extract_answer, split_thinking
from medrefl_utils.exam.lint import content_key
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.asking import ask_until_valid
from medrefl_utils.models.generators.interface import Generator, Prefix, derive_seed

_FORCED_TOKENS = 24
"""Maximum number of tokens of an answer that is requested (ours)."""
_THINKING_TOKENS = 512
"""The same for a judge that thinks before its verdict, or whose verdict was truncated (ours)."""
_FAULTS = {
    "cut": "truncated at the token limit",
    "unreadable": "without a verdict that can be read",
    "refused": "refused by the server",
}
"""What a judge's unread reply lacks, by the word of its reader."""
# A letter is a capital one: "settles on a diagnosis" names none.
_SETTLES = re.compile(
    r"(?i:settle[sd]?\son)\W{0,6}(?i:(?:the\s)?(?:option|answer|choice|letter)\W{0,4})?"
    r"((?i:none)\b|[A-Z](?![\w'’-])|[a-z](?=\W{0,4}(?:\n|\Z)))"
)
_LETTER = re.compile(r"\W{0,6}(?i:(?:option|answer|choice)\W{0,4})?((?i:none)|[A-Z])\W{0,6}\Z")


def question_identity(question: Question) -> dict[str, str]:
    """Return the columns that link a response to its question: ``question_id``, ``stem_id`` and ``content``."""
    stem, texts = content_key(question)
    return {"question_id": question.question_id, "stem_id": _hash(stem), "content": _hash(stem, *sorted(texts))}


def response_row(question: Question, answer: Answer) -> dict[str, Any]:
    """Return the columns of RESPONSES that come from a question and from the answer read in a response."""
    return {
        **question_identity(question),
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


def collect_responses(
    questions: Sequence[Question],
    generator: Generator,
    *,
    model: str,
    protocol: Protocol,
    seed: int,
    answer_format: str = "steps",
) -> pd.DataFrame:
    """Collect one response per question and run: columns of RESPONSES.

    The seed of a response is derived from ``seed``, its question and its run, not from the model. So base and adapter
    sample with the same random numbers, which pairs them. Of a prompt that a server refuses, ``stop`` is "refused" and
    the response is the server's words (``drop_refused``).

    Args:
        questions: the questions.
        generator: the model.
        model: its name in the table: "base", "medrefl" or an arm of the ablation.
        protocol: how the questions are asked.
        seed: seed of all responses.
        answer_format: form of the prompt, one of ``prompts.FORMS``.

    Raises:
        MedReflError: an unknown ``answer_format``.
    """
    if answer_format not in prompts.FORMS:
        raise MedReflError(f"answer_format is {answer_format!r}, expected one of {', '.join(prompts.FORMS)}")
    rows = []
    questions = [changed_question(question, protocol.change, seed) for question in questions]
    with tqdm(total=len(questions) * len(protocol.samplings), desc=f"{model}, {protocol.name}", unit="response") as bar:
        for run, sampling in enumerate(protocol.samplings):
            before = generator.usage.seconds
            form = prompts.FORMS[answer_format]
            messages = [changed_messages(form(question), question, protocol.change, seed) for question in questions]
            written = _written(questions, messages, generator, protocol, sampling, seed, run, bar.update)
            seconds = (generator.usage.seconds - before) / max(1, len(questions))
            rows += [
                response_row(
                    question,
                    extract_answer(response.text, question.options, thinking_open=generator.thinking_open),
                )
                | {
                    **{"model": model, "protocol": protocol.name, "run": run},
                    "response": response.refusal or response.text,
                    **{"n_tokens": response.length, "stop": response.stop, "seconds": seconds},
                    **{"temperature": sampling.temperature, "top_p": sampling.top_p},
                }
                for question, response in zip(questions, written, strict=True)
            ]
    table = pd.DataFrame(rows, columns=RESPONSES.names).astype({"judged": object})
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
    seeds = [derive_seed(seed, question.question_id, run) for question in questions]
    written = generator.chat(messages, sampling, seeds, progress)
    cut = [i for i, response in enumerate(written) if protocol.budget and response.stop == "length"]
    if cut:
        opened, closing = generator.thinking_open, generator.thinking_close
        asked = [prompts.ask_for_answer(written[i].text, thinking_open=opened, closing=closing) for i in cut]
        prefixes = [
            Prefix(messages[i], written[i].token_ids + generator.encode(text), written[i].text + text)
            for i, text in zip(cut, asked, strict=True)
        ]
        forced = replace(sampling, max_tokens=_FORCED_TOKENS)
        answers = generator.expand(prefixes, 1, None, forced, [[seeds[i]] for i in cut])
        for i, text, prefix, (answer,) in zip(cut, asked, prefixes, answers, strict=True):
            if answer.stop == "refused":
                written[i] = answer
                continue
            ids = prefix.token_ids + answer.token_ids
            whole = written[i].text + text + answer.text
            written[i] = Continuation(whole, ids, None, "forced", written[i].length + answer.length)
    return written


def _vote(samples: pd.DataFrame) -> pd.DataFrame:
    """Return one row per question: the first sample with the majority answer; unreadable answers do not vote.

    Among answers with equal votes the one that was given first wins. Tokens and time are the sums over all samples.
    """
    rows = []
    for _, group in samples.groupby("question_id", sort=False):
        votes = Counter(answer for answer in group["answer"] if isinstance(answer, str))
        winner = max(votes, key=votes.get) if votes else None  # a Counter keeps the order of first votes
        first = group[group["answer"] == winner] if votes else group
        if (group["stop"] == "refused").any():
            first = group[group["stop"] == "refused"]
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
    answer_format: str = "steps",
    judge: Generator | None = None,
) -> pd.DataFrame:
    """Collect the responses of one model with each protocol, and write ``<model>_<protocol>.parquet`` to ``folder``.

    A ``judge`` reads the answers that the rules cannot read (``judge_answers``). For the other arguments see
    ``collect_responses``.
    """
    tables = []
    for protocol in protocols:
        table = collect_responses(
            questions, generator, model=model, protocol=protocol, seed=seed, answer_format=answer_format
        )
        if judge is not None:
            shown = [changed_question(question, protocol.change, seed) for question in questions]
            table = judge_answers(table, shown, judge, seed=seed)
        write_table(folder / f"{model}_{protocol.name}.parquet", table, RESPONSES)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def drop_refused(table: pd.DataFrame, folder: Path | None = None) -> tuple[pd.DataFrame, DropCounts]:
    """Leave out the questions of which a server refused any prompt, in all models and runs: comparisons are paired.

    Args:
        table: columns of RESPONSES or of CONTINUATIONS, of all models.
        folder: of the files of ``evaluate``, which are written again without these questions.

    Returns:
        The other rows, and the counts (fault: ``refused``, in questions).
    """
    refused, dropped = table[table["stop"] == "refused"], DropCounts()
    words = "response" if "response" in table else "text"
    for row in refused.drop_duplicates("question_id").to_dict("records"):
        dropped.drop("refused", f"question {row['question_id']!r}, {row['model']}: {row[words]}")
    kept = table[~table["question_id"].isin(refused["question_id"])].reset_index(drop=True)
    if folder is not None and dropped:
        for (model, protocol), rows in kept.groupby(["model", "protocol"]):
            write_table(folder / f"{model}_{protocol}.parquet", rows, RESPONSES)
    return kept, dropped


def judge_answers(
    responses: pd.DataFrame,
    questions: Sequence[Question],
    judge: Generator,
    *,
    seed: int,
    max_tokens: int | None = None,
) -> pd.DataFrame:
    """Fill the column ``judged``: the letter that a model reads where the rules read none.

    ``answer`` and ``correct`` keep the values of the rules, so both accuracies can be shown. A reply that names no
    option of the question is requested again, at most twice; then ``judged`` stays null. A thinking before the verdict
    is not read, nor is a reply that was truncated. The function prints how many responses stay unread.

    Args:
        responses: columns of RESPONSES.
        questions: at least those of the responses.
        judge: the model that reads.
        seed: seed of its replies.
        max_tokens: tokens of a reply. None means 24, and 512 where the judge's chat template opens a thinking, or where
            a reply of 24 tokens was truncated.
    """
    by_id = {question.question_id: question for question in questions}
    unread = responses[responses["answer"].isna() & (responses["stop"] != "refused")]
    asked = [
        (
            prompts.read_answer(by_id[row.question_id], row.response),
            _settled(by_id[row.question_id], judge.thinking_open),
        )
        for row in unread.itertuples()
    ]
    room = max_tokens or (_THINKING_TOKENS if judge.thinking_open else _FORCED_TOKENS)
    found = ask_until_valid(judge, asked, sampling=Sampling(0.0, 1.0, room), seed=seed, title="answers read")
    cut = [i for i, one in enumerate(found) if one.value is None and one.faults[-1] == "cut"]
    if cut and room < _THINKING_TOKENS and max_tokens is None:
        longer = Sampling(0.0, 1.0, _THINKING_TOKENS)
        again = ask_until_valid(judge, [asked[i] for i in cut], sampling=longer, seed=seed, title="answers read")
        for i, one in zip(cut, again, strict=True):
            found[i] = one
    if missing := Counter(one.faults[-1] for one in found if one.value is None):
        reasons = ", ".join(f"{n} {_FAULTS[fault]}" for fault, n in missing.items())
        print(f"judge: {missing.total()} of {len(found)} responses stay unread: {reasons}")
    letters = pd.Series([one.value or None for one in found], index=unread.index, dtype=object)
    return responses.assign(judged=letters.reindex(responses.index))


def _settled(question: Question, thinking_open: bool = False) -> Callable[[Continuation], tuple[str | None, str]]:
    """Make a reader of a judge's reply: a letter, "" for none, or None where the reply is cut or unreadable."""

    def read(reply: Continuation) -> tuple[str | None, str]:
        if reply.stop == "length":
            return None, "cut"
        _, told = split_thinking(reply.text, thinking_open=thinking_open)
        named = _SETTLES.findall(told) or _LETTER.findall(told.strip())
        letter = named[-1].upper() if named else None
        if letter == "NONE":
            return "", ""
        return (letter, "") if letter in question.options else (None, "unreadable")

    return read


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
