"""The house: an import points down only (the contract is in pyproject.toml)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
