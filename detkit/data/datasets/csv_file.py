"""Reading boxes from one CSV file: a row per box, corners in pixels from 0, continuous (width = xmax - xmin).

With a header, columns go by name, in any order, and others are passed over; without one they are those of
keras-retinanet, `path,x1,y1,x2,y2,class`. A row with a picture and nothing else is a picture without objects.
Classes are the sorted names in the file; pictures come in the order of their first row, and two spellings of one file
(`a.jpg`, `./a.jpg`) are one picture.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detkit.data.assemble import Found, assemble
from detkit.data.datasets.plain import file_and_images, first_of, is_number, number
from detkit.data.errors import DataError
from detkit.data.file_names import relative_paths_hint
from detkit.data.index import ImageIndex
from detkit.data.index_cache import cached_classes, cached_index
from detkit.data.report import ReadReport
from detkit.registry import DATASETS

# The names that a column may have, in lower case.
_COLUMNS = {
    "picture": ("filename", "file_name", "file", "filepath", "image", "image_path", "path"),
    "x1": ("x1", "xmin", "x_min"),
    "y1": ("y1", "ymin", "y_min"),
    "x2": ("x2", "xmax", "x_max"),
    "y2": ("y2", "ymax", "y_max"),
    "class": ("class", "class_name", "label", "name"),
    "width": ("width",),
    "height": ("height",),
}
_BOX = ("x1", "y1", "x2", "y2", "class")
_REQUIRED = ("picture", *_BOX)
_HEADER = "A header names filename, xmin, ymin, xmax, ymax, class, and may name width and height."


@DATASETS.register(name="csv")
class CsvDataset:
    """`csv:ANNOTATIONS.csv:IMAGES`, a file and the folder that its file names start from."""

    def __init__(self, spec: str) -> None:
        self.annotations, self.images = file_and_images(spec, "csv", "csv")

    def classes(self) -> tuple[str, ...]:
        """Return the sorted names of the classes in the file; reads no picture."""
        known = cached_classes(_cache_key(self.annotations, self.images), [self.annotations])
        return known or _class_names(_read_table(self.annotations), self.annotations)

    def load(self) -> ImageIndex:
        """Return the index of the file."""
        return read_csv(self.annotations, self.images)


@dataclass
class _Table:
    """Pictures by name with their stated sizes (0: none), and for each box its picture, corners and class."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    def add(self, row: Mapping[str, str], place: str) -> None:
        """Add a row; `place` is its file:line."""
        name = row["picture"]
        size = _side(row.get("height", ""), place), _side(row.get("width", ""), place)
        known = self.sizes.setdefault(name, size)
        if 0 in known:
            self.sizes[name] = size
        elif 0 not in size and size != known:
            raise DataError(f"{place}: '{name}' is {size[1]} x {size[0]} here and {known[1]} x {known[0]} in a row "
                            "above; correct one of them")  # fmt: skip
        given = [row[key] for key in _BOX]
        if not any(given):
            return
        if not all(given):
            raise DataError(f"{place}: the box {given} of '{name}' has an empty field; a picture without objects has "
                            "all of them empty")  # fmt: skip
        self.pictures.append(name)
        self.boxes.append(_corners(given[:4], place))
        self.classes.append(given[4])


def read_csv(annotations: Path, images: Path) -> ImageIndex:
    """Return the index of a CSV file whose names start from the folder `images`; ids from 1, in the file's order."""
    key = _cache_key(annotations, images)
    return cached_index(key, [annotations], lambda: _read_csv(annotations, images))


def _cache_key(annotations: Path, images: Path) -> str:
    return f"csv:{annotations}:{os.path.abspath(images)}"


