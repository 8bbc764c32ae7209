"""Drawing the pictures of the `shapes` set: numpy only, from raw random words, so the same pixels on every machine.

A shape is a set of points (u, v) in [-1, 1]^2, drawn on a grid `FINE` times finer than the pixels. Only sums, products,
quotients, square roots and comparisons touch pixel values, which IEEE arithmetic rounds alike everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detkit.data.draws import Draws

FINE = 4  # sub-pixels per pixel and axis
Grid = NDArray[np.float64]
Mask = NDArray[np.bool_]
Canvas = NDArray[np.float32]  # [S, S, 3], grey levels
Box = tuple[float, float, float, float]


def _triangle(u: Grid, v: Grid) -> Mask:
    return (v <= 0.75) & (1.75 * np.abs(u) - v <= 1.0)


def _ring(u: Grid, v: Grid) -> Mask:
    square = u * u + v * v
    return (square <= 1) & (square >= 0.3)


def _star(u: Grid, v: Grid) -> Mask:
    """Two triangles, one upside down."""
    wide = 1.75 * np.abs(u)
    return ((v <= 0.5) & (wide - v <= 1.0)) | ((v >= -0.5) & (wide + v <= 1.0))


SHAPES: dict[str, Callable[[Grid, Grid], Mask]] = {
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.85,
    "triangle": _triangle,
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) <= 0.3) & (np.maximum(np.abs(u), np.abs(v)) <= 0.95),
    "ring": _ring,
    "star": _star,
}

# What a distractor lacks of the shape that it resembles: about a sixth of it.
MISSING: dict[str, Callable[[Grid, Grid], Mask]] = {
    "circle": lambda u, v: (u > 0) & (np.abs(v) < 0.7 * u),
    "square": lambda u, v: (u > 0.05) & (v > 0.05),
    "triangle": lambda u, v: (v > 0.1) & (np.abs(u) < 0.32),
    "cross": lambda u, v: u > 0.3,
    "ring": lambda u, v: (u > 0) & (np.abs(v) < 0.42),
    "star": lambda u, v: v < -0.42,
}


@dataclass(frozen=True)
class Style:
    """How a level looks. Lengths in pixels; contrast in grey levels between an object and the ground below it.

    Attributes:
        shapes: the classes, in order.
        side: picture side where the spec does not say.
        objects: least and most objects in a picture of that side; more in a larger one, by area.
        distractors: the same for what looks like an object and is none.
        sizes: least and most longer side of an object before it is turned.
        turn: largest turn to either side, radians.
        stretch: largest ratio of a shape's two axes.
        contrast: least and most contrast.
        hue: how far the three channels of an object's colour may lie apart.
        overlap: largest share of the smaller box that another object's box may cover.
        ground: contrast of the ground's texture.
        clutter: strokes and specks on the ground, in a picture of `side`.
    """

    shapes: tuple[str, ...]
    side: int
    objects: tuple[int, int]
    distractors: tuple[int, int]
    sizes: tuple[float, float]
    turn: float
    stretch: float
    contrast: tuple[float, float]
    hue: float
    overlap: float
    ground: float
    clutter: int


STYLES = {
    "easy": Style(
        shapes=("circle", "square", "triangle"),
        side=192,
        objects=(1, 4),
        distractors=(0, 0),
        sizes=(18, 40),
        turn=0.3,
        stretch=1.15,
        contrast=(85, 130),
        hue=110,
        overlap=0.0,
        ground=34,
        clutter=0,
    ),
    "hard": Style(
        shapes=tuple(SHAPES),
        side=256,
        objects=(0, 9),
        distractors=(1, 7),
        sizes=(14, 38),
        turn=math.pi,
        stretch=1.3,
        contrast=(34, 70),
        hue=75,
        overlap=0.25,
        ground=46,
        clutter=24,
    ),
}


@dataclass(frozen=True)
class Placed:
    """A thing in a picture: its class (a distractor of class k: -1 - k), its mask, the mask's box, and the pixel of
    the mask's corner.
    """

    kind: int
    mask: Mask
    box: Box
    top: int
    left: int

    def window(self) -> tuple[slice, slice]:
        """Return where it lies in the picture."""
        m = self.mask.shape[0] // FINE
        return slice(self.top, self.top + m), slice(self.left, self.left + m)

    def fine_window(self) -> tuple[slice, slice]:
        """Return where it lies among the sub-pixels."""
        y, x, m = self.top * FINE, self.left * FINE, self.mask.shape[0]
        return slice(y, y + m), slice(x, x + m)

    def bounds(self, box: Box) -> Box:
        """Return a box of the mask, or of a part of it, in pixels of the picture."""
        return self.left + box[0], self.top + box[1], self.left + box[2], self.top + box[3]


@dataclass(frozen=True)
class Drawing:
    """A picture [S, S, 3] uint8 RGB, its boxes [g, 4] (xyxy, tight to the visible parts, in quarters of a pixel) and
    classes [g]. g may be 0.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]


