"""What the errors of a detector cost: AP50 with one kind of wrong detection taken away at a time.

D detections of a picture or of all, G ground truths of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch

from detkit.distributed import is_main
from detkit.evaluation.coco import CocoEvaluator, GroundTruth, points, precision_by_pycocotools, xywh
from detkit.ops import nms
from detkit.registry import EVALUATORS
from detkit.structures import Detections

ErrorKind = Literal["right", "class", "place", "background"]
_IOU, _NEAR_IOU = 0.5, 0.1
_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)


@EVALUATORS.register()
class ErrorKinds:
    """Tells whether a detector fails at naming objects, at placing boxes, or at telling objects from background.

    A detection that overlaps an object of its class by IoU 0.5 is right, were it the second one. Else it is wrong in
    its class where it so overlaps an object of another class, in its place where it overlaps any object by 0.1, and on
    background otherwise; of a crowd region the overlap is the share of the detection inside. The kinds follow TIDE
    (Bolya et al. 2020), which corrects errors where this takes them away.

    Args:
        max_detections: how many detections per image and class count, the best by score (COCO: 100).
    """

    def __init__(self, index: GroundTruth, class_names: Sequence[str], *, max_detections: int = 100) -> None:
        self._coco = CocoEvaluator(index, class_names)  # gathers; nothing is cut there
        self._index, self._max_detections = index, max_detections

    def process(self, detections: list[Detections], rows: list[int]) -> None:
        """Take the detections of some images; `rows` are their row numbers in the index."""
        self._coco.process(detections, rows)

    def evaluate(self) -> dict[str, Any]:
        """Return {"errors": {...}}, AP at IoU 0.5 in points, 0-100; every rank has to call it.

        "AP50" is as COCO's; "no_wrong_class", "no_wrong_place" and "no_background" are without the detections of that
        kind; "any_class" takes all classes for one, after NMS over all of them at IoU 0.5. Without any ground truth,
        and on other ranks than the main one, {}. A value is None where the images that were processed have no object,
        or crowd regions alone.
        """
        rows, table = self._coco.gather()
        if not is_main() or not len(self._index.boxes):
            return {}
        truth, records = self._coco.ground_truth(rows), self._coco.records(range(len(self._index.class_names)))
        kinds = self._kinds(table, records)
        results = {"AP50": self._ap50(truth, records)}
        for kind, name in (("class", "no_wrong_class"), ("place", "no_wrong_place"), ("background", "no_background")):
            results[name] = self._ap50(truth, [r for r, k in zip(records, kinds, strict=True) if k != kind])
        results["any_class"] = self._ap50(*_without_classes(truth, records, table))
        return {"errors": results}

    def _ap50(self, truth: Mapping[str, list], records: list[dict[str, Any]]) -> float | None:
        return points(precision_by_pycocotools(truth, records, self._max_detections, iou=_IOU))

    def _kinds(self, table: np.ndarray, records: Sequence[Mapping[str, Any]]) -> list[ErrorKind]:
        """Return the kind of every detection, in the order of `table` [D, 7]; its boxes are as `records` round them."""
        kinds: list[ErrorKind] = []
        for row, part in _parts(table):
            boxes = slice(int(self._index.box_offsets[row]), int(self._index.box_offsets[row + 1]))
            kinds += _kinds_of_picture(
                np.array([record["bbox"] for record in records[part]]), table[part, 6], self._index.boxes[boxes],
                self._index.classes[boxes], self._index.is_crowd[boxes],
            )  # fmt: skip
        return kinds


def _kinds_of_picture(
    xywh_D4: np.ndarray, labels_D: np.ndarray, boxes_G4: np.ndarray, classes_G: np.ndarray, is_crowd_G: np.ndarray
) -> list[ErrorKind]:
    from pycocotools.mask import iou

    if not len(boxes_G4):
        return ["background"] * len(xywh_D4)
    iou_DG = iou(xywh_D4, xywh(boxes_G4), is_crowd_G.astype(np.uint8).tolist())
    own_D, any_D = (iou_DG * (labels_D[:, None] == classes_G)).max(1), iou_DG.max(1)
    places = np.select([own_D >= _IOU, any_D >= _IOU, any_D >= _NEAR_IOU], [0, 1, 2], 3)
    return [_KINDS[place] for place in places]


def _without_classes(
    truth: Mapping[str, list], records: Sequence[dict[str, Any]], table: np.ndarray
) -> tuple[dict[str, list], list[dict[str, Any]]]:
    """Return the ground truth with one class, 0, and the detections of it that NMS over all classes leaves."""
    kept = [
        {**records[part][i], "category_id": 0}
        for _, part in _parts(table)
        for i in nms(torch.from_numpy(table[part, 1:5]), torch.from_numpy(table[part, 5]), _IOU).tolist()
    ]
    objects = [{**row, "category_id": 0} for row in truth["annotations"]]
    return {**truth, "categories": [{"id": 0}], "annotations": objects}, kept


def _parts(table: np.ndarray) -> list[tuple[int, slice]]:
    """Return the rows of images that have detections, and where these are in `table` [D, 7], which is sorted by row."""
    rows, starts = np.unique(table[:, 0].astype(np.int64), return_index=True)
    edges = pairwise([*starts.tolist(), len(table)])
    return [(int(row), slice(*edge)) for row, edge in zip(rows, edges, strict=True)]
