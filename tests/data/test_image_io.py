"""Reading pictures: every mode becomes upright RGB, every failure names the file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detkit.data import DataError, load_image
from detkit.data.image_io import image_size

ORIENTATION = 0x0112


def gradient(height=6, width=9) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 20, columns * 20, rows + columns], -1).astype(np.uint8)


def test_rgb_is_read_as_it_is(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    read = load_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, gradient())
    assert image_size(tmp_path / "a.png") == (6, 9)


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_upright_picture(tmp_path, orientation):
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
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), upright)
    assert image_size(tmp_path / "a.png") == (6, 9)


@pytest.mark.parametrize("value", [0, 9, 77, 65535])
def test_an_impossible_orientation_counts_as_upright(tmp_path, value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), gradient())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_counts_as_upright(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert load_image(tmp_path / "a.jpg").shape == (6, 9, 3)


@pytest.mark.parametrize("read", [load_image, image_size])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"missing\.jpg does not exist"):
        read(tmp_path / "missing.jpg")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_no_picture_is_named(tmp_path, content):
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.jpg cannot be read: .*Replace the file"):
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
    with pytest.raises(DataError, match=str(tmp_path)):
        load_image(tmp_path)


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
