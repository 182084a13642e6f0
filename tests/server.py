"""An OpenAI-compatible HTTP server for the tests, which keeps what it was asked.

Its words are the tiny student's, those of given responses, or made up from the seed: three steps and an answer. Its
manners are switches: whether it continues an assistant turn, knows ``n``, ``stop`` and ``logprobs``, loses the line end
of such a turn, or fails so many times first.
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


class Server(ThreadingHTTPServer):
    """``requests`` holds the bodies of those that were answered, ``refused`` the status codes of the others."""

    daemon_threads = True
    prefill = True
    choices = True
    stop = True
    stop_reason = True
    logprobs = True
    strips = False
    failures: list[tuple[int, dict[str, str], str] | str] = []
    """answered first, one a request: status, headers, message; or by name: "slow" (for longer than ``slow`` seconds),
    "cut" (the connection ends amid the body), "truncated" (half of the JSON), "empty" (no choices), "error" (HTTP 200
    with an error), "page" (HTML)"""
    slow = 1.0
    texts: Sequence[str] = ()
    """whole responses that it writes: one that begins as the turn does, chosen by the seed"""
    echoes = False
    """it puts the key that it was asked with into what it says"""

    def __init__(self, student: LocalGenerator | None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.student, self.requests, self.refused, self.lock = student, [], [], threading.Lock()
        self.keys: set[str] = set()
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
        if "numbers from 1 to 20" in messages[0]["content"]:
            lines = "".join(f"{i}\n" for i in range(int((re.findall(r"\d+", text) or ["0"])[-1]) + 1, 9))
            whole = [("\n" if self.strips and text else "") + lines] * n
            return [self._choice(words, "stop", body, i) for i, words in enumerate(whole)]
        written = text + "".join(m["content"] for m in messages if m["role"] == "assistant")
        seeds = [body["seed"] + i for i in range(n)]
        if self.texts:
            rows = self._given(written, seeds)
        else:
            rows = self._students(messages, written, body, seeds) if self.student else self._made_up(written, seeds)
        begin = "\n" if self.strips and text else ""
        return [
            self._choice(begin + words, "length" if cut else "stop", body, i) for i, (words, cut) in enumerate(rows)
        ]

    def _students(self, messages: list, written: str, body: dict, seeds: list[int]) -> list[tuple[str, bool]]:
        prompt = [message for message in messages if message["role"] == "user"][:1]
        sampling = Sampling(body["temperature"], body["top_p"], body["max_tokens"])
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
        begun = written.count("\n")
        steps = "".join(f"Step {i}: because {{0}}.\n" for i in range(begun + 1, 4))
        return [(steps.format(seed % 7) + f"Answer: {'ABC'[seed % 3]}", False) for seed in seeds]

    def _choice(self, text: str, finish: str, body: dict[str, Any], index: int) -> dict[str, Any]:
        matched = None
        for stop in body.get("stop", []) if self.stop else []:
            if stop in text:
                text, finish, matched = text.split(stop)[0], "stop", stop
        choice = {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        if self.stop_reason:
            choice["stop_reason"] = matched
        if self.logprobs and body.get("logprobs"):
            words = re.findall(r"\s*\S+|\s+$", text)
            choice["logprobs"] = {"content": [{"token": w, "logprob": -0.5, "top_logprobs": []} for w in words]}
        return choice


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.add(self.headers.get("Authorization", ""))
        fault = self.server.failures.pop(0) if self.server.failures else None
        if isinstance(fault, tuple):
            status, headers, message = fault
            self.server.refused.append(status)
            self._send(status, {"error": {"message": message + self._echo()}}, headers)
            return
        if fault is not None:
            self.server.refused.append(fault)
            return self._misbehave(fault)
        choices = self.server.answer(body)
        for choice in choices:
            choice["message"]["content"] += self._echo()
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(body)
        written = sum(len(c["message"]["content"].split()) for c in choices)
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

    def _send(self, status: int, reply: dict[str, Any], headers: dict[str, str]) -> None:
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
