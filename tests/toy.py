"""A small chain of real notebooks over a toy package, for the tests of the chain: three stages, a second each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from medrefl_utils.runs import Stage, run_profile

STAGES = (
    Stage("01_count", (), ("questions", "steps")),
    Stage("02_double", ("questions", "steps"), ("values",)),
    Stage("03_tell", ("values",), ("report",)),
)

PARAMETERS = {
    "01_count": """\
run: str = "runs/interactive"  # folder of the run
seed: int = 0  # any
n: int = 3  # how many
rate: float = 1.0  # a share
names: list[str] = ["a", "b"]  # labels
data: str = ""  # a file that is read
""",
    "02_double": """\
run: str = "runs/interactive"  # folder of the run
seed: int = 0  # any
loud: bool = False  # shout
""",
    # A line before it: IPython takes a cell whose only line begins with the word run for its magic %run.
    "03_tell": '# what this notebook may be told\nrun: str = "runs/interactive"  # folder of the run',
}

BODIES = {
    "01_count": [
        "from tqdm import tqdm\nfrom toy.count import numbers",
        "files.steps.mkdir(parents=True, exist_ok=True)\n"
        "files.questions.write_text('\\n'.join(numbers(n)))\n"
        "(files.steps / '0.txt').write_text('|'.join(f'{x} {seed}' for x in tqdm(range(n), desc='counting')))",
        "record_stage(files, '01_count', [files.questions, files.steps], {'n': n}, tokens=7 * n)",
    ],
    "02_double": [
        "from medrefl_utils.runs import make_missing_inputs\nfrom toy import shared",
        "make_missing_inputs('02_double', run, root=Path.cwd(), stages=STAGES, package=Path.cwd() / 'toy')",
        "files.values.write_text(shared.twice(files.questions.read_text()) + ('!' if loud else ''))",
        "record_stage(files, '02_double', [files.values], {})",
    ],
    "03_tell": [
        "import os, sys\nimport toy.shared",
        "files.report.write_text(f'{len(files.values.read_text())} {sys.executable} {os.environ[\"GOMP_SPINCOUNT\"]}')",
        "record_stage(files, '03_tell', [files.report], {})",
    ],
}

PACKAGE = {
    "toy/__init__.py": "",
    "toy/count.py": "from .shared import word\n\n\ndef numbers(n):\n    return [word(i) for i in range(n)]\n",
    "toy/shared.py": "def word(i):\n    return str(i)\n\n\ndef twice(text):\n    return text * 2\n",
    "toy/alone.py": "nobody = 'imports this'\n",
}


def notebook(path: Path, parameters: str, cells: list[str]) -> None:
    """Write a notebook: parameters, an import of what all need, the cells."""
    import nbformat  # two seconds of a processor, which a kernel that imports STAGES need not spend

    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    imports = (  # the kernel starts in the toy's checkout, where no `tests` is
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\nfrom medrefl_utils.core import MedReflError, RunFiles, record_stage\n"
        "from tests.toy import STAGES\nfiles = RunFiles(Path(run))"
    )
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# A toy"),
            first,
            *[nbformat.v4.new_code_cell(cell) for cell in (imports, *cells)],
        ],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}},
    )
    for number, cell in enumerate(book.cells):
        cell.id = str(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


def checkout(root: Path, bodies: dict[str, list[str]] | None = None) -> Path:
    """A checkout with the toy's notebooks, package and a profile; returns ``root``."""
    for name, source in PACKAGE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    for stage in STAGES:
        cells = (bodies or {}).get(stage.name, BODIES[stage.name])
        notebook(root / "notebooks" / f"{stage.name}.ipynb", PARAMETERS[stage.name], cells)
    profile(root, {"shared": {"run": "t", "seed": 5}, "01_count": {"n": 4}})
    return root


def profile(root: Path, content: Any) -> Path:
    """Write ``params/toy.yaml``."""
    path = root / "params" / "toy.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def run(root: Path, *overrides: str, **options: Any) -> tuple[list[str], str]:
    """Run the toy's profile; returns the stages executed and what was printed."""
    console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    executed = run_profile(
        root / "params" / "toy.yaml",
        root=root,
        stages=STAGES,
        package=root / "toy",
        overrides=overrides,
        console=console,
        **options,
    )
    return executed, console.file.getvalue()
