"""The benchmarks by name: the registry's shape, its figures, and the files behind it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medrefl_utils.core import LETTERS, MedReflError, Question
from medrefl_utils.exam import (
    benchmark_registry,
    check_question_source,
    lint_counts,
    load_benchmark,
    load_questions,
    read_benchmark,
    trained_questions,
    with_shuffled_options,
)
from medrefl_utils.exam.benchmarks import REGISTRY, card_licence, licence_of

SIZES = {
    **{"medqa_5op": 1273, "medqa_4op": 1273, "medmcqa": 4183, "gpqa_med": 78, "mmlu_pro_med": 1440},
    **{"medbullets_4op": 304, "medbullets_5op": 298, "medxpertqa_understanding": 359, "medxpertqa_reasoning": 1090},
    **{"hle_biomed": 103},
}


def test_the_published_figures_are_the_readmes() -> None:
    rows = {name: b.published for name, b in benchmark_registry().benchmarks.items() if b.published}
    assert set(rows) == {"medqa_5op", "medmcqa", "gpqa_med", "mmlu_pro_med"}
    assert sum(len(models) for models in rows.values()) == 14
    assert rows["medqa_5op"]["Huatuo-o1"] == (69.59, 73.72)
    assert rows["mmlu_pro_med"]["MedReason-8B"] == (59.14, 62.51)
    means = [
        sum(figures) / 4 for figures in zip(*(v for k, v in rows["medqa_5op"].items() if k != "average"), strict=True)
    ]
    assert rows["medqa_5op"]["average"] == pytest.approx(means, abs=0.006)


def test_a_model_is_known_by_its_id_and_by_a_folder_of_its_name() -> None:
    for model in ("FreedomIntelligence/HuatuoGPT-o1-8B", "models/HuatuoGPT-o1-8B"):
        assert benchmark_registry().published_name(model) == "Huatuo-o1"
    assert benchmark_registry().published_name("medrefl_utils/models/tiny_student") is None


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.filterwarnings("ignore:.*repeat a question")
def test_distinct_questions_of_the_files(shared_data: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MEDREFL_BENCHMARKS", str(shared_data / "benchmarks"))
    questions = load_benchmark(name)
    assert len(questions) == SIZES[name]
    assert {question.source for question in questions} == {name}
    assert load_benchmark(name, limit=3, offset=2) == questions[2:5]


def test_what_is_found_wrong_is_counted(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDREFL_BENCHMARKS", str(shared_data / "benchmarks"))
    assert lint_counts("gpqa_med")["repeated"] == 312
    assert lint_counts("clinic") == {}


def test_a_file_that_is_not_there_and_a_name_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDREFL_BENCHMARKS", raising=False)
    with pytest.raises(MedReflError, match=r"hle_biomed: hle_biomed.jsonl is neither in benchmarks/ nor in \$MEDREFL"):
        read_benchmark("hle_biomed")
    with pytest.raises(MedReflError, match="hle: .* did you mean hle_biomed"):
        read_benchmark("hle")


@pytest.mark.parametrize("name", ["medqa5", "MedQA_5op", "medqa_5"])
def test_a_near_miss_of_a_name_is_told_and_the_names_are_listed(name: str) -> None:
    for read in (read_benchmark, load_benchmark, check_question_source, lint_counts):
        with pytest.raises(
            MedReflError, match=r"did you mean medqa_5op\? .*: medqa_5op, medqa_4op, .*, clinic$"
        ) as error:
            read(name)
        assert "\n" not in str(error.value)
    with pytest.raises(MedReflError) as error:
        read_benchmark("xyzzy")
    assert "did you mean" not in str(error.value) and "Benchmarks by name: medqa_5op" in str(error.value)
    with pytest.raises(MedReflError) as error:
        read_benchmark("somebody/medqa_5op")
    assert "Benchmarks" not in str(error.value)


def test_the_clinic_is_read_as_a_benchmark() -> None:
    rows = read_benchmark("clinic", "train")
    assert len(rows.questions) == 1000 and rows.questions[0][1].question_id == "clinic-0-train-000000"


def test_what_a_published_model_was_trained_on() -> None:
    ids = ["Text-0", "Text-1000", "Text-1001", "Text-2449"]
    for model in ("UCSC-VLAA/MedReason-8B", "models/MedReason-8B", "medreason_8b_greedy", "MedReason-8B-merged"):
        found = trained_questions(model, "medxpertqa_reasoning", ids)
        assert found and found.model == "MedReason-8B" and found.ids == {"Text-0", "Text-1000"}
        assert trained_questions(model, "medxpertqa_test", ids[2:]) is None
        assert trained_questions(model, "medqa_5op", ids) is None
        hle = trained_questions(model, "hle_biomed", ["3", "4"])
        assert hle and hle.ids == {"3", "4"} and "2504.00993" in hle.note
    unknown = trained_questions("MedReason-8B", "medxpertqa_reasoning", ["0a1b2c3d4e5f6a7b"])
    assert unknown and len(unknown.ids) == 1  # an id of another form tells nothing
    for other in ("meta-llama/Llama-3.1-8B-Instruct", "", "MedReason-70B"):
        assert trained_questions(other, "medxpertqa_reasoning", ids) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benchmarks: {x: {title: t, licence: l, files: []}}\nmodels: {}", "benchmarks.x.files: "),
        ("benchmarks: {x: {title: t, files: [a]}}\nmodels: {}", "benchmarks.x.licence: "),
        ("benchmarks: {x: {title: t, licence: l, files: [a], fild: 1}}\nmodels: {}", "benchmarks.x.fild: "),
        (
            "benchmarks: {x: {title: t, licence: l, files: [a], published: {M: [1, 200]}}}\nmodels: {M: []}",
            "published.M.1",
        ),
        (
            "benchmarks: {x: {title: t, licence: l, files: [a], published: {M: [1, 2]}}}\nmodels: {}",
            "names the model 'M'",
        ),
        (
            "benchmarks: {x: {title: t, licence: l, files: [a]}}\nmodels: {}\n"
            "trained_on: {M: [{benchmarks: [y], rows: all, source: s}]}",
            "trained_on.M names the benchmark 'y'",
        ),
        ("models: [", "cannot be read"),
    ],
)
def test_a_faulty_registry_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "benchmarks.yaml"
    path.write_text(text)
    with pytest.raises(MedReflError) as error:
        benchmark_registry(path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("benchmarks.yaml: ")


def test_every_entry_says_where_it_is_from() -> None:
    assert REGISTRY.is_file()
    for benchmark in benchmark_registry().benchmarks.values():
        assert benchmark.licence and benchmark.title and benchmark.files


@given(st.integers(2, 10), st.integers(0, 9), st.integers(0, 99))
def test_shuffling_keeps_texts_letters_and_the_right_one(n: int, gold: int, seed: int) -> None:
    options = {letter: f"option {letter}" for letter in LETTERS[:n]}
    question = Question("q", "Which?", options, LETTERS[gold % n])
    other = with_shuffled_options(question, seed)
    assert list(other.options) == list(options) and set(other.options.values()) == set(options.values())
    assert other.options[other.gold] == options[question.gold]
    assert with_shuffled_options(question, seed) == other


def test_shuffling_draws_each_position_about_as_often() -> None:
    golds = [
        with_shuffled_options(Question(str(i), "?", dict(zip("ABCD", "wxyz", strict=True)), "A"), 0).gold
        for i in range(2000)
    ]
    assert all(430 < golds.count(letter) < 570 for letter in "ABCD")  # 500 each, sd 19


PUBMED = {"question": "Does it help?", "final_decision": "maybe"}


@pytest.mark.parametrize(
    "row",
    [
        PUBMED | {"context": {"contexts": ["Some were given it.", "Some were not."], "labels": ["A", "B"]}, "pubid": 7},
        PUBMED | {"context": "Some were given it.\nSome were not."},
        PUBMED | {"contexts": ["Some were given it.", "Some were not."], "final_decision": "Maybe"},
    ],
)
def test_pubmedqa_is_a_question_of_three_options(tmp_path: Path, row: dict) -> None:
    path = tmp_path / "pubmed.jsonl"
    path.write_text(json.dumps(row))
    (question,) = load_questions(str(path))
    assert question.stem == "Some were given it.\nSome were not.\n\nDoes it help?"
    assert (question.options, question.gold) == ({"A": "yes", "B": "no", "C": "maybe"}, "C")


def test_pubmedqas_own_file_is_keyed_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"11": {"QUESTION": "One?", "CONTEXTS": ["x", "y"], "LABELS": ["A", "B"], "final_decision": "yes"}}
    (tmp_path / "ori_pqal.json").write_text(json.dumps(rows))
    monkeypatch.setenv("MEDREFL_BENCHMARKS", str(tmp_path))
    (question,) = load_benchmark("pubmedqa")
    assert (question.question_id, question.stem, question.gold) == ("11", "x\ny\n\nOne?", "A")


@pytest.mark.parametrize("name", ["exam.csv", "exam.parquet"])
def test_columns_can_be_mapped_and_rows_chosen(tmp_path: Path, name: str) -> None:
    import pandas as pd

    rows = [{"Q": f"Q{i}?", "Right": "yes", "Wrong 1": "no", "Wrong 2": "so so", "kind": "ab"[i % 2]} for i in range(4)]
    frame, path = pd.DataFrame(rows), tmp_path / name
    frame.to_csv(path, index=False) if name.endswith("csv") else frame.to_parquet(path)
    fields = {"stem": "Q", "options": ["Wrong 1", "Right", "Wrong 2"], "gold": "Right"}
    questions = load_questions(str(path), fields=fields, where={"kind": "b"})
    assert [(q.stem, q.gold, list(q.options.values())) for q in questions] == [
        ("Q1?", "B", ["no", "yes", "so so"]),
        ("Q3?", "B", ["no", "yes", "so so"]),
    ]
    assert len(load_questions(str(path), fields=fields, where={"kind": ["a", "b"]})) == 4
    with pytest.raises(MedReflError, match="where names 'kin', expected one of Q, Right"):
        load_questions(str(path), fields=fields, where={"kin": "b"})
    with pytest.raises(MedReflError, match=r"no question in it \(kind 'c'\)"):
        load_questions(str(path), fields=fields, where={"kind": "c"})


def test_a_cards_licence_is_that_of_all_parts_or_other() -> None:
    assert card_licence(["Apache-2.0", "Apache-2.0"]) == "apache-2.0"
    assert card_licence([licence_of("clinic", {}), licence_of("medrefl_utils/models/tiny_student", {})]) == "apache-2.0"
    for parts in (["Apache-2.0", "MIT"], ["Apache-2.0", "not stated"], ["unstated"], []):
        assert card_licence(parts) == "other"
