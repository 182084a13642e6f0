"""pass@k: the probability that at least one of k samples answers a question correctly. Pure.

An adapter that raises pass@1 and not pass@16 gives the answers that the base can already give more often; one that
raises both answers questions that the base cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.schemas import PASS_AT_K
from medrefl_utils.evaluation.statistics import paired_difference, share_interval

KS = (1, 4, 16)
_SAMPLED = "sampled"


def pass_at_k(n: int, right: int, k: int) -> float:
    """Estimate pass@k of one question without bias: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    Args:
        n: samples of the question.
        right: c, the number of them that are right.
        k: at most ``n``.

    Raises:
        MedReflError: not 1 <= k <= n, or not 0 <= right <= n.
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise MedReflError(f"pass@{k}: {right} of {n} samples are right, expected 0 to n right and k from 1 to n")
    return 1 - comb(n - right, k) / comb(n, k)


def pass_rates(responses: pd.DataFrame, ks: Sequence[int] = KS, n_boot: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Return pass@k of each model from its samples: columns of PASS_AT_K.

    Only the protocol "sampled" counts: its samples have one temperature. A k above the number of samples is left out,
    and a model with one sample per question has no rows. Intervals resample stems.

    Args:
        responses: columns of RESPONSES of "base" and "medrefl"; each run is a sample.
        ks: values of k.
        n_boot: bootstrap samples of each interval.
        seed: seed of the bootstrap.

    Raises:
        MedReflError: a question with fewer samples than another one.
    """
    rows = []
    samples = responses[responses["protocol"] == _SAMPLED].astype({"correct": float})
    for source, of_source in samples.groupby("source", sort=False):
        before: dict[int, pd.Series] = {}
        for model in [name for name in ("base", "medrefl") if (of_source["model"] == name).any()]:
            of_model = of_source[of_source["model"] == model]
            counts = of_model.groupby("question_id")["correct"].agg(["size", "sum"])
            n = int(counts["size"].min())
            if n != counts["size"].max():
                raise MedReflError(
                    f"pass@k: {source}, {model}: {n} to {counts['size'].max()} samples, expected as many"
                )
            stems = of_model.drop_duplicates("question_id").set_index("question_id")["stem_id"].reindex(counts.index)
            stems = stems.fillna(stems.index.to_series())
            for k in [k for k in ks if k <= n and n > 1]:
                share = counts["sum"].map(lambda right, n=n, k=k: pass_at_k(n, int(right), k))
                found = share_interval(share, stems, n_boot, seed)
                row = {"source": source, "model": model, "k": k, "n": len(share), "samples": n}
                row |= dict(zip(("share", "low", "high"), found, strict=True))
                if model == "base":
                    before[k] = share
                elif k in before and before[k].index.equals(share.index):
                    gain = paired_difference(share - before[k], stems, np.zeros(len(share)), n_boot, seed)
                    row |= {"difference": gain.estimate, "difference_low": gain.low, "difference_high": gain.high}
                rows.append(row)
    return pd.DataFrame(rows, columns=PASS_AT_K.names)
