"""Collect what every dataset card says: size, sources and models with their licences, files with their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from medrefl_utils import __version__
from medrefl_utils.core.records import Question
from medrefl_utils.core.store import content_hash
from medrefl_utils.exam.benchmarks import card_licence, licence_of

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card_facts(
    folder: Path,
    meanings: Mapping[str, str],
    question_ids: Iterable[str],
    questions: Iterable[Question],
    *,
    n_rows: int,
    models: Mapping[str, str],
    licences: Mapping[str, str],
) -> dict[str, Any]:
    """Return the values of a card: version, licence, n_questions, size_category, sources, models, files.

    Args:
        folder: folder of the exported files.
        meanings: {file name: what it is for}.
        question_ids: ids of the rows' questions, repeated or not.
        questions: at least these questions.
        n_rows: rows of the data set.
        models: {part: model}.
        licences: {source of questions, or model: licence}; the card says "not stated" where one is missing.
    """
    source_of = {question.question_id: question.source for question in questions}
    ids = list(dict.fromkeys(question_ids))
    sources = pd.Series([source_of[name] for name in ids], dtype=object).value_counts()
    return {
        "version": __version__,
        "licence": card_licence(licence_of(name, licences) for name in (*sources.index, *models.values())),
        "n_questions": len(ids),
        "size_category": next((name for bound, name in _SIZES if n_rows < bound), "n>1M"),
        "sources": [
            {"source": source, "count": count, "licence": licence_of(source, licences)}
            for source, count in sources.items()
        ],
        "models": [
            {"part": part, "model": model, "licence": licence_of(model, licences)} for part, model in models.items()
        ],
        "files": [
            {"name": name, "meaning": text, "hash": content_hash(folder / name)} for name, text in meanings.items()
        ],
    }
