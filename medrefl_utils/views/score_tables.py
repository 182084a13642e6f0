"""Terminal tables of ``medrefl score``, ``lint`` and ``compare``."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.table import Table

from medrefl_utils.evaluation.statistics import Interval, response_rates
from medrefl_utils.exam.lint import LintFinding
from medrefl_utils.views.summary_tables import gain_text, p_text

_RATES = {
    "accuracy": "strict: unreadable is wrong",
    "accuracy_judged": "strict, a judge reads what the rules cannot",
    "accuracy_published": "as published: unreadable left out",
    "unreadable": "unreadable",
    "conflict": "conflict",
}


def rates_table(responses: pd.DataFrame) -> Table:
    """Strict and published-style accuracy, unreadable and conflicting answers, with 95% intervals."""
    table = Table(title=f"{responses['source'].iloc[0]}: percent with 95% intervals")
    table.add_column("")
    columns = []
    for (model, protocol), group in responses.groupby(["model", "protocol"], sort=False):
        table.add_column(model if protocol == "given" else f"{model}, {protocol}", justify="right", overflow="fold")
        found = response_rates(group)
        shown = [_interval_text(found.get(n)) for n in _RATES]
        columns.append([*shown, f"{group['question_id'].nunique():,}", f"{group['run'].nunique():,}"])
    for name, *cells in zip([*_RATES.values(), "questions", "runs"], *columns, strict=True):
        table.add_row(name, *cells)
    return table


def findings_table(name: str, findings: Sequence[LintFinding]) -> Table:
    """What lint found: check, severity, how many rows and which."""
    table = Table(title=f"{name}: {'nothing found' if not findings else 'findings'}")
    for column in ("check", "severity", "rows", "which", "meaning"):
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    for finding in findings:
        which = ", ".join(map(str, finding.rows[:8])) + (", …" if len(finding.rows) > 8 else "")
        note = f" ({finding.note})" if finding.note else ""
        style = "red" if finding.severity == "error" else None
        table.add_row(
            finding.check, finding.severity, f"{len(finding.rows):,}", which, f"{finding.meaning}{note}", style=style
        )
    return table


def comparison_table(compared: pd.DataFrame, names: tuple[str, str]) -> Table:
    """Two runs, paired: one row per benchmark, protocol and model.

    Args:
        compared: what ``evaluation.compare_runs`` returns.
        names: of the first and of the second run.
    """
    table = Table(title=f"{names[1]} against {names[0]}: strict accuracy, percent; questions that both were asked")
    where = ("benchmark", "protocol", "model")
    for name in (*where, *names, "gain, points [95%]", "McNemar p", "detectable", "n"):
        table.add_column(name, justify="left" if name in where else "right", no_wrap=True)
    for row in compared.itertuples():
        table.add_row(
            *(row.source, row.protocol, row.model),
            *(f"{100 * share:.1f}" for share in (row.accuracy_first, row.accuracy)),
            *(gain_text(row), p_text(row.mcnemar_p), f"{100 * row.detectable:.1f}", f"{row.n:,}"),
        )
    return table


def _interval_text(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
