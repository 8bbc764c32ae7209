"""What torchvision's RetinaNets compute of a picture, from a state under their names, by their own rules.

Written for the tests from the published rules (retinanet.py, anchor_utils.py, _utils.py, transform.py); nothing of
detkit is used, and torchvision need not be installed.
"""

import torch
from torch.nn import functional as F

BLOCKS = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}


class Reference:
    """Version 1 or 2, of a state; norms of version 1 add no epsilon."""

    def __init__(self, state, version):
        self.state, self.version = state, version
        self.eps = 0.0 if version == 1 else 1e-5

    def conv(self, x, name, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **options)

    def norm(self, x, name):
        parts = (self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        mean, var, weight, bias = (part[:, None, None] for part in parts)
        return (x - mean) / (var + self.eps).sqrt() * weight + bias

    def backbone(self, x):
        body = "backbone.body."
        x = F.relu(self.norm(self.conv(x, f"{body}conv1", stride=2, padding=3), f"{body}bn1"))
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for layer, count in BLOCKS.items():
            for block in range(count):
                stride = 2 if block == 0 and layer != "layer1" else 1
                name = f"{body}{layer}.{block}."
                y = F.relu(self.norm(self.conv(x, f"{name}conv1"), f"{name}bn1"))
                y = F.relu(self.norm(self.conv(y, f"{name}conv2", stride=stride, padding=1), f"{name}bn2"))
                y = self.norm(self.conv(y, f"{name}conv3"), f"{name}bn3")
                if f"{name}downsample.0.weight" in self.state:
                    x = self.norm(self.conv(x, f"{name}downsample.0", stride=stride), f"{name}downsample.1")
                x = F.relu(x + y)
            features.append(x)
        return features[1:]

    def pyramid(self, features):
        fpn = "backbone.fpn."
        inner = [self.conv(x, f"{fpn}inner_blocks.{i}.0") for i, x in enumerate(features)]
        for i in (1, 0):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
        levels = [self.conv(x, f"{fpn}layer_blocks.{i}.0", padding=1) for i, x in enumerate(inner)]
        source = levels[-1] if self.version == 1 else features[-1]
        p6 = self.conv(source, f"{fpn}extra_blocks.p6", stride=2, padding=1)
        return [*levels, p6, self.conv(F.relu(p6), f"{fpn}extra_blocks.p7", stride=2, padding=1)]

    def head(self, x, name, last, values):
        for i in range(4):
            x = self.conv(x, f"head.{name}.conv.{i}.0", padding=1)
            if self.version == 2:
                norm = f"head.{name}.conv.{i}.1"
                x = F.group_norm(x, 32, self.state[f"{norm}.weight"], self.state[f"{norm}.bias"])
            x = F.relu(x)
        x = self.conv(x, f"head.{name}.{last}", padding=1)
        n, _, h, w = x.shape
        return x.view(n, -1, values, h, w).permute(0, 3, 4, 1, 2).reshape(h * w * 9, values)

    def anchors(self, size, padded, maps):
        levels = []
        for base, (h, w) in zip((32, 64, 128, 256, 512), maps, strict=True):
            scales = torch.tensor([base, int(base * 2 ** (1 / 3)), int(base * 2 ** (2 / 3))], dtype=torch.float32)
            roots = torch.tensor([0.5, 1.0, 2.0]).sqrt()
            sides_w = ((1 / roots)[:, None] * scales).flatten()  # by ratio, then by scale
            sides_h = (roots[:, None] * scales).flatten()
            cell = (torch.stack([-sides_w, -sides_h, sides_w, sides_h], 1) / 2).round()
            step_y, step_x = padded[0] // h, padded[1] // w
            places = [(x * step_x, y * step_y) for y in range(h) for x in range(w)]
            shifts = torch.tensor(places, dtype=torch.float32)
            levels.append((torch.cat([shifts, shifts], 1)[:, None] + cell).reshape(-1, 4))
        return levels

    @torch.no_grad()
    def detections(self, image_3HW, original, classes):
        """(boxes in the original picture, scores, classes) of one resized picture, normalised, not yet padded."""
        height, width = image_3HW.shape[1:]
        x = F.pad(image_3HW, (0, -width % 32, 0, -height % 32))[None]
        levels = self.pyramid(self.backbone(x))
        anchors = self.anchors((height, width), x.shape[-2:], [tuple(level.shape[-2:]) for level in levels])
        boxes, scores, labels = [], [], []
        for level, anchors_R4 in zip(levels, anchors, strict=True):
            probabilities = self.head(level, "classification_head", "cls_logits", classes).sigmoid().flatten()
            deltas = self.head(level, "regression_head", "bbox_reg", 4)
            passed = torch.where(probabilities > 0.05)[0]
            best = probabilities[passed].topk(min(1000, len(passed)))
            rows = passed[best.indices]
            found = decode(deltas[rows // classes], anchors_R4[rows // classes])
            found[:, 0::2] = found[:, 0::2].clamp(0, width)
            found[:, 1::2] = found[:, 1::2].clamp(0, height)
            boxes.append(found)
            scores.append(best.values)
            labels.append(rows % classes)
        boxes, scores, labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        kept = suppress(boxes, scores, labels)[:300]
        ratio = torch.tensor([original[1] / width, original[0] / height]).repeat(2)
        return boxes[kept] * ratio, scores[kept], labels[kept]


def decode(deltas, anchors):
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + 0.5 * sides
    most = torch.log(torch.tensor(1000.0 / 16))
    centres = deltas[:, :2] * sides + centres
    sides = deltas[:, 2:].clamp(max=most).exp() * sides
    return torch.cat([centres - 0.5 * sides, centres + 0.5 * sides], 1)


def suppress(boxes, scores, labels):
    """Rows that are left, by falling score: one by one, per class, on the matrix of all overlaps."""
    boxes = boxes.double()
    order = scores.argsort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order]
    low = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    inter = (torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - low).clamp(min=0).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    # NaN, of two empty boxes, suppresses nothing.
    rivals = (inter / (areas[:, None] + areas - inter) > 0.5) & (labels[:, None] == labels)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for row in range(len(boxes)):
        if alive[row]:
            alive[row + 1 :] &= ~rivals[row, row + 1 :]
    return order[alive]
