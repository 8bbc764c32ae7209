"""Sampling: uniform, bounded, a function of the seed alone; and the windows of a detector over pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.checkpoint import CheckpointError
from detkit.config import ConfigError, get_cfg
from detkit.data import DataError
from detkit.engine.predictor import config_of
from detkit.experiments.loss_distribution import UniformSample, sample_windows, window_keys
from detkit.modeling import build_detector
from detkit.modeling.detectors.retinanet import RetinaNet
from detkit.registry import CLS_LOSSES
from detkit.structures.boxes import box_iou

SIZES = [(64, 96), (96, 64), (70, 70), (33, 90), (96, 96)]  # height, width


def sampled(parts, size, seed=0, room=16):
    sample = UniformSample(size, seed, room=room)
    for picture, places, values in parts:
        sample.add(picture, np.asarray(places, np.int64), np.asarray(values, np.float32))
    return sample


PARTS = [(p, np.arange(40) * 3, np.arange(40) + 100 * p) for p in range(7)]


@pytest.mark.parametrize("size", [1, 5, 50, 279])
@pytest.mark.parametrize("room", [1, 16, 1000])
def test_the_smallest_keys_are_kept_whatever_the_order_and_the_batches(size, room):
    keys = np.concatenate([window_keys(0, p, places) for p, places, _ in PARTS])
    values = np.concatenate([v for _, _, v in PARTS])
    expected = np.sort(values[np.argsort(keys)[:size]])
    split = [(p, places[i::3], v[i::3]) for p, places, v in reversed(PARTS) for i in range(3)]
    for parts in (PARTS, split):
        sample = sampled(parts, size, room=room)
        np.testing.assert_array_equal(sample.values(), expected)
        assert sample.num_seen == 280
    assert not np.array_equal(sampled(PARTS, size, seed=1).values(), expected)


@pytest.mark.parametrize("size", [280, 1000])
def test_of_few_all_are_taken(size):
    np.testing.assert_array_equal(sampled(PARTS, size).values(), np.sort(np.concatenate([v for _, _, v in PARTS])))
    assert len(sampled([], size).values()) == 0
    assert len(sampled([(0, [], [])], size).values()) == 0


def test_every_number_is_as_likely_as_any_other():
    counts = np.zeros(280)
    for seed in range(500):
        values = sampled(PARTS, 28, seed=seed).values()
        counts[(values // 100 * 40 + values % 100).astype(int)] += 1
    assert counts.sum() == 14_000
    assert np.abs(counts - 50).max() < 5 * np.sqrt(50 * 0.9)


def test_keys_are_uniform_and_pure():
    keys = window_keys(5, 2, np.arange(200_000)) / 2.0**64
    counts, _ = np.histogram(keys, 50, (0, 1))
    assert np.abs(counts - 4000).max() < 5 * np.sqrt(4000)
    assert abs(np.corrcoef(keys[1:], keys[:-1])[0, 1]) < 0.01
    assert len({int(window_keys(s, p, np.array([k]))[0]) for s in range(9) for p in range(9) for k in range(9)}) == 729
    assert window_keys(5, 2, np.array([7]))[0] == window_keys(5, 2, np.arange(20))[7]


def test_memory_is_bounded():
    sample = UniformSample(100, 0, room=50)
    held = (sample._keys.nbytes, sample._values.nbytes)
    for picture in range(30):
        sample.add(picture, np.arange(997), np.zeros(997, np.float32))
        assert (sample._keys.nbytes, sample._values.nbytes) == held == (150 * 8, 150 * 4)
    assert len(sample.values()) == 100


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    """Write pictures of several sizes with a box each in COCO's format; return the data set's name."""

    def write(classes=("cat", "dog"), boxes=True):
        (tmp_path / "images").mkdir(exist_ok=True)
        images, annotations = [], []
        for i, (height, width) in enumerate(SIZES):
            noise = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "images" / f"{i}.png")
            images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
            box = [4 * i, 2, 24, 30]
            annotations.append({"id": i + 1, "image_id": i + 1, "category_id": i % len(classes) + 1, "bbox": box,
                                "area": 720, "iscrowd": 0})  # fmt: skip
        content = {"images": images, "annotations": annotations if boxes else [],
                   "categories": [{"id": k + 1, "name": name} for k, name in enumerate(classes)]}  # fmt: skip
        path = tmp_path / f"{'-'.join(classes)}{boxes}.json"
        path.write_text(json.dumps(content))
        return f"coco:{path}:{tmp_path / 'images'}"

    return write


@pytest.fixture
def config(pictures):
    def make(*overrides):
        cfg = get_cfg()
        resnet = {"DEPTH": 18, "NORM": "BN", "FREEZE_AT": 0, "STEM_CHANNELS": 8, "RES2_CHANNELS": 8}
        cfg.merge_from_other_cfg({
            "MODEL": {"BACKBONE": {"ResNet": resnet}, "NECK": {"FPN": {"OUT_CHANNELS": 8}},
                      "HEAD": {"RetinaNetHead": {"NUM_CONVS": 1}}, "ANCHORS": {"SIZES": [16, 32, 64, 128, 256]}},
            "DATASETS": {"TRAIN": [pictures()], "TEST": [pictures()]},
            "INPUT": {"TEST_TRANSFORMS": {"NAMES": []}}, "TEST": {"IMS_PER_BATCH": 2},
            "DATALOADER": {"NUM_WORKERS": 0}, "DEVICE": "cpu", "PRECISION": "fp32",
        })  # fmt: skip
        cfg.merge_from_list(list(overrides))
        return cfg

    return make


@pytest.fixture
def checkpoint(config, tmp_path):
    """Write a checkpoint whose logits differ by anchor and class, and not by place, so that batches change nothing."""

    def write(cfg=None, classes=("cat", "dog")):
        cfg = config() if cfg is None else cfg
        detector = build_detector(cfg, num_classes=len(classes))
        with torch.no_grad():
            detector.head.cls_score.weight.zero_()
            detector.head.cls_score.bias.copy_(torch.linspace(-3, 3, 9 * len(classes)))
        path = tmp_path / f"model{len(classes)}.pth"
        torch.save({"model": detector.state_dict(), "class_names": list(classes), "config": cfg.dump()}, path)
        return path

    return write


def with_weights(path, *overrides):
    cfg = config_of(path)
    cfg.merge_from_list(list(overrides))
    return cfg


def test_the_sample_does_not_depend_on_the_batch_size(checkpoint):
    path = checkpoint()
    found = [sample_windows(with_weights(path, "TEST.IMS_PER_BATCH", n), num_negatives=500, seed=3) for n in (1, 2, 5)]
    for other in found[1:]:
        np.testing.assert_array_equal(other.negatives, found[0].negatives)
        np.testing.assert_array_equal(other.positives, found[0].positives)
        assert (other.seen_positives, other.seen_negatives) == (found[0].seen_positives, found[0].seen_negatives)
    assert len(found[0].negatives) == 500 < found[0].seen_negatives
    again = sample_windows(with_weights(path), num_negatives=500, seed=4)
    assert not np.array_equal(again.negatives, found[0].negatives)


def test_windows_are_pairs_of_anchor_and_class_by_the_assigners_labels(checkpoint, config):
    """Every anchor counts K windows unless it is ignored; the positives are those of IoU 0.5, or a box's best."""
    path = checkpoint()
    found = sample_windows(with_weights(path), num_negatives=10**6)
    detector = build_detector(config(), num_classes=2)
    negatives, positives, logits = 0, [], torch.linspace(-3, 3, 18).reshape(9, 2)
    for i, (height, width) in enumerate(SIZES):
        sides = [-(-side // 32) * 32 for side in (height, width)]
        anchors = torch.cat(detector.anchors(detector.anchors.sizes_for(*sides)))
        iou = box_iou(anchors, torch.tensor([[4.0 * i, 2, min(4.0 * i + 24, width), 32]]))[:, 0]
        is_positive = (iou >= 0.5) | (iou == iou.max())
        negatives += 2 * int((iou < 0.4).sum()) - 2 * int((is_positive & (iou < 0.4)).sum()) + int(is_positive.sum())
        positives += logits[torch.arange(len(anchors))[is_positive] % 9, i % 2].tolist()
    assert found.seen_negatives == negatives == len(found.negatives)
    assert found.seen_positives == len(positives)
    np.testing.assert_allclose(found.positives, np.sort(np.float32(positives)), rtol=1e-6)
    assert found.num_pictures == 5


def test_progress_is_said(checkpoint):
    said = []
    sample_windows(with_weights(checkpoint()), num_negatives=10, say=said.append)
    assert [text.split(" pictures")[0] for text in said] == ["2 of 5", "4 of 5", "5 of 5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": -1}, "the number of negatives to sample is -1"),
        ({"num_positives": 0}, "the number of positives to sample is 0"),
        ({"seed": -2}, "the seed is -2"),
    ],
)
def test_wrong_numbers(config, options, message):
    with pytest.raises(ConfigError, match=message):
        sample_windows(config(), **options)


