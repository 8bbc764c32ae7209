"""The COCO measure: average precision over IoU 0.50:0.95, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from detkit.distributed import gather_rows, is_main
from detkit.log import get_logger
from detkit.registry import EVALUATORS
from detkit.structures import Detections

BOX_DECIMALS, SCORE_DECIMALS = 3, 6
MEASURES: dict[str, tuple[float | None, str]] = {  # name: IoU threshold (None: the mean over all), area range
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}


class GroundTruth(Protocol):
    """The fields of an ImageIndex that evaluation reads. I images, B boxes, K classes; all arrays are numpy's.

    Attributes:
        image_ids: [I] int64, unique.
        box_offsets: [I + 1]; the boxes of image i are rows box_offsets[i] to box_offsets[i + 1].
        boxes: [B, 4] xyxy in pixels, crowd regions included.
        classes: [B] in 0..K-1.
        is_crowd: [B] bool.
        areas: [B] the areas by which COCO tells small, medium and large objects.
        class_names: K names.
        category_ids: K ids as the annotation file has them.
    """

    image_ids: np.ndarray
    box_offsets: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


@EVALUATORS.register()
class CocoEvaluator:
    """Compares detections with the ground truth of an index by COCO's rules.

    Args:
        max_detections: how many detections per image and class count, the best by score (COCO: 100).
    """

    def __init__(self, index: GroundTruth, class_names: Sequence[str], *, max_detections: int = 100) -> None:
        if tuple(index.class_names) != tuple(class_names):
            raise ValueError(
                f"the detector's classes {tuple(class_names)} are not those of the data {tuple(index.class_names)}; "
                "match the data to the detector by name first"
            )
        self._index = index
        self._max_detections = max_detections
        self._visits: list[torch.Tensor] = []  # [n, 2] (row, number of detections) per batch
        self._found: list[torch.Tensor] = []  # [d, 6] (x0, y0, x1, y1, score, class) per batch, in the order of visits
        self._gathered: tuple[np.ndarray, np.ndarray] | None = None
        self._precision: np.ndarray | None = None

    def process(self, detections: list[Detections], rows: list[int]) -> None:
        """Take the detections of some images; `rows` are their row numbers in the index.

        An image that comes twice, as where ranks share a number of images that they do not divide, counts once.
        Numbers that are not finite are a ValueError that names the image.
        """
        for found, row in zip(detections, rows, strict=True):
            table = torch.cat([found.boxes, found.scores[:, None], found.classes[:, None]], 1).double().cpu()
            if not bool(torch.isfinite(table).all()):
                image_id = int(self._index.image_ids[row])
                raise ValueError(
                    f"the detections of image {image_id} hold a NaN or an infinity; were the weights loaded?"
                )
            self._visits.append(torch.tensor([[row, len(found)]]))
            self._found.append(table)
        self._gathered = None

    def evaluate(self) -> dict[str, Any]:
        """Return {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "per_class": {name: AP}}} in points, 0-100.

        A value without ground truth (no object of that size or class) is None. The images that were processed count,
        no others. Without any ground truth, and on ranks other than the main one, the results are {}. Every rank
        has to call it.
        """
        rows, _ = self.gather()
        if not is_main():
            return {}
        if not len(self._index.boxes):
            get_logger(__name__).info("no ground truth in this data: predictions are written, nothing is measured")
            return {}
        if len(rows) < len(self._index.image_ids):
            get_logger(__name__).warning("measured on %d of %d images", len(rows), len(self._index.image_ids))
        self._precision = precision_by_pycocotools(
            self.ground_truth(rows), self.records(range(len(self._index.class_names))), self._max_detections
        )
        return {"bbox": _summary(self._precision, _unique_names(self._index))}

    def predictions(self) -> list[dict[str, Any]]:
        """Return all detections in COCO's result format, ready for json.dump; on other ranks than the main one, [].

        Image and category ids are those of the annotation file; boxes are [x, y, width, height] in pixels, rounded to
        1/1000, scores to 1e-6. `evaluate` measures these very numbers, so the file gives the same AP again. Every
        rank has to call it.
        """
        self.gather()
        return self.records(self._index.category_ids) if is_main() else []

    def precision_at_50(self) -> dict[str, list[float] | None]:
        """Return, per class, the precision at IoU 0.5 for recall 0, 0.01, .. 1; None for a class without ground truth.

        It belongs to the last `evaluate`; before it, and where there was nothing to measure, it is {}.
        """
        if self._precision is None:
            return {}
        curves = self._precision[0, :, :, 0]  # [recall, class]
        return {
            name: [float(p) for p in curve] if curve[0] >= 0 else None
            for name, curve in zip(_unique_names(self._index), curves.T, strict=True)
        }

    def gather(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows seen [n], rising, and the detections [D, 7] (row, x0, y0, x1, y1, score, class) of all ranks
        by row. Every rank has to call it.
        """
        if self._gathered is None:
            visits = gather_rows(torch.cat([torch.zeros(0, 2, dtype=torch.int64), *self._visits])).numpy()
            found = gather_rows(torch.cat([torch.zeros(0, 6, dtype=torch.float64), *self._found])).numpy()
            rows, first = np.unique(visits[:, 0], return_index=True)
            visit_of = np.repeat(np.arange(len(visits)), visits[:, 1])
            table = np.concatenate([visits[visit_of, :1], found], 1)[np.isin(visit_of, first)]
            self._gathered = rows, table[np.argsort(table[:, 0], kind="stable")]
        return self._gathered

    def records(self, category_of: Sequence[int]) -> list[dict[str, Any]]:
        """Return the gathered detections in COCO's result format, in their order, with ids for the classes."""
        _, table = self.gather()
        boxes = xywh(table[:, 1:5]).round(BOX_DECIMALS).tolist()
        scores = table[:, 5].round(SCORE_DECIMALS).tolist()
        image_ids = self._index.image_ids[table[:, 0].astype(np.int64)].tolist()
        classes = table[:, 6].astype(np.int64).tolist()
        return [
            {"image_id": image_id, "category_id": int(category_of[label]), "bbox": box, "score": score}
            for image_id, label, box, score in zip(image_ids, classes, boxes, scores, strict=True)
        ]

    def ground_truth(self, rows: np.ndarray) -> dict[str, list]:
        """Return the images of `rows` in COCO's annotation format, with class numbers for category ids."""
        index = self._index
        image_of = np.repeat(index.image_ids, np.diff(index.box_offsets))
        seen = np.isin(image_of, index.image_ids[rows])
        columns = [
            image_of[seen].tolist(),
            index.classes[seen].tolist(),
            xywh(index.boxes[seen]).tolist(),
            index.areas[seen].tolist(),
            index.is_crowd[seen].astype(int).tolist(),
        ]
        names = ("image_id", "category_id", "bbox", "area", "iscrowd")
        return {
            "images": [{"id": image_id} for image_id in index.image_ids[rows].tolist()],
            "categories": [{"id": k} for k in range(len(index.class_names))],
            "annotations": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
        }


