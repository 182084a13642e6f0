"""Scores responses that are already written, ours or others', without a model; and compares two runs.

A response is tied to its question by id and by what the question says, never by its line alone: where a file has
nothing but lines, its gold letters must all agree with the benchmark's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import RESPONSES
from medrefl_utils.core.store import read_table
from medrefl_utils.evaluation.responses import question_identity, response_row
from medrefl_utils.evaluation.statistics import score_responses
from medrefl_utils.exam.answers import extract_answer
from medrefl_utils.exam.lint import content_key
from medrefl_utils.exam.questions import Rows, question_from_row, read_rows

_RESPONSE = ("response", "reason", "output", "completion", "generated_text", "prediction", "text")
_GOLD = ("gold", "ideal_answer", "answer_idx", "label")
_ID = ("question_id", "id")
_TOLD: dict[str, type] = {"model": str, "protocol": str, "run": int, "stop": str}
_TOLD |= {"n_tokens": int, "seconds": float, "temperature": float, "top_p": float}


def read_responses(path: Path, benchmark: Rows, response_field: str | None = None) -> pd.DataFrame:
    """The responses of a file (or of a folder of Parquet files), each tied to its question and its answer read.

    Args:
        path: .jsonl, .json, .parquet or .csv; a run's ``responses/``.
        benchmark: what they answer, all rows of it.
        response_field: the column with the response's text; None takes the first that is there of response, reason,
            output, completion, generated_text, prediction, text.

    Returns:
        Rows with the columns of ``records.RESPONSES``; what the file does not tell is null. A question that stands in
        the benchmark several times is one question, asked in as many runs.

    Raises:
        MedReflError: no such column, or rows that cannot be tied to the benchmark's questions, with the count.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    rows = [_row(file, number, row) for file in files for number, row in read_rows(file)]
    if not rows:
        raise MedReflError(f"{path}: no responses in it")
    response_field = response_field or next((name for name in _RESPONSE if name in rows[0]), _RESPONSE[0])
    if short := [i for i, row in enumerate(rows) if not isinstance(row.get(response_field), str)]:
        raise MedReflError(
            f"{path}: {len(short)} of {len(rows)} rows have no text under {response_field!r} (the first is row"
            f" {short[0] + 1}, with {', '.join(rows[short[0]])})"
        )
    first_with: dict[Any, Question] = {}
    for _, question in benchmark.questions:
        first_with.setdefault(content_key(question), question)
    asked: Counter[tuple[Any, ...]] = Counter()
    table = []
    for number, (row, question) in enumerate(zip(rows, _tied(rows, benchmark, path), strict=True), start=1):
        question = first_with[content_key(question)] if "options" not in row else question
        told = {name: _told(row, name, kind, f"{path}: row {number}") for name, kind in _TOLD.items()}
        model, protocol = told["model"] or path.stem, told["protocol"] or "given"
        place = (model, protocol, question.question_id)
        run = told["run"] if told["run"] is not None else asked[place]
        asked[place] += 1
        response = _told(row, response_field, str, f"{path}: row {number}")
        table.append(
            told
            | response_row(question, extract_answer(response, question.options))
            | {"model": model, "protocol": protocol, "run": run, "response": response, "source": benchmark.label}
        )
    return pd.DataFrame(table, columns=RESPONSES.names)


def _row(file: Path, number: int, row: Mapping[str, Any] | Exception) -> dict[str, Any]:
    if isinstance(row, Exception):
        raise MedReflError(f"{file}:{number}: {row}")
    return dict(row)


