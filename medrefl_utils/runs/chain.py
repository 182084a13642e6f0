"""The chain: one profile -> the notebooks in order, into ``runs/<name>/``; what is unchanged is skipped.

A stage is unchanged when its notebook's code, its parameters, the package modules it imports, its input artifacts and
the files its parameters name all have the hashes of its last run, and its outputs still have theirs. Inputs count by
content: a stage that ran again and made the same bytes starts nothing below it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import ABLATION, SCORES, SELF_CORRECTION
from medrefl_utils.core.store import lock_run, read_manifest, read_table, write_manifest
from medrefl_utils.runs import provenance
from medrefl_utils.runs.execution import CHAIN, StageFailed, end_orphans, execute_notebook
from medrefl_utils.runs.profiles import did_you_mean, load_profile, notebook_parameters
from medrefl_utils.runs.skipping import Decision, decide, ingredients, stage_key
from medrefl_utils.runs.stages import DEFAULT_STAGES, FOLLOWS, PACKAGE, STAGES, Stage, repository_root

Preflight = Callable[[Mapping[str, Mapping[str, Any]], RunFiles, Container[str]], object]
"""Called with {stage that will run: its parameters}, the run's files, and the artifacts that are taken as they are."""


class Chain:
    """The stages of one run in a checkout at ``root``: what must run, and running it.

    ``parameters`` are {stage: {name: value}}, resolved; ``package`` is the folder of the code the notebooks import.
    """

    def __init__(
        self,
        root: Path,
        folder: str,
        parameters: Mapping[str, Mapping[str, Any]],
        *,
        stages: Sequence[Stage] = STAGES,
        package: Path = PACKAGE,
        heading: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.folder, self.parameters, self.package = root, folder, parameters, package
        self.stages, self.heading = tuple(stages), dict(heading or {})
        self.files = RunFiles(root / folder)

    def notebook(self, stage: Stage) -> Path:
        """The stage's notebook in the checkout."""
        return self.root / "notebooks" / f"{stage.name}.ipynb"

    def select(self, start: str | None = None, only: str | None = None) -> list[Stage]:
        """The stages from ``start`` on, or ``only`` one; a name's unambiguous beginning ('03') will do."""
        if start and only:
            raise MedReflError("--from and --only cannot stand together")
        if only:
            return [self._named(only, "--only")]
        return list(self.stages[self.stages.index(self._named(start, "--from")) if start else 0 :])

    def plan(self, selected: Sequence[Stage], force: bool = False) -> list[Decision]:
        """What each selected stage would do now; a stage after one that runs is decided when its inputs are there."""
        self._check_inputs(selected)
        decisions, pending = [], {}
        for stage in selected:
            waits = [pending[artifact] for artifact in stage.reads if artifact in pending]
            if force:
                decision = Decision(stage, True, "forced")
            elif waits and self._entry(stage).get("key"):
                decision = Decision(stage, True, f"unless {waits[0]} writes the same as before")
            elif waits:
                decision = Decision(stage, True, "new")
            else:
                decision = self.decide(stage)
            if decision.run:
                pending |= dict.fromkeys(stage.writes, stage.name)
            decisions.append(decision)
        return decisions

    def decide(self, stage: Stage) -> Decision:
        """Compare the stage's key and outputs with its last run. Its inputs must exist."""
        return decide(stage, self._entry(stage), self._ingredients(stage), self.files)

    def run(self, selected: Sequence[Stage], console: Console, force: bool = False) -> list[str]:
        """Run what must run, in order; returns the names of the stages that were executed.

        Raises StageFailed when a notebook fails or ends without recording its outputs.
        """
        self._check_inputs(selected)
        executed: list[str] = []
        for stage in selected:
            if not force and not self.decide(stage).run:
                console.print(Text(f"{stage.name} … unchanged, skipped", style="dim"))
                continue
            if not executed:
                stages = read_manifest(self.files).get("stages", {})
                write_manifest(self.files, self._manifest_head() | {"stages": stages})
            console.print(Text(f"{stage.name} …"))
            seconds = self.execute(stage, console, force)
            console.print(Text(f"{stage.name} … done in {_duration(seconds)}"))
            executed.append(stage.name)
        return executed

    def execute(self, stage: Stage, console: Console, force: bool = False) -> float:
        """Execute one stage and complete the manifest's entry that its notebook recorded; returns seconds."""
        found = self._ingredients(stage)
        key = stage_key(found)
        # Parts left by an interrupted run with this very key may be taken up again by the stage; any others are stale.
        if force or self._entry(stage).get("running") != key:
            self._remove(stage.writes)
        self._record(stage, {"running": key})
        seconds = execute_notebook(
            self.notebook(stage),
            self.files.notebooks / f"{stage.name}.ipynb",
            self.parameters[stage.name],
            cwd=self.root,
            file=console.file,
        )
        entry = self._entry(stage)
        recorded = [Path(name).parts[0] for name in entry.get("outputs", {})]
        for artifact in stage.writes:
            path: Path = getattr(self.files, artifact)
            if path.name not in recorded:
                problem = f"the notebook ended without recording {path.name} (store.record in its last cell)"
                raise StageFailed("MedReflError", problem, [], self.files.notebooks / f"{stage.name}.ipynb")
        self._record(
            stage,
            entry
            | {
                "key": key,
                "seconds": round(seconds, 2),
                "parameters": dict(self.parameters[stage.name]),
                "inputs": found["inputs"],
                "ingredients": found,
                "revision": self._revision(),
            },
        )
        return seconds

    def _ingredients(self, stage: Stage) -> dict[str, dict[str, Any]]:
        parameters = self.parameters[stage.name]
        return ingredients(stage, self.notebook(stage), parameters, self.files, root=self.root, package=self.package)

    def _check_inputs(self, selected: Sequence[Stage]) -> None:
        makers = {artifact: stage.name for stage in self.stages for artifact in stage.writes}
        made: set[str] = set()
        for stage in selected:
            for artifact in stage.reads:
                path: Path = getattr(self.files, artifact)
                if artifact in makers and artifact not in made and not path.exists():
                    name = path.relative_to(self.root)
                    raise MedReflError(f"{stage.name} reads {name}, which is missing: {makers[artifact]} makes it")
            made |= set(stage.writes)

    def _remove(self, artifacts: Iterable[str]) -> None:
        for artifact in artifacts:
            path: Path = getattr(self.files, artifact)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _named(self, name: str, option: str) -> Stage:
        fitting = [stage for stage in self.stages if stage.name == name] or [
            stage for stage in self.stages if stage.name.startswith(name)
        ]
        if len(fitting) != 1:
            names = [stage.name for stage in self.stages]
            raise MedReflError(f"{option} {name}: no such stage{did_you_mean(name, names)}: {', '.join(names)}")
        return fitting[0]

    def _entry(self, stage: Stage) -> dict[str, Any]:
        return read_manifest(self.files).get("stages", {}).get(stage.name, {})

    def _record(self, stage: Stage, entry: Mapping[str, Any]) -> None:
        manifest = read_manifest(self.files)
        manifest.setdefault("stages", {})[stage.name] = dict(entry)
        write_manifest(self.files, manifest)

    def _manifest_head(self) -> dict[str, Any]:
        return {
            "run": self.files.root.name,
            **self.heading,
            "seeds": {stage: _seeds(values) for stage, values in self.parameters.items() if _seeds(values)},
            "parameters": {stage: dict(values) for stage, values in self.parameters.items()},
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "git": provenance.git(self.root),
        }

    def _revision(self) -> str | None:
        state = provenance.git(self.root)
        return f"{state['revision']}{'+' if state['dirty'] else ''}" if state["revision"] else None


def run_profile(
    profile: Path,
    *,
    root: Path,
    stages: Sequence[Stage] = STAGES,
    package: Path = PACKAGE,
    overrides: Sequence[str] = (),
    start: str | None = None,
    only: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
    preflight: Preflight | None = None,
) -> list[str]:
    """Check the profile, run (or with ``dry_run`` only list) its stages; returns the names of those executed.

    Ends with the report's path and the result table. ``preflight`` looks at the inputs of the stages that will run; the
    command hands it in, as every notebook imports this module and would depend on all that it looks with. Raises
    MedReflError before anything starts when the profile, an option or an input is wrong, and StageFailed when a
    notebook fails.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in stages}
    for notebook in notebooks.values():
        if not notebook.is_file():
            raise MedReflError(f"{notebook} is missing")
    follows = {stage: told for stage, told in FOLLOWS.items() if {stage, told[0]} <= notebooks.keys()}
    loaded = load_profile(profile, notebooks, root=root, overrides=overrides, follows=follows)
    asked = loaded.stages or (DEFAULT_STAGES if stages is STAGES else tuple(notebooks))
    stages = [stage for stage in stages if stage.name in asked]
    heading = {"profile": loaded.path, "overrides": list(overrides)}
    parameters = {stage.name: loaded.parameters[stage.name] for stage in stages}
    chain = Chain(root, f"runs/{loaded.run}", parameters, stages=stages, package=package, heading=heading)
    selected = chain.select(start, only)
    if dry_run:
        console.print(_plan_table(chain, chain.plan(selected, force)))
        return []
    running = {decision.stage.name: decision.stage for decision in chain.plan(selected, force) if decision.run}
    if running and preflight:
        made = {artifact for stage in running.values() for artifact in stage.writes}
        given = {artifact for stage in running.values() for artifact in stage.reads} - made
        preflight({name: parameters[name] for name in running}, chain.files, given)
    with lock_run(chain.files):
        end_orphans(chain.files.root)
        executed = chain.run(selected, console, force)
    print_results(chain.files, console, {artifact for stage in selected for artifact in stage.writes})
    return executed


def print_results(files: RunFiles, console: Console, written: Container[str]) -> None:
    """The report's path, then as the last lines the result tables that belong to the artifacts ``written``."""
    from medrefl_utils.views import summary_tables

    if "report" in written:
        console.print(Text(f"report: {os.path.relpath(files.report)}"))
    if "self_correction" in written and len(rates := read_table(files.self_correction, SELF_CORRECTION)):
        console.print(summary_tables.self_correction_table(rates))
    if "scores" in written:
        console.print(summary_tables.scores_table(read_table(files.scores, SCORES)))
    if "ablation" in written:
        found = read_table(files.ablation, ABLATION)
        console.print(summary_tables.ablation_self_correction_table(found))
        console.print(summary_tables.ablation_table(found))


def make_missing_inputs(
    stage: str, run: str | Path, *, root: Path | None = None, stages: Sequence[Stage] = STAGES, package: Path = PACKAGE
) -> None:
    """In a notebook opened by hand: make what it reads and does not find in the folder ``run``.

    Runs the missing notebooks above it with their defaults. Returns at once when all is there; inside a chain, which
    runs the stages itself, raises MedReflError naming the missing file instead.
    """
    root = root or repository_root()
    folder = os.path.relpath(root / run, root)
    by_name = {s.name: s for s in stages}
    chain = Chain(root, folder, {}, stages=stages, package=package)
    if CHAIN in os.environ:
        return chain._check_inputs([by_name[stage]])
    makers = {artifact: s for s in stages for artifact in s.writes}
    waiting, missing, first = [by_name[stage]], set(), None
    while waiting:
        for artifact in waiting.pop().reads:
            path: Path = getattr(chain.files, artifact)
            if artifact in makers and not path.exists() and makers[artifact].name not in missing:
                first = first or path.name
                missing.add(makers[artifact].name)
                waiting.append(makers[artifact])
    if not missing:
        return None
    needed = [s for s in stages if s.name in missing]
    names = ", ".join(s.name for s in needed)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, force_jupyter=False)
    console.print(Text(f"{folder} has no {first} yet: running {names} with their defaults"))
    defaults = {s.name: {p.name: p.default for p in notebook_parameters(chain.notebook(s)).values()} for s in needed}
    parameters = {name: values | {"run": folder} for name, values in defaults.items()}
    with lock_run(chain.files):
        end_orphans(chain.files.root)
        Chain(root, folder, parameters, stages=stages, package=package).run(needed, console, force=True)
    return None


def _plan_table(chain: Chain, decisions: Sequence[Decision]) -> Table:
    table = Table(title=f"{chain.folder}: what would run", title_justify="left", box=None)
    for column in ("stage", "", "why"):
        table.add_column(column)
    for decision in decisions:
        style = "" if decision.run else "dim"
        table.add_row(decision.stage.name, "run" if decision.run else "skip", Text(decision.why), style=style)
    return table


def _seeds(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if re.search(r"(^|_)seeds?$", name)}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes >= 2 else f"{seconds:.0f} s"
