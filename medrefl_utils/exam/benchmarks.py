"""benchmarks by name (``benchmarks.yaml``): where their questions are, and what is published on them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.exam.lint import lint_questions
from medrefl_utils.exam.questions import Rows, check_dataset, is_file, load_questions, merge_repeats, read_questions

_OWN_LICENCES = {"clinic": "Apache-2.0", "medrefl_utils/models/tiny_student": "Apache-2.0"}
REGISTRY = Path(__file__).with_name("benchmarks.yaml")

Share = Annotated[float, Field(ge=0, le=100)]
Names = Mapping[str, str | list[str]]


class Hub(BaseModel):
    """Where a benchmark is on the hub, and how its rows read there; arguments of ``questions.read_questions``."""

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


class Registry(BaseModel):
    """The benchmarks by name, and the published names of the models with their hub ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmarks: dict[str, Benchmark]
    models: dict[str, list[str]]

    @model_validator(mode="after")
    def _known(self) -> Registry:
        for name, benchmark in self.benchmarks.items():
            if unknown := set(benchmark.published) - set(self.models) - {"average"}:
                raise ValueError(f"{name}: published names the model {sorted(unknown)[0]!r}, which models does not")
        return self

    def published_name(self, model: str) -> str | None:
        """The README's name of a model that is given as hub id or as a folder of the id's last part."""
        last = Path(model).name
        return next((name for name, ids in self.models.items() if any(last == i.split("/")[-1] for i in ids)), None)


@cache
def benchmark_registry(path: Path = REGISTRY) -> Registry:
    """The registry, checked; raises MedReflError that names the file and the key."""
    try:
        return Registry.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise MedReflError(f"{path.name}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MedReflError(f"{path.name}: {where}: {first['msg']}") from None


def licence_of(name: str, given: Mapping[str, str]) -> str:
    """The licence of a source of questions or of a model, for a card.

    Args:
        name: as in ``Question.source``, or a model's folder or hub id.
        given: {name: licence}, what the user knows; it wins over our own and the registry's.

    Returns:
        The licence, or "not stated".
    """
    registered = benchmark_registry().benchmarks.items()
    known = {name: benchmark.licence for name, benchmark in registered}
    known |= {Path(file).stem: benchmark.licence for _, benchmark in registered for file in benchmark.files}
    known |= {benchmark.hub.id: benchmark.licence for _, benchmark in registered if benchmark.hub}
    return ({**known, **_OWN_LICENCES} | dict(given)).get(name, "not stated")


def read_benchmark(source: str, split: str = "") -> Rows:
    """The rows of a benchmark by name, or of any source that ``read_questions`` takes."""
    benchmark = benchmark_registry().benchmarks.get(source)
    if benchmark is None:
        return read_questions(source, split)
    hub = benchmark.hub
    if file := _file(benchmark.files):
        rows = read_questions(str(file), where=benchmark.where)
    elif hub:
        rows = read_questions(hub.id, hub.split, hub.fields, {**benchmark.where, **hub.where}, hub.config)
        if hub.shuffle:
            rows = replace(rows, questions=[(number, with_shuffled_options(q, seed=0)) for number, q in rows.questions])
    else:
        raise MedReflError(
            f"{source}: {' or '.join(benchmark.files)} is neither in benchmarks/ nor in $MEDREFL_BENCHMARKS"
        )
    return replace(rows, label=source, questions=[(number, replace(q, source=source)) for number, q in rows.questions])


def load_benchmark(
    source: str, split: str = "", limit: int | None = None, offset: int = 0, seed: int = 0
) -> list[Question]:
    """Questions of a benchmark by name, or of any source that ``load_questions`` takes; arguments as there."""
    if source not in benchmark_registry().benchmarks:
        return load_questions(source, split=split, limit=limit, offset=offset, seed=seed)
    questions = merge_repeats(read_benchmark(source), source)
    chosen = questions[offset : None if limit is None else offset + limit]
    if not chosen:
        raise MedReflError(f"{source}: offset {offset} leaves none of {len(questions)} questions")
    return chosen


def check_question_source(source: str) -> bool:
    """Whether a source's rows can be read here without the hub; raises MedReflError where the hub does not have them.

    A benchmark's name without a file or a hub id, and a file that is missing, count as readable: reading tells best.
    """
    benchmark = benchmark_registry().benchmarks.get(source)
    if benchmark is None and (source == "clinic" or is_file(source)):
        return True
    if benchmark and (benchmark.hub is None or _file(benchmark.files)):
        return True
    check_dataset(benchmark.hub.id if benchmark else source)
    return False


def lint_counts(source: str, split: str = "") -> dict[str, int]:
    """Rows that each check of ``lint`` finds fault with; nothing for the clinic, which is made."""
    if source == "clinic":
        return {}
    rows = read_benchmark(source, split)
    return {finding.check: len(finding.rows) for finding in lint_questions(rows.questions, rows.faults)}


def with_shuffled_options(question: Question, seed: int) -> Question:
    """The question with its options in an order that is drawn from ``seed`` and its id; the gold letter follows."""
    digest = hashlib.sha256(f"{seed}\0{question.question_id}".encode()).digest()
    order = list(question.options)
    random.Random(digest).shuffle(order)
    options = dict(zip(question.options, (question.options[letter] for letter in order), strict=True))
    return replace(question, options=options, gold=list(question.options)[order.index(question.gold)])


def _file(names: Sequence[str]) -> Path | None:
    folders = [Path(folder) for folder in (os.environ.get("MEDREFL_BENCHMARKS"), "benchmarks") if folder]
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)
