"""Use a model behind any OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, or a hosted model.

A probe finds out what the server can do, and records it: whether it continues a half-written assistant turn (if not,
the model is asked to go on), whether a stop sequence works there, and much else (``servers.features``). What a later
refusal shows is learned too. A prompt that is refused for its content or length is left out; many in a row end the
stage. Every reply is appended to a log when it arrives, under a hash of its request. A run that was killed pays for no
reply twice.

Every request has a seed. Whether equal seeds give equal text depends on the server. A rerun gives the same text here
because of the log.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.core.store import content_hash
from medrefl_utils.exam import prompts
from medrefl_utils.exam.steps import SERVER_STOPS, split_into_steps
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.call_log import CallLog, call_key
from medrefl_utils.models.generators.interface import Expansion, Generator, Prefix, Progress, Then, Usage
from medrefl_utils.models.generators.servers.adapters import (
    ServedAdapter,
    Weights,
    loading_route,
    select_weights,
)
from medrefl_utils.models.generators.servers.client import Refused, ServerClient, run_in_loop
from medrefl_utils.models.generators.servers.features import Features, learn_from, lost_sampling, request_body
from medrefl_utils.models.generators.servers.probe import COUNT, find_penalty, probe
from medrefl_utils.models.generators.servers.rate_limits import RateLimits
from medrefl_utils.models.generators.servers.replies import Reply, Request, continuation, part_of, read_reply

_REFUSED_IN_A_ROW = 10
"""So many refused prompts without a reply in between end the stage (ours)."""


class EndpointGenerator(Generator):
    """A model behind ``url`` (the part before ``/chat/completions``); the API key comes from OPENAI_API_KEY only."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        adapter: ServedAdapter | None = None,
        log: CallLog | None = None,
        concurrency: int = 16,
        retries: int = 6,
        timeout: float = 600.0,
        limits: RateLimits | None = None,
        budget: Budget | None = None,
        workers: int = 1,
    ):
        """Check the address; no request is sent yet.

        Args:
            url: http(s)://host/v1, without a key.
            model: the model's name on the server.
            adapter: a LoRA adapter on the server; None: the model itself.
            log: keeps the replies, and returns them in a later run.
            concurrency: maximum number of requests at the same time.
            retries: how often a request is repeated after a temporary failure (5xx, no connection, an invalid reply).
                Waiting for a server that is busy (429, 503) does not count; ``limits`` limits it.
            timeout: of one request [s].
            limits: requests and tokens per minute, and waiting.
            budget: limits for this run and all that is in the log. Requests that are already sent are completed.
            workers: number of generators that share the log, the limits and the budget.

        Raises:
            MedReflError: the address is invalid or contains a key, or the model's name is missing.
        """
        self.log, self.concurrency = log or CallLog(None), concurrency
        limits = (limits or RateLimits()).share(workers)
        self.client = ServerClient(url, model, retries=retries, timeout=timeout, limits=limits, log=self.log.folder)
        self.url, self.model, self.adapter = self.client.url, model, adapter
        self.usage = Usage()
        # With another adapter under the same name, the replies are other ones.
        self._who = f"{model} {content_hash(adapter.folder)}" if adapter else model
        self.key = f"{self.url} {self._who}"
        self.budget = (budget or Budget()).share(workers)
        self._opened_at, self._earlier = self.log.spent, self.log.spent.share(workers)
        self._under_way = Spent()
        """the maximum cost of the requests that are under way"""
        self._settled = asyncio.Condition()
        self._features: Features | None = None
        self._penalty_tried = False
        self._weights: Weights | None = None
        self._refused: set[str] = set()
        """prompts that were refused since the last reply"""
        self._told: set[str] = set()

    @property
    def about(self) -> dict[str, Any]:
        """Return what runs the model, for the manifest."""
        there = {"endpoint": self.url, "model": self.model} | (asdict(self._features) if self._features else {})
        adapter = {"adapter": self._weights.lora or self._weights.model} if self.adapter and self._weights else {}
        return there | adapter

    @property
    def spent(self) -> Spent:
        """Return the used part of the budget, with that of other generators of this process that share the log."""
        return self._earlier + (self.log.spent - self._opened_at)

    @property
    def thinking_open(self) -> bool:
        """Say whether the chat template opens the thinking; the first use asks the server."""
        return bool(self.prepare().thinking_close)

    @property
    def thinking_close(self) -> str | None:
        """Return the mark that closes the thinking that the chat template opens."""
        return self.prepare().thinking_close or None

    def prepare(self) -> Features:
        """Find out what the server can do, and that it has the adapter, if that is not known yet.

        Raises:
            MedReflError: the server cannot be reached, refuses every form of a request, or lacks the adapter.
        """
        if self._features is None:
            run_in_loop(self._prepared())
        return self._features

    def check_loading(self) -> None:
        """Check that the server loads adapters at run time. Raises MedReflError if it does not."""
        run_in_loop(loading_route(self.client))

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """Write ``k`` continuations of each prefix, in the order of the prefixes.

        If the server returns several choices, one request serves a prefix, with the seed of its first child; else each
        child has its own request. ``exam.steps.step_end`` ends each step. A stop sequence only saves tokens: where the
        server stops too early, as after a heading, the same step is requested again without it. A prefix that the
        server refuses gets continuations whose ``stop`` is "refused".
        """
        start = time.perf_counter()
        try:
            return run_in_loop(self._expand(prefixes, k, steps, sampling, seeds, progress))
        finally:
            self.usage.seconds += time.perf_counter() - start

    def expand_onward(self, first: Sequence[Expansion], steps: str | None, sampling: Sampling, then: Then) -> None:
        """Write expansions and those that follow: each is requested as soon as the one before it is complete.

        Requests are those of ``expand``.
        """
        start = time.perf_counter()
        try:
            run_in_loop(self._expand_onward(first, steps, sampling, then))
        finally:
            self.usage.seconds += time.perf_counter() - start

    def encode(self, text: str) -> tuple[int, ...]:
        """Return no tokens: an endpoint uses the text."""
        return ()

    def cut(self, chain: Continuation, steps: str) -> list[Continuation]:
        """Cut a chain into steps; each gets its share of the tokens by its length."""
        texts = split_into_steps(chain.text, steps) or [chain.text]
        pieces = [replace(part_of(chain, text), stop="boundary") for text in texts]
        return [*pieces[:-1], replace(pieces[-1], stop=chain.stop)]

    async def _expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        steps: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None,
    ) -> list[list[Continuation]]:
        queue = await self._queue(progress, sampling)
        rows = await asyncio.gather(
            *(self._continued(p, row[:k], steps, sampling, queue) for p, row in zip(prefixes, seeds, strict=True))
        )
        queue.raise_if_failed()
        return rows

    async def _expand_onward(
        self, first: Sequence[Expansion], steps: str | None, sampling: Sampling, then: Then
    ) -> None:
        queue = await self._queue(None, sampling)
        running: set[asyncio.Task[None]] = set()

        async def one(expansion: Expansion) -> None:
            written = await self._continued(expansion.prefix, expansion.seeds, steps, sampling, queue)
            if not queue.failed:
                start(then(expansion, written) or ())

        def start(expansions: Sequence[Expansion]) -> None:
            running.update(asyncio.create_task(one(expansion)) for expansion in expansions)

        start(first)
        try:
            while running:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running -= done
                for task in done:
                    task.result()
        finally:
            for task in running:
                task.cancel()
        queue.raise_if_failed()

    async def _queue(self, progress: Progress | None, sampling: Sampling) -> _Queue:
        if self._features is None:
            await self._prepared()
        if sampling.repetition_penalty != 1 and self._features.penalty_name is None:
            await self._find_penalty()
        return _Queue(asyncio.Semaphore(self.concurrency), progress)

    async def _continued(
        self, prefix: Prefix, seeds: Sequence[int], steps: str | None, sampling: Sampling, queue: _Queue
    ) -> list[Continuation]:
        """Return the continuations of a prefix, from one request or from one per seed; not all after a failure."""
        whole = self._features.choices
        n = len(seeds) if whole else 1
        rows = await asyncio.gather(
            *(
                self._in_turn(Request(prefix.messages, prefix.text, steps, sampling, seed, n), queue)
                for seed in (seeds[:1] if whole else seeds)
            )
        )
        return [one for row in rows for one in row]

    async def _in_turn(self, request: Request, queue: _Queue) -> list[Continuation]:
        """Return the continuations of a request, once one of ``concurrency`` places is free."""
        async with queue.places:
            if queue.failed:
                return []
            try:
                written = await self._written(request)
            except MedReflError as error:
                queue.failed.append(error)  # no new request starts; those under way are paid for and are completed
                return []
        if queue.progress is not None:
            queue.progress(len(written))
        return written

    async def _written(self, request: Request) -> list[Continuation]:
        """Return the continuations of one request; choices that the server left out are requested one by one."""
        stop = SERVER_STOPS[request.steps] if request.steps else None
        in_turn = bool(request.text) and self._features.prefill
        stop = stop if self._features.stop_in_turn or not in_turn else None
        try:
            written = await self._replies(request, stop)
            for number in range(len(written), request.n):
                more = replace(request, n=1, seed=request.seed + number)
                written += await self._replies(more, stop)
            for number, one in enumerate(written):
                if one is None:
                    # The server stopped before the step was complete: at a blank line, after a heading, or at the end.
                    again = replace(request, n=1, seed=request.seed + number)
                    [written[number]] = await self._replies(again, None)
        except Refused as refused:
            self._refused.add(call_key(request.messages))
            # Replies from the log come at once, before any refusal: each makes room for one refused prompt.
            if len(self._refused) >= _REFUSED_IN_A_ROW + self.usage.reused:
                raise MedReflError(f"{refused}; {len(self._refused)} prompts in a row are refused") from None
            written = [Continuation("", (), None, "refused", refusal=str(refused))] * request.n
        self.usage.calls += len(written)
        return written

    async def _replies(self, request: Request, stop: str | None) -> list[Continuation | None]:
        """Return what the server wrote, from the log or now; None for a choice that ``stop`` cut too early."""
        key = call_key(self.url, self._who, stop, asdict(request))
        line = self.log.get(key)
        if line is None:
            reply, raw, stop = await self._asked(request, stop)
            self.log.append(key, {"reply": raw, "stop": stop, "paid": asdict(_paid(reply))})
        else:
            reply, stop = read_reply(line["reply"]), line.get("stop", stop)
            self.usage.reused += 1
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.completion_tokens += reply.completion_tokens
        chosen = reply.choices[: request.n]
        return [continuation(reply, choice, request, stop=stop, can=self._features) for choice in chosen]

    async def _asked(self, request: Request, stop: str | None) -> tuple[Reply, dict[str, Any], str | None]:
        """Return the reply to a request, its JSON, and the stop sequence that was sent; learn from refusals."""
        while True:
            can = self._features
            messages, text = list(request.messages), request.text
            if text and not can.prefill:
                messages, text = messages + prompts.go_on(text), ""
            sent = stop if can.stop else None
            body = request_body(messages, text, request.sampling, can, n=request.n, stop=sent, seed=request.seed)
            try:
                reply, raw = await self._paid_for(body)
            except Refused as refused:
                if self._features != can:  # another request has learned something meanwhile
                    continue
                less = None if refused.about_prompt else learn_from(can, refused.told, refused.parameter)
                if less is None:
                    raise
                self._learn(less)
                continue
            self._refused.clear()
            self._warn_of_lost(request.sampling)
            return reply, raw, sent

    async def _paid_for(self, body: dict[str, Any]) -> tuple[Reply, dict[str, Any]]:
        """Return the reply and its JSON, if the budget has room for its maximum cost."""
        n, limit = body.get("n", 1), body.get("max_tokens") or body["max_completion_tokens"]
        # A token has at least one byte of text, and a template adds a few tokens to each message.
        read = sum(len(message["content"].encode()) + 16 for message in body["messages"])
        most = Spent(n, read, n * limit)
        async with self._settled:
            await self._settled.wait_for(
                lambda: not self._under_way.calls or not self.budget.complaint(self.spent + self._under_way, most)
            )
            if complaint := self.budget.complaint(self.spent, most):
                raise MedReflError(f"endpoint {self.url}: {complaint}")
            self._under_way += most
        paid = Spent()
        try:
            raw = await self.client.reply(self._weights.body() | body, most.read + most.written)
            reply = read_reply(raw)
            paid = _paid(reply)
            self.usage.requests += 1
            return reply, raw
        finally:
            self.client.give_back(most.read + most.written - paid.read - paid.written)
            async with self._settled:
                self._under_way -= most
                self.log.spent += paid
                self._settled.notify_all()

    async def _prepared(self) -> None:
        """Select the weights, and probe the server, or read from the log what an earlier session found out."""
        self._weights = await select_weights(self.client, self.model, self.adapter)
        line = self.log.get(self._probe_key)
        # What another version of this program found out says nothing about features that it did not know.
        if line and line["features"].keys() == {field.name for field in fields(Features)}:
            self._features = Features(**line["features"])
            return
        before = self.log.spent
        features = await probe(self._probed, self.client, self._weights.model)
        self._learn(features, self.log.spent - before)

    async def _find_penalty(self) -> None:
        """Find out once whether, and under which name, the server heeds a repetition penalty."""
        if self._penalty_tried:
            return
        self._penalty_tried, before = True, self.log.spent
        self._learn(await find_penalty(self._probed, self._features), self.log.spent - before)
        if self._features.penalty_name is None:
            warnings.warn(f"{self.client.where}: it is not known if the server heeds repetition_penalty", stacklevel=2)

    async def _probed(self, body: dict[str, Any]) -> Reply:
        """Return the reply to a probe's request."""
        reply, _ = await self._paid_for(body)
        self.usage.probes += 1
        return reply

    def _learn(self, features: Features, paid: Spent | None = None) -> None:
        self._features = features
        self.log.append(self._probe_key, {"features": asdict(features), "paid": asdict(paid or Spent())})

    def _warn_of_lost(self, sampling: Sampling) -> None:
        """Warn once about each setting that the server does not heed."""
        for lost in lost_sampling(sampling, self._features):
            if lost not in self._told:
                self._told.add(lost)
                warnings.warn(f"{self.client.where}: the server does not heed {lost}; its own is used", stacklevel=2)

    @property
    def _probe_key(self) -> str:
        return call_key(self.url, self._who, "features", COUNT)


@dataclass
class _Queue:
    """The requests of a call: their places, whom to tell, and what failed."""

    places: asyncio.Semaphore
    progress: Progress | None
    failed: list[MedReflError] = field(default_factory=list)

    def raise_if_failed(self) -> None:
        """Raise the first error of a request."""
        if self.failed:
            raise self.failed[0]


def _paid(reply: Reply) -> Spent:
    return Spent(len(reply.choices), reply.prompt_tokens, reply.completion_tokens)
