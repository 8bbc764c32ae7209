from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from detkit.ops import _library

THRESHOLDS = [0.0, 0.2, 0.5, 0.7, 1.0]


def brute_force(boxes: Tensor, scores: Tensor, threshold: float, groups: list | None = None) -> list[int]:
    """The definition, pair by pair, in Python's float64."""
    rows, values = boxes.double().tolist(), scores.double().tolist()
    finite = [math.isfinite(v) for v in values]
    order = sorted(range(len(rows)), key=lambda i: (not finite[i], -values[i] if finite[i] else 0.0, i))
    kept: list[int] = []
    for i in order:
        rivals = [k for k in kept if groups is None or groups[k] == groups[i]]
        if not any(suppresses(rows[k], rows[i], threshold) for k in rivals):
            kept.append(i)
    return kept


def suppresses(a: list[float], b: list[float], threshold: float) -> bool:
    if not all(map(math.isfinite, a + b)):
        return False
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    inter = width * height
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    return inter > threshold * (areas[0] + areas[1] - inter)


@st.composite
def scenes(draw, most: int = 30):
    """Boxes on a coarse grid, so that overlaps and scores often tie, with some odd ones among them."""
    coordinate = st.one_of(st.integers(0, 6).map(float), st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.1]))
    score = st.one_of(st.integers(0, 4).map(float), st.sampled_from([math.nan, math.inf, -math.inf, -1.0]))
    count = draw(st.integers(0, most))
    sizes = st.lists(coordinate, min_size=4, max_size=4)
    boxes = draw(st.lists(sizes, min_size=count, max_size=count))
    scores = draw(st.lists(score, min_size=count, max_size=count))
    kinds = draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    return torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores).float(), torch.tensor(kinds, dtype=torch.int64)


