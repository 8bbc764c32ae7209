import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.config import get_cfg
from detkit.data import build_training_data
from detkit.engine import train
from detkit.engine.anchor_coverage import anchor_coverage
from detkit.modeling import build_detector
from detkit.modeling.anchors import AnchorGrid
from detkit.structures.boxes import box_iou

SIDE = 256


@pytest.fixture
def write(tmp_path):
    """Write a COCO set of black pictures from {file name: [(class, xyxy), ...]}; return its name."""

    def make(pictures, classes=("bolt", "nut")):
        (tmp_path / "images").mkdir(exist_ok=True)
        images, notes = [], []
        for i, (name, objects) in enumerate(pictures.items(), 1):
            Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "images" / name)
            images.append({"id": i, "file_name": name, "width": SIDE, "height": SIDE})
            for k, (x0, y0, x1, y1) in objects:
                box = [x0, y0, x1 - x0, y1 - y0]
                notes.append({"id": len(notes) + 1, "image_id": i, "category_id": k, "bbox": box, "iscrowd": 0})
        categories = [{"id": k, "name": name} for k, name in enumerate(classes)]
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
        return f"coco:{path}:{tmp_path / 'images'}"

    return make


@pytest.fixture
def coverage_of(tiny):
    """Return the coverage of the tiny config on a data set, its pictures at a size, with anchors of these sizes."""

    def run(name, sizes=(16, 32, 64, 128, 256), at=SIDE, ratios=(0.5, 1.0, 2.0)):
        cfg = get_cfg()
        cfg.merge_from_file(str(tiny))
        resize = "INPUT.TRAIN_TRANSFORMS.ResizeShortestEdge"
        cfg.merge_from_list(["DATASETS.TRAIN", [name], "MODEL.ANCHORS.SIZES", list(sizes), f"{resize}.SIZES", [at],
                             f"{resize}.MAX_SIZE", at, "MODEL.ANCHORS.ASPECT_RATIOS", list(ratios)])  # fmt: skip
        index = build_training_data(cfg)
        return anchor_coverage(cfg, index, build_detector(cfg, len(index.class_names)))

    return run


def squares(side, count=12, k=0):
    """Pictures with one square each, its centre a pixel from one of the grid's."""
    corners = [41 + 8 * i - side / 2 for i in range(count)]
    return {f"{k}_{side}_{i}.png": [(k, (at, at, at + side, at + side))] for i, at in enumerate(corners)}


def test_boxes_of_the_anchors_size_are_reached_and_nothing_is_advised(write, coverage_of):
    coverage = coverage_of(write(squares(32) | squares(64, k=1)))
    assert coverage.reached == 1
    assert coverage.per_class == {"bolt": 1.0, "nut": 1.0}
    assert coverage.images == 24
    assert coverage.images_missed == 0
    assert coverage.advice == ""


def test_too_small_boxes_are_counted_and_the_sizes_that_reach_them_are_named(write, coverage_of):
    coverage = coverage_of(write(squares(14) | squares(64, k=1)), sizes=(32, 64, 128, 256, 512))
    assert coverage.reached == 0.5
    assert coverage.per_class == {"bolt": 0.0, "nut": 1.0}
    assert coverage.images_missed == 0.5
    assert coverage.advice.startswith("On 50 % of the pictures no box has an anchor of IoU 0.5 or more at 256 px. ")
    assert 'Better: MODEL.ANCHORS.SIZES "[16, 32, 64, 128, 256]": 100 %; ' in coverage.advice
    assert "an input 2.0 times as large" in coverage.advice


def test_the_advice_keeps_its_word(write, coverage_of):
    name = write(squares(14))
    assert coverage_of(name, sizes=(32, 64, 128, 256, 512)).reached == 0
    assert coverage_of(name, sizes=(16, 32, 64, 128, 256)).reached == 1
    assert coverage_of(name, sizes=(32, 64, 128, 256, 512), at=2 * SIDE).reached == 1


def test_boxes_of_another_shape_want_other_ratios(write, coverage_of):
    long = {f"{i}.png": [(0, (4.0 + 3 * i, 10.0 + 9 * i, 200.0 + 3 * i, 18.0 + 9 * i))] for i in range(12)}
    coverage = coverage_of(write(long))
    assert coverage.reached == 0
    assert 'MODEL.ANCHORS.ASPECT_RATIOS "[0.041, 0.5, 1, 2]": 42 %.' in coverage.advice
    assert "SIZES" not in coverage.advice
    ratios = (0.041, 0.5, 1.0, 2.0)
    assert coverage_of(write(long), ratios=ratios).reached == pytest.approx(0.42, abs=0.005)


def test_where_nothing_helps_it_says_so(write, coverage_of):
    specks = {f"{i}.png": [(0, (4.0 + 3 * i, 10.0, 4.1 + 3 * i, 10.9))] for i in range(12)}
    assert "Neither anchors of other sizes or ratios nor a larger input" in coverage_of(write(specks)).advice


