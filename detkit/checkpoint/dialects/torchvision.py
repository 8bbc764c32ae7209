"""torchvision's names: its ResNets and ResNeXts, and its RetinaNet, version 1 and 2.

Its RetinaNet counts 91 classes by COCO's category ids (0 is background, ten ids are no class), and numbers a cell's
anchors by ratio first, then scale.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from detkit.checkpoint.dialects.translation import BACKBONE, IMPLIED, Expects, Translation, permuted
from detkit.modeling.anchors import torchvision_shapes

_EPS = 1e-5  # of the norms in modeling/layers.py
_COCO_ROWS = 91
_NO_CLASS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_OUR_ORDER = [3 * ratio + scale for scale in range(3) for ratio in range(3)]  # of ratio-major anchors
_FIRST_ANCHORS = tuple(torchvision_shapes(32, scales_per_octave=3, aspect_ratios=(0.5, 1.0, 2.0)))  # of P3
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_BODY = "backbone.body."
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_BACKBONE_RULES = (
    (re.compile(r"conv1\.weight"), lambda m: "stem.conv1.weight"),
    (re.compile(rf"bn1\.{_NORM}"), lambda m: f"stem.conv1.norm.{m[1]}"),
    (re.compile(r"layer([1-4])\.(\d+)\.conv([123])\.weight"),
     lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.weight"),
    (re.compile(rf"layer([1-4])\.(\d+)\.bn([123])\.{_NORM}"),
     lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm.{m[4]}"),
    (re.compile(r"layer([1-4])\.(\d+)\.downsample\.0\.weight"), lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.weight"),
    (re.compile(rf"layer([1-4])\.(\d+)\.downsample\.1\.{_NORM}"),
     lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm.{m[3]}"),
)  # fmt: skip
_FPN_RULES = (  # with ".0" since torchvision 0.13
    (re.compile(r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)"),
     lambda m: f"backbone.fpn_lateral{int(m[1]) + 3}.{m[2]}"),
    (re.compile(r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)"),
     lambda m: f"backbone.fpn_output{int(m[1]) + 3}.{m[2]}"),
    (re.compile(r"backbone\.fpn\.extra_blocks\.(p[67])\.(weight|bias)"), lambda m: f"backbone.top_block.{m[1]}.{m[2]}"),
)  # fmt: skip
_LAST = {"classification_head.cls_logits": "head.cls_score", "regression_head.bbox_reg": "head.bbox_pred"}
_TOWERS = {"classification_head": "cls_subnet", "regression_head": "bbox_subnet"}


BACKBONE_EXPECTS = Expects("RGB", _MEAN, _STD, stride_in_1x1=False, preset="torchvision")


def speaks(tensors: dict[str, Tensor]) -> bool:
    """Return whether these names are torchvision's."""
    return any(f"{prefix}layer1.0.conv1.weight" in tensors for prefix in ("", _BODY))


def translate(tensors: dict[str, Tensor]) -> Translation:
    """Return a backbone, or a RetinaNet, under our names."""
    if any(name.startswith("head.classification_head.") for name in tensors):
        return _retinanet(tensors)
    return _other_detector(tensors) if f"{_BODY}conv1.weight" in tensors else _resnet(tensors)


def _resnet(tensors: dict[str, Tensor]) -> Translation:
    result = Translation("a ResNet of torchvision", expects=BACKBONE_EXPECTS)
    for name, tensor in tensors.items():
        if name.startswith("fc."):
            result.skipped[name] = "the classifier of ImageNet"
        else:
            result.add(_backbone_name(name), name, tensor)
    return result


def _other_detector(tensors: dict[str, Tensor]) -> Translation:
    """Return the backbone of a Faster R-CNN or the like; the rest keeps its names, for which there is no place here."""
    result = Translation("another detector of torchvision", expects=BACKBONE_EXPECTS)
    for name, tensor in tensors.items():
        result.add(_backbone_name(name.removeprefix(_BODY)) if name.startswith(_BODY) else name, name, tensor)
    return result


