"""Stage 01: grow the trees of an exam in shards of whole questions, each result kept on disk as soon as it is there.

A shard is a file named by the hash of all that it depends on. One that is there is not grown again, whatever was run in
between; those of other settings go once the trees that were asked for are complete.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.core.schemas import SCREENING, STEPS
from medrefl_utils.core.store import read_table, table_key, table_notes, write_table
from medrefl_utils.exam import answers, prompts
from medrefl_utils.exam.answers import extract_answer
from medrefl_utils.models.generators.interface import Generator, Prefix, Usage, derive_seed
from medrefl_utils.trees import search
from medrefl_utils.trees.search import SearchSettings, Watch, grow_trees

Ledger = dict[str, int]
"""Calls and tokens that the results cost, whenever they were paid; and what ended or was cut, by reason."""


@dataclass(frozen=True)
class _Shard:
    """Questions that are worked on together, and the file that holds what came of it."""

    questions: tuple[Question, ...]
    key: str
    path: Path


def roll_out(
    questions: Sequence[Question],
    generator: Generator,
    folder: Path,
    *,
    shards: Path,
    growth: SearchSettings,
    sampling: Sampling,
    seed: int,
    shard_size: int = 64,
    screening_chains: int = 0,
) -> tuple[pd.DataFrame, Ledger]:
    """The trees of these questions, written to ``folder``; returns all steps and what they cost.

    Results are kept in ``shards`` by the hash of questions, prompts, growth, sampling, seed, generator and code: a
    rerun goes on where it stopped, and a change of parameters loses nothing before its own trees are complete. With
    ``screening_chains`` so many whole chains are drawn for each question first; those whose chains are all right or all
    wrong get no tree (``too_easy``, ``too_hard`` in the ledger).

    The ledger's ``requests`` to an endpoint, and those ``reused`` from its log, are this session's alone.

    Raises:
        MedReflError: no question is left to grow a tree for.
    """
    common = [_code(generator), prompts.version(), asdict(sampling), seed, generator.key]
    ledger: Counter[str] = Counter()
    kept: list[_Shard] = []
    if screening_chains:
        whole = replace(sampling, max_tokens=growth.max_path_tokens)
        kept = _cut(questions, shard_size, shards, ["ease", screening_chains, growth.max_path_tokens, *common])
        work = partial(_screening, chains=screening_chains, sampling=whole, seed=seed)
        ease = _made(kept, generator, work, SCREENING, _Bar("chains", len(questions), generator), ledger)
        questions, left_out = screen_questions(questions, ease)
        ledger.update(left_out)
        if not questions:
            raise MedReflError(
                f"rollout: of {ease['question_id'].nunique()} questions, all {screening_chains} chains of each were "
                f"right ({left_out['too_easy']}) or all wrong ({left_out['too_hard']}): none is left to grow a tree for"
            )
    parts = _cut(questions, shard_size, shards, ["trees", asdict(growth), *common])
    bar = _Bar("trees", len(questions), generator)
    work = partial(_grow, growth=growth, sampling=sampling, seed=seed, watch=bar)
    steps = _made(parts, generator, work, STEPS, bar, ledger)
    _lay_out([part.path for part in parts], folder)
    for stale in set(shards.glob("*.parquet")) - {part.path for part in [*kept, *parts]}:
        stale.unlink()
    return steps, dict(ledger) | {"requests": generator.usage.requests, "reused": generator.usage.reused}


def screen_questions(questions: Sequence[Question], ease: pd.DataFrame) -> tuple[list[Question], dict[str, int]]:
    """The questions whose chains (a table of EASE) are neither all right nor all wrong, and how many were left out."""
    right = dict(zip(ease["question_id"], ease["right"] / ease["chains"], strict=True))
    mixed = [question for question in questions if 0 < right[question.question_id] < 1]
    easy = sum(right[question.question_id] == 1 for question in questions)
    return mixed, {"too_easy": easy, "too_hard": len(questions) - len(mixed) - easy}


def _grow(
    generator: Generator, shard: _Shard, *, growth: SearchSettings, sampling: Sampling, seed: int, watch: Watch
) -> tuple[pd.DataFrame, Ledger]:
    counts: Counter[str] = Counter()
    before = copy(generator.usage)
    steps = grow_trees(
        shard.questions, generator, growth=growth, sampling=sampling, seed=seed, watch=watch, counts=counts
    )
    return steps, _cost(generator, before) | counts


def _screening(
    generator: Generator, shard: _Shard, *, chains: int, sampling: Sampling, seed: int
) -> tuple[pd.DataFrame, Ledger]:
    before = copy(generator.usage)
    drawn = generator.expand(
        [Prefix(prompts.exam(question)) for question in shard.questions],
        chains,
        None,
        sampling,
        [[derive_seed(seed, question.question_id, "ease", i) for i in range(chains)] for question in shard.questions],
    )
    right = [
        sum(extract_answer(chain.text, question.options).letter == question.gold for chain in row)
        for question, row in zip(shard.questions, drawn, strict=True)
    ]
    ids = [question.question_id for question in shard.questions]
    table = pd.DataFrame({"question_id": ids, "chains": chains, "right": right})
    return table, _cost(generator, before)


def _cost(generator: Generator, before: Usage) -> Ledger:
    """What a shard cost. Nothing that would be otherwise another time: the same trees are the same file."""
    used = generator.usage.since(before)
    return {name: used[name] for name in ("calls", "prompt_tokens", "completion_tokens")}


def _cut(questions: Sequence[Question], size: int, shards: Path, common: Sequence[object]) -> list[_Shard]:
    parts = [tuple(questions[start : start + size]) for start in range(0, len(questions), size)]
    keys = [_digest([[[q.question_id, q.stem, dict(q.options), q.gold] for q in part], *common]) for part in parts]
    return [_Shard(part, key, shards / f"{key}.parquet") for part, key in zip(parts, keys, strict=True)]


def _made(
    shards: Sequence[_Shard],
    generator: Generator,
    work: Callable[[Generator, _Shard], tuple[pd.DataFrame, Ledger]],
    schema: pa.Schema,
    bar: _Bar,
    ledger: Counter[str],
) -> pd.DataFrame:
    """The table of all shards, those that are not on disk made first; what all of them cost goes into the ledger."""
    missing = []
    for shard in shards:
        if (table := _found(shard, schema)) is None:
            missing.append(shard)
        else:
            bar.done(shard, table)
    for shard, (table, cost) in generator.spread(work, missing):
        write_table(shard.path, table, schema, key=shard.key, notes=cost)
        bar.done(shard, table)
    bar.close()
    for shard in shards:
        ledger.update(table_notes(shard.path))
    return pd.concat([read_table(shard.path, schema) for shard in shards], ignore_index=True)


def _found(shard: _Shard, schema: pa.Schema) -> pd.DataFrame | None:
    """A shard's table if it is on disk; one that is damaged is set aside under another name, and told."""
    if not shard.path.exists():
        return None
    try:
        table = read_table(shard.path, schema)
        asked = {question.question_id for question in shard.questions}
        if table_key(shard.path) == shard.key and set(table["question_id"]) <= asked:
            return table
        why = "it is of other questions or settings"
    except MedReflError as error:
        why = str(error)
    aside = shard.path.with_suffix(".damaged")
    shard.path.replace(aside)
    tqdm.write(f"rollout: set aside as {aside}, its {len(shard.questions)} questions are done again: {why}", sys.stderr)
    return None


