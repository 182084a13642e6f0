"""Use a model behind any OpenAI-compatible endpoint: a vLLM or SGLang server, or a hosted model.

One probe finds out what the server can do, and records it: whether it continues a half-written assistant turn (if not,
the model is asked to go on), whether a stop sequence works there, and whether it returns several choices per request
and log-probabilities. Every reply is appended to a log when it arrives, under a hash of its request. A run that was
killed pays for no reply twice.

Every request has a seed. Whether equal seeds give equal text depends on the server. A rerun gives the same text here
because of the log.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import tenacity
from openai.types.chat import ChatCompletion

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Continuation, Sampling
from medrefl_utils.exam import prompts
from medrefl_utils.exam.prompts import Messages
from medrefl_utils.exam.steps import SERVER_STOPS, split_into_steps, step_end
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.call_log import CallLog, call_key
from medrefl_utils.models.generators.interface import Generator, Prefix, Progress, Result, Usage
from medrefl_utils.models.generators.server_features import COUNT, FLAGS, Features, disable_refused, probe_body

KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class _Request:
    messages: Messages
    text: str
    steps: str | None
    sampling: Sampling
    seed: int
    n: int


class EndpointGenerator(Generator):
    """A model behind ``url`` (the part before ``/chat/completions``); the API key comes from OPENAI_API_KEY only."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        log: CallLog | None = None,
        concurrency: int = 16,
        retries: int = 6,
        timeout: float = 600.0,
        budget: Budget | None = None,
        workers: int = 1,
    ):
        """Check the address; no request is sent yet.

        Args:
            url: http(s)://host/v1, without a key.
            model: the model's name on the server.
            log: keeps the replies, and returns them in a later run.
            concurrency: maximum number of requests at the same time.
            retries: how often a request is repeated after a temporary failure (429, 5xx, no connection, an invalid
                reply). The wait follows the server's Retry-After, or grows.
            timeout: of one request [s].
            budget: limits for this run and all that is in the log. Requests that are already sent are completed.
            workers: number of generators that share the log and the budget.

        Raises:
            MedReflError: the address is invalid or contains a key, or the model's name is missing.
        """
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname or not model:
            raise MedReflError(
                f"endpoint {_plain(url)!r}, model {model!r}: expected http(s)://host/v1 and the model's name there"
            )
        if address.password or address.username or address.query:
            raise MedReflError(
                f"endpoint {_plain(url)!r}: a key or a query in the address would be written into the run: "
                f"give the bare address, and the key in {KEY_VARIABLE}"
            )
        self.url, self.model, self.log = url.rstrip("/"), model, log or CallLog(None)
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout
        self.usage = Usage()
        self.key = f"{self.url} {model}"
        self.budget = (budget or Budget()).share(workers)
        paid = (Spent(**line["paid"]) for line in self.log.lines() if "paid" in line)
        self.spent = sum(paid, Spent()).share(workers) if budget else Spent()
        self._under_way = Spent()
        """the maximum cost of the requests that are under way"""
        self._features: Features | None = None

    @property
    def about(self) -> dict[str, Any]:
        """Return what runs the model, for the manifest."""
        return {"endpoint": self.url, "model": self.model} | (asdict(self._features) if self._features else {})

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
        server stops too early, as after a heading, the same step is requested again without it.
        """
        start = time.perf_counter()
        try:
            return _run(self._expand(prefixes, k, steps, sampling, seeds, progress))
        finally:
            self.usage.seconds += time.perf_counter() - start

    def encode(self, text: str) -> tuple[int, ...]:
        """Return no tokens: an endpoint uses the text."""
        return ()

    def cut(self, chain: Continuation, steps: str) -> list[Continuation]:
        """Cut a chain into steps; each gets its share of the tokens by its length."""
        texts = split_into_steps(chain.text, steps) or [chain.text]
        pieces = [replace(_part(chain, text), stop="boundary") for text in texts]
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
        limit, self._settled = asyncio.Semaphore(self.concurrency), asyncio.Condition()
        failed: list[MedReflError] = []
        client = openai.AsyncOpenAI(
            base_url=self.url, api_key=api_key() or "none", max_retries=self.retries, timeout=self.timeout
        )
        async with client:
            if self._features is None:
                self._features = await self._probed(client)
            whole = self._features.choices
            asked = [
                _Request(p.messages, p.text, steps, sampling, seed, k if whole else 1)
                for p, row in zip(prefixes, seeds, strict=True)
                for seed in (row[:1] if whole else row[:k])
            ]

            async def one(request: _Request) -> list[Continuation]:
                async with limit:
                    if failed:
                        return []
                    try:
                        written = await self._written(client, request)
                    except MedReflError as error:
                        failed.append(error)  # no new request starts; those under way are paid for and are completed
                        return []
                if progress is not None:
                    progress(len(written))
                return written

            rows = await asyncio.gather(*(one(request) for request in asked))
        if failed:
            raise failed[0]
        each = 1 if whole else k
        return [[c for row in rows[i : i + each] for c in row] for i in range(0, len(rows), each)]

    async def _written(self, client: openai.AsyncOpenAI, request: _Request) -> list[Continuation]:
        """Return the continuations of one request; choices that the server left out are requested one by one."""
        after_prefill = bool(request.text) and self._features.prefill
        stop = SERVER_STOPS[request.steps] if request.steps else None
        stop = stop if self._features.stop or not after_prefill else None
        written = await self._replies(client, request, stop)
        for number in range(len(written), request.n):
            more = replace(request, n=1, seed=request.seed + number)
            written += await self._replies(client, more, stop)
        for number, one in enumerate(written):
            if one is None:
                # The server stopped before the step was complete: at a blank line, after a heading, or at the end.
                again = replace(request, n=1, seed=request.seed + number)
                [written[number]] = await self._replies(client, again, None)
        self.usage.calls += len(written)
        return written

    async def _replies(
        self, client: openai.AsyncOpenAI, request: _Request, stop: str | None
    ) -> list[Continuation | None]:
        """Return what the server wrote, from the log or now; None for a choice that ``stop`` cut too early."""
        key = call_key(self.url, self.model, stop, asdict(request))
        line = self.log.get(key)
        if line is None:
            reply = await self._paid_for(client, self._body(request, stop))
            kept = {"reply": reply.model_dump(mode="json", exclude_unset=True), "paid": asdict(_paid(reply))}
            self.log.append(key, kept)
        else:
            reply = ChatCompletion.model_validate(line["reply"])
            self.usage.reused += 1
        if reply.usage is not None:
            self.usage.prompt_tokens += reply.usage.prompt_tokens
            self.usage.completion_tokens += reply.usage.completion_tokens
        repeats = not (self._features.prefill and self._features.stop)
        return [_read(reply, choice, request, stop, repeats) for choice in reply.choices[: request.n]]

    def _body(self, request: _Request, stop: str | None) -> dict[str, Any]:
        can, sampling = self._features, request.sampling
        messages, extra = list(request.messages), {}
        if request.text and can.prefill:
            messages.append({"role": "assistant", "content": request.text})
            extra = FLAGS if can.flags else {}
        elif request.text:
            messages += prompts.go_on(request.text)
        if sampling.repetition_penalty != 1.0:
            extra = extra | {"repetition_penalty": sampling.repetition_penalty}
        return {
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            can.max_name: sampling.max_tokens,
            **({"n": request.n} if request.n > 1 else {}),
            **({"stop": [stop]} if stop else {}),
            **({"seed": request.seed % 2**31} if can.seed else {}),
            **({"logprobs": True} if can.logprobs else {}),
            **({"extra_body": extra} if extra else {}),
        }

    async def _paid_for(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> ChatCompletion:
        """Return the reply, if the budget has room for its maximum cost."""
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
            reply = await self._post(client, body)
            paid = _paid(reply)
            self.usage.requests += 1
            return reply
        finally:
            async with self._settled:
                self._under_way -= most
                self.spent += paid
                self._settled.notify_all()

    async def _post(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> ChatCompletion:
        where = f"endpoint {self.url}, model {self.model}"
        tries = f" ({self.retries + 1} tries)"
        kept = f"; the replies so far are kept in {self.log.folder}: run the same again" if self.log.folder else ""
        again = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Garbled),
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
            reraise=True,
        )
        # No causes: a notebook would print them, and they may contain the key.
        try:
            return await again(self._whole_reply, client, body)
        except _Garbled as error:
            raise MedReflError(f"{where}: {_one_line(error)}{tries}{kept}") from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise _Refused(f"{where}: HTTP {error.status_code}: {_one_line(error)}") from None
        except openai.APIStatusError as error:
            hint = {401: f"; the key is read from {KEY_VARIABLE}", 403: f"; the key is read from {KEY_VARIABLE}"}
            may_pass = error.status_code in (408, 409, 429) or error.status_code >= 500
            ending = tries + kept if may_pass else hint.get(error.status_code, "")
            raise MedReflError(f"{where}: HTTP {error.status_code}: {_one_line(error)}{ending}") from None
        except openai.APIConnectionError as error:
            cause = _one_line(error.__cause__ or error) or _one_line(error)
            raise MedReflError(f"{where}: no connection{tries}: {cause}{kept}") from None

    async def _whole_reply(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> ChatCompletion:
        """Return one reply. Raises _Garbled for an HTTP 200 without a valid reply."""
        try:
            reply = await client.chat.completions.create(model=self.model, **body)
        except (openai.APIResponseValidationError, ValueError) as error:
            raise _Garbled(f"the reply is not JSON: {_one_line(error)}") from None
        if told := getattr(reply, "error", None):
            raise _Garbled(f"HTTP 200 with an error: {told}")
        if not isinstance(reply, ChatCompletion) or not reply.choices:
            shown = reply if isinstance(reply, str) else reply.model_dump_json()
            raise _Garbled(f"the reply has no choices: {shown}")
        text = reply.model_dump_json(exclude_unset=True)
        return reply if (clean := _blotted(text)) == text else ChatCompletion.model_validate_json(clean)

    async def _probed(self, client: openai.AsyncOpenAI) -> Features:
        """Ask the server to continue a count; leave out what it refuses, until it replies."""
        key = call_key(self.url, self.model, "probe", COUNT)
        if line := self.log.get(key):
            return Features(**line["features"])
        can, before = Features(), self.spent
        while True:
            try:
                reply = await self._paid_for(client, probe_body(can, stop=True))
                break
            except _Refused as refused:
                can = disable_refused(can, str(refused))
                if can is None:
                    raise
        text = reply.choices[0].message.content or ""
        if not text.strip():
            reply = await self._paid_for(client, probe_body(can, stop=False))
            text, can = reply.choices[0].message.content or "", replace(can, stop=False)
        logprobs = reply.choices[0].logprobs
        can = replace(
            can,
            prefill=text.strip().startswith("5"),
            choices=can.choices and len(reply.choices) == 2,
            logprobs=can.logprobs and bool(logprobs and logprobs.content),
        )
        self.log.append(key, {"features": asdict(can), "paid": asdict(self.spent - before)})
        return can


class _Refused(MedReflError):
    """A request that the server will never accept as it is."""


class _Garbled(Exception):
    """An invalid reply; another try may succeed."""


def _read(
    reply: ChatCompletion, choice: Any, request: _Request, stop: str | None, repeats: bool
) -> Continuation | None:
    """Return a choice as a continuation; None where ``stop`` cut it before its step was complete.

    ``repeats``: the reply to a turn that ends with a line end may repeat that line end.
    """
    text = choice.message.content or ""
    content = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    share = len(text) / max(1, sum(len(other.message.content or "") for other in reply.choices))
    whole = Continuation(
        text,
        (),
        sum(token.logprob for token in content) if content else None,
        "length" if choice.finish_reason == "length" else "end",
        len(content) or round(share * reply.usage.completion_tokens if reply.usage else 0),
    )
    if request.text:
        whole = replace(whole, text=_joined(request, text, repeats))
    if request.steps is None:
        return whole
    end = step_end(whole.text, request.steps)
    if end is not None:
        return replace(_part(whole, whole.text[:end]), stop="boundary")
    if stop is None or choice.finish_reason != "stop" or not _may_be_stopped(choice, stop):
        return whole
    if step_end(whole.text + stop, request.steps) is None:
        return None
    return replace(whole, text=whole.text + stop, stop="boundary")


def _may_be_stopped(choice: Any, stop: str) -> bool:
    """Say whether ``stop`` may have ended a choice; vLLM and SGLang tell it apart from the model's end of turn."""
    extra = choice.model_extra or {}
    reason = extra.get("stop_reason", extra.get("matched_stop", "unknown"))
    return isinstance(reason, str) and (reason in (stop, "unknown") or "stop" in reason.lower())


