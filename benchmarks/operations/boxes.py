"""Cases of the operations on boxes: suppression and matching."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from measuring import Spread, Timings, Work, interleaved, peak_extra_mb
from torch import Tensor

from detkit import ops
from operations import peers
from operations.inputs import Sizes, dense_boxes, ground_truth, kinds_of, picture_anchors
from operations.rows import Found, Row, alone, compared, memory

_IOUS = (0.5, 0.7)
_SORT = "`torch.sort` of the scores"
_SCAN = "quadratic scan in C++, one thread"
_CLASSES = 80


def nms_of_many(sizes: Sizes, device: str) -> Found:
    """Compare NMS with the sort of its scores, and with other ways to do it."""
    boxes, scores = _dense(sizes.many, device)
    found = Found()
    for iou in _IOUS:
        title = f"nms, {sizes.many} boxes, IoU {iou}"
        ours = {title: functools.partial(ops.nms, boxes, scores, iou)}
        timings = interleaved({**ours, _SORT: _sort(scores)}, rounds=sizes.rounds, device=device)
        found.rows.append(compared(title, timings, title, _SORT, "times", mark=20))
        for name, other in _other_nms(device).items():
            pair = {**ours, name: functools.partial(other, boxes, scores, iou)}
            timings = interleaved(pair, rounds=min(sizes.rounds, 3), device=device, budget_s=20)
            found.rows.append(compared(title, timings, title, name, "faster"))
    return found


def growth_of_nms(sizes: Sizes, device: str) -> Found:
    """Time NMS, the sort and the other ways over the number of boxes, and fit the exponent of NMS."""
    names = {iou: f"nms, IoU {iou}" for iou in _IOUS}
    contenders: dict[str, Work] = {}
    slow: dict[str, list[tuple[int, float]]] = {}
    for count in sizes.growth:
        boxes, scores = _dense(count, device)
        for iou, name in names.items():
            contenders[_at(name, count)] = functools.partial(ops.nms, boxes, scores, iou)
        contenders[_at(_SORT, count)] = _sort(scores)
        for name, other in _other_nms(device).items():
            work = {name: functools.partial(other, boxes, scores, 0.5)}
            ms = interleaved(work, rounds=sizes.rounds, device=device, budget_s=1).spread(name).median
            slow.setdefault(f"{name}, IoU 0.5", []).append((count, ms))
    timings = interleaved(contenders, rounds=min(sizes.rounds, 5), device=device)
    curves = {n: [(c, timings.spread(_at(n, c)).median) for c in sizes.growth] for n in (*names.values(), _SORT)}
    fitted = [count for count in sizes.growth if count >= sizes.growth_from]
    return Found([_exponent_row(name, fitted, timings) for name in names.values()], {**curves, **slow})


def _at(name: str, count: int) -> str:
    return f"{name}, {count} boxes"


def _exponent_row(name: str, counts: list[int], timings: Timings) -> Row:
    """Return the slope of log time over log n, fitted in each round."""
    times = np.array([timings.ms[_at(name, count)] for count in counts])
    slopes = np.polyfit(np.log(counts), np.log(times), 1)[0].tolist()
    what = f"{name}: growth from {counts[0]} to {counts[-1]} boxes"
    return Row(what, "", "exponent", Spread.of(slopes), 1.3, disturbed=timings.disturbed, rounds=timings.rounds)


def nms_of_few(sizes: Sizes, device: str) -> Found:
    """Time a small NMS and one by classes, and compare them with torchvision's where there is one."""
    boxes, scores = _dense(sizes.few, device)
    works: dict[str, functools.partial] = {
        f"nms, {sizes.few} boxes, IoU {iou}": functools.partial(ops.nms, boxes, scores, iou) for iou in _IOUS
    }
    boxes, scores = _dense(sizes.grouped, device)
    classes = torch.randint(_CLASSES, scores.shape, generator=torch.Generator().manual_seed(0)).to(device)
    grouped = f"batched_nms, {sizes.grouped} boxes, {_CLASSES} classes, IoU 0.5"
    works[grouped] = functools.partial(ops.batched_nms, boxes, scores, classes, 0.5)
    theirs = _vision_of_few(works)
    timings = interleaved({**works, **theirs}, rounds=sizes.rounds, device=device)
    rows = [alone(name, timings, name, mark=2.0 if name == grouped else 0.4) for name in works]
    pairs = zip(works, theirs, strict=bool(theirs))
    return Found(rows + [compared(ours, timings, ours, other, "faster") for ours, other in pairs])


