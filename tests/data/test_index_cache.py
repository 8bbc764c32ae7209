"""The kept index: equal to a fresh one, seen through by every change, and never the reason of an error."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import linecache
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from detkit.data import DataError, index_cache
from detkit.data.datasets import coco
from detkit.data.datasets.coco import read_coco
from detkit.data.index_cache import cached_classes, cached_index
from detkit.files import cache_folder, locked
from detkit.registry import open_dataset

LONG_AGO = time.time() - 1000


def age(*paths: Path, to: float = LONG_AGO) -> None:
    """Give files and folders, with all that is inside, an old time."""
    for path in paths:
        for inner in [path, *(path.rglob("*") if path.is_dir() else [])]:
            os.utime(inner, (to, to))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def old_coco(coco_files):
    """`old_coco(...)` is what `coco_files(...)` writes, some time ago."""

    def make(*args, **kwargs):
        annotations, images = coco_files(*args, **kwargs)
        age(annotations, images)
        return annotations, images

    return make


@pytest.fixture
def builds(monkeypatch):
    """How often a COCO file was read in full, one entry each."""
    seen = []
    plain = coco._read_coco
    monkeypatch.setattr(coco, "_read_coco", lambda *args: (seen.append(args), plain(*args))[1])
    return seen


def same(a, b) -> bool:
    columns = [field.name for field in dataclasses.fields(a)]
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) and type(getattr(a, name)) is type(getattr(b, name))
        for name in columns
    ) and all(getattr(a, name).dtype == getattr(b, name).dtype for name in index_cache._ARRAYS)


def test_a_kept_index_is_the_fresh_one(old_coco, builds):
    files = old_coco(
        categories=[(1, "cät 猫"), (2, "dog")],
        boxes=[(1, 1, [50, 30, 20, 20]), (1, 1, [0, 0, 5, 5]), (1, 1, [0, 0, 5, 5]), (2, 2, [0, 0, None, 1])],
        change=lambda data: data["images"][0].update(width=0),
    )
    fresh, kept = read_coco(*files), read_coco(*files)
    assert len(builds) == 1
    assert same(fresh, kept)
    assert fresh.summary() == kept.summary()
    assert kept.report.notes
    assert kept.report.fixed
    assert kept.report.examples


def test_a_cache_that_is_only_read_is_used(old_coco, builds, monkeypatch):
    files = old_coco()
    fresh = read_coco(*files)

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("os.utime", refuse)
    assert same(read_coco(*files), fresh)
    assert len(builds) == 1


def test_an_empty_index_is_kept(old_coco, builds):
    files = old_coco(boxes=[], change=lambda data: data.update(images=[]))
    assert same(read_coco(*files), read_coco(*files))
    assert len(builds) == 1


CHANGES = {
    "annotations longer": lambda a, f: a.write_text(a.read_text() + " "),
    "annotations of another time": lambda a, f: age(a, to=LONG_AGO + 1),
    "picture added": lambda a, f: (f / "new.png").write_bytes(b"x"),
    "picture removed": lambda a, f: (f / "2.png").unlink(),
    "picture renamed": lambda a, f: (f / "2.png").rename(f / "b.png"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen(old_coco, builds, name):
    annotations, folder = old_coco()
    read_coco(annotations, folder)
    CHANGES[name](annotations, folder)
    with contextlib.suppress(DataError):  # where a picture is gone
        read_coco(annotations, folder)
    assert len(builds) == 2


def test_a_change_in_a_folder_inside_is_seen(old_coco, builds):
    def change(data):
        for image in data["images"]:
            image["file_name"] = "inner/" + image["file_name"]

    annotations, folder = old_coco(change=change)
    (folder / "inner").mkdir()
    for path in folder.glob("*.png"):
        path.rename(folder / "inner" / path.name)
    age(folder)
    read_coco(annotations, folder)
    read_coco(annotations, folder)
    assert len(builds) == 1
    (folder / "inner" / "new.png").touch()
    age(folder, to=LONG_AGO)
    os.utime(folder / "inner", (LONG_AGO + 5, LONG_AGO + 5))
    read_coco(annotations, folder)
    assert len(builds) == 2


def test_new_content_under_an_old_time_and_size_is_seen(old_coco, builds):
    annotations, folder = old_coco()
    before, status = read_coco(annotations, folder), annotations.stat()
    annotations.write_text(annotations.read_text().replace('"category_id": 1', '"category_id": 2'))
    os.utime(annotations, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert annotations.stat().st_size == status.st_size
    assert read_coco(annotations, folder).classes.tolist() != before.classes.tolist()


PROJECT = """
from detkit.data import cached_index
from detkit.data.datasets.coco import _read_coco
calls = []

