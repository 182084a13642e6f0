"""Read the tables of a knowledge graph: CSV or TSV, also compressed, with checks of every row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError

_BLOCK = 64 << 20  # bytes that are parsed at once; each block has its own dictionaries
_SHOWN = 80


@dataclass(frozen=True)
class Codes:
    """A text column as numbers: ``values[codes[row]]`` is the row's text."""

    codes: np.ndarray
    values: np.ndarray

    def of(self, rows: np.ndarray) -> Codes:
        """Return the same column for a part of the rows."""
        return Codes(self.codes[rows], self.values)


class Table:
    """A table that was read: its text columns by our names, and the rows that were left out."""

    def __init__(self, path: Path, data: pa.Table, dropped: DropCounts) -> None:
        self.path, self.data, self.dropped = path, data, dropped

    def __contains__(self, column: str) -> bool:
        return column in self.data.column_names

    def __len__(self) -> int:
        return self.data.num_rows

    def codes(self, *columns: str) -> Codes:
        """Return columns, one after the other, over one common set of values."""
        chunks = [chunk for column in columns for chunk in self.data[column].chunks]
        if not chunks:
            return Codes(np.zeros(0, np.int32), np.zeros(0, object))
        chunks = pa.chunked_array(chunks).unify_dictionaries().chunks
        codes = np.concatenate([np.asarray(chunk.indices) for chunk in chunks])
        return Codes(codes, np.array(chunks[0].dictionary.to_pylist(), dtype=object))

    def line(self, row: int) -> int:
        """Return the line of the file on which a row of the table begins, counted from 1.

        The file is read again, so call it for a message only.
        """
        if self.path.suffix == ".parquet":
            return row + 1
        with _text(self.path) as text:
            reader = csv.reader(text, delimiter=_delimiter(self.path))
            width = len(next(reader))
            before = -1
            while before < row:
                start = reader.line_num + 1
                before += len(next(reader)) == width
            return start

    @property
    def unit(self) -> str:
        """The word for a place in the file: "line", or "row" for Parquet."""
        return "row" if self.path.suffix == ".parquet" else "line"


