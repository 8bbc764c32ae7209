"""What to say when a worker process of a loader is killed, or shared memory is about to run out."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from detkit.data.errors import WorkerKilledError
from detkit.log import get_logger

_PREFETCH = 2  # torch's: batches that each worker makes ahead
_SHARED_MEMORY = "/dev/shm"  # Linux
_WAYS_OUT = (
    "Give it more (docker run --shm-size=8g, or --ipc=host), or use fewer workers (DATALOADER.NUM_WORKERS 0: none) or "
    "smaller batches (SOLVER.IMS_PER_BATCH, TEST.IMS_PER_BATCH)."
)


def items_of(loader: DataLoader) -> Iterator[Any]:
    """Yield the items of torch's loader; a worker that was killed is a WorkerKilledError."""
    others = set(multiprocessing.active_children())
    with _child_signals_kept():
        items = iter(loader)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    is_first = True
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:  # torch's own, or a broken pipe to the worker
            killed = _killed(workers, wait=0.0 if isinstance(error, RuntimeError) else 1.0)
            if killed is None:
                raise
            raise WorkerKilledError(_killed_text(killed)) from error
        if is_first and workers:
            _warn_of_little_memory(item, len(workers))
        is_first = False
        yield item


@contextlib.contextmanager
def _child_signals_kept() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, for all loaders of the process: torch sets it once.

    It would raise torch's own error wherever training stands when a worker dies. Without it, the loader finds the dead
    worker when it waits for its next item.
    """
    is_ours = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if is_ours else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _killed(workers: Sequence[BaseProcess], wait: float) -> BaseProcess | None:
    """Return a worker that a signal ended; a pipe breaks up to `wait` seconds before the system says so."""
    ended = connection.wait([worker.sentinel for worker in workers], timeout=wait)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join()  # at once: its files are closed, but the system may not yet have its exit code
    return next((worker for worker in workers if (worker.exitcode or 0) < 0), None)


def _killed_text(worker: BaseProcess) -> str:
    number = -(worker.exitcode or 0)
    names = {int(known): known.name for known in signal.Signals}
    name = names.get(number, f"signal {number}")
    text = f"a worker process of the data loader (pid {worker.pid}) was killed by {name}"
    if name == "SIGBUS":
        return f"{text}, which means that shared memory is full: {_shared_memory_text()}. {_WAYS_OUT}"
    if name == "SIGKILL":
        return (f"{text}: by a person, or by the system because memory ran out (`dmesg` tells). Use fewer workers "
                "(DATALOADER.NUM_WORKERS, 0: none) or smaller batches, or give the job or container more "
                "memory.")  # fmt: skip
    return f"{text}. DATALOADER.NUM_WORKERS 0 reads the pictures in the main process, where the cause shows."


def _warn_of_little_memory(item: Any, workers: int) -> None:
    """Warn before a worker is killed: batches of the first one's size, made ahead, may not fit into shared memory."""
    if not os.path.isdir(_SHARED_MEMORY):
        return
    workers *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # every process of the machine has as many
    needed = workers * _PREFETCH * _bytes_of(item)
    if needed > shutil.disk_usage(_SHARED_MEMORY).free:
        get_logger(__name__).warning(
            f"{workers} workers make up to {needed / 1e6:.0f} MB of batches ahead in shared memory, and "
            f"{_shared_memory_text()}: a worker may be killed. {_WAYS_OUT}"
        )


def _shared_memory_text() -> str:
    if not os.path.isdir(_SHARED_MEMORY):
        return "how much there is cannot be told"
    usage = shutil.disk_usage(_SHARED_MEMORY)
    return f"{_SHARED_MEMORY} has {usage.total / 1e6:.0f} MB, {usage.free / 1e6:.0f} MB of them free"


def _bytes_of(item: Any) -> int:
    """Return the bytes of the tensors in a batch, or in (rows, batch)."""
    if isinstance(item, torch.Tensor):
        return item.nbytes
    if isinstance(item, (tuple, list)):
        return sum(map(_bytes_of, item))
    if dataclasses.is_dataclass(item):
        return sum(_bytes_of(getattr(item, field.name)) for field in dataclasses.fields(item))
    return 0
