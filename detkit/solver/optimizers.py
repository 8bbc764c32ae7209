"""Optimisers and the parameter groups they are given."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import nn

from detkit.config import Range
from detkit.registry import OPTIMIZERS

_BelowOne = Annotated[float, Range("0 <= x < 1")]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float | None,
    bias_lr_factor: float,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups of equal weight decay and relative learning rate (`lr_factor`).

    A parameter of a normalisation layer takes `weight_decay_norm`, another's bias `weight_decay_bias` (None: as the
    weights); shared parameters count once. The order is that of the model, so an optimiser's state can be resumed.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decay, factor = weight_decay, 1.0
            if isinstance(module, _NORMS):
                decay = weight_decay_norm
            elif name == "bias":
                decay = weight_decay if weight_decay_bias is None else weight_decay_bias
                factor = bias_lr_factor
            group = groups.setdefault((decay, factor), {"params": [], "weight_decay": decay, "lr_factor": factor})
            group["params"].append(parameter)
    return list(groups.values())


@OPTIMIZERS.register(name="SGD")
def sgd(
    groups: list[dict[str, Any]], lr: float, *, momentum: _BelowOne = 0.9, nesterov: bool = False
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (section 4.1: 0.9).

    Args:
        momentum: momentum.
        nesterov: Nesterov's form of the momentum.
    """
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, foreach=True)


@OPTIMIZERS.register(name="AdamW")
def adamw(
    groups: list[dict[str, Any]],
    lr: float,
    *,
    beta1: _BelowOne = 0.9,
    beta2: _BelowOne = 0.999,
    eps: Annotated[float, Range("x >= 0")] = 1e-8,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Args:
        beta1: decay of the mean of the gradient.
        beta2: decay of the mean of its square.
        eps: added to the root of that mean.
    """
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, foreach=True)
