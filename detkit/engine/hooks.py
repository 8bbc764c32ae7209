"""The built-in hooks. train() runs them in this order: metrics, the user's hooks, checkpoints, evaluation.

A hook gets the trainer at five points: before_train, before_step, after_step, after_train (not after an error), and
on_data_error.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.checkpoint import Checkpointer, NonFiniteWeightsError, refuse_unreadable
from detkit.distributed import Vote, all_reduce_mean, gather_rows, is_distributed
from detkit.engine.device import peak_memory_mb
from detkit.engine.signals import StopSignal
from detkit.engine.trainer import WHAT_HELPS, NonFiniteLossError, Trainer, are_finite
from detkit.evaluation.tables import flat_metrics, mean_ap
from detkit.log import JsonLines, LiveLine, format_duration, get_logger

_LONGEST_SILENCE = 10.0  # seconds


class Metrics:
    """Writes metrics.jsonl (a row per iteration, deterministic values only), timing.jsonl and the live line.

    Losses stay on the device and come to the host together, every `period` iterations.
    """

    def __init__(self, metrics: JsonLines | None, timing: JsonLines | None, period: int, live: LiveLine) -> None:
        self.metrics, self.timing, self.period, self.live = metrics, timing, period, live
        self._waiting: list[tuple[int, dict[str, Tensor], float, Tensor]] = []
        self._clock = time.perf_counter()
        self._data_seconds = 0.0
        self._seconds_per_iter = 0.0
        self._excluded = 0.0
        self._has_spoken = False

    def before_train(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()

    def after_step(self, trainer: Trainer) -> None:
        """Remember the losses; flush at the first iteration, every `period` and at the last."""
        assert trainer.batch is not None
        self._waiting.append((trainer.iteration, trainer.losses, trainer.lr, trainer.batch.image_ids))
        self._data_seconds += trainer.data_seconds
        due = trainer.iteration % self.period == 0 or trainer.iteration == trainer.max_iter
        # Ranks must come to the host together; alone, a slow step is shown before the period is over.
        slow = not is_distributed() and time.perf_counter() - self._clock > _LONGEST_SILENCE
        if due or slow or not self._has_spoken:
            self.flush(trainer)
            self._has_spoken = True

    def flush(self, trainer: Trainer) -> None:
        """Bring the waiting losses to the host, look that they are finite, write and show them."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        names = list(waiting[0][1])
        table = torch.stack([torch.stack([losses[n].float() for n in names]) for _, losses, _, _ in waiting])
        rows = all_reduce_mean(table).cpu()
        for mine, values, (iteration, _, lr, image_ids) in zip(table, rows, waiting, strict=True):
            losses = dict(zip(names, values, strict=True))
            if is_distributed() and not are_finite(losses):  # all ranks see it, and gather the pictures that it is of
                is_mine = not are_finite(dict(zip(names, mine, strict=True)))
                image_ids = gather_rows(image_ids if is_mine else image_ids[:0])
            trainer.refuse_nonfinite(iteration, losses, image_ids, lr)
            if self.metrics is not None:
                numbers = {n: float(v) if bool(torch.isfinite(v)) else None for n, v in losses.items()}
                self.metrics.write({"iteration": iteration, **numbers, "lr": lr})
        self._time(trainer, len(waiting), dict(zip(names, rows.mean(0).tolist(), strict=True)))

    def pause(self, seconds: float) -> None:
        """Leave a time span (an evaluation, say) out of the seconds per iteration."""
        self._excluded += seconds

    def _time(self, trainer: Trainer, steps: int, losses: dict[str, float]) -> None:
        now = time.perf_counter()
        elapsed = max(now - self._clock - self._excluded, 1e-9)
        seconds, waited = elapsed / steps, min(self._data_seconds / elapsed, 1.0)
        self._clock, self._data_seconds, self._excluded = now, 0.0, 0.0
        recent = self._seconds_per_iter
        eta = (trainer.max_iter - trainer.iteration) * (0.7 * recent + 0.3 * seconds if recent else seconds)
        if self._has_spoken:  # the first iteration warms up, and says little of the next
            self._seconds_per_iter = 0.7 * recent + 0.3 * seconds if recent else seconds
        memory = peak_memory_mb(trainer.device)
        parts = " ".join(f"{n.removeprefix('loss_')} {v:.3f}" for n, v in losses.items() if n.startswith("loss_"))
        self.live.update(
            f"{trainer.iteration}/{trainer.max_iter}  eta {format_duration(eta)}  loss {losses['loss']:.3f} ({parts})  "
            f"lr {trainer.lr:.2g}  {seconds:.2f} s/iter  data {waited:.0%}  {memory / 1024:.1f} GB"
        )
        if self.timing is not None:
            self.timing.write(
                {
                    "iteration": trainer.iteration,
                    "seconds_per_iteration": round(seconds, 5),
                    "data_wait": round(waited, 4),
                    "peak_memory_mb": round(memory, 1),
                    "eta_seconds": round(eta, 1),
                }
            )


