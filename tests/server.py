"""An OpenAI-compatible HTTP server for the tests, which keeps what it was asked.

Its words are the tiny student's, those of given responses, or made up from the seed: three steps and an answer. Its
manners are switches: whether it continues an assistant turn, knows ``n``, ``stop`` and ``logprobs``, loses the line end
of such a turn, refuses a parameter in a hosted model's words, replies in another form, or fails so many times first.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from medrefl_utils.core import Sampling
from medrefl_utils.models import LocalGenerator, Prefix


def _limit(body: dict[str, Any]) -> int:
    return body.get("max_tokens") or body.get("max_completion_tokens") or 0


def _turn(body: dict[str, Any]) -> dict[str, Any]:
    last = body["messages"][-1]
    return last if last["role"] == "assistant" else {}


MANNERS = {
    "prefill": (
        lambda body: bool(_turn(body)),
        "This model does not support assistant message prefill. The conversation must end with a user message.",
    ),
    "prefill without prefix": (
        lambda body: bool(_turn(body)) and not _turn(body).get("prefix"),
        "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant",
    ),
    "white space": (
        lambda body: _turn(body).get("content", "").rstrip() != _turn(body).get("content", ""),
        "messages: final assistant content cannot end with trailing whitespace",
    ),
    "stop": (
        lambda body: "stop" in body,
        "Unsupported parameter: 'stop' is not supported with this model.",
    ),
    "temperature": (
        lambda body: body.get("temperature", 1) != 1,
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
    ),
    "top_p": (
        lambda body: "top_p" in body,
        "Unsupported parameter: 'top_p' is not supported with this model.",
    ),
    "both": (
        lambda body: "temperature" in body and "top_p" in body,
        "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
    ),
    "max_tokens": (
        lambda body: "max_tokens" in body,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    ),
    "few tokens": (
        lambda body: _limit(body) < 16,
        "Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 6 instead.",
    ),
    "n": (lambda body: body.get("n", 1) > 1, "n: this model supports only one choice per request"),
    "seed": (lambda body: "seed" in body, "Unrecognized request argument supplied: seed"),
    "logprobs": (lambda body: "logprobs" in body, "logprobs are not available for this model"),
    "flags": (
        lambda body: "continue_final_message" in body,
        "[{'type': 'extra_forbidden', 'loc': ('body', 'continue_final_message'), 'msg': 'Extra inputs are not"
        " permitted'}]",
    ),
    "repetition_penalty": (
        lambda body: "repetition_penalty" in body,
        "Unknown parameter: 'repetition_penalty'.",
    ),
}
"""Manners of hosted models: what is refused, and the words (HTTP 400)."""


class Server(ThreadingHTTPServer):
    """``requests`` holds the bodies of those that were answered, ``refused`` the status codes of the others."""

    daemon_threads = True
    prefill = True
    choices = True
    stop = True
    stop_reason = True
    logprobs = True
    strips = False
    repeats = False
    """its reply begins with the turn that it continues, as llama.cpp's does"""
    failures: list[tuple[int, dict[str, str], str] | str] = []
    """answered first, one a request: status, headers, message; or by name: "slow" (for longer than ``slow`` seconds),
    "cut" (the connection ends amid the body), "truncated" (half of the JSON), "empty" (no choices), "error" (HTTP 200
    with an error), "page" (HTML)"""
    code = ""
    """the code of an error, such as "insufficient_quota"""
    slow = 1.0
    texts: Sequence[str] = ()
    """whole responses that it writes: one that begins as the turn does, chosen by the seed"""
    refuses: Sequence[str] = ()
    """names of ``MANNERS``"""
    penalty = "repetition_penalty"
    """the name under which it heeds a repetition penalty; "": it heeds none. It ignores other names without a word"""
    silent = False
    """its refusals say nothing but "Bad Request\""""
    form = "text"
    """of a message: "text", "parts" (a list), "null" (no message where the text is empty), "thinking" (in
    ``reasoning_content``, with the text), "thinking parts", "thinking only" (the text is null)"""
    thinks = 0
    """hidden tokens before the first visible one; they count in the limit"""
    filtered = ""
    """a prompt that holds this text is refused for its content"""
    context = 0
    """longest prompt in characters; 0: any"""
    template = ""
    """what ``/apply-template`` puts after a user's turn, as llama.cpp does; "" : no such route"""
    counts = True
    """its model goes on with the numbers of the probe"""
    adapters: Any = None
    """what ``GET /lora-adapters`` gives (llama.cpp); None: no such route"""
    loads = ""
    """the route that loads an adapter: vLLM's or SGLang's"""
    names: set[str] | None = None
    """the names of its models; None: it answers under any name"""
    echoes = False
    """it puts the key that it was asked with into what it says"""

    def __init__(self, student: LocalGenerator | None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.student, self.requests, self.refused, self.lock = student, [], [], threading.Lock()
        self.keys: set[str] = set()
        self.loaded: list[dict[str, str]] = []
        self.written = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that was killed amid its request is no fault."""

    def answer(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        messages, n = body["messages"], body.get("n", 1) if self.choices else 1
        text = ""
        if messages[-1]["role"] == "assistant":
            text = messages[-1]["content"] if self.prefill else ""
            messages = messages[:-1]
        if "word yes 20 times" in messages[0]["content"]:
            penalty = body.get(self.penalty, 1.0)
            lines = ("yes\n" if penalty == 1 else f"{word}\n" for word in "yes, Yes no sure fine right so well".split())
            return [self._choice("".join(lines), "stop", body, i, text) for i in range(n)]
        if self.form.startswith("thinking") and "word yes" in messages[0]["content"]:
            return [self._choice("yes", "stop", body, i) for i in range(n)]
        if "numbers from 1 to 20" in messages[0]["content"]:
            if not self.counts:
                return [self._choice("It is oral.\n", "stop", body, i) for i in range(n)]
            lines = "".join(f"{i}\n" for i in range(int((re.findall(r"\d+", text) or ["0"])[-1]) + 1, 9))
            whole = [self._line_end(text) + lines] * n
            return [self._choice(words, "stop", body, i, text) for i, words in enumerate(whole)]
        written = text + "".join(m["content"] for m in messages if m["role"] == "assistant")
        seeds = [body.get("seed", len(self.requests)) + i for i in range(n)]
        if self.texts:
            rows = self._given(written, seeds)
        else:
            rows = self._students(messages, written, body, seeds) if self.student else self._made_up(written, seeds)
        begin = "" if self.texts else self._line_end(text)
        return [
            self._choice(begin + words, "length" if cut else "stop", body, i, text)
            for i, (words, cut) in enumerate(rows)
        ]

    def _line_end(self, text: str) -> str:
        """What a reply to this turn begins with: the line end that the turn has lost."""
        return "\n" if text and (self.strips or not text.endswith("\n")) else ""

    def _students(self, messages: list, written: str, body: dict, seeds: list[int]) -> list[tuple[str, bool]]:
        prompt = [message for message in messages if message["role"] == "user"][:1]
        sampling = Sampling(body.get("temperature", 1.0), body.get("top_p", 1.0), _limit(body))
        with self.lock:
            [rows] = self.student.expand(
                [Prefix(prompt, self.student.encode(written))], len(seeds), None, sampling, [seeds]
            )
        return [(row.text, row.stop == "length") for row in rows]

    def _given(self, written: str, seeds: list[int]) -> list[tuple[str, bool]]:
        begun = [text for text in self.texts if text.startswith(written)]
        assert begun, f"no response begins with {written!r}"
        return [(begun[seed % len(begun)].removeprefix(written), False) for seed in seeds]

    def _made_up(self, written: str, seeds: list[int]) -> list[tuple[str, bool]]:
        begun = len(written.splitlines())
        steps = "".join(f"Step {i}: because {{0}}.\n" for i in range(begun + 1, 4))
        return [(steps.format(seed % 7) + f"Answer: {'ABC'[seed % 3]}", False) for seed in seeds]

    def _choice(self, text: str, finish: str, body: dict[str, Any], index: int, turn: str = "") -> dict[str, Any]:
        matched = None
        for stop in body.get("stop", []) if self.stop else []:
            if stop in text:
                text, finish, matched = text.split(stop)[0], "stop", stop
        if self.thinks >= _limit(body):
            text, finish = "", "length"
        whole = turn + text if self.repeats else text
        choice = {"index": index, "message": self._message(whole), "finish_reason": finish}
        if self.stop_reason:
            choice["stop_reason"] = matched
        if self.logprobs and body.get("logprobs"):
            words = re.findall(r"\s*\S+|\s+$", text)
            choice["logprobs"] = {"content": [{"token": w, "logprob": -0.5, "top_logprobs": []} for w in words]}
        return choice

    def _message(self, text: str) -> dict[str, Any] | None:
        content: Any = text
        extra = {}
        if self.form == "parts":
            content = [{"type": "text", "text": part} for part in (text[:3], text[3:])]
        elif self.form == "null" and not text:
            return None
        elif self.form == "thinking parts":
            thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see.\nAnswer: A?"}]}
            content = [thought, {"type": "text", "text": text}]
        elif self.form.startswith("thinking"):
            extra = {"reasoning_content": "Let me see.\nAnswer: A?"}
            content = None if self.form == "thinking only" else text
        return {"role": "assistant", "content": content, **extra}


def words(message: dict[str, Any] | None) -> str:
    """The text of a message of any form."""
    content = (message or {}).get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.path == "/lora-adapters" and self.server.adapters is not None:
            return self._send(200, self.server.adapters, {})
        self._send(405 if self.path == self.server.loads else 404, {"detail": "Not Found"}, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/chat/completions"):
            return self._other_route(body)
        self.server.keys.add(self.headers.get("Authorization", ""))
        fault = self.server.failures.pop(0) if self.server.failures else None
        if isinstance(fault, tuple):
            status, headers, message = fault
            self.server.refused.append(status)
            error = {"message": message + self._echo()} | ({"code": self.server.code} if self.server.code else {})
            self._send(status, {"error": error}, headers)
            return
        if fault is not None:
            self.server.refused.append(fault)
            return self._misbehave(fault)
        if refusal := self._refusal(body):
            self.server.refused.append(400)
            status = 404 if refusal.startswith("The model") else 400
            return self._send(status, {"error": {"message": refusal, "type": "invalid_request_error"}}, {})
        choices = self.server.answer(body)
        for choice in choices if self.server.echoes else []:
            choice["message"]["content"] += self._echo()
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(body)
        written = sum(len(words(c["message"]).split()) for c in choices)
        self.server.written += written
        reply = {
            **{
                "id": f"reply-{number}",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": choices,
            },
            "usage": {"prompt_tokens": 10, "completion_tokens": written, "total_tokens": 10 + written},
        }
        self._send(200, reply, {})

    def _refusal(self, body: dict[str, Any]) -> str:
        server, prompt = self.server, "".join(message["content"] for message in body["messages"])
        if server.names is not None and body["model"] not in server.names:
            return f"The model `{body['model']}` does not exist."
        if server.filtered and server.filtered in prompt:
            return "The response was filtered due to the prompt triggering the content management policy."
        if server.context and len(prompt) > server.context:
            return f"This model's maximum context length is {server.context} tokens. However, you requested more."
        for name in server.refuses:
            refused, told = MANNERS[name]
            if refused(body):
                return "Bad Request" if server.silent else told
        return ""

    def _other_route(self, body: dict[str, Any]) -> None:
        if self.path == "/apply-template" and self.server.template:
            continued = _turn(body) and self.server.prefill
            prompt = "".join(message["content"] for message in body["messages"])
            prompt += "" if continued else self.server.template
            return self._send(200, {"prompt": prompt}, {})
        if self.path == self.server.loads:
            self.server.loaded.append(body)
            name = body["lora_name"]
            self.server.names |= {name, f"student:{name}"}
            return self._send(200, {"success": True}, {})
        self._send(404, {"detail": "Not Found"}, {})

    def _echo(self) -> str:
        return f" (asked by {self.headers['Authorization']})" if self.server.echoes else ""

    def _misbehave(self, fault: str) -> None:
        error = {"error": {"message": f"overloaded{self._echo()}", "code": 529}}
        empty = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": []}
        body = {"error": error, "empty": empty}.get(fault, {"id": "x" * 200})
        data = b"<html>gateway</html>" if fault == "page" else json.dumps(body).encode()
        sent = data[: len(data) // 2] if fault in ("cut", "truncated") else data
        if fault == "slow":
            time.sleep(self.server.slow)
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if fault == "page" else "application/json")
        self.send_header("Content-Length", str(len(data if fault == "cut" else sent)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(sent)
        self.close_connection = True

    def _send(self, status: int, reply: Any, headers: dict[str, str]) -> None:
        data = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving(student: LocalGenerator | None = None, **manners: Any):
    """A server with these manners, on a port of its own."""
    server = Server(student)
    server.failures = list(manners.pop("failures", []))
    for name, value in manners.items():
        assert hasattr(Server, name), name
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
