"""Trees through ``transformers serve``, a server that other people wrote."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from medrefl_utils.core import Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import CallLog, EndpointGenerator
from medrefl_utils.pairs import CorrectionText, write_reflections
from medrefl_utils.trees import SearchSettings, grow_trees

QUESTIONS = clinic.make_exam(4, seed=3)
SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def url(tiny_student, tmp_path_factory):
    """The tiny student behind ``transformers serve``, its folder being the model's name there."""
    folder = shutil.copytree(tiny_student, tmp_path_factory.mktemp("served") / "student")
    config = json.loads((folder / "generation_config.json").read_text())
    # Without it that server decodes greedily whatever temperature is asked for.
    (folder / "generation_config.json").write_text(json.dumps(config | {"do_sample": True}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            _wait(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/v1", str(folder)
        finally:
            server.terminate()


def _wait(health: str, server: subprocess.Popen) -> None:
    for _ in range(1200):
        assert server.poll() is None, "transformers serve ended"
        try:
            urllib.request.urlopen(health, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError("transformers serve does not start")


def test_trees_and_a_reflection_through_transformers_serve(url, tmp_path):
    address, model = url
    log = CallLog(tmp_path / "calls")
    generator = EndpointGenerator(address, model, log=log, concurrency=1)
    settings = {"growth": SearchSettings((3, 2), max_depth=4), "sampling": Sampling(1.0, 1.0, 48), "seed": 0}
    steps = grow_trees(QUESTIONS, generator, **settings)
    # What it lacks is found out: several choices, log-probabilities, a turn that is continued, vLLM's flags for it.
    assert {name for name, there in generator.about.items() if there is False} == {
        "choices", "logprobs", "prefill", "flags", "prefix_mark", "repeats_turn",
    }  # fmt: skip
    inner = steps[steps["kind"] == "step"]
    assert steps["question_id"].nunique() == 4 and len(inner) >= 8
    assert inner["text"].str.fullmatch(r"[^\n]*\S[^\n]*\n").all() and (steps["n_tokens"] <= 48).all()
    assert steps.groupby(["question_id", "parent_id"]).size().max() > 1  # siblings differ: their seeds do
    sent = generator.usage.requests
    again = EndpointGenerator(address, model, log=CallLog(log.folder))
    assert grow_trees(QUESTIONS, again, **settings).equals(steps) and again.usage.requests == 0 and sent > 20

    turn = CorrectionText(
        QUESTIONS[0], (), ("Step 1: a guess.\n",), ("Step 1: a thought.\n", f"Answer: {QUESTIONS[0].gold}")
    )
    written, _ = write_reflections({("q", 0, 1): turn}, generator, sampling=Sampling(0.7, 0.95, 96), seed=0)
    [replies] = written["replies"]
    assert 1 <= len(replies) <= 3 and all(replies) and len(replies) - len(written["faults"][0]) in (0, 1)
    assert written["prompt"][0] == prompts.reflection(turn.question, turn.public, turn.wrong, turn.right)[-1]["content"]
