"""YOLO's format: what is read, and what happens to everything that is wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkit.data import DataError
from detkit.data.datasets import yolo as yolo_module
from detkit.registry import open_dataset

BOX = "0 0.5 0.5 0.5 0.25\n"  # of a 40 x 60 picture: [15, 15, 45, 25]
YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def yolo(tmp_path, write_picture):
    """`yolo({picture below images/: label text or None}, yaml=text)` writes a set; returns the data.yaml."""

    def write(pictures=None, yaml=YAML, images="images", labels="labels", root="set"):
        folder = tmp_path / root
        for i, (name, text) in enumerate(({"train/a.jpg": BOX} if pictures is None else pictures).items()):
            write_picture(folder / images / name, (40, 60), i)
            path = (folder / labels / name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is not None:
                path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path = folder / "data.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml)
        return path

    return write


def load(path, split="train"):
    return open_dataset(f"yolo:{path}:{split}").load()


def names_of(index):
    return [index.file_name(i) for i in range(len(index))]


def adds_up(index) -> bool:
    report = index.report
    return report.images_kept == len(index) and report.boxes_kept == index.num_boxes


def test_boxes_are_shares_of_the_picture(yolo):
    index = load(yolo({"train/b.jpg": "1 0.5 0.5 1 1\n0 0.25 0.75 0.5 0.5", "train/a.jpg": BOX}))
    assert names_of(index) == ["a.jpg", "b.jpg"]
    assert index.root.endswith("images/train")
    assert index.boxes.tolist() == [[15, 15, 45, 25], [0, 0, 60, 40], [0, 20, 30, 40]]
    assert index.classes.tolist() == [0, 1, 0]
    assert index.areas.tolist() == [300, 2400, 600]
    assert index.sizes_hw.tolist() == [[40, 60]] * 2
    assert index.image_ids.tolist() == [1, 2]
    assert adds_up(index)


@pytest.mark.parametrize(
    ("names", "expected", "ids"),
    [
        ("[cat, dog]", ("cat", "dog"), (0, 1)),
        ("{0: cat, 1: dog}", ("cat", "dog"), (0, 1)),
        ("{7: dog, 0: cat}", ("cat", "dog"), (0, 7)),
        ("[3, 'no']", ("3", "no"), (0, 1)),
    ],
)
def test_names_as_a_list_or_by_index(yolo, names, expected, ids):
    path = yolo(yaml=f"train: images/train\nnames: {names}\n")
    assert open_dataset(f"yolo:{path}:train").classes() == expected
    index = load(path)
    assert (index.class_names, index.category_ids) == (expected, ids)


def test_an_index_of_a_gap_is_an_error_and_one_behind_it_is_read(yolo):
    yaml = "train: images/train\nnames: {0: cat, 7: dog}\n"
    assert load(yolo({"train/a.jpg": "7 .5 .5 .5 .5"}, yaml)).classes.tolist() == [1]
    with pytest.raises(DataError, match=r"a\.txt:2: the class 3 is not one of the 2 of .*'0 cat', '7 dog'"):
        load(yolo({"train/a.jpg": f"{BOX}3 .5 .5 .5 .5"}, yaml))


def test_names_that_indices_share_are_one_class(yolo):
    yaml = "train: images/train\nnames: [cell, dog, cell]\n"
    index = load(yolo({"train/a.jpg": "2 .5 .5 .5 .5\n1 .5 .5 .5 .5"}, yaml))
    assert (index.class_names, index.category_ids, index.classes.tolist()) == (("cell", "dog"), (0, 1), [0, 1])
    assert any("[0, 2] are all named 'cell'" in note for note in index.report.notes)


@pytest.mark.parametrize("split", ["val", "valid"])
@pytest.mark.parametrize("key", ["val", "valid"])
def test_valid_is_another_name_of_val(yolo, key, split):
    path = yolo({"val/a.jpg": BOX}, yaml=f"{key}: images/val\nnames: [cat]\n")
    assert names_of(load(path, split)) == ["a.jpg"]


def test_a_split_may_be_several_folders_and_lists(yolo):
    yaml = "train: [images/train, extra.txt]\nval: images\nnames: [cat]\n"
    path = yolo({"train/a.jpg": BOX, "more/b.jpg": BOX, "more/c.jpg": BOX}, yaml)
    (path.parent / "extra.txt").write_text("./images/more/c.jpg\r\n\n./images/train/a.jpg\n")
    index = load(path)
    assert names_of(index) == ["train/a.jpg", "more/c.jpg"]
    assert index.report.images_dropped == {"listed twice": 1}
    assert adds_up(index)
    assert names_of(load(path, "val")) == ["more/b.jpg", "more/c.jpg", "train/a.jpg"]


@pytest.mark.parametrize(
    "line", ["./../images/train/a.jpg", "images/train/a.jpg", "{root}/images/train/a.jpg", "images\\train\\a.jpg"]
)
def test_lines_of_a_list_start_from_its_folder_the_root_or_are_absolute(yolo, line):
    path = yolo(yaml="train: lists/train.txt\nnames: [cat]\n")
    (path.parent / "lists").mkdir()
    (path.parent / "lists" / "train.txt").write_text(line.format(root=path.parent))
    index = load(path)
    assert (names_of(index), index.num_boxes) == (["a.jpg"], 1)


def test_lines_of_a_list_may_start_from_its_folder_without_a_dot(yolo):
    path = yolo(yaml="train: images/train.txt\nnames: [cat]\n")
    (path.parent / "images" / "train.txt").write_text("train/a.jpg\n")
    assert names_of(load(path)) == ["a.jpg"]


@pytest.mark.parametrize("line", ["/etc/a.jpg", "../a.jpg", "./../a.jpg", "images/../../a.jpg"])
def test_a_list_cannot_leave_the_root(yolo, line):
    path = yolo(yaml="train: train.txt\nnames: [cat]\n")
    (path.parent / "train.txt").write_text(f"images/train/a.jpg\n{line}\n")
    with pytest.raises(DataError, match=r"train\.txt:2: .*out of the data set's folder.*'path'"):
        load(path)


def test_a_listed_picture_that_is_missing_is_an_error(yolo):
    path = yolo(yaml="train: train.txt\nnames: [cat]\n")
    (path.parent / "train.txt").write_text("images/train/a.jpg\nimages/train/b.jpg\n")
    with pytest.raises(DataError, match=r"1 of 2 pictures.*'b\.jpg'"):
        load(path)


@pytest.mark.parametrize("given", ["{root}", "../set", "."])
def test_the_root_may_be_given(yolo, given, tmp_path):
    path = yolo()
    path.write_text(f"path: {given.format(root=path.parent)}\n{YAML}")
    assert names_of(load(path)) == ["a.jpg"]


def test_the_root_may_be_below_the_datasets_folder(yolo, tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path))
    yolo()
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "data.yaml").write_text(f"path: set\n{YAML}")
    assert names_of(load("yaml/data.yaml")) == ["a.jpg"]


def test_a_step_up_that_leads_nowhere_is_left_out_and_noted(yolo):
    index = load(yolo({"a.jpg": BOX}, "train: ../train/images\nnames: [cat]\n", "train/images", "train/labels"))
    assert names_of(index) == ["a.jpg"]
    assert index.num_boxes == 1
    assert "'train: ../train/images' is read as 'train/images', which is there" in index.report.notes


def test_a_step_up_that_leads_out_of_the_root_is_refused(yolo, write_picture, tmp_path):
    path = yolo(yaml="train: ../images\nnames: [cat]\n")
    write_picture(tmp_path / "images" / "a.jpg", (9, 9))
    with pytest.raises(DataError, match=r"'train: \.\./images' leads to .*Set the key 'path'"):
        load(path)
    path.write_text("path: ..\ntrain: images\nnames: [cat]\n")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(BOX)
    assert load(path).num_boxes == 1


def test_folders_are_walked_and_extensions_are_of_any_case(yolo):
    pictures = {"train/b/c.d.PNG": BOX, "train/a.JPEG": BOX, "train/z.bmp": BOX}
    index = load(yolo(pictures))
    assert names_of(index) == ["a.JPEG", "b/c.d.PNG", "z.bmp"]
    assert index.num_boxes == 3


def test_the_last_images_folder_is_replaced(yolo):
    yaml = "train: images/images/train\nnames: [cat]\n"
    assert load(yolo({"train/a.jpg": BOX}, yaml, "images/images", "images/labels")).num_boxes == 1


@pytest.mark.parametrize("folder", ["pictures", "images"])
def test_labels_may_lie_beside_the_pictures(yolo, folder):
    index = load(yolo({"a.jpg": BOX, "b.jpg": BOX}, f"train: {folder}\nnames: [cat]\n", folder, folder))
    assert index.num_boxes == 2


def test_links_are_followed_but_not_in_a_circle(yolo):
    path = yolo({"train/a.jpg": BOX, "other/b.jpg": BOX})
    images = path.parent / "images"
    (images / "train" / "more").symlink_to(images / "other")
    (images / "train" / "circle").symlink_to(images / "train")
    assert names_of(load(path)) == ["a.jpg", "more/b.jpg"]


def test_hidden_pictures_and_folders_are_passed_over_and_noted(yolo):
    path = yolo({"train/a.jpg": BOX, "train/.checkpoints/a.jpg": BOX})
    (path.parent / "images" / "train" / "._a.jpg").write_bytes(b"\0\5\26\7")
    (path.parent / "images" / "train" / ".DS_Store").touch()
    index = load(path)
    assert names_of(index) == ["a.jpg"]
    assert any("passed over: 2 ('.checkpoints', '._a.jpg')" in note for note in index.report.notes)


def test_pictures_without_labels_are_kept_and_those_without_a_file_noted(yolo):
    index = load(yolo({"train/a.jpg": BOX, "train/b.jpg": None, "train/c.jpg": "", "train/d.jpg": "\n \n"}))
    assert index.box_counts().tolist() == [1, 0, 0, 0]
    assert "pictures without a label file, read as without objects: 1" in index.report.notes


def test_label_files_without_a_picture_are_noted(yolo):
    path = yolo()
    for name in ("b.txt", "c.txt", "classes.txt"):
        (path.parent / "labels" / "train" / name).write_text(BOX)
    notes = load(path).report.notes
    assert "label files without a picture, not used ('b.txt', 'c.txt'): 2" in notes


def test_labels_of_the_pictures_of_another_list_are_not_noted(yolo):
    path = yolo({"a.jpg": BOX, "b.jpg": BOX}, "train: train.txt\nnames: [cat]\n")
    (path.parent / "train.txt").write_text("images/a.jpg")
    notes = load(path).report.notes
    assert [note.endswith("which this set does not list, not used: 1") for note in notes] == [True]


def test_two_spellings_of_a_listed_picture_are_one_and_its_labels_are_read_once(yolo):
    path = yolo({"a.jpg": BOX, "b.jpg": BOX}, "train: train.txt\nnames: [cat]\n")
    lines = ("images/b.JPG", "./images//a.jpg", "images\\b.jpg", "images/a.Jpg", "images/b.jpg")
    (path.parent / "train.txt").write_text("\n".join(lines))
    index = load(path)
    assert (names_of(index), index.box_counts().tolist()) == (["b.jpg", "a.jpg"], [1, 1])
    assert index.report.images_dropped == {"listed twice": 3}
    assert index.report.notes == ()
    assert adds_up(index)


def test_the_extension_of_a_label_file_is_of_any_case(yolo):
    path = yolo()
    labels = path.parent / "labels" / "train"
    (labels / "a.txt").rename(labels / "a.TXT")
    assert load(path).num_boxes == 1
    (labels / "a.txt").write_text(BOX)
    with pytest.raises(DataError, match=r"holds 'a\.TXT' and 'a\.txt'"):
        load(path)


def test_a_picture_that_pillow_cannot_read_is_an_error_whatever_its_kind(yolo):
    path = yolo()
    (path.parent / "images" / "train" / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(DataError, match=r"1 of 2 pictures .*'b\.HEIC'"):
        load(path)


def test_two_pictures_of_one_stem_share_a_label_file(yolo):
    index = load(yolo({"train/a.jpg": BOX, "train/a.png": BOX}))
    assert index.box_counts().tolist() == [1, 1]
    assert any("share a label file" in note and note.endswith(": 1") for note in index.report.notes)


def test_no_label_file_at_all_is_an_error(yolo):
    path = yolo({"train/a.jpg": None})
    (path.parent / "labels" / "train" / "other.txt").write_text(BOX)
    with pytest.raises(DataError, match=r"none of the 1 pictures.*labels/train/a\.txt; that folder holds 'other\.txt'"):
        load(path)


@pytest.mark.parametrize("second", ["images/b", "b.txt"])
def test_a_folder_or_list_of_a_split_without_any_label_file_is_an_error(yolo, second):
    pictures = {"a/a.jpg": BOX, "b/b.jpg": None, "b/c.jpg": None}
    path = yolo(pictures, f"train: [images/a, {second}]\nnames: [cat]\n")
    (path.parent / "b.txt").write_text("images/b/b.jpg\nimages/b/c.jpg\n")
    with pytest.raises(
        DataError, match=rf"none of the 2 pictures of .*{second} .*labels/b/b\.txt.* an empty label file"
    ):
        load(path)
    (path.parent / "labels" / "b" / "c.txt").touch()  # the way out
    assert load(path).box_counts().tolist() == [1, 0, 0]


def test_a_folder_of_a_split_without_pictures_is_an_error(yolo):
    path = yolo(yaml="train: [images/train, images/more]\nnames: [cat]\n")
    (path.parent / "images" / "more").mkdir()
    with pytest.raises(DataError, match=r"there is no picture in .*images/more, which holds nothing.*data\.yaml"):
        load(path)


def test_a_polygon_is_read_as_its_bounding_box_and_counted(yolo):
    lines = f"1 0.25 0.5 0.75 0.25 0.5 1\n{BOX}0 0 0 1 0 1 1 0 1\n"
    index = load(yolo({"train/a.jpg": lines}))
    assert index.boxes.tolist() == [[15, 10, 45, 40], [15, 15, 45, 25], [0, 0, 60, 40]]
    assert index.classes.tolist() == [1, 0, 0]
    assert index.report.fixed["polygons, read as their bounding boxes"] == 2
    assert adds_up(index)


@pytest.mark.parametrize("text", ["0 .5 .5 .5 .25", "0.0\t.5  5e-1 .5 .25 \r\n", b"\xef\xbb\xbf0 .5 .5 .5 .25\n\n"])
def test_spellings_of_one_line(yolo, text):
    assert load(yolo({"train/a.jpg": text})).boxes.tolist() == [[15, 15, 45, 25]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 nan .5 .5 .5", "not a finite number"),
        ("0 .5 .5 inf .5", "not a finite number"),
        ("0 .1 .1 nan .2 .3 .3", "not a finite number"),
        ("0 .5 .5 0 .5", "without an area"),
        ("0 .5 .5 .5 -.5", "without an area"),
        ("0 1.5 .5 .5 .5", "outside of the picture"),
    ],
)
def test_a_box_that_cannot_be_used_is_dropped_and_counted(yolo, line, reason):
    index = load(yolo({"train/a.jpg": f"{line}\n{BOX}0 .4 .5 .2 .2"})).for_training(filter_empty=False)
    assert index.num_boxes == 2
    assert [(reason in text, count) for text, count in index.report.boxes_dropped.items()] == [(True, 1)]
    assert adds_up(index)


def test_a_box_over_the_border_is_clipped_and_counted(yolo):
    index = load(yolo({"train/a.jpg": "0 0 .5 .5 .5"})).for_training(filter_empty=False)
    assert index.boxes.tolist() == [[0, 10, 15, 30]]
    assert index.report.fixed["boxes over the border, clipped to the picture"] == 1


def test_pixels_are_recognised(yolo):
    with pytest.raises(DataError, match=r"a\.txt:2: the box reaches to 320.*no share.*2 of 3 boxes.*Divide"):
        load(yolo({"train/a.jpg": f"{BOX}0 200 150 240 100\n0 30 30 20 20"}))


@pytest.mark.parametrize("entry", ["images/train", "../images/train"])
def test_a_root_that_is_not_there_is_the_folder_of_the_yaml_where_the_pictures_are(yolo, entry):
    index = load(yolo(yaml=f"path: /content/dataset\ntrain: {entry}\nval: images/val\nnames: [cat]\n"))
    assert names_of(index) == ["a.jpg"]
    assert index.report.notes[0].startswith("'path: /content/dataset' does not exist: read as the folder of data.yaml")


def test_pictures_without_labels_say_where_these_belong(yolo):
    path = yolo({"train/a.jpg": None})
    with pytest.raises(DataError, match=r"Looked for .*/labels/train/a\.txt; that folder is empty\. A label"):
        load(path)
    (path.parent / "labels" / "train").rmdir()
    with pytest.raises(
        DataError,
        match=r"/set/labels/train/a\.txt; that folder does not exist\. Looked for "
        r".*/images/train/a\.txt; that folder holds no \.txt file, but 1 of another kind \('a\.jpg'\)",
    ):
        load(path)


BAD_LINES = {
    "four values": (f"{BOX}0 .5 .5 .5", r"a\.txt:2: '0 \.5 \.5 \.5' has 4 values"),
    "a space of another kind": ("0\xa00.5 .5 .5 .5 .5", r"a\.txt:1: .* as value 1, which is no number"),
    "six values": ("0 .5 .5 .5 .5 .9", r"a\.txt:1: .* has 6 values; is the last one a confidence\?"),
    "underscores": ("0 .5 .5 .5 .2_5", r"a\.txt:1: .* has '\.2_5' as value 5, which is no number"),
    "commas": ("0,.5,.5,.5,.5", r"a\.txt:1: .* as value 1, which is no number \(values are separated by spaces\)"),
    "a class by name": ("cat .5 .5 .5 .5", r"a\.txt:1: 'cat .* has 'cat' as value 1, which is no number"),
    "binary junk": (b"\x00\x01\xff\xfe", r"a\.txt is not UTF-8 text"),
    "UTF-16": (BOX.encode("utf-16"), r"a\.txt is not UTF-8 text"),
    "a class too high": (f"\n{BOX}2 .5 .5 .5 .5", r"a\.txt:3: the class 2 is not one of the 2"),
    "a negative class": ("-1 .5 .5 .5 .5", r"a\.txt:1: the class -1 is not one of the 2"),
    "half a class": ("0.5 .5 .5 .5 .5", r"a\.txt:1: the class 0\.5 is not one of the 2"),
    "an endless class": ("inf .5 .5 .5 .5", r"a\.txt:1: the class inf is not one of the 2"),
    "no class": ("nan .5 .5 .5 .5", r"a\.txt:1: the class nan is not one of the 2"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_errors_in_labels_name_file_and_line(yolo, name):
    text, pattern = BAD_LINES[name]
    with pytest.raises(DataError, match=pattern):
        load(yolo({"train/a.jpg": text}))


BAD_YAML = {
    "no names": ("train: images/train\n", r"data\.yaml: 'names' is None"),
    "names empty": ("train: images/train\nnames: []\n", r"data\.yaml:2: 'names' is \[\]"),
    "names a number": ("train: images/train\nnames: 3\n", r"data\.yaml:2: 'names' is 3"),
    "a name that YAML reads as false": ("train: images/train\nnames: [cat, no]\n", r"data\.yaml:2: .* False.*quotes"),
    "an index that is none": ("train: images/train\nnames:\n  0: cat\n  x: dog\n", r"data\.yaml:4: .*'x'"),
    "an index twice": ("train: images/train\nnames:\n  0: cat\n  00: dog\n", r"data\.yaml:4: .*'00'"),
    "a key twice": (f"{YAML}names: [dog]\n", r"data\.yaml:4: the key 'names' is set twice.*:3"),
    "another count": (f"{YAML}nc: 3\n", r"data\.yaml:4: 'nc' is 3, and 'names' has 2 \('cat', 'dog'\)"),
    "no splits": ("names: [cat]\n", r"data\.yaml: it has none of 'train', 'val' and 'test'.*'names'"),
    "a split that is a number": ("train: 3\nnames: [cat]\n", r"data\.yaml:1: 'train' is 3, not a folder"),
    "val and valid": (f"{YAML}valid: images/val\n", r"data\.yaml:4: 'val' and 'valid' are the same split"),
    "a folder that is not there": ("train: pics\nnames: [cat]\n", r"'train: pics' names .*set/pics, which does not"),
    "a file that is no list": ("train: data.yaml\nnames: [cat]\n", r"neither a folder of pictures nor a \.txt list"),
    "a folder without pictures": ("train: labels\nnames: [cat]\n", r"there is no picture in .*labels, .* 'train'"),
    "a root that is not there": (
        "path: gone\ntrain: pics\nnames: [cat]\n",
        r"data\.yaml:1: .*'path: gone' does not exist: .*/set/gone \(from .* and .*/gone \(from \$.* Write 'path: \.'",
    ),
    "an absolute root that is not there": (
        "path: /gone/x\ntrain: pics\nnames: [cat]\n",
        r"exist: tried /gone/x\. Write",
    ),
    "a root that is a number": (f"path: 3\n{YAML}", r"data\.yaml:1: 'path' is 3"),
    "code": ("train: !!python/object/apply:os.system ['true']\nnames: [cat]\n", r"data\.yaml.*not safe YAML"),
    "no YAML": ("train: [", r"data\.yaml.*not safe YAML"),
    "no mapping": ("- train\n", r"data\.yaml:1"),
    "keypoints": (f"{YAML}kpt_shape: [17, 3]\n", r"data\.yaml:4: .*keypoints"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_errors_in_the_yaml_name_file_and_line(yolo, name):
    text, pattern = BAD_YAML[name]
    with pytest.raises(DataError, match=pattern):
        load(yolo(yaml=text))


def test_the_count_of_a_list_with_gaps_may_be_the_highest_index(yolo):
    path = yolo(yaml="train: images/train\nnames: {0: cat, 7: dog}\nnc: 8\n")
    assert load(path).class_names == ("cat", "dog")


def test_a_split_that_is_not_there_lists_those_that_are(yolo):
    path = yolo()
    with pytest.raises(DataError, match=r"no split 'test' but 'train', 'val'"):
        load(path, "test")
    with pytest.raises(DataError, match=r"no split 'trian' .*Did you mean 'train'\?"):
        load(path, "trian")


def test_a_yaml_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(DataError, match=r"data\.yaml does not exist.*DETKIT_DATASETS"):
        load(tmp_path / "data.yaml")
    (tmp_path / "data.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match=r"data\.yaml: is not UTF-8 text"):
        load(tmp_path / "data.yaml")


@pytest.mark.parametrize(
    "spec", ["yolo", "yolo:", "yolo:data.yaml", "yolo:a/data.yaml:", "yolo::train", "yolo:C:/a.yaml"]
)
def test_a_name_without_both_parts_shows_the_form(spec):
    with pytest.raises(DataError, match=r"yolo:PATH/data\.yaml:SPLIT"):
        open_dataset(spec)


def test_a_kept_index_is_read_anew_when_anything_changes(yolo, write_picture, monkeypatch):
    """Each change must be seen: of a label, a new picture, a new folder, labels put into a folder of their own."""
    path = yolo()

    def counts():
        for file in [path.parent, *path.parent.rglob("*")]:  # what was written just now is not kept
            if file.stat().st_mtime > time.time() - 600:
                os.utime(file, ns=(0, file.stat().st_mtime_ns - 3600 * 10**9))
        return load(path).box_counts().tolist()

    labels, images = path.parent / "labels" / "train", path.parent / "images" / "train"
    assert counts() == [1]
    with monkeypatch.context() as patch:
        patch.setattr(yolo_module, "_read_yolo", None)  # a second start reads no label
        assert counts() == [1]
    (labels / "a.txt").write_text(BOX + BOX)
    assert counts() == [2]
    write_picture(images / "b.jpg", (9, 9))
    assert counts() == [2, 0]
    write_picture(images / "c" / "c.jpg", (9, 9))
    assert counts() == [2, 0, 0]
    (labels / "c").mkdir()
    (labels / "c" / "c.txt").write_text(BOX)
    assert counts() == [2, 0, 1]
    (path.parent / "data.yaml").write_text(YAML.replace("dog", "horse"))
    assert load(path).class_names == ("cat", "horse")


NUMBER = st.one_of(st.floats(-0.5, 1.5), st.sampled_from(["nan", "inf", "0", "1", "x", "1e400"]))
LINE = st.lists(NUMBER, min_size=3, max_size=9).map(lambda values: " ".join(["1", *map(str, values)]))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.none() | st.lists(LINE, max_size=4).map("\n".join), min_size=1, max_size=3))
def test_totals_add_up_or_an_error_names_a_file(tmp_path_factory, write_picture, texts):
    root = Path(tmp_path_factory.mktemp("set"))
    for i, text in enumerate(texts):
        write_picture(root / f"{i}.png", (40, 60))
        if text is not None:
            (root / f"{i}.txt").write_text(text)
    (root / "data.yaml").write_text("train: .\nnames: [cat, dog]\n")
    lines = sum(len(text.split("\n")) for text in texts if text)
    try:
        index = load(root / "data.yaml")
    except DataError as error:
        outcome = str(error)
    else:
        outcome = str(root) if adds_up(index) and index.report.boxes_read == lines else ""
    assert str(root) in outcome
