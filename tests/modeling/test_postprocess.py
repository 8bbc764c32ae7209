import pytest
import torch

from detkit.modeling.box_coder import BoxCoder
from detkit.modeling.postprocess import Candidates, PostProcess, suppress, top_candidates
from detkit.structures import Detections
from detkit.structures.boxes import box_iou

CODER = BoxCoder()


def make_levels(images=2, classes=3, seed=0, sizes=(60, 20)):
    """Random scores and deltas on random anchors of two levels in a 100 x 100 picture."""
    generator = torch.Generator().manual_seed(seed)
    corners = [torch.rand(r, 2, generator=generator) * 80 for r in sizes]
    anchors = [torch.cat([c, c + 5 + 30 * torch.rand(len(c), 2, generator=generator)], 1) for c in corners]
    scores = [torch.rand(images, r, classes, generator=generator) for r in sizes]
    deltas = [0.3 * torch.randn(images, r, 4, generator=generator) for r in sizes]
    return scores, deltas, anchors


def run(levels, image_size=(100, 100), original_size=(100, 100), **options):
    images = len(levels[0][0])
    return PostProcess(box_coder=CODER, **options)(
        *levels,
        image_sizes=torch.tensor([image_size] * images),
        original_sizes=torch.tensor([original_size] * images),
    )


def reference(levels, n, threshold, topk, nms_iou, most):
    """One image, pair by pair: [(score, class, box)] by falling score."""
    candidates = []
    for scores, deltas, anchors in zip(*levels, strict=True):
        boxes = CODER.decode(deltas[n], anchors)
        pairs = [(s.item(), k, boxes[r]) for r, row in enumerate(scores[n]) for k, s in enumerate(row) if s > threshold]
        candidates += sorted(pairs, key=lambda pair: -pair[0])[:topk]
    kept = []
    for score, k, box in sorted(candidates, key=lambda pair: -pair[0]):
        rivals = [other for _, kind, other in kept if kind == k]
        if not rivals or box_iou(box[None], torch.stack(rivals)).max() <= nms_iou:
            kept.append((score, k, box))
    clipped = [(s, k, b.clamp(0, 100)) for s, k, b in kept[:most]]
    return [(s, k, b) for s, k, b in clipped if b[2] > b[0] and b[3] > b[1]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("threshold", "topk", "most"), [(0.05, 1000, 100), (0.5, 15, 100), (0.3, 25, 12), (0.9, 3, 4)])
def test_detections_are_those_of_the_definition_pair_by_pair(seed, threshold, topk, most):
    levels = make_levels(seed=seed)
    options = {"score_threshold": threshold, "topk_per_level": topk, "max_detections": most}
    for n, actual in enumerate(run(levels, **options)):
        expected = reference(levels, n, threshold, topk, 0.5, most)
        assert actual.scores.tolist() == pytest.approx([s for s, _, _ in expected])
        assert actual.classes.tolist() == [k for _, k, _ in expected]
        torch.testing.assert_close(actual.boxes, torch.stack([b for _, _, b in expected]))


