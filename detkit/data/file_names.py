"""File names that annotations give: below the image folder, and there."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence

from detkit.data.errors import DataError

# Empty; absolute on any system; a step up; a NUL byte.
_UNSAFE = re.compile(r"^$|^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)|\x00")


def check_names(names: Sequence[object], source: str) -> None:
    """Raise DataError at the first name that is no text or leads out of the image folder.

    Symbolic links inside the folder are followed: who may put them there may put pictures there.
    """
    for name in names:
        if not isinstance(name, str) or _UNSAFE.search(name) or not is_encodable(name):
            raise DataError(f"{source}: the file name {name!r} is not one below the image folder. Names must be "
                            "relative, without '..'; correct it in the annotations.")  # fmt: skip


def check_files(root: str, names: Sequence[str], source: str) -> None:
    """Raise DataError where a picture is missing, with the first names, how many there are, and what to set.

    A missing picture is never skipped: training on, or evaluating, less than the annotations say would go unseen.
    Every folder is listed once, which is cheaper than asking for each file.
    """
    if not os.path.isdir(root):
        raise DataError(f"{source}: the image folder {root} does not exist. Relative paths start from "
                        "$DETKIT_DATASETS, else from the working folder.")  # fmt: skip
    listings: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder not in listings:
            listings[folder] = _listing(os.path.join(root, folder))
        if base not in listings[folder]:
            missing.append(name)
    if missing:
        raise DataError(_missing_text(root, missing, len(names), source))


def _missing_text(root: str, missing: list[str], total: int, source: str) -> str:
    first = ", ".join(f"'{name}'" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
    if len(missing) < total:
        return (
            f"{source}: {len(missing)} of {total} pictures are not in {root}: {first}. "
            "Add the files, or take these pictures out of the annotations."
        )
    held = sorted(_listing(root))
    base = posixpath.basename(missing[0])
    holds = f"holds '{base}'" if base in held else "holds " + (", ".join(map(repr, held[:3])) or "nothing")
    return (
        f"{source}: none of its {total} pictures is in {root}, which {holds}; the annotations ask for {first}. "
        "Set the image folder to the one that these names start from, or use the annotations made for these pictures."
    )


def _listing(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def is_encodable(name: str) -> bool:
    """Return whether a text can be written to a file at all: JSON can spell half a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
