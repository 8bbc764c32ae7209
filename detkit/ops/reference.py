"""The operations in plain PyTorch: their specification, the oracle of their tests, and what runs without a kernel.

Each function has the signature of its schema (`_schema.py`). N images, R anchors or boxes, K classes, G ground truths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.structures.boxes import box_area, box_iou
from detkit.structures.labels import IGNORED

# Reductions and low-quality rules, as the schemas number them.
NONE, ANCHOR, SUM = 0, 1, 2
OFF, DETECTRON2, DETECTRON = 0, 1, 2

_BLOCK = 128  # boxes of the greedy pass that are decided together
_CHUNK = 1 << 20  # pairs of boxes whose overlap is held at once


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which values of `dtype` are computed and summed: float64 for itself, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---------------------------------------------------------------------------------------------------------------------
# Losses on sigmoids
# ---------------------------------------------------------------------------------------------------------------------


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, reduction: int) -> Tensor:
    """Focal loss -w (1 - p_t)^gamma log p_t (Lin et al. 2017, eq. 5) in log space; see ops.sigmoid_focal_loss."""
    return _loss("sigmoid_focal_loss", logits, labels, alpha, reduction, lambda z: _focal(z, gamma))


def sigmoid_focal_loss_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, reduction: int
) -> Tensor:
    """Gradient of sigmoid_focal_loss to its logits, for `grad` of the loss's shape; of the logits' shape and type."""
    return _gradient(grad, logits, labels, alpha, reduction, lambda z: _focal_derivative(z, gamma))


def sigmoid_focal_loss_star(
    logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, beta: float, reduction: int
) -> Tensor:
    """FL* = -w log sigmoid(gamma z + beta) / gamma (Lin et al. 2017, appendix A); see ops.sigmoid_focal_loss_star."""
    return _loss(
        "sigmoid_focal_loss_star", logits, labels, alpha, reduction, lambda z: -F.logsigmoid(gamma * z + beta) / gamma
    )


def sigmoid_focal_loss_star_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, beta: float, reduction: int
) -> Tensor:
    """Gradient of sigmoid_focal_loss_star to its logits; dFL*/dz = p* - 1."""
    return _gradient(grad, logits, labels, alpha, reduction, lambda z: -torch.sigmoid(-(gamma * z + beta)))


def sigmoid_hinge_loss(logits: Tensor, labels: Tensor, alpha: float | None, margin: float, reduction: int) -> Tensor:
    """Hinge w max(0, margin - p_t) (Lin et al. 2017, section 5.1); see ops.sigmoid_hinge_loss."""
    return _loss(
        "sigmoid_hinge_loss", logits, labels, alpha, reduction, lambda z: (margin - torch.sigmoid(z)).clamp(min=0)
    )


def sigmoid_hinge_loss_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, alpha: float | None, margin: float, reduction: int
) -> Tensor:
    """Gradient of sigmoid_hinge_loss to its logits; -p_t (1 - p_t) below the margin, else 0."""
    return _gradient(grad, logits, labels, alpha, reduction, lambda z: _hinge_derivative(z, margin))


def _focal(z: Tensor, gamma: float) -> Tensor:
    return -torch.exp(gamma * F.logsigmoid(-z)) * F.logsigmoid(z)


def _focal_derivative(z: Tensor, gamma: float) -> Tensor:
    log_p, log_q = F.logsigmoid(z), F.logsigmoid(-z)  # q = 1 - p
    return torch.exp(gamma * log_q) * (gamma * torch.exp(log_p) * log_p - torch.exp(log_q))


def _hinge_derivative(z: Tensor, margin: float) -> Tensor:
    p = torch.sigmoid(z)
    return torch.where(p >= margin, 0, -p * torch.sigmoid(-z))


def _loss(
    name: str,
    logits: Tensor,
    labels: Tensor,
    alpha: float | None,
    reduction: int,
    value: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return w value(z), reduced, where z is the logit at the labelled class and minus the logit elsewhere."""
    labels = labels.long()
    _check_labels(name, labels, logits.shape[-1])
    z, weight, counted = _signed_logits(logits, labels, alpha)
    loss = weight * value(z)
    loss = torch.where(counted, loss, torch.zeros_like(loss))
    if reduction == NONE:
        return loss.to(logits.dtype)
    rows = loss.sum(-1)
    return rows if reduction == ANCHOR else rows.sum(dtype=torch.float64).to(rows.dtype)


