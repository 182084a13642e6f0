"""Grow the trees of an exam in shards of whole questions, and write each result to disk at once: stage 01.

The file name of a shard is the hash of everything that the shard depends on. A shard on disk is not grown again, even
if other settings were run in between. After the requested trees are complete, shards of other settings move to the
folder ``superseded``, from where a run with these settings takes them back. No run deletes a shard; ``medrefl clean``
lists and removes the superseded ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.core.run_files import SUPERSEDED
from medrefl_utils.core.schemas import SCREENING, STEPS
from medrefl_utils.core.source_code import code_hash
from medrefl_utils.core.store import read_table, table_key, table_notes, write_table
from medrefl_utils.exam import answers, prompts
from medrefl_utils.exam import steps as exam_steps
from medrefl_utils.exam.answers.reader import extract_answer
from medrefl_utils.models import chat_templates, generators
from medrefl_utils.models.generators.interface import Generator, Prefix, Usage, derive_seed
from medrefl_utils.trees import growing_tree, search
from medrefl_utils.trees.growing_tree import SearchSettings
from medrefl_utils.trees.search import Watch, grow_trees

Ledger = DropCounts
"""Calls and tokens that the results cost, in this run or earlier; and counts of what ended or was cut, by reason.

Its one fault is ``refused``: questions without a tree, because a server refused a prompt of theirs.
"""

_EXAMPLES = "examples"
"""The note beside a shard's counts that has an example of each fault."""
_MANY_CUT = 0.05
"""Warn if limits cut more than this share of the leaves (ours)."""


@dataclass(frozen=True)
class _Shard:
    """Questions that grow together, and the file with their result."""

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
    """Grow the trees of these questions and write them to ``folder``.

    A rerun continues where it stopped. A change of parameters deletes nothing.

    Args:
        questions: the roots of the trees.
        generator: writes the steps.
        folder: gets the table of steps, one file per shard.
        shards: folder that keeps results by the hash of questions, prompts, growth, sampling, seed, generator and code.
        growth: the shape of the trees.
        sampling: how tokens are drawn; ``max_tokens`` limits one step.
        seed: the run's seed.
        shard_size: number of questions per shard.
        screening_chains: number of whole chains drawn per question first; 0: none. A question whose chains are all
            right or all wrong gets no tree (``too_easy``, ``too_hard`` in the ledger).

    Returns:
        All steps, and the ledger. Its ``requests`` to an endpoint, the ``probes`` among them, and the replies
        ``reused`` from the log count this session only.

    Raises:
        MedReflError: the screening leaves no question.
    """
    common = [_code(), prompts.version(), asdict(sampling), seed, generator.key]
    ledger = Ledger()
    kept: list[_Shard] = []
    if screening_chains:
        whole = replace(sampling, max_tokens=growth.max_path_tokens)
        kept = _cut(questions, shard_size, shards, ["ease", screening_chains, growth.max_path_tokens, *common])
        work = partial(_screening, chains=screening_chains, sampling=whole, seed=seed)
        ease = _made(kept, generator, work, SCREENING, _Bar("chains", len(questions), generator), ledger)
        questions, left_out = screen_questions(questions, ease)
        ledger.add(left_out)
        if not questions:
            raise MedReflError(
                f"rollout: of {ease['question_id'].nunique()} questions, all {screening_chains} chains of each were "
                f"right ({left_out['too_easy']}) or all wrong ({left_out['too_hard']}): no question is left for a tree"
            )
    parts = _cut(questions, shard_size, shards, ["trees", asdict(growth), *common])
    bar = _Bar("trees", len(questions), generator)
    work = partial(_grow, growth=growth, sampling=sampling, seed=seed, watch=bar)
    steps = _made(parts, generator, work, STEPS, bar, ledger)
    _lay_out([part.path for part in parts], folder)
    for stale in set(shards.glob("*.parquet")) - {part.path for part in [*kept, *parts]}:
        aside = shards / SUPERSEDED / stale.name
        aside.parent.mkdir(exist_ok=True)
        stale.replace(aside)
    ledger.add({name: getattr(generator.usage, name) for name in ("requests", "probes", "reused")})
    return steps, ledger


