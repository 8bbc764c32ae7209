"""COCO's format: what is read, and what happens to everything that is wrong."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkit.data import DataError
from detkit.data.datasets.coco import read_coco, read_coco_classes
from detkit.registry import open_dataset

INF = math.inf


def kept(index) -> list[list[float]]:
    return index.boxes.tolist()


def adds_up(index) -> bool:
    report = index.report
    return report.images_kept == len(index) and report.boxes_kept == index.num_boxes


def test_reads_every_field(coco_files):
    def change(data):
        data["annotations"][0]["area"] = 123.5
        data["annotations"][0]["iscrowd"] = 1

    path, folder = coco_files(change=change)
    index = read_coco(path, folder)
    assert index.class_names == ("cat", "dog") == read_coco_classes(path)
    assert index.category_ids == (1, 2)
    assert index.image_ids.tolist() == [1, 2]
    assert index.sizes_hw.tolist() == [[40, 60], [30, 30]]
    assert kept(index) == [[10, 10, 30, 20], [0, 0, 30, 30]]
    assert index.classes.tolist() == [0, 1]
    assert index.is_crowd.tolist() == [True, False]
    assert index.areas.tolist() == [123.5, 900]  # the second has none in the file: its box's
    assert index.path(1) == str(folder / "2.png")
    assert adds_up(index)


def test_boxes_are_grouped_by_picture_in_the_order_of_the_file(coco_index):
    index = coco_index(boxes=[(2, 1, [0, 0, 1, 1]), (1, 1, [0, 0, 2, 2]), (2, 2, [0, 0, 3, 3]), (1, 2, [0, 0, 4, 4])])
    assert index.boxes_of(0)[:, 2].tolist() == [2, 4]
    assert index.boxes_of(1)[:, 2].tolist() == [1, 3]
    assert index.classes_of(1).tolist() == [0, 1]
    assert index.annotation_ids.tolist() == [2, 4, 1, 3]


@pytest.mark.parametrize("ids", [(0, 1), (0, 7), (5, 90), (90, 3)])
def test_category_ids_from_zero_or_with_gaps(coco_index, ids):
    index = coco_index(categories=[(ids[0], "a"), (ids[1], "b")], boxes=[(1, ids[1], [0, 0, 9, 9])])
    order = sorted(zip(ids, "ab", strict=True))
    assert index.class_names == tuple(name for _, name in order)
    assert index.category_ids == tuple(i for i, _ in order)
    assert index.class_names[index.classes[0]] == "b"


def test_categories_of_one_name_are_one_class(coco_index):
    index = coco_index(categories=[(0, "cell "), (1, "cell"), (2, "dog")], boxes=[(1, 1, [0, 0, 9, 9])])
    assert index.class_names == ("cell", "dog")
    assert index.classes.tolist() == [0]
    assert index.category_ids == (1, 2)  # the one in use
    assert any("are all named" in note and "read as one class" in note for note in index.report.notes)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([float("nan"), 0, 5, 5], "not a finite number"),
        ([0, 0, None, 5], "not a finite number"),
        ([0, 0, INF, 5], "not a finite number"),
        ([5, 5, 0, 5], "without an area"),
        ([5, 5, 5, 0.0], "without an area"),
        ([5, 5, -3, 5], "without an area"),
        ([60, 5, 10, 10], "outside of the picture"),
        ([-20, 5, 10, 10], "outside of the picture"),
        ([5, 1e30, 10, 10], "without an area"),  # lost in rounding
        ([70, 50, 10, 10], "outside of the picture"),
    ],
)
def test_a_box_that_cannot_be_used_is_dropped_and_counted(coco_index, box, reason):
    index = coco_index(boxes=[(1, 1, box), (1, 1, [0, 0, 4, 4])]).for_training(filter_empty=False)
    assert kept(index) == [[0, 0, 4, 4]]
    assert [(count, reason in text) for text, count in index.report.boxes_dropped.items()] == [(1, True)]
    assert reason in "\n".join(index.summary())
    assert adds_up(index)


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ([-5, 10, 20, 10], [0, 10, 15, 20]),
        ([50, 30, 20, 20], [50, 30, 60, 40]),
        ([-9, -9, 900, 900], [0, 0, 60, 40]),
    ],
)
def test_a_box_over_the_border_is_clipped_and_counted(coco_index, box, clipped):
    index = coco_index(boxes=[(1, 1, box)])
    x, y, width, height = box
    assert kept(index) == [[x, y, x + width, y + height]]  # for evaluation
    index = index.for_training(filter_empty=False)
    assert kept(index) == [clipped]
    assert list(index.report.fixed.values()) == [1]
    assert adds_up(index)


CORNERS = [[2, 3, 20, 30], [30, 5, 50, 40], [20, 20, 60, 30]]  # of a 40 x 60 picture


@pytest.mark.parametrize("is_measured", [False, True])
def test_boxes_written_as_corners_are_an_error(coco_files, is_measured):
    def change(data):
        for record in data["images"] if is_measured else []:
            del record["width"], record["height"]

    files = coco_files(boxes=[(1, 1, box) for box in CORNERS], change=change)
    with pytest.raises(DataError, match=r"annotations\.json: the boxes look like corners: annotation 2 has the bbox "
                                        r"\[30, 5, 50, 40\] on '1\.png', which is 60 x 40 pixels.*must be "
                                        r"\[x, y, width, height\]\. Export it so"):  # fmt: skip
        read_coco(*files)


@pytest.mark.parametrize(
    "boxes",
    [
        CORNERS[:2],  # too few to tell
        [*CORNERS, [9, 9, 5, 5]],  # no corners
        [*CORNERS, [20, 30, 50, 60]],  # nor here, which would lie outside
        [*CORNERS[1:], [0, 0, 5, 5], [1, 1, 7, 7], [0, 1, 9, 7], [1, 1, 9, 9], [2, 2, 9, 9], [0, 2, 9, 9]],  # a quarter
    ],
)
def test_boxes_over_the_border_need_not_be_corners(coco_index, boxes):
    index = coco_index(boxes=[(1, 1, box) for box in boxes])
    assert index.num_boxes == len(boxes)


def test_a_file_without_annotations_says_so(coco_index):
    index = coco_index(change=lambda data: data.pop("annotations"))
    assert index.report.notes == ("the file has no 'annotations'",)


def test_rounding_at_the_border_is_not_worth_a_count(coco_index):
    index = coco_index(boxes=[(1, 1, [50, 0, 10.02, 10])]).for_training(filter_empty=False)
    assert kept(index) == [[50, 0, 60, 10]]
    assert not index.report.fixed


def test_empty_pictures_are_kept_and_classes_without_a_box_reported(coco_index):
    index = coco_index(boxes=[(1, 1, [0, 0, 9, 9])])
    assert len(index) == 2
    assert index.boxes_of(1).shape == (0, 4)
    summary = "\n".join(index.summary())
    assert "pictures without a box: 1" in summary
    assert "classes without a box: 'dog'" in summary


def test_pictures_that_the_file_does_not_list_are_noted(coco_files, write_picture):
    path, folder = coco_files()
    assert not read_coco(path, folder).report.notes
    write_picture(folder / "3.png", (9, 9))
    write_picture(folder / "4.JPG", (9, 9))
    (folder / "readme.txt").touch()
    index = read_coco(path, folder)
    assert len(index) == 2
    assert [note.endswith("does not list, not used: 2") for note in index.report.notes] == [True]


def test_a_picture_of_another_size_than_the_file_says_is_an_error_at_the_start(coco_files):
    path, folder = coco_files(change=lambda data: data["images"][0].update(width=61))
    with pytest.raises(DataError, match=r"1 of 2 pictures.*'1\.png' is 60 x 40, the annotations say 61 x 40"):
        read_coco(path, folder)


def test_no_annotations_at_all_is_for_predictions_only(coco_index):
    index = coco_index(change=lambda data: data.pop("annotations"))
    assert len(index) == 2
    assert index.boxes.shape == (0, 4)
    assert "no boxes: for predictions only" in "\n".join(index.summary())


def test_no_pictures_gives_an_empty_index(coco_index):
    index = coco_index(sizes=[(9, 9)], boxes=[], change=lambda data: data.update(images=[]))
    assert len(index) == 0
    assert adds_up(index)


def test_annotations_of_an_unknown_picture_are_dropped_and_counted(coco_index):
    index = coco_index(boxes=[(1, 1, [0, 0, 9, 9]), (77, 1, [0, 0, 9, 9]), (0, 1, [0, 0, 9, 9])])
    assert index.report.boxes_dropped == {"of a picture that is not listed": 2}
    assert "  boxes dropped, of a picture that is not listed: 2 ('image_id 77', 'image_id 0')" in index.report.lines()
    assert adds_up(index)


def test_a_picture_listed_twice_the_same_is_read_once(coco_index):
    index = coco_index(change=lambda data: data["images"].append(dict(data["images"][0])))
    assert index.image_ids.tolist() == [1, 2]
    assert index.report.images_dropped == {"listed twice": 1}
    assert "  pictures dropped, listed twice: 1 ('1.png')" in index.report.lines()
    assert index.num_boxes == 2
    assert adds_up(index)


def test_numbers_written_as_text_or_floats_are_read(coco_index):
    def change(data):
        for image in data["images"]:
            image["id"] = str(image["id"])
        for note in data["annotations"]:
            note["image_id"] = float(note["image_id"])
            note["bbox"] = [str(value) for value in note["bbox"]]

    index = coco_index(change=change)
    assert index.image_ids.tolist() == [1, 2]
    assert kept(index) == [[10, 10, 30, 20], [0, 0, 30, 30]]


@pytest.mark.parametrize("spoil", [lambda n: n.pop("id"), lambda n: n.update(id=1), lambda n: n.update(id="a")])
def test_annotation_ids_that_repeat_or_lack_are_numbered_anew(coco_index, spoil):
    index = coco_index(change=lambda data: [spoil(note) for note in data["annotations"]])
    assert index.annotation_ids.tolist() == [1, 2]
    assert any("numbered anew" in note for note in index.report.notes)


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": None}, {"height": "x"}, {"width": 1.5}])
def test_a_size_the_file_does_not_say_is_measured(coco_index, size):
    index = coco_index(change=lambda data: data["images"][0].update(size))
    assert index.sizes_hw.tolist() == [[40, 60], [30, 30]]
    assert any("measured" in repair for repair in index.report.fixed)


def test_a_byte_order_mark_is_accepted(coco_files):
    path, folder = coco_files()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_coco(path, folder)) == 2


ERRORS = {
    "category not listed": (
        lambda d: d["annotations"][0].update(category_id=9),
        ["annotation 1", "category 9", "[1, 2]"],
    ),
    "category without an id": (lambda d: d["annotations"][0].pop("category_id"), ["'category_id'", "None"]),
    "two categories of one id": (lambda d: d["categories"][1].update(id=1), ["id 1", "'dog'"]),
    "category without a name": (lambda d: d["categories"][0].pop("name"), ["category 1", "None"]),
    "no categories": (lambda d: d.update(categories=[]), ["'categories' is empty"]),
    "categories missing": (lambda d: d.pop("categories"), ["no 'categories'", "images"]),
    "images missing": (lambda d: d.pop("images"), ["no 'images'"]),
    "images no list": (lambda d: d.update(images={}), ["a dict as 'images'"]),
    "image no object": (lambda d: d["images"].append(3), ["entry 2 of 'images'", "3"]),
    "one id for two pictures": (lambda d: d["images"][1].update(id=1), ["the id 1", "'1.png'", "'2.png'"]),
    "image id is text": (lambda d: d["images"][0].update(id="a7f"), ["'a7f'", "'id'", "not an integer"]),
    "image id with an underscore": (lambda d: d["images"][0].update(id="1_0"), ["'1_0'", "not an integer"]),
    "image id too large": (lambda d: d["images"][0].update(id=2**70), [str(2**70), "not an integer"]),
    "image id is true": (lambda d: d["images"][0].update(id=True), ["True", "not an integer"]),
    "bbox of three": (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), ["annotation 2", "[1, 2, 3]"]),
    "bbox missing": (lambda d: d["annotations"][1].pop("bbox"), ["annotation 2", "None"]),
    "bbox of words": (lambda d: d["annotations"][1].update(bbox=list("abcd")), ["annotation 2", "'a'"]),
    "other export": (
        lambda d: [note.update(image_id=note["image_id"] + 100) for note in d["annotations"]],
        ["no annotation belongs to a listed picture", "101"],
    ),
    "file name missing": (lambda d: d["images"][0].pop("file_name"), ["below the image folder", "''"]),
    "file name null": (lambda d: d["images"][0].update(file_name=None), ["below the image folder", "None"]),
    "file name up": (lambda d: d["images"][0].update(file_name="../1.png"), ["below the image folder", "'../1.png'"]),
    "file name up inside": (
        lambda d: d["images"][0].update(file_name="a/../../1.png"),
        ["below the image folder", "'a/../../1.png'"],
    ),
    "file name up on Windows": (
        lambda d: d["images"][0].update(file_name="..\\1.png"),
        ["below the image folder", "1.png"],
    ),
    "file name absolute": (
        lambda d: d["images"][0].update(file_name="/etc/passwd"),
        ["below the image folder", "'/etc/passwd'"],
    ),
    "file name absolute on Windows": (
        lambda d: d["images"][0].update(file_name="C:\\1.png"),
        ["below the image folder", "1.png"],
    ),
    "file name with a NUL": (lambda d: d["images"][0].update(file_name="1.png\0"), ["below the image folder", "1.png"]),
    "file name no text": (
        lambda d: d["images"][0].update(file_name="\ud800.png"),
        ["below the image folder", "file name"],
    ),
    "one picture missing": (
        lambda d: d["images"][1].update(file_name="gone.png"),
        ["1 of 2 pictures", "'gone.png'", "images"],
    ),
    "all pictures missing": (
        lambda d: [image.update(file_name=f"train/{image['file_name']}") for image in d["images"]],
        ["none of its 2 pictures", "'train/1.png'", "holds '1.png'", "image folder"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_file_the_value_and_the_way_out(coco_files, name):
    change, words = ERRORS[name]
    path, folder = coco_files(change=change)
    with pytest.raises(DataError) as error:
        read_coco(path, folder)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_first_five_missing_names_are_listed(coco_files):
    def change(data):
        data["images"] += [{"id": 10 + i, "file_name": f"no{i}.png", "height": 9, "width": 9} for i in range(8)]

    path, folder = coco_files(change=change)
    with pytest.raises(DataError, match=r"8 of 10 pictures .*'no4.png', \.\.\.") as error:
        read_coco(path, folder)
    assert "no5.png" not in str(error.value)


def test_a_link_inside_the_folder_is_followed(coco_files, tmp_path, write_picture):
    path, folder = coco_files()
    (folder / "2.png").rename(tmp_path / "elsewhere.png")
    (folder / "2.png").symlink_to(tmp_path / "elsewhere.png")
    assert len(read_coco(path, folder)) == 2


@pytest.mark.parametrize("text", ["", "{", '{"images": [', "[" * 100000, "\x00", '{"images": [NaN'])
def test_broken_json_names_the_file(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError, match="broken.json"):
        read_coco(path, tmp_path)
    with pytest.raises(DataError, match="broken.json"):
        read_coco_classes(path)


def test_bytes_that_are_no_text_name_the_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(b"\xff\xfe\x80\x81")
    with pytest.raises(DataError, match="broken.json"):
        read_coco(path, tmp_path)


def test_a_results_file_is_recognised(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 1, "score": 0.5}]))
    with pytest.raises(DataError, match="holds a list.*results file"):
        read_coco(path, tmp_path)


def test_missing_files_say_where_they_were_looked_for(tmp_path, coco_files, monkeypatch):
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path))
    coco_files()
    with pytest.raises(DataError, match=r"nope\.json does not exist.*DETKIT_DATASETS"):
        open_dataset("coco:nope.json:images").load()
    with pytest.raises(DataError, match=r"image folder .*nowhere does not exist"):
        open_dataset("coco:annotations.json:nowhere").load()


def test_relative_paths_start_from_the_datasets_folder(tmp_path, coco_files, monkeypatch):
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path))
    coco_files()
    dataset = open_dataset("coco:annotations.json:images")
    assert dataset.classes() == ("cat", "dog")
    assert len(dataset.load()) == 2


@pytest.mark.parametrize("spec", ["coco", "coco:", "coco:a.json", "coco:a.json:", "coco::images"])
def test_a_name_without_both_parts_shows_the_form(spec):
    with pytest.raises(DataError, match=r"coco:PATH/annotations\.json:PATH/images"):
        open_dataset(spec)


def test_a_colon_in_the_image_folder_belongs_to_it():
    assert open_dataset("coco:a.json:b:c").images.name == "b:c"


def test_image_ids_come_in_any_order(coco_index):
    def change(data):
        for image, i in zip(data["images"], (90, 7, 40), strict=True):
            image["id"] = i

    boxes = [(7, 1, [0, 0, 7, 7]), (40, 1, [0, 0, 4, 4]), (90, 1, [0, 0, 9, 9])]
    index = coco_index(sizes=[(20, 20)] * 3, boxes=boxes, change=change)
    assert index.image_ids.tolist() == [90, 7, 40]
    assert [index.boxes_of(i)[0, 2] for i in range(3)] == [9, 7, 4]


@pytest.mark.parametrize("area", [None, "x", -1, INF, float("nan")])
def test_an_area_that_is_none_is_the_box_s(coco_index, area):
    index = coco_index(change=lambda data: data["annotations"][0].update(area=area))
    assert index.areas.tolist() == [200, 900]


ODD = [
    None, True, -1, 0, 1.5, INF, float("nan"), 1e308, 10**30, 2**63, "", "x", "-3", "../x", [], [1], [1, 2, 3, 4], {},
    [[1, 2], [3, 4]], [None] * 4, ["1"] * 4, [1e308] * 4, "\ud800",
]  # fmt: skip


def places(value, path=()):
    """Every place in nested lists and objects, as a path of keys."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("error")
