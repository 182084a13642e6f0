"""What the README, CONTRIBUTING and CHANGELOG name exists: files, commands, options, parameters, targets, code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from medrefl_utils.runs import STAGES, load_profile, notebook_parameters
from medrefl_utils.runs.cli import app
from medrefl_utils.runs.renamed_parameters import RENAMED
from tests.test_refusals import CASES

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/measurements.md", "notebooks/serving.md")
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
NOTEBOOKS = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
COMMANDS = typer.main.get_command(app).commands
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = ("notebooks", "params", "tests", "medrefl_utils", ".ci")


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL)


def spans(page: str) -> list[str]:
    """The inline code of a page; a span may go over a line's end. Columns of old names are left out."""
    text = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    if page == "CHANGELOG.md":
        text = re.sub(r"^\| `[^|]*\| (?=`)|^(\| [^|]*) \| `[^|]*(?=\|)", r"\1", text, flags=re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def shell_lines() -> list[tuple[str, str]]:
    """Every line that a reader may type: of the shell blocks, and the inline code that begins like a command."""
    lines = []
    for page in PAGES:
        lines += [(page, line) for block in blocks(page, "sh") for line in block.splitlines()]
        lines += [(page, span) for span in spans(page) if re.match(r"(\.venv/bin/|medrefl |make |MEDREFL_\w+=)", span)]
    return lines


def typed(program: str) -> Iterator[tuple[str, list[str]]]:
    """The words after a program's name, for every line that calls it."""
    for page, line in shell_lines():
        words = shlex.split(line, comments=True)
        names = [i for i, word in enumerate(words) if Path(word).name == program]
        if names and all("=" in word for word in words[: names[0]]):
            yield f"{page}: {line}", words[names[0] + 1 :]


def case_id(value: object) -> str | None:
    return value if isinstance(value, str) else None


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 200


def test_the_two_commands_are_there() -> None:
    lines = [line.split("#")[0].strip() for block in blocks("README.md", "sh") for line in block.splitlines()]
    assert {"make run", "make test"} <= set(lines)


@pytest.mark.parametrize("page", PAGES)
def test_every_local_link_and_anchor_leads_somewhere(page: str) -> None:
    headings = re.findall(r"^#+ (.*)$", TEXTS[page], re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)\s]+)\)", TEXTS[page])
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("http"):
            assert (ROOT / page).parent.joinpath(link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_this_repository_exists(page: str) -> None:
    words = [word for span in spans(page) for word in span.split()]
    words += [
        word for block in blocks(page, "sh") for line in block.splitlines() for word in line.split("#")[0].split()
    ]
    paths = [word for word in words if re.match(rf"({'|'.join(map(re.escape, FOLDERS))})/[\w./*-]+$", word)]
    assert paths
    for path in paths:
        assert "NAME" in path or any(ROOT.glob(path)), path


@pytest.mark.parametrize(("where", "words"), [*typed("medrefl")], ids=case_id)
def test_every_command_exists_and_has_these_arguments(where: str, words: list[str]) -> None:
    words = [word.strip("[]") for word in words]
    if not words[0].islower():  # a name in capitals: any command
        return
    assert words[0] in COMMANDS, where
    command, waiting = COMMANDS[words[0]], words[1:]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = {name: p for p in command.params if p.param_type_name == "option" for name in p.opts}
    given = 0
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            given += 1
            continue
        assert word in options, where
        if not options[word].is_flag:
            assert waiting, where
            value = waiting.pop(0)
            if word == "--set":
                check_override(value)
    if words[1:]:
        assert sum(argument.required for argument in arguments) <= given <= len(arguments), where


def check_override(text: str) -> None:
    section, _, key = text.partition("=")[0].partition(".")
    parameters = {stem: notebook_parameters(path) for stem, path in NOTEBOOKS.items()}
    known = parameters[section] if section != "shared" else {name for own in parameters.values() for name in own}
    assert key in known, text


@pytest.mark.parametrize("page", PAGES)
def test_every_parameter_named_with_its_notebook_exists(page: str) -> None:
    for span in spans(page):
        if found := re.match(r"(?:--set )?(\d\d_\w+|shared)\.(\w+)", span):
            check_override(f"{found[1]}.{found[2]}")


@pytest.mark.parametrize("block", blocks("README.md", "yaml"), ids=lambda block: block.split()[0])
def test_every_key_of_the_profile_is_accepted(block: str, tmp_path: Path) -> None:
    for name in re.findall(r"\w+\.jsonl", block):
        (tmp_path / name).touch()
    (tmp_path / "mine.yaml").write_text(block)
    profile = load_profile(tmp_path / "mine.yaml", NOTEBOOKS, root=tmp_path)
    sections = yaml.safe_load(block)
    assert profile.run == sections.pop("shared")["run"]
    for stage, values in sections.items():
        assert values.items() <= profile.parameters[stage].items()


def test_the_python_example_runs_and_its_comments_are_right(tmp_path: Path) -> None:
    (example,) = blocks("README.md", "python")
    assert len([line for line in example.splitlines() if line]) <= 6
    code = f"{example}\nprint(*step_values(tree).iloc[1:3], *paths(tree)['value'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0.0 -1.0 0.5 -0.5 -1.0"
    assert "V of the steps 1 and 2: 0 and -1" in example and "0.5, -0.5 and -1" in example


@pytest.mark.parametrize(("where", "words"), [*typed("make")], ids=case_id)
def test_every_target_and_variable_of_make_exists(where: str, words: list[str]) -> None:
    for word in words:
        name, is_variable, value = word.partition("=")
        if is_variable:
            assert f"$({name})" in MAKEFILE, where
            assert name != "NAME" or (ROOT / f"tests/benchmarks/bench_{value}.py").is_file(), where
            if name == "ARGS":
                for override in re.findall(r"--set (\S+)", value):
                    check_override(override)
        else:
            assert re.search(rf"^{re.escape(word)}:", MAKEFILE, re.MULTILINE), where


def test_every_module_that_is_run_by_name_exists() -> None:
    modules = re.findall(r"python -m (tests[\w.]+)", "\n".join(TEXTS.values()))
    assert modules
    for module in modules:
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module


def test_the_readmes_results_are_among_the_measurements() -> None:
    rows = re.findall(r"^\| (sampled|greedy)\b[^|]*\| ([^|]+\|[^|]+\|[^|]+) \|$", TEXTS["README.md"], re.MULTILINE)
    assert len(rows) == 2
    for protocol, figures in rows:
        assert f"| 0 | {protocol} | {figures} |" in TEXTS["notebooks/measurements.md"]


def test_the_changelog_lists_every_renamed_parameter() -> None:
    rows = re.findall(r"^\| (\d\d_\w+) \| `(\w+)` \| `(\w+)` \|$", TEXTS["CHANGELOG.md"], re.MULTILINE)
    assert rows == [(notebook, old, new) for notebook, names in RENAMED.items() for old, new in names.items()]


def test_every_test_that_holds_a_promise_of_security_exists() -> None:
    rows = re.findall(r"^\| [^|]+ \| (`tests/.*) \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 8
    cases = [case[0] for case in CASES]
    for row in rows:
        files = [ROOT / name for name in re.findall(r"`(tests/\w+\.py)`", row)]
        sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
        for name in re.findall(r"`([\w-]+)…?`", row):
            assert f"def {name}" in sources or any(case.startswith(name) for case in cases), name


def test_the_versions_and_addresses_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert f"## {PROJECT['version']}" in TEXTS["CHANGELOG.md"]
    assert f"git clone {PROJECT['urls']['Repository']}\n" in TEXTS["README.md"]
    title = citation["preferred-citation"]["title"]
    assert f"{{{title}}}" in TEXTS["README.md"]


@pytest.mark.parametrize("picture", sorted((ROOT / "notebooks/images").iterdir()), ids=lambda path: path.name)
def test_every_picture_is_small_and_used(picture: Path) -> None:
    assert picture.stat().st_size < 100_000
    assert f"notebooks/images/{picture.name}" in TEXTS["README.md"]
    assert f"`notebooks/images/{picture.name}`" in TEXTS["notebooks/measurements.md"]
