"""The command ``medrefl``: options in, exit codes out (0 done, 1 a stage failed, 2 wrong input, 130 Ctrl-C)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from medrefl_utils import __version__
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.runs.chain import run_profile
from medrefl_utils.runs.execution import CONTROL, StageFailed
from medrefl_utils.runs.profiles import load_profile
from medrefl_utils.runs.stages import STAGES, repository_root

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"medrefl {__version__}")
        raise typer.Exit


@app.callback()
def medrefl(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Med-REFL: exam questions -> reasoning trees -> preference pairs -> adapter -> measured gain."""


@app.command()
def run(
    profile: Annotated[Path, typer.Argument(help="A YAML profile, such as params/smoke.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override the profile; repeatable.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Begin at this stage; take what is above as it is.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="This stage alone.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run also what is unchanged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why; run nothing.")] = False,
) -> None:
    """Run the chain of notebooks into runs/NAME; stages that are unchanged are skipped."""
    from medrefl_utils.runs.preflight import check_inputs

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    options = {"start": start, "only": only, "force": force, "dry_run": dry_run}
    try:
        with _one_line_errors():
            profile, root = _at_root(profile)
            run_profile(profile, root=root, overrides=overrides or (), preflight=check_inputs, **options)
    except StageFailed as error:
        _explain(error, errors)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print(Text("stopped by Ctrl-C: the same command takes the chain up again", style="yellow"))
        raise typer.Exit(130) from None


@app.command()
def plan(
    profile: Annotated[Path, typer.Argument(help="A YAML profile, such as params/smoke.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override the profile; repeatable.")
    ] = None,
    input_price: Annotated[float, typer.Option(help="Of a million tokens read.", min=0)] = 0.0,
    output_price: Annotated[float, typer.Option(help="Of a million tokens written.", min=0)] = 0.0,
    probe: Annotated[
        int, typer.Option(help="Questions taken through the stages to measure it; 0: no model is run, memory alone.")
    ] = 64,
    card: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory of the card; this machine's without it.")
    ] = None,
) -> None:
    """Say what a profile's calls, tokens, time and money would be, from a few questions, and training's memory."""
    from medrefl_utils.runs.cost_plan import plan_run as planned
    from medrefl_utils.runs.cost_plan import plan_table

    with _one_line_errors():
        profile, root = _at_root(profile)
        found = planned(profile, root=root, overrides=overrides or (), probe=probe, card=card)
        console = Console(highlight=False)
        if found.costs:
            console.print(plan_table(found.costs, input_price, output_price))
        for line in found.memory:
            console.print(line, soft_wrap=True)


_AnswerBase = Annotated[
    str, typer.Option(metavar="0|1|auto", help="Where numeric gold answers count from; auto decides from the file.")
]


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
    """Check exam questions and say how they were read; exit code 1 where there is an error."""
    from medrefl_utils.exam.benchmarks import read_benchmark
    from medrefl_utils.exam.lint import lint_questions as lint_rows
    from medrefl_utils.views.score_tables import exam_lines, findings_table

    with _one_line_errors():
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
    responses: Annotated[Path, typer.Argument(help="Written responses: .jsonl, .json, .csv, .parquet or a folder.")],
    benchmark: Annotated[str, typer.Option(help="The questions: a benchmark's name, clinic, or a file.")],
    response_field: Annotated[str | None, typer.Option(help="The column with the response's text.")] = None,
    answer_base: _AnswerBase = "auto",
    model: Annotated[str, typer.Option(help="The model that wrote them, if the file does not name it.")] = "",
) -> None:
    """Score responses, ours or others', without a model."""
    from medrefl_utils.evaluation.scoring import clinic_questions, read_responses
    from medrefl_utils.exam.benchmarks import read_benchmark
    from medrefl_utils.views.score_tables import rates_table

    with _one_line_errors():
        is_clinic = benchmark == "clinic"
        questions = clinic_questions(responses) if is_clinic else read_benchmark(benchmark, answer_base=answer_base)
        table = rates_table(read_responses(responses, questions, response_field), model)
        Console(highlight=False).print(table)


