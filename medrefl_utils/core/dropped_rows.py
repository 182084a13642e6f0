"""Rows that fail a check: count them by reason, keep an example of each, and stop when too many are dropped."""

from __future__ import annotations

from collections.abc import Mapping

from medrefl_utils.core.errors import MedReflError


class DropCounts(dict[str, int]):
    """How many rows a step leaves out: {reason: count}, with an example of each fault.

    A *selection* (a cap, a margin, too low a quality) is a plain entry; ``leave_out`` adds one with an example. A
    *fault* is a row that fails a check: ``drop`` counts it and keeps the first example in ``examples``. Only faults
    count in ``check_dropped``.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(counts or {})
        self.examples: dict[str, str] = dict(getattr(counts, "examples", {}))
        self.selections: set[str] = set(getattr(counts, "selections", ()))

    def drop(self, reason: str, example: str) -> None:
        """Count one row that fails a check; ``example`` says which row, what was found and what was expected."""
        self[reason] = self.get(reason, 0) + 1
        self.examples.setdefault(reason, example)

    def leave_out(self, reason: str, example: str) -> None:
        """Count one row that is left out by choice; ``example`` says which row, and why."""
        self.drop(reason, example)
        self.selections.add(reason)

    def add(self, other: Mapping[str, int]) -> None:
        """Add the counts of another step, and its examples where this one has none."""
        for reason, count in other.items():
            self[reason] = self.get(reason, 0) + count
        self.examples = {**getattr(other, "examples", {}), **self.examples}
        self.selections |= getattr(other, "selections", set())

    @property
    def faults(self) -> DropCounts:
        """The counts of the rows that failed a check, with their examples and without the selections."""
        failed = self.examples.keys() - self.selections
        found = DropCounts({reason: count for reason, count in self.items() if reason in failed})
        found.examples = {reason: example for reason, example in self.examples.items() if reason in failed}
        return found


def check_dropped(what: str, dropped: DropCounts, kept: int, max_dropped: float) -> None:
    """Stop when more than the share ``max_dropped`` of the rows failed a check.

    Args:
        what: the rows, for the message ("reflections").
        dropped: what was left out; only its faults count.
        kept: rows that passed. The share is faults / (kept + faults).
        max_dropped: largest share that may fail, 0 to 1.

    Raises:
        MedReflError: one line with the counts, an example, and the parameter to set.
    """
    failed = sum(dropped.faults.values())
    total = kept + failed
    if failed > max_dropped * total:
        most = max(dropped.faults, key=dropped.faults.__getitem__)
        raise MedReflError(
            f"{what}: {failed} of {total} are dropped ({_listed(dropped.faults)}), which is more than max_dropped "
            f"{max_dropped:g} allows; for example {dropped.examples[most]}. Raise max_dropped to go on with the rest"
        )


def check_some_left(what: str, kept: int, dropped: Mapping[str, int], advice: str) -> None:
    """Stop when no row is left.

    Args:
        what: the rows, for the message ("pairs").
        kept: rows that are left.
        dropped: {reason: count} of everything that was left out; counts of 0 are not shown.
        advice: what the user can change.

    Raises:
        MedReflError: ``kept`` is 0; one line with the reasons and the advice.
    """
    if not kept:
        reasons = _listed({reason: count for reason, count in dropped.items() if count}) or "there were none"
        raise MedReflError(f"{what}: none is left ({reasons}); {advice}")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())
