"""``medrefl plan``: what its probe of all questions says is what the stages then ask; of fewer ones, its multiple."""

import re
import subprocess
import sys

import pandas as pd
import pytest

from medrefl_utils.core import TAUGHT, MedReflError, RunFiles, Sampling, write_table
from medrefl_utils.exam import clinic, load_questions, prompts
from medrefl_utils.models import GIB, LocalGenerator
from medrefl_utils.pairs import reasoning, reflection
from medrefl_utils.runs import Cost, Work, notebook_parameters, plan_run, plan_table
from medrefl_utils.runs.cost_plan import (
    pairs_text,
    probe_answers,
    probe_pairs,
    probe_training,
    probe_trees,
    training_memory,
)
from medrefl_utils.runs.tuning_probe import probe_tuning, tuning_memory
from medrefl_utils.training import tokenize_pairs
from medrefl_utils.trees import SearchSettings, corrections, paths, roll_out


def defaults(root, name):
    return {p.name: p.default for p in notebook_parameters(root / "notebooks" / f"{name}.ipynb").values()}


@pytest.fixture(scope="module")
def student(tiny_student):
    return LocalGenerator(tiny_student)


@pytest.fixture(scope="module")
def exam():
    return load_questions("clinic", split="train", limit=12, offset=0, seed=0)


@pytest.fixture(scope="module")
def steps(exam, student, tmp_path_factory, root):
    settings = defaults(root, "01_tree_rollout") | {"branching": [3, 2, 2]}
    return probe_trees(exam, student, settings, RunFiles(tmp_path_factory.mktemp("grown")))[1]


@pytest.mark.parametrize("screening_chains", [0, 3])
def test_trees_cost_what_the_stage_counts_the_first_pass_included(screening_chains, root, exam, student, tmp_path):
    settings = defaults(root, "01_tree_rollout") | {"branching": [2, 2], "screening_chains": screening_chains}
    work, steps = probe_trees(exam, student, settings, RunFiles(tmp_path / "probe"))
    found, ledger = roll_out(
        exam, student, tmp_path / "steps", shards=tmp_path / "shards", growth=SearchSettings((2, 2)),
        sampling=Sampling(1.0, 1.0, 128), seed=0, screening_chains=screening_chains,
    )  # fmt: skip
    assert (work.calls, work.read, work.written) == tuple(
        ledger[name] for name in ("calls", "prompt_tokens", "completion_tokens")
    )
    assert steps.equals(found) and work.calls >= 12 * screening_chains and work.seconds > 0
    spread = probe_trees(exam, student, settings | {"workers": 1000}, RunFiles(tmp_path / "workers"))[0]
    assert spread.calls == work.calls and spread.seconds < work.seconds / 10


