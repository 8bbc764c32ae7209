"""detectron2's RetinaNet on a ResNet-50 with an FPN, from the facts about it: weights by name in, numbers out.

Written apart from detkit and importing none of it: what the tests of this folder compare the library with. It is slow
and plain on purpose: loops over anchors, a whole matrix of overlaps, one candidate at a time in the suppression. The
two loss functions are fvcore's own, which detectron2 calls.

N pictures, R anchors over all levels, A of a cell, K classes, G ground truths of one picture; pictures are BGR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import fvcore.nn
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
STRIDES = (8, 16, 32, 64, 128)
SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)
A = 9
MEAN_BGR = (103.53, 116.28, 123.675)
STD_BGR = (1.0, 1.0, 1.0)
LARGEST_LOG_RATIO = math.log(1000 / 16)

State = dict[str, Tensor]


# ----- weights


def shapes(
    classes: int, *, stem: int = 64, width: int = 64, res2: int = 256, fpn: int = 256
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give every name of detectron2's file with its shape; the defaults are R50's widths."""

    def with_norm(name: str, out: int, into: int, kernel: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.norm.{part}", (out,)

    def with_bias(name: str, out: int, into: int, kernel: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (out, into, kernel, kernel)
        yield f"{name}.bias", (out,)

    yield from with_norm("backbone.bottom_up.stem.conv1", stem, 3, 7)
    into = stem
    for stage, count in BLOCKS.items():
        inner, out = width * 2 ** (stage - 2), res2 * 2 ** (stage - 2)
        for block in range(count):
            name = f"backbone.bottom_up.res{stage}.{block}"
            if block == 0:
                yield from with_norm(f"{name}.shortcut", out, into, 1)
            yield from with_norm(f"{name}.conv1", inner, into, 1)
            yield from with_norm(f"{name}.conv2", inner, inner, 3)
            yield from with_norm(f"{name}.conv3", out, inner, 1)
            into = out
    for level in (3, 4, 5):
        yield from with_bias(f"backbone.fpn_lateral{level}", fpn, res2 * 2 ** (level - 2), 1)
        yield from with_bias(f"backbone.fpn_output{level}", fpn, fpn, 3)
    yield from with_bias("backbone.top_block.p6", fpn, res2 * 8, 3)
    yield from with_bias("backbone.top_block.p7", fpn, fpn, 3)
    for i in (0, 2, 4, 6):
        yield from with_bias(f"head.cls_subnet.{i}", fpn, fpn, 3)
        yield from with_bias(f"head.bbox_subnet.{i}", fpn, fpn, 3)
    yield from with_bias("head.cls_score", A * classes, fpn, 3)
    yield from with_bias("head.bbox_pred", A * 4, fpn, 3)


def random_state(classes: int, seed: int, *, top: tuple[float, float], **widths: int) -> State:
    """Return weights under which activations stay near 1, with norms of random statistics.

    `top` are factors of the weights of P6 and P7: small maps are mostly padding, yet are to score, too.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(classes, **widths):
        noise = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        elif name.endswith("norm.weight"):
            state[name] = 0.5 + 0.5 * torch.rand(shape, generator=generator)
        elif len(shape) == 1:
            state[name] = 0.1 * noise
        else:
            gain = 0.5 if ".conv3." in name else 2**0.5
            state[name] = gain * noise / math.sqrt(math.prod(shape[1:]))
    state["backbone.bottom_up.stem.conv1.weight"] /= 60  # pixels deviate from their mean by about that
    for layer, factor in {"fpn_output5": 2.5, "top_block.p6": top[0], "top_block.p7": top[1]}.items():
        state[f"backbone.{layer}.weight"] *= factor
    return state


def scaled_heads(state: State, pixels_N3HW: Tensor, *, logit: float, delta: float) -> State:
    """Return the weights with the last layers scaled until logits and deltas deviate by this much, before the bias."""
    state = dict(state)
    for layer in ("head.cls_score", "head.bbox_pred"):
        state[f"{layer}.bias"] = torch.zeros_like(state[f"{layer}.bias"])
    logits, deltas = network(state, pixels_N3HW)
    for layer, values, wanted in (("head.cls_score", logits, logit), ("head.bbox_pred", deltas, delta)):
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * (wanted / torch.cat(values, 1).std())
    return state


# ----- pictures


def read_picture(path: Path | str) -> np.ndarray:
    """Return a file's picture [H, W, 3] uint8 BGR, turned as its EXIF block says."""
    with Image.open(path) as file:
        return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))[:, :, ::-1]


