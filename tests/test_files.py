"""Files that are whole or absent."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.files import (
    datasets_folder,
    folder_made_whole,
    locked,
    new_numbered_folder,
    write_atomically,
    write_text_atomically,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "data"
    with pytest.raises(IsADirectoryError), folder_made_whole(target) as folder:
        folder.write_text("a folder is no file")
    assert list(tmp_path.iterdir()) == []
    with folder_made_whole(target) as folder:
        (folder / "x").write_text("2")
        assert not target.exists()
    assert (target / "x").read_text() == "2"
    with folder_made_whole(target) as folder:
        (folder / "x").write_text("3")
    assert (target / "x").read_text() == "2", "whoever was first stays"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def _make(parent):
    return str(new_numbered_folder(parent))


def test_numbered_folders_are_exclusive_between_processes(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    with multiprocessing.get_context("fork").Pool(4) as pool:
        made = pool.map(_make, [tmp_path] * 12)
    assert sorted(made) == sorted(str(tmp_path / str(n)) for n in range(8, 20))


def test_where_data_sets_are(monkeypatch):
    monkeypatch.setenv("DETKIT_DATASETS", "/data")
    assert str(datasets_folder()) == "/data"
    monkeypatch.delenv("DETKIT_DATASETS")
    assert str(datasets_folder()) == "."


def _add_one(path, times):
    for _ in range(times):
        with locked(path.with_suffix(".lock")):
            path.write_text(str(int(path.read_text()) + 1))


def test_a_lock_keeps_processes_apart(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    processes = [multiprocessing.Process(target=_add_one, args=(path, 100)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "300"


def test_a_lock_says_whether_another_held_it(tmp_path):
    waits = []
    with locked(tmp_path / "lock", on_wait=lambda: waits.append(1)) as has_waited:
        assert not has_waited
    assert not waits
    held, release = multiprocessing.Event(), multiprocessing.Event()
    process = multiprocessing.Process(target=_hold, args=(tmp_path / "lock", held, release))
    process.start()
    held.wait()
    with locked(tmp_path / "lock", on_wait=release.set) as has_waited:
        assert has_waited
    process.join()


def _hold(path, held, release):
    with locked(path):
        held.set()
        release.wait()


def test_a_lock_is_free_after_its_block_though_a_forked_child_lives_on(tmp_path):
    with locked(tmp_path / "lock"):
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        with locked(tmp_path / "lock", on_wait=lambda: pytest.fail("the child holds the lock")):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_follows_no_link_and_leaves_the_content(tmp_path):
    (tmp_path / "file").write_text("content")
    (tmp_path / "lock").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "lock"):
        pass
    with locked(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "content"


def test_a_lock_without_a_folder_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), locked(tmp_path / "none" / "lock"):
        pass


@pytest.mark.parametrize("write", [
    lambda file: torch.save(torch.zeros(100_000), file),
    lambda file: np.savez(file, a=np.zeros(100_000)),
    lambda file: file.write(bytes(400_000)),
])  # fmt: skip
def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(tmp_path, write):
    """Files may not grow beyond a limit here: torch makes a RuntimeError of what the system says."""
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"whole\.bin") as error:
            write_atomically(tmp_path / "whole.bin", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_goes_on_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "x.lock") as has_waited:
        assert not has_waited


def test_a_forked_child_does_not_hold_its_parents_lock(tmp_path):
    """Loader processes outlive a run that was killed by some seconds."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    path = tmp_path / "x.lock"
    start, go = os.pipe()
    parent = os.fork()
    if not parent:
        with locked(path):
            child = os.fork()
            if not child:
                signal.pause()
            os.write(go, str(child).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int(os.read(start, 20))
    try:
        with locked(path) as has_waited:
            assert not has_waited
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(start)
        os.close(go)


def test_an_error_of_fsync_names_the_file(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.txt"):
        write_text_atomically(tmp_path / "a.txt", "text")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_during_a_save_is_an_interrupt_whatever_the_writer_makes_of_it(tmp_path, monkeypatch):
    def press(self, data):
        raise KeyboardInterrupt

    def fail(file):
        raise ValueError("its own")

    with monkeypatch.context() as patch:
        patch.setattr("detkit.files._KeepingErrors.write", press)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "a.pth", lambda file: torch.save({"a": torch.ones(3)}, file))
    with pytest.raises(ValueError, match="its own"):
        write_atomically(tmp_path / "a.pth", fail)
    assert not list(tmp_path.iterdir())


def test_a_numbered_folder_is_made_though_its_parent_goes_between(tmp_path, monkeypatch):
    listed = Path.iterdir

    def gone(self):
        monkeypatch.setattr(Path, "iterdir", listed)
        self.rmdir()
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", gone)
    assert new_numbered_folder(tmp_path / "runs") == tmp_path / "runs" / "1"
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        new_numbered_folder(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        new_numbered_folder(tmp_path / "link")
