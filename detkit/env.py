"""What is installed here, and which backend runs each operation on each device: `python -m detkit.env`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

from detkit.files import cache_folder
from detkit.ops import _build, _library, _nvcc

_PACKAGES = ("detkit", "torch", "numpy", "pillow", "pycocotools")


def describe_environment() -> dict[str, str]:
    """Return what a bug report needs: versions, devices, compilers, settings; "none" for what is missing."""
    found = {"python": f"{platform.python_version()} ({sys.executable})", "platform": platform.platform()}
    found |= {name: version_of(name) for name in _PACKAGES}
    found["CUDA of torch"] = torch.version.cuda or "none"
    found["GPU"] = ", ".join(_gpus()) or "none"
    found["CPU capability"] = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    found["C++ compiler"] = _compiler()
    found["nvcc"] = _cuda_compiler()
    found["ninja"] = _ninja()
    found["cache folder"] = _cache()
    found["DETKIT_OPS"] = os.environ.get("DETKIT_OPS") or "not set"
    return found


def describe_libraries() -> dict[str, str]:
    """Return the compiled libraries with their sizes, and what their kernels are for; loads, and may build, them.

    A library that is installed, but not in use, is shown with the reason; one that is not there is "none".
    """
    return _describe_library("cpu", "library") | _describe_library("cuda", "CUDA library")


def describe_operations() -> list[tuple[str, str, str, str]]:
    """Return (operation, device, backend, why) for every operation and device here; loads, and may build, the library.

    The backend is "cpp", "cuda" or "reference", or "none" where DETKIT_OPS forces one that is not to be had.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [(name, device, *_backend(name, device)) for name in _library.operations() for device in devices]


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as lines with aligned columns; the empty string for none."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Print the environment, the libraries, the table of operations, and the reason of each backend in it."""
    operations = describe_operations()
    print(format_table([*describe_environment().items(), *describe_libraries().items()]))
    print()
    print(format_table([("operation", "device", "backend"), *(row[:3] for row in operations)]))
    print()
    for device, backend, why in dict.fromkeys(row[1:] for row in operations):
        print(f"{device} {backend}: {why}")


def _describe_library(device: str, row: str) -> dict[str, str]:
    """Return the rows of the library of a device: the one in use, or else installed."""
    try:
        loaded = _library.load(device)
    except (RuntimeError, ValueError) as error:
        loaded = _library.Loaded(None, str(error))
    reason = loaded.reason.splitlines()[0]  # a compiler's message has many
    path = loaded.path or next(iter(_library.prebuilt(device)), None)
    if path is None:
        return {row: f"none: {reason}"}
    rows = {row: str(path) if loaded.path else f"{path}, not in use: {reason}"}
    rows[f"{row} size"] = f"{path.stat().st_size / 1024:.0f} KiB"
    if device == "cuda":
        rows["CUDA architectures"] = _library.architectures(path)
    elif loaded.path:
        rows["library vectors"] = _library.vectors()
    return rows


def _backend(name: str, device: str) -> tuple[str, str]:
    try:
        backend, why = _library.backend_of(name, device)
    except (RuntimeError, ValueError) as error:
        backend, why = "none", str(error)
    return backend, " ".join(why.split())  # a compiler's message has many lines


def version_of(package: str) -> str:
    """Return the version of an installed package; "none" for one that is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _gpus() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = (torch.cuda.get_device_properties(i) for i in range(count))
    return [f"{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.total_memory >> 30} GiB)" for gpu in names]


def _compiler() -> str:
    try:
        command = _build._find_compiler()
    except _build.BuildError as error:
        return f"none: {error}"
    return f"{command}: {next(iter(_version_text(shlex.split(command))), 'says no version')}"


def _cuda_compiler() -> str:
    try:
        nvcc = _nvcc.find(torch.version.cuda)
    except _nvcc.NvccError as error:
        return f"none: {error}"
    return f"{nvcc.path}: CUDA {nvcc.version}"


def _ninja() -> str:
    try:
        return " ".join(_build._find_ninja())
    except _build.BuildError as error:
        return f"none: {error}"


def _cache() -> str:
    try:
        return str(cache_folder())
    except RuntimeError as error:  # no home folder
        return f"none: {error} Set DETKIT_CACHE to a folder."


def _version_text(command: Sequence[str]) -> list[str]:
    if shutil.which(command[0]) is None:
        return []
    try:
        result = subprocess.run([*command, "--version"], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.decode(errors="replace").strip().splitlines()


if __name__ == "__main__":
    main()
