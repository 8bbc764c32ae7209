"""Where a detector differs from what its weights were trained for: said, because nothing else would show it."""

from __future__ import annotations

from typing import Any

from torch import nn

from detkit.checkpoint.dialects import Expects

_SAME = 1e-3  # of a grey level, or of a pixel


def differences(detector: nn.Module, expects: Expects) -> list[str]:
    """Return a sentence for each difference that changes what the network sees or what its outputs mean."""
    found = [_channels(detector, expects), _pixels(detector, expects), _stride(detector, expects)]
    notes = [text for text in (*found, _anchors(detector, expects)) if text]
    if notes and expects.preset:
        notes.append(f"configs/presets/{expects.preset}.yaml as _BASE_ is what these weights were trained with")
    return notes


def _channels(detector: Any, expects: Expects) -> str:
    channels = getattr(detector, "channels", None)
    if expects.channels is None or channels in (None, expects.channels):
        return ""
    return f"these weights were trained on {expects.channels} pictures, and INPUT.CHANNELS is {channels}"


def _pixels(detector: Any, expects: Expects) -> str:
    for name in ("pixel_mean", "pixel_std"):
        wanted, buffer = getattr(expects, name), getattr(detector, name, None)
        if wanted is None or buffer is None:
            continue
        got = tuple(buffer.flatten().tolist())
        if len(got) != len(wanted) or max(abs(a - b) for a, b in zip(got, wanted, strict=True)) > _SAME:
            given, key = [round(value, 4) for value in wanted], name.upper()
            return f"these weights were trained with MODEL.{key} {given}, and it is {[round(v, 4) for v in got]}"
    return ""


def _stride(detector: Any, expects: Expects) -> str:
    bottom_up = getattr(getattr(detector, "backbone", None), "bottom_up", None)
    block: Any = next(iter(getattr(bottom_up, "res3", ())), None)
    if expects.stride_in_1x1 is None or not hasattr(block, "conv3"):
        return ""
    in_1x1 = block.conv1.stride != (1, 1)
    if in_1x1 == expects.stride_in_1x1:
        return ""
    return (
        f"these weights have the stride of a block in its {'1x1' if expects.stride_in_1x1 else '3x3'} convolution: "
        f"MODEL.BACKBONE.ResNet.STRIDE_IN_1X1 should be {str(expects.stride_in_1x1).lower()}"
    )


def _anchors(detector: Any, expects: Expects) -> str:
    grid: Any = getattr(detector, "anchors", None)
    if expects.anchors is None or not hasattr(grid, "cell_anchors"):
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
