"""detectron2's names, which are ours: nothing is renamed, and constants of the config are compared with it."""

from __future__ import annotations

from torch import Tensor

from detkit.checkpoint.dialects.translation import Expects, Translation

_CONSTANTS = ("pixel_mean", "pixel_std")
_ANCHORS = "anchor_generator.cell_anchors."


def translate(tensors: dict[str, Tensor]) -> Translation:
    """Return the tensors of a detector, or of a backbone alone, as they are."""
    is_detector = any(name.startswith("head.") for name in tensors)
    result = Translation(
        "a detector under detectron2's names, which are detkit's" if is_detector else "tensors by name"
    )
    for name, tensor in tensors.items():
        if name in _CONSTANTS or name.startswith(_ANCHORS):
            result.skipped[name] = "a constant of the config"
        else:
            result.add(name, name, tensor)
    result.expects = Expects(
        pixel_mean=_three(tensors.get("pixel_mean")),
        pixel_std=_three(tensors.get("pixel_std")),
        anchors=_shapes(tensors.get(f"{_ANCHORS}0")),
    )
    return result


def _three(values: Tensor | None) -> tuple[float, ...] | None:
    return tuple(values.flatten().tolist()) if values is not None and values.numel() == 3 else None


def _shapes(boxes: Tensor | None) -> tuple[tuple[float, float], ...] | None:
    """Return (width, height) of anchors [A, 4]."""
    if boxes is None or boxes.ndim != 2 or boxes.shape[1] != 4:
        return None
    return tuple((float(b[2] - b[0]), float(b[3] - b[1])) for b in boxes)