def _vision_of_few(works: Mapping[str, functools.partial]) -> dict[str, Work]:
    """Return torchvision's functions for the arguments of ours, in the same order; nothing where it is missing."""
    vision = peers.torchvision_ops()
    if vision is None:
        return {}
    same = {ops.nms: vision.nms, ops.batched_nms: vision.batched_nms}
    return {f"torchvision's {name}": functools.partial(same[work.func], *work.args) for name, work in works.items()}


def nms_with_limits(sizes: Sizes, device: str) -> Found:
    """Compare NMS that may stop early with the sort of its scores."""
    boxes, scores = _dense(sizes.many, device)
    count, found = sizes.many, Found()
    for iou in _IOUS:
        first = f"nms, {count} boxes, IoU {iou}, max_keep 128"
        works: dict[str, Work] = {first: functools.partial(ops.nms, boxes, scores, iou, max_keep=128)}
        for share in (0.1, 0.01):
            name = f"nms_mask, {count} boxes, IoU {iou}, quotas 32 + 96, {share:.0%} positives"
            kinds = kinds_of(count, share).to(device)[None]
            quota = {"kinds": kinds, "quota": (32, 96)}
            works[name] = functools.partial(ops.nms_mask, boxes[None], scores[None], iou, **quota)
        timings = interleaved({**works, _SORT: _sort(scores)}, rounds=sizes.rounds, device=device)
        found.rows += [compared(name, timings, name, _SORT, "times", 3 if name == first else 5) for name in works]
    return found


def matching(sizes: Sizes, device: str) -> Found:
    """Compare match_anchors with the matrix of IoU, in time, and its memory with its outputs."""
    anchors, height, width = picture_anchors(sizes.matched)
    inputs = [anchors, *ground_truth(sizes.images, sizes.ground_truths, _CLASSES, height, width)]
    inputs = [value.to(device) for value in inputs]
    title = f"match_anchors, {sizes.matched} anchors, {sizes.images} images x up to {sizes.ground_truths} boxes"
    ops.match_anchors(inputs[0][:256], *inputs[1:], num_classes=_CLASSES)  # the library, the threads and their stacks
    ours = functools.partial(ops.match_anchors, *inputs, num_classes=_CLASSES)
    peak = peak_extra_mb(ours, device)  # before the matrix leaves freed memory behind
    outputs = 2 * sizes.images * sizes.matched * 8 / 1e6
    other = "matrix of IoU, as detectron2's Matcher"
    works = {title: ours, other: functools.partial(peers.matrix_matching, *inputs, num_classes=_CLASSES)}
    timings = interleaved(works, rounds=min(sizes.rounds, 3), device=device, budget_s=20)
    speed = compared(title, timings, title, other, "faster", mark=10)
    return Found([speed, memory(f"{title}: peak extra memory", peak, "its outputs", outputs, mark=3)])


def _dense(count: int, device: str) -> tuple[Tensor, Tensor]:
    boxes, scores = dense_boxes(count)
    return boxes.to(device), scores.to(device)


def _sort(scores: Tensor) -> Work:
    return lambda: torch.sort(scores, descending=True)


def _other_nms(device: str) -> dict[str, Callable[[Tensor, Tensor, float], Tensor]]:
    vision = peers.torchvision_ops()
    others = {} if device == "cuda" else {_SCAN: peers.quadratic_nms}
    return others if vision is None else {**others, "torchvision's nms": vision.nms}
