"""Export the table of pairs in the formats of TRL, LLaMA-Factory and the released dataset, with a dataset card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import PAIRS
from medrefl_utils.core.store import write_table, write_text
from medrefl_utils.exam.dataset_cards import card_facts

TRL = "train.parquet"
TRL_LINES = "train.jsonl"
SHAREGPT = "medrefl_sharegpt.json"
DATASET_INFO = "dataset_info.json"
RELEASED = {
    "Reasoning_Enhancement_Data.json": ("reasoning",),
    "Reflection_Enhancement_Data.json": ("reflection_mid", "reflection_post", "reflection_keep"),
}
"""File names that the published training script loads, and the kinds of pairs in each file."""
_MEANINGS = {
    TRL: "TRL, conversational preference",
    TRL_LINES: "the same pairs, one JSON object per line",
    SHAREGPT: "LLaMA-Factory, ShareGPT ranking",
    DATASET_INFO: "LLaMA-Factory, descriptions of its files",
    **dict.fromkeys(RELEASED, "format of the released dataset (Alpaca ranking)"),
}
_KINDS = {
    "reasoning": "question; an excellent right path; a confusing wrong path",
    "reflection_mid": "question; a wrong step, a reflection, right steps; the same step, a reflection, wrong steps",
    "reflection_post": "question; a wrong path, a reflection, right steps; the same path, a reflection, wrong steps",
    "reflection_keep": "question; a right step, a reflection that keeps it; the same, one that leaves it, wrong steps",
    "random_cot": "question; a random right path; a random wrong path (control)",
}
_TRL_COLUMNS = ("prompt", "chosen", "rejected")


def export_pairs(pairs: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the pairs (columns of PAIRS) in all formats into ``folder``, in their order, and return the files.

    - ``train.parquet``, ``train.jsonl``: TRL's conversational preference format: prompt, chosen, rejected as messages.
    - ``medrefl_sharegpt.json``, ``dataset_info.json``: LLaMA-Factory's ShareGPT ranking and its descriptions.
    - ``Reasoning_Enhancement_Data.json``, ``Reflection_Enhancement_Data.json``: the two files of the released dataset,
      each a list of {instruction, input (empty), chosen, rejected}. The instruction is the pair's own prompt (ours:
      training asks as evaluation does). Random CoT pairs are in neither file.

    Raises:
        MedReflError: a message with a role that LLaMA-Factory does not know.
    """
    rows = [{name: _messages(pair[name]) for name in _TRL_COLUMNS} for pair in pairs.to_dict("records")]
    schema = pa.schema([PAIRS.field(name) for name in _TRL_COLUMNS])
    write_table(folder / TRL, pd.DataFrame(rows, columns=list(_TRL_COLUMNS)), schema)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(folder / TRL_LINES, lines)
    _write_json(folder / SHAREGPT, [_sharegpt(row) for row in rows])
    for name, kinds in RELEASED.items():
        _write_json(
            folder / name, [_alpaca(row) for row, kind in zip(rows, pairs["kind"], strict=True) if kind in kinds]
        )
    _write_json(folder / DATASET_INFO, _dataset_info())
    return [folder / name for name in _MEANINGS]


def write_dataset_card(
    folder: Path,
    pairs: pd.DataFrame,
    questions: Iterable[Question],
    *,
    dropped: Mapping[str, int],
    settings: Mapping[str, Any],
    models: Mapping[str, str],
    licences: Mapping[str, str],
) -> Path:
    """Write the dataset card ``README.md`` next to the exported files: counts, settings, models, licences, hashes.

    Args:
        folder: folder of the exported files.
        pairs: the pairs, columns of PAIRS.
        questions: at least the questions of the pairs.
        dropped: {reason: count} of what was left out; counts of 0 are not shown.
        settings: {parameter: value}.
        models: {part: model}.
        licences: {source of questions, or model: licence}; the card says "not stated" where one is missing.

    Returns:
        The card's path.
    """
    by_kind = [
        {
            "kind": kind,
            "pairs": len(rows),
            "questions": rows["question_id"].nunique(),
            "chosen": rows["chosen_tokens"].astype(float).mean(),
            "rejected": rows["rejected_tokens"].astype(float).mean(),
            "meaning": _KINDS[kind],
        }
        for kind, rows in pairs.groupby("kind", sort=False)
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    facts = card_facts(
        folder, _MEANINGS, pairs["question_id"], questions, n_rows=len(pairs), models=models, licences=licences
    )
    card = environment.get_template("exports.md.j2").render(
        trl=TRL,
        n_pairs=len(pairs),
        kinds=by_kind,
        dropped={reason.replace("_", " "): count for reason, count in dropped.items()},
        settings=settings,
        **facts,
    )
    return write_text(folder / "README.md", card)


def _sharegpt(row: Mapping[str, list[dict[str, str]]]) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}

    def turn(message: Mapping[str, str]) -> dict[str, str]:
        if message["role"] not in names:
            raise MedReflError(
                f"exports: a message has the role {message['role']!r}, expected one of {', '.join(names)}"
            )
        return {"from": names[message["role"]], "value": message["content"]}

    return {
        "conversations": [turn(message) for message in row["prompt"]],
        "chosen": turn(row["chosen"][0]),
        "rejected": turn(row["rejected"][0]),
    }


def _alpaca(row: Mapping[str, list[dict[str, str]]]) -> dict[str, str]:
    return {
        "instruction": "\n\n".join(message["content"] for message in row["prompt"]),
        "input": "",
        "chosen": row["chosen"][0]["content"],
        "rejected": row["rejected"][0]["content"],
    }


def _dataset_info() -> dict[str, Any]:
    """Describe each file as LLaMA-Factory expects it (its ``data/README.md``)."""
    sharegpt = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    alpaca = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    described = {
        "medrefl": {"file_name": SHAREGPT, "formatting": "sharegpt", "ranking": True, "columns": sharegpt},
    }
    for name in RELEASED:
        key = f"medrefl_{name.split('_')[0].lower()}"
        described[key] = {"file_name": name, "ranking": True, "columns": alpaca}
    return described


def _messages(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [dict(message) for message in messages]


def _write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
