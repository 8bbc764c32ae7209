"""Resizing and flipping: sizes by detectron2's rule, boxes that stay on what they enclose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data import Sample, apply_transforms
from detkit.data.transforms import RandomFlip, ResizeShortestEdge, flip, flip_vertically, resize, resized_size
from detkit.registry import TRANSFORMS, options_of


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rectangle(height, width, box) -> Sample:
    """A dark picture with one bright rectangle, and its box."""
    image = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    return Sample(image, np.array([box], np.float32), np.array([2]), (height, width))


@st.composite
def rectangles(draw):
    height, width = draw(st.integers(24, 70)), draw(st.integers(24, 70))
    x0, y0 = draw(st.integers(0, width - 9)), draw(st.integers(0, height - 9))
    x1, y1 = draw(st.integers(x0 + 8, width)), draw(st.integers(y0 + 8, height))
    return rectangle(height, width, (x0, y0, x1, y1))


def bright_box(image) -> list[float]:
    """Return the box of what is brighter than half, with the edges where the brightness crosses it."""
    bright = image[..., 0] >= 128
    ys, xs = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]


@pytest.mark.parametrize("flip", [flip, flip_vertically])
@given(sample=rectangles())
def test_flipping_keeps_the_box_on_its_rectangle(flip, sample):
    flipped = flip(sample)
    assert flipped.boxes[0].tolist() == bright_box(flipped.image)
    assert flipped.classes.tolist() == [2]


@pytest.mark.parametrize("flip", [flip, flip_vertically])
@given(sample=rectangles())
def test_flipping_twice_changes_nothing(flip, sample):
    twice = flip(flip(sample))
    np.testing.assert_array_equal(twice.image, sample.image)
    np.testing.assert_array_equal(twice.boxes, sample.boxes)


@given(rectangles(), st.tuples(st.integers(20, 160), st.integers(20, 160)))
def test_resizing_keeps_the_box_on_its_rectangle(sample, size):
    resized = resize(sample, size)
    assert resized.image.shape[:2] == size
    # An edge lies where brightness crosses one half: within a pixel of the box where it was enlarged or shrunk.
    scale = max(1, sample.size[0] / size[0], sample.size[1] / size[1])
    if min(resized.boxes[0, 2:] - resized.boxes[0, :2]) > 2:
        np.testing.assert_allclose(resized.boxes[0], bright_box(resized.image), atol=0.51 + scale / 2)
    assert resized.original_size == sample.original_size


@given(rectangles(), st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_boxes_scale_by_the_true_ratio_of_each_axis(sample, size):
    down, across = size[0] / sample.size[0], size[1] / sample.size[1]
    expected = sample.boxes * np.array([across, down, across, down])
    np.testing.assert_allclose(resize(sample, size).boxes, expected, rtol=1e-6)


def test_resizing_to_the_same_size_gives_the_same_sample():
    sample = rectangle(30, 40, (3, 4, 20, 20))
    assert resize(sample, (30, 40)) is sample


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((480, 640), 600, 1000, (600, 800)),
        ((300, 640), 800, 1333, (625, 1333)),  # the longer side would be 1707
        ((640, 300), 800, 1333, (1333, 625)),
        ((500, 500), 640, 640, (640, 640)),
        ((333, 500), 600, 1000, (600, 901)),  # 900.9
        ((2, 3), 1, 1000, (1, 2)),  # 1.5 rounds up
        ((2, 5), 1, 1000, (1, 3)),  # and so does 2.5
        ((1, 5000), 600, 1000, (1, 1000)),  # 0.2 is no side
        ((1, 1), 600, 1000, (600, 600)),
    ],
)
def test_sizes_by_hand(size, shorter, longest, expected):
    assert resized_size(size, shorter, longest) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.integers(1, 1400))
def test_sizes_keep_the_ratio_and_both_limits(height, width, shorter, longest):
    new = resized_size((height, width), shorter, longest)
    assert min(new) >= 1
    assert max(new) <= max(longest, 1)
    assert min(new) <= shorter
    scale = min(shorter / min(height, width), longest / max(height, width))
    for old_side, new_side in zip((height, width), new, strict=True):
        assert abs(new_side - scale * old_side) <= 0.5 + 1e-6 or new_side == 1


def test_choice_draws_only_and_all_of_the_sizes():
    transform = ResizeShortestEdge(sizes=(16, 24, 40), max_size=1000)
    drawn = {transform(rectangle(30, 50, (0, 0, 9, 9)), rng(i)).size[0] for i in range(60)}
    assert drawn == {16, 24, 40}


def test_range_draws_both_ends_and_between():
    transform = ResizeShortestEdge(sizes=(16, 20), max_size=1000, sampling="range")
    drawn = {transform(rectangle(30, 50, (0, 0, 9, 9)), rng(i)).size[0] for i in range(80)}
    assert drawn == {16, 17, 18, 19, 20}


@pytest.mark.parametrize(("prob", "count"), [(0.0, 0), (1.0, 200)])
def test_flip_never_and_always(prob, count):
    sample, transform = rectangle(24, 24, (0, 0, 9, 9)), RandomFlip(prob=prob)
    assert sum(transform(sample, rng(i)).boxes[0, 0] > 0 for i in range(200)) == count


def test_flip_half_of_the_time():
    sample, transform, generator = rectangle(24, 24, (0, 0, 9, 9)), RandomFlip(), rng()
    flipped = sum(bool(transform(sample, generator).boxes[0, 0] > 0) for _ in range(2000))
    assert 880 < flipped < 1120  # five standard deviations


def test_vertical_flips_are_drawn_apart_from_the_others():
    sample, transform, generator = rectangle(24, 24, (0, 0, 9, 9)), RandomFlip(vertical_prob=0.5), rng()
    corners = [tuple(transform(sample, generator).boxes[0, :2] > 0) for _ in range(2000)]
    for corner in ((False, False), (True, False), (False, True), (True, True)):
        assert 400 < corners.count(corner) < 600  # five standard deviations


def test_a_run_without_vertical_flips_draws_no_number_for_them():
    first, second = rng(), rng()
    sample = rectangle(24, 24, (0, 0, 9, 9))
    for _ in range(5):
        RandomFlip()(sample, first)
        second.random()
    assert first.random() == second.random()


@settings(max_examples=30)
@given(rectangles(), st.integers(0, 2**32))
def test_transforms_are_a_function_of_the_sample_and_the_generator(sample, seed):
    transforms = [ResizeShortestEdge(sizes=(20, 60), max_size=80, sampling="range"), RandomFlip()]
    first, second = (apply_transforms(transforms, sample, rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)


def test_applying_clips_boxes_and_drops_those_left_empty():
    def shift(sample, _):
        from dataclasses import replace

        return replace(sample, boxes=sample.boxes - 10)

    boxes = np.array([[0, 0, 12, 30], [0, 0, 10, 30], [15, 15, 200, 18]], np.float32)
    sample = Sample(np.zeros((20, 20, 3), np.uint8), boxes, np.array([5, 6, 7]), (20, 20))
    done = apply_transforms([shift], sample, rng())
    assert done.boxes.tolist() == [[0, 0, 2, 20], [5, 5, 20, 8]]
    assert done.classes.tolist() == [5, 7]


def test_a_picture_without_boxes_goes_through():
    sample = Sample.of_image(np.zeros((30, 50, 3), np.uint8))
    done = apply_transforms([ResizeShortestEdge(sizes=(15,), max_size=99), RandomFlip(prob=1.0)], sample, rng())
    assert (done.size, done.boxes.shape, done.original_size) == ((15, 25), (0, 4), (30, 50))
    assert done.boxes.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": ()}, "SIZES"),
        ({"sizes": (0,)}, "SIZES"),
        ({"max_size": 0}, "MAX_SIZE 0"),
        ({"sampling": "random"}, "'random'"),
        ({"sizes": (600,), "sampling": "range"}, r"\(low, high\)"),
        ({"sizes": (800, 600), "sampling": "range"}, r"\(low, high\)"),
    ],
)
def test_resize_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        ResizeShortestEdge(**options)


@pytest.mark.parametrize("prob", [-0.1, 1.1])
def test_flip_options_are_checked(prob):
    with pytest.raises(ValueError, match=" PROB"):
        RandomFlip(prob=prob)
    with pytest.raises(ValueError, match="VERTICAL_PROB"):
        RandomFlip(vertical_prob=prob)


@pytest.mark.parametrize("name", ["ResizeShortestEdge", "RandomFlip"])
def test_options_are_described(name):
    options = options_of(TRANSFORMS.get(name))
    assert options
    assert all(option.text for option in options)