def one_level(scores, boxes):
    """Scores [R, K] on anchors that are the boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    return [torch.tensor([scores])], [torch.zeros(1, len(boxes), 4)], [boxes]


def test_the_defaults_are_the_papers():
    process = PostProcess(box_coder=CODER)
    settings = process.score_threshold, process.topk_per_level, process.nms_iou, process.max_detections
    assert settings == (0.05, 1000, 0.5, 100)


def test_the_threshold_is_strict():
    (found,) = run(one_level([[0.05], [0.0501]], [[0, 0, 10, 10], [20, 20, 30, 30]]))
    assert found.boxes.tolist() == [[20, 20, 30, 30]]


def test_a_box_is_suppressed_only_by_its_own_class_and_only_above_the_threshold():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 6]]  # overlaps with the first: exactly 0.5, and 0.6
    (one_class,) = run(one_level([[0.9], [0.8], [0.7]], boxes))
    assert one_class.scores.tolist() == pytest.approx([0.9, 0.8])
    (two_classes,) = run(one_level([[0.9, 0], [0.8, 0], [0, 0.7]], boxes))
    assert two_classes.classes.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("groups", "kept"), [([0, 0, 0], [0.9]), ([0, 1, 0], [0.9, 0.8]), ([7, 2, 5], [0.9, 0.8, 0.7])]
)
def test_boxes_suppress_one_another_within_the_groups_that_are_given(groups, kept):
    boxes, scores = torch.tensor([[[0.0, 0, 10, 10]] * 3]), torch.tensor([[0.9, 0.8, 0.7]])
    candidates = Candidates(boxes, scores, torch.tensor([[0, 1, 2]]))
    (found,) = suppress(candidates, torch.tensor([groups]), nms_iou=0.5, max_detections=9)
    assert found.scores.tolist() == pytest.approx(kept)
    assert found.classes.tolist() == list(range(len(kept)))


def test_absent_candidates_belong_to_no_group():
    boxes, scores = torch.tensor([[[0.0, 0, 10, 10]] * 3]), torch.tensor([[0.9, -torch.inf, 0.7]])
    candidates = Candidates(boxes, scores, torch.tensor([[0, 1, 2]]))
    (found,) = suppress(candidates, torch.tensor([[0, 0, 1]]), nms_iou=0.5, max_detections=9)
    assert found.classes.tolist() == [0, 2]


def test_an_anchor_may_be_found_as_several_classes():
    (found,) = run(one_level([[0.9, 0.8]], [[0, 0, 10, 10]]))
    assert found.classes.tolist() == [0, 1]


def test_top_k_counts_pairs_of_each_level_by_itself():
    boxes = [[20.0 * i, 0, 20 * i + 10, 10] for i in range(4)]
    scores, deltas, anchors = one_level([[0.9], [0.8], [0.7], [0.6]], boxes)
    (found,) = run((scores * 2, deltas * 2, [anchors[0], anchors[0] + 50]), topk_per_level=2)
    assert sorted(found.scores.tolist()) == pytest.approx([0.8, 0.8, 0.9, 0.9])


def test_candidates_are_static_in_shape_and_absent_ones_have_score_minus_infinity():
    scores, deltas, anchors = (parts[0] for parts in make_levels())
    candidates = top_candidates(scores, deltas, anchors, CODER, score_threshold=0.99, topk=50)
    assert candidates.boxes.shape == (2, 50, 4)
    assert candidates.scores.shape == candidates.classes.shape == (2, 50)
    assert torch.equal(candidates.scores > 0, torch.arange(50) < (scores > 0.99).sum((1, 2))[:, None])
    assert (candidates.scores[candidates.scores <= 0] == -torch.inf).all()


def test_boxes_are_scaled_to_the_original_picture_per_axis_then_clipped():
    levels = one_level([[0.9], [0.8]], [[10, 20, 30, 40], [40, 40, 150, 45]])
    (found,) = run(levels, image_size=(50, 100), original_size=(100, 300))
    assert found.boxes.tolist() == [[30, 40, 90, 80], [120, 80, 300, 90]]


def test_boxes_outside_the_picture_are_dropped_after_counting():
    levels = one_level([[0.9], [0.8], [0.7]], [[-20, 0, -5, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    (found,) = run(levels, max_detections=2)
    assert found.boxes.tolist() == [[0, 0, 10, 10]]


def test_every_image_has_its_own_sizes():
    scores, deltas, anchors = one_level([[0.9]], [[0, 0, 10, 10]])
    found = PostProcess(box_coder=CODER)(
        [scores[0].repeat(2, 1, 1)],
        [deltas[0].repeat(2, 1, 1)],
        anchors,
        image_sizes=torch.tensor([[10, 10], [10, 20]]),
        original_sizes=torch.tensor([[20, 20], [5, 100]]),
    )
    assert [d.boxes.tolist() for d in found] == [[[0, 0, 20, 20]], [[0, 0, 50, 5]]]


def test_nothing_found_is_empty_detections_of_the_right_types():
    (found,) = run(one_level([[0.01, 0.0]], [[0, 0, 10, 10]]))
    assert isinstance(found, Detections)
    assert found.boxes.shape == (0, 4)
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (torch.float32, torch.float32, torch.int64)


def test_scores_or_boxes_that_are_not_numbers_are_no_detections():
    nan = float("nan")
    scores, deltas, anchors = one_level(
        [[nan, 0.9], [0.8, nan], [0.7, 0]], [[0, 0, 9, 9], [20, 20, 30, 30], [50, 50, 60, 60]]
    )
    deltas[0][0, 1] = nan
    (found,) = run((scores, deltas, anchors))
    assert found.boxes.tolist() == [[0, 0, 9, 9], [50, 50, 60, 60]]
    assert found.classes.tolist() == [1, 0]


@pytest.mark.parametrize("options", [{"topk_per_level": 0}, {"max_detections": 0}])
def test_counts_must_be_positive(options):
    with pytest.raises(ValueError, match="must be positive"):
        PostProcess(box_coder=CODER, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nms_iou", -0.1),
        ("nms_iou", 1.1),
        ("nms_iou", float("nan")),
        ("score_threshold", -0.05),
        ("score_threshold", 1.0),
        ("coarsest_score_threshold", -0.05),
        ("coarsest_score_threshold", 1.0),
    ],
)
def test_thresholds_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} {value} is not in \[0, 1"):
        PostProcess(box_coder=CODER, **{name: value})


@pytest.mark.parametrize("options", [{"nms_iou": 0.0}, {"nms_iou": 1.0}, {"score_threshold": 0.0}])
def test_the_ends_of_the_ranges_are_allowed(options):
    (found,) = run(one_level([[0.9], [0.8]], [[0, 0, 10, 10], [0, 0, 10, 9]]), **options)
    assert len(found) == (1 if options.get("nms_iou") != 1 else 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("corners", ["continuous", "pixels"])
def test_where_nothing_overlaps_it_does_not_matter_when_boxes_are_clipped(seed, corners):
    levels = make_levels(seed=seed)
    options = {"nms_iou": 1.0, "corners": corners, "image_size": (80, 90), "original_size": (40, 120)}
    for after, before in zip(run(levels, **options), run(levels, clip="before_nms", **options), strict=True):
        assert torch.equal(after.boxes, before.boxes)
        assert torch.equal(after.scores, before.scores)


def test_what_is_no_number_is_dropped_when_clipping_comes_first():
    scores, deltas, anchors = one_level([[0.9], [0.8]], [[0, 0, 9, 9], [20, 20, 30, 30]])
    deltas[0][0, 1] = float("nan")
    for corners in ("continuous", "pixels"):
        (found,) = run((scores, deltas, anchors), clip="before_nms", corners=corners)
        assert found.boxes.tolist() == [[0, 0, 9, 9]]


def test_only_the_last_level_has_a_threshold_of_its_own():
    scores, deltas, anchors = one_level([[0.03], [0.9]], [[0, 0, 10, 10], [20, 20, 30, 30]])
    levels = scores * 2, deltas * 2, [anchors[0], anchors[0] + 50]
    assert [len(image) for image in run(levels)] == [2]
    (found,) = run(levels, coarsest_score_threshold=0.01)
    assert found.boxes[2].tolist() == [50, 50, 60, 60]
    assert [len(image) for image in run(levels, coarsest_score_threshold=0.95)] == [1]
