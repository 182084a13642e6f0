"""Predict what a profile costs before it runs: calls, tokens, time and price of each stage that runs a model.

The prediction measures a small run, the probe, with the stages' own functions: the trees of a few questions of stage
01; their pairs and reflections; a few training steps on these pairs; answers of the base and of the probe's adapter.
It scales each measurement to the size of the run. It leaves out the start-up, tables and plots of the notebooks.
Replies of an endpoint are kept in the run's log, so the run does not pay for them again. ``models.memory`` predicts
the memory of training, for this machine or for another GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pandas as pd
from rich.table import Table

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.core.store import read_table
from medrefl_utils.evaluation import self_correction
from medrefl_utils.evaluation.protocols import make_protocol
from medrefl_utils.evaluation.responses import collect_responses
from medrefl_utils.exam import prompts
from medrefl_utils.exam.benchmarks import load_benchmark
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.models.generators.opening import open_generator
from medrefl_utils.models.generators.servers.rate_limits import RateLimits
from medrefl_utils.models.loading import load_tokenizer
from medrefl_utils.models.memory import ModelShape, fit_training, longest_pairs
from medrefl_utils.pairs import pair_table, reasoning, reflection, reflection_writing
from medrefl_utils.pairs.pair_table import select_kinds
from medrefl_utils.runs.chain_probe import probe_chains
from medrefl_utils.runs.distributed_training import training_settings
from medrefl_utils.runs.profiles import load_profile
from medrefl_utils.runs.provenance import RUN_DATE, run_date
from medrefl_utils.runs.stages import BASELINE, CONTINUES, FINE_TUNING, FOLLOWS, STAGES
from medrefl_utils.runs.tuning_probe import probe_tuning, tuning_memory
from medrefl_utils.training.dpo import train_dpo
from medrefl_utils.training.settings import MonitorSettings
from medrefl_utils.training.token_ids import end_of_turn, pair_lengths, tokenize_pairs
from medrefl_utils.trees import corrections
from medrefl_utils.trees.growing_tree import SearchSettings
from medrefl_utils.trees.rollout import roll_out
from medrefl_utils.trees.values import paths

_ROLLOUT, _PAIRS = "01_tree_rollout", "03_pair_construction"
_TRAINING, _EVALUATION = "04_dpo_lora_4bit", "05_benchmark_evaluation"
_CHAINS = "08_knowledge_chains"
_ANSWERS = 4
"""Answers and reflections per tree of the probe: they cost about as much as the tree, in equally full batches."""
_ENOUGH = 10
"""Pairs of a kind from which their number in the whole run is predicted within about a third (ours)."""
_PASSES = 6
"""Batches to train on."""
_REFERENCE = 1 / 3
"""Cost of the reference's forward pass, as a share of a training step's forward and backward pass (ours)."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Work:
    """Work of a model: number of calls, tokens read (prompt) and written (generated), and seconds on this machine."""

    calls: float = 0.0
    read: float = 0.0
    written: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * value for value in astuple(self)))


@dataclass(frozen=True)
class Cost:
    """The work of a stage, and ``how`` it was estimated."""

    stage: str
    work: Work
    how: str


@dataclass(frozen=True)
class Plan:
    """The costs of the stages that run a model, in order, and lines on the memory of training."""

    costs: list[Cost]
    memory: list[str]


