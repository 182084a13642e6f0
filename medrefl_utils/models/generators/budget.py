"""Limit what a run spends: each call is checked beforehand, at its maximum cost."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from medrefl_utils.core.errors import MedReflError


@dataclass(frozen=True)
class Spent:
    """Continuations requested, tokens read and tokens written."""

    calls: int = 0
    read: int = 0
    written: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def share(self, workers: int) -> Spent:
        """Return an equal part for each of ``workers`` workers, rounded up."""
        return Spent(*(-(-getattr(self, f.name) // workers) for f in fields(self)))


@dataclass(frozen=True)
class Budget:
    """Limits: ``max_calls`` continuations, ``max_tokens`` read and written, and ``max_cost``; 0 means no limit.

    The cost is in the currency of ``input_price`` and ``output_price``: prices per million tokens read and written.
    """

    max_calls: int = 0
    max_tokens: int = 0
    max_cost: float = 0.0
    input_price: float = 0.0
    output_price: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise MedReflError(f"budget: {field.name} is {getattr(self, field.name)}, expected at least 0")
        if self.max_cost and not (self.input_price or self.output_price):
            raise MedReflError(
                "budget: max_cost needs input_price and output_price, the prices of a million tokens read and written"
            )

    def complaint(self, spent: Spent, call: Spent) -> str:
        """Return one line about the limit that ``call`` could exceed after ``spent``; "" if there is none."""
        after = spent + call
        for name, have, would in (
            ("max_calls", spent.calls, after.calls),
            ("max_tokens", spent.read + spent.written, after.read + after.written),
            ("max_cost", self.cost(spent), self.cost(after)),
        ):
            limit = getattr(self, name)
            if limit and would > limit:
                return (
                    f"{name} is {limit:g}, {have:g} is spent, and the next call could take it to {would:g}; "
                    f"the replies so far are kept: raise {name} and run the same again"
                )
        return ""

    def shown(self, spent: Spent) -> dict[str, str]:
        """Return what is spent of each limit, for a progress bar: {"calls": "120/500"}."""
        have = {"max_calls": spent.calls, "max_tokens": spent.read + spent.written, "max_cost": self.cost(spent)}
        return {
            name.removeprefix("max_"): f"{value:,.6g}/{limit:,.6g}"
            for name, value in have.items()
            if (limit := getattr(self, name))
        }

    def cost(self, spent: Spent) -> float:
        """Return the cost of what was read and written."""
        return (spent.read * self.input_price + spent.written * self.output_price) / 1e6

    def share(self, workers: int) -> Budget:
        """Return what each of ``workers`` workers may spend, rounded down."""
        whole = {name: max(1, value // workers) if (value := getattr(self, name)) else 0 for name in _COUNTED}
        return replace(self, **whole, max_cost=self.max_cost / workers)


_COUNTED = ("max_calls", "max_tokens")
