"""Where the label files of YOLO's format lie.

That of `images/a/b.jpg` is `labels/a/b.txt`: the last `images` of the path replaced; where that folder is not there, it
is `b.txt` beside the picture. The extension is of any case.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from detkit.data.datasets.plain import files_by_stem, files_of, first_of
from detkit.data.errors import DataError
from detkit.data.file_names import is_picture

Entry = tuple[Path, list[str]]  # a folder or list of a split, and the absolute paths of its pictures


class _LabelFolders:
    """The label files of pictures; each folder is listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, tuple[str, dict[str, str]]] = {}

    def of(self, folder: str) -> tuple[str, dict[str, str]]:
        """Return the folder of the labels of a folder of pictures, and its label files by stem."""
        if folder not in self._listed:
            labels = label_folder(folder)
            self._listed[folder] = labels, files_by_stem(labels, ".txt")
        return self._listed[folder]

    def path_of(self, picture: str) -> str:
        """Return the label file of a picture, the empty string where it has none."""
        folder, base = os.path.split(picture)
        labels, names = self.of(folder)
        name = names.get(_stem(base))
        return os.path.join(labels, name) if name else ""

    def unused(self) -> list[str]:
        """Return the label files that belong to no picture in the folders asked for."""
        names: set[str] = set()
        for folder, (_, by_stem) in self._listed.items():  # LabelImg writes the class names beside the labels
            pictures = {_stem(name) for name in files_of(folder) if is_picture(name)} | {"classes"}
            names |= {name for stem, name in by_stem.items() if stem not in pictures}
        return sorted(names)


def label_files(entries: Sequence[Entry], rows: Iterable[int], source: str) -> tuple[dict[int, str], list[str]]:
    """Return row -> label file (the empty string: none) of the pictures in these rows, and notes for the report."""
    folders = _LabelFolders()
    for part, pictures in entries:
        if not any(map(folders.path_of, pictures)):
            raise _no_labels(part, pictures, folders, source)
    every = [picture for _, pictures in entries for picture in pictures]
    paths = {row: folders.path_of(every[row]) for row in rows}
    there = [path for path in paths.values() if path]
    unused = folders.unused()
    texts = {
        "pictures without a label file, read as without objects": len(paths) - len(there),
        f"label files without a picture, not used ({first_of(unused)})": len(unused),
        "pictures that share a label file with another of the same name": len(there) - len(set(there)),
    }
    return paths, [f"{text}: {count}" for text, count in texts.items() if count]


def _no_labels(part: Path, pictures: Sequence[str], folders: _LabelFolders, source: str) -> DataError:
    folder, base = os.path.split(pictures[0])
    places = dict.fromkeys([labels_beside(folder) or folder, folders.of(folder)[0]])
    looked = " ".join(f"Looked for {os.path.join(place, _stem(base))}.txt; that folder {_held(place)}."
                      for place in places)  # fmt: skip
    return DataError(f"{source}: none of the {len(pictures)} pictures of {part} has a label file. {looked} A label "
                     "file has the name of its picture; it belongs in the folder 'labels' beside the folder 'images', "
                     "or, without that, beside the picture. Where no picture has an object, give one of them an empty "
                     "label file.")  # fmt: skip


def _held(folder: str) -> str:
    files = files_of(folder)
    texts = [name for name in files if name.lower().endswith(".txt")]
    if not os.path.isdir(folder):
        return "does not exist"
    if texts:
        return f"holds {first_of(texts)}"
    return f"holds no .txt file, but {len(files)} of another kind ({first_of(files, 3)})" if files else "is empty"


def label_folder(folder: str) -> str:
    """Return where the labels of a folder of pictures lie."""
    labels = labels_beside(folder)
    return labels if labels and os.path.isdir(labels) else folder


def labels_beside(folder: str) -> str:
    """Return the folder `labels` that stands for a folder of pictures, there or not; "" where no `images` is in it."""
    parts = folder.split(os.sep)
    if "images" not in parts:
        return ""
    last = len(parts) - 1 - parts[::-1].index("images")
    return os.sep.join([*parts[:last], "labels", *parts[last + 1 :]])


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