def screen_questions(questions: Sequence[Question], ease: pd.DataFrame) -> tuple[list[Question], dict[str, int]]:
    """Return the questions whose chains are neither all right nor all wrong, and counts of the others.

    ``ease`` is a table with the columns of ``core.schemas.SCREENING``. Questions without a row were refused.
    """
    right = dict(zip(ease["question_id"], ease["right"] / ease["chains"], strict=True))
    questions = [question for question in questions if question.question_id in right]
    mixed = [question for question in questions if 0 < right[question.question_id] < 1]
    easy = sum(right[question.question_id] == 1 for question in questions)
    return mixed, {"too_easy": easy, "too_hard": len(questions) - len(mixed) - easy}


def warn_of_limits(ledger: Mapping[str, int], *, growth: SearchSettings, sampling: Sampling) -> float:
    """Return the share of leaves that a limit cut; warn if it is more than 5%, and name the parameters to raise.

    A path that a limit cuts counts as wrong, so that a low limit makes right steps look wrong.
    """
    leaves = sum(count for name, count in ledger.items() if name.startswith("ended_"))
    limits = {
        f"max_step_tokens ({sampling.max_tokens})": ledger.get("ended_run_on", 0),
        f"max_path_tokens ({growth.max_path_tokens})": ledger.get("ended_tokens", 0),
        f"max_depth ({growth.max_depth})": ledger.get("ended_depth", 0),
    }
    share = sum(limits.values()) / max(1, leaves)
    if share > _MANY_CUT:
        raised = {name: cut for name, cut in sorted(limits.items(), key=lambda limit: -limit[1]) if cut}
        each = ", ".join(f"{name} cut {cut / leaves:.0%}" for name, cut in raised.items())
        warnings.warn(
            f"rollout: limits cut {share:.0%} of {leaves} leaves, which then have no answer. Raise: {each}",
            stacklevel=2,
        )
    return share


def _grow(
    generator: Generator, shard: _Shard, *, growth: SearchSettings, sampling: Sampling, seed: int, watch: Watch
) -> tuple[pd.DataFrame, Ledger]:
    counts: Counter[str] = Counter()
    dropped, before = Ledger(), copy(generator.usage)
    steps = grow_trees(
        shard.questions,
        generator,
        growth=growth,
        sampling=sampling,
        seed=seed,
        watch=watch,
        counts=counts,
        dropped=dropped,
    )
    return steps, _cost(generator, before, counts, dropped)


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
    rows, dropped = [], Ledger()
    for question, row in zip(shard.questions, drawn, strict=True):
        if refused := [chain.refusal for chain in row if chain.stop == "refused"]:
            dropped.drop("refused", f"question {question.question_id!r}: {refused[0]}")
            continue
        letters = [
            extract_answer(chain.text, question.options, thinking_open=generator.thinking_open).letter for chain in row
        ]
        rows.append((question.question_id, chains, sum(letter == question.gold for letter in letters)))
    table = pd.DataFrame(rows, columns=["question_id", "chains", "right"])
    return table, _cost(generator, before, {}, dropped)


def _cost(generator: Generator, before: Usage, counts: Mapping[str, int], dropped: Ledger) -> Ledger:
    """Return what a shard cost, without anything that changes between runs: equal trees are equal files."""
    used = generator.usage.since(before)
    cost = Ledger({name: used[name] for name in ("calls", "prompt_tokens", "completion_tokens")})
    cost.add(counts)
    cost.add(dropped)
    return cost


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
    ledger: Ledger,
) -> pd.DataFrame:
    """Return the table of all shards, after making those that are not on disk; add the cost of all to the ledger."""
    missing = []
    for shard in shards:
        if (table := _found(shard, schema)) is None:
            missing.append(shard)
        else:
            bar.done(shard, table)
    for shard, (table, cost) in generator.spread(work, missing):
        write_table(shard.path, table, schema, key=shard.key, notes={**cost, _EXAMPLES: cost.examples})
        bar.done(shard, table)
    bar.close()
    for shard in shards:
        notes = table_notes(shard.path)
        cost = Ledger()
        cost.examples = notes.pop(_EXAMPLES, {})
        cost.add(notes)
        ledger.add(cost)
    tables = [read_table(shard.path, schema) for shard in shards]
    return pd.concat(tables, ignore_index=True) if tables else schema.empty_table().to_pandas()


