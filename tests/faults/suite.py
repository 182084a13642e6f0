"""The fault suite: real chains in their own processes, SIGKILL at seeded random moments, and the comparison afterwards.

A series starts before one stage. The stage is started and killed several times in a row. Then it runs to its end, and
its artifacts are compared with those of an undisturbed run. A kill hits the chain, its kernel, or both. Trees,
reflections and responses are also requested from a real HTTP server, which counts the requests. It loads adapters at
run time, as vLLM does.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml
from safetensors.torch import load_file

from medrefl_utils.runs import DEFAULT_STAGES
from tests.conftest import ROOT
from tests.server import Server, serving

TRAINING, CHAINS, FINE_TUNING = "04_dpo_lora_4bit", "08_knowledge_chains", "09_sft_lora_4bit"
STAGES = (*DEFAULT_STAGES, CHAINS, FINE_TUNING)
ASKING = ("01_tree_rollout", "03_pair_construction", "05_benchmark_evaluation", CHAINS)
"""The stages that ask an endpoint; 07 asks as 05 does."""
PROFILE = {
    "stages": list(STAGES),
    "01_tree_rollout": {"n_questions": 24, "branching": [2, 2, 2, 2], "shard_size": 4, "quantization": "none"},
    "03_pair_construction": {
        "max_reflection_pairs": 6,
        "n_evaluation_questions": 24,
        "max_rows": 2,
        "max_new_tokens": 128,
        "quantization": "none",
    },
    TRAINING: {
        "kinds": ["reasoning", "random_cot"],
        "batch_size": 2,
        "gradient_accumulation": 1,
        "checkpoint_every": 2,
    },
    "05_benchmark_evaluation": {
        "n_questions": 24,
        "max_rows": 8,
        "protocols": ["sampled"],
        "self_correction_questions": 3,
        "quantization": "none",
    },
    # A model's made-up chain is right by chance; the filter keeps each that is.
    CHAINS: {
        "n_questions": 24,
        "n_evaluation_questions": 24,
        "filter_samples": 1,
        "max_rows": 8,
        "min_pass": 0.0,
        "max_dropped": 1.0,
        "quantization": "none",
    },
    FINE_TUNING: {"batch_size": 4, "checkpoint_every": 2},
}
COUNTS = ("n_questions", "n_evaluation_questions")
CHECKPOINTS = {TRAINING: ("checkpoints", "adapter"), FINE_TUNING: ("sft_checkpoints", "sft_adapter")}
"""{stage that trains: its folders of checkpoints and of the finished adapter}"""
FIGURES = ("training.parquet", "sft_training.parquet")  # tables of numbers, compared with TOLERANCE
VICTIMS = ("chain", "kernel", "both")
TOLERANCE = 1e-4  # absolute; for the figures of a resumed training
TIMED = {"seconds"}  # columns that differ between any two runs


@dataclass(frozen=True)
class Place:
    """Where a series starts: the run's folder before a stage and after it, and the seconds that the stage takes."""

    stage: str
    endpoint: bool
    before: Path
    after: Path
    seconds: float


@dataclass
class Outcome:
    """Counts of the suite, and every difference as a sentence."""

    kills: int = 0
    reruns: int = 0
    repeated: int = 0
    lost: int = 0
    doubled: int = 0
    differences: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


def make_checkout(folder: Path, questions: int = 24) -> Path:
    """Make a checkout with its own runs of so many questions; notebooks, package and profiles are links to this one."""
    folder.mkdir(parents=True)
    for name in ("notebooks", "medrefl_utils", "params"):
        (folder / name).symlink_to(ROOT / name)
    profile = {
        section: {key: questions if key in COUNTS else value for key, value in values.items()}
        if isinstance(values, dict)
        else values
        for section, values in PROFILE.items()
    }
    (folder / "faults.yaml").write_text(yaml.safe_dump(profile))
    return folder


def command(run: str, stage: str, server: Server | None) -> list[str]:
    """Return the command line that runs one stage, as a user would type it."""
    words = [sys.executable, "-m", "medrefl_utils", "run", "faults.yaml", "--only", stage, "--set", f"shared.run={run}"]
    if server is not None:
        settings = {"endpoint": server.url, "endpoint_model": "m", "concurrency": 2}
        settings |= {"writer": "model"} if stage == CHAINS else {}
        words += [word for key, value in settings.items() for word in ("--set", f"{stage}.{key}={value}")]
    return words


def _loading() -> AbstractContextManager[Server]:
    """A server with one model, which loads adapters."""
    return serving(names={"m"}, loads="/v1/load_lora_adapter")


