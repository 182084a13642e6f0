"""Score written responses, ours or others', without a model; and compare two runs.

A response is tied to its question by its id, by the question's text and options, or by the text alone. Where a row has
an id and a text, both must be the same question's. Where a file has neither, row n answers question n, and all gold
letters must agree with the benchmark's. ``response_logs`` reads the files.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Answer, Question
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import RESPONSES
from medrefl_utils.core.store import read_table
from medrefl_utils.evaluation.response_logs import LOG_LIKELIHOOD, ResponseRows, read_response_rows
from medrefl_utils.evaluation.responses import question_identity, response_row
from medrefl_utils.evaluation.statistics import score_responses
from medrefl_utils.exam.answers.reader import extract_answer
from medrefl_utils.exam.benchmarks import read_benchmark
from medrefl_utils.exam.clinic import make_exam
from medrefl_utils.exam.lint import content_key
from medrefl_utils.exam.questions import Rows, question_from_row
from medrefl_utils.exam.word_splitting import words

_RESPONSE = ("response", "reason", "output", "completion", "generated_text", "prediction", "text")
_GOLD = ("gold", "ideal_answer", "answer_idx", "label")
_GOLD_OR_ANSWER = (*_GOLD, "answer")  # beside an id, ``answer`` may be the model's
_ID = ("question_id", "id")
_STEM = ("stem", "question", "Question", "question_text", "prompt")
_WHOLE_PROMPT = 20  # characters from which a stem inside a longer text identifies its question
_CLINIC_ID = re.compile(r"clinic-(\d+)-(train|test)-(\d{6,9})")
_STATED: dict[str, type] = {"model": str, "protocol": str, "run": int, "stop": str}
_STATED |= {"n_tokens": int, "seconds": float, "temperature": float, "top_p": float}


def read_responses(
    path: Path, benchmark: Rows, response_field: str | None = None, *, thinking_open: bool = False
) -> pd.DataFrame:
    """Read the responses of a file or a folder, tie each to its question, and read its answer.

    Args:
        path: .jsonl, .json, .parquet, .csv or .tsv; a run's ``responses/``; what lm-eval's ``--log_samples`` writes; or
            a log of Inspect (.eval, .json).
        benchmark: the questions, all rows of them.
        response_field: the column with the response's text; None takes the first present one of response, reason,
            output, completion, generated_text, prediction, text.
        thinking_open: the chat template opened the thinking, so that every response begins inside it.

    Returns:
        Rows with the columns of ``schemas.RESPONSES``; what the file does not state is null. A question that several
        rows of the benchmark have is one question, asked in as many runs. A warning says what was left out of a log:
        samples without a response, and questions that are not in the benchmark.

    Raises:
        MedReflError: no such column, or rows that cannot be tied to the benchmark's questions, with the count.
    """
    found = read_response_rows(path)
    rows = _of_benchmark(found, benchmark)
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
    for number, (row, question) in enumerate(
        zip(rows, _tied(rows, benchmark, path, found.from_log), strict=True), start=1
    ):
        question = first_with[content_key(question)] if "options" not in row else question
        stated = {name: _stated(row, name, kind, f"{path}: row {number}") for name, kind in _STATED.items()}
        model, protocol = stated["model"] or path.stem, stated["protocol"] or "given"
        place = (model, protocol, question.question_id)
        run = stated["run"] if stated["run"] is not None else asked[place]
        asked[place] += 1
        response = _stated(row, response_field, str, f"{path}: row {number}")
        if found.from_log and "choice" in row:
            answer = Answer(row["choice"], LOG_LIKELIHOOD, row["choice"])
        else:
            answer = extract_answer(response, question.options, thinking_open=thinking_open)
        table.append(
            stated
            | response_row(question, answer)
            | {"model": model, "protocol": protocol, "run": run, "response": response, "source": benchmark.label}
        )
    if found.left_out:
        left_out = "; ".join(f"{n:,} left out: {why}" for why, n in found.left_out.items())
        warnings.warn(f"{path}: {len(table):,} responses read, {left_out}", stacklevel=2)
    return pd.DataFrame(table, columns=RESPONSES.names)


def _of_benchmark(found: ResponseRows, benchmark: Rows) -> list[dict[str, Any]]:
    """Return the rows whose question is in the benchmark: logs may hold other tasks. Plain rows are all kept."""
    if not found.from_log:
        return found.rows
    stems = _Stems(benchmark)
    rows = [row for row in found.rows if stems.questions_of(row["question"])]
    if rows and len(rows) < len(found.rows):
        found.left_out[f"questions that are not in {benchmark.label}"] += len(found.rows) - len(rows)
    return rows or found.rows


def clinic_questions(path: Path) -> Rows:
    """Generate the clinic's questions that the ids of a responses' file name; its first 1,000 if there are no ids.

    Raises:
        MedReflError: a row with another id.
    """
    found = read_response_rows(path)
    ids = {str(next((row[name] for name in _ID if row.get(name)), "")): None for row in found.rows}
    if ids.keys() == {""} or (found.from_log and not any(map(_CLINIC_ID.fullmatch, ids))):
        return read_benchmark("clinic")
    questions = []
    for question_id in ids:
        match = _CLINIC_ID.fullmatch(question_id)
        if match is None:
            raise MedReflError(f"{path}: the id {question_id!r} is not one of the clinic, such as clinic-0-test-000007")
        questions += make_exam(1, int(match[1]), match[2], int(match[3]))
    return Rows("clinic", list(enumerate(questions, start=1)), [])


def _stated(row: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """Return what a row says under ``name``, None where it says nothing; numbers may be text, as in a CSV file."""
    value = row.get(name)
    if value is None or (value == "" and kind is not str):
        return None
    try:
        if kind is str and isinstance(value, str):
            value.encode()  # half a surrogate pair, which JSON can hold, is not text
            return value
        if kind is not str and isinstance(value, int | float | str):
            return kind(value)
    except (ValueError, OverflowError):
        pass
    raise MedReflError(f"{where}: {name} is {str(value)[:50]!r}, expected {'text' if kind is str else 'a number'}")


def _tied(rows: Sequence[Mapping[str, Any]], benchmark: Rows, path: Path, from_log: bool) -> list[Question]:
    """Return the question of each row, with the options that the row says were shown."""
    stems = _Stems(benchmark)
    if from_log and all(stems.questions_of(row["question"]) for row in rows):  # the ids are the log's own
        found = _by_text(rows, benchmark, stems, path)
        _check_gold(rows, found, path, f"tied to {benchmark.label} by the question's text", _GOLD)
        return found
    key = next((name for name in _ID if all(row.get(name) not in (None, "") for row in rows)), None)
    by_id = {question.question_id: question for _, question in benchmark.questions}
    if key and (unknown := sum(str(row[key]) not in by_id for row in rows)) < len(rows):
        if unknown:
            raise MedReflError(f"{path}: {unknown} of {len(rows)} ids are not in {benchmark.label}, expected none")
        found = [by_id[str(row[key])] for row in rows]
        _check_content(rows, found, path)
        found = [_as_shown(row, question, f"{path}: row {n}") for n, (row, question) in enumerate(_zip(rows, found), 1)]
        _check_gold(rows, found, path, f"tied to {benchmark.label} by id", _GOLD)
        return found
    if shown := _full_questions(rows):
        known = {content_key(question) for _, question in benchmark.questions}
        if others := sum(content_key(question) not in known for question in shown):
            raise MedReflError(f"{path}: {others} of {len(rows)} questions are not in {benchmark.label}, expected none")
        return shown
    if all(_stem_of(row) for row in rows):
        found = _by_text(rows, benchmark, stems, path)
        _check_gold(rows, found, path, f"tied to {benchmark.label} by the question's text", _GOLD)
        return found
    if len(rows) != len(benchmark.questions) or benchmark.faults:
        n = len(benchmark.questions) + len(benchmark.faults)
        raise MedReflError(
            f"{path}: {len(rows):,} rows without ids and {n:,} rows of {benchmark.label}, expected as many"
        )
    found = [question for _, question in benchmark.questions]
    if not all(_gold_of(row, _GOLD_OR_ANSWER) is not None for row in rows):
        raise MedReflError(f"{path}: rows have no id, no question and no gold letter, expected one of them")
    _check_gold(rows, found, path, f"tied to {benchmark.label} by line", _GOLD_OR_ANSWER)
    return found


def _zip(rows: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> zip:
    return zip(rows, questions, strict=True)


def _check_content(rows: Sequence[Mapping[str, Any]], found: Sequence[Question], path: Path) -> None:
    """Refuse rows whose id is a question's and whose content, or whose question's text, is another question's."""
    others = [
        number
        for number, (row, question) in enumerate(_zip(rows, found), start=1)
        if row.get("content", question_identity(question)["content"]) != question_identity(question)["content"]
        or not _is_about(_stem_of(row), question)
    ]
    if others:
        text = _stem_of(rows[others[0] - 1])
        raise MedReflError(
            f"{path}: {len(others)} of {len(rows)} responses have the id of a question with another text (the first is"
            f" row {others[0]}{f', {text[:60]!r}' if text else ''}): refused, since they answer other questions"
        )


