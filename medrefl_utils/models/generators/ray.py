"""Spread the work over several processes or machines with Ray: each actor has its own generator, and a GPU if any.

The rollout gives one actor a shard as a whole, so that the trees are the same as in one process. Prompts are shared in
equal parts; each row has a seed of its own. An actor that dies starts again with its work. The extra is ``[ray]``.
Actors connect to the cluster in RAY_ADDRESS; without it, Ray starts one here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.interface import Generator, Item, Prefix, Progress, Result, Usage

try:
    import ray
except ImportError as error:
    raise MedReflError("workers: Ray is not installed: run pip install 'medrefl[ray]', or set workers: 0") from error


_PARTS = 4
"""Parts of a list of prompts for each actor (ours)."""


class RayGenerator:
    """A generator that uses ``workers`` actors, each with its own generator ``open_one(model, **settings)``.

    Generators of this process with equally many workers share the actors, as base and adapter do in stage 05.
    """

    def __init__(
        self,
        workers: int,
        model: str,
        open_one: Callable[..., Generator],
        *,
        calls: Path | None = None,
        **settings: Any,
    ):
        """Start the actors, or share those that are there, and open a generator in the first one.

        Raises:
            MedReflError: Ray does not start; the cluster has too few free CPUs or GPUs (Ray itself would wait
                silently); or the actors cannot load the model.
        """
        computes = not settings.get("endpoint")
        self._actors = _POOLS.get((workers, computes)) or _Actors(workers, computes)
        _POOLS[workers, computes] = self._actors
        self._actors.users.add(self)
        model = str(Path(model).resolve()) if Path(model).is_dir() else model
        adapter = settings.get("adapter")
        settings |= {"calls": calls and calls.resolve(), "adapter": adapter and adapter.resolve(), "workers": workers}
        self._opening = open_one, model, settings
        identity, *used = _got(self._actors.list[0].identity.remote(self._opening))
        self.key, about, earlier, self.thinking_open, self.thinking_close = identity
        self.about = {**about, "ray_workers": workers}
        self.budget, self.spent = settings.get("budget") or Budget(), sum([earlier] * workers, Spent())
        self.usage = Usage()
        self._add(*used)

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """Share the prefixes among the actors; the rows come back in the order of the prefixes."""
        shares = [("expand", prefixes[part], k, steps, sampling, seeds[part]) for part in self._parts(len(prefixes))]
        return self._shared(shares, progress)

    def chat(
        self,
        messages: Sequence[Messages],
        sampling: Sampling,
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> list[Continuation]:
        """Share the messages among the actors; the answers come back in the order of the messages."""
        shares = [("chat", messages[part], sampling, seeds[part]) for part in self._parts(len(messages))]
        return self._shared(shares, progress)

    def encode(self, text: str) -> tuple[int, ...]:
        """See ``Generator``."""
        return self._first("encode", text)

    def cut(self, chain: Continuation, steps: str) -> list[Continuation]:
        """See ``Generator``."""
        return self._first("cut", chain, steps)

    def spread(self, work: Callable[[Generator, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Give each item to the next free actor; yield the results in the order in which they arrive."""
        for number, result in self._spread(items, lambda actor, item: actor.work.remote(self._opening, work, item)):
            yield items[number], result

    def close(self) -> None:
        """Stop the actors, unless another generator uses them."""
        self._actors.users.discard(self)
        if not self._actors.users:
            _POOLS.pop((len(self._actors.list), self._actors.computes), None)
            for actor in self._actors.list:
                ray.kill(actor)

    def _parts(self, n: int) -> list[slice]:
        """Cut ``n`` rows into parts, several for each actor, since some take longer than others."""
        size = max(1, -(-n // (_PARTS * len(self._actors.list))))
        return [slice(start, start + size) for start in range(0, n, size)]

    def _shared(self, shares: Sequence[tuple[Any, ...]], progress: Progress | None) -> list[Any]:
        """Return the rows of all shares, each the name of a method and its arguments, in their order."""
        written: list[list[Any]] = [[] for _ in shares]
        for number, rows in self._spread(shares, lambda actor, share: actor.call.remote(self._opening, *share)):
            written[number] = rows
            if progress is not None:
                progress(sum(len(row) if isinstance(row, list) else 1 for row in rows))
        return [row for rows in written for row in rows]

    def _spread(self, items: Sequence[Item], start: Callable[[Any, Item], Any]) -> Iterator[tuple[int, Any]]:
        """Start each item on the next free actor; yield its number and result as results arrive."""
        waiting, running = list(enumerate(items))[::-1], {}
        free = list(self._actors.list)
        while waiting or running:
            while waiting and free:
                number, item = waiting.pop()
                taken = free.pop()
                running[start(taken, item)] = number, taken
            [done], _ = ray.wait(list(running))
            number, taken = running.pop(done)
            result, *used = _got(done)
            self._add(*used)
            free.append(taken)
            yield number, result

    def _first(self, name: str, *arguments: Any) -> Any:
        result, *used = _got(self._actors.list[0].call.remote(self._opening, name, *arguments))
        self._add(*used)
        return result

    def _add(self, usage: dict[str, float], spent: Spent) -> None:
        self.spent += spent
        for name, value in usage.items():
            setattr(self.usage, name, getattr(self.usage, name) + value)


class _Actors:
    """Actors that generators of this process share; they end with the last of these."""

    def __init__(self, workers: int, computes: bool):
        """Start the actors. Each reserves its share of the CPUs (at most one) and of the GPUs; an endpoint's, none."""
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # An actor on this machine must find the package even if it is not installed.
            paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
            try:
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except Exception as error:  # Ray raises a bare Exception if its processes are not up in 30 seconds
                raise MedReflError(f"workers: Ray does not start: {' '.join(str(error).split())[:300]}") from error
        cpus, gpus = (_share(kind, workers) if computes else 0 for kind in ("CPU", "GPU"))
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=3)(_Actor)
        self.list = [actor.options(max_task_retries=3).remote(number) for number in range(workers)]
        self.computes = computes
        self.users: WeakSet[RayGenerator] = WeakSet()


_POOLS: WeakValueDictionary[tuple[int, bool], _Actors] = WeakValueDictionary()
"""{number of workers, whether they compute here: their actors}"""

_Opening = tuple[Callable[..., Generator], str, dict[str, Any]]
"""What opens a generator, its model, and its settings."""


class _Actor:
    """The generators of a worker, opened at their first use; every result includes what it used."""

    def __init__(self, worker: int):
        self.worker = worker
        self.generators: dict[str, Generator] = {}

    def identity(self, opening: _Opening) -> tuple[tuple[Any, ...], dict[str, float], Spent]:
        """Return what the generator is and what it had spent before, and what it used to find that out."""
        one = self._opened(opening)
        earlier = one.spent
        # An endpoint probes its server when it is asked about the thinking; only then ``about`` is complete.
        thinking, *used = self._with_costs(one, lambda: (one.thinking_open, one.thinking_close))
        return (one.key, one.about, earlier, *thinking), *used

    def work(
        self, opening: _Opening, work: Callable[[Generator, Item], Result], item: Item
    ) -> tuple[Result, dict[str, float], Spent]:
        one = self._opened(opening)
        return self._with_costs(one, lambda: work(one, item))

    def call(self, opening: _Opening, name: str, *arguments: Any) -> tuple[Any, dict[str, float], Spent]:
        one = self._opened(opening)
        return self._with_costs(one, lambda: getattr(one, name)(*arguments))

    def _opened(self, opening: _Opening) -> Generator:
        open_one, model, settings = opening
        key = repr((model, settings))
        if key not in self.generators:
            self.generators[key] = open_one(model, **settings, worker=self.worker)
        return self.generators[key]

    def _with_costs(self, one: Generator, do: Callable[[], Result]) -> tuple[Result, dict[str, float], Spent]:
        usage, spent = copy(one.usage), one.spent
        return do(), one.usage.since(usage), one.spent - spent


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
