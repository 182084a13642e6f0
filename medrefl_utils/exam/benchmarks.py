"""Benchmarks by name (``benchmarks.yaml``): where their questions are, and what is published about them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.exam.exam_files import check_dataset, is_file, read_rows
from medrefl_utils.exam.lint import lint_questions
from medrefl_utils.exam.questions import (
    Rows,
    load_questions,
    merge_repeats,
    read_questions,
    ungraded_question,
    with_shuffled_options,
)

_OWN_LICENCES = {"clinic": "Apache-2.0", "medrefl_utils/models/tiny_student": "Apache-2.0"}
_HUB_LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "bsd-3-clause"}
_CLINIC_QUESTIONS = 1000  # of its endless exam, where no number is given
_TEXT = ("question", "stem", "prompt", "instruction", "problem", "input", "query", "text", "messages", "conversations")
REGISTRY = Path(__file__).with_name("benchmarks.yaml")

Share = Annotated[float, Field(ge=0, le=100)]
Names = Mapping[str, str | list[str]]


class Hub(BaseModel):
    """Where a benchmark is on the hub, and how its rows are read: arguments of ``questions.read_questions``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    split: str
    config: str | None = None
    fields: Names = {}
    where: Names = {}
    shuffle: bool = False


class Benchmark(BaseModel):
    """One entry of the registry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    licence: str
    files: Annotated[list[str], Field(min_length=1)]
    where: Names = {}
    hub: Hub | None = None
    published: dict[str, tuple[Share, Share]] = {}


class MedReasonRow(BaseModel):
    """A row of MedReason's published results: accuracy in percent of a base, and of the base fine-tuned on its chains.

    ``benchmark`` is a name of the registry, or words for what the registry does not have, such as a mean. ``base`` is
    None where the original model's accuracy is not published.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: str
    model: str
    base: Share | None = None
    tuned: Share


class TrainedOn(BaseModel):
    """Rows of benchmarks that a published model was trained on.

    ``rows`` says which, in words; ``source`` says where that is published. ``ids`` is the first and the last id where
    the rows are a range; both end in a number. None: all rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmarks: Annotated[list[str], Field(min_length=1)]
    rows: str
    source: str
    ids: tuple[str, str] | None = None

    def holds(self, question_id: str) -> bool:
        """Return whether a question is one of these rows; true for an id of another form, which tells nothing."""
        if self.ids is None:
            return True
        (prefix, first), (_, last) = (_prefix_and_number(one) for one in self.ids)
        theirs, number = _prefix_and_number(question_id)
        return theirs != prefix or number is None or (first or 0) <= number <= (last or 0)


def _prefix_and_number(question_id: str) -> tuple[str, int | None]:
    bare = question_id.rstrip("0123456789")
    return bare, int(question_id[len(bare) :]) if len(bare) < len(question_id) else None


class Registry(BaseModel):
    """The benchmarks by name, the published models with their hub ids, and what these models were trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmarks: dict[str, Benchmark]
    models: dict[str, list[str]]
    trained_on: dict[str, list[TrainedOn]] = {}
    medreason: list[MedReasonRow] = []

    @model_validator(mode="after")
    def _known(self) -> Registry:
        for name, benchmark in self.benchmarks.items():
            if unknown := set(benchmark.published) - set(self.models) - {"average"}:
                raise ValueError(f"{name}: published names the model {sorted(unknown)[0]!r}, which models does not")
        for name, entries in self.trained_on.items():
            if unknown := {b for entry in entries for b in entry.benchmarks} - set(self.benchmarks):
                raise ValueError(f"trained_on.{name} names the benchmark {sorted(unknown)[0]!r}, which is not one")
        return self

    def published_name(self, model: str) -> str | None:
        """Return the README's name of a model, given as a hub id or as a folder with the id's last part as name."""
        last = Path(model).name
        return next((name for name, ids in self.models.items() if any(last == i.split("/")[-1] for i in ids)), None)


