"""Record where a result comes from: machine, versions, git revision, date, and hashes of the code it depends on."""

from __future__ import annotations

import ast
import datetime
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.source_code import code_hash
from medrefl_utils.core.store import read_manifest, write_manifest
from medrefl_utils.runs.profiles import code_cells

PACKAGES = (
    "medrefl", "torch", "transformers", "trl", "peft", "bitsandbytes", "papermill", "pandas", "numpy"
)  # fmt: skip
# These modules start, check or display the stages, so they cannot change what a stage computes.
ORCHESTRATION = ("__init__.py", "__main__.py", "runs/", "views/explorers.py")
RUN_DATE = "MEDREFL_RUN_DATE"
"""Environment variable with the run's date. Chat templates may write the date into a prompt."""


def versions() -> dict[str, str | None]:
    """Return {package: installed version}; None for a package that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """Describe the machine: python, platform, cpu, cores that this process may use, memory (GiB)."""
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
    """Return {revision, dirty} of the checkout at ``root``; both are None if it is not a git checkout.

    Outputs in notebooks are no change where the checkout's filter removes them (``make setup``): git lists these files
    as modified by their size, but has no difference to show.
    """

    def ask(*words: str) -> str | None:
        try:
            # The filter takes a second per notebook, and more on a busy machine.
            answer = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    status = ask("status", "--porcelain")
    dirty = None if status is None else bool(status)
    if dirty and ask("diff", "HEAD") == "":
        dirty = bool(ask("ls-files", "--others", "--exclude-standard"))
    return {"revision": ask("rev-parse", "HEAD"), "dirty": dirty}


def run_date(files: RunFiles) -> str:
    """Return the date of a run (ISO, local time): the day of its first start, or today for a new run."""
    return str(read_manifest(files).get("date") or datetime.date.today().isoformat())


def keep_run_date(files: RunFiles) -> str:
    """Return the run's date, and record it in the manifest: a run resumed on another day has the same prompts."""
    date = run_date(files)
    manifest = read_manifest(files)
    if manifest.get("date") != date:
        write_manifest(files, {"date": date} | manifest)
    return date


def notebook_hash(notebook: Path) -> str:
    """Return the sha256 of a notebook's code cells. Text cells do not count, so editing them starts no rerun."""
    return _sha("\0".join(_code(notebook)))


def code_hashes(notebook: Path, package: Path) -> dict[str, str]:
    """Return {file: sha256} of the package's modules that a notebook imports, directly or through other modules.

    Comments and docstrings do not count, so editing them starts no rerun (``code_hash``).

    Import statements are read from the source, also those inside functions. A room is a sub-package that exports names
    by ``lazy_loader.attach``: only the modules of the used names count. A data file that is named like a module
    (``report.html.j2`` for ``report.py``) counts as part of it. Modules in ``ORCHESTRATION`` do not count.
    """
    cells = "\n".join(_without_magics(source) for source in _code(notebook))
    waiting = list(_imports(cells, package, package))
    seen: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        name = module.relative_to(package).as_posix()
        if name in seen or name.startswith(ORCHESTRATION):
            continue
        source = module.read_text(encoding="utf-8")
        seen[name] = code_hash(source)
        for beside in module.parent.glob(f"{module.stem}.*"):
            if beside != module and beside.is_file():
                seen[beside.relative_to(package).as_posix()] = hashlib.sha256(beside.read_bytes()).hexdigest()
        waiting += _imports(source, package, module.parent)
    return dict(sorted(seen.items()))


def _imports(source: str, package: Path, folder: Path) -> Iterable[Path]:
    """Yield the module files of the package that the source imports. Relative imports start in ``folder``."""
    for level, module, aliases, attributes in _statements(source):
        start = [folder, *folder.parents][level - 1] if level else package.parent
        for alias, read in zip(aliases, attributes, strict=True):
            parts = [*module, *alias]
            if start == package.parent and parts[:1] != [package.name]:
                continue
            yield from _files(start, parts, package, read)


_Statement = tuple[int, tuple[str, ...], tuple[tuple[str, ...], ...], tuple[frozenset[str], ...]]


@cache
def _statements(source: str) -> tuple[_Statement, ...]:
    """Return the imports of a source: (level, module, imported names, attributes read from each name).

    They are kept, since the stages of a chain import mostly the same modules.
    """
    nodes = list(ast.walk(ast.parse(source)))
    read: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            read.setdefault(node.value.id, set()).add(node.attr)

    def attributes(alias: ast.alias) -> frozenset[str]:
        return frozenset(read.get(alias.asname or alias.name.split(".")[-1], ()))

    found: list[_Statement] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names = tuple(tuple(alias.name.split(".")) for alias in node.names)
            found.append((0, (), names, tuple(map(attributes, node.names))))
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            names = tuple((alias.name,) for alias in node.names)
            found.append((node.level, module, names, tuple(map(attributes, node.names))))
    return tuple(found)


def _files(start: Path, parts: Sequence[str], package: Path, attributes: Iterable[str]) -> Iterable[Path]:
    """Yield the module files that an import of ``parts`` loads. ``attributes`` are read from the imported name."""
    place = start
    for end, part in enumerate(parts, start=1):
        exported = _exported(place / "__init__.py") if place != start or end > 1 else {}
        if part in exported:
            yield exported[part]
            return
        place = place / part
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file() and file.is_relative_to(package):
                if file.name == "__init__.py" and (room := _exported(file)):
                    if end == len(parts):
                        yield from (room[name] for name in attributes if name in room)
                else:
                    yield file


def _exported(init: Path) -> dict[str, Path]:
    """Return {public name: file of its module} for a room; empty for any other module."""
    if not init.is_file():
        return {}
    return {name: init.parent / file for name, file in _attached(init.read_text(encoding="utf-8")).items()}


@cache
def _attached(source: str) -> dict[str, str]:
    """Return {public name: file of its module beside the source} of a room's ``__init__``."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "attach":
            given = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
            found |= {module: f"{module}.py" for module in given.get("submodules", ())}
            for module, names in given.get("submod_attrs", {}).items():
                found |= dict.fromkeys(names, f"{module.replace('.', '/')}.py")
    return found


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