def plan_run(
    profile: Path, *, root: Path, overrides: Sequence[str] = (), probe: int = 64, card: float | None = None
) -> Plan:
    """Predict the costs of a profile from a probe.

    Args:
        profile: the YAML file.
        root: the checkout.
        overrides: texts ``section.key=value`` that win over the profile.
        probe: number of questions to run. With 0 no model runs, and only the memory of training is predicted.
        card: GPU memory in GiB to plan for; by default this machine. The prediction uses the run's pairs if they
            exist, else the probe's.

    Raises:
        MedReflError: the profile, its questions or its models are wrong; ``probe`` or ``card`` is out of range; or
            ``screening_chains`` rejects every question of the probe.
    """
    if probe < 0:
        raise MedReflError(f"plan: --probe is {probe}, expected at least 0")
    if card is not None and card <= 0:
        raise MedReflError(f"plan: --card is {card:g} GiB, expected more than 0")
    notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    loaded = load_profile(profile, notebooks, root=root, overrides=overrides, follows=FOLLOWS, continues=CONTINUES)
    # Before the fine-tuned model is there, the model that it starts from stands for it: it has the same sizes.
    parameters = loaded.before_tuning(root)
    rollout, pairing, training, asking = (parameters[name] for name in (_ROLLOUT, _PAIRS, _TRAINING, _EVALUATION))
    run = RunFiles(root / "runs" / loaded.run)
    tuning = parameters[FINE_TUNING] if FINE_TUNING in loaded.stages else None
    os.environ[RUN_DATE] = run_date(run)  # the probe's prompts are the run's
    there = select_kinds(read_table(run.pairs, PAIRS), training["kinds"]) if run.pairs.exists() else None
    first = tuning_memory(tuning, run, card) if tuning else []
    trees_grow = set(loaded.stages or BASELINE) & set(BASELINE)
    if not probe:
        return Plan([], first + (training_memory(training, there, f"of {run.root.name}", card) if trees_grow else []))
    before = _before_trees(parameters, loaded.stages, run, probe)
    if not trees_grow:
        return Plan(before, first)
    exam = load_benchmark(
        rollout["questions"], split=rollout["split"], limit=rollout["n_questions"], offset=rollout["offset"],
        seed=rollout["seed"], answer_base=rollout["answer_base"],
    )  # fmt: skip
    held_out = load_benchmark(
        asking["questions"], split=asking["split"], limit=asking["n_questions"] or None, offset=asking["offset"],
        seed=asking["seed"], answer_base=asking["answer_base"],
    )  # fmt: skip
    probed, times = exam[:probe], len(exam) / len(exam[:probe])
    with TemporaryDirectory() as folder:
        files = RunFiles(Path(folder) / "probe")
        opened, generator = _opening(lambda: _writer(rollout, run.calls))
        trees, steps = probe_trees(probed, generator, rollout, files)
        costs = [Cost(_ROLLOUT, trees * times + opened, f"the trees of {len(probed)} of {len(exam)} questions")]
        generator = None  # one model at a time
        opened, generator = _opening(lambda: _writer(pairing, run.calls))
        written, made, expected = probe_pairs(probed, steps, generator, pairing, times)
        costs.append(Cost(_PAIRS, written + opened, pairs_text(expected, made)))
        generator = None
        opened, base = _opening(lambda: _writer(asking, run.calls))
        answers, begun = probe_answers(held_out, base, asking, files, probe)
        base = None
        chosen = {kind: n for kind, n in expected.items() if kind in training["kinds"]}
        few = made[made["kind"].isin(training["kinds"])]
        known, whose = (few, "of the probe") if there is None else (there, f"of {run.root.name}")
        memory = first + training_memory(training, known, whose, card)
        learnt, tokens = probe_training(made, chosen, training, files) if fits_here(few, training) else (Work(), 0.0)
        passes = f"{tokens:,.0f} tokens of {sum(chosen.values()):.0f} pairs"
        why = (
            "the probe made no pair: increase --probe" if few.empty else "not measured: it does not fit on this machine"
        )
        costs.append(Cost(_TRAINING, learnt, passes if tokens else why))
        adapter = files.adapter if tokens else None
        how = "answers of base and adapter; a judge's replies are not counted"
        if asking["endpoint"]:  # a server has the run's adapter, not the probe's
            answers, again = answers * 2, Work()
            how = "answers of the base, twice: the adapter's cost as much; a judge's replies are not counted"
        else:
            again, tuned = _opening(lambda: _writer(asking, run.calls, adapter))
            answers = answers + probe_answers(held_out, tuned, asking, files, probe, begun)[0]
        answers = replace(answers, seconds=answers.seconds / max(1, asking["workers"]))
        costs.append(Cost(_EVALUATION, answers + opened + again, how))
    if loaded.baseline:
        same = sum((cost.work for cost in costs), Work())
        costs.append(Cost("baseline", same, f"the stages from {_ROLLOUT} on, on {loaded.original}, estimated as equal"))
    return Plan(before + costs, memory)


def _before_trees(
    parameters: Mapping[str, Mapping[str, Any]], stages: Sequence[str], run: RunFiles, probe: int
) -> list[Cost]:
    """Return the costs of the chains and of the fine-tuning, where a profile names their stages."""
    costs = []
    if _CHAINS in stages:
        work, how = probe_chains(parameters[_CHAINS], run, probe)
        costs.append(Cost(_CHAINS, Work(*work), how))
    if FINE_TUNING in stages:
        with TemporaryDirectory() as folder:
            seconds, how = probe_tuning(parameters[FINE_TUNING], run, RunFiles(Path(folder) / "probe"))
            costs.append(Cost(FINE_TUNING, Work(seconds=seconds), how))
    return costs


