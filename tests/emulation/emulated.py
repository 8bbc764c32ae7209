"""The CUDA kernels on the emulated device: the library of operators, for tensors on the CPU."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from detkit.ops import _build, _library, _sources

HERE = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).parent
# The same arithmetic as the kernels have: products are not fused, where it matters (csrc/math/box.h).
FLAGS = [
    *("-fPIC", "-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    '-DDETKIT_EMULATED_DEVICE="emulated_device.h"',
    *("-isystem", str(TORCH / "include")),
]
_DEVICE = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


@functools.cache
def load() -> str | None:
    """Build and load the kernels for the emulated device; returns why that cannot be, or None."""
    if torch.cuda.is_available():
        return "there is a GPU: the kernels run on it"
    sources = [*sorted((_sources.csrc_folder() / "cuda").glob("*.cu")), HERE / "fibres.cpp"]
    flags = [*FLAGS, f"-I{HERE}", f"-DTORCH_TARGET_VERSION={_sources.TORCH_TARGET}"]
    link_flags = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu"]
    try:
        folder = _build.cache_folder("emulation", f"{_digest()}-torch{torch.__version__}")
        words = (list(map(shlex.quote, part)) for part in (flags, link_flags))
        _build.opened_library(folder, sources, *words, lambda path: torch.ops.load_library(str(path)))
    except _build.BuildError as error:
        if "the compiler failed" in str(error):
            raise
        return str(error)
    return None


def _digest() -> str:
    found = hashlib.sha256(repr(FLAGS).encode())
    for path in [*sorted(_sources.csrc_folder().rglob("*.*")), *sorted(HERE.glob("*.*"))]:
        if path.is_file():
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


@contextlib.contextmanager
def forced() -> Iterator[None]:
    """Run the operations on CPU tensors by the emulated kernels within a block."""
    override = torch.library.Library("detkit", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*only once for all operators.*")  # the override is the purpose
            for name in _library._REFERENCES:
                kernel = functools.partial(getattr(torch.ops.detkit, name).default.redispatch, _DEVICE)
                override.impl(name, kernel, "CPU", allow_override=True)
        yield
    finally:
        override._destroy()