def test_reflections_and_pairs_are_counted_from_the_trees(root, exam, steps, student):
    settings = defaults(root, "03_pair_construction") | {"max_reflection_pairs": 0, "max_new_tokens": 64}
    work, made, expected = probe_pairs(exam, steps, student, settings, times=1.0)
    chains, located = paths(steps), corrections.locate_errors(steps)
    turns, candidates = {}, {}
    for kind in ("mid", "post"):
        ranked, _ = corrections.rank_corrections(steps, located, kind=kind, top_k=2)
        candidates[kind], _ = reflection.reflection_candidates(ranked, top_k=2, min_margin=0.0, max_per_question=4)
        turns |= reflection.correction_texts(exam, steps, chains, candidates[kind])
    limits = {"top_k": 2, "min_margin": 0.0, "max_per_question": 4}
    ranked, _ = reasoning.reasoning_pairs(exam, steps, chains, prompt=prompts.exam, **limits)
    assert len(turns) > 10 and expected["reasoning"] == len(ranked) > 3
    drawn, _ = reasoning.random_pairs(exam, steps, chains, ranked, prompt=prompts.exam, seed=0, draws=2)
    assert 0 < expected["random_cot"] == len(drawn) <= len(ranked)
    assert expected["reflection_mid"] <= len(candidates["mid"]) and set(made["kind"]) >= {"reasoning", "random_cot"}
    # Two kinds share turns: of both together each is written once, and again where its reply is refused.
    assert len(turns) <= work.calls * 1.01 and work.calls <= 3 * 1.5 * len(turns)
    assert 0 < work.written <= 64 * work.calls

    many, _, tenfold = probe_pairs(exam, steps, student, settings, times=10.0)
    assert tenfold["reasoning"] == 10 * len(ranked) and many.calls == pytest.approx(10 * work.calls)
    capped = settings | {"max_reflection_pairs": 10, "max_per_kind": 7}
    few, _, limited = probe_pairs(exam, steps, student, capped, times=10.0)
    assert limited["reasoning"] == 7 and limited["reflection_post"] <= 10 and few.calls <= 3 * 2 * 2 * 10
    read = probe_pairs(exam, steps, student, settings | {"judge": "self"}, times=1.0)[0]
    assert read.calls > work.calls
    kinds = ["reflection_mid", "reflection_keep"]
    truth = {"kinds": kinds, "invalid_side": "fake", "reflection_writer": "clinic"}
    free, made, counted = probe_pairs(exam, steps, student, settings | truth, times=1.0)
    assert free == Work() and min(counted[kind] for kind in kinds) > 0 and set(kinds) <= set(made["kind"])
    none = probe_pairs(exam, steps, student, settings | {"kinds": ["reasoning"]}, times=1.0)
    assert none[0] == Work() and list(none[2]) == ["reasoning"]


def test_training_grows_with_pairs_and_epochs_and_leaves_an_adapter(root, exam, steps, student, tmp_path):
    made = probe_pairs(exam, steps, student, defaults(root, "03_pair_construction") | {"kinds": ["reasoning"]}, 1.0)[1]
    settings = defaults(root, "04_dpo_lora_4bit") | {"batch_size": 2, "lora_rank": 4}
    files = RunFiles(tmp_path / "probe")
    work, tokens = probe_training(made, {"reasoning": 1000.0}, settings, files)
    assert (files.adapter / "adapter_config.json").is_file() and work.calls == work.read == work.written == 0
    of_a_pair = made[made["kind"] == "reasoning"][["chosen_tokens", "rejected_tokens"]].sum(axis=1)
    assert 1000 * of_a_pair.min() <= tokens <= 1000 * of_a_pair.max()
    again = RunFiles(tmp_path / "again")
    longer, twice = probe_training(made, {"reasoning": 10_000.0}, settings | {"epochs": 2}, again)
    assert twice == pytest.approx(20 * tokens) and longer.seconds > 3 * work.seconds
    assert probe_training(made, {"reflection_mid": 0.0}, settings, files) == (Work(), 0.0)


def test_answers_of_each_protocol_and_repairs_are_counted(root, exam, student, tmp_path):
    settings = defaults(root, "05_benchmark_evaluation") | {
        "protocols": ["published", "greedy", "sampled"], "n_runs": 2, "max_new_tokens": 120,
        "self_correction_questions": 6,
    }  # fmt: skip
    base, begun = probe_answers(exam, student, settings, RunFiles(tmp_path), probe=6)
    tuned, same = probe_answers(exam, student, settings, RunFiles(tmp_path), probe=6, begun=begun)
    assert same is begun and tuned.calls == 12 * (3 + 1 + 2) + len(begun)
    assert base.calls > tuned.calls + 6 and tuned.written <= 120 * tuned.calls
    # Four answers for each question of the probe: here of 4 of 12 questions.
    third, begun = probe_answers(
        exam, student, settings | {"self_correction_questions": 3}, RunFiles(tmp_path / "3"), probe=1
    )
    tuned_third, _ = probe_answers(
        exam, student, settings | {"self_correction_questions": 3}, RunFiles(tmp_path), 1, begun
    )
    assert tuned_third.calls == pytest.approx(72 + 3 * len(begun)) and third.calls > 72


