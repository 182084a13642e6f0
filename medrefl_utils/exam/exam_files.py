"""Rows of a file (JSON lines, JSON, Parquet, CSV, TSV) or of a hub dataset, as published and not yet interpreted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.hub import has_cached_dataset, hub_refusal, is_offline, one_line, refusal_text

Row = tuple[int, dict[str, Any] | Exception]
"""(row number from 1, in a text file its line; the row, or the exception that says why it cannot be read)"""

_SPLITS = ("train", "test", "dev", "val", "valid", "validation")
_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'"}


def read_rows(path: Path) -> Iterator[Row]:
    """Yield (row number, row) of a file; an exception takes the place of a row that cannot be read.

    Raises:
        MedReflError: no such file, a suffix that is not read, or a file that cannot be read at all.
    """
    if not path.is_file():
        raise MedReflError(f"{path}: no such file")
    if path.suffix.lower() not in READERS:
        raise MedReflError(f"{path}: the suffix {path.suffix!r} is not read, expected {', '.join(READERS)}")
    try:
        yield from READERS[path.suffix.lower()](path)
    except OSError as error:
        raise MedReflError(f"{path}: cannot be read: {error.strerror or error}") from None


def is_file(source: str) -> bool:
    """Return whether a source names a file, present or not, rather than a folder or a hub dataset's id."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        return False
    return path.is_file() or not source or source.startswith((".", "/", "~")) or path.suffix.lower() in READERS


def has_typed_cells(source: str) -> bool:
    """Return whether a source tells numbers from text. A CSV or TSV file does not."""
    return Path(source).suffix.lower() not in (".csv", ".tsv")


# --- text files ------------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[Row]:
    # Split at line feeds only: other line separators occur inside texts.
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


def _json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise MedReflError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name .json
            yield from _json_lines(path)
            return
        raise MedReflError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except ValueError as error:
        raise MedReflError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise MedReflError(f"{path}: not JSON (nested too deeply)") from None
    for number, row in enumerate(_rows_of(rows), start=1):
        yield number, row if isinstance(row, dict) else ValueError(f"a {type(row).__name__}, expected an object")


def _rows_of(content: Any) -> list[Any]:
    """Return the rows of a JSON document: an array, rows by id (PubMedQA), or arrays by source (HuatuoGPT-o1)."""
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and content:
        values = content.values()
        if all(isinstance(row, dict) and "QUESTION" in row for row in values):
            return [{"question_id": key, **row} for key, row in content.items()]
        if all(isinstance(rows, list) for rows in values) and any(isinstance(r, dict) for rows in values for r in rows):
            return [_named(row, key) for key, rows in content.items() for row in rows]
    return [content]


def _named(row: Any, key: str) -> Any:
    """Return a row with the name of its array, as its split where the name is that of a split, else as its source."""
    if not isinstance(row, dict) or key == "data":
        return row
    return {"split" if key.lower() in _SPLITS else "source": key, **row}


def _csv_rows(path: Path, separator: str = ",") -> Iterator[Row]:
    """Yield each row with its number, the line on which it ends.

    Every cell stays text: 0.50 and 007 are options, not numbers.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, delimiter=separator)
            _check_separator(path, reader.fieldnames or [])
            for row in reader:
                if None in row or None in row.values():
                    yield reader.line_num, ValueError(f"not {len(reader.fieldnames or ())} cells, as the header has")
                else:
                    yield reader.line_num, {name: cell for name, cell in row.items() if cell != ""}
    except UnicodeDecodeError as error:
        raise MedReflError(f"{path}: not UTF-8 at byte {error.start}") from None
    except csv.Error as error:
        raise MedReflError(f"{path}: not {path.suffix[1:].upper()} ({error})") from None


def _check_separator(path: Path, names: list[str] | Any) -> None:
    if len(names) != 1:
        return
    for separator, name in _SEPARATORS.items():
        if names[0].count(separator) >= 2:
            how = "save it as .tsv" if separator == "\t" else "save it with commas"
            raise MedReflError(f"{path}: the header is one column, {names[0][:60]!r}; is it separated by {name}? {how}")


# --- tables ----------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise MedReflError(f"{path}: not Parquet ({str(error).splitlines()[0]})") from None
    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = {name: labels for name, feature in features.items() if (labels := _label_names(feature))}
    except (KeyError, ValueError, TypeError, AttributeError):
        names = {}  # not written by the library datasets
    for number, row in enumerate(table.to_pylist(), start=1):
        yield number, _with_label_names(row, names)


def _label_names(feature: Any) -> list[str]:
    """Return the names of a class label, or of a list of them; none where the names are numbers, which say no more."""
    if isinstance(feature, Mapping) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        feature = feature.get("feature")
    names = feature.get("names") if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" else None
    return list(names) if names and not any(str(name).isdigit() for name in names) else []


def _with_label_names(row: Mapping[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the row with class labels as their names, which start at A whatever number stands for them."""

    def name_of(value: Any, labels: list[str]) -> Any:
        if isinstance(value, list):
            return [name_of(one, labels) for one in value]
        return labels[value] if isinstance(value, int) and 0 <= value < len(labels) else value

    return {key: name_of(value, names[key]) if key in names else value for key, value in row.items()}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".tsv": lambda path: _csv_rows(path, "\t"),
}
"""suffix -> reader"""


# --- the hub ---------------------------------------------------------------------------------------------------------


def check_dataset(name: str) -> None:
    """Raise MedReflError where ``name`` is neither a folder nor a dataset of the hub, or of its cache when offline."""
    if Path(name).is_dir():
        return
    if is_offline() and not has_cached_dataset(name):
        raise MedReflError(f"{name}: no such file, not a dataset in the hub's local cache, and HF_HUB_OFFLINE is set")
    if not is_offline() and (error := hub_refusal("dataset", name)) is not None:
        raise MedReflError(f"{name}: no such file, and {refusal_text('dataset', name, error)}")


def hub_rows(name: str, split: str, config: str | None) -> Iterator[Row]:
    """Yield (row number, row) of a hub dataset, or of a folder that ``datasets.load_dataset`` reads.

    Raises:
        MedReflError: no such dataset, or several splits and none named.
    """
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
    features = loaded.features.to_dict() if loaded.features else {}
    names = {column: labels for column, feature in features.items() if (labels := _label_names(feature))}
    for number, row in enumerate(loaded, start=1):
        yield number, _with_label_names(row, names)
