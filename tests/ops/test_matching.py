from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from detkit.ops import _library

ROOT = Path(__file__).resolve().parents[2]
RULES = ["detectron2", "detectron", "off"]


def iou_matrix(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The IoU [R, G] in the type of the boxes, operation by operation; 0 where it is not a number."""
    a, b = anchors[:, None], boxes[None]
    zero = anchors.dtype.type(0)
    with np.errstate(all="ignore"):
        low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
        inter, *areas = (np.maximum(zero, s).prod(-1) for s in (high - low, *(c[..., 2:] - c[..., :2] for c in (a, b))))
        ratio = inter / (areas[0] + areas[1] - inter)
    return np.where(ratio > 0, ratio, zero)


def by_hand(anchors, gt_boxes, gt_classes, valid, num_classes, positive, negative, rule):
    """Labels and matches of one image from its definition, anchor by anchor."""
    real = np.flatnonzero(gt_classes >= 0)
    labels, matched = [-1] * len(anchors), [0] * len(anchors)
    overlap = iou_matrix(anchors, gt_boxes[real])
    highest = overlap[valid].max(0, initial=0)
    positive, negative = overlap.dtype.type(positive), overlap.dtype.type(negative)
    for r in np.flatnonzero(valid):
        if not len(real):
            labels[r] = num_classes
            continue
        mine = int(overlap[r].argmax())  # the first of equals
        matched[r], best = int(real[mine]), overlap[r, mine]
        rescued = rule != "off" and bool(((highest > 0) & (overlap[r] == highest)).any())
        if best < negative and (rule == "detectron" or not rescued) and best < positive:
            labels[r] = num_classes
        elif best >= positive or rescued:
            labels[r] = int(gt_classes[matched[r]])
    return labels, matched


@st.composite
def scenes(draw):
    """Small integer boxes, where overlaps tie and meet thresholds exactly; padding and invalid anchors among them."""
    images, count, truths = draw(st.integers(0, 2)), draw(st.integers(0, 12)), draw(st.integers(0, 5))

    def boxes(number: int) -> np.ndarray:
        corners = draw(st.lists(st.integers(0, 5), min_size=2 * number, max_size=2 * number))
        sides = draw(st.lists(st.integers(0, 5), min_size=2 * number, max_size=2 * number))
        low = np.array(corners, np.float32).reshape(number, 2)
        return np.concatenate([low, low + np.array(sides, np.float32).reshape(number, 2)], 1)

    classes = draw(st.lists(st.integers(-1, 2), min_size=images * truths, max_size=images * truths))
    valid = draw(st.lists(st.booleans(), min_size=images * count, max_size=images * count))
    return (
        boxes(images * count).reshape(images, count, 4),
        boxes(images * truths).reshape(images, truths, 4),
        np.array(classes, np.int64).reshape(images, truths),
        np.array(valid, bool).reshape(images, count),
    )


@given(
    scene=scenes(),
    rule=st.sampled_from(RULES),
    thresholds=st.sampled_from([(0.5, 0.4), (0.5, 0.5), (0.7, 0.3), (1.0, 0.0), (0.4, 0.2)]),
)
@settings(max_examples=100, deadline=None)
def test_equals_the_definition(device, scene, rule, thresholds):
    check_definition(device, scene, rule, *thresholds)


def check_definition(device, scene, rule, positive, negative, num_classes=3) -> None:
    """Compare with `by_hand` for anchors [N, R, 4] or [R, 4], boxes, classes and valid, as arrays."""
    anchors, gt_boxes, gt_classes, valid = scene
    labels, matched = ops.match_anchors(
        *(torch.from_numpy(part).to(device) for part in scene[:3]),
        num_classes=num_classes,
        positive_iou=positive,
        negative_iou=negative,
        low_quality=rule,
        valid=None if valid is None else torch.from_numpy(valid).to(device),
    )
    assert labels.dtype == matched.dtype == torch.int64
    for n in range(len(gt_boxes)):
        anchors_here = anchors[n] if anchors.ndim == 3 else anchors
        usable = np.ones(len(anchors_here), bool) if valid is None else valid[n]
        want = by_hand(anchors_here, gt_boxes[n], gt_classes[n], usable, num_classes, positive, negative, rule)
        assert (labels[n].tolist(), matched[n].tolist()) == want


class Crowd:
    """Random boxes on a field with a raster, on which overlaps tie and meet thresholds; by the options drawn."""

    ODD = ([math.nan, 0, 4, 4], [0, 0, math.inf, 4], [-math.inf, 0, math.inf, 9], [9, 9, 0, 0], [3, 3, 3, 9], [0] * 4)

    def __init__(self, draw: st.DrawFn) -> None:
        self.random = np.random.default_rng(draw(st.integers(0, 2**32)))
        self.field = draw(st.sampled_from([8, 40, 300]))
        self.raster = draw(st.sampled_from([0.0, 1.0, 2.5]))  # 0: none
        self.odd = draw(st.sampled_from([0.0, 0.05]))
        self.dtype = draw(st.sampled_from([np.float32, np.float64]))

    def boxes(self, *shape: int) -> np.ndarray:
        """[*shape, 4] boxes, smaller ones more often, some odd."""
        low = self.random.uniform(-2, self.field, (*shape, 2))
        sides = 1 + self.field * self.random.uniform(0, 1, (*shape, 2)) ** 4
        boxes = np.concatenate([low, low + sides], -1)
        if self.raster:
            boxes = np.round(boxes / self.raster) * self.raster
        odd = np.array(self.ODD)[self.random.integers(len(self.ODD), size=shape)]
        return np.where(self.random.uniform(size=(*shape, 1)) < self.odd, odd, boxes).astype(self.dtype)

    def some(self, fraction: float, *shape: int) -> np.ndarray:
        """A mask of about this fraction."""
        return self.random.uniform(size=shape) < fraction


@st.composite
def crowds(draw):
    """Scenes of many blocks of anchors and up to 300 boxes, with the rule and thresholds, one of which is often met."""
    crowd, images = Crowd(draw), draw(st.integers(1, 3))
    count = draw(st.one_of(st.sampled_from([0, 1, 127, 128, 129, 256]), st.integers(0, 700)))
    truths = draw(st.sampled_from([0, 1, 3, 20, 64, 65, 300]))
    anchors = crowd.boxes(*([images] if draw(st.booleans()) else []), count)
    gt_boxes = crowd.boxes(images, truths)
    if draw(st.booleans()):  # sorted: neighbours lie close together
        anchors = np.take_along_axis(anchors, anchors[..., 1:2].argsort(-2), -2)
    if truths and draw(st.booleans()):  # the same boxes several times
        gt_boxes = gt_boxes[:, crowd.random.integers(1 + truths // 3, size=truths)]
    classes = np.where(crowd.some(draw(st.sampled_from([0.0, 0.3])), images, truths), -1, np.arange(truths) % 7)
    classes[crowd.some(draw(st.sampled_from([0.0, 0.5])), images)] = -1  # images that are all padding
    valid = crowd.some(draw(st.sampled_from([0.1, 0.9])), images, count) if draw(st.booleans()) else None
    thresholds = draw(st.sampled_from([(0.5, 0.4), (0.7, 0.3), (0.0, 0.0), (1.0, 0.1)]))
    if count and truths and draw(st.booleans()):
        first = iou_matrix(anchors.reshape(-1, count, 4)[0], gt_boxes[0])
        met = sorted(crowd.random.choice(first[first > 0], 2).tolist() if (first > 0).any() else [0.0, 0.0])
        thresholds = (met[1], met[0])
    return (anchors, gt_boxes, classes, valid), draw(st.sampled_from(RULES)), thresholds


@given(crowd=crowds())
@settings(max_examples=200, deadline=None)
def test_equals_the_definition_in_crowds(device, crowd):
    scene, rule, thresholds = crowd
    check_definition(device, scene, rule, *thresholds, num_classes=7)


def match(device: str, anchors: list, gt_boxes: list, gt_classes: list, **options) -> tuple[list, list]:
    labels, matched = ops.match_anchors(
        torch.tensor(anchors, dtype=torch.float32, device=device).reshape(-1, 4),
        torch.tensor([gt_boxes], dtype=torch.float32, device=device).reshape(1, -1, 4),
        torch.tensor([gt_classes], dtype=torch.int64, device=device),
        num_classes=9,
        **options,
    )
    return labels[0].tolist(), matched[0].tolist()


def strip(start: float, length: float) -> list[float]:
    return [start, 0.0, start + length, 1.0]


@pytest.mark.parametrize(("rule", "expected"), [("detectron2", [7, 9]), ("detectron", [9, 9]), ("off", [9, 9])])
def test_low_quality_below_the_negative_threshold(device, rule, expected):
    # IoU 2/10 and 1/11 with the only box: the first anchor is its best.
    assert match(device, [strip(0, 2), strip(9, 2)], [strip(0, 10)], [7], low_quality=rule)[0] == expected


@pytest.mark.parametrize(("rule", "expected"), [("detectron2", 7), ("detectron", 7), ("off", -1)])
def test_low_quality_between_the_thresholds(device, rule, expected):
    assert match(device, [strip(0, 4.5)], [strip(0, 10)], [7], low_quality=rule)[0] == [expected]


def test_all_anchors_that_tie_for_the_best_are_rescued(device):
    assert match(device, [strip(0, 3), strip(7, 3), strip(4, 2)], [strip(0, 10)], [7])[0] == [7, 7, 9]


def test_a_rescued_anchor_keeps_its_own_ground_truth(device):
    # The first anchor overlaps box 0 most, and is the best that box 1 has.
    labels, matched = match(device, [strip(0, 4)], [strip(0, 8), strip(3, 9)], [2, 5], positive_iou=0.9)
    assert (labels, matched) == ([2], [0])


def test_a_ground_truth_that_meets_no_anchor_rescues_none(device):
    assert match(device, [strip(0, 2), strip(4, 2)], [strip(50, 2)], [7])[0] == [9, 9]


def test_thresholds_are_inclusive_above(device):
    anchors = [strip(0, 5), strip(0, 4), strip(0, 3)]  # IoU 0.5, 0.4 and 0.3 with the box
    assert match(device, anchors, [strip(0, 10)], [7], low_quality="off")[0] == [7, -1, 9]
    for threshold in (0.3, 0.6, 0.7, 0.9):  # float32 of some of these is below, of some above
        anchor = strip(0, round(threshold * 10))
        options = {"positive_iou": threshold, "negative_iou": 0.1, "low_quality": "off"}
        assert match(device, [anchor], [strip(0, 10)], [7], **options)[0] == [7]


def test_the_first_of_equal_ground_truths_wins(device):
    assert match(device, [strip(0, 4)], [strip(90, 1), strip(0, 4), strip(0, 4)], [3, 4, 5]) == ([4], [1])


@pytest.mark.parametrize("classes", [[], [-1, -1]])
def test_without_ground_truth_all_is_background(device, classes):
    boxes = [strip(0, 4)] * len(classes)
    assert match(device, [strip(0, 4), strip(1, 3)], boxes, classes, positive_iou=0.0, negative_iou=0.0) == (
        [9, 9],
        [0, 0],
    )


def test_padding_is_nobodys_ground_truth_wherever_it_stands(device):
    padded = match(device, [strip(0, 4)], [strip(0, 4), strip(0, 5), strip(0, 9)], [-1, 6, -1])
    assert padded == ([6], [1])


def test_empty_inputs(device):
    for anchors, images, truths in ((0, 2, 3), (5, 0, 3), (5, 2, 0), (0, 0, 0)):
        labels, matched = ops.match_anchors(
            torch.zeros(anchors, 4, device=device),
            torch.zeros(images, truths, 4, device=device),
            torch.zeros(images, truths, dtype=torch.int64, device=device),
            num_classes=3,
        )
        assert labels.shape == matched.shape == (images, anchors)
        assert (labels == 3).all()


def test_boxes_that_are_no_numbers_match_nothing(device):
    odd = [[math.nan, 0, 4, 4], [0, 0, math.inf, 4], [-math.inf, 0, math.inf, 4], [4, 4, 0, 0]]
    for box in odd:
        assert match(device, [box, [0, 0, 4, 4]], [[0, 0, 4, 4]], [1])[0] == [9, 1]
        assert match(device, [[0, 0, 4, 4]], [box], [1])[0] == [9]


def random_scene(anchors: int, images: int, truths: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    corners, sides = (torch.rand(images * truths + anchors, 2, generator=generator) for _ in range(2))
    boxes = torch.cat([corners * 400, corners * 400 + 8 + 120 * sides**2], 1)
    classes = torch.randint(-1, 20, (images, truths), generator=generator)
    return boxes[:anchors], boxes[anchors:].reshape(images, truths, 4), classes


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_backends_agree_to_the_bit(device, rule, dtype):
    anchors, gt_boxes, gt_classes = random_scene(3000, 2, 400)
    arguments = [anchors.to(dtype), gt_boxes, gt_classes]
    options = {"num_classes": 20, "low_quality": rule, "positive_iou": 0.4, "negative_iou": 0.35}
    with _library.forced("reference"):
        labels, matched = ops.match_anchors(*arguments, **options)
    got = ops.match_anchors(*(a.to(device) for a in arguments), **options)
    assert torch.equal(got[0].cpu(), labels)
    assert torch.equal(got[1].cpu(), matched)
    assert 0 < ((labels >= 0) & (labels < 20)).sum() < (labels == 20).sum()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_anchors_that_tie_far_apart_are_all_rescued_whatever_the_threads(device, threads):
    # Box g is tied by anchors 256 g + 5 and 128 further: whichever thread takes them; box 0 by the last anchor too.
    boxes = torch.tensor([strip(100 * g, 10) for g in range(100)])
    anchors = torch.tensor([strip(-50, 1)]).repeat(25_600, 1)
    anchors[5::256] = anchors[133::256] = boxes - torch.tensor([0.0, 0, 7, 0])
    anchors[-1] = anchors[5]
    anchors[600] = anchors[5] - torch.tensor([0.0, 0, 1, 0])  # overlaps box 0, but less
    tied = torch.zeros(25_600, dtype=torch.bool)
    tied[5::128] = tied[-1] = True
    scene = [t.to(device) for t in (anchors, boxes[None], torch.full((1, 100), 7))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(5):
            labels, _ = ops.match_anchors(*scene, num_classes=9)
            assert torch.equal(labels[0].cpu() == 7, tied)
    finally:
        torch.set_num_threads(before)


def test_the_number_of_threads_changes_nothing(device):
    anchors, gt_boxes, gt_classes = (t.to(device) for t in random_scene(3000, 3, 60))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ops.match_anchors(anchors, gt_boxes, gt_classes, num_classes=20))
    finally:
        torch.set_num_threads(before)
    for labels, matched in found[1:]:
        assert torch.equal(labels, found[0][0])
        assert torch.equal(matched, found[0][1])


@pytest.mark.parametrize("most", ["default", "avx2"])
def test_vectors_of_another_machine_agree_to_the_bit(tmp_path, most):
    if _library.load().path is None:
        pytest.skip(f"no compiled library: {_library.load().reason}")
    scene = random_scene(3000, 2, 100)
    torch.save((scene, ops.match_anchors(*scene, num_classes=20)), tmp_path / "scene.pt")
    code = """
import sys, torch
from detkit import ops
scene, found = torch.load(sys.argv[1])
print([torch.equal(*pair) for pair in zip(found, ops.match_anchors(*scene, num_classes=20))])
"""
    settings = {**os.environ, "ATEN_CPU_CAPABILITY": most, "DETKIT_OPS": "cpp"}
    command = [sys.executable, "-c", code, str(tmp_path / "scene.pt")]
    result = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[True, True]\n", result.stderr


def test_boxes_by_image_equal_shared_anchors(device):
    anchors, gt_boxes, gt_classes = (t.to(device) for t in random_scene(300, 3, 7))
    shared = ops.match_anchors(anchors, gt_boxes, gt_classes, num_classes=20)
    by_image = ops.match_anchors(anchors.expand(3, -1, -1), gt_boxes, gt_classes, num_classes=20)
    assert torch.equal(shared[0], by_image[0])
    assert torch.equal(shared[1], by_image[1])


def test_invalid_anchors_are_ignored_and_rescue_nothing(device):
    anchors = torch.tensor([strip(0, 3), strip(0, 2)], device=device)
    gt_boxes = torch.tensor([[strip(0, 10)]], device=device)
    gt_classes = torch.tensor([[7]], device=device)
    for valid, expected in (([True, True], [7, 9]), ([False, True], [-1, 7]), ([False, False], [-1, -1])):
        mask = torch.tensor([valid], device=device)
        labels, _ = ops.match_anchors(anchors, gt_boxes, gt_classes, num_classes=9, valid=mask)
        assert labels[0].tolist() == expected


def test_class_out_of_range_is_named_or_passed_on(device, sees_values):
    if not sees_values:  # it becomes the label
        assert match(device, [strip(0, 1)], [strip(0, 1)], [9]) == ([9], [0])
        return
    with pytest.raises(RuntimeError, match=r"the class 9 of the ground truth is not in 0\.\.8"):
        match(device, [strip(0, 1)], [strip(0, 1)], [9])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"anchors": torch.zeros(5, 3)}, r"anchors must be \[R, 4\] or \[N, R, 4\] with N = 2, not \(5, 3\)"),
        ({"anchors": torch.zeros(3, 5, 4)}, "with N = 2"),
        ({"anchors": torch.zeros(5, 4, dtype=torch.int64)}, "must be floats"),
        ({"gt_boxes": torch.zeros(2, 4, 4)}, r"gt_boxes and gt_classes must be \[N, G, 4\]"),
        ({"gt_classes": torch.zeros(2, 3)}, "must be"),
        ({"valid": torch.ones(2, 4, dtype=torch.bool)}, r"valid must be bool \[2, 5\]"),
        ({"valid": torch.ones(2, 5)}, "valid must be bool"),
        ({"gt_boxes": torch.zeros(2, 3, 4, device="meta")}, "one device, not on"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"positive_iou": 0.3}, "negative_iou <= positive_iou"),
        ({"negative_iou": -0.1}, "thresholds must satisfy"),
        ({"positive_iou": 1.1}, "thresholds must satisfy"),
        ({"low_quality": "on"}, "low_quality must be one of"),
    ],
)
def test_wrong_arguments_are_named(change, text):
    arguments = {
        "anchors": torch.zeros(5, 4),
        "gt_boxes": torch.zeros(2, 3, 4),
        "gt_classes": torch.zeros(2, 3, dtype=torch.int64),
        "num_classes": 3,
        **change,
    }
    with pytest.raises(ValueError, match=text):
        ops.match_anchors(**arguments)


def test_opcheck(device):
    anchors, gt_boxes, gt_classes = (t.to(device) for t in random_scene(20, 2, 3))
    valid = torch.ones(2, 20, dtype=torch.bool, device=device)
    operation = torch.ops.detkit.match_anchors
    torch.library.opcheck(operation, (anchors, gt_boxes, gt_classes, None, 20, 0.5, 0.4, 1))
    torch.library.opcheck(operation, (anchors.expand(2, -1, -1), gt_boxes, gt_classes, valid, 20, 0.5, 0.4, 2))
    torch.library.opcheck(operation, (anchors[:0], gt_boxes[:, :0], gt_classes[:, :0], None, 20, 0.5, 0.4, 0))


def test_traces_in_one_graph(device):
    def labels_of(anchors: Tensor, gt_boxes: Tensor, gt_classes: Tensor) -> Tensor:
        return ops.match_anchors(anchors + 1, gt_boxes, gt_classes, num_classes=20)[0] * 2

    inputs = [t.to(device) for t in random_scene(50, 2, 3)]
    compiled = torch.compile(labels_of, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), labels_of(*inputs))
