"""The index of a data set, kept in the cache folder, so that only the first start reads annotations and pictures.

A kept index is used while nothing has changed that it was made from: the code of this room, the annotation files by
size and time, the folders of annotations by those of their entries, and the folders of pictures by their own time,
which tells of pictures added, removed and renamed. A picture that is overwritten in place does not change its folder;
`read_sample` sees that by the size. Nothing is kept of what changed so lately that one more change could go unseen.

The cache is never the reason of an error: what cannot be read, written or locked is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.index import ImageIndex
from detkit.data.report import ReadReport
from detkit.files import cache_folder, locked, write_atomically
from detkit.log import format_duration, get_logger

_LATELY = 2.0  # seconds; file systems write times this coarsely
_SLOW = 5.0  # seconds; a reading that takes longer is worth a line
_MOST_ENTRIES = 64
_OLDEST = 60 * 24 * 3600.0  # seconds without use
_ARRAYS = {
    "name_bytes": "uint8",
    "name_offsets": "int64",
    "image_ids": "int64",
    "sizes_hw": "int32",
    "box_offsets": "int64",
    "boxes": "float32",
    "classes": "int32",
    "is_crowd": "bool",
    "areas": "float32",
    "annotation_ids": "int64",
}
_log = get_logger(__name__)


def cached_index(key: str, inputs: Sequence[Path], build: Callable[[], ImageIndex]) -> ImageIndex:
    """Return what `build()` returns, from the cache where it holds that of the same key and unchanged inputs.

    Several processes at once build once, where the system has locks: the others wait, then read. An error of `build`
    passes through and nothing is kept.

    Args:
        key: what else the index depends on (the format, the image folder, the split, the source named in the report).
        inputs: the annotation files and folders that `build` reads. A folder stands for its entries, not for those of
            folders inside it. The folders of pictures are found from the index.
    """
    path = _entry_path(key, inputs)
    index = _read_if_valid(path, key, inputs)
    if index is not None:
        return index
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a cache that cannot be written
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path.with_suffix(".lock")))
        return _read_if_valid(path, key, inputs) or _built(path, key, inputs, build)


def cached_classes(key: str, inputs: Sequence[Path]) -> tuple[str, ...] | None:
    """Return the class names of the index that `cached_index` keeps for the same arguments; None where it keeps none.

    Reads neither the annotations nor the arrays.
    """
    try:
        with np.load(_entry_path(key, inputs), allow_pickle=False) as entry:
            meta = _meta(entry)
        return tuple(meta["class_names"]) if _is_of(meta, key, inputs) else None
    except Exception as error:  # as in _read_if_valid
        _log.debug("no class names from the cache: %s", error)
        return None


def _entry_path(key: str, inputs: Sequence[Path]) -> Path:
    text = json.dumps([key, [os.path.abspath(path) for path in inputs]])
    return cache_folder() / "index" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def _read_if_valid(path: Path, key: str, inputs: Sequence[Path]) -> ImageIndex | None:
    try:
        index = _read(path, key, inputs)
        if index is not None:
            os.utime(path)  # for _forget_old
        return index
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged or foreign file makes zipfile, numpy and json raise
        _log.debug("the kept index %s is not used: %s", path, error)
        return None


def _read(path: Path, key: str, inputs: Sequence[Path]) -> ImageIndex | None:
    with np.load(path, allow_pickle=False) as entry:
        meta = _meta(entry)
        if not _is_of(meta, key, inputs) or meta["folders"] != _times(meta["folders"]):
            return None
        arrays = {name: entry[name] for name in _ARRAYS}
    wrong = [name for name, dtype in _ARRAYS.items() if arrays[name].dtype != dtype]
    if wrong:
        raise ValueError(f"arrays of another type: {wrong}")
    report = {**meta["report"], "notes": tuple(meta["report"]["notes"])}
    return ImageIndex(
        root=meta["root"],
        class_names=tuple(meta["class_names"]),
        category_ids=tuple(meta["category_ids"]),
        report=ReadReport(**report),
        **arrays,
    )


def _meta(entry: Any) -> dict[str, Any]:
    return json.loads(entry["meta"].tobytes())


def _is_of(meta: dict[str, Any], key: str, inputs: Sequence[Path]) -> bool:
    return (meta["code"], meta["key"]) == (_mark_of_code(), key) and meta["inputs"] == _fingerprint(inputs)


def _built(path: Path, key: str, inputs: Sequence[Path], build: Callable[[], ImageIndex]) -> ImageIndex:
    start = time.time()
    try:
        before = _fingerprint(inputs)  # so that a change while reading is seen the next time
    except OSError:  # an input is missing, of which `build` tells
        return build()
    index = build()
    taken = time.time() - start
    try:
        is_kept = _keep(path, index, {"key": key, "inputs": before}, inputs, start)
    except Exception as error:  # a full disk, a folder that went away, values that JSON does not have
        is_kept = False
        _log.debug("the index of %s is not kept: %s", index.report.source, error)
    if is_kept and taken > _SLOW:
        _log.info(f"read {index.report.source} in {format_duration(taken)}; later starts take it from the cache")
    return index


def _keep(path: Path, index: ImageIndex, marks: dict[str, Any], inputs: Sequence[Path], start: float) -> bool:
    """Write the entry, unless something changed shortly before the building started, or since; return whether."""
    folders = _times(_picture_folders(index))
    if _changed_since(start - _LATELY, inputs, folders):
        return False
    _write(path, index, {**marks, "folders": folders})
    _forget_old(path.parent)
    return True


def _write(path: Path, index: ImageIndex, marks: dict[str, Any]) -> None:
    plain = {field.name for field in fields(index)} - _ARRAYS.keys() - {"report"}
    values = {name: getattr(index, name) for name in sorted(plain)}
    meta = json.dumps({"code": _mark_of_code(), **marks, **values, "report": asdict(index.report)}).encode()
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    write_atomically(path, lambda file: np.savez(file, meta=np.frombuffer(meta, np.uint8), **arrays))


@functools.cache
def _mark_of_code() -> str:
    """Return the hash of how data are read and judged, which another version of detkit does differently."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _fingerprint(inputs: Sequence[Path]) -> list[Any]:
    """Return what a change of the inputs changes, in values that JSON keeps. Raises OSError where one is missing."""
    return [_mark_of_folder(path) if os.path.isdir(path) else _mark(os.stat(path)) for path in inputs]