@cache
def benchmark_registry(path: Path = REGISTRY) -> Registry:
    """Return the registry, checked; raises MedReflError that names the file and the key."""
    try:
        return Registry.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise MedReflError(f"{path.name}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MedReflError(f"{path.name}: {where}: {first['msg']}") from None


def licence_of(name: str, given: Mapping[str, str]) -> str:
    """Return the licence of a source of questions or of a model, for a model card.

    Args:
        name: as in ``Question.source``, or a model's folder or hub id.
        given: {name: licence}, stated by the user; it takes precedence over our own and the registry's.

    Returns:
        The licence, or "not stated".
    """
    registered = benchmark_registry().benchmarks.items()
    known = {name: benchmark.licence for name, benchmark in registered}
    known |= {Path(file).stem: benchmark.licence for _, benchmark in registered for file in benchmark.files}
    known |= {benchmark.hub.id: benchmark.licence for _, benchmark in registered if benchmark.hub}
    return ({**known, **_OWN_LICENCES} | dict(given)).get(name, "not stated")


def card_licence(licences: Iterable[str]) -> str:
    """Return the licence for the head of a card: the one of all parts in the hub's spelling, else "other".

    Args:
        licences: of each part, as ``licence_of`` returns them.
    """
    found = {licence.lower() for licence in licences}
    return found.pop() if len(found) == 1 and found <= _HUB_LICENCES else "other"


def read_benchmark(source: str, split: str = "", answer_base: int | str = "auto") -> Rows:
    """Read the rows of a benchmark by name, of the clinic, or of any source that ``read_questions`` takes.

    Args:
        source: a name of the registry, "clinic" (its first 1,000 questions, seed 0), a file, a folder or a hub id.
        split: as for ``read_questions``; a benchmark by name has its own.
        answer_base: as for ``read_questions``.

    Raises:
        MedReflError: where there is nothing to read; for a near miss of a benchmark's name, with the name.
    """
    if source == "clinic":
        questions = load_questions("clinic", split, limit=_CLINIC_QUESTIONS, answer_base=answer_base)
        return Rows("clinic", list(enumerate(questions, start=1)), [])
    benchmark = benchmark_registry().benchmarks.get(source)
    if benchmark is None:
        with _name_hint(source):
            return read_questions(source, split, answer_base=answer_base)
    hub = benchmark.hub
    if file := _file(benchmark.files):
        rows = read_questions(str(file), where=benchmark.where, answer_base=answer_base)
    elif hub:
        where = {**benchmark.where, **hub.where}
        rows = read_questions(hub.id, hub.split, hub.fields, where, hub.config, answer_base)
        if hub.shuffle:
            rows = replace(rows, questions=[(number, with_shuffled_options(q, seed=0)) for number, q in rows.questions])
    else:
        raise MedReflError(
            f"{source}: {' or '.join(benchmark.files)} is neither in benchmarks/ nor in $MEDREFL_BENCHMARKS, "
            "and no hub copy is registered; the README (Where the data come from) says who has it"
        )
    return replace(rows, label=source, questions=[(number, replace(q, source=source)) for number, q in rows.questions])


def benchmark_file(name: str) -> Path | None:
    """Return the local file of a benchmark of the registry, in $MEDREFL_BENCHMARKS or benchmarks/; None without one."""
    return _file(benchmark_registry().benchmarks[name].files)


def load_benchmark(
    source: str,
    split: str = "",
    limit: int | None = None,
    offset: int = 0,
    seed: int = 0,
    answer_base: int | str = "auto",
) -> list[Question]:
    """Return questions of a benchmark by name, or of any source that ``load_questions`` takes; arguments as there."""
    if source not in benchmark_registry().benchmarks:
        with _name_hint(source):
            return load_questions(source, split, limit, offset, seed, answer_base=answer_base)
    questions = merge_repeats(read_benchmark(source, answer_base=answer_base), source)
    chosen = questions[offset : None if limit is None else offset + limit]
    if not chosen:
        raise MedReflError(f"{source}: offset {offset} leaves none of {len(questions)} questions")
    return chosen


def check_question_source(source: str) -> bool:
    """Return whether a source's rows can be read here without the hub.

    A benchmark's name without a file or a hub id, and a missing file, count as readable: reading says more.

    Raises:
        MedReflError: where the hub does not have the source.
    """
    benchmark = benchmark_registry().benchmarks.get(source)
    if benchmark is None and (source == "clinic" or is_file(source)):
        return True
    if benchmark and (benchmark.hub is None or _file(benchmark.files)):
        return True
    with _name_hint(source):
        check_dataset(benchmark.hub.id if benchmark and benchmark.hub else source)
    return False


def lint_counts(source: str, split: str = "", answer_base: int | str = "auto") -> dict[str, int]:
    """Return the number of rows with which each check of ``lint`` finds fault; empty for the clinic."""
    if source == "clinic":
        return {}
    rows = read_benchmark(source, split, answer_base)
    return {finding.check: len(finding.rows) for finding in lint_questions(rows.questions, rows.faults)}


def read_texts(source: str, split: str = "", answer_base: int | str = "auto") -> list[Question]:
    """Read a source for a comparison of texts: every row with a question, a prompt or a chat, whether it is an exam's.

    Args:
        source: as for ``read_benchmark``.
        split: as for ``read_benchmark``.
        answer_base: as for ``read_benchmark``.

    Returns:
        A question per row. Where the row is not an exam question, its text is the stem, it has no options, and its id
        is "row" and its number. Gold letters of a file are not read.

    Raises:
        MedReflError: where no row has a text.
    """
    if source == "clinic" or source in benchmark_registry().benchmarks or not is_file(source):
        return [question for _, question in read_benchmark(source, split, answer_base).questions]
    found = []
    for number, row in read_rows(Path(source).expanduser()):
        if isinstance(row, Exception):
            continue
        try:
            found.append(ungraded_question(number, row, Path(source).stem))
        except ValueError:
            if text := _text_of(row):
                found.append(Question(f"row {number}", text, {}, "", Path(source).stem))
    if not found:
        raise MedReflError(f"{source}: no row has text under {', '.join(_TEXT)}")
    return found


def _text_of(row: Mapping[str, Any]) -> str:
    for name in _TEXT:
        given = row.get(name)
        if isinstance(given, (list, tuple)):  # a chat: its user turns
            turns = [turn for turn in given if isinstance(turn, Mapping)]
            said = [turn.get("content", turn.get("value")) for turn in turns if _role(turn) in ("user", "human")]
            given = "\n".join(text for text in said if isinstance(text, str))
        if isinstance(given, str) and given.strip():
            return given
    return ""


def _role(turn: Mapping[str, Any]) -> Any:
    return turn.get("role", turn.get("from"))


@dataclass(frozen=True)
class TrainedQuestions:
    """The questions of a benchmark that a published model was trained on."""

    model: str
    """its name in the registry"""
    ids: frozenset[str]
    """of the questions asked about"""
    note: str
    """which rows, and where that is published"""


def trained_questions(model: str, source: str, ids: Collection[str]) -> TrainedQuestions | None:
    """Return which of these questions a model was trained on, by the registry; None where it knows of none.

    Args:
        model: a hub id, a folder, or the name of a responses' file: it must hold a registered model's name.
        source: ``Question.source``: a benchmark's name, or the stem of one of its files.
        ids: ids of the questions that were asked. A question without an id of the published form counts as trained on,
            because nobody can tell.
    """
    registry = benchmark_registry()
    benchmarks = {
        name
        for name, benchmark in registry.benchmarks.items()
        if source in (name, *(Path(file).stem for file in benchmark.files))
    }
    bare = _bare(Path(model).name)
    for name, entries in registry.trained_on.items():
        if not any(_bare(known.split("/")[-1]) in bare for known in (name, *registry.models.get(name, ()))):
            continue
        for entry in entries:
            found = frozenset(map(str, ids)) if benchmarks & set(entry.benchmarks) else frozenset()
            if found := frozenset(one for one in found if entry.holds(one)):
                return TrainedQuestions(name, found, f"{entry.rows} ({entry.source})")
    return None


def _bare(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


@contextmanager
def _name_hint(source: str) -> Iterator[None]:
    """Add the nearest benchmark's name, and all names, to the error of a source that is no file and no hub id."""
    try:
        yield
    except MedReflError as error:
        names = [*benchmark_registry().benchmarks, "clinic"]
        if "/" in source or "." in source or not source or Path(source).is_dir():
            raise
        said = source.casefold()
        near = [name for name in names if len(said) >= 3 and name.startswith(said)]
        near = near or [name for name in names if len(said) >= 3 and said in name]
        near = near or difflib.get_close_matches(said, names, n=1, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise MedReflError(f"{error}; {hint}Benchmarks by name: {', '.join(names)}") from None


def _file(names: Sequence[str]) -> Path | None:
    folders = [Path(folder) for folder in (os.environ.get("MEDREFL_BENCHMARKS"), "benchmarks") if folder]
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)
