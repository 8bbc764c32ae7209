"""One row of results: what was measured, against what, and the mark that it should reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from measuring import Spread, Timings

Relation = Literal["faster", "times", "itself", "exponent"]


@dataclass(frozen=True)
class Row:
    """A measured figure.

    `relation` says what `measured` is: how many times faster than the other ("faster"), how many times the other
    ("times"), the amount itself, or an exponent. The mark is a least value for "faster", else a largest one.
    """

    what: str
    against: str
    relation: Relation
    measured: Spread
    mark: float | None = None
    unit: str = "ms"  # of the amounts
    ours: Spread | None = None
    theirs: Spread | None = None
    disturbed: int = 0  # rounds that others disturbed, of
    rounds: int = 1

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the mark; None without a mark."""
        if self.mark is None:
            return None
        return self.measured.median >= self.mark if self.relation == "faster" else self.measured.median <= self.mark


@dataclass
class Found:
    """What a case found: rows, and curves of (number of boxes, milliseconds) by name."""

    rows: list[Row] = field(default_factory=list)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Found:
        """Return what `dataclasses.asdict` took apart."""
        return cls([_row(row) for row in values["rows"]], values["curves"])


def _row(values: dict[str, Any]) -> Row:
    spreads = {name: Spread(**values[name]) for name in ("measured", "ours", "theirs") if values[name]}
    return Row(**{**values, **spreads})


def compared(
    what: str, timings: Timings, ours: str, theirs: str, relation: Literal["faster", "times"], mark: float | None = None
) -> Row:
    """Return the row of two contenders of one measurement."""
    measured = timings.ratio(theirs, ours) if relation == "faster" else timings.ratio(ours, theirs)
    amounts = timings.spread(ours), timings.spread(theirs)
    return Row(what, theirs, relation, measured, mark, "ms", *amounts, timings.disturbed, timings.rounds)


def alone(what: str, timings: Timings, ours: str, mark: float | None = None) -> Row:
    """Return the row of one contender by itself."""
    time = timings.spread(ours)
    return Row(what, "", "itself", time, mark, "ms", time, None, timings.disturbed, timings.rounds)


def memory(what: str, ours_mb: float, against: str, theirs_mb: float, mark: float) -> Row:
    """Return the row of a peak of memory and an amount to compare it with."""
    once = (Spread.of([value]) for value in (ours_mb / theirs_mb, ours_mb, theirs_mb))
    measured, ours, theirs = once
    return Row(what, against, "times", measured, mark, "MB", ours, theirs)
