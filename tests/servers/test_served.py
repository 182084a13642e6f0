"""Stages through servers that other people wrote: vLLM with base and adapter, and llama.cpp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medrefl_utils.core import PAIRS, RESPONSES, STEPS, RunFiles, Sampling, read_manifest, read_table
from medrefl_utils.evaluation import collect_responses, make_protocol
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import CallLog, EndpointGenerator, LocalGenerator, Prefix
from medrefl_utils.trees import SearchSettings, grow_trees
from tests.servers.greedy import TIE, gap_where_they_part
from tests.servers.trees import without_content

SERVERS = ("vllm", "llama")
ROUNDED = 0.5
"""The same as ``TIE`` for llama.cpp, which rounds activations to 8 bit: 0.21 was seen [nats]."""
pytestmark = pytest.mark.timeout(3000)  # the first test waits for its server


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tiny_student: str) -> tuple[str, str, str]:
    """Address, the model's name there, and the same model as a folder."""
    if request.param == "vllm":
        return request.getfixturevalue("vllm_url"), "student", tiny_student
    return request.getfixturevalue("llama_url"), "smollm2", request.getfixturevalue("smollm2_folder")


def test_the_probe_finds_out_what_the_server_can_do(server):
    url, name, _ = server
    generator = EndpointGenerator(url, name)
    generator.chat([[{"role": "user", "content": "Say yes."}]], Sampling(0.0, 1.0, 8), [0])
    print(generator.about)
    assert generator.about["prefill"] and generator.about["logprobs"] and generator.about["stop"]
    assert generator.about["thinking_close"] == ""


def test_a_repetition_penalty_is_heeded_under_the_servers_own_name(server):
    """llama.cpp ignores vLLM's name without a word."""
    url, name, folder = server
    generator, local = EndpointGenerator(url, name), LocalGenerator(folder)
    messages = [prompts.exam(question) for question in clinic.make_exam(8, seed=11)]
    texts = {}
    for penalty in (1.0, 1.5):
        both = [one.chat(messages, Sampling(0.0, 1.0, 48, penalty), [0] * 8) for one in (local, generator)]
        texts[penalty] = [[reply.text for reply in replies] for replies in both]
    assert generator.about["penalty_name"] == ("repetition_penalty" if name == "student" else "repeat_penalty")
    equal = {penalty: sum(a == b for a, b in zip(*each, strict=True)) for penalty, each in texts.items()}
    gaps = [
        gap_where_they_part(local, Prefix(prompt), local.encode(ours), local.encode(theirs))
        for prompt, ours, theirs in zip(messages, *texts[1.0], strict=True)
        if ours != theirs
    ]
    begin = sum(a[:24] == b[:24] for a, b in zip(*texts[1.5], strict=True))
    print(
        f"{name}: texts equal to those in this process {equal} of 8; without a penalty the others part at gaps {gaps}"
    )
    print(f"{name}: with the penalty the first 24 characters of {begin} of 8 are equal")
    assert all(gap < (TIE if name == "student" else ROUNDED) for gap in gaps) and begin >= 6
    assert sum(a != b for a, b in zip(texts[1.0][1], texts[1.5][1], strict=True)) >= 6


def test_trees_of_steps_with_content_and_a_log_that_costs_nothing(server, tmp_path):
    url, name, _ = server
    settings = {"growth": SearchSettings((3, 2), 6, 200), "sampling": Sampling(1.0, 1.0, 64), "seed": 4}
    questions = clinic.make_exam(4, seed=11)
    generator = EndpointGenerator(url, name, log=CallLog(tmp_path))
    steps = grow_trees(questions, generator, **settings)
    inner = steps[steps["kind"] == "step"]
    assert len(inner) > 8 and not without_content(steps)
    assert (steps[steps["kind"] == "leaf"]["stop"] == "empty").mean() < 0.1
    assert inner.groupby(["question_id", "parent_id"])["text"].nunique().max() > 1
    again = EndpointGenerator(url, name, log=CallLog(tmp_path))
    assert grow_trees(questions, again, **settings).equals(steps) and again.usage.requests == 0


