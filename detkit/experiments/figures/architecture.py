"""What a detector looks like as built: read from its modules and from the shapes of one pass without numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detkit.config import CfgNode
from detkit.engine.starting_weights import values_are_the_configs
from detkit.experiments.figures.errors import FigureError
from detkit.modeling import build_detector

_HEAD_PARTS = ("cls_subnet", "cls_score", "bbox_subnet", "bbox_pred")


@dataclass(frozen=True)
class Stage:
    """A part of the bottom-up network: its blocks in words ("" where it is no sequence of them), channels and stride.

    `is_used`: the pyramid is built on it.
    """

    name: str
    blocks: str
    channels: int
    stride: int
    is_used: bool


@dataclass(frozen=True)
class Level:
    """A level of the pyramid; `lateral` is the stage beside it, "" for a level of the top block."""

    name: str
    channels: int
    stride: int
    lateral: str


@dataclass(frozen=True)
class Subnet:
    """A subnet of the head: channels of its input, of each convolution before the last, of its output; the kernels.

    `kernels` has one side per convolution, the last one's too.
    """

    in_channels: int
    widths: tuple[int, ...]
    out_channels: int
    kernels: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A detector, as Figure 3 draws it.

    Attributes:
        name: of the config.
        backbone, neck, head: names of their classes.
        stages, levels: fine to coarse.
        top_block: a line on each convolution above the pyramid, () where there is none.
        top_from: the stage or level that the top block starts from, "" where it is not known.
        classes, boxes: the two subnets.
        num_classes, num_anchors: K, and A of a cell.
    """

    name: str
    backbone: str
    neck: str
    head: str
    stages: tuple[Stage, ...]
    levels: tuple[Level, ...]
    top_block: tuple[str, ...]
    top_from: str
    classes: Subnet
    boxes: Subnet
    num_classes: int
    num_anchors: int


def read_architecture(cfg: CfgNode) -> Architecture:
    """Build the detector of a config without memory for its weights, and read its parts.

    DATASETS.TRAIN says how many classes there are; no picture is read. Raises FigureError for a detector that has not
    the parts of RetinaNet (`backbone` with `bottom_up`, `head` with two subnets, `anchors`), and names what is missing.
    """
    with values_are_the_configs(), torch.device("meta"):
        detector: Any = build_detector(cfg).eval()
    _require(detector, ("backbone", "head", "anchors", "criterion", "raw_outputs"), "detector")
    neck, head = detector.backbone, detector.head
    _require(neck, ("bottom_up",), "neck")
    _require(head, _HEAD_PARTS, "head")
    bottom_up: Any = neck.bottom_up
    levels = tuple(_levels(neck, bottom_up))
    return Architecture(
        name=cfg.config_name(),
        backbone=type(bottom_up).__name__,
        neck=type(neck).__name__,
        head=type(head).__name__,
        stages=tuple(_stages(detector, bottom_up, levels)),
        levels=levels,
        top_block=tuple(_top_block(neck)),
        top_from=_top_from(neck, levels),
        classes=_subnet(head.cls_subnet, head.cls_score),
        boxes=_subnet(head.bbox_subnet, head.bbox_pred),
        num_classes=detector.criterion.num_classes,
        num_anchors=detector.anchors.num_anchors[0],
    )


def _require(module: Any, names: Sequence[str], what: str) -> None:
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise FigureError(f"figure 3 draws detectors with RetinaNet's parts; the {what} {type(module).__name__} has no "
                          f"'{missing[0]}'")  # fmt: skip


def _levels(neck: Any, bottom_up: Any) -> Iterator[Level]:
    stage_of = {stride: name for name, stride in bottom_up.out_strides.items()}
    for name, stride in neck.out_strides.items():
        yield Level(name, neck.out_channels[name], stride, stage_of.get(stride, ""))


def _stages(detector: Any, bottom_up: nn.Module, levels: Sequence[Level]) -> Iterator[Stage]:
    side = 2 * levels[-1].stride
    shapes = _output_shapes(detector, bottom_up, side)
    for name, (channels, height) in shapes.items():
        child = bottom_up.get_submodule(name)
        is_used = any(level.lateral == name for level in levels)
        yield Stage(name, _blocks(child), channels, side // height, is_used)


def _blocks(stage: nn.Module) -> str:
    if not isinstance(stage, nn.Sequential):
        return ""
    groups = max((layer.groups for layer in _convolutions(stage).values()), default=1)
    return f"{len(stage)} × {type(stage[0]).__name__}" + (f", {groups} groups" if groups > 1 else "")


def _output_shapes(detector: Any, bottom_up: nn.Module, side: int) -> dict[str, tuple[int, int]]:
    """Return (channels, height) of the output of every part of the bottom-up network for a square input."""
    shapes: dict[str, tuple[int, int]] = {}

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            shapes[name] = int(output.shape[1]), int(output.shape[2])

    hooks = [child.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
             for name, child in bottom_up.named_children()]  # fmt: skip
    try:
        with torch.no_grad(), torch.device("meta"):
            images = torch.empty(1, 3, side, side, dtype=torch.uint8)
            detector.raw_outputs(images, torch.empty(1, 2, dtype=torch.int64))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _top_block(neck: Any) -> Iterator[str]:
    convolutions = _convolutions(getattr(neck, "top_block", None))
    for name, layer in convolutions.items():
        yield f"{name}: {layer.kernel_size[0]}×{layer.kernel_size[1]} conv, stride {layer.stride[0]}"


def _top_from(neck: Any, levels: Sequence[Level]) -> str:
    """Return the name of the last stage, or of the level beside it, by what the neck says its top block starts from."""
    last = [level for level in levels if level.lateral][-1:]
    source = getattr(neck, "top_block_from", "")
    return (last[0].lateral if source.startswith("C") else last[0].name) if last and source else ""


def _subnet(layers: nn.Module, last: nn.Conv2d) -> Subnet:
    convolutions = list(_convolutions(layers).values())
    all_layers = [*convolutions, last]
    widths = tuple(layer.out_channels for layer in convolutions)
    kernels = tuple(int(layer.kernel_size[0]) for layer in all_layers)
    return Subnet(all_layers[0].in_channels, widths, last.out_channels, kernels)


def _convolutions(module: nn.Module | None) -> Mapping[str, nn.Conv2d]:
    named = module.named_modules() if module is not None else ()
    return {name: layer for name, layer in named if isinstance(layer, nn.Conv2d)}
