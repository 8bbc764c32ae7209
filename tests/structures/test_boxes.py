"""Boxes, labels, batches: conventions and empty cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.structures import IGNORED, Batch, Detections, foreground, is_assigned
from detkit.structures.boxes import box_area, box_iou, clip_boxes

coordinate = st.floats(-1000, 1000, width=32)
box = st.tuples(*[coordinate] * 4).map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])))
boxes = st.lists(box, max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float64).reshape(-1, 4))


def brute_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    area = lambda r: (r[2] - r[0]) * (r[3] - r[1])  # noqa: E731
    return inter / (area(a) + area(b) - inter) if inter > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_iou_is_its_definition(a, b):
    got = box_iou(a, b)
    want = torch.tensor([[brute_iou(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64)
    torch.testing.assert_close(got, want.reshape(len(a), len(b)))
    torch.testing.assert_close(got, box_iou(b, a).T)
    assert bool(((got >= 0) & (got <= 1 + 1e-12)).all())


def test_width_is_x1_minus_x0():
    assert box_area(torch.tensor([[0.0, 0.0, 10.0, 2.0], [5.0, 5.0, 4.0, 9.0]])).tolist() == [20.0, 0.0]


def test_iou_is_batched():
    a, b = torch.rand(3, 4, 4), torch.rand(3, 5, 4)
    a[..., 2:] += a[..., :2]
    b[..., 2:] += b[..., :2]
    torch.testing.assert_close(box_iou(a, b), torch.stack([box_iou(x, y) for x, y in zip(a, b, strict=True)]))


def test_clip():
    rows = torch.tensor([[-5.0, -5.0, 50.0, 50.0], [1.0, 2.0, 3.0, 4.0]])
    assert clip_boxes(rows, torch.tensor([10, 20])).tolist() == [[0, 0, 20, 10], [1, 2, 3, 4]]
    both = clip_boxes(rows.expand(2, 2, 4), torch.tensor([[10, 20], [3, 2]]))
    assert both[1].tolist() == [[0, 0, 2, 3], [1, 2, 2, 3]]
    assert clip_boxes(torch.zeros(0, 4), torch.tensor([10, 20])).shape == (0, 4)


def test_labels():
    labels = torch.tensor([IGNORED, 0, 2, 3])
    assert foreground(labels, 3).tolist() == [False, True, True, False]
    assert is_assigned(labels).tolist() == [False, True, True, True]


def test_a_batch_pads_right_and_bottom_and_ground_truth_with_minus_one():
    images = [torch.full((3, 4, 6), 7, dtype=torch.uint8), torch.full((3, 5, 2), 9, dtype=torch.uint8)]
    batch = Batch.from_images(
        images,
        boxes=[torch.zeros(0, 4), torch.ones(2, 4)],
        classes=[torch.zeros(0, dtype=torch.int64), torch.tensor([1, 0])],
    )
    assert batch.images.shape == (2, 3, 5, 6)
    assert batch.images[0, :, :4].eq(7).all()
    assert batch.images[0, :, 4:].eq(0).all()
    assert batch.images[1, :, :, 2:].eq(0).all()
    assert batch.image_sizes.tolist() == [[4, 6], [5, 2]]
    assert batch.gt_classes_NG.tolist() == [[-1, -1], [1, 0]]
    assert batch.gt_boxes_NG4[0].eq(0).all()
    assert len(batch) == 2


def test_a_batch_without_ground_truth_and_without_pictures():
    batch = Batch.from_images([torch.zeros(3, 2, 2, dtype=torch.uint8)])
    assert batch.gt_boxes_NG4.shape == (1, 0, 4)
    assert batch.image_ids.tolist() == [0]
    with pytest.raises(ValueError, match="at least one picture"):
        Batch.from_images([])


def test_detections_above():
    found = Detections(torch.zeros(3, 4), torch.tensor([0.9, 0.5, 0.1]), torch.tensor([1, 2, 0]))
    assert found.above(0.5).classes.tolist() == [1, 2]
    assert len(found.above(0.95)) == 0
