"""Questions from the clinic, a file or a hub dataset, in one shape; a faulty row stops with its file and line.

Rows are read as published: options as {letter: text}, as a list of texts, as a list of {key, value}, or as columns
``opa``, ``opb``, ...; the gold answer as a letter, as a 0-based index or as the right option's text. PubMedQA's shape
(a context, and yes, no or maybe) is a question with these three options and its context before the stem.
"""

from __future__ import annotations

import csv
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import has_cached_dataset, hub_refusal, is_offline, one_line
from medrefl_utils.core.records import LETTERS, Question
from medrefl_utils.core.schemas import QUESTIONS
from medrefl_utils.exam.lint import content_key

# Our names -> names in published files, the first present wins.
_FIELDS: dict[str, tuple[str, ...]] = {
    "question_id": ("question_id", "id", "idx"),
    "stem": ("stem", "question", "QUESTION"),
    "context": ("context", "contexts", "CONTEXTS"),
    "options": ("options", "choices"),
    "gold": ("gold", "answer_idx", "label", "answer_index", "cop", "final_decision", "answer"),
    "source": ("source",),
    "split": ("split",),
}
_OPTION_COLUMNS = ("op{}", "option_{}", "{}")  # medmcqa's opa; a spreadsheet's option_a or A
_YES_NO_MAYBE = {"A": "yes", "B": "no", "C": "maybe"}
_LONGEST = 200_000  # characters of a stem or an option: about 50,000 tokens, more than an exam asks anyone to read

Row = tuple[int, dict[str, Any] | Exception]


@dataclass(frozen=True)
class Rows:
    """A source as read: its questions and its faulty rows, each with the row's number (a file's line)."""

    label: str
    questions: list[tuple[int, Question]]
    faults: list[tuple[int, str]]


def read_questions(
    source: str,
    split: str = "",
    fields: Mapping[str, str | Sequence[str]] | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
    config: str | None = None,
) -> Rows:
    """Every row of a file, a folder or a hub dataset as a question, or as a fault that says what is wrong with it.

    Args:
        source: a .jsonl, .json, .parquet or .csv file; a folder or id that ``datasets.load_dataset`` knows.
        split: a hub dataset's split; rows of a file that name another are left out.
        fields: our names (question_id, stem, context, options, gold, source, split) -> the file's, where they differ;
            ``options`` may be a list of columns, one an option.
        where: the file's names -> the value, or values, that a row must have to be read.
        config: a hub dataset's configuration.

    Raises:
        MedReflError: where there is nothing to read.
    """
    if unknown := set(fields or {}) - set(_FIELDS):
        raise MedReflError(f"{source}: fields names {sorted(unknown)[0]!r}, expected some of {', '.join(_FIELDS)}")
    path = Path(source).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if path.is_file() and reader is not None:
        rows, label = read_rows(path), path.stem
    elif path.is_file() or (reader is None and source.startswith((".", "/", "~")) and not path.is_dir()):
        found = "not a kind of file that is read" if path.is_file() else "no such file"
        raise MedReflError(f"{source}: {found}, expected {', '.join(_READERS)}")
    elif reader is not None or not source:
        raise MedReflError(f"{source or 'source is empty'}: no such file")
    else:
        rows, label = _hub_rows(source, split, config), path.name if path.is_dir() else source
    read = Rows(label, [], [])
    for number, row in rows:
        try:
            if isinstance(row, Exception):
                raise row
            if all(_is_among(row, name, wanted, source) for name, wanted in (where or {}).items()):
                question = question_from_row(row, label, split, fields)
                if not split or question.split == split:
                    read.questions.append((number, question))
        except ValueError as error:
            read.faults.append((number, " ".join(str(error).split())[:300]))
    if not read.questions and not read.faults:
        raise MedReflError(f"{source}: no question in it{_wanted(split, where)}, expected at least one")
    return read


