"""Detectors and their parts. Importing this package registers every component of the core."""

from detkit.modeling import assigners, backbones, detectors, heads, losses, necks, samplers
from detkit.modeling.build import build_detector

__all__ = ["assigners", "backbones", "build_detector", "detectors", "heads", "losses", "necks", "samplers"]
