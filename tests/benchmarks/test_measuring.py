"""Times in turns, the gate against noise, peaks of memory."""

import subprocess
import sys
from pathlib import Path

import measuring
import pytest


class Clock:
    """A clock that only `sleep_ms` moves, in place of the module `time`, on a machine where nobody waits."""

    def __init__(self):
        self.ns = 0

    def sleep_ms(self, milliseconds):
        self.ns += round(milliseconds * 1e6)

    def perf_counter_ns(self):
        return self.ns

    def perf_counter(self):
        return self.ns / 1e9


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    monkeypatch.setattr(measuring, "_waited_ns", lambda: 0)
    return clock


def test_contenders_run_in_turns_and_the_ratio_is_taken_by_round(clock):
    calls = []

    def contender(name, milliseconds):
        return lambda: (calls.append(name), clock.sleep_ms(milliseconds * len(calls)))

    timings = measuring.interleaved({"a": contender("a", 6), "b": contender("b", 18)}, rounds=3)
    assert "".join(calls) == "aabb" + "ab" * 3  # each runs twice to warm up
    assert timings.ms == {"a": pytest.approx([30, 42, 54]), "b": pytest.approx([108, 144, 180])}
    assert timings.ratio("b", "a").median == pytest.approx(144 / 42)
    assert timings.disturbed == 0


def test_a_short_work_is_repeated_within_a_reading(clock):
    calls = []
    timings = measuring.interleaved({"a": lambda: (calls.append(0), clock.sleep_ms(0.1))}, rounds=1)
    assert len(calls) == 2 + 50
    assert timings.ms["a"] == [pytest.approx(0.1)]


def test_rounds_that_others_disturb_are_taken_again_and_counted(clock, monkeypatch):
    waited = iter(range(0, 10**9, 10**6))  # a millisecond more each time that it is read
    monkeypatch.setattr(measuring, "_waited_ns", lambda: next(waited))
    timings = measuring.interleaved({"a": lambda: clock.sleep_ms(10)}, rounds=2)
    assert (timings.rounds, timings.disturbed) == (2, 2)
    assert next(waited) == 12 * 10**6  # two readings in each of the 3 x 2 rounds


def test_a_long_measurement_ends_with_its_budget(clock):
    timings = measuring.interleaved({"a": lambda: clock.sleep_ms(2000)}, rounds=5, budget_s=3)
    assert timings.rounds == 2


def test_the_spread_is_median_and_quartiles():
    assert measuring.Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == measuring.Spread(3.0, 2.0, 4.0)


MEASURE = """
import mmap, sys
import measuring

def work():
    with mmap.mmap(-1, megabytes * 10**6) as block:
        block.write(b"x" * len(block))  # the block, and the bytes that are written into it

for megabytes in map(int, sys.argv[1:]):
    print(measuring.peak_extra_mb(work))
"""


def test_peak_memory_counts_what_was_freed_again():
    sizes, folder = (20, 60), Path(measuring.__file__).parent  # in a fresh process, as it says
    words = [sys.executable, "-c", MEASURE, *map(str, sizes)]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    for megabytes, peak in zip(sizes, map(float, result.stdout.split()), strict=True):
        assert megabytes <= peak < 2.2 * megabytes


def test_the_time_of_one_of_several_works_is_a_share_of_their_round(clock):
    calls = []
    works = [lambda n=n: (calls.append(n), clock.sleep_ms(6 + 4 * n)) for n in range(2)]
    spread, how = measuring.on_device(works, "cpu", rounds=3)
    assert (spread.median, how) == (pytest.approx(8), "calls")
    assert calls == [0, 1] * (2 + 3)
