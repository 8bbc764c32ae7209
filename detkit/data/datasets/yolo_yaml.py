"""`data.yaml`, which describes a data set in YOLO's format: root, class names, and the pictures of each split."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.config import ConfigError
from detkit.config.yaml_file import Layer, read_text
from detkit.data.datasets.plain import first_of
from detkit.data.datasets.yolo_hints import needs_yaml
from detkit.data.errors import DataError
from detkit.data.file_names import relative_paths_hint
from detkit.files import datasets_folder
from detkit.registry import near_misses

_ALIASES = {"train": "train", "val": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class YoloYaml:
    """What a data.yaml says.

    Attributes:
        path: the file.
        root: the folder that its paths start from, absolute and without `..`.
        names: the class name of each index, in the order of these.
        splits: split -> folders and lists of pictures, as written.
        notes: what took a guess, for the report.
    """

    path: Path
    root: Path
    names: dict[int, str]
    splits: dict[str, list[str]]
    notes: tuple[str, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        """Return the names in the order of their indices; a name that several indices have appears once."""
        return tuple(dict.fromkeys(self.names.values()))

    def category_ids(self) -> tuple[int, ...]:
        """Return the index of each class, the lowest where it has several."""
        return tuple(min(i for i, name in self.names.items() if name == wanted) for wanted in self.class_names())

    def parts(self, split: str) -> tuple[list[Path], list[str]]:
        """Return the folders and lists of a split, absolute, below the root, all there; and notes for the report."""
        if split not in self.splits:
            near = near_misses(split, self.splits)
            hint = f" Did you mean {near}?" if near else ""
            raise DataError(f"{self.path}: it has no split '{split}' but {first_of(list(self.splits))}.{hint} "
                            "The form is yolo:PATH/data.yaml:SPLIT.")  # fmt: skip
        found = [self._found(entry, split) for entry in self.splits[split]]
        return [path for path, _ in found], [*self.notes, *(note for _, note in found if note)]

    def _found(self, entry: str, split: str) -> tuple[Path, str]:
        """Return what an entry names, and a note where that took a guess."""
        exact = _absolute(self.root / entry)
        inner = _without_ups(entry)
        if os.path.exists(exact):
            note = ""
        elif inner != entry and os.path.exists(self.root / inner):
            exact, note = _absolute(self.root / inner), f"'{split}: {entry}' is read as '{inner}', which is there"
        else:
            raise DataError(f"{self.path}: '{split}: {entry}' names {exact}, which does not exist. Paths start from "
                            f"the key 'path', else from the folder of the file: here {self.root}.")  # fmt: skip
        require_below(self.root, exact, f"{self.path}: '{split}: {entry}'")
        return exact, note


def require_below(root: Path, path: Path, what: str) -> None:
    """Raise DataError where an absolute path leads out of the root; `what` says who names it."""
    if path != root and root not in path.parents:
        raise DataError(f"{what} leads to {path}, out of the data set's folder {root}. Set the key 'path' in the "
                        "data.yaml to a folder that holds all of it.")  # fmt: skip


def read_yolo_yaml(path: Path) -> YoloYaml:
    """Read a data.yaml, by the safe loader. Raises DataError that names the file and the key."""
    layer = _layer(path)
    tree = layer.tree
    if "kpt_shape" in tree:
        raise DataError(f"{layer.place(('kpt_shape',))}: the labels hold keypoints, whose lines cannot be told from "
                        "polygons; export boxes")  # fmt: skip
    splits = _splits(layer, path)
    root, notes = _root(layer, path, splits)
    return YoloYaml(path, root, _names(layer, path), splits, notes)


def _without_ups(entry: str) -> str:
    """Return an entry without leading `../`, an exporter's habit, for a working folder below the root."""
    while entry.startswith("../"):
        entry = entry[3:]
    return entry


def _layer(path: Path) -> Layer:
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix.lower() in (".txt", ".names")):
        raise DataError(needs_yaml(path))
    try:
        return read_text(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise DataError(f"the file {path} does not exist. {relative_paths_hint(path)}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except ConfigError as error:
        raise DataError(str(error)) from error


def _root(layer: Layer, path: Path, splits: dict[str, list[str]]) -> tuple[Path, tuple[str, ...]]:
    """Return the root, and notes where that took a guess."""
    given = layer.tree.get("path")
    if given is None:
        return _absolute(path.parent), ()
    if not isinstance(given, str):
        raise DataError(f"{layer.place(('path',))}: 'path' is {given!r}, not a folder")
    places = [_absolute(folder / given) for folder in (path.parent, datasets_folder())]
    for place in places:
        if os.path.isdir(place):
            return place, ()
    entries = [_without_ups(entry) for entries in splits.values() for entry in entries]
    if any(os.path.exists(path.parent / entry) for entry in entries):
        return _absolute(path.parent), (f"'path: {given}' does not exist: read as the folder of {path.name}, where the "
                                        "pictures are",)  # fmt: skip
    tried = str(places[0])
    if not os.path.isabs(given):
        tried += f" (from the folder of {path.name}) and {places[1]} (from $DETKIT_DATASETS, or the working folder)"
    hint = relative_paths_hint(places[1])
    raise DataError(f"{layer.place(('path',))}: the folder 'path: {given}' does not exist: tried {tried}. Write "
                    f"'path: .' where the pictures lie beside {path.name}. {hint}")  # fmt: skip


def _names(layer: Layer, path: Path) -> dict[int, str]:
    given = layer.tree.get("names")
    if not isinstance(given, (dict, list)) or not given:
        raise DataError(f"{layer.place(('names',)) or path}: 'names' is {given!r:.80}; it must give the name of each "
                        "class, as a list or as 'index: name' lines")  # fmt: skip
    names: dict[int, str] = {}
    for key, name in given.items() if isinstance(given, dict) else [(str(i), name) for i, name in enumerate(given)]:
        place = layer.place(("names", key)) or layer.place(("names",))
        if not (key.isascii() and key.isdigit()) or int(key) in names:
            raise DataError(f"{place}: the class index '{key}' is not a whole number of its own")
        names[int(key)] = _name(name, place)
    _check_count(layer, names)
    return dict(sorted(names.items()))


def _name(given: Any, place: str) -> str:
    name = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{place}: the class name {given!r} is no text; put it in quotes")
    return name.strip()


def _check_count(layer: Layer, names: dict[int, str]) -> None:
    count = layer.tree.get("nc")
    if count is not None and count not in (len(names), max(names) + 1):
        raise DataError(f"{layer.place(('nc',))}: 'nc' is {count!r}, and 'names' has {len(names)} "
                        f"({first_of(list(names.values()))}). Correct one of them.")  # fmt: skip


def _splits(layer: Layer, path: Path) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for key, split in _ALIASES.items():
        given = layer.tree.get(key)
        if given is None or given in ("", []):
            continue
        entries = given if isinstance(given, list) else [given]
        if not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(f"{layer.place((key,))}: '{key}' is {given!r:.80}, not a folder, a .txt list of pictures, "
                            "or a list of these")  # fmt: skip
        if split in splits:
            raise DataError(f"{layer.place((key,))}: 'val' and 'valid' are the same split; keep one of them")
        splits[split] = entries
    if not splits:
        raise DataError(f"{path}: it has none of 'train', 'val' and 'test', which name the folders of pictures; its "
                        f"keys are {first_of(list(layer.tree), 12)}")  # fmt: skip
    return splits


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))
