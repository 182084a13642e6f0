"""Questions from the clinic, a file or a hub dataset, in one shape.

Rows are read as published. Options come as {letter: text}, as a list of texts, as a list of {key, value}, as lettered
lines, or as columns (``opa``, ``option_a``, ``A``, ``option1``). The gold answer comes as a letter, as the right
option's text, or as a position (``gold`` decides from where positions count). PubMedQA's shape (a context, and yes, no
or maybe) becomes a question with these three options and its context before the stem. A row that is no question is a
fault with its file and line, and a file with faults is refused.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import LETTERS, Question
from medrefl_utils.core.schemas import QUESTIONS
from medrefl_utils.exam.exam_files import READERS, Row, has_typed_cells, hub_rows, read_rows
from medrefl_utils.exam.gold import GOLD_FIELDS, OPTION_COLUMN, Draft, GoldReader, bare_key, check_answer_base, claim_of
from medrefl_utils.exam.lint import content_key

# Our names -> names in published files. The first that is present wins, exact case first.
_FIELDS: dict[str, tuple[str, ...]] = {
    "question_id": ("question_id", "id", "idx", "problem_id"),
    "stem": ("stem", "question", "qtext", "question_text", "problem_text"),
    "context": ("context", "contexts"),
    "options": ("options", "choices", "option", "answers"),
    "gold": GOLD_FIELDS,
    "source": ("source",),
    "split": ("split",),
}
_YES_NO_MAYBE = {"A": "yes", "B": "no", "C": "maybe"}
_GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_OPTION_KEYS, _OPTION_TEXTS = ("key", "letter", "label", "aid", "id"), ("value", "text", "content", "atext")
_OPTION_LINE = re.compile(r"\s*\(?([A-Za-z])(?:[).:\uff0e\u3001\uff1a]\s*|\s+)(.*\S)\s*")
_LONGEST = 200_000  # characters of a stem or an option: about 50,000 tokens, more than an exam asks anyone to read

Fields = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Rows:
    """A source as read: its questions and its faulty rows, each with the row's number (in a text file its line).

    ``numbering`` says, for each field of numeric gold answers, from where they count and why.
    """

    label: str
    questions: list[tuple[int, Question]]
    faults: list[tuple[int, str]]
    numbering: tuple[str, ...] = ()


def read_questions(
    source: str,
    split: str = "",
    fields: Fields | None = None,
    where: Fields | None = None,
    config: str | None = None,
    answer_base: int | str = "auto",
) -> Rows:
    """Read every row of a file, a folder or a hub dataset as a question, or as a fault that says what is wrong.

    Args:
        source: a .jsonl, .json, .parquet, .csv or .tsv file; a folder or id that ``datasets.load_dataset`` knows.
        split: a hub dataset's split; rows of a file that name another are left out.
        fields: our names (question_id, stem, context, options, gold, source, split) -> the file's, where they differ;
            ``options`` may be a list of columns, one per option.
        where: the file's names -> the value, or values, that a row must have to be read.
        config: a hub dataset's configuration.
        answer_base: where numeric gold answers count from: 0, 1, or auto, which decides from all rows and makes a
            fault of each row where it cannot know.

    Raises:
        MedReflError: where there is nothing to read.
    """
    base = check_answer_base(answer_base)
    if unknown := set(fields or {}) - set(_FIELDS):
        raise MedReflError(f"{source}: fields names {sorted(unknown)[0]!r}, expected some of {', '.join(_FIELDS)}")
    rows, label = _rows_of(source, split, config)
    reader = GoldReader(base, typed=has_typed_cells(source))
    read = _questions_of(rows, source, label, split, fields, where, reader)
    if not read.questions and not read.faults:
        raise MedReflError(f"{source}: no question in it{_wanted(split, where)}, expected at least one")
    return read


def load_questions(
    source: str,
    split: str = "",
    limit: int | None = None,
    offset: int = 0,
    seed: int = 0,
    fields: Fields | None = None,
    where: Fields | None = None,
    config: str | None = None,
    answer_base: int | str = "auto",
) -> list[Question]:
    """Return questions ``offset`` to ``offset + limit`` of a source, in its own order.

    Args:
        source: "clinic", or as for ``read_questions``.
        split: "train" or "test" for the clinic; else as for ``read_questions``.
        limit: number of questions; None takes all (the clinic needs a number).
        offset: number of questions to skip.
        seed: the clinic's seed.
        fields: as for ``read_questions``, as are ``where``, ``config`` and ``answer_base``.

    Returns:
        Distinct questions. A row that repeats another one's stem, options and gold is left out, with one warning.

    Raises:
        MedReflError: naming the file, the first faulty row and how many more there are.
    """
    if offset < 0 or (limit is not None and limit < 1):
        raise MedReflError(f"{source}: offset {offset} and limit {limit}, expected at least 0 and at least 1")
    if source == "clinic":
        check_answer_base(answer_base)
        return _clinic(split, limit, offset, seed)
    questions = merge_repeats(read_questions(source, split, fields, where, config, answer_base), source)
    chosen = questions[offset : None if limit is None else offset + limit]
    if not chosen:
        raise MedReflError(f"{source}: offset {offset} leaves none of {len(questions)} questions (split {split!r})")
    return chosen


def _rows_of(source: str, split: str, config: str | None) -> tuple[Iterable[Row], str]:
    """Return the rows of a source, and its label."""
    path = Path(source).expanduser()
    known = path.suffix.lower() in READERS
    if path.is_file() and known:
        return read_rows(path), path.stem
    if path.is_file() or (not known and source.startswith((".", "/", "~")) and not path.is_dir()):
        found = f"the suffix {path.suffix!r} is not read" if path.is_file() else "no such file"
        raise MedReflError(f"{source}: {found}, expected {', '.join(READERS)}")
    if known or not source:
        raise MedReflError(f"{source or 'source is empty'}: no such file")
    return hub_rows(source, split, config), path.name if path.is_dir() else source


def _questions_of(
    rows: Iterable[Row],
    source: str,
    label: str,
    split: str,
    fields: Fields | None,
    where: Fields | None,
    reader: GoldReader,
) -> Rows:
    """Read rows in two passes: all of them, then their gold answers, whose base only the whole file can tell."""
    drafts: list[Draft] = []
    faults: list[tuple[int, str]] = []

    def fault(number: int, error: Exception) -> None:
        faults.append((number, " ".join(str(error).split())[:300]))

    for number, row in rows:
        try:
            if isinstance(row, Exception):
                raise row
            if all(_is_among(row, name, wanted, source) for name, wanted in (where or {}).items()):
                drafts.append(_draft(number, row, fields))
        except ValueError as error:
            fault(number, error)
    reader.look_at(drafts)
    questions = []
    for draft in drafts:
        try:
            question = _question_of(draft, reader.gold_of(draft), label, split, fields)
            if not split or question.split == split:
                questions.append((draft.number, question))
        except ValueError as error:
            fault(draft.number, error)
    return Rows(label, questions, sorted(faults), tuple(reader.describe()))


def _is_among(row: Mapping[str, Any], name: str, wanted: str | Sequence[str], source: str) -> bool:
    if name not in row:
        raise MedReflError(f"{source}: where names {name!r}, expected one of {', '.join(map(str, row))}")
    return str(row[name]) in ([wanted] if isinstance(wanted, str) else wanted)


def _wanted(split: str, where: Fields | None) -> str:
    return "".join(f" ({name} {value!r})" for name, value in {"split": split, **(where or {})}.items() if value)


def _clinic(split: str, limit: int | None, offset: int, seed: int) -> list[Question]:
    # Imported here: reading a file needs no exam to be made.
    from medrefl_utils.exam.clinic import make_exam

    if limit is None:
        raise MedReflError("clinic: n_questions 0 (all) has no end here, expected a number of questions")
    return make_exam(n=limit, seed=seed, split=split or "test", offset=offset)


# --- rows ------------------------------------------------------------------------------------------------------------


def merge_repeats(read: Rows, where: str) -> list[Question]:
    """Return the questions without repeats.

    Args:
        read: all rows of a source.
        where: the source, for messages.

    Raises:
        MedReflError: a faulty row, two rows with one id, or two rows with the same question and another gold answer.
    """
    found: dict[str, tuple[Question, int]] = {}
    seen: dict[Any, tuple[Question, int]] = {}
    faults = list(read.faults)
    repeated = 0
    for number, question in read.questions:
        other, at = seen.setdefault(content_key(question), (question, number))
        if at != number and _fold_gold(other) == _fold_gold(question):
            repeated += 1
        elif at != number:
            faults.append(
                (number, f"gold is {question.gold!r}, but row {at} has the same question with {other.gold!r}")
            )
        elif question.question_id in found:
            faults.append(
                (number, f"id {question.question_id!r} is already the id of row {found[question.question_id][1]}")
            )
        else:
            found[question.question_id] = question, number
    total = len(read.questions) + len(read.faults)
    if faults:
        more = f" (and {len(faults) - 1} more faulty rows of {total})" if len(faults) > 1 else ""
        number, message = min(faults)
        raise MedReflError(f"{where}:{number}: {message}{more}")
    if repeated:
        warnings.warn(f"{where}: {repeated} of {total} rows repeat a question and are left out", stacklevel=3)
    return [question for question, _ in found.values()]


def _fold_gold(question: Question) -> str:
    return "".join(question.options[question.gold].casefold().split())


def question_from_row(
    row: Mapping[str, Any],
    label: str = "",
    split: str = "",
    fields: Fields | None = None,
    answer_base: int | str = "auto",
) -> Question:
    """Return one row as a question; ValueError says what is wrong with it. Its numbers are judged by this row alone."""
    reader = GoldReader(check_answer_base(answer_base))
    draft = _draft(1, row, fields)
    reader.look_at([draft])
    return _question_of(draft, reader.gold_of(draft), label, split, fields)


def ungraded_question(number: int, row: Mapping[str, Any], label: str = "") -> Question:
    """Return one row as a question with an empty gold letter, for a comparison of texts; ValueError as above."""
    return _question_of(_draft(number, row, None), "", label, "", None)


def _draft(number: int, row: Mapping[str, Any], fields: Fields | None) -> Draft:
    """Return a row with its options, its text checked, and what each gold field says."""
    if isinstance(row.get("question"), Mapping):  # AllenAI's own files: stem and choices lie within
        row = {**{name: value for name, value in row.items() if name != "question"}, **row["question"]}
    stem = _field(row, "stem", fields)
    if stem is None:
        raise ValueError(f"no stem, expected it under {' or '.join(_FIELDS['stem'][:2])}; found {_names(row)}")
    if not isinstance(stem, str) or not stem.strip():
        raise ValueError("stem is empty" if isinstance(stem, str) else "stem is not text")
    claimed = _gold_fields(row, fields)
    given = _field(row, "options", fields)
    if given is None and all(name in row for name in _GPQA):
        given, claimed = [row[name] for name in _GPQA], {_GPQA[0]: row[_GPQA[0]]}
    if given is None and _option_columns(row) is None and any(_is_yes_no_maybe(value) for value in claimed.values()):
        given = _YES_NO_MAYBE
    options, keys = _options(given, row)
    for name, text in {"stem": stem, **{f"option {letter}": text for letter, text in options.items()}}.items():
        if len(text) > _LONGEST:
            raise ValueError(f"{name} has {len(text):,} characters, expected at most {_LONGEST:,}")
    return Draft(number, row, options, [claim_of(name, value, options, keys) for name, value in claimed.items()])


def _question_of(draft: Draft, gold: str, label: str, split: str, fields: Fields | None) -> Question:
    row, options = draft.row, draft.options
    stem = _field(row, "stem", fields)
    if context := _context(_field(row, "context", fields)):
        stem = f"{context}\n\n{stem}"
    if len(stem) > _LONGEST:
        raise ValueError(f"stem has {len(stem):,} characters, expected at most {_LONGEST:,}")
    own = _field(row, "question_id", fields)
    content = json.dumps([stem, list(options.items())])  # ASCII, so that any text has a hash
    try:
        "".join((stem, *options.values())).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a surrogate pair, which no file can keep") from None
    question = Question(
        question_id=str(own) if own not in (None, "") else hashlib.sha256(content.encode()).hexdigest()[:16],
        stem=stem,
        options=options,
        gold=gold,
        source=str(_field(row, "source", fields) or label),
        split=str(_field(row, "split", fields) or split),
    )
    is_gpqa = gold and "options" not in (fields or {}) and all(name in row for name in _GPQA)
    return with_shuffled_options(question, seed=0) if is_gpqa else question  # its own order has the right answer first


def with_shuffled_options(question: Question, seed: int) -> Question:
    """Return the question with its options in an order drawn from ``seed`` and its id; the gold letter follows."""
    digest = hashlib.sha256(f"{seed}\0{question.question_id}".encode()).digest()
    order = list(question.options)
    random.Random(digest).shuffle(order)
    options = dict(zip(question.options, (question.options[letter] for letter in order), strict=True))
    return replace(question, options=options, gold=list(question.options)[order.index(question.gold)])


def _field(row: Mapping[str, Any], name: str, fields: Fields | None) -> Any:
    theirs = (fields or {}).get(name, _FIELDS[name])
    if name == "options" and name in (fields or {}) and not isinstance(theirs, str):
        return [row.get(column) for column in theirs]
    if name in ("source", "split"):  # a column "Source" may hold a web address
        return row.get(theirs if isinstance(theirs, str) else theirs[0])
    return next(iter(_present(row, (theirs,) if isinstance(theirs, str) else theirs).values()), None)


def _present(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a row that have one of these names and a value, exact names before others in case."""
    found = {name: row[name] for name in names if row.get(name) is not None}
    if len(found) < len(names):
        wanted = {name.casefold() for name in names} - {name.casefold() for name in found}
        found |= {
            name: value
            for name, value in row.items()
            if isinstance(name, str) and value is not None and name not in found and name.casefold() in wanted
        }
    return found


