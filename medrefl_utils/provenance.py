"""Where a result came from: machine, versions, git revision, and the hash of the code a notebook uses."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from medrefl_utils.profiles import code_cells

PACKAGES = (
    "medrefl", "torch", "transformers", "trl", "peft", "bitsandbytes", "papermill", "pandas", "numpy"
)  # fmt: skip
# Modules that start and check the stages, or only show in a notebook what it made, cannot change what a stage computes.
ORCHESTRATION = frozenset(
    {"__init__", "__main__", "cli", "chain", "profiles", "execution", "provenance", "doctor", "explore"}
)


def versions() -> dict[str, str | None]:
    """{package: installed version}; None where a package is not installed."""
    return {name: _version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """The machine in words: python, platform, processor, cores this process may use, memory (GiB)."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": cores,
        "memory_gib": round(pages / 2**30, 1),
    }


def git(root: Path) -> dict[str, Any]:
    """{revision, dirty}; both None where ``root`` is no git checkout."""

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    status = ask("status", "--porcelain")
    return {"revision": ask("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def notebook_hash(notebook: Path) -> str:
    """sha256 over a notebook's code cells: prose may change without a rerun."""
    return _sha("\0".join(_code(notebook)))


def code_hashes(notebook: Path, package: Path) -> dict[str, str]:
    """{file: sha256} of the package's modules that a notebook imports, and those they import in turn.

    Read from the import statements, functions' bodies included. A data file named like a module (``report.html.j2``
    beside ``report.py``) counts as part of it. The modules that only start the stages are left out.
    """
    waiting = [m for source in _code(notebook) for m in _imports(_without_magics(source), package, package)]
    seen: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        name = module.relative_to(package).as_posix()
        if name in seen or (module.parent == package and module.stem in ORCHESTRATION):
            continue
        source = module.read_text(encoding="utf-8")
        seen[name] = _sha(source)
        for beside in module.parent.glob(f"{module.stem}.*"):
            if beside != module and beside.is_file():
                seen[beside.relative_to(package).as_posix()] = hashlib.sha256(beside.read_bytes()).hexdigest()
        waiting += _imports(source, package, module.parent)
    return dict(sorted(seen.items()))


def _imports(source: str, package: Path, folder: Path) -> Iterable[Path]:
    """The module files of the package that the source imports; ``folder`` is where its relative imports start."""
    for node in ast.walk(ast.parse(source)):
        names: list[tuple[Path, list[str]]] = []
        if isinstance(node, ast.Import):
            names = [(package.parent, alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package.parent if not node.level else [folder, *folder.parents][node.level - 1]
            parts = node.module.split(".") if node.module else []
            names = [(start, [*parts, alias.name]) for alias in node.names]
        for start, parts in names:
            if start == package.parent and parts[:1] != [package.name]:
                continue
            for end in range(1, len(parts) + 1):
                place = start.joinpath(*parts[:end])
                for file in (place.with_suffix(".py"), place / "__init__.py"):
                    if file.is_file() and file.is_relative_to(package):
                        yield file


def _code(notebook: Path) -> list[str]:
    return [source for _, source in code_cells(notebook)]


def _without_magics(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
