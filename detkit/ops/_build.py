"""Building a shared library at first use: with ninja, once per cache folder, safe against other processes and kills."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

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
_SECONDS_UNUSED = 30 * 24 * 3600  # after so long without use a library is removed
_logger = get_logger(__name__)
_Opened = TypeVar("_Opened")


class BuildError(RuntimeError):
    """A library that cannot be built here; the message says why, and the way out."""


class _UnusableError(BuildError):
    """A library that is missing, damaged or cannot be opened: a new one may serve."""


def cache_folder(room: str, name: str) -> Path:
    """Return the folder of a library in detkit's cache: in a room of its kind, by its name and the kind of machine.

    Raises:
        BuildError: there is no home folder to put a cache into.
    """
    try:
        return files.cache_folder() / room / f"{name}-{platform.machine()}"
    except RuntimeError as error:
        raise BuildError(f"there is no place for a cache ({error}) Set DETKIT_CACHE to a folder.") from error


def opened_library(
    folder: Path,
    sources: Sequence[Path],
    flags: Sequence[str],
    link_flags: Sequence[str],
    open_library: Callable[[Path], _Opened],
    find_compiler: Callable[[], str] | None = None,
) -> _Opened:
    """Open the shared library in `folder`, built from `sources` unless it is there, whole, and can be opened.

    The file ends with its digest, so a damaged one is built anew. A process that finds another one building waits for
    it. The lock is the kernel's (flock), so a killed build leaves none; and each build has a folder of its own, so
    compilers that outlive theirs write into no other. Flags are words of the shell. `open_library` gets the path, and
    raises ImportError, OSError or RuntimeError where it cannot open it. `find_compiler` returns the words that call
    what compiles and links, and is asked where there is something to build; without it, that is the C++ compiler.

    Raises:
        BuildError: no sources, compiler or ninja, a folder that cannot be written or that others can write to, the
            compiler's own message, or a new library that cannot be opened either.
    """
    library = folder / "library.so"
    try:
        with contextlib.suppress(_UnusableError):
            return _opened(library, open_library)
        if not sources:
            raise BuildError("the C++ or CUDA sources are missing; install detkit again")
        compiler, ninja = (find_compiler or _find_compiler)(), _find_ninja()
        with _locked(folder):
            with contextlib.suppress(_UnusableError):  # another process may have built it
                return _opened(library, open_library)
            _announce(folder, sources)
            _build(library, ninja, _rules(compiler, sources, flags, link_flags))
            return _opened(library, open_library)
    except OSError as error:
        raise BuildError(f"the cache folder {folder} cannot be used ({error}); set DETKIT_CACHE to another") from error


def _opened(library: Path, open_library: Callable[[Path], _Opened]) -> _Opened:
    if not library.exists():
        raise _UnusableError(f"{library} is missing")
    _refuse_what_others_can_write(library.parent, library)
    if not _sources.is_whole(library.read_bytes()):
        raise _UnusableError(f"{library} is damaged")
    try:
        opened = open_library(library)
    except (ImportError, OSError, RuntimeError) as error:
        raise _error_of_opening(library, str(error.__cause__ or error)) from error
    with contextlib.suppress(OSError):  # a cache that is read only
        os.utime(library)  # for _remove_unused
    return opened


def _error_of_opening(library: Path, reason: str) -> BuildError:
    text = f"{library} cannot be opened ({reason})"
    if "failed to map segment" in reason or "not permitted" in reason:
        return BuildError(f"{text}; set DETKIT_CACHE to a folder on a file system that can run programs")
    return _UnusableError(f"{text}; another compiler, named in CXX, may make one that can")


def _refuse_what_others_can_write(*paths: Path) -> None:
    """Raise BuildError where another user may have put or changed something: a library is code that we would run."""
    for path in paths if hasattr(os, "geteuid") else ():
        found = path.stat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
            raise BuildError(f"{path} belongs to another user, or any user may write to it, so no library of it is "
                             "opened; remove it, or set DETKIT_CACHE to a folder of your own")  # fmt: skip


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder for a library, and hold its lock."""
    if importlib.util.find_spec("fcntl") is None:
        raise BuildError("building at first use needs a POSIX system, such as Linux or macOS")
    folder.parent.mkdir(0o700, parents=True, exist_ok=True)
    folder.mkdir(0o700, exist_ok=True)
    _refuse_what_others_can_write(folder)
    waits = f"detkit: another process compiles {folder}; waiting for it"
    with files.locked(folder / "lock", on_wait=lambda: _say(waits)):
        yield


def _announce(folder: Path, sources: Sequence[Path]) -> None:
    has_cuda = any(path.suffix == ".cu" for path in sources)
    what, time_it_takes = ("CUDA", "half a minute or more") if has_cuda else ("C++", "seconds to a minute")
    _say(f"detkit: compiling its {what} code, once, into {folder} ({time_it_takes})")


def _say(text: str) -> None:
    """Log a line that a script without logging shows too, on stderr: a minute of silence looks like a hang."""
    shows_info = _logger.isEnabledFor(logging.INFO) and _logger.hasHandlers()
    _logger.log(logging.INFO if shows_info else logging.WARNING, text)


def _remove_unused(room: Path) -> None:
    """Remove libraries that nobody opened for long, as far as possible; a process that has one open keeps it."""
    oldest = time.time() - _SECONDS_UNUSED
    with contextlib.suppress(OSError):
        for library in room.glob("*/library.so"):
            if library.stat().st_mtime < oldest:
                shutil.rmtree(library.parent, ignore_errors=True)


def _build(library: Path, ninja: Sequence[str], rules: str) -> None:
    for left in library.parent.glob("build.*"):  # by builds that were killed
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="build.", dir=library.parent))
    try:
        (work / "build.ninja").write_bytes(os.fsencode(rules))
        _run([*ninja, "-C", str(work)], library.parent / "output.txt")
        sealed = work / "sealed.so"
        sealed.write_bytes(_sources.sealed((work / library.name).read_bytes()))
        sealed.chmod(0o755)  # whatever the umask
        os.replace(sealed, library)
        _remove_unused(library.parent.parent)
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
        flags=" ".join(flags).replace("$", "$$"),
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
