"""What the network is given, and what it finds, as pictures. N images, R anchors, G padded ground truths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from detkit.structures import Batch, Detections, foreground
from detkit.visualization.draw import class_color, draw_boxes, fit, grid, with_caption

_PADDING = 110  # any grey that is not picture
_IGNORED = (190, 190, 190)


def batch_picture(
    batch: Batch,
    *,
    anchors_R4: Tensor,
    labels_NR: Tensor,
    matched_NR: Tensor,
    class_names: Sequence[str],
    max_images: int = 6,
) -> np.ndarray:
    """Return a sheet [H, W, 3] of a training batch as the network sees it, with the targets it is trained on.

    The pictures are those after resizing and augmentation, padding in grey. Bold boxes with a name are ground truth;
    thin boxes are the anchors that an assigner made foreground, in the colour of their class. A caption counts both,
    and the ground truths that no anchor serves. `labels_NR` and `matched_NR` are the assigner's.
    """
    shown = min(len(batch), max_images)
    tiles = [_batch_tile(batch, i, anchors_R4, labels_NR[i], matched_NR[i], class_names) for i in range(shown)]
    return grid(tiles, columns=1 if shown == 1 else 2 if shown <= 4 else 3)


def detections_picture(
    image: np.ndarray, detections: Detections, *, class_names: Sequence[str], score_threshold: float = 0.5
) -> np.ndarray:
    """Return a picture [h, w, 3] with the detections of at least the given score, each with class and score.

    A small picture is enlarged, a large one made smaller; boxes are in pixels of the picture as given.
    """
    kept = detections.above(score_threshold)
    texts = [f"{class_names[k]} {score:.2f}" for k, score in zip(kept.classes, kept.scores.tolist(), strict=True)]
    return _with_boxes(image, kept.boxes, kept.classes, texts)


def predictions_picture(
    images: Sequence[np.ndarray],
    detections: Sequence[Detections],
    gt_boxes: Sequence[Tensor],
    gt_classes: Sequence[Tensor],
    gt_ignored: Sequence[Tensor],
    *,
    class_names: Sequence[str],
    titles: Sequence[str],
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Return a sheet with, per image, the ground truth on the left and the predictions on the right.

    Args:
        images: original pictures [h, w, 3], uint8, RGB.
        detections: what a detector found in each, in pixels of the picture.
        gt_boxes: the true boxes of each, [g, 4] xyxy in pixels of the picture.
        gt_classes: their classes, [g].
        gt_ignored: bool [g], true for crowd regions and difficult objects, drawn thin and grey.
        class_names: names of the classes.
        titles: what to call each picture, as "image 17".
        score_threshold: detections below it are not drawn; the caption names it.
    """
    pairs = []
    truths = zip(images, gt_boxes, gt_classes, gt_ignored, titles, strict=True)
    for found, (image, boxes, classes, ignored, title) in zip(detections, truths, strict=True):
        truth = _with_truth(image, boxes, classes, ignored, class_names)
        right = detections_picture(image, found, class_names=class_names, score_threshold=score_threshold)
        count = len(found.above(score_threshold))
        more = f" (and {int(ignored.sum())} not counted)" if ignored.any() else ""
        left = with_caption(truth, f"{int((~ignored).sum())} true{more} in {title}")
        right = with_caption(right, f"{count} found with score \u2265 {score_threshold:g}")
        pairs.append(grid([left, right], columns=2, gap=3))
    return grid(pairs, columns=1 if len(pairs) <= 2 else 2, gap=10)


def _batch_tile(
    batch: Batch, i: int, anchors_R4: Tensor, labels_R: Tensor, matched_R: Tensor, class_names: Sequence[str]
) -> np.ndarray:
    """Return one picture of a batch with its ground truth, its foreground anchors and a caption."""
    real = batch.gt_classes_NG[i] >= 0
    boxes, classes = batch.gt_boxes_NG4[i][real], batch.gt_classes_NG[i][real]
    positive = foreground(labels_R, len(class_names))
    canvas, scale = fit(_padded_picture(batch, i))
    anchors = (anchors_R4[positive] * scale).cpu().numpy()
    canvas = draw_boxes(canvas, anchors, colors=_colors(labels_R[positive]), width=1)
    truth = (boxes * scale).cpu().numpy()
    canvas = draw_boxes(canvas, truth, colors=_colors(classes), texts=[class_names[k] for k in classes], width=3)
    unserved = len(set(range(len(real))) & set(real.nonzero()[:, 0].tolist()) - set(matched_R[positive].tolist()))
    without = f", {unserved} without an anchor" if unserved else ""
    return with_caption(
        canvas, f"image {int(batch.image_ids[i])}: {len(classes)} true{without}; {len(anchors)} anchors assigned"
    )


def _padded_picture(batch: Batch, i: int) -> np.ndarray:
    image = batch.images[i].permute(1, 2, 0).cpu().numpy().copy()
    height, width = batch.image_sizes[i].tolist()
    image[height:], image[:, width:] = _PADDING, _PADDING
    return image


def _with_truth(
    image: np.ndarray, boxes: Tensor, classes: Tensor, ignored: Tensor, class_names: Sequence[str]
) -> np.ndarray:
    canvas, scale = fit(image, high=640)
    scaled = boxes * scale
    gray = [_IGNORED] * int(ignored.sum())
    canvas = draw_boxes(canvas, scaled[ignored].cpu().numpy(), colors=gray, width=1)
    texts = [class_names[k] for k in classes[~ignored]]
    return draw_boxes(canvas, scaled[~ignored].cpu().numpy(), colors=_colors(classes[~ignored]), texts=texts)


def _with_boxes(image: np.ndarray, boxes: Tensor, classes: Tensor, texts: Sequence[str]) -> np.ndarray:
    canvas, scale = fit(image, high=640)
    return draw_boxes(canvas, (boxes * scale).cpu().numpy(), colors=_colors(classes), texts=texts)


def _colors(classes: Tensor) -> list[tuple[int, int, int]]:
    return [class_color(k) for k in classes.tolist()]
