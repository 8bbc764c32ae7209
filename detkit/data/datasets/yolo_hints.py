"""What to write where a data set in YOLO's format has no data.yaml yet."""

from __future__ import annotations

import json
import os
from pathlib import Path

from detkit.data.datasets.plain import files_of, read_lines

_TRAIN = ("images/train", "train/images", "train", "images")
_VAL = ("images/val", "images/valid", "valid/images", "val/images", "val", "valid")
_CLASSES = ("classes.txt", "labels/classes.txt", "obj.names")


def needs_yaml(path: Path) -> str:
    """Return the text of an error: a folder or a file of class names stands where a data.yaml belongs."""
    folder = path if os.path.isdir(path) else path.parent
    there = [name for name in files_of(folder) if name.lower().endswith((".yaml", ".yml"))]
    what = "is a folder" if folder == path else "is no data.yaml"
    if there:
        return f"{path} {what}: name the file that describes the data set: yolo:{folder / there[0]}:SPLIT"
    lines = "\n".join(f"  {line}" for line in _lines(folder, path))
    file = folder / "data.yaml"
    return (f"{path} {what}; YOLO's format needs a data.yaml, which names the pictures and the classes. Write these "
            f"lines to {file}, correct them where they are wrong, and name yolo:{file}:train:\n{lines}")  # fmt: skip


def _lines(folder: Path, path: Path) -> list[str]:
    """Return the lines of a data.yaml by what is in a folder; without `val` where no folder looks like it."""
    val = _first_folder(folder, _VAL)
    names = _class_names(folder, path)
    return [
        "path: .",
        f"train: {_first_folder(folder, _TRAIN) or '.'}",
        *([f"val: {val}"] if val else []),
        f"names: {json.dumps(names, ensure_ascii=False)}" if names else "names: [name of class 0, name of class 1]",
    ]


def _first_folder(folder: Path, names: tuple[str, ...]) -> str:
    return next((name for name in names if os.path.isdir(folder / name)), "")


def _class_names(folder: Path, path: Path) -> list[str]:
    files = [*([path] if os.path.basename(path).lower() in ("classes.txt", "obj.names") else []),
             *(folder / name for name in _CLASSES)]  # fmt: skip
    file = next((file for file in files if os.path.isfile(file)), None)
    return [line.strip() for line in read_lines(file, "list of classes") if line.strip()] if file else []
