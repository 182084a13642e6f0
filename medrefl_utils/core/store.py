"""Write and read what a run keeps on disk: Parquet tables, content hashes and the manifest. Every write is atomic."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.run_files import RunFiles

MADE_BY: Mapping[str, str] = {
    "questions": "01_tree_rollout",
    "steps": "01_tree_rollout",
    "values": "02_step_valuation",
    "pairs": "03_pair_construction",
    "reflections": "03_pair_construction",
    "overlaps": "03_pair_construction",
    "exports": "03_pair_construction",
    "adapter": "04_dpo_lora_4bit",
    "training": "04_dpo_lora_4bit",
    "responses": "05_benchmark_evaluation",
    "scores": "05_benchmark_evaluation",
    "pass_at_k": "05_benchmark_evaluation",
    "robustness": "05_benchmark_evaluation",
    "held_out_trees": "05_benchmark_evaluation",
    "continuations": "05_benchmark_evaluation",
    "self_correction": "05_benchmark_evaluation",
    "report": "06_report",
    "arms": "07_ablation",
    "ablation": "07_ablation",
    "contrasts": "07_ablation",
    "chains": "08_knowledge_chains",
    "chain_overlaps": "08_knowledge_chains",
    "chain_exports": "08_knowledge_chains",
    "sft_model": "09_sft_lora_4bit",
    "sft_training": "09_sft_lora_4bit",
}
"""{artifact, a name of ``RunFiles``: the notebook that makes it}"""

_opened: dict[tuple[str, str], tuple[dict[str, str], dict[str, Any]]] = {}
"""{(a run's folder, stage): the hashes of its inputs, and its parameters, when this process opened it}"""


def write_table(
    path: Path, table: pd.DataFrame | pa.Table, schema: pa.Schema, key: str = "", notes: Mapping[str, Any] | None = None
) -> Path:
    """Write one Parquet file with exactly the schema's columns, and return its path.

    Columns outside the schema are left out. The write is atomic: a temporary file, then a rename.

    Args:
        path: of the file.
        table: with at least the schema's columns.
        schema: one of ``core.schemas``.
        key: a hash of everything that the table depends on; ``table_key`` returns it.
        notes: JSON values beside the table; ``table_notes`` returns them.

    Raises:
        MedReflError: a column is missing, a value does not fit its type, or the file cannot be written.
    """
    path = Path(path)
    _check_columns(path, list(table.columns) if isinstance(table, pd.DataFrame) else table.column_names, schema)
    try:
        if isinstance(table, pd.DataFrame):
            table = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
        table = (
            table.select(schema.names)
            .cast(schema)
            .replace_schema_metadata({"key": key} | ({"notes": json.dumps(plain_value(notes))} if notes else {}))
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise MedReflError(f"{path}: a value does not fit its column: {_one_line(error)}") from error
    write_whole(path, lambda beside: pq.write_table(table, beside, write_page_checksum=True))
    return path


def table_key(path: Path) -> str | None:
    """Return the key that a table was written with; None where there is no readable table."""
    try:
        return (pq.read_schema(path).metadata or {}).get(b"key", b"").decode()
    except (OSError, pa.ArrowInvalid):
        return None


def table_notes(path: Path) -> dict[str, Any]:
    """Return the notes that a table was written with."""
    return json.loads((pq.read_schema(path).metadata or {}).get(b"notes", b"{}"))


def read_table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """Read a Parquet file, or a folder of them in the order of their names, and return the schema's columns.

    A map column becomes a list of (key, value) tuples, so ``dict(row.options)`` works.

    Raises:
        MedReflError: the file is missing (the message names the notebook that makes it), broken, or lacks a column.
    """
    path = Path(path)
    files = sorted(f for f in path.glob("*.parquet") if not f.name.startswith(".")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        maker = f": {MADE_BY[path.stem]} makes it" if path.stem in MADE_BY else ""
        raise MedReflError(f"{path} is {'empty' if path.is_dir() else 'missing'}{maker}")
    tables = []
    for file in files:
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
            _check_columns(file, table.column_names, schema)
            tables.append(table.select(schema.names).cast(schema))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError) as error:
            raise MedReflError(f"{file} cannot be read as this table: {_one_line(error)}") from error
    return pa.concat_tables(tables).to_pandas()


def content_hash(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes, or of a folder's sorted relative names and contents.

    Hidden files of a folder are left out.
    """
    path = Path(path)
    if not path.is_dir():
        return _file_hash(path)
    total = hashlib.sha256()
    for name, file in sorted((f.relative_to(path).as_posix(), f) for f in path.rglob("*") if f.is_file()):
        if not any(part.startswith(".") for part in name.split("/")):
            total.update(f"{name}\0{_file_hash(file)}\n".encode())
    return total.hexdigest()


def open_stage(
    run: RunFiles, stage: str, reads: Sequence[str], parameters: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Note what a stage reads, for ``record_stage`` at its end; return {file name: sha256} of the inputs that exist.

    The hashes are taken at the beginning, since another notebook may write the files anew while this one runs.

    Args:
        run: the run's files.
        stage: the stage, which this process begins.
        reads: its inputs, names of attributes of ``RunFiles``.
        parameters: the stage's parameters, if they are known.
    """
    paths: list[Path] = [getattr(run, artifact) for artifact in reads]
    inputs = {path.name: content_hash(path) for path in paths if path.exists()}
    _opened[str(run.root.resolve()), stage] = inputs, dict(parameters or {})
    return inputs


def record_stage(
    run: RunFiles, stage: str, outputs: Sequence[Path], figures: Mapping[str, Any], tokens: int = 0
) -> dict[str, Any]:
    """Write a stage's outputs with their sha256, its headline figures and its generated tokens into the manifest.

    The entry replaces the stage's earlier one, so that the chain does not take a stage rerun by hand for its own. If
    ``open_stage`` was called, it also has the stage's inputs and parameters.

    Returns:
        The entry.

    Raises:
        MedReflError: an output does not exist or lies outside the run's folder.
    """
    hashes = {}
    for output in map(Path, outputs):
        if not output.exists():
            raise MedReflError(f"{stage}: {output} does not exist, so it cannot be recorded")
        if not output.resolve().is_relative_to(run.root.resolve()):
            raise MedReflError(f"{stage}: {output} lies outside the run's folder {run.root}")
        hashes[output.resolve().relative_to(run.root.resolve()).as_posix()] = content_hash(output)
    entry: dict[str, Any] = {"outputs": hashes, "figures": dict(figures), "tokens": int(tokens)}
    if (opened := _opened.get((str(run.root.resolve()), stage))) is not None:
        entry["inputs"] = opened[0]
        entry |= {"parameters": opened[1]} if opened[1] else {}
    manifest = read_manifest(run)
    manifest.setdefault("stages", {})[stage] = entry
    write_manifest(run, manifest)
    return entry


class _Stage(BaseModel):
    """The part of a stage's entry that this project reads; other keys are allowed."""

    key: str = ""
    running: str = ""
    outputs: dict[str, str] = {}
    inputs: dict[str, str] = {}
    figures: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    ingredients: dict[str, dict[str, Any]] = {}
    tokens: int = 0
    seconds: float = Field(0.0, ge=0)


class _Manifest(BaseModel):
    """The part of a manifest that this project reads; other keys are allowed."""

    stages: dict[str, _Stage] = {}
    seeds: dict[str, dict[str, Any]] = {}
    versions: dict[str, str | None] = {}
    machine: dict[str, Any] = {}
    git: dict[str, Any] = {}
    overrides: list[str] = []


def read_manifest(run: RunFiles) -> dict[str, Any]:
    """Return the run's manifest, empty where there is none.

    Raises:
        MedReflError: the file is not JSON, or not of a manifest's shape.
    """
    if not run.manifest.exists():
        return {}
    try:
        manifest = json.loads(run.manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MedReflError(f"{run.manifest} is not JSON ({_one_line(error)}): delete it to run again") from error
    if not isinstance(manifest, dict):
        raise MedReflError(f"{run.manifest} holds a {type(manifest).__name__}, expected an object")
    try:
        _Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where, found = ".".join(map(str, first["loc"])), f"{first['input']!r:.60}"
        raise MedReflError(
            f"{run.manifest}: {where} is {found}: {first['msg'][0].lower()}{first['msg'][1:]}; delete it to run again"
        ) from None
    return manifest


def write_manifest(run: RunFiles, manifest: Mapping[str, Any]) -> None:
    """Replace the run's manifest; a NaN or infinity becomes null."""
    text = json.dumps(plain_value(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(run.manifest, text)


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically, and return its path. A lone surrogate becomes "?"."""
    return write_whole(path, lambda beside: beside.write_bytes(text.encode("utf-8", "replace")))


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file atomically, and return its path: ``write`` makes a temporary file, which is then renamed.

    Raises:
        MedReflError: the disk is full or the folder is not writable; an earlier file stays as it was.
    """
    # A hidden name, which readers of a folder of shards skip.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            if not psutil.pid_exists(
                int(left.name.split(".")[-2])
            ):  # a live process may be writing the same references
                left.unlink(missing_ok=True)
        write(beside)
        os.replace(beside, path)
    except OSError as error:
        raise MedReflError(f"{path} cannot be written: {error.strerror or _one_line(error)}") from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder, which replaces ``folder`` at the end of the block; an exception removes it.

    Raises:
        MedReflError: as ``write_whole``.
    """
    # The name has no process id, since several processes write a sharded model into one folder.
    beside = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
    except OSError as error:
        raise MedReflError(f"{folder} cannot be written: {error.strerror or _one_line(error)}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def lock_run(run: RunFiles) -> Iterator[None]:
    """Hold the lock of a run's folder for the block. The operating system frees the lock of a process that died.

    Raises:
        MedReflError: another process holds the lock; the message names it.
    """
    try:
        run.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedReflError(f"{run.root} cannot be written: {error.strerror}") from None
    lock, holder = FileLock(run.root / ".lock"), run.root / ".holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise MedReflError(
            f"{run.root}: {who} uses this run: wait for it, or choose another name (--set shared.run=NAME)"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M:%S},")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _check_columns(path: Path, found: Sequence[str], schema: pa.Schema) -> None:
    missing = [name for name in schema.names if name not in found]
    if missing:
        raise MedReflError(f"{path} lacks the column {missing[0]!r}: found {', '.join(map(str, found)) or 'none'}")


def _file_hash(path: Path) -> str:
    stat = path.stat()
    return _hash_bytes(str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@cache  # a model folder of many GB is hashed once per process; size, time and inode show a change
def _hash_bytes(path: str, size: int, mtime_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_value(value: Any) -> Any:
    """Return a value in JSON's types: numpy numbers as numbers, paths as text, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
