"""Building a shared library at first use: with ninja, once per cache folder, safe against other processes and kills."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detkit import files
from detkit.log import get_logger
from detkit.ops import _sources

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
_logger = get_logger(__name__)


class BuildError(RuntimeError):
    """A library that cannot be built here; the message says why, and the way out."""


def cache_folder(room: str) -> Path:
    """Return the folder of a kind of libraries in detkit's cache.

    Raises:
        BuildError: there is no home folder to put a cache into.
    """
    try:
        return files.cache_folder() / room
    except RuntimeError as error:
        raise BuildError(f"there is no place for a cache ({error}) Set DETKIT_CACHE to a folder.") from error


def built_library(folder: Path, sources: Sequence[Path], flags: Sequence[str], link_flags: Sequence[str]) -> Path:
    """Return the shared library in `folder`, built from `sources` unless it is there and whole.

    The file ends with its digest, so a damaged one is built anew. A process that finds another one building waits for
    it. The lock is the kernel's (flock), so a killed build leaves none; and each build has a folder of its own, so
    compilers that outlive theirs write into no other. Flags are words of the shell.

    Raises:
        BuildError: no sources, compiler or ninja, a folder that cannot be written, or the compiler's own message.
    """
    library = folder / "library.so"
    if _is_whole(library):
        return library
    if not sources:
        raise BuildError("the C++ sources are missing; install detkit again")
    compiler, ninja = _find_compiler(), _find_ninja()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if importlib.util.find_spec("fcntl") is None:
            raise BuildError("building at first use needs a POSIX system, such as Linux or macOS")
        waits = f"another process compiles {folder}; waiting for it"
        with files.locked(folder / "lock", on_wait=lambda: _logger.info(waits)):
            if not _is_whole(library):
                _build(library, ninja, _rules(compiler, sources, flags, link_flags))
            return library
    except OSError as error:
        raise BuildError(f"the cache folder {folder} cannot be used ({error}); set DETKIT_CACHE to another") from error


def _is_whole(path: Path) -> bool:
    try:
        return _sources.is_whole(path.read_bytes())
    except OSError:
        return False


def _build(library: Path, ninja: Sequence[str], rules: str) -> None:
    _logger.info("compiling C++ operations, once: some seconds (%s)", library.parent)
    for left in library.parent.glob("build.*"):  # by builds that were killed
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="build.", dir=library.parent))
    try:
        (work / "build.ninja").write_bytes(os.fsencode(rules))
        _run([*ninja, "-C", str(work)], library.parent / "output.txt")
        built = (work / library.name).read_bytes()
        files.write_atomically(library, lambda file: file.write(_sources.sealed(built)))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: Sequence[str], output: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C"}  # messages in English
    try:
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise BuildError(f"ninja cannot be run ({error}); install it (pip install ninja)") from error
    if result.returncode:
        text = result.stdout.decode(errors="replace")
        with contextlib.suppress(OSError):  # a full disk may be the very reason
            output.write_text(text, encoding="utf-8")
        raise BuildError(f"the compiler failed, see {output}:\n{_short(text)}")


def _short(output: str) -> str:
    """The first lines that name an error, else the last lines; each of them cut where it is long."""
    lines = [line for line in output.splitlines() if line.strip()]
    named = [line for line in lines if "error" in line.lower() or "cannot" in line.lower() or "No space" in line]
    return "\n".join(line[:300] for line in (named[:3] or lines[-3:]))


def _rules(compiler: str, sources: Sequence[Path], flags: Sequence[str], link_flags: Sequence[str]) -> str:
    objects = [f"{i}.o" for i in range(len(sources))]
    compiles = "\n".join(f"build {o}: compile {_escaped(s)}" for o, s in zip(objects, sources, strict=True))
    return _NINJA.format(
        compiler=compiler.replace("$", "$$"),
        flags=" ".join(["-fPIC", *flags]).replace("$", "$$"),
        link_flags=" ".join(link_flags).replace("$", "$$"),
        compiles=compiles,
        objects=" ".join(objects),
    )


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _find_compiler() -> str:
    """Return the words of the shell that call the compiler."""
    named = os.environ.get("CXX", "").strip()
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if shutil.which(name):
            return shlex.quote(name)
        if shutil.which(name.split()[0]):  # "ccache g++"
            return name
    tried = f"CXX={named}" if named else "c++, g++ or clang++"
    raise BuildError(f"no C++ compiler was found ({tried}); install one, such as g++, or name it in CXX")


def _find_ninja() -> list[str]:
    found = shutil.which("ninja")
    if found:
        return [found]
    if importlib.util.find_spec("ninja") and sys.executable:  # an environment that is used without being activated
        return [sys.executable, "-m", "ninja"]
    raise BuildError("ninja was not found; install it (pip install ninja)")
