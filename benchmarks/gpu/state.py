"""What a check has done so far: a file that is written after every step, so that nothing is done twice."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detkit.files import write_text_atomically
from gpu.outcome import Outcome

_DONE = ("passed", "skipped")


@dataclass
class Record:
    """A step as it ended: "passed", "failed", "skipped", "unfinished", "not run", or "running" where it has not."""

    state: str
    reason: str = ""
    seconds: float = 0.0  # over all runs of it
    date: str = ""
    sources: str = ""  # the digest of what was checked
    figures: dict[str, Any] = field(default_factory=dict)


class StateError(RuntimeError):
    """A state that does not belong to this check; the message says what to do."""


class State:
    """The records of the steps, by name, and the machine that they belong to."""

    def __init__(self, path: Path, machine: dict[str, str]) -> None:
        """Read the state, if there is one.

        Raises:
            StateError: it is of another device, torch or CUDA, or cannot be read.
        """
        self._path, self.machine = path, machine
        self.records: dict[str, Record] = {}
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text())
            self.records = {name: Record(**record) for name, record in content["steps"].items()}
            before = content["machine"]
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"{path} cannot be read ({error!r}); remove it, and everything is run again") from error
        if before != machine:
            raise StateError(f"{path} is of {before}, and this machine is {machine}; give another --output")

    def is_done(self, name: str) -> bool:
        """Whether a step has passed or been skipped."""
        return name in self.records and self.records[name].state in _DONE

    def start(self, name: str) -> None:
        """Note that a step runs: what finds it so later knows that it was interrupted."""
        before = self.records.get(name, Record(""))
        self.records[name] = Record("running", seconds=before.seconds, figures=before.figures)
        self._save()

    def finish(self, name: str, outcome: Outcome, seconds: float, sources: str) -> None:
        """Note how a step ended; figures of an earlier run stay where it gave none."""
        before = self.records[name]
        figures = outcome.figures or before.figures
        date = time.strftime("%Y-%m-%d %H:%M")
        took = round(before.seconds + seconds, 1)
        self.records[name] = Record(outcome.state, outcome.reason, took, date, sources, figures)
        self._save()

    def leave_out(self, name: str, reason: str) -> None:
        """Note that a step was not run, unless it has ended before, one way or another."""
        if name not in self.records or self.records[name].state in ("running", "not run"):
            before = self.records.get(name, Record(""))
            self.records[name] = Record("not run", reason, before.seconds, figures=before.figures)
            self._save()

    def as_dict(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {"machine": self.machine, "steps": {name: asdict(record) for name, record in self.records.items()}}

    def _save(self) -> None:
        write_text_atomically(self._path, json.dumps(self.as_dict(), indent=1))
