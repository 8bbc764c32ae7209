"""What a dialect makes of a file: tensors under our names, where each came from, and what they were trained for."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

BACKBONE = "backbone.bottom_up."
IMPLIED = "(implied)"  # the source of a tensor that a format does not store because it is a constant there


@dataclass(frozen=True)
class Expects:
    """What weights were trained with, where the format tells; None where it does not.

    Attributes:
        channels: order of the channels, "RGB" or "BGR".
        pixel_mean, pixel_std: three numbers each, in the order of the channels.
        stride_in_1x1: whether a bottleneck's stride sits in its first 1x1 convolution.
        anchors: (width, height) in pixels of the anchors of the finest level, scales outer, ratios inner.
        offset: where the first anchors are centred, in strides.
        steps: how far anchors are apart, "strides" or "input" (MODEL.ANCHORS.STEPS).
        preset: the config under configs/presets/ that says it all, or "".
    """

    channels: str | None = None
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    stride_in_1x1: bool | None = None
    anchors: tuple[tuple[float, float], ...] | None = None
    offset: float | None = None
    steps: str | None = None
    preset: str = ""


@dataclass
class Translation:
    """The tensors of a file in our names.

    Attributes:
        format: what the file is, in words.
        tensors: by our names.
        sources: for each of them the name in the file, or IMPLIED.
        skipped: names of the file that have no place in a detector, and why.
        expects: what the weights were trained with.
    """

    format: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    expects: Expects = field(default_factory=Expects)

    def add(self, target: str, source: str, tensor: Tensor) -> None:
        """Take a tensor under our name; two of one name are a ValueError."""
        if target in self.tensors:
            raise ValueError(
                f"{source[:200]!r} and {self.sources[target][:200]!r} of the file are both {target[:200]!r}"
            )
        self.tensors[target] = tensor
        self.sources[target] = source


def permuted(tensor: Tensor, order: list[int]) -> Tensor:
    """Return a head's last weight or bias [A*V, ...] with its A anchors in another order: new anchor i is order[i]."""
    per_anchor = tensor.reshape(len(order), -1, *tensor.shape[1:])
    return per_anchor[order].reshape(tensor.shape).contiguous()
