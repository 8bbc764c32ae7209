"""Blobs of Detectron, loaded by their names into the preset `detectron`, detect what Detectron would.

On one side the network and the post-processing of tests/parity/detectron_reference.py, which knows nothing of ours; on
the other the file in Detectron's format, `load_weights` and the detector.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.checkpoint import load_weights
from detkit.config import get_cfg
from detkit.modeling import build_detector
from detkit.structures import Batch
from tests.checkpoint import foreign
from tests.parity import detectron_reference as detectron

PRESET = Path(__file__).resolve().parents[2] / "configs" / "presets" / "detectron.yaml"
CLASSES = 5


def preset(*overrides):
    cfg = get_cfg()
    cfg.merge_from_file(PRESET)
    cfg.merge_from_list([*foreign.NARROW, *overrides])
    return build_detector(cfg, CLASSES).eval()


@pytest.fixture(scope="module")
def blobs():
    """A narrow RetinaNet whose scores pass the threshold by the hundred and whose boxes overlap."""
    source = foreign.as_affine(foreign.detector(classes=CLASSES, seed=4))
    foreign.make_it_detect(source, picture(128, 160, seed=0))
    return foreign.caffe2_retinanet(source, CLASSES)


@pytest.fixture(scope="module")
def loaded(blobs, tmp_path_factory):
    path = foreign.write_pickle(tmp_path_factory.mktemp("d1") / "model_final.pkl", {"blobs": blobs})
    model = preset()
    report = load_weights(model, path)
    assert (report.missing, report.notes) == ({}, [])
    return model


def picture(height, width, seed):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


# (size of the resized picture, size of the original, factor between them)
SIZES = [((128, 160), (64, 80), 2.0), ((150, 97), (300, 194), 0.5), ((128, 128), (128, 128), 1.0)]


@torch.no_grad()
@pytest.mark.parametrize(("resized", "original", "scale"), SIZES)
def test_detections_are_those_of_detectron(blobs, loaded, resized, original, scale):
    image = picture(*resized, seed=resized[0])
    mean = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    expected = detectron.detections(image.flip(0).float() - mean, scale, original, blobs)
    assert len(expected) >= 50, "a test needs something to detect"
    (found,) = loaded(Batch.from_images([image], original_sizes=[original]))
    boxes = np.array([box for box, _, _ in expected]) + [0, 0, 1, 1]  # last pixel to right edge
    scores = np.array([score for _, score, _ in expected])
    assert len(found.boxes) == len(expected)
    np.testing.assert_allclose(found.scores.numpy(), scores, atol=1e-5)
    assert found.classes.tolist() == [label for _, _, label in expected]
    np.testing.assert_allclose(found.boxes.numpy(), boxes, atol=2e-3)


@torch.no_grad()
def test_every_logit_belongs_to_its_anchor(blobs, loaded):
    """Each of Detectron's anchors has the score and deltas here that it has there, whatever the order."""
    image = picture(128, 128, seed=1)
    mean = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    levels = detectron.pyramid(detectron.backbone((image.flip(0).float() - mean)[None], blobs), blobs)
    raw = loaded.raw_outputs(image[None], torch.tensor([[128, 128]]))
    for index, (level, (scores, deltas)) in enumerate(detectron.heads(levels, blobs).items()):
        ours = raw.anchors[index].double().numpy() - [0, 0, 1, 1]
        assert len(ours) == scores[:, 0].size
        cells = detectron.cell_anchors(level)
        place = {tuple(np.round(box, 2)): row for row, box in enumerate(ours)}
        for a, y, x in np.ndindex(9, *scores.shape[2:]):
            row = place[tuple(np.round(cells[a] + np.array([x, y, x, y]) * 2.0**level, 2))]
            np.testing.assert_allclose(raw.logits[index][0, row].sigmoid().numpy(), scores[a, :, y, x], atol=1e-5)
            np.testing.assert_allclose(raw.deltas[index][0, row].numpy(), deltas[a, :, y, x], atol=1e-4)


@torch.no_grad()
def test_a_resnext_has_its_stride_in_the_3x3(tmp_path):
    options = ("MODEL.BACKBONE.ResNet.STRIDE_IN_1X1", False)
    source = foreign.as_affine(foreign.detector(*options, classes=CLASSES, seed=4))
    blobs = foreign.caffe2_retinanet(source, CLASSES)
    model = preset(*options)
    load_weights(model, foreign.write_pickle(tmp_path / "x.pkl", {"blobs": blobs}))
    image = picture(128, 128, seed=3)
    x = model.preprocess(image[None], torch.tensor([[128, 128]]))
    expected = detectron.backbone(x, blobs, stride_1x1=False)
    for name, feature in model.backbone.bottom_up(x).items():
        torch.testing.assert_close(feature, expected[name], atol=1e-4, rtol=1e-4)


def test_the_wrong_preset_would_show(blobs, loaded, tmp_path):
    """The same weights in the anchors of detectron2 detect other boxes, and the report says so."""
    path = foreign.write_pickle(tmp_path / "model_final.pkl", {"blobs": blobs})
    other = foreign.detector(classes=CLASSES)
    notes = load_weights(other, path).notes
    assert any("other anchors" in note for note in notes)
    batch = Batch.from_images([picture(128, 160, seed=128)], original_sizes=[(64, 80)])
    (right,), (wrong,) = loaded(batch), other.eval()(batch)
    count = min(len(right.boxes), len(wrong.boxes), 20)
    assert (right.boxes[:count] - wrong.boxes[:count]).abs().max() > 0.5
