"""PASCAL VOC's format: what is read, and what happens to everything that is wrong."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkit.data import DataError
from detkit.data.datasets import voc as voc_module
from detkit.data.datasets.voc import VocDataset
from detkit.registry import open_dataset


def xml(objects=(("cat", 11, 11, 30, 20),), size=(60, 40), filename="x.jpg", more=""):
    """One annotation; an object is (name, xmin, ymin, xmax, ymax) and further elements as text."""
    parts = [
        f"<object><name>{name}</name>{''.join(rest)}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1, *rest in objects
    ]
    head = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation>\n<filename>{filename}</filename>\n{head}\n{''.join(parts)}{more}</annotation>"


@pytest.fixture
def voc(tmp_path, write_picture):
    """`voc({stem: xml text}, split=[lines], pictures=[names])` writes a set; returns its root."""

    def write(files, split=None, pictures=None, annotations="Annotations", images="JPEGImages"):
        root = tmp_path / "set"
        (root / annotations).mkdir(parents=True, exist_ok=True)
        (root / images).mkdir(exist_ok=True)
        for stem, text in files.items():
            data = text if isinstance(text, bytes) else text.encode()
            (root / annotations / f"{stem}.xml").write_bytes(data)
        for i, name in enumerate([f"{stem}.jpg" for stem in files] if pictures is None else pictures):
            write_picture(root / images / name, (40, 60), i)
        if split is not None:
            path = root / "ImageSets" / "Main" / "train.txt"
            path.parent.mkdir(parents=True)
            path.write_text("\n".join(split) + "\n")
        return root

    return write


def load(root, split=None):
    return open_dataset(f"voc:{root}:{split}" if split else f"voc:{root}").load()


def names_of(index):
    return [index.file_name(i) for i in range(len(index))]


def adds_up(index) -> bool:
    report = index.report
    return report.images_kept == len(index) and report.boxes_kept == index.num_boxes


def test_boxes_are_one_based_and_inclusive(voc):
    index = load(voc({"a": xml([("dog", 1, 1, 60, 40), ("cat", 11.5, 11, 30, 20.25)])}))
    assert index.boxes.tolist() == [[0, 0, 60, 40], [10.5, 10, 30, 20.25]]
    assert index.class_names == ("cat", "dog")
    assert index.classes.tolist() == [1, 0]
    assert index.category_ids == (1, 2)
    assert index.sizes_hw.tolist() == [[40, 60]]
    assert index.areas.tolist() == [2400, 19.5 * 10.25]
    assert adds_up(index)


def test_the_order_of_the_split_file_is_kept_and_ids_count_from_one(voc):
    root = voc({"a": xml(), "b": xml(), "c": xml()}, split=["c", "a"])
    index = load(root, "train")
    assert names_of(index) == ["c.jpg", "a.jpg"]
    assert index.image_ids.tolist() == [1, 2]
    assert index.report.images_read == 2


def test_without_a_split_every_xml_file_in_order(voc):
    assert names_of(load(voc({"b": xml(), "a": xml()}))) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("annotations", "images"), [("Annotations", "JPEGImages"), ("annotations", "images"), (".", "."), (".", "images")]
)
def test_folders_of_several_names(voc, annotations, images):
    index = load(voc({"a": xml()}, annotations=annotations, images=images))
    assert (names_of(index), index.num_boxes) == (["a.jpg"], 1)


def test_a_split_file_may_have_blank_lines_a_second_column_and_names_with_spaces(voc):
    root = voc({"a": xml(), "b": xml(), "my cat": xml()}, split=["a -1", "", "b  1", "my cat", " "])
    assert names_of(load(root, "train")) == ["a.jpg", "b.jpg", "my cat.jpg"]


def test_a_picture_listed_twice_is_read_once(voc):
    index = load(voc({"a": xml(), "b": xml()}, split=["a", "b", "a"]), "train")
    assert names_of(index) == ["a.jpg", "b.jpg"]
    assert "  pictures dropped, listed twice: 1 ('a')" in index.report.lines()
    assert adds_up(index)


def test_a_listed_picture_without_an_xml_file_is_dropped_and_counted(voc):
    index = load(voc({"a": xml()}, split=["a", "b"], pictures=["a.jpg", "b.jpg"]), "train")
    assert names_of(index) == ["a.jpg"]
    assert "  pictures dropped, listed without an XML file: 1 ('b')" in index.report.lines()
    assert adds_up(index)


def test_a_split_of_other_names_says_what_there_is(voc):
    root = voc({"a": xml()}, split=["img/1", "img/2"])
    with pytest.raises(DataError, match=r"train\.txt: none of the 2 pictures it lists \('img/1', .*holds 'a\.xml'"):
        load(root, "train")


def test_a_missing_split_lists_what_is_there(voc):
    root = voc({"a": xml()}, split=["a"])
    (root / "ImageSets/Main/val.txt").touch()
    with pytest.raises(DataError, match=r"'tran' is not there.*Did you mean 'train'\?.*'train', 'val'"):
        load(root, "tran")


def test_an_empty_split_is_an_error(voc):
    with pytest.raises(DataError, match="none of the 0 pictures"):
        load(voc({"a": xml()}, split=[""]), "train")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x/../../a"])
def test_a_listed_name_cannot_leave_the_folder(voc, name):
    with pytest.raises(DataError, match=r"train\.txt.*below the image folder"):
        load(voc({"a": xml()}, split=["a", name]), "train")


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.png", "a.PnG"])
def test_the_picture_has_the_same_stem_and_any_extension(voc, name):
    index = load(voc({"a": xml(filename="other.jpg")}, pictures=[name]))
    assert names_of(index) == [name]
    assert not index.report.fixed


def test_of_two_pictures_of_one_stem_the_named_one_is_taken(voc):
    assert names_of(load(voc({"a": xml(filename="a.png")}, pictures=["a.jpg", "a.png"]))) == ["a.png"]


def test_of_two_pictures_of_one_stem_one_must_be_named(voc):
    with pytest.raises(DataError, match=r"a\.xml: the pictures 'a\.jpg', 'a\.png' all have its name.*'x\.jpg'"):
        load(voc({"a": xml()}, pictures=["a.jpg", "a.png"]))


@pytest.mark.parametrize("named", ["p 1.jpg", "C:\\data\\p 1.jpg", "../../p 1.jpg"])
def test_without_the_stem_the_filename_tells_the_picture(voc, named):
    index = load(voc({"a": xml(filename=named)}, split=["a"], pictures=["p 1.jpg"]), "train")
    assert names_of(index) == ["p 1.jpg"]
    assert index.report.fixed == {"pictures found by <filename>": 1}


def test_a_filename_left_over_from_a_copy_does_not_take_another_file_s_picture(voc):
    files = {"a": xml(filename="a.jpg"), "b": xml(filename="a.jpg")}
    index = load(voc(files, pictures=["a.jpg"]))
    assert names_of(index) == ["a.jpg"]
    assert index.num_boxes == 1
    assert adds_up(index)


def test_with_a_split_the_left_over_filename_is_a_missing_picture(voc):
    files = {"a": xml(filename="a.jpg"), "b": xml(filename="a.jpg")}
    with pytest.raises(DataError, match=r"1 of 2 pictures .*'b\.jpg'"):
        load(voc(files, split=["a", "b"], pictures=["a.jpg"]), "train")


def test_two_files_that_name_one_picture_are_an_error(voc):
    files = {"a": xml(filename="p.jpg"), "b": xml(filename="p.jpg")}
    with pytest.raises(DataError, match=r"b\.xml and .*a\.xml both name the picture 'p\.jpg'"):
        load(voc(files, pictures=["p.jpg"]))


def test_without_a_split_files_without_a_picture_are_dropped_with_their_boxes(voc):
    two = xml([("cat", 1, 1, 9, 9), ("dog", 1, 1, 9, 9)])
    index = load(voc({"a": xml(), "b": two}, pictures=["a.jpg", "c.jpg", "d.jpg"]))
    assert names_of(index) == ["a.jpg"]
    lines = index.report.lines()
    assert "  pictures dropped, XML file without its picture: 1 ('b.xml')" in lines
    assert "  boxes dropped, on dropped pictures (XML file without its picture): 2 ('b.xml')" in lines
    assert [note.endswith("does not list, not used: 2") for note in index.report.notes] == [True]
    assert index.class_names == ("cat", "dog")
    assert adds_up(index)


def test_without_a_split_no_picture_at_all_is_an_error(voc):
    with pytest.raises(DataError, match=r"none of its 1 XML files has its picture in .*'c\.jpg'.*'a'"):
        load(voc({"a": xml()}, pictures=["c.jpg"]))


def test_with_a_split_a_missing_picture_is_an_error(voc):
    root = voc({"a": xml(), "b": xml()}, split=["a", "b"], pictures=["a.jpg"])
    with pytest.raises(DataError, match=r"1 of 2 pictures are not in .*JPEGImages: 'b\.jpg'"):
        load(root, "train")


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (5, 5, 5, 5)])
def test_a_box_that_encloses_nothing_as_written_is_dropped(voc, box):
    index = load(voc({"a": xml([("cat", *box), ("cat", 1, 1, 9, 9)])})).for_training(filter_empty=False)
    assert index.boxes.tolist() == [[0, 0, 9, 9]]
    assert index.report.boxes_dropped == {"without an area": 1}
    assert adds_up(index)


def test_swapped_corners_are_noted_and_boxes_of_one_pixel_are_not(voc):
    index = load(voc({"a": xml([("cat", 9, 5, 2, 9), ("cat", 9, 9, 7.5, 8.5), ("cat", 5, 5, 5, 5)])}))
    assert ["2 of 3; are their corners swapped" in note for note in index.report.notes] == [True, False]
    assert "3, kept for evaluation, left out of training" in index.report.notes[1]
    assert index.for_training(filter_empty=False).report.boxes_dropped == {"without an area": 3}


def test_shares_are_an_error(voc):
    root = voc({"a": xml([("cat", 0.1, 0.2, 0.5, 0.6)] * 3)})
    with pytest.raises(
        DataError, match=r"all boxes lie between 0 and 1, .* corners \[0\.1, 0\.2, 0\.5, 0\.6\], on 'a\.jpg'"
    ):
        load(root)


def test_classes_that_differ_only_by_case_are_noted(voc):
    index = load(voc({"a": xml([(name, 1, 1, 9, 9) for name in ("Dog", "cat", "dog")])}))
    assert index.class_names == ("Dog", "cat", "dog")
    assert index.report.notes == ("the classes 'Dog', 'dog' differ only by their case; are they one class?",)


def test_a_coordinate_that_is_no_number_is_dropped_and_counted(voc):
    index = load(voc({"a": xml([("cat", "nan", 1, 9, 9), ("cat", 1, 1, "inf", 9), ("cat", 1, 1, 9, 9)])}))
    assert index.report.boxes_dropped == {"with a coordinate that is not a finite number": 2}
    assert adds_up(index)


@pytest.mark.parametrize(("flag", "count"), [("1", 1), ("0", 0), ("", 0), ("Unspecified", 0)])
def test_difficult_objects_are_for_evaluation_only(voc, flag, count):
    index = load(voc({"a": xml([("cat", 1, 1, 9, 9, f"<difficult>{flag}</difficult>"), ("cat", 5, 5, 9, 9)])}))
    assert index.is_crowd.tolist() == [bool(count), False]
    assert sum("difficult objects" in note and note.endswith(": 1") for note in index.report.notes) == count
    assert index.for_training(filter_empty=False).num_boxes == 2 - count


def test_parts_of_an_object_are_no_objects(voc):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
    index = load(voc({"a": xml([("person", 1, 1, 9, 9, part)])}))
    assert index.class_names == ("person",)
    assert index.boxes.tolist() == [[0, 0, 9, 9]]


@pytest.mark.parametrize("size", [(0, 0), None, ("x", "y"), (-60, 40), ("nan", 40), ("inf", "inf"), (60.5, 40)])
def test_a_size_that_is_not_said_is_measured(voc, size):
    index = load(voc({"a": xml(size=size)}))
    assert index.sizes_hw.tolist() == [[40, 60]]
    assert any("measured" in repair for repair in index.report.fixed)


def test_a_wrong_size_is_an_error(voc):
    with pytest.raises(DataError, match="40 x 60"):
        load(voc({"a": xml(size=(40, 60))}))


def test_classes_are_those_of_every_file_so_that_splits_agree(voc):
    root = voc({"a": xml(), "b": xml([("zebra", 1, 1, 9, 9)])}, split=["a"])
    assert load(root, "train").class_names == ("cat", "zebra")
    assert open_dataset(f"voc:{root}:train").classes() == open_dataset(f"voc:{root}").classes() == ("cat", "zebra")


def test_files_without_objects_are_pictures_without_boxes(voc):
    index = load(voc({"a": xml(), "b": xml([])}))
    assert index.box_counts().tolist() == [1, 0]


def test_no_object_anywhere_is_an_error(voc):
    root = voc({"a": xml([])})
    for read in (VocDataset(str(root)).load, VocDataset(str(root)).classes):
        with pytest.raises(DataError, match="nothing to detect"):
            read()


BOMB = '<!DOCTYPE a [<!ENTITY x "yy"><!ENTITY y "&x;&x;">]><annotation><filename>&y;</filename></annotation>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_document_type_is_refused_in_every_encoding(voc, encoding):
    with pytest.raises(DataError, match=r"a\.xml.*DOCTYPE"):
        load(voc({"a": BOMB.encode(encoding)}))


def test_another_encoding_is_read(voc):
    text = xml([("Käfer", 1, 1, 9, 9)])
    files = {
        "a": text,
        "b": text.encode("utf-16"),
        "c": b'<?xml version="1.0" encoding="latin-1"?>' + text.encode("latin-1"),
    }
    assert load(voc(files)).class_names == ("Käfer",)


ERRORS = {
    "cut off": ("<annotation>\n<object>\n<name>cat", r"a\.xml:3: is not whole XML"),
    "empty": ("", r"a\.xml:1: is not whole XML"),
    "no XML": (b"\xff\xd8\xff\xe0", r"a\.xml:1: is not whole XML"),
    "unknown entity": ("<annotation>\n&boom;</annotation>", r"a\.xml:2: is not whole XML.*undefined entity"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"a\.xml.*is not.*XML"),
    "another format": ("<annotations><image/></annotations>", r"a\.xml: holds <annotations>, not VOC's <annotation>"),
    "no box": (xml(more="<object><name>dog</name></object>"), r"a\.xml: object 2 \('dog'\) has no <bndbox>"),
    "no corner": (
        xml(more="<object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object>"),
        r"a\.xml: object 2 \('dog'\) has a <bndbox> that is not four numbers: xmin '1', ymin None",
    ),
    "words": (xml([("cat", 1, "x", 9, 9)]), r"a\.xml: object 1 \('cat'\).*not four numbers: xmin '1', ymin 'x'"),
    "underscores": (xml([("cat", "0_1", 1, 9, 9)]), r"a\.xml: object 1 \('cat'\).*not four numbers: xmin '0_1'"),
    "no name": (xml([("", 1, 1, 9, 9)]), r"a\.xml: object 1 has no <name>"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_file_and_the_object(voc, name):
    text, pattern = ERRORS[name]
    root = voc({"a": text})
    for read in (VocDataset(str(root)).load, VocDataset(str(root)).classes):
        with pytest.raises(DataError, match=pattern):
            read()


def test_a_root_that_is_none_says_the_form(voc, tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist.*DETKIT_DATASETS"):
        load(tmp_path / "nowhere")
    root = voc({"a": xml()})
    with pytest.raises(DataError, match=r"holds no \.xml file but 'a\.jpg'.*voc:PATH/root:SPLIT"):
        load(root / "JPEGImages")


@pytest.mark.parametrize("spec", ["voc", "voc:", "voc:root:", "voc::train"])
def test_a_name_without_its_parts_shows_the_form(spec):
    with pytest.raises(DataError, match="voc:PATH/root:SPLIT"):
        open_dataset(spec)


def test_a_colon_of_the_path_belongs_to_it():
    dataset = open_dataset("voc:/a:b/c")
    assert (dataset.root.as_posix(), dataset.split) == ("/a:b/c", None)


def test_the_extension_of_an_xml_file_is_of_any_case(voc):
    root = voc({"a": xml(), "b": xml([("dog", 1, 1, 9, 9)])}, split=["b", "a"])
    (root / "Annotations" / "b.xml").rename(root / "Annotations" / "b.XML")
    for split, names in [(None, ["a.jpg", "b.jpg"]), ("train", ["b.jpg", "a.jpg"])]:
        index = load(root, split)
        assert (names_of(index), index.num_boxes, index.class_names) == (names, 2, ("cat", "dog"))
        assert adds_up(index)
    (root / "Annotations" / "a.Xml").write_text(xml())
    with pytest.raises(DataError, match=r"Annotations holds 'a\.Xml' and 'a\.xml'"):
        load(root)


def test_pictures_of_other_splits_are_one_note(voc):
    files = {name: xml() for name in "abcd"}
    assert [note[-11:] for note in load(voc(files, split=["c"]), "train").report.notes] == ["not used: 3"]


def test_hidden_files_are_no_annotations(voc):
    root = voc({"a": xml()})
    (root / "Annotations" / "._a.xml").write_bytes(b"\0\5\26\7")
    (root / "JPEGImages" / "._a.jpg").write_bytes(b"\0\5\26\7")
    index = load(root)
    assert (names_of(index), index.report.notes) == (["a.jpg"], ())


def test_a_kept_index_is_read_anew_when_an_annotation_or_the_split_changes(voc, monkeypatch):
    root = voc({"a": xml(), "b": xml([("dog", 1, 1, 9, 9)])}, split=["a"])

    def loaded():
        for path in [root, *root.rglob("*")]:  # what was written just now is not kept
            if path.stat().st_mtime > time.time() - 600:
                os.utime(path, ns=(0, path.stat().st_mtime_ns - 3600 * 10**9))
        index = load(root, "train")
        assert open_dataset(f"voc:{root}:train").classes() == index.class_names
        return names_of(index), index.class_names, index.num_boxes

    assert loaded() == (["a.jpg"], ("cat", "dog"), 1)
    with monkeypatch.context() as patch:
        patch.setattr(voc_module, "read_annotation", None)  # a second start parses nothing
        assert loaded() == (["a.jpg"], ("cat", "dog"), 1)
    (root / "Annotations" / "b.xml").write_text(xml([("horse", 1, 1, 9, 9)]))
    assert loaded() == (["a.jpg"], ("cat", "horse"), 1)
    (root / "ImageSets" / "Main" / "train.txt").write_text("b\na\n")
    assert loaded() == (["b.jpg", "a.jpg"], ("cat", "horse"), 2)


NUMBERS = st.one_of(st.integers(-20, 80), st.floats(), st.sampled_from(["", "x", "1e999"]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    boxes=st.lists(st.tuples(st.sampled_from(["cat", "dog"]), NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=4),
    split=st.lists(st.sampled_from(["a", "b", "c", "nope"]), min_size=1, max_size=5),
    pictures=st.sets(st.sampled_from(["a.jpg", "b.jpg", "c.jpg", "d.jpg"])),
)
def test_totals_add_up_or_an_error_names_the_folder(tmp_path_factory, write_picture, boxes, split, pictures):
    root = tmp_path_factory.mktemp("set")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(split))
    for stem, objects in {"a": boxes, "b": [("cat", 1, 1, 9, 9)], "c": []}.items():
        (root / f"{stem}.xml").write_text(xml(objects))
    for name in pictures:
        write_picture(root / name, (40, 60))
    for read in (VocDataset(str(root)), VocDataset(f"{root}:train")):
        try:
            index = read.load()
        except DataError as error:
            outcome = str(error)
        else:
            outcome = str(root) if adds_up(index) else ""
        assert str(root) in outcome
