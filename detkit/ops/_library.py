"""Which kernels run: the compiled library where it loads, the PyTorch reference elsewhere.

Nothing happens at import. The first call of an operation lands in its kernel of last resort, which looks for the
library (prebuilt beside the package, else built into the cache folder), loads it, and calls again; from then on the
dispatcher goes straight to the compiled kernel. `DETKIT_OPS=cpp|reference|cuda` forces a choice.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detkit.ops import _build, _sources

_REFERENCES: dict[str, Callable[..., Any]] = {}
_WARNED: set[str] = set()
_LOCK = threading.RLock()
_CHOICES = ("", "cpp", "reference", "cuda")
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_ASKED_FOR = "DETKIT_OPS=reference"
_TO_MAKE_A_NEW_ONE = "installing detkit again (pip install --force-reinstall --no-cache-dir --no-deps) makes a new one"


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


def _renew_lock() -> None:
    """Forget the lock in a child that was forked while another thread, which the child has not, held it."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)


def vectors() -> str:
    """Return which vectors of the machine the library's CPU kernels use, such as "AVX2"; "none" without a library."""
    path = load().path
    if path is None:
        return "none"
    ask = ctypes.CDLL(str(path)).detkit_vectors
    ask.restype = ctypes.c_char_p
    return ask().decode()


@functools.cache
def _load() -> Loaded:
    choice = os.environ.get("DETKIT_OPS", "").lower()
    if choice not in _CHOICES:
        raise ValueError(f"DETKIT_OPS={choice!r} is none of cpp, reference, cuda; unset it to choose by itself")
    if choice == "cuda":
        raise RuntimeError("DETKIT_OPS=cuda: this version has no CUDA kernels; use cpp or reference, or unset it")
    if choice == "reference":
        return Loaded(None, _ASKED_FOR)
    found = _found()
    if choice == "cpp" and found.path is None:
        raise RuntimeError(f"DETKIT_OPS=cpp, but there is no compiled library: {found.reason}")
    return found


@functools.cache
def _found() -> Loaded:
    """Load what there is; a failure too is found once, not at each call."""
    oldest = ".".join(map(str, _sources.OLDEST_TORCH))
    if torch.torch_version.TorchVersion(torch.__version__) < oldest:
        return Loaded(None, f"torch {torch.__version__} is older than {oldest}; install torch {oldest} or later")
    path, passed_over = _prebuilt()
    if path:
        return Loaded(path, f"prebuilt: {path}")
    note = f" ({passed_over})" if passed_over else ""
    try:
        path = _first_use_build()
        return Loaded(path, f"built at first use: {path}{note}")
    except (_build.BuildError, OSError) as error:
        return Loaded(None, f"{error}{note}")


def _prebuilt() -> tuple[Path | None, str]:
    """Load the library that was built with the package, if there is a usable one; else say why it was passed over."""
    passed_over = ""
    for path in sorted(_sources.PACKAGE.glob("_C*.so")):
        fault = _fault(path) or _fault_of_opening(path)
        if fault is None:
            return path, ""
        passed_over = f"the installed {path} was passed over: it {fault}; {_TO_MAKE_A_NEW_ONE}"
    return None, passed_over


def _fault(path: Path) -> str | None:
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error})"
    if not _sources.is_whole(content):
        return "is damaged, or was changed after it was built"
    mark = f"detkit-sources:{_sources.digest('common', 'cpu')}\0".encode()
    return None if mark in content else "is of other sources"  # of another version: calling it could crash


def _fault_of_opening(path: Path) -> str | None:
    try:
        _open(path)
    except (OSError, RuntimeError) as error:  # another kind of machine, or a system that is too old for it
        return f"cannot be opened ({error.__cause__ or error})"
    return None


def _open(path: Path) -> Path:
    torch.ops.load_library(str(path))
    return path


def _first_use_build() -> Path:
    root = Path(torch.__file__).parent
    system = f"{sys.platform}-{''.join(platform.libc_ver())}"  # machines may share a home folder
    name = f"{_sources.digest('common', 'cpu')}-torch{torch.__version__}-{system}"
    flags = [*_sources.library_flags(), "-isystem", shlex.quote(str(root / "include"))]
    link_flags = [shlex.quote(f"-L{root / 'lib'}"), "-ltorch", "-ltorch_cpu"]
    return _build.opened_library(_build.cache_folder("ops", name), _sources.library_sources(), flags, link_flags, _open)


def _warn_once(device: str, reason: str) -> None:
    if device in _WARNED or reason == _ASKED_FOR:
        return
    _WARNED.add(device)
    warnings.warn(
        f"detkit's operations run on {device} by their PyTorch reference, because {reason}.\nResults are equal, but "
        "the loss needs several times the memory and time, and NMS and matching take a hundred times as long. "
        "`python -m detkit.env` shows the state; DETKIT_OPS=reference accepts it and silences this.",
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
