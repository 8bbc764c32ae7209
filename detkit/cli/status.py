"""The exit status of a command: what is the user's to mend is a message, what is the program's a traceback."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
_LESS_MEMORY = "Use less: a smaller SOLVER.IMS_PER_BATCH or TEST.IMS_PER_BATCH, smaller pictures, or PRECISION bf16."


def status_of(work: Callable[[], int | None], *, also: tuple[type[Exception], ...] = ()) -> int:
    """Do a command's work, and return its status, 0 where it returns none.

    An error that is the user's to mend (config, data, weights, memory, a disk that is full or cannot be written; of the
    command, `also`) is one message on standard error and status 2; one of the program is a traceback.
    """
    import torch

    from detkit.checkpoint import CheckpointError
    from detkit.config import ConfigError
    from detkit.data import DataError, WorkerKilledError
    from detkit.engine import NonFiniteLossError
    from detkit.engine.run_folder import BusyError
    from detkit.experiments.figures import FigureError
    from detkit.ops.math import BuildError
    from detkit.registry import UnknownComponentError

    users: tuple[type[Exception], ...] = (
        BuildError,
        BusyError,
        CheckpointError,
        ConfigError,
        DataError,
        FigureError,
        NonFiniteLossError,
        UnknownComponentError,
        WorkerKilledError,
    )
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _is_stdout_gone():
            raise
        return 0  # `| head` has read enough
    except (*users, *also) as error:
        _is_stdout_gone()  # flushed, so that a pipe has the lines in order
        print(f"error: {error}", file=sys.stderr)
    except torch.OutOfMemoryError as error:
        print(f"error: {error}\n{_LESS_MEMORY}", file=sys.stderr)
    except OSError as error:
        if error.errno not in _OF_DISK or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


def _is_stdout_gone() -> bool:
    """Flush standard output; return whether nobody reads it any more, and send what follows nowhere."""
    try:
        sys.stdout.flush()
        handle = sys.stdout.fileno()
    except BrokenPipeError:
        is_gone = True
    except (OSError, ValueError):  # a stream without a file, or closed
        return False
    else:  # after a failed write there may be nothing left to flush
        poll = select.poll() if hasattr(select, "poll") else None  # not on Windows
        if poll is not None:
            poll.register(handle, 0)
        is_gone = poll is not None and any(event & select.POLLERR for _, event in poll.poll(0))
    if is_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so once more at its end
    return is_gone
