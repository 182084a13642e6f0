"""What a measurement says; the measurements themselves are ``make bench``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.bench_knowledge import _alone
from tests.benchmarks.measure import Measurement, own_peak, write

ROOT = Path(__file__).parents[1]


def test_ratio_says_how_much_better_ours_is() -> None:
    seconds = Measurement("", ours=2.0, peer=10.0, goal=5)
    assert seconds.line("values") == "bench values 2s 10s 5.00 5 ok"
    rate = Measurement("batch 64", ours=300.0, peer=200.0, goal=2, unit="tok/s", less_is_better=False)
    assert rate.line("rollout") == "bench rollout/batch 64 300tok/s 200tok/s 1.50 2 short"
    stopped = Measurement("", ours=2.0, peer=240.0, goal=1, peer_at_least=True)
    assert stopped.line("knowledge") == "bench knowledge 2s >240s >120.00 1 ok"


def test_a_peer_that_is_stopped_leaves_what_it_had_measured() -> None:
    """Its last line, not ended yet, does not count."""
    code = 'import time\nprint(\'{"a": 1}\\n{"b": 2}\\n{"c"\', end=\'\', flush=True)\ntime.sleep(60)'
    assert _alone(code, limit=5) == [{"a": 1}, {"b": 2}]
    assert _alone("print('{}')") == [{}]
    with pytest.raises(RuntimeError, match="no such thing"):
        _alone("raise SystemExit('no such thing')")


def test_the_file_holds_the_machine_and_every_measurement(tmp_path: Path) -> None:
    path = write("values", [Measurement("", 2.0, 10.0, 5, details={"rows": 7})], tmp_path)
    found = json.loads(path.read_text())
    assert path.name == "values.json" and found["name"] == "values"
    assert found["machine"]["cores"] >= 1 and found["machine"]["cpu"]
    assert (
        found["results"][0]["ratio"] == 5
        and found["results"][0]["ok"]
        and found["results"][0]["details"] == {"rows": 7}
    )


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks", "nope"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("no benchmark is named 'nope'; there are: ")


def test_the_runner_prints_a_line_and_exits_by_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench_toy.py").write_text(
        "from tests.benchmarks.measure import Measurement\n\n\ndef main():\n    yield Measurement('', 1.0, 3.0, 2)\n"
        "    yield Measurement('more', 1.0, 3.0, 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    import tests.benchmarks

    monkeypatch.setattr(tests.benchmarks, "__path__", [*tests.benchmarks.__path__, str(tmp_path)])
    assert main(["toy"], tmp_path) == 1
    assert capsys.readouterr().out == "bench toy 1s 3s 3.00 2 ok\nbench toy/more 1s 3s 3.00 4 short\n"
    assert len(json.loads((tmp_path / "runs/bench/toy.json").read_text())["results"]) == 2


def test_the_peak_of_memory_is_not_that_of_the_process_which_started_it():
    held = bytearray(b"x") * (768 * 2**20)
    code = "from tests.benchmarks.measure import own_peak; print(own_peak())"
    own = float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))
    assert own_peak() > 0.75 and 0.01 < own < 0.7 and len(held)
