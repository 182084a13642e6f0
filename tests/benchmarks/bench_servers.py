"""Measure the rollout of the same questions through four engines: transformers, vLLM, vLLM served, llama.cpp served.

24 questions of MedQA (MEDREFL_BENCH_QUESTIONS asks fewer or more), SmolLM2-135M, three paths per question. Each part
runs in its own process, in the environment of ``make test-servers``. Its result is kept in ``runs/bench/servers``: an
interrupted benchmark goes on with the parts that are missing. The leaves and the prompt tokens are printed beside the
speed.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medrefl_utils.core import Sampling
from medrefl_utils.exam import load_benchmark
from medrefl_utils.exam.steps import has_content
from medrefl_utils.models import CallLog, EndpointGenerator, Generator, LocalGenerator, Usage, smollm2
from medrefl_utils.models.generators.call_log import call_key
from medrefl_utils.trees import SearchSettings, grow_trees
from tests.benchmarks.measure import RESULTS, Measurement
from tests.conftest import ROOT

PARTS = ("transformers", "vLLM", "vLLM served", "llama.cpp served")
QUESTIONS = int(os.environ.get("MEDREFL_BENCH_QUESTIONS", "24"))
GROWTH = SearchSettings((3,), 1000, 128)
SAMPLING = Sampling(1.0, 1.0, 64)
BENCHMARK = "benchmarks/medqa_usmle_5op_test.jsonl"
PYTHON = Path(os.environ.get("MEDREFL_SERVERS_PYTHON", ROOT / ".venv-servers/bin/python"))


def measured(part: str, questions: Path) -> dict[str, Any]:
    """Grow the trees with one engine, and return its figures: leaves by how they ended, tokens, seconds."""
    exam = load_benchmark(str(questions), limit=QUESTIONS)
    with ExitStack() as running, TemporaryDirectory() as place:
        log = CallLog(Path(place, "calls"))
        generator = _opened(part, Path(place), running, log)
        generator.chat([[{"role": "user", "content": "Say yes."}]], Sampling(0.0, 1.0, 8), [0])  # warm, and probed
        before, cached = Usage(**vars(generator.usage)), _cached(log)
        start = time.perf_counter()
        steps = grow_trees(exam, generator, growth=GROWTH, sampling=SAMPLING, seed=0)
        seconds = time.perf_counter() - start
        used = generator.usage.since(before)
        leaves, inner = steps[steps["kind"] == "leaf"], steps[steps["kind"] == "step"]
        return {
            "questions": len(exam),
            "leaves": {stop: int(n) for stop, n in leaves["stop"].value_counts().items()},
            "blank_steps": int((~inner["text"].map(has_content)).sum()),
            "steps": len(inner) + len(leaves),
            "tokens": int(used["completion_tokens"]),
            "tokens_of_steps": int(steps["n_tokens"].sum()),
            "prompt_tokens_computed": int(used["prompt_tokens"]) - (_cached(log) - cached),
            "seconds": seconds,
            "load": os.getloadavg(),
        }


def _opened(part: str, place: Path, running: ExitStack, log: CallLog) -> Generator:
    from tests.servers.start import VLLM_ON_A_CPU, llama_server, vllm_server

    model = os.environ.get("MEDREFL_SMOLLM2", str(ROOT / smollm2.DEFAULT_FOLDER))
    if part == "transformers":
        return LocalGenerator(model)
    if part == "vLLM":
        from medrefl_utils.models.generators.vllm import VllmGenerator

        os.environ.update(VLLM_ON_A_CPU)
        return VllmGenerator(model)
    if part == "vLLM served":
        url = running.enter_context(vllm_server(model, "smollm2", place / "log"))
    else:
        url = running.enter_context(llama_server(smollm2.fetch_gguf(place), place / "log"))
    return EndpointGenerator(url, "smollm2", log=log)


def _cached(log: CallLog) -> int:
    """Return how many tokens of the prompts the server found in its cache, as its replies say."""
    lines = [json.loads(line) for file in log.folder.glob("*.jsonl") for line in file.open()]
    usages = [line["reply"].get("usage") or {} for line in lines if "reply" in line]
    return sum((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for usage in usages)


def results(questions: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each part with its figures, from its file or measured now."""
    key = call_key(inspect.getsource(sys.modules[__name__]), QUESTIONS)
    for part in PARTS:
        path = RESULTS / "servers" / f"{part}.json"
        if not path.is_file() or json.loads(path.read_text())["key"] != key:
            command = [str(PYTHON), "-m", "tests.benchmarks.bench_servers", part, str(questions)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"key": key, **json.loads(done.stdout.splitlines()[-1])}, indent=2) + "\n")
        yield part, json.loads(path.read_text())


def main() -> Iterator[Measurement]:
    """Yield the tokens per second of each engine beside transformers, all with their leaves and prompt tokens."""
    questions = Path(os.environ.get("MEDREFL_SHARED", ROOT.parent / "shared")) / BENCHMARK
    missing = [str(path) for path in (PYTHON, questions) if not path.is_file()]
    if missing:
        print(f"bench servers: left out, without {' and '.join(missing)} (make test-servers; MEDREFL_SHARED)")
        return
    base = 0.0
    for part, found in results(questions):
        rate = found["tokens"] / found["seconds"]
        base = base or rate
        print(f"  {part}: {found['leaves']}, {found['prompt_tokens_computed']} prompt tokens computed")
        yield Measurement(part, rate, base, 0, " tokens/s", less_is_better=False, details=found)


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]))))
