"""Send requests to a server with OpenAI's API: wait where it is busy, ask again where it fails, and say why it refuses.

A server that asks to wait (HTTP 429, 503) is waited for, as its Retry-After says; all requests wait together. It is
given up after ``RateLimits.max_wait`` minutes without any reply. Other failures that may pass are tried again a few
times. The API key is in no message.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
import tenacity

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.models.generators.servers.rate_limits import Pace, RateLimits

T = TypeVar("T")
KEY_VARIABLE = "OPENAI_API_KEY"

_BUSY = (429, 503, 529)
_ABOUT_PROMPT = re.compile(
    r"content[\s_-]?(?:filter|policy|management|moderation)|responsible.?ai|usage polic|safety|moderat|flagged|"
    r"invalid[_\s]prompt|prohibited|"
    r"context[\s_-]?(?:length|window|size)|maximum (?:context|model) length|max_model_len|"
    r"(?:prompt|input|request|message)s?\b[^.]{0,40}\b(?:is|are)? ?(?:too (?:long|large)|longer than|exceeds?)|"
    r"too many (?:input )?tokens",
    re.IGNORECASE,
)
"""Words of a refusal that is about what a prompt says or how long it is, not about a parameter."""
_TRY_AGAIN_IN = re.compile(
    r"(?:try again|retry) (?:in|after) (?:(?P<h>\d+) ?h(?:ours?)? ?)?(?:(?P<m>\d+) ?m(?:in(?:ute)?s?)?(?![a-z]) ?)?"
    r"(?:(?P<s>[\d.]+) ?(?P<unit>ms|s(?:ec(?:ond)?s?)?)\b)?",
    re.IGNORECASE,
)


class Refused(MedReflError):
    """A request that the server does not accept as it is (HTTP 400, 413, 422; 403 about what a prompt says)."""

    def __init__(self, line: str, told: str, parameter: str = "") -> None:
        super().__init__(line)
        self.told, self.parameter = told, parameter
        """the server's own words, and the name of the parameter that it refuses, if it says so"""

    @property
    def about_prompt(self) -> bool:
        """Say whether this one prompt is refused, for its content or length; others may be accepted."""
        return _ABOUT_PROMPT.search(self.told) is not None


class _Temporary(Exception):
    """A failure that may pass: the message before and after the number of tries."""

    def __init__(self, before: str, after: str = "", *, busy: bool = False, wait: float | None = None) -> None:
        super().__init__(before)
        self.before, self.after, self.busy, self.wait = before, after, busy, wait


