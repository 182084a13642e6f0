"""Endpoints over real HTTP: what a server can do, what it is sent, what a killed run need not pay again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from medrefl_utils.core import Continuation, MedReflError, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import CallLog, EndpointGenerator, LocalGenerator, Prefix, open_generator
from medrefl_utils.models.generators.servers.features import Features
from medrefl_utils.trees import SearchSettings, grow_trees, roll_out, value_table
from tests.server import serving

QUESTIONS = clinic.make_exam(3, seed=3)
SAMPLING = Sampling(1.0, 1.0, 80)
PLAIN = SearchSettings((2, 2, 1))


@pytest.mark.parametrize(
    ("manners", "found"),
    [
        ({}, {}),
        ({"prefill": False}, {"prefill": False}),
        ({"strips": True}, {"stop_in_turn": False}),
        ({"repeats": True}, {"repeats_turn": True}),
        ({"choices": False}, {"choices": False}),
        ({"logprobs": False}, {"logprobs": False}),
        ({"failures": [(400, {}, "Unsupported parameter: continue_final_message")]}, {"flags": False}),
        (
            {"failures": [(400, {}, "use max_completion_tokens instead"), (422, {}, "no logprobs here")]},
            {"max_name": "max_completion_tokens", "logprobs": False},
        ),
    ],
)
def test_one_probe_finds_out_what_the_server_can_do_and_it_is_recorded(manners, found, tmp_path):
    with serving(**manners) as server:
        generator = EndpointGenerator(server.url, "student", log=CallLog(tmp_path / "calls"))
        generator.chat([prompts.exam(QUESTIONS[0])], SAMPLING, [1])
        assert asdict(generator._features) == asdict(Features()) | found
        assert generator.about["prefill"] == found.get("prefill", True) and generator.about["endpoint"] == server.url
        probes = len(server.requests)
        again = EndpointGenerator(server.url, "student", log=CallLog(tmp_path / "calls"))
        again.chat([prompts.exam(QUESTIONS[0])], SAMPLING, [1])
        assert again._features == generator._features and len(server.requests) == probes


@pytest.mark.parametrize(
    "manners",
    [
        *({}, {"prefill": False}, {"strips": True}, {"repeats": True}, {"choices": False}, {"stop": False}),
        {"stop_reason": False},
    ],
)
def test_trees_grow_the_same_way_whatever_the_servers_manners(manners):
    with serving(**manners) as server:
        generator = EndpointGenerator(server.url, "student")
        steps = grow_trees(QUESTIONS, generator, growth=PLAIN, sampling=SAMPLING, seed=0)
    inner, leaves = steps[steps.kind == "step"], steps[steps.kind == "leaf"]
    assert inner.text.str.endswith("\n").all() and (inner.text.str.strip() != "").all()
    assert (inner.text.str.count("\n") == 1).all() and (leaves.stop == "answer").all()
    assert (steps[steps.kind != "root"].n_tokens > 0).all()
    assert steps.token_ids[steps.kind != "root"].isna().all()
    assert leaves.groupby("question_id").weight.sum().eq(4).all() and len(value_table(steps)) == len(steps)
    assert (leaves.depth == 4).all()  # a turn is really continued, not begun again
    assert generator.usage.calls >= len(leaves) and generator.usage.completion_tokens > 0


def test_the_students_trees_over_http(tiny_student):
    with serving(LocalGenerator(tiny_student)) as server:
        generator = EndpointGenerator(server.url, "student")
        steps = grow_trees(QUESTIONS[:1], generator, growth=SearchSettings((2,)), sampling=SAMPLING, seed=0)
        chain = EndpointGenerator(server.url, "student").chat(
            [prompts.exam(QUESTIONS[0])], Sampling(0.0, 1.0, 250), [1]
        )
    assert steps.stop.isin(["answer"]).sum() >= 1 and "Answer:" in chain[0].text


def test_what_a_request_holds(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with serving() as server:
        generator = EndpointGenerator(server.url, "student")
        prefix = Prefix(prompts.exam(QUESTIONS[0]), (), "Step 1: no.\n")
        sampling = Sampling(0.7, 0.9, 60, repetition_penalty=1.1)
        generator.expand([prefix], 3, "line", sampling, [[2**40 + 5, 1, 2]])
        body = server.requests[-1]
    assert body["messages"] == [*prefix.messages, {"role": "assistant", "content": "Step 1: no.\n"}]
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert (body["n"], body["stop"], body["seed"], body["max_tokens"]) == (3, ["\n"], (2**40 + 5) % 2**31, 60)
    assert (body["temperature"], body["top_p"], body["repetition_penalty"]) == (0.7, 0.9, 1.1)
    assert server.keys == {"Bearer a-key"}


HEADED = "\n## Thinking\n\nIt is oral.\n\n**Answer:**\nC. Warfarin"


@pytest.mark.parametrize("manners", [{}, {"stop_reason": False}, {"choices": False}, {"stop": False}])
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("line", ["\n## Thinking\n\nIt is oral.\n", "\n**Answer:**\nC. Warfarin"]),
        ("paragraph", ["\n## Thinking\n\nIt is oral.\n\n", "**Answer:**\nC. Warfarin"]),
    ],
)
def test_a_step_that_the_server_cut_too_early_is_written_again(manners, steps, expected):
    """A stop at a line end would cut at the blank line that the turn begins with, and after each heading."""
    question = replace(QUESTIONS[0], options={"A": "Aspirin", "B": "Heparin", "C": "Warfarin"}, gold="C")
    with serving(texts=[HEADED], **manners) as server:
        generator = EndpointGenerator(server.url, "student")
        growth = SearchSettings((2,), steps=steps)
        tree = grow_trees([question], generator, growth=growth, sampling=SAMPLING, seed=0)
        sent = [body.get("stop") for body in server.requests[2:]]
    # A server that does not say why it stopped may have stopped at the end: the stop is then added to the text.
    assert [text.rstrip() for text in tree.text] == [text.rstrip() for text in ["", *expected]]
    assert tree.stop.dropna().tolist() == ["answer"] and tree.weight.tolist() == [1, 2, 2]
    assert {"line": ["\n"], "paragraph": ["\n\n"]}[steps] in sent


def test_where_the_turn_is_not_continued_the_model_is_asked_to_go_on():
    with serving(prefill=False) as server:
        generator = EndpointGenerator(server.url, "student")
        generator.expand([Prefix(prompts.exam(QUESTIONS[0]), (), "Step 1: no.\n")], 1, "line", SAMPLING, [[1]])
        roles = [message["role"] for message in server.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "user"] and "continue_final_message" not in server.requests[-1]


def test_requests_go_out_together_but_no_more_than_allowed():
    running, most = [0], [0]
    with serving() as server:
        answer = server.answer

        def slow(body):
            running[0] += 1
            most[0] = max(most[0], running[0])
            time.sleep(0.05)
            running[0] -= 1
            return answer(body)

        server.answer = slow
        generator = EndpointGenerator(server.url, "student", concurrency=4)
        generator.chat([prompts.exam(q) for q in clinic.make_exam(12, seed=3)], SAMPLING, range(12))
    assert 2 <= most[0] <= 4


def test_what_fails_in_passing_is_tried_again_when_the_server_says():
    with serving(failures=[(429, {"Retry-After": "1"}, "slow down"), (503, {}, "busy")]) as server:
        start = time.monotonic()
        EndpointGenerator(server.url, "student").chat([prompts.exam(QUESTIONS[0])], SAMPLING, [1])
        assert server.refused == [429, 503] and time.monotonic() - start > 1


@pytest.mark.parametrize(
    ("failures", "message", "tries"),
    [
        ([(401, {}, "bad key")] * 9, r"HTTP 401: .*bad key.*; the key is read from OPENAI_API_KEY$", 1),
        ([(404, {}, "no such model")] * 9, r"model student: HTTP 404: .*no such model", 1),
        (
            [(500, {}, "on fire")] * 9,
            r"HTTP 500: .*on fire.* \(3 tries\); the replies so far are kept in .*calls: run the same again$",
            3,
        ),
    ],
)
def test_what_does_not_pass_is_one_line(failures, message, tries, tmp_path):
    with serving(failures=failures) as server:
        generator = EndpointGenerator(server.url, "student", log=CallLog(tmp_path / "calls"), retries=2)
        with pytest.raises(MedReflError, match=message) as raised:
            generator.chat([prompts.exam(QUESTIONS[0])], SAMPLING, [1])
        assert len(str(raised.value).splitlines()) == 1 and len(server.refused) == tries


def test_no_server_and_no_address_are_one_line():
    with pytest.raises(MedReflError, match=r"endpoint http://127.0.0.1:9/v1, model m: no connection \(1 tries\)"):
        EndpointGenerator("http://127.0.0.1:9/v1", "m", retries=0).chat([prompts.exam(QUESTIONS[0])], SAMPLING, [1])
    with pytest.raises(MedReflError, match=r"endpoint 'localhost:8000', model 'm': expected http"):
        open_generator("", endpoint="localhost:8000", endpoint_model="m")


_KILLED = """
import sys
from tests.test_endpoint import *
url, folder = sys.argv[1:]
from pathlib import Path
generator = EndpointGenerator(url, "student", log=CallLog(Path(folder) / "calls"), concurrency=2)
roll_out(clinic.make_exam(6, seed=3), generator, Path(folder) / "steps", shards=Path(folder) / "shards",
         growth=PLAIN, sampling=SAMPLING, seed=0, shard_size=3)
