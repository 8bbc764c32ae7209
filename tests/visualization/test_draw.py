from __future__ import annotations

import numpy as np
import pytest

from detkit.visualization import class_color, draw_boxes, fit, grid, png_bytes, with_caption
from detkit.visualization.draw import legible


def _is(image, color):
    return (image == np.array(color)).all(-1)


def test_class_colors_differ():
    colors = [class_color(k) for k in range(200)]
    assert len(set(colors)) == 200
    first = np.array(colors[:20], dtype=float)
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 999 * np.eye(20)
    assert apart.min() > 25
    assert all(0 <= channel <= 255 for color in colors for channel in color)


@pytest.mark.parametrize(
    ("height", "width", "expected", "scale"),
    [(100, 80, (400, 320), 4.0), (400, 320, (400, 320), 1.0), (1600, 800, (800, 400), 0.5), (1, 1, (320, 320), 320.0)],
)
def test_fit(ground, height, width, expected, scale):
    image, factor = fit(ground(height, width))
    assert (image.shape, factor) == ((*expected, 3), scale)


@pytest.mark.parametrize("side", range(1, 1200, 61))
def test_fitted_pictures_lie_in_the_range(ground, side):
    image, scale = fit(ground(side, max(1, side // 3)), low=300, high=800)
    assert 300 <= image.shape[0] <= 800
    assert image.shape[0] == pytest.approx(side * scale, abs=0.51)


def test_enlarging_keeps_pixels():
    image = np.random.default_rng(0).integers(0, 255, (10, 7, 3), dtype=np.uint8)
    large, scale = fit(image, low=40)
    assert (large[::4, ::4] == image).all()
    assert scale == 4


def test_a_thick_outline_lies_on_the_boxs_edge(ground):
    image = draw_boxes(ground(60, 80), np.array([[10.0, 20.0, 50.0, 40.0]]), colors=[(255, 0, 0)])
    ys, xs = np.nonzero(_is(image, (255, 0, 0)))
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (10, 20, 50, 40)
    assert (image[25:35, 20:40] == 70).all()
    assert (image[20, 10:50] == (255, 0, 0)).all()


def test_the_picture_given_stays_as_it_is(ground):
    image = ground(40, 40)
    assert (draw_boxes(image, np.array([[5.0, 5, 30, 30]]), colors=[(1, 2, 3)], texts=["cat"]) != 70).any()
    assert (image == 70).all()


def test_no_boxes_draw_nothing(ground):
    assert (draw_boxes(ground(9, 5), np.zeros((0, 4)), colors=[], texts=[]) == 70).all()


@pytest.mark.parametrize("box", [[-50, -50, 500, 500], [10, 10, 10, 10], [38, 38, 39.5, 39.9], [-30, 5, -10, 9]])
@pytest.mark.parametrize("width", [1, 3])
def test_odd_boxes_are_drawn_or_left(ground, box, width):
    image = draw_boxes(ground(40, 40), np.array([box], dtype=float), colors=[(0, 0, 255)], texts=["a"], width=width)
    assert image.shape == (40, 40, 3)
    assert image.dtype == np.uint8


def test_the_first_box_is_on_top(ground):
    box = np.array([[5.0, 5, 30, 30], [5.0, 5, 30, 30]])
    image = draw_boxes(ground(40, 40), box, colors=[(255, 0, 0), (0, 255, 0)])
    assert _is(image, (255, 0, 0)).any()
    assert not _is(image, (0, 255, 0)).any()


def test_labels_of_near_boxes_do_not_hide_each_other(ground):
    boxes = np.array([[60.0, 60, 140, 140], [61.0, 61, 141, 141], [62.0, 62, 142, 142]])
    colors = [(230, 0, 0), (0, 230, 0), (0, 0, 230)]
    alone = [
        _is(draw_boxes(ground(200, 200), boxes[i : i + 1], colors=[colors[i]], texts=["cat"]), colors[i]).sum()
        for i in range(3)
    ]
    together = draw_boxes(ground(200, 200), boxes, colors=colors, texts=["cat"] * 3)
    plate = 17 * 20  # well under the area of a label, well over what outlines share
    outline = 4 * 80 * 2
    for color, count in zip(colors, alone, strict=True):
        assert count > plate
        assert _is(together, color).sum() > count - outline


@pytest.mark.parametrize("corner", [(0, 0), (180, 0), (0, 180), (180, 180)])
def test_a_label_at_the_edge_is_whole(ground, corner):
    def ink(x, y):
        box = np.array([[x, y, x + 20.0, y + 20]])
        image = draw_boxes(ground(200, 200), box, colors=[(255, 255, 0)], texts=["zebra"])
        return ((image[..., 0] < 128) & (image[..., 2] == 0)).sum()  # black letters on a yellow plate

    assert ink(*corner) == ink(90, 90) > 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("straße", "straße"),
        ("αβγ жук", "αβγ жук"),
        ("正方形 a", "??? a"),
        ("a\nb\t c", "a b c"),
        ("\x07", "?"),
        ("", ""),
        ("🦓", "?"),
    ],
)
def test_legible(text, expected):
    assert legible(text) == expected


@pytest.mark.parametrize("text", ["", "cat", "a" * 500, "正方形", "\x00\n", "🦓🦓", "<b>&amp;"])
def test_any_text_can_be_drawn(ground, text):
    image = draw_boxes(ground(50, 50), np.array([[5.0, 5, 30, 30]]), colors=[(1, 2, 3)], texts=[text])
    assert with_caption(image, text).shape[1:] == (50, 3)


def test_caption_stands_above(ground):
    image = with_caption(ground(20, 100), "image 7")
    assert (image[-20:] == 70).all()
    assert image[:-20].min() < 60
    assert image[:-20].max() == 250


@pytest.mark.parametrize("columns", [1, 2, 3, 10])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_picture_is_on_the_grid_whole(count, columns):
    shapes = [(4 + 3 * i, 9 - i) for i in range(count)]
    sheet = grid([np.full((h, w, 3), i + 1, dtype=np.uint8) for i, (h, w) in enumerate(shapes)], columns=columns, gap=2)
    for i, (h, w) in enumerate(shapes):
        ys, xs = np.nonzero(_is(sheet, (i + 1,) * 3))
        assert (len(ys), ys.max() - ys.min() + 1, xs.max() - xs.min() + 1) == (h * w, h, w)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        grid([], columns=2)


def test_png(read_png):
    image = np.random.default_rng(1).integers(0, 255, (11, 7, 3), dtype=np.uint8)
    assert (read_png(png_bytes(image)) == image).all()


def test_boxes_far_outside_and_swapped_corners_are_drawn_at_once():
    image = np.zeros((40, 60, 3), np.uint8)
    boxes = np.array([[5, 5, 1e30, 1e30], [-1e9, -1e9, 1e9, 1e9], [30, 30, 10, 10], [1e30, 1e30, 2e30, 2e30]])
    drawn = draw_boxes(image, boxes, colors=[(255, 0, 0)] * 4, texts=["a", "b", "c", "d"])
    near = draw_boxes(image, np.clip(boxes, -20, 90), colors=[(255, 0, 0)] * 4, texts=["a", "b", "c", "d"])
    assert drawn.shape == image.shape
    assert (drawn == near).all()
    assert drawn.any()