def training_memory(
    settings: Mapping[str, Any], made: pd.DataFrame | None, whose: str, card: float | None = None
) -> list[str]:
    """Return lines on the memory of stage 04: with the longest of the ``made`` pairs, and with the longest possible."""
    shape, limit = ModelShape.named(settings["model"]), settings["max_length"]
    most = fit_training(shape, longest_pairs(limit, settings["batch_size"]), settings=settings, card=card)
    lines = [f"{_TRAINING}, both sides filling max_length {limit}: {most.line()}"]
    if made is None or made.empty:
        return lines
    ids = _ids(made, settings)
    longest = fit_training(shape, pair_lengths(ids), settings=settings, card=card)
    return [f"{_TRAINING}, the {len(ids)} pairs {whose}, up to {ids.length.max()} tokens: {longest.line()}", *lines]


def fits_here(made: pd.DataFrame, settings: Mapping[str, Any]) -> bool:
    """Predict whether training on these pairs fits on this machine."""
    shape = ModelShape.named(settings["model"])
    return made.empty or fit_training(shape, pair_lengths(_ids(made, settings)), settings=settings).changes == {}


def _ids(made: pd.DataFrame, settings: Mapping[str, Any]) -> pd.DataFrame:
    tokenizer = load_tokenizer(settings["model"])
    return tokenize_pairs(made, tokenizer, end=end_of_turn(tokenizer), max_length=settings["max_length"])[0]


def probe_trees(
    probed: Sequence[Question], generator: Generator, settings: Mapping[str, Any], files: RunFiles
) -> tuple[Work, pd.DataFrame]:
    """Run stage 01 on these questions; return the work and the steps of their trees."""
    names = (
        "max_depth",
        "max_path_tokens",
        "force_answer",
        "unfinished",
        "search_mode",
        "max_frontier",
        "max_leaves",
        "steps",
    )
    names += ("target_right", "target_wrong", "steps")
    growth = SearchSettings(tuple(settings["branching"]), **{name: settings[name] for name in names})
    sampling = Sampling(settings["temperature"], settings["top_p"], settings["max_step_tokens"])
    same = {name: settings[name] for name in ("seed", "shard_size", "screening_chains")}
    work, (steps, _) = _measured(
        generator,
        lambda: roll_out(probed, generator, files.steps, shards=files.shards, growth=growth, sampling=sampling, **same),
    )
    return replace(work, seconds=work.seconds / max(1, settings["workers"])), steps


