"""Running steps: each in a process of its own, within its limit and what is left of the budget, and killed after it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.outcome import Outcome, first_line
from gpu.state import State

_GRACE = 15.0  # seconds from being told to stop to being killed: a training writes its checkpoint
_LAST = 40  # lines of a log that may say why


@dataclass(frozen=True)
class Step:
    """A step: its name, its heading, the seconds that it may take, and without how many it is not begun."""

    name: str
    title: str
    limit: float
    least: float


Command = Callable[[Step, float], Sequence[str]]  # of a step and the seconds until it is told to stop


def run_steps(
    steps: Sequence[Step],
    state: State,
    *,
    folder: Path,
    command: Command,
    budget: float,
    again: Collection[str] = (),
    sources: str = "",
    after_each: Callable[[], object] = lambda: None,
) -> None:
    """Run the steps that are not done, in order, until the budget (seconds) is spent; `state` is written after each."""
    ends = time.monotonic() + budget
    for step in steps:
        if state.is_done(step.name) and step.name not in again:
            continue
        if ends - time.monotonic() < step.least:
            state.leave_out(step.name, "no time left")
            print(f"{step.name}: not run: no time left", flush=True)
            continue
        if step.name in again:
            shutil.rmtree(folder / "steps" / step.name, ignore_errors=True)
        state.start(step.name)
        print(f"{step.name}: {step.title} ...", flush=True)
        started = time.monotonic()
        outcome = _run_one(step, min(step.limit, ends - started), folder, command)
        state.finish(step.name, outcome, time.monotonic() - started, sources)
        print(f"{step.name}: {outcome.state}{f' ({first_line(outcome.reason)})' if outcome.reason else ''}", flush=True)
        after_each()


def _run_one(step: Step, seconds: float, folder: Path, command: Command) -> Outcome:
    """Run a step's process, and return what it wrote, or how it ended without."""
    own = folder / "steps" / step.name
    own.mkdir(parents=True, exist_ok=True)
    result, log = own / "outcome.json", own / "log.txt"
    result.unlink(missing_ok=True)
    status = run_within(command(step, seconds - grace_of(seconds)), seconds, log)
    if result.exists():
        return Outcome(**json.loads(result.read_text()))
    said, figures = last_words(log), figures_kept(own)
    if status is None:
        return Outcome("unfinished", f"killed after {seconds:.0f} s; {said}", figures)
    return Outcome("failed", f"the process ended with status {status}; {said}", figures)


def figures_kept(own: Path) -> dict[str, Any]:
    """Return the items that a step had kept before it was killed or crashed, as it would have returned them."""
    kept = own / "items.json"
    items = json.loads(kept.read_text()) if kept.exists() else {}
    values = {key: item["value"] for key, item in items.items() if "value" in item}
    return {"items": values} if values else {}


def run_within(command: Sequence[str], seconds: float, log: Path, grace: float = _GRACE) -> int | None:
    """Run a command, its output appended to a log, and return its exit status; None: it was stopped after `seconds`.

    It is told to stop (SIGTERM) early enough to have `grace` seconds for it, a quarter of its time at most; then it is
    killed with every process that it has begun, those in sessions of their own too. So it is if we are interrupted.
    """
    grace = grace_of(seconds, grace)
    with log.open("ab") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(command, start_new_session=True, **streams)  # type: ignore[call-overload]
        family = [process.pid]
        try:
            return process.wait(timeout=seconds - grace)
        except subprocess.TimeoutExpired:
            family = descendants(process.pid)
            _signal(family, signal.SIGTERM)
            _wait_for(process, family, grace)
            return None
        finally:
            _signal([*family, *descendants(process.pid)], signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what has lost its parent
            process.wait()


def grace_of(seconds: float, most: float = _GRACE) -> float:
    """Return how long before its end a process that has so many seconds is told to stop."""
    return min(most, seconds / 4)


def _wait_for(process: subprocess.Popen, family: Sequence[int], seconds: float) -> None:
    """Wait until a process and all of its family have ended, for so long at most."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and (process.poll() is None or any(map(is_alive, family))):
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended, and whose parent has not looked, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def descendants(root: int) -> list[int]:
    """Return a process and all that descend from it, as Linux lists them; itself alone elsewhere."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def last_words(log: Path) -> str:
    """Return the last line of a log, and where the rest is."""
    lines = log.read_text(errors="replace").splitlines()[-_LAST:] if log.exists() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{first_line(said)} ({log.parent.name}/{log.name})"
