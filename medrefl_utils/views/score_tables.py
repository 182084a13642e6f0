"""Terminal tables of ``medrefl score``, ``lint``, ``contamination`` and ``compare``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import shorten

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from medrefl_utils.core.records import Question
from medrefl_utils.evaluation.statistics import Interval, response_rates
from medrefl_utils.exam.benchmarks import TrainedQuestions, trained_questions
from medrefl_utils.exam.lint import LintFinding, longest_prompt
from medrefl_utils.exam.questions import Rows
from medrefl_utils.views.summary_tables import gain_text, p_text

_RATES = {
    "accuracy": "strict: unreadable is wrong",
    "accuracy_judged": "strict, a judge reads what the rules cannot read",
    "accuracy_published": "as published: unreadable left out",
    "unreadable": "unreadable",
    "conflict": "conflict",
}

_MOST = 50  # pairs that a terminal shows
_WORDS = 60  # characters of each question in it
_MORE = f"the {_MOST} nearest pairs; --out writes all of them"


def rates_table(responses: pd.DataFrame, model: str = "") -> Table:
    """Return strict and published-style accuracy, unreadable and conflicting answers, with 95% intervals.

    Where the registry says that a model was trained on some of the questions, its column is marked, a row gives its
    accuracy without these questions, and a caption says which they are.

    Args:
        responses: rows of ``schemas.RESPONSES`` of one benchmark.
        model: the base model that wrote them, where the column ``model`` does not name it.
    """
    source = responses["source"].iloc[0]
    table = Table(title=f"{source}: percent with 95% intervals")
    table.add_column("")
    columns, without, notes = [], [], []
    for (name, protocol), group in responses.groupby(["model", "protocol"], sort=False):
        trained = trained_questions(model or name, source, set(group["question_id"]))
        label = name if protocol == "given" else f"{name}, {protocol}"
        table.add_column(f"{label}{' †' * (trained is not None)}", justify="right", overflow="fold")
        found = response_rates(group)
        shown = [_interval_text(found.get(n)) for n in _RATES]
        columns.append([*shown, f"{group['question_id'].nunique():,}", f"{group['run'].nunique():,}"])
        without.append("" if trained is None else _without(group, trained))
        if trained:
            notes.append(trained_note(trained, group["question_id"].nunique()))
    for label, *cells in zip([*_RATES.values(), "questions", "runs"], *columns, strict=True):
        table.add_row(label, *cells)
    if notes:
        table.add_row("strict, without the questions of its training †", *without)
        table.caption = "\n".join(dict.fromkeys(f"† {note}" for note in notes))
    return table


def trained_note(trained: TrainedQuestions, n_questions: int) -> str:
    """Return a sentence that says how many of a benchmark's questions a model was trained on, and who says so."""
    return f"{trained.model} was trained on {len(trained.ids):,} of these {n_questions:,} questions: {trained.note}"


def _without(group: pd.DataFrame, trained: TrainedQuestions) -> str:
    rest = group[~group["question_id"].isin(trained.ids)]
    return "none left" if rest.empty else f"{_interval_text(response_rates(rest)['accuracy'])}, n {len(rest):,}"


def exam_lines(rows: Rows, context: int) -> list[str]:
    """Return what ``lint`` says of an exam: size, an example, how numbers were read, the longest prompt.

    Args:
        rows: the exam.
        context: tokens of the model's context.
    """
    lines = [f"{rows.label}: {len(rows.questions):,} questions read, rows refused: {len(rows.faults):,}"]
    sources = Counter(question.source for _, question in rows.questions)
    if len(sources) > 1:
        lines.append(f"sources: {', '.join(f'{source} {n:,}' for source, n in sources.items())}")
    if rows.questions:
        number, question = rows.questions[0]
        stem = " ".join(question.stem.split())
        lines.append(f"row {number}: {stem if len(stem) <= 200 else f'{stem[:199]}…'}")
        lines += [f"  {letter}. {' '.join(text.split())[:100]}" for letter, text in question.options.items()]
        lines.append(f"  gold: {question.gold}, {' '.join(question.options[question.gold].split())[:100]}")
    lines += rows.numbering
    if longest := longest_prompt(rows.questions):
        number, tokens = longest
        lines.append(
            f"longest prompt: row {number}, an estimated {tokens.low:,} to {tokens.high:,} tokens (from its characters,"
            f" without the model's tokenizer; context {context:,})"
        )
    return lines


def overlaps_table(
    found: pd.DataFrame,
    similar: pd.DataFrame,
    names: tuple[str, str],
    texts: tuple[Sequence[Question], Sequence[Question]],
) -> Table:
    """Return the pairs of questions that two files share, by both checks, each with its first words.

    Args:
        found: what ``exam.find_overlaps`` returns.
        similar: what ``exam.find_similar_stems`` returns.
        names: of the training file and of the benchmark.
        texts: the questions of both.
    """
    ours, theirs = (
        {q.question_id: shorten(q.stem, _WORDS, placeholder=" …") for q in questions} for questions in texts
    )
    keys = ["question_id", "other_id"]
    both = found.merge(similar, on=keys, how="outer").sort_values(["jaccard", "ratio"], ascending=False)
    table = Table(
        title=f"{names[0]} against {names[1]}: {len(both):,} pairs", caption=_MORE if len(both) > _MOST else ""
    )
    for name in (names[0], names[1], "n-grams", "Jaccard", "contained", "ratio of stems"):
        table.add_column(name, justify="left" if name in (*names, "n-grams") else "right", overflow="fold")
    for row in both.head(_MOST).itertuples():
        shares = ("-" if pd.isna(value) else f"{value:.2f}" for value in (row.jaccard, row.containment))
        how = "-" if pd.isna(row.how) else row.how
        both_ids = (f"{row.question_id}: {ours[row.question_id]}", f"{row.other_id}: {theirs[row.other_id]}")
        table.add_row(*map(Text, both_ids), how, *shares, "-" if pd.isna(row.ratio) else f"{row.ratio:.1f}")
    return table


def findings_table(name: str, findings: Sequence[LintFinding]) -> Table:
    """Return what lint found: check, severity, number of rows, and the first of them."""
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
    """Return a table of two runs, paired, that fits 80 columns: one row per benchmark, protocol and model.

    Where a gain's interval includes 0, the caption says which gain this number of questions would show.

    Args:
        compared: what ``evaluation.compare_runs`` returns.
        names: of the first run (A) and of the second run (B).
    """
    table = Table(
        title=f"A: {names[0]}\nB: {names[1]}\nStrict accuracy in percent, on the questions that both were asked",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    sources = compared["source"].nunique()
    where = ("benchmark", "protocol", "model")[sources == 1 :]
    for name in (*where, "A", "B", "B - A, points [95%]", "McNemar p", "n"):
        table.add_column(name, justify="left" if name in where else "right", no_wrap=name not in where, overflow="fold")
    captions = [f"benchmark: {compared['source'].iloc[0]}"] * (sources == 1)
    for row in compared.itertuples():
        place = (row.source, row.protocol, row.model)[sources == 1 :]
        shares = (f"{100 * share:.1f}" for share in (row.accuracy_first, row.accuracy))
        table.add_row(*place, *shares, gain_text(row), p_text(row.mcnemar_p), f"{row.n:,}")
        if row.gain_low <= 0 <= row.gain_high:
            captions.append(
                f"{', '.join(place)}: no difference shown; {row.n:,} questions show one of"
                f" {100 * row.detectable:.1f} points in 4 of 5 cases"
            )
    table.caption = "\n".join(captions)
    return table


def _interval_text(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
