"""What the formats share: the spec of a file with its pictures, files of a folder, lines, numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detkit.data.errors import DataError
from detkit.data.file_names import relative_paths_hint
from detkit.files import datasets_folder


def file_and_images(spec: str, name: str, extension: str) -> tuple[Path, Path]:
    """Return the annotation file and the image folder that `FILE:IMAGES` names, from the data sets folder.

    Raises DataError where one of the two is missing, with the form for the format `name`.
    """
    annotations, _, images = spec.partition(":")
    if not annotations or not images:
        raise DataError(f"the data set '{name}:{spec}' has no {'image folder' if annotations else 'annotations'}. "
                        f"The form is {name}:PATH/annotations.{extension}:PATH/images.")  # fmt: skip
    return datasets_folder() / annotations, datasets_folder() / images


def number(text: str) -> float:
    """Return the number that a text spells. ValueError for any other, and for `0_1`, which Python takes for 1."""
    if "_" in text:
        raise ValueError(f"an underscore in {text!r}")
    return float(text)


def is_number(text: str) -> bool:
    """Return whether `number` takes a text."""
    try:
        number(text)
    except ValueError:
        return False
    return True


def files_of(folder: Path | str) -> list[str]:
    """Return the sorted names in a folder that are not hidden; the empty list where there is no such folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def files_by_stem(folder: Path | str, extension: str) -> dict[str, str]:
    """Return stem -> name of the files with an extension, in any case, in the order of `files_of`.

    Raises DataError where two names differ only in the case of the extension.
    """
    found: dict[str, str] = {}
    for name in files_of(folder):
        if name.lower().endswith(extension):
            other = found.setdefault(name[: -len(extension)], name)
            if other != name:
                raise DataError(f"{folder} holds '{other}' and '{name}', of which one is too many; keep one")
    return found


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
        raise DataError(f"{what} {folder} does not exist. {relative_paths_hint(folder)}")
