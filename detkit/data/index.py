"""The annotations of a data set as flat arrays: small, quick to pickle, shared by worker processes page by page.

I pictures, B boxes, K classes. The boxes of picture i are rows `box_offsets[i]:box_offsets[i + 1]`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.data.errors import DataError
from detkit.data.report import ReadReport
from detkit.registry import near_misses


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Every picture of a data set and its boxes; what `dataset.load()` returns. Treat the arrays as read-only.

    Attributes:
        root: the folder that file names start from.
        class_names: the K classes; a class is an index into it.
        category_ids: the K ids that the files give these classes, for results in their format.
        name_bytes: uint8, the UTF-8 file names one after the other, `/` between folders.
        name_offsets: int64 [I + 1], where each name starts.
        image_ids: int64 [I], unique.
        sizes_hw: int32 [I, 2], height and width of each picture, upright (EXIF orientation applied).
        box_offsets: int64 [I + 1].
        boxes: float32 [B, 4], xyxy in pixels of the picture, finite; of an index `for_training` inside it, each with an
            area.
        classes: int32 [B] in 0..K-1.
        is_crowd: bool [B], true for a region of many objects (COCO's crowd) and for an object marked as difficult
            (VOC), which only evaluation uses: detections there count neither for nor against.
        areas: float32 [B], what evaluation calls the size of an object: COCO's `area`, else the box's.
        annotation_ids: int64 [B], as in the file.
        report: what was kept, dropped and repaired.
    """

    root: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    name_bytes: NDArray[np.uint8]
    name_offsets: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    sizes_hw: NDArray[np.int32]
    box_offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int32]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    annotation_ids: NDArray[np.int64]
    report: ReadReport

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_boxes(self) -> int:
        """B, over all pictures."""
        return len(self.boxes)

    def file_name(self, i: int) -> str:
        """Return the name of picture i below the root."""
        start, end = self.name_offsets[i], self.name_offsets[i + 1]
        return self.name_bytes[start:end].tobytes().decode()

    def path(self, i: int) -> str:
        """Return the path of picture i."""
        return os.path.join(self.root, self.file_name(i))

    def rows_of(self, i: int) -> slice:
        """Return where the boxes of picture i lie in the arrays of boxes."""
        return slice(int(self.box_offsets[i]), int(self.box_offsets[i + 1]))

    def boxes_of(self, i: int) -> NDArray[np.float32]:
        """Return the boxes of picture i, [g, 4]; g may be 0."""
        return self.boxes[self.rows_of(i)]

    def classes_of(self, i: int) -> NDArray[np.int32]:
        """Return the classes of picture i's boxes, [g]."""
        return self.classes[self.rows_of(i)]

    def objects_of(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """Return the boxes [g, 4], classes [g] and crowd flags [g] of picture i."""
        rows = self.rows_of(i)
        return self.boxes[rows], self.classes[rows].astype(np.int64), self.is_crowd[rows]

    def box_counts(self) -> NDArray[np.int64]:
        """Return the number of boxes of every picture, [I]."""
        return np.diff(self.box_offsets)

    def class_counts(self) -> NDArray[np.int64]:
        """Return the number of boxes of every class, [K]."""
        return np.bincount(self.classes, minlength=len(self.class_names)).astype(np.int64)

    def without_boxes(self, drop: NDArray[np.bool_], reason: str) -> ImageIndex:
        """Return the index without the boxes of a mask [B]; all pictures stay. The report counts them by `reason`, and
        names the first pictures.
        """
        return self.without_boxes_by({reason: drop})

    def without_boxes_by(self, reasons: Mapping[str, NDArray[np.bool_]], *, named: bool = True) -> ImageIndex:
        """Return the index without the boxes of several masks [B], none of them in two; all pictures stay.

        The report counts them by reason and, where `named`, names the first pictures of each.
        """
        drop = np.zeros(self.num_boxes, dtype=np.bool_)
        report = self.report
        for reason, mask in reasons.items():
            drop |= mask
            report = report.without_boxes(reason, int(mask.sum()), self.names_of_boxes(mask) if named else ())
        if not drop.any():
            return self
        before = np.concatenate([[0], np.cumsum(~drop)])
        return replace(
            self,
            box_offsets=before[self.box_offsets].astype(np.int64),
            report=report,
            **{name: getattr(self, name)[~drop] for name in _BOX_COLUMNS},
        )

    def names_of_boxes(self, mask: NDArray[np.bool_]) -> Iterator[str]:
        """Yield the file names of the pictures of the boxes of a mask [B], each once, in order."""
        rows = np.searchsorted(self.box_offsets, np.flatnonzero(mask), side="right") - 1
        return map(self.file_name, dict.fromkeys(rows.tolist()))

    def without_images(self, drop: NDArray[np.bool_], reason: str) -> ImageIndex:
        """Return the index without the pictures of a mask [I] and their boxes. The report counts both, and names the
        first pictures.
        """
        if not drop.any():
            return self
        kept = self.without_boxes(np.repeat(drop, self.box_counts()), f"on dropped pictures ({reason})")
        rows = np.flatnonzero(~drop)
        lengths = np.diff(kept.name_offsets)
        return replace(
            kept,
            name_bytes=kept.name_bytes[np.repeat(~drop, lengths)],
            name_offsets=_offsets(lengths[rows]),
            image_ids=kept.image_ids[rows],
            sizes_hw=kept.sizes_hw[rows],
            box_offsets=_offsets(kept.box_counts()[rows]),
            report=kept.report.without_images(
                reason, int(drop.sum()), map(self.file_name, np.flatnonzero(drop).tolist())
            ),
        )

    def repeated_boxes(self) -> NDArray[np.bool_]:
        """Return bool [B], true for all but the first of the boxes of a picture that agree in everything but area
        and id.
        """
        pictures = np.repeat(np.arange(len(self)), self.box_counts())
        left = self.boxes[:, 0] + np.float32(0)  # no -0.0, whose bits are not those of 0.0
        rows = _rows_with_equals(pictures.astype(np.uint64) << np.uint64(32) | left.view(np.uint32))
        values = np.column_stack([pictures[rows], self.classes[rows], self.is_crowd[rows], self.boxes[rows]])
        _, first = np.unique(values, axis=0, return_index=True)
        repeated = np.zeros(self.num_boxes, dtype=np.bool_)
        repeated[np.delete(rows, first)] = True
        return repeated

    def unusable_boxes(self) -> dict[str, NDArray[np.bool_]]:
        """Return masks [B], none of them in two, of the boxes that show no object, by the reason."""
        inside = _have_area(self._clipped_boxes())
        has_area = _have_area(self.boxes)
        return {"without an area": ~has_area, "wholly outside of the picture": has_area & ~inside}

    def _clipped_boxes(self) -> NDArray[np.float32]:
        limits = np.repeat(self.sizes_hw, self.box_counts(), axis=0)[:, [1, 0, 1, 0]].astype(np.float32)
        return np.minimum(np.maximum(self.boxes, np.float32(0)), limits)

    def for_training(self, *, filter_empty: bool) -> ImageIndex:
        """Return the index with boxes clipped to the picture, without unusable ones, crowd regions, difficult objects
        and repeats of a box and, where `filter_empty`, without the pictures left without a box.
        """
        index = self.without_boxes_by(self.unusable_boxes())
        clipped = index._clipped_boxes()
        over = (np.abs(index.boxes - clipped) > _VISIBLE_OVERHANG).any(1)
        repair = "boxes over the border, clipped to the picture"
        report = index.report.with_fixed(repair, int(over.sum()), index.names_of_boxes(over))
        index = replace(index, boxes=clipped, report=report)
        crowds = "crowd regions and difficult objects, not for training"
        index = index.without_boxes_by({crowds: index.is_crowd}, named=False)  # no fault of the files
        index = index.without_boxes(index.repeated_boxes(), "repeats of the same box, not for training")
        return index.without_images(index.box_counts() == 0, "without a box") if filter_empty else index

    def with_classes(self, class_names: Sequence[str]) -> ImageIndex:
        """Return the index with its classes matched by name to those of a model, in the model's order.

        Boxes of a class that the model does not know are dropped and counted; pictures stay. A class of the model
        that the data lack is noted, and gets a category id above all others. No common name at all is an error.
        """
        names = tuple(class_names)
        if names == self.class_names:
            return self
        if not set(names) & set(self.class_names):
            raise DataError(f"{self.report.source}: its classes {_some(self.class_names)} and the model's "
                            f"{_some(names)} have no name in common. {_near(self.class_names, names)}"
                            "Rename the classes in the annotations, or use the data that the model was trained "
                            "for.")  # fmt: skip
        unknown = {f"of class '{name}', which the model does not have": self.classes == k
                   for k, name in enumerate(self.class_names) if name not in names}  # fmt: skip
        index = self.without_boxes_by(unknown)
        place = np.array([names.index(name) if name in names else -1 for name in self.class_names], dtype=np.int32)
        lacking = [name for name in names if name not in self.class_names]
        notes = [f"classes of the model that these data do not have: {_some(lacking)}"] if lacking else []
        return replace(
            index,
            class_names=names,
            category_ids=_category_ids(self, names),
            classes=place[index.classes],
            report=index.report.with_notes(*notes),
        )

    def identity(self) -> dict[str, Any]:
        """Return, small and JSON, what tells whether a resumed run has the data that it began with.

        That is the classes, counts, and a hash of ids, sizes, boxes and their classes; neither where the pictures lie,
        nor what is in them.
        """
        digest = hashlib.sha256()
        for name in ("image_ids", "sizes_hw", "box_offsets", "boxes", "classes"):
            digest.update(getattr(self, name).tobytes())
        return {
            "classes": list(self.class_names),
            "pictures": len(self),
            "boxes": self.num_boxes,
            "hash of ids, sizes, boxes and classes": digest.hexdigest()[:16],
        }

    def summary(self) -> list[str]:
        """Return lines for a person: the report, then the boxes per class, then the classes without a box."""
        counts = self.class_counts()
        named = [f"{name} {count}" for name, count in zip(self.class_names, counts, strict=True) if count]
        lacking = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        lines = self.report.lines()
        if self.num_boxes:
            empty, crowd = int((self.box_counts() == 0).sum()), int(self.is_crowd.sum())
            crowds = f"; crowd regions and difficult objects: {crowd}" if crowd else ""
            lines.append(f"  pictures without a box: {empty}{crowds}")
            lines.append(f"  boxes per class: {_some(named, quote='')}")
            lines += [f"  classes without a box: {_some(lacking)}"] if lacking else []
        else:
            lines.append("  no boxes: for predictions only")
        return lines


_MIN_SIDE = 1e-3  # pixels; less is an artefact of somebody's arithmetic, not an object
_VISIBLE_OVERHANG = 0.1  # pixels; files round their coordinates, which is not worth a count
_BOX_COLUMNS = ("boxes", "classes", "is_crowd", "areas", "annotation_ids")


def concatenated(indices: Sequence[ImageIndex]) -> ImageIndex:
    """Return several data sets of the same classes, in any order of these, as one.

    Image ids stay where they are unique over all; otherwise pictures are numbered from 1, and the report says so.
    Classes that differ are an error that names them.
    """
    first = indices[0]
    for other in indices[1:]:
        if set(other.class_names) != set(first.class_names):
            raise DataError(f"{first.report.source} has the classes {_some(first.class_names)}, "
                            f"{other.report.source} has {_some(other.class_names)}. Data sets that are trained on "
                            "together need the same classes.")  # fmt: skip
    parts = [_moved(part.with_classes(first.class_names), os.path.commonpath([p.root for p in indices]))
             for part in indices]  # fmt: skip
    columns = ("name_bytes", "image_ids", "sizes_hw", *_BOX_COLUMNS)
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    report = parts[0].report
    for part in parts[1:]:
        report = report + part.report
    if len(np.unique(joined["image_ids"])) < len(joined["image_ids"]):
        joined["image_ids"] = np.arange(1, len(joined["image_ids"]) + 1, dtype=np.int64)
        report = report.with_notes("image ids repeat across these data sets: pictures are numbered anew from 1")
    return replace(
        parts[0],
        name_offsets=_offsets(np.concatenate([np.diff(part.name_offsets) for part in parts])),
        box_offsets=_offsets(np.concatenate([part.box_counts() for part in parts])),
        report=report,
        **joined,
    )


def packed_names(names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return file names as (name_bytes, name_offsets)."""
    encoded = [name.encode() for name in names]
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), _offsets(lengths)


def _moved(index: ImageIndex, root: str) -> ImageIndex:
    """Return the index with its names below another root, a folder above its own."""
    if index.root == root:
        return index
    prefix = os.path.relpath(index.root, root).replace(os.sep, "/")
    names, offsets = packed_names([f"{prefix}/{index.file_name(i)}" for i in range(len(index))])
    return replace(index, root=root, name_bytes=names, name_offsets=offsets)


def _have_area(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.asarray((boxes[:, 2:] - boxes[:, :2] > _MIN_SIDE).all(1))


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _rows_with_equals(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return where the values lie that occur more than once, in order. One sort: 860k boxes take 0.03 s."""
    order = np.argsort(keys)
    same = keys[order][1:] == keys[order][:-1]
    return np.sort(order[np.r_[same, False] | np.r_[False, same]]) if len(keys) else order


def _category_ids(index: ImageIndex, names: tuple[str, ...]) -> tuple[int, ...]:
    known = dict(zip(index.class_names, index.category_ids, strict=True))
    free = iter(range(max(index.category_ids) + 1, max(index.category_ids) + 1 + len(names)))
    return tuple(known[name] if name in known else next(free) for name in names)


def _some(names: Sequence[str], quote: str = "'") -> str:
    """Return up to twelve names, and how many more there are."""
    shown = ", ".join(f"{quote}{name}{quote}" for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _near(names: Sequence[str], others: Sequence[str]) -> str:
    for name in names:
        near = near_misses(name, others)
        if near:
            return f"('{name}' is near {near}.) "
    return ""
