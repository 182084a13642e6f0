"""Log a run's calls on disk, so that no reply of a model is requested twice.

The log is a folder. Each process appends to its own file (JSON lines) and reads all files. So a process that repeats
the work of another one that died finds its replies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation
from medrefl_utils.models.generators.budget import Spent


class CallLog:
    """Replies by key, the hash of everything that a reply depends on. Without a folder, nothing is kept."""

    def __init__(self, folder: Path | None, name: str = "main"):
        """Read the folder; new lines go to ``folder/<name>.jsonl``.

        Lines that are not valid JSON are ignored, such as the half line of a process that was killed.
        """
        self.folder, self.name = folder, name
        self._places: dict[str, tuple[Path, int]] = {}
        """file and byte offset of each key's line; the replies of a long run are too large for memory"""
        self._broken = False
        self.spent = Spent()
        """what the replies cost, those of earlier sessions included; generators with this log add to it"""
        for path in sorted(folder.glob("*.jsonl")) if folder is not None else []:
            for offset, line in _lines(path):
                self._places[line["key"]] = path, offset
                self.spent += Spent(**line.get("paid", {}))
        if folder is not None and (own := self._own).exists() and own.stat().st_size:
            with open(own, "rb") as file:
                file.seek(-1, os.SEEK_END)
                self._broken = file.read() != b"\n"

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the line of a key; None if there is none."""
        if key not in self._places:
            return None
        path, offset = self._places[key]
        with open(path, "rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def is_gone(self) -> bool:
        """Say whether the folder was removed after lines were read from it or written to it."""
        return bool(self._places) and not self.folder.exists()

    def append(self, key: str, line: dict[str, Any]) -> None:
        """Append a line in one write: only the last line of a file can be incomplete.

        Raises:
            MedReflError: the log cannot be written, for example because the disk is full.
        """
        if self.folder is None:
            return
        data = (json.dumps({"key": key, **line}) + "\n").encode()
        if self._broken:  # keep the half line of a killed process separate
            data = b"\n" + data
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self._own, "ab", buffering=0) as file:
                offset = file.seek(0, os.SEEK_END) + self._broken
                self._broken = True
                if file.write(data) != len(data):
                    raise OSError("the disk is full")
                self._broken = False
        except OSError as error:
            raise MedReflError(f"{self._own} cannot be written: {error.strerror or error}") from None
        self._places[key] = self._own, offset

    @property
    def _own(self) -> Path:
        return self.folder / f"{self.name}.jsonl"


def call_key(*parts: object) -> str:
    """Return the key of a call: a hash (hex) of the parts, which must be JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def logged_continuation(fields: dict[str, Any]) -> Continuation:
    """Return a continuation from its fields as a line of the log has them."""
    return Continuation(**fields | {"token_ids": tuple(fields["token_ids"]), "logprobs": tuple(fields["logprobs"])})


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each complete line with its byte offset."""
    offset = 0
    with open(path, "rb") as file:
        for data in file:
            try:
                line = json.loads(data)
                if isinstance(line, dict) and "key" in line:
                    yield offset, line
            except ValueError:
                pass
            offset += len(data)
