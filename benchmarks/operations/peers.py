"""Other ways to the same results: as other libraries do it, or as one writes it first."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

DenseLoss = Callable[..., Tensor]


def torchvision_ops() -> ModuleType | None:
    """Return torchvision.ops, or None where torchvision is missing or does not fit the torch that is here."""
    try:
        import torchvision
    except (ImportError, OSError, RuntimeError):
        return None
    return torchvision.ops


def fvcore_losses() -> ModuleType | None:
    """Return fvcore.nn.focal_loss, or None where fvcore is missing or does not fit the torch that is here."""
    try:
        from fvcore.nn import focal_loss
    except (ImportError, RuntimeError):
        return None
    return focal_loss


def detectron2_focal_loss(
    logits_RK: Tensor, labels_R: Tensor, *, alpha: float, gamma: float, loss: DenseLoss
) -> Tensor:
    """Return the summed focal loss as detectron2's RetinaNet calls it: mask, one-hot targets, then `loss`."""
    valid_R = labels_R >= 0
    targets_RK = F.one_hot(labels_R[valid_R], num_classes=logits_RK.shape[-1] + 1)[:, :-1].to(logits_RK.dtype)
    return loss(logits_RK[valid_R], targets_RK, alpha=alpha, gamma=gamma, reduction="sum")


def focal_loss_of_labels(logits_RK: Tensor, labels_R: Tensor, *, alpha: float, gamma: float, loss: DenseLoss) -> Tensor:
    """Return a summed focal loss of labels 0..K, in a form to compile: targets made inside, nothing ignored."""
    targets_RK = F.one_hot(labels_R, num_classes=logits_RK.shape[-1] + 1)[:, :-1].to(logits_RK.dtype)
    return loss(logits_RK, targets_RK, alpha=alpha, gamma=gamma, reduction="sum")


def quadratic_nms(boxes_R4: Tensor, scores_R: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices that greedy suppression keeps, by falling score: one thread of vectorised C++, float32."""
    order_R = scores_R.sort(descending=True, stable=True).indices
    sides_4R = boxes_R4.float()[order_R].t().contiguous()
    suppressed_R = torch.zeros(len(order_R), dtype=torch.int32)
    sides = [ctypes.c_void_p(side_R.data_ptr()) for side_R in sides_4R]
    threshold, out = ctypes.c_float(iou_threshold), ctypes.c_void_p(suppressed_R.data_ptr())
    _scan_library().quadratic_nms(*sides, ctypes.c_int64(len(order_R)), threshold, out)
    return order_R[suppressed_R == 0]


@functools.cache
def _scan_library() -> ctypes.CDLL:
    source = Path(__file__).with_name("quadratic_nms.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "quadratic_nms.so"
        compiler = [os.environ.get("CXX", "c++"), "-O3", "-march=native", "-fno-trapping-math", "-shared", "-fPIC"]
        subprocess.run([*compiler, str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def matrix_matching(
    anchors_R4: Tensor, gt_boxes_NG4: Tensor, gt_classes_NG: Tensor, *, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return labels and matches [N, R] as detectron2's Matcher finds them, from a matrix of IoU per image.

    Thresholds 0.4 and 0.5, low-quality matches on. Every image has at least one ground truth.
    """
    found = []
    for boxes_G4, classes_G in zip(gt_boxes_NG4, gt_classes_NG, strict=True):
        real_G = classes_G >= 0
        found.append(_match_image(_pairwise_iou(boxes_G4[real_G], anchors_R4), classes_G[real_G], num_classes))
    labels, matches = zip(*found, strict=True)
    return torch.stack(labels), torch.stack(matches)


def _match_image(iou_GR: Tensor, classes_G: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    best_R, match_R = iou_GR.max(dim=0)
    kind_R = torch.ones_like(match_R)  # 1 positive, 0 background, -1 ignored
    for kind, low, high in ((0, -float("inf"), 0.4), (-1, 0.4, 0.5), (1, 0.5, float("inf"))):
        kind_R[(best_R >= low) & (best_R < high)] = kind
    highest_G = iou_GR.max(dim=1).values
    kind_R[torch.nonzero(iou_GR == highest_G[:, None])[:, 1]] = 1
    labels_R = classes_G[match_R]
    labels_R[kind_R == 0] = num_classes
    labels_R[kind_R == -1] = -1
    return labels_R, match_R


def _pairwise_iou(a_G4: Tensor, b_R4: Tensor) -> Tensor:
    """Return IoU [G, R] as detectron2's structures compute it."""
    sides_GR2 = torch.min(a_G4[:, None, 2:], b_R4[:, 2:]) - torch.max(a_G4[:, None, :2], b_R4[:, :2])
    inter_GR = sides_GR2.clamp_(min=0).prod(dim=2)
    area_G, area_R = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a_G4, b_R4))
    return torch.where(inter_GR > 0, inter_GR / (area_G[:, None] + area_R - inter_GR), inter_GR.new_zeros(1))
