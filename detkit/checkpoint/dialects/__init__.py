"""The names that other libraries give the tensors of a RetinaNet or of its backbone, put into this library's."""

from __future__ import annotations

from torch import Tensor

from detkit.checkpoint.dialects import caffe2, detectron2, torchvision
from detkit.checkpoint.dialects.translation import BACKBONE, IMPLIED, Expects, Translation

__all__ = ["BACKBONE", "IMPLIED", "Expects", "Translation", "guess", "translate"]

_SIGNS = (  # of libraries whose files are not read: a piece of a name, and whose it is
    ("bbox_head.", "mmdetection's"),
    ("neck.", "mmdetection's"),
    ("roi_heads.", "a Faster or Mask R-CNN's"),
    ("rpn.", "a Faster R-CNN's"),
    ("transformer.", "a DETR's"),
    ("attn.", "a vision transformer's"),
    ("model.0.", "a YOLO's (ultralytics)"),
    ("features.", "a VGG's, DenseNet's or MobileNet's (torchvision)"),
    ("layers.0.blocks.", "a Swin transformer's"),
)


def translate(tensors: dict[str, Tensor]) -> Translation:
    """Return the tensors of a file under this library's names, as far as its dialect is known.

    Names of an unknown dialect are returned as they are.
    """
    tensors = _without_wrappers(tensors)
    for dialect in (caffe2, torchvision):
        if dialect.speaks(tensors):
            return dialect.translate(tensors)
    return detectron2.translate(tensors)


def guess(names: list[str]) -> str:
    """Return whose names these look like, or ""."""
    for sign, owner in _SIGNS:
        if any(name.startswith(sign) or f".{sign}" in name for name in names):
            return owner
    return ""


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what torch.compile, AveragedModel and DistributedDataParallel put before names."""
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    if len(plain) == len(tensors):
        tensors = plain
    inner = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    unwrapped = _without_prefix(inner, "module.")
    return tensors if unwrapped is inner else _without_prefix(unwrapped, "module.")


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if tensors and all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