@app.command()
def contamination(
    train: Annotated[str, typer.Argument(help="Training data: a file of questions, prompts or chats.")],
    bench: Annotated[str, typer.Argument(help="The evaluation: a benchmark's name or a file.")],
    threshold: Annotated[float, typer.Option(help="Jaccard similarity of word n-grams, above 0.4.")] = 0.75,
    ratio: Annotated[float, typer.Option(help="Similarity of stems by rapidfuzz, 0 to 100 (m1: 95).")] = 95.0,
    out: Annotated[Path | None, typer.Option(help="A CSV file for all pairs.")] = None,
) -> None:
    """Find questions of an evaluation in training data; exit code 1 where there is one."""
    from medrefl_utils.exam.benchmarks import read_texts
    from medrefl_utils.exam.contamination import find_overlaps, find_similar_stems
    from medrefl_utils.views.score_tables import overlaps_table

    with _one_line_errors():
        taught, asked = read_texts(train), read_texts(bench)
        found = find_overlaps(taught, asked, threshold=threshold)
        similar = find_similar_stems(taught, asked, threshold=ratio)
        console = Console(highlight=False)
        if out is not None:
            found.merge(similar, on=["question_id", "other_id"], how="outer").to_csv(out, index=False)
        if len(found) or len(similar):
            console.print(overlaps_table(found, similar, (Path(train).name, Path(bench).name)))
        for name, pairs in (("MinHash, n-grams", found), ("rapidfuzz, stems", similar)):
            console.print(
                f"{name}: {pairs['question_id'].nunique():,} of {len(taught):,} training texts match"
                f" {pairs['other_id'].nunique():,} of {len(asked):,} evaluation questions",
                soft_wrap=True,
            )
        if len(found) or len(similar):
            raise typer.Exit(1)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A run's folder, such as runs/smoke.")],
    b: Annotated[Path, typer.Argument(help="The run that is set against it.")],
) -> None:
    """Two runs' scores, paired, in one table."""
    from medrefl_utils.evaluation.scoring import compare_runs
    from medrefl_utils.views.score_tables import comparison_table

    with _one_line_errors():
        Console(highlight=False).print(
            comparison_table(compare_runs(a, b), (a.name, b.name) if a.name != b.name else (str(a), str(b)))
        )


@app.command()
def doctor(
    profile: Annotated[Path | None, typer.Argument(help="A profile: do its models fit, too?")] = None,
) -> None:
    """Say what this machine has and what fits on it; exit code 1 where something would stop a run."""
    from medrefl_utils.runs.doctor import check_machine, checks_table, inspect_machine

    with _one_line_errors():
        root = repository_root()
        notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
        checks = check_machine(inspect_machine(root), load_profile(profile, notebooks, root=root) if profile else None)
        Console(highlight=False).print(checks_table(checks))
        if any(check.verdict == "stop" for check in checks):
            raise typer.Exit(1)


@app.command()
def train(
    profile: Annotated[Path, typer.Argument(help="A YAML profile; its run has made pairs already.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override the profile; repeatable.")
    ] = None,
) -> None:
    """Stage 04 without its notebook, for torchrun and accelerate launch on several GPUs."""
    from medrefl_utils.runs.distributed_training import train_profile

    with _one_line_errors():
        log = train_profile(profile, root=repository_root(), overrides=overrides or ())
        typer.echo(f"{len(log)} optimizer steps, last loss {log['loss'].iloc[-1]:.4f}")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="A run's folder, such as runs/smoke, or an adapter's.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the merged model.")],
    base: Annotated[str | None, typer.Option(help="The base, where it is not the one the adapter names.")] = None,
) -> None:
    """Merge an adapter into its 16-bit base, and check that both say the same."""
    from medrefl_utils.training.adapters import find_adapter, merge_adapter

    with _one_line_errors():
        folder, pairs = find_adapter(adapter)
        agreement = merge_adapter(folder, out, base=base, pairs=pairs)
        typer.echo(f"{out}: {agreement.line()}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A run's folder, an adapter's, or a merged model's.")],
    hub_id: Annotated[str, typer.Argument(help="owner/name on the hub.")],
    public: Annotated[bool, typer.Option("--public", help="For all to see; private without it.")] = False,
) -> None:
    """Put an adapter or a merged model on the hub; nothing else of medrefl ever does."""
    from medrefl_utils.core.run_files import RunFiles
    from medrefl_utils.training.adapters import push_to_hub as push_folder

    with _one_line_errors():
        adapter = RunFiles(folder).adapter
        typer.echo(push_folder(adapter if adapter.is_dir() else folder, hub_id, private=not public))


def _at_root(profile: Path) -> tuple[Path, Path]:
    """Go to the checkout's root; the profile's path as seen from there, and the root."""
    profile, root = Path(os.path.abspath(profile)), repository_root()
    os.chdir(root)
    return (profile.relative_to(root) if profile.is_relative_to(root) else profile), root


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except MedReflError as error:
        # What it quotes from a file may hold line ends, and codes that a terminal obeys.
        line = " ".join(CONTROL.sub("", str(error)).split())
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"error: {line}", style="red"))
        raise typer.Exit(2) from None


def _explain(error: StageFailed, errors: Console) -> None:
    """The notebook's own error; an error of the user's input is one line and needs no frames."""
    if error.name != "MedReflError":
        for frame in error.frames:
            errors.print(Text(frame, style="dim"))
    errors.print(Text(f"{error.notebook.stem}: {error.name}: {error.message}", style="red"))
    errors.print(Text(f"executed notebook: {os.path.relpath(error.notebook)}"))


def main() -> None:
    """Entry point of ``medrefl`` and ``python -m medrefl_utils``."""
    app()
