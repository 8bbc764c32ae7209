"""Learning rate schedules: pure functions of the iteration, so that a resumed run needs no state of theirs."""

from __future__ import annotations

import bisect
import math
from typing import Annotated

from detkit.config import Range
from detkit.registry import LR_SCHEDULES

_Iterations = Annotated[int, Range("x >= 0")]
_Factor = Annotated[float, Range("x >= 0")]


def warmup(iteration: int, iters: float, factor: float) -> float:
    """Return the warm-up's share at an iteration: linear from `factor` to 1 over `iters` iterations."""
    if iteration >= iters:
        return 1.0
    return factor + (1 - factor) * iteration / iters


@LR_SCHEDULES.register()
class WarmupMultiStep:
    """The rate is multiplied by `gamma` at each step (section 4.1: by 0.1 at 60k and 80k of 90k), after a warm-up.

    Args:
        steps: iterations at which the rate drops.
        gamma: factor of each drop.
        warmup_iters: iterations over which the rate rises linearly; 0: no warm-up.
        warmup_factor: share of the rate at iteration 0.
    """

    def __init__(
        self,
        max_iter: int,
        scale: float = 1.0,
        *,
        steps: tuple[_Iterations, ...] = (60000, 80000),
        gamma: _Factor = 0.1,
        warmup_iters: _Iterations = 1000,
        warmup_factor: _Factor = 0.001,
    ) -> None:
        if list(steps) != sorted(steps):
            raise ValueError(f"SOLVER.LR_SCHEDULE.WarmupMultiStep.STEPS must rise, and is {steps}")
        self.steps = [round(step * scale) for step in steps]
        self.gamma = gamma
        self.warmup_iters = warmup_iters * scale
        self.warmup_factor = warmup_factor

    def __call__(self, iteration: int) -> float:
        """Return the factor of the base rate at an iteration."""
        drops = bisect.bisect_right(self.steps, iteration)
        return warmup(iteration, self.warmup_iters, self.warmup_factor) * self.gamma**drops


@LR_SCHEDULES.register()
class WarmupCosine:
    """Half a cosine from 1 down to `final` (Loshchilov and Hutter, 2017), after a linear warm-up.

    Args:
        warmup_iters: iterations over which the rate rises linearly; 0: no warm-up.
        warmup_factor: share of the rate at iteration 0.
        final: share of the rate at the end.
    """

    def __init__(
        self,
        max_iter: int,
        scale: float = 1.0,
        *,
        warmup_iters: _Iterations = 1000,
        warmup_factor: _Factor = 0.001,
        final: _Factor = 0.0,
    ) -> None:
        self.max_iter = max(max_iter, 1)
        self.warmup_iters = warmup_iters * scale
        self.warmup_factor = warmup_factor
        self.final = final

    def __call__(self, iteration: int) -> float:
        """Return the factor of the base rate at an iteration."""
        progress = min(iteration / self.max_iter, 1.0)
        cosine = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        return warmup(iteration, self.warmup_iters, self.warmup_factor) * cosine
