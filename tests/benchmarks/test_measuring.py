"""Times in turns, the gate against noise, peaks of memory."""

import mmap
import time

import measuring
import pytest


def test_contenders_run_in_turns_and_the_ratio_is_taken_by_round():
    calls = []

    def contender(name, seconds):
        return lambda: (calls.append(name), time.sleep(seconds))

    timings = measuring.interleaved({"a": contender("a", 0.006), "b": contender("b", 0.018)}, rounds=3)
    assert "".join(calls[-2 * timings.rounds :]) == "ab" * timings.rounds
    assert 2 < timings.ratio("b", "a").median < 4
    assert timings.spread("a").low >= 6


def test_a_short_work_is_repeated_within_a_reading():
    calls = []
    measuring.interleaved({"a": lambda: calls.append(0)}, rounds=1)
    assert len(calls) > 100


def test_rounds_that_others_disturb_are_taken_again_and_counted(monkeypatch):
    hour = 3600 * 10**9
    waited = iter(range(0, 100 * hour, hour))
    monkeypatch.setattr(measuring, "_waited_ns", lambda: next(waited))
    timings = measuring.interleaved({"a": lambda: time.sleep(0.01)}, rounds=2)
    assert (timings.rounds, timings.disturbed) == (2, 2)
    assert next(waited) == 12 * hour  # two readings in each of the 3 x 2 rounds


def test_the_spread_is_median_and_quartiles():
    assert measuring.Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == measuring.Spread(3.0, 2.0, 4.0)


@pytest.mark.parametrize("megabytes", [20, 60])
def test_peak_memory_counts_what_was_freed_again(megabytes):
    def work():
        with mmap.mmap(-1, megabytes * 10**6) as block:
            block.write(b"x" * len(block))

    peak = measuring.peak_extra_mb(work)
    assert megabytes <= peak < 2.2 * megabytes  # the block, and the bytes that are written into it
