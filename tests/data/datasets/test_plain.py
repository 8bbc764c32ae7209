"""What VOC, YOLO and CSV share; and that one content written in four formats is one index."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkit.data import DataError
from detkit.data.datasets.plain import files_by_stem, files_of, first_of, number
from detkit.registry import open_dataset

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 64, 48


def test_files_of_a_folder_are_sorted_without_the_hidden_ones(tmp_path):
    for name in ("b", "a", ".c"):
        (tmp_path / name).touch()
    assert files_of(tmp_path) == ["a", "b"]
    assert files_of(tmp_path / "nowhere") == []


def test_files_by_stem_have_an_extension_of_any_case(tmp_path):
    for name in ("b.XML", "a.xml", "c.xml.bak", ".d.xml"):
        (tmp_path / name).touch()
    assert list(files_by_stem(tmp_path, ".xml").items()) == [("a", "a.xml"), ("b", "b.XML")]
    (tmp_path / "b.Xml").touch()
    with pytest.raises(DataError, match=r"holds 'b\.XML' and 'b\.Xml'"):
        files_by_stem(tmp_path, ".xml")


def test_numbers_have_no_underscores():
    assert [number(" 1.5 "), number("-2e1")] == [1.5, -20]
    for text in ("0_1", "1_000.5", "x", ""):
        with pytest.raises(ValueError, match=r"underscore|could not convert"):
            number(text)


def test_the_first_names_are_quoted():
    assert [first_of([]), first_of(["a", "b"]), first_of(["a", "b"], 1)] == ["nothing", "'a', 'b'", "'a', ..."]


def as_coco(root: Path, content: dict[str, list]) -> str:
    """Boxes are [x0, y0, x1, y1, class]."""
    images = [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(content, 1)]
    notes = [
        {"image_id": i, "category_id": k + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, boxes in enumerate(content.values(), 1)
        for x0, y0, x1, y1, k in boxes
    ]
    data = {
        "images": images,
        "annotations": [{"id": n, **note} for n, note in enumerate(notes, 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)],
    }
    (root / "a.json").write_text(json.dumps(data))
    return f"coco:{root}/a.json:{root}/images"


def as_voc(root: Path, content: dict[str, list]) -> str:
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, boxes in content.items():
        objects = "".join(
            f"<object><name>{CLASSES[k]}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox></object>"
            for x0, y0, x1, y1, k in boxes
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (root / "Annotations" / f"{Path(name).stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (root / "ImageSets" / "Main" / "all.txt").write_text("\n".join(Path(name).stem for name in content))
    return f"voc:{root}:all"


def as_yolo(root: Path, content: dict[str, list]) -> str:
    (root / "labels").mkdir()
    for name, boxes in content.items():
        lines = [
            f"{k} {(x0 + x1) / 2 / WIDTH:.9f} {(y0 + y1) / 2 / HEIGHT:.9f} {(x1 - x0) / WIDTH:.9f} "
            f"{(y1 - y0) / HEIGHT:.9f}"
            for x0, y0, x1, y1, k in boxes
        ]
        (root / "labels" / f"{Path(name).stem}.txt").write_text("\n".join(lines))
    (root / "all.txt").write_text("\n".join(f"./images/{name}" for name in content))
    (root / "data.yaml").write_text(f"train: all.txt\nnames: {list(CLASSES)}\n")
    return f"yolo:{root}/data.yaml:train"


def as_csv(root: Path, content: dict[str, list]) -> str:
    with open(root / "a.csv", "w", newline="") as file:
        writer = csv.writer(file)
        for name, boxes in content.items():
            writer.writerows([name, *box[:4], CLASSES[box[4]]] for box in boxes)
            writer.writerows([] if boxes else [[name, "", "", "", "", ""]])
    return f"csv:{root}/a.csv:{root}/images"


def box_strategy():
    x = st.tuples(st.integers(0, WIDTH - 3), st.integers(2, WIDTH)).map(lambda p: (p[0], max(p[0] + 2, p[1])))
    y = st.tuples(st.integers(0, HEIGHT - 3), st.integers(2, HEIGHT)).map(lambda p: (p[0], max(p[0] + 2, p[1])))
    return st.tuples(x, y, st.integers(0, 1)).map(lambda b: [b[0][0], b[1][0], b[0][1], b[1][1], b[2]])


NAMES = st.lists(st.sampled_from(["b.png", "a.PNG", "c d.bmp", "e.f.png"]), min_size=2, unique=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, data=st.data())
def test_one_content_in_four_formats_is_one_index(tmp_path_factory, write_picture, names, data):
    root = Path(tmp_path_factory.mktemp("set"))
    both = [[1, 1, 9, 9, 0], [2, 2, 9, 9, 1]]  # every class occurs: the formats without a list of classes know no other
    content = {name: (both if i == 0 else []) + data.draw(st.lists(box_strategy(), max_size=4))
               for i, name in enumerate(names)}  # fmt: skip
    for name in names:
        write_picture(root / "images" / name, (HEIGHT, WIDTH))
    expected, *others = [open_dataset(write(root, content)).load() for write in (as_coco, as_voc, as_yolo, as_csv)]
    assert expected.num_boxes == sum(map(len, content.values()))
    for index in others:
        assert index.class_names == expected.class_names
        np.testing.assert_allclose(index.boxes, expected.boxes, atol=1e-4)
        np.testing.assert_allclose(index.areas, expected.areas, rtol=1e-4)
        for column in ("name_bytes", "name_offsets", "image_ids", "sizes_hw", "box_offsets", "classes", "is_crowd"):
            np.testing.assert_array_equal(getattr(index, column), getattr(expected, column), err_msg=column)
