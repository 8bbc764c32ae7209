from __future__ import annotations

import numpy as np
import pytest
import torch

from detkit.structures import Batch, Detections
from detkit.visualization import batch_picture, class_color, detections_picture, pictures, predictions_picture

NAMES = ("cat", "dog", "emu")


def _is(image, color):
    return (image == np.array(color)).all(-1)


@pytest.fixture
def captions(monkeypatch):
    """The texts of the captions drawn, in order."""
    texts = []
    draw = pictures.with_caption
    monkeypatch.setattr(pictures, "with_caption", lambda image, text: (texts.append(text), draw(image, text))[1])
    return texts


@pytest.fixture
def batch():
    images = [torch.full((3, 64, 48), 70, dtype=torch.uint8), torch.full((3, 40, 64), 70, dtype=torch.uint8)]
    boxes = [torch.tensor([[8.0, 8, 24, 24], [30.0, 30, 44, 60]]), torch.zeros(0, 4)]
    classes = [torch.tensor([1, 2]), torch.zeros(0, dtype=torch.int64)]
    return Batch.from_images(images, boxes=boxes, classes=classes, image_ids=[7, 1000])


ANCHORS = torch.tensor([[8.0, 8, 24, 24], [6.0, 9, 22, 25], [0.0, 0, 5, 5], [50.0, 50, 64, 64]])


def _batch_picture(batch, labels, matched, **options):
    return batch_picture(
        batch,
        anchors_R4=ANCHORS,
        labels_NR=torch.tensor(labels),
        matched_NR=torch.tensor(matched),
        class_names=NAMES,
        **options,
    )


def test_batch_picture_counts_what_is_trained_on(batch, captions):
    sheet = _batch_picture(batch, [[1, 1, 3, -1], [3, 3, 3, -1]], [[0, 0, 1, 1], [0, 0, 0, 0]])
    assert captions == [
        "image 7: 2 true, 1 without an anchor; 2 anchors assigned",
        "image 1000: 0 true; 0 anchors assigned",
    ]
    assert _is(sheet, class_color(1)).any()
    assert _is(sheet, class_color(2)).any()
    assert not _is(sheet, class_color(0)).any()


def test_batch_picture_draws_foreground_anchors_only(batch):
    nothing = _batch_picture(batch, [[3, 3, 3, -1], [3, 3, -1, -1]], [[0] * 4] * 2)
    ignored = _batch_picture(batch, [[-1, -1, -1, -1], [3, 3, 3, 3]], [[0] * 4] * 2)
    assert (nothing == ignored).all()
    one = _batch_picture(batch, [[3, 3, 0, -1], [3, 3, -1, -1]], [[0] * 4] * 2)
    assert (nothing != one).any()


def test_batch_picture_shows_padding(batch):
    sheet = _batch_picture(batch, [[3] * 4] * 2, [[0] * 4] * 2)
    padding = 64 * 64 * 2 - 64 * 48 - 40 * 64
    assert _is(sheet, (110,) * 3).sum() == pytest.approx(padding * 25, rel=0.05)  # scaled by 5; labels hide some


def test_batch_picture_shows_some_of_many(batch, captions):
    sheet = _batch_picture(batch, [[3] * 4] * 2, [[0] * 4] * 2, max_images=1)
    assert len(captions) == 1
    assert sheet.shape[1] == 320 + 16


def test_batch_picture_of_a_large_picture_fits_the_screen(captions):
    batch = Batch.from_images(
        [torch.zeros(3, 600, 1000, dtype=torch.uint8)], boxes=[ANCHORS[:1] * 10], classes=[torch.tensor([0])]
    )
    sheet = _batch_picture(batch, [[0, 3, 3, 3]], [[0] * 4])
    assert sheet.shape[1] == 800 + 16
    assert captions == ["image 0: 1 true; 1 anchors assigned"]


def _found():
    return Detections(
        torch.tensor([[8.0, 8, 24, 24], [20.0, 5, 40, 30], [1.0, 1, 9, 9]]),
        torch.tensor([0.9, 0.5, 0.2]),
        torch.tensor([0, 1, 2]),
    )


def test_detections_below_the_threshold_are_not_drawn(ground):
    image = detections_picture(ground(48, 64), _found(), class_names=NAMES, score_threshold=0.5)
    assert [bool(_is(image, class_color(k)).any()) for k in range(3)] == [True, True, False]
    assert image.shape == (48 * 5, 64 * 5, 3)


def test_detections_of_a_large_picture_are_where_they_belong(ground):
    found = Detections(torch.tensor([[400.0, 200, 1200, 600]]), torch.tensor([0.9]), torch.tensor([0]))
    image = detections_picture(ground(640, 1280), found, class_names=[""])
    ys, xs = np.nonzero(_is(image, class_color(0))[101:])  # below the label
    assert (xs.min(), xs.max() + 1, ys.max() + 102) == (200, 600, 300)


def test_predictions_stand_beside_the_truth(ground, captions):
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    sheet = predictions_picture(
        [ground(48, 64), ground(30, 30)],
        [_found(), nothing],
        [torch.zeros(0, 4), torch.tensor([[2.0, 2, 20, 20]])],
        [torch.zeros(0, dtype=torch.int64), torch.tensor([2])],
        [torch.zeros(0, dtype=torch.bool), torch.tensor([False])],
        class_names=NAMES,
        titles=["a.png", "b.png"],
        score_threshold=0.3,
    )
    assert captions == ["0 true in a.png", "2 found with score ≥ 0.3", "1 true in b.png", "0 found with score ≥ 0.3"]
    half = sheet.shape[1] // 2
    assert not _is(sheet[:, :half], class_color(0)).any()
    assert _is(sheet[:, half:], class_color(0)).any()
    assert _is(sheet[:, :half], class_color(2)).any()
    assert not _is(sheet[:, half:], class_color(2)).any()


def test_what_is_not_counted_is_drawn_grey_and_said(ground, captions):
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    boxes, classes = torch.tensor([[2.0, 2, 20, 20], [22.0, 22, 28, 28]]), torch.tensor([2, 1])
    sheet = predictions_picture(
        [ground(30, 30)], [nothing], [boxes], [classes], [torch.tensor([True, False])], class_names=NAMES, titles=["a"]
    )
    assert captions[0] == "1 true (and 1 not counted) in a"
    assert _is(sheet, class_color(1)).any()
    assert _is(sheet, pictures._IGNORED).any()
    assert not _is(sheet, class_color(2)).any()


def test_lists_of_different_length_are_refused(ground):
    with pytest.raises(ValueError, match="zip"):
        predictions_picture([ground(9, 9)], [], [], [], [], class_names=NAMES, titles=["a"])
