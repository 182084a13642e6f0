"""The log of a run's calls: what a model wrote is on disk as soon as it is there, and is never asked for again.

The log is a folder. Each process appends to a file of its own (JSON lines) and reads all of them, so that whoever takes
up the work of a process that died finds what that one received.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medrefl_utils.core.errors import MedReflError


class CallLog:
    """Replies by key: a hash of all that a reply depends on. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, name: str = "main"):
        """Read what is there; new lines go to ``folder/<name>.jsonl``.

        A line that a killed process left half written, or that is no JSON, does not count.
        """
        self.folder, self.name = folder, name
        self._places: dict[str, tuple[Path, int]] = {}
        """where a key's line begins, in bytes: replies of a long run do not belong into memory"""
        self._broken = False
        for path in sorted(folder.glob("*.jsonl")) if folder is not None else []:
            for offset, line in _lines(path):
                self._places[line["key"]] = path, offset
        if folder is not None and (own := self._own).exists() and own.stat().st_size:
            with open(own, "rb") as file:
                file.seek(-1, os.SEEK_END)
                self._broken = file.read() != b"\n"

    def get(self, key: str) -> dict[str, Any] | None:
        """The line of a key; None where there is none."""
        if key not in self._places:
            return None
        path, offset = self._places[key]
        with open(path, "rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every line, one a key."""
        return (line for key in self._places if (line := self.get(key)) is not None)

    def append(self, key: str, line: dict[str, Any]) -> None:
        """Keep a line. It is appended in one write, so that it is whole or the last one.

        Raises:
            MedReflError: the log cannot be written, as on a full disk.
        """
        if self.folder is None:
            return
        data = (json.dumps({"key": key, **line}) + "\n").encode()
        if self._broken:  # what a killed process left stays a line of its own
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
    """The key of a call: a hash (hex) of the parts, which JSON has."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each whole line with the byte where it begins."""
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
