"""The generated set: the same everywhere, true to its boxes, and as unbalanced as it promises."""

from __future__ import annotations

import hashlib
import math
import multiprocessing

import numpy as np
import pytest

from detkit.data import DataError, load_image
from detkit.data.datasets.drawing import FINE, MISSING, SHAPES, STYLES, box_of, shape_mask
from detkit.data.datasets.shapes import ShapesSpec
from detkit.files import cache_folder
from detkit.registry import open_dataset

LEVELS = tuple(STYLES)
DIGESTS = {"easy": ["a2926404b9f3de5e", "98c2fb6535705de4"], "hard": ["e79fa5ca7aa66617", "f3e4ec8581a40a96"]}


def spec_of(text) -> ShapesSpec:
    return ShapesSpec.from_text(text)


def digest(drawing) -> str:
    parts = (drawing.image, drawing.boxes, drawing.classes)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize("level", LEVELS)
def test_pixels_and_boxes_never_change(level):
    """A change of these is a change of every result on the set: raise VERSION, then write the new ones here."""
    spec = spec_of(f"train,level={level}")
    assert [digest(spec.draw(i)) for i in (0, 7)] == DIGESTS[level]


@pytest.mark.parametrize("level", LEVELS)
def test_splits_seeds_and_places_differ(level):
    pictures = [
        digest(spec_of(f"{split},seed={seed},level={level}").draw(i))
        for split in ("train", "val", "test")
        for seed in (1, 2)
        for i in (0, 1)
    ]
    assert len(set(pictures)) == 12


def test_the_number_of_pictures_changes_none_of_them():
    assert digest(spec_of("train,images=5").draw(3)) == digest(spec_of("train,images=500").draw(3))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [96, 200])
def test_boxes_lie_in_the_picture_and_have_an_area(level, size):
    spec = spec_of(f"val,level={level},size={size}")
    for i in range(6):
        drawing = spec.draw(i)
        assert drawing.image.shape == (size, size, 3)
        assert drawing.image.dtype == np.uint8
        assert drawing.boxes.shape == (len(drawing.classes), 4)
        assert (drawing.boxes >= 0).all()
        assert (drawing.boxes <= size).all()
        assert (drawing.boxes[:, 2:] - drawing.boxes[:, :2] > 3).all()
        assert set(drawing.classes.tolist()) <= set(range(len(STYLES[level].shapes)))


def test_easy_boxes_enclose_the_object_tightly():
    """On the easy level nothing overlaps: just outside of the box there is ground, inside there is the object."""
    spec = spec_of("train")
    seen = 0
    for i in range(12):
        drawing = spec.draw(i)
        gray = drawing.image.astype(float).mean(-1)
        for x0, y0, x1, y1 in drawing.boxes:
            left, top, right, bottom = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
            ground = np.median(np.concatenate([
                gray[max(0, top - 2) : bottom + 2, max(0, left - 2) : left].ravel(),
                gray[max(0, top - 2) : bottom + 2, right : right + 2].ravel(),
            ]))  # fmt: skip
            apart = np.abs(gray - ground) > 36
            assert apart[top:bottom, left:right].mean() > 0.3  # a triangle fills half of its box
            assert apart[top : top + 3, left:right].any()
            assert apart[bottom - 3 : bottom, left:right].any()
            assert apart[top:bottom, left : left + 3].any()
            assert apart[top:bottom, right - 3 : right].any()
            assert not apart[max(0, top - 2) : top, left:right].any()
            assert not apart[bottom : bottom + 2, left:right].any()
            seen += 1
    assert seen > 15


@pytest.mark.parametrize("name", SHAPES)
def test_a_mask_is_the_turned_shape(name):
    mask = shape_mask(name, 30, 30, 0.0)
    x0, y0, x1, y1 = box_of(mask)
    assert 22 < x1 - x0 <= 30.5
    assert 22 < y1 - y0 <= 30.5
    turned = shape_mask(name, 30, 30, math.pi / 2)
    np.testing.assert_array_equal(turned, np.rot90(mask, -1))
    assert 0.3 < mask.sum() / FINE**2 / ((x1 - x0) * (y1 - y0)) <= 1


@pytest.mark.parametrize("name", SHAPES)
def test_a_distractor_lacks_a_detail_and_nothing_else(name):
    whole, part = shape_mask(name, 30, 24, 0.7), shape_mask(name, 30, 24, 0.7, whole=False)
    assert not (part & ~whole).any()
    assert 0.06 < 1 - part.sum() / whole.sum() < 0.3
    assert set(MISSING) == set(SHAPES)


