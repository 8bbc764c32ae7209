"""Names that annotations give: which are refused, and which files are found for them."""

from __future__ import annotations

import os

import pytest

from detkit.data import DataError
from detkit.data.file_names import CASE, SLASHES, check_names, is_picture, relative_paths_hint, resolved_files


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
        ("b/a.jpg", "./b//a.jpg", "b/a.jpg", []),
        ("b/a.jpg", ".\\b\\a.jpg", "b/a.jpg", [SLASHES]),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="names there have no case and no backslash")
def test_the_file_of_a_name(folder, there, asked, found, repairs):
    root = folder(there, "other.jpg")
    files = resolved_files(root, ["other.jpg", asked], "here")
    assert files.names == ["other.jpg", found]
    assert {repair for repair, count in files.fixed.items() if count == 1} == set(repairs)
    assert sum(files.fixed.values()) == len(repairs)


def test_the_exact_name_comes_first(folder):
    root = folder("a.jpg", "a.JPG")
    assert resolved_files(root, ["a.JPG", "a.jpg"], "here").names == ["a.JPG", "a.jpg"]


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


def test_other_pictures_in_the_folders_of_these_are_counted(folder):
    root = folder("a.jpg", "b.JPG", "c.png", "notes.txt", "d/e.jpg", "d/f.jpg", "g/h.jpg")
    for names, others in [(["a.jpg"], 2), (["a.jpg", "d/e.jpg"], 3), (["d/e.jpg", "d/f.JPG", "./d/f.jpg"], 0), ([], 0)]:
        assert resolved_files(root, names, "here").others == others


@pytest.mark.parametrize(("value", "shown"), [("/my/sets", "/my/sets"), ("", "not set")])
def test_the_hint_on_relative_paths_says_where_they_start(monkeypatch, value, shown):
    monkeypatch.setenv("DETKIT_DATASETS", value)
    assert relative_paths_hint(f"{value}/a.json").startswith(
        f"Relative paths start from $DETKIT_DATASETS (now {shown})"
    )


def test_the_hint_on_relative_paths_says_where_else_the_file_is(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.json").touch()
    monkeypatch.setenv("DETKIT_DATASETS", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    assert "The working folder has mine/a.json" in relative_paths_hint(tmp_path / "sets" / "mine" / "a.json")
    for elsewhere in (tmp_path / "sets" / "mine" / "b.json", tmp_path / "mine" / "a.json"):
        assert "The working folder has" not in relative_paths_hint(elsewhere)


def test_pictures_are_told_by_their_extension():
    names = ["a.jpg", "a.b.PNG", "a.Tiff", "a.heic", "a.AVIF", "a.txt", "jpg", "._a.jpg", ".jpg", "a.jpg.part"]
    assert [name for name in names if is_picture(name)] == ["a.jpg", "a.b.PNG", "a.Tiff", "a.heic", "a.AVIF"]
