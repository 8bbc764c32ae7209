"""Reading labels in YOLO's format: `data.yaml`, folders or lists of pictures, and one label file per picture.

A line of a label file is `class cx cy w h` in shares of the picture's width and height; `yolo_labels` finds the files.

Policies beyond those of `assemble`: a polygon (`class x1 y1 x2 y2 x3 y3 ...`) is read as its bounding box, and counted.
A picture without a label file has no objects, and is counted in a note; a folder or list none of whose pictures has one
is an error. Names that several indices share are one class. Hidden pictures and folders are passed over, and a label
file without a picture is not used: both are counted in a note. Backslashes in a list are slashes.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detkit.data.assemble import Found, assemble
from detkit.data.datasets.plain import files_of, first_of, is_number, read_lines
from detkit.data.datasets.yolo_labels import Entry, label_files, label_folder
from detkit.data.datasets.yolo_yaml import YoloYaml, read_yolo_yaml, require_below
from detkit.data.errors import DataError
from detkit.data.file_names import check_names, is_picture, resolved_files
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
                    if b"_" in line:
                        raise ValueError  # float takes `0_1` for 1
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
    parts, notes = described.parts(split)
    entries, report = _entries(described, parts, ReadReport(f"{path}:{split}").with_notes(*notes))
    lists = [part for part in parts if not os.path.isdir(part)]
    folders = {os.path.dirname(picture) for _, pictures in entries for picture in pictures}
    labels = sorted({Path(label_folder(folder)) for folder in folders})
    key = f"yolo:{path}:{split}:{described.root}"
    return cached_index(key, [path, *lists, *labels], lambda: _read_yolo(described, entries, report))


def _read_yolo(described: YoloYaml, entries: Sequence[Entry], report: ReadReport) -> ImageIndex:
    pictures = [picture for _, pictures in entries for picture in pictures]
    root = os.path.commonpath({os.path.dirname(picture) for picture in pictures})
    names = [picture[len(os.path.join(root, "")) :].replace(os.sep, "/") for picture in pictures]
    paths, notes = label_files(entries, _first_rows(root, names, report.source), report.source)
    labels = _Labels()
    for row, label in paths.items():
        if label:
            labels.add_file(row, label)
    boxes = np.array(labels.boxes, dtype=np.float64).reshape(-1, 4)
    _refuse_pixels(boxes, labels, paths)
    found = Found.numbered(
        names=names,
        sizes_hw=np.zeros((len(names), 2), dtype=np.int64),
        box_rows=np.array(labels.rows, dtype=np.int64),
        boxes=boxes,
        classes=_classes(labels, described, paths),
        normalised=True,
    )
    report = replace(report, boxes_read=len(labels)).with_notes(*notes, *_shared_names(described))
    report = report.with_fixed("polygons, read as their bounding boxes", labels.polygons)
    return assemble(found, root=root, class_names=described.class_names(), category_ids=described.category_ids(),
                    report=report)  # fmt: skip


def _entries(described: YoloYaml, parts: Sequence[Path], report: ReadReport) -> tuple[list[Entry], ReadReport]:
    """Return the pictures of each folder and list of a split. Raises DataError where one of these has none."""
    entries: list[Entry] = []
    hidden: list[str] = []
    for part in parts:
        if os.path.isdir(part):
            pictures, passed = _walked(str(part))
            hidden += passed
        else:
            pictures = _list_of_pictures(described.root, part)
        if not pictures:
            raise DataError(f"{report.source}: there is no picture in {part}, which holds "
                            f"{first_of(files_of(part))}. Take it out of {described.path}, or correct it "
                            "there.")  # fmt: skip
        entries.append((part, pictures))
    notes = [f"hidden pictures and folders passed over: {len(hidden)} ({first_of(hidden)})"] if hidden else []
    return entries, replace(report, images_read=sum(len(p) for _, p in entries)).with_notes(*notes)


def _first_rows(root: str, names: list[str], source: str) -> list[int]:
    """Return where each file is first listed: `assemble` joins those listed again, whose labels must be read once."""
    check_names(names, source)
    first: dict[str, int] = {}
    for row, file in enumerate(resolved_files(root, names, source).names):
        first.setdefault(file, row)
    return list(first.values())


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
    return DataError(
        f"{path}:{number}: {text.strip()!r:.100} {_wrong_with([w.decode() for w in line.split()])}. {_LINE}"
    )


def _wrong_with(words: Sequence[str]) -> str:
    for i, word in enumerate(words, 1):
        if not (word.isascii() and is_number(word)):
            hint = " (values are separated by spaces)" if "," in word else ""
            return f"has {word!r:.40} as value {i}, which is no number{hint}"
    confidence = "; is the last one a confidence? Take it out" if len(words) == 6 else ""
    return f"has {len(words)} values{confidence}"


def _bounds(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the bounding box of x1, y1, x2, y2, ...; NaN where one of them is, for `assemble` to drop."""
    x, y = values[::2], values[1::2]
    if any(map(math.isnan, values)):
        return (math.nan,) * 4
    return min(x), min(y), max(x), max(y)


def _refuse_pixels(boxes: NDArray[np.float64], labels: _Labels, paths: Mapping[int, str]) -> None:
    large = np.flatnonzero((boxes > _PIXELS).any(1))
    if 2 * len(large) > len(boxes):
        i = int(large[0])
        raise DataError(f"{paths[labels.rows[i]]}:{labels.lines[i]}: the box reaches to {np.nanmax(boxes[i]):g}, which "
                        f"is no share of the picture but pixels, as are {len(large)} of {len(boxes)} boxes of the "
                        "split. Divide x and w by the picture's width, y and h by its height.")  # fmt: skip


def _classes(labels: _Labels, described: YoloYaml, paths: Mapping[int, str]) -> NDArray[np.int64]:
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
