"""The data sets that a config can name; importing this package registers them."""

from detkit.data.datasets import coco, names, shapes

__all__ = ["coco", "names", "shapes"]