def _retinanet(tensors: dict[str, Tensor]) -> Translation:
    has_norm = any(".conv.0.1." in name for name in tensors)
    version = "v2" if has_norm else "v1"
    preset = "torchvision_v2" if has_norm else "torchvision"
    result = Translation(f"torchvision's RetinaNet ({version})", expects=_expectations(preset))
    logits = next((len(t) for name, t in tensors.items() if name.endswith("cls_logits.bias")), 0)
    for name, tensor in tensors.items():
        target = _detector_name(name, has_norm, is_old="head.classification_head.conv.2.weight" in tensors)
        result.add(target, name, _in_our_order(target, tensor))
    for name, weight in list(result.tensors.items()) if has_norm else ():
        if re.fullmatch(r"head\.\w+_subnet\.\d+\.weight", name) and weight.ndim == 4:
            result.add(name.replace("weight", "bias"), IMPLIED, weight.new_zeros(len(weight)))
    if not has_norm and logits == 9 * _COCO_ROWS:
        _add_epsilon(result.tensors)
    return result


def _add_epsilon(tensors: dict[str, Tensor]) -> None:
    """Make norms to which torchvision adds no epsilon (in these weights it is 0) the same where one is added.

    The scale takes it up, as taking it off a variance that is smaller would leave nothing, or less.
    """
    for name, var in tensors.items():
        scale = name.replace("running_var", "weight")
        if name.endswith("norm.running_var") and scale in tensors:
            var = var.double().clamp(min=torch.finfo(torch.float32).tiny)
            tensors[scale] = (tensors[scale].double() * ((var + _EPS) / var).sqrt()).to(tensors[scale].dtype)


def _expectations(preset: str) -> Expects:
    return Expects(
        "RGB", _MEAN, _STD, stride_in_1x1=False, anchors=_FIRST_ANCHORS, offset=0.0, steps="input", preset=preset
    )


def _backbone_name(name: str) -> str:
    renamed = _first_match(_BACKBONE_RULES, name)
    return name if renamed == name else BACKBONE + renamed


def _detector_name(name: str, has_norm: bool, is_old: bool) -> str:
    if name.startswith(_BODY):
        return _backbone_name(name.removeprefix(_BODY))
    renamed = _first_match(_FPN_RULES, name)
    if renamed != name or not name.startswith("head."):
        return renamed
    layer, _, part = name.removeprefix("head.").rpartition(".")
    return f"{_LAST[layer]}.{part}" if layer in _LAST else _tower_name(layer, part, has_norm, is_old)


def _tower_name(layer: str, part: str, has_norm: bool, is_old: bool) -> str:
    """A layer of a tower: `conv.2` (convolution and ReLU by turns), or `conv.1.0` and `conv.1.1` (with its norm)."""
    match = re.fullmatch(r"(classification_head|regression_head)\.conv\.([0-9]{1,4})(?:\.([01]))?", layer)
    if not match:
        return f"head.{layer}.{part}"
    index, inner = int(match[2]), int(match[3] or 0)
    place = index if is_old else (3 if has_norm else 2) * index + inner
    return f"head.{_TOWERS[match[1]]}.{place}.{part}"


def _in_our_order(target: str, tensor: Tensor) -> Tensor:
    """Return the heads' last layers with our order of anchors, and the classes without those that are none."""
    if not target.startswith(("head.cls_score", "head.bbox_pred")) or len(tensor) % 9:
        return tensor
    tensor = permuted(tensor, _OUR_ORDER)
    if target.startswith("head.bbox_pred"):
        return tensor
    per_anchor = tensor.reshape(9, -1, *tensor.shape[1:])
    rows = per_anchor.shape[1]
    left_out = _NO_CLASS if rows == _COCO_ROWS else (0,)  # 0 is background
    kept = [row for row in range(rows) if row not in left_out]
    return per_anchor[:, kept].reshape(9 * len(kept), *tensor.shape[1:]).contiguous()


def _first_match(rules: tuple, name: str) -> str:
    for pattern, rule in rules:
        match = pattern.fullmatch(name)
        if match:
            return rule(match)
    return name
