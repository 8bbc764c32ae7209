"""Online hard example mining on a dense head (RetinaNet, section 5.1, Table 1d): train on the anchors of largest loss.

Each anchor is scored by its loss, similar ones are suppressed, and the hardest that are left make the batch. The paper
leaves open how that is done for anchors; each such choice is an option here. Ignored anchors are left out first; ties
go by index; the result does not depend on the device. The normaliser is the criterion's, and belongs beside the sampler
(`NORMALIZER`): "selected" for OHEM, as in the original; "selected_positives" for 1:3, as in SSD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from detkit import ops
from detkit.modeling.samplers.ranking import NEGATIVE, POSITIVE, candidates, cut_to, first_of_kinds
from detkit.registry import SAMPLERS
from detkit.structures import foreground, is_assigned


class HardExamples:
    """What OHEM and OHEM 1:3 share: scores by loss, suppression, and the hardest of each kind.

    `per` says whose hardest are taken: those of every image, or of the batch on this process, as the original pools
    them. The options are documented where they are declared.
    """

    def __init__(
        self,
        num_classes: int,
        batch_size: int,
        nms_threshold: float | None,
        per: str,
        score: str,
        boxes: str,
        within: str,
    ) -> None:
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}: batch_size {batch_size} is below 1")
        if nms_threshold is not None and not 0 <= nms_threshold <= 1:
            raise ValueError(f"{name}: nms_threshold {nms_threshold} is neither in [0, 1] nor None (no suppression)")
        for option, value, known in (
            ("per", per, ("image", "batch")),
            ("score", score, ("cls", "cls+box", "term", "term+box")),
            ("boxes", boxes, ("anchors", "predictions")),
            ("within", within, ("all", "sign", "label")),
        ):
            if value not in known:
                raise ValueError(f"{name}: {option} {value!r} is none of {', '.join(known)}")
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.nms_threshold = nms_threshold
        self.per = per
        self.score = score
        self.boxes = boxes
        self.within = within

    def _hardest(
        self,
        labels_NR: Tensor,
        anchors_R4: Tensor,
        predictions: Callable[[], Tensor],
        loss: Callable[[str], Tensor],
        kinds_NR: Tensor | None,
        quota: list[int] | int,
    ) -> tuple[Tensor, Tensor]:
        """Return what survives suppression, cut to the quotas, and the scores, both [N, R], or [1, N * R] per batch."""
        scores_NR = candidates(loss(self.score), is_assigned(labels_NR))
        if self.nms_threshold is None:
            selected_NR = first_of_kinds(scores_NR, kinds_NR, quota)
        else:
            boxes_NR4 = anchors_R4.expand(len(labels_NR), -1, -1) if self.boxes == "anchors" else predictions()
            groups_NR = self._groups(labels_NR)
            selected_NR = ops.nms_mask(
                boxes_NR4, scores_NR, self.nms_threshold, groups=groups_NR, kinds=kinds_NR, quota=quota
            )
        if self.per == "image":
            return selected_NR, scores_NR
        pooled_1M = torch.where(selected_NR, scores_NR, -torch.inf).reshape(1, -1)
        kinds_1M = None if kinds_NR is None else kinds_NR.reshape(1, -1)
        return first_of_kinds(pooled_1M, kinds_1M, quota), pooled_1M

    def _groups(self, labels_NR: Tensor) -> Tensor | None:
        if self.within == "label":
            return labels_NR
        return foreground(labels_NR, self.num_classes).long() if self.within == "sign" else None


@SAMPLERS.register()
class OHEM(HardExamples):
    """The hardest anchors after suppression, whatever their labels (Shrivastava et al. 2016; RetinaNet, Table 1d).

    Args:
        batch_size: B, anchors that are selected, at most.
        nms_threshold: IoU above which the easier of two anchors is left out; None suppresses nothing.
        per: B anchors of each "image", or of the "batch" of a process.
        score: the loss that ranks: that of classification, summed over classes ("cls"), or only its "term" of the
            anchor's own class (for background, the largest term); and with the loss of boxes, "cls+box" or "term+box".
        boxes: whose overlaps suppress: "anchors" or "predictions".
        within: an anchor suppresses "all" others, those of its "sign" (foreground, background), or of its "label".
    """

    def __init__(
        self,
        num_classes: int,
        *,
        batch_size: int = 128,
        nms_threshold: float | None = 0.5,
        per: Literal["image", "batch"] = "image",
        score: Literal["cls", "cls+box", "term", "term+box"] = "cls",
        boxes: Literal["anchors", "predictions"] = "anchors",
        within: Literal["all", "sign", "label"] = "all",
    ) -> None:
        super().__init__(num_classes, batch_size, nms_threshold, per, score, boxes, within)

    def __call__(
        self,
        labels_NR: Tensor,
        *,
        anchors: Tensor,
        boxes: Callable[[], Tensor],
        loss: Callable[[str], Tensor],
        rng: Callable[[], Tensor],
    ) -> Tensor:
        """Return the selection [N, R]; all survivors where there are fewer than B."""
        selected, _ = self._hardest(labels_NR, anchors, boxes, loss, None, self.batch_size)
        return selected.reshape(labels_NR.shape)


@SAMPLERS.register()
class OHEM1to3(HardExamples):
    """The hardest anchors after suppression, three negatives to a positive (SSD; RetinaNet, Table 1d, "OHEM 1:3").

    A quarter of B, rounded down, is for positives.

    Args:
        batch_size: B, anchors that are selected, at most.
        nms_threshold: IoU above which the easier of two anchors is left out; None suppresses nothing.
        few_positives: where positives do not fill their quarter: "shrink" to three negatives each, or "fill" with
            negatives.
        per: B anchors of each "image", or of the "batch" of a process.
        score: the loss that ranks: that of classification, summed over classes ("cls"), or only its "term" of the
            anchor's own class (for background, the largest term); and with the loss of boxes, "cls+box" or "term+box".
        boxes: whose overlaps suppress: "anchors" or "predictions".
        within: an anchor suppresses "all" others, those of its "sign" (foreground, background), or of its "label".
    """

    def __init__(
        self,
        num_classes: int,
        *,
        batch_size: int = 128,
        nms_threshold: float | None = 0.5,
        few_positives: Literal["shrink", "fill"] = "shrink",
        per: Literal["image", "batch"] = "image",
        score: Literal["cls", "cls+box", "term", "term+box"] = "cls",
        boxes: Literal["anchors", "predictions"] = "anchors",
        within: Literal["all", "sign", "label"] = "all",
    ) -> None:
        super().__init__(num_classes, batch_size, nms_threshold, per, score, boxes, within)
        if few_positives not in ("shrink", "fill"):
            raise ValueError(f"OHEM1to3: few_positives {few_positives!r} is neither shrink nor fill")
        self.few_positives = few_positives

    def __call__(
        self,
        labels_NR: Tensor,
        *,
        anchors: Tensor,
        boxes: Callable[[], Tensor],
        loss: Callable[[str], Tensor],
        rng: Callable[[], Tensor],
    ) -> Tensor:
        """Return the selection [N, R]; "shrink" leaves an image without positives without examples, as SSD does."""
        are_positive = foreground(labels_NR, self.num_classes)
        kinds_NR = torch.where(are_positive, POSITIVE, NEGATIVE)
        most = {NEGATIVE: self.batch_size, POSITIVE: self.batch_size // 4}
        selected, scores = self._hardest(labels_NR, anchors, boxes, loss, kinds_NR, [most[NEGATIVE], most[POSITIVE]])
        are_positive = are_positive.reshape(selected.shape)
        positives = selected & are_positive
        counts = positives.sum(1)
        negatives = 3 * counts if self.few_positives == "shrink" else self.batch_size - counts
        selected = positives | cut_to(selected & ~are_positive, scores, negatives, most[NEGATIVE])
        return selected.reshape(labels_NR.shape)
