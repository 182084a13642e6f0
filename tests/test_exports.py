"""The exports, each read back by what it is for; LLaMA-Factory needs other pins: its documented schema is checked."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import yaml
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

from medrefl_utils.core import PAIRS, MedReflError, content_hash, read_table, write_table
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import load_model, load_tokenizer
from medrefl_utils.pairs import export_pairs, replace_sides, write_dataset_card

CASES = clinic.make_cases(6, seed=3)
KINDS = ["reasoning", "reflection_mid", "reflection_post", "random_cot", "reasoning", "random_cot"]


def make_pairs(folder: Path) -> pd.DataFrame:
    """Six pairs as they come from the file that the stage writes: messages are arrays there."""
    rows = []
    for case, kind in zip(CASES, KINDS, strict=True):
        chain = clinic.solve(case)
        other = next(letter for letter in case.question.options if letter != case.question.gold)
        empty = dict.fromkeys(PAIRS.names)
        row = {**empty, "question_id": case.question.question_id, "kind": kind, "prompt": prompts.exam(case.question)}
        row = replace_sides(row, "\n".join(chain), "\n".join([*chain[:-1], f"Answer: {other}"]))
        rows.append(row | {"chosen_tokens": 40, "rejected_tokens": 30})
    write_table(folder / "pairs.parquet", pd.DataFrame(rows), PAIRS)
    return read_table(folder / "pairs.parquet", PAIRS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("exports")
    pairs = make_pairs(tmp_path_factory.mktemp("run"))
    files = export_pairs(pairs, folder)
    assert sorted(files) == sorted(folder.iterdir())
    return folder, pairs


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_trls_trainer_takes_a_step_on_it(exported, name, tiny_student, tmp_path) -> None:
    folder, pairs = exported
    kind = "parquet" if name.endswith("parquet") else "json"
    data = load_dataset(kind, data_files=str(folder / name), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["prompt", "chosen", "rejected"] and len(data) == len(pairs)
    assert data[1]["chosen"] == list(pairs["chosen"][1])
    trainer = DPOTrainer(
        model=load_model(tiny_student),
        args=DPOConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none",
            save_strategy="no", logging_steps=1, bf16=False,
        ),
        train_dataset=data,
        processing_class=load_tokenizer(tiny_student),
    )  # fmt: skip
    assert math.isclose(trainer.train().training_loss, math.log(2), abs_tol=1e-3)


# LLaMA-Factory's data/README.md: a preference dataset in ShareGPT format, one in Alpaca format, and their descriptions.
TURN = {
    "type": "object",
    "properties": {"from": {"enum": ["human", "gpt", "system"]}, "value": {"type": "string", "minLength": 1}},
    "required": ["from", "value"],
    "additionalProperties": False,
}
REPLY = {**TURN, "properties": {**TURN["properties"], "from": {"const": "gpt"}}}
SHAREGPT = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "conversations": {"type": "array", "items": TURN, "minItems": 1},
            "chosen": REPLY,
            "rejected": REPLY,
        },
        "required": ["conversations", "chosen", "rejected"],
    },
}
TEXT = {"type": "string", "minLength": 1}
ALPACA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"instruction": TEXT, "input": {"type": "string"}, "chosen": TEXT, "rejected": TEXT},
        "required": ["instruction", "input", "chosen", "rejected"],
        "additionalProperties": False,
    },
}
DESCRIPTION = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {
            "file_name": {"type": "string"},
            "formatting": {"enum": ["alpaca", "sharegpt"]},
            "ranking": {"const": True},
            "columns": {
                "type": "object",
                "propertyNames": {"enum": ["prompt", "query", "messages", "chosen", "rejected"]},
                "additionalProperties": {"type": "string"},
            },
        },
        "required": ["file_name", "ranking", "columns"],
        "additionalProperties": False,
    },
}


def load(folder: Path, name: str):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_llama_factorys_documented_schema_holds(exported) -> None:
    folder, pairs = exported
    rows, described = load(folder, "medrefl_sharegpt.json"), load(folder, "dataset_info.json")
    jsonschema.validate(rows, SHAREGPT)
    jsonschema.validate(described, DESCRIPTION)
    assert len(rows) == len(pairs)
    assert rows[2]["conversations"] == [{"from": "human", "value": prompts.exam(CASES[2].question)[0]["content"]}]
    assert rows[2]["rejected"] == {"from": "gpt", "value": pairs["rejected"][2][0]["content"]}
    for entry in described.values():  # every column it names is in every row of the file it names
        assert all(column in row for row in load(folder, entry["file_name"]) for column in entry["columns"].values())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{**rows[0], "chosen": {"from": "human", "value": "x"}}], SHAREGPT)


def test_the_released_datasets_two_files(exported) -> None:
    folder, pairs = exported
    reasoning, reflection = (load(folder, f"{name}_Enhancement_Data.json") for name in ("Reasoning", "Reflection"))
    jsonschema.validate(reasoning, ALPACA)
    jsonschema.validate(reflection, ALPACA)
    assert [row["chosen"] for row in reasoning] == [pairs["chosen"][i][0]["content"] for i in (0, 4)]
    assert [row["chosen"] for row in reflection] == [pairs["chosen"][i][0]["content"] for i in (1, 2)]
    assert {row["input"] for row in reasoning + reflection} == {""}


def test_a_role_that_llama_factory_does_not_know_is_an_error(exported, tmp_path) -> None:
    _, pairs = exported
    odd = pairs.head(1).assign(prompt=[[{"role": "tool", "content": "x"}]])
    with pytest.raises(MedReflError, match="role 'tool', expected one of system, user, assistant"):
        export_pairs(odd, tmp_path)


def test_no_pairs_make_empty_files(exported, tmp_path) -> None:
    export_pairs(exported[1].head(0), tmp_path)
    assert load(tmp_path, "medrefl_sharegpt.json") == [] and (tmp_path / "train.jsonl").read_text() == ""


def test_the_card_tells_counts_settings_models_licences_and_hashes(exported) -> None:
    folder, pairs = exported
    path = write_dataset_card(
        folder,
        pairs,
        [case.question for case in CASES],
        dropped={"margin": 3, "no_error": 0, "reflection_leak": 2},
        settings={"top_k": 2},
        models={"steps": "some/model", "judge": "none"},
        licences={"clinic": "Apache-2.0"},
    )
    card = path.read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["configs"][0]["data_files"][0]["path"] == "train.parquet"
    assert front["size_categories"] == ["n<1K"] and front["license"] == "other", "a model's licence is not known"
    assert "6 preference pairs from 6 questions" in card
    assert "| reasoning | 2 | 2 | 40 | 30 | question; an excellent right path" in card
    assert "Dropped, by reason: margin 3, reflection leak 2." in card and "no error" not in card
    assert "| clinic | 6 | Apache-2.0 |" in card and "| steps | some/model | not stated |" in card
    assert "| top_k | `2` |" in card
    for name in ("train.parquet", "dataset_info.json", "Reflection_Enhancement_Data.json"):
        assert f"`{content_hash(folder / name)}`" in card
    assert "\n\n\n" not in card and "|\n|" in card
