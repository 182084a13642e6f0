"""The Colab notebook from start to end, as papermill runs it here; and the badges that lead there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from contextlib import suppress
from pathlib import Path

import nbclient
import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from medrefl_utils.runs import notebook_parameters
from tests import toy

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = ROOT / "notebooks" / "colab.ipynb"
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def sources(notebook: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_opens_on_colab_and_fetches_the_package_from_there(notebook: Path) -> None:
    here = ADDRESS.replace("https://github.com", "https://colab.research.google.com/github")
    title = sources(notebook)[0]
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({here}/blob/main/notebooks/{notebook.name})"
    assert title.splitlines()[2] == badge
    named = set(re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", "\n".join(sources(notebook))))
    assert named == {ADDRESS}  # what is cloned is what the badge opens


def test_every_setting_is_a_field_of_the_form_and_says_what_it_means() -> None:
    cells = [source for source in sources(COLAB) if source.startswith("# @title")]
    assert (
        len(cells) == sum(cell.cell_type == "code" for cell in nbformat.read(COLAB, as_version=4).cells) - 1
    )  # imports
    title, *lines = cells[0].splitlines()
    assert title == "# @title Settings" and len(lines) == 2 * len(notebook_parameters(COLAB))
    for meaning, field in zip(lines[::2], lines[1::2], strict=True):
        assert re.fullmatch(r"# @markdown [A-Z].+\.", meaning), meaning
        name, given = field.split(":")[0], field.partition("  # @param ")[2]
        parameter = notebook_parameters(COLAB)[name]
        if given.startswith("["):
            assert parameter.default in json.loads(given)
            assert all((ROOT / "params" / f"{choice}.yaml").is_file() for choice in json.loads(given))
        else:
            kinds = {"str": "string", "bool": "boolean", "int": "integer", "list[str]": "raw"}
            assert given == f'{{type: "{kinds[parameter.annotation]}"}}'


@pytest.mark.timeout(1200)  # a chain of six kernels: minutes where other work has the cores
def test_the_colab_notebook_runs_a_profile_of_its_own_and_shows_its_report(root: Path) -> None:
    """The profile for a T4, with a local model, the clinic, fewer questions, and what a CPU computes with."""
    run = root / "runs" / "test_colab"
    shutil.rmtree(run, ignore_errors=True)
    here = ["shared.model=medrefl_utils/models/tiny_student", "04.compute_dtype=auto", "04.optimizer=adamw"]
    here += ["01.questions=clinic", "01.n_questions=16", "05.questions=clinic", "05.n_questions=24"]
    here += ["03.max_reflection_pairs=4", "05.self_correction_questions=4", "05.max_new_tokens=128"]
    parameters = {"profile": "colab_t4_session", "run": "test_colab", "overrides": here, "probe": 3}
    try:
        book = papermill.execute_notebook(COLAB, None, parameters, cwd=root, kernel_name="python3", progress_bar=False)
        said = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
        # The doctor, with the profile's model; the plan, before anything runs; the chain.
        assert "fits in NF4" in said and "million parameters" in " ".join(said.split())
        predicted, begun = said.index("predicted cost"), said.index("01_tree_rollout … done in")
        stages = [line.split()[0] for line in said[predicted:begun].splitlines() if re.match(r" *(0\d_|all )", line)]
        assert stages[:5] == [
            "01_tree_rollout", "03_pair_construction", "04_dpo_lora_4bit", "05_benchmark_evaluation", "all",
        ]  # fmt: skip
        assert "06_report … done in" in said and "Accuracy on clinic" in said
        shown = book.cells[-1].outputs[0].data["text/html"]
        assert shown.startswith("<div><iframe sandbox srcdoc=") and "Med-REFL run &lt;em&gt;test_colab" in shown
        assert (run / "report.html").is_file()
    finally:
        shutil.rmtree(run, ignore_errors=True)


def test_a_machine_that_a_run_would_stop_on_ends_it_before_the_chain(root: Path, tmp_path: Path) -> None:
    parameters = {"run": "test_colab_none", "overrides": ["shared.model=nobody/none-7B"]}
    with pytest.raises(PapermillExecutionError, match="CalledProcessError"):
        papermill.execute_notebook(
            COLAB, tmp_path / "out.ipynb", parameters, cwd=root, kernel_name="python3", progress_bar=False
        )
    assert "no such folder, not in the hub's local cache" in " ".join(said_by(tmp_path / "out.ipynb").split())
    assert not (root / "runs" / "test_colab_none").exists()


def said_by(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def set_up(repository: str, folder: Path) -> str:
    """Execute the cells up to the installation in an empty folder; return what they print, and their error."""
    book = nbformat.read(COLAB, as_version=4)
    ids = [cell["id"] for cell in book.cells]
    book.cells = book.cells[: ids.index("colab-04") + 1]
    book.cells.insert(ids.index("colab-04"), nbformat.v4.new_code_cell(f"repository = {repository!r}"))
    with suppress(nbclient.exceptions.CellExecutionError):
        nbclient.execute(book, cwd=str(folder), kernel_name="python3")
    nbformat.write(book, folder / "out.ipynb")
    errors = [output for output in book.cells[-1].outputs if output.output_type == "error"]
    return said_by(folder / "out.ipynb") + "".join(error["ename"] for error in errors)


def test_a_missing_repository_gives_gits_own_words(tmp_path: Path) -> None:
    said = set_up(str(tmp_path / "nowhere"), tmp_path)
    assert said.startswith("fatal: ") and "nowhere' does not exist" in said and said.endswith("CalledProcessError")


def test_the_address_that_the_form_gives_is_cloned(tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "fork")], check=True)
    assert set_up((tmp_path / "fork").as_uri(), tmp_path).strip() == str(tmp_path / "medrefl")
    assert (tmp_path / "medrefl/notebooks/colab.ipynb").is_file()


def test_one_command_of_the_readme_changes_the_address_everywhere(tmp_path: Path) -> None:
    command = re.search(r"`(git grep -l medrefl/medrefl .+?)`", (ROOT / "README.md").read_text())[1]
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path)], check=True)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", dirs_exist_ok=True)
    subprocess.run(command.replace("\\|", "|"), shell=True, check=True, cwd=tmp_path)
    assert subprocess.run(["git", "grep", "-l", "medrefl/medrefl"], cwd=tmp_path, stdout=subprocess.PIPE).stdout == b""
    changed = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    assert changed == "https://github.com/YOU/medrefl"
    for notebook in (tmp_path / "notebooks").glob("*.ipynb"):
        named = set(re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", "\n".join(sources(notebook))))
        assert named == {changed} and "github/YOU/medrefl/blob" in sources(notebook)[0]


@pytest.mark.parametrize("notebook", [path for path in NOTEBOOKS if path.stem != "colab"], ids=lambda path: path.stem)
def test_each_badge_installs_the_same_and_never_asks_for_a_name(notebook: Path) -> None:
    address = ADDRESS.removeprefix("https://github.com/").split("/")[1]
    clone, pip, _ = [line for line in sources(notebook)[1].splitlines() if "get_ipython()" in line]
    # git asks for a user's name where a repository is missing, and would wait for ever.
    assert f'"GIT_TERMINAL_PROMPT=0 git clone --quiet --depth 1 {ADDRESS}"' in clone
    assert f"pip install --quiet './{address}[colab]'" in pip


def test_runs_may_lie_behind_a_link_as_on_drive(tmp_path: Path) -> None:
    root, drive = toy.checkout(tmp_path / "checkout"), tmp_path / "drive"
    drive.mkdir()
    (root / "runs").symlink_to(drive)
    assert toy.run(root)[0] == [stage.name for stage in toy.STAGES]
    assert (drive / "t" / "manifest.json").is_file()
    assert toy.run(root)[0] == [], "after a disconnect nothing runs twice"


USERDATA = """
class SecretNotFoundError(Exception): ...
class NotebookAccessError(Exception): ...
class TimeoutException(Exception): ...
def get(name):
    if {found!r}:
        return {found!r}
    raise {error}(name)
"""


@pytest.mark.parametrize(
    ("found", "error", "token"),
    [("hf_secret", "", "hf_secret"), ("", "SecretNotFoundError", "None"), ("", "NotebookAccessError", "None")],
    ids=["secret", "no-secret", "no-access"],
)
def test_colabs_secret_reaches_the_processes_that_the_notebook_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, error: str, token: str
) -> None:
    """A google.colab of ours, which the kernel has imported, as Colab's has; the token is never printed."""
    package = tmp_path / "path/google/colab"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "userdata.py").write_text(USERDATA.format(found=found, error=error))
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("import google.colab\n")
    book = nbformat.read(COLAB, as_version=4)
    cells = {cell["id"]: cell for cell in book.cells}
    child = "import os; print(os.environ.get('HF_TOKEN'))"
    child = f"print(subprocess.check_output([sys.executable, '-c', {child!r}], text=True))"
    book.cells = [cells["colab-01"], cells["colab-secret"], nbformat.v4.new_code_cell(child)]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}:{ROOT}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    nbclient.execute(book, cwd=str(tmp_path), kernel_name="python3")
    said = [cell.outputs[0]["text"].strip() for cell in book.cells[1:]]
    assert said == [f"HF_TOKEN is {'set' if found else 'not set'}", token]