def start(checkout: Path, words: Sequence[str]) -> subprocess.Popen:
    """Start a command in its own session with one thread, because two series share the machine."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = open(checkout / "log.txt", "ab")  # noqa: SIM115 (the process keeps it open)
    return subprocess.Popen(
        words, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the child of a background job ignores SIGINT
    )  # fmt: skip


def prepare(checkout: Path, stages: Sequence[str] = STAGES) -> list[Place]:
    """Run these stages once, undisturbed, and copy the run's folder before and after each."""
    places = []
    with _loading() as server:
        for endpoint in (False, True):
            run = checkout / "runs" / f"reference-{'endpoint' if endpoint else 'local'}"
            run.mkdir(parents=True)
            for stage in [stage for stage in stages if stage in ASKING or not endpoint]:
                # Pairs are made from the local run's trees: the server's invented words give none.
                if endpoint and stage != ASKING[0]:
                    shutil.rmtree(run)
                    shutil.copytree(next(place.before for place in places if place.stage == stage), run)
                before, after = (checkout / when / f"{stage}-{endpoint}" for when in ("before", "after"))
                shutil.copytree(run, before)
                started = time.monotonic()
                if start(checkout, command(run.name, stage, server if endpoint else None)).wait(300):
                    raise RuntimeError(f"{stage} fails undisturbed:\n{(checkout / 'log.txt').read_text()[-3000:]}")
                places.append(Place(stage, endpoint, before, after, time.monotonic() - started))
                shutil.copytree(run, after)
    return places


def kernels_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the kernels that a chain has started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # also raised for a zombie
            found += [child] if "ipykernel_launcher" in " ".join(child.cmdline()) else []
    return found


def kill(process: subprocess.Popen, victim: str) -> bool:
    """Send SIGKILL to the victim; return False if the chain had ended already."""
    with suppress(psutil.NoSuchProcess):
        chain, kernels = psutil.Process(process.pid), kernels_of(process)
        if process.poll() is not None:
            return False
        chosen = {"chain": [chain], "kernel": kernels or [chain], "both": [chain, *kernels]}[victim]
        for one in chosen:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        process.wait(60)
        return True
    return False


class Series:
    """One place that is killed again and again; ``outcome`` holds the counts."""

    def __init__(self, checkout: Path, place: Place, name: str, server: Server) -> None:
        self.checkout, self.place, self.server = checkout, place, server
        self.run = checkout / "runs" / name
        self.words = command(name, place.stage, server if place.endpoint else None)
        self.outcome = Outcome()
        self.begin()

    def begin(self) -> None:
        """Restore the run's folder to its state before the stage."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.place.before, self.run)
        self.received, self.saved, self.asked, self.reached = set(), {}, len(self.server.requests), 0

    def disturb(self, seconds: float, victim: str) -> bool:
        """Run the stage and kill it after ``seconds``; return False if it had ended by then."""
        process = start(self.checkout, self.words)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        killed = kill(process, victim)
        time.sleep(0.2 * self.place.endpoint)  # let the server finish its current answer
        self._count()
        self.outcome.kills += killed
        return killed

    def finish(self) -> None:
        """Run the stage to its end, and compare its artifacts."""
        status = start(self.checkout, self.words).wait(300)
        self.outcome.reruns += 1
        if status:
            log = (self.checkout / "log.txt").read_text()[-500:]
            self.outcome.differences.append(f"{self.place.stage} fails: {log}")
            return
        self._count()
        keys = Counter(line["key"] for line in _log_lines(self.run))
        self.outcome.repeated += (keys - Counter(keys.keys())).total()
        for difference in compare(self.place.after, self.run, self.place.stage):
            self.outcome += difference

    def _count(self) -> None:
        """Count what was repeated although it was on disk (requests, shards, checkpoints), and lost checkpoints."""
        known = {json.dumps(body) for n, body in enumerate(self.server.requests) if f"reply-{n}" in self.received}
        self.outcome.repeated += sum(json.dumps(body) in known for body in self.server.requests[self.asked :])
        steps = self._checkpoints()
        now = {path: path.stat().st_mtime_ns for path in (*(self.run / "shards").rglob("*.parquet"), *steps)}
        self.outcome.repeated += sum(path in now and now[path] != when for path, when in self.saved.items())
        if self.place.stage in CHECKPOINTS and not (self.run / CHECKPOINTS[self.place.stage][1]).exists():
            self.outcome.lost += max(steps.values(), default=0) < self.reached
        self.reached = max(steps.values(), default=0)
        self.received |= {line["reply"]["id"] for line in _log_lines(self.run) if "reply" in line}
        self.saved, self.asked = now, len(self.server.requests)

    def _checkpoints(self) -> dict[Path, int]:
        """Return {state file: optimizer step} of the complete checkpoints of a stage that trains."""
        found = {}
        folder = self.run / CHECKPOINTS.get(self.place.stage, ("no_checkpoints",))[0]
        for path in folder.glob("*/checkpoint-*/trainer_state.json"):
            with suppress(ValueError, OSError):
                found[path] = json.loads(path.read_text())["global_step"]
        return found


def one_series(checkout: Path, place: Place, name: str, kills: int, rng: random.Random) -> Outcome:
    """Kill ``kills`` times in a row, then finish. If the stage ends before it is killed, start the series again."""
    with _loading() as server:  # one server per series: it counts the requests of this series only
        one = Series(checkout, place, name, server)
        while one.outcome.kills < kills:
            # Up to 1.4 times: two series share the machine, so a stage takes longer than it did alone.
            if not one.disturb(rng.uniform(0.05, 1.4) * place.seconds, rng.choice(VICTIMS)):
                one.finish()
                one.begin()
        one.finish()
        shutil.rmtree(one.run)
        return one.outcome


def run_suite(
    checkout: Path, places: Sequence[Place], *, kills: int, seed: int, in_a_row: int = 4, jobs: int = 2
) -> Iterator[tuple[Place, Outcome]]:
    """Run series of up to ``in_a_row`` kills over all places in turn, ``kills`` in all; yield place and outcome."""
    rng, wanted = random.Random(seed), []
    while (left := kills - sum(n for _, n in wanted)) > 0:
        wanted.append((places[len(wanted) % len(places)], min(left, rng.randint(1, in_a_row))))
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(one_series, checkout, place, f"series-{number}", n, random.Random(f"{seed} {number}"))
            for number, (place, n) in enumerate(wanted)
        ]
        for (place, _), future in zip(wanted, futures, strict=True):
            yield place, future.result()


def compare(reference: Path, run: Path, stage: str) -> Iterator[Outcome]:
    """Yield an outcome for each artifact of a stage that differs from the undisturbed run's."""
    outputs = json.loads((reference / "manifest.json").read_text())["stages"][stage]["outputs"]
    found = json.loads((run / "manifest.json").read_text())["stages"][stage].get("outputs", {})
    if outputs.keys() != found.keys():
        yield Outcome(differences=[f"{stage}: outputs {sorted(found)}, expected {sorted(outputs)}"])
    for name in outputs.keys() & found.keys():
        for path in sorted(reference.joinpath(name).rglob("*")) if (reference / name).is_dir() else [reference / name]:
            if path.is_file() and not path.name.startswith("."):
                yield from _compare_file(path, run / path.relative_to(reference))