def _told(row: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """What a row says under ``name``, None where it does not; numbers may be text, as in a CSV file."""
    value = row.get(name)
    if value is None or (value == "" and kind is not str):
        return None
    try:
        if kind is str and isinstance(value, str):
            value.encode()  # half a surrogate pair, which JSON can hold, is no text
            return value
        if kind is not str and isinstance(value, int | float | str):
            return kind(value)
    except (ValueError, OverflowError):
        pass
    raise MedReflError(f"{where}: {name} is {str(value)[:50]!r}, expected {'text' if kind is str else 'a number'}")


def _tied(rows: Sequence[Mapping[str, Any]], benchmark: Rows, path: Path) -> list[Question]:
    """The question of each row, with the options that the row says were shown."""
    key = next((name for name in _ID if all(row.get(name) not in (None, "") for row in rows)), None)
    by_id = {question.question_id: question for _, question in benchmark.questions}
    if key and (unknown := sum(str(row[key]) not in by_id for row in rows)) < len(rows):
        if unknown:
            raise MedReflError(f"{path}: {unknown} of {len(rows)} ids are not in {benchmark.label}, expected none")
        found = [by_id[str(row[key])] for row in rows]
        others = sum(
            row.get("content", question_identity(q)["content"]) != question_identity(q)["content"]
            for row, q in _zip(rows, found)
        )
        if others:
            raise MedReflError(
                f"{path}: {others} of {len(rows)} responses have the id of a question that says otherwise"
            )
        found = [_as_shown(row, question, f"{path}: row {n}") for n, (row, question) in enumerate(_zip(rows, found), 1)]
        _check_gold(rows, found, path, f"tied to {benchmark.label} by id")
        return found
    if shown := _said(rows):
        known = {content_key(question) for _, question in benchmark.questions}
        if others := sum(content_key(question) not in known for question in shown):
            raise MedReflError(f"{path}: {others} of {len(rows)} questions are not in {benchmark.label}, expected none")
        return shown
    if len(rows) != len(benchmark.questions) or benchmark.faults:
        n = len(benchmark.questions) + len(benchmark.faults)
        raise MedReflError(
            f"{path}: {len(rows):,} rows without ids and {n:,} rows of {benchmark.label}, expected as many"
        )
    found = [question for _, question in benchmark.questions]
    if not all(_gold_of(row) for row in rows):
        raise MedReflError(f"{path}: rows have neither an id, nor their question, nor a gold letter to tie them by")
    _check_gold(rows, found, path, f"tied to {benchmark.label} by line")
    return found


def _zip(rows: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> zip:
    return zip(rows, questions, strict=True)


def _check_gold(rows: Sequence[Mapping[str, Any]], found: Sequence[Question], path: Path, how: str) -> None:
    agree = sum((_gold_of(row) or question.gold) == question.gold for row, question in _zip(rows, found))
    if agree < len(rows):
        raise MedReflError(
            f"{path}: {how}, the gold letters agree on {agree:,} of {len(rows):,} rows, expected all: refused, since"
            " these responses answer other questions, or other options"
        )


def _gold_of(row: Mapping[str, Any]) -> str | None:
    return next((str(row[name]).strip().upper() for name in _GOLD if row.get(name)), None)


def _as_shown(row: Mapping[str, Any], question: Question, where: str) -> Question:
    """The question with the row's own options and gold letter, which may have been shuffled."""
    if not row.get("options"):
        return question
    try:
        return question_from_row({"stem": question.stem, **row, "question_id": question.question_id})
    except ValueError as error:
        raise MedReflError(f"{where}: {error}") from None


def _said(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """The questions that the rows hold, if they do."""
    try:
        return [question_from_row(row) for row in rows]
    except ValueError:
        return []


def compare_runs(a: Path, b: Path) -> pd.DataFrame:
    """Compare two runs' responses on the questions that both were asked, paired.

    Args:
        a: folder of the first run, the baseline.
        b: folder of the second run.

    Returns:
        A row per benchmark, protocol and model: ``source``, ``protocol``, ``model``, ``accuracy_first`` (strict, of
        ``a``) and the columns of ``schemas.SCORES`` of ``b``, with the gain of ``b`` over ``a``.

    Raises:
        MedReflError: a run without responses, or two runs that share no benchmark, protocol and model.
    """
    first, second = (read_table(RunFiles(run).responses, RESPONSES) for run in (a, b))
    where, key = ["source", "protocol", "model"], ["content", "run"]
    theirs = dict(tuple(second.groupby(where, sort=False)))
    rows = []
    for place, group in first.groupby(where, sort=False):
        if place not in theirs:
            continue
        both = group.merge(theirs[place][key], on=key)[key].drop_duplicates()
        if both.empty:
            continue
        before, after = (side.merge(both, on=key) for side in (group, theirs[place]))
        ids = dict(zip(before["content"], before["question_id"], strict=True))
        after = after.assign(question_id=after["content"].map(ids))
        scores = score_responses(pd.concat([before.assign(model="base"), after.assign(model="medrefl")]))
        baseline, other = scores.to_dict("records")
        named = dict(zip(where, place, strict=True))
        rows.append({**other, **named, "accuracy_first": baseline["accuracy"]})
    if not rows:
        raise MedReflError(f"{a} and {b}: no question that both were asked by the same protocol, expected some")
    return pd.DataFrame(rows)
