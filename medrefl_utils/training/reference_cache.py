"""The reference's log-probabilities of pairs: computed once, kept on disk, used again by other seeds and ablations.

They depend on the base and on a pair's token ids alone. So each pair is kept by the hash of its ids, in one file for
each base: an ablation that trains on some of the pairs finds those, and an interrupted pass goes on where it stopped.
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
"""Log-probabilities of the chosen and the rejected sides of some rows of ``preferences.pair_ids``."""


def reference_logprobs(
    ids: pd.DataFrame, compute: Compute, *, base: str, folder: Path | None, batch_size: int, save_every: int = 64
) -> tuple[pd.DataFrame, int]:
    """``chosen`` and ``rejected`` [nats] of each pair, in the order of ``ids``, and how many had to be computed.

    ``base`` names the reference with all that its numbers depend on (``models.model_key`` and the compute dtype).
    ``folder`` None keeps nothing. The file is written after every ``save_every`` batches.
    """
    names = [pair_hash(*row) for row in zip(ids.prompt_ids, ids.chosen_ids, ids.rejected_ids, strict=True)]
    path = None if folder is None else folder / f"{hashlib.sha256(base.encode()).hexdigest()[:16]}.parquet"
    known = _read(path, base)
    missing = ids[~np.isin(names, list(known))]
    # Long pairs first: what does not fit in memory shows at once.
    missing = missing.iloc[np.argsort(-missing["length"].to_numpy(), kind="stable")]
    by_index = dict(zip(ids.index, names, strict=True))
    # Position 0 though the trainer's bar is open: on a line of its own, each step would be a line of a saved notebook.
    with tqdm(total=len(missing), desc="reference", unit="pair", disable=missing.empty, position=0) as bar:
        for count, start in enumerate(range(0, len(missing), batch_size), 1):
            part = missing.iloc[start : start + batch_size]
            for index, chosen, rejected in zip(part.index, *compute(part), strict=True):
                known[by_index[index]] = (chosen, rejected)
            bar.update(len(part))
            if path is not None and (count % save_every == 0 or start + batch_size >= len(missing)):
                known = _read(path, base) | known  # another run may have written meanwhile
                write_table(path, _table(known), REFERENCES, key=base)
    return pd.DataFrame([known[name] for name in names], columns=["chosen", "rejected"], index=ids.index), len(missing)


def pair_hash(prompt: list[int], chosen: list[int], rejected: list[int]) -> str:
    """A hash of a pair's token ids."""
    return hashlib.blake2b(repr([list(map(int, p)) for p in (prompt, chosen, rejected)]).encode()).hexdigest()[:32]


def _read(path: Path | None, base: str) -> dict[str, tuple[float, float]]:
    if path is None or table_key(path) != base:
        return {}
    return {row.pair: (row.chosen, row.rejected) for row in read_table(path, REFERENCES).itertuples()}


def _table(known: dict[str, tuple[float, float]]) -> pd.DataFrame:
    return pd.DataFrame([(name, *pair) for name, pair in known.items()], columns=REFERENCES.names)
