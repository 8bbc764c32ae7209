"""RetinaNet (Lin et al. 2017b): pyramid, two subnets on every level, a criterion and post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.modeling import build
from detkit.modeling.anchors import AnchorGrid
from detkit.modeling.criterion import Criterion
from detkit.modeling.postprocess import PostProcess
from detkit.registry import BACKBONES, BOX_LOSSES, CLS_LOSSES, DETECTORS, NECKS
from detkit.structures import Batch, Detections


class RawOutputs(NamedTuple):
    """What the network says of every anchor, per level, fine to coarse: [N, R, K'], [N, R, 4], [R, 4]."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


@DETECTORS.register()
class RetinaNet(nn.Module):
    """The one-stage detector of the focal loss paper.

    Args:
        backbone: a neck (socket NECKS) on its bottom-up network.
        head: a head (socket HEADS) for the anchors of a cell.
        anchors: the anchors of every level of the neck.
        criterion: the loss, whose `cls_loss` also turns logits into scores.
        postprocess: from scores and deltas to detections.
        pixel_mean: subtracted from each channel, in the order of `channels`.
        pixel_std: divided by, after that.
        channels: the order of the channels that the network sees; batches are RGB.
    """

    class_layers = ("head.cls_score",)  # their shape depends on the number of classes

    def __init__(
        self,
        *,
        backbone: Any,
        head: Any,
        anchors: AnchorGrid,
        criterion: Criterion,
        postprocess: PostProcess,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        channels: Literal["RGB", "BGR"],
    ) -> None:
        super().__init__()
        if not all(std > 0 for std in pixel_std):
            raise ValueError(f"RetinaNet: pixel_std {tuple(pixel_std)} must be positive; 1 leaves a channel as it is")
        self.backbone = backbone
        self.head = head
        self.anchors = anchors
        self.criterion = criterion
        self.postprocess = postprocess
        self.channels = channels
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).reshape(3, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: Any, num_classes: int) -> RetinaNet:
        """Build the detector that MODEL and INPUT.CHANNELS of `cfg` describe."""
        node = cfg.MODEL
        neck = NECKS.build(node.NECK, bottom_up=BACKBONES.build(node.BACKBONE))
        anchors = build.build_anchors(node.ANCHORS, tuple(neck.out_strides.values()))
        cls_loss = CLS_LOSSES.build(node.CLS_LOSS)
        box_coder = build.build_box_coder(node.BOX_CODER)
        return cls(
            backbone=neck,
            head=build.build_head(node.HEAD, neck, anchors.num_anchors, cls_loss, num_classes, node.PRIOR_PROB),
            anchors=anchors,
            criterion=build.build_criterion(
                node, num_classes, cls_loss=cls_loss, box_loss=BOX_LOSSES.build(node.BOX_LOSS), box_coder=box_coder
            ),
            postprocess=build.build_postprocess(node.POSTPROCESS, box_coder),
            pixel_mean=node.PIXEL_MEAN,
            pixel_std=node.PIXEL_STD,
            channels=cfg.INPUT.CHANNELS,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor] | list[Detections]:
        """Return the losses of a batch in training, else the detections of its images, without gradient."""
        if self.training:
            return self.criterion(*self.raw_outputs(batch.images, batch.image_sizes), batch)
        with torch.no_grad():
            return self._detect(batch)

    def raw_outputs(self, images: Tensor, image_sizes: Tensor) -> RawOutputs:
        """Run the network on a batch's images [N, 3, H, W] uint8 RGB of sizes [N, 2]; static shapes, tensors only."""
        x_N3HW = self.preprocess(images, image_sizes)
        features = list(self.backbone(x_N3HW).values())
        logits, deltas = self.head(features)
        sizes = [(x_NCHW.shape[2], x_NCHW.shape[3]) for x_NCHW in features]
        anchors = self.anchors(sizes, (x_N3HW.shape[2], x_N3HW.shape[3]))
        return RawOutputs(logits, deltas, anchors)

    def preprocess(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """Return what the network sees, float32: channels in order, normalised, then 0 beyond each picture's size.

        H and W are padded right and bottom to multiples of the neck's `size_divisibility`.
        """
        if self.channels == "BGR":
            images = images.flip(1)
        x_N3HW = (images.float() - self.pixel_mean) / self.pixel_std
        height, width = images.shape[-2:]
        inside_NH = torch.arange(height, device=images.device) < image_sizes[:, :1]
        inside_NW = torch.arange(width, device=images.device) < image_sizes[:, 1:]
        x_N3HW = torch.where(inside_NH[:, None, :, None] & inside_NW[:, None, None, :], x_N3HW, 0.0)
        divisor = self.backbone.size_divisibility
        return F.pad(x_N3HW, (0, -width % divisor, 0, -height % divisor))

    def reset_class_layers(self) -> None:
        """Give the layers named in `class_layers` fresh weights: the prior, and N(0, 0.01)."""
        self.head.reset_cls_score()

    @torch.no_grad()
    def assign(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the anchors [R, 4] of a batch, their labels [N, R] and ground truths [N, R], without the network."""
        divisor = self.backbone.size_divisibility
        height, width = (-(-side // divisor) * divisor for side in batch.images.shape[-2:])
        anchors_R4 = torch.cat(self.anchors(self.anchors.sizes_for(height, width), (height, width)))
        return anchors_R4, *self.criterion.assigner(anchors_R4, batch.gt_boxes_NG4, batch.gt_classes_NG)

    def _detect(self, batch: Batch) -> list[Detections]:
        logits, deltas, anchors = self.raw_outputs(batch.images, batch.image_sizes)
        return self.postprocess(
            [self.criterion.cls_loss.scores(level) for level in logits],
            deltas,
            anchors,
            image_sizes=batch.image_sizes,
            original_sizes=batch.original_sizes,
        )