def new_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    factor = shortest / min(height, width)
    new = [factor * height, factor * width]
    if max(new) > longest:
        new = [longest / max(new) * side for side in new]
    return int(new[0] + 0.5), int(new[1] + 0.5)


def resized(picture: np.ndarray, shortest: int, longest: int) -> np.ndarray:
    height, width = new_size(*picture.shape[:2], shortest, longest)
    return np.asarray(Image.fromarray(picture.copy()).resize((width, height), Image.Resampling.BILINEAR))


def network_input(pictures: Sequence[np.ndarray]) -> Tensor:
    """Return the pictures less their mean, then filled with zeros right and bottom to a common multiple of 32."""
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    pixels_N3HW = torch.zeros(len(pictures), 3, math.ceil(height / 32) * 32, math.ceil(width / 32) * 32)
    for place, picture in zip(pixels_N3HW, pictures, strict=True):
        for channel in range(3):
            values = picture[:, :, channel].astype(np.float32) - np.float32(MEAN_BGR[channel])
            values = values / np.float32(STD_BGR[channel])
            place[channel, : picture.shape[0], : picture.shape[1]] = torch.from_numpy(values)
    return pixels_N3HW


class Object(NamedTuple):
    """An annotation of COCO: x, y, width, height in pixels of the file's picture, and its class."""

    xywh: tuple[float, float, float, float]
    class_index: int
    is_crowd: bool = False