def probe_pairs(
    probed: Sequence[Question], steps: pd.DataFrame, writer: Generator, settings: Mapping[str, Any], times: float
) -> tuple[Work, pd.DataFrame, dict[str, float]]:
    """Run stage 03 on the probe; return the work of the whole run, the probe's pairs, and the pairs expected per kind.

    The run has ``times`` as many questions as the probe. A reply of locator, judge or thinker counts as one reflection.
    """
    chains, kinds, seed = paths(steps), settings["kinds"], settings["seed"]
    made = {}
    made["reasoning"], _ = reasoning.reasoning_pairs(
        probed, steps, chains, prompt=prompts.exam,
        **{name: settings[name] for name in ("top_k", "min_margin", "max_per_question")},
    )  # fmt: skip
    made["random_cot"], _ = reasoning.random_pairs(
        probed, steps, chains, made["reasoning"], prompt=prompts.exam, seed=seed, draws=settings["random_cot_draws"]
    )
    expected = {kind: _at_most(times * len(table), settings["max_per_kind"]) for kind, table in made.items()}

    located = corrections.locate_errors(steps, settings["error_margin"], settings["error_by_chance"])
    candidates, turns, replies = {}, {}, 0.0
    for kind in (kind for kind in kinds if kind.startswith("reflection_")):
        _, candidates[kind], _ = reflection.candidates_of(
            kind, steps, chains, located, weights=settings["action_weights"], top_k=settings["top_k"],
            min_margin=settings["min_action_margin"], max_per_question=settings["max_per_question"],
            invalid=settings["invalid_side"],
        )  # fmt: skip
        expected[kind] = _at_most(times * len(candidates[kind]), settings["max_reflection_pairs"])
        # Pairs share corrections, and more so if there are many pairs.
        few, _ = pair_table.sample_at_most(candidates[kind], max(1, round(expected[kind] / times)), seed)
        replies += expected[kind] / max(1, len(few)) * len(reflection.correction_texts(probed, steps, chains, few))
        turns |= reflection.correction_texts(probed, steps, chains, candidates[kind])
    turns = dict(list(turns.items())[: _ANSWERS * len(probed)])
    sampling = Sampling(settings["temperature"], settings["top_p"], settings["max_new_tokens"])
    by_truth = settings["reflection_writer"] == "clinic"
    replies *= not by_truth
    work, (table, _) = _measured(
        writer,
        lambda: (
            reflection_writing.write_by_truth(turns)
            if by_truth
            else reflection_writing.write_reflections(turns, writer, sampling=sampling, seed=seed)
        ),
    )
    passed = float(table["text"].notna().mean()) if len(table) else 0.0
    texts = reflection_writing.accepted_reflections(table)
    for kind, of_kind in candidates.items():
        made[kind], _ = reflection.reflection_pairs(
            probed, steps, chains, of_kind, texts, kind=kind, prompt=prompts.exam
        )
        expected[kind] *= passed**2  # a pair needs a reflection on each side
    expected = {kind: n for kind, n in expected.items() if kind in kinds}
    n = sum(expected.values())
    replies += times * len(located) if settings["locator"] == "model" else 0
    replies += (n if settings["judge"] != "off" else 0) + (2 * n if settings["thinker"] else 0)
    return work * (replies / max(1, len(turns))), pd.concat(made.values(), ignore_index=True), expected


def pairs_text(expected: Mapping[str, float], made: pd.DataFrame) -> str:
    """Return the pairs expected per kind in words, and of which kinds the probe made too few to tell.

    Args:
        expected: {kind: number of pairs of the whole run}.
        made: the probe's pairs.
    """
    counts = made["kind"].value_counts()
    few = [f"{counts.get(kind, 0)} {kind}" for kind in expected if counts.get(kind, 0) < _ENOUGH]
    what = ", ".join(f"{n:.0f} {kind}" for kind, n in expected.items())
    note = f"; too few to tell, the probe made only {', '.join(few)}: increase --probe" if few else ""
    return f"estimated pairs: {what}{note}"


def probe_training(
    made: pd.DataFrame, expected: Mapping[str, float], settings: Mapping[str, Any], files: RunFiles
) -> tuple[Work, float]:
    """Train on a few of the ``made`` pairs; return the work of stage 04 on ``expected`` pairs, and their tokens.

    The adapter is written to ``files.adapter``. Without a pair to train on, return no work and no tokens.
    """
    dpo, economy, _ = training_settings(settings, files)
    n, size = sum(expected.values()), dpo.batch_size
    shares = {kind: expected[kind] / n for kind in expected if expected[kind] and (made["kind"] == kind).any()}
    if not shares:
        return Work(), 0.0
    few = pd.concat(
        [pair_table.sample_at_most(made[made["kind"] == kind], max(1, round(_PASSES * size * share)), 0)[0]
         for kind, share in shares.items()], ignore_index=True,
    )  # fmt: skip
    stamps = [time.perf_counter()]
    upkeep = MonitorSettings(stop_on=(), show=lambda log: stamps.append(time.perf_counter()))
    probe = replace(dpo, epochs=1, gradient_accumulation=1, held_out_share=0.0)
    train_dpo(few, settings["model"], files.adapter, dpo=probe, seed=settings["seed"], economy=economy, upkeep=upkeep)
    begin, first, *_, last = [*stamps, stamps[-1]]
    a_pair = (last - first) / (len(few) - size) if len(few) > size else (last - begin) / len(few)
    setting_up = max(0.0, first - begin - a_pair * (min(size, len(few)) + _REFERENCE * len(few)))
    seconds = setting_up + a_pair * n * ((1 - dpo.held_out_share) * dpo.epochs + _REFERENCE)
    lengths = few[["chosen_tokens", "rejected_tokens"]].astype(float).sum(axis=1)
    return Work(seconds=seconds), dpo.epochs * n * float(lengths.mean())


