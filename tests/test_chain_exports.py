"""The chains' exports, each read back by what it is for."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from medrefl_utils.core import CHAINS, content_hash, read_table, write_table
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.knowledge import (
    Linker,
    SupportChecker,
    chain_figures,
    chain_table,
    export_chains,
    filter_chains,
    find_question_paths,
    load_graph,
    write_chain_card,
    write_chains_by_rule,
)
from medrefl_utils.models import load_model, load_tokenizer

QUESTIONS = [case.question for case in clinic.make_cases(5, seed=3)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder, run = tmp_path_factory.mktemp("exports"), tmp_path_factory.mktemp("run")
    graph = load_graph("clinic", folder=run)
    link = Linker(graph).link
    found = find_question_paths(
        QUESTIONS, graph, link, max_hops=4, max_paths=50, paths_per_pair=3, max_chosen=12, seed=0
    )
    checker = SupportChecker(graph, link)
    table = chain_table(found, write_chains_by_rule(found, graph), graph, checker, chain_format="medreason")
    rates = table[["question_id"]].assign(pass_with=[1.0, 0.0, 1, 1, 1], pass_without=0.0, pass_other=0.0)
    write_table(
        run / "chains.parquet", filter_chains(table, rates, min_pass=0.5, min_lift=0, max_contradicted=0), CHAINS
    )
    table = read_table(run / "chains.parquet", CHAINS)
    files = export_chains(table, QUESTIONS, folder)
    assert sorted(files) == sorted(folder.iterdir())
    return folder, table


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_trls_trainer_takes_a_step_on_it(exported, name, tiny_student, tmp_path) -> None:
    folder, table = exported
    kind = "parquet" if name.endswith("parquet") else "json"
    data = load_dataset(kind, data_files=str(folder / name), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["prompt", "completion"] and len(data) == 4
    assert data[0]["completion"] == list(table["completion"].iloc[0])
    trainer = SFTTrainer(
        model=load_model(tiny_student),
        args=SFTConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none",
            save_strategy="no", logging_steps=1, bf16=False,
        ),
        train_dataset=data,
        processing_class=load_tokenizer(tiny_student),
    )  # fmt: skip
    assert trainer.train().training_loss > 0


def test_the_published_shape_with_paths(exported) -> None:
    folder, table = exported
    rows = [json.loads(line) for line in (folder / "medreason.jsonl").read_text().splitlines()]
    kept = [question for question in QUESTIONS if question.question_id != QUESTIONS[1].question_id]
    assert [row["id_in_dataset"] for row in rows] == [question.question_id for question in kept]
    for row, question in zip(rows, kept, strict=True):
        assert list(row) == ["dataset_name", "id_in_dataset", "question", "answer", "reasoning", "options", "paths"]
        assert row["dataset_name"] == "clinic" and row["question"] == question.stem
        assert row["answer"] == question.options[question.gold]
        assert row["options"].split("\n") == [f"{letter}. {text}" for letter, text in question.options.items()]
        assert row["reasoning"].endswith(f"\nAnswer: {question.gold}") and len(row["paths"]) >= 3
    assert prompts.exam(kept[0])[0]["content"] == table["prompt"].iloc[0][0]["content"]


def test_the_card_has_counts_reasons_licences_and_hashes(exported, tmp_path) -> None:
    folder, table = exported
    card = write_chain_card(
        folder, table, QUESTIONS, graph="clinic", figures=chain_figures(table), settings={"max_hops": 4},
        models={"filter": "mine"}, licences={"mine": "MIT"},
    )  # fmt: skip
    text = card.read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["size_categories"] == ["n<1K"] and head["configs"][0]["data_files"][0]["path"] == "train.parquet"
    assert "4 chains of reasoning for 4 questions" in text and "Left out, by reason: low pass 1." in text
    assert (
        "| filter | mine | MIT |" in text and "| clinic | 4 | Apache-2.0 |" in text and "| pass with | 0.800 |" in text
    )
    for name in ("train.parquet", "train.jsonl", "medreason.jsonl"):
        assert content_hash(folder / name) in text
    card.unlink()


def test_no_kept_chain_gives_empty_files(exported, tmp_path) -> None:
    _, table = exported
    export_chains(table.assign(kept=False), QUESTIONS, tmp_path)
    assert (tmp_path / "medreason.jsonl").read_text() == "" and pd.read_parquet(tmp_path / "train.parquet").empty
