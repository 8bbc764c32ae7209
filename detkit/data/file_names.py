"""File names that annotations give: below the image folder, and there."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detkit.data.errors import DataError

# Empty; absolute on any system; a step up; a NUL byte.
_UNSAFE = re.compile(r"^$|^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)|\x00")

SLASHES = "file names with backslashes, read as slashes"
CASE = "file names that differ from the annotations in the case of the extension"
# What people take for a picture; the scan tells of those that Pillow cannot read.
_PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
             ".mpo", ".jp2", ".avif", ".heic", ".heif")  # fmt: skip


@dataclass(frozen=True)
class Files:
    """The files that are there for the names of the annotations.

    Attributes:
        names: the file of each name, below the root; two names may have one file.
        fixed: how many names were repaired, by repair.
        others: how many more pictures the folders of these files hold.
    """

    names: list[str]
    fixed: Mapping[str, int]
    others: int


def check_names(names: Sequence[object], source: str) -> None:
    """Raise DataError at the first name that is no text or leads out of the image folder.

    Symbolic links inside the folder are followed: who may put them there may put pictures there.
    """
    for name in names:
        if not isinstance(name, str) or _UNSAFE.search(name) or not is_encodable(name):
            raise DataError(f"{source}: the file name {name!r} is not one below the image folder. Names must be "
                            "relative, without '..'; correct it in the annotations.")  # fmt: skip


def resolved_files(root: str, names: Sequence[str], source: str) -> Files:
    """Return the files that are there for names that `check_names` lets pass; each file has one spelling.

    The exact name comes first, but for `./` and `//`. Without it, backslashes are taken for slashes, and one file (not
    several) whose extension differs only in its case (`.JPG` for `.jpg`) is taken. Any other missing picture is never
    skipped, as training on, or evaluating, less than the annotations say would go unseen: DataError with the first
    names, how many there are, and what to set. Every folder is listed once, which is cheaper than asking for each file.
    """
    if not os.path.isdir(root):
        raise DataError(f"{source}: the image folder {root} does not exist. {relative_paths_hint(root)}")
    folders = _Folders(root)
    found, missing, fixed = [], [], dict.fromkeys((SLASHES, CASE), 0)
    for name in names:
        exact = posixpath.normpath(name)
        place = exact if folders.hold(exact) else posixpath.normpath(name.replace("\\", "/"))
        there = place if folders.hold(place) else folders.of_other_case(place)
        if there is None:
            missing.append(name)
            continue
        fixed[SLASHES] += place != exact
        fixed[CASE] += there != place
        found.append(there)
    if missing:
        raise DataError(_missing_text(root, missing, len(names), source))
    return Files(found, fixed, folders.others(found))


def is_picture(name: str) -> bool:
    """Return whether a file is a picture by its extension, of any case. Hidden files (`._a.jpg`) are none."""
    return not name.startswith(".") and name.lower().endswith(_PICTURES)


def relative_paths_hint(*paths: Path | str) -> str:
    """Return the sentences for an error on `paths` below the data sets folder: where relative paths start from."""
    folder = os.environ.get("DETKIT_DATASETS")
    hint = f"Relative paths start from $DETKIT_DATASETS (now {folder or 'not set'}), else from the working folder."
    for path in map(Path, paths if folder else ()):
        here = path.relative_to(folder or "") if path.is_relative_to(folder or "") else Path()
        if here != Path() and here.exists():
            return f"{hint} The working folder has {here}: unset DETKIT_DATASETS, or give the whole path."
    return hint


class _Folders:
    """The files below a root; a folder is listed when it is first asked for."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._files: dict[str, set[str]] = {}
        self._by_case: dict[str, dict[tuple[str, str], list[str]]] = {}

    def hold(self, name: str) -> bool:
        folder, _, base = name.rpartition("/")
        return base in self._listed(folder)

    def of_other_case(self, name: str) -> str | None:
        """Return the one file whose name differs only by the case of its extension; None for none or several."""
        folder, slash, base = name.rpartition("/")
        if folder not in self._by_case:
            self._by_case[folder] = {}
            for file in self._listed(folder):
                self._by_case[folder].setdefault(_without_case(file), []).append(file)
        files = self._by_case[folder].get(_without_case(base), [])
        return f"{folder}{slash}{files[0]}" if len(files) == 1 else None

    def others(self, names: Sequence[str]) -> int:
        """Return how many pictures the folders of `names` hold beside these; folders inside do not count."""
        used: dict[str, set[str]] = {}
        for name in names:
            folder, _, base = name.rpartition("/")
            used.setdefault(folder, set()).add(base)
        return sum(sum(map(is_picture, self._listed(folder) - bases)) for folder, bases in used.items())

    def _listed(self, folder: str) -> set[str]:
        if folder not in self._files:
            self._files[folder] = _listing(os.path.join(self._root, folder))
        return self._files[folder]


def _without_case(name: str) -> tuple[str, str]:
    stem, ending = posixpath.splitext(name)
    return stem, ending.lower()


def _missing_text(root: str, missing: list[str], total: int, source: str) -> str:
    first = ", ".join(f"'{name}'" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
    if len(missing) < total:
        return (
            f"{source}: {len(missing)} of {total} pictures are not in {root}: {first}. "
            "Add the files, or take these pictures out of the annotations."
        )
    held = sorted(_listing(root))
    base = posixpath.basename(missing[0].replace("\\", "/"))
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