def _gradient(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    alpha: float | None,
    reduction: int,
    derivative: Callable[[Tensor], Tensor],
) -> Tensor:
    labels = labels.long()
    z, weight, counted = _signed_logits(logits, labels, alpha)
    slope = weight * derivative(z)
    positive = labels[..., None] == _classes_of(logits)
    slope = torch.where(positive, slope, -slope)  # d/dx = +-d/dz
    grad = grad.to(slope.dtype)[..., None] if reduction == ANCHOR else grad.to(slope.dtype)
    return torch.where(counted, slope * grad, torch.zeros_like(slope)).to(logits.dtype)


def _signed_logits(logits: Tensor, labels: Tensor, alpha: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return z = x where the label is the class and -x elsewhere, the weight of each, and whether it counts."""
    x = logits.to(accumulation_dtype(logits.dtype))
    positive = labels[..., None] == _classes_of(logits)
    on, off = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    weight = torch.where(positive, x.new_full((), on), x.new_full((), off))
    return torch.where(positive, x, -x), weight, (labels != IGNORED)[..., None]


def _classes_of(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[-1], device=logits.device)


def _check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Refuse a label outside -1..K. Only on the CPU: elsewhere reading a value would wait for the device."""
    if labels.device.type != "cpu" or not labels.numel():
        return
    wrong = labels[(labels < IGNORED) | (labels > num_classes)]
    if wrong.numel():
        raise RuntimeError(
            f"{name}: the label {int(wrong[0])} is not in -1..{num_classes} "
            f"(0..K-1 class, K = {num_classes} background, -1 ignored)"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Non-maximum suppression
# ---------------------------------------------------------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_keep: int | None) -> Tensor:
    """Greedy suppression over all boxes; see ops.nms."""
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold, max_keep)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, max_keep: int | None) -> Tensor:
    """Greedy suppression within groups; see ops.batched_nms."""
    order = rank_by_score(scores)
    if max_keep is None:
        max_keep = order.numel()
    kept = _greedy(boxes[order].double(), groups[order], iou_threshold, lambda kept: kept.numel() >= max_keep)
    return order[kept][:max_keep]


def nms_mask(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None,
    kinds: Tensor | None,
    quota: Sequence[int] | None,
) -> Tensor:
    """Greedy suppression per image, within groups, as a mask, cut to a quota per kind; see ops.nms_mask."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(scores.shape[0]):
        order = rank_by_score(scores[image])
        order = order[scores[image][order] != -torch.inf]
        kinds_here = torch.zeros_like(order) if kinds is None else kinds[image][order].long()
        within = _Quota(kinds_here, quota)
        groups_here = torch.zeros_like(order) if groups is None else groups[image][order].long()
        kept = _greedy(boxes[image][order].double(), groups_here, iou_threshold, within.is_full)
        mask[image, order[kept[within.counted(kept)]]] = True
    return mask


class _Quota:
    """How many boxes of each kind are wanted; without a quota, all."""

    def __init__(self, kinds: Tensor, quota: Sequence[int] | None) -> None:
        self.kinds = kinds
        self.quota = quota

    def is_full(self, kept: Tensor) -> bool:
        """Return whether the kept boxes hold every kind's quota."""
        if self.quota is None:
            return False
        kinds = self.kinds[kept]
        return all(int((kinds == kind).sum()) >= most for kind, most in enumerate(self.quota))

    def counted(self, kept: Tensor) -> Tensor:
        """Return a mask of the kept boxes that are among the first of their kind, up to its quota."""
        if self.quota is None:
            return torch.ones_like(kept, dtype=torch.bool)
        counted = torch.zeros_like(kept, dtype=torch.bool)
        for kind, most in enumerate(self.quota):
            same = self.kinds[kept] == kind
            counted |= same & (same.cumsum(0) <= most)
        return counted


def rank_by_score(scores: Tensor) -> Tensor:
    """Return the indices [R] by falling score, ties by index; NaN and infinite scores last, by index."""
    finite = torch.isfinite(scores)
    falling = torch.where(finite, scores, torch.zeros_like(scores)).sort(descending=True, stable=True).indices
    return falling[(~finite[falling]).to(torch.uint8).sort(stable=True).indices]


