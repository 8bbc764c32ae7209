"""The exit status of a command: what is the user's to mend is a message, what is the program's a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


def status_of(work: Callable[[], int | None], *, also: tuple[type[Exception], ...] = ()) -> int:
    """Do a command's work, and return its status, 0 where it returns none.

    An error that is the user's to mend (config, data, weights, memory; of the command, `also`) is one message on
    standard error and status 2; one of the program is a traceback.
    """
    from detkit.checkpoint import CheckpointError
    from detkit.config import ConfigError
    from detkit.data import DataError, WorkerKilledError
    from detkit.engine import NonFiniteLossError
    from detkit.experiments.figures import FigureError
    from detkit.ops.math import BuildError
    from detkit.registry import UnknownComponentError

    users: tuple[type[Exception], ...] = (
        BuildError,
        CheckpointError,
        ConfigError,
        DataError,
        FigureError,
        NonFiniteLossError,
        UnknownComponentError,
        WorkerKilledError,
    )
    try:
        return work() or 0
    except (*users, *also) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
