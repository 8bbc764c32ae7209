"""Kinds of errors: by hand, and what holds of any detections."""

import pytest

from detkit.evaluation import CocoEvaluator, ErrorKinds

CAT, DOG = 0, 1
A, B, FAR = [0, 0, 100, 100], [200, 0, 300, 100], [0, 250, 50, 300]
NEAR_A = [0, 40, 100, 140]  # IoU .43 with A


def errors_of(index, found, **options):
    evaluator = ErrorKinds(index, index.class_names, **options)
    evaluator.process(found, list(range(len(found))))
    return evaluator.evaluate().get("errors")


@pytest.mark.parametrize(
    ("wrong", "raised"),
    [
        ((CAT, 0.9, B), "no_wrong_class"),  # B is a dog
        ((CAT, 0.9, NEAR_A), "no_wrong_place"),
        ((DOG, 0.9, NEAR_A), "no_wrong_place"),
        ((CAT, 0.9, FAR), "no_background"),
    ],
)
def test_each_kind_by_hand(wrong, raised, make_index, make_found):
    index = make_index([[(CAT, A), (DOG, B)]])
    errors = errors_of(index, [make_found((CAT, 0.8, A), (DOG, 0.8, B), wrong)])
    assert errors["AP50"] == pytest.approx(75)  # of the wrong one's class half, of the other all
    for name in ("no_wrong_class", "no_wrong_place", "no_background"):
        assert errors[name] == pytest.approx(100 if name == raised else 75)
    # Without classes both objects are found; the wrong one of a better score goes where it lies on an object.
    assert errors["any_class"] == pytest.approx(100 if wrong[2] == B else 200 / 3, abs=1)


def test_kinds_are_of_the_boxes_that_are_measured(make_index, make_found):
    index = make_index([[(CAT, A)]], class_names=("cat",), category_ids=(1,))
    errors = errors_of(index, [make_found((CAT, 0.9, [0, 0, 100, 49.9996]))])  # rounded to 50, IoU 0.5
    assert errors == dict.fromkeys(errors, pytest.approx(100))


def test_a_crowd_of_another_class_is_a_wrong_class(make_index, make_found):
    index = make_index([[(DOG, A, True), (CAT, B), (DOG, FAR)]])
    errors = errors_of(index, [make_found((CAT, 0.9, [10, 10, 30, 30]), (CAT, 0.8, B), (DOG, 0.7, FAR))])
    assert (errors["AP50"], errors["no_wrong_class"]) == (pytest.approx(75), pytest.approx(100))


def test_a_second_detection_of_an_object_is_no_wrong_class_place_or_background(make_index, make_found):
    index = make_index([[(CAT, A), (CAT, B)]], class_names=("cat",), category_ids=(1,))
    errors = errors_of(index, [make_found((CAT, 0.9, A), (CAT, 0.8, A), (CAT, 0.7, B))])
    assert errors["AP50"] == errors["no_wrong_class"] == errors["no_wrong_place"] == errors["no_background"]
    assert errors["AP50"] < errors["any_class"] == pytest.approx(100)  # whose NMS takes the second away


def test_names_alone_are_wrong(make_index, make_found):
    index = make_index([[(CAT, A), (DOG, B)]])
    errors = errors_of(index, [make_found((DOG, 0.9, A), (CAT, 0.8, B), (DOG, 0.7, B))])
    assert errors["AP50"] < 50
    assert errors["any_class"] == pytest.approx(100)


def test_any_class_of_one_class_is_its_ap(make_index, make_found):
    index = make_index([[(CAT, A)], [(CAT, B)]], class_names=("cat",), category_ids=(1,))
    errors = errors_of(index, [make_found((CAT, 0.9, A), (CAT, 0.95, FAR)), make_found((CAT, 0.8, B))])
    assert errors["any_class"] == errors["AP50"]


def test_of_random_detections(random_case):
    index, found = random_case
    errors = errors_of(index, found, max_detections=5)
    evaluator = CocoEvaluator(index, index.class_names, max_detections=5)
    evaluator.process(found, list(range(len(found))))
    assert errors["AP50"] == pytest.approx(evaluator.evaluate()["bbox"]["AP50"])
    errors = errors_of(index, found)
    for name in ("no_wrong_class", "no_wrong_place", "no_background"):  # what is taken away was never right
        assert errors[name] >= errors["AP50"]
    assert len(set(errors.values())) > 2


def test_nothing_found_nothing_there_and_crowds_alone(make_index, make_found):
    index = make_index([[(CAT, A)], []])
    assert set(errors_of(index, [make_found(), make_found()]).values()) == {0.0}
    assert errors_of(make_index([[], []]), [make_found((CAT, 0.5, A)), make_found()]) is None
    crowd = make_index([[(CAT, A, True)]])
    assert set(errors_of(crowd, [make_found((CAT, 0.5, [10, 10, 30, 30]))]).values()) == {None}


def test_a_detection_inside_a_crowd_of_its_class_is_no_error(make_index, make_found):
    index = make_index([[(CAT, A, True), (CAT, B)]], class_names=("cat",), category_ids=(1,))
    errors = errors_of(index, [make_found((CAT, 0.9, [10, 10, 30, 30]), (CAT, 0.8, B))])
    assert errors == dict.fromkeys(errors, pytest.approx(100))
