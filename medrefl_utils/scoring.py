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
from rich.table import Table

from medrefl_utils.answers import extract_answer
from medrefl_utils.evaluation import identity, response_row
from medrefl_utils.headline import gain_text, p_text
from medrefl_utils.lint import Finding, content_key
from medrefl_utils.questions import Rows, question_of, read_rows
from medrefl_utils.records import RESPONSES, MedReflError, Question, RunFiles
from medrefl_utils.statistics import Interval, rates, score_responses
from medrefl_utils.store import read_table

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
            row.get("content", identity(q)["content"]) != identity(q)["content"] for row, q in _zip(rows, found)
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
        return question_of({"stem": question.stem, **row, "question_id": question.question_id})
    except ValueError as error:
        raise MedReflError(f"{where}: {error}") from None


def _said(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """The questions that the rows hold, if they do."""
    try:
        return [question_of(row) for row in rows]
    except ValueError:
        return []


_RATES = {
    "accuracy": "strict: unreadable is wrong",
    "accuracy_judged": "strict, a judge reads what the rules cannot",
    "accuracy_published": "as published: unreadable left out",
    "unreadable": "unreadable",
    "conflict": "conflict",
}


def rates_table(responses: pd.DataFrame) -> Table:
    """Strict and published-style accuracy, unreadable and conflicting answers, with 95% intervals."""
    table = Table(title=f"{responses['source'].iloc[0]}: percent with 95% intervals")
    table.add_column("")
    columns = []
    for (model, protocol), group in responses.groupby(["model", "protocol"], sort=False):
        table.add_column(model if protocol == "given" else f"{model}, {protocol}", justify="right", overflow="fold")
        found = rates(group)
        shown = [_percent(found.get(n)) for n in _RATES]
        columns.append([*shown, f"{group['question_id'].nunique():,}", f"{group['run'].nunique():,}"])
    for name, *cells in zip([*_RATES.values(), "questions", "runs"], *columns, strict=True):
        table.add_row(name, *cells)
    return table


def findings_table(name: str, findings: Sequence[Finding]) -> Table:
    """What lint found: check, severity, how many rows and which."""
    table = Table(title=f"{name}: {'nothing found' if not findings else 'findings'}")
    for column in ("check", "severity", "rows", "which", "meaning"):
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    for finding in findings:
        which = ", ".join(map(str, finding.rows[:8])) + (", …" if len(finding.rows) > 8 else "")
        note = f" ({finding.note})" if finding.note else ""
        style = "red" if finding.severity == "error" else None
        table.add_row(
            finding.check, finding.severity, f"{len(finding.rows):,}", which, f"{finding.meaning}{note}", style=style
        )
    return table


def comparison(a: Path, b: Path) -> Table:
    """Two runs' scores on the questions that both were asked, paired: one row a benchmark, protocol and model.

    Raises:
        MedReflError: a run without responses, or two that share no benchmark, protocol and model.
    """
    first, second = (read_table(RunFiles(run).responses, RESPONSES) for run in (a, b))
    table = Table(title=f"{b} against {a}: strict accuracy, percent; questions that both were asked")
    columns = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    names = ("benchmark", "protocol", "model", *columns, "gain, points [95%]", "McNemar p", "detectable", "n")
    for name in names:
        table.add_column(name, justify="left" if name in names[:3] else "right", no_wrap=True)
    where = ["source", "protocol", "model"]
    pairs = dict(tuple(second.groupby(where, sort=False)))
    for place, group in first.groupby(where, sort=False):
        if place not in pairs:
            continue
        both = group.merge(pairs[place][["content", "run"]], on=["content", "run"])[
            ["content", "run"]
        ].drop_duplicates()
        if both.empty:
            continue
        before, after = (side.merge(both, on=["content", "run"]) for side in (group, pairs[place]))
        ids = dict(zip(before["content"], before["question_id"], strict=True))
        after = after.assign(question_id=after["content"].map(ids))
        scores = score_responses(pd.concat([before.assign(model="base"), after.assign(model="medrefl")]))
        base, other = (row for row in scores.itertuples())
        table.add_row(
            *place,
            f"{100 * base.accuracy:.1f}",
            f"{100 * other.accuracy:.1f}",
            gain_text(other),
            p_text(other.mcnemar_p),
            f"{100 * other.detectable:.1f}",
            f"{other.n:,}",
        )
    if not table.rows:
        raise MedReflError(f"{a} and {b}: no question that both were asked by the same protocol, expected some")
    return table


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
