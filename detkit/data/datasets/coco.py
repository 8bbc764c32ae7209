"""Reading annotations in COCO's format (`images`, `annotations`, `categories`; boxes as x, y, width, height).

Policies beyond those of `assemble`: an annotation of an unknown picture is dropped and counted (all of them: an error);
of an unknown category, an error. A picture listed twice the same is read once; one id for two pictures is an error.
Annotation ids that repeat or are missing are numbered anew, noted. Categories of one name (without the space around it)
are one class, noted; one id for two names is an error. Ids may start anywhere and have gaps. A file without
`annotations` is for predictions only. Boxes that look like corners are an error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detkit.data.assemble import Found, assemble
from detkit.data.datasets.plain import file_and_images
from detkit.data.errors import DataError
from detkit.data.file_names import is_encodable, relative_paths_hint
from detkit.data.index import ImageIndex
from detkit.data.index_cache import cached_classes, cached_index
from detkit.data.mistakes import box_text, first_corners
from detkit.data.report import ReadReport
from detkit.registry import DATASETS


@DATASETS.register(name="coco")
class CocoDataset:
    """`coco:ANNOTATIONS.json:IMAGES`, a file and the folder that its file names start from."""

    def __init__(self, spec: str) -> None:
        self.annotations, self.images = file_and_images(spec, "coco", "json")

    def classes(self) -> tuple[str, ...]:
        """Return the names of the file's categories, sorted by id; reads no picture."""
        known = cached_classes(_cache_key(self.annotations, self.images), [self.annotations])
        return known or read_coco_classes(self.annotations)

    def load(self) -> ImageIndex:
        """Return the index of the file."""
        return read_coco(self.annotations, self.images)


def read_coco(annotations: Path, images: Path) -> ImageIndex:
    """Return the index of a COCO file whose names start from the folder `images`; from the cache where it is known."""
    key = _cache_key(annotations, images)
    return cached_index(key, [annotations], lambda: _read_coco(annotations, images))


def _cache_key(annotations: Path, images: Path) -> str:
    return f"coco:{annotations}:{os.path.abspath(images)}"  # the report names the file as it was given


def _read_coco(annotations: Path, images: Path) -> ImageIndex:
    data, source = _read_json(annotations), str(annotations)
    class_names, class_of, lowest = _categories(data, source)
    records = _records(data, "images", source)
    notes = _records(data, "annotations", source) if "annotations" in data else []
    report = ReadReport(source, images_read=len(records), boxes_read=len(notes))
    found, categories, report = _found(records, notes, class_of, report)
    report = report.with_notes(*_shared_names(class_names, class_of))
    report = report if "annotations" in data else report.with_notes("the file has no 'annotations'")
    category_ids = _result_ids(categories, class_of, lowest)
    index = assemble(found, root=str(images), class_names=class_names, category_ids=category_ids, report=report)
    _refuse_corners(found, index.sizes_hw[found.box_rows], source)
    return index


def _refuse_corners(found: Found, sizes_hw: NDArray[np.int32], source: str) -> None:
    """Raise DataError where the boxes [B, 4] look like corners; `sizes_hw` [B, 2] are the sizes of their pictures."""
    i = first_corners(found.boxes, sizes_hw.astype(np.int64))
    if i is not None:
        x, y, x1, y1 = found.boxes[i]
        height, width = sizes_hw[i]
        raise DataError(f"{source}: the boxes look like corners: annotation {found.annotation_ids[i]} has the bbox "
                        f"{box_text([x, y, x1 - x, y1 - y])} on '{found.names[found.box_rows[i]]}', which is {width} x "
                        f"{height} pixels. COCO's bbox must be [x, y, width, height]. Export it so, or subtract x and "
                        "y from the third and the fourth value of every bbox.")  # fmt: skip


def _found(
    records: list[dict[str, Any]], notes: list[dict[str, Any]], class_of: dict[int, int], report: ReadReport
) -> tuple[Found, NDArray[np.int64], ReadReport]:
    """Return pictures and annotations as columns, and the category of each annotation, [B]."""
    records, ids, report = _pictures(records, report)
    notes, box_rows, report = _of_known_pictures(notes, ids, report)
    categories = _integers(notes, "category_id", report.source)
    annotation_ids, report = _annotation_ids(notes, report)
    found = Found(
        names=[record.get("file_name", "") for record in records],
        image_ids=ids,
        sizes_hw=_sizes(records),
        box_rows=box_rows,
        boxes=_boxes(notes, report.source),
        classes=_classes(categories, class_of, notes, report.source),
        is_crowd=np.array([_number(note.get("iscrowd")) > 0 for note in notes], dtype=bool),
        areas=np.array([_number(note.get("area")) for note in notes], dtype=np.float64),
        annotation_ids=annotation_ids,
    )
    return found, categories, report


