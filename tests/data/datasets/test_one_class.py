"""`one_class:NAME`: the same pictures and boxes, one class."""

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.data import DataError
from detkit.evaluation import CocoEvaluator
from detkit.registry import UnknownComponentError, open_dataset
from detkit.structures import Detections

SHAPES = "shapes:test,images=6,seed=3,level=hard,size=128"


def test_everything_but_the_class_is_as_it_was():
    many, one = (open_dataset(name).load() for name in (SHAPES, f"one_class:{SHAPES}"))
    assert len(many.class_names) == 6
    assert (one.class_names, one.category_ids) == (("object",), (1,))
    assert open_dataset(f"one_class:{SHAPES}").classes() == one.class_names
    assert one.class_counts().tolist() == [many.num_boxes]
    for name in ("boxes", "box_offsets", "image_ids", "areas", "is_crowd", "annotation_ids"):
        assert np.array_equal(getattr(one, name), getattr(many, name))
    assert "its 6 classes are one here, 'object'" in one.report.lines()[-1]
    assert many.class_counts().tolist() != [many.num_boxes]  # what the cache holds is not changed


def test_training_drops_boxes_that_differ_in_their_class_alone(tmp_path):
    (tmp_path / "a.csv").write_text("path,xmin,ymin,xmax,ymax,class,width,height\n"
                                    "a.png,1,1,9,9,cat,20,20\na.png,1,1,9,9,dog,20,20\n")  # fmt: skip
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "a.png")
    name = f"csv:{tmp_path}/a.csv:{tmp_path}/images"
    assert open_dataset(name).load().for_training(filter_empty=True).num_boxes == 2
    assert open_dataset(f"one_class:{name}").load().for_training(filter_empty=True).num_boxes == 1


def test_a_detector_without_classes_is_measured_as_one():
    index = open_dataset(f"one_class:{SHAPES}").load()
    evaluator = CocoEvaluator(index=index, class_names=index.class_names)
    found = []
    for i in range(len(index)):
        boxes, classes, _ = index.objects_of(i)
        found.append(Detections(torch.from_numpy(boxes.copy()), torch.ones(len(boxes)), torch.from_numpy(classes)))
    evaluator.process(found, list(range(len(index))))
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert {row["category_id"] for row in evaluator.predictions()} == {1}


@pytest.mark.parametrize(
    ("name", "kind", "word"),
    [("one_class:", DataError, "The form is one_class:NAME"), ("one_class:cocco:a:b", UnknownComponentError, "coco")],
)
def test_a_name_that_is_none(name, kind, word):
    with pytest.raises(kind, match=word):
        open_dataset(name)
