"""Find the stages of a run whose results do not belong together: an input has changed since a stage read it.

A chain reruns such stages by itself (``runs.skipping``). Notebooks run by hand, in any order, are compared here, by the
hashes in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medrefl_utils.core.run_files import RunFiles
from medrefl_utils.core.store import MADE_BY, content_hash, read_manifest


@dataclass(frozen=True)
class OutOfDate:
    """What does not belong together in a run.

    ``changed``: {stage: files that it read, and that have another content now}. ``replaced``: {stage: files that it
    wrote, and that something else changed}. ``again``: the stages to run again, in their order: those in ``changed``,
    and those that read what they wrote.
    """

    changed: Mapping[str, list[str]]
    replaced: Mapping[str, list[str]]
    again: list[str]

    def line(self) -> str:
        """Return one line that says what changed and which notebooks to run again; "" if all belongs together."""
        said = [f"{_listed(names)} changed after {stage}" for stage, names in self.changed.items()]
        said += [f"{_listed(names)} is not what {stage} wrote" for stage, names in self.replaced.items()]
        if not said:
            return ""
        if not self.again:
            return f"{'; '.join(said)}: run {_listed(self.replaced)} again, unless you changed it on purpose"
        order = ", in this order" if len(self.again) > 1 else ""
        return f"old and new results are mixed ({'; '.join(said)}): run {_listed(self.again)} again{order}"


def find_out_of_date(
    run: RunFiles, artifacts: Iterable[str] | None = None, *, makers: Mapping[str, str] = MADE_BY
) -> OutOfDate:
    """Compare artifacts, and all that they were made from, with what the manifest says they were made from.

    A stage whose inputs the manifest does not have (recorded by an earlier version) is taken to be up to date.

    Args:
        run: the run's files.
        artifacts: names of attributes of ``RunFiles``; None: all that ``makers`` has.
        makers: {artifact: the stage that makes it}.
    """
    stages = read_manifest(run).get("stages", {})
    by_file = {getattr(run, artifact).name: artifact for artifact in makers}
    changed: dict[str, list[str]] = {}
    replaced: dict[str, list[str]] = {}
    again: set[str] = set()
    seen: dict[str, bool] = {}

    def is_old(stage: str) -> bool:
        """Visit a stage after all stages above it; return whether it must run again."""
        if stage not in seen:
            seen[stage] = False  # a circle of stages ends here
            inputs = stages.get(stage, {}).get("inputs", {})
            names = [name for name, digest in inputs.items() if _differs(run.root / name, digest)]
            above = [is_old(makers[by_file[name]]) for name in inputs if by_file.get(name) in makers]
            if names:
                changed[stage] = names
            seen[stage] = bool(names) or any(above)
            if seen[stage]:
                again.add(stage)
        return seen[stage]

    for artifact in makers if artifacts is None else artifacts:
        if (maker := makers.get(artifact)) is not None:
            is_old(maker)
    for stage in seen:
        outputs = {name: digest for name, digest in stages.get(stage, {}).get("outputs", {}).items() if name in by_file}
        if names := [name for name, digest in outputs.items() if _differs(run.root / name, digest)]:
            replaced[stage] = names
    order = list(dict.fromkeys(makers.values()))
    return OutOfDate(
        {stage: changed[stage] for stage in order if stage in changed},
        {stage: replaced[stage] for stage in order if stage in replaced},
        [stage for stage in order if stage in again],
    )


def _differs(path: Path, digest: str) -> bool:
    """Return whether a file has another content; a file that is gone is missing, not mixed."""
    return path.exists() and content_hash(path) != digest


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
