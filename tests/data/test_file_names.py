"""Names that annotations give: which are refused, and which files are found for them."""

from __future__ import annotations

import os

import pytest

from detkit.data import DataError
from detkit.data.file_names import CASE, SLASHES, check_names, is_picture, resolved_files, unlisted_pictures


@pytest.fixture
def folder(tmp_path):
    """`folder("a.jpg", ...)` makes empty files and returns where."""

    def make(*names: str) -> str:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("there", "asked", "found", "repairs"),
    [
        ("a.jpg", "a.jpg", "a.jpg", []),
        ("b/a.jpg", "b/a.jpg", "b/a.jpg", []),
        ("a.JPG", "a.jpg", "a.JPG", [CASE]),
        ("b/a.jpg", "b/a.JPG", "b/a.jpg", [CASE]),
        ("b/a.jpg", "b\\a.jpg", "b/a.jpg", [SLASHES]),
        ("b/c/a.Png", "b\\c\\a.png", "b/c/a.Png", [SLASHES, CASE]),
        ("b\\a.jpg", "b\\a.jpg", "b\\a.jpg", []),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="names there have no case and no backslash")
def test_the_file_of_a_name(folder, there, asked, found, repairs):
    root = folder(there, "other.jpg")
    names, fixed = resolved_files(root, ["other.jpg", asked], "here")
    assert names == ["other.jpg", found]
    assert {repair for repair, count in fixed.items() if count == 1} == set(repairs)
    assert sum(fixed.values()) == len(repairs)


def test_the_exact_name_comes_first(folder):
    root = folder("a.jpg", "a.JPG")
    assert resolved_files(root, ["a.JPG", "a.jpg"], "here")[0] == ["a.JPG", "a.jpg"]


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (["a.JPG", "a.Jpg"], "a.jpg"),  # which one?
        (["A.jpg"], "a.jpg"),  # the case of the stem may tell two pictures apart
        (["B/a.jpg"], "b/a.jpg"),
        (["a.jpeg"], "a.jpg"),
    ],
)
def test_what_could_be_another_picture_is_missing(folder, there, asked):
    root = folder(*there, "other.jpg")
    with pytest.raises(DataError, match=r"here: 1 of 2 pictures are not in .*Add the files"):
        resolved_files(root, ["other.jpg", asked], "here")


def test_annotations_of_another_export_show_both_sides(folder):
    root = folder("x1.jpg", "x2.jpg", "x3.jpg", "x4.jpg")
    with pytest.raises(DataError) as error:
        resolved_files(root, ["frame 1.png", "frame 2.png"], "here")
    for part in ("none of its 2 pictures", "holds 'x1.jpg', 'x2.jpg', 'x3.jpg'", "'frame 1.png', 'frame 2.png'"):
        assert part in str(error.value)


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_a_folder_too_many_in_the_names_is_seen(folder, slash):
    with pytest.raises(DataError, match=r"holds 'a\.jpg'.*Set the image folder"):
        resolved_files(folder("a.jpg"), [f"train{slash}a.jpg"], "here")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        resolved_files(str(tmp_path / "nowhere"), ["a.jpg"], "here")


@pytest.mark.parametrize("name", ["..", "a/..", "..\\a.jpg", "/a.jpg", "\\a.jpg", "c:\\a.jpg", "", None, 3, "a\0.jpg"])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(DataError, match="here: the file name .* is not one below the image folder"):
        check_names(["fine.jpg", name], "here")


def test_pictures_that_nobody_lists_are_counted(folder):
    root = folder("a.jpg", "b.JPG", "c.png", "notes.txt", "d/e.jpg")
    assert unlisted_pictures(root, ["a.jpg", "d/e.jpg"]) == 2
    assert unlisted_pictures(root, ["a.jpg", "b.JPG", "c.png"]) == 0


def test_pictures_are_told_by_their_extension():
    names = ["a.jpg", "a.b.PNG", "a.Tiff", "a.txt", "jpg", "._a.jpg", ".jpg", "a.jpg.part"]
    assert [name for name in names if is_picture(name)] == ["a.jpg", "a.b.PNG", "a.Tiff"]
