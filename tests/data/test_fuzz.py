"""Damaged files of every format: what comes out is a sound index, or a DataError that names the file; never else.

`DETKIT_FUZZ_ROUNDS` sets the rounds per format (`make fuzz`: 100000). Round i of a format is always the same damage.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.data import DataError, ImageIndex, load_image
from detkit.data.datasets.coco import read_coco
from detkit.data.datasets.csv_file import CsvDataset
from detkit.data.datasets.voc import read_voc
from detkit.data.datasets.yolo import YoloDataset
from detkit.data.loader import read_sample

ROUNDS = int(os.environ.get("DETKIT_FUZZ_ROUNDS", "1000"))
SECONDS = 20  # for one round; the slowest take a few milliseconds
H, W = 40, 60

# What a byte may be replaced by, beside noise: things that parsers trip over.
WORDS = [b"0", b"-1", b"1e999", b"NaN", b"nan", b"-inf", b"9" * 30, b"9" * 5000, b"1e-320", b"0x10", b"true", b"null",
         b'""', b"[]", b"{}", b"[" * 2000, b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b" ", b",", b":",
         b"../x.png", b"/etc/passwd", b"C:\\x.png", b"1.PNG", b"2.png", b'\\ud800', b"&lt;", b"&bomb;", b"<!DOCTYPE a>",
         b"<!ENTITY a 'b'>", b"<object>", b"</object>", b"<bndbox>", b"</bndbox>", b"<xmin>5</xmin>", b"<![CDATA[",
         b"<size>", b"- ", b"*a", b"&a ", b"!!python/object:os.system", b"names: [", b"path: ..", b"0 0.5 0.5 2 2\n",
         b"1 0.1 0.1 0.4 0.1 0.4 0.4\n", b"7 0.5 0.5 0.1 0.1\n"]  # fmt: skip
VALUES = [None, True, -1, 0, 1, 2, 10**30, 1.5, float("nan"), float("inf"), "", "1", "x", "\ud800", "../2.png", "2.PNG",
          [], [1, 2], [1, 2, 3, 4], [None] * 4, ["a"] * 4, [1e308] * 4, {}, {"id": 1}]  # fmt: skip


class Hang(BaseException):
    """A round took too long; no `except Exception` of the code under test may catch it."""


@dataclass
class Target:
    """A small data set, the file of it that gets damaged, how, and how the set is read."""

    file: Path
    damage: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[], ImageIndex]
    picture: str = ""  # an error may name the picture whose annotations the file holds

    @property
    def names(self) -> list[str]:
        """What an error has to name, one of them."""
        return [self.file.name, *([self.picture] if self.picture else [])]


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content after one to three damages: noise, a flipped bit, a cut, a repeat, a word."""
    for _ in range(rng.integers(1, 4)):
        start, length = int(rng.integers(len(content) + 1)), int(rng.geometric(0.1))
        end = start + length
        kind = rng.integers(6)
        if kind == 0:
            content = content[:start] + rng.bytes(length) + content[end:]
        elif kind == 1 and start < len(content):
            content = content[:start] + bytes([content[start] ^ 1 << int(rng.integers(8))]) + content[start + 1 :]
        elif kind == 2:
            content = content[:start] + content[end:]
        elif kind == 3:
            content = content[:end] + content[start:]
        elif kind == 4:
            content = content[:start]
        else:
            content = content[:start] + WORDS[rng.integers(len(WORDS))] + content[start + int(rng.integers(4)) :]
    return content


