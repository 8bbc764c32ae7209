"""The training loop. What happens around a step (log, evaluation, checkpoints, pictures) is in the hooks."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detkit.data import DataError, WorkerKilledError
from detkit.distributed import is_distributed, rank, world_size
from detkit.engine.device import autocast, precision_name
from detkit.log import get_logger
from detkit.structures import Batch

logger = get_logger(__name__)


_OF_DDP = inspect.signature(DistributedDataParallel).parameters  # torch 2.13 has a new name for it
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OF_DDP else "broadcast_buffers": False
}
WHAT_HELPS = "A lower SOLVER.BASE_LR, a longer warm-up (WARMUP_ITERS) or SOLVER.CLIP_GRADIENTS 10 usually help"


class NonFiniteLossError(FloatingPointError):
    """A loss that is NaN or infinite, at `iteration`, or weights whose next loss would be.

    The message names the images, the parts and the rate, or the tensor.
    """

    def __init__(self, message: str, iteration: int) -> None:
        super().__init__(message)
        self.iteration = iteration


def are_finite(losses: dict[str, Tensor]) -> bool:
    """Return whether every loss is finite; what is only measured may be undefined."""
    return all(bool(torch.isfinite(value)) for name, value in losses.items() if name.startswith("loss"))


class Trainer:
    """Owns the model, its optimiser and the count of iterations; calls the hooks around every step.

    Attributes that hooks read: `detector` (the bare module), `iteration` (steps taken so far), `max_iter`, `batch`,
    `losses` (detached, of the last step, on the device), `lr`, `device`, `data_seconds` (waited for the last batch).
    """

    def __init__(
        self,
        *,
        detector: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        base_lr: float,
        max_iter: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
        clip_gradients: float | None = None,
        seed: int = 0,
    ) -> None:
        self.detector = detector
        # Buffers are constants, or each rank's statistics, of which evaluation and checkpoints take the main rank's.
        self.model: nn.Module = (
            DistributedDataParallel(detector, gradient_as_bucket_view=True, **_NO_BUFFERS)
            if is_distributed()
            else detector
        )
        self.optimizer = optimizer
        self.schedule = schedule
        self.base_lr = base_lr
        self.max_iter = max_iter
        self.device = device
        self.dtype = dtype
        self.clip_gradients = clip_gradients
        self.seed = seed
        self.iteration = 0
        self.batch: Batch | None = None
        self.losses: dict[str, Tensor] = {}
        self.lr = 0.0
        self.data_seconds = 0.0
        self.hooks: Sequence[Any] = ()

    def train(self, loader: Iterable[Batch], hooks: Sequence[Any]) -> None:
        """Take the steps from `iteration` to `max_iter`; the loader starts at `iteration`."""
        self.hooks = hooks
        self.model.train()
        self._call("before_train")
        batches = iter(loader)
        while self.iteration < self.max_iter:
            started = time.perf_counter()
            self.batch = self._next(batches).to(self.device, non_blocking=True)
            self.data_seconds = time.perf_counter() - started
            self._call("before_step")
            self.losses = self.step(self.batch)
            self.iteration += 1
            self._call("after_step")
        self._call("after_train")

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except (DataError, WorkerKilledError):  # between two steps, so the state is whole
            self._call("on_data_error")
            raise

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward, update; every `loss_*` that the detector returns is summed."""
        self.lr = self.base_lr * self.schedule(self.iteration)
        # For components that draw numbers: no random state needs saving, on any rank or device.
        torch.manual_seed(((self.seed * 1_000_003 + self.iteration) * 65_537 + rank()) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_factor"]
        with autocast(self.device, self.dtype):
            losses = self.model(batch)
        total = torch.stack([value for name, value in losses.items() if name.startswith("loss_")]).sum()
        kept = {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}
        # Elsewhere looking waits for the device, and ranks must end together: there the log looks later.
        if self.device.type == "cpu" and not is_distributed():
            self.refuse_nonfinite(self.iteration + 1, kept, batch.image_ids, self.lr)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if self.clip_gradients is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_gradients, foreach=True)
        self.optimizer.step()
        return kept

    def refuse_nonfinite(self, iteration: int, losses: dict[str, Tensor], image_ids: Tensor, lr: float) -> None:
        """Raise NonFiniteLossError unless every loss is finite."""
        if are_finite(losses):
            return
        parts = ", ".join(f"{name} {float(value):g}" for name, value in losses.items())
        raise NonFiniteLossError(
            f"the loss is not finite at iteration {iteration}: {parts}; lr {lr:g}; images {image_ids.tolist()}. "
            f"The weights were not saved. {WHAT_HELPS}; check the boxes of these images.",
            iteration,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, as tensors and plain containers."""
        return {
            "iteration": self.iteration,
            "numerics": self._numerics(),
            "model": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hooks": {type(h).__name__: h.state_dict() for h in self.hooks if hasattr(h, "state_dict")},
        }

    def load_state_dict(self, state: dict[str, Any], hooks: Sequence[Any]) -> None:
        """Continue from a state: the next step is the one that an unbroken run would have taken.

        A state of a run that another machine, or another share of it, computed in another way is warned of.
        """
        before, now = state.get("numerics", {}), self._numerics()
        both = [name for name in now if name in before]
        changes = [f"{name} {before[name]} so far, {now[name]} now" for name in both if before[name] != now[name]]
        if changes:
            logger.warning("from here on the run differs from an unbroken one by rounding: %s", "; ".join(changes))
        self.iteration = state["iteration"]
        self.detector.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for hook in hooks:
            if hasattr(hook, "load_state_dict") and type(hook).__name__ in state["hooks"]:
                hook.load_state_dict(state["hooks"][type(hook).__name__])

    def _numerics(self) -> dict[str, Any]:
        """Return what the same step depends on beside the config: the order of sums is another with other threads."""
        threads = {"threads (OMP_NUM_THREADS)": torch.get_num_threads(), "CPU": torch.backends.cpu.get_cpu_capability()}
        return {
            "precision": precision_name(self.dtype),
            "device": self.device.type,
            "processes": world_size(),
            **(threads if self.device.type == "cpu" else {}),
        }

    def _call(self, point: str) -> None:
        for hook in self.hooks:
            if hasattr(hook, point):
                getattr(hook, point)(self)
