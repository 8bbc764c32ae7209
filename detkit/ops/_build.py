"""Building a shared library at first use: with ninja, once per cache folder, safe against other processes and kills."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from detkit.files import locked

_NINJA = """\
cxx = {compiler}
rule compile
  command = $cxx -MMD -MF $out.d {flags} -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared $in -o $out {link_flags}
{compiles}
build library.so: link {objects}
default library.so
"""


class BuildError(RuntimeError):
    """A library that cannot be built here; the message says why."""


def built_library(folder: Path, sources: Sequence[Path], flags: Sequence[str], link_flags: Sequence[str]) -> Path:
    """Return the shared library in `folder`, built from `sources` unless it is there and whole.

    The library's name holds the hash of its content, so a damaged file is built anew. A process that finds another one
    building waits for it; the lock is the kernel's (flock), so a killed build leaves none and the next one goes on from
    the objects that are done.

    Raises:
        BuildError: no compiler, no ninja, a folder that cannot be written, or the compiler's own message.
    """
    found = _whole_library(folder)
    if found is not None:
        return found
    compiler, ninja = _find_compiler(), _find_ninja()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if importlib.util.find_spec("fcntl") is None:
            raise BuildError("building at first use needs a POSIX system")
        with locked(folder / "lock"):
            return _whole_library(folder) or _build(folder, ninja, _rules(compiler, sources, flags, link_flags))
    except OSError as error:
        raise BuildError(f"the cache folder {folder} cannot be used ({error}); set DETKIT_CACHE to another") from error


def _whole_library(folder: Path) -> Path | None:
    for path in folder.glob("library.*.so"):
        with contextlib.suppress(OSError):
            if _library_name(path) == path.name:
                return path
    return None


def _library_name(path: Path) -> str:
    return f"library.{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"


def _build(folder: Path, ninja: str, rules: str) -> Path:
    (folder / "build.ninja").write_text(rules)
    result = subprocess.run([ninja, "-C", str(folder)], capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"the compiler failed in {folder}:\n{(result.stdout + result.stderr)[-3000:]}")
    built = folder / "library.so"
    target = folder / _library_name(built)
    for damaged in folder.glob("library.*.so"):
        damaged.unlink()
    shutil.copyfile(built, folder / "library.tmp")  # library.so stays: ninja's output
    os.replace(folder / "library.tmp", target)
    return target


def _rules(compiler: str, sources: Sequence[Path], flags: Sequence[str], link_flags: Sequence[str]) -> str:
    objects = [f"{i}.o" for i in range(len(sources))]
    compiles = "\n".join(f"build {o}: compile {_escaped(s)}" for o, s in zip(objects, sources, strict=True))
    return _NINJA.format(
        compiler=compiler,
        flags=" ".join(["-fPIC", *flags]),
        link_flags=" ".join(link_flags),
        compiles=compiles,
        objects=" ".join(objects),
    )


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _find_compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if shutil.which(name.split()[0]):
            return name
    raise BuildError(f"no C++ compiler was found ({'CXX=' + named if named else 'c++, g++ or clang++'})")


def _find_ninja() -> str:
    beside = Path(sys.executable).parent / "ninja"  # an environment that is used without being activated
    found = shutil.which("ninja") or (str(beside) if beside.exists() else None)
    if not found:
        raise BuildError("ninja was not found (pip install ninja)")
    return found