def test_what_does_not_fit_is_said_before_the_network_runs(checkpoint, pictures, tmp_path, monkeypatch):
    path = checkpoint()
    monkeypatch.setattr(RetinaNet, "raw_outputs", lambda *args: pytest.fail("the network ran"))
    with pytest.raises(DataError, match="have no name in common"):
        sample_windows(with_weights(path), pictures(classes=("truck", "bus")))
    with pytest.raises(DataError, match="has no object"):
        sample_windows(with_weights(path), pictures(boxes=False))
    with pytest.raises(ConfigError, match="DATASETS.TEST is empty"):
        sample_windows(with_weights(path, "DATASETS.TEST", []))
    with pytest.raises(CheckpointError, match=r"'backbone.* has shape .*, and this config's detector has"):
        sample_windows(with_weights(path, "MODEL.NECK.FPN.OUT_CHANNELS", 16))
    with pytest.raises(CheckpointError, match=r"head.cls_subnet.2"):
        sample_windows(with_weights(path, "MODEL.HEAD.RetinaNetHead.NUM_CONVS", 2))
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"text.pth: cannot be read as a file of weights"):
        config_of(tmp_path / "text.pth")


def test_a_loss_without_a_probability_for_each_class_is_refused(checkpoint, config):
    class Softmax(CLS_LOSSES.get("SigmoidFocalLoss")):
        def num_channels(self, num_classes):
            return num_classes + 1

    CLS_LOSSES.register(Softmax)
    try:
        cfg = config("MODEL.CLS_LOSS.NAME", "Softmax", "MODEL.PRIOR_PROB", None)
        detector = build_detector(cfg, num_classes=2)
        path = checkpoint()
        torch.save({"model": detector.state_dict(), "class_names": ["cat", "dog"]}, path)
        cfg.MODEL.WEIGHTS = str(path)
        with pytest.raises(ConfigError, match="Softmax has no sigmoid for each class"):
            sample_windows(cfg)
    finally:
        CLS_LOSSES.unregister("Softmax")


def test_boxes_that_no_anchor_reaches(checkpoint):
    off = ["MODEL.ASSIGNER.IoUAssigner.LOW_QUALITY", "off", "MODEL.ASSIGNER.IoUAssigner.POSITIVE_IOU", 1.0]
    with pytest.raises(DataError, match="no anchor was assigned to any of the 5 boxes"):
        sample_windows(with_weights(checkpoint(), *off))
