"""`shapes`: a generated data set, for trying things without a download and for studies on a CPU.

Written once, as PNG files and annotations in COCO's format, below the cache folder; afterwards read as any other set.
The same spec gives the same pixels everywhere.

Background anchors per foreground anchor by the paper's assignment, over 300 pictures (COCO: 527-600): with half-size
anchors (16..256) easy 330, hard 358, and 99 and 97 % of the boxes are reached at IoU 0.5. The paper's own (32..512)
are too large here: they reach 74 and 56 %.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from detkit.data.datasets.coco import read_coco
from detkit.data.datasets.drawing import STYLES, Drawing, draw_picture
from detkit.data.draws import Draws, philox
from detkit.data.errors import DataError
from detkit.data.index import ImageIndex
from detkit.files import cache_folder, folder_made_whole, write_text_atomically
from detkit.registry import DATASETS, near_misses

VERSION = 1  # of the pixels: raise it with any change of drawing.py that moves one
_SPLITS = ("train", "val", "test")
_FORM = "The form is shapes:train,images=400,seed=1,level=easy,size=192."


@dataclass(frozen=True)
class ShapesSpec:
    """What `shapes:...` says.

    Attributes:
        split: train, val or test; each has pictures of its own.
        images: how many pictures, 1..100000; picture i is the same whatever their number.
        seed: any integer from 0.
        level: easy (clear, apart, three classes) or hard (faint, overlapping, six classes, and distractors that lack
            a detail of an object: a ring with a gap, a square without a corner).
        size: side of the pictures in pixels, 96..1024; 0 stands for the level's own (easy 192, hard 256).
    """

    split: str
    images: int = 400
    seed: int = 1
    level: str = "easy"
    size: int = 0

    @classmethod
    def from_text(cls, text: str) -> ShapesSpec:
        """Read `train,images=400,...`; raises DataError naming what is wrong, the nearest key, and the form."""
        split, *parts = (part.strip() for part in text.split(","))
        if split not in _SPLITS:
            raise DataError(f"shapes:{text}: the split is '{split}', not one of {', '.join(_SPLITS)}. {_FORM}")
        values: dict[str, str] = {}
        for part in parts:
            key, equals, value = (piece.strip() for piece in part.partition("="))
            _check_key(text, key, equals, values)
            values[key] = value
        spec = cls(
            split,
            images=_number(text, "images", values.get("images", cls.images)),
            seed=_number(text, "seed", values.get("seed", cls.seed)),
            level=values.get("level", cls.level),
            size=_number(text, "size", values["size"]) if "size" in values else 0,
        )
        if spec.level not in STYLES:
            raise DataError(f"shapes:{text}: level is '{spec.level}', not one of {', '.join(STYLES)}. {_FORM}")
        return replace(spec, size=spec.size or STYLES[spec.level].side)

    def folder_name(self) -> str:
        """Return a name for the folder of this set, readable, one for each content."""
        return f"{self.level}-{self.split}-{self.images}x{self.size}px-seed{self.seed}-v{VERSION}"

    def draw(self, i: int) -> Drawing:
        """Return picture i."""
        stream = 1000 + 10 * list(STYLES).index(self.level) + _SPLITS.index(self.split)
        return draw_picture(STYLES[self.level], self.size, Draws(philox(stream, self.seed, i)))


_RANGES = {"images": (1, 100_000), "seed": (0, 2**63 - 1), "size": (96, 1024)}


@DATASETS.register(name="shapes")
class ShapesDataset:
    """`shapes:SPLIT,images=400,seed=1,level=easy|hard,size=192`, all but the split with a default."""

    def __init__(self, spec: str) -> None:
        self.spec = ShapesSpec.from_text(spec)

    def classes(self) -> tuple[str, ...]:
        """Return the shapes of the level; makes nothing."""
        return STYLES[self.spec.level].shapes

    def load(self) -> ImageIndex:
        """Return the index of the set, which is drawn first where the cache does not hold it."""
        folder = cache_folder() / "shapes" / self.spec.folder_name()
        if not folder.is_dir():
            _make(folder, self.spec)
        try:
            return read_coco(folder / "annotations.json", folder / "images")
        except DataError as error:
            raise DataError(f"{error} This is a generated set: delete {folder}, and it is made again.") from error


def _make(folder: Path, spec: ShapesSpec) -> None:
    with folder_made_whole(folder) as temporary:
        (temporary / "images").mkdir()
        images: list[dict] = []
        notes: list[dict] = []
        for i in range(spec.images):
            drawing, name = spec.draw(i), f"{i + 1:06d}.png"
            Image.fromarray(drawing.image).save(temporary / "images" / name, compress_level=1)
            images.append({"id": i + 1, "file_name": name, "width": spec.size, "height": spec.size})
            notes += _annotations(drawing, i + 1, len(notes))
        names = STYLES[spec.level].shapes
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
        data = {"images": images, "annotations": notes, "categories": categories}
        write_text_atomically(temporary / "annotations.json", json.dumps(data))


def _annotations(drawing: Drawing, image_id: int, before: int) -> list[dict]:
    corners, sides = drawing.boxes[:, :2], drawing.boxes[:, 2:] - drawing.boxes[:, :2]
    return [
        {
            "id": before + j + 1,
            "image_id": image_id,
            "category_id": int(drawing.classes[j]) + 1,
            "bbox": [*corners[j].tolist(), *sides[j].tolist()],
            "area": float(np.prod(sides[j])),
            "iscrowd": 0,
        }
        for j in range(len(drawing.boxes))
    ]


def _check_key(text: str, key: str, equals: str, seen: dict[str, str]) -> None:
    known = [f.name for f in fields(ShapesSpec) if f.name != "split"]
    if key not in known or not equals:
        near = near_misses(key, known)
        hint = f" Did you mean {near}?" if near and key not in known else ""
        raise DataError(
            f"shapes:{text}: '{key}{equals}' is not one of {', '.join(k + '=' for k in known)}.{hint} {_FORM}"
        )
    if key in seen:
        raise DataError(f"shapes:{text}: '{key}' is given twice")


def _number(text: str, key: str, given: str | int) -> int:
    (low, high), value = _RANGES[key], str(given)
    if not (value.isascii() and value.isdigit() and len(value) < 20 and low <= int(value) <= high):
        raise DataError(f"shapes:{text}: {key} is '{value}', not a whole number from {low} to {high}. {_FORM}")
    return int(value)