def _stem_of(row: Mapping[str, Any]) -> str:
    return next((row[name] for name in _STEM if isinstance(row.get(name), str) and row[name].strip()), "")


def _is_about(text: str, question: Question) -> bool:
    """Return whether a text is the question's stem or a whole prompt that holds it. An empty text also counts."""
    said, stem = " ".join(words(text)), " ".join(words(question.stem))
    return not said or said == stem or (len(stem) >= _WHOLE_PROMPT and f" {stem} " in f" {said} ")


class _Stems:
    """The questions of a benchmark by their stem."""

    def __init__(self, benchmark: Rows) -> None:
        self.by_stem: dict[str, dict[Any, Question]] = {}
        for _, question in benchmark.questions:
            self.by_stem.setdefault(" ".join(words(question.stem)), {}).setdefault(content_key(question), question)
        self.found: dict[str, str] = {}

    def questions_of(self, text: str) -> list[Question]:
        """Return the questions with this stem, or with the last stem in a whole prompt, after its examples."""
        if text not in self.found:
            said = " ".join(words(text))
            if said not in self.by_stem:
                padded = f" {said} "
                inside = [stem for stem in self.by_stem if len(stem) >= _WHOLE_PROMPT and f" {stem} " in padded]
                said = max(inside, key=lambda stem: (padded.rfind(f" {stem} ") + len(stem), len(stem)), default="")
            self.found[text] = said
        return list(self.by_stem.get(self.found[text], {}).values())


