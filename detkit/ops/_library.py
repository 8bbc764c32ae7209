"""Which kernels run: the compiled library where it loads, the PyTorch reference elsewhere.

Nothing happens at import. The first call of an operation lands in its kernel of last resort, which looks for the
library (prebuilt beside the package, else built into the cache folder), loads it, and calls again; from then on the
dispatcher goes straight to the compiled kernel. `DETKIT_OPS=cpp|reference|cuda` forces a choice.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detkit.files import cache_folder
from detkit.ops import _build, _sources

_REFERENCES: dict[str, Callable[..., Any]] = {}
_WARNED: set[str] = set()
_LOCK = threading.RLock()
_CHOICES = ("", "cpp", "reference", "cuda")
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_ASKED_FOR = "DETKIT_OPS=reference"


@dataclass(frozen=True)
class Loaded:
    """The library in use: its file, or None for the reference, and the reason."""

    path: Path | None
    reason: str


def kernel_of_last_resort(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return what the dispatcher calls for an operation that has no kernel for the device (yet)."""
    _REFERENCES[name] = run

    @functools.wraps(run)
    def kernel(*arguments: Any) -> Any:
        device = next(a for a in arguments if isinstance(a, torch.Tensor)).device.type
        backend, reason = backend_of(name, device)
        if backend != "reference":
            return getattr(torch.ops.detkit, name)(*arguments)
        _warn_once(device, reason)
        return run(*arguments)

    return kernel


def operations() -> list[str]:
    """Return the names of the operations that a user calls."""
    return [name for name in _REFERENCES if not name.startswith("_")]


def backend_of(name: str, device: str) -> tuple[str, str]:
    """Return which backend runs an operation on a device type ("cpp" or "reference"), and why; loads what there is."""
    loaded = load()
    key = _KEYS.get(device)
    if loaded.path and key and torch._C._dispatch_has_kernel_for_dispatch_key(f"detkit::{name}", key):
        return "cpp", loaded.reason
    if device == "cpu" or loaded.reason == _ASKED_FOR:
        return "reference", loaded.reason
    return "reference", f"this version has no kernels for {device}"


def load() -> Loaded:
    """Load the library, once per process, and return what is in use.

    Raises:
        RuntimeError: DETKIT_OPS forces a backend that is not to be had. ValueError: it names none.
    """
    with _LOCK:
        return _load()


@functools.cache
def _load() -> Loaded:
    choice = os.environ.get("DETKIT_OPS", "").lower()
    if choice not in _CHOICES:
        raise ValueError(f"DETKIT_OPS={choice!r} is none of cpp, reference, cuda; unset it to choose by itself")
    if choice == "cuda":
        raise RuntimeError("DETKIT_OPS=cuda: this version has no CUDA kernels; use cpp or reference, or unset it")
    if choice == "reference":
        return Loaded(None, _ASKED_FOR)
    try:
        return _prebuilt() or _first_use_build()
    except (_build.BuildError, OSError, RuntimeError) as error:
        if choice == "cpp":
            raise RuntimeError(f"DETKIT_OPS=cpp, but there is no compiled library: {error}") from error
        return Loaded(None, str(error))


def _prebuilt() -> Loaded | None:
    """Load the library that was built with the package, if it is there, of these sources, and whole."""
    for path in sorted(_sources.PACKAGE.glob("_C*.so")):
        found = re.search(rb"detkit-sources:(\w+)", path.read_bytes())
        if found is None or found.group(1).decode() != _sources.digest("common", "cpu"):
            continue  # of another version: calling it could crash
        with contextlib.suppress(OSError, RuntimeError):
            torch.ops.load_library(str(path))
            return Loaded(path, f"prebuilt: {path}")
    return None


def _first_use_build() -> Loaded:
    root = Path(torch.__file__).parent
    name = f"{_sources.digest('common', 'cpu')}-torch{torch.__version__}-{platform.machine()}"
    flags = [*_sources.library_flags(), f"-isystem '{root / 'include'}'"]
    link_flags = [f"-L'{root / 'lib'}'", "-ltorch", "-ltorch_cpu"]
    path = _build.built_library(cache_folder() / "ops" / name, _sources.library_sources(), flags, link_flags)
    torch.ops.load_library(str(path))
    return Loaded(path, f"built at first use: {path}")


def _warn_once(device: str, reason: str) -> None:
    if device in _WARNED or reason == _ASKED_FOR:
        return
    _WARNED.add(device)
    fix = "A C++ compiler (such as g++) and ninja are all that is needed: the next run then builds the operations. "
    warnings.warn(
        f"detkit's operations run on {device} by their PyTorch reference, because {reason}. Results are equal, but the "
        "loss needs several times the memory, and NMS and matching take about ten times as long. "
        f"{fix if device == 'cpu' else ''}`python -m detkit.env` shows the state; DETKIT_OPS=reference accepts it and "
        "silences this.",
        RuntimeWarning,
        stacklevel=2,
    )


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """Run the operations on the CPU by "cpp" or "reference" within a block; for tests and benchmarks.

    Raises:
        RuntimeError: "cpp", where there is no compiled library.
    """
    if backend == "cpp":
        loaded = load()
        if loaded.path is None:
            raise RuntimeError(f"there is no compiled library: {loaded.reason}")
        yield
        return
    override = torch.library.Library("detkit", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*only once for all operators.*")  # the override is the purpose
            for name, run in _REFERENCES.items():
                override.impl(name, run, "CPU", allow_override=True)
        yield
    finally:
        override._destroy()
