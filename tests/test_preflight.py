"""Preflight, before anything runs: questions that are too long, or in training and evaluation; missing trackers."""

from __future__ import annotations

import json
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from medrefl_utils.core import PAIRS, QUESTIONS, TAUGHT, MedReflError, Question, RunFiles, write_table
from medrefl_utils.exam import questions_table
from medrefl_utils.exam.prompts import exam as exam_prompt
from medrefl_utils.runs import STAGES, check_inputs, load_profile, notebook_parameters, run_profile
from medrefl_utils.runs.stages import FINE_TUNING, FOLLOWS
from medrefl_utils.training import write_taught_questions
from tests import toy
from tests.conftest import ROOT

NOTEBOOKS = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
OPTIONS = {"A": "Aspirin", "B": "Heparin"}


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    stems = {"short": "Which drug lowers fever?", "long": "cough and fever " * 2_000}
    rows = [{"id": name, "question": stem, "options": OPTIONS, "answer_idx": "A"} for name, stem in stems.items()]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def notes(exam: Path, tmp_path: Path, **values: object) -> list[str]:
    path = toy.profile(tmp_path, {"shared": {"run": "x"}, "01_tree_rollout": {"questions": str(exam), **values}})
    parameters = load_profile(path, NOTEBOOKS, root=ROOT).parameters
    model = {"model": str(ROOT / "medrefl_utils" / "models" / "tiny_student")}
    return check_inputs({"01_tree_rollout": parameters["01_tree_rollout"] | model}, RunFiles(tmp_path / "run"), ())


def test_a_question_longer_than_the_context_is_named(exam: Path, tmp_path: Path) -> None:
    [note] = notes(exam, tmp_path)
    assert note.startswith("01_tree_rollout will leave out 1 of 2 questions that are too long; question 'long': ")
    assert note.endswith(
        "tokens of the prompt and 1,152 of the response, expected at most the model's context of 4,096"
    )


def test_what_fits_gives_no_note_and_a_server_is_not_judged(exam: Path, tmp_path: Path) -> None:
    assert notes(exam, tmp_path, endpoint="http://localhost:1/v1", endpoint_model="m") == []
    exam.write_text(exam.read_text().splitlines()[0] + "\n")
    assert notes(exam, tmp_path) == []


SERVER = {"endpoint": "http://localhost:1/v1", "endpoint_model": "m"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"endpoint": "http://localhost:1/v1"}, "endpoint is http://localhost:1/v1, but endpoint_model is empty"),
        ({"endpoint_adapter": "a"}, "endpoint_adapter is a, but endpoint is empty: give the server of the base"),
        ({"adapter_endpoint": "http://x/v1"}, "adapter_endpoint is http://x/v1, but endpoint is empty"),
        (SERVER | {"adapter_endpoint": "http://localhost:1/v1/"}, "adapter_endpoint is the endpoint itself"),
        (
            SERVER | {"endpoint_adapter": "m"},
            "endpoint_adapter and endpoint_model are both m: base and adapter are the",
        ),
        ({"judge_endpoint": "http://x/v1"}, "judge_endpoint is http://x/v1, but judge is off: give the name of its"),
    ],
)
def test_a_server_that_cannot_serve_the_evaluation_is_refused(values, message, tmp_path: Path) -> None:
    name = "05_benchmark_evaluation"
    path = toy.profile(tmp_path, {"shared": {"run": "x"}, name: values})
    parameters = load_profile(path, NOTEBOOKS, root=ROOT).parameters[name]
    with pytest.raises(MedReflError) as raised:
        check_inputs({name: parameters}, RunFiles(tmp_path / "run"), ())
    assert str(raised.value).startswith(f"{name}: {message}")


GROUP = """quantization engine max_rows workers endpoint endpoint_model concurrency
requests_per_minute tokens_per_minute max_wait max_calls max_tokens max_cost input_price output_price""".split()


def test_what_runs_the_model_has_the_same_parameters_in_every_stage_that_generates() -> None:
    """One group: names, types, defaults and words."""
    stages = ("01_tree_rollout", "03_pair_construction", "05_benchmark_evaluation", "07_ablation")
    of_stage = {stage: notebook_parameters(NOTEBOOKS[stage]) for stage in stages}
    lines = {stage: [line for line in tagged(stage) if line.split(":")[0] in GROUP] for stage in stages}
    assert all(set(GROUP) <= of_stage[stage].keys() for stage in stages)
    assert len({tuple(some) for some in lines.values()}) == 1 and len(lines[stages[0]]) == len(GROUP)


