"""Cases of the losses: forward and backward pass, summed."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from measuring import Timings, Work, interleaved, peak_extra_mb
from torch import Tensor

from detkit import ops
from operations import peers
from operations.inputs import Sizes, head_outputs
from operations.rows import Found, Row, compared, memory

_OPTIONS = {"alpha": 0.25, "gamma": 2.0}
_DTYPES = (torch.float32, torch.bfloat16)
_OURS = "detkit"


def against_fvcore(sizes: Sizes, device: str, mark: float | None = 30) -> Found:
    """Compare with fvcore's jit function as detectron2 calls it, and with torchvision's where there is one."""
    losses: dict[str, Callable[..., Tensor]] = {}
    fvcore, vision = peers.fvcore_losses(), peers.torchvision_ops()
    if fvcore is not None:
        theirs = functools.partial(peers.detectron2_focal_loss, loss=fvcore.sigmoid_focal_loss_jit)
        losses["fvcore's jit function, called as detectron2 does"] = theirs
    if vision is not None:
        theirs = functools.partial(peers.detectron2_focal_loss, loss=vision.sigmoid_focal_loss)
        losses["torchvision's function, called likewise"] = theirs
    return _against(losses, sizes, device, mark, ignored=True)


def against_compiled(sizes: Sizes, device: str, mark: float | None = 3) -> Found:
    """Compare with fvcore's function compiled by torch.compile, from labels; nothing without fvcore."""
    fvcore = peers.fvcore_losses()
    if fvcore is None:
        return Found()
    theirs = functools.partial(peers.focal_loss_of_labels, loss=fvcore.sigmoid_focal_loss)
    compiled = torch.compile(theirs, dynamic=False)
    return _against({"`torch.compile` of fvcore's function, from labels": compiled}, sizes, device, mark)


def against_eager(sizes: Sizes, device: str) -> Found:
    """Compare with fvcore's function run step by step, from labels; nothing without fvcore."""
    fvcore = peers.fvcore_losses()
    if fvcore is None:
        return Found()
    theirs = functools.partial(peers.focal_loss_of_labels, loss=fvcore.sigmoid_focal_loss)
    return _against({"fvcore's function, from labels": theirs}, sizes, device, None)


def _against(
    losses: dict[str, Callable[..., Tensor]], sizes: Sizes, device: str, mark: float | None, *, ignored: bool = False
) -> Found:
    found = Found()
    for dtype in _DTYPES if losses else ():
        logits, labels = _inputs(sizes, device, dtype, ignored=ignored)
        contenders = {name: _pass(loss, logits, labels) for name, loss in losses.items()}
        timings = _timed(sizes, device, _focal(logits, labels), contenders)
        found.rows += [compared(_title(logits), timings, _OURS, name, "faster", mark) for name in contenders]
    return found


def against_fresh_sigmoid(sizes: Sizes, device: str) -> Found:
    """Compare with torch.sigmoid into fresh memory."""
    return _against_sigmoid(lambda x: lambda: torch.sigmoid(x), "`torch.sigmoid(x)`", 2, sizes, device)


def against_sigmoid_out(sizes: Sizes, device: str) -> Found:
    """Compare with torch.sigmoid into memory that is there."""

    def sigmoid(x: Tensor) -> Work:
        out = torch.zeros_like(x)
        return lambda: torch.sigmoid(x, out=out)

    return _against_sigmoid(sigmoid, "`torch.sigmoid(x, out=y)`", 4, sizes, device)


def _against_sigmoid(make: Callable[[Tensor], Work], name: str, mark: float, sizes: Sizes, device: str) -> Found:
    found = Found()
    for dtype in _DTYPES:
        logits, labels = _inputs(sizes, device, dtype)
        timings = _timed(sizes, device, _focal(logits, labels), {name: make(logits.detach())})
        found.rows.append(compared(_title(logits), timings, _OURS, name, "times", mark))
    return found


def peak_memory(sizes: Sizes, device: str) -> Found:
    """Compare the peak of memory with the size of the gradient."""
    found = Found()
    for dtype in _DTYPES:
        _focal(*_inputs(sizes, device, dtype, rows=256))()  # the library, the threads and their stacks
        logits, labels = _inputs(sizes, device, dtype)
        peak = peak_extra_mb(_focal(logits, labels), device)
        gradient = logits.numel() * logits.element_size() / 1e6
        found.rows.append(memory(f"{_title(logits)}: peak extra memory", peak, "one gradient", gradient, mark=1.1))
    return found


def other_shapes(sizes: Sizes, device: str) -> Found:
    """Compare other exponents and the other losses with the focal loss at its usual exponent."""
    found = Found()
    for dtype in _DTYPES:
        logits, labels = _inputs(sizes, device, dtype)
        shapes: dict[str, Callable[..., Tensor]] = {
            f"focal loss, gamma {gamma:g}": _with(ops.sigmoid_focal_loss, alpha=0.25, gamma=gamma)
            for gamma in (0.0, 0.5, 1.0)
        }
        shapes["FL*"] = _with(ops.sigmoid_focal_loss_star, alpha=0.25, gamma=2.0, beta=1.0)
        shapes["hinge loss"] = _with(ops.sigmoid_hinge_loss, alpha=0.25, margin=0.5)
        usual = "focal loss, gamma 2"
        contenders = {name: _pass(loss, logits, labels) for name, loss in shapes.items()}
        timings = _timed(sizes, device, _focal(logits, labels), contenders, ours=usual)
        found.rows += [_shape_row(name, usual, logits, timings) for name in contenders]
    return found


def _shape_row(name: str, usual: str, logits: Tensor, timings: Timings) -> Row:
    what = f"{name}, {_shape(logits)}"
    return compared(what, timings, name, usual, "times", mark=1.1)


def _with(loss: Callable[..., Tensor], **options: float) -> Callable[..., Tensor]:
    return lambda logits, labels, **usual: loss(logits, labels, **options)


def _inputs(
    sizes: Sizes, device: str, dtype: torch.dtype, *, ignored: bool = False, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    logits, labels = head_outputs(rows or sizes.anchors, sizes.classes, dtype, ignored=ignored)
    return logits.to(device).requires_grad_(), labels.to(device)


def _pass(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> Work:
    return lambda: torch.autograd.grad(loss(logits, labels, **_OPTIONS), logits)


def _focal(logits: Tensor, labels: Tensor) -> Work:
    return _pass(ops.sigmoid_focal_loss, logits, labels)


def _timed(sizes: Sizes, device: str, work: Work, others: dict[str, Work], ours: str = _OURS) -> Timings:
    return interleaved({ours: work, **others}, rounds=sizes.rounds, device=device)


def _title(logits: Tensor) -> str:
    return f"focal loss, forward and backward, {_shape(logits)}"


def _shape(logits: Tensor) -> str:
    rows, classes = logits.shape
    return f"{rows} x {classes}, {str(logits.dtype).removeprefix('torch.')}"