def draw_picture(style: Style, side: int, draws: Draws) -> Drawing:
    """Return a picture of a style, a pure function of the words that `draws` gives."""
    canvas = _ground(style, side, draws)
    room = side * side / style.side**2
    wanted = [draws.integer(0, len(style.shapes) - 1) for _ in range(_count(style.objects, room, draws))]
    wanted += [-1 - draws.integer(0, len(style.shapes) - 1) for _ in range(_count(style.distractors, room, draws))]
    owner = np.full((side * FINE, side * FINE), -1, dtype=np.int16)  # which drawn thing each sub-pixel shows
    placed: list[Placed] = []
    for kind in wanted:
        thing = _placed(style, side, kind, placed, draws)
        if thing is None:
            continue  # the picture is full
        _paint(canvas, thing, _colour(style, canvas, thing, draws))
        owner[thing.fine_window()][thing.mask] = len(placed)
        placed.append(thing)
    objects = [i for i, thing in enumerate(placed) if thing.kind >= 0]
    boxes = [placed[i].bounds(box_of(owner[placed[i].fine_window()] == i)) for i in objects]
    grain = (draws.array(side, side, 1) - 0.5) * 8
    return Drawing(
        image=np.clip(canvas + grain + 0.5, 0, 255).astype(np.uint8),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        classes=np.array([placed[i].kind for i in objects], dtype=np.int64),
    )


def shape_mask(name: str, width: float, height: float, angle: float, *, whole: bool = True) -> Mask:
    """Return the sub-pixels of a shape turned by `angle` (radians), [m * FINE, m * FINE], m the pixels it needs.

    `width` and `height` are its axes in pixels before the turn; not `whole`, it lacks its detail (a distractor).
    """
    pixels = math.ceil(math.hypot(width, height)) + 1
    steps = (np.arange(pixels * FINE) + 0.5) / FINE - pixels / 2
    # Rounded, because machines may differ in the last bit of a cosine.
    c, s = round(math.cos(angle) * 2**20) / 2**20, round(math.sin(angle) * 2**20) / 2**20
    x, y = steps[None, :], steps[:, None]
    u, v = (x * c + y * s) * (2 / width), (y * c - x * s) * (2 / height)
    mask = SHAPES[name](u, v)
    return mask if whole else mask & ~MISSING[name](u, v)


