"""Which kernels run: those of a compiled library where it loads, the PyTorch reference elsewhere.

There is a library of CPU kernels and one of CUDA kernels, and neither knows of the other. Nothing happens at import.
The first call of an operation on a device lands in its kernel of last resort, which looks for the library of the device
(prebuilt beside the package, else built into the cache folder), loads it, and calls again; from then on the dispatcher
goes straight to the compiled kernel. `DETKIT_OPS=cpp|cuda|reference` forces a choice.
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

from detkit.ops import _build, _nvcc, _sources

_REFERENCES: dict[str, Callable[..., Any]] = {}
_WARNED: set[str] = set()
_LOCK = threading.RLock()
_BACKENDS = {"cpu": "cpp", "cuda": "cuda"}  # of the compiled kernels, by device
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_ASKED_FOR = "DETKIT_OPS=reference"
_TO_MAKE_A_NEW_ONE = "installing detkit again (pip install --force-reinstall --no-cache-dir --no-deps) makes a new one"


@dataclass(frozen=True)
class Loaded:
    """The library in use on a device: its file, or None for the reference, and the reason."""

    path: Path | None
    reason: str


def kernel_of_last_resort(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return what the dispatcher calls for an operation that has no kernel for the device (yet)."""
    _REFERENCES[name] = run

    @functools.wraps(run)
    def kernel(*arguments: Any) -> Any:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        device = tensors[0].device.type
        kinds = {f"{tensor.layout} on {tensor.device.type}" for tensor in tensors}
        if kinds != {f"{torch.strided} on {device}"}:  # whose kernel would be this one again
            raise ValueError(f"{name}: tensors must be strided and on one device, and are {', '.join(sorted(kinds))}")
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
    """Return which backend runs an operation on a device type, and why; loads, and may build, the library.

    Returns:
        "cpp" for CPU kernels, "cuda" for CUDA kernels, "reference" else.
    """
    loaded = load(device)
    if loaded.path is None:
        return "reference", loaded.reason
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"detkit::{name}", _KEYS[device]):
        return _BACKENDS[device], loaded.reason
    reason = f"{loaded.path} has no kernel of {name}"
    _refuse_if_forced(device, reason)
    return "reference", reason


def load(device: str = "cpu") -> Loaded:
    """Load the library of a device type, once per process, and return what is in use.

    Raises:
        RuntimeError: DETKIT_OPS forces a backend that is not to be had. ValueError: it names none.
    """
    with _LOCK:
        return _load(device)


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


def architectures(library: Path) -> str:
    """Return the GPUs that a library of CUDA kernels was compiled for, such as "sm_90 compute_120 sm_120"."""
    return " ".join(_nvcc.architectures_in(library.read_bytes())) or "none"


def prebuilt(device: str) -> list[Path]:
    """Return the libraries that were built with the package, whether or not they can serve."""
    return sorted(_sources.PACKAGE.glob({"cpu": "_C.*so", "cuda": "_C_cuda.*so"}[device]))


@functools.cache
def _load(device: str) -> Loaded:
    choice = _choice()
    if choice not in ("", "reference", *_BACKENDS.values()):
        raise ValueError(f"DETKIT_OPS={choice!r} is none of cpp, reference, cuda; unset it to choose by itself")
    if choice == "reference":
        return Loaded(None, _ASKED_FOR)
    found = _found(device)
    if found.path is None:
        _refuse_if_forced(device, f"there is no compiled library: {found.reason}")
    return found


def _choice() -> str:
    return os.environ.get("DETKIT_OPS", "").lower()


def _refuse_if_forced(device: str, reason: str) -> None:
    if _choice() == _BACKENDS.get(device):
        raise RuntimeError(f"DETKIT_OPS={_choice()}, but {reason}")


@functools.cache
def _found(device: str) -> Loaded:
    """Load what there is; a failure too is found once, not at each call."""
    obstacle = _obstacle(device)
    if obstacle:
        return Loaded(None, obstacle)
    path, passed_over = _prebuilt(device)
    if path:
        return Loaded(path, f"prebuilt: {path}")
    note = f" ({passed_over})" if passed_over else ""
    try:
        path = _first_use_build_for_gpus() if device == "cuda" else _first_use_build()
        return Loaded(path, f"built at first use: {path}{note}")
    except (_build.BuildError, _nvcc.NvccError, OSError) as error:
        return Loaded(None, f"{error}{note}")


def _obstacle(device: str) -> str | None:
    """Return why no library can serve, whatever is installed here."""
    if device not in _BACKENDS:
        return f"this version has no kernels for {device}"
    oldest = ".".join(map(str, _sources.OLDEST_TORCH))
    if torch.torch_version.TorchVersion(torch.__version__) < oldest:
        return f"torch {torch.__version__} is older than {oldest}; install torch {oldest} or later"
    if device == "cuda" and torch.version.hip:
        return f"torch {torch.__version__} is built for ROCm, and the kernels are for CUDA"
    if device == "cuda" and not torch.version.cuda:
        return f"torch {torch.__version__} is built without CUDA"
    if device == "cuda" and not _gpus():
        return "torch sees no GPU here that it can use"
    return None


