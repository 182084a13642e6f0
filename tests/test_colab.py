"""The Colab notebook from start to end, as papermill runs it here; and the badges that lead there."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import nbclient
import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from tests import toy

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
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


def test_the_colab_notebook_runs_the_smoke_profile_and_shows_its_report(root: Path) -> None:
    run = root / "runs" / "test_colab"
    shutil.rmtree(run, ignore_errors=True)
    small = ["01_tree_rollout.n_questions=16", "05_benchmark_evaluation.n_questions=24"]
    small += ["03_pair_construction.max_reflection_pairs=4", "03_pair_construction.n_evaluation_questions=100"]
    small += ["05_benchmark_evaluation.self_correction_questions=8"]
    parameters = {"profile": "smoke", "run": "test_colab", "overrides": small}
    try:
        book = papermill.execute_notebook(
            root / "notebooks" / "colab.ipynb", None, parameters, cwd=root, kernel_name="python3", progress_bar=False
        )
        said = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
        assert "fits in NF4" in said and "million parameters" in " ".join(
            said.split()
        )  # the doctor, with the profile's model
        assert "06_report … done in" in said and "Accuracy on clinic" in said
        shown = book.cells[-1].outputs[0].data["text/html"]
        assert shown.startswith("<div><iframe sandbox srcdoc=") and "Med-REFL run &lt;em&gt;test_colab" in shown
        assert (run / "report.html").is_file()
    finally:
        shutil.rmtree(run, ignore_errors=True)


def test_a_machine_that_a_run_would_stop_on_ends_it_before_the_chain(root: Path, tmp_path: Path) -> None:
    profile = root / "params" / "test_colab.yaml"
    profile.write_text("shared:\n  model: nobody/none-7B\n")
    try:
        with pytest.raises(PapermillExecutionError, match="CalledProcessError"):
            papermill.execute_notebook(
                root / "notebooks" / "colab.ipynb",
                tmp_path / "out.ipynb",
                {"profile": "test_colab", "run": "test_colab_none"},
                cwd=root,
                kernel_name="python3",
                progress_bar=False,
            )
        cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
        said = " ".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))
        assert "no such folder, not in the hub's local cache" in " ".join(said.split())
        assert not (root / "runs" / "test_colab_none").exists()
    finally:
        profile.unlink()


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
    book = nbformat.read(ROOT / "notebooks/colab.ipynb", as_version=4)
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