def test_01_02_and_03_from_the_notebooks(server, root: Path, tmp_path: Path):
    url, name, folder = server
    files = _run(root, tmp_path, url, name, folder, ["01_tree_rollout", "02_step_valuation", "03_pair_construction"])
    steps, pairs = read_table(files.steps, STEPS), read_table(files.pairs, PAIRS)
    assert steps["question_id"].nunique() == 8 and not without_content(steps)
    assert len(pairs) > 0
    about = read_manifest(files)["stages"]["01_tree_rollout"]["figures"]["generator"]
    assert about["endpoint"] == url and about["model"] == name


def test_05_loads_its_adapter_into_vllm(vllm_url, tiny_student: str, root: Path, tmp_path: Path):
    stages = ["01_tree_rollout", "02_step_valuation", "03_pair_construction", "04_dpo_lora_4bit"]
    asked = {"endpoint": vllm_url, "endpoint_model": "student", "n_questions": 20, "protocols": ["greedy"]}
    more = {
        "04_dpo_lora_4bit": {"lora_rank": 8, "kinds": ["reasoning"], "learning_rate": 0.01},
        "05_benchmark_evaluation": asked | {"self_correction_questions": 4, "self_correction_branching": [2]},
    }
    files = _run(root, tmp_path, vllm_url, "student", tiny_student, [*stages, "05_benchmark_evaluation"], **more)
    responses = read_table(files.responses, RESPONSES)
    assert set(responses["model"]) == {"base", "medrefl"} and len(responses) == 40
    base = LocalGenerator(tiny_student)
    asked = [prompts.exam(question) for question in clinic.make_exam(20, seed=0, split="test")]
    ours = base.chat(asked, Sampling(0.0, 1.0, 256), [0] * 20)
    theirs = responses[responses["model"] == "base"]["response"]
    assert sum(one.text == text for one, text in zip(ours, theirs, strict=True)) >= 18


def _run(root: Path, place: Path, url: str, name: str, folder: str, stages: list[str], **more: dict) -> RunFiles:
    for part in ("notebooks", "medrefl_utils"):
        (place / part).symlink_to(root / part)
    endpoint = {"endpoint": url, "endpoint_model": name}
    profile = {
        "shared": {"run": "served", "model": folder, "quantization": "none"},
        "stages": stages,
        "01_tree_rollout": endpoint
        | {"n_questions": 8, "branching": [4, 2], "max_step_tokens": 64, "max_path_tokens": 200, "force_answer": True},
        "03_pair_construction": endpoint
        | {"max_reflection_pairs": 4, "max_new_tokens": 96, "max_dropped": 1.0, "n_evaluation_questions": 50},
        **more,
    }
    path = place / "served.yaml"
    path.write_text(yaml.safe_dump(profile))
    command = [sys.executable, "-m", "medrefl_utils", "run", str(path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return RunFiles(place / "runs" / "served")


def test_base_and_adapter_answer_as_in_this_process(vllm_url, tiny_student, adapter):
    """Stage 05's greedy answers on 200 questions of the clinic; what differs is a tie."""
    questions = clinic.make_exam(200, seed=13)
    ask = dict(protocol=make_protocol("greedy", seed=0, max_tokens=256), seed=0)
    for name, folder in (("student", None), ("tuned", adapter)):
        local = LocalGenerator(tiny_student, adapter=folder)
        ours = collect_responses(questions, local, model=name, **ask)
        theirs = collect_responses(questions, EndpointGenerator(vllm_url, name), model=name, **ask)
        same = (ours["answer"].fillna("") == theirs["answer"].fillna("")).to_numpy()
        texts = (ours["response"] == theirs["response"]).mean()
        print(f"{name}: {same.mean():.1%} of 200 answers and {texts:.1%} of the texts are equal")
        assert same.mean() >= 0.98
        for i in (~same).nonzero()[0]:
            prefix = Prefix(prompts.exam(questions[i]))
            texts = (local.encode(one["response"].iloc[i]) for one in (ours, theirs))
            assert gap_where_they_part(local, prefix, *texts) < TIE
