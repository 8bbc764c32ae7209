"""The loss of a dense detector (RetinaNet, section 4): assign, select, classify, regress, normalise.

Legend: N images, R anchors over all levels, K' logits of an anchor, G padded ground truths. Shapes are static and
nothing waits for the device: what does not count is masked, not removed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.distributed import all_reduce_mean
from detkit.modeling.box_coder import BoxCoder
from detkit.modeling.random_numbers import counter_uniform
from detkit.structures import IGNORED, Batch, foreground

Normalizer = Literal["assigned", "selected_positives", "selected", "per_image"]
_PARTS = ("cls", "cls+box", "term", "term+box")  # of the loss that a sampler may ask for
_MOVING_AVERAGE_START = 100.0  # detectron2's; the foreground of a batch of a few COCO images


class Criterion(nn.Module):
    """Raw outputs of the head in, named sums out.

    Args:
        num_classes: K, foreground classes.
        assigner, sampler, cls_loss, box_loss: components by the contracts of their sockets.
        box_coder: what deltas mean.
        normalizer: losses are divided by the number of anchors "assigned" to a ground truth (the paper), of
            "selected_positives" (those of them that the sampler selected), or of all "selected"; these count the
            whole batch, over all ranks. "per_image" (torchvision): each image's sums are divided by the number of its
            own assigned anchors, at least 1, then averaged over the images of this rank; data-parallel training
            averages over ranks, which is the mean over the whole batch where ranks have equally many images.
        box_loss_on: the positives that the box loss sums over: all "assigned", or the "selected" ones.
        box_loss_weight: factor of the box loss.
        normalizer_momentum: in [0, 1); above 0 the normaliser is a moving average, kept in a buffer that is saved.
            Not with "per_image", which has no one number to average.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        assigner: Callable[..., Any],
        sampler: Callable[..., Tensor],
        cls_loss: Any,
        box_loss: Callable[..., Tensor],
        box_coder: BoxCoder,
        normalizer: Normalizer = "assigned",
        box_loss_on: Literal["assigned", "selected"] = "assigned",
        box_loss_weight: float = 1.0,
        normalizer_momentum: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= normalizer_momentum < 1:
            raise ValueError(f"criterion: normalizer_momentum {normalizer_momentum} is not in [0, 1)")
        if normalizer == "per_image" and normalizer_momentum:
            raise ValueError(
                f"criterion: normalizer 'per_image' has a count for each image, and no moving average; "
                f"normalizer_momentum must be 0 with it, not {normalizer_momentum}"
            )
        self.num_classes = num_classes
        self.assigner = assigner
        self.sampler = sampler
        self.cls_loss = cls_loss
        self.box_loss = box_loss
        self.box_coder = box_coder
        self.normalizer = normalizer
        self.box_loss_on = box_loss_on
        self.box_loss_weight = box_loss_weight
        self.normalizer_momentum = normalizer_momentum
        if normalizer_momentum:
            self.moving_normalizer: Tensor
            self.register_buffer("moving_normalizer", torch.tensor(_MOVING_AVERAGE_START))

    def forward(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Return `loss_cls`, `loss_box` and what is only logged, as scalars, from per-level outputs.

        Logits are [N, R, K'], deltas [N, R, 4], anchors [R, 4] of each level. Without any ground truth `loss_box` is 0
        with a graph. `metric_num_foreground`, `metric_num_selected` and `metric_num_selected_foreground` count anchors
        of this batch.
        """
        logits_NRK, deltas_NR4, anchors_R4 = torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors)
        labels_NR, matched_NR = self.assigner(anchors_R4, batch.gt_boxes_NG4, batch.gt_classes_NG)
        is_foreground = foreground(labels_NR, self.num_classes)
        box_losses = functools.partial(
            self._box_losses, deltas_NR4, anchors_R4, batch.gt_boxes_NG4, matched_NR, is_foreground
        )
        selected_NR = self._select(labels_NR, logits_NRK, deltas_NR4, anchors_R4, box_losses, batch.seeds)

        labels_NR = labels_NR.where(selected_NR, IGNORED)
        is_regressed = is_foreground & selected_NR if self.box_loss_on == "selected" else is_foreground
        box_NR = box_losses() * is_regressed
        if self.normalizer == "per_image":
            count_N = is_foreground.sum(1).clamp(min=1)
            loss_cls = (self._cls_loss(logits_NRK, labels_NR, "anchor").sum(1) / count_N).mean()
            loss_box = (box_NR.sum(1) / count_N).mean() * self.box_loss_weight
        else:
            normalizer = self._normalizer(is_foreground, selected_NR)
            loss_cls = self._cls_loss(logits_NRK, labels_NR, "sum") / normalizer
            loss_box = box_NR.sum() * self.box_loss_weight / normalizer
        return {
            "loss_cls": loss_cls,
            "loss_box": loss_box,
            "metric_num_foreground": is_foreground.sum(),
            "metric_num_selected": selected_NR.sum(),
            "metric_num_selected_foreground": (is_foreground & selected_NR).sum(),
        }

    @torch.no_grad()
    def _select(
        self,
        labels_NR: Tensor,
        logits_NRK: Tensor,
        deltas_NR4: Tensor,
        anchors_R4: Tensor,
        box_losses: Callable[[], Tensor],
        seeds_N: Tensor,
    ) -> Tensor:
        """Ask the sampler which anchors take part, [N, R] bool."""

        def boxes() -> Tensor:
            with torch.no_grad():
                return self.box_coder.decode(deltas_NR4, anchors_R4)

        def loss(parts: str) -> Tensor:
            if parts not in _PARTS:
                raise ValueError(f"a sampler asked for the loss of {parts!r}; there are {', '.join(_PARTS)}")
            with torch.no_grad():
                if parts.startswith("term"):
                    loss_NR = self._one_term(logits_NRK, labels_NR, parts)
                else:
                    loss_NR = self._cls_loss(logits_NRK, labels_NR, "anchor")
                return loss_NR + self.box_loss_weight * box_losses() if parts.endswith("+box") else loss_NR

        rng = functools.partial(counter_uniform, seeds_N, labels_NR.shape[1])
        selected_NR = self.sampler(labels_NR, anchors=anchors_R4, boxes=boxes, loss=loss, rng=rng)
        if getattr(selected_NR, "dtype", None) != torch.bool:
            what = getattr(selected_NR, "dtype", f"{selected_NR!r:.80}")
            raise TypeError(f"{type(self.sampler).__name__}: a sampler returns bool [N, R], not {what}")
        return _of_shape(labels_NR.shape, selected_NR, self.sampler, "labels [N, R]")

    def _cls_loss(self, logits_NRK: Tensor, labels_NR: Tensor, reduction: Literal["sum", "anchor"]) -> Tensor:
        """Return the classification loss, [] or [N, R]."""
        shape = () if reduction == "sum" else labels_NR.shape
        loss = self.cls_loss(logits_NRK, labels_NR, reduction)
        return _of_shape(shape, loss, self.cls_loss, f"reduction '{reduction}'")

    def _one_term(self, logits_NRK: Tensor, labels_NR: Tensor, parts: str) -> Tensor:
        """Return the term of the classification loss that belongs to an anchor's class, [N, R]; 0 where it is ignored.

        Of background it is the largest: on sigmoids, the term of the class that scores highest.
        """
        try:
            terms_NRK = self.cls_loss(logits_NRK.float(), labels_NR, "none")  # in half precision, many would tie
            if terms_NRK.shape != logits_NRK.shape:
                raise ValueError(f"shape {tuple(terms_NRK.shape)}, not that of the logits, {tuple(logits_NRK.shape)}")
        # Of a reduction that it does not know; AttributeError: what it returned is no tensor.
        except (TypeError, ValueError, LookupError, NotImplementedError, AttributeError) as error:
            raise ValueError(
                f"a sampler asked for the loss of {parts!r} (SCORE of OHEM), but {type(self.cls_loss).__name__} does "
                f"not give its terms one by one: reduction 'none' (see CLS_LOSSES) ended in {error!r}. Add it to the "
                "loss, or score by 'cls' or 'cls+box'"
            ) from error
        own_NR1 = terms_NRK.gather(-1, labels_NR.clamp(0, self.num_classes - 1)[..., None])
        return torch.where(foreground(labels_NR, self.num_classes), own_NR1[..., 0], terms_NRK.amax(-1))

    def _box_losses(
        self, deltas_NR4: Tensor, anchors_R4: Tensor, gt_boxes_NG4: Tensor, matched_NR: Tensor, is_foreground: Tensor
    ) -> Tensor:
        """Return the box loss of every anchor, [N, R]; 0 where it has no ground truth."""
        gt_boxes_NG4 = F.pad(gt_boxes_NG4, (0, 0, 0, 1))  # so that there is a row to look up where G is 0
        targets_NR4 = gt_boxes_NG4.gather(1, matched_NR[..., None].expand(-1, -1, 4))
        # An anchor without a ground truth is its own target: any loss is then finite there, and so is its gradient.
        targets_NR4 = torch.where(is_foreground[..., None], targets_NR4, anchors_R4)
        losses_NR = self.box_loss(deltas_NR4, anchors_R4.expand_as(targets_NR4), targets_NR4, self.box_coder)
        _of_shape(is_foreground.shape, losses_NR, self.box_loss, "boxes [N, R, 4]")
        return torch.where(is_foreground, losses_NR, 0.0)

    @torch.no_grad()
    def _normalizer(self, is_foreground: Tensor, selected_NR: Tensor) -> Tensor:
        """Return what the sums are divided by: a count over all ranks / world size, at least 1.

        Data-parallel training averages gradients over ranks, so the sums end up divided by the count over all ranks.
        """
        counted = {
            "assigned": is_foreground,
            "selected_positives": is_foreground & selected_NR,
            "selected": selected_NR,
        }[self.normalizer]
        count = all_reduce_mean(counted.sum().float()).clamp(min=1)
        if not self.normalizer_momentum:
            return count
        average = torch.lerp(count.to(self.moving_normalizer.dtype), self.moving_normalizer, self.normalizer_momentum)
        if self.training:
            self.moving_normalizer.copy_(average)
        return average


def _of_shape(shape: tuple[int, ...], value: Tensor, component: object, asked_for: str) -> Tensor:
    """Return what a component returned; a ValueError that names it where its shape is not that of its contract."""
    found = value.shape if isinstance(value, Tensor) else None
    if found != shape:
        what = f"{value!r:.80}, a {type(value).__name__}" if found is None else str(list(found))
        raise ValueError(
            f"{type(component).__name__}: for {asked_for} it must return a tensor of shape {list(shape)} (see its "
            f"socket in detkit/registry.py), and returned {what}"
        )
    return value
