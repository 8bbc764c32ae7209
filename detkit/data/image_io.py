"""Reading pictures: whatever the file holds becomes upright RGB uint8, and every failure names the file.

Policies: EXIF orientation is applied (a broken or impossible one counts as upright); alpha is ignored, so that what it
hid shows; gray, palette, CMYK, YCbCr and LAB become RGB; 16 bits keep their high byte; of several frames the first is
read. A truncated or broken file, 32 bits per channel, and what Pillow takes for a decompression bomb, is an error.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detkit.data.errors import DataError

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_WRONG_MODES = ("I", "F")  # Pillow's names of 32-bit integers and floats
# How a file starts that is no picture although its name says so.
_STARTS = {
    b"<!doctype html": "it holds HTML, not a picture (a failed download?)",
    b"<html": "it holds HTML, not a picture (a failed download?)",
    b"<?xml": "it holds XML, not a picture (a failed download?)",
    b"version https://git-lfs": "it is a pointer of Git LFS, not the picture itself: run `git lfs pull`",
}


def load_image(path: str | Path) -> NDArray[np.uint8]:
    """Return a picture as [H, W, 3] uint8, RGB, upright. Raises DataError with the file's name."""
    try:
        with without_pillow_warnings(), Image.open(path) as image:
            check_mode(image)
            image.load()  # TIFF is turned by Pillow now, and says afterwards that it is upright
            turn = _TURNS.get(orientation(image))
            rgb = _as_rgb(image)
            return np.asarray(rgb.transpose(turn) if turn is not None else rgb)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more on broken files
        if not os.path.exists(path):
            raise DataError(f"the picture {path} does not exist") from error
        raise DataError(f"the picture {path} cannot be read: {unreadable_reason(path, error)}. Replace the file, or "
                        "take it out of the data set.") from error  # fmt: skip


@contextlib.contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Silence Pillow: what it warns of is counted at the start of a run, or an error.

    The filters of warnings belong to the whole process, so threads are started inside of it, never use it themselves.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an open picture as the file gives it; 1, upright, where it gives none.

    For PNG, whose EXIF block may come last, this can decode the picture.
    """
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return value if isinstance(value, int) else 0
    except Exception:  # a camera's broken EXIF block says nothing about the pixels
        return 1


def upright_size(image: Image.Image, turn: int) -> tuple[int, int]:
    """Return (height, width) of the upright picture that an open file and its EXIF orientation give."""
    is_sideways = turn in _SIDEWAYS and image.format != "TIFF"  # Pillow gives TIFF its upright size
    return image.size if is_sideways else image.size[::-1]


def brightest(path: str | Path) -> int:
    """Return the largest value of a picture of 16 bits per channel, 0..65535; alpha does not count.

    Pillow keeps only the high byte of colours: their low byte is taken as 255. Raises what Pillow raises. Pillow may
    warn: call it inside `without_pillow_warnings`.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):
            return int(np.asarray(image).astype(np.uint16).max())
        return int(np.asarray(image.convert("RGB")).max()) << 8 | 255


def is_turned(turn: int) -> bool:
    """Return whether an EXIF orientation asks for a turn or a mirror image."""
    return turn in _TURNS


def check_mode(image: Image.Image) -> None:
    """Raise ValueError where no pixel could be read, whatever the rest of the file: 32 bits per channel."""
    if image.mode in _WRONG_MODES:
        raise ValueError(f"its pixels of 32 bits (Pillow's mode {image.mode}) have no known range; save it with 8 or "
                         "16 bits per channel")  # fmt: skip


def unreadable_reason(path: str | Path, error: Exception) -> str:
    """Return in plain words why a file that exists is no picture."""
    if os.path.isdir(path):
        return "it is a folder"
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as second:
        return second.strerror or str(second)
    if isinstance(error, UnidentifiedImageError):
        return _reason_of_head(head) or "it is of no format of pictures that Pillow knows"
    return str(error) or type(error).__name__


def _reason_of_head(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, reason in _STARTS.items():
        if start.startswith(beginning):
            return reason
    if head[4:8] == b"ftyp":
        return "it is HEIC or a video, which is not read here; save it as JPEG or PNG"
    if not head:
        return "it is empty"
    if not head.strip(b"\0"):
        return "it holds zeros only (a failed download or a full disk?)"
    is_text = head.isascii() and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
    return "it holds text, not a picture" if is_text else ""


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
