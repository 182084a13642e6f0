"""The house: an import points down only (the contract is in pyproject.toml), and each room shows its public names."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pydoc
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent.name for path in (ROOT / "medrefl_utils").glob("*/__init__.py"))
LIGHT = ("core", "exam", "trees", "pairs", "knowledge", "training", "evaluation", "models", "views", "runs")
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "matplotlib", "papermill", "IPython", "ray")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_every_import_points_down() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


def test_the_contract_notices_an_import_that_points_up_and_a_module_in_no_room(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "medrefl_utils", tmp_path / "medrefl_utils")
    values = tmp_path / "medrefl_utils/trees/values.py"
    values.write_text(values.read_text() + "\nimport torch\nfrom medrefl_utils.views import plots\n")
    (tmp_path / "medrefl_utils/utils.py").write_text("")
    done = lint(tmp_path)
    assert done.returncode != 0
    for found in (
        "medrefl_utils.trees.values -> medrefl_utils.views.plots",
        "medrefl_utils.trees.values -> torch",
        "- medrefl_utils.utils",
    ):
        assert found in done.stdout


def test_modules_stay_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "medrefl_utils").rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


@pytest.fixture(params=ROOMS)
def room(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"medrefl_utils.{request.param}")


def test_every_public_name_resolves_to_what_its_own_module_holds(room: ModuleType) -> None:
    assert room.__all__ and set(room.__all__) <= set(dir(room))
    for name in room.__all__:
        found = getattr(room, name)
        if inspect.isfunction(found) or inspect.isclass(found):
            assert found.__module__.startswith("medrefl_utils"), f"{name} is of {found.__module__}"


def test_a_public_name_is_a_submodule_only_if_it_is_meant_to_be_one(room: ModuleType) -> None:
    """``from medrefl_utils.views import report`` must not be a function before and a module after some import."""
    folder = Path(str(room.__file__)).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    for name in set(room.__all__) & modules:
        assert getattr(room, name) is importlib.import_module(f"{room.__name__}.{name}"), name


def test_a_public_name_comes_from_one_module_alone(room: ModuleType) -> None:
    """Of two modules that offer the same name, the later one would hide the earlier one without a word."""
    tree = ast.parse(Path(str(room.__file__)).read_text())
    offered = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "submod_attrs"
        for names in ast.literal_eval(node.value).values()
        for name in names
    ]
    assert offered and sorted(offered) == sorted(set(offered))


def test_help_lists_each_public_name(room: ModuleType) -> None:
    text = pydoc.plain(pydoc.render_doc(room))
    assert [name for name in room.__all__ if name not in text] == []
    first = (room.__doc__ or "").splitlines()[0]
    assert first.endswith(".") and "In:" in room.__doc__ and "Out:" in room.__doc__, first


def test_every_public_function_and_class_says_what_it_is(room: ModuleType) -> None:
    callables = {name: found for name in room.__all__ if callable(found := getattr(room, name))}
    assert [name for name, found in callables.items() if not (found.__doc__ or "").strip()] == []


@pytest.mark.parametrize("name", LIGHT)
def test_a_room_is_entered_in_a_moment_and_loads_nothing_heavy(name: str) -> None:
    """The best of three, as another process may take the processor; half a second is a tenth of what torch takes."""
    code = (
        "import sys, time; start = time.perf_counter()\n"
        f"import medrefl_utils.{name}\n"
        f"print(time.perf_counter() - start, *sorted(set({HEAVY}) & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        taken, *heavy = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
        assert heavy == []
        seconds.append(float(taken))
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize(
    ("room", "names"),
    [
        ("trees", ("step_values", "paths", "value_table", "rank_corrections", "locate_errors")),
        ("pairs", ("reasoning_pairs", "check_reflection", "reflection_pairs")),
        ("knowledge", ("read_graph", "link_entities", "shortest_paths", "choose_paths", "write_clinic_graph")),
        ("evaluation", ("PLACES", "mcnemar_exact", "paired_gain", "self_correction_rates")),
        ("exam", ("extract_answer", "lint_questions", "find_overlaps")),
        ("runs", ("load_profile", "limit_of", "run_date")),
        ("core", ("describe", "STEPS", "read_table")),
    ],
)
def test_the_pure_part_of_a_room_is_used_without_torch_or_plots(room: str, names: tuple[str, ...]) -> None:
    """Also when the names are used, not only when the room is entered."""
    code = (
        f"import sys; from medrefl_utils.{room} import {', '.join(names)}\n"
        "print(*sorted({'torch', 'transformers', 'trl', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split() == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_imports_from_rooms_only(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    for node in (node for cell in cells for node in ast.walk(ast.parse("".join(cell["source"])))):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("medrefl_utils")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medrefl_utils"):
            _, *below = node.module.split(".")
            names = [alias.name for alias in node.names]
            if not below:
                assert set(names) <= set(ROOMS), node.module
            else:
                assert below[0] in ROOMS and len(below) == 1, f"{node.module} is the inside of a room"
                assert set(names) <= set(importlib.import_module(node.module).__all__), names
