"""Any OpenAI-compatible endpoint: a vLLM or SGLang server, or a hosted model.

What the server can do is found by one probe and recorded: whether it continues a half-written assistant turn (else the
model is asked to go on), whether a stop works there, several choices a request, log-probabilities. Every reply is
appended to a log as it arrives, under a hash of its request: a run that was killed pays for none of them again.

An endpoint gets a seed with each request. Whether the same seed gives the same words is the server's affair; what makes
a rerun the same here is the log.
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
from medrefl_utils.models.generators.budget import Budget, Spent
from medrefl_utils.models.generators.call_log import CallLog, call_key
from medrefl_utils.models.generators.interface import Generator, Prefix, Progress, Result, Usage
from medrefl_utils.models.generators.server_features import COUNT, FLAGS, Features, disable_refused, probe_body

KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class _Request:
    messages: Messages
    text: str
    stop: str | None
    sampling: Sampling
    seed: int
    n: int


class EndpointGenerator(Generator):
    """A model behind ``url`` (the part before ``/chat/completions``); the key is read from OPENAI_API_KEY alone."""

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
        """Nothing is asked yet.

        Args:
            url: http(s)://host/v1; no key in it.
            model: its name there.
            log: where replies are kept, and found again.
            concurrency: requests under way at once.
            retries: of a request that failed in passing (429, 5xx, no connection, a reply that is none), after what the
                server's Retry-After says or ever longer.
            timeout: of a request [s].
            budget: what may be spent, with all that the log holds; requests under way are let end before it stops.
            workers: how many generators like this one share the log and the budget.

        Raises:
            MedReflError: an address that is none or has a key in it, or no model.
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
        """the most that the requests under way can cost"""
        self._features: Features | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What runs the model, for the manifest."""
        return {"endpoint": self.url, "model": self.model} | (asdict(self._features) if self._features else {})

    def expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        stop: str | None,
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        progress: Progress | None = None,
    ) -> list[list[Continuation]]:
        """``k`` continuations of each prefix, in the prefixes' order.

        One request a prefix, with the seed of its first child, where the server gives several choices; else one a
        child. A step ends as the in-process generator ends it: at ``stop`` once there is more than white space.
        """
        start = time.perf_counter()
        try:
            return _run(self._expand(prefixes, k, stop, sampling, seeds, progress))
        finally:
            self.usage.seconds += time.perf_counter() - start

    def encode(self, text: str) -> tuple[int, ...]:
        """No tokens: an endpoint goes by the text."""
        return ()

    def steps(self, chain: Continuation, stop: str) -> list[Continuation]:
        """The chain's lines; its tokens are shared out by length."""
        pieces, rest = [], chain.text
        while (end := _end(rest, stop)) is not None and end < len(rest):
            pieces.append(replace(_part(chain, rest[:end]), stop="boundary"))
            rest = rest[end:]
        return [*pieces, _part(chain, rest)]

    async def _expand(
        self,
        prefixes: Sequence[Prefix],
        k: int,
        stop: str | None,
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
                _Request(p.messages, p.text, stop, sampling, seed, k if whole else 1)
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
                        failed.append(error)  # nothing new begins, what is under way is paid for and comes in
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
        """The continuations of one request; choices that the server held back are asked for one by one."""
        after_prefill = bool(request.text) and self._features.prefill
        stop = request.stop if self._features.stop or not after_prefill else None
        written = await self._replies(client, request, stop)
        for number in range(len(written), request.n):
            more = replace(request, n=1, seed=request.seed + number)
            written += await self._replies(client, more, stop)
        for number, one in enumerate(written):
            if one is None:
                # A stop at once: the server ended at a line's end that the turn begins with, or the turn is over.
                again = replace(request, n=1, seed=request.seed + number)
                [written[number]] = await self._replies(client, again, None)
        self.usage.calls += len(written)
        return written

    async def _replies(
        self, client: openai.AsyncOpenAI, request: _Request, stop: str | None
    ) -> list[Continuation | None]:
        """What the server wrote, from the log or now; None for a choice that is blank before ``stop``."""
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
        return [_read(reply, choice, request, stop) for choice in reply.choices[: request.n]]

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
        """The reply, if the budget has room for the most that it can cost."""
        n, limit = body.get("n", 1), body.get("max_tokens") or body["max_completion_tokens"]
        # A token is at least a byte of text, and a template adds a few to each message.
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
        kept = f"; what was received is kept in {self.log.folder}: run the same again" if self.log.folder else ""
        again = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Garbled),
            stop=tenacity.stop_after_attempt(self.retries + 1),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
            reraise=True,
        )
        # Without causes: a notebook would print what they hold, which may be the key.
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
        """One reply. Raises _Garbled for one with HTTP 200 that is none."""
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
        """Ask the server to go on counting; what it refuses is left out until it replies."""
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
    """A request that the server will never take as it is."""


class _Garbled(Exception):
    """A reply that is none; another try may bring one."""


def _read(reply: ChatCompletion, choice: Any, request: _Request, stop: str | None) -> Continuation | None:
    """A choice as a continuation; None where it is blank since ``stop`` came first, or may have."""
    text = choice.message.content or ""
    said = (choice.model_extra or {}).get("stop_reason", (choice.model_extra or {}).get("matched_stop", "unknown"))
    stopped = stop is not None and choice.finish_reason == "stop" and said in (stop, "unknown")
    if stopped and not text.strip():
        return None
    content = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    share = len(text) / max(1, sum(len(other.message.content or "") for other in reply.choices))
    whole = Continuation(
        text,
        (),
        sum(token.logprob for token in content) if content else None,
        "length" if choice.finish_reason == "length" else "end",
        len(content) or round(share * reply.usage.completion_tokens if reply.usage else 0),
    )
    if request.text.endswith(prompts.STEP_BOUNDARY):
        # A template that strips the turn, or a model that was asked to go on, begins with the line's end again.
        whole = replace(whole, text=text.lstrip(prompts.STEP_BOUNDARY))
    end = _end(whole.text, request.stop) if request.stop else None
    if end is not None:
        return replace(_part(whole, whole.text[:end]), stop="boundary")
    return replace(whole, text=whole.text + stop, stop="boundary") if stopped else whole


def _end(text: str, stop: str) -> int | None:
    """Where a step ends: after the first ``stop`` that follows more than white space."""
    blank = len(text) - len(text.lstrip())
    found = text.find(stop, blank)
    return None if found < 0 or blank == len(text) else found + len(stop)


def _part(whole: Continuation, text: str) -> Continuation:
    """A part of a continuation: its share of the tokens, by length; no log-probability, which is not known by parts."""
    if text == whole.text:
        return whole
    return replace(whole, text=text, logprob=None, n_tokens=max(1, round(whole.n_tokens * len(text) / len(whole.text))))


def api_key() -> str:
    """The key: from the environment, or from the file that OPENAI_API_KEY_FILE names."""
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
    """An address without what may be a key."""
    address = urlsplit(url)
    return f"{address.scheme}://{address.hostname}{address.path}" if address.hostname else url.split("?")[0]


def _blotted(text: str) -> str:
    """The text without the key, which some servers repeat."""
    key = api_key()
    return text.replace(key, "[key]") if len(key) > 3 else text


def _one_line(error: BaseException) -> str:
    return _blotted(" ".join(str(error).split()))[:300]


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """The coroutine's result; in a thread of its own, since in Jupyter an event loop runs already. Ctrl-C ends it."""
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