"""


def test_a_killed_run_pays_for_no_call_twice(tmp_path):
    """The server counts: after a SIGKILL in the middle, the next run asks for what is missing and nothing else."""
    with serving() as server:
        command = [sys.executable, "-c", _KILLED, server.url, str(tmp_path)]
        run = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        while len(server.requests) < 20 and run.poll() is None:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        run.wait()
        time.sleep(0.5)  # what the server is still working on
        paid = {json.dumps(body, sort_keys=True) for body in server.requests}
        on_disk = (tmp_path / "calls/main.jsonl").read_text().count('"reply"')
        assert 8 <= on_disk <= len(paid)
        before = len(server.requests)
        generator = EndpointGenerator(server.url, "student", log=CallLog(tmp_path / "calls"))
        settings = {"growth": PLAIN, "sampling": SAMPLING, "seed": 0, "shard_size": 3}
        exam = clinic.make_exam(6, seed=3)
        steps, ledger = roll_out(exam, generator, tmp_path / "steps", shards=tmp_path / "shards", **settings)
        # Only what was on its way when it was killed (two at once) was asked for twice.
        asked_again = [b for b in server.requests[before:] if json.dumps(b, sort_keys=True) in paid]
        assert len(asked_again) <= 2 and generator.usage.reused == on_disk
        assert ledger["requests"] == len(server.requests) - before == generator.usage.requests
        # A third run, with other growth, takes every reply that fits from the log; with the same, it asks for nothing.
        before = len(server.requests)
        for part in (tmp_path / "shards").rglob("*.parquet"):
            part.unlink()
        again, _ = roll_out(exam, generator, tmp_path / "steps", shards=tmp_path / "shards", **settings)
        assert len(server.requests) == before
        assert again.text.tolist() == steps.text.tolist()


def test_a_log_whose_last_line_was_cut_is_taken_up(tmp_path):
    log = tmp_path / "calls/main.jsonl"
    with serving() as server:
        EndpointGenerator(server.url, "student", log=CallLog(log.parent)).chat(
            [prompts.exam(QUESTIONS[0])], SAMPLING, [1]
        )
        log.write_text(log.read_text()[:-20])
        second = EndpointGenerator(server.url, "student", log=CallLog(log.parent))
        second.chat([prompts.exam(QUESTIONS[0])], SAMPLING, [1])
        third = EndpointGenerator(server.url, "student", log=CallLog(log.parent))
        third.chat([prompts.exam(QUESTIONS[0])], SAMPLING, [1])
    assert (second.usage.requests, second.usage.reused) == (1, 0)
    assert (third.usage.requests, third.usage.reused) == (0, 1)


def test_a_chain_is_cut_into_the_lines_it_has():
    generator = EndpointGenerator("http://localhost/v1", "m")
    chain = Continuation("\na b\n\nc\nAnswer: A", (), -1.0, "end", 17)
    steps = generator.cut(chain, "line")
    assert [(step.text, step.stop) for step in steps] == [
        ("\na b\n", "boundary"),
        ("\nc\n", "boundary"),
        ("Answer: A", "end"),
    ]
    assert sum(step.n_tokens for step in steps) == pytest.approx(17, abs=2)
