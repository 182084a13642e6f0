"""Ray for real: two actors of a cluster on this machine against one process, byte for byte."""

import time

import pytest

from medrefl_utils.core import MedReflError, Sampling
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import LocalGenerator, open_generator
from medrefl_utils.trees import SearchSettings, roll_out
from tests.server import serving

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

SAMPLING = Sampling(1.0, 1.0, 80)


@pytest.fixture(scope="module")
def actors(tiny_student):
    for attempt in range(3):
        try:
            generator = open_generator(tiny_student, workers=2)
            break
        except MedReflError as error:
            ray.shutdown()
            if attempt == 2 or "does not start" not in str(error):  # a machine too busy for Ray's own 30 seconds
                raise
    yield generator
    generator.close()
    ray.shutdown()


@pytest.mark.timeout(600)
def test_two_actors_give_the_trees_of_one_process_and_go_on_where_either_stopped(actors, tiny_student, tmp_path):
    questions = clinic.make_exam(6, seed=2)
    settings = {"growth": SearchSettings((2, 2)), "sampling": SAMPLING, "seed": 1, "shard_size": 2}
    alone = LocalGenerator(tiny_student)
    steps, ledger = roll_out(questions, alone, tmp_path / "a", shards=tmp_path / "sa", **settings)
    files = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert actors.key == alone.key and actors.about["ray_workers"] == 2
    _, same = roll_out(questions, actors, tmp_path / "b", shards=tmp_path / "sb", **settings)
    assert len(files) == 3
    tables = {file.name: file for file in (tmp_path / "b").iterdir()}
    assert tables.keys() == files.keys()
    assert {name: _steps(tmp_path / "a" / name) for name in files} == {name: _steps(f) for name, f in tables.items()}
    assert same == ledger  # what the actors used came back
    assert {file.name for file in (tmp_path / "sa").iterdir()} == {file.name for file in (tmp_path / "sb").iterdir()}
    [one] = actors.chat([prompts.exam(questions[0])], SAMPLING, [5])
    assert one.token_ids == alone.chat([prompts.exam(questions[0])], SAMPLING, [5])[0].token_ids
    assert actors.encode("Answer:") == alone.encode("Answer:")


@pytest.mark.timeout(600)
def test_base_and_adapter_share_the_actors_and_the_rows_come_back_in_order(actors, tiny_student, tmp_path):
    from peft import LoraConfig, get_peft_model

    from medrefl_utils.models import load_model

    tuned = get_peft_model(load_model(tiny_student, "none"), LoraConfig(r=4, target_modules="all-linear"))
    for name, weights in tuned.named_parameters():
        if "lora_B" in name:
            weights.data.normal_(0, 0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    messages = [prompts.exam(question) for question in clinic.make_exam(11, seed=2)]
    settings = dict(adapter=tmp_path / "adapter", calls=tmp_path / "calls")
    spread = open_generator(tiny_student, workers=2, **settings)
    counted = []
    written = spread.chat(messages, SAMPLING, range(11), counted.append)
    alone = open_generator(tiny_student, **settings | {"calls": None})
    assert [one.token_ids for one in written] == [one.token_ids for one in alone.chat(messages, SAMPLING, range(11))]
    assert sum(counted) == 11 and len(counted) > 2 and spread.usage.calls == 11 and spread.key == alone.key
    base = [one.token_ids for one in actors.chat(messages, SAMPLING, range(11))]
    assert base == [one.token_ids for one in LocalGenerator(tiny_student).chat(messages, SAMPLING, range(11))]
    assert base != [one.token_ids for one in written] and spread._actors is actors._actors
    again = open_generator(tiny_student, workers=2, **settings)
    assert again.chat(messages, SAMPLING, range(11)) == written
    for one in (spread, again):
        one.close()
    assert actors.encode("Answer:")  # the actors stay while one generator uses them


def _steps(path):
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


@pytest.mark.timeout(600)
def test_actors_against_an_endpoint(actors, tmp_path):
    with serving() as server:
        generator = open_generator("", workers=1, endpoint=server.url, endpoint_model="m", calls=tmp_path / "calls")
        exam = clinic.make_exam(2, seed=2)
        steps, ledger = roll_out(
            exam,
            generator,
            tmp_path / "steps",
            shards=tmp_path / "shards",
            growth=SearchSettings((2,)),
            sampling=SAMPLING,
            seed=1,
        )
        assert (steps.stop == "answer").sum() >= 2 and ledger["requests"] == len(server.requests)
        assert ledger["probes"] == 2 < ledger["requests"] and generator.about["prefill"]
        assert generator.spent.calls == sum(body.get("n", 1) for body in server.requests)  # for the bar's budget
        assert (tmp_path / "calls/main.jsonl").exists()
        generator.close()


@pytest.mark.timeout(120)
def test_actors_that_would_wait_for_ever_are_refused_and_so_is_a_missing_model(actors, tiny_student):
    there = ray.cluster_resources()["CPU"]
    held = min(there, 2)  # the two actors that are up hold a CPU each, or all
    workers = int(there) + 1  # as many as are up would share these
    needed = rf"{workers} actors need {there:g} CPUs, Ray's cluster has {there - held:g} of {there:g} free: stop what"
    with pytest.raises(MedReflError, match=needed):
        open_generator(tiny_student, workers=workers)
    actors.close()
    while ray.available_resources().get("CPU", 0) < there:  # Ray takes a moment to see that they are gone
        time.sleep(0.1)
    with pytest.raises(MedReflError, match=r"model \./nowhere: no such folder"):
        open_generator("./nowhere", workers=1)
