"""How a step ends, and what it is told and may ask while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detkit.files import write_text_atomically

ROOT = Path(__file__).resolve().parents[2]
TIMED_OUT = 124  # as an exit status, as timeout(1) has it
_TO_STOP = 10.0  # seconds for a process to write what it has
Ending = Literal["passed", "failed", "skipped", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """How a step ended, why (nothing to say where it passed), and its figures as JSON holds them."""

    state: Ending
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


class SkippedError(Exception):
    """A step, or an item of one, that has no place on this machine; the message says why."""


@dataclass(frozen=True)
class Context:
    """What a step is told.

    Attributes:
        name: the step's.
        device: "cuda", or "cpu" for a dry run at tiny sizes.
        folder: where everything of the check is kept.
        deadline: in time.monotonic(), at which the step is told to stop.
        gpus: how many CUDA devices there are.
        gib: the memory of the first one.
    """

    name: str
    device: str
    folder: Path
    deadline: float
    gpus: int = 0
    gib: float = 0.0

    @property
    def is_tiny(self) -> bool:
        """Whether sizes are those of a dry run."""
        return self.device == "cpu"

    @property
    def own(self) -> Path:
        """The step's folder, which stays from one run to the next; made if need be."""
        path = self.folder / "steps" / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def left(self) -> float:
        """Return the seconds until the step is told to stop."""
        return self.deadline - time.monotonic()

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of this step's own processes: one cache of libraries for the whole check."""
        path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "DETKIT_CACHE": str(self.folder / "cache"), "PYTHONPATH": path, **variables}

    def run(self, command: Sequence[str], log: Path, **variables: str) -> int:
        """Run a command from the root of the checkout, its output into a file, and return its exit status.

        TIMED_OUT: it was told to stop (SIGTERM), and then killed, before this step itself would have been.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        to_stop = min(_TO_STOP, 0.2 * self.left())
        with log.open("wb") as file:
            streams = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment(**variables), **streams)  # type: ignore[call-overload]
            try:
                return process.wait(max(self.left() - to_stop - 1, 0.1))
            except subprocess.TimeoutExpired:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(to_stop)
                return TIMED_OUT
            finally:
                process.kill()
                process.wait()


class Ledger:
    """The items of a step, kept in a file after each: a step that is run again does what is missing or failed."""

    def __init__(self, context: Context) -> None:
        self._path = context.own / "items.json"
        self._left = context.left
        self.items: dict[str, dict[str, Any]] = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.not_run: list[str] = []

    def once(self, key: str, work: Callable[[], Any], seconds: float = 0) -> Any | None:
        """Return what `work` returned, now or before; None where it failed, was skipped, or `seconds` are not left."""
        if "error" not in self.items.get(key, {"error": ""}):
            return self.items[key].get("value")
        if self._left() < seconds:
            self.not_run.append(key)
            return None
        self.keep(key, _item(work))
        return self.items[key].get("value")

    def keep(self, key: str, item: Mapping[str, Any]) -> None:
        """Put an item into the file: {"value": }, {"skipped": why} or {"error": what}."""
        self.items[key] = dict(item)
        write_text_atomically(self._path, json.dumps(self.items, indent=1))

    def values(self) -> dict[str, Any]:
        """Return the items that have a value."""
        return {key: item["value"] for key, item in self.items.items() if "value" in item}

    def outcome(self, figures: Mapping[str, Any] | None = None) -> Outcome:
        """Return how a step of these items ended: failed where one did, unfinished where one had no time."""
        errors = {key: item["error"] for key, item in self.items.items() if "error" in item}
        skipped = {key: item["skipped"] for key, item in self.items.items() if "skipped" in item}
        every = {"items": self.values(), "errors": errors, "skipped": skipped, **(figures or {})}
        if errors:
            return Outcome("failed", "; ".join(f"{key}: {first_line(text)}" for key, text in errors.items()), every)
        if self.not_run:
            return Outcome("unfinished", f"no time left for {', '.join(self.not_run)}", every)
        return Outcome("passed", "; ".join(f"{key}: {text}" for key, text in skipped.items()), every)


def _item(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": work()}
    except SkippedError as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # an item that fails is a finding; the others still count
        if type(error).__name__ == "OutOfMemoryError":
            return {"skipped": f"out of memory ({first_line(str(error))})"}
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def first_line(text: str, most: int = 300) -> str:
    """Return the first line of a text that is not empty, cut where it is long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= most else line[:most] + " ..."
