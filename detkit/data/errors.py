"""The errors of what is wrong with a user's data, and with the processes that read them."""

from __future__ import annotations


class DataError(ValueError):
    """A data set, an annotation or a picture cannot be used. The message names the file, the value and the way out."""


class WorkerKilledError(RuntimeError):
    """A worker process of a loader was killed by a signal. The message names it, the likely cause and the way out."""
