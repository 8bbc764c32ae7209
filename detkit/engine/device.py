"""Where a run computes and in what precision."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from pathlib import Path

import torch

from detkit.config import ConfigError
from detkit.distributed import is_distributed, local_rank


def select_device(name: str) -> torch.device:
    """Return the device that DEVICE names; auto: this rank's CUDA device if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"DEVICE '{name}' is not a device that detkit trains on: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"DEVICE '{name}': this torch ({torch.__version__}) sees no CUDA device; use DEVICE cpu")
        if device.index is not None and is_distributed():
            raise ConfigError(f"DEVICE '{name}' with several processes would put all on one device; use DEVICE cuda")
        device = torch.device("cuda", local_rank() if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def advice_on_threads(device: torch.device) -> str | None:
    """Return what to do where other processes need the cores that this one's threads would wait for one another on."""
    threads = torch.get_num_threads()
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows; some containers
        return None
    cores = os.cpu_count() or 1  # the load is that of all, whatever this process may use
    if device.type != "cpu" or threads == 1 or load + threads <= 1.5 * cores:
        return None
    load = min(load, _running_now())
    if load + threads <= 1.5 * cores:
        return None
    return (
        f"other work keeps this machine busy (load {load:.1f} on {cores} cores), and {threads} threads that wait for "
        "one another may then be several times slower than one: OMP_NUM_THREADS=1 before the command"
    )


def _running_now() -> float:
    """Return the least number of other threads that ran at once within a tenth of a second; inf where no one says.

    The load is an average over a minute, in which the run before this one still counts.
    """
    counts = []
    try:
        for _ in range(5):
            running, _, _ = Path("/proc/loadavg").read_text().split()[3].partition("/")
            counts.append(int(running) - 1)  # this thread is one of them
            time.sleep(0.02)
    except (OSError, IndexError, ValueError):  # not Linux
        return math.inf
    return min(counts)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where PRECISION asks for it, or `auto` finds it fast on the device; None: float32."""
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            # A step of R50-FPN takes half of float32's time with AVX512-BF16 (AMD EPYC); without any such unit, longer.
            fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def precision_name(dtype: torch.dtype | None) -> str:
    """Return what PRECISION calls the type that autocast_dtype returned."""
    return "bf16" if dtype is torch.bfloat16 else "fp32"


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Return the context in which the network's forward pass runs."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def keep_large_blocks() -> None:
    """Tell glibc to reuse large blocks instead of giving each back to the system (no effect elsewhere).

    A tensor above 32 MB otherwise lands in fresh pages every time, whose faults cost more than most arithmetic on a
    CPU. It changes the whole process, so train() and the tools call it, never an import.
    """
    if not sys.platform.startswith("linux"):
        return
    m_trim_threshold, m_mmap_threshold, largest = -1, -3, 2**31 - 1
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, largest)
        libc.mallopt(m_trim_threshold, largest)


def peak_memory_mb(device: torch.device) -> float:
    """Return the largest memory so far in MB: allocated on a CUDA device, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