def read_coco_classes(annotations: Path) -> tuple[str, ...]:
    """Return the class names of a COCO file, sorted by category id; a name that two categories share appears once."""
    return _categories(_read_json(annotations), str(annotations))[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with _collector_paused():
            data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"the annotation file {path} does not exist. {relative_paths_hint(path)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"the annotation file {path} cannot be read as JSON: {error}. "
                        "Is the download or the export complete?") from error  # fmt: skip
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}, not an object with 'images' and 'categories'; "
                        "is it a results file?")  # fmt: skip
    return data


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking millions of new objects again and again: 4.6 s, not 7.6, for COCO."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _records(data: dict[str, Any], key: str, source: str) -> list[dict[str, Any]]:
    value = data.get(key)
    if not isinstance(value, list):
        what = "no" if key not in data else f"a {type(value).__name__} as"
        raise DataError(f"{source} has {what} '{key}'; COCO's format has a list there. Its keys: {list(data)[:8]}.")
    for i, record in enumerate(value):
        if not isinstance(record, dict):
            raise DataError(f"{source}: entry {i} of '{key}' is {record!r:.80}, not an object with named values")
    return value


def _categories(data: dict[str, Any], source: str) -> tuple[tuple[str, ...], dict[int, int], list[int]]:
    """Return the class names, the class of each category id, and the lowest id of each class."""
    records = _records(data, "categories", source)
    ids = _integers(records, "id", source)
    class_of: dict[int, int] = {}
    names: dict[str, int] = {}
    lowest: list[int] = []
    for row in np.argsort(ids, kind="stable"):
        name, category = records[row].get("name"), int(ids[row])
        if not isinstance(name, str) or not name.strip() or not is_encodable(name):
            raise DataError(f"{source}: category {category} has the name {name!r}; give it one")
        name = name.strip()  # as the readers of the other formats do
        if category in class_of and class_of[category] != names.get(name):
            raise DataError(f"{source}: two categories have the id {category}, one of them is '{name}'; number them "
                            "differently")  # fmt: skip
        if name not in names:
            names[name] = len(names)
            lowest.append(category)
        class_of[category] = names[name]
    if not names:
        raise DataError(f"{source}: 'categories' is empty, so there is nothing to detect")
    return tuple(names), class_of, lowest


def _shared_names(class_names: tuple[str, ...], class_of: dict[int, int]) -> list[str]:
    """Return a note for each name that several categories have, and which are so one class."""
    ids = [[category for category, k in class_of.items() if k == label] for label in range(len(class_names))]
    return [
        f"the categories {sorted(same)} are all named '{name}': read as one class"
        for name, same in zip(class_names, ids, strict=True)
        if len(same) > 1
    ]


def _result_ids(categories: NDArray[np.int64], class_of: dict[int, int], lowest: list[int]) -> tuple[int, ...]:
    """Return the id that results give each class: the lowest in use; one name may have several."""
    ids = list(lowest)
    for category in sorted(set(categories.tolist()), reverse=True):
        ids[class_of[category]] = category
    return tuple(ids)


def _pictures(
    records: list[dict[str, Any]], report: ReadReport
) -> tuple[list[dict[str, Any]], NDArray[np.int64], ReadReport]:
    """Return the pictures without repeats, and their ids."""
    ids = _integers(records, "id", report.source)
    _, first = np.unique(ids, return_index=True)
    if len(first) == len(ids):
        return records, ids, report
    place = {int(ids[row]): records[row].get("file_name") for row in first}
    others = np.setdiff1d(np.arange(len(ids)), first)
    for row in others:
        name, other = records[row].get("file_name"), place[int(ids[row])]
        if name != other:
            raise DataError(f"{report.source}: two pictures have the id {ids[row]}: '{other}' and '{name}'; whose "
                            "the boxes are cannot be told. Give every picture its own id.")  # fmt: skip
    rows = np.sort(first)
    report = report.without_images("listed twice", len(others), [str(records[row].get("file_name")) for row in others])
    return [records[row] for row in rows], ids[rows], report