def probe_answers(
    exam: Sequence[Question],
    generator: Generator,
    settings: Mapping[str, Any],
    files: RunFiles,
    probe: int,
    begun: pd.DataFrame | None = None,
) -> tuple[Work, pd.DataFrame]:
    """Run one model's part of stage 05: its answers, and its continuations from the starting points ``begun``.

    Without ``begun`` (the base's part), grow the held-out trees first and take the starting points from them. Return
    the work and the starting points.
    """
    names = ("seed", "n_runs", "temperature", "top_p", "n_votes", "thinking_budget", "repetition_penalty")
    same = {name: settings[name] for name in names} | {"max_tokens": settings["max_new_tokens"]}
    ways = [make_protocol(name, **same) for name in settings["protocols"]]
    asked, seed, name = exam[: _ANSWERS * probe], settings["seed"], "base" if begun is None else "medrefl"
    work = Work()
    for way in ways:
        one, _ = _measured(
            generator,
            lambda way=way: collect_responses(
                asked, generator, model=name, protocol=way, seed=seed, answer_format=settings["answer_format"]
            ),
        )
        work += one * (len(exam) / len(asked))

    wrong = exam[: min(probe, settings["self_correction_questions"])]
    times = min(len(exam), settings["self_correction_questions"]) / max(1, len(wrong))
    sampling = Sampling(settings["temperature"], settings["top_p"], settings["max_new_tokens"])
    if begun is None:
        growth = SearchSettings(
            tuple(settings["self_correction_branching"]),
            max_path_tokens=settings["max_new_tokens"],
            steps=settings["steps"],
        )
        one, (steps, _) = _measured(
            generator,
            lambda: roll_out(
                wrong, generator, files.held_out_trees, shards=files.shards, growth=growth, sampling=sampling, seed=seed
            ),
        )
        work += one * times
        begun = self_correction.starting_points(steps, seed)
    by_id = {question.question_id: question for question in wrong}
    one, _ = _measured(
        generator,
        lambda: self_correction.continue_from(
            begun,
            by_id,
            generator,
            model=name,
            sampling=sampling,
            seed=seed,
            samples=settings["self_correction_samples"],
        ),
    )
    return work + one * times, begun


def plan_table(costs: Sequence[Cost], input_price: float, output_price: float) -> Table:
    """Format the costs as a table for a terminal; prices are per million tokens read and written, 0 means no price."""
    table = Table(title="predicted cost", title_justify="left", caption_justify="left", box=None)
    priced = bool(input_price or output_price)
    for name in ("stage", "calls", "tokens read", "tokens written", "time", *(["price"] if priced else [])):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    rows = [(cost.stage, cost.work) for cost in costs]
    for name, work in [*rows, ("all", sum((work for _, work in rows), Work()))]:
        money = (input_price * work.read + output_price * work.written) / 1e6
        figures = [f"{value:,.0f}" for value in (work.calls, work.read, work.written)]
        table.add_row(name, *figures, _time(work.seconds), *([f"{money:,.2f}"] if priced else []))
    table.caption = "\n".join(f"{cost.stage}: {cost.how}" for cost in costs)
    return table


def _writer(settings: Mapping[str, Any], calls: Path, adapter: Path | None = None) -> Generator:
    """Open the generator of a stage in this process. A run with several workers opens one in each."""
    names = ("quantization", "max_rows", "engine", "endpoint", "endpoint_model", "concurrency")
    kept = calls if settings["endpoint"] else None  # keep paid replies; local ones must be timed
    limits = RateLimits(*(settings[name] for name in ("requests_per_minute", "tokens_per_minute", "max_wait")))
    given = {name: settings[name] for name in names}
    return open_generator(settings["model"], adapter=adapter, limits=limits, calls=kept, **given)


def _opening(make: Callable[[], _T]) -> tuple[Work, _T]:
    start = time.perf_counter()
    made = make()
    return Work(seconds=time.perf_counter() - start), made


def _measured(generator: Generator, work: Callable[[], _T]) -> tuple[Work, _T]:
    before, start = copy(generator.usage), time.perf_counter()
    result = work()
    seconds, used = time.perf_counter() - start, generator.usage.since(before)
    return Work(used["calls"], used["prompt_tokens"], used["completion_tokens"], seconds), result


def _at_most(number: float, limit: int) -> float:
    """Return ``number``, at most ``limit``; a limit of 0 means no limit."""
    return min(number, limit) if limit else number


def _time(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
