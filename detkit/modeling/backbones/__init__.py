"""Bottom-up networks (socket BACKBONES)."""

from detkit.modeling.backbones.resnet import ResNet

__all__ = ["ResNet"]