def _of_known_pictures(
    notes: list[dict[str, Any]], ids: NDArray[np.int64], report: ReadReport
) -> tuple[list[dict[str, Any]], NDArray[np.int64], ReadReport]:
    """Return the annotations whose picture is listed, and the row of that picture."""
    wanted = _integers(notes, "image_id", report.source)
    order = np.argsort(ids)
    place = np.searchsorted(ids[order], wanted)
    known = np.zeros(len(wanted), dtype=bool)
    within = place < len(ids)
    known[within] = ids[order][place[within]] == wanted[within]
    if len(wanted) and not known.any():
        raise DataError(f"{report.source}: no annotation belongs to a listed picture: annotations name the image ids "
                        f"{wanted[:3].tolist()}, pictures have {ids[:3].tolist()}. Export both together.")  # fmt: skip
    lost = wanted[~known].tolist()
    report = report.without_boxes("of a picture that is not listed", len(lost), [f"image_id {i}" for i in lost])
    kept = notes if known.all() else [notes[i] for i in np.flatnonzero(known)]
    return kept, order[place[known]], report


def _classes(
    categories: NDArray[np.int64], class_of: dict[int, int], notes: list[dict[str, Any]], source: str
) -> NDArray[np.int64]:
    distinct, inverse = np.unique(categories, return_inverse=True)
    for category in distinct:
        if int(category) not in class_of:
            row = int(np.flatnonzero(categories == category)[0])
            raise DataError(f"{source}: annotation {notes[row].get('id')} has the category {category}, which "
                            f"'categories' does not list (it has {sorted(class_of)[:12]}). Add it there, or take its "
                            "annotations out.")  # fmt: skip
    return np.array([class_of[int(c)] for c in distinct], dtype=np.int64)[inverse]


def _boxes(notes: list[dict[str, Any]], source: str) -> NDArray[np.float64]:
    """Return the boxes as xyxy float64 [B, 4]; a null coordinate becomes NaN."""
    try:
        xywh = np.array([note["bbox"] for note in notes], dtype=np.float64).reshape(len(notes), 4)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad_box(notes, source) from error
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)


def _bad_box(notes: list[dict[str, Any]], source: str) -> DataError:
    for note in notes:
        try:
            fine = np.array(note["bbox"], dtype=np.float64).shape == (4,)
        except (KeyError, TypeError, ValueError, OverflowError):
            fine = False
        if not fine:
            break
    return DataError(f"{source}: annotation {note.get('id')} of picture {note.get('image_id')} has the bbox "
                     f"{note.get('bbox')!r:.80}, not four numbers x, y, width, height")  # fmt: skip


def _annotation_ids(notes: list[dict[str, Any]], report: ReadReport) -> tuple[NDArray[np.int64], ReadReport]:
    """Return the ids of annotations; where they are no distinct integers, nothing needs them, and all are numbered."""
    try:
        ids = _integers(notes, "id", report.source)
    except DataError:
        ids = np.zeros(len(notes), dtype=np.int64)
    repeats = len(ids) - len(np.unique(ids))
    if not repeats:
        return ids, report
    return np.arange(1, len(ids) + 1, dtype=np.int64), report.with_notes(
        f"{repeats} annotation ids repeat or are missing: annotations are numbered anew from 1"
    )


def _integers(records: Sequence[dict[str, Any]], key: str, source: str) -> NDArray[np.int64]:
    """Return a value of every record as int64; text of digits and whole floats are taken as the integers they spell."""
    values = [record.get(key) for record in records]
    if all(type(value) is int for value in values):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            pass
    return np.array([_integer(value, key, source) for value in values], dtype=np.int64)


def _integer(value: object, key: str, source: str) -> int:
    try:
        if isinstance(value, str) and "_" in value:
            raise ValueError  # int takes `1_0` for 10
        number = int(value) if isinstance(value, str) else value
        if (
            isinstance(number, (int, float))
            and not isinstance(number, bool)
            and int(number) == number
            and abs(number) < 2**63
        ):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise DataError(f"{source}: the value {value!r:.80} of '{key}' is not an integer, which COCO's results need; "
                    "number the entries in the export")  # fmt: skip


def _sizes(records: list[dict[str, Any]]) -> NDArray[np.int64]:
    """Return [I, 2] (height, width); 0 where the file does not say."""
    pairs = [(_number(record.get("height")), _number(record.get("width"))) for record in records]
    sizes = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    usable = np.isfinite(sizes) & (sizes == np.round(sizes)) & (sizes > 0) & (sizes < 2**31)
    return np.where(usable, sizes, 0).astype(np.int64)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return float("nan")
