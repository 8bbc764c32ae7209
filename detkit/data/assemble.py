"""From what a reader found in its files to an ImageIndex: the one place where bad boxes and sizes are judged.

Policies, each counted in the report:

- A box with a coordinate that is not a finite number is dropped.
- Evaluation gets every other box as it is, for the AP that others measure on the same files (COCO's own tools judge
  none). `ImageIndex.for_training` clips what hangs over the border, and leaves out boxes without an area or wholly
  outside of the picture, repeats of another box of the same picture, class and kind, crowd regions, difficult objects.
- A picture whose size the annotations do not say is measured; another size than the picture's is an error, for all
  pictures at once, at the start.
- A picture of an unusual kind is converted and counted (`scan`, `image_io`); one that cannot be read is an error.
- A file name that differs by backslashes or by the case of its extension is found and counted; any other missing
  picture, and a name that leaves the image folder, is an error. One file under several image ids is noted; where ids
  are only numbers of ours, its entries are joined to one, and the others counted as dropped.
- Pictures beside those of the annotations, in the same folders, are not used, and noted.
- What looks like a mistake of the whole export (`mistakes`) is an error, or noted.

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
from detkit.data.mistakes import box_text, first_share, names_of_two_cases, repeated, swapped_corners
from detkit.data.report import ReadReport
from detkit.data.scan import Scan, scan_pictures

_LARGEST_AREA = 1e18  # square pixels; more is no area, and would not fit into float32


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
        is_numbered: ids are numbers by order, which no file gives: entries of one file are joined, numbered anew.
        first_pixel: what the file calls the first pixel, which its reader has taken off x0 and y0: 1 for VOC.
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
    is_numbered: bool = False
    first_pixel: int = 0

    @classmethod
    def numbered(
        cls,
        *,
        names: list[str],
        sizes_hw: NDArray[np.int64],
        box_rows: NDArray[np.int64],
        boxes: NDArray[np.float64],
        classes: NDArray[np.int64],
        is_crowd: NDArray[np.bool_] | None = None,
        normalised: bool = False,
        first_pixel: int = 0,
    ) -> Found:
        """Return the columns of a format without ids: pictures and boxes get numbers from 1, in their order.

        Every area is that of the box; without `is_crowd`, no box is a crowd region.
        """
        count = len(boxes)
        return cls(
            names=names,
            image_ids=np.arange(1, len(names) + 1, dtype=np.int64),
            sizes_hw=sizes_hw,
            box_rows=box_rows,
            boxes=boxes,
            classes=classes,
            is_crowd=np.zeros(count, dtype=np.bool_) if is_crowd is None else is_crowd,
            areas=np.full(count, np.nan),
            annotation_ids=np.arange(1, count + 1, dtype=np.int64),
            normalised=normalised,
            is_numbered=True,
            first_pixel=first_pixel,
        )


_BOX_COLUMNS = ("box_rows", "boxes", "classes", "is_crowd", "areas", "annotation_ids")


def assemble(
    found: Found, *, root: str, class_names: tuple[str, ...], category_ids: tuple[int, ...], report: ReadReport
) -> ImageIndex:
    """Return the index of what was found, by the policies above; `report` holds the totals read and earlier drops."""
    found, report = _located(found, root, report)
    scan = scan_pictures(root, found.names, report.source)
    report = _with_sizes(found, scan, root, report)
    found = _by_picture(found)
    _refuse_shares(found, scan.sizes_hw, report.source)
    given = _in_pixels(found, scan.sizes_hw)
    report = report.with_notes(*swapped_corners(given.boxes), *names_of_two_cases(class_names))
    index = _packed(given, scan.sizes_hw, root, class_names, category_ids, report)
    return _judged(index)


def _located(found: Found, root: str, report: ReadReport) -> tuple[Found, ReadReport]:
    """Return what was found under the names of the files, and the report with what had to be done to find them."""
    check_names(found.names, report.source)
    files = resolved_files(root, found.names, report.source)
    for repair, count in files.fixed.items():
        report = report.with_fixed(repair, count)
    repeats = len(files.names) - len(set(files.names))
    found = replace(found, names=files.names)
    if found.is_numbered and repeats:
        report = report.without_images("listed twice", repeats, repeated(files.names))
        found, repeats = _joined(found, report.source), 0
    texts = {
        "pictures listed again under another image id": repeats,
        "other pictures in the same folders, which this set does not list, not used": files.others,
    }
    return found, report.with_notes(*(f"{text}: {count}" for text, count in texts.items() if count))


def _joined(found: Found, source: str) -> Found:
    """Return what was found with one entry for each file, in the order of the first ones, with the boxes of all."""
    place = {name: i for i, name in enumerate(dict.fromkeys(found.names))}
    rows = np.array([place[name] for name in found.names], dtype=np.int64)
    return replace(
        found,
        names=list(place),
        image_ids=np.arange(1, len(place) + 1, dtype=np.int64),
        sizes_hw=_joined_sizes(found, rows, source),
        box_rows=rows[found.box_rows],
    )


def _joined_sizes(found: Found, rows: NDArray[np.int64], source: str) -> NDArray[np.int64]:
    """Return the size that the entries of each file state; `rows` are the files of the entries, [I]."""
    sizes = np.zeros((rows.max() + 1, 2), dtype=np.int64)
    is_known = (found.sizes_hw > 0).all(1)
    sizes[rows[is_known]] = found.sizes_hw[is_known]
    for i in np.flatnonzero(is_known & (found.sizes_hw != sizes[rows]).any(1))[:1]:
        raise DataError(f"{source}: '{found.names[i]}' is listed twice, as {_size(found.sizes_hw[i])} and as "
                        f"{_size(sizes[rows[i]])} pixels; correct one of them")  # fmt: skip
    return sizes


def _by_picture(found: Found) -> Found:
    """Return the boxes of picture 0 first, then those of picture 1, ...; in their order on a picture."""
    order = np.argsort(found.box_rows, kind="stable")
    return replace(found, **{name: getattr(found, name)[order] for name in _BOX_COLUMNS})


def _refuse_shares(found: Found, sizes_hw: NDArray[np.int64], source: str) -> None:
    """Raise DataError where boxes that should be pixels are shares; `sizes_hw` [I, 2]."""
    if found.normalised:
        return
    as_written = found.boxes + np.array([found.first_pixel, found.first_pixel, 0, 0])
    i = first_share(as_written, sizes_hw[found.box_rows])
    if i is not None:
        row = found.box_rows[i]
        raise DataError(f"{source}: all boxes lie between 0 and 1, the first, with the corners "
                        f"{box_text(as_written[i])}, on '{found.names[row]}', a picture of {_size(sizes_hw[row])} "
                        "pixels: they are shares of its width and height, and this format has pixels. Export pixels; "
                        "or export YOLO's format, which is the one with shares.")  # fmt: skip


def _in_pixels(found: Found, sizes_hw: NDArray[np.int64]) -> Found:
    if not found.normalised:
        return found
    with np.errstate(over="ignore"):
        boxes = found.boxes * sizes_hw[found.box_rows][:, [1, 0, 1, 0]]
    return replace(found, boxes=boxes, normalised=False)


def _packed(
    found: Found,
    sizes_hw: NDArray[np.int64],
    root: str,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    report: ReadReport,
) -> ImageIndex:
    """Return the index of boxes in pixels and in the order of pictures, not judged."""
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = found.boxes.astype(np.float32)
        areas = _areas(found.boxes, found.areas).astype(np.float32)
    name_bytes, name_offsets = packed_names(found.names)
    counts = np.bincount(found.box_rows, minlength=len(sizes_hw))
    return ImageIndex(
        root=os.path.abspath(root),
        class_names=class_names,
        category_ids=category_ids,
        name_bytes=name_bytes,
        name_offsets=name_offsets,
        image_ids=found.image_ids,
        sizes_hw=sizes_hw.astype(np.int32),
        box_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes,
        classes=found.classes.astype(np.int32),
        is_crowd=found.is_crowd,
        areas=areas,
        annotation_ids=found.annotation_ids,
        report=report,
    )


def _judged(index: ImageIndex) -> ImageIndex:
    """Drop the boxes that are no boxes, and note what evaluation keeps and training does not."""
    is_finite = np.asarray(np.isfinite(index.boxes).all(1))
    index = index.without_boxes(~is_finite, "with a coordinate that is not a finite number")
    unusable = sum(int(mask.sum()) for mask in index.unusable_boxes().values())
    notes = {
        "boxes without an area, or wholly outside of the picture": unusable,
        "boxes that repeat another one": int(index.repeated_boxes().sum()),
    }
    texts = [f"{what}: {count}, kept for evaluation, left out of training" for what, count in notes.items() if count]
    return replace(index, report=index.report.with_notes(*texts))


def _areas(boxes: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the given areas where there are any, else those of the boxes, [B]."""
    sides = boxes[:, 2:] - boxes[:, :2]
    usable = (given >= 0) & (given < _LARGEST_AREA)
    return np.where(usable, given, np.clip(sides[:, 0] * sides[:, 1], 0, _LARGEST_AREA))


def _with_sizes(found: Found, scan: Scan, root: str, report: ReadReport) -> ReadReport:
    """Return the report with the pictures measured and converted; stated sizes that are wrong are an error."""
    is_unknown = (found.sizes_hw <= 0).any(1)
    wrong = np.flatnonzero(~is_unknown & (found.sizes_hw != scan.sizes_hw).any(1))
    if len(wrong):
        raise DataError(_wrong_sizes_text(found, scan, wrong, root, report.source))
    # No format with shares says a size, so that is not worth a line.
    measured = 0 if found.normalised else int(is_unknown.sum())
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
