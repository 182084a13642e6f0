"""What the modules of the command line share: options, the checkout's root, and errors as one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.store import plain_value
from medrefl_utils.runs.execution import CONTROL
from medrefl_utils.runs.profiles import did_you_mean
from medrefl_utils.runs.stages import repository_root

Profile = Annotated[
    Path, typer.Argument(help="YAML profile with the parameters of the run, such as params/smoke.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one parameter of the profile; VALUE is YAML. SECTION is 'shared', a notebook's number, or a "
        "part of its name. Repeat the option for more parameters. Example: --set shared.seed=1 --set 04.beta=0.2",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with every column instead of a table.")]


def new_app() -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def checkout_or_here() -> Path:
    """Return the checkout that the current folder lies in, else the current folder."""
    here = Path.cwd()
    try:
        root = repository_root()
    except MedReflError:
        return here
    return root if here.is_relative_to(root) else here


def at_root(profile: Path) -> tuple[Path, Path]:
    """Change to the checkout's root; return the profile's path relative to it, and the root."""
    profile, root = Path(os.path.abspath(profile)), repository_root()
    os.chdir(root)
    return (profile.relative_to(root) if profile.is_relative_to(root) else profile), root


def find_run(name: str) -> Path:
    """Return the folder of a run, given by its path or by its name below ``runs/``.

    Raises:
        MedReflError: there is no such folder; with the nearest name.
    """
    runs = checkout_or_here() / "runs"
    folder = next((path for path in (Path(name), runs / name) if path.is_dir()), None)
    if folder is None:
        known = [path.parent.name for path in sorted(runs.glob("*/manifest.json"))]
        raise MedReflError(f"{name}: no such run{did_you_mean(name, known)}; medrefl list shows all runs")
    return folder


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a value as JSON; a NaN becomes null."""
    typer.echo(json.dumps(plain_value(value), indent=2, ensure_ascii=False))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a MedReflError of the block as one line, and exit with code 2."""
    try:
        yield
    except MedReflError as error:
        # The message may quote line ends and terminal control codes from a file.
        line = " ".join(CONTROL.sub("", str(error)).split())
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"error: {line}", style="red"))
        raise typer.Exit(2) from None
