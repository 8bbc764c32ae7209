import pytest
import torch

from detkit.modeling.assigners import IoUAssigner

K = 5


def beside(iou):
    """A box of height 1 whose overlap with [0, 0, 10, 1] is `iou`."""
    return [0, 0, 10 * iou, 1]


def assign(anchors, boxes, classes, **options):
    gt_boxes = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4)
    labels, matched = IoUAssigner(K, **options)(
        torch.tensor(anchors, dtype=torch.float32), gt_boxes, torch.tensor(classes, dtype=torch.int64).reshape(1, -1)
    )
    return labels[0], matched[0]


def test_thresholds_are_at_least_a_half_for_positive_and_below_two_fifths_for_background():
    anchors = [beside(iou) for iou in (1.0, 0.5, 0.499, 0.4, 0.399, 0.1)] + [[20, 20, 30, 30]]
    labels, _ = assign(anchors, [[0, 0, 10, 1]], [3])
    assert labels.tolist() == [3, 3, -1, -1, K, K, K]


def test_an_anchor_belongs_to_the_ground_truth_it_overlaps_most():
    labels, matched = assign([[0, 0, 10, 10]], [[0, 0, 10, 5], [0, 0, 10, 8]], [1, 2])
    assert labels.tolist() == [2]
    assert matched.tolist() == [1]


@pytest.mark.parametrize(
    ("low_quality", "labels"), [("detectron2", [4, 4, K]), ("detectron", [4, K, K]), ("off", [-1, K, K])]
)
def test_low_quality_matches(low_quality, labels):
    # Two ground truths whose best anchors overlap them by 0.45 and by 0.2; the third anchor overlaps nothing.
    anchors = [beside(0.45), [100, 0, 102, 1], [50, 50, 60, 60]]
    assert assign(anchors, [[0, 0, 10, 1], [100, 0, 110, 1]], [4, 4], low_quality=low_quality)[0].tolist() == labels


def test_a_rescued_anchor_keeps_its_own_best_ground_truth_and_ties_are_rescued():
    # Both anchors are the best (0.3 each) of the wide box, but the first overlaps the small one more.
    boxes = [[0, 0, 10, 1], [0, 0, 4, 1]]
    labels, matched = assign([[0, 0, 3, 1], [7, 0, 10, 1]], boxes, [0, 1])
    assert labels.tolist() == [1, 0]
    assert matched.tolist() == [1, 0]


def test_thresholds_are_options():
    anchors = [beside(iou) for iou in (0.7, 0.6, 0.3, 0.2)]
    labels, _ = assign(anchors, [[0, 0, 10, 1]], [0], positive_iou=0.65, negative_iou=0.25, low_quality="off")
    assert labels.tolist() == [0, -1, -1, K]


def test_without_ground_truth_all_is_background():
    labels, matched = assign([[0, 0, 4, 4], [1, 1, 2, 2]], [], [])
    assert labels.tolist() == [K, K]
    assert matched.tolist() == [0, 0]


def test_padding_of_ground_truth_matches_nothing():
    labels, matched = assign([[0, 0, 4, 4]], [[0, 0, 4, 4], [0, 0, 4, 4]], [-1, 2])
    assert labels.tolist() == [2]
    assert matched.tolist() == [1]


def test_boxes_may_differ_by_image():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 40, 2, 2, generator=generator).sort(2).values
    boxes, truth = (40 * corners).flatten(2).split([36, 4], 1)
    classes = torch.randint(0, K, (2, 4), generator=generator)
    labels, matched = IoUAssigner(K)(boxes, truth, classes)
    for n in range(2):
        alone = IoUAssigner(K)(boxes[n], truth[n : n + 1], classes[n : n + 1])
        assert torch.equal(labels[n], alone[0][0])
        assert torch.equal(matched[n], alone[1][0])
    assert (labels < K).any()


def test_invalid_boxes_are_ignored_and_are_nobodys_best():
    boxes = torch.tensor([beside(0.45), beside(0.3)], dtype=torch.float32).expand(2, 2, 4)
    truth, classes = torch.tensor([[[0.0, 0, 10, 1]]]).expand(2, 1, 4), torch.tensor([[3], [3]])
    valid = torch.tensor([[True, True], [False, True]])
    assert IoUAssigner(K)(boxes, truth, classes, valid=valid)[0].tolist() == [[3, K], [-1, 3]]


@pytest.mark.parametrize(("positive", "negative"), [(0.4, 0.5), (1.1, 0.4), (0.5, -0.1)])
def test_impossible_thresholds_are_refused(positive, negative):
    with pytest.raises(ValueError, match=f"not {negative} and {positive}"):
        IoUAssigner(K, positive_iou=positive, negative_iou=negative)
