"""Open the generator that a notebook's parameters select: a base, or the base with a LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.models.generators.budget import Budget
from medrefl_utils.models.generators.call_log import CallLog
from medrefl_utils.models.generators.interface import Generator
from medrefl_utils.models.generators.servers.rate_limits import RateLimits

ENGINES = ("local", "vllm")

_LOGS: WeakValueDictionary[tuple[Path, str], CallLog] = WeakValueDictionary()
"""The logs in use: generators of this process with the same log share what is spent of the budget."""


def open_generator(
    model: str,
    *,
    adapter: Path | None = None,
    quantization: str = "none",
    max_rows: int = 0,
    engine: str = "local",
    workers: int = 0,
    endpoint: str = "",
    endpoint_model: str = "",
    endpoint_adapter: str = "",
    adapter_endpoint: str = "",
    concurrency: int = 16,
    limits: RateLimits | None = None,
    calls: Path | None = None,
    budget: Budget | None = None,
) -> Generator:
    """Return the generator that these parameters select.

    Args:
        model: folder or hub id of the model that the ``engine`` runs in this process.
        adapter: folder of a LoRA adapter of this model; None: the model itself.
        quantization: of the model: nf4 (4 bit) or none.
        max_rows: continuations decoded together; 0: as many as fit into memory.
        engine: "local" (transformers) or "vllm".
        workers: number of Ray actors, each with its own generator; 0: this process.
        endpoint: base URL of a server; it replaces ``model``.
        endpoint_model: name of the model on the server.
        endpoint_adapter: name of the adapter on the server; "": the server loads ``adapter`` at run time (vLLM,
            SGLang), or has just one (llama.cpp).
        adapter_endpoint: base URL of another server that has the model with the adapter; "": ``endpoint`` has both.
        concurrency: maximum number of requests to the endpoint at the same time.
        limits: requests and tokens per minute at the endpoint, and the limit on waiting for it.
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
    settings = dict(adapter=adapter, quantization=quantization, max_rows=max_rows, engine=engine, budget=budget)
    settings |= dict(endpoint=endpoint, endpoint_model=endpoint_model, endpoint_adapter=endpoint_adapter)
    settings |= dict(adapter_endpoint=adapter_endpoint, concurrency=concurrency, limits=limits, calls=calls)
    if workers:
        from medrefl_utils.models.generators.ray import RayGenerator

        return RayGenerator(workers, model, open_in_process, **settings)
    return open_in_process(model, **settings)


def open_in_process(
    model: str,
    *,
    adapter: Path | None,
    quantization: str,
    max_rows: int,
    engine: str,
    endpoint: str,
    endpoint_model: str,
    endpoint_adapter: str,
    adapter_endpoint: str,
    concurrency: int,
    limits: RateLimits | None,
    calls: Path | None,
    budget: Budget | None,
    worker: int = 0,
    workers: int = 1,
) -> Generator:
    """Return a generator in this process, number ``worker`` of ``workers`` that share calls, limits and budget."""
    log = _shared_log(calls, f"worker-{worker}" if workers > 1 else "main")
    if endpoint:
        from medrefl_utils.models.generators.endpoint import EndpointGenerator
        from medrefl_utils.models.generators.servers.adapters import ServedAdapter

        served = adapter and ServedAdapter(adapter, endpoint_adapter, alone=bool(adapter_endpoint))
        return EndpointGenerator(
            adapter_endpoint if served and adapter_endpoint else endpoint,
            endpoint_model,
            adapter=served,
            log=log,
            concurrency=concurrency,
            limits=limits,
            budget=budget,
            workers=workers,
        )
    budget = budget and budget.share(workers)
    if engine == "vllm":
        from medrefl_utils.models.generators.vllm import VllmGenerator

        return VllmGenerator(model, quantization=quantization, adapter=adapter, log=log, budget=budget)
    from medrefl_utils.models.generators.local import LocalGenerator

    return LocalGenerator(model, quantization=quantization, adapter=adapter, max_rows=max_rows, log=log, budget=budget)


def check_endpoint(
    adapter: Path | None,
    *,
    endpoint: str,
    endpoint_model: str,
    endpoint_adapter: str = "",
    adapter_endpoint: str = "",
    calls: Path | None = None,
    **other: object,
) -> None:
    """Check, before anything is asked of it, that a server can be reached and has the adapter; without one, do nothing.

    The arguments are those of ``open_generator``; ``other`` is not used. Without an adapter, because it is not trained
    yet: check that the server loads adapters at run time.

    Raises:
        MedReflError: the server cannot be reached or lacks the adapter.
    """
    if not endpoint:
        return
    names = dict(endpoint=endpoint, endpoint_model=endpoint_model, calls=calls)
    names |= dict(endpoint_adapter=endpoint_adapter, adapter_endpoint=adapter_endpoint)
    generator = open_generator("", adapter=adapter, **names)
    generator.prepare()
    if adapter is None:
        generator.check_loading()


def _shared_log(folder: Path | None, name: str) -> CallLog:
    if folder is None:
        return CallLog(None)
    key = folder.resolve(), name
    log = _LOGS.get(key)
    if log is None or log.is_gone():
        log = _LOGS[key] = CallLog(folder, name)
    return log
