"""Export the kept chains in the published shape and in TRL's, with a dataset card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medrefl_utils.core.records import Question
from medrefl_utils.core.schemas import CHAINS
from medrefl_utils.core.store import write_table, write_text
from medrefl_utils.exam.dataset_cards import card_facts

PUBLISHED = "medreason.jsonl"
TRL = "train.parquet"
TRL_LINES = "train.jsonl"
_MEANINGS = {
    TRL: "TRL, conversational prompt-completion",
    TRL_LINES: "the same chains, one JSON object per line",
    PUBLISHED: "format of the released data set, with the paths",
}
_TRL_COLUMNS = ("prompt", "completion")


def export_chains(table: pd.DataFrame, questions: Iterable[Question], folder: Path) -> list[Path]:
    """Write the kept chains (columns of CHAINS) in all formats into ``folder``, and return the files.

    - ``train.parquet``, ``train.jsonl``: TRL's conversational prompt-completion format.
    - ``medreason.jsonl``: dataset_name, id_in_dataset, question (the stem), answer (the right option's text), reasoning
      (the chain and its conclusion), options (lettered lines), as published; and ``paths`` (ours).

    Args:
        table: the chains.
        questions: at least those of the kept chains.
        folder: where to write.
    """
    by_id = {question.question_id: question for question in questions}
    kept = table[table["kept"]]
    rows = [{name: [dict(m) for m in row[name]] for name in _TRL_COLUMNS} for row in kept.to_dict("records")]
    schema = pa.schema([CHAINS.field(name) for name in _TRL_COLUMNS])
    write_table(folder / TRL, pd.DataFrame(rows, columns=list(_TRL_COLUMNS)), schema)
    _write_lines(folder / TRL_LINES, rows)
    _write_lines(folder / PUBLISHED, (_published(by_id[row["question_id"]], row) for row in kept.to_dict("records")))
    return [folder / name for name in _MEANINGS]


def write_chain_card(
    folder: Path,
    table: pd.DataFrame,
    questions: Iterable[Question],
    *,
    graph: str,
    figures: Mapping[str, Any],
    settings: Mapping[str, Any],
    models: Mapping[str, str],
    licences: Mapping[str, str],
) -> Path:
    """Write the dataset card ``README.md`` next to the exported files, and return its path.

    Args:
        folder: folder of the exported files.
        table: the chains, columns of CHAINS.
        questions: at least the questions of the kept chains.
        graph: name of the graph.
        figures: what ``chain_figures`` returns.
        settings: {parameter: value}.
        models: {part: model}.
        licences: {source of questions, graph or model: licence}.
    """
    kept = table[table["kept"]]
    facts = card_facts(
        folder, _MEANINGS, kept["question_id"], questions,
        n_rows=len(kept), models={"graph": graph, **models}, licences=licences,
    )  # fmt: skip
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    card = environment.get_template("exports.md.j2").render(
        trl=TRL, n_chains=len(kept), figures=figures, settings=settings, **facts
    )
    return write_text(folder / "README.md", card)


def _published(question: Question, row: Mapping[str, Any]) -> dict[str, Any]:
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    return {
        "dataset_name": question.source,
        "id_in_dataset": question.question_id,
        "question": question.stem,
        "answer": question.options[question.gold],
        "reasoning": f"{row['chain']}\n{row['conclusion']}",
        "options": options,
        "paths": list(row["paths"]),
    }


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
