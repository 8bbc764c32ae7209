"""What a compiled library is built from, and what tells a whole one. setup.py runs this file alone."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

# The oldest torch to run on: one binary serves it and every later one (LibTorch stable ABI).
OLDEST_TORCH = (2, 10)
TORCH_TARGET = "0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)

# -ffp-contract=off: no fused multiply-add, for the arithmetic of boxes is defined operation by operation.
# -fno-math-errno and -fno-trapping-math change no value: they drop error codes and flags of C, which forbid vectors.
COMPILE_FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-fPIC",
]
# Of nvcc, which passes on what follows -Xcompiler. It may fuse products and sums: where that matters, code forbids it.
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]

_SOURCE_SUFFIXES = {".h", ".cuh", ".cpp", ".cu"}  # no backups of an editor, no .DS_Store
_SEAL = b"detkit-sha256:"
# macOS signs a library up to the end of its file, and may open none with more behind it: there it goes without.
_IS_SEALED = sys.platform != "darwin"


def csrc_folder() -> Path:
    """Return the folder of the C++ sources: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / "csrc"
    return inside if inside.is_dir() else PACKAGE.parent / "csrc"


def library_sources(room: str) -> list[Path]:
    """Return the files that make the library of the kernels in `cpu` or `cuda`; none where csrc/ is missing."""
    return [path for path in source_files("common", room) if path.suffix in (".cpp", ".cu")]


def source_files(*rooms: str) -> list[Path]:
    """Return the sources and headers in some folders of csrc/, room by room in order."""
    folders = [csrc_folder() / room for room in sorted(set(rooms))]
    return [p for folder in folders for p in sorted(folder.glob("*")) if p.suffix in _SOURCE_SUFFIXES]


def definitions(room: str) -> list[str]:
    """Return the macros of the library of the kernels in `cpu` or `cuda`."""
    found = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-DDETKIT_SOURCES={digest('common', room)}"]
    return [*found, "-DUSE_CUDA"] if room == "cuda" else found  # torch's headers: the stream and the guard of a GPU


def digest(*rooms: str) -> str:
    """Return a name for the content of some folders of csrc/, with `math/`, and the flags they are compiled with."""
    flags = (COMPILE_FLAGS, TORCH_TARGET, *([NVCC_FLAGS] if "cuda" in rooms else []))
    found = hashlib.sha256(repr(flags).encode())
    for path in source_files(*rooms, "math"):
        found.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes())
    return "s" + found.hexdigest()[:16]


def sealed(library: bytes) -> bytes:
    """Return the content of a shared library with its own digest at the end, where ELF has nothing; macOS: as it is."""
    if not _IS_SEALED:
        return library
    return library + _SEAL + hashlib.sha256(library).hexdigest().encode()


def is_whole(content: bytes) -> bool:
    """Tell whether a file is as `sealed` returned it: opening a damaged library can kill the process.

    On macOS a file without a seal passes unless it is empty.
    """
    if not _IS_SEALED:
        return bool(content)
    return content == sealed(content.rpartition(_SEAL)[0])
