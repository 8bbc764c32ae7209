"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_locks: set[int] = set()  # open files of this process
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # some network file systems


def write_atomically(path: Path | str, write: Callable[[BinaryIO], object]) -> None:
    """Write a file through a temporary one beside it: fsync, rename, fsync the folder. Nothing is left on failure.

    A full disk, or a folder that cannot be written, is an OSError that names the file. Ctrl-C is a KeyboardInterrupt
    also where the writer makes another error of it, as torch.save does.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        file = _KeepingErrors(os.fdopen(handle, "wb"))
        with file:
            write(file)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
            if file.error is not None:  # which the writer kept to itself
                raise file.error
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        of_disk = file.error or (error if isinstance(error, OSError) and error.filename is None else None)
        if of_disk is not None and of_disk.errno is not None:
            raise OSError(of_disk.errno, of_disk.strerror, str(path)) from error
        if _arose_from_interrupt(error):
            raise KeyboardInterrupt from error
        raise
    _sync_folder(path.parent)


class _KeepingErrors:
    """An open file that remembers the error of the disk: some writers, torch's among them, make another one of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        return self._noting(lambda: self._file.write(data))

    def flush(self) -> None:
        self._noting(self._file.flush)

    def _noting(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _KeepingErrors:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError) if self.error is not None else contextlib.nullcontext():
            self._file.close()


def _arose_from_interrupt(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def write_text_atomically(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file as write_atomically does."""
    write_atomically(path, lambda file: file.write(text.encode()))


@contextlib.contextmanager
def folder_made_whole(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` at the end, so that `path` is whole or absent.

    Where another process finished first, its folder stays and ours is dropped. Nothing is left on failure.
    """
    import shutil

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    os.chmod(temporary, 0o777 & ~_umask())
    try:
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(path.parent)


@contextlib.contextmanager
def locked(path: Path | str, on_wait: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """Hold a lock by the name of a file, which is made and stays; yield whether another process held it before.

    `on_wait` is called where it does, before waiting. The lock is the kernel's (flock), so a process that dies leaves
    none, whatever it has forked. A system or a file system without flock goes on without a lock. Raises OSError where
    the file cannot be made, or is a symbolic link.
    """
    with contextlib.ExitStack() as stack:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        _locks.add(handle)
        stack.callback(_close_lock, handle)
        has_waited, is_locked = False, True
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                has_waited = True
                on_wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                is_locked = False
            if is_locked:  # a process that is just being started may have the file open still
                stack.callback(fcntl.flock, handle, fcntl.LOCK_UN)
        yield has_waited


def _close_lock(handle: int) -> None:
    if handle in _locks:
        _locks.remove(handle)
        os.close(handle)


def _leave_locks_to_the_parent() -> None:
    """Close, in a forked child, what would hold the locks of its parent after the parent's death."""
    for handle in list(_locks):
        _close_lock(handle)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


def new_numbered_folder(parent: Path | str) -> Path:
    """Make and return `parent/n`, n one above the largest there; never one that exists (exclusive mkdir)."""
    parent = Path(parent)
    while True:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            taken = [int(p.name) for p in parent.iterdir() if p.name.isdigit()]
            folder = parent / str(max(taken, default=0) + 1)
            folder.mkdir()
            return folder
        except (FileExistsError, FileNotFoundError):  # another process made this number, or removed the empty parent
            if os.path.lexists(parent) and not parent.is_dir():  # a file, or a link to nowhere
                raise


def cache_folder() -> Path:
    """Return where detkit keeps what it can make again: `$DETKIT_CACHE`, else `$XDG_CACHE_HOME/detkit`, `~/.cache`."""
    if os.environ.get("DETKIT_CACHE"):
        return Path(os.environ["DETKIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detkit"


def datasets_folder() -> Path:
    """Return the folder that relative paths of data sets start from: `$DETKIT_DATASETS`, else the working folder."""
    return Path(os.environ.get("DETKIT_DATASETS") or ".")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems refuse to sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
