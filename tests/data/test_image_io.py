"""Reading pictures: every mode becomes upright RGB, every failure names the file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from detkit.data import DataError, load_image

ORIENTATION = 0x0112


def gradient(height=6, width=9) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 20, columns * 20, rows + columns], -1).astype(np.uint8)


def test_rgb_is_read_as_it_is(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    read = load_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, gradient())


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("1", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("CMYK", "tif"), ("YCbCr", "tif")],
)
def test_other_modes_become_rgb(tmp_path, mode, suffix):
    picture = Image.fromarray(gradient(60, 90)).convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), expected)


def test_gray_has_three_equal_channels(tmp_path):
    Image.fromarray(gradient()[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.repeat(gradient()[..., :1], 3, -1))


def test_alpha_is_ignored(tmp_path):
    pixels = np.concatenate([gradient(), np.zeros((6, 9, 1), np.uint8)], -1)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), gradient())


def test_sixteen_bits_keep_the_high_byte(tmp_path):
    values = np.array([[0, 255, 256, 65535, 0x1234]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 255, 0x12]


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_sixteen_bits_of_either_byte_order(tmp_path, kind):
    values = np.array([[0, 255, 256, 65535, 0x1234]]).astype(kind)
    mode = "I;16" if kind == "<u2" else "I;16B"
    Image.frombytes(mode, (5, 1), values.tobytes()).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 1, 255, 0x12]


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_png_of_any_kind_keeps_the_high_byte(tmp_path, write_png, kind, channels):
    row = np.array([0x12FF, 0x34FF, 0x56FF, 0x00FF][:channels], dtype=">u2")
    write_png(tmp_path / "a.png", depth=16, kind=kind, rows=[row.tobytes() * 2])
    expected = [0x12] * 3 if channels < 3 else [0x12, 0x34, 0x56]
    assert load_image(tmp_path / "a.png").tolist() == [[expected] * 2]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_an_error_that_names_the_way_out(tmp_path, dtype):
    Image.fromarray(np.ones((3, 3), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif cannot be read: .*32 bits.*save it with 8 or 16 bits"):
        load_image(tmp_path / "a.tif")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_hidden_palette_colours_show_without_a_warning(tmp_path, transparency):
    picture = Image.new("P", (2, 1))
    picture.putpalette([250, 10, 20, 0, 240, 30])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=transparency)
    assert load_image(tmp_path / "a.png").tolist() == [[[250, 10, 20], [0, 240, 30]]]


def test_gray_and_colour_with_a_transparent_value_ignore_it(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png", transparency=(0, 0, 0))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), gradient())
    Image.fromarray(gradient()[..., 0]).save(tmp_path / "b.png", transparency=20)
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), np.repeat(gradient()[..., :1], 3, -1))


def test_inks_of_a_jpeg_give_their_colour(tmp_path):
    """The file holds the inks inverted, as Adobe's programs write them."""
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)
    np.testing.assert_allclose(load_image(path)[3, 3], [255, 0, 0], atol=2)


def test_inks_stored_as_luma_and_chroma_give_their_colour(tmp_path):
    """YCCK: red is (255 - R, 255 - G, 255 - B) = (0, 255, 255) as Y, Cb, Cr, and no black, all inverted."""
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (255 - 179, 255 - 171, 255 - 1, 0)).save(path, quality=100)
    content = bytearray(path.read_bytes())
    content[content.index(b"Adobe") + 11] = 2  # the colour transform: YCCK
    path.write_bytes(content)
    np.testing.assert_allclose(load_image(path)[3, 3], [255, 0, 0], atol=3)


def test_lab_keeps_its_colours(tmp_path):
    colours = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    picture = ImageCms.profileToProfile(Image.new("RGB", (8, 8), (200, 30, 60)), *colours, outputMode="LAB")
    picture.save(tmp_path / "a.tif")
    np.testing.assert_allclose(load_image(tmp_path / "a.tif")[3, 3], [200, 30, 60], atol=3)


def test_a_progressive_jpeg_is_the_same_picture(tmp_path):
    for name, progressive in (("a.jpg", False), ("b.jpg", True)):
        Image.fromarray(gradient(60, 90)).save(tmp_path / name, progressive=progressive)
    assert (tmp_path / "a.jpg").read_bytes() != (tmp_path / "b.jpg").read_bytes()
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg"), load_image(tmp_path / "b.jpg"))


@pytest.mark.parametrize("kind", ["png", "tif", "gif", "webp", "mpo"])
def test_of_several_frames_the_first_is_read(tmp_path, kind):
    if kind == "webp" and not features.check("webp"):
        pytest.skip("this Pillow reads no WebP")
    first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[second])
    np.testing.assert_allclose(load_image(tmp_path / f"a.{kind}")[5, 5], [255, 0, 0], atol=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_picture(tmp_path, orientation, suffix):
    """The picture is stored as a camera would, so that by the standard's table it is upright again."""
    upright = gradient()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / f"a.{suffix}"), upright)


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_impossible_orientation_counts_as_upright(tmp_path, value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), gradient())


@pytest.mark.filterwarnings("error")
def test_a_broken_exif_block_counts_as_upright(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert load_image(tmp_path / "a.jpg").shape == (6, 9, 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jpg does not exist"):
        load_image(tmp_path / "missing.jpg")


NO_PICTURES = {
    "it is empty": b"",
    "holds text": b"not a picture",
    r"holds HTML, not a picture \(a failed download\?\)": b"\n<!DOCTYPE html><html>404</html>",
    "holds HTML": b"\xef\xbb\xbf<HTML><body>",
    "holds XML": b"<?xml version='1.0'?><Error>AccessDenied</Error>",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "holds zeros only": b"\0" * 5000,
    "of no format": b"\xff\xd8\xff\xe0",
    "format of pictures|Truncated|truncated|broken|no format": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("reason", NO_PICTURES)
def test_what_is_no_picture_is_said_in_plain_words(tmp_path, reason):
    (tmp_path / "bad.jpg").write_bytes(NO_PICTURES[reason])
    with pytest.raises(DataError, match=rf"bad\.jpg cannot be read: .*({reason}).*Replace the file"):
        load_image(tmp_path / "bad.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_picture_is_named(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\.{suffix} cannot be read"):
        load_image(path)


def test_a_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path} cannot be read: it is a folder"):
        load_image(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_very_large_picture_is_read_without_a_warning(tmp_path, monkeypatch):
    Image.fromarray(gradient()).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6 * 9 - 1)
    np.testing.assert_array_equal(load_image(tmp_path / "big.png"), gradient())


def test_a_bomb_is_refused_by_its_head(tmp_path, monkeypatch):
    Image.fromarray(gradient()).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"big\.png.*exceeds limit"):
        load_image(tmp_path / "big.png")


def picture_or_error(path) -> np.ndarray | str:
    try:
        return load_image(path)
    except DataError as error:
        return str(error)


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    found = {}
    for suffix in ("png", "jpg"):
        Image.fromarray(pixels).save(folder / f"a.{suffix}")
        found[suffix] = (folder / f"a.{suffix}").read_bytes()
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg"]))
def test_damaged_bytes_give_a_picture_or_an_error_with_the_name(tmp_path, good_bytes, data, suffix):
    damaged = bytearray(good_bytes[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(damaged)
    outcome = picture_or_error(path)
    assert path.name in outcome if isinstance(outcome, str) else outcome.dtype == np.uint8 and outcome.shape[2] == 3
