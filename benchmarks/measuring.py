"""Times of things side by side on a machine that others use too, peaks of memory, and the name of the machine."""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Work = Callable[[], object]

_MOST_WAITING = 0.03  # of a round's time, by threads that could run and had no core
_TRIES = 3  # rounds at most, as a multiple of those wanted
_SHORTEST_MS = 5.0  # a shorter work is repeated within one reading of the clock
_LONG_MS = 1000.0  # a longer one needs no second call before it counts


@dataclass(frozen=True)
class Spread:
    """The median of some values, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of at least one value."""
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)


@dataclass(frozen=True)
class Timings:
    """Milliseconds of each contender by round, and how many of the rounds others disturbed."""

    ms: dict[str, list[float]]
    disturbed: int

    @property
    def rounds(self) -> int:
        """How many rounds were kept."""
        return len(next(iter(self.ms.values())))

    def spread(self, name: str) -> Spread:
        """Return the time of a contender, in milliseconds."""
        return Spread.of(self.ms[name])

    def ratio(self, over: str, under: str) -> Spread:
        """Return the ratio of two contenders' times, taken round by round: a drift of the machine cancels."""
        return Spread.of([a / b for a, b in zip(self.ms[over], self.ms[under], strict=True)])


def interleaved(contenders: Mapping[str, Work], *, rounds: int, device: str = "cpu", budget_s: float = 60) -> Timings:
    """Time contenders in turns (ABAB...) until so many rounds were quiet.

    A round is quiet when this process's threads waited for a core for less than 3 % of its time. After three times the
    wanted rounds, or the budget (but one round at least), the quietest of them are taken. Each contender runs
    before, uncounted; what takes less than 5 ms runs several times within one reading.
    """
    times = {name: (work, _repeats(work, device)) for name, work in contenders.items()}
    found: list[tuple[float, dict[str, float]]] = []
    start = time.perf_counter()
    while not found or (
        sum(waiting < _MOST_WAITING for waiting, _ in found) < rounds
        and len(found) < _TRIES * rounds
        and time.perf_counter() - start < budget_s
    ):
        found.append(_round(times, device))
    quietest = sorted(found, key=lambda one: one[0])[:rounds]
    disturbed = sum(waiting >= _MOST_WAITING for waiting, _ in quietest)
    return Timings({name: [ms[name] for _, ms in quietest] for name in contenders}, disturbed)


def _repeats(work: Work, device: str) -> int:
    """Run a work to warm it up, and return how often it is repeated within a reading."""
    if milliseconds(work, device) > _LONG_MS:
        return 1
    return max(1, math.ceil(_SHORTEST_MS / milliseconds(work, device)))


def _round(contenders: Mapping[str, tuple[Work, int]], device: str) -> tuple[float, dict[str, float]]:
    """Return the share of time that threads waited, and the milliseconds of each contender."""
    waited, start = _waited_ns(), time.perf_counter_ns()
    ms = {name: milliseconds(work, device, repeats) for name, (work, repeats) in contenders.items()}
    return (_waited_ns() - waited) / (time.perf_counter_ns() - start), ms


def milliseconds(work: Work, device: str = "cpu", repeats: int = 1) -> float:
    """Return the time of one call: by the wall on the CPU, between two events on a CUDA device."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) * 1e3 / repeats


def on_device(works: Sequence[Work], device: str, rounds: int = 9, *, captured: bool = True) -> tuple[Spread, str]:
    """Return the milliseconds of one of several works without the host's part in it, and how they were taken.

    On a CUDA device the works are captured in one CUDA graph, whose replays are timed ("graph"): Python and the
    launches cost nothing then. Works of inputs of their own, larger together than the device's cache, find nothing in
    it. What cannot be captured, or is not to be, is called one after the other ("calls"), as everything is on the CPU.
    """
    run, how = (lambda: [work() for work in works]), "calls"
    if device == "cuda" and captured:
        with contextlib.suppress(RuntimeError):
            run, how = _graph_of(works), "graph"
    repeats = _repeats(run, device)
    return Spread.of([milliseconds(run, device, repeats) / len(works) for _ in range(rounds)]), how


def _graph_of(works: Sequence[Work]) -> Work:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what loads or allocates at the first call, on a stream as a capture has one
        for work in works:
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    return graph.replay


def _waited_ns() -> int:
    """Return how long this process's threads have waited on run queues; 0 where the system does not count it."""
    try:
        return sum(int(path.read_text().split()[1]) for path in Path("/proc/self/task").glob("*/schedstat"))
    except (OSError, IndexError):
        return 0


def peak_extra_mb(work: Work, device: str = "cpu") -> float:
    """Return how far a call of `work` raises memory above what was held before, in MB (10^6 bytes).

    On the CPU it is resident memory as Linux counts it; call it in a fresh process, where nothing freed is reused.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _status_kb("VmRSS")
    work()
    return (_status_kb("VmHWM") - before) * 1024 / 1e6


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def processor() -> str:
    """Return the processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