def _greedy(boxes: Tensor, groups: Tensor, iou_threshold: float, is_full: Callable[[Tensor], bool]) -> Tensor:
    """Return the indices that greedy suppression keeps, in the order of `boxes`, at least until `is_full`.

    A block of the leading survivors is decided at once; what it keeps then suppresses the rest. More may be returned
    than fills it, all of them right.
    """
    kept = torch.zeros(0, dtype=torch.int64, device=boxes.device)
    rest = torch.arange(len(boxes), device=boxes.device)
    while rest.numel() and not is_full(kept):
        block, rest = rest[:_BLOCK], rest[_BLOCK:]
        block = block[_decide(_suppresses(boxes, groups, block, block, iou_threshold))]
        kept = torch.cat([kept, block])
        parts = rest.split(_CHUNK // _BLOCK)
        rest = torch.cat([p[~_suppresses(boxes, groups, block, p, iou_threshold).any(0)] for p in parts])
    return kept


def _decide(suppresses: Tensor) -> Tensor:
    """Return which boxes of a block are kept, given [B, B] whether box i would suppress box j.

    Repeats "kept unless a kept one before it suppresses it" until nothing changes: after step k the first k are right.
    """
    before = suppresses.triu(1)
    kept = torch.ones(len(before), dtype=torch.bool, device=before.device)
    while True:
        now = ~(before & kept[:, None]).any(0)
        if torch.equal(now, kept):
            return kept
        kept = now


def _suppresses(boxes: Tensor, groups: Tensor, rows: Tensor, columns: Tensor, iou_threshold: float) -> Tensor:
    """Return [rows, columns] whether inter > t * union in the same group. NaN never does: it compares false."""
    a, b = boxes[rows][:, None], boxes[columns][None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    union = box_area(a) + box_area(b) - inter
    return (inter > iou_threshold * union) & (groups[rows][:, None] == groups[columns][None])


# ---------------------------------------------------------------------------------------------------------------------
# Matching
# ---------------------------------------------------------------------------------------------------------------------


def match_anchors(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    valid: Tensor | None,
    num_classes: int,
    positive_iou: float,
    negative_iou: float,
    low_quality: int,
) -> tuple[Tensor, Tensor]:
    """Label anchors by their overlap with the ground truth; see ops.match_anchors."""
    _check_classes(gt_classes, num_classes)
    dtype = accumulation_dtype(torch.promote_types(anchors.dtype, gt_boxes.dtype))
    shape = (gt_boxes.shape[0], anchors.shape[-2])
    labels = torch.full(shape, num_classes, dtype=torch.int64, device=anchors.device)
    matched = torch.zeros(shape, dtype=torch.int64, device=anchors.device)
    for image in range(shape[0] if gt_boxes.shape[1] else 0):
        of_image = anchors[image] if anchors.dim() == 3 else anchors
        usable = None if valid is None else valid[image]
        best, matched[image], rescued = _best_of_image(
            of_image.to(dtype), gt_boxes[image].to(dtype), gt_classes[image] >= 0, usable, low_quality != OFF
        )
        found = best >= 0  # the image has ground truth
        label = torch.where(best < negative_iou, num_classes, IGNORED)
        keeps = rescued & (best >= negative_iou) if low_quality == DETECTRON else rescued
        label = torch.where((best >= positive_iou) | keeps, gt_classes[image][matched[image]], label)
        labels[image] = torch.where(found, label, labels[image])
    if valid is not None:
        labels = torch.where(valid, labels, IGNORED)
        matched = torch.where(valid, matched, 0)
    return labels, matched


def _best_of_image(
    anchors: Tensor, gt_boxes: Tensor, is_real: Tensor, usable: Tensor | None, low_quality: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each anchor's best IoU (-1 without ground truth), its first argmax, and whether a ground truth's best."""
    step = max(1, _CHUNK // len(gt_boxes))
    spans = [slice(start, start + step) for start in range(0, len(anchors), step)]
    best = anchors.new_empty(len(anchors))
    matched = torch.empty(len(anchors), dtype=torch.int64, device=anchors.device)
    highest = anchors.new_zeros(len(gt_boxes))
    for span in spans:
        iou = _iou(anchors[span], gt_boxes, is_real)
        best[span], matched[span] = iou.max(1)
        counted = iou if usable is None else torch.where(usable[span, None], iou, -1)
        highest = torch.maximum(highest, counted.amax(0))
    matched = torch.where(best >= 0, matched, 0)
    rescued = torch.zeros_like(matched, dtype=torch.bool)
    for span in spans if low_quality else ():
        iou = _iou(anchors[span], gt_boxes, is_real)
        rescued[span] = ((iou == highest) & (highest > 0)).any(1)
    return best, matched, rescued


def _iou(anchors: Tensor, gt_boxes: Tensor, is_real: Tensor) -> Tensor:
    """Return the overlap [R, G]: what is not a number counts as 0, padding as -1."""
    iou = box_iou(anchors, gt_boxes)
    iou = torch.where(iou > 0, iou, 0)
    return torch.where(is_real, iou, -1)


def _check_classes(gt_classes: Tensor, num_classes: int) -> None:
    """Refuse a class of K or above. Only on the CPU: elsewhere reading a value would wait for the device."""
    if gt_classes.device.type != "cpu" or not gt_classes.numel():
        return
    largest = int(gt_classes.max())
    if largest >= num_classes:
        raise RuntimeError(
            f"match_anchors: the class {largest} of the ground truth is not in 0..{num_classes - 1} (negative: padding)"
        )