def training_picture(
    picture: np.ndarray, objects: Sequence[Object], *, shortest: int, longest: int, is_flipped: bool
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Return the picture that training sees, with its boxes [G, 4] and classes [G]."""
    small = resized(picture, shortest, longest)
    height, width = small.shape[:2]
    down, across = height / picture.shape[0], width / picture.shape[1]
    boxes, classes = [], []
    for (x, y, w, h), class_index, is_crowd in objects:
        if is_crowd:
            continue
        x0, y0, x1, y1 = x * across, y * down, (x + w) * across, (y + h) * down
        if is_flipped:
            x0, x1 = width - x1, width - x0
        box = [min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)]
        if box[2] - box[0] > 1e-5 and box[3] - box[1] > 1e-5:
            boxes.append(box)
            classes.append(class_index)
    small = small[:, ::-1] if is_flipped else small
    return small, torch.tensor(boxes).reshape(-1, 4), torch.tensor(classes, dtype=torch.int64)


# ----- the network


def _normed(state: State, name: str, x_NCHW: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    x_NCHW = F.conv2d(x_NCHW, weight, None, stride, weight.shape[-1] // 2)
    mean, variance = state[f"{name}.norm.running_mean"], state[f"{name}.norm.running_var"]
    return F.batch_norm(x_NCHW, mean, variance, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"], eps=1e-5)


def _plain(state: State, name: str, x_NCHW: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x_NCHW, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)


def bottom_up(state: State, pixels_N3HW: Tensor) -> dict[int, Tensor]:
    """Return res3 to res5, by number; the stride of a stage is in the first 1x1 of its first block."""
    x_NCHW = F.relu(_normed(state, "backbone.bottom_up.stem.conv1", pixels_N3HW, 2))
    x_NCHW = F.max_pool2d(x_NCHW, 3, 2, 1)
    features = {}
    for stage, count in BLOCKS.items():
        for block in range(count):
            name = f"backbone.bottom_up.res{stage}.{block}"
            stride = 2 if block == 0 and stage > 2 else 1
            shortcut = _normed(state, f"{name}.shortcut", x_NCHW, stride) if block == 0 else x_NCHW
            y_NCHW = F.relu(_normed(state, f"{name}.conv1", x_NCHW, stride))
            y_NCHW = F.relu(_normed(state, f"{name}.conv2", y_NCHW))
            x_NCHW = F.relu(_normed(state, f"{name}.conv3", y_NCHW) + shortcut)
        features[stage] = x_NCHW
    return features


def pyramid(state: State, features: dict[int, Tensor]) -> list[Tensor]:
    """Return P3 to P7."""
    inner, levels = None, {}
    for level in (5, 4, 3):
        lateral = _plain(state, f"backbone.fpn_lateral{level}", features[level])
        if inner is not None:
            lateral = lateral + inner.repeat_interleave(2, 2).repeat_interleave(2, 3)
        inner = lateral
        levels[level] = _plain(state, f"backbone.fpn_output{level}", inner)
    p6_NCHW = _plain(state, "backbone.top_block.p6", features[5], 2)
    p7_NCHW = _plain(state, "backbone.top_block.p7", F.relu(p6_NCHW), 2)
    return [levels[3], levels[4], levels[5], p6_NCHW, p7_NCHW]


def network(state: State, pixels_N3HW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return logits [N, H W A, K] and deltas [N, H W A, 4] of every level; channel a K + k, or a 4 + i."""
    logits, deltas = [], []
    for level_NCHW in pyramid(state, bottom_up(state, pixels_N3HW)):
        for subnet, last, outputs in (("cls_subnet", "cls_score", logits), ("bbox_subnet", "bbox_pred", deltas)):
            x_NCHW = level_NCHW
            for i in (0, 2, 4, 6):
                x_NCHW = F.relu(_plain(state, f"head.{subnet}.{i}", x_NCHW))
            x_NCHW = _plain(state, f"head.{last}", x_NCHW)
            images, channels, height, width = x_NCHW.shape
            x_NAVHW = x_NCHW.view(images, A, channels // A, height, width)
            outputs.append(x_NAVHW.permute(0, 3, 4, 1, 2).reshape(images, height * width * A, channels // A))
    return logits, deltas


# ----- anchors and deltas


def anchors_of(height: int, width: int) -> list[Tensor]:
    """Return the anchors [H W A, 4] of every level for an input of this padded size, in float32 from the start."""
    levels = []
    for stride, size in zip(STRIDES, SIZES, strict=True):
        cell = []
        for side in (size, size * 2 ** (1.0 / 3), size * 2 ** (2.0 / 3)):
            for ratio in RATIOS:
                w = math.sqrt(side**2 / ratio)
                h = ratio * w
                cell.append(np.array([-w / 2, -h / 2, w / 2, h / 2], dtype=np.float32))
        rows = []
        for y in range(math.ceil(height / stride)):
            for x in range(math.ceil(width / stride)):
                centre = np.array([x * stride, y * stride, x * stride, y * stride], dtype=np.float32)
                rows += [centre + box for box in cell]
        levels.append(torch.from_numpy(np.stack(rows)))
    return levels


def encode(anchors_R4: Tensor, boxes_R4: Tensor) -> Tensor:
    (ax, ay, aw, ah), (bx, by, bw, bh) = _centres(anchors_R4), _centres(boxes_R4)
    return torch.stack([(bx - ax) / aw, (by - ay) / ah, torch.log(bw / aw), torch.log(bh / ah)], 1)


def decode(deltas_R4: Tensor, anchors_R4: Tensor) -> Tensor:
    ax, ay, aw, ah = _centres(anchors_R4)
    dx, dy, dw, dh = deltas_R4.float().unbind(1)
    x, y = ax + dx * aw, ay + dy * ah
    w = aw * torch.exp(torch.clamp(dw, max=LARGEST_LOG_RATIO))
    h = ah * torch.exp(torch.clamp(dh, max=LARGEST_LOG_RATIO))
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def _centres(boxes_R4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x0, y0, x1, y1 = boxes_R4.unbind(1)
    w, h = x1 - x0, y1 - y0
    return x0 + 0.5 * w, y0 + 0.5 * h, w, h


def overlaps(boxes_G4: Tensor, others_R4: Tensor) -> Tensor:
    """Return intersection over union of every pair, [G, R], without a +1; 0 where two boxes do not meet."""
    w = torch.minimum(boxes_G4[:, None, 2], others_R4[:, 2]) - torch.maximum(boxes_G4[:, None, 0], others_R4[:, 0])
    h = torch.minimum(boxes_G4[:, None, 3], others_R4[:, 3]) - torch.maximum(boxes_G4[:, None, 1], others_R4[:, 1])
    inter_GR = w.clamp(min=0) * h.clamp(min=0)
    area_G, area_R = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes_G4, others_R4))
    union_GR = area_G[:, None] + area_R - inter_GR
    return torch.where(inter_GR > 0, inter_GR / union_GR, torch.zeros_like(inter_GR))


# ----- training


def labels_of(anchors_R4: Tensor, boxes_G4: Tensor, classes_G: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return each anchor's label [R] (class, `classes` for background, -1 ignored) and its ground truth [R]."""
    if not len(boxes_G4):
        everywhere = torch.full((len(anchors_R4),), classes, dtype=torch.int64)
        return everywhere, torch.zeros_like(everywhere)
    iou_GR = overlaps(boxes_G4, anchors_R4)
    best_R, own_R = iou_GR.max(0)
    labels_R = classes_G[own_R]
    labels_R[best_R < 0.5] = -1
    labels_R[best_R < 0.4] = classes
    for iou_R in iou_GR:  # a ground truth's best anchors, all that tie, whatever the overlap
        rescued = torch.nonzero(iou_R == iou_R.max())[:, 0]
        labels_R[rescued] = classes_G[own_R[rescued]]
    return labels_R, own_R


class Training:
    """Weights that learn: stem, res2 and the norms rest, the others follow SGD with a warm-up.

    `normalizer` is the moving average that the losses are divided by, `velocity` what SGD keeps of every parameter.
    """

    base_lr, momentum, weight_decay = 0.01, 0.9, 1e-4
    warmup_iterations, warmup_factor = 1000, 1 / 1000

    def __init__(self, state: State, classes: int) -> None:
        self.state = {name: tensor.clone() for name, tensor in state.items()}
        self.classes = classes
        self.normalizer = 100.0
        self.velocity: State = {}
        self.names = [name for name in state if not (".stem." in name or ".res2." in name or ".norm." in name)]
        for name in self.names:
            self.state[name].requires_grad_(True)

    def losses(self, pixels_N3HW: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return both losses of a batch, after the moving average has taken its count in."""
        logits, deltas = (torch.cat(levels, 1) for levels in network(self.state, pixels_N3HW))
        anchors_R4 = torch.cat(anchors_of(*pixels_N3HW.shape[2:])).to(pixels_N3HW.dtype)
        logits_found, targets_found, deltas_found, deltas_wanted = [], [], [], []
        for image, (boxes_G4, classes_G) in enumerate(zip(boxes, classes, strict=True)):
            labels_R, own_R = labels_of(anchors_R4, boxes_G4, classes_G, self.classes)
            used = labels_R >= 0
            logits_found.append(logits[image][used])
            targets_found.append(F.one_hot(labels_R[used], self.classes + 1)[:, : self.classes])
            positive = used & (labels_R < self.classes)
            deltas_found.append(deltas[image][positive])
            if positive.any():
                deltas_wanted.append(encode(anchors_R4[positive], boxes_G4[own_R[positive]]))
        self.count = sum(len(found) for found in deltas_found)
        self.normalizer = 0.9 * self.normalizer + 0.1 * max(self.count, 1)
        loss_cls = fvcore.nn.sigmoid_focal_loss_jit(
            torch.cat(logits_found), torch.cat(targets_found).float(), alpha=0.25, gamma=2.0, reduction="sum"
        )
        wanted = torch.cat(deltas_wanted) if deltas_wanted else torch.zeros(0, 4)
        loss_box = fvcore.nn.smooth_l1_loss(torch.cat(deltas_found), wanted, beta=0.0, reduction="sum")
        return loss_cls / self.normalizer, loss_box / self.normalizer

    def gradients(self, total: Tensor) -> State:
        found = torch.autograd.grad(total, [self.state[name] for name in self.names])
        return dict(zip(self.names, found, strict=True))

    def step(self, iteration: int, gradients: State) -> None:
        """Take the step of an iteration, counted from 0."""
        progress = min(iteration / self.warmup_iterations, 1)
        lr = self.base_lr * (self.warmup_factor * (1 - progress) + progress)
        with torch.no_grad():
            for name, gradient in gradients.items():
                weight = self.state[name]
                change = gradient + self.weight_decay * weight
                before = self.velocity.get(name)
                self.velocity[name] = change if before is None else self.momentum * before + change
                weight -= lr * self.velocity[name]


# ----- inference


class Found(NamedTuple):
    """The detections of a picture, by falling score: boxes [D, 4], scores [D], classes [D]."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def candidates(logits: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Found]:
    """Return what one picture's levels, logits [R, K] and deltas [R, 4], hold above 0.05, the best 1000 of each."""
    levels = []
    for logits_RK, deltas_R4, anchors_R4 in zip(logits, deltas, anchors, strict=True):
        scores_RK = torch.sigmoid(logits_RK)
        rows, columns = torch.nonzero(scores_RK > 0.05, as_tuple=True)
        scores = scores_RK[rows, columns]
        order = torch.argsort(scores, descending=True)[:1000]
        rows, columns = rows[order], columns[order]
        levels.append(Found(decode(deltas_R4[rows], anchors_R4[rows]), scores[order], columns))
    return levels


def suppressed(found: Found) -> Found:
    """Return the best 100 of those that no better box of their class overlaps by more than a half."""
    order = torch.argsort(found.scores, descending=True)
    boxes, classes = found.boxes[order], found.classes[order]
    kept: list[int] = []
    for i in range(len(order)):
        rivals = [j for j in kept if classes[j] == classes[i]]
        if not rivals or overlaps(boxes[i : i + 1], boxes[rivals]).max() <= 0.5:
            kept.append(i)
        if len(kept) == 100:
            break
    return Found(boxes[kept], found.scores[order][kept], classes[kept])


def in_the_original(found: Found, size: tuple[int, int], original: tuple[int, int]) -> Found:
    """Return detections in pixels of the picture as read: scaled from (height, width) `size`, clipped, none empty."""
    down, across = original[0] / size[0], original[1] / size[1]
    boxes = found.boxes * torch.tensor([across, down, across, down])
    boxes = torch.stack([boxes[:, i].clamp(0, original[(i + 1) % 2]) for i in range(4)], 1)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Found(boxes[keep], found.scores[keep], found.classes[keep])


def detect(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    padded: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    originals: Sequence[tuple[int, int]],
) -> list[Found]:
    """Return the detections of every picture; sizes are (height, width): of the input, as resized, as read."""
    anchors, results = anchors_of(*padded), []
    for image, (size, original) in enumerate(zip(sizes, originals, strict=True)):
        levels = candidates([level[image] for level in logits], [level[image] for level in deltas], anchors)
        joined = Found(*(torch.cat(parts) for parts in zip(*levels, strict=True)))
        results.append(in_the_original(suppressed(joined), size, original))
    return results
