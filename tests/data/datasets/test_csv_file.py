"""Boxes from one CSV file: what is read, and what happens to everything that is wrong."""

from __future__ import annotations

import pytest

from detkit.data import DataError
from detkit.registry import open_dataset

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


@pytest.fixture
def table(tmp_path, write_picture):
    """`table(text)` writes boxes.csv and pictures a.jpg and b.jpg of 60 x 40 pixels; returns the set's name."""

    def write(text):
        for i, name in enumerate(("a.jpg", "b.jpg")):
            write_picture(tmp_path / "images" / name, (40, 60), i)
        path = tmp_path / "boxes.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"csv:{path}:{tmp_path / 'images'}"

    return write


def adds_up(index) -> bool:
    report = index.report
    return report.images_kept == len(index) and report.boxes_kept == index.num_boxes


def test_without_a_header_the_columns_are_those_of_keras_retinanet(table):
    name = table("b.jpg,0,0,60,40,dog\na.jpg,1.5,2,3,4,cat\nb.jpg,5,5,9,9,cat\n")
    index = open_dataset(name).load()
    assert [index.file_name(i) for i in range(2)] == ["b.jpg", "a.jpg"]
    assert index.boxes.tolist() == [[0, 0, 60, 40], [5, 5, 9, 9], [1.5, 2, 3, 4]]
    assert index.class_names == ("cat", "dog") == open_dataset(name).classes()
    assert index.classes.tolist() == [1, 0, 0]
    assert index.category_ids == (1, 2)
    assert index.image_ids.tolist() == [1, 2]
    assert index.sizes_hw.tolist() == [[40, 60]] * 2
    assert (index.report.images_read, index.report.boxes_read) == (2, 3)
    assert adds_up(index)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}a.jpg,60,40,cat,1,2,3,4\n",
        "image,x1,y1,x2,y2,label\na.jpg,1,2,3,4,cat\n",
        "file,x1,y1,x2,y2,label\na.jpg,1,2,3,4,cat\n",
        "FilePath,x1,y1,x2,y2,label\na.jpg,1,2,3,4,cat\n",
        "Label, X1, Y1, X2, Y2, Path\n\n cat, 1, 2, 3, 4, ./a.jpg\n",
        "image_path,x_min,y_min,x_max,y_max,name,score,score\na.jpg,1,2,3,4,cat,9,8\n",
        '\ufeff"filename","xmin","ymin","xmax","ymax","class"\r\n"a.jpg","1","2","3","4","cat"\r\n',
    ],
)
def test_a_header_names_the_columns_in_any_order(table, text):
    index = open_dataset(table(text)).load()
    assert (index.file_name(0), index.class_names, index.boxes.tolist()) == ("a.jpg", ("cat",), [[1, 2, 3, 4]])
    assert len(index) == 1


@pytest.mark.parametrize(
    "text", ["a.jpg,1,1,9,9,cat\nb.jpg,,,,,\n", f"{HEADER}a.jpg,,,cat,1,1,9,9\nb.jpg,60,40,,,,,\n"]
)
def test_empty_fields_are_a_picture_without_objects(table, text):
    index = open_dataset(table(text)).load()
    assert index.box_counts().tolist() == [1, 0]
    assert adds_up(index)


def test_a_size_is_taken_from_the_row_that_says_it(table):
    text = f"{HEADER}a.jpg,,,cat,1,1,9,9\na.jpg,60,40,cat,2,2,9,9\na.jpg,,,cat,3,3,9,9\nb.jpg,0,0,cat,1,1,9,9\n"
    index = open_dataset(table(text)).load()
    assert index.sizes_hw.tolist() == [[40, 60]] * 2
    assert index.report.fixed == {"pictures of a size the annotations do not say, measured": 1}  # b.jpg


def test_spellings_of_one_file_are_one_picture_with_all_boxes(table):
    names = ("a.jpg", "./a.jpg", "a.JPG", "b.jpg", ".\\a.jpg", ".//b.jpg")
    index = open_dataset(table("".join(f"{name},{i},0,20,20,cat\n" for i, name in enumerate(names)))).load()
    assert [index.file_name(i) for i in range(len(index))] == ["a.jpg", "b.jpg"]
    assert [index.boxes_of(i)[:, 0].tolist() for i in range(2)] == [[0, 1, 2, 4], [3, 5]]
    assert index.report.images_dropped == {"listed twice": 4}
    assert adds_up(index)


def test_boxes_that_cannot_be_used_are_dropped_and_counted(table):
    text = "a.jpg,1,1,9,9,cat\na.jpg,nan,1,9,9,cat\na.jpg,9,9,9,9,cat\na.jpg,70,1,80,9,cat\na.jpg,-5,0,9,9,cat\n"
    index = open_dataset(table(text)).load().for_training(filter_empty=False)
    assert index.boxes.tolist() == [[1, 1, 9, 9], [0, 0, 9, 9]]
    assert list(index.report.boxes_dropped.values()) == [1, 1, 1]
    assert index.report.fixed["boxes over the border, clipped to the picture"] == 1
    assert adds_up(index)


