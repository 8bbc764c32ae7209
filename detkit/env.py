"""What is installed here, and which backend runs each operation on each device: `python -m detkit.env`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

from detkit.files import cache_folder
from detkit.ops import _library

_PACKAGES = ("detkit", "torch", "numpy", "pillow", "pycocotools")


def describe_environment() -> dict[str, str]:
    """Return what a bug report needs: versions, devices, compilers, settings; "none" for what is missing."""
    found = {"python": f"{platform.python_version()} ({sys.executable})", "platform": platform.platform()}
    found |= {name: _version(name) for name in _PACKAGES}
    found["CUDA of torch"] = torch.version.cuda or "none"
    found["GPU"] = ", ".join(_gpus()) or "none"
    found["CPU capability"] = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    found["C++ compiler"] = _first_line(os.environ.get("CXX", "c++"))
    found["nvcc"] = _last_line("nvcc")
    found["ninja"] = shutil.which("ninja") or "none"
    found["cache folder"] = str(cache_folder())
    found["DETKIT_OPS"] = os.environ.get("DETKIT_OPS") or "not set"
    return found


def describe_operations() -> list[tuple[str, str, str, str]]:
    """Return (operation, device, backend, why) for every operation and device here; loads, and may build, the library.

    The backend is "cpp" or "reference", or "none" where DETKIT_OPS forces one that is not to be had.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [(name, device, *_backend(name, device)) for name in _library.operations() for device in devices]


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as lines with aligned columns; the empty string for none."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Print the environment and the table of operations."""
    print(format_table(list(describe_environment().items())))
    print()
    print(format_table([("operation", "device", "backend", "why"), *describe_operations()]))


def _backend(name: str, device: str) -> tuple[str, str]:
    try:
        backend, why = _library.backend_of(name, device)
    except (RuntimeError, ValueError) as error:
        backend, why = "none", str(error)
    return backend, " ".join(why.split())  # a compiler's message has many lines


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _gpus() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = (torch.cuda.get_device_properties(i) for i in range(count))
    return [f"{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.total_memory >> 30} GiB)" for gpu in names]


def _first_line(command: str) -> str:
    return next(iter(_version_text(command)), "none")


def _last_line(command: str) -> str:
    return next(reversed(_version_text(command)), "none")


def _version_text(command: str) -> list[str]:
    path = shutil.which(command.split()[0])
    if path is None:
        return []
    try:
        return (
            subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20).stdout.strip().splitlines()
        )
    except (OSError, subprocess.TimeoutExpired):
        return []


if __name__ == "__main__":
    main()
