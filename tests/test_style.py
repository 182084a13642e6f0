"""ruff, nbstripout and the rules that a notebook keeps."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from pydantic import ConfigDict, TypeAdapter

from medrefl_utils.runs import STAGES, notebook_parameters
from medrefl_utils.runs.profiles import TYPES

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEXT = {
    "00_tiny_student": "01_tree_rollout",
    "01_tree_rollout": "02_step_valuation",
    "02_step_valuation": "03_pair_construction",
    "03_pair_construction": "04_dpo_lora_4bit",
    "04_dpo_lora_4bit": "05_benchmark_evaluation",
    "05_benchmark_evaluation": "06_report",
    "06_report": "07_ablation",
    "colab": "01_tree_rollout",
}
LINE = re.compile(r"[a-z_]\w*: [\w\[\], \"]+ = .*\S  # \S.*")


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=120)


def code(notebook: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def test_ruff_format() -> None:
    done = tool("ruff", "format", "--check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check() -> None:
    done = tool("ruff", "check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_nbstripout_finds_nothing_to_strip() -> None:
    done = tool("nbstripout", "--verify", "--keep-id", *map(str, NOTEBOOKS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_nbstripout_would_notice(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text="1")], execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    assert tool("nbstripout", "--verify", "--keep-id", str(tmp_path / "n.ipynb")).returncode != 0


def test_the_chains_notebooks_are_there() -> None:
    assert {stage.name for stage in STAGES} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    """Each notebook tells the story and holds no logic."""

    def test_has_no_outputs(self, notebook: Path) -> None:
        assert [cell.source for cell in code(notebook) if cell.outputs or cell.execution_count] == []

    def test_every_cell_has_an_id_of_its_own(self, notebook: Path) -> None:
        ids = [cell["id"] for cell in json.loads(notebook.read_text())["cells"]]
        assert len(set(ids)) == len(ids)

    def test_cells_are_short(self, notebook: Path) -> None:
        # But for the parameters, which papermill wants in one cell.
        cells = [cell for cell in code(notebook) if "parameters" not in cell.metadata.get("tags", [])]
        assert [c.source for c in cells if len([x for x in c.source.splitlines() if x.strip()]) > 20] == []

    def test_defines_nothing(self, notebook: Path) -> None:
        nodes = [node for cell in code(notebook) for node in ast.walk(ast.parse(cell.source))]
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        assert [node.name for node in nodes if isinstance(node, kinds)] == []

    def test_no_cell_is_taken_for_a_magic(self, notebook: Path) -> None:
        # IPython takes a cell whose only line begins with "run" for its magic %run.
        assert [
            c.source for c in code(notebook) if len(c.source.splitlines()) == 1 and c.source.startswith("run:")
        ] == []

    def test_begins_with_a_title_and_says_what_goes_in_and_out(self, notebook: Path) -> None:
        first = nbformat.read(notebook, as_version=4).cells[0]
        assert first.cell_type == "markdown" and first.source.startswith("# ")

    def test_ends_with_a_link_to_the_next_one(self, notebook: Path) -> None:
        if notebook.stem not in NEXT:
            return
        last = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "markdown"][-1]
        following = ROOT / "notebooks" / f"{NEXT[notebook.stem]}.ipynb"
        name = nbformat.read(following, as_version=4).cells[0].source.split("\n")[0].removeprefix("# ")
        assert f"Next: [{name}]({following.name}) " in last.split("\n")[-1]

    def test_parameters_are_one_line_each_with_type_and_meaning(self, notebook: Path) -> None:
        tagged = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
        assert len(tagged) == 1
        for line in tagged[0].source.splitlines():
            if line and not line.startswith("#"):
                assert LINE.fullmatch(line), line
                name, rest = line.split(":", 1)
                assert "|" not in rest.split("=")[0] and "#" not in rest.split("  # ")[0], line

    def test_defaults_are_of_their_types_and_papermill_reads_the_same(self, notebook: Path) -> None:
        ours, theirs = notebook_parameters(notebook), papermill.inspect_notebook(notebook)
        assert list(ours) == list(theirs)
        for name, parameter in ours.items():
            kind = eval(parameter.annotation, {}, TYPES)
            TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(parameter.default)
            assert ast.literal_eval(theirs[name]["default"]) == parameter.default
            assert theirs[name]["inferred_type_name"] == parameter.annotation
            assert theirs[name]["help"], name

    def test_a_stage_of_the_chain_takes_the_run_records_itself_and_finds_what_it_reads(self, notebook: Path) -> None:
        stage = next((stage for stage in STAGES if stage.name == notebook.stem), None)
        if stage is None:
            return
        sources = "\n".join(cell.source for cell in code(notebook))
        assert notebook_parameters(notebook)["run"].default == "runs/demo"
        assert re.search(rf"core\.record_stage\(\s*files,\s*\"{stage.name}\"", code(notebook)[-1].source)
        # Stage 01 reads nothing; it may call it all the same, for the run's date.
        assert f'runs.make_missing_inputs("{stage.name}", run' in sources or not stage.reads
