"""Checkpoints: whole or absent, damage found, the one before it used."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict

import numpy as np
import pytest
import torch

from detkit.checkpoint import Checkpointer, CheckpointError, load_file


def state(iteration, value=1.0):
    return {"iteration": iteration, "model": {"w": torch.full((64, 64), value)}, "optimizer": {}, "class_names": ["a"]}


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keeps at least 1 checkpoint, not 0"):
        Checkpointer(tmp_path, keep=0)


def test_round_trip_and_keep_newest(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", keep=2)
    for i in (1, 20, 300):
        checkpointer.save(state(i, float(i)))
    assert [p.name for p in checkpointer.files()] == ["model_00000300.pth", "model_00000020.pth"]
    newest = checkpointer.load_newest()
    assert newest["iteration"] == 300
    assert torch.equal(newest["model"]["w"], torch.full((64, 64), 300.0))
    assert list(tmp_path.glob("c/.*")) == [], "no temporary file is left"


def test_nothing_to_load(tmp_path):
    assert Checkpointer(tmp_path / "none").load_newest() is None


def test_a_state_that_is_not_finite_is_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(state(1))
    with pytest.raises(CheckpointError, match=r"'w' is not finite at iteration 2"):
        checkpointer.save(state(2, float("nan")))
    assert checkpointer.load_newest()["iteration"] == 1


def test_a_persons_copies_and_what_a_killed_save_left_are_not_checkpoints(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=1)
    (tmp_path / ".model_00000001.pth.x.tmp").write_bytes(b"half")
    assert not checkpointer.has_any()
    copy = tmp_path / "model_00000100_best.pth"
    copy.write_bytes(b"mine")
    for i in (1, 2):
        checkpointer.save(state(i))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model_00000002.pth", "model_00000100_best.pth"]
    assert checkpointer.has_any()
    assert checkpointer.load_newest()["iteration"] == 2


@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.float64(1), "numpy.float64"), (np.zeros(2), "numpy.ndarray"), (defaultdict(list), "collections.defaultdict"),
     (lambda: 0, "builtins.function")],
)  # fmt: skip
def test_a_state_that_could_not_be_read_back_is_refused_by_its_place(tmp_path, value, kind):
    hooks = {"Best": {"seen": [1, 2.5, "x", None, torch.ones(2)], "best": ({"deep": value},)}}
    with pytest.raises(CheckpointError, match=rf"not saved: hooks\.Best\.best\.0\.deep is a {re.escape(kind)} "):
        Checkpointer(tmp_path).save({**state(1), "hooks": hooks})
    assert not list(tmp_path.iterdir())


def test_what_is_saved_can_be_read_back(tmp_path):
    hooks = {"a": {1: (True, 2, 3.0, "x", None, b"bytes", {1, 2}), "t": [torch.ones(2, dtype=torch.bfloat16)]}}
    path = Checkpointer(tmp_path).save({**state(1), "hooks": hooks})
    assert load_file(path)["hooks"]["a"][1] == hooks["a"][1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_an_error_of_the_system_says_nothing_of_the_file(tmp_path, error, monkeypatch):
    checkpointer = Checkpointer(tmp_path)
    for i in (1, 2):
        checkpointer.save(state(i))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("torch.load", fail)
    with pytest.raises(CheckpointError, match=r"model_00000002\.pth: cannot be read"):
        checkpointer.load_newest()
    assert len(checkpointer.files()) == 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_falls_back_to_the_one_before(tmp_path, share, caplog):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(state(1))
    newest = checkpointer.save(state(2))
    os.truncate(newest, int(newest.stat().st_size * share))
    with caplog.at_level("WARNING", logger="detkit"):
        assert checkpointer.load_newest()["iteration"] == 1
    assert "model_00000002.pth" in caplog.text


def test_any_changed_byte_of_the_weights_is_found(tmp_path):
    path = Checkpointer(tmp_path).save(state(1))
    good = path.read_bytes()
    start = good.index(torch.ones(16).numpy().tobytes())
    for position in (start, start + 1000, start + 64 * 64 * 4 - 1):
        bad = bytearray(good)
        bad[position] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"model_00000001.pth: .*damaged"):
            load_file(path)


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text.pth: cannot be read"):
        load_file(tmp_path / "text.pth")
    with pytest.raises(CheckpointError, match=r"there is no file .*none.pth"):
        load_file(tmp_path / "none.pth")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil.pth: cannot be read"):
        load_file(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_killed_while_saving_leaves_a_good_newest(tmp_path):
    code = (
        "import sys, torch\nfrom detkit.checkpoint import Checkpointer\n"
        "c = Checkpointer(sys.argv[1])\nw = torch.zeros(1 << 20)\nprint('go', flush=True)\n"
        "for i in range(1, 100000): c.save({'iteration': i, 'model': {'w': w + i}})\n"
    )
    last = 0
    for wait in (0.11, 0.17):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
        process.stdout.readline()
        deadline = time.monotonic() + 30
        while not Checkpointer(tmp_path).files() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        newest = Checkpointer(tmp_path).load_newest()
        assert newest is not None
        assert float(newest["model"]["w"][0]) == newest["iteration"]
        last = max(last, newest["iteration"])
    assert last > 0