def tagged(stage: str) -> list[str]:
    cells = json.loads(NOTEBOOKS[stage].read_text())["cells"]
    [cell] = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(cell["source"]).splitlines()


def test_the_run_prints_the_note(tmp_path: Path) -> None:
    toy.checkout(tmp_path)
    console = Console(record=True, width=120)
    profile = tmp_path / "params" / "toy.yaml"
    run_profile(profile, root=tmp_path, stages=toy.STAGES[:1], console=console, preflight=lambda *_: ["two are long"])
    assert "note: two are long" in console.export_text()


# --- training questions in the evaluation --------------------------------------------------------------------------

PAIRS_STAGE, EVALUATION = "03_pair_construction", "05_benchmark_evaluation"
STEMS = ["Which drug lowers the fever of a child?", "Which bone of the arm broke?", "Which nerve of the leg hurts?"]


def checked(tmp_path: Path, training: list[str], asked: list[str], *stages: str, **values: object) -> list[str]:
    """Notes of a run of these stages; training and evaluation are files with these stems."""
    for name, stems in (("train", training), ("test", asked)):
        rows = [{"id": f"{name}{i}", "question": s, "options": OPTIONS, "answer_idx": "A"} for i, s in enumerate(stems)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {
        **{"shared": {"run": "x"}, "01_tree_rollout": {"questions": str(tmp_path / "train.jsonl")}},
        **{EVALUATION: {"questions": str(tmp_path / "test.jsonl")}, PAIRS_STAGE: values},
    }
    loaded = load_profile(toy.profile(tmp_path, sections), NOTEBOOKS, root=ROOT, follows=FOLLOWS)
    model = {"model": str(ROOT / "medrefl_utils" / "models" / "tiny_student")}
    chosen = {stage: loaded.parameters[stage] | model for stage in ("01_tree_rollout", *stages)}
    return check_inputs(chosen, RunFiles(tmp_path / "run"), ())


def test_a_training_question_in_the_evaluation_stops_before_the_first_stage(tmp_path: Path) -> None:
    line = (
        r"^03_pair_construction: 1 of 2 training questions are in the evaluation .*test.jsonl, the first 'train1' as"
        r" 'test0' \(same\): remove them, or add --set 03_pair_construction.contaminated=drop, which leaves them out$"
    )
    with pytest.raises(MedReflError, match=line):
        checked(tmp_path, STEMS[:2], [STEMS[1].upper(), STEMS[2]], PAIRS_STAGE, EVALUATION)
    assert not (tmp_path / "run").exists(), "a look writes nothing"
    assert checked(tmp_path, STEMS[:2], STEMS[2:], PAIRS_STAGE, EVALUATION) == []
    assert checked(tmp_path, STEMS[:2], STEMS[1:]) == [], "no stage compares them"


def test_questions_that_are_dropped_are_a_note_and_some_must_be_left(tmp_path: Path) -> None:
    (note,) = checked(tmp_path, STEMS[:2], STEMS[1:], PAIRS_STAGE, EVALUATION, contaminated="drop")
    assert note.startswith("03_pair_construction will leave them out: 1 of 2 training questions are in the evaluation")
    with pytest.raises(MedReflError, match="2 of 2 .* so nothing is left to train on: give other questions"):
        checked(tmp_path, STEMS[:2], STEMS, PAIRS_STAGE, EVALUATION, contaminated="drop")


def test_an_evaluation_that_stage_03_does_not_compare_with_is_compared(tmp_path: Path) -> None:
    """Stage 05 compares again, with its own questions: here 03 was told to compare with the clinic."""
    with pytest.raises(MedReflError, match="^05_benchmark_evaluation: 1 of 2 training questions .*contaminated=drop"):
        checked(tmp_path, STEMS[:2], STEMS[1:], PAIRS_STAGE, EVALUATION, evaluation_questions="clinic")


def test_a_run_that_has_its_pairs_is_compared_by_the_questions_of_the_pairs(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    asked = [Question(f"q{i}", stem, OPTIONS, "A", "exam", "train") for i, stem in enumerate(STEMS)]
    write_table(files.questions, questions_table(asked), QUESTIONS)
    message = [{"role": "user", "content": "x"}]
    pair = {"pair_id": "p", "question_id": "q1", "prompt": message, "chosen": message, "rejected": message}
    write_table(files.pairs, pa.Table.from_pylist([pair], schema=PAIRS), PAIRS)
    exam = tmp_path / "exam.jsonl"
    values = load_profile(toy.profile(tmp_path, {"shared": {"run": "x"}}), NOTEBOOKS, root=ROOT).parameters[EVALUATION]
    model = {"model": str(ROOT / "medrefl_utils" / "models" / "tiny_student"), "questions": str(exam)}
    for stem, stops in ((STEMS[1], True), (STEMS[0], False)):
        exam.write_text(json.dumps({"question": stem, "options": OPTIONS, "answer_idx": "A"}))
        look = partial(check_inputs, {EVALUATION: values | model}, files, ("questions", "pairs"))
        if stops:
            with pytest.raises(MedReflError, match="05_benchmark_evaluation: 1 of 1 training questions"):
                look()
        else:
            assert look() == []


def test_an_evaluation_of_a_base_on_what_it_was_fine_tuned_on_is_refused(tmp_path: Path, tiny_student: str) -> None:
    """Of a base that an earlier run made, its folder tells; of the base that this run will make, the chains."""
    files = RunFiles(tmp_path / "run")
    asked = [Question(f"q{i}", stem, OPTIONS, "A", "exam", "train") for i, stem in enumerate(STEMS)]
    write_table(files.questions, questions_table(asked[:1]), QUESTIONS)
    write_table(files.pairs, PAIRS.empty_table(), PAIRS)
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"id": "e", "question": STEMS[1].upper(), "options": OPTIONS, "answer_idx": "A"}))
    sections = toy.profile(tmp_path, {"shared": {"run": "x"}})
    loaded = load_profile(sections, NOTEBOOKS, root=ROOT).parameters
    examples = pd.DataFrame({"question_id": ["q0", "q1"], "prompt": [exam_prompt(one) for one in asked[:2]]})

    def look(base: Path, examples: pd.DataFrame, **tuning: object) -> list[str]:
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(tiny_student, base)
        values = {EVALUATION: loaded[EVALUATION] | {"model": str(base), "questions": str(exam)}}
        if tuning:
            values[FINE_TUNING] = loaded[FINE_TUNING] | {"model": tiny_student} | tuning
        else:
            write_taught_questions(base, examples, base=tiny_student)
        return check_inputs(values, files, ("questions", "pairs"))

    line = (
        r"^05_benchmark_evaluation: the base \S+ was fine-tuned on 1 of the 1 evaluation questions, the first 'e' as "
        r"'q1' \(same\): expected none; evaluate on other questions, or fine-tune on chains without them"
    )
    with pytest.raises(MedReflError, match=line):
        look(tmp_path / "earlier", examples)
    assert look(tmp_path / "earlier", examples[:1]) == []
    chains = tmp_path / "chains.parquet"
    rows = examples.assign(source="exam", gold="A", reason=None)
    rows["completion"] = [[{"role": "assistant", "content": "Answer: A"}]] * 2
    for kept in (True, False):
        write_table(chains, rows.assign(kept=[True, kept]), TAUGHT)
        if kept:
            with pytest.raises(MedReflError, match=line):
                look(files.sft_model, examples, chains=str(chains))
        else:
            assert look(files.sft_model, examples, chains=str(chains)) == []


