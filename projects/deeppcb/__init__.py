"""An example project: a data set in a layout of its own, registered from outside detkit."""

from deeppcb.dataset import DeepPCB

__all__ = ["DeepPCB"]
