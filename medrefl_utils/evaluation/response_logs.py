"""Read files of responses, ours and those of other tools, as flat rows.

Three kinds of rows are read:

- plain rows: an id or a question, and a text under ``response`` or a similar name;
- lm-evaluation-harness, ``--log_samples``: ``samples_TASK_DATE.jsonl`` with ``doc``, ``target``, ``resps`` and
  ``filtered_resps``. A task may be generated text, or log-likelihoods of the options; then the likeliest option is the
  answer. A sample that another filter repeats is read once;
- Inspect: a ``.json`` log, or a ``.eval`` log, which is a zip file with ``header.json`` and ``samples/*.json``.

A folder is read file by file. Files of both tools hold the questions themselves, so their own ids are not needed.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import LETTERS
from medrefl_utils.exam.exam_files import READERS, read_rows
from medrefl_utils.exam.questions import ungraded_question

LOG_LIKELIHOOD = "log-likelihood"
"""The rule of an answer that is the likeliest option."""
_SAMPLES = re.compile(r"samples_(.+?)_\d{4}-\d\d-\d\dT[\d.:-]+\Z")
_GOLD = re.compile(r"\(?([A-Za-z])[).]?\Z")
_ATTACHMENT = "attachment://"
_ZSTANDARD = 93  # compression method of a zip entry, which zipfile reads from Python 3.14 on
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@dataclass
class ResponseRows:
    """The rows of a file or a folder, and how many were left out, by reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    from_log: bool = False
    """the rows come from another tool's log, so they hold their question, and their ids are that tool's own"""


def read_response_rows(path: Path) -> ResponseRows:
    """Read the rows of a file of responses, or of every such file in a folder.

    Args:
        path: .jsonl, .json, .csv, .tsv, .parquet or .eval, or a folder of them.

    Returns:
        Plain rows as they are. Rows of a log have ``question``, ``options`` (unless the log has none), ``response``,
        ``model``, and where the log says so ``id``, ``gold`` and ``choice`` (the likeliest option's letter). A
        repetition (an epoch of Inspect) is a row of its own.

    Raises:
        MedReflError: no such file, no rows, a row that cannot be read, or logs mixed with plain rows.
    """
    found, kinds, logs = ResponseRows(), set(), set()
    for file in _files(path):
        seen: set[tuple[Any, ...]] = set()
        for number, row in _rows(file):
            where = f"{file}:{number}"
            if isinstance(row, Exception):
                raise MedReflError(f"{where}: {row}")
            if "doc" in row and ("resps" in row or "filtered_resps" in row):
                kinds.add("lm-eval")
                found.rows += _lm_eval(row, file, where, seen, found.left_out)
            elif "samples" in row and isinstance(row.get("eval"), Mapping):
                kinds.add("Inspect")
                log = row["eval"].get("eval_id", where)
                if log not in logs:  # a folder may hold one log as .eval and as .json
                    found.rows += _inspect(row, where, found.left_out)
                logs.add(log)
            else:
                kinds.add("plain rows")
                found.rows.append(dict(row))
    if len(kinds) > 1:
        raise MedReflError(f"{path}: holds {' and '.join(sorted(kinds))}, expected one kind of file")
    if not found.rows:
        why = "".join(f" ({n} left out: {reason})" for reason, n in found.left_out.items())
        raise MedReflError(f"{path}: no responses in it{why}")
    found.from_log = kinds != {"plain rows"}
    return found


def _files(path: Path) -> list[Path]:
    """Return the files of a folder: a run's responses, else lm-eval's samples, else every file that can be read."""
    if not path.is_dir():
        return [path]
    path = path / "responses" if (path / "responses").is_dir() else path
    suffixes = (".parquet", *(suffix for suffix in READERS if suffix != ".parquet"), ".eval")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes)
    parquet = [file for file in files if file.parent == path and file.suffix == ".parquet"]
    samples = [file for file in files if _SAMPLES.match(file.stem)]
    if not (chosen := parquet or samples or files):
        raise MedReflError(f"{path}: no responses in it, expected files with the suffix {', '.join(suffixes)}")
    return chosen


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    if file.suffix.lower() == ".eval":
        if not file.is_file():
            raise MedReflError(f"{file}: no such file")
        yield 1, _eval_log(file)
    else:
        yield from read_rows(file)