def test_money_is_for_a_million_tokens():
    costs = [Cost("01", Work(10, 2e6, 5e5, 7300), "so"), Cost("03", Work(1, 1e6, 0, 100), "so")]
    table = plan_table(costs, input_price=0.5, output_price=2.0)
    cells = [list(column.cells) for column in table.columns]
    assert [column[0] for column in cells] == ["01", "10", "2,000,000", "500,000", "2.0 h", "2.00"]
    assert [column[2] for column in cells] == ["all", "11", "3,000,000", "500,000", "2.1 h", "2.50"]
    assert len(plan_table(costs, 0, 0).columns) == 5


def test_the_command_prints_a_row_a_stage_and_leaves_nothing(root):
    command = [sys.executable, "-m", "medrefl_utils", "plan", "params/smoke.yaml"]
    command += ["--set", "shared.run=test_plan", "--probe", "6", "--output-price", "1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if row and row[0][:2] in ("01", "03", "04", "05", "al")][:5] == [
        "01_tree_rollout", "03_pair_construction", "04_dpo_lora_4bit", "05_benchmark_evaluation", "all",
    ]  # fmt: skip
    assert "the trees of 6 of 1800 questions" in done.stdout and not (root / "runs" / "test_plan").exists()
    said = " ".join(done.stdout.split())
    assert re.search(r"04_dpo_lora_4bit, the \d+ pairs of the probe, up to \d+ tokens: predicted peak memory", said)
    assert "04_dpo_lora_4bit, both sides filling max_length 5000: predicted peak memory" in said


def test_without_a_probe_only_memory_is_told_at_once_for_any_card(root):
    def medrefl(*words):
        command = [sys.executable, "-m", "medrefl_utils", "plan", "params/smoke.yaml", *words]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)

    done = medrefl("--set", "shared.run=test_plan", "--probe", "0", "--card", "15")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("04_dpo_lora_4bit, both sides filling max_length 5000: predicted peak memory ")
    assert line.endswith(" of 15 on the card")
    for words, message in [
        (("--probe", "-1"), "error: plan: --probe is -1, expected at least 0"),
        (("--card", "0"), "error: plan: --card is 0 GiB, expected more than 0"),
    ]:
        bad = medrefl(*words)
        assert bad.returncode == 2 and bad.stderr.strip() == message


def test_memory_is_of_the_runs_own_pairs_where_it_has_made_some(root, exam, steps, student, tmp_path):
    made = probe_pairs(exam, steps, student, defaults(root, "03_pair_construction") | {"kinds": ["reasoning"]}, 1.0)[1]
    made = made[made["kind"] == "reasoning"]
    settings = defaults(root, "04_dpo_lora_4bit")
    own, most = training_memory(settings, made, "of mine", card=15)
    tokenizer = student.tokenizer
    longest = tokenize_pairs(made, tokenizer, end=tokenizer.eos_token_id, max_length=5000)[0].length.max()
    assert own.startswith(f"04_dpo_lora_4bit, the {len(made)} pairs of mine, up to {longest} tokens: predicted ")
    assert most.startswith("04_dpo_lora_4bit, both sides filling max_length 5000: predicted peak memory ")
    assert training_memory(settings, made.head(0), "of mine", card=15) == [most]
    small = training_memory(settings, made, "of mine", card=0.65)
    assert "to fit, set batch_size to 4, gradient_accumulation to 2" in small[0]


