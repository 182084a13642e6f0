"""The command as a user types it, in a checkout whose six notebooks are tiny: what is printed, and the exit codes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from medrefl_utils import __version__
from medrefl_utils.runs import DEFAULT_STAGES, STAGES
from medrefl_utils.runs.cli import app
from tests import toy

COMMAND = [sys.executable, "-m", "medrefl_utils"]
ROOT = Path(__file__).parents[1]

WRITE_SCORES = """\
import pandas as pd
from medrefl_utils.core import SCORES, SELF_CORRECTION, write_table
rows = [
    dict(source='clinic', protocol='sampled', model=m, n=1000, runs=1, accuracy=a, gain=g, gain_low=0.05,
         gain_high=0.09, mcnemar_p=1e-9, fixed=100, broken=30, accuracy_low=a, accuracy_high=a, accuracy_published=a,
         unreadable=0.0, mean_tokens=50.0, clusters=1000, conflict=0.0, mean_tokens_right=50.0, mean_tokens_wrong=50.0,
         accuracy_judged=float('nan'), tokens=50000, seconds=9.0, detectable=0.02, mcnemar_runs=[1e-9], holm_p=1e-9)
    for m, a, g in (('base', 0.60, float('nan')), ('medrefl', 0.67, 0.07))
]
write_table(files.scores, pd.DataFrame(rows), SCORES)"""
WRITE_CLAIMS = """rates = [
    dict(model=m, figure='repair rate', n=200, share=s, low=s, high=s, difference=s - 0.4, difference_low=0.01,
         difference_high=0.2)
    for m, s in (('base', 0.4), ('medrefl', 0.5))
]
write_table(files.self_correction, pd.DataFrame(rates), SELF_CORRECTION)"""


def tiny_checkout(root: Path) -> Path:
    """Notebooks of the real names; each writes its artifacts, 05 real scores and claims."""
    for stage in STAGES:
        cells = []
        for artifact in stage.writes:
            text = (
                f"files.{artifact}.parent.mkdir(parents=True, exist_ok=True)\nfiles.{artifact}.write_text('{artifact}')"
            )
            cells.append({"scores": WRITE_SCORES, "self_correction": WRITE_CLAIMS}.get(artifact, text))
        outputs = ", ".join(f"files.{artifact}" for artifact in stage.writes)
        cells += [
            "if fail:\n    raise MedReflError('row 3: [bold]no gold[/bold] letter')",
            "print('told the notebook')",
        ]
        cells += [f"record_stage(files, '{stage.name}', [{outputs}], {{}})"]
        parameters = 'run: str = "runs/interactive"  # folder\nfail: bool = False  # raise\nseed: int = 0  # any'
        toy.notebook(root / "notebooks" / f"{stage.name}.ipynb", parameters, cells)
    (root / "params").mkdir()
    (root / "params/tiny.yaml").write_text("shared:\n  run: t\n")
    return root


def medrefl(root: Path, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "150"}
    return subprocess.run(
        [*COMMAND, *words], cwd=root, capture_output=True, text=True, timeout=timeout, env=environment
    )


@pytest.fixture(scope="module")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    root = tiny_checkout(tmp_path_factory.mktemp("tiny"))
    return root, medrefl(root, "run", "params/tiny.yaml")


@pytest.fixture
def finished(_finished: tuple[Path, object], tmp_path: Path) -> Path:
    return shutil.copytree(_finished[0], tmp_path / "checkout")


def test_a_run_ends_with_the_reports_path_and_the_table(
    _finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, done = _finished
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    stages = [line for line in lines if " … done in " in line]
    assert [line.split()[0] for line in stages] == list(DEFAULT_STAGES)
    report = lines.index("report: runs/t/report.html")
    assert all(line not in lines[report:] for line in stages), "the table is the last thing"
    assert re.search(
        r"sampled .* 60\.0 .* 67\.0 .* \+7\.0 \[\+5\.0, \+9\.0\] .* 1\.0e-09 .* 1,000", "\n".join(lines[report:])
    )
    assert re.search(r"repair rate .* 40\.0 .* 50\.0 .* \+10\.0 \[\+1\.0, \+20\.0\]", done.stdout)
    assert "told the notebook" not in done.stdout, "a notebook's text stays in the notebook"
    assert "told the notebook" in (root / "runs/t/notebooks/06_report.ipynb").read_text()


def test_a_second_run_executes_nothing_within_seconds(finished: Path) -> None:
    started = time.monotonic()
    done = medrefl(finished, "run", "params/tiny.yaml")
    assert done.returncode == 0 and time.monotonic() - started < 20
    assert done.stdout.count("unchanged, skipped") == 6 and "done in" not in done.stdout
    assert "+7.0" in done.stdout, "the table is shown all the same"


def test_dry_run_prints_stage_decision_and_reason(finished: Path) -> None:
    done = medrefl(finished, "run", "params/tiny.yaml", "--dry-run", "--set", "05_benchmark_evaluation.seed=1")
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert ["04_dpo_lora_4bit", "skip", "unchanged"] in rows
    assert ["05_benchmark_evaluation", "run", "seed: 0 -> 1"] in rows
    assert ["06_report", "run", "unless 05_benchmark_evaluation writes the same as before"] in rows
    assert done.returncode == 0


def test_it_runs_from_a_folder_below_the_root(finished: Path) -> None:
    done = medrefl(finished / "params", "run", "tiny.yaml")
    assert done.returncode == 0 and done.stdout.count("unchanged, skipped") == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["params/none.yaml"], "error: params/none.yaml: cannot be read: No such file or directory"),
        (["tiny"], "error: tiny: cannot be read: No such file or directory (did you mean params/tiny.yaml?)"),
        (["params/tiny.yaml", "--set", "shared.sed=1"], "error: --set shared.sed: no notebook has the parameter"),
        (["params/tiny.yaml", "--set", "4.sed=1"], "error: --set 4.sed: unknown key 'sed' (did you mean 'seed'?)"),
        (["params/tiny.yaml", "--set", "shared.seed=010"], "error: --set shared.seed: 010 is 8 in YAML (octal): write"),
        (["params/tiny.yaml", "--only", "07"], "error: --only 07: no such stage"),
        (["params/tiny.yaml", "--only", "paint"], "error: --only paint: no such stage: expected a number, a part of"),
        (["params/tiny.yaml", "--from", "02", "--set", "shared.run=new"], "error: 02_step_valuation reads runs/new/"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_code_2(finished: Path, words: list[str], message: str) -> None:
    done = medrefl(finished, "run", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1
    assert done.stdout == "" and not (finished / "runs/new").exists()


def test_a_failed_stage_tells_its_own_error_the_notebook_and_exit_code_1(finished: Path) -> None:
    done = medrefl(finished, "run", "params/tiny.yaml", "--set", "03_pair_construction.fail=true")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "03_pair_construction: MedReflError: row 3: [bold]no gold[/bold] letter",
        "executed notebook: runs/t/notebooks/03_pair_construction.ipynb",
    ]
    assert "row 3" in (finished / "runs/t/notebooks/03_pair_construction.ipynb").read_text()
    assert "04_dpo" not in done.stdout and "+7.0" not in done.stdout


def test_a_programs_error_shows_the_frames_that_matter(finished: Path) -> None:
    path = finished / "notebooks/06_report.ipynb"
    toy.notebook(path, 'run: str = "r"  # folder\nseed: int = 0  # any', ["import json", "json.loads('nonsense')"])
    done = medrefl(finished, "run", "params/tiny.yaml")
    assert done.returncode == 1
    assert "json.loads('nonsense')" in done.stderr
    assert "06_report: JSONDecodeError: Expecting value: line 1 column 1 (char 0)" in done.stderr
    assert len(done.stderr.splitlines()) < 40


def test_ctrl_c_exits_with_130_and_a_line(finished: Path) -> None:
    path = finished / "notebooks/06_report.ipynb"
    toy.notebook(
        path, 'run: str = "r"  # folder\nseed: int = 0  # any', ["Path('here').touch()\nimport time; time.sleep(99)"]
    )
    process = subprocess.Popen(
        [*COMMAND, "run", "params/tiny.yaml"], cwd=finished, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's child would ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (finished / "here").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped by Ctrl-C: the same command resumes the run"
    assert "Traceback" not in errors


def test_outside_a_checkout_the_packages_own_is_used(tmp_path: Path) -> None:
    done = medrefl(tmp_path, "run", "none.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {tmp_path}/none.yaml: cannot be read: No such file or directory\n",
    )


def test_version_and_help(tmp_path: Path) -> None:
    assert medrefl(tmp_path, "--version").stdout == f"medrefl {__version__}\n"
    text = medrefl(tmp_path, "run", "--help").stdout
    assert all(option in text for option in ("--set", "--from", "--only", "--force", "--dry-run"))


def test_every_command_has_an_example_and_every_option_a_help_text() -> None:
    for name, command in typer.main.get_command(app).commands.items():
        assert re.search(rf"\b(medrefl|medrefl_utils) {name}\b", command.help.partition("Example:")[2]), name
        assert all(len(parameter.help or "") > 20 for parameter in command.params), name


def test_a_run_that_succeeds_writes_nothing_to_stderr(
    _finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    # A kernel that is interrupted as it is shut down says "KeyboardInterrupt caught in kernel" there.
    assert _finished[1].stderr == ""


def test_starting_costs_no_model_import(tmp_path: Path) -> None:
    code = (
        "import sys, medrefl_utils.runs.cli\n"
        "print(sorted({'torch', 'transformers', 'trl', 'papermill'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


def test_a_profile_names_the_stages_that_run(finished: Path) -> None:
    (finished / "params/pairs.yaml").write_text("stages: [01_tree_rollout, 02_step_valuation]\nshared:\n  run: p\n")
    done = medrefl(finished, "run", "params/pairs.yaml")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if " … done in " in line] == [
        "01_tree_rollout",
        "02_step_valuation",
    ]
    assert "McNemar" not in done.stdout and not (finished / "runs/p/scores.parquet").exists()
    (finished / "params/pairs.yaml").write_text("stages: [03_pair_constructions]\nshared:\n  run: p\n")
    done = medrefl(finished, "run", "params/pairs.yaml")
    assert done.returncode == 2
    assert (
        "'stages' names '03_pair_constructions', which is not a notebook (did you mean '03_pair_construction'?)"
        in done.stderr
    )
    (finished / "params/pairs.yaml").write_text("stages: 3\nshared:\n  run: p\n")
    assert "'stages' holds 3, expected a list of notebooks" in medrefl(finished, "run", "params/pairs.yaml").stderr


def test_two_chains_do_not_work_in_one_folder_and_a_dead_ones_lock_is_free(finished: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from medrefl_utils.core import RunFiles, lock_run\n"
        "with lock_run(RunFiles(Path('runs/t'))):\n    print('mine', flush=True)\n    time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=finished, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "mine\n"
        second = medrefl(finished, "run", "params/tiny.yaml")
        assert second.returncode == 2 and len(second.stderr.strip().splitlines()) == 1
        assert re.search(rf"runs/t: process {holder.pid} on .+, since .+, uses this run: wait", second.stderr)
        assert medrefl(finished, "run", "params/tiny.yaml", "--set", "shared.run=u", "--dry-run").returncode == 0
    finally:
        holder.kill()
        holder.wait()
    assert medrefl(finished, "run", "params/tiny.yaml").returncode == 0
