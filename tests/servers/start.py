"""Start a real server in a process of its own, and wait until it replies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SECONDS = 1200
"""How long a server may take to start; vLLM compiles its kernels at the first start."""
VLLM_ON_A_CPU = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
"""Settings of vLLM on a CPU: 2 GiB for its key-value cache."""


@contextmanager
def vllm_server(model: str, name: str, log: Path, adapters: Mapping[str, Path] | None = None) -> Iterator[str]:
    """Serve a model as ``name``, and each adapter by its own name; yield the address."""
    port = _free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--served-model-name", name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--generation-config", "vllm"]
    # vLLM 0.32 dies on a CPU when it draws with a seed in the middle of a prefill.
    command += ["--no-enable-chunked-prefill", "--max-model-len", "4096", "--max-num-batched-tokens", "8192"]
    environment = VLLM_ON_A_CPU
    if adapters:
        environment = VLLM_ON_A_CPU | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}  # stage 05 loads its own
        modules = [f"{adapter}={folder}" for adapter, folder in adapters.items()]
        command += ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", *modules]
    with _running(command, port, log, environment):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def llama_server(file: Path, log: Path) -> Iterator[str]:
    """Serve a GGUF file; yield the address."""
    port = _free_port()
    command = [sys.executable, "-m", "tests.servers.llama_cpp", str(file), str(port)]
    with _running(command, port, log, {}):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def _running(command: list[str], port: int, log: Path, variables: Mapping[str, str]) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as server:
        try:
            _wait(port, server, log)
            yield
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(port: int, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise AssertionError(f"the server ended:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as reply:
                json.load(reply)
            return
        except (urllib.error.URLError, OSError, ValueError):
            time.sleep(0.5)
    raise AssertionError(f"the server does not start:\n{log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
