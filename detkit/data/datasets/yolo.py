"""Reading labels in YOLO's format: `data.yaml`, folders or lists of pictures, and one label file per picture.

The label file of `images/a/b.jpg` is `labels/a/b.txt`: the last `images` of the path replaced; where that folder is
not there, it is `b.txt` beside the picture. A line is `class cx cy w h` in shares of the picture's width and height.

Policies beyond those of `assemble`: a polygon (`class x1 y1 x2 y2 x3 y3 ...`) is read as its bounding box, and counted.
A picture without a label file has no objects, and is counted in a note; no label file at all is an error. Names that
several indices share are one class. Hidden pictures and folders are passed over, and a label file without a picture is
not used: both are counted in a note. A picture listed twice is read once. Backslashes in a list are slashes.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detkit.data.assemble import assemble
from detkit.data.datasets.plain import files_of, first_of, numbered, read_lines
from detkit.data.datasets.yolo_yaml import YoloYaml, read_yolo_yaml, require_below
from detkit.data.errors import DataError
from detkit.data.file_names import is_picture
from detkit.data.index import ImageIndex
from detkit.data.index_cache import cached_index
from detkit.data.report import ReadReport
from detkit.files import datasets_folder
from detkit.registry import DATASETS

_PIXELS = 2  # a share is 0..1, a little more where a box hangs over; above this it is a coordinate in pixels
_LINE = "A line is 'class cx cy w h', in shares of the picture, or 'class x1 y1 x2 y2 x3 y3 ...'."
_BOM = b"\xef\xbb\xbf"


@DATASETS.register(name="yolo")
class YoloDataset:
    """`yolo:PATH/data.yaml:SPLIT`, a split of train, val (or valid) and test."""

    def __init__(self, spec: str) -> None:
        path, _, split = spec.rpartition(":")
        if not path or not split or "/" in split or "\\" in split:
            raise DataError(f"the data set 'yolo:{spec}' does not name a file and a split. The form is "
                            "yolo:PATH/data.yaml:SPLIT.")  # fmt: skip
        self.path, self.split = datasets_folder() / path, "val" if split == "valid" else split

    def classes(self) -> tuple[str, ...]:
        """Return the names in the order of their indices; reads the data.yaml only."""
        return read_yolo_yaml(self.path).class_names()

    def load(self) -> ImageIndex:
        """Return the index of the split."""
        return read_yolo(self.path, self.split)


@dataclass
class _Labels:
    """The lines of all label files: flat xyxy shares, and for each box its class, its picture and its line."""

    boxes: array[float] = field(default_factory=lambda: array("d"))
    classes: array[float] = field(default_factory=lambda: array("d"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    polygons: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def add_file(self, row: int, path: str) -> None:
        """Read the label file of picture `row`."""
        for number, line in enumerate(_bytes(path).splitlines(), 1):
            if words := line.split():
                try:
                    self._add_line(*map(float, words))
                except (TypeError, ValueError):
                    raise _bad_line(path, number, line) from None
                self.rows.append(row)
                self.lines.append(number)

    def _add_line(self, kind: float, *values: float) -> None:
        if len(values) == 4:
            x, y, w, h = values
            self.boxes.extend((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        elif len(values) >= 6 and len(values) % 2 == 0:
            self.boxes.extend(_bounds(values))
            self.polygons += 1
        else:
            raise ValueError
        self.classes.append(kind)


def read_yolo(path: Path, split: str) -> ImageIndex:
    """Return the index of a split of a data.yaml, its pictures sorted by folder and name, or as listed; ids from 1."""
    described = read_yolo_yaml(path)
    report = ReadReport(f"{path}:{split}")
    parts, notes = described.parts(split)
    pictures, report = _pictures(described, parts, report.with_notes(*notes))
    lists = [part for part in parts if not os.path.isdir(part)]
    labels = sorted({Path(_label_folder(folder)) for folder in set(map(os.path.dirname, pictures))})
    key = f"yolo:{path}:{split}:{described.root}"
    return cached_index(key, [path, *lists, *labels], lambda: _read_yolo(described, pictures, report))


def _read_yolo(described: YoloYaml, pictures: list[str], report: ReadReport) -> ImageIndex:
    paths, report = _label_files(pictures, report)
    labels = _Labels()
    for row, label in enumerate(paths):
        if label:
            labels.add_file(row, label)
    boxes = np.array(labels.boxes, dtype=np.float64).reshape(-1, 4)
    _refuse_pixels(boxes, labels, paths)
    root = os.path.commonpath({os.path.dirname(picture) for picture in pictures})
    found = numbered(
        names=[picture[len(os.path.join(root, "")) :].replace(os.sep, "/") for picture in pictures],
        sizes_hw=np.zeros((len(pictures), 2), dtype=np.int64),
        box_rows=np.array(labels.rows, dtype=np.int64),
        boxes=boxes,
        classes=_classes(labels, described, paths),
        normalised=True,
    )
    report = replace(report, boxes_read=len(labels)).with_notes(*_shared_names(described))
    report = report.with_fixed("polygons, read as their bounding boxes", labels.polygons)
    return assemble(found, root=root, class_names=described.class_names(), category_ids=described.category_ids(),
                    report=report)  # fmt: skip


def _pictures(described: YoloYaml, parts: Sequence[Path], report: ReadReport) -> tuple[list[str], ReadReport]:
    """Return the absolute paths of the pictures of folders and lists, each once."""
    found: list[str] = []
    hidden: list[str] = []
    for part in parts:
        if os.path.isdir(part):
            pictures, passed = _walked(str(part))
            found += pictures
            hidden += passed
        else:
            found += _list_of_pictures(described.root, part)
    if not found:
        raise DataError(f"{report.source}: there is no picture in {', '.join(map(str, parts))}, which holds "
                        f"{first_of(files_of(parts[0]))}")  # fmt: skip
    distinct = list(dict.fromkeys(found))
    report = replace(report, images_read=len(found)).without_images("listed twice", len(found) - len(distinct))
    notes = [f"hidden pictures and folders passed over: {len(hidden)} ({first_of(hidden)})"] if hidden else []
    return distinct, report.with_notes(*notes)


def _walked(folder: str) -> tuple[list[str], list[str]]:
    """Return the pictures of a folder and all below, sorted, and those that are hidden.

    Links are followed, into each folder once: a link may lead in a circle.
    """
    pictures, hidden, seen = [], [], set()
    for inner, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(inner)
        hidden += [name for name in folders if name.startswith(".")]
        hidden += [name for name in files if name.startswith(".") and is_picture(name.lstrip("."))]
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            pictures += [os.path.join(inner, name) for name in files if is_picture(name)]
        seen.add(real)
    return sorted(pictures), hidden


def _list_of_pictures(root: Path, path: Path) -> list[str]:
    """Return the pictures of a .txt list. `./a` starts from its folder; `a` from the root, or from that if it is there.

    Raises DataError where one lies out of the root.
    """
    if path.suffix.lower() != ".txt":
        raise DataError(f"{path} is neither a folder of pictures nor a .txt list of them")
    lines = [line.strip().replace("\\", "/") for line in read_lines(path, "list of pictures")]
    plain = next((line for line in lines if line and not line.startswith("./")), "")
    base = path.parent if not os.path.exists(root / plain) and os.path.exists(path.parent / plain) else root
    found = []
    for number, line in enumerate(lines, 1):
        if line:
            picture = os.path.normpath(os.path.join(path.parent if line.startswith("./") else base, line))
            if not picture.startswith(os.path.join(root, "")):
                require_below(root, Path(picture), f"{path}:{number}: '{line}'")
            found.append(picture)
    return found


def _label_files(pictures: Sequence[str], report: ReadReport) -> tuple[list[str], ReadReport]:
    """Return the label file of each picture, the empty string where it has none."""
    folders: dict[str, tuple[str, set[str]]] = {}
    paths = []
    for picture in pictures:
        folder, base = os.path.split(picture)
        if folder not in folders:
            labels = _label_folder(folder)
            folders[folder] = labels, {name for name in files_of(labels) if name.endswith(".txt")}
        labels, names = folders[folder]
        paths.append(os.path.join(labels, _label_name(base)) if _label_name(base) in names else "")
    if not any(paths):
        labels, names = next(iter(folders.values()))
        raise DataError(f"{report.source}: none of its {len(pictures)} pictures has a label file. Looked for "
                        f"{os.path.join(labels, _label_name(os.path.basename(pictures[0])))}; that folder holds "
                        f"{first_of(sorted(names))}. A label file has the name of its picture, in the folder 'labels' "
                        "beside 'images', or beside the picture.")  # fmt: skip
    return paths, report.with_notes(*_label_notes(paths, folders))


def _label_notes(paths: Sequence[str], folders: dict[str, tuple[str, set[str]]]) -> list[str]:
    """Return what a person may want to know of pictures and label files that do not match one to one."""
    unused: set[str] = set()
    for folder, (_, names) in folders.items():  # LabelImg writes the class names beside the labels
        unused |= names - {_label_name(name) for name in files_of(folder) if is_picture(name)} - {"classes.txt"}
    empty = sum(not path for path in paths)
    shared = len(paths) - empty - len(set(filter(None, paths)))
    texts = {
        "pictures without a label file, read as without objects": empty,
        f"label files without a picture, not used ({first_of(sorted(unused))})": len(unused),
        "pictures that share a label file with another of the same name": shared,
    }
    return [f"{text}: {count}" for text, count in texts.items() if count]


def _label_folder(folder: str) -> str:
    """Return where the labels of a folder of pictures lie."""
    parts = folder.split(os.sep)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        labels = os.sep.join([*parts[:last], "labels", *parts[last + 1 :]])
        return labels if os.path.isdir(labels) else folder
    return folder


def _label_name(picture: str) -> str:
    return picture.rpartition(".")[0] + ".txt"


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read().removeprefix(_BOM)
    except OSError as error:
        raise DataError(f"the label file {path} cannot be read: {error.strerror}") from error


def _bad_line(path: str, number: int, line: bytes) -> DataError:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return DataError(f"the label file {path} is not UTF-8 text. {_LINE}")
    count = len(text.split())
    return DataError(f"{path}:{number}: {text.strip()!r:.100} has {count} values, or one that is no number. {_LINE}")


def _bounds(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the bounding box of x1, y1, x2, y2, ...; NaN where one of them is, for `assemble` to drop."""
    x, y = values[::2], values[1::2]
    if any(map(math.isnan, values)):
        return (math.nan,) * 4
    return min(x), min(y), max(x), max(y)