def test_a_spoilt_file_gives_totals_that_add_up_or_an_error_with_its_name(coco_files, data):
    def change(content):
        for _ in range(data.draw(st.integers(1, 3))):
            *path, last = data.draw(st.sampled_from(list(places(content))))
            inner = content
            for key in path:
                inner = inner[key]
            inner[last] = copy.deepcopy(data.draw(st.sampled_from(ODD)))

    path, folder = coco_files(change=change)
    try:
        index = read_coco(path, folder)
    except DataError as error:
        outcome = str(error)
    else:
        outcome = str(path) if adds_up(index) and np.isfinite(index.boxes).all() and index.summary() else ""
    assert str(path) in outcome or str(folder) in outcome


def test_large_file_keeps_order_and_totals(coco_files):
    """Many boxes at random, against a plain reading of the same file."""
    rng = np.random.default_rng(0)
    sizes = [(30, 40)] * 20
    boxes = [
        (int(rng.integers(1, 21)), int(rng.integers(1, 3)), [float(v) for v in rng.uniform(-8, 45, 4)])
        for _ in range(500)
    ]
    path, folder = coco_files(sizes=sizes, boxes=boxes)
    index = read_coco(path, folder)
    assert index.num_boxes == 500
    assert adds_up(index)
    index = index.for_training(filter_empty=False)
    expected: dict[int, list] = {i: [] for i in range(20)}
    for i, k, (x, y, w, h) in boxes:
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, 40), min(y + h, 30)
        if w > 0 and h > 0 and x1 > x0 and y1 > y0:
            expected[i - 1].append([x0, y0, x1, y1, k - 1])
    for i, rows in expected.items():
        found = np.concatenate([index.boxes_of(i), index.classes_of(i)[:, None]], 1)
        np.testing.assert_allclose(found, np.array(rows).reshape(-1, 5), atol=1e-4)
    assert 0 < index.num_boxes < 500
    assert adds_up(index)
