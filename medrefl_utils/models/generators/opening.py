"""Open the generator that a notebook's parameters select."""

from __future__ import annotations

from pathlib import Path

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.models.generators.budget import Budget
from medrefl_utils.models.generators.call_log import CallLog
from medrefl_utils.models.generators.interface import Generator

ENGINES = ("local", "vllm")


def open_generator(
    model: str,
    *,
    quantization: str = "none",
    max_rows: int = 0,
    engine: str = "local",
    workers: int = 0,
    endpoint: str = "",
    endpoint_model: str = "",
    concurrency: int = 16,
    calls: Path | None = None,
    budget: Budget | None = None,
) -> Generator:
    """Return the generator that these parameters select.

    Args:
        model: folder or hub id of the model that the ``engine`` runs in this process.
        quantization: of the model: nf4 (4 bit) or none.
        max_rows: continuations decoded together; 0: as many as fit into memory.
        engine: "local" (transformers) or "vllm".
        workers: number of Ray actors, each with its own generator; 0: this process.
        endpoint: base URL of a server; it replaces ``model``.
        endpoint_model: name of the model on the server.
        concurrency: maximum number of requests to the endpoint at the same time.
        calls: folder that keeps replies, which are then not requested again: every reply of an endpoint; what ``chat``
            wrote with a model in this process (the rollout keeps its own shards of steps).
        budget: limits. For an endpoint they cover everything in ``calls``; in this process, the session.

    Raises:
        MedReflError: the engine is unknown or an extra is not installed; and what the generators raise.
    """
    if engine not in ENGINES:
        raise MedReflError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    if workers < 0:
        raise MedReflError(f"workers is {workers}, expected 0 (this process) or the number of Ray actors")
    here = dict(quantization=quantization, max_rows=max_rows, engine=engine)
    there = dict(endpoint=endpoint, endpoint_model=endpoint_model, concurrency=concurrency)
    if workers:
        from medrefl_utils.models.generators.ray import RayGenerator

        return RayGenerator(workers, model, open_in_process, calls=calls, budget=budget, **here, **there)
    return open_in_process(model, calls=calls, budget=budget, **here, **there)


def open_in_process(
    model: str,
    *,
    quantization: str,
    max_rows: int,
    engine: str,
    endpoint: str,
    endpoint_model: str,
    concurrency: int,
    calls: Path | None,
    budget: Budget | None,
    worker: int = 0,
    workers: int = 1,
) -> Generator:
    """Return a generator in this process, number ``worker`` of ``workers`` that share calls and budget."""
    log = CallLog(calls, f"worker-{worker}" if workers > 1 else "main")
    if endpoint:
        from medrefl_utils.models.generators.endpoint import EndpointGenerator

        limits = dict(budget=budget, workers=workers)
        return EndpointGenerator(endpoint, endpoint_model, log=log, concurrency=concurrency, **limits)
    budget = budget and budget.share(workers)
    if engine == "vllm":
        from medrefl_utils.models.generators.vllm import VllmGenerator

        return VllmGenerator(model, quantization=quantization, log=log, budget=budget)
    from medrefl_utils.models.generators.local import LocalGenerator

    return LocalGenerator(model, quantization=quantization, max_rows=max_rows, log=log, budget=budget)