def crowd(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes of a random crowd with many overlaps, and scores with ties."""
    generator = torch.Generator().manual_seed(seed)
    corner, size = (torch.rand(count, 2, generator=generator) for _ in range(2))
    boxes = torch.cat([corner * 100, corner * 100 + 5 + size * 30], 1)
    return boxes, (torch.rand(count, generator=generator) * 200).round() / 200


@given(scene=scenes(), threshold=st.sampled_from(THRESHOLDS))
@settings(max_examples=60, deadline=None)
def test_nms_equals_the_definition(device, scene, threshold):
    boxes, scores, _ = scene
    kept = ops.nms(boxes.to(device), scores.to(device), threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == brute_force(boxes, scores, threshold)


@given(scene=scenes(), threshold=st.sampled_from(THRESHOLDS))
@settings(max_examples=40, deadline=None)
def test_batched_nms_equals_the_definition(device, scene, threshold):
    boxes, scores, groups = scene
    kept = ops.batched_nms(boxes.to(device), scores.to(device), groups.to(device), threshold)
    assert kept.tolist() == brute_force(boxes, scores, threshold, groups.tolist())


@given(scene=scenes(), threshold=st.sampled_from(THRESHOLDS), quota=st.lists(st.integers(0, 4), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_nms_mask_is_the_greedy_result_cut_to_the_quotas(device, scene, threshold, quota):
    boxes, scores, kinds = scene
    candidates = (scores != -math.inf).nonzero()[:, 0]
    kept = candidates[brute_force(boxes[candidates], scores[candidates], threshold)].tolist()
    everything = torch.zeros(len(scores), dtype=torch.bool)
    everything[kept] = True
    cut = torch.zeros(len(scores), dtype=torch.bool)
    for kind, most in enumerate(quota):
        cut[[i for i in kept if kinds[i] == kind][:most]] = True
    batch = boxes[None].to(device), scores[None].to(device)
    assert torch.equal(ops.nms_mask(*batch, threshold).cpu()[0], everything)
    for dtype in (torch.int64, torch.int32):
        mask = ops.nms_mask(*batch, threshold, kinds=kinds[None].to(device, dtype), quota=quota)
        assert torch.equal(mask.cpu()[0], cut)


SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS)
@settings(max_examples=4, deadline=None)
def test_every_family_of_boxes_equals_the_definition(device, family, draw_scene, seed):
    s = draw_scene(np.random.default_rng(seed), family, 150)
    boxes, scores, groups = (t.to(device) for t in (s.boxes, s.scores, s.groups))
    kept = ops.batched_nms(boxes, scores, groups, s.threshold, max_keep=s.max_keep)
    assert kept.tolist() == brute_force(s.boxes, s.scores, s.threshold, s.groups.tolist())[: s.max_keep]
    assert ops.nms(boxes, scores, s.threshold).tolist() == brute_force(s.boxes, s.scores, s.threshold)


@given(seed=SEEDS)
@settings(max_examples=3, deadline=None)
def test_turning_and_scaling_boxes_changes_nothing(device, family, draw_scene, seed):
    """Exact changes of the coordinates, which lead an index to other cells."""
    s = draw_scene(np.random.default_rng(seed), family, 800)
    scores = s.scores.to(device)
    kept = ops.nms(s.boxes.to(device), scores, s.threshold)
    wide = s.boxes.double()
    mirrored, turned = -wide[:, [2, 3, 0, 1]], wide[:, [1, 0, 3, 2]]
    changed = [mirrored, turned, *([2 * wide, wide / 16] if unharmed_by_scale(wide) else [])]
    for boxes in changed:
        assert torch.equal(ops.nms(boxes.to(device), scores, s.threshold), kept)


def unharmed_by_scale(boxes: Tensor) -> bool:
    """Whether areas stay normal numbers, so that a power of 2 is exact."""
    sizes = boxes.abs()
    return bool(((sizes == 0) | (sizes > 1e-100) & (sizes < 1e100) | ~torch.isfinite(sizes)).all())


@pytest.mark.parametrize("device", ["cpp-cpu"], indirect=True, scope="module")  # for the reference, these are too many
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.75, 0.95])
def test_tiles_of_a_crowd_are_suppressed_alike(device, threshold):
    """Many boxes: copies of a crowd, side by side or on top of one another in groups of their own."""
    count, tiles = 120, 100
    boxes, scores = crowd(count, seed=4)
    boxes = (boxes * 64).round() / 64  # so that they are moved exactly
    kept = torch.tensor(brute_force(boxes, scores, threshold))
    kept = torch.cat([kept + tile * count for tile in range(tiles)])
    ranks, groups = scores.repeat(tiles), torch.arange(tiles).repeat_interleave(count)
    kept = kept[torch.sort(ranks[kept], descending=True, stable=True).indices]
    steps = 1024 * torch.cartesian_prod(torch.arange(10), torch.arange(10)).repeat(1, 2)
    side_by_side = (boxes + steps[:, None]).reshape(-1, 4)
    assert torch.equal(ops.nms(side_by_side.to(device), ranks.to(device), threshold).cpu(), kept)
    on_top = (t.to(device) for t in (boxes.repeat(tiles, 1), ranks, groups))
    assert torch.equal(ops.batched_nms(*on_top, threshold).cpu(), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 511, 512, 513, 1500])  # from 512 on, the kernel counts instead of comparing
def test_order_is_by_falling_score_then_by_index(device, dtype, count, draw_scores):
    flat = torch.zeros(count, 4, device=device)  # without area: all are kept
    for seed in range(8):
        scores = draw_scores(np.random.default_rng(seed), count, dtype)
        values = [v if math.isfinite(v) else -math.inf for v in scores.tolist()]
        order = sorted(range(count), key=lambda i: (-values[i], i))
        assert ops.nms(flat, scores.to(device), 0.5).tolist() == order, seed
        mask = ops.nms_mask(flat[None], scores[None].to(device), 0.5, quota=count // 2)
        candidates = [i for i in order if scores[i] != -math.inf]
        assert mask[0].nonzero()[:, 0].tolist() == sorted(candidates[: count // 2]), seed


def test_groups_may_have_any_value(device):
    boxes, scores = (t.to(device) for t in crowd(400))
    values = torch.tensor([torch.iinfo(torch.int64).min, -1, 0, 2**32, torch.iinfo(torch.int64).max])
    which = torch.arange(400) * 7 % 5
    kept = ops.batched_nms(boxes, scores, values[which].to(device), 0.3)
    assert torch.equal(kept, ops.batched_nms(boxes, scores, which.to(device), 0.3))
    for value in range(5):
        here = (which == value).nonzero()[:, 0].to(device)
        alone = here[ops.nms(boxes[here], scores[here], 0.3)]
        assert torch.equal(kept[which.to(device)[kept] == value], alone)


def test_nms_of_a_crowd_equals_the_definition(device):
    boxes, scores = crowd(700)
    for threshold in (0.1, 0.5):
        kept = ops.nms(boxes.to(device), scores.to(device), threshold)
        assert kept.tolist() == brute_force(boxes, scores, threshold)


def test_backends_agree_on_a_large_crowd(device):
    boxes, scores = crowd(4000, seed=1)
    kinds = torch.arange(4000) % 3
    with _library.forced("reference"):
        kept = ops.nms(boxes, scores, 0.6)
        mask = ops.nms_mask(boxes[None], scores[None], 0.6, kinds=kinds[None], quota=[300, 5, 0])
    assert torch.equal(ops.nms(boxes.to(device), scores.to(device), 0.6).cpu(), kept)
    arguments = boxes[None].to(device), scores[None].to(device), 0.6
    assert torch.equal(ops.nms_mask(*arguments, kinds=kinds[None].to(device), quota=[300, 5, 0]).cpu(), mask)


def test_equal_scores_go_by_index(device):
    boxes = torch.tensor([[0.0, 0, 2, 2]]).repeat(5, 1).to(device)
    assert ops.nms(boxes, torch.ones(5, device=device), 0.5).tolist() == [0]
    assert ops.nms(boxes, torch.ones(5, device=device), 1.0).tolist() == [0, 1, 2, 3, 4]
    assert ops.nms_mask(boxes[None], torch.ones(1, 5, device=device), 0.5, quota=1).tolist() == [[True] + [False] * 4]


def test_scores_that_are_no_number_come_last(device):
    boxes = torch.arange(5.0)[:, None] * 10 + torch.tensor([0.0, 0, 1, 1])
    scores = torch.tensor([math.nan, 0.1, math.inf, -math.inf, 0.9])
    assert ops.nms(boxes.to(device), scores.to(device), 0.5).tolist() == [4, 1, 0, 2, 3]


@pytest.mark.parametrize("odd", [[math.nan, 0, 2, 2], [0, 0, math.inf, 2], [2, 2, 0, 0], [1, 1, 1, 1], [0, 0, 2, 0]])
def test_odd_boxes_neither_suppress_nor_are_suppressed(device, odd):
    boxes = torch.tensor([odd, odd, [0.0, 0, 2, 2], [0, 0, 2, 2]], device=device)
    scores = torch.tensor([0.9, 0.2, 0.8, 0.1], device=device)
    assert ops.nms(boxes, scores, 0.0).tolist() == [0, 2, 1]


def test_overlap_is_decided_in_float64(device):
    # IoU = 4 / 6, whose float32 quotient lies above the float64 threshold and would suppress.
    boxes = torch.tensor([[0.0, 0, 5, 1], [1, 0, 6, 1]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 4 / 6).tolist() == [0, 1]
    assert ops.nms(boxes, scores, math.nextafter(4 / 6, 0)).tolist() == [0]


@pytest.mark.parametrize("max_keep", [0, 1, 7, 10_000])
def test_max_keep_is_a_prefix(device, max_keep):
    boxes, scores = (t.to(device) for t in crowd(400))
    groups = torch.arange(400, device=device) % 3
    assert torch.equal(ops.nms(boxes, scores, 0.4, max_keep=max_keep), ops.nms(boxes, scores, 0.4)[:max_keep])
    kept = ops.batched_nms(boxes, scores, groups, 0.4)
    assert torch.equal(ops.batched_nms(boxes, scores, groups, 0.4, max_keep=max_keep), kept[:max_keep])


def test_a_few_indices_hold_no_memory_of_all_boxes(device):
    boxes, scores = (t.to(device) for t in crowd(400))
    for kept in (ops.nms(boxes, scores, 0.05), ops.nms(boxes, scores, 0.5, max_keep=7)):
        assert 0 < len(kept) < 100
        assert kept.untyped_storage().nbytes() < 1600  # of 3200, for all


def test_the_operator_itself_takes_a_quota_below_0_for_none(device):
    boxes, scores = (t[None].to(device) for t in crowd(40))
    kinds = torch.arange(40, device=device)[None] % 2
    mask = torch.ops.detkit.nms_mask(boxes, scores, 0.5, None, kinds, [-(2**33) + 1, 2])
    assert torch.equal(mask, ops.nms_mask(boxes, scores, 0.5, kinds=kinds, quota=[0, 2]))
    assert torch.ops.detkit.nms(boxes[0], scores[0], 0.5, -1).tolist() == []


def test_a_huge_quota_wants_all(device):
    boxes, scores = (t[None].to(device) for t in crowd(40))
    kinds = torch.arange(40, device=device)[None] % 3
    everything = ops.nms_mask(boxes, scores, 0.4)
    assert torch.equal(ops.nms_mask(boxes, scores, 0.4, kinds=kinds, quota=[sys.maxsize] * 3), everything)


@pytest.mark.parametrize(("threshold", "dtype"), [(1.0, torch.float32), (0.01, torch.float32), (0.5, torch.float64)])
def test_many_boxes_that_fit_no_grid(device, threshold, dtype):
    # A place beyond 2^30 sides is in no grid, nor is any box at a threshold near 0; at 1 nothing is compared.
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]], dtype=dtype).repeat(500, 1)
    if dtype == torch.float64:
        boxes += 1e13
    groups = torch.arange(1000) // 2
    kept = ops.batched_nms(boxes.to(device), torch.ones(1000, device=device), groups.to(device), threshold)
    assert kept.tolist() == ([*range(0, 1000, 2)] if threshold == 0.01 else [*range(1000)])


def test_images_of_a_mask_are_independent(device):
    scenes = [crowd(150, seed) for seed in range(3)]
    boxes = torch.stack([b for b, _ in scenes]).to(device)
    scores = torch.stack([s for _, s in scenes]).to(device)
    mask = ops.nms_mask(boxes, scores, 0.3, quota=20)
    assert mask.sum(1).tolist() == [20, 20, 20]
    for image in range(3):
        assert torch.equal(
            mask[image], ops.nms_mask(boxes[image : image + 1], scores[image : image + 1], 0.3, quota=20)[0]
        )


def test_a_mask_suppresses_within_groups(device):
    boxes, scores = (t.reshape(2, 150, *t.shape[1:]) for t in crowd(300))
    groups = torch.arange(300).reshape(2, 150) % 4 - 1
    mask = ops.nms_mask(boxes.to(device), scores.to(device), 0.3, groups=groups.to(device, torch.int32))
    for image in range(2):
        kept = brute_force(boxes[image], scores[image], 0.3, groups[image].tolist())
        assert mask[image].nonzero()[:, 0].tolist() == sorted(kept)
        assert len(kept) > len(brute_force(boxes[image], scores[image], 0.3))


def test_many_images_and_many_kinds(device):
    images, count, most = 70, 40, 300  # more than kernels take at once
    boxes, scores = (t.reshape(images, count, *t.shape[1:]) for t in crowd(images * count))
    kinds = torch.arange(images * count).reshape(images, count) % most
    mask = ops.nms_mask(
        boxes.to(device), scores.to(device), 0.3, kinds=kinds.to(device), quota=[k % 2 for k in range(most)]
    )
    for image in range(images):
        kept = brute_force(boxes[image], scores[image], 0.3)
        assert mask[image].nonzero()[:, 0].tolist() == sorted(k for k in kept if kinds[image, k] % 2)


def test_empty_inputs(device):
    none, boxes = torch.zeros(0, device=device), torch.zeros(0, 4, device=device)
    assert ops.nms(boxes, none, 0.5).shape == (0,)
    assert ops.batched_nms(boxes, none, none.long(), 0.5).shape == (0,)
    for shape in ((0, 3), (2, 0)):
        mask = ops.nms_mask(torch.zeros(*shape, 4, device=device), torch.zeros(shape, device=device), 0.5)
        assert mask.shape == shape
        assert mask.dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_read_exactly(device, dtype):
    boxes, scores = (t.to(dtype) for t in crowd(200))
    kept = ops.nms(boxes.to(device), scores.to(device), 0.3)
    assert kept.tolist() == brute_force(boxes, scores, 0.3)


def test_layout_of_the_inputs_does_not_matter(device):
    boxes, scores = (t.to(device) for t in crowd(200))
    turned, every_second = boxes.t().contiguous().t(), scores.repeat_interleave(2)[::2]
    assert torch.equal(ops.nms(turned, every_second, 0.4), ops.nms(boxes, scores, 0.4))


def test_no_gradient_flows(device):
    boxes, scores = (t.to(device).requires_grad_() for t in crowd(20))
    assert not ops.nms(boxes, scores, 0.5).requires_grad


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda b, s: ops.nms(b[:, :3], s, 0.5), r"must have shapes \[R, 4\] and \[R\], not \(3, 3\) and \(3,\)"),
        (lambda b, s: ops.nms(b, s[:2], 0.5), "must have shapes"),
        (lambda b, s: ops.nms(b.long(), s, 0.5), "must be floats"),
        (lambda b, s: ops.nms(b, s, 1.5), r"iou_threshold must be in \[0, 1\], not 1.5"),
        (lambda b, s: ops.nms(b, s, math.nan), "iou_threshold must be"),
        (lambda b, s: ops.nms(b, s, 0.5, max_keep=-1), "max_keep must be None or an int, at least 0, not -1"),
        (lambda b, s: ops.nms(b, s, 0.5, max_keep=5.0), "max_keep must be None or an int"),
        (lambda b, s: ops.nms(b, s.to("meta"), 0.5), "scores on meta"),
        (lambda b, s: ops.batched_nms(b, s, s, 0.5), "groups must be torch.int64 or torch.int32, not torch.float32"),
        (lambda b, s: ops.batched_nms(b, s, s[:2].long(), 0.5), r"groups \(2,\)"),
        (lambda b, s: ops.nms_mask(b, s, 0.5), r"must have shapes \[N, R, 4\] and \[N, R\]"),
        (lambda b, s: ops.nms_mask(b[None], s[None], 0.5, quota=[1]), "belong together"),
        (lambda b, s: ops.nms_mask(b[None], s[None], 0.5, kinds=s[None].long()), "belong together"),
        (lambda b, s: ops.nms_mask(b[None], s[None], 0.5, kinds=s[None].long(), quota=1), "belong together"),
        (lambda b, s: ops.nms_mask(b[None], s[None], 0.5, quota=-1), "a quota must be at least 0"),
        (lambda b, s: ops.nms_mask(b[None], s[None], 0.5, quota=3.0), "quota must be None, an int, or a sequence"),
        (lambda b, s: ops.batched_nms(b, s, 0.5, s.long()), r"iou_threshold must be in \[0, 1\], not tensor"),
        (lambda b, s: ops.nms_mask(b[None], s[None], 0.5, groups=s[None]), "groups must be torch.int64 or torch.int32"),
        (lambda b, s: ops.nms_mask(b[None], s[None], 0.5, groups=s[:2].long()), r"groups \(2,\)"),
    ],
)
def test_wrong_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call(torch.zeros(3, 4), torch.zeros(3))


def test_opcheck(device):
    boxes, scores = (t.to(device) for t in crowd(20))
    groups = torch.arange(20, device=device) % 2
    for count in (0, 20):
        b, s, g = boxes[:count], scores[:count], groups[:count]
        torch.library.opcheck(torch.ops.detkit.nms, (b, s, 0.5, None))
        torch.library.opcheck(torch.ops.detkit.batched_nms, (b, s, g, 0.5, 3))
        torch.library.opcheck(torch.ops.detkit.nms_mask, (b[None], s[None], 0.5, g[None], g[None], [2, 3]))
        torch.library.opcheck(torch.ops.detkit.nms_mask, (b[None], s[None], 0.5, None, None, None))


def test_traces_in_one_graph(device):
    def best(boxes: Tensor, scores: Tensor) -> Tensor:
        return boxes[ops.nms(boxes, scores, 0.5)] * 2

    def masked(boxes: Tensor, scores: Tensor) -> Tensor:
        kinds = torch.ones_like(scores[None], dtype=torch.int64)
        both = ops.nms_mask(boxes[None], scores[None], 0.5, quota=4)
        return torch.where(both & ops.nms_mask(boxes[None], scores[None], 0.5, kinds=kinds, quota=[0, 3]), scores, 0)

    for function in (best, masked):
        inputs = [t.to(device) for t in crowd(50)]
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*inputs), function(*inputs))


def test_exports_with_any_number_of_boxes(device):
    class Module(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
            return boxes[ops.nms(boxes, scores, 0.5, max_keep=10)]

    rows = torch.export.Dim("rows")
    inputs, other = ([t.to(device) for t in crowd(count)] for count in (30, 40))
    program = torch.export.export(Module(), tuple(inputs), dynamic_shapes=({0: rows}, {0: rows}))
    assert torch.equal(program.module()(*other), Module()(*other))