def box_of(mask: Mask) -> Box:
    """Return the box, in pixels, that is tight to the sub-pixels of a mask; there must be one."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(xs[0]) / FINE, float(ys[0]) / FINE, float(xs[-1] + 1) / FINE, float(ys[-1] + 1) / FINE


def _count(span: tuple[int, int], room: float, draws: Draws) -> int:
    return int(draws.integer(*span) * room + draws.uniform(0, 1))  # rounds at random, so the mean is right


def _ground(style: Style, side: int, draws: Draws) -> Canvas:
    """Return a textured ground [S, S, 3]: a colour, value noise of three scales, strokes and specks."""
    base = 70 + 115 * draws.array(1, 1, 3)
    base = base.mean() + 0.5 * (base - base.mean())
    canvas = np.broadcast_to(base, (side, side, 3)).astype(np.float32)
    for cell, weight in ((96, 1.0), (32, 0.6), (9, 0.4)):
        canvas += _noise(side, cell, weight * style.ground, draws)
    for _ in range(round(style.clutter * side * side / style.side**2)):
        _stroke(canvas, draws)
    return np.clip(canvas, 18, 237)


def _noise(side: int, cell: int, strength: float, draws: Draws) -> Canvas:
    """Return value noise [S, S, 3]: random values on a lattice, smoothly blended; mostly light, a little colour."""
    cells = -(-side // cell) + 2
    lattice = 0.8 * (draws.array(cells, cells, 1) - 0.5) + 0.35 * (draws.array(cells, cells, 3) - 0.5)
    lattice = (strength * lattice).astype(np.float32)
    at = (np.arange(side) + 0.5) / cell
    low = at.astype(np.int64)
    t = np.asarray(at - low, dtype=np.float32)
    t = t * t * (3 - 2 * t)
    rows = lattice[low] + (lattice[low + 1] - lattice[low]) * t[:, None, None]
    left, right = rows[:, low], rows[:, low + 1]
    return np.asarray(left + (right - left) * t[None, :, None])


def _stroke(canvas: Canvas, draws: Draws) -> None:
    """Draw a thin short line, or a speck, a little lighter or darker than the ground."""
    side, length = len(canvas), draws.uniform(1, 26)
    angle, x0, y0 = draws.uniform(0, math.pi), draws.uniform(0, side), draws.uniform(0, side)
    c, s = round(math.cos(angle) * 2**20) / 2**20, round(math.sin(angle) * 2**20) / 2**20
    reach = int(length / 2) + 3
    ys, xs = (slice(max(0, int(p) - reach), int(p) + reach) for p in (y0, x0))
    y, x = np.mgrid[ys, xs][:, : side - ys.start, : side - xs.start]
    along = np.abs((x + 0.5 - x0) * c + (y + 0.5 - y0) * s) - length / 2
    across = np.abs((y + 0.5 - y0) * c - (x + 0.5 - x0) * s)
    distance = np.maximum(np.maximum(along, 0), across)
    strength = draws.uniform(12, 40) * (1 if draws.integer(0, 1) else -1)
    canvas[ys, xs] += strength * np.clip(1.6 - distance, 0, 1)[..., None]


def _placed(style: Style, side: int, kind: int, placed: list[Placed], draws: Draws) -> Placed | None:
    """Return a thing of a kind where it covers no other too much, or None where no such place was found."""
    size, ratio = draws.uniform(*style.sizes), draws.uniform(1, style.stretch)
    axes = (size, size / ratio) if draws.integer(0, 1) else (size / ratio, size)
    name = style.shapes[kind if kind >= 0 else -1 - kind]
    mask = shape_mask(name, *axes, draws.uniform(-style.turn, style.turn), whole=kind >= 0)
    last, box = side - mask.shape[0] // FINE, box_of(mask)
    for _ in range(12):
        thing = Placed(kind, mask, box, draws.integer(0, last), draws.integer(0, last))
        if all(_covered(thing, other) <= _allowed(style, thing, other) for other in placed):
            return thing
    return None


def _allowed(style: Style, thing: Placed, other: Placed) -> float:
    """Return how much of each other two things may cover; a distractor's missing detail is never covered."""
    return style.overlap if thing.kind >= 0 and other.kind >= 0 else 0.0


def _covered(thing: Placed, other: Placed) -> float:
    """Return the share of the smaller box that lies in both; above 0 as soon as they are within two pixels."""
    gap = 2.0
    a, b = thing.bounds(thing.box), other.bounds(other.box)
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= -gap or high <= -gap:
        return 0.0
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(wide, 0.01) * max(high, 0.01) / smaller


def _colour(style: Style, canvas: Canvas, thing: Placed, draws: Draws) -> NDArray[np.float64]:
    """Return a colour [3] of any hue whose mean differs from that of the ground below by the wanted contrast."""
    below = round(float(canvas[thing.window()].mean()) * 16) / 16  # rounded: machines may sum in another order
    contrast = draws.uniform(*style.contrast)
    lighter, darker = below + contrast <= 245, below - contrast >= 10
    sign = (1 if draws.integer(0, 1) else -1) if lighter == darker else (1 if lighter else -1)
    hue = draws.array(3)
    return np.clip(below + sign * contrast + style.hue * (hue - hue.mean()), 2, 253)


def _paint(canvas: Canvas, thing: Placed, colour: NDArray[np.float64]) -> None:
    """Blend the colour in by the share of each pixel that the mask covers, with a soft light from above."""
    m = thing.mask.shape[0] // FINE
    share = thing.mask.reshape(m, FINE, m, FINE).sum((1, 3))[..., None] / FINE**2
    light = np.linspace(6, -6, m)[:, None, None]
    window = thing.window()
    canvas[window] = canvas[window] * (1 - share) + (colour + light) * share