def test_a_class_out_of_reach_is_named_even_where_the_others_are_many(write, coverage_of):
    pictures = {f"{i}.png": [(0, (8.0 * j, 40.0, 8.0 * j + 32, 72.0)) for j in range(9)]
                            + [(1, (3.0, 100.0, 9.0, 106.0))] for i in range(12)}  # fmt: skip
    coverage = coverage_of(write(pictures))
    assert coverage.reached == pytest.approx(0.9)
    assert "'nut'" in coverage.advice
    assert "'bolt'" not in coverage.advice


def test_a_class_without_a_box_has_no_share(write, coverage_of):
    coverage = coverage_of(write(squares(32), classes=("bolt", "nut")))
    assert np.isnan(coverage.per_class["nut"])
    assert "nut" not in coverage.text()


def test_pictures_of_rare_classes_are_looked_at_too(write, coverage_of):
    pictures = {f"{i}.png": [(int(i == 201), (10.0, 10.0, 42.0, 42.0))] for i in range(400)}
    coverage = coverage_of(write(pictures))
    assert coverage.images == 128
    assert coverage.per_class["nut"] == 1


def test_pictures_for_rare_classes_do_not_move_the_total(write, coverage_of):
    pictures = {f"{i}.png": [(0, (10.0, 10.0, 42.0, 42.0))] for i in range(400)}
    pictures |= {f"{i}.png": [(1, (3.0, 3.0, 7.0, 7.0))] for i in (200, 202, 300)}  # none in even steps of 128
    coverage = coverage_of(write(pictures))
    assert coverage.per_class == {"bolt": 1.0, "nut": 0.0}
    assert (coverage.reached, coverage.images_missed) == (1.0, 0.0)


def test_the_imbalance_is_that_of_the_assigner(write, coverage_of, tiny):
    box = (40.0, 40.0, 104.0, 104.0)
    coverage = coverage_of(write({"a.png": [(0, box)]}))
    cfg = get_cfg()
    cfg.merge_from_file(str(tiny))
    grid = build_detector(cfg, 2).anchors
    iou = box_iou(torch.cat(grid(grid.sizes_for(SIDE, SIDE))), torch.tensor([box]))[:, 0]
    expected = float((iou < 0.4).sum()) / float((iou >= 0.5).sum())
    assert coverage.background_per_foreground == pytest.approx(expected)


def test_a_detector_without_an_anchor_grid_is_left_alone(config):
    cfg = config()
    index = build_training_data(cfg)
    assert anchor_coverage(cfg, index, torch.nn.Identity()) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_detector_may_be_on_a_device(write, coverage_of, monkeypatch, tiny):
    on_cpu = coverage_of(write(squares(14) | squares(64, k=1)), sizes=(32, 64, 128, 256, 512))
    build = build_detector
    monkeypatch.setattr(f"{__name__}.build_detector", lambda *args: build(*args).to("cuda"))
    assert coverage_of(write(squares(14) | squares(64, k=1)), sizes=(32, 64, 128, 256, 512)) == on_cpu


def test_a_grid_from_other_keys_is_advised_a_factor(write, coverage_of, monkeypatch):
    build = build_detector

    def shifted(*args):
        detector = build(*args)
        detector.anchors = AnchorGrid(shapes=[[(64.0, 64.0)]] * 5, strides=(8, 16, 32, 64, 128))
        return detector

    monkeypatch.setattr(f"{__name__}.build_detector", shifted)
    monkeypatch.delattr("detkit.modeling.detectors.retinanet.RetinaNet.assign")
    coverage = coverage_of(write(squares(32)))
    assert coverage.background_per_foreground is None
    assert "Better: anchors 0.71 times as large: 100 %" in coverage.advice


def test_a_failure_is_a_warning_not_the_end_of_the_run(config, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError("a mistake in a project")

    monkeypatch.setattr("detkit.modeling.detectors.retinanet.RetinaNet.assign", fail)
    monkeypatch.setattr("detkit.engine.pictures.FirstBatchPicture.after_step", lambda *_: None)
    train(config("SOLVER.MAX_ITER", 1))
    assert "the fit of the anchors could not be measured: RuntimeError: a mistake in a project" in caplog.text


def test_a_run_says_its_coverage_at_the_start_and_warns(config, caplog):
    caplog.set_level(logging.INFO)
    train(config("MODEL.ANCHORS.SIZES", [64, 128, 256, 512, 1024], "SOLVER.MAX_ITER", 1))
    said = [record for record in caplog.records if "anchor" in record.getMessage()]
    assert "of the boxes have one of IoU 0.5 or more" in said[0].getMessage()
    warned = next(record for record in said if record.levelno == logging.WARNING)
    assert 'MODEL.ANCHORS.SIZES "[' in warned.getMessage()
