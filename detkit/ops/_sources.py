"""What the compiled library is built from, and how: shared by setup.py, which runs this file alone, and first use."""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

# The oldest torch to run on: one binary serves it and every later one (LibTorch stable ABI).
TORCH_TARGET = "0x020a000000000000"  # 2.10

# No contraction to fused multiply-add: the arithmetic of boxes is defined operation by operation.
# None of them changes a value: the other two only drop the error codes and flags of C that forbid vectors.
COMPILE_FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]


def csrc_folder() -> Path:
    """Return the folder of the C++ sources: inside an installed package, beside it in a checkout."""
    inside = PACKAGE / "csrc"
    return inside if inside.is_dir() else PACKAGE.parent / "csrc"


def library_sources() -> list[Path]:
    """Return the files that make the library of CPU kernels."""
    return sorted(p for room in ("common", "cpu") for p in (csrc_folder() / room).glob("*.cpp"))


def library_flags() -> list[str]:
    """Return the compiler flags of the library of CPU kernels."""
    return [*COMPILE_FLAGS, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-DDETKIT_SOURCES={digest('common', 'cpu')}"]


def digest(*rooms: str) -> str:
    """Return a name for the content of some folders of csrc/, with `math/`, and the flags they are compiled with."""
    found = hashlib.sha256(repr((COMPILE_FLAGS, TORCH_TARGET)).encode())
    for room in sorted({*rooms, "math"}):
        for path in sorted((csrc_folder() / room).glob("*.*")):
            found.update(f"{room}/{path.name}\0".encode() + path.read_bytes())
    return "s" + found.hexdigest()[:16]