def _joined(request: _Request, text: str, repeats: bool) -> str:
    """Return a reply as it continues the turn so far."""
    if request.text.endswith(prompts.STEP_BOUNDARY):
        # A template that strips the turn, or a model that was asked to go on, repeats the line end.
        return text.lstrip(prompts.STEP_BOUNDARY) if repeats else text
    # A sentence ends before the space that follows it; some servers strip that space.
    last = request.text[-1:]
    return (
        f" {text}"
        if request.steps == "sentence" and last.isascii() and not last.isspace() and text[:1].isalnum()
        else text
    )


def _part(whole: Continuation, text: str) -> Continuation:
    """Return a part of a continuation with its share of the tokens, by length; its log-probability is not known."""
    if text == whole.text:
        return whole
    return replace(whole, text=text, logprob=None, n_tokens=max(1, round(whole.n_tokens * len(text) / len(whole.text))))


def api_key() -> str:
    """Return the API key from the environment, or from the file in OPENAI_API_KEY_FILE."""
    if file := os.environ.get(f"{KEY_VARIABLE}_FILE"):
        try:
            return Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise MedReflError(f"{KEY_VARIABLE}_FILE names {file}, which cannot be read: {error}") from None
    return os.environ.get(KEY_VARIABLE, "")


def _paid(reply: ChatCompletion) -> Spent:
    usage = reply.usage
    return Spent(len(reply.choices), usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0)


def _plain(url: str) -> str:
    """Return an address without anything that may be a key."""
    address = urlsplit(url)
    return f"{address.scheme}://{address.hostname}{address.path}" if address.hostname else url.split("?")[0]


def _blotted(text: str) -> str:
    """Return the text without the key, which some servers repeat."""
    key = api_key()
    return text.replace(key, "[key]") if len(key) > 3 else text


def _one_line(error: BaseException) -> str:
    return _blotted(" ".join(str(error).split()))[:300]


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the coroutine's result, from a thread of its own: Jupyter already runs an event loop. Ctrl-C ends it."""
    outcome: dict[str, Any] = {}
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def go() -> None:
        try:
            outcome["result"] = loop.run_until_complete(task)
        except BaseException as error:
            outcome["error"] = error
        finally:
            loop.close()

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
