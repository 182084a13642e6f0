"""Base and adapter on a server, over real HTTP: by name, loaded at run time, by llama.cpp's scales, on a second one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.evaluation import evaluate, make_protocol
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import Budget, check_endpoint, open_generator
from tests.server import serving

MESSAGES = [prompts.exam(clinic.make_exam(1, seed=3)[0])]
SAMPLING = Sampling(1.0, 1.0, 40)
LORAS = [{"id": 0, "path": "/x/other.gguf", "scale": 1.0}, {"id": 1, "path": "/x/medrefl.gguf", "scale": 1.0}]


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"first")
    return folder


def asked(server, adapter=None, **names):
    """The last request of a generator with these names."""
    generator = open_generator("", adapter=adapter, endpoint=server.url, endpoint_model="student", **names)
    generator.chat(MESSAGES, SAMPLING, [1])
    return server.requests[-1], generator


def test_an_adapter_by_its_name_on_the_server(adapter):
    with serving(names={"student", "mine"}) as server:
        assert asked(server)[0]["model"] == "student"
        body, generator = asked(server, adapter, endpoint_adapter="mine")
        assert body["model"] == "mine" and generator.about["adapter"] == "mine" and "lora" not in body
        with pytest.raises(MedReflError, match=r"HTTP 404: .*`other` does not exist"):
            asked(server, adapter, endpoint_adapter="other")


def test_a_server_that_answers_under_any_name_is_refused(adapter):
    with serving() as server:
        with pytest.raises(MedReflError, match=r"answers under any model's name, so endpoint_adapter 'mine' may be"):
            asked(server, adapter, endpoint_adapter="mine")
        with pytest.raises(MedReflError, match=r"base's own name, so that base and adapter would be the same"):
            asked(server, adapter, endpoint_adapter="student")


@pytest.mark.parametrize(
    ("route", "form"), [("/v1/load_lora_adapter", "{}"), ("/load_lora_adapter", "student:{}")], ids=["vllm", "sglang"]
)
def test_a_server_that_loads_an_adapter_gets_its_folder_and_a_name_by_its_content(route, form, adapter):
    with serving(names={"student"}, loads=route) as server:
        body, _ = asked(server, adapter)
        [loaded] = server.loaded
        assert loaded["lora_path"] == str(adapter.resolve()) and body["model"] == form.format(loaded["lora_name"])
        asked(server, adapter)
        (adapter / "adapter_model.safetensors").write_bytes(b"trained again")
        asked(server, adapter)
        names = [one["lora_name"] for one in server.loaded]
        assert names[0] == names[1] != names[2]


def test_a_server_without_the_adapter_is_told_before_anything_is_asked(adapter):
    with serving(names={"student"}) as server:
        names = dict(endpoint=server.url, endpoint_model="student")
        for given in (adapter, None):  # None: the ablation, whose adapters are not trained yet
            with pytest.raises(MedReflError, match=r"loads no adapter at run time: set endpoint_adapter to the name"):
                check_endpoint(given, **names)
        assert len([body for body in server.requests if "numbers from" not in body["messages"][0]["content"]]) <= 1
        check_endpoint(adapter, endpoint="", endpoint_model="")  # a model in this process
    with serving(names={"student"}, loads="/v1/load_lora_adapter") as server:
        check_endpoint(None, endpoint=server.url, endpoint_model="student")
        assert server.loaded == []


@pytest.mark.parametrize("name", ["1", "medrefl.gguf", "medrefl", "/x/medrefl.gguf"])
def test_llama_cpp_gets_the_scale_of_every_adapter_with_every_request(name, adapter):
    """Its adapters are on by default: without scales, the base would answer with the adapter."""
    with serving(adapters=LORAS) as server:
        base, _ = asked(server)
        assert base["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
        tuned, generator = asked(server, adapter, endpoint_adapter=name)
        assert tuned["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}] and tuned["model"] == "student"
        assert len(generator.about["adapter"]) == 2


def test_llama_cpp_with_one_adapter_needs_no_name_and_with_none_is_refused(adapter):
    with serving(adapters=LORAS[:1]) as server:
        assert asked(server, adapter)[0]["lora"] == [{"id": 0, "scale": 1.0}]
    with serving(adapters=LORAS) as server:
        with pytest.raises(
            MedReflError, match=r"has the adapters 0 \(/x/other.gguf\), 1 \(/x/medrefl.gguf\), expected"
        ):
            asked(server, adapter)
    with serving(adapters=[]) as server:
        assert "lora" not in asked(server)[0]
        with pytest.raises(MedReflError, match=r"has the adapters none, expected one adapter: start it with --lora"):
            asked(server, adapter)


def test_a_second_server_has_the_adapter(adapter):
    with serving() as server, serving() as second, serving(adapters=LORAS[1:]) as llama:
        names = dict(adapter_endpoint=second.url)
        open_generator("", endpoint=server.url, endpoint_model="student", **names).chat(MESSAGES, SAMPLING, [1])
        assert server.requests and not second.requests
        tuned = open_generator("", adapter=adapter, endpoint=server.url, endpoint_model="student", **names)
        tuned.chat(MESSAGES, SAMPLING, [1])
        assert second.requests[-1]["model"] == "student" and tuned.about["endpoint"] == second.url
        names = dict(adapter_endpoint=llama.url, endpoint_adapter="merged")
        tuned = open_generator("", adapter=adapter, endpoint=server.url, endpoint_model="student", **names)
        with pytest.raises(MedReflError, match="expected the adapter 'merged'"):
            tuned.chat(MESSAGES, SAMPLING, [1])


def test_replies_of_another_adapter_under_the_same_name_are_not_reused(adapter, tmp_path):
    with serving(names={"student", "mine"}) as server:
        names = dict(endpoint_adapter="mine", calls=tmp_path / "calls")
        for expected in (0, 1):
            _, generator = asked(server, adapter, **names)
            assert generator.usage.reused == expected
        (adapter / "adapter_model.safetensors").write_bytes(b"trained again")
        assert asked(server, adapter, **names)[1].usage.reused == 0
        assert asked(server, **names)[1].usage.reused == 0


def test_base_and_adapter_share_what_is_spent(adapter, tmp_path):
    with serving(names={"student", "mine"}) as server:
        names = dict(endpoint=server.url, endpoint_model="student", endpoint_adapter="mine", calls=tmp_path / "calls")
        base = open_generator("", budget=Budget(max_calls=20), **names)
        tuned = open_generator("", adapter=adapter, budget=Budget(max_calls=20), **names)
        base.chat(MESSAGES * 5, SAMPLING, range(5))
        tuned.chat(MESSAGES * 5, SAMPLING, range(5))
        calls = sum(body.get("n", 1) for body in server.requests)
        assert base.spent.calls == tuned.spent.calls == calls == 16
        with pytest.raises(MedReflError, match="max_calls is 20, 20 is spent"):
            base.chat(MESSAGES * 5, SAMPLING, range(10, 15))


def evaluated(url, folder):
    """Base and adapter of stage 05, on a server that loads adapters."""
    names = dict(endpoint=url, endpoint_model="student", concurrency=2, calls=folder / "calls")
    exam, way = clinic.make_exam(12, seed=3), make_protocol("sampled", n_runs=2, max_tokens=60)
    both = {}
    for name, adapter in (("base", None), ("medrefl", folder / "adapter")):
        generator = open_generator("", adapter=adapter, **names)
        both[name] = evaluate(exam, generator, folder / "responses", model=name, protocols=[way], seed=0)
    return both


_KILLED = """
import sys
from pathlib import Path
from tests.test_served_adapters import evaluated
evaluated(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", [15, 40])
def test_an_evaluation_that_was_killed_asks_for_what_is_missing_and_nothing_else(moment, adapter, tmp_path):
    """Killed in the middle of the base and of the adapter: 24 responses each."""
    with serving(names={"student"}, loads="/v1/load_lora_adapter") as server:
        command = [sys.executable, "-c", _KILLED, server.url, str(tmp_path)]
        run = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        while len(server.requests) < moment and run.poll() is None:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        run.wait()
        time.sleep(0.5)  # what the server is still working on
        log = tmp_path / "calls" / "main.jsonl"
        paid = {json.loads(line)["reply"]["id"] for line in log.read_text().splitlines() if '"reply"' in line}
        known = [json.dumps(body) for n, body in enumerate(server.requests) if f"reply-{n}" in paid]
        before = len(server.requests)
        assert len(known) >= moment - 6
        both = evaluated(server.url, tmp_path)
        after = Counter(map(json.dumps, server.requests[before:]))
        assert not after.keys() & set(known) and after.total() <= 48 + 4 - len(known)
        assert [len(table) for table in both.values()] == [24, 24]
        # The seeds are paired: question and run decide them, not the model.
        asked = [body for body in server.requests if prompts.exam(clinic.make_exam(1, seed=3)[0]) == body["messages"]]
        seeds = {model: {b["seed"] for b in asked if b["model"] == model} for model in {b["model"] for b in asked}}
        assert len(seeds) == 2 and len({frozenset(some) for some in seeds.values()}) == 1
        before = len(server.requests)
        again = evaluated(server.url, Path(tmp_path))
        assert len(server.requests) == before
        assert all(again[name]["response"].equals(both[name]["response"]) for name in both)