class ServerClient:
    """The connection to one model on one server."""

    def __init__(self, url: str, model: str, *, retries: int, timeout: float, limits: RateLimits, log: Path | None):
        """Check the address; no request is sent yet.

        Args:
            url: http(s)://host/v1, without a key.
            model: the model's name on the server, for messages.
            retries: how often a request is repeated after a failure that may pass; waiting for a busy server does not
                count.
            timeout: of one request [s].
            limits: pace, and the limit on waiting.
            log: folder that keeps the replies, for messages.

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
        self.url, self.where = url.rstrip("/"), f"endpoint {url.rstrip('/')}, model {model}"
        self.root = self.url.removesuffix("/v1")
        self.retries, self.timeout, self.limits = retries, timeout, limits
        self._kept = f"; the replies so far are kept in {log}: run the same again" if log else ""
        self._pace, self._first_in_line = Pace(limits), asyncio.Lock()
        self._free_at = 0.0  # time.monotonic() until which the server asked to wait
        self._answered = 0.0  # time.monotonic() of the last reply

    @cached_property
    def _api(self) -> openai.AsyncOpenAI:
        """The connections; they stay open between calls, and belong to the loop of ``run_in_loop``."""
        return openai.AsyncOpenAI(base_url=self.url, api_key=api_key() or "none", max_retries=0, timeout=self.timeout)

    async def reply(self, body: dict[str, Any], tokens: int) -> dict[str, Any]:
        """Return the reply to a chat request of at most ``tokens`` tokens: an object with at least one choice.

        Raises:
            Refused: the server does not accept the request.
            MedReflError: it fails in another way, or does not recover.
        """
        failures = 0

        def gives_up(state: tenacity.RetryCallState) -> bool:
            nonlocal failures
            error = state.outcome.exception()
            if not error.busy:
                failures += 1
                return failures > self.retries
            since = max(self._answered, state.start_time)
            return time.monotonic() + (error.wait or 0) - since > 60 * self.limits.max_wait

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception()
            first, longest = (1, 60) if error.busy else (0.5, 8)
            seconds = error.wait
            if seconds is None:
                seconds = tenacity.wait_random_exponential(multiplier=first, max=longest)(state)
            if not error.busy:
                return seconds
            self._free_at = max(self._free_at, time.monotonic() + seconds)
            return 0.0  # the next try waits with all others

        again = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Temporary), stop=gives_up, wait=wait, reraise=True
        )
        # No causes: a notebook would print them, and they may contain the key.
        try:
            return await again(self._once, body, tokens)
        except _Temporary as error:
            if error.busy:
                told = f"{error.before}{error.after}; no reply for max_wait {self.limits.max_wait:g} minutes"
                told += f", and the server asks to wait {error.wait:,.0f} s" if error.wait else ""
            else:
                told = f"{error.before} ({failures} tries){error.after}"
            raise MedReflError(f"{self.where}: {told}{self._kept}") from None

    def give_back(self, tokens: int) -> None:
        """Count ``tokens`` fewer than ``reply`` was told."""
        self._pace.give_back(tokens)

    async def ask_route(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Ask a route of the server's own, with GET or (with a body) POST.

        Returns:
            The HTTP status and the JSON, (0, None) without an answer.
        """
        options = {"timeout": min(30.0, self.timeout)} if body is None else {}
        try:
            if body is None:
                return 200, await self._api.get(f"{self.root}{path}", cast_to=object, options=options)
            return 200, await self._api.post(f"{self.root}{path}", cast_to=object, body=body, options=options)
        except openai.APIStatusError as error:
            return error.status_code, error.body
        except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError):
            return 0, None

    async def _once(self, body: dict[str, Any], tokens: int) -> dict[str, Any]:
        while (wait := self._free_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        await self._pace.turn(tokens, self._first_in_line)
        try:
            reply = await self._api.post("/chat/completions", cast_to=object, body=body)
        except openai.APIConnectionError as error:
            cause = one_line(error.__cause__ or error) or one_line(error)
            raise _Temporary("no connection", f": {cause}") from None
        except openai.APIStatusError as error:
            raise self._of_status(error) from None
        except (openai.APIResponseValidationError, ValueError) as error:
            raise _Temporary(f"the reply is not JSON: {one_line(error)}") from None
        if isinstance(reply, dict) and (told := reply.get("error")):
            busy = isinstance(told, dict) and told.get("code") in (429, "429")
            raise _Temporary(f"HTTP 200 with an error: {blotted(str(told))[:300]}", busy=busy)
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list) or not any(isinstance(choice, dict) for choice in choices):
            raise _Temporary(f"the reply has no choices: {blotted(str(reply))[:300]}")
        self._answered = time.monotonic()
        return _blotted_json(reply)

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        """Return what an HTTP error means: wait, try again, refused, or the end."""
        status, told = error.status_code, one_line(error)
        line = f"HTTP {status}: {told}"
        if status in (408, 409, *_BUSY) or status >= 500:
            if error.code == "insufficient_quota":
                return MedReflError(f"{self.where}: {line}{self._kept}")
            return _Temporary(line, busy=status in _BUSY, wait=_retry_after(error.response.headers, told))
        refused = Refused(f"{self.where}: {line}", told, error.param if isinstance(error.param, str) else "")
        if status in (400, 413, 422) or (status == 403 and refused.about_prompt):
            return refused
        hint = f"; the key is read from {KEY_VARIABLE}" if status in (401, 403) else ""
        return MedReflError(f"{self.where}: {line}{hint}")


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Return a coroutine's result, from this process's thread for connections. Ctrl-C cancels it.

    Jupyter already runs an event loop in its own thread.
    """
    ended = threading.Event()

    async def watched() -> T:
        try:
            return await work
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(watched(), _loop())
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        ended.wait(10)
        raise


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _retry_after(headers: Any, told: str) -> float | None:  # noqa: ANN401 (the HTTP library's own type)
    """Return the seconds that a server asks to wait: by a header, in seconds or as a date, or in its message."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            pass
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            continue
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    found = _TRY_AGAIN_IN.search(told)
    if found is None or not any(found[name] for name in "hms"):
        return None
    seconds = float((found["s"] or "0").rstrip(".")) / (1000 if (found["unit"] or "").lower() == "ms" else 1)
    return 3600 * int(found["h"] or 0) + 60 * int(found["m"] or 0) + seconds


def api_key() -> str:
    """Return the API key from the environment, or from the file in OPENAI_API_KEY_FILE."""
    if file := os.environ.get(f"{KEY_VARIABLE}_FILE"):
        try:
            return Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise MedReflError(f"{KEY_VARIABLE}_FILE names {file}, which cannot be read: {error}") from None
    return os.environ.get(KEY_VARIABLE, "")


def blotted(text: str) -> str:
    """Return the text without the key, which some servers repeat."""
    key = api_key()
    return text.replace(key, "[key]") if len(key) > 3 else text


def one_line(error: BaseException) -> str:
    """Return an error's message as one line of at most 300 characters, without the key."""
    return blotted(" ".join(str(error).split()))[:300]


def _blotted_json(value: Any) -> Any:  # noqa: ANN401 (anything that JSON holds)
    if isinstance(value, dict):
        return {blotted(key): _blotted_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_blotted_json(inner) for inner in value]
    return blotted(value) if isinstance(value, str) else value


def _plain(url: str) -> str:
    """Return an address without anything that may be a key."""
    address = urlsplit(url)
    return f"{address.scheme}://{address.hostname}{address.path}" if address.hostname else url.split("?")[0]
