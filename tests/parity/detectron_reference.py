"""What Detectron (caffe2) computes of a picture, from blobs under its names, by its own rules: boxes with the +1.

Written for the tests from the published rules (test_retinanet.py, generate_anchors.py, boxes.py, ResNet.py, FPN.py,
retinanet_heads.py), in NumPy where it is not a convolution; nothing of detkit is used.
"""

import numpy as np
import torch
from torch.nn import functional as F

RATIOS = (1.0, 2.0, 0.5)  # the order of Detectron's configs
BLOCKS = {"res2": 3, "res3": 4, "res4": 6, "res5": 3}


def conv(x, blobs, name, **options):
    bias = blobs.get(f"{name}_b")
    return F.conv2d(
        x, torch.from_numpy(blobs[f"{name}_w"]), None if bias is None else torch.from_numpy(bias), **options
    )


def affine(x, blobs, name):
    scale, shift = (torch.from_numpy(blobs[f"{name}_{part}"])[:, None, None] for part in "sb")
    return x * scale + shift


def backbone(x, blobs, stride_1x1=True):
    x = F.relu(affine(conv(x, blobs, "conv1", stride=2, padding=3), blobs, "res_conv1_bn"))
    x = F.max_pool2d(x, 3, 2, 1)
    features = {}
    for stage, count in BLOCKS.items():
        for block in range(count):
            stride = 2 if block == 0 and stage != "res2" else 1
            one, three = (stride, 1) if stride_1x1 else (1, stride)
            name = f"{stage}_{block}"
            y = conv(x, blobs, f"{name}_branch2a", stride=one)
            y = F.relu(affine(y, blobs, f"{name}_branch2a_bn"))
            y = F.relu(
                affine(conv(y, blobs, f"{name}_branch2b", stride=three, padding=1), blobs, f"{name}_branch2b_bn")
            )
            y = affine(conv(y, blobs, f"{name}_branch2c"), blobs, f"{name}_branch2c_bn")
            if f"{name}_branch1_w" in blobs:
                x = affine(conv(x, blobs, f"{name}_branch1", stride=stride), blobs, f"{name}_branch1_bn")
            x = F.relu(x + y)
        features[stage] = x
    return features


def pyramid(features, blobs):
    p5 = conv(features["res5"], blobs, "fpn_inner_res5_2_sum")
    p4 = conv(features["res4"], blobs, "fpn_inner_res4_5_sum_lateral") + F.interpolate(p5, scale_factor=2)
    p3 = conv(features["res3"], blobs, "fpn_inner_res3_3_sum_lateral") + F.interpolate(p4, scale_factor=2)
    levels = {
        level: conv(x, blobs, f"fpn_{name}_sum", padding=1)
        for level, x, name in ((3, p3, "res3_3"), (4, p4, "res4_5"), (5, p5, "res5_2"))
    }
    levels[6] = conv(features["res5"], blobs, "fpn_6", stride=2, padding=1)
    levels[7] = conv(F.relu(levels[6]), blobs, "fpn_7", stride=2, padding=1)
    return levels


def heads(levels, blobs):
    """Per level the probabilities [A, C, H, W] and the deltas [A, 4, H, W] of one picture."""
    found = {}
    for level, x in levels.items():
        outputs = []
        for kind in ("cls", "bbox"):
            y = x
            for i in range(4):
                y = F.relu(conv(y, blobs, f"retnet_{kind}_conv_n{i}_fpn3", padding=1))
            outputs.append(conv(y, blobs, f"retnet_{kind}_pred_fpn3", padding=1)[0])
        logits, deltas = (y.reshape(9, -1, *y.shape[1:]) for y in outputs)
        found[level] = logits.sigmoid().double().numpy(), deltas.double().numpy()
    return found


def cell_anchors(level):
    """The 9 anchors of a cell, first and last pixels, centred on the middle (stride - 1) / 2 of the first cell."""
    stride = 2.0**level
    anchors = []
    for octave in range(3):
        for ratio in RATIOS:
            side_w = np.round(np.sqrt(stride * stride / ratio))
            side_h = np.round(side_w * ratio)
            w, h = side_w * 4 * 2 ** (octave / 3), side_h * 4 * 2 ** (octave / 3)
            middle = (stride - 1) / 2
            anchors.append([middle - (w - 1) / 2, middle - (h - 1) / 2, middle + (w - 1) / 2, middle + (h - 1) / 2])
    return np.array(anchors)


def decode(boxes, deltas):
    w, h = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
    x, y = boxes[:, 0] + w / 2, boxes[:, 1] + h / 2
    most = np.log(1000 / 16)
    px, py = deltas[:, 0] * w + x, deltas[:, 1] * h + y
    pw, ph = np.exp(np.minimum(deltas[:, 2], most)) * w, np.exp(np.minimum(deltas[:, 3], most)) * h
    return np.stack([px - pw / 2, py - ph / 2, px + pw / 2 - 1, py + ph / 2 - 1], 1)


def encode(boxes, targets):
    w, h = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
    tw, th = targets[:, 2] - targets[:, 0] + 1, targets[:, 3] - targets[:, 1] + 1
    dx = (targets[:, 0] + tw / 2 - boxes[:, 0] - w / 2) / w
    dy = (targets[:, 1] + th / 2 - boxes[:, 1] - h / 2) / h
    return np.stack([dx, dy, np.log(tw / w), np.log(th / h)], 1)


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(w, 0) * max(h, 0)
    area = lambda box: (box[2] - box[0] + 1) * (box[3] - box[1] + 1)  # noqa: E731
    return inter / (area(a) + area(b) - inter)


def detections(pixels_3HW, scale, size, blobs, stride_1x1=True):
    """(box of first and last pixels in the original picture, score, class) by falling score, 100 at most.

    `pixels_3HW` is the resized picture, BGR minus the mean, not yet padded; `size` (height, width) the original's.
    """
    height, width = pixels_3HW.shape[1:]
    padded = F.pad(pixels_3HW, (0, -width % 128, 0, -height % 128))[None]
    candidates = []
    for level, (scores, deltas) in heads(pyramid(backbone(padded, blobs, stride_1x1), blobs), blobs).items():
        flat = scores.ravel()
        passed = np.where(flat > (0.05 if level < 7 else 0.0))[0]
        best = passed[np.argsort(-flat[passed], kind="stable")[:1000]]
        a, c, y, x = np.unravel_index(best, scores.shape)
        boxes = np.stack([x, y, x, y], 1) * 2.0**level + cell_anchors(level)[a]
        boxes = decode(boxes, deltas[a, :, y, x]) / scale
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, size[1] - 1)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, size[0] - 1)
        candidates += list(zip(boxes, flat[best], c, strict=True))
    candidates.sort(key=lambda candidate: -candidate[1])
    kept = []
    for candidate in candidates:
        box, _, label = candidate
        if all(label != other or overlap(box, better) <= 0.5 for better, _, other in kept):
            kept.append(candidate)
    return kept[:100]
