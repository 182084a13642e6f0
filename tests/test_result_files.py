"""Tables of a run: published figures beside ours, and the files."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medrefl_utils.core import SCORES, MedReflError, RunFiles, write_manifest, write_table
from medrefl_utils.views import compare_with_published, key_figures_table, write_result_tables
from medrefl_utils.views.result_files import NOT_RUN, ours_text
from tests.test_report import NAN, score

HUATUO = "FreedomIntelligence/HuatuoGPT-o1-8B"


def scores(source: str = "medqa_5op", protocol: str = "published", models: str = "both") -> pd.DataFrame:
    rows = [score("base", 0.694, NAN), score("medrefl", 0.721, 0.027)]
    rows = rows[:1] if models == "base" else rows
    return pd.DataFrame([row | {"source": source, "protocol": protocol} for row in rows])


def ours(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    rows = {(row["benchmark"], row["model"]): ours_text(row) for row in table.to_dict("records")}
    return {place: text for place, text in rows.items() if text != NOT_RUN}


PLACE = ("MedQA-USMLE, 5 options", "Huatuo-o1")


def test_every_row_of_the_readme_is_there_and_says_where_it_was_not_run() -> None:
    table = compare_with_published(scores(source="clinic"), "medrefl_utils/models/tiny_student")
    assert len(table) == 14 and set(table["protocol"]) == {NOT_RUN}
    assert table["ours_base"].isna().all()
    row = table[(table.benchmark == "GPQA (Med+)") & (table.model == "Huatuo-o1")].iloc[0]
    assert (row.base, row.medrefl, row.gain) == (50.67, 56.80, 6.13)


@pytest.mark.parametrize("source", ["medqa_5op", "medqa_usmle_5op_test"])
@pytest.mark.parametrize("model", [HUATUO, "models/HuatuoGPT-o1-8B"])
def test_a_run_of_its_model_and_benchmark_stands_beside_it(source: str, model: str) -> None:
    # the published way, 1 point above the strict accuracies
    expected = {PLACE: "70.4 to 73.1 (+2.7 [+0.7, +4.7]), published"}
    assert ours(compare_with_published(scores(source), model)) == expected


def test_another_model_or_benchmark_does_not() -> None:
    assert ours(compare_with_published(scores(), "Qwen/Qwen3-8B")) == {}
    assert ours(compare_with_published(scores("medqa_4op"), HUATUO)) == {}


def test_the_published_protocol_is_preferred_and_others_are_named() -> None:
    both = pd.concat([scores(protocol="greedy"), scores(protocol="sampled")])
    assert ours(compare_with_published(both, HUATUO))[PLACE].endswith(", sampled")
    assert ours(compare_with_published(pd.concat([both, scores()]), HUATUO))[PLACE].endswith(", published")
    assert ours(compare_with_published(scores(models="base"), HUATUO)) == {PLACE: "70.4, published"}


def test_tables_are_written_as_csv_and_markdown(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run")
    write_table(run.scores, scores(), SCORES)
    write_manifest(run, {"stages": {"05_benchmark_evaluation": {"parameters": {"model": HUATUO}}}})
    files = write_result_tables(run)
    assert [file.name for file in files] == ["scores.csv", "scores.md", "published.csv", "published.md"]
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["base", "medrefl"] and float(rows[1]["gain"]) == 0.027
    text = files[1].read_text().splitlines()
    assert len(text) == 4 and "| 72.1 |" in text[3] and "| +2.7 |" in text[3] and len({t.count("|") for t in text}) == 1
    text = files[3].read_text()
    assert "| MedQA-USMLE, 5 options | Huatuo-o1 | 69.59 to 73.72 (+4.13) | 70.4 to 73.1 (+2.7 [+0.7, +4.7])" in text
    assert text.count(NOT_RUN) == 13
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in write_result_tables(run)] == before
    with pytest.raises(MedReflError, match="scores.parquet is missing"):
        write_result_tables(RunFiles(tmp_path / "none"))


def test_a_stages_figures_are_texts_with_no_more_digits_than_can_be_read() -> None:
    figures = {"steps_right": np.int64(12345), "gain": 0.123456, "p": 4.7752e-14, "on": True, "none": float("nan")}
    figures |= {"dropped": {"all_wrong": 17, "sources": None}, "machine": "cpu"}
    assert key_figures_table(figures)["this run"].to_dict() == {
        **{"steps right": "12,345", "gain": "0.1235", "p": "4.775e-14", "on": "True", "none": "-"},
        **{"dropped: all wrong": "17", "dropped: sources": "-", "machine": "cpu"},
    }