class Evaluation:
    """Evaluates every `period` iterations (0: never) and at the end; its AP joins metrics.jsonl.

    A resumed run whose checkpoint was written at such an iteration, but whose evaluation was not, evaluates first.
    `done` has the AP of the evaluations that are written already, by iteration. Where there is a period, `save_best`
    is called after each evaluation whose AP is above all before it.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, Any]],
        period: int,
        metrics: Metrics,
        done: dict[int, float | None],
        save_best: Callable[[], object],
    ) -> None:
        self._evaluate = evaluate
        self._period = period
        self._metrics = metrics
        self._done = done
        self._save_best = save_best

    def before_train(self, trainer: Trainer) -> None:
        """Catch up where a resumed run stopped between a checkpoint and its evaluation."""
        if trainer.iteration and self._due(trainer) and trainer.iteration not in self._done:
            self._run(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Evaluate where it is due."""
        if self._due(trainer):
            self._run(trainer)

    def _due(self, trainer: Trainer) -> bool:
        periodic = self._period > 0 and trainer.iteration % self._period == 0
        return periodic and trainer.iteration < trainer.max_iter

    def after_train(self, trainer: Trainer) -> None:
        """Evaluate the final weights."""
        self._run(trainer)

    def _run(self, trainer: Trainer) -> None:
        self._metrics.flush(trainer)  # so that the rows stand in the order of iterations
        started = time.perf_counter()
        row = flat_metrics(self._evaluate())
        if self._metrics.metrics is not None and row and trainer.iteration not in self._done:
            ap = mean_ap(row)
            self._keep_if_best(ap)  # first: where this is as far as it came, a resumed run evaluates again
            self._metrics.metrics.write({"iteration": trainer.iteration, **row})
            self._done[trainer.iteration] = ap
        self._metrics.pause(time.perf_counter() - started)

    def _keep_if_best(self, ap: float | None) -> None:
        before = [other for other in self._done.values() if other is not None]
        if not self._period or ap is None or ap <= max(before, default=-1.0):
            return
        try:
            self._save_best()
        except OSError as error:
            get_logger(__name__).warning("the best weights so far are not kept: %s", error)


class Checkpoints:
    """Saves the state every `periods` iterations and at the last; told to stop, saves and exits with status 143.

    Saves too where the data end in an error. A full disk at a periodic save is said, and training goes on: the next
    save may find room.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        periods: Sequence[int],
        metrics: Metrics,
        stop: StopSignal,
        extra: dict[str, Any],
    ) -> None:
        self._checkpointer, self._metrics = checkpointer, metrics
        self._periods = [period for period in periods if period > 0]
        self._stop, self._vote, self._extra = stop, Vote(), extra

    def before_train(self, trainer: Trainer) -> None:
        """Refuse a state that could not be read back, before it costs anything."""
        refuse_unreadable({**trainer.state_dict(), **self._extra})

    def after_step(self, trainer: Trainer) -> None:
        """Save where it is due, or where this process, or any other rank, was told to stop."""
        last = trainer.iteration == trainer.max_iter
        stop = not last and self._vote.any_said_yes(self._stop.received)
        if last or stop:
            self.save(trainer)
        elif any(trainer.iteration % period == 0 for period in self._periods):
            self.save(trainer, must=False)
        if stop:
            get_logger(__name__).warning("told to stop: saved at iteration %d; --resume goes on", trainer.iteration)
            raise SystemExit(128 + signal.SIGTERM)

    def on_data_error(self, trainer: Trainer) -> None:
        """Save, so that nothing is lost; not with several processes, the others of which wait inside a step."""
        if trainer.iteration and not is_distributed():
            self.save(trainer)
            get_logger(__name__).warning(
                "saved at iteration %d; when the cause is mended, --resume goes on", trainer.iteration
            )

    def save(self, trainer: Trainer, must: bool = True) -> None:
        """Write what is waiting for metrics.jsonl, then the checkpoint, so that the file covers the checkpoint.

        Unless it `must` be, a checkpoint that cannot be written is said. Weights that are not finite are a
        NonFiniteLossError: the loss of the next step would be the same.
        """
        self._metrics.flush(trainer)
        if self._metrics.metrics is not None:
            self._metrics.metrics.sync()
        try:
            self._checkpointer.save({**trainer.state_dict(), **self._extra})
        except NonFiniteWeightsError as error:
            raise NonFiniteLossError(f"the weights are not finite: {error}. {WHAT_HELPS}", trainer.iteration) from error
        except OSError as error:  # of the main rank, when all have passed the checkpoint
            if must:
                raise
            get_logger(__name__).warning("no checkpoint of iteration %d: %s", trainer.iteration, error)
