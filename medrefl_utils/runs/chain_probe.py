"""Run stage 08 on a few questions, to predict what it costs on all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from medrefl_utils.core.records import Sampling
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.exam.benchmarks import load_benchmark
from medrefl_utils.knowledge.chains.filter import pass_rates
from medrefl_utils.knowledge.chains.support import SupportChecker
from medrefl_utils.knowledge.chains.table import chain_steps, chain_table, write_chains, write_chains_by_rule
from medrefl_utils.knowledge.graph_source import load_graph
from medrefl_utils.knowledge.linking import Linker
from medrefl_utils.knowledge.question_paths import find_question_paths
from medrefl_utils.models.generators.call_log import CallLog
from medrefl_utils.models.generators.opening import open_generator

_OPENED = ("quantization", "max_rows", "engine", "endpoint", "endpoint_model", "concurrency")
_LIMITS = ("max_hops", "max_paths", "paths_per_pair", "max_chosen", "path_targets", "seed")


def probe_chains(
    settings: Mapping[str, Any], run: RunFiles, probe: int
) -> tuple[tuple[float, float, float, float], str]:
    """Make the chains of the first ``probe`` questions, and scale what they cost to all questions.

    The paths are chosen by rule, and the stage's own model filters, whatever ``path_choice`` and ``filter_model`` say.

    Args:
        settings: parameters of the stage.
        run: the run's files; a server's replies are kept in its log, and the graph's cache beside it.
        probe: number of questions.

    Returns:
        (calls, tokens read, tokens written, seconds) of the whole stage, and how they were estimated.
    """
    questions = load_benchmark(
        settings["questions"], split=settings["split"], limit=settings["n_questions"] or None,
        offset=settings["offset"], seed=settings["seed"], answer_base=settings["answer_base"],
    )  # fmt: skip
    few = questions[:probe]
    start = time.perf_counter()
    graph = load_graph(settings["graph"], columns=settings["graph_columns"], folder=run.root)
    link = Linker(graph).link
    kept = run.calls if settings["endpoint"] else None  # local replies must be timed
    generator = open_generator(settings["model"], **{name: settings[name] for name in _OPENED}, calls=kept)
    opened = time.perf_counter() - start
    found = find_question_paths(few, graph, link, **{name: settings[name] for name in _LIMITS})
    if settings["writer"] == "model":
        sampling = Sampling(settings["temperature"], settings["top_p"], settings["max_new_tokens"])
        asking = dict(answer_in_prompt=settings["answer_in_prompt"], sampling=sampling, seed=settings["seed"])
        written, _ = write_chains(found, graph, generator, **asking)
    else:
        written = write_chains_by_rule(found, graph)
    table = chain_table(found, written, graph, SupportChecker(graph, link), chain_format=settings["chain_format"])
    chains = chain_steps(table)
    if settings["filter_model"] != "off" and chains:
        pass_rates(
            [question for question in few if question.question_id in chains], chains, generator,
            log=CallLog(None), samples=settings["filter_samples"], seed=settings["seed"],
            sampling=Sampling(settings["filter_temperature"], 1.0, settings["max_filter_tokens"]),
        )  # fmt: skip
    times, used = len(questions) / max(1, len(few)), generator.usage
    seconds = (time.perf_counter() - start - opened) * times + opened
    work = (used.calls * times, used.prompt_tokens * times, used.completion_tokens * times, seconds)
    return work, f"the chains of {len(few)} of {len(questions)} questions"