def load_questions(
    source: str,
    split: str = "",
    limit: int | None = None,
    offset: int = 0,
    seed: int = 0,
    fields: Mapping[str, str | Sequence[str]] | None = None,
    where: Mapping[str, str | Sequence[str]] | None = None,
    config: str | None = None,
) -> list[Question]:
    """Questions ``offset`` to ``offset + limit`` of a source, in its own order.

    Args:
        source: "clinic", or as for ``read_questions``.
        split: "train" or "test" for the clinic; else as for ``read_questions``.
        limit: number of questions; None takes all (the clinic needs a number).
        offset: questions to skip.
        seed: the clinic's seed.
        fields: as for ``read_questions``, as are ``where`` and ``config``.

    Returns:
        Distinct questions. A row that repeats another one's stem, options and gold is left out, with one warning.

    Raises:
        MedReflError: naming the file, the first faulty row and how many more there are.
    """
    if offset < 0 or (limit is not None and limit < 1):
        raise MedReflError(f"{source}: offset {offset} and limit {limit}, expected at least 0 and at least 1")
    if source == "clinic":
        return _clinic(split, limit, offset, seed)
    questions = merge_repeats(read_questions(source, split, fields, where, config), source)
    chosen = questions[offset : None if limit is None else offset + limit]
    if not chosen:
        raise MedReflError(f"{source}: offset {offset} leaves none of {len(questions)} questions (split {split!r})")
    return chosen


def _is_among(row: Mapping[str, Any], name: str, wanted: str | Sequence[str], source: str) -> bool:
    if name not in row:
        raise MedReflError(f"{source}: where names {name!r}, expected one of {', '.join(map(str, row))}")
    return str(row[name]) in ([wanted] if isinstance(wanted, str) else wanted)


def _wanted(split: str, where: Mapping[str, str | Sequence[str]] | None) -> str:
    return "".join(f" ({name} {value!r})" for name, value in {"split": split, **(where or {})}.items() if value)


def _clinic(split: str, limit: int | None, offset: int, seed: int) -> list[Question]:
    # Imported here: reading a file needs no exam to be made.
    from medrefl_utils.exam.clinic import make_exam

    if limit is None:
        raise MedReflError("clinic: n_questions 0 (all) has no end here, expected a number of questions")
    return make_exam(n=limit, seed=seed, split=split or "test", offset=offset)


# --- files -----------------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Row]:
    """One row a line. Lines end at a line feed alone: other line separators occur inside texts."""
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, _parsed(line)


def _parsed(line: bytes) -> dict[str, Any] | Exception:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 at byte {error.start} of the line")
    except ValueError as error:
        return ValueError(f"not JSON ({error})")
    except RecursionError:
        return ValueError("not JSON (nested too deeply)")
    return row if isinstance(row, dict) else ValueError(f"a JSON {type(row).__name__}, expected an object")


