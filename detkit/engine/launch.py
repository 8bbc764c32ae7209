"""Processes and ranks: torchrun's contract, and `--num-gpus N` as a way to ask torchrun for it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from detkit.config import ConfigError
from detkit.log import get_logger


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun (or a batch system, by the same variables) set up; alone, do nothing.

    Tensors on the CPU travel by gloo, those on CUDA devices by NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def become_torchrun(num_processes: int, argv: Sequence[str]) -> None:
    """Replace this process by torchrun, which runs `python argv...` in `num_processes` processes on this machine.

    One process per CUDA device; without CUDA they share the CPU, which is for tests. Asking for more devices than
    there are is a ConfigError. Signals then reach torchrun itself, which passes them on, SIGUSR1 too.
    """
    devices = torch.cuda.device_count()
    if torch.cuda.is_available() and num_processes > devices:
        raise ConfigError(f"--num-gpus {num_processes}: this machine has {devices}")
    if not torch.cuda.is_available():
        get_logger(__name__).warning(
            "--num-gpus %d: no CUDA device here; as many processes share the CPU", num_processes
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    os.environ.update(signals_that_torchrun_passes_on())
    os.execv(sys.executable, [*command, *argv])


def signals_that_torchrun_passes_on() -> dict[str, str]:
    """Return the environment by which torchrun does not die of a signal that tells a run to save (`StopSignal`)."""
    return {"PET_SIGNALS_TO_HANDLE": os.environ.get("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")}


def is_under_torchrun() -> bool:
    """Return whether this process was started as one rank of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
