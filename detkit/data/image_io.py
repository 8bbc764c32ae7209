"""Reading pictures: whatever the file holds becomes upright RGB uint8, and every failure names the file.

Policies: EXIF orientation is applied (a broken or impossible one counts as upright); alpha is ignored; gray, palette
and CMYK become RGB; 16-bit gray keeps its high byte. A truncated or broken file, and one that Pillow takes for a
decompression bomb, is an error.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def load_image(path: str | Path) -> NDArray[np.uint8]:
    """Return a picture as [H, W, 3] uint8, RGB, upright. Raises DataError with the file's name."""
    try:
        with Image.open(path) as image:
            turn = _TURNS.get(_orientation(image))
            rgb = _as_rgb(image)
            return np.asarray(rgb.transpose(turn) if turn is not None else rgb)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more on broken files
        raise _unreadable(path, error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of a picture, upright, from the head of its file. Raises DataError with its name."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)
    except Exception as error:  # as in load_image
        raise _unreadable(path, error) from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a camera's broken EXIF block says nothing about the pixels
        return 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no known range; save it with 8 or 16 bits")
    return image.convert("RGB")


def _unreadable(path: str | Path, error: Exception) -> DataError:
    if not os.path.exists(path):
        return DataError(f"the picture {path} does not exist")
    reason = str(error) or type(error).__name__
    return DataError(f"the picture {path} cannot be read: {reason}. Replace the file, or take it out of the data set.")
