"""Evaluation: the student's real responses, scored."""

import pandas as pd
import pytest

from medrefl_utils import clinic
from medrefl_utils.evaluation import Protocol, evaluate, respond
from medrefl_utils.generators.local import LocalGenerator
from medrefl_utils.records import RESPONSES, Sampling
from medrefl_utils.statistics import score_responses
from medrefl_utils.store import read_table

QUESTIONS = clinic.make_exam(150, seed=4, split="test")
SAMPLED = Protocol("sampled", (Sampling(1.0, 1.0, 256),) * 2)
GREEDY = Protocol("greedy", (Sampling(0.0, 1.0, 256),))


@pytest.fixture(scope="module")
def student(tiny_student):
    return LocalGenerator(tiny_student)


@pytest.fixture(scope="module")
def responses(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("responses")
    table = evaluate(QUESTIONS, student, folder, model="base", protocols=[SAMPLED, GREEDY], seed=0)
    return table, folder


def test_one_response_a_question_and_run(responses):
    table, folder = responses
    counts = table.groupby("protocol").size().to_dict()
    assert counts == {"sampled": 300, "greedy": 150}
    assert table.groupby(["protocol", "run", "question_id"]).size().eq(1).all()
    assert sorted(f.name for f in folder.iterdir()) == ["base_greedy.parquet", "base_sampled.parquet"]
    kept = read_table(folder / "base_greedy.parquet", RESPONSES)
    pd.testing.assert_frame_equal(kept, table[table.protocol == "greedy"].reset_index(drop=True), check_dtype=False)


def test_the_student_answers_step_by_step_and_errs_as_it_was_taught(responses):
    table, _ = responses
    scores = score_responses(table).set_index("protocol")
    # The window for the shipped student, widened by the sampling error of these few questions.
    assert 0.45 < scores.accuracy["sampled"] < 0.80
    assert scores.accuracy["greedy"] < 0.92
    assert scores.unreadable.max() < 0.03
    by_id = {case.question.question_id: case for case in clinic.make_cases(150, seed=4, split="test")}
    wrong = table[(table.protocol == "sampled") & ~table.correct]
    kinds = {"elimination": 0, "knowledge": 0}
    for row in wrong.itertuples():
        case, lines = by_id[row.question_id], row.response.splitlines()
        first = next((s for i, s in enumerate(lines) if clinic.is_true(case, lines[:i], s) is False), "")
        kinds["elimination"] += any(word in first for word in ("suggests", "leaves", "fits"))
        kinds["knowledge"] += any(word in first for word in ("arises", "confirmed", "treated"))
    assert min(kinds.values()) >= 5, kinds


def test_runs_draw_differently_and_models_alike(student):
    first = respond(QUESTIONS[:20], student, model="base", protocol=SAMPLED, seed=0)
    again = respond(QUESTIONS[:20], student, model="medrefl", protocol=SAMPLED, seed=0)
    assert first.response.tolist() == again.response.tolist()
    assert first.response[:20].tolist() != first.response[20:].tolist()
    other = respond(QUESTIONS[:20], student, model="base", protocol=SAMPLED, seed=1)
    assert first.response.tolist() != other.response.tolist()
