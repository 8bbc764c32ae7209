"""Every operation at small sizes, forward and backward, as work that can be repeated; run as a command: once each.

python -m gpu.work [cuda|cpu]     (in benchmarks/; for compute-sanitizer)
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from detkit import ops

Work = Callable[[], list[Tensor]]
_REDUCTIONS = ("sum", "anchor", "none")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def every_operation(device: str, boxes: int = 300, rows: int = 70) -> dict[str, Work]:
    """Return work by name, of so many boxes and rows of logits: each returns all that it computes.

    The sizes are no multiples of a block, a warp or a vector, so that ends and remainders are met.
    """
    return {**_losses(device, rows), **_suppressions(device, boxes), **_matchings(device, boxes)}


def _losses(device: str, rows: int) -> dict[str, Work]:
    found: dict[str, Work] = {}
    functions = (ops.sigmoid_focal_loss, ops.sigmoid_focal_loss_star, ops.sigmoid_hinge_loss)
    for function in functions:
        for reduction in _REDUCTIONS:
            for dtype in _DTYPES:
                for classes in (80, 7, 1):
                    name = f"{function.__name__} {reduction} {str(dtype)[6:]} x {classes}"
                    found[name] = _loss(function, reduction, *_logits(device, rows, classes, dtype))
    found["sigmoid_focal_loss gamma 1.5 float64"] = _loss(
        ops.sigmoid_focal_loss, "sum", *_logits(device, rows, 13, torch.float64), gamma=1.5, alpha=None
    )
    return found


def _logits(device: str, rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + classes)
    logits = torch.randn(rows, classes, generator=generator).mul(3).to(dtype)
    labels = torch.randint(-1, classes + 1, (rows,), generator=generator)
    return logits.to(device).requires_grad_(), labels.to(device)


def _loss(function: Callable[..., Tensor], reduction: str, logits: Tensor, labels: Tensor, **options: object) -> Work:
    def run() -> list[Tensor]:
        value = function(logits, labels, reduction=reduction, **options)
        (slope,) = torch.autograd.grad(value, logits, torch.full_like(value, 0.7))
        return [value.detach(), slope]

    return run


def _suppressions(device: str, count: int) -> dict[str, Work]:
    boxes, scores = _crowd(device, 3, count)
    groups = torch.arange(count, device=device) % 5
    kinds = groups.expand(3, -1) % 2
    return {
        "nms": lambda: [ops.nms(boxes[0], scores[0], 0.5)],
        "nms float64": lambda: [ops.nms(boxes[0].double(), scores[0].double(), 0.3, max_keep=50)],
        "batched_nms": lambda: [ops.batched_nms(boxes[0], scores[0], groups, 0.5)],
        "nms_mask": lambda: [ops.nms_mask(boxes, scores.bfloat16(), 0.5, quota=100)],
        "nms_mask of kinds": lambda: [
            ops.nms_mask(boxes, scores, 0.7, groups=kinds, kinds=kinds.contiguous(), quota=[20, 90])
        ],
        "nms of nothing": lambda: [ops.nms(boxes[0, :0], scores[0, :0], 0.5)],
    }


def _matchings(device: str, count: int) -> dict[str, Work]:
    boxes, _ = _crowd(device, 3, count)
    truths, classes = boxes[:, :37], torch.arange(37, device=device).expand(3, -1) % 7 - 1
    valid = torch.arange(count, device=device).expand(3, -1) % 11 > 0
    match = ops.match_anchors
    return {
        "match_anchors": lambda: list(match(boxes[0], truths, classes, num_classes=7)),
        "match_anchors of each": lambda: list(
            match(boxes, truths, classes, num_classes=7, low_quality="detectron", valid=valid)
        ),
        "match_anchors to nothing": lambda: list(match(boxes[0], truths[:, :0], classes[:, :0], num_classes=7)),
    }


def _crowd(device: str, images: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    corners, sides = torch.rand(2, images, count, 2, generator=generator)
    boxes = torch.cat([corners * 200, corners * 200 + 8 + 60 * sides], -1)
    return boxes.to(device), torch.rand(images, count, generator=generator).to(device)


def main(device: str) -> None:
    """Run every operation once, and say how many there were."""
    works = every_operation(device)
    for work in works.values():
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(works)} works done on {device}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["cuda"]))