def read_columns(path: Path, columns: Mapping[str, str], needed: Sequence[str]) -> Table:
    """Read columns of a CSV, TSV (both also .gz) or Parquet file as text.

    A row with another number of columns than the head is left out and counted. A file that ends inside its last row is
    refused.

    Args:
        path: of the file.
        columns: {our name: name in the file}; those that the file lacks are left out.
        needed: our names that must be there.

    Raises:
        MedReflError: the file is missing, empty, not text, lacks a column, or is truncated; with line and column.
    """
    if not path.is_file():
        raise MedReflError(
            f"{path} does not exist: expected the table of a knowledge graph (.csv, .tsv, .gz, .parquet)"
        )
    head = column_names(path)
    missing = [columns[name] for name in needed if columns[name] not in head]
    if missing:
        shown = ", ".join(head)
        shown = shown if len(shown) <= 3 * _SHOWN else f"{shown[: 3 * _SHOWN]}..."
        raise MedReflError(
            f"{path}, line 1: the column {missing[0]!r} is missing; found {shown or 'an empty file'}; give other names "
            f"with columns, {{our name: name in the file}}"
        )
    chosen = {name: column for name, column in columns.items() if column in head}
    if path.suffix == ".parquet":
        return _read_parquet(path, chosen)
    dropped = DropCounts()
    bad: list[str] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        place = f"line {row.number}, " if row.number is not None else ""
        dropped.drop(
            "columns", f"{path}, {place}{row.text[:_SHOWN]!r}: {row.actual_columns} columns, expected {len(head)}"
        )
        bad.append(row.text)
        return "skip"

    stream = _Stream(path)
    try:
        data = pacsv.read_csv(
            pa.PythonFile(stream, mode="r"),
            read_options=pacsv.ReadOptions(block_size=_BLOCK),
            parse_options=pacsv.ParseOptions(delimiter=_delimiter(path), invalid_row_handler=refuse),
            convert_options=pacsv.ConvertOptions(
                column_types={column: pa.dictionary(pa.int32(), pa.string()) for column in chosen.values()},
                include_columns=list(dict.fromkeys(chosen.values())),
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowException, OSError, EOFError) as error:
        raise MedReflError(
            f"{path}: cannot be read after line {stream.lines:,}, probably a broken download: {_one_line(error)}"
        ) from None
    _check_end(path, stream, head, bad)
    if not data.num_rows:
        raise MedReflError(f"{path}: no row below the head of line 1; expected one row per edge")
    data = pa.table({name: data[column] for name, column in chosen.items()})
    return Table(path, data, dropped)


def _read_parquet(path: Path, chosen: Mapping[str, str]) -> Table:
    try:
        columns = list(dict.fromkeys(chosen.values()))
        kinds = pq.read_schema(path)
        text = [name for name in columns if pa.types.is_string(kinds.field(name).type)]
        data = pq.read_table(path, columns=columns, read_dictionary=text)
        data = pa.table({name: _text_codes(data[column]) for name, column in chosen.items()})
    except (pa.ArrowException, OSError) as error:
        raise MedReflError(f"{path} cannot be read as Parquet: {_one_line(error)}") from None
    if not data.num_rows:
        raise MedReflError(f"{path}: no row; expected one row per edge")
    return Table(path, data, DropCounts())


def _text_codes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as a dictionary of texts; a null becomes an empty text."""
    if pa.types.is_dictionary(column.type) and not column.null_count:
        return column
    return pc.dictionary_encode(pc.fill_null(column.cast(pa.string()), ""))


class _Stream(io.RawIOBase):
    """The file's bytes without compression; it counts lines and keeps the file's end."""

    def __init__(self, path: Path) -> None:
        self.source = pa.input_stream(str(path), compression="detect")
        self.lines, self.end = 0, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.source.read(None if size < 0 else size)
        self.lines += data.count(b"\n")
        self.end = (self.end + data)[-65536:] if len(data) < 65536 else data[-65536:]
        return data


def _check_end(path: Path, stream: _Stream, head: Sequence[str], bad: Sequence[str]) -> None:
    """Refuse a file that ends inside its last row.

    A whole file may lack the last line break. So a last row with all its columns is taken for whole, unless it leaves a
    quotation open.
    """
    text = stream.end.decode("utf-8", "replace")
    last = text.rstrip("\r\n").rpartition("\n")[2]
    fields = next(csv.reader([last], delimiter=_delimiter(path)), [])
    open_quote = last.count('"') % 2 == 1 and not text.endswith("\n")
    if len(fields) < len(head) and (last in bad or open_quote) or open_quote:
        line = stream.lines + (not text.endswith("\n"))
        column = head[max(0, len(fields) - 1)] if not text.endswith("\n") else head[len(fields)]
        raise MedReflError(
            f"{path}, line {line:,}, column {column!r}: the file ends inside this row ({len(fields)} of {len(head)} "
            f"columns, {last[-_SHOWN:]!r}): the download is not complete"
        )


def column_names(path: Path) -> list[str]:
    """Return the column names of a table: those in its first line, or of its Parquet schema.

    Raises:
        MedReflError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise MedReflError(
            f"{path} does not exist: expected the table of a knowledge graph (.csv, .tsv, .gz, .parquet)"
        )
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path).names
        with _text(path, errors="replace") as text:
            return next(csv.reader([text.readline(1 << 20).lstrip("\ufeff")], delimiter=_delimiter(path)), [])
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise MedReflError(f"{path}: line 1 cannot be read: {_one_line(error)}") from None


def _delimiter(path: Path) -> str:
    """Return the tab if the first line has one outside a comma-separated head, else the comma."""
    with _text(path, errors="replace") as text:
        first = text.readline(1 << 20)
    return "\t" if first.count("\t") > first.count(",") else ","


@contextmanager
def _text(path: Path, errors: str = "strict") -> Iterator[io.TextIOBase]:
    with pa.input_stream(str(path), compression="detect") as source:
        yield io.TextIOWrapper(io.BufferedReader(source), encoding="utf-8", errors=errors, newline="")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