def _refuse_pixels(boxes: NDArray[np.float64], labels: _Labels, paths: Sequence[str]) -> None:
    large = np.flatnonzero((boxes > _PIXELS).any(1))
    if 2 * len(large) > len(boxes):
        i = int(large[0])
        raise DataError(f"{paths[labels.rows[i]]}:{labels.lines[i]}: the box reaches to {np.nanmax(boxes[i]):g}, which "
                        f"is no share of the picture but pixels, as are {len(large)} of {len(boxes)} boxes of the "
                        "split. Divide x and w by the picture's width, y and h by its height.")  # fmt: skip


def _classes(labels: _Labels, described: YoloYaml, paths: Sequence[str]) -> NDArray[np.int64]:
    """Return the class of each box [B]. Raises DataError at the first index that has no name."""
    kinds, inverse = np.unique(np.array(labels.classes, dtype=np.float64), return_inverse=True)
    place = {name: k for k, name in enumerate(described.class_names())}
    for kind in kinds:
        if kind not in described.names:
            i = int(np.flatnonzero(inverse == np.searchsorted(kinds, kind))[0])
            raise DataError(f"{paths[labels.rows[i]]}:{labels.lines[i]}: the class {kind:g} is not one of the "
                            f"{len(described.names)} of {described.path}: "
                            f"{first_of([f'{k} {name}' for k, name in described.names.items()], 12)}")  # fmt: skip
    return np.array([place[described.names[int(kind)]] for kind in kinds], dtype=np.int64)[inverse]


def _shared_names(described: YoloYaml) -> list[str]:
    names = list(described.names.values())
    return [
        f"the indices {[i for i, other in described.names.items() if other == name]} are all named '{name}': read as "
        "one class"
        for name in described.class_names()
        if names.count(name) > 1
    ]
