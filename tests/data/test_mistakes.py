"""What looks like a mistake of a whole export, at the borders between mistake and accident."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.data.mistakes import first_corners, first_share, names_of_two_cases, repeated, swapped_corners


def columns(boxes, size=(40, 60)):
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array([size] * len(boxes), dtype=np.int64).reshape(
        -1, 2
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("check", [first_share, first_corners])
@pytest.mark.parametrize("boxes", [[], [[np.nan] * 4] * 3, [[np.inf, -np.inf, np.nan, 1e308]] * 3])
def test_where_there_is_no_box_there_is_no_mistake(check, boxes):
    assert check(*columns(boxes)) is None
    assert swapped_corners(columns(boxes)[0]) == []


@pytest.mark.parametrize(("size", "first"), [((8, 60), None), ((9, 60), 1)])
def test_a_box_of_a_pixel_is_plausible_on_a_picture_of_a_few(size, first):
    boxes = [[1, 1, 1, 1], *[[0, 0, 1, 1]] * 3]
    assert first_share(*columns(boxes, size)) == first


@pytest.mark.parametrize(("inside", "first"), [(6, 0), (7, None)])
def test_corners_hang_over_the_border_in_more_than_three_of_ten(inside, first):
    over, within = [40, 20, 90, 50], [1, 1, 3, 3]
    assert first_corners(*columns([over] * 3 + [within] * inside)) == first


def test_one_box_without_an_area_does_not_hide_that_the_others_are_corners():
    assert first_corners(*columns([[40, 20, 90, 50]] * 3 + [[40, 20, 80, 40]])) == 0


def test_a_pixel_over_the_border_is_no_corner():
    assert first_corners(*columns([[20, 10, 61, 41]] * 3)) is None
    assert first_corners(*columns([[20, 10, 61.5, 41]] * 3)) == 0


def test_half_of_the_boxes_swapped_are_not_enough():
    swapped, plain = [9, 0, 1, 5], [0, 0, 5, 5]
    assert swapped_corners(columns([swapped, plain])[0]) == []
    assert len(swapped_corners(columns([swapped, plain, swapped])[0])) == 1


def test_names_of_another_case_are_grouped():
    assert len(names_of_two_cases(["Dog", "a", "dog", "B", "DOG", "b"])) == 2
    assert names_of_two_cases(["dog", "dogs"]) == []


def test_repeats_are_all_but_the_first():
    assert list(repeated("abcab")) == ["a", "b"]