def xywh(boxes: np.ndarray) -> np.ndarray:
    """Return boxes [n, 4] xyxy, n from 0, as pycocotools has them: x, y, width and height in float64."""
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)


def precision_by_pycocotools(
    truth: Mapping[str, list], records: list[dict], max_detections: int, *, iou: float | None = None
) -> np.ndarray:
    """Return precision [10 IoU, 101 recall, K, 4 areas], in 0..1, -1 where there is no ground truth.

    Given one `iou`, objects of any area are measured at it alone, [1, 101, K, 1].
    """
    from pycocotools.cocoeval import COCOeval

    found = [{**r, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for r in records]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        run = COCOeval(_coco(truth), _coco({**truth, "annotations": found}), iouType="bbox")
        run.params.maxDets = [max_detections]
        if iou is not None:
            run.params.iouThrs = np.array([iou])
            run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], run.params.areaRngLbl[:1]
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., 0]


def _coco(content: Mapping[str, list]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    # Ids start at 1: pycocotools reads a match with id 0 as no match.
    annotations = [{**row, "id": number} for number, row in enumerate(content["annotations"], 1)]
    coco.dataset = {**content, "annotations": annotations}
    coco.createIndex()
    return coco


def _summary(precision: np.ndarray, names: list[str]) -> dict[str, Any]:
    from pycocotools.cocoeval import Params

    params = Params(iouType="bbox")
    summary: dict[str, Any] = {}
    for measure, (threshold, area) in MEASURES.items():
        chosen = precision if threshold is None else precision[np.isclose(params.iouThrs, threshold)]
        summary[measure] = points(chosen[..., params.areaRngLbl.index(area)])
    summary["per_class"] = {name: points(precision[:, :, k, 0]) for k, name in enumerate(names)}
    return summary


def points(precision: np.ndarray) -> float | None:
    """Return the mean of the defined values, times 100; None where none is."""
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if len(defined) else None


def _unique_names(index: GroundTruth) -> list[str]:
    """Return the class names; one that stands for several classes gets the category id behind it."""
    names = list(index.class_names)
    pairs = zip(names, index.category_ids, strict=True)
    return [name if names.count(name) == 1 else f"{name} [{category}]" for name, category in pairs]