def test_fine_tuning_is_scaled_without_its_set_up_and_is_of_what_will_be_taught(root, tmp_path):
    settings = defaults(root, "09_sft_lora_4bit") | {"batch_size": 4, "lora_rank": 4, "epochs": 1}
    run = RunFiles(tmp_path / "run")
    assert probe_tuning(settings, run, RunFiles(tmp_path / "none")) == (
        0.0, "not measured: what it trains on is not made yet",
    )  # fmt: skip
    rows = [
        {"question_id": case.question.question_id, "source": "clinic", "gold": case.question.gold, "kept": True}
        | {"prompt": prompts.exam(case.question), "reason": None}
        | {"completion": [{"role": "assistant", "content": "\n".join(clinic.solve(case))}]}
        for case in clinic.make_cases(48, seed=3)
    ]
    write_table(run.chains, pd.DataFrame(rows), TAUGHT)
    once, how = probe_tuning(settings, run, RunFiles(tmp_path / "once"))
    assert how == "24 of 48 examples, 1 epoch"
    often, _ = probe_tuning(settings | {"epochs": 40}, run, RunFiles(tmp_path / "often"))
    assert 1.5 * once < often < 20 * once, "loading and merging are done once"
    half, how = probe_tuning(settings | {"epochs": 40, "n_examples": 24}, run, RunFiles(tmp_path / "half"))
    assert half < 0.9 * often and how == "24 of 24 examples, 40 epochs"
    longest = [int(re.search(r"up to (\d+) tokens", tuning_memory(settings | own, run)[0])[1])
               for own in ({}, {"targets": "letters"})]  # fmt: skip
    assert longest[1] < longest[0]
    assert probe_tuning(settings | {"targets": "own", "own_run": str(tmp_path)}, run, run)[0] == 0.0


def test_fine_tuning_that_does_not_fit_here_is_not_tried(root, tmp_path, monkeypatch):
    case = clinic.make_cases(1, seed=3)[0]
    turn = [{"role": "assistant", "content": "Answer: A"}]
    row = {"question_id": "q", "source": "clinic", "gold": "A", "kept": True, "reason": None, "completion": turn}
    run = RunFiles(tmp_path / "run")
    write_table(run.chains, pd.DataFrame([row | {"prompt": prompts.exam(case.question)}]), TAUGHT)
    monkeypatch.setattr("medrefl_utils.models.memory.free_bytes", lambda: GIB // 2)
    monkeypatch.setattr("medrefl_utils.runs.tuning_probe.train_sft", lambda *a, **b: pytest.fail("it was trained"))
    found = probe_tuning(defaults(root, "09_sft_lora_4bit"), run, RunFiles(tmp_path / "probe"))
    assert found == (0.0, "not measured: it does not fit on this machine")


def test_training_that_does_not_fit_here_is_not_tried(root, monkeypatch):
    monkeypatch.setattr("medrefl_utils.models.memory.free_bytes", lambda: GIB // 2)
    monkeypatch.setattr("medrefl_utils.runs.cost_plan.probe_training", lambda *a: pytest.fail("it was trained"))
    few = [f"05_benchmark_evaluation.{name}=4" for name in ("n_questions", "self_correction_questions")]
    found = plan_run(root / "params" / "smoke.yaml", root=root, overrides=["shared.run=test_plan", *few], probe=12)
    how = {cost.stage: cost.how for cost in found.costs}
    assert how["04_dpo_lora_4bit"] == "not measured: it does not fit on this machine"
    assert "of 0.5 free here, without a card: does not fit, whatever is changed" in found.memory[0]


def test_a_first_pass_that_leaves_no_question_says_so(root, exam, student, tmp_path):
    settings = defaults(root, "01_tree_rollout") | {"screening_chains": 1}  # one chain is always all right or all wrong
    with pytest.raises(MedReflError, match="rollout: of 12 questions, all 1 chains of each were right"):
        probe_trees(exam, student, settings, RunFiles(tmp_path))


def test_a_kind_of_which_the_probe_made_too_few_is_named() -> None:
    made = pd.DataFrame({"kind": ["reasoning"] * 12 + ["reflection_mid"] * 2})
    expected = {"reasoning": 120.0, "reflection_mid": 20.0, "reflection_post": 0.0}
    assert pairs_text(expected, made) == (
        "estimated pairs: 120 reasoning, 20 reflection_mid, 0 reflection_post; too few to tell, the probe made only"
        " 2 reflection_mid, 0 reflection_post: increase --probe"
    )
    assert pairs_text({"reasoning": 120.0}, made) == "estimated pairs: 120 reasoning"
