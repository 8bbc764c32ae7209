"""Whether results are equal to the bit over twenty runs: of every operation, and of a short training."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu import networks
from gpu.outcome import Context, Ledger, Outcome
from gpu.work import every_operation

RUNS = 20
_ITERATIONS = 20


def run(context: Context) -> Outcome:
    """Compare each run with the first; an operation or training that differs is a failure."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may add in any order
    ledger = Ledger(context)
    runs = 3 if context.is_tiny else RUNS
    ledger.once("operations", lambda: _operations(context, runs))
    ledger.once("training", lambda: _training(context, runs), seconds=15)
    return ledger.outcome({"runs": runs})


def _operations(context: Context, runs: int) -> dict[str, Any]:
    works = every_operation(context.device, *((300, 70) if context.is_tiny else (20_000, 5_000)))
    differ = [name for name, work in works.items() if not is_repeatable(work, runs)]
    if differ:
        raise AssertionError(f"not equal over {runs} runs: {', '.join(differ)}")
    return {"works": len(works)}


def is_repeatable(work: Callable[[], list[Tensor]], runs: int) -> bool:
    """Whether a work returns the same bits at each of its runs; NaN equals itself."""
    first = [_bits(tensor) for tensor in work()]
    return all(all(map(torch.equal, map(_bits, work()), first)) for _ in range(runs - 1))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _training(context: Context, runs: int) -> dict[str, Any]:
    """Train a small detector anew each time, with cuDNN's and torch's deterministic algorithms."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    iterations = 3 if context.is_tiny else _ITERATIONS
    if not is_repeatable(lambda: _weights(context, iterations), runs):
        raise AssertionError(f"the weights differ over {runs} trainings of {iterations} iterations")
    return {"trainings": runs, "iterations": iterations}


def _weights(context: Context, iterations: int) -> list[Tensor]:
    trainer, batch = networks.small_trainer(context.device)
    losses: list[Tensor] = []
    for _ in range(iterations):
        losses += [value.reshape(1).float() for value in trainer.step(batch).values()]
        trainer.iteration += 1
    return [*losses, *trainer.detector.state_dict().values()]
