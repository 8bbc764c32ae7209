"""DeepPCB in its published layout, on files that the test makes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.data import DataError
from detkit.engine import import_projects
from detkit.registry import open_dataset

import_projects([Path(__file__).parents[1]])


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Write the layout with these annotations per picture; return the folder."""
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))

    def write(*annotations):
        lines = []
        for i, text in enumerate(annotations):
            name = f"group00041/00041/0004100{i}.jpg"
            notes = f"group00041/00041_not/0004100{i}.txt"
            for file in (name, notes):
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (64, 48)).save(tmp_path / name.replace(".jpg", "_test.jpg"))
            Image.new("L", (64, 48)).save(tmp_path / name.replace(".jpg", "_temp.jpg"))
            (tmp_path / notes).write_text(text)
            lines.append(f"{name} {notes}\n")
        (tmp_path / "trainval.txt").write_text("".join(lines))
        return tmp_path

    return write


def test_pictures_boxes_and_classes(published):
    dataset = open_dataset(f"deeppcb:{published('1 2 30 40 3', '', '5,6,7,8,1')}:trainval")
    assert dataset.classes() == ("open", "short", "mousebite", "spur", "copper", "pin-hole")
    index = dataset.load()
    assert [index.file_name(i) for i in range(3)] == [f"group00041/00041/0004100{i}_test.jpg" for i in range(3)]
    np.testing.assert_array_equal(index.boxes, [[1, 2, 30, 40], [5, 6, 7, 8]])
    assert index.classes.tolist() == [2, 0]
    assert index.box_counts().tolist() == [1, 0, 1]
    assert index.report.fixed["gray pictures read as RGB"] == 3


def test_a_second_start_reads_the_same(published):
    name = f"deeppcb:{published('1 2 30 40 3')}:trainval"
    np.testing.assert_array_equal(open_dataset(name).load().boxes, open_dataset(name).load().boxes)


@pytest.mark.parametrize("text", ["1 2 3 4", "1 2 3 4 7", "1 2 3 4 1.5", "a b c d 1"])
def test_a_bad_line_is_named(published, text):
    root = published(f"1 2 30 40 3\n{text}")
    with pytest.raises(DataError, match=r"00041000.txt:2: .* is not 'x1 y1 x2 y2 class'"):
        open_dataset(f"deeppcb:{root}:trainval").load()


def test_the_order_is_that_of_the_list(published):
    root = published("1 2 30 40 1", "1 2 30 40 2", "1 2 30 40 3")
    listing = root / "trainval.txt"
    listing.write_text("".join(reversed(listing.read_text().splitlines(keepends=True))))
    index = open_dataset(f"deeppcb:{root}:trainval").load()
    assert [index.file_name(i)[-10:-9] for i in range(3)] == ["2", "1", "0"]
    assert index.classes.tolist() == [2, 1, 0]


@pytest.mark.parametrize("missing", ["group00041/00041_not/00041001.txt", "group00041/00041_not"])
def test_a_missing_annotation_file_is_named(published, missing):
    root = published("1 2 30 40 3", "1 2 30 40 3")
    path = root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=r"00041_not/0004100\d\.txt cannot be read: .*No such file.*PCBData"):
        open_dataset(f"deeppcb:{root}:trainval").load()


def test_bad_names_and_folders(published, tmp_path):
    root = published("1 2 30 40 3")
    with pytest.raises(DataError, match="has no split trainval or test"):
        open_dataset(f"deeppcb:{root}:train")
    with pytest.raises(DataError, match="test.txt cannot be read"):
        open_dataset(f"deeppcb:{root}:test").load()
    (root / "trainval.txt").write_text("../x.jpg ../x.txt\n")
    with pytest.raises(DataError, match="trainval.txt:1"):
        open_dataset(f"deeppcb:{root}:trainval").load()
