"""A folder, or a file of class names, where a data.yaml belongs: the error shows what to write."""

from __future__ import annotations

import pytest

from detkit.data import DataError
from detkit.registry import open_dataset


def error_of(path) -> str:
    with pytest.raises(DataError) as error:
        open_dataset(f"yolo:{path}:train").load()
    return str(error.value)


@pytest.mark.parametrize("train", ["images/train", "train/images"])
@pytest.mark.parametrize("name", ["", "classes.txt"])
def test_the_lines_that_the_error_shows_read_the_set(tmp_path, write_picture, train, name):
    write_picture(tmp_path / train / "a.jpg", (40, 60))
    labels = tmp_path / train.replace("images", "labels")
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("1 .5 .5 .5 .5")
    (tmp_path / "classes.txt").write_text("tabby cat\nno\n\n")
    text = error_of(tmp_path / name)
    assert ("is a folder" if not name else "classes.txt is no data.yaml") in text
    lines = [line.strip() for line in text.splitlines()[1:]]
    assert lines == ["path: .", f"train: {train}", 'names: ["tabby cat", "no"]']
    (tmp_path / "data.yaml").write_text("\n".join(lines))
    index = open_dataset(f"yolo:{tmp_path}/data.yaml:train").load()
    assert (index.class_names, index.classes.tolist()) == (("tabby cat", "no"), [1])


def test_without_a_list_of_classes_their_place_is_shown(tmp_path):
    (tmp_path / "val").mkdir()
    assert error_of(tmp_path).endswith("  path: .\n  train: .\n  val: val\n  names: [name of class 0, name of class 1]")


def test_a_data_yaml_that_is_there_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("train: images\nnames: [cat]\n")
    assert f"is a folder: name the file that describes the data set: yolo:{tmp_path}/x.yaml:SPLIT" in error_of(tmp_path)
