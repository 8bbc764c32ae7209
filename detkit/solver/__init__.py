"""Optimisers, learning rate schedules, and the scaling of both to the batch."""

from detkit.solver import optimizers, schedules  # register their components
from detkit.solver.build import Plan, build_optimizer, build_schedule, plan_of, rate_text

__all__ = ["Plan", "build_optimizer", "build_schedule", "optimizers", "plan_of", "rate_text", "schedules"]