def load(annotations, images):
    return cached_index("project", [annotations], lambda: (calls.append(1), _read_coco(annotations, images))[1])
"""


def imported(path: Path, text: str):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    linecache.checkcache()
    spec.loader.exec_module(module)
    return module


def test_another_reader_of_a_project_builds_anew(old_coco, tmp_path):
    files = old_coco()
    path = tmp_path / "project" / "reader.py"
    module = imported(path, PROJECT)
    module.load(*files)
    module.load(*files)
    assert len(module.calls) == 1
    changed = imported(path, PROJECT + "# a change\n")
    changed.load(*files)
    assert len(changed.calls) == 1
    (path.parent / "__init__.py").touch()  # now a package, all of which counts
    changed.load(*files)
    (path.parent / "helper.py").write_text("x = 1")
    changed.load(*files)
    assert len(changed.calls) == 3


def test_a_reader_without_a_source_is_not_kept(old_coco):
    scope: dict = {}
    exec(PROJECT, scope)
    files = old_coco()
    scope["load"](*files)
    scope["load"](*files)
    assert len(scope["calls"]) == 2


def test_other_code_builds_anew(old_coco, builds, monkeypatch):
    files = old_coco()
    read_coco(*files)
    monkeypatch.setattr(index_cache, "_mark_of_code", lambda: "another version")
    read_coco(*files)
    assert len(builds) == 2


def test_other_arguments_have_entries_of_their_own(old_coco, builds, tmp_path, monkeypatch):
    annotations, folder = old_coco()
    (tmp_path / "link").symlink_to(folder)
    first = read_coco(annotations, folder)
    assert read_coco(annotations, tmp_path / "link").root == str(tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    assert read_coco(Path(annotations.name), folder).report.source == annotations.name != first.report.source
    assert len(builds) == 3


def test_what_changed_just_now_is_not_kept(coco_files, builds):
    annotations, folder = coco_files()
    age(folder)
    for _ in range(2):
        read_coco(annotations, folder)
    age(annotations)
    os.utime(folder)
    for _ in range(2):
        read_coco(annotations, folder)
    assert len(builds) == 4
    assert list((cache_folder() / "index").glob("*.npz")) == []


def test_a_change_while_reading_is_seen_the_next_time(old_coco, builds):
    annotations, folder = old_coco()
    plain = coco._read_coco

    def build():
        index = plain(annotations, folder)
        annotations.write_text(annotations.read_text() + " ")
        age(annotations, to=LONG_AGO + 7)
        return index

    cached_index("x", [annotations], build)
    assert cached_classes("x", [annotations]) is None


def test_a_folder_of_annotations_stands_for_its_entries(old_coco, tmp_path):
    annotations, folder = old_coco()
    index = read_coco(annotations, folder)
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("1")
    age(labels)
    count = []

    def read():
        return cached_index("labels", [labels, annotations], lambda: (count.append(1), index)[1])

    read()
    read()
    assert len(count) == 1
    (labels / "a.txt").write_text("2")  # of the same size, in a folder of the same time
    age(labels, to=LONG_AGO + 1)
    os.utime(labels, (LONG_AGO, LONG_AGO))
    read()
    assert len(count) == 2
    assert same(read(), index)
    assert len(count) == 2


def entry() -> Path:
    (path,) = (cache_folder() / "index").glob("*.npz")
    return path


def foreign(path):
    with open(path, "wb") as file:
        np.savez(file, meta=np.frombuffer(b'{"code": 1}', np.uint8))


def of_other_types(path):
    arrays = dict(np.load(path))
    arrays["boxes"] = arrays["boxes"].astype(np.float64)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def pickled(path):
    arrays = dict(np.load(path))
    arrays["boxes"] = np.array([{"an": "object"}], dtype=object)
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def flipped(path):
    content, boxes = bytearray(path.read_bytes()), np.load(path)["boxes"].tobytes()
    content[content.index(boxes) + len(boxes) // 2] ^= 255  # a zip file also has bytes that nothing reads
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "text": lambda path: path.write_text("hello"),
    "one byte": flipped,
    "foreign": foreign,
    "other types": of_other_types,
    "pickled": pickled,
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_entry_is_made_anew(old_coco, builds, name):
    files = old_coco()
    fresh = read_coco(*files)
    DAMAGE[name](entry())
    assert same(read_coco(*files), fresh)
    assert len(builds) == 2
    assert coco.CocoDataset(f"{files[0]}:{files[1]}").classes() == ("cat", "dog")


@pytest.mark.parametrize("what", ["a file in the way", "no room for the entry"])
def test_a_cache_that_cannot_be_written_is_done_without(old_coco, builds, monkeypatch, what):
    if what == "a file in the way":
        (cache_folder() / "index").write_text("")
    else:
        monkeypatch.setattr(index_cache, "write_atomically", lambda *args: os.stat("/nowhere"))
    files = old_coco()
    assert same(read_coco(*files), read_coco(*files))
    assert len(builds) == 2


def test_errors_of_the_data_pass_and_nothing_is_kept(old_coco, tmp_path):
    annotations, folder = old_coco(change=lambda data: data.pop("images"))
    for _ in range(2):
        with pytest.raises(DataError, match="no 'images'"):
            read_coco(annotations, folder)
    with pytest.raises(DataError, match=r"gone\.json does not exist"):
        read_coco(tmp_path / "gone.json", folder)
    assert list((cache_folder() / "index").glob("*.npz")) == []


def test_classes_come_from_the_cache_without_the_file(old_coco, monkeypatch):
    annotations, folder = old_coco()
    dataset = open_dataset(f"coco:{annotations}:{folder}")
    assert dataset.classes() == ("cat", "dog")
    dataset.load()
    monkeypatch.setattr(coco, "_read_json", lambda path: pytest.fail("the file was read"))
    assert dataset.classes() == ("cat", "dog")
    age(annotations, to=LONG_AGO + 1)
    assert cached_classes(coco._cache_key(annotations, folder), [annotations]) is None


def _read_slowly(files, ready, count):
    def build():
        with open(count, "a") as file:
            file.write("1")
        time.sleep(0.3)
        return coco._read_coco(*files)

    ready.wait()
    cached_index("slow", [files[0]], build)


def builds_of_processes(number, files, count):
    """Read slowly in several processes at once; return how often the index was built."""
    ready = multiprocessing.Barrier(number)
    processes = [multiprocessing.Process(target=_read_slowly, args=(files, ready, count)) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * number
    return len(count.read_text())


def test_of_many_processes_one_builds(old_coco, tmp_path):
    assert builds_of_processes(4, old_coco(), tmp_path / "count") == 1


def test_where_nothing_can_be_kept_all_read_at_once(old_coco, tmp_path):
    files = old_coco()
    age(files[0], to=time.time() + 1000)  # as by a clock that is wrong
    assert builds_of_processes(6, files, tmp_path / "count") == 6
    lock = next((cache_folder() / "index").glob("*.lock"))
    with locked(lock, on_wait=lambda: pytest.fail("the lock is still held")) as has_waited:
        assert not has_waited


def test_waiting_for_another_process_is_said(old_coco, caplog):
    caplog.set_level("INFO")
    files = old_coco()
    read_coco(*files)
    entry().unlink()
    (lock,) = (cache_folder() / "index").glob("*.lock")
    ready = multiprocessing.Event()
    process = multiprocessing.Process(target=_hold, args=(lock, ready))
    process.start()
    ready.wait()
    read_coco(*files)
    process.join()
    assert "another process is reading the data set" in caplog.text


def _hold(path, ready):
    with locked(path):
        ready.set()
        time.sleep(0.5)


def _die_with_the_lock(path):
    with locked(path):
        os._exit(1)


def test_a_process_that_died_leaves_no_lock(old_coco, builds):
    files = old_coco()
    read_coco(*files)
    entry().unlink()
    (lock,) = (cache_folder() / "index").glob("*.lock")
    process = multiprocessing.Process(target=_die_with_the_lock, args=(lock,))
    process.start()
    process.join()
    read_coco(*files)
    assert len(builds) == 2


def test_the_folder_stays_bounded(old_coco, monkeypatch):
    monkeypatch.setattr(index_cache, "_MOST_ENTRIES", 3)
    annotations, folder = old_coco()
    index = coco._read_coco(annotations, folder)
    kept = cache_folder() / "index"
    for i in range(5):
        cached_index(f"set {i}", [annotations], lambda: index)
        for path in kept.glob("*.npz"):  # each older by a step than the one before
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
    assert len(list(kept.glob("*.npz"))) == 3
    paths = [index_cache._entry_path(f"set {i}", [annotations]) for i in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    age(kept, to=time.time() - 61 * 24 * 3600)
    cached_index("another", [annotations], lambda: index)
    assert len(list(kept.iterdir())) == 2  # it and its lock


def test_only_a_slow_reading_is_worth_a_line(old_coco, monkeypatch, caplog):
    files = old_coco()
    with caplog.at_level("INFO", logger="detkit"):
        read_coco(*files)
        assert not caplog.records
        monkeypatch.setattr(index_cache, "_SLOW", -1.0)
        entry().unlink()
        read_coco(*files)
        read_coco(*files)
    assert [record.message.split(" in ")[0] for record in caplog.records] == [f"read {files[0]}"]