def anchors(side, base) -> np.ndarray:
    """The paper's anchors from a base size for P3: three scales by three ratios, strides 8 to 128."""
    boxes = []
    for level in range(5):
        stride = 8 * 2**level
        at = np.arange(-(-side // stride)) * stride
        sizes = [base * 2**level * 2 ** (octave / 3) for octave in range(3)]
        wh = np.array([(s / math.sqrt(r), s * math.sqrt(r)) for s in sizes for r in (0.5, 1, 2)])
        centres = np.stack(np.meshgrid(at, at), -1).reshape(-1, 1, 2)
        boxes.append(np.concatenate([centres - wh / 2, centres + wh / 2], -1).reshape(-1, 4))
    return np.concatenate(boxes)


def overlaps(a, b) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
    return inter / (areas[0][:, None] + areas[1][None] - inter)


@pytest.mark.parametrize("level", LEVELS)
def test_background_outnumbers_foreground_as_on_coco(level):
    """The paper's assignment with half-size anchors (16..256): over 300 to 1, and nearly every box is reached."""
    spec = spec_of(f"train,level={level}")
    grid = anchors(spec.size, 16)
    foreground = background = 0
    reached: list[bool] = []
    for i in range(120):
        boxes = spec.draw(i).boxes
        iou = overlaps(grid, boxes) if len(boxes) else np.zeros((len(grid), 1))
        best = iou.max(1)
        positive = (best >= 0.5) | ((iou == iou.max(0)) & (iou > 0)).any(1)
        foreground += int(positive.sum())
        background += int(((best < 0.4) & ~positive).sum())
        reached += (iou.max(0) >= 0.5).tolist() if len(boxes) else []
    assert background / foreground > 300
    assert np.mean(reached) > 0.95


def test_the_hard_level_has_distractors_and_overlaps():
    drawings = [spec_of("train,level=hard").draw(i) for i in range(30)]
    pairs = [overlaps(d.boxes, d.boxes)[np.triu_indices(len(d.boxes), 1)] for d in drawings if len(d.boxes) > 1]
    assert np.concatenate(pairs).max() > 0.05
    assert {k for d in drawings for k in d.classes.tolist()} == set(range(len(SHAPES)))


@pytest.mark.parametrize("level", LEVELS)
def test_colour_is_no_short_cut(level):
    """The mean colour inside a class's boxes is spread as widely as over all classes."""
    colours: dict[int, list] = {}
    for i in range(60):
        drawing = spec_of(f"train,level={level}").draw(i)
        for (x0, y0, x1, y1), k in zip(drawing.boxes.astype(int), drawing.classes.tolist(), strict=True):
            colours.setdefault(k, []).append(drawing.image[y0:y1, x0:x1].reshape(-1, 3).mean(0))
    spread = np.concatenate([np.array(c) for c in colours.values()]).std(0).mean()
    between = np.std([np.mean(c, 0) for c in colours.values()], 0).mean()
    assert between < 0.4 * spread


def test_loading_makes_the_set_once_and_reads_it_back():
    dataset = open_dataset("shapes:val,images=6,seed=3")
    assert dataset.classes() == ("circle", "square", "triangle")
    index = dataset.load()
    folder = cache_folder() / "shapes" / dataset.spec.folder_name()
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = open_dataset("shapes:val,seed=3, images=6 ,level=easy").load()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    assert len(index) == len(again) == 6
    for i in range(6):
        drawing = dataset.spec.draw(i)
        np.testing.assert_array_equal(load_image(index.path(i)), drawing.image)
        np.testing.assert_array_equal(index.boxes_of(i), drawing.boxes)
        np.testing.assert_array_equal(index.classes_of(i), drawing.classes)
    assert index.report.boxes_kept == index.report.boxes_read == index.num_boxes


def test_classes_make_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    assert open_dataset("shapes:train,level=hard").classes() == tuple(SHAPES)
    assert list(tmp_path.iterdir()) == []


def load(spec, queue):
    queue.put(len(open_dataset(spec).load()))


def test_two_processes_may_make_a_set_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=load, args=("shapes:test,images=12", queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    counts = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert counts == [12, 12]
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == ["easy-test-12x192px-seed1-v1"]


def test_a_set_that_lost_a_file_says_what_to_delete(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    index = open_dataset("shapes:test,images=2").load()
    (tmp_path / "shapes" / "easy-test-2x192px-seed1-v1" / "images" / index.file_name(1)).unlink()
    with pytest.raises(DataError, match=r"000002\.png.*delete .*easy-test-2x192px-seed1-v1"):
        open_dataset("shapes:test,images=2").load()


def test_a_killed_making_leaves_nothing_that_is_taken_for_a_set(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(ShapesSpec, "draw", lambda self, i: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_dataset("shapes:test,images=2").load()
    assert list((tmp_path / "shapes").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the split is ''"),
        ("training", "the split is 'training', not one of train, val, test"),
        ("images=3", "the split is 'images=3'"),
        ("train,imags=3", "'imags=' .*Did you mean 'images'"),
        ("train,hard", "'hard' is not one of images=, seed=, level=, size="),
        ("train,", "'' is not one of"),
        ("train,images=0", "images is '0', not a whole number from 1"),
        ("train,images=ten", "images is 'ten'"),
        ("train,images=1.5", "images is '1.5'"),
        ("train,images=", "images is ''"),
        ("train,seed=-1", "seed is '-1'"),
        ("train,size=95", "size is '95', not a whole number from 96 to 1024"),
        ("train,level=medium", "level is 'medium', not one of easy, hard"),
        ("train,seed=1,seed=2", "'seed' is given twice"),
    ],
)
def test_spec_errors_show_the_value_and_the_form(text, words):
    with pytest.raises(DataError, match=words) as error:
        open_dataset(f"shapes:{text}")
    assert f"shapes:{text}" in str(error.value)


def test_defaults_and_names_of_folders():
    assert spec_of("train").folder_name() == "easy-train-400x192px-seed1-v1"
    assert spec_of("val,level=hard,seed=9,images=7").folder_name() == "hard-val-7x256px-seed9-v1"
    assert spec_of("train,size=128").size == 128
