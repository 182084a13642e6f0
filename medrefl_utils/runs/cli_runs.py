"""The commands about finished runs and their parameters: list, show, compare, clean, params."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.runs.cli_options import AsJson, checkout_or_here, find_run, new_app, one_line_errors, print_json
from medrefl_utils.runs.profiles import Parameter, did_you_mean, matching_names, notebook_parameters
from medrefl_utils.runs.stages import STAGES, repository_root

app = new_app()


@app.command("list")
def list_all(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the runs. Default: runs/ of the checkout, or of this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs, the newest first: date, finished stages and main result.

    Example: medrefl list
    """
    from medrefl_utils.runs.run_overview import list_runs, runs_table

    with one_line_errors():
        folder = folder or checkout_or_here() / "runs"
        runs = list_runs(folder)
        if as_json:
            return print_json([asdict(run) for run in runs])
        if not runs:
            raise MedReflError(f"{folder}: no run there, expected folders with a manifest.json; medrefl run makes one")
        Console(highlight=False).print(runs_table(runs))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name or folder of a run, such as smoke or runs/smoke.")],
    as_json: AsJson = False,
) -> None:
    """Show one run: its stages, the parameters that differ from the defaults, and its result tables.

    Example: medrefl show smoke
    """
    from medrefl_utils.core.run_files import RunFiles
    from medrefl_utils.core.store import MADE_BY, read_manifest
    from medrefl_utils.runs.chain import print_results
    from medrefl_utils.runs.run_overview import changed_parameters, stages_table, summarise_run

    with one_line_errors():
        files = RunFiles(find_run(run))
        if not files.manifest.is_file():
            raise MedReflError(f"{files.root}: no manifest.json there, so no stage has run")
        manifest, summary = read_manifest(files), summarise_run(files)
        if as_json:
            return print_json({"summary": asdict(summary), "manifest": manifest})
        console = Console(highlight=False)
        machine, git = manifest.get("machine", {}), manifest.get("git", {})
        units = {"cpu": "", "cores": " cores", "memory_gib": " GiB of memory"}
        facts = {
            "run": f"{summary.name}, {summary.date}",
            "profile": " ".join([str(manifest.get("profile", "")), *map(str, manifest.get("overrides", []))]).strip(),
            "machine": ", ".join(f"{machine[name]}{unit}" for name, unit in units.items() if name in machine),
            "code": f"{(git.get('revision') or '')[:12]}{' with changes' if git.get('dirty') else ''}",
        }
        for name, fact in facts.items():
            if fact:
                console.print(Text(f"{name}: {fact}"), soft_wrap=True)
        console.print(stages_table(summary))
        changed = changed_parameters(manifest, _defaults())
        if len(changed):
            table = Table("parameter", "value", "default", "stages", box=box.SIMPLE_HEAD, pad_edge=False)
            for row in changed.itertuples(index=False):
                table.add_row(*map(Text, row))
            console.print(table)
        print_results(files, console, {name for name in MADE_BY if getattr(files, name).exists()})


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="The first run, the reference: a name or a folder, such as runs/smoke.")],
    b: Annotated[str, typer.Argument(help="The second run; gains are second minus first.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with every column instead of a table.")] = False,
) -> None:
    """Compare the scores of two runs on the questions that both were asked (paired).

    Example: medrefl compare runs/smoke runs/seed1
    """
    from medrefl_utils.evaluation.scoring import compare_runs
    from medrefl_utils.views.score_tables import comparison_table

    with one_line_errors():
        if as_json and as_csv:
            raise MedReflError("--json and --csv exclude each other: give one of them")
        first, second = find_run(a), find_run(b)
        compared = compare_runs(first, second)
        if as_json:
            print_json(compared.to_dict("records"))
        elif as_csv:
            typer.echo(compared.to_csv(index=False), nl=False)
        else:
            names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
            Console(highlight=False).print(comparison_table(compared, names))


@app.command()
def clean(
    run: Annotated[
        str | None, typer.Argument(help="Name or folder of a run, such as smoke. Default: all runs of the checkout.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the files. Default: only list them.")] = False,
) -> None:
    """List or remove the trees that a run keeps from other settings, and damaged ones; its results stay as they are.

    A run that goes back to such settings takes its trees from there instead of growing them again.

    Example: medrefl clean smoke --remove
    """
    from medrefl_utils.core.run_files import RunFiles
    from medrefl_utils.core.store import lock_run

    with one_line_errors():
        folders = (
            [find_run(run)]
            if run
            else sorted(path for path in (checkout_or_here() / "runs").glob("*") if path.is_dir())
        )
        found = {files: left for files in map(RunFiles, folders) if (left := files.left_shards())}
        for files, left in found.items():
            size = sum(path.stat().st_size for path in left)
            if remove:
                with lock_run(files):
                    for path in left:
                        path.unlink(missing_ok=True)
            typer.echo(f"{files.root}: {len(left)} shards, {size / 1e6:.1f} MB{', removed' if remove else ''}")
        if not found:
            typer.echo("no trees of other settings")


@app.command()
def params(
    stage: Annotated[
        str | None, typer.Argument(help="Number or part of the name of a notebook, such as 4 or dpo. Default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the parameters of a notebook with their defaults and meanings; a profile and --set take these names.

    Example: medrefl params 4
    """
    with one_line_errors():
        found = _parameters(stage)
        if as_json:
            return print_json({name: {p.name: asdict(p) for p in own.values()} for name, own in found.items()})
        console = Console(highlight=False)
        for name, parameters in found.items():
            console.print(_parameters_table(name, parameters))


def _parameters(stage: str | None) -> dict[str, dict[str, Parameter]]:
    """Return {notebook: {name: parameter}} of the stages, or of the one that ``stage`` names."""
    names = [known.name for known in STAGES]
    chosen = names if stage is None else matching_names(stage, names)
    if not chosen or (stage is not None and len(chosen) > 1):
        found = f"can mean {' or '.join(chosen)}" if chosen else f"is not a stage{did_you_mean(stage or '', names)}"
        raise MedReflError(f"params: {stage!r} {found}; expected a number or a part of one of {', '.join(names)}")
    root = repository_root()
    return {name: notebook_parameters(root / "notebooks" / f"{name}.ipynb") for name in chosen}


def _parameters_table(stage: str, parameters: Mapping[str, Parameter]) -> Table:
    from medrefl_utils.runs.parameter_limits import limit_of

    table = Table(title=f"{stage}: parameters", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("parameter", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=22)
    table.add_column("meaning; allowed", overflow="fold")
    for name, parameter in parameters.items():
        limit = limit_of(stage, name)
        allowed = f"; {limit.expected}" if limit else ""
        table.add_row(Text(name), Text(json.dumps(parameter.default)), Text(parameter.meaning + allowed))
    return table


def _defaults() -> dict[str, dict[str, Any]]:
    """Return {notebook: {parameter: default}}; empty outside a checkout."""
    try:
        return {stage: {p.name: p.default for p in own.values()} for stage, own in _parameters(None).items()}
    except MedReflError:
        return {}
