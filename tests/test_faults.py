"""The fault suite's short form (``make faults`` is the whole): stages are killed, run again and compared; then a key in
what a server repeats, Ctrl-C and a full disk."""

import resource
import shutil
import signal
import subprocess
import time

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.faults.suite import (
    CHAINS,
    FINE_TUNING,
    STAGES,
    TRAINING,
    Outcome,
    Place,
    Series,
    compare,
    kernels_of,
    make_checkout,
    prepare,
    run_suite,
    start,
)
from tests.server import serving

EVALUATION = "05_benchmark_evaluation"
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("faults") / "checkout", questions=12)


@pytest.fixture(scope="module")
def places(checkout) -> list[Place]:
    return prepare(checkout, [stage for stage in STAGES if stage <= EVALUATION or stage in (CHAINS, FINE_TUNING)])


@pytest.fixture
def begun(checkout, places):
    """A run's folder before the trees are valued, the quickest stage."""
    with serving() as server:
        yield Series(checkout, places[1], "begun", server)


def as_undisturbed(series: Series) -> bool:
    series.finish()
    return series.outcome == Outcome(reruns=1)


def test_stages_killed_at_random_moments_make_what_undisturbed_ones_make(checkout, places):
    computing = (TRAINING, EVALUATION, CHAINS, FINE_TUNING)
    chosen = [place for place in places if place.endpoint or place.stage in computing]
    outcomes = list(run_suite(checkout, chosen, kills=len(chosen), seed=0, in_a_row=1))
    killed = [(place.stage, place.endpoint, outcome.kills) for place, outcome in outcomes]
    assert killed == [(place.stage, place.endpoint, 1) for place in chosen]
    total = sum((outcome for _, outcome in outcomes), Outcome())
    assert (total.repeated, total.lost, total.doubled, total.differences) == (0, 0, 0, [])


def test_the_comparison_finds_what_is_lost_doubled_and_changed(places, tmp_path):
    """The suite itself: it would tell."""
    place = places[0]
    shutil.copytree(place.after, tmp_path / "run")
    questions = tmp_path / "run/questions.parquet"
    table, n = pq.read_table(questions), pq.read_metadata(questions).num_rows
    for rows, lost, doubled in ((range(n - 2), 2, 0), ([*range(n), 0, 1, 2], 0, 3), (range(n)[::-1], 0, 0)):
        pq.write_table(table.take(list(rows)), questions)
        [found] = compare(place.after, tmp_path / "run", place.stage)
        assert (found.lost, found.doubled, len(found.differences)) == (lost, doubled, 1)
    questions.unlink()
    [found] = compare(place.after, tmp_path / "run", place.stage)
    assert found.differences == [f"{place.after.name}/questions.parquet is missing"]


def test_a_key_is_nowhere_in_what_a_run_writes_or_says(checkout, places, monkeypatch):
    """The server repeats the key in every reply and in the error that ends the run."""
    key = "sk-planted-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    place = next(place for place in places if place.endpoint)
    with serving(echoes=True) as server:
        said = len((checkout / "log.txt").read_bytes())
        one = Series(checkout, place, "secret", server)
        assert start(checkout, one.words).wait(300) == 0
        server.failures = [(401, {}, "no")] * 99
        more = [*one.words, "--set", "01_tree_rollout.seed=9"]
        assert start(checkout, more).wait(300) == 1
        assert server.keys == {f"Bearer {key}"}
    told = (checkout / "log.txt").read_bytes()[said:]
    assert b"HTTP 401" in told and b"[key]" in told
    written = [path for path in one.run.rglob("*") if path.is_file()]
    assert any(b"[key]" in path.read_bytes() for path in written if path.suffix == ".jsonl")
    assert {path.suffix for path in written} >= {".parquet", ".ipynb", ".json", ".jsonl"}
    for path in written:
        assert key not in str(path) and key.encode() not in path.read_bytes()
    for path in one.run.rglob("*.parquet"):  # whose pages are compressed
        assert key not in repr(pd.read_parquet(path).to_dict())
    assert key.encode() not in told


def test_ctrl_c_ends_a_stage_and_the_same_command_goes_on(begun):
    for moment in (0.0, 0.01, 0.1, 1.0):  # from where the kernel is about to start to where it works
        process = start(begun.checkout, begun.words)
        while not (kernels := kernels_of(process)):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        told = (begun.checkout / "log.txt").read_text().splitlines()
        assert told[-1] == "stopped by Ctrl-C: the same command resumes the run"
        assert not any(kernel.is_running() for kernel in kernels)
    assert as_undisturbed(begun)


@pytest.mark.parametrize("room", [1_000, 30_000], ids="{:,} bytes".format)
def test_a_full_disk_is_told_and_the_same_command_goes_on(begun, room):
    """A limit on the size of files stands for the disk, at the manifest and at the executed notebook."""
    full = subprocess.run(
        begun.words,
        cwd=begun.checkout,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert full.returncode in (1, 2), full.stdout + full.stderr
    assert "cannot be written: File too large" in full.stderr and "Traceback" not in full.stderr + full.stdout
    assert as_undisturbed(begun)
