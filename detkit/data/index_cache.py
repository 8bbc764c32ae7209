"""The index of a data set, kept in the cache folder, so that only the first start reads annotations and pictures.

A kept index is used while nothing has changed that it was made from: the code that read it and Pillow, the annotation
files by size and times, the folders of annotations by those of their entries, and the folders of pictures by their own
times, which tell of pictures added, removed and renamed. A picture that is overwritten in place does not change its
folder; `read_sample` sees that by the size. Nothing is kept of what changed so lately (by this machine's clock) that
one more change could go unseen.

The cache is never the reason of an error: what cannot be read, written or locked is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import PIL

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
    path, reader = _entry_path(key, inputs), _mark_of_reader(build)
    if reader is None:
        return build()
    index = _read_if_valid(path, key, inputs, reader)
    if index is not None:
        return index
    has_waited = False
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a cache that cannot be written
            path.parent.mkdir(parents=True, exist_ok=True)
            has_waited = stack.enter_context(locked(path.with_suffix(".lock"), _say_waiting))
        index = _read_if_valid(path, key, inputs, reader)
        if index is None and not has_waited:
            index = _built(path, key, inputs, build, reader)
    # The one before kept nothing: all that waited for it read at once, not one after the other.
    return index if index is not None else _built(path, key, inputs, build, reader)


def cached_classes(key: str, inputs: Sequence[Path]) -> tuple[str, ...] | None:
    """Return the class names of the index that `cached_index` keeps for the same arguments; None where it keeps none.

    For detkit's own readers. Reads neither the annotations nor the arrays.
    """
    try:
        with np.load(_entry_path(key, inputs), allow_pickle=False) as entry:
            meta = _meta(entry)
        return tuple(meta["class_names"]) if _is_of(meta, key, inputs, reader="") else None
    except Exception as error:  # as in _read_if_valid
        _log.debug("no class names from the cache: %s", error)
        return None


def _entry_path(key: str, inputs: Sequence[Path]) -> Path:
    text = json.dumps([key, [os.path.abspath(path) for path in inputs]])
    return cache_folder() / "index" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def _say_waiting() -> None:
    _log.info("another process is reading the data set: waiting for it")


def _read_if_valid(path: Path, key: str, inputs: Sequence[Path], reader: str) -> ImageIndex | None:
    try:
        index = _read(path, key, inputs, reader)
        if index is not None:
            with contextlib.suppress(OSError):  # a cache that is only read
                os.utime(path)  # for _forget_old
        return index
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged or foreign file makes zipfile, numpy and json raise
        _log.debug("the kept index %s is not used: %s", path, error)
        return None


def _read(path: Path, key: str, inputs: Sequence[Path], reader: str) -> ImageIndex | None:
    with np.load(path, allow_pickle=False) as entry:
        meta = _meta(entry)
        if not _is_of(meta, key, inputs, reader) or meta["folders"] != _times(meta["folders"]):
            return None
        arrays = {name: entry[name] for name in _ARRAYS}
    wrong = [name for name, dtype in _ARRAYS.items() if arrays[name].dtype != dtype]
    if wrong:
        raise ValueError(f"arrays of another type: {wrong}")
    report = meta["report"]
    report["notes"] = tuple(report["notes"])
    report["examples"] = {text: tuple(names) for text, names in report["examples"].items()}
    return ImageIndex(
        root=meta["root"],
        class_names=tuple(meta["class_names"]),
        category_ids=tuple(meta["category_ids"]),
        report=ReadReport(**report),
        **arrays,
    )


def _meta(entry: Any) -> dict[str, Any]:
    return json.loads(entry["meta"].tobytes())


def _is_of(meta: dict[str, Any], key: str, inputs: Sequence[Path], reader: str) -> bool:
    is_same = (meta["code"], meta["reader"], meta["key"]) == (_mark_of_code(), reader, key)
    return is_same and meta["inputs"] == _fingerprint(inputs)


def _built(path: Path, key: str, inputs: Sequence[Path], build: Callable[[], ImageIndex], reader: str) -> ImageIndex:
    start = time.time()
    try:
        before = _fingerprint(inputs)  # so that a change while reading is seen the next time
    except OSError:  # an input is missing, of which `build` tells
        return build()
    index = build()
    taken = time.time() - start
    try:
        is_kept = _keep(path, index, {"key": key, "reader": reader, "inputs": before}, inputs, start)
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
    """Return the hash of how data are read and judged, which another version of detkit, or Pillow, does differently."""
    room = Path(__file__).parent
    config = room.parent / "config"
    sources = [*sorted(room.rglob("*.py")), config / "yaml_file.py", config / "values.py"]
    return _hash_of([*(path.read_bytes() for path in sources), PIL.__version__.encode()])


def _mark_of_reader(build: Callable[[], ImageIndex]) -> str | None:
    """Return the hash of the code outside of this room that `build` is: its package, or its file; "" where it is in it.

    None where its source cannot be found, so that a change would not be seen.
    """
    try:
        file = Path(inspect.getsourcefile(inspect.unwrap(build)) or "")
        if Path(__file__).parent in file.parents:
            return ""
        is_package = (file.parent / "__init__.py").is_file()
        return _hash_of(path.read_bytes() for path in (sorted(file.parent.rglob("*.py")) if is_package else [file]))
    except (OSError, TypeError):
        return None


def _hash_of(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _fingerprint(inputs: Sequence[Path]) -> list[Any]:
    """Return what a change of the inputs changes, in values that JSON keeps. Raises OSError where one is missing."""
    return [_mark_of_folder(path) if os.path.isdir(path) else _mark(os.stat(path)) for path in inputs]


def _mark(status: os.stat_result) -> list[int]:
    return [status.st_size, *_times_of(status)]


def _times_of(status: os.stat_result) -> list[int]:
    """Return when the content changed, and when anything did: tools can set back the first, never the second."""
    return [status.st_mtime_ns, status.st_ctime_ns]


def _mark_of_folder(path: Path) -> str:
    with os.scandir(path) as entries:
        marks = sorted([entry.name, *_mark(entry.stat())] for entry in entries)
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def _picture_folders(index: ImageIndex) -> list[str]:
    below = {index.file_name(i).rpartition("/")[0] for i in range(len(index))}
    return sorted({index.root, *(os.path.join(index.root, folder) for folder in below if folder)})


def _times(folders: Any) -> dict[str, list[int]]:
    return {folder: _times_of(os.stat(folder)) for folder in folders}


def _changed_since(moment: float, inputs: Sequence[Path], folders: dict[str, list[int]]) -> bool:
    times = [os.stat(path).st_mtime_ns for path in inputs] + [times[0] for times in folders.values()]
    for path in inputs:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                times += [entry.stat().st_mtime_ns for entry in entries]
    return max(times) >= moment * 1e9


def _forget_old(folder: Path) -> None:
    """Delete what nobody used for long, and the longest unused indices above a number."""
    used: dict[Path, float] = {}
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process's, gone already
            used[path] = path.stat().st_mtime
    newest = sorted((path for path in used if path.suffix == ".npz"), key=lambda path: used[path], reverse=True)
    old = [path for path in used if used[path] < time.time() - _OLDEST]
    for path in {*old, *newest[_MOST_ENTRIES:]}:
        with contextlib.suppress(OSError):
            path.unlink()
