"""The chain: run the notebooks of one profile in order, into ``runs/<name>/``, and skip unchanged stages.

``skipping`` decides which stages are unchanged, and ``execution`` executes a notebook. This module selects the stages,
keeps the manifest, and makes the missing inputs of a notebook that is opened by hand.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medrefl_utils.core.errors import MedReflError
from medrefl_utils.core.freshness import find_out_of_date
from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.schemas import ABLATION, CONTRASTS, SCORES, SELF_CORRECTION
from medrefl_utils.core.store import lock_run, open_stage, read_manifest, read_table, write_manifest
from medrefl_utils.runs import provenance
from medrefl_utils.runs.execution import CHAIN, StageFailed, end_orphans, execute_notebook
from medrefl_utils.runs.profiles import (
    Profile,
    did_you_mean,
    limit_questions,
    load_profile,
    matching_names,
    notebook_parameters,
)
from medrefl_utils.runs.skipping import Decision, decide, ingredients, stage_key
from medrefl_utils.runs.stages import (
    BASELINE,
    CONTINUES,
    DEFAULT_STAGES,
    FOLLOWS,
    PACKAGE,
    STAGES,
    Stage,
    repository_root,
)

Preflight = Callable[[Mapping[str, Mapping[str, Any]], RunFiles, Container[str]], Iterable[str] | None]
"""Called with {stage that will run: its parameters}, the run's files, the artifacts that exist; returns notes."""