def _compare_file(expected: Path, found: Path) -> Iterator[Outcome]:
    name = "/".join(expected.parts[-2:])
    if not found.exists():
        yield Outcome(differences=[f"{name} is missing"])
    elif expected.suffix == ".parquet" and expected.name not in FIGURES:
        rows = [_rows(path) for path in (expected, found)]
        if rows[0] != rows[1]:
            counts = [Counter(some) for some in rows]
            lost, doubled = ((counts[a] - counts[b]).total() for a, b in ((0, 1), (1, 0)))
            words = f"{name}: {lost} rows lost, {doubled} too many" if lost or doubled else f"{name}: another order"
            yield Outcome(lost=lost, doubled=doubled, differences=[words])
    elif expected.suffix in (".parquet", ".safetensors"):
        tables = [_numbers(path) for path in (expected, found)]
        if [a.shape for a in tables[0]] != [a.shape for a in tables[1]]:
            yield Outcome(lost=1, differences=[f"{name}: other shapes"])
        elif not all(np.allclose(a, b, atol=TOLERANCE, equal_nan=True) for a, b in zip(*tables, strict=True)):
            yield Outcome(differences=[f"{name}: figures differ by more than {TOLERANCE}"])
    elif expected.suffix in (".json", ".jsonl", ".jinja", ".csv") and expected.read_bytes() != found.read_bytes():
        yield Outcome(differences=[f"{name} differs"])


def _rows(path: Path) -> list[str]:
    table = pq.read_table(path)
    return [repr(row) for row in table.drop_columns([c for c in table.column_names if c in TIMED]).to_pylist()]


def _numbers(path: Path) -> list[np.ndarray]:
    if path.suffix == ".safetensors":
        return [value.double().numpy() for _, value in sorted(load_file(path).items())]
    table = pq.read_table(path)
    return [table[name].to_numpy().astype(np.float64) for name in table.column_names]


def _log_lines(run: Path) -> Iterator[dict]:
    for path in run.glob("calls/*.jsonl"):
        for line in path.read_bytes().splitlines():
            with suppress(ValueError):
                yield json.loads(line)
