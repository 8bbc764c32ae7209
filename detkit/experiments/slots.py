"""Where the runs of a sweep are trained: N processes at a time on this machine, or jobs of a SLURM cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from detkit.config import ConfigError
from detkit.data.loader import core_count, workers_on
from detkit.engine.launch import signals_that_torchrun_passes_on
from detkit.engine.run_folder import is_busy
from detkit.experiments.worker import BUSY, STOPPED_MARK

OUTPUT = "output.txt"
_OUT_OF_MEMORY = "as the system does to a process when memory ends"


HELD = "held by another process"
STOPPED = "told to stop"


class Started(Protocol):
    """A run that has been started."""

    def ended(self) -> str | None:
        """Return None while it is there, then how it ended: "", HELD, STOPPED, or what went wrong."""

    def stop(self) -> None:
        """Tell it to save and stop; return at once."""

    def wait(self) -> None:
        """Return when it has stopped."""


class Slots(Protocol):
    """Somewhere to start runs."""

    count: int  # at a time
    loader_workers: int | None  # processes that load pictures, for a run whose config leaves it open; None: as there

    def start(self, job: Path) -> Started:
        """Start the run of a job file; its output goes beside it."""


def worker_command(job: Path, processes: int) -> list[str]:
    """Return the command that trains a job in this many processes (one for each of a run's devices)."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *torchrun, "-m", "detkit.experiments.worker", str(job)]


class LocalSlots:
    """`count` runs at a time here, the cores and CUDA devices shared out among them.

    A run's processes get `cores // count` threads (OMP_NUM_THREADS says otherwise) and, where there are CUDA devices,
    one each, in turn. With fewer devices than processes runs share them, which `processes` above 1 refuses.
    """

    def __init__(self, count: int, *, processes: int = 1) -> None:
        _check_counts(slots=count, processes=processes)
        self._devices = list(range(torch.cuda.device_count()))
        if self._devices and processes > 1 and count * processes > len(self._devices):
            raise ConfigError(f"{count} slots of {processes} processes need {count * processes} CUDA devices; this "
                              f"machine has {len(self._devices)}")  # fmt: skip
        self.count = count
        self._processes = processes
        self._free = list(range(count))
        self._threads = max(1, core_count() // (count * processes))
        self.loader_workers: int | None = workers_on(self._threads)

    def start(self, job: Path) -> _LocalRun:
        """Start a run in a free slot."""
        slot = self._free.pop(0)
        environment = {**os.environ, **signals_that_torchrun_passes_on(), **self._share(slot)}
        with open(job.parent / OUTPUT, "ab") as output:
            process = subprocess.Popen(
                worker_command(job, self._processes),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # an interrupt of the terminal is for the sweep, which passes it on
            )
        return _LocalRun(process, job.parent, lambda: self._free.append(slot))

    def _share(self, slot: int) -> dict[str, str]:
        share = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(self._threads)}
        if not self._devices:
            return share
        mine = [self._devices[(slot * self._processes + i) % len(self._devices)] for i in range(self._processes)]
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = given.split(",") if given else [str(device) for device in self._devices]
        return {**share, "CUDA_VISIBLE_DEVICES": ",".join(names[device] for device in mine)}


class _LocalRun:
    def __init__(self, process: subprocess.Popen, folder: Path, free: Any) -> None:
        self._process, self._folder, self._free = process, folder, free

    def ended(self) -> str | None:
        status = self._process.poll()
        if status is None:
            return None
        if self._free:
            self._free()
            self._free = None
        return _meaning(status, self._folder)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self) -> None:
        self._process.wait()


def _meaning(status: int, folder: Path) -> str:
    if status == BUSY or (status == 1 and is_busy(folder)):  # 1: torchrun's, whatever its processes end with
        return HELD
    if status in (128 + signal.SIGTERM, -signal.SIGTERM) or (status == 1 and (folder / STOPPED_MARK).exists()):
        return STOPPED
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (f", {_OUT_OF_MEMORY}" if name == "SIGKILL" else "")
    return "" if status == 0 else f"ended with status {status}"


class SubmititSlots:
    """Runs as jobs by submitit: of SLURM ("slurm"), or of this machine ("local"), for trying it.

    `parameters` are submitit's own (timeout_min, slurm_partition, cpus_per_task, ...); a job that is pre-empted or runs
    out of time saves, is queued again and goes on. Needs the extra `slurm`; without it a ConfigError says so.
    """

    def __init__(
        self,
        count: int,
        folder: Path,
        *,
        processes: int = 1,
        parameters: Mapping[str, Any] | None = None,
        cluster: str = "slurm",
    ) -> None:
        _check_counts(slots=count, processes=processes)
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("SLURM needs submitit: pip install 'detkit[slurm]', or pip install submitit") from error
        self.count = count
        self.loader_workers: int | None = None
        self._processes = processes
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
            given = {} if cluster == "local" else {"gpus_per_node": processes}
            self._executor.update_parameters(**{"timeout_min": 24 * 60, **given, **(parameters or {})})
        except (RuntimeError, NameError, TypeError) as error:
            raise ConfigError(f"submitit: {error}") from error

    def start(self, job: Path) -> _SubmittedRun:
        """Submit a run."""
        command = worker_command(job, self._processes)
        return _SubmittedRun(self._executor.submit(ResumedCommand(command, str(job.parent / OUTPUT))), job.parent)


class _SubmittedRun:
    def __init__(self, job: Any, folder: Path) -> None:
        self._job, self._folder = job, folder

    def ended(self) -> str | None:
        if not self._job.done():
            return None
        error = self._job.exception()
        if error is not None:
            return f"job {self._job.job_id}: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}"
        return _meaning(self._job.result(), self._folder)

    def stop(self) -> None:
        self._job.cancel()

    def wait(self) -> None:
        while not self._job.done() or is_busy(self._folder):  # the local executor's job ends before its worker
            time.sleep(0.2)


class ResumedCommand:
    """A command that a job runs; told to make way, it has the command save, and is queued again."""

    def __init__(self, command: list[str], output: str) -> None:
        self.command, self.output = command, output

    def __call__(self) -> int:
        """Run the command to its end and return its exit status; SIGTERM or SIGINT, of a cancelled job, stop it."""
        with open(self.output, "ab") as output:
            environment = {**os.environ, **signals_that_torchrun_passes_on()}
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
            before = signal.signal(signal.SIGTERM, lambda *_: self._process.terminate())
            try:
                return self._ended()
            except KeyboardInterrupt:  # by which submitit's local executor cancels
                self._process.terminate()
                return self._ended()
            finally:
                signal.signal(signal.SIGTERM, before)

    def checkpoint(self) -> Any:
        """Do what submitit asks of a job that must go: stop, and name what goes on."""
        import submitit

        self._process.terminate()
        self._ended()
        return submitit.helpers.DelayedSubmission(ResumedCommand(self.command, self.output))

    def _ended(self) -> int:
        # Not Popen.wait: its lock is held where the signal that calls `checkpoint` interrupts it.
        while (status := self._process.poll()) is None:
            time.sleep(0.1)
        return status


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"--{name} must be at least 1, and is {count}")