def _gpus() -> list[_nvcc.Capability]:
    """Return the compute capability of each visible GPU that torch has code for; an old one may drive a screen."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_capability(i) for i in range(count)]
    return [gpu for gpu in found if not _nvcc.lacking(torch.cuda.get_arch_list(), [gpu])]


def _prebuilt(device: str) -> tuple[Path | None, str]:
    """Load the library that was built with the package, if there is a usable one; else say why it was passed over."""
    passed_over = ""
    for path in prebuilt(device):
        fault = _fault(path, device) or _fault_of_opening(path)
        if fault is None:
            return path, ""
        passed_over = f"the installed {path} was passed over: it {fault}; {_TO_MAKE_A_NEW_ONE}"
    return None, passed_over


def _fault(path: Path, device: str) -> str | None:
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be read ({error})"
    if not _sources.is_whole(content):
        return "is damaged, or was changed after it was built"
    mark = f"detkit-sources:{_sources.digest('common', device)}\0".encode()
    if mark not in content:
        return "is of other sources"  # of another version: calling it could crash
    return _fault_for_gpus(content) if device == "cuda" else None


def _fault_for_gpus(library: bytes) -> str | None:
    """Return what of a library of CUDA kernels does not fit torch, or the visible GPUs."""
    cuda, architectures = _nvcc.runtime_in(library), _nvcc.architectures_in(library)
    if not cuda:
        return f"does not say the version of CUDA that it is built with; torch has CUDA {torch.version.cuda}"
    if not f"{torch.version.cuda}.".startswith(f"{cuda}."):  # a driver may be too old for the other one
        return f"is built with CUDA {cuda}, but torch with CUDA {torch.version.cuda}"
    gpus = sorted(set(_gpus()))
    lacking = _nvcc.lacking(architectures, gpus)
    if not lacking:
        return None
    built, here = " ".join(architectures) or "no GPU", " ".join(lacking)
    wanted = shlex.quote(" ".join(f"{major}.{minor}" for major, minor in gpus))  # all, or the next build lacks others
    return f"is compiled for {built}, but the GPU here ({here}) needs a build with TORCH_CUDA_ARCH_LIST={wanted}"


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
    flags = [*_sources.COMPILE_FLAGS, *_sources.definitions("cpu"), *_include_flags()]
    folder = _build.cache_folder("ops", f"{_sources.digest('common', 'cpu')}-{_platform()}")
    return _build.opened_library(folder, _sources.library_sources("cpu"), flags, _link_flags(), _open)


def _first_use_build_for_gpus() -> Path:
    """Build, once, the CUDA kernels for the GPUs that are visible now."""
    gpus = sorted(set(_gpus()))
    made_for = "-".join([*(f"sm_{major}{minor}" for major, minor in gpus), f"cuda{torch.version.cuda}"])
    folder = _build.cache_folder("ops", f"{_sources.digest('common', 'cuda')}-{made_for}-{_platform()}")
    sources = _sources.library_sources("cuda")
    flags = [*_sources.NVCC_FLAGS, *_sources.definitions("cuda"), *_include_flags()]
    link_flags = ["-cudart=shared", "-Xlinker=--no-as-needed", *_link_flags("torch_cuda", "c10_cuda")]
    return _build.opened_library(folder, sources, flags, link_flags, _open, lambda: _find_compiler_for(gpus))


def _find_compiler_for(gpus: list[_nvcc.Capability]) -> str:
    """Return the words of the shell that call nvcc for some GPUs, with the C++ compiler that the CPU's kernels have."""
    nvcc = _nvcc.find(torch.version.cuda)
    architectures = _nvcc.architectures_for(nvcc, gpus)
    compiler = shlex.split(_build._find_compiler())
    words = [f"-ccbin={compiler[0]}"] if len(compiler) == 1 else []  # nvcc takes no "ccache g++"
    words.append(f"-Xlinker=-rpath,{nvcc.toolkit() / 'lib64'}")  # where torch has the runtime of CUDA inside itself
    return shlex.join([nvcc.path, *words, *_nvcc.flags(architectures), _nvcc.definition(architectures)])


def _platform() -> str:
    """Return what a library of first use is for, beside the machine: several may share a home folder."""
    return f"torch{torch.__version__}-{sys.platform}-{''.join(platform.libc_ver())}"


def _include_flags() -> list[str]:
    return ["-isystem", shlex.quote(str(Path(torch.__file__).parent / "include"))]


def _link_flags(*libraries: str) -> list[str]:
    """Return what links with torch, and with those of some further libraries of it that there are."""
    folder = Path(torch.__file__).parent / "lib"
    there = [f"-l{library}" for library in libraries if (folder / f"lib{library}.so").exists()]
    return [shlex.quote(f"-L{folder}"), "-ltorch", "-ltorch_cpu", *there]


def _warn_once(device: str, reason: str) -> None:
    if device in _WARNED or reason == _ASKED_FOR:
        return
    _WARNED.add(device)
    longer = "take a hundred times as long" if device == "cpu" else "take far longer, image by image"
    warnings.warn(
        f"detkit's operations run on {device} by their PyTorch reference, because {reason}.\nResults are equal, but "
        f"the loss needs several times the memory and time, and NMS and matching {longer}. "
        "`python -m detkit.env` shows the state; DETKIT_OPS=reference accepts it and silences this.",
        RuntimeWarning,
        stacklevel=2,
    )


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """Run the operations by "cpp" (on the CPU), "cuda" (on GPUs) or "reference" (on both) within a block; for tests.

    Raises:
        RuntimeError: "cpp" or "cuda", where there is no such library.
    """
    if backend != "reference":
        loaded = load(next(device for device, name in _BACKENDS.items() if name == backend))
        if loaded.path is None:
            raise RuntimeError(f"there is no compiled library: {loaded.reason}")
        yield
        return
    override = torch.library.Library("detkit", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*only once for all operators.*")  # the override is the purpose
            for name, run in _REFERENCES.items():
                for key in _KEYS.values():
                    override.impl(name, run, key, allow_override=True)
        yield
    finally:
        override._destroy()
