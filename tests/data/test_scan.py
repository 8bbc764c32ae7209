"""The look at every picture before a run: sizes, what is odd, and what is no picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detkit.data import DataError, load_image, scan
from detkit.data.scan import scan_pictures

ORIENTATION = 0x0112


def noise(height=24, width=32, channels=3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, channels), dtype=np.uint8)


def turned(orientation) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def remarks(folder, name) -> set[str]:
    return set(scan_pictures(str(folder), [name], "here").counts)


def save(folder, name, picture, **options):
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(folder / name, **options)
    return name


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_sizes_are_those_of_the_pictures_as_they_are_read(tmp_path, suffix, orientation):
    name = save(tmp_path, f"a.{suffix}", noise(), exif=turned(orientation))
    found = scan_pictures(str(tmp_path), [name], "here")
    assert tuple(found.sizes_hw[0]) == load_image(tmp_path / name).shape[:2]
    assert bool(found.is_turned[0]) == (orientation != 1 and suffix not in ("bmp", "gif"))


KINDS = {
    "rgb": (Image.new("RGB", (4, 4)), "png", {}, set()),
    "gray": (Image.new("L", (4, 4)), "png", {}, {"gray pictures read as RGB"}),
    "one bit": (Image.new("1", (4, 4)), "png", {}, {"gray pictures read as RGB"}),
    "palette": (Image.new("P", (4, 4)), "png", {}, {"palette pictures read as RGB"}),
    "inks": (Image.new("CMYK", (8, 8)), "jpg", {}, {"CMYK pictures read as RGB"}),
    "luma and chroma": (Image.new("YCbCr", (8, 8)), "tif", {}, {"YCbCr pictures read as RGB"}),
    "lab": (Image.new("LAB", (8, 8)), "tif", {}, {"LAB pictures read as RGB"}),
    "alpha": (Image.new("RGBA", (4, 4)), "png", {}, {"pictures with alpha, which is ignored"}),
    "gray and alpha": (
        Image.new("LA", (4, 4)),
        "png",
        {},
        {"gray pictures read as RGB", "pictures with alpha, which is ignored"},
    ),
    "palette and alpha": (
        Image.new("P", (4, 4)),
        "png",
        {"transparency": b"\x00"},
        {"palette pictures read as RGB", "pictures with alpha, which is ignored"},
    ),
    "16 bits": (
        Image.fromarray(np.ones((4, 4), np.uint16)),
        "png",
        {},
        {"gray pictures read as RGB", "16-bit pictures, high byte kept"},
    ),
    "turned": (
        Image.new("RGB", (4, 4)),
        "jpg",
        {"exif": turned(6)},
        {"pictures turned upright by their EXIF orientation"},
    ),
    "impossible turn": (
        Image.new("RGB", (4, 4)),
        "png",
        {"exif": turned(9)},
        {"impossible EXIF orientations, read as upright"},
    ),
    "frames": (
        Image.new("RGB", (4, 4)),
        "png",
        {"save_all": True, "append_images": [Image.new("RGB", (4, 4), "red")]},
        {"pictures of several frames, of which the first is read"},
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_odd_is_counted(tmp_path, name):
    picture, suffix, options, expected = KINDS[name]
    file = save(tmp_path, f"a.{suffix}", picture, **options)
    assert remarks(tmp_path, file) == expected
    assert load_image(tmp_path / file).shape[2] == 3


@pytest.mark.parametrize("kind", [2, 6])
def test_colours_of_sixteen_bits_are_counted(tmp_path, write_png, kind):
    write_png(tmp_path / "a.png", depth=16, kind=kind, rows=[bytes(16 if kind == 6 else 12)])
    assert "16-bit pictures, high byte kept" in remarks(tmp_path, "a.png")


def test_counts_are_over_all_pictures_and_notes_are_apart(tmp_path, monkeypatch):
    names = [save(tmp_path, f"{i}.png", noise(channels=3)[..., 0]) for i in range(3)]
    names += [save(tmp_path, f"{i}.png", noise()) for i in range(3, 203)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)
    found = scan_pictures(str(tmp_path), names, "here")
    report = found.added_to(scan.ReadReport("here"))
    assert report.fixed == {"gray pictures read as RGB": 3}
    assert len(report.notes) == 1
    assert "very many pixels" in report.notes[0]
    assert report.notes[0].endswith(": 203")


@pytest.mark.filterwarnings("error")
def test_pillow_s_warnings_stay_inside(tmp_path, monkeypatch):
    name = save(tmp_path, "a.png", noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)
    assert remarks(tmp_path, name) == {scan._HUGE}


def test_no_pictures_give_no_heads(tmp_path):
    found = scan_pictures(str(tmp_path), [], "here")
    assert found.sizes_hw.shape == (0, 2)
    assert found.counts == {}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_truncated_picture_is_found(tmp_path, suffix, share):
    save(tmp_path, f"a.{suffix}", noise(200, 200))
    content = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"1 of 1 pictures in .* cannot be read: 'a\.{suffix}': .*Replace"):
        scan_pictures(str(tmp_path), [f"a.{suffix}"], "here")


@pytest.mark.parametrize("tail", [b"\0" * 100, b"camera" * 100, bytes(range(1, 200)) * 100])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_what_follows_a_whole_picture_does_no_harm(tmp_path, suffix, tail):
    save(tmp_path, f"a.{suffix}", noise())
    with open(tmp_path / f"a.{suffix}", "ab") as file:
        file.write(tail)
    assert scan_pictures(str(tmp_path), [f"a.{suffix}"], "here").sizes_hw.tolist() == [[24, 32]]


def test_a_whole_picture_is_not_decoded(tmp_path, monkeypatch):
    names = [save(tmp_path, "a.jpg", noise()), save(tmp_path, "b.png", noise())]

    def fail(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert len(scan_pictures(str(tmp_path), names, "here").sizes_hw) == 2


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path, write_png):
    exif = turned(6).tobytes().removeprefix(b"Exif\0\0")
    write_png(tmp_path / "a.png", depth=8, kind=2, rows=[bytes(6)], behind=[(b"eXIf", exif)])
    found = scan_pictures(str(tmp_path), ["a.png"], "here")
    assert found.is_turned.all()
    assert tuple(found.sizes_hw[0]) == load_image(tmp_path / "a.png").shape[:2] == (2, 1)


def test_all_that_is_no_picture_is_listed_in_one_error(tmp_path, monkeypatch):
    good = save(tmp_path, "good.png", noise())
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "page.jpg").write_text("<!doctype html><title>404</title>")
    (tmp_path / "text.jpg").write_text("a,b,c\n1,2,3\n")
    save(tmp_path, "deep.tif", np.ones((3, 3), np.float32))
    save(tmp_path, "bomb.png", noise(100, 100))
    (tmp_path / "seventh.jpg").write_bytes(b"\0\1")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    names = [good, *sorted(path.name for path in tmp_path.iterdir() if path.name != good)]
    with pytest.raises(DataError) as error:
        scan_pictures(str(tmp_path), names, "here")
    text = str(error.value)
    for part in (
        "here: 7 of 8 pictures",
        "'bomb.png': Image size (10000 pixels) exceeds limit",
        "'deep.tif': its pixels of 32 bits",
        "'empty.jpg': it is empty",
        "'folder.jpg': it is a folder",
        "'page.jpg': it holds HTML, not a picture (a failed download?); .... Replace",
        "Replace these files, or remove them (and what the annotations say of them).",
    ):
        assert part in text
    assert "text.jpg" not in text
    assert "good.png" not in text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("error")
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "tif", "gif", "bmp"]))
def test_what_can_be_read_passes_with_the_size_that_it_is_read_with(tmp_path, data, suffix):
    name = save(tmp_path, f"a.{suffix}", noise(6, 9), **({} if suffix in ("gif", "bmp") else {"exif": turned(6)}))
    content = bytearray((tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        size = load_image(tmp_path / name).shape[:2]
    except DataError:
        return
    assert tuple(scan_pictures(str(tmp_path), [name], "here").sizes_hw[0]) == size


def test_a_long_scan_shows_how_far_it_is(tmp_path, monkeypatch, caplog):
    names = [save(tmp_path, f"{i}.png", noise()) for i in range(70)]
    monkeypatch.setattr(scan, "_QUIET_SECONDS", -1.0)
    with caplog.at_level("INFO", logger="detkit"):
        scan_pictures(str(tmp_path), names, "here")
    assert "looking at the pictures: 70 of 70" in caplog.text


def dark(folder, name, highest):
    pixels = np.zeros((4, 4), np.uint16)
    pixels[1, 2] = highest
    return save(folder, name, Image.fromarray(pixels))


def test_sixteen_bits_of_which_few_are_used_give_a_warning(tmp_path):
    names = [dark(tmp_path, f"{i}.png", 4095 - i) for i in range(9)] + [save(tmp_path, "a.png", noise())]
    report = scan_pictures(str(tmp_path), names, "here").added_to(scan.ReadReport("here"))
    assert report.notes == (
        "WARNING: the 8 of 9 16-bit pictures looked at ('0.png', '1.png', '2.png', ...) use values up to 4095 of 65535 "
        "and read as almost black: rescale them",
    )


@pytest.mark.parametrize("highest", [4096, 65535])
def test_one_bright_picture_is_enough(tmp_path, highest):
    names = [dark(tmp_path, "0.png", 255), dark(tmp_path, "1.png", highest)]
    assert scan_pictures(str(tmp_path), names, "here").warnings == ()


@pytest.mark.parametrize(("kind", "high", "is_dark"), [(2, 15, True), (2, 16, False), (6, 15, True), (6, 16, False)])
def test_colours_of_sixteen_bits_may_be_dark_too(tmp_path, write_png, kind, high, is_dark):
    pixel = bytes([high, 0] * 3) + (b"\xff\xff" if kind == 6 else b"")
    write_png(tmp_path / "a.png", depth=16, kind=kind, rows=[pixel * 2])
    warnings = scan_pictures(str(tmp_path), ["a.png"], "here").warnings
    assert ["values up to 4095 of 65535" in text for text in warnings] == [True] * is_dark


def test_damage_in_the_only_picture_of_sixteen_bits_is_left_to_the_reading(tmp_path):
    name = dark(tmp_path, "a.png", 1)
    content = bytearray((tmp_path / name).read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    (tmp_path / name).write_bytes(content)
    assert scan_pictures(str(tmp_path), [name], "here").warnings == ()
