from __future__ import annotations

import contextlib
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.data.datasets.coco import read_coco
from detkit.evaluation import CocoEvaluator
from detkit.registry import EVALUATORS
from detkit.structures import Detections

MEASURES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
SMALL, MEDIUM, LARGE = [0, 0, 20, 20], [50, 50, 100, 110], [120, 120, 300, 280]


def _evaluate(index, found, **options):
    evaluator = CocoEvaluator(index, index.class_names, **options)
    evaluator.process(found, list(range(len(found))))
    return evaluator.evaluate()["bbox"]


def _official(index, predictions, folder):
    """Return the six AP in points as the official script gives them for an annotation file and a result file."""
    counts = np.diff(index.box_offsets)
    image_of = np.repeat(index.image_ids, counts).tolist()
    annotations = [
        {
            "id": number,
            "image_id": image_of[number - 1],
            "category_id": index.category_ids[label],
            "bbox": [float(x0), float(y0), float(x1) - float(x0), float(y1) - float(y0)],
            "area": float(area),
            "iscrowd": int(crowd),
        }
        for number, (label, (x0, y0, x1, y1), area, crowd) in enumerate(
            zip(index.classes, index.boxes, index.areas, index.is_crowd, strict=True), 1
        )
    ]
    content = {
        "images": [{"id": int(i)} for i in index.image_ids],
        "categories": [{"id": c} for c in index.category_ids],
        "annotations": annotations,
    }
    truth_file, result_file = folder / "truth.json", folder / "predictions.json"
    truth_file.write_text(json.dumps(content))
    result_file.write_text(json.dumps(predictions))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        run = COCOeval(truth, truth.loadRes(str(result_file)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [100 * v for v in run.stats[:6]]


def test_equals_the_official_script_on_the_written_predictions(random_case, tmp_path):
    index, found = random_case
    evaluator = CocoEvaluator(index, index.class_names)
    evaluator.process(found, list(range(len(found))))
    values = evaluator.evaluate()["bbox"]
    expected = _official(index, evaluator.predictions(), tmp_path)
    assert 5 < expected[0] < 95
    assert [values[name] for name in MEASURES] == pytest.approx(expected, abs=1e-9)
    assert values["AP"] == pytest.approx(np.mean(list(values["per_class"].values())), abs=1e-9)


def test_boxes_that_training_leaves_out_are_judged_as_the_file_has_them(tmp_path):
    """Boxes over the border, without an area, beside the picture, repeated: the AP of the official script, from the
    user's file and ours of predictions.
    """
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(1, 9):
        Image.new("RGB", (100, 80)).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 100, "height": 80})
        for x, y, w, h in rng.integers(0, 60, (6, 4)).tolist():
            kind = rng.integers(6)
            box = {0: [x - 30, y, w + 5, h + 5], 1: [x, y, 0, h], 2: [x + 100, y, w + 1, h + 1]}.get(kind)
            box = box or [x, y, min(w + 9, 100 - x), min(h + 9, 80 - y)]
            record = {"image_id": i, "category_id": 1, "iscrowd": 0, "bbox": box, "area": box[2] * box[3]}
            annotations += [record] * (2 if kind == 3 else 1)
    annotations = [{**record, "id": i} for i, record in enumerate(annotations, 1)]
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": annotations}))
    index = read_coco(truth, tmp_path / "images")
    assert index.num_boxes == len(annotations) > index.for_training(filter_empty=False).num_boxes
    found = []
    for i in range(len(index)):
        boxes = torch.from_numpy(index.boxes_of(i).copy())
        boxes = (boxes + torch.from_numpy(rng.normal(0, 2, boxes.shape)).float()).clamp(min=0)
        boxes = torch.minimum(boxes, torch.tensor([100.0, 80.0, 100.0, 80.0]))
        found.append(Detections(boxes, torch.rand(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)))
    evaluator = CocoEvaluator(index, index.class_names)
    evaluator.process(found, list(range(len(found))))
    results = evaluator.evaluate()["bbox"]
    (tmp_path / "predictions.json").write_text(json.dumps(evaluator.predictions()))
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(coco := COCO(str(truth)), coco.loadRes(str(tmp_path / "predictions.json")), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    assert [results[name] for name in MEASURES[:3]] == pytest.approx([100 * v for v in run.stats[:3]], abs=1e-9)


def test_perfect_detections_are_100_points(random_case, make_found):
    index, _ = random_case
    found = []
    for start, end in zip(index.box_offsets, index.box_offsets[1:], strict=False):
        rows = [r for r in range(start, end) if not index.is_crowd[r]]
        found.append(make_found(*[(index.classes[r], 0.9, index.boxes[r].tolist()) for r in rows]))
    values = _evaluate(index, found)
    assert all(values[name] == pytest.approx(100) for name in MEASURES)
    assert list(values["per_class"].values()) == pytest.approx([100] * 3)


def test_known_value(make_index, make_found):
    # Of two cats one is found: precision 1 up to recall 1/2, that is at 51 of the 101 points, at every IoU.
    index = make_index([[(0, SMALL), (0, MEDIUM)]])
    values = _evaluate(index, [make_found((0, 0.9, SMALL))])
    assert values["AP"] == values["AP50"] == pytest.approx(100 * 51 / 101)
    # An IoU of exactly 0.7 counts at the five thresholds .5 to .7 (or four, by the rounding of 0.7), never at .75.
    values = _evaluate(make_index([[(0, [0, 0, 100, 10])]]), [make_found((0, 0.9, [0, 0, 70, 10]))])
    assert (values["AP50"], values["AP75"]) == (pytest.approx(100), 0)
    assert values["AP"] in (pytest.approx(40), pytest.approx(50))


def test_neither_the_order_of_images_nor_batches_matters(random_case):
    index, found = random_case
    expected = _evaluate(index, found)
    evaluator = CocoEvaluator(index, index.class_names)
    order = np.random.default_rng(0).permutation(len(found)).tolist()
    for start in range(0, len(order), 5):
        rows = order[start : start + 5]
        evaluator.process([found[r] for r in rows], rows)
    assert evaluator.evaluate()["bbox"] == expected
    in_order = CocoEvaluator(index, index.class_names)
    in_order.process(found, list(range(len(found))))
    assert evaluator.predictions() == in_order.predictions()


def test_an_image_that_comes_twice_counts_once(random_case):
    index, found = random_case
    evaluator = CocoEvaluator(index, index.class_names)
    evaluator.process(found, list(range(len(found))))
    evaluator.process([found[3], found[0]], [3, 0])
    assert evaluator.evaluate()["bbox"] == _evaluate(index, found)
    assert len(evaluator.predictions()) == sum(map(len, found))


def test_only_processed_images_count_and_it_says_so(random_case, caplog):
    index, found = random_case
    values = _evaluate(index, found[:5])
    assert "5 of 12 images" in caplog.text
    assert values != _evaluate(index, found)
    assert (
        values["AP"]
        > _evaluate(index, found[:5] + [Detections(*[t[:0] for t in vars(f).values()]) for f in found[5:]])["AP"]
    )


def test_process_after_evaluate_is_seen(random_case):
    index, found = random_case
    evaluator = CocoEvaluator(index, index.class_names)
    evaluator.process(found[:6], list(range(6)))
    evaluator.evaluate()
    evaluator.process(found[6:], list(range(6, 12)))
    assert evaluator.evaluate()["bbox"] == _evaluate(index, found)


def test_detections_in_a_crowd_neither_help_nor_harm(make_index, make_found):
    index = make_index([[(0, MEDIUM), (0, LARGE, True)]])
    in_crowd = [(0, 0.95, [130, 130, 160, 160]), (0, 0.9, [180, 180, 220, 230])]
    assert _evaluate(index, [make_found((0, 0.5, MEDIUM), *in_crowd)])["AP"] == pytest.approx(100)
    beside = [(0, 0.95, [350, 350, 380, 380])]
    assert _evaluate(index, [make_found((0, 0.5, MEDIUM), *beside)])["AP"] == pytest.approx(50)


def test_what_has_no_ground_truth_is_undefined(make_index, make_found):
    index = make_index([[(1, MEDIUM)], [(0, SMALL, True)]])  # the only cat is a crowd region
    values = _evaluate(index, [make_found((1, 0.9, MEDIUM)), make_found((0, 0.9, SMALL))])
    assert values == {
        "AP": pytest.approx(100), "AP50": pytest.approx(100), "AP75": pytest.approx(100),
        "APs": None, "APm": pytest.approx(100), "APl": None, "per_class": {"cat": None, "dog": pytest.approx(100)},
    }  # fmt: skip
    json.dumps(values, allow_nan=False)


def test_no_detection_at_all_is_zero(make_index, make_found):
    index = make_index([[(0, SMALL)], []])
    values = _evaluate(index, [make_found(), make_found()])
    assert (values["AP"], values["APm"], values["per_class"]) == (0, None, {"cat": 0, "dog": None})


def test_nothing_processed_is_undefined(make_index):
    index = make_index([[(0, SMALL)]])
    evaluator = CocoEvaluator(index, index.class_names)
    assert evaluator.evaluate()["bbox"]["AP"] is None
    assert evaluator.predictions() == []


def test_without_ground_truth_there_are_predictions_but_no_results(make_index, make_found, caplog):
    caplog.set_level("INFO", "detkit")
    index = make_index([[], []])
    evaluator = CocoEvaluator(index, index.class_names)
    evaluator.process([make_found((1, 0.5, SMALL)), make_found()], [0, 1])
    assert evaluator.evaluate() == {}
    assert "no ground truth" in caplog.text
    assert [row["category_id"] for row in evaluator.predictions()] == [17]
    assert evaluator.precision_at_50() == {}


def test_predictions_have_the_ids_of_the_file(make_index, make_found):
    index = make_index([[], []], category_ids=(0, 90), image_ids=[581781, 42])
    evaluator = CocoEvaluator(index, index.class_names)
    found = make_found((0, 0.123456789, [1.00049, 2, 11.00049, 22.5]), (1, 0.9, SMALL))
    evaluator.process([found], [1])
    assert evaluator.predictions() == [
        {"image_id": 42, "category_id": 90, "bbox": [0.0, 0.0, 20.0, 20.0], "score": 0.9},
        {"image_id": 42, "category_id": 0, "bbox": [1.0, 2.0, 10.0, 20.5], "score": 0.123457},
    ]
    assert "581781" not in json.dumps(evaluator.predictions(), allow_nan=False)


def test_max_detections(make_index, make_found):
    index = make_index([[(0, SMALL), (0, MEDIUM)]])
    found = [make_found((0, 0.9, SMALL), (0, 0.8, MEDIUM))]
    assert _evaluate(index, found, max_detections=1)["AP"] == pytest.approx(100 * 51 / 101)
    evaluator = EVALUATORS.build_list(
        {"NAMES": ["CocoEvaluator"], "CocoEvaluator": {"MAX_DETECTIONS": 2}}, index=index, class_names=("cat", "dog")
    )[0]
    evaluator.process(found, [0])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_precision_at_50(random_case):
    index, found = random_case
    evaluator = CocoEvaluator(index, index.class_names)
    evaluator.process(found, list(range(len(found))))
    values = evaluator.evaluate()["bbox"]
    curves = evaluator.precision_at_50()
    assert list(curves) == ["a", "b", "c"]
    assert 100 * np.mean(list(curves.values())) == pytest.approx(values["AP50"])
    assert all(p >= q for curve in curves.values() for p, q in zip(curve, curve[1:], strict=False))
    only_dogs = CocoEvaluator(*[(i := _dogs(index)), i.class_names])
    only_dogs.process(found, list(range(len(found))))
    only_dogs.evaluate()
    assert only_dogs.precision_at_50()["a"] is None


def _dogs(index):
    """Return the index with crowd regions for all boxes of its first class."""
    fields = vars(index) | {"is_crowd": index.is_crowd | (index.classes == 0)}
    return type(index)(**fields)


def test_classes_of_one_name_stay_apart(make_index, make_found):
    index = make_index([[(0, SMALL), (1, MEDIUM)]], class_names=("cat", "cat"), category_ids=(3, 17))
    assert _evaluate(index, [make_found((0, 0.9, SMALL))])["per_class"] == {
        "cat [3]": pytest.approx(100),
        "cat [17]": 0,
    }


def test_other_classes_than_the_datas_are_refused(make_index):
    with pytest.raises(ValueError, match="'dog', 'cat'.*'cat', 'dog'"):
        CocoEvaluator(make_index([[]]), ("dog", "cat"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_the_image(make_index, make_found, bad):
    index = make_index([[], []], image_ids=[5, 77])
    evaluator = CocoEvaluator(index, index.class_names)
    with pytest.raises(ValueError, match="image 77"):
        evaluator.process([make_found(), make_found((0, bad, SMALL))], [0, 1])


def test_as_many_detections_as_rows(make_index, make_found):
    index = make_index([[], []])
    with pytest.raises(ValueError, match="zip"):
        CocoEvaluator(index, index.class_names).process([make_found()], [0, 1])


def test_nothing_is_printed(make_index, make_found, capsys):
    _evaluate(make_index([[(0, SMALL)]]), [make_found((0, 0.9, SMALL))])
    assert capsys.readouterr().out == ""


def test_pycocotools_waits_for_its_first_use():
    code = "import detkit.evaluation, sys; raise SystemExit('pycocotools' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


_RANK = """
import json, pickle, sys
from pathlib import Path
import torch
from detkit.evaluation import CocoEvaluator

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
index, found = pickle.loads((folder / "case").read_bytes())
evaluator = CocoEvaluator(index, index.class_names)
rows = ([0, 2, 4, 6, 8, 10, 11], [1, 3, 5, 7, 9, 11])[rank]  # both see the last
evaluator.process([found[r] for r in rows], rows)
(folder / f"{rank}.json").write_text(json.dumps([evaluator.evaluate(), evaluator.predictions()]))
torch.distributed.destroy_process_group()
"""


def test_two_ranks_equal_one(random_case, tmp_path):
    index, found = random_case
    (tmp_path / "case").write_bytes(pickle.dumps(random_case))
    ranks = [subprocess.Popen([sys.executable, "-c", _RANK, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    single = CocoEvaluator(index, index.class_names)
    single.process(found, list(range(len(found))))
    assert json.loads((tmp_path / "0.json").read_text()) == [single.evaluate(), single.predictions()]
    assert json.loads((tmp_path / "1.json").read_text()) == [{}, []]
