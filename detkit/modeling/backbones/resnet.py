"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017) with the parameter names of detectron2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from detkit.modeling.layers import ConvNorm, Norm, check_counts
from detkit.registry import BACKBONES

_BLOCKS_OF_DEPTH = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BASIC_DEPTHS = (18, 34)
_STAGES = ("res2", "res3", "res4", "res5")


class Stem(nn.Module):
    """A 7x7 convolution and a max-pool, each of stride 2."""

    def __init__(self, out_channels: int, *, norm: Norm) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, out_channels, 7, stride=2, norm=norm)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, C, H/4, W/4], rounded up."""
        return F.max_pool2d(F.relu_(self.conv1(images_N3HW)), kernel_size=3, stride=2, padding=1)


class _Residual(nn.Module):
    """relu(body(x) + shortcut(x)); the shortcut projects where the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        projects = in_channels != out_channels
        self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm) if projects else None

    def body(self, x_NCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x_NCHW: Tensor) -> Tensor:
        shortcut = x_NCHW if self.shortcut is None else self.shortcut(x_NCHW)
        return F.relu_(self.body(x_NCHW).add_(shortcut))


class BasicBlock(_Residual):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: Norm) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm)

    def body(self, x_NCHW: Tensor) -> Tensor:
        """Return the residual, [N, C', H/stride, W/stride]."""
        return self.conv2(F.relu_(self.conv1(x_NCHW)))


class Bottleneck(_Residual):
    """1x1 to `width` channels, 3x3 in `groups`, 1x1 out; the stride sits in the first 1x1 or in the 3x3."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        stride: int,
        norm: Norm,
        groups: int,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(in_channels, width, 1, stride=stride_1x1, norm=norm)
        self.conv2 = ConvNorm(width, width, 3, stride=stride_3x3, groups=groups, norm=norm)
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm)

    def body(self, x_NCHW: Tensor) -> Tensor:
        """Return the residual, [N, C', H/stride, W/stride]."""
        return self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x_NCHW)))))


class _Plan(NamedTuple):
    """What every stage is built from."""

    depth: int
    num_groups: int
    width_per_group: int
    res2_channels: int
    stride_in_1x1: bool

    def stage(self, index: int, in_channels: int, norm: Norm) -> nn.Sequential:
        """Build stage res(index + 2), whose channels double from stage to stage."""
        blocks: list[nn.Module] = []
        for i in range(_BLOCKS_OF_DEPTH[self.depth][index]):
            stride = 2 if i == 0 and index > 0 else 1
            blocks.append(self._block(index, in_channels, stride, norm))
            in_channels = self.res2_channels << index
        return nn.Sequential(*blocks)

    def _block(self, index: int, in_channels: int, stride: int, norm: Norm) -> nn.Module:
        out_channels = self.res2_channels << index
        if self.depth in _BASIC_DEPTHS:
            return BasicBlock(in_channels, out_channels, stride=stride, norm=norm)
        return Bottleneck(
            in_channels,
            out_channels,
            width=self.num_groups * self.width_per_group << index,
            stride=stride,
            norm=norm,
            groups=self.num_groups,
            stride_in_1x1=self.stride_in_1x1,
        )


@BACKBONES.register()
class ResNet(nn.Module):
    """ResNet-18/34/50/101/152; ResNeXt-101-32x8d is depth 101, num_groups 32, width_per_group 8.

    Convolutions start from He's normal distribution over the fan out, as detectron2's. Stages beyond the last of
    `out_features` are not built.

    Args:
        depth: number of layers: 18, 34, 50, 101 or 152.
        norm: FrozenBN (constants from the weights file), BN or GN.
        freeze_at: the first this many of stem, res2, ..., res5 do not train; their BN is then a FrozenBN. 0 to 5.
        stride_in_1x1: put a bottleneck's stride in its first 1x1 (MSRA's weights) instead of its 3x3 (torchvision's).
        num_groups: groups of the 3x3 convolutions of a bottleneck.
        width_per_group: channels of a group in res2.
        stem_channels: channels of the stem.
        res2_channels: channels that res2 gives; None is 256, or 64 for depth 18 and 34.
        out_features: the stages that are returned, of res2 to res5.
    """

    def __init__(
        self,
        *,
        depth: Literal[18, 34, 50, 101, 152] = 50,
        norm: Literal["FrozenBN", "BN", "GN"] = "FrozenBN",
        freeze_at: int = 2,
        stride_in_1x1: bool = True,
        num_groups: int = 1,
        width_per_group: int = 64,
        stem_channels: int = 64,
        res2_channels: int | None = None,
        out_features: tuple[str, ...] = ("res3", "res4", "res5"),
    ) -> None:
        super().__init__()
        _check_options(depth, norm, freeze_at, num_groups, out_features)
        check_counts("ResNet", num_groups=num_groups, width_per_group=width_per_group)
        check_counts("ResNet", stem_channels=stem_channels, res2_channels=res2_channels)
        plan = _Plan(depth, num_groups, width_per_group, res2_channels or _default_channels(depth), stride_in_1x1)
        self.out_features = tuple(name for name in _STAGES if name in out_features)
        self.out_channels = {name: plan.res2_channels << _STAGES.index(name) for name in self.out_features}
        self.out_strides = {name: 4 << _STAGES.index(name) for name in self.out_features}

        stage_norms: list[Norm] = [
            "FrozenBN" if norm == "BN" and i < freeze_at else norm for i in range(1 + len(_STAGES))
        ]
        self.stem = Stem(stem_channels, norm=stage_norms[0])
        channels = stem_channels
        for index, name in enumerate(_STAGES[: 1 + _STAGES.index(self.out_features[-1])]):
            self.add_module(name, plan.stage(index, channels, stage_norms[index + 1]))
            channels = plan.res2_channels << index
        self._initialise()
        for part in list(self.children())[:freeze_at]:
            part.requires_grad_(False)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_N3HW: Tensor) -> dict[str, Tensor]:
        """Return the features named in `out_features`, fine to coarse, of strides 4, 8, 16, 32 (rounded up)."""
        features = {}
        x_NCHW = images_N3HW
        for name, part in self.named_children():
            x_NCHW = part(x_NCHW)
            if name in self.out_channels:
                features[name] = x_NCHW
        return features


def _default_channels(depth: int) -> int:
    return 64 if depth in _BASIC_DEPTHS else 256


def _check_options(depth: int, norm: Norm, freeze_at: int, num_groups: int, out_features: Sequence[str]) -> None:
    if depth not in _BLOCKS_OF_DEPTH:
        raise ValueError(f"ResNet: depth {depth} is not one of {', '.join(map(str, _BLOCKS_OF_DEPTH))}")
    if not norm:
        raise ValueError("ResNet: norm is empty; choose FrozenBN, BN or GN")
    if not 0 <= freeze_at <= 1 + len(_STAGES):
        raise ValueError(f"ResNet: freeze_at {freeze_at} is not in 0 (nothing) to {1 + len(_STAGES)} (up to res5)")
    if num_groups != 1 and depth in _BASIC_DEPTHS:
        raise ValueError(f"ResNet: num_groups {num_groups} needs bottlenecks; depth {depth} has none (take 50 or more)")
    unknown = [name for name in out_features if name not in _STAGES]
    if unknown or not out_features:
        raise ValueError(f"ResNet: out_features {list(out_features)} must be one or more of {', '.join(_STAGES)}")