def _lay_out(parts: Sequence[Path], folder: Path) -> None:
    """The folder with these parts and no others; they are links where the file system has them."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {folder / f"part-{number:05d}.parquet": part for number, part in enumerate(parts)}
    for place, part in wanted.items():
        beside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            os.link(part, beside)
        except OSError:
            shutil.copyfile(part, beside)
        os.replace(beside, place)
        beside.unlink(missing_ok=True)  # to rename a link onto another of the same file does nothing
    for stale in set(folder.glob("*.parquet")) - set(wanted):
        stale.unlink()


class _Bar:
    """The bar of a whole run: tokens a second, and the leaves of all shards, those that were on disk included."""

    def __init__(self, title: str, questions: int, generator: Generator):
        self.bar = tqdm(total=questions, desc=title, unit="question")
        self.generator, self.written = generator, generator.usage.completion_tokens
        self.start = time.perf_counter()
        self.right = self.wrong = 0

    def __call__(self, opened: int, right: int, wrong: int) -> None:
        """Show a shard's trees as they grow."""
        self._show(opened, self.right + right, self.wrong + wrong)

    def done(self, shard: _Shard, table: pd.DataFrame) -> None:
        """Count a shard that is complete."""
        self.bar.update(len(shard.questions))
        if "outcome" in table:
            self.right += int((table["outcome"] > 0).sum())
            self.wrong += int((table["outcome"] < 0).sum())
            self._show(0, self.right, self.wrong)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self.bar.close()

    def __reduce__(self) -> tuple[Callable[[], Watch], tuple[()]]:
        return _silent, ()  # a worker elsewhere has no terminal to show it on

    def _show(self, opened: int, right: int, wrong: int) -> None:
        written = self.generator.usage.completion_tokens - self.written
        rate = written / max(1e-9, time.perf_counter() - self.start)
        leaves = {"tokens/s": f"{rate:.0f}", "open": opened, "right": right, "wrong": wrong}
        self.bar.set_postfix(leaves | self.generator.budget.shown(self.generator.spent))


def _silent() -> Watch:
    return _say_nothing


def _say_nothing(*_: Any) -> None:
    pass


def _code(generator: Generator) -> str:
    """A hash of the code that makes the trees: other code, other trees."""
    modules = (search, answers, sys.modules[__name__], sys.modules[type(generator).__module__])
    return _digest([inspect.getsource(module) for module in modules])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
