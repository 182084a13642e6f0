"""What a profile will cost before it runs: calls, tokens, time and money of each stage that asks a model.

Stage 01 is measured: the trees of a few of its own questions are grown by its own parameters and generator, and their
cost is multiplied. So is an answer of stage 05. What stage 03 asks depends on the trees, so its figures are the most
that its parameters allow. Against an endpoint the probe's replies are kept in the run's log, and the run takes them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from medrefl_utils import prompts
from medrefl_utils.chain import STAGES
from medrefl_utils.evaluation import protocol
from medrefl_utils.generators import Generator, open_generator, seed_of
from medrefl_utils.profiles import load_profile
from medrefl_utils.questions import load_questions
from medrefl_utils.records import MedReflError, Question, RunFiles, Sampling
from medrefl_utils.search import Growth, grow

_ROLLOUT, _PAIRS, _EVALUATION = "01_tree_rollout", "03_pair_construction", "05_benchmark_evaluation"
_ATTEMPTS = 3  # of a reply that is refused


@dataclass(frozen=True)
class Cost:
    """What a stage asks of a model; ``seconds`` on this machine, ``how`` the figures were got."""

    stage: str
    calls: float
    read: float
    written: float
    seconds: float
    how: str


@dataclass(frozen=True)
class Rate:
    """One measured call: tokens read and written, seconds of its share of the batch it was in."""

    read: float
    written: float
    seconds: float


def plan(profile: Path, *, root: Path, overrides: Sequence[str] = (), probe: int = 8) -> list[Cost]:
    """The cost of each stage of a profile that asks a model, from a probe of ``probe`` questions.

    Raises:
        MedReflError: whatever is wrong with the profile, its questions or its model; a probe of no question.
    """
    if probe < 1:
        raise MedReflError(f"plan: the probe is {probe} questions, expected at least 1")
    notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    loaded = load_profile(profile, notebooks, root=root, overrides=overrides)
    rollout, evaluation = loaded.parameters[_ROLLOUT], loaded.parameters[_EVALUATION]
    exam = load_questions(
        rollout["questions"], split=rollout["split"], limit=rollout["n_questions"], offset=rollout["offset"],
        seed=rollout["seed"],
    )  # fmt: skip
    names = ("quantization", "max_rows", "engine", "endpoint", "endpoint_model", "concurrency")
    files = RunFiles(root / "runs" / loaded.run)
    generator = open_generator(rollout["model"], **{n: rollout[n] for n in names}, calls=files.calls)
    trees = grown(exam, generator, rollout, probe)
    answer = answered(exam, generator, evaluation, probe)
    return [trees, at_most(loaded.parameters[_PAIRS], len(exam), answer), responses(evaluation, answer)]


def grown(exam: Sequence[Question], generator: Generator, settings: Mapping[str, Any], probe: int) -> Cost:
    """Stage 01, from the trees of the exam's first questions (of questions that a first pass would leave out, too)."""
    names = ("max_depth", "max_path_tokens", "ask_answer", "unfinished", "mode", "max_open", "max_leaves")
    names += ("target_right", "target_wrong")
    growth = Growth(tuple(settings["branching"]), **{name: settings[name] for name in names})
    sampling = Sampling(settings["temperature"], settings["top_p"], settings["max_step_tokens"])
    before, start = copy(generator.usage), time.perf_counter()
    probed = exam[:probe]
    grow(probed, generator, growth=growth, sampling=sampling, seed=settings["seed"])
    seconds, used, times = time.perf_counter() - start, generator.usage.since(before), len(exam) / len(probed)
    return Cost(
        _ROLLOUT,
        times * used["calls"],
        times * used["prompt_tokens"],
        times * used["completion_tokens"],
        times * seconds / max(1, settings["workers"]),
        f"measured on {len(probed)} of {len(exam)} questions",
    )


def answered(exam: Sequence[Question], generator: Generator, settings: Mapping[str, Any], probe: int) -> Rate:
    """One answer as stage 05 asks for it, by the model that stage 01 runs."""
    sampling = Sampling(settings["temperature"], settings["top_p"], settings["max_new_tokens"])
    before, start = copy(generator.usage), time.perf_counter()
    asked = exam[:probe]
    seeds = [seed_of("plan", question.question_id) for question in asked]
    generator.chat([prompts.exam(question) for question in asked], sampling, seeds)
    seconds, used = time.perf_counter() - start, generator.usage.since(before)
    n = len(asked)
    return Rate(used["prompt_tokens"] / n, used["completion_tokens"] / n, seconds / n)


def at_most(settings: Mapping[str, Any], n_questions: int, answer: Rate) -> Cost:
    """Stage 03: both sides of every pair of reflections, judge, thinker; each reply refused as often as it may be."""
    kinds = sum(kind.startswith("reflection") for kind in settings["kinds"])
    of_a_kind = settings["max_per_question"] * n_questions
    reflected = kinds * min(of_a_kind, settings["max_reflection_pairs"] or of_a_kind)
    others = (len(settings["kinds"]) - kinds) * min(of_a_kind, settings["max_per_kind"] or of_a_kind)
    short = 2 * reflected + (reflected + others if settings["judge"] != "off" else 0)
    long = 2 * (reflected + others) if settings["thinker"] else 0
    calls = _ATTEMPTS * (short + long)
    written = _ATTEMPTS * (short * settings["max_new_tokens"] + long * settings["max_thought_tokens"])
    # A prompt here holds the question and, at most, three chains of it.
    read = calls * (answer.read + 3 * answer.written)
    seconds = answer.seconds * written / max(1.0, answer.written)
    return Cost(_PAIRS, calls, read, written, seconds, "at most")


def responses(settings: Mapping[str, Any], answer: Rate) -> Cost:
    """Stage 05: base and adapter, each protocol, each of its runs."""
    names = ("seed", "runs", "temperature", "top_p", "samples", "budget")
    ways = [
        protocol(name, **{key: settings[key] for key in names}, max_tokens=settings["max_new_tokens"])
        for name in settings["protocols"]
    ]
    calls = 2 * settings["n_questions"] * sum(len(way.samplings) for way in ways)
    how = "an answer's length and time as measured"
    return Cost(_EVALUATION, calls, calls * answer.read, calls * answer.written, calls * answer.seconds, how)


def plan_table(costs: Sequence[Cost], price_in: float, price_out: float) -> Table:
    """The costs for a terminal; prices are for a million tokens, read and written, and 0 is no price."""
    table = Table(title="what it would cost", title_justify="left", caption_justify="left", box=None)
    priced = bool(price_in or price_out)
    for name in ("stage", "calls", "tokens read", "tokens written", "time", *(["money"] if priced else [])):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    total = 0.0
    for cost in costs:
        money = (price_in * cost.read + price_out * cost.written) / 1e6
        total += money
        figures = [f"{value:,.0f}" for value in (cost.calls, cost.read, cost.written)]
        table.add_row(cost.stage, *figures, _time(cost.seconds), *([f"{money:,.2f}"] if priced else []))
    if priced:
        table.add_row("all", "", "", "", _time(sum(cost.seconds for cost in costs)), f"{total:,.2f}")
    table.caption = "\n".join(f"{cost.stage}: {cost.how}" for cost in costs)
    return table


def _time(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
