import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.evaluation import PictureErrors, picture_errors
from detkit.structures import Detections


def errors(found, truth, ignored=()):
    """`found` and `truth` are lists of (class, xyxy), detections by falling score."""
    boxes = torch.tensor([box for _, box in found]).reshape(-1, 4).float()
    scores = torch.linspace(0.9, 0.5, len(found))
    detections = Detections(boxes, scores, torch.tensor([k for k, _ in found], dtype=torch.int64))
    everything = [*truth, *ignored]
    return picture_errors(
        detections,
        torch.tensor([box for _, box in everything]).reshape(-1, 4).float(),
        torch.tensor([k for k, _ in everything], dtype=torch.int64),
        torch.tensor([False] * len(truth) + [True] * len(ignored), dtype=torch.bool),
    )


A, B = (0, 0, 10, 10), (50, 50, 70, 70)


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        ([], [], (0, 0, 0)),
        ([], [(0, A)], (0, 0, 1)),
        ([(0, A)], [], (0, 1, 0)),
        ([(0, A), (1, B)], [(1, B), (0, A)], (2, 0, 0)),
        ([(1, A)], [(0, A)], (0, 1, 1)),
        ([(0, A), (0, A)], [(0, A)], (1, 1, 0)),
        ([(0, (0, 0, 10, 6))], [(0, A)], (1, 0, 0)),
        ([(0, (0, 0, 10, 4))], [(0, A)], (0, 1, 1)),
    ],
    ids=["nothing", "missed", "false", "both found", "wrong class", "found twice", "loose", "too loose"],
)
def test_counts(found, truth, expected):
    assert errors(found, truth) == PictureErrors(*expected)


def test_a_detection_takes_the_best_free_object():
    near, far = (0, 0, 10, 10), (0, 0, 10, 8)
    assert errors([(0, near), (0, near)], [(0, far), (0, near)]) == PictureErrors(2, 0, 0)


def test_detections_on_an_ignored_region_of_their_class_are_left_out():
    region = (0, 0, 100, 100)
    small = [(0, (10, 10, 20, 20)), (0, (30, 30, 40, 40))]
    assert errors(small, [], ignored=[(0, region)]) == PictureErrors(0, 0, 0)
    assert errors(small, [], ignored=[(1, region)]) == PictureErrors(0, 2, 0)
    assert errors([], [], ignored=[(0, region)]) == PictureErrors(0, 0, 0)


def test_f1():
    assert PictureErrors(0, 0, 0).f1 == 1
    assert PictureErrors(3, 0, 0).f1 == 1
    assert PictureErrors(0, 2, 1).f1 == 0
    assert PictureErrors(1, 1, 0).f1 == pytest.approx(2 / 3)


objects = st.lists(
    st.tuples(st.integers(0, 1), st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2)), max_size=6
)


@given(objects, objects)
@settings(max_examples=50, deadline=None)
def test_every_detection_and_every_object_is_counted_once(found, truth):
    found, truth = ([(k, (x, y, x + w, y + h)) for k, (x, y, w, h) in boxes] for boxes in (found, truth))
    counted = errors(found, truth)
    assert counted.right + counted.false == len(found)
    assert counted.right + counted.missed == len(truth)
    assert errors(truth, truth) == PictureErrors(len(truth), 0, 0)
