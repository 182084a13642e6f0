"""What a run may spend: checked before each call, against the most that the call can cost."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from medrefl_utils.core.errors import MedReflError


@dataclass(frozen=True)
class Spent:
    """Continuations asked for, tokens read and tokens written."""

    calls: int = 0
    read: int = 0
    written: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def share(self, workers: int) -> Spent:
        """An equal part for each of so many workers, rounded up."""
        return Spent(*(-(-getattr(self, f.name) // workers) for f in fields(self)))


@dataclass(frozen=True)
class Budget:
    """The limits of ``max_calls`` continuations, ``max_tokens`` read and written, and ``max_cost``; 0 is none.

    Cost is in whatever currency ``input_price`` and ``output_price`` are, of a million tokens read and written.
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
                "budget: max_cost needs input_price and output_price, of a million tokens read and written"
            )

    def complaint(self, spent: Spent, call: Spent) -> str:
        """Which limit ``call`` could take ``spent`` over, in a line; "" where there is room for it."""
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
                    f"what was received is kept: raise {name} and run the same again"
                )
        return ""

    def shown(self, spent: Spent) -> dict[str, str]:
        """What is spent of each limit that is set, for a bar: {"calls": "120/500"}."""
        have = {"max_calls": spent.calls, "max_tokens": spent.read + spent.written, "max_cost": self.cost(spent)}
        return {
            name.removeprefix("max_"): f"{value:,.6g}/{limit:,.6g}"
            for name, value in have.items()
            if (limit := getattr(self, name))
        }

    def cost(self, spent: Spent) -> float:
        """Of what was read and written."""
        return (spent.read * self.input_price + spent.written * self.output_price) / 1e6

    def share(self, workers: int) -> Budget:
        """What each of so many workers may spend, rounded down."""
        whole = {name: max(1, value // workers) if (value := getattr(self, name)) else 0 for name in _COUNTED}
        return replace(self, **whole, max_cost=self.max_cost / workers)


_COUNTED = ("max_calls", "max_tokens")
