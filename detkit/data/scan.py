"""A look at the head and the end of every picture before anything starts: sizes, kinds, and files that are no pictures.

Nothing is decoded, but for a picture whose end is not where it should be, and the first few of 16 bits. Damage in the
middle of a file is found when it is read.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detkit.data.errors import DataError
from detkit.data.image_io import (
    brightest,
    check_mode,
    is_turned,
    orientation,
    unreadable_reason,
    upright_size,
    without_pillow_warnings,
)
from detkit.data.report import ReadReport
from detkit.log import LiveLine, get_logger

_THREADS = 8  # they wait for the disk; Pillow's part is one thread's work
_CHUNK = 64
_QUIET_SECONDS = 3.0  # less needs no progress
_TAIL = 4096  # bytes; cameras append a little to their JPEG files
_DECODED = 8  # pictures of 16 bits
_DIM = 4096  # of 65535; a camera of 12 bits stays below

_KINDS = {
    "1": "gray",
    "L": "gray",
    "LA": "gray",
    "La": "gray",
    "P": "palette",
    "PA": "palette",
    "RGB": "",
    "RGBA": "",
    "RGBa": "",
    "RGBX": "",
}
_EXIF_KEYS = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # where Pillow looks for an orientation
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
TURNED = "pictures turned upright by their EXIF orientation"
_IMPOSSIBLE = "impossible EXIF orientations, read as upright"
_SIXTEEN_BITS = "16-bit pictures, high byte kept"
_ALPHA = "pictures with alpha, which is ignored"
# Worth knowing, but nothing was repaired.
_HUGE = "pictures of very many pixels (above Pillow's limit of warning), slow to read"
_FRAMES = "pictures of several frames, of which the first is read"


@dataclass(frozen=True)
class Head:
    """What the head of a picture's file says.

    Attributes:
        size: (height, width), upright.
        remarks: what is odd about it, by the words of the report.
    """

    size: tuple[int, int]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Scan:
    """The heads of I pictures.

    Attributes:
        sizes_hw: int64 [I, 2], height and width, upright.
        is_turned: bool [I], whether the EXIF orientation turns it.
        counts: how many pictures each remark is about.
        warnings: lines on what training would suffer from.
    """

    sizes_hw: NDArray[np.int64]
    is_turned: NDArray[np.bool_]
    counts: dict[str, int]
    warnings: tuple[str, ...] = ()

    def added_to(self, report: ReadReport) -> ReadReport:
        """Return the report with the counts: what was converted as fixed, the rest and the warnings as notes."""
        for remark, count in self.counts.items():
            is_note = remark in (_HUGE, _FRAMES)
            report = report.with_notes(f"{remark}: {count}") if is_note else report.with_fixed(remark, count)
        return report.with_notes(*self.warnings)


def scan_pictures(root: str, names: Sequence[str], source: str) -> Scan:
    """Return the heads of all pictures; those that cannot be used are one DataError that lists the first five."""
    heads = _heads([os.path.join(root, name) for name in names])
    bad = [(name, head) for name, head in zip(names, heads, strict=True) if isinstance(head, str)]
    if bad:
        first = "; ".join(f"'{name}': {reason}" for name, reason in bad[:5]) + ("; ..." if len(bad) > 5 else "")
        raise DataError(f"{source}: {len(bad)} of {len(names)} pictures in {root} cannot be read: {first}. Replace "
                        "these files, or remove them (and what the annotations say of them).")  # fmt: skip
    good = [head for head in heads if isinstance(head, Head)]
    return Scan(
        sizes_hw=np.array([head.size for head in good], dtype=np.int64).reshape(-1, 2),
        is_turned=np.array([TURNED in head.remarks for head in good], dtype=np.bool_),
        counts=dict(sorted(Counter(remark for head in good for remark in head.remarks).items())),
        warnings=_darkness(root, [n for n, head in zip(names, good, strict=True) if _SIXTEEN_BITS in head.remarks]),
    )


def _darkness(root: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return a warning where the first of the 16-bit pictures use so few of their bits that they read as black."""
    values: dict[str, int] = {}
    with without_pillow_warnings():
        for name in names[:_DECODED]:
            with contextlib.suppress(Exception):  # damage, of which the reading tells
                values[name] = brightest(os.path.join(root, name))
    if not values or max(values.values()) >= _DIM:
        return ()
    first = ", ".join(map(repr, list(values)[:3])) + (", ..." if len(values) > 3 else "")
    return (f"WARNING: the {len(values)} of {len(names)} 16-bit pictures looked at ({first}) use values up to "
            f"{max(values.values())} of 65535 and read as almost black: rescale them",)  # fmt: skip


