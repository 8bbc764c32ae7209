"""Convolutions with an optional norm, and the norms they may have: FrozenBN, BN, GN."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["", "FrozenBN", "BN", "GN"]
_MOST_GROUPS = 32  # of a group norm (Wu and He 2018, section 4)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine terms are constants: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Everything is a buffer under the names of torch's BatchNorm2d, so nothing trains and `train()` changes nothing.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the norm as y = x * scale + shift, [C] each."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalise x, of any float dtype, which is kept."""
        scale, shift = (v[:, None, None].to(x_NCHW.dtype) for v in self.scale_and_shift())
        return x_NCHW * scale + shift


def check_counts(owner: str, **counts: int | None) -> None:
    """Raise ValueError, naming owner and option, where a count of channels or groups is below 1; None passes."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{owner}: {name} {count} is below 1; give 1 or more")


def make_norm(norm: Norm, channels: int) -> nn.Module | None:
    """Return the norm called "FrozenBN", "BN" or "GN", None for "". GN has at most 32 groups of equal size.

    Raises ValueError for another name.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"unknown norm {norm!r}: choose one of {', '.join(map(repr, get_args(Norm)))}")
    if norm == "FrozenBN":
        return FrozenBatchNorm2d(channels)
    if norm == "BN":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(_MOST_GROUPS, channels), channels) if norm else None


class ConvNorm(nn.Conv2d):
    """A square "same" convolution, then a norm; it has a bias only where it has no norm. Keys: weight, bias, norm.*."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, norm: Norm = ""
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=not norm
        )
        self.norm = make_norm(norm, out_channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', ceil(H / stride), ceil(W / stride)]."""
        if isinstance(self.norm, FrozenBatchNorm2d):
            # A constant scale moves into the weights: one pass over the activations less, forward and backward.
            scale, shift = self.norm.scale_and_shift()
            weight = self.weight * scale[:, None, None, None]
            return F.conv2d(x_NCHW, weight, shift, self.stride, self.padding, self.dilation, self.groups)
        x_NCHW = super().forward(x_NCHW)
        return x_NCHW if self.norm is None else self.norm(x_NCHW)
