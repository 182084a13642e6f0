"""Ray for more than one process or machine: actors with a generator of their own each, one per GPU where there are.

A shard goes to one actor as a whole, so its batches, and with them its trees, are those of a run in one process. An
actor that dies is started again with its shard. The extra is ``[ray]``; actors connect to the cluster that RAY_ADDRESS
names, else to one that is started here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.interface import Generator, Item, Prefix, Progress, Result, Usage

try:
    import ray
except ImportError as error:
    raise MedReflError("workers: Ray is not installed: pip install 'medrefl[ray]', or workers: 0") from error


class RayGenerator:
    """``workers`` actors with a generator of their own each: ``open_one(model, **settings)``."""

    def __init__(
        self,
        workers: int,
        model: str,
        open_one: Callable[..., Generator],
        *,
        calls: Path | None = None,
        **settings: Any,
    ):
        """Start the actors, of which each but an endpoint's reserves a CPU or its share of them, and its share of GPUs.

        Raises:
            MedReflError: Ray does not start, or has too little that is free, for which Ray itself would wait without
                a word; or, of the actors, where the model cannot be had.
        """
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # An actor on this machine finds the package as this process does, which need not have it installed.
            paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except Exception as error:  # Ray raises Exception itself where its own processes are not up in 30 seconds
                raise MedReflError(f"workers: Ray does not start: {' '.join(str(error).split())[:300]}") from error
        computes = not settings.get("endpoint")
        cpus, gpus = (_share(kind, workers) if computes else 0 for kind in ("CPU", "GPU"))
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=3)(_Actor)
        model = str(Path(model).resolve()) if Path(model).is_dir() else model
        settings |= {"calls": calls and calls.resolve(), "workers": workers}
        options = {"max_task_retries": 3}
        self._actors = [
            actor.options(**options).remote(open_one, model, settings | {"worker": i}) for i in range(workers)
        ]
        self.key, about, share = _got(self._actors[0].identity.remote())
        self.about = {**about, "ray_workers": workers}
        self.budget, self.spent = settings.get("budget") or Budget(), sum([share] * workers, Spent())
        self.usage = Usage()

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        stop: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """By the first actor; whole shards of work go through ``spread``."""
        return self._first("expand", prefixes, k, stop, sampling, seeds)

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """Likewise."""
        return self._first("chat", messages, sampling, seeds)

    def encode(self, text: str) -> tuple[int, ...]:
        """See ``Generator``."""
        return self._first("encode", text)

    def steps(self, chain: Continuation, stop: str) -> list[Continuation]:
        """See ``Generator``."""
        return self._first("steps", chain, stop)

    def spread(self, work: Callable[[Generator, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Each item to the next actor that is free; results as they come, in whatever order."""
        waiting, running = list(enumerate(items))[::-1], {}
        free = list(self._actors)
        while waiting or running:
            while waiting and free:
                number, item = waiting.pop()
                taken = free.pop()
                running[taken.work.remote(work, item)] = number, taken
            [done], _ = ray.wait(list(running))
            number, taken = running.pop(done)
            result, *used = _got(done)
            self._add(*used)
            free.append(taken)
            yield items[number], result

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)

    def _first(self, name: str, *arguments: Any) -> Any:
        result, *used = _got(self._actors[0].call.remote(name, arguments))
        self._add(*used)
        return result

    def _add(self, usage: dict[str, float], spent: Spent) -> None:
        self.spent += spent
        for name, value in usage.items():
            setattr(self.usage, name, getattr(self.usage, name) + value)


class _Actor:
    """A generator on a worker; every answer carries what it used."""

    def __init__(self, open_one: Callable[..., Generator], model: str, settings: dict[str, Any]):
        self.generator = open_one(model, **settings)

    def identity(self) -> tuple[str, dict[str, Any], Spent]:
        return self.generator.key, self.generator.about, self.generator.spent

    def work(self, work: Callable[[Generator, Item], Result], item: Item) -> tuple[Result, dict[str, float], Spent]:
        return self._with_costs(lambda: work(self.generator, item))

    def call(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, float], Spent]:
        return self._with_costs(lambda: getattr(self.generator, name)(*arguments))

    def _with_costs(self, do: Callable[[], Result]) -> tuple[Result, dict[str, float], Spent]:
        usage, spent = copy(self.generator.usage), self.generator.spent
        return do(), self.generator.usage.since(usage), self.generator.spent - spent


def _share(kind: str, workers: int) -> float:
    """What each of so many actors reserves of the cluster's CPUs or GPUs: one, or an equal part of all."""
    there = float(ray.cluster_resources().get(kind, 0))
    free = float(ray.available_resources().get(kind, 0))
    each = min(1.0, there / workers)
    if each * workers > free + 1e-6:
        raise MedReflError(
            f"workers: {workers} actors need {each * workers:g} {kind}s, Ray's cluster has {free:g} of {there:g} free:"
            " end what runs there, or take fewer workers"
        )
    return each


def _got(reference: Any) -> Any:
    """What an actor gives back; the project's own errors as they were raised there, in one line."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, MedReflError) else error from None
    except ray.exceptions.ActorDiedError as error:
        if "MedReflError: " in str(error):
            raise MedReflError(str(error).rsplit("MedReflError: ", 1)[1].splitlines()[0]) from None
        raise