def _by_text(rows: Sequence[Mapping[str, Any]], benchmark: Rows, stems: _Stems, path: Path) -> list[Question]:
    """Return the question of each row by its text, and by its options if the row has some: only one may fit."""
    found = [stems.questions_of(_stem_of(row)) for row in rows]
    if unknown := sum(not questions for questions in found):
        raise MedReflError(f"{path}: {unknown} of {len(rows)} questions are not in {benchmark.label}, expected none")
    found = [_with_options_of(row, questions) for row, questions in zip(rows, found, strict=True)]
    if several := [number for number, questions in enumerate(found, start=1) if len(questions) > 1]:
        raise MedReflError(
            f"{path}: the text of {len(several)} of {len(rows)} rows (the first is row {several[0]}) is that of several"
            f" questions of {benchmark.label}; add their ids or their options"
        )
    return [_as_shown(row, of[0], f"{path}: row {n}") for n, (row, of) in enumerate(zip(rows, found, strict=True), 1)]


def _with_options_of(row: Mapping[str, Any], questions: list[Question]) -> list[Question]:
    """Return those of the questions that have the options of the row; all if none fits."""
    if len(questions) == 1 or not isinstance(row.get("options"), Mapping):
        return questions
    shown = content_key(Question("", questions[0].stem, row["options"], ""))
    return [question for question in questions if content_key(question) == shown] or questions


def _check_gold(
    rows: Sequence[Mapping[str, Any]], found: Sequence[Question], path: Path, how: str, names: Sequence[str]
) -> None:
    agree = max(
        sum(_agrees(_gold_of(row, names), question, base) for row, question in _zip(rows, found)) for base in (0, 1)
    )
    if agree < len(rows):
        raise MedReflError(
            f"{path}: {how}, the gold letters agree on {agree:,} of {len(rows):,} rows, expected all: refused, since"
            " these responses answer other questions, or other options"
        )


def _agrees(gold: str | None, question: Question, base: int) -> bool:
    """Return whether a row's gold answer (letter, text, position from ``base``) is the question's; None: not said."""
    if gold is None or (len(gold) == 1 and gold.isalpha()):
        return gold is None or gold.upper() == question.gold
    if gold.casefold() == question.options[question.gold].strip().casefold():
        return True
    return gold.isascii() and gold.isdigit() and gold == str(list(question.options).index(question.gold) + base)


def _gold_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((str(row[name]).strip() for name in names if row.get(name) not in (None, "", [], {})), None)


def _as_shown(row: Mapping[str, Any], question: Question, where: str) -> Question:
    """Return the question with the row's own options and gold letter, which may have been shuffled."""
    if not row.get("options"):
        return question
    stated = next((row[name] for name in _GOLD if row.get(name)), None)
    gold = stated if isinstance(stated, str) else question.options[question.gold]
    given = {"stem": question.stem, "options": row["options"], "gold": gold, "question_id": question.question_id}
    try:
        shown = question_from_row(given | {name: row[name] for name in ("source", "split") if name in row})
    except ValueError as error:
        raise MedReflError(f"{where}: {error}") from None
    if content_key(shown) != content_key(question):
        raise MedReflError(f"{where}: its options are not those of the question {question.question_id!r}")
    theirs, ours = shown.options[shown.gold], question.options[question.gold]
    if words(theirs) != words(ours):
        raise MedReflError(
            f"{where}: its gold answer is {theirs[:60]!r}, but that of the question {question.question_id!r} is"
            f" {ours[:60]!r}"
        )
    return shown


def _full_questions(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """Return the questions that the rows hold with options and gold answer; none where a row does not."""
    try:
        return [question_from_row(_without_answer(row)) for row in rows]
    except ValueError:
        return []


def _without_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without ``answer``, which may be the model's, where another field is the gold answer."""
    has_gold = any(row.get(name) not in (None, "") for name in _GOLD)
    return {name: value for name, value in row.items() if not (has_gold and name == "answer")}


def compare_runs(a: Path, b: Path) -> pd.DataFrame:
    """Compare two runs' responses on the questions that both were asked, paired.

    Args:
        a: folder of the first run: the baseline.
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
