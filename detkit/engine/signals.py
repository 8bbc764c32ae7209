"""Being told to stop: batch systems send SIGTERM or SIGUSR1 before they take a machine away, people press Ctrl-C."""

from __future__ import annotations

import os
import signal
from types import TracebackType


class StopSignal:
    """While entered, notes SIGTERM, SIGUSR1 and SIGINT instead of dying of them; `received` says whether one came.

    A second SIGINT is a KeyboardInterrupt, for whoever does not want to wait.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            try:
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
            except ValueError:  # outside the main thread signals are the caller's
                return self
        return self

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os.write(2, b"\nsaving first; Ctrl-C again ends it at once\n")  # print may be what it interrupted
        self.received = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
