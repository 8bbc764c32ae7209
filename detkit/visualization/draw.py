"""Drawing on pictures. A picture is a numpy array [H, W, 3], uint8, RGB; nothing here changes the one it is given."""

from __future__ import annotations

import colorsys
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]

# Okabe and Ito's palette, made to be told apart with any colour vision (jfly.uni-koeln.de/color), without black.
_PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_PAPER, _INK, _HALO = (250, 250, 250), (30, 30, 30), (0, 0, 0, 150)
_FONT_SIZE = 13
_OUTSIDE = 8  # pixels


def class_color(number: int) -> Color:
    """Return the colour of class 0, 1, ...: the palette, then hues a golden angle apart in three lightnesses."""
    if number < len(_PALETTE):
        return _PALETTE[number]
    hue = (number * 0.618034) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, (0.45, 0.62, 0.78)[number % 3], 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def fit(image: np.ndarray, *, low: int = 320, high: int = 800) -> tuple[np.ndarray, float]:
    """Scale a picture so that its long side lies in low..high pixels; return it and the factor (1.0: left as it is).

    A small picture grows by a whole factor, so that its pixels stay what they are and labels find room.
    """
    long_side = max(image.shape[:2])
    scale = float(-(-low // long_side)) if long_side < low else min(1.0, high / long_side)
    if scale == 1.0:
        return image, scale
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize(size, method)), scale


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    *,
    colors: Sequence[Color],
    texts: Sequence[str] = (),
    width: int = 2,
) -> np.ndarray:
    """Return the picture with boxes [D, 4] (xyxy in its pixels) drawn on it, the first on top.

    `colors` has one per box; `texts` one label per box, or nothing. Lines from 2 pixels up get a dark rim, so that
    they show on any ground. Boxes may reach out of the picture, and there may be none.
    """
    picture = Image.fromarray(image).convert("RGB")
    limits = [side + _OUTSIDE for side in picture.size] * 2  # what lies far outside looks as if just outside, sooner
    boxes = np.clip(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), -_OUTSIDE, limits)
    pen = ImageDraw.Draw(picture, "RGBA")
    for box, color in reversed(list(zip(boxes.tolist(), colors, strict=True))):
        _draw_outline(pen, box, color, width)
    taken: list[Rectangle] = []
    for box, color, text in zip(boxes.tolist(), colors, texts or [""] * len(boxes), strict=True):
        if text:
            taken.append(_draw_label(pen, picture.size, box, color, legible(text), taken))
    return np.asarray(picture)


def with_caption(image: np.ndarray, text: str) -> np.ndarray:
    """Return the picture with a line of text above it, cut where the picture ends."""
    strip = Image.new("RGB", (image.shape[1], _FONT_SIZE + 9), _PAPER)
    ImageDraw.Draw(strip).text((2, 3), legible(text), fill=_INK, font=font())
    return np.concatenate([np.asarray(strip), image])


def grid(pictures: Sequence[np.ndarray], *, columns: int, gap: int = 8) -> np.ndarray:
    """Set pictures of any sizes on one sheet, row by row, each row and column as large as its largest picture.

    No picture at all is a ValueError.
    """
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(p.shape[0] for p in row) for row in rows]
    widths = [max(p.shape[1] for p in pictures[c::columns]) for c in range(min(columns, len(pictures)))]
    sheet = np.full((sum(heights) + gap * (len(heights) + 1), sum(widths) + gap * (len(widths) + 1), 3), _PAPER[0])
    sheet = sheet.astype(np.uint8)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for picture, wide in zip(row, widths, strict=False):
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += wide + gap
        y += height + gap
    return sheet


def png_bytes(image: np.ndarray) -> bytes:
    """Return the picture as a PNG file's content."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


@functools.lru_cache(maxsize=1)
def font() -> ImageFont.FreeTypeFont:
    """Return the font of labels: DejaVu Sans, which comes with matplotlib and knows most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)


def legible(text: str) -> str:
    """Return the text on one line, with '?' for every character that the font does not have."""
    return "".join(character if _is_known(character) else "?" for character in " ".join(text.split()))


@functools.lru_cache(maxsize=4096)
def _is_known(character: str) -> bool:
    unknown = bytes(font().getmask("\uffff"))
    return character.isprintable() and bytes(font().getmask(character)) != unknown


def _draw_outline(pen: ImageDraw.ImageDraw, box: Sequence[float], color: Color, width: int) -> None:
    x0, y0, x1, y1 = (round(v) for v in box)
    x1, y1 = max(x0, x1 - 1), max(y0, y1 - 1)  # the last pixel inside; a box of swapped corners is a dot
    if width > 1:  # the rim lies outside, so that it hides nothing of the object
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_HALO, width=1)
    pen.rectangle((x0, y0, x1, y1), outline=color if width > 1 else (*color, 170), width=width)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Sequence[float],
    color: Color,
    text: str,
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Write a label at a box, where it hides no other label if there is such a place; return the place."""
    wide, tall = int(pen.textlength(text, font=font())) + 5, _FONT_SIZE + 4
    x0, y0, x1, y1 = (round(v) for v in box)
    corners = [(x0, y0 - tall), (x0, y1), (x1 - wide, y0 - tall), (x1 - wide, y1), (x0, y0), (x0, y1 - tall)]
    places = [_inside(x, y, wide, tall, size) for x, y in corners]
    place = next((p for p in places if not any(_overlap(p, other) for other in taken)), places[0])
    pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
    is_bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 125
    pen.text((place[0] + 2, place[1]), text, fill=(0, 0, 0) if is_bright else (255, 255, 255), font=font())
    return place


def _inside(x: int, y: int, wide: int, tall: int, size: tuple[int, int]) -> Rectangle:
    x, y = max(0, min(x, size[0] - wide)), max(0, min(y, size[1] - tall))
    return x, y, x + wide, y + tall


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
