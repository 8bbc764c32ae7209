"""RetinaNet's two subnets (Lin et al. 2017b, section 4): one classifies anchors, one regresses boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detkit.modeling.layers import check_counts, make_norm
from detkit.registry import HEADS

_INIT_STD = 0.01  # section 4.1: new convolutions start from N(0, 0.01), biases at 0


@HEADS.register()
class RetinaNetHead(nn.Module):
    """Two stacks of 3x3 convolutions with ReLU, shared over levels, not with each other.

    `prior_bias` is where the biases of an anchor's logits start (section 3.3), the same for every anchor; None is 0.

    Args:
        num_convs: convolutions in each subnet before its last.
        channels: channels of the subnets; None is as many as the features have.
        norm: norm after each of these convolutions: "" (none) or GN, which treats every level by itself.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        num_logits: int,
        prior_bias: Sequence[float] | None,
        *,
        num_convs: int = 4,
        channels: int | None = None,
        norm: Literal["", "GN"] = "",
    ) -> None:
        super().__init__()
        _check_options(num_convs, channels, norm, prior_bias, num_logits)
        self.num_logits = num_logits
        width = (channels or in_channels) if num_convs else in_channels
        self.cls_subnet = _subnet(in_channels, width, num_convs, norm)
        self.bbox_subnet = _subnet(in_channels, width, num_convs, norm)
        self.cls_score = nn.Conv2d(width, num_anchors * num_logits, 3, padding=1)
        self.bbox_pred = nn.Conv2d(width, num_anchors * 4, 3, padding=1)
        self._prior_bias = None if prior_bias is None else list(prior_bias) * num_anchors
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(module.bias)
        self._start_from_prior()

    def reset_cls_score(self) -> None:
        """Give the last layer of the classification subnet fresh weights."""
        nn.init.normal_(self.cls_score.weight, std=_INIT_STD)
        self._start_from_prior()

    @torch.no_grad()
    def _start_from_prior(self) -> None:
        bias = self.cls_score.bias
        assert bias is not None
        bias.zero_() if self._prior_bias is None else bias.copy_(bias.new_tensor(self._prior_bias))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits [N, H*W*A, K'] and box deltas [N, H*W*A, 4] of every level [N, C, H, W]."""
        logits = [_per_anchor(self.cls_score(self.cls_subnet(x_NCHW)), self.num_logits) for x_NCHW in features]
        deltas = [_per_anchor(self.bbox_pred(self.bbox_subnet(x_NCHW)), 4) for x_NCHW in features]
        return logits, deltas


def _check_options(
    num_convs: int, channels: int | None, norm: str, prior_bias: Sequence[float] | None, num_logits: int
) -> None:
    check_counts("RetinaNetHead", channels=channels)
    if num_convs < 0:
        raise ValueError(f"RetinaNetHead: num_convs {num_convs} is below 0; 0 leaves the last layers alone")
    if norm not in ("", "GN"):
        raise ValueError(
            f"RetinaNetHead: norm {norm!r} is neither '' nor 'GN' (batch statistics of one level do not hold for the "
            "others, which share the weights)"
        )
    if prior_bias is not None and len(prior_bias) != num_logits:
        raise ValueError(
            f"RetinaNetHead: prior_bias has {len(prior_bias)} values for the {num_logits} logits of an anchor; the "
            "classification loss must give one for each"
        )


def _subnet(in_channels: int, channels: int, num_convs: int, norm: Literal["", "GN"]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_convs):
        layers.append(nn.Conv2d(channels if i else in_channels, channels, 3, padding=1))
        norm_layer = make_norm(norm, channels)
        layers += [nn.ReLU(inplace=True)] if norm_layer is None else [norm_layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _per_anchor(maps_NCHW: Tensor, values: int) -> Tensor:
    """[N, A*V, H, W] -> [N, H*W*A, V]; a view where the maps are channels_last in memory."""
    return maps_NCHW.permute(0, 2, 3, 1).reshape(maps_NCHW.shape[0], -1, values)