ERRORS = {
    "missing corner": ("a.jpg,1,1,9,9,cat\na.jpg,1,,9,9,cat\n", r"boxes\.csv:2: the box .* of 'a\.jpg' has an empty"),
    "no class": ("a.jpg,1,1,9,9,\n", r"boxes\.csv:1: the box .* has an empty field"),
    "words": ("a.jpg,1,1,9,9,cat\na.jpg,1,x,9,9,cat\n", r"boxes\.csv:2: the corners '1', 'x', '9', '9' are not"),
    "unknown header": (
        "img,left,top,right,bottom,kind\n",
        r"boxes\.csv:1: 'img', 'left'.* looks like a header.*picture: filename, .*; x1: x1, xmin, x_min; ",
    ),
    "header of x, y, w, h": ("file,x,y,w,h,class,score\na.jpg,1,2,3,4,cat,9\n", r"looks like a header.*as corners"),
    "underscores": ("a.jpg,0_1,1,9,9,cat\n", r"boxes\.csv:1: the corners '0_1'"),
    "underscores in a size": (f"{HEADER}a.jpg,6_0,40,cat,1,1,9,9\n", r"boxes\.csv:2: the width or height '6_0'"),
    "two sizes under two spellings": (
        f"{HEADER}a.jpg,60,40,cat,1,1,9,9\n./a.jpg,61,40,cat,1,1,9,9\n",
        r"boxes\.csv: 'a\.jpg' is listed twice, as 60 x 40 and as 61 x 40 pixels",
    ),
    "header without a class": (
        "filename,xmin,ymin,xmax,ymax\n",
        r"boxes\.csv:1: the header has no column for the class",
    ),
    "header with two pictures": ("image,path,x1,y1,x2,y2,class\n", r"has several columns for the picture \(filename"),
    "semicolons": ("a.jpg;1;1;9;9;cat\n", r"boxes\.csv:1: 1 fields .*separated by commas"),
    "a field too many": (f"{HEADER}\na.jpg,60,40,cat,1,1,9,9,9\n", r"boxes\.csv:3: 9 fields .*, not 8"),
    "size of words": (f"{HEADER}a.jpg,60,x,cat,1,1,9,9\n", r"boxes\.csv:2: the width or height 'x'"),
    "negative size": (f"{HEADER}a.jpg,-60,40,cat,1,1,9,9\n", r"boxes\.csv:2: the width or height '-60'"),
    "two sizes": (
        f"{HEADER}a.jpg,60,40,cat,1,1,9,9\na.jpg,61,40,cat,1,1,9,9\n",
        r"boxes\.csv:3: 'a\.jpg' is 61 x 40 here and 60 x 40 in a row above",
    ),
    "wrong size": (f"{HEADER}a.jpg,61,40,cat,1,1,9,9\n", "61 x 40"),
    "missing picture": ("a.jpg,1,1,9,9,cat\nc.jpg,1,1,9,9,cat\n", r"1 of 2 pictures.*'c\.jpg'"),
    "name that leaves the folder": ("../a.jpg,1,1,9,9,cat\n", r"boxes\.csv.*'\.\./a\.jpg' is not one below"),
    "absolute name": ("/etc/a.jpg,1,1,9,9,cat\n", r"boxes\.csv.*'/etc/a\.jpg' is not one below"),
    "empty name": (",1,1,9,9,cat\n", r"boxes\.csv.*'' is not one below"),
    "open quote": ('a.jpg,1,1,9,9,"cat\n', r"boxes\.csv:1: is not CSV"),
    "binary junk": (b"\xff\xfe\x00\x80", r"boxes\.csv: is not UTF-8 text"),
    "empty file": ("", r"boxes\.csv: no row has a box"),
    "header only": (HEADER, r"boxes\.csv: no row has a box"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_file_and_the_line(table, name):
    text, pattern = ERRORS[name]
    with pytest.raises(DataError, match=pattern):
        open_dataset(table(text)).load()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nope\.csv does not exist.*DETKIT_DATASETS"):
        open_dataset(f"csv:{tmp_path}/nope.csv:{tmp_path}").load()


@pytest.mark.parametrize("spec", ["csv", "csv:", "csv:a.csv", "csv:a.csv:", "csv::images"])
def test_a_name_without_both_parts_shows_the_form(spec):
    with pytest.raises(DataError, match=r"csv:PATH/annotations\.csv:PATH/images"):
        open_dataset(spec)


def test_shares_are_an_error(table):
    rows = "".join(f"a.jpg,0.{i},0.2,0.9,0.75,cat\n" for i in (1, 2, 3))
    with pytest.raises(DataError, match=r"all boxes lie between 0 and 1, .* corners \[0\.1, 0\.2, 0\.9, 0\.75\].*YOLO"):
        open_dataset(table(rows)).load()


def test_swapped_corners_are_noted(table):
    index = open_dataset(table("a.jpg,9,9,1,1,cat\n")).load()
    assert "negative width or height: 1 of 1; are their corners swapped" in "".join(index.report.notes)