def damaged_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content with one to three values replaced, removed or repeated, or with damaged bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(content, rng)
    data = json.loads(content)
    for _ in range(rng.integers(1, 4)):
        spots = list(_spots(data))
        parent, key = spots[rng.integers(len(spots))]
        kind = rng.integers(4)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.append(json.loads(json.dumps(parent[key])))
        elif kind == 2:
            other, name = spots[rng.integers(len(spots))]
            parent[key] = json.loads(json.dumps(other[name])) if _holds(other, name) else None
        else:
            parent[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
        if not any(True for _ in _spots(data)):
            break
    return json.dumps(data).encode()


def _spots(node: object) -> Iterator[tuple]:
    """Yield every (container, key) of nested lists and dicts."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(pairs):
        yield node, key
        yield from _spots(value)


def _holds(container: object, key: object) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)  # type: ignore[operator]


@pytest.fixture
def pictures(tmp_path):
    """Two pictures, and the folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in (1, 2):
        pixels = np.random.default_rng(i).integers(0, 255, (H, W, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def coco(tmp_path, pictures):
    path = tmp_path / "annotations.json"
    images = [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in (1, 2)]
    boxes = [(1, 1, [10, 10, 20, 10]), (2, 2, [0, 0, 30, 30]), (2, 1, [1.5, 2.5, 3, 4])]
    notes = [{"id": n, "image_id": i, "category_id": k, "bbox": box, "iscrowd": 0, "area": 7.5}
             for n, (i, k, box) in enumerate(boxes, 1)]  # fmt: skip
    data = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    path.write_text(json.dumps(data))
    return Target(path, damaged_json, lambda: read_coco(path, pictures))


def _voc(tmp_path, pictures):
    folder = tmp_path / "Annotations"
    folder.mkdir()
    for i in (1, 2):
        objects = "".join(
            f"<object><name>{name}</name><difficult>{i - 1}</difficult><bndbox><xmin>{x}</xmin><ymin>4</ymin>"
            f"<xmax>{x + 9}</xmax><ymax>{y}</ymax></bndbox></object>"
            for name, x, y in (("cat", 1, 20), ("dog", 30, 38))
        )
        (folder / f"{i}.xml").write_text(
            f"<annotation><folder>images</folder><filename>{i}.png</filename><size><width>{W}</width>"
            f"<height>{H}</height><depth>3</depth></size>{objects}</annotation>"
        )
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("1\n2\n")


@pytest.fixture
def voc_xml(tmp_path, pictures):
    _voc(tmp_path, pictures)
    return Target(tmp_path / "Annotations" / "2.xml", damaged_bytes, lambda: read_voc(tmp_path, "train"), "2.png")


@pytest.fixture
def voc_folder(tmp_path, pictures):
    _voc(tmp_path, pictures)
    return Target(tmp_path / "Annotations" / "2.xml", damaged_bytes, lambda: read_voc(tmp_path, None), "2.png")


@pytest.fixture
def voc_split(tmp_path, pictures):
    _voc(tmp_path, pictures)
    file = tmp_path / "ImageSets" / "Main" / "train.txt"
    return Target(file, damaged_bytes, lambda: read_voc(tmp_path, "train"))


def _yolo(tmp_path, pictures, file):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.3\n1 0.25 0.5 0.5 0.5\n")
    (tmp_path / "labels" / "2.txt").write_text("1 0.1 0.1 0.4 0.1 0.4 0.4\n0 0.75 0.75 0.125 0.25\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnc: 2\nnames: [cat, dog]\n")
    return Target(tmp_path / file, damaged_bytes, lambda: YoloDataset(f"{tmp_path / 'data.yaml'}:train").load())


@pytest.fixture
def yolo_txt(tmp_path, pictures):
    return _yolo(tmp_path, pictures, "labels/2.txt")


@pytest.fixture
def yolo_yaml(tmp_path, pictures):
    return _yolo(tmp_path, pictures, "data.yaml")


@pytest.fixture
def csv(tmp_path, pictures):
    path = tmp_path / "annotations.csv"
    path.write_text("filename,xmin,ymin,xmax,ymax,class\n1.png,1,2,30,20,cat\n1.png,5,5,9,9,dog\n2.png,,,,,\n")
    return Target(path, damaged_bytes, lambda: CsvDataset(f"{path}:{pictures}").load())


def _picture(tmp_path, pictures, name, **options):
    """Both ways to the same damaged picture: as one of a set, and by itself."""
    file = pictures / name
    pixels = np.random.default_rng(1).integers(0, 255, (H, W, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)
    (tmp_path / "train.csv").write_text(f"{name},1,2,30,20,cat\n")

    def read():
        index = CsvDataset(f"{tmp_path / 'train.csv'}:{pictures}").load()
        read_sample(index, 0)
        assert load_image(file).dtype == np.uint8
        return index

    return Target(file, damaged_bytes, read)


@pytest.fixture
def jpeg(tmp_path, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6
    return _picture(tmp_path, pictures, "a.jpg", exif=exif, progressive=True)


@pytest.fixture
def png(tmp_path, pictures):
    return _picture(tmp_path, pictures, "a.png")


@pytest.fixture
def gif(tmp_path, pictures):
    return _picture(tmp_path, pictures, "a.gif")


@pytest.fixture
def tiff(tmp_path, pictures):
    return _picture(tmp_path, pictures, "a.tif", compression="tiff_lzw")


TARGETS = ["coco", "voc_xml", "voc_folder", "voc_split", "yolo_txt", "yolo_yaml", "csv", "jpeg", "png", "gif", "tiff"]


def sound(index: ImageIndex) -> None:
    """Check all that an index promises."""
    report = index.report
    assert report.images_kept == len(index) == len(index.image_ids) == len(index.sizes_hw)
    assert report.boxes_kept == index.num_boxes == len(index.classes) == len(index.is_crowd) == len(index.areas)
    assert report.images_read >= 0
    assert all(count > 0 for counts in (report.images_dropped, report.boxes_dropped) for count in counts.values())
    assert index.box_offsets[0] == 0
    assert index.box_offsets[-1] == index.num_boxes
    assert (index.box_counts() >= 0).all()
    assert len(np.unique(index.image_ids)) == len(index)
    assert ((index.classes >= 0) & (index.classes < len(index.class_names))).all()
    assert len(set(index.class_names)) == len(index.class_names) == len(index.category_ids)
    assert np.isfinite(index.boxes).all()
    trained = index.for_training(filter_empty=False)
    for i in range(len(trained)):
        assert os.path.isfile(trained.path(i))
        height, width = trained.sizes_hw[i]
        boxes = trained.boxes_of(i)
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.isfinite(index.areas).all()
    assert all(isinstance(line, str) for line in index.summary())


def _too_long(*_):
    raise Hang


@pytest.mark.parametrize("name", TARGETS)
def test_damage_ends_in_a_sound_index_or_an_error_that_names_the_file(name, request, monkeypatch, tmp_path):
    target = request.getfixturevalue(name)
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    sound(target.read())  # undamaged, it is fine
    whole = target.file.read_bytes()
    outcomes = {"index": 0, "error": 0}
    before = signal.signal(signal.SIGALRM, _too_long)
    try:
        for i in range(ROUNDS):
            content = target.damage(whole, np.random.default_rng([TARGETS.index(name), i]))
            target.file.write_bytes(content)
            signal.alarm(SECONDS)
            outcomes[_outcome(target, f"round {i} of {name}: {content[:300]!r}")] += 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert min(outcomes.values()) > 0, f"damage always has the same end: {outcomes}"


def _outcome(target: Target, what: str) -> str:
    index, error = _attempt(target, what)
    if index is None:
        assert any(name in error for name in target.names), f"{what}: the error does not name the file: {error}"
        return "error"
    try:
        sound(index)
    except AssertionError as broken:
        raise AssertionError(f"{what}: the index is not sound: {broken}") from broken
    return "index"


def _attempt(target: Target, what: str) -> tuple[ImageIndex | None, str]:
    """Return the index, or the text of a DataError; whatever else happens fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return target.read(), ""
        except DataError as error:
            return None, str(error)
        except (Exception, Hang) as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