class Chain:
    """The stages of one run in the checkout at ``root``: decide which must run, and run them.

    ``folder`` is the run's folder relative to ``root``. ``parameters`` is {stage: {name: value}}, resolved. ``package``
    is the folder of the package that the notebooks import. ``heading`` is added to the manifest.
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
        """Return the path of the stage's notebook in the checkout."""
        return self.root / "notebooks" / f"{stage.name}.ipynb"

    def select(self, start: str | None = None, only: str | None = None) -> list[Stage]:
        """Return the stages from ``start`` on, or ``only`` one.

        A stage may be given by its number ('3' or '03'), by a part of its name that no other stage has ('dpo'), or by
        what it makes ('pairs', 'training': the names of ``RunFiles``, or their beginnings).
        """
        if start and only:
            raise MedReflError("--from and --only exclude each other: give one of them")
        if only:
            return [self._named(only, "--only")]
        return list(self.stages[self.stages.index(self._named(start, "--from")) if start else 0 :])

    def plan(self, selected: Sequence[Stage], force: bool = False) -> list[Decision]:
        """Decide for each selected stage whether it would run now.

        A stage after one that will run cannot be decided before its inputs exist; its reason says so.
        """
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
        """Compare the stage's hashes and outputs with its last run. Its inputs must exist."""
        return decide(stage, self._entry(stage), self._ingredients(stage), self.files)

    def run(self, selected: Sequence[Stage], console: Console, force: bool = False) -> list[str]:
        """Run the stages that must run, in order; return the names of the executed stages.

        Raises:
            StageFailed: a notebook fails, or ends without recording its outputs.
            MedReflError: an input is missing.
        """
        self._check_inputs(selected)
        executed: list[str] = []
        before = {stage.name: self._entry(stage).get("seconds", 0.0) for stage in selected}
        for number, stage in enumerate(selected, start=1):
            if not force and not self.decide(stage).run:
                console.print(Text(f"{stage.name} … unchanged, skipped", style="dim"))
                continue
            if not executed:
                stages = read_manifest(self.files).get("stages", {})
                write_manifest(self.files, self._manifest_head() | {"stages": stages})
            left = [before[other.name] for other in selected[number - 1 :]]
            about = f", about {_duration(sum(left))} left, as long as last time" if all(left) else ""
            console.print(Text(f"{stage.name} … ({number} of {len(selected)}{about})"))
            seconds = self.execute(stage, console, force)
            console.print(Text(f"{stage.name} … done in {_duration(seconds)}"))
            executed.append(stage.name)
        return executed

    def execute(self, stage: Stage, console: Console, force: bool = False) -> float:
        """Execute one stage and complete the manifest entry that its notebook recorded; return the seconds it took."""
        found = self._ingredients(stage)
        key = stage_key(found)
        # A stage resumes from the partial outputs of an interrupted run with the same key. Other outputs are stale.
        if force or self._entry(stage).get("running") != key:
            self._remove(stage.writes)
        self._record(stage, {"running": key})
        seconds = execute_notebook(
            self.notebook(stage),
            self.files.notebooks / f"{stage.name}.ipynb",
            self.parameters[stage.name],
            cwd=self.root,
            file=console.file,
            environment={provenance.RUN_DATE: provenance.keep_run_date(self.files)},
        )
        entry = self._entry(stage)
        recorded = [Path(name).parts[0] for name in entry.get("outputs", {})]
        for artifact in stage.writes:
            path: Path = getattr(self.files, artifact)
            if path.name not in recorded:
                problem = f"the notebook ended without recording {path.name} (core.record_stage in its last cell)"
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
        names = [stage.name for stage in self.stages]
        fitting = matching_names(name, names) or [
            stage.name
            for stage in self.stages
            if name and any(artifact.startswith(name.lower()) for artifact in stage.writes)
        ]
        if len(fitting) > 1:
            raise MedReflError(f"{option} {name}: can mean {' or '.join(fitting)}: give more of the name")
        if not fitting:
            expected = f"expected a number, a part of the name of one of {', '.join(names)}, or what it makes"
            raise MedReflError(f"{option} {name}: no such stage{did_you_mean(name, names)}: {expected}")
        return self.stages[names.index(fitting[0])]

    def _entry(self, stage: Stage) -> dict[str, Any]:
        return read_manifest(self.files).get("stages", {}).get(stage.name, {})

    def _record(self, stage: Stage, entry: Mapping[str, Any]) -> None:
        manifest = read_manifest(self.files)
        manifest.setdefault("stages", {})[stage.name] = dict(entry)
        write_manifest(self.files, manifest)

    def _manifest_head(self) -> dict[str, Any]:
        return {
            "run": self.files.root.name,
            "date": provenance.run_date(self.files),
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
    limit: int | None = None,
    console: Console | None = None,
    preflight: Preflight | None = None,
) -> list[str]:
    """Check the profile and run its stages; return the names of the executed stages.

    The last lines printed are the report's path and the result tables.

    Args:
        profile: the YAML file.
        root: the checkout.
        stages: all stages; a profile's list ``stages`` selects from them.
        package: the folder of the package that the notebooks import.
        overrides: texts ``section.key=value`` that win over the profile.
        start: the first stage to run (``--from``); earlier outputs are used as they are.
        only: the one stage to run (``--only``).
        force: run unchanged stages too.
        dry_run: print which stages would run and why, and check their inputs; run nothing.
        limit: the most questions of each notebook (``limit_questions``); the run is then called ``NAME_limitN``.
        console: where to print; standard output by default.
        preflight: checks the inputs of the stages that will run (``preflight.check_inputs``). It is an argument because
            every notebook imports this module, and would otherwise depend on all that the check imports.

    Raises:
        MedReflError: the profile, an option or an input is wrong; nothing has started.
        StageFailed: a notebook failed.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in stages}
    for notebook in notebooks.values():
        if not notebook.is_file():
            raise MedReflError(f"{notebook} is missing")
    follows = {stage: other for stage, other in FOLLOWS.items() if {stage, other[0]} <= notebooks.keys()}
    continues = {stage: others for stage, others in CONTINUES.items() if stage in notebooks}
    loaded = load_profile(profile, notebooks, root=root, overrides=overrides, follows=follows, continues=continues)
    if limit is not None:
        loaded = limit_questions(loaded, limit)
    wanted = loaded.stages or (DEFAULT_STAGES if stages is STAGES else tuple(notebooks))
    heading = {"profile": loaded.path, "overrides": list(overrides)}
    chosen = [_with_tuned(stage, loaded) for stage in stages if stage.name in wanted]
    parameters = {stage.name: loaded.parameters[stage.name] for stage in chosen}
    chain = Chain(root, f"runs/{loaded.run}", parameters, stages=chosen, package=package, heading=heading)
    selected = {chain: (chain.select(start, only), force)}
    if loaded.baseline and not only:
        beside = [stage for stage in stages if stage.name in BASELINE]
        parameters = loaded.of_baseline(BASELINE)
        place = f"runs/{loaded.baseline}"
        first = Chain(root, place, parameters, stages=beside, package=package, heading=heading)
        selected = {first: (first.select(), force and not start)} | selected
    decisions = {one: one.plan(its, forced) for one, (its, forced) in selected.items()}
    for one, planned in decisions.items():
        if dry_run:
            console.print(_plan_table(one, planned))
        running = {decision.stage.name: decision.stage for decision in planned if decision.run}
        if running and preflight:
            made = {artifact for stage in running.values() for artifact in stage.writes}
            given = {artifact for stage in running.values() for artifact in stage.reads} - made
            values = loaded.before_tuning(root) if one is chain else one.parameters
            for note in preflight({name: values[name] for name in running}, one.files, given) or ():
                console.print(Text(f"note: {note}", style="yellow"))
    if dry_run:
        return []
    executed: list[str] = []
    with ExitStack() as locks:
        for one in selected:
            locks.enter_context(lock_run(one.files))
            end_orphans(one.files.root)
        for one, (its, forced) in selected.items():
            if len(selected) > 1:
                console.print(Text(f"{one.folder}:"))
            executed += one.run(its, console, forced)
    its = selected[chain][0]
    baseline = next((values["baseline"] for values in chain.parameters.values() if values.get("baseline")), "")
    print_results(chain.files, console, {artifact for stage in its for artifact in stage.writes}, baseline)
    return executed


def _with_tuned(stage: Stage, loaded: Profile) -> Stage:
    """Return the stage, which also reads the fine-tuned model where the profile gives it that model."""
    uses = loaded.tuned and loaded.parameters[stage.name].get("model") == loaded.tuned
    return replace(stage, reads=(*stage.reads, "sft_model")) if uses else stage


def print_results(files: RunFiles, console: Console, written: Container[str], baseline: str = "") -> None:
    """Print the report's path, then the result tables of the artifacts ``written``.

    With the folder of a ``baseline`` the last table compares both methods on both bases.
    """
    from medrefl_utils.views import cautions, summary_tables

    if "report" in written:
        console.print(Text(f"report: {os.path.relpath(files.report)}"))
    if "self_correction" in written and len(rates := read_table(files.self_correction, SELF_CORRECTION)):
        console.print(summary_tables.self_correction_table(rates))
    if "scores" in written:
        console.print(summary_tables.scores_table(scores := read_table(files.scores, SCORES)))
        for sentence in cautions(files, scores):
            console.print(Text(sentence))
    if "ablation" in written:
        found = read_table(files.ablation, ABLATION)
        console.print(summary_tables.ablation_self_correction_table(found))
        console.print(summary_tables.ablation_table(found))
        shown = ["net self-correction", *(f"accuracy, {name}" for name in found["protocol"].dropna().unique())]
        console.print(summary_tables.contrasts_table(read_table(files.contrasts, CONTRASTS), shown))
    if baseline and "report" in written:
        from medrefl_utils.evaluation.composition import compare_bases

        console.print(summary_tables.composition_table(compare_bases(Path(baseline), files.root)))


def make_missing_inputs(
    stage: str,
    run: str | Path,
    *,
    replaced: Collection[str] = (),
    root: Path | None = None,
    stages: Sequence[Stage] = STAGES,
    package: Path = PACKAGE,
) -> None:
    """Make the missing inputs of a notebook that is opened by hand, and warn of inputs that are out of date.

    Run the earlier notebooks whose outputs are missing, with their default parameters, and hand this kernel the run's
    date. Then print one warning if the inputs do not belong together (``core.find_out_of_date``), and note the inputs
    for the notebook's record.

    Args:
        stage: the stage of the notebook.
        run: the run's folder, such as "runs/demo".
        replaced: artifacts that a parameter of the notebook replaces, so that this run need not have them.
        root: the checkout; by default the one that contains the working folder.
        stages: all stages.
        package: the folder of the package that the notebooks import.

    Raises:
        MedReflError: an input is missing inside a chain, which runs the stages itself.
        StageFailed: an earlier notebook failed.
    """
    root = root or repository_root()
    folder = os.path.relpath(root / run, root)
    by_name = {s.name: s for s in stages}
    by_name[stage] = replace(by_name[stage], reads=tuple(a for a in by_name[stage].reads if a not in replaced))
    chain = Chain(root, folder, {}, stages=stages, package=package)
    if CHAIN in os.environ:
        chain._check_inputs([by_name[stage]])
        return _open(by_name[stage], chain)
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
        os.environ[provenance.RUN_DATE] = provenance.keep_run_date(chain.files)
        return _open(by_name[stage], chain)
    needed = [s for s in stages if s.name in missing]
    names = ", ".join(s.name for s in needed)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, force_jupyter=False)
    console.print(Text(f"{folder} has no {first} yet: running {names} with default parameters"))
    defaults = {s.name: {p.name: p.default for p in notebook_parameters(chain.notebook(s)).values()} for s in needed}
    parameters = {name: values | {"run": folder} for name, values in defaults.items()}
    with lock_run(chain.files):
        end_orphans(chain.files.root)
        Chain(root, folder, parameters, stages=stages, package=package).run(needed, console, force=True)
    os.environ[provenance.RUN_DATE] = provenance.keep_run_date(chain.files)
    return _open(by_name[stage], chain)


def _open(stage: Stage, chain: Chain) -> None:
    """Warn of inputs that are out of date, and note inputs and parameters of the notebook that this kernel runs."""
    from IPython import get_ipython

    makers = {artifact: maker.name for maker in chain.stages for artifact in maker.writes}
    if line := find_out_of_date(chain.files, stage.reads, makers=makers).line():
        print(f"warning: {chain.folder}: {line}", file=sys.stderr)
    names = getattr(get_ipython(), "user_ns", {})
    parameters = notebook_parameters(chain.notebook(stage)) if names else ()
    open_stage(chain.files, stage.name, stage.reads, {name: names[name] for name in parameters if name in names})


def _plan_table(chain: Chain, decisions: Sequence[Decision]) -> Table:
    table = Table(title=f"{chain.folder}: stages that would run", title_justify="left", box=None)
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
