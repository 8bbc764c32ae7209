"""What a config's SOLVER asks for: the scaled plan, the optimiser and the schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from detkit.config import CfgNode
from detkit.registry import LR_SCHEDULES, OPTIMIZERS
from detkit.solver.optimizers import parameter_groups


@dataclass(frozen=True)
class Plan:
    """Learning rate and iterations as run: scaled from the reference batch to the batch (Goyal et al., 2017)."""

    base_lr: float
    max_iter: int
    scale: float
    text: str


def plan_of(solver: CfgNode) -> Plan:
    """Scale SOLVER.BASE_LR and SOLVER.MAX_ITER from SOLVER.REFERENCE_BATCH to SOLVER.IMS_PER_BATCH.

    The rate falls and the iterations rise in proportion, so that the run sees as many pictures as the config states.
    """
    batch, reference = solver.IMS_PER_BATCH, solver.REFERENCE_BATCH
    if reference is None or reference == batch:
        text = f"batch {batch}: lr {solver.BASE_LR:g}, {solver.MAX_ITER} iterations"
        return Plan(solver.BASE_LR, solver.MAX_ITER, 1.0, text)
    scale = reference / batch
    lr, max_iter = solver.BASE_LR / scale, max(round(solver.MAX_ITER * scale), 1)
    text = (
        f"batch {batch} of {reference}: lr {solver.BASE_LR:g} -> {lr:g}, "
        f"{solver.MAX_ITER} -> {max_iter} iterations (SOLVER.REFERENCE_BATCH None: no scaling)"
    )
    return Plan(lr, max_iter, scale, text)


def build_optimizer(solver: CfgNode, model: nn.Module, base_lr: float) -> torch.optim.Optimizer:
    """Build SOLVER.OPTIMIZER over the model's trainable parameters."""
    groups = parameter_groups(
        model,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
    )
    return OPTIMIZERS.build(solver.OPTIMIZER, groups=groups, lr=base_lr)


def rate_text(schedule: Callable[[int], float], plan: Plan) -> tuple[str, bool]:
    """Return how the rate goes over a run, as one line, and whether it is highest at the last iteration alone."""
    end = plan.max_iter - 1
    points = [*range(0, end, max(end // 10_000, 1)), end]
    top = max(points, key=schedule)  # the first of equals
    first, highest, last = (plan.base_lr * schedule(i) for i in (0, top, end))
    text = f"lr {first:.3g} at the start, {highest:.3g} at its highest (iteration {top}), {last:.3g} at the end"
    return text, 0 < top == end


def build_schedule(solver: CfgNode, plan: Plan) -> Callable[[int], float]:
    """Build SOLVER.LR_SCHEDULE: the factor of the base rate at each iteration."""
    return LR_SCHEDULES.build(solver.LR_SCHEDULE, max_iter=plan.max_iter, scale=plan.scale)