def _mark(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def _mark_of_folder(path: Path) -> str:
    with os.scandir(path) as entries:
        marks = sorted([entry.name, *_mark(entry.stat())] for entry in entries)
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def _picture_folders(index: ImageIndex) -> list[str]:
    below = {index.file_name(i).rpartition("/")[0] for i in range(len(index))}
    return sorted({index.root, *(os.path.join(index.root, folder) for folder in below if folder)})


def _times(folders: Any) -> dict[str, int]:
    return {folder: os.stat(folder).st_mtime_ns for folder in folders}


def _changed_since(moment: float, inputs: Sequence[Path], folders: dict[str, int]) -> bool:
    times = [os.stat(path).st_mtime_ns for path in inputs] + list(folders.values())
    for path in inputs:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                times += [entry.stat().st_mtime_ns for entry in entries]
    return max(times) >= moment * 1e9


def _forget_old(folder: Path) -> None:
    """Delete what nobody used for long, and the longest unused indices above a number."""
    used = {path: path.stat().st_mtime for path in folder.iterdir()}
    newest = sorted((path for path in used if path.suffix == ".npz"), key=lambda path: used[path], reverse=True)
    old = [path for path in used if used[path] < time.time() - _OLDEST]
    for path in {*old, *newest[_MOST_ENTRIES:]}:
        path.unlink(missing_ok=True)
