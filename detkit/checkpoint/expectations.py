"""Where a detector differs from what its weights were trained for: said, because nothing else would show it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from detkit.checkpoint.dialects import Expects
from detkit.checkpoint.dialects.torchvision import BACKBONE_EXPECTS
from detkit.checkpoint.errors import CheckpointError

TRAINED_WITH = "trained_with"  # where files that detkit writes say it
_SAME = 1e-3  # of a grey level, or of a pixel
_MOST_ANCHORS = 1000


def trained_with(content: Any, by_format: Expects, source: Path | str) -> Expects:
    """Return what weights were trained with: as the file says, by its author, or as its format tells."""
    text = content.get(TRAINED_WITH) if isinstance(content, dict) else None
    if isinstance(text, str):
        try:
            return _from_text(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{source}: '{TRAINED_WITH}' is not what detkit writes there") from error
    if isinstance(content, dict) and content.get("__author__") == "torchvision":  # detectron2's copies of its ResNets
        return BACKBONE_EXPECTS
    return by_format


def as_text(expects: Expects) -> str:
    """Return it as the text that a file holds."""
    return json.dumps(dataclasses.asdict(expects))


def of_detector(detector: Any) -> Expects:
    """Return what a detector's weights are trained with, as far as it says."""
    grid: Any = getattr(detector, "anchors", None)
    anchors = [(b[2] - b[0], b[3] - b[1]) for b in grid.cell_anchors[0].tolist()] if _has_cells(grid) else None
    mean, std = (getattr(detector, name, None) for name in ("pixel_mean", "pixel_std"))
    block = _first_bottleneck(detector)
    return Expects(
        channels=getattr(detector, "channels", None),
        pixel_mean=None if mean is None else tuple(mean.flatten().tolist()),
        pixel_std=None if std is None else tuple(std.flatten().tolist()),
        stride_in_1x1=None if block is None else block.conv1.stride != (1, 1),
        anchors=None if anchors is None else tuple(anchors),
        offset=getattr(grid, "offset", None),
        steps=getattr(grid, "steps", None),
    )


def about_weights(detector: Any) -> dict[str, str]:
    """Return what a checkpoint says of how its detector sees pictures, to be compared where it is loaded."""
    return {TRAINED_WITH: as_text(of_detector(detector))}


def of_backbone(expects: Expects) -> Expects:
    """Return the part that concerns the bottom-up network alone."""
    return dataclasses.replace(expects, anchors=None, offset=None, steps=None, preset="")


def _from_text(text: str) -> Expects:
    values = json.loads(text)
    if not isinstance(values, dict) or not set(values) <= {field.name for field in dataclasses.fields(Expects)}:
        raise ValueError("other keys")
    anchors = values.get("anchors")
    found = Expects(
        channels=values.get("channels"),
        pixel_mean=_numbers(values.get("pixel_mean")),
        pixel_std=_numbers(values.get("pixel_std")),
        stride_in_1x1=values.get("stride_in_1x1"),
        anchors=None if anchors is None else tuple((float(w), float(h)) for w, h in anchors[:_MOST_ANCHORS]),
        offset=None if values.get("offset") is None else float(values["offset"]),
        steps=values.get("steps"),
        preset=values.get("preset", ""),
    )
    choices = (
        (found.channels, ("RGB", "BGR")),
        (found.stride_in_1x1, (True, False)),
        (found.steps, ("strides", "input")),
    )
    if any(value is not None and value not in allowed for value, allowed in choices):
        raise ValueError("other values")
    if not re.fullmatch(r"[a-z0-9_]{0,40}", found.preset):
        raise ValueError("no name of a preset")
    return found


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values[:3])


def differences(detector: nn.Module, expects: Expects) -> list[str]:
    """Return a sentence for each difference that changes what the network sees or what its outputs mean."""
    found = [_channels(detector, expects), *_pixels(detector, expects), _stride(detector, expects)]
    notes = [text for text in (*found, _anchors(detector, expects), *_places(detector, expects)) if text]
    if notes and expects.preset:
        notes.append(f"configs/presets/{expects.preset}.yaml as _BASE_ is what these weights were trained with")
    return notes


def _channels(detector: Any, expects: Expects) -> str:
    channels = getattr(detector, "channels", None)
    if expects.channels is None or channels in (None, expects.channels):
        return ""
    return f"these weights were trained on {expects.channels} pictures, and INPUT.CHANNELS is {channels}"


def _pixels(detector: Any, expects: Expects) -> list[str]:
    notes = []
    for name in ("pixel_mean", "pixel_std"):
        wanted, buffer = getattr(expects, name), getattr(detector, name, None)
        if wanted is None or buffer is None:
            continue
        got = tuple(buffer.flatten().tolist())
        if len(got) != len(wanted) or max(abs(a - b) for a, b in zip(got, wanted, strict=True)) > _SAME:
            given, key = [round(value, 4) for value in wanted], name.upper()
            notes.append(f"these weights were trained with MODEL.{key} {given}, and it is {[round(v, 4) for v in got]}")
    return notes


def _stride(detector: Any, expects: Expects) -> str:
    block = _first_bottleneck(detector)
    if expects.stride_in_1x1 is None or block is None:
        return ""
    in_1x1 = block.conv1.stride != (1, 1)
    if in_1x1 == expects.stride_in_1x1:
        return ""
    return (
        f"these weights have the stride of a block in its {'1x1' if expects.stride_in_1x1 else '3x3'} convolution: "
        f"MODEL.BACKBONE.ResNet.STRIDE_IN_1X1 should be {str(expects.stride_in_1x1).lower()}"
    )


def _places(detector: Any, expects: Expects) -> list[str]:
    grid: Any = getattr(detector, "anchors", None)
    pairs = [(key, getattr(expects, key), getattr(grid, key, None)) for key in ("offset", "steps")]
    return [
        f"these weights were trained with MODEL.ANCHORS.{key.upper()} {wanted}, and it is {got}"
        for key, wanted, got in pairs
        if wanted is not None and got is not None and wanted != got
    ]


def _first_bottleneck(detector: Any) -> Any:
    bottom_up = getattr(getattr(detector, "backbone", None), "bottom_up", None)
    block = next(iter(getattr(bottom_up, "res3", ())), None)
    return block if hasattr(block, "conv3") else None


def _has_cells(grid: Any) -> bool:
    return hasattr(grid, "cell_anchors")


def _anchors(detector: Any, expects: Expects) -> str:
    grid: Any = getattr(detector, "anchors", None)
    if expects.anchors is None or not _has_cells(grid):
        return ""
    cell_A4 = grid.cell_anchors[0].tolist()
    if len(cell_A4) != len(expects.anchors):
        return f"these weights are for {len(expects.anchors)} anchors in a cell, and the detector has {len(cell_A4)}"
    sides = [(x1 - x0, y1 - y0) for x0, y0, x1, y1 in cell_A4]
    pairs = zip(sides, expects.anchors, strict=True)
    most = max(max(abs(w - a), abs(h - b)) for (w, h), (a, b) in pairs)
    if most <= _SAME:
        return ""
    return f"these weights were trained on other anchors: on the finest level their sides differ by up to {most:.3g} px"
