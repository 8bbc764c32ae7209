import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from detkit.modeling.anchors import AnchorGrid, retinanet_shapes
from detkit.modeling.assigners import IoUAssigner
from detkit.modeling.box_coder import BoxCoder
from detkit.modeling.criterion import Criterion
from detkit.modeling.losses import (
    BalancedCrossEntropy,
    FocalLossStar,
    GIoU,
    HingeLoss,
    SigmoidFocalLoss,
    SmoothL1,
)
from detkit.modeling.random_numbers import counter_uniform
from detkit.modeling.samplers import OHEM, AllAnchors, OHEM1to3, RandomSampler
from detkit.registry import CLS_LOSSES
from detkit.structures import Batch

K = 3
SIZES = [(6, 8), (3, 4)]
GRID = AnchorGrid(
    shapes=[retinanet_shapes(size, scales_per_octave=1, aspect_ratios=(0.5, 1, 2)) for size in (12, 24)],
    strides=(8, 16),
)


def make_criterion(**options):
    parts = {
        "num_classes": K,
        "assigner": IoUAssigner(K),
        "sampler": AllAnchors(),
        "cls_loss": SigmoidFocalLoss(),
        "box_loss": SmoothL1(),
        "box_coder": BoxCoder(),
    }
    return Criterion(**{**parts, **options})


def make_outputs(images, seed=0, dtype=torch.float32):
    """Per-level logits and deltas that need gradients, and the anchors of a 48 x 64 picture."""
    generator = torch.Generator().manual_seed(seed)
    anchors = GRID(SIZES)
    logits, deltas = (
        [torch.randn(images, len(a), width, generator=generator).to(dtype).requires_grad_() for a in anchors]
        for width in (K, 4)
    )
    return logits, deltas, anchors


def make_truth(*counts, seed=0, padding=0):
    """A batch with `counts` boxes on its images, at least one anchor belonging to each."""
    generator = torch.Generator().manual_seed(seed)
    most = max(counts) + padding
    corners = torch.rand(len(counts), most, 2, generator=generator) * torch.tensor([40.0, 30.0])
    boxes = torch.cat([corners, corners + 6 + 20 * torch.rand(len(counts), most, 2, generator=generator)], -1)
    classes = torch.randint(0, K, (len(counts), most), generator=generator)
    absent = torch.arange(most) >= torch.tensor(counts)[:, None]
    sizes = torch.tensor([[48, 64]] * len(counts))
    return Batch(
        images=torch.zeros(len(counts), 3, 48, 64, dtype=torch.uint8),
        image_sizes=sizes,
        original_sizes=sizes,
        image_ids=torch.arange(len(counts)),
        gt_boxes_NG4=boxes.masked_fill(absent[..., None], 0),
        gt_classes_NG=classes.masked_fill(absent, -1),
        seeds=torch.arange(len(counts)) + 10,
    )


def reference(logits, deltas, anchors, batch, *, beta, alpha=0.25, gamma=2.0):
    """The sums of section 4 in float64, anchors taken out by boolean indexing: (cls, box, number of foreground)."""
    logits, deltas = torch.cat(logits, 1).double(), torch.cat(deltas, 1).double()
    anchors = torch.cat(anchors)
    labels, matched = IoUAssigner(K)(anchors, batch.gt_boxes_NG4, batch.gt_classes_NG)
    valid, positive = labels >= 0, (labels >= 0) & (labels < K)
    targets = F.one_hot(labels[valid], K + 1)[:, :K].double()
    p = logits[valid].sigmoid()
    p_t = p * targets + (1 - p) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    loss_cls = (-weight * (1 - p_t) ** gamma * p_t.log()).sum()

    image, anchor = positive.nonzero(as_tuple=True)
    source, target = anchors[anchor].double(), batch.gt_boxes_NG4[image, matched[positive]].double()
    size, target_size = source[:, 2:] - source[:, :2], target[:, 2:] - target[:, :2]
    shift = (target[:, :2] + target_size / 2 - source[:, :2] - size / 2) / size
    difference = (deltas[positive] - torch.cat([shift, (target_size / size).log()], 1)).abs()
    smooth = torch.where(difference < beta, difference**2 / (2 * beta), difference - beta / 2) if beta else difference
    return loss_cls, smooth.sum(), int(positive.sum())


def losses(criterion, outputs, batch):
    result = criterion(*outputs, batch)
    return result["loss_cls"], result["loss_box"]


def gradients(loss_parts, outputs):
    return torch.autograd.grad(sum(loss_parts), [*outputs[0], *outputs[1]])


