"""Cache the reference's log-probabilities of pairs on disk, for other seeds and ablations.

They depend only on the base and on a pair's token ids. Each base has one file; its rows are keyed by the hash of the
ids. So an ablation on some of the pairs finds them, and an interrupted pass resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from medrefl_utils.core.schemas import REFERENCES
from medrefl_utils.core.store import read_table, table_key, write_table

Compute = Callable[[pd.DataFrame], tuple[list[float], list[float]]]
"""Computes the log-probabilities of the chosen and the rejected sides for some rows of ``tokenize_pairs``."""


def reference_logprobs(
    ids: pd.DataFrame, compute: Compute, *, base: str, folder: Path | None, batch_size: int, save_every: int = 64
) -> tuple[pd.DataFrame, int]:
    """Return ``chosen`` and ``rejected`` [nats] of each pair, and the number of pairs that were computed.

    Args:
        ids: columns of ``tokenize_pairs``; the result has the same index.
        compute: computes missing pairs.
        base: name of the reference with everything its numbers depend on (``models.model_key`` and compute dtype).
        folder: folder of the cache; None caches nothing.
        batch_size: pairs per call of ``compute``.
        save_every: batches between two writes of the file.
    """
    names = [pair_hash(*row) for row in zip(ids.prompt_ids, ids.chosen_ids, ids.rejected_ids, strict=True)]
    path = None if folder is None else folder / f"{hashlib.sha256(base.encode()).hexdigest()[:16]}.parquet"
    known = _read(path, base)
    missing = ids[~np.isin(names, list(known))]
    # Long pairs first, so that too little memory shows at once.
    missing = missing.iloc[np.argsort(-missing["length"].to_numpy(), kind="stable")]
    by_index = dict(zip(ids.index, names, strict=True))
    # Position 0 although the trainer's bar is open: otherwise each step would be a line in a saved notebook.
    with tqdm(total=len(missing), desc="reference", unit="pair", disable=missing.empty, position=0) as bar:
        for count, start in enumerate(range(0, len(missing), batch_size), 1):
            part = missing.iloc[start : start + batch_size]
            for index, chosen, rejected in zip(part.index, *compute(part), strict=True):
                known[by_index[index]] = (chosen, rejected)
            bar.update(len(part))
            if path is not None and (count % save_every == 0 or start + batch_size >= len(missing)):
                known = _read(path, base) | known  # another run may have written in the meantime
                write_table(path, _table(known), REFERENCES, key=base)
    return pd.DataFrame([known[name] for name in names], columns=["chosen", "rejected"], index=ids.index), len(missing)


def pair_hash(prompt: list[int], chosen: list[int], rejected: list[int]) -> str:
    """Hash the token ids of a pair."""
    return hashlib.blake2b(repr([list(map(int, p)) for p in (prompt, chosen, rejected)]).encode()).hexdigest()[:32]


def _read(path: Path | None, base: str) -> dict[str, tuple[float, float]]:
    if path is None or table_key(path) != base:
        return {}
    return {row.pair: (row.chosen, row.rejected) for row in read_table(path, REFERENCES).itertuples()}


def _table(known: dict[str, tuple[float, float]]) -> pd.DataFrame:
    return pd.DataFrame([(name, *pair) for name, pair in known.items()], columns=REFERENCES.names)
