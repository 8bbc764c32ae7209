"""From what a reader found in its files to an ImageIndex: the one place where bad boxes and sizes are judged.

Policies, each counted in the report: a box with a coordinate that is not a finite number, without an area, or wholly
outside of its picture is dropped; one that hangs over the border is clipped; a picture whose size the annotations
do not say is measured. A file name that leaves the image folder, and a missing picture, is an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detkit.data.file_names import check_files, check_names
from detkit.data.image_io import image_size
from detkit.data.index import ImageIndex, packed_names
from detkit.data.report import ReadReport

MIN_SIDE = 1e-3  # pixels; less is an artefact of somebody's arithmetic, not an object
_LARGEST_AREA = 1e18  # square pixels; more is no area, and would not fit into float32
_VISIBLE_OVERHANG = 0.1  # pixels; files round their coordinates, which is not worth a count


@dataclass
class Found:
    """What a reader found, in any order of boxes.

    Attributes:
        names: I file names below the image folder.
        image_ids: int64 [I].
        sizes_hw: int64 [I, 2]; a size that is not positive is unknown.
        box_rows: int64 [B], the picture of each box as an index into `names`.
        boxes: float64 [B, 4], xyxy, in any state.
        classes: int64 [B].
        is_crowd: bool [B].
        areas: float64 [B]; not a number, negative or endless is unknown.
        annotation_ids: int64 [B].
    """

    names: list[str]
    image_ids: NDArray[np.int64]
    sizes_hw: NDArray[np.int64]
    box_rows: NDArray[np.int64]
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]


def assemble(
    found: Found, *, root: str, class_names: tuple[str, ...], category_ids: tuple[int, ...], report: ReadReport
) -> ImageIndex:
    """Return the index of what was found, by the policies above; `report` holds the totals read and earlier drops."""
    check_names(found.names, report.source)
    check_files(root, found.names, report.source)
    sizes, report = _known_sizes(found, root, report)
    order = np.argsort(found.box_rows, kind="stable")
    rows, boxes = found.box_rows[order], found.boxes[order]
    with np.errstate(invalid="ignore", over="ignore"):
        clipped = _clipped(boxes, sizes[rows])
        areas = _areas(clipped, found.areas[order])
    names, name_offsets = packed_names(found.names)
    counts = np.bincount(rows, minlength=len(sizes))
    index = ImageIndex(
        root=os.path.abspath(root),
        class_names=class_names,
        category_ids=category_ids,
        name_bytes=names,
        name_offsets=name_offsets,
        image_ids=found.image_ids,
        sizes_hw=sizes.astype(np.int32),
        box_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=clipped.astype(np.float32),
        classes=found.classes[order].astype(np.int32),
        is_crowd=found.is_crowd[order],
        areas=areas.astype(np.float32),
        annotation_ids=found.annotation_ids[order],
        report=report,
    )
    return _judged(index, boxes)


def _judged(index: ImageIndex, given: NDArray[np.float64]) -> ImageIndex:
    """Drop the boxes that cannot be used, by how they were given (float64 [B, 4]) and what clipping left of them."""
    finite = _all(np.isfinite(given))
    with np.errstate(invalid="ignore", over="ignore"):
        positive = _all(given[:, 2:] - given[:, :2] > MIN_SIDE)
        inside = _all(index.boxes[:, 2:] - index.boxes[:, :2] > MIN_SIDE)
        still = _all(np.abs(given - index.boxes) <= _VISIBLE_OVERHANG)
    reasons = {
        "with a coordinate that is not a finite number": ~finite,
        "without an area": finite & ~positive,
        "wholly outside of the picture": finite & positive & ~inside,
    }
    clipped = int((finite & positive & inside & ~still).sum())
    index = replace(index, report=index.report.with_fixed("boxes over the border, clipped to the picture", clipped))
    left = np.ones(len(given), dtype=np.bool_)
    for reason, drop in reasons.items():
        index = index.without_boxes(drop[left], reason)
        left = left & ~drop
    return index


def _areas(boxes: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the given areas where there are any, else those of the boxes, [B]."""
    sides = boxes[:, 2:] - boxes[:, :2]
    usable = (given >= 0) & (given < _LARGEST_AREA)
    return np.where(usable, given, sides[:, 0] * sides[:, 1])


def _all(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether all of a row is true, [B]."""
    return np.asarray(mask.all(1))


def _known_sizes(found: Found, root: str, report: ReadReport) -> tuple[NDArray[np.int64], ReadReport]:
    unknown = np.flatnonzero((found.sizes_hw <= 0).any(1))
    sizes = found.sizes_hw.copy()
    for i in unknown:
        sizes[i] = image_size(os.path.join(root, found.names[i]))
    return sizes, report.with_fixed("pictures of a size the annotations do not say, measured", len(unknown))


def _clipped(boxes: NDArray[np.float64], sizes_hw: NDArray[np.int64]) -> NDArray[np.float64]:
    limits = sizes_hw[:, [1, 0, 1, 0]].astype(np.float64)
    return np.minimum(np.maximum(boxes, 0), limits)