def _gold_fields(row: Mapping[str, Any], fields: Fields | None) -> dict[str, Any]:
    """Return column -> what it says of the gold answer; only the column that ``fields`` names, where it names one."""
    names = (fields or {}).get("gold", GOLD_FIELDS)
    found = _present(row, (names,) if isinstance(names, str) else names)
    return {name: value for name, value in found.items() if value == value and not (value == "" or value == [])}


def _is_yes_no_maybe(given: Any) -> bool:
    return isinstance(given, str) and given.strip().lower() in _YES_NO_MAYBE.values()


def _names(row: Mapping[str, Any]) -> str:
    names = ", ".join(map(str, row))
    return (names if len(names) <= 100 else f"{names[:99]}…") or "nothing"


def _context(given: Any) -> str:
    """Return PubMedQA's abstract: a text, a list of them, or an object that holds the list."""
    if isinstance(given, Mapping):
        given = given.get("contexts")
    if isinstance(given, (list, tuple)):
        return "\n".join(str(text).strip() for text in given)
    return given.strip() if isinstance(given, str) else ""


def _options(given: Any, row: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return {letter: text}, and {key as published, in capitals: letter}."""
    if isinstance(given, str):
        given = _parsed_options(given)
    if given is None:
        given = _option_columns(row)
    pairs = [(key, text) for key, text in _option_pairs(given) if text is not None and text == text]  # NaN: no cell
    letters = _letters_of([key for key, _ in pairs])
    options: dict[str, str] = {}
    for letter, (_, text) in zip(letters, pairs, strict=True):
        if letter in options:
            raise ValueError(f"option {letter} is given twice")
        if isinstance(text, (Mapping, list, tuple)):
            raise ValueError(f"option {letter} is not text")
        options[letter] = text if isinstance(text, str) else str(text)
    if len(options) < 2:
        raise ValueError(f"{len(options)} option{'' if len(options) == 1 else 's'}, expected at least two")
    return options, {bare_key(key): letter for letter, (key, _) in zip(letters, pairs, strict=True)}


def _option_pairs(given: Any) -> list[tuple[Any, Any]]:
    """Return (key, text) of each option; a list without keys is lettered in order."""
    if isinstance(given, Mapping) and {"text", "label"} <= set(given) and isinstance(given["text"], (list, tuple)):
        return list(zip(given["label"], given["text"], strict=False))  # ARC
    if isinstance(given, Mapping):
        return list(given.items())
    if not isinstance(given, (list, tuple)):
        raise ValueError("no options")
    if given and all(isinstance(item, Mapping) for item in given):
        pairs = [(_first(item, _OPTION_KEYS), _first(item, _OPTION_TEXTS)) for item in given]
        if any(key is not None for key, _ in pairs):
            return pairs
        given = [text for _, text in pairs]
    if given and all(isinstance(item, tuple) and len(item) == 2 for item in given):
        return list(given)  # an Arrow map
    if len(given) > len(LETTERS):
        raise ValueError(f"{len(given)} options, expected at most {len(LETTERS)}")
    return list(zip(LETTERS, given, strict=False))


def _first(item: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((item[name] for name in names if name in item), None)


def _letters_of(keys: Sequence[Any]) -> list[str]:
    """Return the letter of each key. Numbers in order, and letters of another alphabet, become A, B, C, ..."""
    bare = [bare_key(key) for key in keys]
    numbers = [str(number) for number in range(len(bare) + 1)]
    other = all(len(key) == 1 and key.isalpha() and not key.isascii() for key in bare)
    if len(bare) <= len(LETTERS) and len(bare) > 1 and (bare in (numbers[1:], numbers[:-1]) or other):
        return list(LETTERS[: len(bare)])
    for key, letter in zip(keys, bare, strict=True):
        if len(letter) != 1 or letter not in LETTERS:
            raise ValueError(f"option {key!r}, expected a letter A to Z")
    return bare


def _parsed_options(text: str) -> Any:
    """Return a cell of JSON, or lines that begin with A, B, C and so on."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        lines = [_OPTION_LINE.fullmatch(line) for line in text.split("\n") if line.strip()]
        letters = "".join(line[1].upper() if line else "?" for line in lines)
        if len(lines) < 2 or letters != LETTERS[: len(lines)]:
            raise ValueError("options is text that is neither JSON nor lines from A on") from None
        return {line[1]: line[2] for line in lines if line}


def _option_columns(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return {letter or number: text} of the columns of one naming scheme, which has A and B, or 1 and 2."""
    schemes: dict[str, dict[str, Any]] = {}
    for name, value in row.items():
        if match := OPTION_COLUMN.fullmatch(str(name)):
            schemes.setdefault(match[1].lower(), {}).setdefault(match[2].upper(), value)
    if "P" not in schemes.get("", {}):
        schemes.get("", {}).pop("Q", None)  # a short name of the stem
    for found in schemes.values():
        if {"A", "B"} <= set(found) or {"1", "2"} <= set(found) or {"0", "1"} <= set(found):
            numbers = not {"A", "B"} <= set(found)
            return {key: found[key] for key in sorted(found, key=lambda k: (len(k), k)) if key.isdigit() == numbers}
    return None


# --- tables ----------------------------------------------------------------------------------------------------------


def questions_table(questions: list[Question]) -> pa.Table:
    """Return the questions as a table with the columns of ``schemas.QUESTIONS``."""
    columns = {name: [getattr(question, name) for question in questions] for name in QUESTIONS.names}
    columns["options"] = [list(question.options.items()) for question in questions]
    return pa.table(columns, schema=QUESTIONS)


def questions_from_table(frame: pd.DataFrame | pa.Table) -> list[Question]:
    """Return the questions of a table with the columns of ``schemas.QUESTIONS``, in its order."""
    table = (
        frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, schema=QUESTIONS, preserve_index=False)
    )
    return [Question(**{**row, "options": dict(row["options"])}) for row in table.select(QUESTIONS.names).to_pylist()]