# --- lm-evaluation-harness -------------------------------------------------------------------------------------------


def _lm_eval(
    row: Mapping[str, Any], file: Path, where: str, seen: set[tuple[Any, ...]], left_out: Counter[str]
) -> list[dict[str, Any]]:
    """Return the responses of one sample: one per repetition, or the likeliest option."""
    answers = row.get("resps", row.get("filtered_resps"))
    if (place := (row.get("doc_id"), json.dumps(answers))) in seen:
        left_out["the same sample, under another filter"] += 1
        return []
    seen.add(place)
    doc = row["doc"]
    if not isinstance(doc, Mapping):
        raise MedReflError(f"{where}: doc is a {type(doc).__name__}, expected an object")
    try:
        question = ungraded_question(1, _known_fields(doc))
    except ValueError as error:
        raise MedReflError(f"{where}: doc is not a multiple-choice question in a known form: {error}") from None
    same = {"question": question.stem, "options": dict(question.options), "model": _model_of(file)}
    if (own := doc.get("question_id", doc.get("id"))) not in (None, ""):
        same["id"] = own
    letters, target = list(question.options), str(row.get("target", "")).strip()
    if match := _GOLD.match(target):
        same["gold"] = match[1].upper()
    if scores := _log_likelihoods(answers):
        if target.isascii() and target.isdigit() and int(target) < len(letters):
            same["gold"] = letters[int(target)]  # the target of such a task is the place of an option, from 0
        if len(scores) not in (len(letters), 2 * len(letters)):
            raise MedReflError(
                f"{where}: {len(scores)} log-likelihoods, expected one for each of {len(letters)} options"
            )
        scores = scores[: len(letters)]  # the others are those of the options without the question
        shown = ", ".join(f"{letter} {score:.2f}" for letter, score in zip(letters, scores, strict=True))
        choice = letters[scores.index(max(scores))]
        said = {"response": f"log-likelihoods of the options: {shown}", "choice": choice}
        return [same | said | {"protocol": LOG_LIKELIHOOD}]
    texts = _texts(answers)
    if not texts:
        raise MedReflError(f"{where}: resps holds neither texts nor log-likelihoods: {str(answers)[:60]}")
    return [same | {"response": text} for text in texts]


def _known_fields(doc: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a doc in a shape that ``exam.questions`` knows: the hub's MedQA has sent1, ending0, ending1 and so on."""
    endings = [doc[name] for n in range(len(LETTERS)) if (name := f"ending{n}") in doc]
    if "sent1" in doc and endings:
        stem = " ".join(text for text in (doc["sent1"], doc.get("sent2")) if text)
        return {"question": stem, "options": endings}
    return doc


def _log_likelihoods(given: Any) -> list[float]:
    """Return the numbers of a list of (log-likelihood, whether greedy), each in a list of its own or not."""
    found = []
    for one in given if isinstance(given, list) else []:
        pair = one[0] if isinstance(one, list) and len(one) == 1 else one
        if not (isinstance(pair, list) and len(pair) == 2 and str(pair[1]) in ("True", "False")):
            return []
        try:
            found.append(float(pair[0]))
        except ValueError:
            return []
    return found


def _texts(given: Any) -> list[str]:
    """Return the texts of a sample: [[text, text of a repetition, ...]], or without the outer list in old versions."""
    if isinstance(given, str):
        return [given]
    inner = given[0] if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list) else given
    return list(inner) if isinstance(inner, list) and all(isinstance(text, str) for text in inner) else []


def _model_of(file: Path) -> str:
    """Return the model of a file of samples: by the results beside it, its folder ("__" is "/"), or its name."""
    for results in file.parent.glob(f"results_{file.stem.rpartition('_')[2]}.json"):
        try:
            name = json.loads(results.read_bytes()).get("model_name")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(name, str) and name:
            return name
    return file.parent.name.replace("__", "/") if "__" in file.parent.name else file.stem