def _json_array(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise MedReflError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name .json
            yield from _json_rows(path)
            return
        raise MedReflError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except ValueError as error:
        raise MedReflError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise MedReflError(f"{path}: not JSON (nested too deeply)") from None
    if isinstance(rows, dict) and rows and all(isinstance(row, dict) and "QUESTION" in row for row in rows.values()):
        rows = [{"question_id": key, **row} for key, row in rows.items()]  # PubMedQA's own file
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        yield number, row if isinstance(row, dict) else ValueError(f"a {type(row).__name__}, expected an object")


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise MedReflError(f"{path}: not Parquet ({str(error).splitlines()[0]})") from None
    yield from enumerate(table.to_pylist(), start=1)


def _csv_rows(path: Path) -> Iterator[Row]:
    """Every cell stays text: 0.50 and 007 are options, not numbers. A row's number is the line on which it ends."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    yield reader.line_num, ValueError(f"not {len(reader.fieldnames or ())} cells, as the header has")
                else:
                    yield reader.line_num, {name: cell for name, cell in row.items() if cell != ""}
    except UnicodeDecodeError as error:
        raise MedReflError(f"{path}: not UTF-8 at byte {error.start}") from None
    except csv.Error as error:
        raise MedReflError(f"{path}: not CSV ({error})") from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".json": _json_array,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
}


def read_rows(path: Path) -> Iterator[Row]:
    """(row number, row) of a file, whatever is in it; an exception in place of a row that cannot be read.

    Raises MedReflError where the file is missing, or of a kind that is not read.
    """
    if not path.is_file():
        raise MedReflError(f"{path}: no such file")
    if path.suffix.lower() not in _READERS:
        raise MedReflError(f"{path}: not a kind of file that is read, expected {', '.join(_READERS)}")
    try:
        yield from _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise MedReflError(f"{path}: cannot be read: {error.strerror or error}") from None


# --- the hub ---------------------------------------------------------------------------------------------------------


def is_file(source: str) -> bool:
    """Whether a source is a file, there or not: no folder, and no id of a hub dataset."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        return False
    return path.is_file() or not source or source.startswith((".", "/", "~")) or path.suffix.lower() in _READERS


def check_dataset(name: str) -> None:
    """Raise MedReflError where ``name`` is neither a folder nor a dataset of the hub, or of its cache when offline."""
    if Path(name).is_dir():
        return
    if is_offline() and not has_cached_dataset(name):
        raise MedReflError(f"{name}: no such file, not a dataset in the hub's local cache, and HF_HUB_OFFLINE is set")
    if not is_offline() and (error := hub_refusal("dataset", name)) is not None:
        raise MedReflError(f"{name}: neither a file nor a dataset that the hub gives out ({one_line(error)})")


def _hub_rows(name: str, split: str, config: str | None) -> Iterator[Row]:
    check_dataset(name)
    # Imported here: a file or the clinic needs no datasets.
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, split=split or None)
    except Exception as error:  # its own errors have no common base
        raise MedReflError(f"{name}: {one_line(error.__cause__ or error)}") from None
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            raise MedReflError(f"{name}: split is empty, expected one of {', '.join(map(str, loaded))}")
        loaded = next(iter(loaded.values()))
    yield from enumerate(loaded, start=1)


# --- rows ------------------------------------------------------------------------------------------------------------


def merge_repeats(read: Rows, where: str) -> list[Question]:
    """The questions without repeats; raises MedReflError where a row is faulty or contradicts another."""
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
                (number, f"id {question.question_id!r} is already that of row {found[question.question_id][1]}")
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
    row: Mapping[str, Any], label: str = "", split: str = "", fields: Mapping[str, str | Sequence[str]] | None = None
) -> Question:
    """A row as a question; ValueError says what is wrong with it."""
    fields = fields or {}

    def field(name: str) -> Any:
        theirs = fields.get(name, _FIELDS[name])
        if name == "options" and name in fields and not isinstance(theirs, str):
            return [row.get(column) for column in theirs]
        names = (theirs,) if isinstance(theirs, str) else theirs
        return next((row[theirs] for theirs in names if row.get(theirs) is not None), None)

    stem = field("stem")
    if stem is None:
        raise ValueError(f"no stem, expected it under {' or '.join(_FIELDS['stem'])}; found {_names(row)}")
    if not isinstance(stem, str) or not stem.strip():
        raise ValueError("stem is empty" if isinstance(stem, str) else "stem is not text")
    given, gold = field("options"), field("gold")
    if given is None and isinstance(gold, str) and gold.strip().lower() in _YES_NO_MAYBE.values():
        given, gold = _YES_NO_MAYBE, gold.strip().lower()
    options = _options(given, row)
    gold = _gold(gold, options)
    if context := _context(field("context")):
        stem = f"{context}\n\n{stem}"
    for name, text in {"stem": stem, **{f"option {letter}": text for letter, text in options.items()}}.items():
        if len(text) > _LONGEST:
            raise ValueError(f"{name} has {len(text):,} characters, expected at most {_LONGEST:,}")
    own = field("question_id")
    content = json.dumps([stem, list(options.items())])  # ASCII, so that any text has a hash
    try:
        "".join((stem, *options.values())).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a surrogate pair, which no file can keep") from None
    return Question(
        question_id=str(own) if own not in (None, "") else hashlib.sha256(content.encode()).hexdigest()[:16],
        stem=stem,
        options=options,
        gold=gold,
        source=str(field("source") or label),
        split=str(field("split") or split),
    )


