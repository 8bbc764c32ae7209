"""Small data sets made on the spot."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkit.data.datasets.coco import read_coco


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep generated sets out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def write_picture() -> Callable[..., Path]:
    """`write_picture(path, (h, w), value=i)`: a picture whose upper left pixel and average depend on the value."""

    def write(path: Path, size: tuple[int, int], value: int = 0) -> Path:
        pixels = np.random.default_rng(value).integers(0, 255, (*size, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def write_png() -> Callable[..., Path]:
    """`write_png(path, depth=16, kind=2, rows=[bytes, ...], behind=[(b"eXIf", bytes)])`: chunks that Pillow does not
    write; two pixels wide, `kind` is PNG's colour type, `behind` comes after the pixels.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    def write(
        path: Path, *, depth: int, kind: int, rows: Sequence[bytes], behind: Sequence[tuple[bytes, bytes]] = ()
    ) -> Path:
        head = struct.pack(">IIBBBBB", 2, len(rows), depth, kind, 0, 0, 0)
        pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
        chunks = [(b"IHDR", head), (b"IDAT", pixels), *behind, (b"IEND", b"")]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))
        return path

    return write


@pytest.fixture
def coco_files(tmp_path, write_picture) -> Callable[..., tuple[Path, Path]]:
    """`coco_files(sizes, boxes, ...)` writes pictures 1.png, 2.png, ... and annotations; returns (json, folder).

    `boxes` are (picture number, category, [x, y, w, h]); `change(data)` may spoil the data before they are written.
    """

    def write(
        sizes: Sequence[tuple[int, int]] = ((40, 60), (30, 30)),
        boxes: Sequence[tuple[Any, Any, Any]] = ((1, 1, [10, 10, 20, 10]), (2, 2, [0, 0, 30, 30])),
        categories: Sequence[tuple[Any, Any]] = ((1, "cat"), (2, "dog")),
        change: Callable[[dict], Any] = lambda data: None,
    ) -> tuple[Path, Path]:
        folder = tmp_path / "images"
        for i, size in enumerate(sizes, 1):
            write_picture(folder / f"{i}.png", size, i)
        data = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes, 1)
            ],
            "annotations": [
                {"id": n, "image_id": i, "category_id": k, "bbox": list(box), "iscrowd": 0}
                for n, (i, k, box) in enumerate(boxes, 1)
            ],
            "categories": [{"id": k, "name": name} for k, name in categories],
        }
        change(data)
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(data))
        return path, folder

    return write


@pytest.fixture
def coco_index(coco_files):
    """`coco_index(...)` is the index of what `coco_files(...)` writes."""
    return lambda *args, **kwargs: read_coco(*coco_files(*args, **kwargs))


@pytest.fixture
def config() -> Callable[..., Any]:
    """`config(TRAIN=(...), ...)`: the keys that this room reads, with small values."""

    def make(**changes: Any) -> Any:
        resize = {"SIZES": (48,), "MAX_SIZE": 96, "SAMPLING": "choice"}
        values = {
            "TRAIN": (),
            "TEST": (),
            "FILTER_EMPTY": False,
            "NUM_WORKERS": 0,
            "ASPECT_RATIO_GROUPING": True,
            "SEED": 3,
            "IMS_PER_BATCH": 2,
            "TRAIN_TRANSFORMS": {"NAMES": ["ResizeShortestEdge", "RandomFlip"], "ResizeShortestEdge": resize},
            "TEST_TRANSFORMS": {"NAMES": ["ResizeShortestEdge"], "ResizeShortestEdge": resize},
            **changes,
        }
        sections = {
            "DATASETS": ("TRAIN", "TEST", "FILTER_EMPTY"),
            "DATALOADER": ("NUM_WORKERS", "ASPECT_RATIO_GROUPING"),
            "INPUT": ("TRAIN_TRANSFORMS", "TEST_TRANSFORMS"),
            "TEST": ("IMS_PER_BATCH",),
        }
        nodes = {name: SimpleNamespace(**{key: values[key] for key in keys}) for name, keys in sections.items()}
        return SimpleNamespace(SEED=values["SEED"], DEVICE="cpu", **nodes)

    return make
