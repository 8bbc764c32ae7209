"""Detectron's names (Caffe2): its RetinaNets, and the ImageNet backbones that detectron2 still starts from.

A backbone's norm is an "affine channel" there, scale and shift without statistics: here it is a norm of mean 0 whose
variance plus epsilon is 1. Its heads number an octave's anchors by the ratios 1, 2, 1/2; here it is 1/2, 1, 2.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from detkit.checkpoint.dialects.translation import BACKBONE, IMPLIED, Expects, Translation, permuted
from detkit.modeling.anchors import detectron_shapes

_FIRST_ANCHORS = tuple(detectron_shapes(32, 8, scales_per_octave=3, aspect_ratios=(0.5, 1.0, 2.0)))  # of P3
_MEAN = (102.9801, 115.9465, 122.7717)
_EPS = 1e-5  # of the norms in modeling/layers.py
_CONVS = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_PARTS = {"w": "weight", "b": "bias", "bn_s": "norm.weight", "bn_b": "norm.bias"}
_RATIO_ORDER = (2, 0, 1)  # where 1/2, 1 and 2 stand in Detectron's octave
_RULES = (
    (re.compile(r"conv1_(w)"), lambda m: f"{BACKBONE}stem.conv1.{_PARTS[m[1]]}"),
    (re.compile(r"res_conv1_(bn_[sb])"), lambda m: f"{BACKBONE}stem.conv1.{_PARTS[m[1]]}"),
    (
        re.compile(r"res([2-5])_(\d+)_(branch1|branch2[abc])_(w|b|bn_s|bn_b)"),
        lambda m: f"{BACKBONE}res{m[1]}.{m[2]}.{_CONVS[m[3]]}.{_PARTS[m[4]]}",
    ),
    (re.compile(r"fpn_inner_res([2-5])_\d+_sum(?:_lateral)?_([wb])"),
     lambda m: f"backbone.fpn_lateral{m[1]}.{_PARTS[m[2]]}"),
    (re.compile(r"fpn_res([2-5])_\d+_sum_([wb])"), lambda m: f"backbone.fpn_output{m[1]}.{_PARTS[m[2]]}"),
    (re.compile(r"fpn_([67])_([wb])"), lambda m: f"backbone.top_block.p{m[1]}.{_PARTS[m[2]]}"),
    (re.compile(r"retnet_(cls|bbox)_conv_n([0-9]{1,4})_fpn\d+_([wb])"),
     lambda m: f"head.{m[1]}_subnet.{2 * int(m[2])}.{_PARTS[m[3]]}"),
    (re.compile(r"retnet_cls_pred_fpn\d+_([wb])"), lambda m: f"head.cls_score.{_PARTS[m[1]]}"),
    (re.compile(r"retnet_bbox_pred_fpn\d+_([wb])"), lambda m: f"head.bbox_pred.{_PARTS[m[1]]}"),
)  # fmt: skip
_SKIPS = (
    (re.compile(r".*_momentum"), "momentum of the optimiser"),
    (re.compile(r"(fc1000|pred|fc)_[wb]"), "the classifier of ImageNet"),
    (re.compile(r"conv1_b"), "a bias before a norm, which Detectron does not use"),
)


def speaks(tensors: dict[str, Tensor]) -> bool:
    """Return whether these names are Caffe2's."""
    return "conv1_w" in tensors and any(name.startswith("res2_0_branch2a") for name in tensors)


def translate(tensors: dict[str, Tensor]) -> Translation:
    """Return a backbone, or a RetinaNet, under our names."""
    is_detector = any(name.startswith("retnet_") for name in tensors)
    result = Translation("Detectron's RetinaNet (Caffe2)" if is_detector else "a backbone of Detectron (Caffe2)")
    for name, tensor in tensors.items():
        reason = next((why for pattern, why in _SKIPS if pattern.fullmatch(name)), None)
        if reason:
            result.skipped[name] = reason
        else:
            target = _renamed(name)
            result.add(target, name, _in_our_order(target, tensor))
    _add_statistics(result)
    result.expects = _expectations(result.tensors, is_detector)
    return result


def _renamed(name: str) -> str:
    for pattern, rule in _RULES:
        match = pattern.fullmatch(name)
        if match:
            return rule(match)
    return name


def _in_our_order(target: str, tensor: Tensor) -> Tensor:
    """Return the last layers of the heads with the ratios of every octave in our order, the others as they are."""
    if not target.startswith(("head.cls_score", "head.bbox_pred")) or len(tensor) % 9:
        return tensor
    return permuted(tensor, [3 * octave + ratio for octave in range(3) for ratio in _RATIO_ORDER])


def _add_statistics(result: Translation) -> None:
    """Add the mean and variance with which a norm is nothing but its scale and shift."""
    for name, scale in list(result.tensors.items()):
        if name.endswith(".norm.weight"):
            stem = name.removesuffix("weight")
            result.add(f"{stem}running_mean", IMPLIED, torch.zeros_like(scale))
            result.add(f"{stem}running_var", IMPLIED, torch.ones_like(scale) - _EPS)


def _expectations(tensors: dict[str, Tensor], is_detector: bool) -> Expects:
    conv2 = tensors.get(f"{BACKBONE}res2.0.conv2.weight")
    has_groups = conv2 is not None and conv2.shape[0] != conv2.shape[1]
    return Expects(
        channels="BGR",
        pixel_mean=_MEAN if is_detector else None,  # of ImageNet's backbones detectron2 rounds it otherwise
        pixel_std=None if has_groups else (1.0, 1.0, 1.0),  # of a ResNeXt it depends on who converted it
        stride_in_1x1=not has_groups,
        anchors=_FIRST_ANCHORS if is_detector else None,
        offset=0.5 if is_detector else None,
        steps="strides" if is_detector else None,
        preset="detectron" if is_detector else "",
    )
