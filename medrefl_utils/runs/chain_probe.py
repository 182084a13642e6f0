"""Run stage 08 on a few questions, to predict what it costs on all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from medrefl_utils.core.records import Question, Sampling
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.exam.benchmarks import load_benchmark
from medrefl_utils.knowledge.chains.filter import pass_rates
from medrefl_utils.knowledge.chains.lengths import leave_out_long_paths, questions_that_fit
from medrefl_utils.knowledge.chains.support import SupportChecker
from medrefl_utils.knowledge.chains.table import chain_steps, chain_table, write_chains, write_chains_by_rule
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.graph_source import load_graph
from medrefl_utils.knowledge.linking import Linker
from medrefl_utils.knowledge.model_linking import NameEmbeddings, link_by_model
from medrefl_utils.knowledge.path_choice import choose_paths_by_model
from medrefl_utils.knowledge.question_paths import find_question_paths, question_texts
from medrefl_utils.models.embeddings import open_embedder
from medrefl_utils.models.generators.call_log import CallLog
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.models.generators.opening import open_generator
from medrefl_utils.models.generators.servers.rate_limits import RateLimits

_OPENED = ("quantization", "max_rows", "engine", "concurrency")
_PATHS = ("max_hops", "max_paths", "paths_per_pair", "max_chosen", "path_targets", "seed")
_THRESHOLDS = ("nearest", "min_cosine", "sure_cosine")


def probe_chains(
    settings: Mapping[str, Any], run: RunFiles, probe: int
) -> tuple[tuple[float, float, float, float], str]:
    """Make the chains of the first ``probe`` questions, and scale what they cost to all questions.

    The calls of linking, path choice, writing and filter count, as far as the parameters ask a model for them. What is
    done once is not scaled: reading the graph, loading models, and embedding the graph's names.

    Args:
        settings: parameters of the stage.
        run: the run's files; a server's replies are kept in its log, and the graph's caches beside it.
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
    linker = Linker(graph)
    writer, judge = _writer(settings, run), None
    if settings["filter_model"] not in ("off", "self"):
        judge = open_generator(settings["filter_model"], **{name: settings[name] for name in _OPENED})
    names = _names(settings, graph, run) if settings["linking"] == "model" else None
    opened = time.perf_counter() - start
    _make_chains(settings, few, graph, linker, writer, judge or writer, names)
    times = len(questions) / max(1, len(few))
    seconds = (time.perf_counter() - start - opened) * times / max(1, settings["workers"]) + opened
    used = [one.usage for one in (writer, judge) if one is not None]
    work = [times * sum(getattr(one, name) for one in used) for name in ("calls", "prompt_tokens", "completion_tokens")]
    return (work[0], work[1], work[2], seconds), f"the chains of {len(few)} of {len(questions)} questions"


def _make_chains(
    settings: Mapping[str, Any],
    few: Sequence[Question],
    graph: KnowledgeGraph,
    linker: Linker,
    writer: Generator | None,
    judge: Generator | None,
    names: NameEmbeddings | None,
) -> None:
    """Do what stage 08 does with a question, from its entities to the filter's answers."""
    sampling = Sampling(settings["temperature"], settings["top_p"], settings["max_new_tokens"])
    asking = dict(answer_in_prompt=settings["answer_in_prompt"], sampling=sampling, seed=settings["seed"])
    shown = dict(paths_in_prompt=settings["paths_in_prompt"])
    link = linker.link
    if names is not None:
        texts = question_texts(few, settings["path_targets"])
        greedy = dict(sampling=Sampling(0.0, 1.0, settings["max_new_tokens"]), seed=settings["seed"])
        thresholds = {name: settings[name] for name in _THRESHOLDS}
        mentions, _ = link_by_model(texts, graph, writer, names, **greedy, **thresholds)
        link = dict(zip(texts, mentions, strict=True)).__getitem__
    found = find_question_paths(few, graph, link, **{name: settings[name] for name in _PATHS})
    if settings["writer"] == "model" and not settings["endpoint"]:
        room = dict(answer_in_prompt=settings["answer_in_prompt"], new_tokens=settings["max_new_tokens"])
        found, _ = leave_out_long_paths(found, graph, settings["model"], **shown, **room)
    if settings["path_choice"] == "model":
        found, _ = choose_paths_by_model(found, graph, writer, max_chosen=settings["max_chosen"], **asking)
    if settings["writer"] == "model":
        written, _ = write_chains(found, graph, writer, **shown, **asking)
    else:
        written = write_chains_by_rule(found, graph)
    checker = SupportChecker(graph, linker.link)
    chains = chain_steps(chain_table(found, written, graph, checker, chain_format=settings["chain_format"]))
    asked = [question for question in few if question.question_id in chains]
    if settings["filter_model"] == "off" or not asked:
        return
    if not (settings["endpoint"] and settings["filter_model"] == "self"):
        model = settings["model"] if settings["filter_model"] == "self" else settings["filter_model"]
        asked, _ = questions_that_fit(asked, chains, model, new_tokens=settings["max_filter_tokens"])
    pass_rates(
        asked, chains, judge, log=CallLog(None), samples=settings["filter_samples"], seed=settings["seed"],
        sampling=Sampling(settings["filter_temperature"], 1.0, settings["max_filter_tokens"]),
    )  # fmt: skip


def _writer(settings: Mapping[str, Any], run: RunFiles) -> Generator | None:
    """Open the model that links, chooses, writes and filters; None where no part asks it."""
    parts = [settings[name] for name in ("linking", "path_choice", "writer")]
    if "model" not in parts and settings["filter_model"] != "self":
        return None
    kept = run.calls if settings["endpoint"] else None  # local replies must be timed
    limits = RateLimits(*(settings[name] for name in ("requests_per_minute", "tokens_per_minute", "max_wait")))
    served = {name: settings[name] for name in ("endpoint", "endpoint_model", *_OPENED)}
    return open_generator(settings["model"], calls=kept, limits=limits, **served)


def _names(settings: Mapping[str, Any], graph: KnowledgeGraph, run: RunFiles) -> NameEmbeddings:
    served = dict(endpoint=settings["embedder_endpoint"], endpoint_model=settings["embedder_endpoint_model"])
    encoder = open_embedder(settings["embedder"], **served) if settings["embedder"] or served["endpoint"] else None
    return NameEmbeddings(graph, encoder, cache=run.root / "name_vectors" if encoder else None)
