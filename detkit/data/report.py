"""What happened to a data set while it was read: how much was kept, dropped and repaired, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class ReadReport:
    """Counts of one data set. They add up: what was read is what was kept plus what was dropped.

    Attributes:
        source: what was read, for a person.
        images_read: entries for pictures.
        boxes_read: entries for boxes.
        images_dropped: count by reason.
        boxes_dropped: count by reason.
        fixed: count by repair; what was repaired is among the kept.
        notes: lines on anything else worth knowing.
    """

    source: str
    images_read: int = 0
    boxes_read: int = 0
    images_dropped: Mapping[str, int] = field(default_factory=dict)
    boxes_dropped: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def images_kept(self) -> int:
        """The pictures that are left."""
        return self.images_read - sum(self.images_dropped.values())

    @property
    def boxes_kept(self) -> int:
        """The boxes that are left."""
        return self.boxes_read - sum(self.boxes_dropped.values())

    def without_images(self, reason: str, count: int) -> ReadReport:
        """Return the report with `count` more pictures dropped (none: unchanged)."""
        return replace(self, images_dropped=_added(self.images_dropped, {reason: count}))

    def without_boxes(self, reason: str, count: int) -> ReadReport:
        """Return the report with `count` more boxes dropped (none: unchanged)."""
        return replace(self, boxes_dropped=_added(self.boxes_dropped, {reason: count}))

    def with_fixed(self, repair: str, count: int) -> ReadReport:
        """Return the report with `count` more repairs (none: unchanged)."""
        return replace(self, fixed=_added(self.fixed, {repair: count}))

    def with_notes(self, *notes: str) -> ReadReport:
        """Return the report with more notes."""
        return replace(self, notes=self.notes + notes)

    def __add__(self, other: ReadReport) -> ReadReport:
        return ReadReport(
            source=f"{self.source} + {other.source}",
            images_read=self.images_read + other.images_read,
            boxes_read=self.boxes_read + other.boxes_read,
            images_dropped=_added(self.images_dropped, other.images_dropped),
            boxes_dropped=_added(self.boxes_dropped, other.boxes_dropped),
            fixed=_added(self.fixed, other.fixed),
            notes=self.notes + other.notes,
        )

    def lines(self) -> list[str]:
        """Return the report as lines of text: totals first, then every reason with its count, then the notes."""
        lines = [f"{self.source}: {_kept(self.images_kept, self.images_read)} pictures, "
                 f"{_kept(self.boxes_kept, self.boxes_read)} boxes"]  # fmt: skip
        lines += [f"  pictures dropped, {reason}: {count}" for reason, count in self.images_dropped.items()]
        lines += [f"  boxes dropped, {reason}: {count}" for reason, count in self.boxes_dropped.items()]
        lines += [f"  {repair}: {count}" for repair, count in self.fixed.items()]
        return lines + [f"  {note}" for note in self.notes]


def _kept(kept: int, read: int) -> str:
    return f"{kept}" if kept == read else f"{kept} of {read}"


def _added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    keys = dict.fromkeys([*counts, *more])  # a dict keeps the order of first mention
    total = {key: counts.get(key, 0) + more.get(key, 0) for key in keys}
    return {key: count for key, count in total.items() if count}
