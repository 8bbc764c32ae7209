"""The steps in their order: what proves the kernels first, then times, then what takes long."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from gpu.outcome import Context, Outcome
from gpu.running import Step

# The name of a step is that of its folder; a function is imported in the step's own process.
_TABLE = (
    ("environment", "what is here", 60, 5, "machine.run"),
    ("build", "the library of CUDA kernels, built here", 240, 30, "build.run"),
    ("tests_cuda", "the tests with CUDA among them", 200, 30, "suite.run_cuda"),
    ("sanitizer", "compute-sanitizer over every operation", 240, 20, "sanitizer.run"),
    ("determinism", "the same bits over twenty runs", 60, 10, "determinism.run"),
    ("large", "more than 2^31 elements", 60, 10, "large.run"),
    ("ceilings", "copies, matrices, and how near the operations come", 60, 10, "ceilings.run"),
    ("peers", "the operations beside their peers", 180, 20, "peers.run"),
    ("training_step", "a step of training", 240, 20, "steps_of_training.run"),
    ("inference", "the time of inference", 60, 15, "inference.run"),
    ("shapes", "a short training on generated shapes", 180, 40, "accuracy.run_shapes"),
    ("tests_rest", "all other tests", 400, 30, "suite.run_rest"),
    ("deeppcb", "a training on DeepPCB at 600 px", 1800, 60, "accuracy.run_deeppcb"),
)
STEPS = {name: Step(name, title, limit, least) for name, title, limit, least, _ in _TABLE}
_FUNCTIONS = {name: function for name, _, _, _, function in _TABLE}


def function_of(name: str) -> Callable[[Context], Outcome]:
    """Return what runs a step."""
    module, _, function = _FUNCTIONS[name].partition(".")
    return getattr(import_module(f"gpu.{module}"), function)
