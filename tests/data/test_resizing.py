"""Detectron's and torchvision's resizing: the sizes and boxes by hand, the filter against a textbook loop."""

import math
from dataclasses import replace

import numpy as np
import pytest

from detkit.data.resizing import bilinear, detectron_size, scale_pixel_corners, torchvision_size
from detkit.data.transforms import ResizeShortestEdge, Sample, flip


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "expected", "factor"),
    [
        ((480, 640), 800, 1333, (800, 1067), 800 / 480),
        ((320, 533), 800, 1333, (800, 1332), 2.5),  # 1332.5: a half goes to the even side
        ((480, 800), 800, 1333, (800, 1333), 800 / 480),  # 1333.3 rounds to the limit, so the factor stays
        ((300, 640), 800, 1333, (625, 1333), 1333 / 640),  # 1706.7 is above it
        ((1000, 500), 400, 1333, (800, 400), 0.8),
        ((1, 5000), 600, 1000, (1, 1000), 0.2),
    ],
)
def test_detectrons_sizes(size, shorter, longest, expected, factor):
    assert detectron_size(size, shorter, longest) == (expected, pytest.approx(factor))


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),  # 1066.7
        ((640, 480), 800, 1333, (1066, 800)),
        ((480, 800), 800, 1333, (799, 1333)),  # the longer side decides: 799.8
        ((300, 640), 800, 1333, (624, 1333)),  # 624.8
        ((1, 5000), 600, 1000, (1, 1000)),
    ],
)
def test_torchvisions_sizes(size, shorter, longest, expected):
    assert torchvision_size(size, shorter, longest) == expected


def textbook(image, size, factors):
    """Bilinear interpolation, pixel by pixel: centres at half pixels, coordinates clamped to the picture."""
    out = np.empty((*size, 3))
    for y in range(size[0]):
        for x in range(size[1]):
            at = []
            for place, side, factor in ((y, image.shape[0], factors[0]), (x, image.shape[1], factors[1])):
                old = min(max((place + 0.5) / factor - 0.5, 0), side - 1)
                low = min(math.floor(old), max(side - 2, 0))
                at.append((low, min(low + 1, side - 1), old - low))
            (top, bottom, v), (left, right, u) = at
            upper = (1 - u) * image[top, left].astype(float) + u * image[top, right]
            lower = (1 - u) * image[bottom, left].astype(float) + u * image[bottom, right]
            out[y, x] = (1 - v) * upper + v * lower
    return out


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ((7, 10), (12, 17), 1.7),  # 11.9, 17
        ((7, 10), (12, 17), None),
        ((13, 9), (5, 4), 0.4),  # 5.2, 3.6: shrunk, without averaging
        ((13, 9), (5, 4), None),
        ((1, 6), (3, 18), 3.0),
        ((6, 1), (1, 1), 0.2),
        ((5, 8), (5, 8), 1.0),
    ],
)
def test_the_filter_is_the_textbooks(old, new, factor):
    image = picture(*old)
    factors = (factor, factor) if factor else (new[0] / old[0], new[1] / old[1])
    resized = bilinear(image, new, factor)
    assert resized.dtype == np.uint8
    assert resized.shape == (*new, 3)
    assert np.abs(resized - textbook(image, new, factors)).max() <= 0.5 + 1e-3  # rounded to whole grey levels
    if factor == 1:
        np.testing.assert_array_equal(resized, image)


def test_a_mirrored_picture_can_be_resized():
    image = picture(6, 8)[:, ::-1]
    np.testing.assert_array_equal(bilinear(image, (9, 12), 1.5), bilinear(image.copy(), (9, 12), 1.5))


def test_indices_of_pixels_are_scaled():
    # The box of the pixels 10 to 29 and 20 to 39; doubled, of the pixels 20 to 58 and 40 to 78.
    boxes = np.array([[10, 20, 30, 40]], dtype=np.float32)
    assert scale_pixel_corners(boxes, 2.0).tolist() == [[20, 40, 59, 79]]
    assert scale_pixel_corners(boxes[:0], 2.0).shape == (0, 4)


def sample():
    boxes = np.array([[10, 20, 30, 40]], dtype=np.float32)
    return Sample(picture(48, 64), boxes, np.array([1]), (48, 64))


@pytest.mark.parametrize(
    ("style", "size", "box"),
    [
        ("detectron2", (80, 107), [10 * 107 / 64, 20 * 80 / 48, 30 * 107 / 64, 40 * 80 / 48]),
        ("detectron", (80, 107), [10 * 5 / 3, 20 * 5 / 3, 29 * 5 / 3 + 1, 39 * 5 / 3 + 1]),
        ("torchvision", (80, 106), [10 * 106 / 64, 20 * 80 / 48, 30 * 106 / 64, 40 * 80 / 48]),
    ],
)
def test_the_styles(style, size, box):
    resized = ResizeShortestEdge(sizes=(80,), max_size=133, style=style)(sample(), np.random.default_rng())
    assert resized.size == size
    np.testing.assert_allclose(resized.boxes, [box], rtol=1e-6)
    assert resized.original_size == (48, 64)
    if style != "detectron2":
        expected = bilinear(sample().image, size, 5 / 3 if style == "detectron" else None)
        np.testing.assert_array_equal(resized.image, expected)


def test_mirroring_comes_before_detectrons_scaling():
    # In a picture of 64, the pixels 10 to 29 become 34 to 53; then 1.25 times that.
    resize = ResizeShortestEdge(sizes=(60,), max_size=133, style="detectron")
    mirrored = resize(flip(sample()), np.random.default_rng())
    np.testing.assert_allclose(mirrored.boxes, [[42.5, 25, 67.25, 49.75]])
    assert flip(resize(sample(), np.random.default_rng())).boxes[0, 0] == pytest.approx(80 - 37.25)  # not 42.5


def test_a_picture_without_boxes_stays_without():
    empty = replace(sample(), boxes=np.zeros((0, 4), np.float32), classes=np.zeros(0, np.int64))
    for style in ("detectron", "torchvision"):
        resized = ResizeShortestEdge(sizes=(60,), style=style)(empty, np.random.default_rng())
        assert resized.boxes.shape == (0, 4)
        assert resized.boxes.dtype == np.float32


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="STYLE is 'cv2', not one of 'detectron2', 'detectron', 'torchvision'"):
        ResizeShortestEdge(style="cv2")