def _found(shard: _Shard, schema: pa.Schema) -> pd.DataFrame | None:
    """Return a shard's table if it is on disk; rename a damaged file and report it.

    A shard with refused questions counts as missing: its replies are in the log, and the server may accept them now.
    """
    aside = shard.path.parent / SUPERSEDED / shard.path.name
    if not shard.path.exists() and aside.exists():
        aside.replace(shard.path)
    if not shard.path.exists():
        return None
    try:
        table = read_table(shard.path, schema)
        asked = {question.question_id for question in shard.questions}
        if table_key(shard.path) == shard.key and table_notes(shard.path).get(_EXAMPLES):
            return None
        if table_key(shard.path) == shard.key and set(table["question_id"]) <= asked:
            return table
        why = "it belongs to other questions or settings"
    except MedReflError as error:
        why = str(error)
    damaged = shard.path.with_suffix(".damaged")
    shard.path.replace(damaged)
    tqdm.write(
        f"rollout: set aside as {damaged}, its {len(shard.questions)} questions are repeated: {why}",
        sys.stderr,
    )
    return None


def _lay_out(parts: Sequence[Path], folder: Path) -> None:
    """Fill the folder with these parts and no others, as hard links where the file system has them."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {folder / f"part-{number:05d}.parquet": part for number, part in enumerate(parts)}
    for place, part in wanted.items():
        beside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            os.link(part, beside)
        except OSError:
            shutil.copyfile(part, beside)
        os.replace(beside, place)
        beside.unlink(missing_ok=True)  # renaming a link onto another link of the same file does nothing
    for stale in set(folder.glob("*.parquet")) - set(wanted):
        stale.unlink()


class _Bar:
    """The progress bar of a run: tokens per second, and the leaves of all shards, also of those on disk."""

    def __init__(self, title: str, questions: int, generator: Generator):
        self.bar = tqdm(total=questions, desc=title, unit="question")
        self.generator, self.written = generator, generator.usage.completion_tokens
        self.start = time.perf_counter()
        self.right = self.wrong = 0

    def __call__(self, opened: int, right: int, wrong: int) -> None:
        """Show a shard's trees as they grow."""
        self._show(opened, self.right + right, self.wrong + wrong)

    def done(self, shard: _Shard, table: pd.DataFrame) -> None:
        """Add a complete shard to the bar."""
        self.bar.update(len(shard.questions))
        if "outcome" in table:
            self.right += int((table["outcome"] > 0).sum())
            self.wrong += int((table["outcome"] < 0).sum())
            self._show(0, self.right, self.wrong)

    def close(self) -> None:
        """Close the bar; its last state stays on the screen."""
        self.bar.close()

    def __reduce__(self) -> tuple[Callable[[], Watch], tuple[()]]:
        return _silent, ()  # a worker in another process has no terminal

    def _show(self, opened: int, right: int, wrong: int) -> None:
        written = self.generator.usage.completion_tokens - self.written
        rate = written / max(1e-9, time.perf_counter() - self.start)
        leaves = {"tokens/s": f"{rate:.0f}", "open": opened, "right": right, "wrong": wrong}
        self.bar.set_postfix(leaves | self.generator.budget.shown(self.generator.spent))


def _silent() -> Watch:
    return _say_nothing


def _say_nothing(*_: Any) -> None:
    pass


def _code() -> str:
    """Return a hash of the code that makes the trees: a change of the code makes new trees.

    It covers all generators, so that Ray's actors and this process share their shards.
    """
    folders = [Path(folder.__file__).parent for folder in (answers, generators)]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return code_hash(search, growing_tree, exam_steps, chat_templates, sys.modules[__name__], *files)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
