"""From what a reader found in its files to an ImageIndex: the one place where bad boxes and sizes are judged.

Policies, each counted in the report:

- A box with a coordinate that is not a finite number, without an area, or wholly outside of its picture is dropped;
  one that hangs over the border is clipped.
- A box that repeats another one of the same picture, class and kind is kept for evaluation (as COCO does), noted, and
  left out of training by `ImageIndex.for_training`, which also leaves out crowd regions and difficult objects.
- A picture whose size the annotations do not say is measured; another size than the picture's is an error, for all
  pictures at once, at the start.
- A picture of an unusual kind is converted and counted (`scan`, `image_io`); one that cannot be read is an error.
- A file name that differs by backslashes or by the case of its extension is found and counted; any other missing
  picture, and a name that leaves the image folder, is an error. One file under several image ids is noted.

What only a format can judge (ids, unknown classes, pictures that are not listed) is in the module of the format.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detkit.data.errors import DataError
from detkit.data.file_names import check_names, resolved_files
from detkit.data.index import ImageIndex, packed_names
from detkit.data.report import ReadReport
from detkit.data.scan import Scan, scan_pictures

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
        is_crowd: bool [B], true for a crowd region or a difficult object, which only evaluation uses.
        areas: float64 [B]; not a number, negative or endless is unknown.
        annotation_ids: int64 [B].
        normalised: boxes are shares of the picture's width and height, not pixels; they are multiplied by its size
            before they are judged.
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
    normalised: bool = False


def assemble(
    found: Found, *, root: str, class_names: tuple[str, ...], category_ids: tuple[int, ...], report: ReadReport
) -> ImageIndex:
    """Return the index of what was found, by the policies above; `report` holds the totals read and earlier drops."""
    check_names(found.names, report.source)
    files, report = _files(found.names, root, report)
    scan = scan_pictures(root, files, report.source)
    sizes, report = scan.sizes_hw, _with_sizes(found, scan, root, report)
    order = np.argsort(found.box_rows, kind="stable")
    rows, boxes = found.box_rows[order], found.boxes[order]
    if found.normalised:
        with np.errstate(over="ignore"):
            boxes = boxes * sizes[rows][:, [1, 0, 1, 0]]
    with np.errstate(invalid="ignore", over="ignore"):
        clipped = _clipped(boxes, sizes[rows])
        areas = _areas(clipped, found.areas[order])
    names, name_offsets = packed_names(files)
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
    return _with_repeats_noted(_judged(index, boxes))


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


def _files(names: list[str], root: str, report: ReadReport) -> tuple[list[str], ReadReport]:
    """Return the names of the files, and the report with what had to be done to find them."""
    files, fixed = resolved_files(root, names, report.source)
    for repair, count in fixed.items():
        report = report.with_fixed(repair, count)
    repeats = len(files) - len(set(files))
    return files, report.with_notes(*([f"pictures listed again under another image id: {repeats}"] if repeats else []))


def _with_sizes(found: Found, scan: Scan, root: str, report: ReadReport) -> ReadReport:
    """Return the report with the pictures measured and converted; stated sizes that are wrong are an error."""
    is_unknown = (found.sizes_hw <= 0).any(1)
    wrong = np.flatnonzero(~is_unknown & (found.sizes_hw != scan.sizes_hw).any(1))
    if len(wrong):
        raise DataError(_wrong_sizes_text(found, scan, wrong, root, report.source))
    measured = int(is_unknown.sum())
    return scan.added_to(report.with_fixed("pictures of a size the annotations do not say, measured", measured))


def _wrong_sizes_text(found: Found, scan: Scan, wrong: NDArray[np.int64], root: str, source: str) -> str:
    lines = [
        f"'{found.names[i]}' is {_size(scan.sizes_hw[i])}, the annotations say {_size(found.sizes_hw[i])}"
        for i in wrong[:5]
    ]
    turned = int(scan.is_turned[wrong].sum())
    return (
        f"{source}: {len(wrong)} of {len(found.names)} pictures in {root} are not of the size that the annotations say "
        f"(width x height), so their boxes may be wrong: {'; '.join(lines)}{'; ...' if len(wrong) > 5 else ''}. "
        "Correct the sizes; or set them to 0 in the annotations to have them measured (the boxes are then taken as "
        "pixels of the upright picture)."
        + (f" {turned} of them are turned by their EXIF orientation: save these pictures upright, or remove the tag if "
           "the boxes were drawn on the unturned pixels." if turned else "")
    )  # fmt: skip


def _size(size_hw: Sequence[int] | NDArray[np.int64]) -> str:
    return f"{size_hw[1]} x {size_hw[0]}"


def _with_repeats_noted(index: ImageIndex) -> ImageIndex:
    repeats = int(index.repeated_boxes().sum())
    if not repeats:
        return index
    note = f"boxes that repeat another one: {repeats}, kept for evaluation, left out of training"
    return replace(index, report=index.report.with_notes(note))


def _clipped(boxes: NDArray[np.float64], sizes_hw: NDArray[np.int64]) -> NDArray[np.float64]:
    limits = sizes_hw[:, [1, 0, 1, 0]].astype(np.float64)
    return np.minimum(np.maximum(boxes, 0), limits)
