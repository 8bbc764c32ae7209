"""How good detections are: the COCO measure, its results as text, the errors of single pictures."""

from detkit.evaluation.coco import CocoEvaluator
from detkit.evaluation.errors import PictureErrors, picture_errors
from detkit.evaluation.tables import flat_metrics, format_points, results_table

__all__ = ["CocoEvaluator", "PictureErrors", "flat_metrics", "format_points", "picture_errors", "results_table"]