def _names(row: Mapping[str, Any]) -> str:
    names = ", ".join(map(str, row))
    return (names if len(names) <= 100 else f"{names[:99]}…") or "nothing"


def _context(given: Any) -> str:
    """PubMedQA's abstract: a text, a list of them, or an object that holds the list."""
    if isinstance(given, Mapping):
        given = given.get("contexts")
    if isinstance(given, (list, tuple)):
        return "\n".join(str(text).strip() for text in given)
    return given.strip() if isinstance(given, str) else ""


def _options(given: Any, row: Mapping[str, Any]) -> dict[str, str]:
    if isinstance(given, str):  # a CSV cell
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise ValueError("options is text that is not JSON") from None
    if given is None:
        columns = ([form.format(letter) for letter in (*LETTERS.lower(), *LETTERS)] for form in _OPTION_COLUMNS)
        given = next((kept for names in columns if (kept := {n[-1]: row.get(n) for n in names if n in row})), None)
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, (list, tuple)) and given and all(isinstance(item, Mapping) for item in given):
        pairs = [(item.get("key"), item.get("value")) for item in given]
    elif isinstance(given, (list, tuple)) and given and all(isinstance(i, tuple) and len(i) == 2 for i in given):
        pairs = list(given)  # an Arrow map
    elif isinstance(given, (list, tuple)):
        if len(given) > len(LETTERS):
            raise ValueError(f"{len(given)} options, expected at most {len(LETTERS)}")
        pairs = list(zip(LETTERS, given, strict=False))
    else:
        raise ValueError("no options")
    options: dict[str, str] = {}
    for key, text in pairs:
        if text is None or text != text:  # Arrow gives every row the letters that any row has; NaN is a missing cell
            continue
        letter = str(key).strip().upper()
        if len(letter) != 1 or letter not in LETTERS:
            raise ValueError(f"option {key!r}, expected a letter A to Z")
        if letter in options:
            raise ValueError(f"option {letter} is given twice")
        if isinstance(text, (Mapping, list, tuple)):
            raise ValueError(f"option {letter} is not text")
        options[letter] = text if isinstance(text, str) else str(text)
    if len(options) < 2:
        raise ValueError(f"{len(options)} option{'' if len(options) == 1 else 's'}, expected at least two")
    return options


def _gold(given: Any, options: Mapping[str, str]) -> str:
    letters = "".join(options)
    if given is None:
        raise ValueError("no gold answer")
    if isinstance(given, str):
        if (letter := given.strip().upper()) in options:
            return letter
        owners = [letter for letter, text in options.items() if text.strip() == given.strip()]
        if len(owners) == 1:
            return owners[0]
        given = int(given) if given.strip().isascii() and given.strip().isdigit() and len(given) < 4 else given
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(options):
        return list(options)[given]
    raise ValueError(f"gold is {given!r}, expected one of {letters}")


# --- tables ----------------------------------------------------------------------------------------------------------


def questions_table(questions: list[Question]) -> pa.Table:
    """The questions as a table with the columns of ``records.QUESTIONS``."""
    columns = {name: [getattr(question, name) for question in questions] for name in QUESTIONS.names}
    columns["options"] = [list(question.options.items()) for question in questions]
    return pa.table(columns, schema=QUESTIONS)


def questions_from_table(frame: pd.DataFrame | pa.Table) -> list[Question]:
    """The questions of a table, in its order."""
    table = (
        frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, schema=QUESTIONS, preserve_index=False)
    )
    return [Question(**{**row, "options": dict(row["options"])}) for row in table.select(QUESTIONS.names).to_pylist()]
