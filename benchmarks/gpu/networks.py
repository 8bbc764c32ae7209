"""The detectors, batches and trainers that the steps measure; without weights, on which time does not depend."""

from __future__ import annotations

import torch
import training_step
from torch import Tensor, nn

from detkit.config import CfgNode, get_cfg
from detkit.engine import Trainer
from detkit.engine.train import trainer_of
from detkit.modeling import build_detector
from detkit.solver import plan_of
from detkit.structures import Batch
from gpu.outcome import ROOT, SkippedError

CLASSES = training_step.CLASSES
SIDES = {600: (600, 800), 800: (800, 1067), 224: (224, 256)}  # height and width of 3:4 pictures, as most of COCO are
# Not fewer channels: with 8, a convolution of torch 2.13 in channels_last ends the process on a CPU.
_TINY = ["MODEL.BACKBONE.ResNet.DEPTH", 18, "MODEL.BACKBONE.ResNet.STEM_CHANNELS", 16,
         "MODEL.BACKBONE.ResNet.RES2_CHANNELS", 16, "MODEL.NECK.FPN.OUT_CHANNELS", 16,
         "MODEL.HEAD.RetinaNetHead.NUM_CONVS", 1]  # fmt: skip
_RESIDUAL = 0.2  # of the last norm of a block: with 1, and no trained statistics, activations double at every block


def config(name: str, *options: object) -> CfgNode:
    """Return the paper's config of "R50" or "R101", or "tiny": one of the same shape that a CPU trains in a second."""
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / f"retinanet_{'R50' if name == 'tiny' else name}_FPN.yaml"))
    cfg.merge_from_list([*(_TINY if name == "tiny" else []), "MODEL.WEIGHTS", "", *options])
    return cfg


def detector(cfg: CfgNode, device: str) -> nn.Module:
    """Return a detector of a config for 80 classes, with finite activations."""
    torch.manual_seed(0)
    built = build_detector(cfg, num_classes=CLASSES)
    for name, module in built.named_modules():
        if name.endswith(("conv3.norm", "conv2.norm")) and isinstance(getattr(module, "weight", None), Tensor):
            module.weight.data.fill_(_RESIDUAL)
    return built.to(device)


def batch(size: int, images: int) -> Batch:
    """Return pictures of noise with a short side of `size`, on the host."""
    return training_step.some_batch(*SIDES[size], images=images)


def trainer(cfg: CfgNode, device: str) -> Trainer:
    """Return what trains a config, as train() makes it."""
    built = detector(cfg, device).train()
    return trainer_of(cfg, plan_of(cfg.SOLVER), built, torch.device(device))


def small_trainer(device: str) -> tuple[Trainer, Batch]:
    """Return a training of the tiny detector from one seed, with its batch of four."""
    made = trainer(config("tiny", "SOLVER.CLIP_GRADIENTS", 10.0), device)
    return made, batch(224, 4).to(device)


def torchvision_retinanet(size: int, device: str) -> nn.Module:
    """Return torchvision's RetinaNet-R50 with frozen norm and two frozen stages, as the paper's, for such pictures.

    Raises:
        SkippedError: torchvision is missing, or does not fit the torch that is here.
    """
    try:
        from torchvision.models.detection import RetinaNet
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise SkippedError(f"torchvision is not to be had here ({type(error).__name__}: {error})") from error
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    for name, module in backbone.named_modules():
        if name.endswith("bn3"):
            module.weight.data.fill_(_RESIDUAL)
    height, width = SIDES[size]
    return RetinaNet(backbone, CLASSES, min_size=height, max_size=width).to(device)


def torchvision_inputs(of: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return a batch as torchvision takes it: pictures in 0..1, and targets."""
    pictures = [picture.float() / 255 for picture in of.images]
    truths = zip(of.gt_boxes_NG4, of.gt_classes_NG, strict=True)
    return pictures, [{"boxes": boxes, "labels": classes} for boxes, classes in truths]
