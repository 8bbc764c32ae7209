"""The data sets that a config can name; importing this package registers them."""

from detkit.data.datasets import coco, csv_file, names, one_class, shapes, voc, yolo

__all__ = ["coco", "csv_file", "names", "one_class", "shapes", "voc", "yolo"]
