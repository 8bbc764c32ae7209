"""Public sets by name: COCO's and PASCAL VOC's."""

from __future__ import annotations

import json

import pytest

from detkit.data import DataError
from detkit.data.datasets.names import COCO_CLASSES, VOC_CLASSES
from detkit.registry import open_dataset

# The ids that COCO leaves out of 1..90.
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [i for i in range(1, 91) if i not in GAPS]


@pytest.fixture
def coco_folder(tmp_path, monkeypatch, write_picture):
    """`coco_folder({file: [(image folder, name, id), ...]})` lays out `coco/` with one box per picture."""
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path))

    def make(files, boxes=True, classes=COCO_CLASSES):
        for file, pictures in files.items():
            images = []
            for folder, name, i in pictures:
                write_picture(tmp_path / "coco" / folder / name, (20, 20), i)
                images.append({"id": i, "file_name": name, "height": 20, "width": 20})
            ids = IDS[: len(classes)]
            data = {"images": images, "categories": [{"id": i, "name": n} for i, n in zip(ids, classes, strict=True)]}
            if boxes:
                data["annotations"] = [
                    {"id": n, "image_id": image["id"], "category_id": 90, "bbox": [1, 1, 5, 5], "area": 20}
                    for n, image in enumerate(images, 1)
                ]
            path = tmp_path / "coco" / "annotations" / f"{file}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(data))

    return make


@pytest.mark.parametrize(
    "name",
    ["coco_2017_train", "coco_2017_val", "coco_2017_test-dev", "coco_2014_trainval35k", "coco_2014_minival"],
)
def test_classes_are_known_without_a_file(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path / "nothing"))
    assert open_dataset(name).classes() == COCO_CLASSES
    assert len(set(COCO_CLASSES)) == 80
    with pytest.raises(DataError, match="coco/annotations/"):
        open_dataset(name).load()


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("coco_2017_train", "instances_train2017", "train2017"),
        ("coco_2017_val", "instances_val2017", "val2017"),
        ("coco_2014_minival", "instances_minival2014", "val2014"),
    ],
)
def test_standard_folders(coco_folder, name, file, folder):
    coco_folder({file: [(folder, "000000000009.jpg", 9)]})
    index = open_dataset(name).load()
    assert index.file_name(0) == "000000000009.jpg"
    assert index.category_ids == tuple(IDS)
    assert index.class_names[index.classes[0]] == "toothbrush"


def test_trainval35k_is_train_and_the_larger_part_of_val(coco_folder):
    coco_folder(
        {
            "instances_train2014": [("train2014", "a.jpg", 4), ("train2014", "b.jpg", 2)],
            "instances_valminusminival2014": [("val2014", "c.jpg", 3)],
        }
    )
    index = open_dataset("coco_2014_trainval35k").load()
    assert [index.file_name(i) for i in range(3)] == ["train2014/a.jpg", "train2014/b.jpg", "val2014/c.jpg"]
    assert index.image_ids.tolist() == [4, 2, 3]
    assert index.report.boxes_kept == index.num_boxes == 3


def test_test_dev_has_pictures_and_no_boxes(coco_folder):
    coco_folder({"image_info_test-dev2017": [("test2017", "a.jpg", 1)]}, boxes=False)
    index = open_dataset("coco_2017_test-dev").load()
    assert (len(index), index.num_boxes) == (1, 0)


def test_another_file_of_that_name_is_noticed(coco_folder):
    coco_folder({"instances_val2017": [("val2017", "a.jpg", 1)]}, classes=["x"], boxes=False)
    with pytest.raises(DataError, match="80 classes"):
        open_dataset("coco_2017_val").load()


@pytest.mark.parametrize("name", ["coco_2017_val:x", "voc_2007_test:x"])
def test_nothing_may_follow_the_name(name):
    with pytest.raises(DataError, match="nothing after"):
        open_dataset(name)


@pytest.fixture
def voc_folder(tmp_path, monkeypatch, write_picture):
    """`voc_folder(below, split, class)` lays out one picture with one object; returns the root of the set."""
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path))

    def make(below, split, name="person"):
        root = tmp_path / below
        write_picture(root / "JPEGImages" / "2008_000008.jpg", (20, 20))
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        for path, text in {
            "Annotations/2008_000008.xml": f"<annotation><object><name>{name}</name>{box}</object></annotation>",
            f"ImageSets/Main/{split}.txt": "2008_000008\n",
        }.items():
            (root / path).parent.mkdir(parents=True)
            (root / path).write_text(text)
        return root

    return make


VOC_SETS = {
    "voc_2007_trainval": ("VOC2007", "trainval"),
    "voc_2007_test": ("VOC2007", "test"),
    "voc_2012_trainval": ("VOC2012", "trainval"),
}


@pytest.mark.parametrize("above", ["", "VOCdevkit/"])
@pytest.mark.parametrize("name", VOC_SETS)
def test_voc_in_its_own_folder_or_that_of_the_archive(voc_folder, name, above):
    folder, split = VOC_SETS[name]
    root = voc_folder(f"{above}{folder}", split)
    index = open_dataset(name).load()
    assert index.path(0) == str(root / "JPEGImages" / "2008_000008.jpg")
    assert index.class_names == VOC_CLASSES == open_dataset(name).classes()
    assert index.class_names[index.classes[0]] == "person"
    assert index.category_ids == tuple(range(1, 21))


def test_voc_has_its_twenty_classes_in_their_order():
    assert (len(set(VOC_CLASSES)), VOC_CLASSES[0], VOC_CLASSES[14], VOC_CLASSES[-1]) == (
        20,
        "aeroplane",
        "person",
        "tvmonitor",
    )


@pytest.mark.parametrize("name", VOC_SETS)
def test_voc_that_is_not_there_names_both_folders(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path))
    assert open_dataset(name).classes() == VOC_CLASSES
    folder = VOC_SETS[name][0]
    with pytest.raises(DataError, match=f"neither in {tmp_path}/{folder} nor in {tmp_path}/VOCdevkit/{folder}"):
        open_dataset(name).load()


def test_an_object_of_no_voc_class_is_an_error(voc_folder):
    voc_folder("VOC2007", "test", "unicorn")
    with pytest.raises(DataError, match=r"2008_000008\.xml: object 1 is of the class 'unicorn'.*aeroplane"):
        open_dataset("voc_2007_test").load()
