"""Pictures for people: what the network sees, what it finds, how training went, and one page that shows it all."""

from detkit.visualization.curves import precision_recall_picture, training_picture
from detkit.visualization.draw import class_color, draw_boxes, fit, grid, png_bytes, with_caption
from detkit.visualization.pictures import batch_picture, detections_picture, predictions_picture
from detkit.visualization.report import write_report

__all__ = [
    "batch_picture",
    "class_color",
    "detections_picture",
    "draw_boxes",
    "fit",
    "grid",
    "png_bytes",
    "precision_recall_picture",
    "predictions_picture",
    "training_picture",
    "with_caption",
    "write_report",
]
