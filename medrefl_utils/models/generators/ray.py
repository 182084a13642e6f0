"""Spread the work over several processes or machines with Ray: each actor has its own generator, and a GPU if any.

One actor gets a shard as a whole. So the batches and the trees are the same as in one process. An actor that dies
starts again with its shard. The extra is ``[ray]``. Actors connect to the cluster in RAY_ADDRESS; without it, Ray
starts one here.
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
    raise MedReflError("workers: Ray is not installed: run pip install 'medrefl[ray]', or set workers: 0") from error


class RayGenerator:
    """A generator that uses ``workers`` actors, each with its own generator ``open_one(model, **settings)``."""

    def __init__(
        self,
        workers: int,
        model: str,
        open_one: Callable[..., Generator],
        *,
        calls: Path | None = None,
        **settings: Any,
    ):
        """Start the actors. Each reserves one CPU or its share of them, and its share of the GPUs; an endpoint's, none.

        Raises:
            MedReflError: Ray does not start; the cluster has too few free CPUs or GPUs (Ray itself would wait
                silently); or the actors cannot load the model.
        """
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # An actor on this machine must find the package even if it is not installed.
            paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except Exception as error:  # Ray raises a bare Exception if its processes are not up in 30 seconds
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
        self.key, about, share, self.thinking_open, self.thinking_close = _got(self._actors[0].identity.remote())
        self.about = {**about, "ray_workers": workers}
        self.budget, self.spent = settings.get("budget") or Budget(), sum([share] * workers, Spent())
        self.usage = Usage()

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """Let the first actor write; whole shards of work use ``spread``."""
        return self._first("expand", prefixes, k, steps, sampling, seeds)

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """Let the first actor answer."""
        return self._first("chat", messages, sampling, seeds)

    def encode(self, text: str) -> tuple[int, ...]:
        """See ``Generator``."""
        return self._first("encode", text)

    def cut(self, chain: Continuation, steps: str) -> list[Continuation]:
        """See ``Generator``."""
        return self._first("cut", chain, steps)

    def spread(self, work: Callable[[Generator, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Give each item to the next free actor; yield the results in the order in which they arrive."""
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
        """Stop the actors."""
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
    """A generator on a worker; every result includes what it used."""

    def __init__(self, open_one: Callable[..., Generator], model: str, settings: dict[str, Any]):
        self.generator = open_one(model, **settings)

    def identity(self) -> tuple[str, dict[str, Any], Spent, bool, str | None]:
        one = self.generator
        return one.key, one.about, one.spent, one.thinking_open, one.thinking_close

    def work(self, work: Callable[[Generator, Item], Result], item: Item) -> tuple[Result, dict[str, float], Spent]:
        return self._with_costs(lambda: work(self.generator, item))

    def call(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, float], Spent]:
        return self._with_costs(lambda: getattr(self.generator, name)(*arguments))

    def _with_costs(self, do: Callable[[], Result]) -> tuple[Result, dict[str, float], Spent]:
        usage, spent = copy(self.generator.usage), self.generator.spent
        return do(), self.generator.usage.since(usage), self.generator.spent - spent


def _share(kind: str, workers: int) -> float:
    """Return how many CPUs or GPUs each actor reserves: one, or an equal part of all in the cluster."""
    there = float(ray.cluster_resources().get(kind, 0))
    free = float(ray.available_resources().get(kind, 0))
    each = min(1.0, there / workers)
    if each * workers > free + 1e-6:
        raise MedReflError(
            f"workers: {workers} actors need {each * workers:g} {kind}s, Ray's cluster has {free:g} of {there:g} free:"
            " stop what runs there, or use fewer workers"
        )
    return each


def _got(reference: Any) -> Any:
    """Return an actor's result; raise the project's own errors as they were raised there, in one line."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, MedReflError) else error from None
    except ray.exceptions.ActorDiedError as error:
        if "MedReflError: " in str(error):
            raise MedReflError(str(error).rsplit("MedReflError: ", 1)[1].splitlines()[0]) from None
        raise