def _heads(paths: list[str]) -> list[Head | str]:
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    heads: list[Head | str] = []
    start, live = time.monotonic(), None
    with without_pillow_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        try:
            for found in pool.map(lambda chunk: [_head_or_reason(path) for path in chunk], chunks):
                heads += found
                if time.monotonic() - start > _QUIET_SECONDS:
                    live = live or LiveLine(get_logger(__name__))
                    live.update(f"looking at the pictures: {len(heads)} of {len(paths)}")
        finally:
            pool.shutdown(cancel_futures=True)
            if live:
                live.close()
    return heads


def _head_or_reason(path: str) -> Head | str:
    try:
        return read_head(path)
    except Exception as error:  # as in load_image
        return unreadable_reason(path, error)


def read_head(path: str) -> Head:
    """Return what the head of a file says. Raises what Pillow raises where it is no whole picture.

    Pillow may warn: call it inside `without_pillow_warnings`.
    """
    with open(path, "rb") as file, Image.open(file) as image:
        check_mode(image)
        remarks = _remarks(image)
        place = file.tell()
        is_whole, is_plain = _end(image, file)
        file.seek(place)  # where Pillow left it
        # Pillow decodes a PNG to look for EXIF data behind the pixels: not where there is nothing.
        turn = 1 if is_plain and not _EXIF_KEYS & image.info.keys() else orientation(image)
        size = upright_size(image, turn)
        if not is_whole:
            image.load()
    if is_turned(turn):
        remarks.append(TURNED)
    elif turn != 1:
        remarks.append(_IMPOSSIBLE)
    return Head(size, tuple(remarks))


def _remarks(image: Image.Image) -> list[str]:
    is_deep = image.mode.startswith("I;16")
    kind = "gray" if is_deep else _KINDS.get(image.mode, image.mode)
    found = [f"{kind} pictures read as RGB"] if kind else []
    if is_deep or any(_is_sixteen_bits(tile) for tile in getattr(image, "tile", ())):
        found.append(_SIXTEEN_BITS)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        found.append(_ALPHA)
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        found.append(_HUGE)
    if getattr(image, "is_animated", False):
        found.append(_FRAMES)
    return found


def _is_sixteen_bits(tile: Any) -> bool:
    """Return whether the pixels are stored with 16 bits per channel, which Pillow reads as 8 bits for colours."""
    args = tile[3] if isinstance(tile[3], (tuple, list)) else (tile[3],)
    return any(isinstance(value, str) and ";16" in value for value in args)


def _end(image: Image.Image, file: BinaryIO) -> tuple[bool, bool]:
    """Return (the end of the file is there, nothing behind the pixels can hold EXIF data).

    Other formats than JPEG and PNG count as whole.
    """
    if image.format in ("JPEG", "MPO"):
        return _has_jpeg_end(file), False
    if image.format == "PNG":
        return _png_end(file)
    return True, False


def _has_jpeg_end(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    return b"\xff\xd9" in file.read()


def _png_end(file: BinaryIO) -> tuple[bool, bool]:
    """Walk from chunk to chunk, over the pixels, up to IEND."""
    size = file.seek(0, os.SEEK_END)
    place, is_behind, is_plain = 8, False, True
    while place + 12 <= size:
        file.seek(place)
        head = file.read(8)
        kind, place = head[4:], place + 12 + int.from_bytes(head[:4], "big")
        if kind == b"IEND":
            return True, is_plain
        is_behind = is_behind or kind == b"IDAT"
        is_plain = is_plain and not (is_behind and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))
    return False, is_plain