def test_a_dry_run_looks_too_and_still_shows_what_would_run(tmp_path: Path) -> None:
    root, seen = toy.checkout(tmp_path), []

    def preflight(stages: dict, files: RunFiles, given: object) -> list[str]:
        seen.append(list(stages))
        raise MedReflError("exam.csv:3: no gold answer")

    with pytest.raises(MedReflError, match="exam.csv:3"):
        toy.run(root, dry_run=True, preflight=preflight)
    assert seen == [[stage.name for stage in toy.STAGES]] and not (root / "runs").exists()
    executed, said = toy.run(root, dry_run=True, preflight=lambda *_: ["two are long"])
    assert executed == [] and "note: two are long" in said and "stages that would run" in said


def test_a_tracker_that_is_not_installed_is_named_before_anything_runs(tmp_path: Path) -> None:
    loaded = load_profile(toy.profile(tmp_path, {"shared": {"run": "x"}}), NOTEBOOKS, root=ROOT).parameters
    model = {"model": str(ROOT / "medrefl_utils" / "models" / "tiny_student")}
    stage = {"04_dpo_lora_4bit": loaded["04_dpo_lora_4bit"] | model | {"report_to": ["wandb"]}}
    if find_spec("wandb"):
        pytest.skip("wandb is installed here")
    with pytest.raises(MedReflError, match="report_to names wandb, which is not installed: pip install wandb"):
        check_inputs(stage, RunFiles(tmp_path / "run"), ())
