"""One XML file of PASCAL VOC's format, as it is written."""

from __future__ import annotations

import math
import posixpath
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from detkit.data.datasets.plain import number
from detkit.data.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class Annotation:
    """One XML file, g objects. The `<part>`s of an object are none.

    Attributes:
        path: the file.
        picture: the base name of `<filename>`, or the empty string.
        size_hw: as written; 0 where it is not a positive number.
        names: the class of each object, [g].
        corners: xmin, ymin, xmax, ymax of each object as written, [g].
        difficult: whether `<difficult>` is a number above 0, [g].
    """

    path: Path
    picture: str
    size_hw: tuple[int, int]
    names: list[str] = field(default_factory=list)
    corners: list[tuple[float, ...]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)


def read_annotation(path: Path) -> Annotation:
    """Return what an XML file says. Raises DataError that names the file, and the line or the object that is wrong."""
    root = _parsed(path)
    picture = posixpath.basename((root.findtext("filename") or "").strip().replace("\\", "/"))
    found = Annotation(path, picture, (_side(root.findtext("size/height")), _side(root.findtext("size/width"))))
    for n, entry in enumerate(root.findall("object"), 1):
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: object {n} has no <name>; give it one, or take it out")
        found.names.append(name)
        found.corners.append(_corners(entry, f"{path}: object {n} ('{name}')"))
        found.difficult.append(_positive(entry.findtext("difficult")) > 0)
    return found


def _parsed(path: Path) -> ElementTree.Element:
    try:
        data = path.read_bytes()
        _refuse_entities(path, data)
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}:{error.position[0]}: is not whole XML: {error}. Export the file again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError) as error:  # of an encoding that expat does not know
        raise error if isinstance(error, DataError) else DataError(f"{path}: is not XML: {error}") from error
    if root.tag != "annotation":
        raise DataError(f"{path}: holds <{root.tag}>, not VOC's <annotation>; is it of another format?")
    return root


def _refuse_entities(path: Path, data: bytes) -> None:
    """Raise DataError where a document declares its type: there it may declare an entity that grows without end.

    In every encoding that expat reads, the word is ASCII, with NULs between the letters at most.
    """
    if b"<!DOCTYPE" in data.replace(b"\0", b""):
        raise DataError(f"{path}: has a <!DOCTYPE>, which may declare entities and which VOC's files do not need. "
                        "Remove it.")  # fmt: skip


def _corners(entry: ElementTree.Element, what: str) -> tuple[float, ...]:
    box = entry.find("bndbox")
    if box is None:
        raise DataError(f"{what} has no <bndbox>; give it one, or take the object out")
    texts = [box.findtext(key) for key in _CORNERS]
    try:
        return tuple([number(text) for text in texts])  # type: ignore[arg-type]
    except (TypeError, ValueError):
        given = ", ".join(f"{key} {text!r:.40}" for key, text in zip(_CORNERS, texts, strict=True))
        raise DataError(f"{what} has a <bndbox> that is not four numbers: {given}") from None


def _side(text: str | None) -> int:
    side = _positive(text)
    return int(side) if side.is_integer() and side < 2**31 else 0


def _positive(text: str | None) -> float:
    """Return a number above 0, or 0 for anything else."""
    try:
        value = number(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0.0
    return value if value > 0 and math.isfinite(value) else 0.0
