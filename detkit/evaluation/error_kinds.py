"""What the errors of a detector cost: AP50 with one kind of wrong detection taken away at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from detkit.distributed import is_main
from detkit.evaluation.coco import CocoEvaluator, GroundTruth, points, precision_by_pycocotools
from detkit.ops import nms
from detkit.registry import EVALUATORS
from detkit.structures import Detections

ErrorKind = Literal["right", "class", "place", "background"]
_IOU, _NEAR_IOU = 0.5, 0.1
_KINDS: tuple[ErrorKind, ...] = ("right", "class", "place", "background")


@EVALUATORS.register()
class ErrorKinds:
    """Tells whether a detector fails at naming objects, at placing boxes, or at telling objects from background.

    A detection that overlaps an object of its class by IoU 0.5 is right, were it the second one. Else it is wrong in
    its class where it so overlaps an object of another class, in its place where it overlaps any object by 0.1, and on
    background otherwise. The kinds follow TIDE (Bolya et al. 2020), which corrects errors where this takes them away.

    Args:
        max_detections: how many detections per image and class count, the best by score (COCO: 100).
    """

    def __init__(self, index: GroundTruth, class_names: Sequence[str], *, max_detections: int = 100) -> None:
        self._coco = CocoEvaluator(index, class_names, max_detections=max_detections)
        self._index, self._max_detections = index, max_detections

    def process(self, detections: list[Detections], rows: list[int]) -> None:
        """Take the detections of some images; `rows` are their row numbers in the index."""
        self._coco.process(detections, rows)

    def evaluate(self) -> dict[str, Any]:
        """Return {"errors": {...}}, AP at IoU 0.5 in points, 0-100; every rank has to call it.

        "AP50" is as COCO's; "no_wrong_class", "no_wrong_place" and "no_background" are without the detections of that
        kind; "any_class" takes all classes for one, after NMS over all of them at IoU 0.5. Without any ground truth,
        and on other ranks than the main one, {}. A value is None where only crowd regions are there to be found.
        """
        rows, table = self._coco.gather()
        if not is_main() or not len(self._index.boxes):
            return {}
        truth, records = self._coco.ground_truth(rows), self._coco.records(range(len(self._index.class_names)))
        kinds = self._kinds(table)

        def ap50(keep: np.ndarray) -> float | None:
            kept = [record for record, is_kept in zip(records, keep, strict=True) if is_kept]
            return points(precision_by_pycocotools(truth, kept, self._max_detections, iou=_IOU))

        results = {"AP50": ap50(np.ones(len(records), dtype=np.bool_))}
        results["no_wrong_class"] = ap50(kinds != _KINDS.index("class"))
        results["no_wrong_place"] = ap50(kinds != _KINDS.index("place"))
        results["no_background"] = ap50(kinds != _KINDS.index("background"))
        truth = {
            **truth,
            "categories": [{"id": 0}],
            "annotations": [{**row, "category_id": 0} for row in truth["annotations"]],
        }
        records = [{**record, "category_id": 0} for record in records]
        return {"errors": {**results, "any_class": ap50(_kept_over_classes(table))}}

    def _kinds(self, table: np.ndarray) -> np.ndarray:
        """Return the place in _KINDS of every detection of `table` [D, 7], which is sorted by row; [D]."""
        kinds = np.zeros(len(table), dtype=np.int64)
        for row, part in _parts(table):
            boxes = slice(int(self._index.box_offsets[row]), int(self._index.box_offsets[row + 1]))
            kinds[part] = _kinds_of_picture(
                table[part, 1:5], table[part, 6], self._index.boxes[boxes], self._index.classes[boxes],
                self._index.is_crowd[boxes],
            )  # fmt: skip
        return kinds


def _kinds_of_picture(
    found_D4: np.ndarray, labels_D: np.ndarray, boxes_G4: np.ndarray, classes_G: np.ndarray, is_crowd_G: np.ndarray
) -> np.ndarray:
    from pycocotools.mask import iou

    if not len(boxes_G4):
        return np.full(len(found_D4), _KINDS.index("background"))
    iou_DG = iou(_xywh(found_D4), _xywh(boxes_G4), is_crowd_G.astype(np.uint8).tolist())  # of a crowd: the share inside
    is_own_DG = labels_D[:, None] == classes_G
    own_D, any_D = (iou_DG * is_own_DG).max(1), iou_DG.max(1)
    names = [own_D >= _IOU, any_D >= _IOU, any_D >= _NEAR_IOU]
    return np.select(names, [_KINDS.index(kind) for kind in _KINDS[:3]], _KINDS.index("background"))


def _kept_over_classes(table: np.ndarray) -> np.ndarray:
    """Return which detections of `table` [D, 7] are left by NMS over all classes; bool [D]."""
    keep = np.zeros(len(table), dtype=np.bool_)
    for _, part in _parts(table):
        boxes, scores = torch.from_numpy(table[part, 1:5]), torch.from_numpy(table[part, 5])
        keep[np.arange(len(table))[part][nms(boxes, scores, _IOU).numpy()]] = True
    return keep


def _parts(table: np.ndarray) -> list[tuple[int, slice]]:
    """Return the rows of images that have detections, and where these are."""
    rows, starts = np.unique(table[:, 0].astype(np.int64), return_index=True)
    edges = pairwise([*starts.tolist(), len(table)])
    return [(int(row), slice(*edge)) for row, edge in zip(rows, edges, strict=True)]


def _xywh(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
