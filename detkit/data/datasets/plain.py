"""What the formats without ids of their own (VOC, YOLO, CSV) share: files of a folder, ids by order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detkit.data.assemble import Found
from detkit.data.errors import DataError


def numbered(
    *,
    names: list[str],
    sizes_hw: NDArray[np.int64],
    box_rows: NDArray[np.int64],
    boxes: NDArray[np.float64],
    classes: NDArray[np.int64],
    is_crowd: NDArray[np.bool_] | None = None,
    normalised: bool = False,
) -> Found:
    """Return columns as `Found` has them, pictures and boxes numbered from 1 and every area that of the box."""
    count = len(boxes)
    return Found(
        names=names,
        image_ids=np.arange(1, len(names) + 1, dtype=np.int64),
        sizes_hw=sizes_hw,
        box_rows=box_rows,
        boxes=boxes,
        classes=classes,
        is_crowd=np.zeros(count, dtype=np.bool_) if is_crowd is None else is_crowd,
        areas=np.full(count, np.nan),
        annotation_ids=np.arange(1, count + 1, dtype=np.int64),
        normalised=normalised,
    )


def files_of(folder: Path | str) -> list[str]:
    """Return the sorted names in a folder that are not hidden; the empty list where there is no such folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def first_of(names: Sequence[str], count: int = 5) -> str:
    """Return the first names, quoted, with dots where there are more; 'nothing' where there are none."""
    return ", ".join(repr(name) for name in names[:count]) + (", ..." if len(names) > count else "") or "nothing"


def read_lines(path: Path, what: str) -> list[str]:
    """Return the lines of a UTF-8 text file. Raises DataError that names the file, with `what` it is."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"the {what} {path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as "
                        "UTF-8") from error  # fmt: skip
    except OSError as error:
        raise DataError(f"the {what} {path} cannot be read: {error.strerror}") from error


def require_folder(folder: Path, what: str) -> None:
    """Raise DataError where a folder does not exist; `what` says whose it is."""
    if not os.path.isdir(folder):
        raise DataError(f"{what} {folder} does not exist. Relative paths start from $DETKIT_DATASETS (now "
                        f"{os.environ.get('DETKIT_DATASETS') or 'not set'}), else from the working "
                        "folder.")  # fmt: skip
