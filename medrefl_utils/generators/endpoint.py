"""Any OpenAI-compatible endpoint: a vLLM or SGLang server, or a hosted model.

What the server can do is found by one probe and recorded: whether it continues a half-written assistant turn (else the
model is asked to go on), whether a stop works there, several choices a request, log-probabilities. Every reply is
appended to a log as it arrives, under a hash of its request: a run that was killed pays for none of them again.

An endpoint gets a seed with each request. Whether the same seed gives the same words is the server's affair; what makes
a rerun the same here is the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from medrefl_utils import prompts
from medrefl_utils.generators import Generator, Prefix, Progress, Result, Usage
from medrefl_utils.prompts import Messages
from medrefl_utils.records import Continuation, MedReflError, Sampling

KEY_VARIABLE = "OPENAI_API_KEY"
_COUNT: Messages = [
    {"role": "user", "content": "Write the numbers from 1 to 20, one on each line and nothing else."},
    {"role": "assistant", "content": "1\n2\n3\n4\n"},
]


@dataclass(frozen=True)
class Features:
    """What a server can do."""

    prefill: bool = True
    """it continues an assistant turn that is half written"""
    flags: bool = True
    """it takes vLLM's and SGLang's ``continue_final_message``, which that needs there"""
    stop: bool = True
    """a stop works there too: the turn's last line end is not lost in the chat template"""
    choices: bool = True
    """it gives ``n`` choices"""
    logprobs: bool = True
    seed: bool = True
    max_name: str = "max_tokens"


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
        calls: Path | None = None,
        concurrency: int = 16,
        retries: int = 6,
        timeout: float = 600.0,
    ):
        """``calls`` is the log (JSON lines) that replies are appended to and taken from.

        Requests that fail in passing (429, 5xx, no connection) are repeated ``retries`` times, after what the server's
        Retry-After says or ever longer. Raises MedReflError for an address that is none, and for a log that is none.
        """
        if not url.startswith(("http://", "https://")) or not model:
            raise MedReflError(
                f"endpoint {url!r}, model {model!r}: expected http(s)://host/v1 and the model's name there"
            )
        self.url, self.model, self.calls = url.rstrip("/"), model, calls
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout
        self.usage = Usage()
        self.key = f"{self.url} {model}"
        self._log: dict[str, dict[str, Any]] = {}
        self._writing = threading.Lock()
        if calls is not None and calls.exists():
            self._log = {line["key"]: line for line in _lines(calls)}
            if not calls.read_bytes().endswith(b"\n"):
                with open(calls, "a") as file:
                    file.write("\n")  # what a killed run left half written stays a line of its own
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
        return _run(self._expand(prefixes, k, stop, sampling, seeds, progress))

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
        key = os.environ.get(KEY_VARIABLE) or "none"
        limit = asyncio.Semaphore(self.concurrency)
        client = openai.AsyncOpenAI(base_url=self.url, api_key=key, max_retries=self.retries, timeout=self.timeout)
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
                    written = await self._written(client, request)
                if progress is not None:
                    progress(len(written))
                return written

            tasks = [asyncio.ensure_future(one(request)) for request in asked]
            try:
                rows = await asyncio.gather(*tasks)
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise
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
        key = _digest([self.url, self.model, stop, asdict(request)])
        line = self._log.get(key)
        if line is None:
            reply = await self._post(client, self._body(request, stop))
            line = {"key": key, "reply": reply.model_dump(mode="json", exclude_unset=True)}
            self._append(line)
            self.usage.requests += 1
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
            extra = _FLAGS if can.flags else {}
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

    async def _post(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> ChatCompletion:
        where = f"endpoint {self.url}, model {self.model}"
        kept = f"; what was received is kept in {self.calls}: run the same again" if self.calls else ""
        try:
            return await client.chat.completions.create(model=self.model, **body)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise _Refused(f"{where}: HTTP {error.status_code}: {_one_line(error)}") from error
        except openai.APIStatusError as error:
            hint = {401: f"; the key is read from {KEY_VARIABLE}", 403: f"; the key is read from {KEY_VARIABLE}"}
            may_pass = error.status_code in (408, 409, 429) or error.status_code >= 500
            tries = f" ({self.retries + 1} tries){kept}" if may_pass else hint.get(error.status_code, "")
            raise MedReflError(f"{where}: HTTP {error.status_code}: {_one_line(error)}{tries}") from error
        except openai.APIConnectionError as error:
            cause = _one_line(error.__cause__ or error)
            raise MedReflError(f"{where}: no connection ({self.retries + 1} tries): {cause}{kept}") from error

    async def _probed(self, client: openai.AsyncOpenAI) -> Features:
        """Ask the server to go on counting; what it refuses is left out until it replies."""
        key = _digest([self.url, self.model, "probe", _COUNT])
        if key in self._log:
            return Features(**self._log[key]["features"])
        can = Features()
        while True:
            try:
                reply = await self._post(client, _probe_body(can, stop=True))
                break
            except _Refused as refused:
                can = _without(can, str(refused))
                if can is None:
                    raise
        self.usage.requests += 1
        text = reply.choices[0].message.content or ""
        if not text.strip():
            reply = await self._post(client, _probe_body(can, stop=False))
            self.usage.requests += 1
            text, can = reply.choices[0].message.content or "", replace(can, stop=False)
        logprobs = reply.choices[0].logprobs
        can = replace(
            can,
            prefill=text.strip().startswith("5"),
            choices=can.choices and len(reply.choices) == 2,
            logprobs=can.logprobs and bool(logprobs and logprobs.content),
        )
        self._append({"key": key, "features": asdict(can)})
        return can

    def _append(self, line: dict[str, Any]) -> None:
        self._log[line["key"]] = line
        if self.calls is None:
            return
        with self._writing:
            self.calls.parent.mkdir(parents=True, exist_ok=True)
            with open(self.calls, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


class _Refused(MedReflError):
    """A request that the server will never take as it is."""


_FLAGS = {"continue_final_message": True, "add_generation_prompt": False}
_REFUSALS = (
    ("max_completion_tokens", {"max_name": "max_completion_tokens"}),
    ("logprobs", {"logprobs": False}),
    ("continue_final_message", {"flags": False}),
    ("add_generation_prompt", {"flags": False}),
    ("seed", {"seed": False}),
    ("", {"flags": False}),
    ("", {"logprobs": False}),
    ("", {"choices": False}),
    ("", {"seed": False}),
)
"""A word of the server's complaint, and what is left out then; without such a word one after another."""


def _without(can: Features, complaint: str) -> Features | None:
    for word, change in _REFUSALS:
        less = replace(can, **change)
        if word in complaint and less != can:
            return less
    return None


def _probe_body(can: Features, stop: bool) -> dict[str, Any]:
    return {
        "messages": _COUNT,
        "temperature": 1.0 if can.choices else 0.0,
        can.max_name: 6,
        **({"n": 2} if can.choices else {}),
        **({"stop": ["\n"]} if stop else {}),
        **({"seed": 0} if can.seed else {}),
        **({"logprobs": True} if can.logprobs else {}),
        **({"extra_body": _FLAGS} if can.flags else {}),
    }


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


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the last line of a killed run


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


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
