"""Feature pyramid network (Lin et al. 2017a) with RetinaNet's two further levels, named as detectron2 names them."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from detkit.modeling.layers import ConvNorm, check_counts
from detkit.registry import NECKS


class TopBlock(nn.Module):
    """P6 and P7: a 3x3 convolution of stride 2, and another on relu(P6) (RetinaNet, footnote 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = ConvNorm(in_channels, out_channels, 3, stride=2)
        self.p7 = ConvNorm(out_channels, out_channels, 3, stride=2)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return two maps of half and quarter the size of x, rounded up."""
        p6_NCHW = self.p6(_at_least_two_wide(x_NCHW))
        return p6_NCHW, self.p7(_at_least_two_wide(F.relu(p6_NCHW)))


def _at_least_two_wide(x_NCHW: Tensor) -> Tensor:
    """Add the column of zeros that the convolution pads with anyway, where x is one pixel wide.

    On a CPU in bfloat16, torch 2.13 (oneDNN) reads memory that it has not written when it computes the weights'
    gradient of a strided convolution of such a map, and may give NaN.
    """
    return F.pad(x_NCHW, (0, 1)) if x_NCHW.shape[-1] == 1 else x_NCHW


@NECKS.register()
class FPN(nn.Module):
    """A pyramid over all features of `bottom_up` plus two levels above: P3 to P7 on res3 to res5.

    Levels are named by the logarithm of their stride. Weights start uniform (He's, a = 1), biases at 0.

    Args:
        out_channels: channels of every level.
        norm: norm after the lateral and output convolutions: "" (none), BN or GN.
        top_block_from: what P6 is made from: C5 (the coarsest feature of bottom_up) or P5 (the pyramid's level).
        size_divisibility: inputs are padded to multiples of this many pixels; None: of the stride of bottom_up's
            coarsest feature (32), of which it must be a multiple. Detectron: 128, so that P7 has no part of a cell.
    """

    def __init__(
        self,
        bottom_up: Any,
        *,
        out_channels: int = 256,
        norm: Literal["", "BN", "GN"] = "",
        top_block_from: Literal["C5", "P5"] = "C5",
        size_divisibility: int | None = None,
    ) -> None:
        super().__init__()
        check_counts("FPN", out_channels=out_channels)
        if norm not in ("", "BN", "GN"):
            raise ValueError(
                f"FPN: norm {norm!r} is not one of '', 'BN', 'GN' (no weights file has constants for a FrozenBN here)"
            )
        self.bottom_up = bottom_up
        self.top_block_from = top_block_from
        self._levels = {name: _level(name, stride) for name, stride in bottom_up.out_strides.items()}
        _check_levels(bottom_up.out_strides, list(self._levels.values()))
        for name, level in self._levels.items():
            self.add_module(f"fpn_lateral{level}", ConvNorm(bottom_up.out_channels[name], out_channels, 1, norm=norm))
            self.add_module(f"fpn_output{level}", ConvNorm(out_channels, out_channels, 3, norm=norm))
        coarsest, top = list(self._levels.items())[-1]
        self.top_block = TopBlock(
            bottom_up.out_channels[coarsest] if top_block_from == "C5" else out_channels, out_channels
        )
        levels = [*self._levels.values(), top + 1, top + 2]
        self.out_channels = {f"p{level}": out_channels for level in levels}
        self.out_strides = {f"p{level}": 2**level for level in levels}
        self.size_divisibility = _divisibility(size_divisibility, 2**top)
        self._initialise()

    def _initialise(self) -> None:
        for name, child in self.named_children():
            if name != "bottom_up":
                for module in child.modules():
                    if isinstance(module, nn.Conv2d):
                        nn.init.kaiming_uniform_(module.weight, a=1)
                        if module.bias is not None:
                            nn.init.zeros_(module.bias)

    def forward(self, images_N3HW: Tensor) -> dict[str, Tensor]:
        """Return the levels, fine to coarse; H and W are multiples of `size_divisibility`, sizes are rounded up."""
        features = self.bottom_up(images_N3HW)
        merged: Tensor | None = None
        pyramid: dict[str, Tensor] = {}
        for name, level in reversed(self._levels.items()):
            lateral = self.get_submodule(f"fpn_lateral{level}")(features[name])
            merged = lateral if merged is None else lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            pyramid[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(merged)
        coarsest, top = list(self._levels.items())[-1]
        source = features[coarsest] if self.top_block_from == "C5" else pyramid[f"p{top}"]
        pyramid = dict(reversed(pyramid.items()))
        pyramid[f"p{top + 1}"], pyramid[f"p{top + 2}"] = self.top_block(source)
        return pyramid


def _level(name: str, stride: int) -> int:
    if stride < 1 or stride & (stride - 1):
        raise ValueError(f"FPN: the stride {stride} of feature '{name}' is not a power of two")
    return stride.bit_length() - 1


def _divisibility(wanted: int | None, stride: int) -> int:
    """Return what sides must be multiples of, so that doubling a level always meets the next finer one."""
    if wanted is None:
        return stride
    if wanted < 1 or wanted % stride:
        raise ValueError(
            f"FPN: size_divisibility {wanted} is not a multiple of {stride}, the stride of bottom_up's coarsest "
            "feature; None takes that stride"
        )
    return wanted


def _check_levels(strides: dict[str, int], levels: list[int]) -> None:
    if levels != list(range(levels[0], levels[0] + len(levels))):
        raise ValueError(f"FPN: the features {strides} skip a level; each stride must be twice the one before")