def _read_csv(annotations: Path, images: Path) -> ImageIndex:
    table = _read_table(annotations)
    class_names = _class_names(table, annotations)
    rows = {name: i for i, name in enumerate(table.sizes)}
    place = {name: k for k, name in enumerate(class_names)}
    found = Found.numbered(
        names=list(rows),
        sizes_hw=np.array(list(table.sizes.values()), dtype=np.int64).reshape(-1, 2),
        box_rows=np.array([rows[name] for name in table.pictures], dtype=np.int64),
        boxes=np.array(table.boxes, dtype=np.float64).reshape(-1, 4),
        classes=np.array([place[name] for name in table.classes], dtype=np.int64),
    )
    report = ReadReport(str(annotations), images_read=len(rows), boxes_read=len(table.boxes))
    ids = tuple(range(1, len(class_names) + 1))
    return assemble(found, root=str(images), class_names=class_names, category_ids=ids, report=report)


def _class_names(table: _Table, path: Path) -> tuple[str, ...]:
    if not table.classes:
        raise DataError(f"{path}: no row has a box, so there is nothing to detect")
    return tuple(sorted(set(table.classes)))


def _read_table(path: Path) -> _Table:
    rows = _rows(path)
    header = _header(rows[0][1], rows[0][0]) if rows else []
    columns = header or list(_REQUIRED)
    table = _Table()
    if rows and not header:
        _refuse_unknown_header(rows[0][1], rows[0][0])
    for place, fields in rows[1:] if header else rows:
        if len(fields) != len(columns):
            raise DataError(f"{place}: {len(fields)} fields ({first_of(fields)}), not {len(columns)}. Fields are "
                            f"separated by commas. {_HEADER}")  # fmt: skip
        table.add(dict(zip(columns, fields, strict=True)), place)
    return table


def _rows(path: Path) -> list[tuple[str, list[str]]]:
    """Return the rows that are not blank as (file:line, fields)."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            return [(f"{path}:{reader.line_num}", [text.strip() for text in row]) for row in reader if any(row)]
    except FileNotFoundError:
        raise DataError(f"the annotation file {path} does not exist. {relative_paths_hint(path)}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is not CSV: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _header(fields: Sequence[str], place: str) -> list[str]:
    """Return the meaning of each column, the empty string for none, where a row is a header; else nothing."""
    meaning = {name: key for key, names in _COLUMNS.items() for name in names}
    columns = [meaning.get(text.lower(), "") for text in fields]
    if not set(columns) & {"x1", "y1", "x2", "y2"}:
        return []
    for key in _COLUMNS:
        if columns.count(key) > 1 or (key in _REQUIRED and key not in columns):
            what = "several columns" if key in columns else "no column"
            raise DataError(f"{place}: the header has {what} for the {key} ({', '.join(_COLUMNS[key])}): "
                            f"{first_of(fields, 12)}. {_HEADER}")  # fmt: skip
    return columns


def _refuse_unknown_header(fields: Sequence[str], place: str) -> None:
    """Raise DataError where a first row that is not read as a header has only words: it is one, in other words."""
    if len(fields) > 1 and all(fields) and not any(map(is_number, fields)):
        known = "; ".join(f"{key}: {', '.join(names)}" for key, names in _COLUMNS.items())
        raise DataError(f"{place}: {first_of(fields, 12)} looks like a header, and no column of corners has a known "
                        f"name. Name the columns so ({known}), boxes as corners in pixels.")  # fmt: skip


def _corners(texts: Sequence[str], place: str) -> tuple[float, ...]:
    try:
        return tuple([number(text) for text in texts])
    except ValueError:
        raise DataError(f"{place}: the corners {first_of(texts)} are not four numbers x1, y1, x2, y2. "
                        f"{_HEADER}") from None  # fmt: skip


def _side(text: str, place: str) -> int:
    """Return a width or a height; 0, which is unknown, where the field is empty."""
    try:
        side = number(text or "0")
    except ValueError:
        side = -1.0
    if not (side.is_integer() and 0 <= side < 2**31):
        raise DataError(f"{place}: the width or height {text!r} is not a whole number of pixels; leave it empty, and "
                        "it is measured")  # fmt: skip
    return int(side)