@pytest.mark.parametrize("beta", [0.0, 0.11])
@pytest.mark.parametrize("counts", [(3, 1), (0, 5), (2,)])
@pytest.mark.parametrize("seed", range(4))
def test_losses_and_gradients_are_those_of_the_paper_in_float64(beta, counts, seed):
    outputs, batch = make_outputs(len(counts), seed), make_truth(*counts, seed=seed, padding=seed)
    cls, box, positives = reference(*outputs, batch, beta=beta)
    assert positives > 0
    actual = losses(make_criterion(box_loss=SmoothL1(beta=beta)), outputs, batch)
    expected = cls / positives, box / positives
    for a, b in zip(actual, expected, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-5)
    for a, b in zip(gradients(actual, outputs), gradients(expected, outputs), strict=True):
        torch.testing.assert_close(a, b.float(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("box_loss", [SmoothL1(), SmoothL1(beta=0.0), GIoU()])
@pytest.mark.parametrize("counts", [(0,), (0, 0)])
@pytest.mark.parametrize("padding", [0, 2])
def test_without_ground_truth_all_is_background_and_the_box_loss_is_zero_with_a_graph(box_loss, counts, padding):
    outputs, batch = make_outputs(len(counts)), make_truth(*counts, padding=padding)
    result = make_criterion(box_loss=box_loss)(*outputs, batch)
    assert result["metric_num_foreground"] == 0
    assert result["loss_box"].item() == 0
    assert result["loss_cls"].item() == pytest.approx(reference(*outputs, batch, beta=0)[0].item(), rel=1e-5)
    for i, gradient in enumerate(gradients((result["loss_cls"], result["loss_box"]), outputs)):
        assert torch.isfinite(gradient).all()
        assert gradient.any() == (i < len(SIZES))  # logits learn, deltas do not


def test_the_sums_of_a_batch_are_the_sums_of_its_images():
    outputs, batch = make_outputs(3), make_truth(2, 0, 4)
    criterion = make_criterion()
    whole = criterion(*outputs, batch)
    total = {"loss_cls": 0.0, "loss_box": 0.0}
    for n in range(3):
        single = Batch(**{k: v[n : n + 1] for k, v in vars(batch).items()})
        logits, deltas = ([x[n : n + 1] for x in outputs[i]] for i in (0, 1))
        result = criterion(logits, deltas, outputs[2], single)
        for key in total:
            total[key] += result[key].item() * max(1, int(result["metric_num_foreground"]))
    for key, value in total.items():
        assert whole[key].item() * int(whole["metric_num_foreground"]) == pytest.approx(value, rel=1e-5)


def test_more_padding_changes_nothing():
    outputs = make_outputs(2)
    few, many = make_truth(2, 1), make_truth(2, 1)
    many.gt_boxes_NG4 = F.pad(many.gt_boxes_NG4, (0, 0, 0, 3))
    many.gt_classes_NG = F.pad(many.gt_classes_NG, (0, 3), value=-1)
    criterion = make_criterion()
    assert torch.equal(torch.stack(losses(criterion, outputs, few)), torch.stack(losses(criterion, outputs, many)))


@pytest.mark.parametrize("counts", [(3, 1), (0, 0)])
def test_the_box_loss_sees_finite_targets_in_every_row(counts):
    outputs, batch = make_outputs(2), make_truth(*counts, padding=2)
    seen = []

    def box_loss(deltas, anchors, boxes, coder):
        seen.append(coder.encode(anchors, boxes))
        return deltas.abs().sum(-1)

    make_criterion(box_loss=box_loss)(*outputs, batch)
    assert seen
    assert all(torch.isfinite(targets).all() for targets in seen)


def test_ignored_anchors_get_no_gradient_and_only_foreground_gets_one_for_its_box():
    outputs, batch = make_outputs(2), make_truth(3, 2)
    labels, _ = IoUAssigner(K)(torch.cat(outputs[2]), batch.gt_boxes_NG4, batch.gt_classes_NG)
    parts = gradients(losses(make_criterion(), outputs, batch), outputs)
    of_logits, of_deltas = torch.cat(parts[:2], 1), torch.cat(parts[2:], 1)
    assert (labels == -1).any()
    assert torch.equal(of_logits.any(-1), labels >= 0)
    assert torch.equal(of_deltas.any(-1), (labels >= 0) & (labels < K))


@pytest.mark.parametrize(
    ("counts", "parts"),
    [
        ((3, 1), {}),
        ((0, 0), {}),
        ((3, 1), {"box_loss": GIoU()}),
        ((3, 1), {"cls_loss": BalancedCrossEntropy()}),
        ((3, 1), {"cls_loss": FocalLossStar()}),
        ((3, 1), {"cls_loss": HingeLoss()}),
        ((3, 1), {"sampler": RandomSampler(K)}),
        ((3, 1), {"sampler": OHEM(K, within="label")}),
        ((3, 1), {"sampler": OHEM(K, nms_threshold=None, per="batch", score="cls+box")}),
        ((3, 1), {"sampler": OHEM1to3(K, score="term+box", boxes="predictions")}),
    ],
)
def test_a_step_needs_no_value_from_the_device(counts, parts):
    # Fake tensors have no values: `.item()`, boolean indexing or nonzero would raise here.
    outputs, batch = make_outputs(len(counts)), make_truth(*counts)
    criterion = make_criterion(normalizer_momentum=0.9, **parts)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [[mode.from_tensor(x.detach()).requires_grad_(x.requires_grad) for x in level] for level in outputs]
        batch = Batch(**{k: mode.from_tensor(v) for k, v in vars(batch).items()})
        criterion.moving_normalizer = mode.from_tensor(criterion.moving_normalizer)
        result = criterion(*fake, batch)
        sum(v for k, v in result.items() if k.startswith("loss_")).backward()
    assert all(value.shape == () for value in result.values())
    assert all(x.grad is not None and x.grad.shape == x.shape for x in [*fake[0], *fake[1]])
    # The gradient of `prod`, say, looks at values only where there are any. So does one of ours, but on CPUs alone.
    outputs, batch = make_outputs(len(counts)), make_truth(*counts)
    with torch.profiler.profile() as profile:
        result = make_criterion(normalizer_momentum=0.9, **parts)(*outputs, batch)
        sum(v for k, v in result.items() if k.startswith("loss_")).backward()
    waiting = [e for e in profile.events() if e.key in ("aten::_local_scalar_dense", "aten::nonzero")]
    assert {e.cpu_parent.cpu_parent.cpu_parent.key for e in waiting} <= {"SumWithGradientBackward"}


def test_half_precision_outputs_give_float32_losses():
    outputs, batch = make_outputs(2, dtype=torch.bfloat16), make_truth(3, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = losses(make_criterion(), outputs, batch)
    cls, box, positives = reference(*outputs, batch, beta=0.11)
    assert all(loss.dtype == torch.float32 for loss in actual)
    assert actual[0].item() == pytest.approx(cls.item() / positives, rel=1e-4)
    assert actual[1].item() == pytest.approx(box.item() / positives, rel=1e-4)


def test_the_box_loss_weight_scales_the_box_loss_only():
    outputs, batch = make_outputs(1), make_truth(2)
    plain, doubled = (losses(make_criterion(box_loss_weight=w), outputs, batch) for w in (1.0, 2.0))
    assert doubled[0] == plain[0]
    assert doubled[1].item() == pytest.approx(2 * plain[1].item())


class Spy:
    """A sampler that selects what it is told to and remembers what it was offered."""

    def __init__(self, select):
        self.select = select

    def __call__(self, labels_NR, **offered):
        self.labels, self.offered = labels_NR, offered
        self.selected = self.select(labels_NR)
        return self.selected


def every_second(labels):
    return (labels >= 0) & (torch.arange(labels.shape[1]) % 2 == 0)


def test_a_sampler_is_offered_labels_anchors_boxes_losses_and_random_numbers():
    outputs, batch = make_outputs(2), make_truth(3, 1)
    sampler = Spy(every_second)
    criterion = make_criterion(sampler=sampler, box_loss_weight=3.0)
    criterion(*outputs, batch)
    anchors = torch.cat(outputs[2])
    assert set(sampler.offered) == {"anchors", "boxes", "loss", "rng"}
    assert torch.equal(sampler.offered["anchors"], anchors)

    boxes = sampler.offered["boxes"]()
    assert torch.equal(boxes, BoxCoder().decode(torch.cat(outputs[1], 1), anchors))
    assert not boxes.requires_grad

    cls, both = sampler.offered["loss"]("cls"), sampler.offered["loss"]("cls+box")
    logits, foreground = torch.cat(outputs[0], 1), (sampler.labels >= 0) & (sampler.labels < K)
    torch.testing.assert_close(cls, SigmoidFocalLoss()(logits, sampler.labels, "anchor"))
    assert torch.equal(both > cls, foreground)
    assert ((both - cls).sum() / 3).item() == pytest.approx(reference(*outputs, batch, beta=0.11)[1].item(), rel=1e-4)
    assert cls.shape == both.shape == sampler.labels.shape
    assert not cls.requires_grad
    assert not both.requires_grad

    assert torch.equal(sampler.offered["rng"](), counter_uniform(batch.seeds, len(anchors)))


@pytest.mark.parametrize("loss", [name for name in CLS_LOSSES if CLS_LOSSES.get(name).__module__.startswith("detkit.")])
def test_one_term_is_that_of_the_own_class_and_the_largest_of_background(loss):
    outputs, batch, sampler = make_outputs(2), make_truth(3, 1), Spy(every_second)
    cls_loss = CLS_LOSSES.slot(loss)()
    make_criterion(sampler=sampler, cls_loss=cls_loss, box_loss_weight=3.0)(*outputs, batch)
    labels, ask = sampler.labels, sampler.offered["loss"]
    # The terms by the loss of each class alone, as a detector of one class: 0 is the class, 1 the background.
    alone = torch.where(labels[..., None] == torch.arange(K), 0, 1).where(labels[..., None] >= 0, -1)
    terms = cls_loss(torch.cat(outputs[0], 1)[..., None], alone, "anchor")
    assert {-1, K} < set(labels.flatten().tolist())
    for label, row, term in zip(labels.flatten(), terms.flatten(0, 1), ask("term").flatten(), strict=True):
        assert term.item() == pytest.approx((row[label] if 0 <= label < K else row.max()).item(), rel=1e-5)
    assert ask("term").dtype == torch.float32
    assert not ask("term").requires_grad
    torch.testing.assert_close(ask("term+box") - ask("term"), ask("cls+box") - ask("cls"))


def test_one_term_of_half_precision_outputs_is_not_rounded():
    outputs, sampler = make_outputs(1, dtype=torch.bfloat16), Spy(every_second)
    make_criterion(sampler=sampler)(*outputs, make_truth(3))
    term = sampler.offered["loss"]("term")
    assert term.dtype == torch.float32
    assert not torch.equal(term, term.bfloat16().float())


def by_anchor_only(logits, labels, reduction):
    """As losses are that know two reductions and take any other for the second."""
    return SigmoidFocalLoss()(logits, labels, "sum" if reduction == "sum" else "anchor")


def refusing(logits, labels, reduction):
    return {"sum": lambda: logits.sum(), "anchor": lambda: logits.sum(-1)}[reduction]()


def without_terms(logits, labels, reduction):
    return None if reduction == "none" else SigmoidFocalLoss()(logits, labels, reduction)


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (by_anchor_only, r"shape \(1, 180\), not that of the logits"),
        (refusing, "KeyError"),
        (without_terms, "'NoneType' object has no attribute 'shape'"),
    ],
)
def test_a_loss_that_does_not_give_its_terms_is_named(loss, why):
    class Whole(SigmoidFocalLoss):
        def __call__(self, *arguments):
            return loss(*arguments)

    criterion = make_criterion(sampler=OHEM(K, score="term"), cls_loss=Whole())
    with pytest.raises(ValueError, match=f"'term' .SCORE of OHEM., but Whole does not .* 'none' .*{why}.*'cls'"):
        criterion(*make_outputs(1), make_truth(1))
    make_criterion(sampler=OHEM(K, score="cls+box"), cls_loss=Whole())(*make_outputs(1), make_truth(1))


def test_a_sampler_that_asks_for_an_unknown_loss_is_told_the_known_ones():
    sampler = Spy(every_second)
    make_criterion(sampler=sampler)(*make_outputs(1), make_truth(1))
    with pytest.raises(ValueError, match="'box'.*cls, cls\\+box, term, term\\+box"):
        sampler.offered["loss"]("box")


def test_anchors_that_are_not_selected_are_left_out_of_the_classification_loss_only():
    outputs, batch = make_outputs(2), make_truth(3, 2)
    sampler = Spy(every_second)
    criterion = make_criterion(sampler=sampler)
    result = criterion(*outputs, batch)
    foreground = (sampler.labels >= 0) & (sampler.labels < K)
    per_anchor = SigmoidFocalLoss()(torch.cat(outputs[0], 1), sampler.labels, "anchor")
    assert result["loss_cls"].item() == pytest.approx(
        (per_anchor[sampler.selected].sum() / foreground.sum()).item(), rel=1e-5
    )
    assert result["loss_box"].item() == pytest.approx(losses(make_criterion(), outputs, batch)[1].item())
    assert result["metric_num_selected"] == sampler.selected.sum()
    assert result["metric_num_foreground"] == foreground.sum()
    assert 0 < result["metric_num_selected_foreground"] == (foreground & sampler.selected).sum() < foreground.sum()


def test_the_box_loss_on_selected_positives():
    outputs, batch = make_outputs(2), make_truth(3, 2)
    sampler = Spy(every_second)
    result = make_criterion(sampler=sampler, box_loss_on="selected")(*outputs, batch)
    foreground = (sampler.labels >= 0) & (sampler.labels < K)
    per_anchor = sampler.offered["loss"]("cls+box") - sampler.offered["loss"]("cls")
    expected = per_anchor[foreground & sampler.selected].sum() / foreground.sum()
    assert 0 < result["loss_box"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("normalizer", ["assigned", "selected_positives", "selected"])
def test_sums_are_divided_by_the_normalizer(normalizer):
    outputs, batch = make_outputs(2), make_truth(3, 2)
    sampler = Spy(every_second)
    result = make_criterion(sampler=sampler, normalizer=normalizer)(*outputs, batch)
    foreground = (sampler.labels >= 0) & (sampler.labels < K)
    counted = {
        "assigned": foreground,
        "selected_positives": foreground & sampler.selected,
        "selected": sampler.selected,
    }[normalizer]
    sum_of_cls = SigmoidFocalLoss()(torch.cat(outputs[0], 1), sampler.labels, "anchor")[sampler.selected].sum()
    assert result["loss_cls"].item() == pytest.approx((sum_of_cls / counted.sum()).item(), rel=1e-5)


@pytest.mark.parametrize("normalizer", ["selected_positives", "selected"])
def test_nothing_selected_is_divided_by_one(normalizer):
    nothing = Spy(lambda labels: torch.zeros_like(labels, dtype=torch.bool))
    criterion = make_criterion(sampler=nothing, normalizer=normalizer, box_loss_on="selected")
    outputs = make_outputs(1)
    parts = losses(criterion, outputs, make_truth(2))
    assert [part.item() for part in parts] == [0, 0]
    assert all(torch.isfinite(g).all() for g in gradients(parts, outputs))


def test_the_normalizer_is_the_foreground_of_all_ranks_over_their_number(monkeypatch):
    outputs, batch = make_outputs(1), make_truth(3)
    cls, box, positives = reference(*outputs, batch, beta=0.11)
    # As if one other rank had found 20 more than this one.
    monkeypatch.setattr("detkit.modeling.criterion.all_reduce_mean", lambda count: count + 10)
    actual = losses(make_criterion(), outputs, batch)
    assert actual[0].item() == pytest.approx(cls.item() / (positives + 10), rel=1e-5)
    assert actual[1].item() == pytest.approx(box.item() / (positives + 10), rel=1e-5)


def test_the_moving_normalizer_starts_at_100_and_is_updated_before_its_first_use():
    outputs, batch = make_outputs(1), make_truth(3)
    cls, _, positives = reference(*outputs, batch, beta=0.11)
    criterion, expected = make_criterion(normalizer_momentum=0.9), 100.0
    for _ in range(3):
        expected = 0.9 * expected + 0.1 * positives
        assert losses(criterion, outputs, batch)[0].item() == pytest.approx(cls.item() / expected, rel=1e-5)
    assert criterion.state_dict()["moving_normalizer"].item() == pytest.approx(expected, rel=1e-6)


def test_the_moving_normalizer_counts_an_image_without_foreground_as_one():
    criterion = make_criterion(normalizer_momentum=0.9)
    criterion(*make_outputs(1), make_truth(0))
    assert criterion.moving_normalizer.item() == pytest.approx(0.9 * 100 + 0.1)


def test_the_moving_normalizer_rests_in_evaluation_and_is_resumed():
    criterion, other = (make_criterion(normalizer_momentum=0.5) for _ in range(2))
    outputs, batch = make_outputs(1), make_truth(3)
    criterion(*outputs, batch)
    other.load_state_dict(criterion.state_dict())
    rested = criterion.eval()(*outputs, batch)
    assert torch.equal(other.moving_normalizer, criterion.moving_normalizer)
    assert rested["loss_cls"] == other(*outputs, batch)["loss_cls"]


def test_without_a_moving_normalizer_the_criterion_has_no_state():
    assert not make_criterion().state_dict()


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_an_impossible_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match=f"normalizer_momentum {momentum}"):
        make_criterion(normalizer_momentum=momentum)


def test_extreme_outputs_away_from_ground_truth_stay_finite():
    outputs, batch = make_outputs(1), make_truth(0)
    with torch.no_grad():
        for x in [*outputs[0], *outputs[1]]:
            x.mul_(1e4)
    for box_loss in (SmoothL1(), GIoU()):
        parts = losses(make_criterion(box_loss=box_loss), outputs, batch)
        assert all(math.isfinite(part.item()) for part in parts)
        assert all(torch.isfinite(g).all() for g in gradients(parts, outputs))


@pytest.mark.parametrize("options", [{}, {"box_loss_on": "selected", "box_loss_weight": 3.0}])
@pytest.mark.parametrize("counts", [(3, 0, 1), (0, 0), (2,)])
def test_per_image_is_the_mean_of_the_images_each_by_its_own_count(counts, options):
    outputs, batch = make_outputs(len(counts)), make_truth(*counts, padding=1)
    options = {**options, "sampler": every_second_of_all}
    whole = losses(make_criterion(normalizer="per_image", **options), outputs, batch)
    alone = make_criterion(normalizer="assigned", **options)
    singles = []
    for n in range(len(counts)):
        single = Batch(**{k: v[n : n + 1] for k, v in vars(batch).items()})
        logits, deltas = ([x[n : n + 1] for x in outputs[i]] for i in (0, 1))
        singles.append(losses(alone, (logits, deltas, outputs[2]), single))
    for actual, parts in zip(whole, zip(*singles, strict=True), strict=True):
        assert actual.item() == pytest.approx(sum(part.item() for part in parts) / len(counts), rel=1e-5)
        assert actual.requires_grad


def every_second_of_all(labels, **offered):
    return every_second(labels)


def test_per_image_needs_no_value_from_the_device():
    outputs, batch = make_outputs(2), make_truth(3, 0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [[mode.from_tensor(x.detach()) for x in level] for level in outputs]
        batch = Batch(**{k: mode.from_tensor(v) for k, v in vars(batch).items()})
        assert all(value.shape == () for value in make_criterion(normalizer="per_image")(*fake, batch).values())


def test_per_image_has_no_moving_average():
    with pytest.raises(ValueError, match="'per_image' .* normalizer_momentum must be 0 with it, not 0.9"):
        make_criterion(normalizer="per_image", normalizer_momentum=0.9)


class NoSum(SigmoidFocalLoss):
    def __call__(self, logits, labels, reduction):
        return super().__call__(logits, labels, "anchor" if reduction == "sum" else reduction)


class Number(SigmoidFocalLoss):
    def __call__(self, logits, labels, reduction):
        return super().__call__(logits, labels, reduction).sum().item()


class NoRows(SigmoidFocalLoss):
    def __call__(self, logits, labels, reduction):
        return super().__call__(logits, labels, "none" if reduction == "anchor" else reduction)


def mean_of_boxes(deltas, anchors, truth, coder):
    return (deltas - coder.encode(anchors, truth)).abs().mean()


class NoSelection:
    def __init__(self, answer):
        self.answer = answer

    def __call__(self, labels, **offered):
        return self.answer(labels)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"cls_loss": NoSum()}, r"NoSum: for reduction 'sum' it must return a tensor of shape \[\] .* \[2, 180\]"),
        ({"cls_loss": Number()}, r"Number: for reduction 'sum' it must return a tensor .* returned [\d.]+, a float"),
        ({"sampler": NoSelection(lambda x: None)}, r"NoSelection: a sampler returns bool \[N, R\], not None"),
        ({"cls_loss": NoRows(), "normalizer": "per_image"}, r"NoRows: for reduction 'anchor' .* \[2, 180, 3\]"),
        ({"box_loss": mean_of_boxes}, r"function: for boxes \[N, R, 4\] .* shape \[2, 180\] .* returned \[\]"),
        (
            {"sampler": NoSelection(lambda x: x.float())},
            r"NoSelection: a sampler returns bool \[N, R\], not torch.float",
        ),
        ({"sampler": NoSelection(lambda x: x[0] > 0)}, r"NoSelection: for labels \[N, R\] .* \[2, 180\] .* \[180\]"),
    ],
)
def test_a_component_that_breaks_its_contract_is_named(parts, message):
    outputs, batch = make_outputs(2), make_truth(3, 1)
    with pytest.raises((TypeError, ValueError), match=message):
        make_criterion(**parts)(*outputs, batch)