# --- Inspect ---------------------------------------------------------------------------------------------------------


def _inspect(log: Mapping[str, Any], where: str, left_out: Counter[str]) -> list[dict[str, Any]]:
    """Return the responses of a log: one per sample and epoch. A sample that ended with an error has none."""
    rows, samples = [], log["samples"]
    if not isinstance(samples, list) or not all(isinstance(sample, Mapping) for sample in samples):
        raise MedReflError(f"{where}: samples of an Inspect log are no list of objects")
    for number, sample in enumerate(samples, start=1):
        attachments = sample.get("attachments") or {}
        response = _said(sample.get("output"), attachments)
        if response is None:
            left_out["a sample that ended without a response"] += 1
            continue
        stem = _asked(sample.get("input"), attachments)
        if not stem:
            raise MedReflError(f"{where}: sample {number}: input has no text")
        row = {"id": sample.get("id"), "question": stem, "response": response, "model": log["eval"].get("model")}
        if choices := sample.get("choices"):
            row["options"] = dict(zip(LETTERS, choices, strict=False))
        target = sample.get("target")
        target = target[0] if isinstance(target, list) and len(target) == 1 else target
        if isinstance(target, str) and (match := _GOLD.match(target.strip())):
            row["gold"] = match[1].upper()
        rows.append({name: value for name, value in row.items() if value is not None})
    return rows


def _said(output: Any, attachments: Mapping[str, str]) -> str | None:
    """Return the text of a sample's output; None where there is none."""
    if not isinstance(output, Mapping):
        return None
    choices = output.get("choices") or []
    if choices and isinstance(choices[0], Mapping) and isinstance(choices[0].get("message"), Mapping):
        return _content(choices[0]["message"].get("content"), attachments)
    return _content(output.get("completion"), attachments) or None


def _asked(given: Any, attachments: Mapping[str, str]) -> str:
    """Return the text of a sample's input: itself, or that of its last message of the user."""
    if isinstance(given, list):
        turns = [turn for turn in given if isinstance(turn, Mapping) and turn.get("role") == "user"]
        given = turns[-1].get("content") if turns else None
    return _content(given, attachments)


def _content(content: Any, attachments: Mapping[str, str]) -> str:
    """Return the text of a message: its text, or its parts; reasoning is put between the marks of a thinking."""
    if isinstance(content, str):
        return attachments.get(content.removeprefix(_ATTACHMENT), content) if _ATTACHMENT in content else content
    parts = []
    for part in content if isinstance(content, list) else []:
        if part.get("type") == "text":
            parts.append(_content(part.get("text"), attachments))
        elif part.get("type") == "reasoning" and not part.get("redacted"):
            parts.append(f"<think>{_content(part.get('reasoning'), attachments)}</think>")
    return "\n".join(parts)


def _eval_log(file: Path) -> dict[str, Any]:
    """Return a ``.eval`` log in the shape of a ``.json`` log."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            header = entries.get("header.json") or entries.get("_journal/start.json")
            samples = [name for name in entries if name.startswith("samples/") and name.endswith(".json")]
            if header is None or not samples:
                raise MedReflError(
                    f"{file}: no header.json or no samples/*.json in it; convert it: inspect log convert --to json"
                )
            read = [json.loads(_entry(archive, entries[name])) for name in samples]
            log = json.loads(_entry(archive, header))
    except (OSError, zipfile.BadZipFile, ValueError, struct.error, pa.ArrowException) as error:
        raise MedReflError(f"{file}: not an Inspect log ({' '.join(str(error).split())[:100]})") from None
    return {"eval": log.get("eval"), "samples": sorted(read, key=lambda s: (s.get("epoch", 1), str(s.get("id"))))}


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a zip entry, which newer versions of Inspect compress by Zstandard."""
    if entry.compress_type != _ZSTANDARD:
        return archive.read(entry)
    file = archive.fp
    file.seek(entry.header_offset)
    *_, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    file.seek(name + extra, 1)
    packed = pa.py_buffer(file.read(entry.compress_size))
    with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
        return stream.read()
