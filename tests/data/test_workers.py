"""A worker that is killed, and shared memory that runs out, end in words that help."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from detkit.data import WorkerKilledError, workers
from detkit.data.loader import Loader
from detkit.structures import Batch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


class Deadly(Dataset):
    """Item 3 kills the process that makes it."""

    def __init__(self, number) -> None:
        self.number = number

    def __getitem__(self, i):
        if i == 3:
            os.kill(os.getpid(), self.number)
        return torch.full((4,), i)


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        (signal.SIGBUS, ["SIGBUS", "shared memory is full", "--shm-size", "NUM_WORKERS 0"]),
        (signal.SIGKILL, ["SIGKILL", "memory ran out", "NUM_WORKERS"]),
        (signal.SIGSEGV, ["SIGSEGV", "NUM_WORKERS 0"]),
    ],
)
@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_killed_worker_is_an_error_that_names_the_ways_out(number, parts, pause):
    """Also when the worker dies while the main process is busy elsewhere, as in a training step."""
    seen = []

    def use():
        for item in Loader(Deadly(number), range(20), num_workers=1):
            seen.append(int(item[0]))
            time.sleep(pause)

    with pytest.raises(WorkerKilledError, match="a worker process of the data loader") as error:
        use()
    assert seen == [0, 1, 2][: len(seen)]  # what it had made last may be lost with it
    for part in parts:
        assert part in str(error.value)


class Broken(Dataset):
    def __getitem__(self, i):
        raise RuntimeError("a mistake in a project")


@pytest.mark.parametrize("count", [0, 1])
def test_other_errors_pass_as_they_are(count):
    with pytest.raises(RuntimeError, match="a mistake in a project"):
        list(Loader(Broken(), range(2), num_workers=count))


class Batches(Dataset):
    def __getitem__(self, i):
        return [0], Batch.from_images([torch.zeros(3, 100, 100, dtype=torch.uint8)])


@pytest.mark.parametrize(("free", "warns"), [(50_000, True), (1_000_000, False)])
@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="shared memory is elsewhere")
def test_little_shared_memory_is_said_once(monkeypatch, caplog, free, warns):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64_000_000, free=free))
    with caplog.at_level("WARNING", logger="detkit"):
        list(Loader(Batches(), range(4), num_workers=1))
    assert [("--shm-size" in r.message, "has 64 MB" in r.message) for r in caplog.records] == [(True, True)] * warns


def test_bytes_of_a_batch_are_those_of_its_tensors():
    (_, batch) = Batches()[0]
    assert workers._bytes_of(([1], batch)) == sum(tensor.nbytes for tensor in vars(batch).values())
