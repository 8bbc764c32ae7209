"""Machines that are not this one: users' environments, compilers and copies of the sources, and nothing loaded yet."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from detkit.ops import _build, _library

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds: what takes longer hangs
SETTINGS = {"CXX", "CUDA_HOME", "CUDA_PATH", "DETKIT_BUILD_CUDA", "DETKIT_OPS", "PYTHONPATH", "TORCH_CUDA_ARCH_LIST"}
NO_COMPILER = "reference: no C++ compiler was found"


def skip_without(*modules: str) -> None:
    """Skip where a module is not installed; it is not imported, for setuptools puts itself in place of distutils."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed here")


def environment(package: Path | None, cache: Path, **variables: str) -> dict[str, str]:
    """The environment of a user who has `package` on the path, and not what this session is set to."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    path = {"PYTHONPATH": str(package)} if package else {}
    return {**kept, **path, "DETKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1", **variables}


def copy_sources(to: Path, *without: str) -> Path:
    """Copy this checkout without what was built in it, and without some names more."""
    left = shutil.ignore_patterns("*.so", "__pycache__", ".*", "runs", "build", "dist", "*.egg-info", *without)
    return Path(shutil.copytree(ROOT, to, ignore=left))


def write_nvcc(folder: Path, version: str, *architectures: int) -> Path:
    """Write a script that answers as nvcc does, and compiles nothing."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    known = " ".join(f"compute_{number}" for number in architectures)
    path.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo 'tools, release {version}, V{version}.1';;\n"
        f"--list-gpu-arch) printf '%s\\n' {known};;\n--dryrun) echo '#$ TOP={folder}/bin/..';;\n*) exit 1;; esac\n"
    )
    path.chmod(0o755)
    return path


def nothing_loaded(monkeypatch) -> None:
    """As if nothing had been loaded yet, no library were installed, and none could be built.

    Not by CXX: what an operation has PyTorch import meanwhile would keep it.
    """
    no_compiler = _build.BuildError("no C++ compiler was found here")
    monkeypatch.setattr(_build, "_find_compiler", lambda: raises(no_compiler))
    monkeypatch.setattr(_library, "_prebuilt", lambda device: (None, ""))
    for name in ("_load", "_found"):
        monkeypatch.setattr(_library, name, functools.cache(getattr(_library, name).__wrapped__))


def raises(error: Exception) -> NoReturn:
    raise error


def backend(device: str) -> str:
    """Which backend runs NMS on a device and why, or how that is refused."""
    try:
        return ": ".join(_library.backend_of("nms", device))
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
