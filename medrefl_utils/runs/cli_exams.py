"""The commands about exams and written responses: benchmarks, lint, contamination, score. None of them runs a model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medrefl_utils.runs.cli_options import AsJson, new_app, one_line_errors, print_json
from medrefl_utils.runs.execution import CONTROL

app = new_app()

_AnswerBase = Annotated[
    str, typer.Option(metavar="0|1|auto", help="Where numeric gold answers count from; auto decides from the file.")
]


@app.command()
def benchmarks(as_json: AsJson = False) -> None:
    """List the benchmarks that can be named, with their licence, and whether their questions are on this machine.

    Example: medrefl benchmarks
    """
    from medrefl_utils.exam.benchmarks import benchmark_file, benchmark_registry

    with one_line_errors():
        registry = benchmark_registry().benchmarks
        if as_json:
            found = {name: benchmark.model_dump(exclude_defaults=True) for name, benchmark in registry.items()}
            return print_json({name: {**entry, "file": benchmark_file(name)} for name, entry in found.items()})
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("name", "title", "licence", "questions"):
            table.add_column(column, overflow="fold", no_wrap=column == "name")
        table.add_row("clinic", "the clinic: invented, in MedQA's format", "Apache-2.0", "part of medrefl, no end")
        for name, benchmark in registry.items():
            hub = f"hub: {benchmark.hub.id}" if benchmark.hub else f"not here: needs {' or '.join(benchmark.files)}"
            table.add_row(name, benchmark.title, benchmark.licence, Text(str(benchmark_file(name) or hub)))
        console = Console(highlight=False)
        console.print(table)
        console.print(
            "Files are looked for in the folder that MEDREFL_BENCHMARKS names, and in benchmarks/.", soft_wrap=True
        )


@app.command()
def lint(
    source: Annotated[
        str, typer.Argument(help="A file of questions, a benchmark's name, clinic, or a hub dataset's id.")
    ],
    split: Annotated[str, typer.Option(help="Split of a hub dataset.")] = "",
    answer_base: _AnswerBase = "auto",
    context: Annotated[
        int, typer.Option(min=1, help="Tokens of the model's context: a longer prompt is named.")
    ] = 4096,
) -> None:
    """Check exam questions and say how they were read; exit code 1 where there is an error.

    Example: medrefl lint train.jsonl
    """
    from medrefl_utils.exam.benchmarks import read_benchmark
    from medrefl_utils.exam.lint import lint_questions as lint_rows
    from medrefl_utils.views.score_tables import exam_lines, findings_table

    with one_line_errors():
        rows = read_benchmark(source, split, answer_base)
        findings = lint_rows(rows.questions, rows.faults, context)
        console = Console(highlight=False)
        for line in exam_lines(rows, context):
            console.print(Text(CONTROL.sub("", line)), soft_wrap=True)
        console.print(findings_table(rows.label, findings) if findings else "nothing found")
        if any(finding.severity == "error" for finding in findings):
            raise typer.Exit(1)


@app.command()
def score(
    responses: Annotated[
        Path, typer.Argument(help="Written responses: .jsonl, .json, .csv, .tsv, .parquet, .eval, or a folder of them.")
    ],
    benchmark: Annotated[str, typer.Option(help="The questions: a benchmark's name, clinic, or a file.")],
    response_field: Annotated[
        str | None, typer.Option(help="The column with the response's text, if it has an unusual name.")
    ] = None,
    answer_base: _AnswerBase = "auto",
    model: Annotated[str, typer.Option(help="The model that wrote them, if the file does not name it.")] = "",
    thinking_open: Annotated[
        bool,
        typer.Option("--thinking-open", help="The chat template opened the thinking, so responses begin inside it."),
    ] = False,
) -> None:
    """Score responses, ours or others', without a model.

    Files that are read:

    - rows with "question" (or "prompt", or the benchmark's "id") and "response" (or "output", "completion", "text");

    - what lm_eval --log_samples writes: one samples_TASK_DATE.jsonl, or the folder with several;

    - a log of Inspect (.eval or .json), or a folder of logs;

    - the folder of a run, such as runs/smoke.

    Example: medrefl score responses.jsonl --benchmark medqa_5op
    """
    from medrefl_utils.evaluation.scoring import clinic_questions, read_responses
    from medrefl_utils.exam.benchmarks import read_benchmark
    from medrefl_utils.views.score_tables import rates_table

    with one_line_errors(), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        is_clinic = benchmark == "clinic"
        questions = clinic_questions(responses) if is_clinic else read_benchmark(benchmark, answer_base=answer_base)
        read = read_responses(responses, questions, response_field, thinking_open=thinking_open)
        console = Console(highlight=False)
        console.print(rates_table(read, model))
        for note in notes:
            console.print(Text(f"note: {note.message}", style="yellow"), soft_wrap=True)


@app.command()
def contamination(
    train: Annotated[str, typer.Argument(help="Training data: a file of questions, prompts or chats.")],
    bench: Annotated[str, typer.Argument(help="The evaluation: a benchmark's name or a file.")],
    threshold: Annotated[float, typer.Option(help="Jaccard similarity of word n-grams, above 0.4.")] = 0.75,
    ratio: Annotated[
        float, typer.Option(help="Similarity of stems by rapidfuzz, 0 to 100; the m1 project uses 95.")
    ] = 95.0,
    out: Annotated[Path | None, typer.Option(help="A CSV file for all pairs.")] = None,
) -> None:
    """Find questions of an evaluation in training data; the exit code is 1 if there is one.

    Example: medrefl contamination train.jsonl medqa_5op --out overlaps.csv
    """
    from medrefl_utils.exam.benchmarks import read_texts
    from medrefl_utils.exam.contamination import find_overlaps, find_similar_stems
    from medrefl_utils.views.score_tables import overlaps_table

    with one_line_errors():
        taught, asked = read_texts(train), read_texts(bench)
        found = find_overlaps(taught, asked, threshold=threshold)
        similar = find_similar_stems(taught, asked, threshold=ratio)
        console = Console(highlight=False)
        if out is not None:
            found.merge(similar, on=["question_id", "other_id"], how="outer").to_csv(out, index=False)
        if len(found) or len(similar):
            console.print(overlaps_table(found, similar, (Path(train).name, Path(bench).name), (taught, asked)))
        for name, pairs in (("MinHash, n-grams", found), ("rapidfuzz, stems", similar)):
            console.print(
                f"{name}: {pairs['question_id'].nunique():,} of {len(taught):,} training texts match"
                f" {pairs['other_id'].nunique():,} of {len(asked):,} evaluation questions",
                soft_wrap=True,
            )
        if len(found) or len(similar):
            raise typer.Exit(1)
