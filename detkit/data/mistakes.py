"""Mistakes of a whole export, which no single box or name shows: shares for pixels, corners for sides, swapped corners,
names that differ by their case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_FEWEST = 3  # boxes; fewer may be an accident
_LARGE = 8  # pixels; on a picture of this side, a box of one pixel is no object
_OFTEN = 0.3  # of the boxes


def first_share(boxes: NDArray[np.float64], sizes_hw: NDArray[np.int64]) -> int | None:
    """Return the row of the first box where all of the boxes look like shares of the picture, not pixels; else None.

    They do where at least three are finite and have an area, no coordinate of these is out of 0..1, and the pictures
    are more than a few pixels large.

    Args:
        boxes: [B, 4], xyxy as written.
        sizes_hw: [B, 2], the size of the picture of each box.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        usable = np.asarray(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
        is_share = np.asarray(((boxes >= 0) & (boxes <= 1)).all(1))
    if usable.sum() < _FEWEST or not is_share[usable].all() or np.median(sizes_hw[usable].min(1)) <= _LARGE:
        return None
    return int(np.flatnonzero(usable)[0])


def first_corners(boxes: NDArray[np.float64], sizes_hw: NDArray[np.int64]) -> int | None:
    """Return the row of the first box over the border where all look like corners that were read as a corner and two
    sides; else None.

    They do where there are at least three, over 30 % hang over the border by more than a pixel, and every finite one,
    taken as corners, would lie in its picture, the second corner not before the first.

    Args:
        boxes: [B, 4], xyxy, as made from a corner and two sides.
        sizes_hw: [B, 2], the size of the picture of each box.
    """
    finite = np.asarray(np.isfinite(boxes).all(1))
    low, high = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid="ignore", over="ignore"):
        second = high - low  # as it was written
        over = finite & ((low < -1) | (high > sizes_hw[:, ::-1] + 1)).any(1)
        fits = np.asarray(((low >= 0) & (second >= low) & (second <= sizes_hw[:, ::-1] + 1)).all(1))
    if finite.sum() < _FEWEST or over.sum() <= _OFTEN * finite.sum() or not fits[finite].all():
        return None
    return int(np.flatnonzero(over)[0])


def swapped_corners(boxes: NDArray[np.float64]) -> list[str]:
    """Return a note where over half of the boxes, [B, 4] xyxy, have a negative width or height."""
    with np.errstate(invalid="ignore"):
        negative = int((boxes[:, 2:] < boxes[:, :2]).any(1).sum())
    text = "boxes of a negative width or height: {} of {}; are their corners swapped, or the values in another order?"
    return [text.format(negative, len(boxes))] if 2 * negative > len(boxes) else []


def names_of_two_cases(class_names: Sequence[str]) -> list[str]:
    """Return a note for each group of class names that differ only by their case."""
    groups: dict[str, list[str]] = {}
    for name in class_names:
        groups.setdefault(name.casefold(), []).append(name)
    return [f"the classes {', '.join(map(repr, same))} differ only by their case; are they one class?"
            for same in groups.values() if len(same) > 1]  # fmt: skip


def repeated(names: Sequence[str]) -> Iterator[str]:
    """Yield each name that was there before, every time it comes again."""
    seen = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def box_text(box: Sequence[float] | NDArray[np.float64]) -> str:
    """Return a box for a message."""
    return f"[{', '.join(f'{value:g}' for value in box)}]"
