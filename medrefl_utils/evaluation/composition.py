"""Compare MedReason, Med-REFL and both: two runs on the same questions, one on the original base, one on the tuned one.

Each run has answers of its base and of the base with its adapter. So the two runs hold four arms: base, + MedReason
(the fine-tuned base), + Med-REFL (the original base with an adapter), and both. All comparisons are paired by question.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import RESPONSES
from medrefl_utils.core.store import read_table
from medrefl_utils.evaluation.statistics import holm, interaction_interval, score_responses

COMPOSITION_ARMS = ("base", "+ MedReason", "+ Med-REFL", "both")
"""The arms: the original base, the fine-tuned base, the original base with an adapter, the fine-tuned one with one."""
BEYOND_SUM = "sum of the two gains"
"""In the column ``against``: what both gain beyond the sum of the single gains."""
_CONTRASTS = (
    ("+ MedReason", "base"),
    ("+ Med-REFL", "base"),
    ("both", "base"),
    ("both", "+ MedReason"),
    ("both", "+ Med-REFL"),
)


def compare_bases(baseline: Path, run: Path) -> pd.DataFrame:
    """Compare the four arms of two runs on the questions that all four answered.

    Args:
        baseline: folder of the run on the original base.
        run: folder of the run on the fine-tuned base.

    Returns:
        Rows by benchmark and protocol: one for the base, then one per comparison. Columns ``source``, ``protocol``,
        ``arm``, ``against`` (null for the base), ``n`` (questions), ``runs``, ``accuracy`` of the arm with ``_low`` and
        ``_high``, ``gain`` over ``against`` with ``_low`` and ``_high``, ``mcnemar_p`` (exact, of the first run) and
        ``holm_p`` (corrected for the five comparisons of a protocol). The last row of each protocol, against
        ``BEYOND_SUM``, is what both gain beyond the sum of the single gains; it has no test. Shares are of 1.

    Raises:
        MedReflError: a run without responses, or runs that share no question of one benchmark and protocol.
    """
    tables = {}
    for place, names in ((baseline, COMPOSITION_ARMS[::2]), (run, COMPOSITION_ARMS[1::2])):
        responses = read_table(RunFiles(place).responses, RESPONSES)
        tables |= {arm: responses[responses["model"] == model] for arm, model in zip(names, _MODELS, strict=True)}
    rows: list[dict[str, object]] = []
    for place in tables["base"][["source", "protocol"]].drop_duplicates().itertuples(index=False):
        arms = _shared(tables, place.source, place.protocol)
        if len(arms["base"]):
            rows += [dict(zip(("source", "protocol"), place, strict=True)) | row for row in _rows(arms)]
    if not rows:
        raise MedReflError(
            f"{baseline} and {run}: no question that base and adapter of both answered by the same protocol"
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


_MODELS = ("base", "medrefl")
_OF_ACCURACY = ("n", "runs", "accuracy", "accuracy_low", "accuracy_high")
_OF_GAIN = ("gain", "gain_low", "gain_high", "mcnemar_p")
_COLUMNS = ("source", "protocol", "arm", "against", *_OF_ACCURACY, *_OF_GAIN, "holm_p")


def _shared(tables: dict[str, pd.DataFrame], source: str, protocol: str) -> dict[str, pd.DataFrame]:
    """Return each arm's responses to the questions and runs that all arms have, in one order."""
    key = ["content", "run"]
    chosen = {
        arm: table[(table["source"] == source) & (table["protocol"] == protocol)].drop_duplicates(key)
        for arm, table in tables.items()
    }
    common = chosen["base"][[*key, "question_id"]]
    for table in chosen.values():
        common = common.merge(table[key], on=key)
    # Two runs may name a question differently; the pairs are made by content.
    return {
        arm: common.merge(table.drop(columns="question_id"), on=key).sort_values(["run", "question_id"])
        for arm, table in chosen.items()
    }


def _rows(arms: dict[str, pd.DataFrame]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for arm, against in _CONTRASTS:
        both = pd.concat([arms[against].assign(model="base"), arms[arm].assign(model="medrefl")])
        base, other = score_responses(both).to_dict("records")
        if not rows:
            rows.append({"arm": "base", "against": None} | {name: base[name] for name in _OF_ACCURACY})
        rows.append({"arm": arm, "against": against} | {name: other[name] for name in (*_OF_ACCURACY, *_OF_GAIN)})
    for row, p in zip(rows[1:], holm([row["mcnemar_p"] for row in rows[1:]]), strict=True):
        row["holm_p"] = p
    found = interaction_interval(
        *(arms[arm]["correct"].to_numpy(dtype=bool) for arm in COMPOSITION_ARMS),
        clusters=arms["base"]["stem_id"].fillna(arms["base"]["question_id"]),
    )
    beyond = dict(zip(("gain", "gain_low", "gain_high"), found, strict=True))
    last = {name: rows[-1][name] for name in _OF_ACCURACY}
    return [*rows, {"arm": "both", "against": BEYOND_SUM} | last | beyond]
