"""What the loss costs in a training step: assignment, losses and their gradients, beside the network and the optimiser.

    python benchmarks/training_step.py [--dtype float32|bfloat16] [--size 600] [--rounds 5] [--output FILE]

A step of configs/retinanet_R50_FPN.yaml without weights (time does not depend on them), 2 pictures, 10 boxes each, on
the CPU with the allocator settings of train(), or on a CUDA device where there is one. Prints a page, or writes it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import Timings, interleaved, processor
from torch import Tensor, nn

from detkit.config import get_cfg
from detkit.engine.device import autocast, keep_large_blocks
from detkit.modeling import build_detector
from detkit.structures import Batch

CONFIG = Path(__file__).parents[1] / "configs" / "retinanet_R50_FPN.yaml"
IMAGES, BOXES, CLASSES = 2, 10, 80
MARK = 0.03


def main() -> None:
    """Measure, and print or write the page."""
    args = _arguments()
    keep_large_blocks()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    detector = build_detector(cfg, num_classes=CLASSES).to(device).train()
    batch = some_batch(args.size).to(device)
    dtype = getattr(torch, args.dtype)
    works = {
        "step": whole_step(detector, batch, None if dtype == torch.float32 else dtype),
        "criterion": criterion_alone(detector, batch, dtype),
        "assignment": lambda: detector.assign(batch),
    }
    page = _page(args, device, interleaved(works, rounds=args.rounds, device=device.type, budget_s=args.budget))
    if args.output is None:
        print(page)
    else:
        args.output.write_text(page)


def some_batch(height: int, width: int | None = None, images: int = IMAGES) -> Batch:
    """Return pictures of noise, square without a width, of at least 200 pixels, with boxes of 20 to 200 pixels."""
    generator = torch.Generator().manual_seed(0)
    width = width or height
    corners = torch.rand(images, BOXES, 2, generator=generator) * torch.tensor([width - 200, height - 200])
    sides = 20 + torch.rand(images, BOXES, 2, generator=generator) * 180
    sizes = torch.tensor([[height, width]]).repeat(images, 1)
    return Batch(
        images=torch.randint(0, 255, (images, 3, height, width), generator=generator, dtype=torch.uint8),
        image_sizes=sizes,
        original_sizes=sizes.clone(),
        image_ids=torch.arange(images),
        gt_boxes_NG4=torch.cat([corners, corners + sides], -1),
        gt_classes_NG=torch.randint(0, CLASSES, (images, BOXES), generator=generator),
        seeds=torch.arange(images),
    )


def whole_step(detector: nn.Module, batch: Batch, dtype: torch.dtype | None) -> Callable[[], None]:
    """Return a step of training of detkit's detector on a batch."""
    return step_of(detector, lambda: _sum(detector(batch)), batch.images.device, dtype)


def step_of(
    network: nn.Module, loss: Callable[[], Tensor], device: torch.device, dtype: torch.dtype | None
) -> Callable[[], None]:
    """Return a step of training: forward, backward, SGD with momentum at a rate that changes next to nothing."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-8, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, dtype):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def criterion_alone(detector: nn.Module, batch: Batch, dtype: torch.dtype) -> Callable[[], None]:
    """Return what a step does between the head's outputs and their gradients: assignment, losses, backward."""
    with torch.no_grad():
        raw = detector.raw_outputs(batch.images, batch.image_sizes)
    logits = [level.to(dtype).requires_grad_() for level in raw.logits]
    deltas = [level.to(dtype).requires_grad_() for level in raw.deltas]

    def run() -> None:
        torch.autograd.grad(_sum(detector.criterion(logits, deltas, raw.anchors, batch)), [*logits, *deltas])

    return run


def _sum(losses: dict[str, Tensor]) -> Tensor:
    return losses["loss_cls"] + losses["loss_box"]


def _page(args: argparse.Namespace, device: torch.device, timings: Timings) -> str:
    step, criterion, assignment = (timings.spread(name) for name in ("step", "criterion", "assignment"))
    share = timings.ratio("criterion", "step")
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    noise = f"; {timings.disturbed} of {timings.rounds} rounds were disturbed by others" if timings.disturbed else ""
    lines = [
        f"# The loss in a training step: R50-FPN, {args.size} px, {IMAGES} pictures, {args.dtype}",
        "",
        f"Command: `python benchmarks/training_step.py --dtype {args.dtype} --size {args.size}`. "
        f"Date: {time.strftime('%Y-%m-%d')}. Machine: {name}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads. torch {torch.__version__}.",
        f"Medians (quartiles) of {timings.rounds} rounds{noise}. The criterion runs on detached outputs of the head.",
        "",
        "| what | ms | share of the step | mark |",
        "|---|---|---|---|",
        f"| step: forward, backward, SGD | {step.median:.0f} ({step.low:.0f}..{step.high:.0f}) | | |",
        f"| assignment and losses, forward and backward | {criterion.median:.1f} ({criterion.low:.1f}.."
        f"{criterion.high:.1f}) | {share.median:.1%} ({share.low:.1%}..{share.high:.1%}) | under {MARK:.0%} |",
        f"| of it, assignment | {assignment.median:.2f} ({assignment.low:.2f}..{assignment.high:.2f}) | | |",
    ]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=int, default=600, help="side of the pictures in pixels, at least 200")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no round is begun")
    parser.add_argument("--output", type=Path, help="file for the page; without it, it is printed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
