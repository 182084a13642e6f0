"""``medrefl plan``: its figures against what the stage then really does, and the most that stage 03 may ask."""

import subprocess
import sys

import pytest

from medrefl_utils.generators import open_generator
from medrefl_utils.plan import Cost, Rate, at_most, grown, plan_table, responses
from medrefl_utils.profiles import notebook_parameters
from medrefl_utils.questions import load_questions
from medrefl_utils.records import Sampling
from medrefl_utils.rollout import roll_out
from medrefl_utils.search import Growth


def defaults(root, name):
    return {p.name: p.default for p in notebook_parameters(root / "notebooks" / f"{name}.ipynb").values()}


def test_the_probe_of_all_questions_is_what_the_stage_then_costs(root, tiny_student, tmp_path):
    settings = defaults(root, "01_tree_rollout") | {"branching": [2, 2]}
    exam = load_questions("clinic", split="train", limit=8, offset=0, seed=0)
    cost = grown(exam, open_generator(tiny_student), settings, probe=8)
    _, ledger = roll_out(
        exam, open_generator(tiny_student), tmp_path / "steps", shards=tmp_path / "shards",
        growth=Growth((2, 2)), sampling=Sampling(1.0, 1.0, 128), seed=0,
    )  # fmt: skip
    assert (cost.calls, cost.read, cost.written) == tuple(
        ledger[name] for name in ("calls", "prompt_tokens", "completion_tokens")
    )
    half = grown(exam, open_generator(tiny_student), settings, probe=4)
    assert half.written == pytest.approx(cost.written, rel=0.3) and half.how == "measured on 4 of 8 questions"


def test_what_stage_03_may_ask_at_most(root):
    settings = defaults(root, "03_pair_construction") | {"max_reflection_pairs": 100, "max_new_tokens": 192}
    answer = Rate(read=100, written=50, seconds=0.5)
    # Two kinds of 100 pairs of two sides, each asked for three times.
    cost = at_most(settings, 1000, answer)
    assert (cost.calls, cost.written) == (3 * 400, 3 * 400 * 192)
    assert cost.read == 1200 * (100 + 150) and cost.seconds == pytest.approx(0.5 * cost.written / 50)
    # Ten questions of at most four pairs a kind; the judge sees one side of each pair of all four kinds.
    judged = at_most(settings | {"judge": "self"}, 10, answer)
    assert judged.calls == 3 * (2 * 80 + 80 + 80)
    assert at_most(settings | {"kinds": ["reasoning"]}, 10, answer).calls == 0


def test_stage_05_asks_both_models_each_run_of_each_protocol(root):
    settings = defaults(root, "05_benchmark_evaluation")
    settings |= {"protocols": ["published", "greedy", "sampled"], "runs": 2, "n_questions": 100}
    cost = responses(settings, Rate(read=100, written=50, seconds=0.5))
    assert cost.calls == 2 * 100 * (3 + 1 + 2) and cost.written == cost.calls * 50 and cost.seconds == cost.calls / 2


def test_money_is_for_a_million_tokens():
    table = plan_table([Cost("01", 10, 2e6, 5e5, 7300, "")], price_in=0.5, price_out=2.0)
    cells = [list(column.cells)[0] for column in table.columns]
    assert cells == ["01", "10", "2,000,000", "500,000", "2.0 h", "2.00"]
    assert len(plan_table([Cost("01", 10, 2e6, 5e5, 7300, "")], 0, 0).columns) == 5


def test_the_command_prints_a_row_a_stage_and_runs_nothing(root):
    command = [sys.executable, "-m", "medrefl_utils", "plan", "params/smoke.yaml"]
    command += ["--set", "shared.run=test_plan", "--probe", "2", "--price-out", "1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.strip()[:2] in ("01", "03", "05")][:3] == [
        "01_tree_rollout", "03_pair_construction", "05_benchmark_evaluation",
    ]  # fmt: skip
    assert "measured on 2 of 1800 questions" in done.stdout and not (root / "runs" / "test_plan").exists()
    bad = subprocess.run([*command[:-4], "--probe", "0"], cwd=root, capture_output=True, text=True, timeout=300)
    assert bad.returncode == 2 and bad.stderr.startswith("error: plan: the probe is 0 questions")
