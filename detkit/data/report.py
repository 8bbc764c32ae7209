"""What happened to a data set while it was read: how much was kept, dropped and repaired, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

_SHOWN = 3  # names at the end of a line


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
        examples: the first names, mostly of pictures, behind a count, by the line's text; of more than are shown, one
            more.
    """

    source: str
    images_read: int = 0
    boxes_read: int = 0
    images_dropped: Mapping[str, int] = field(default_factory=dict)
    boxes_dropped: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def images_kept(self) -> int:
        """The pictures that are left."""
        return self.images_read - sum(self.images_dropped.values())

    @property
    def boxes_kept(self) -> int:
        """The boxes that are left."""
        return self.boxes_read - sum(self.boxes_dropped.values())

    def without_images(self, reason: str, count: int, names: Iterable[str] = ()) -> ReadReport:
        """Return the report with `count` more pictures dropped (none: unchanged); the first `names` are shown."""
        report = replace(self, images_dropped=_added(self.images_dropped, {reason: count}))
        return report._with_examples(_IMAGES + reason, names)

    def without_boxes(self, reason: str, count: int, names: Iterable[str] = ()) -> ReadReport:
        """Return the report with `count` more boxes dropped (none: unchanged); the first `names` are shown."""
        report = replace(self, boxes_dropped=_added(self.boxes_dropped, {reason: count}))
        return report._with_examples(_BOXES + reason, names)

    def with_fixed(self, repair: str, count: int, names: Iterable[str] = ()) -> ReadReport:
        """Return the report with `count` more repairs (none: unchanged); the first `names` are shown."""
        report = replace(self, fixed=_added(self.fixed, {repair: count}))
        return report._with_examples(repair, names)

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
            examples=_joined(self.examples, other.examples),
        )

    def lines(self) -> list[str]:
        """Return the report as lines of text: totals first, then every reason with its count and the first names, then
        the notes.
        """
        lines = [f"{self.source}: {_kept(self.images_kept, self.images_read)} pictures, "
                 f"{_kept(self.boxes_kept, self.boxes_read)} boxes"]  # fmt: skip
        lines += [self._line(_IMAGES + reason, count) for reason, count in self.images_dropped.items()]
        lines += [self._line(_BOXES + reason, count) for reason, count in self.boxes_dropped.items()]
        lines += [self._line(repair, count) for repair, count in self.fixed.items()]
        return lines + [f"  {note}" for note in self.notes]

    def _line(self, text: str, count: int) -> str:
        names = self.examples.get(text, ())
        more = ", ..." if len(names) > _SHOWN else ""
        return f"  {text}: {count}" + (f" ({', '.join(map(repr, names[:_SHOWN]))}{more})" if names else "")

    def _with_examples(self, text: str, names: Iterable[str]) -> ReadReport:
        distinct = _first_distinct(names)
        return replace(self, examples=_joined(self.examples, {text: distinct})) if distinct else self


_IMAGES, _BOXES = "pictures dropped, ", "boxes dropped, "


def _kept(kept: int, read: int) -> str:
    return f"{kept}" if kept == read else f"{kept} of {read}"


def _added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    keys = dict.fromkeys([*counts, *more])  # a dict keeps the order of first mention
    total = {key: counts.get(key, 0) + more.get(key, 0) for key in keys}
    return {key: count for key, count in total.items() if count}


def _first_distinct(names: Iterable[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in names:
        found[name] = None
        if len(found) > _SHOWN:  # naming all pictures of a large set takes long
            break
    return tuple(found)


def _joined(names: Mapping[str, tuple[str, ...]], more: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    keys = dict.fromkeys([*names, *more])
    return {key: tuple(dict.fromkeys(names.get(key, ()) + more.get(key, ())))[: _SHOWN + 1] for key in keys}
