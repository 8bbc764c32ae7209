"""The machine, and what is installed on it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu.outcome import ROOT, Context, Outcome

_ASK = """
import json, platform, torch
there = torch.cuda.is_available()
gpu = torch.cuda.get_device_properties(0) if there else None
print(json.dumps({
    "device": gpu.name if there else "CPU", "gpus": torch.cuda.device_count() if there else 0,
    "gib": gpu.total_memory / 2**30 if there else 0, "torch": torch.__version__, "CUDA": torch.version.cuda or "none",
    "Python": platform.python_version()}))
"""
_PACKAGES = ("numpy", "fvcore", "torchvision", "triton", "pytest")
_READ = ("benchmarks", "configs", "csrc", "detkit", "projects", "tests", "tools")


def probe() -> dict[str, Any]:
    """Return the device, how many there are, its memory in GiB, and versions, as a process of its own sees them.

    Raises:
        RuntimeError: torch cannot be asked.
    """
    result = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if result.returncode:
        said = result.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{sys.executable} cannot ask torch for its devices: {said}; install torch 2.10 or later")
    return json.loads(result.stdout.splitlines()[-1])


def slug_of(device: str) -> str:
    """Return a device's name as that of a file: "NVIDIA H100 80GB HBM3" is nvidia_h100_80gb_hbm3."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def run(context: Context) -> Outcome:
    """Say what is here; fails where there should be a device and torch cannot use it."""
    from detkit.env import describe_environment

    about = probe()
    figures = {**{key: str(value) for key, value in about.items() if key != "gib"}, **_more(about)}
    figures |= {name: value for name, value in describe_environment().items() if name in _WANTED}
    if context.device == "cuda" and not about["gpus"]:
        return Outcome("failed", "torch sees no CUDA device", figures)
    return Outcome("passed", "", figures)


_WANTED = ("platform", "GPU", "CPU capability", "C++ compiler", "nvcc", "ninja")


def _more(about: dict[str, Any]) -> dict[str, str]:
    import torch
    from measuring import processor

    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if about["gpus"] else "none"
    return {
        "driver": driver,
        "cuDNN": str(torch.backends.cudnn.version() or "none") if about["gpus"] else "none",
        "compute-sanitizer": sanitizer() or "none",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "packages": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        "commit": commit(),
        "sources": sources(),
        "date": time.strftime("%Y-%m-%d"),
    }


def sanitizer() -> str | None:
    """Return the path of compute-sanitizer: on PATH, or of the toolkit that nvcc belongs to; None: there is none."""
    import torch

    from detkit.ops import _nvcc

    found = shutil.which("compute-sanitizer")
    if found:
        return found
    try:
        toolkits = [_nvcc.find(torch.version.cuda).toolkit()]
    except _nvcc.NvccError:
        toolkits = []
    toolkits += [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for toolkit in [*toolkits, Path("/usr/local/cuda")]:
        for place in ("bin", "compute-sanitizer"):
            if os.access(toolkit / place / "compute-sanitizer", os.X_OK):
                return str(toolkit / place / "compute-sanitizer")
    return None


def commit() -> str:
    """Return the commit of the checkout, and whether files differ from it; "unknown" without git."""
    found = _said("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not re.fullmatch(r"[0-9a-f]{40,64}", found):
        return "unknown"
    return found[:12] + (" and changes" if _said("git", "-C", str(ROOT), "status", "--porcelain", "-uno") else "")


def sources() -> str:
    """Return a digest of all that is checked, which needs no git."""
    digest = hashlib.sha256()
    for folder in _READ:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml", ".h", ".cpp", ".cu", ".cuh") and path.is_file():
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed"
