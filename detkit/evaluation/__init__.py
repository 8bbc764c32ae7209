"""How good detections are: the COCO measure, what kinds of errors cost, results as text, errors of single pictures."""

from detkit.evaluation.coco import CocoEvaluator
from detkit.evaluation.error_kinds import ErrorKinds
from detkit.evaluation.errors import PictureErrors, picture_errors
from detkit.evaluation.tables import flat_metrics, format_points, mean_ap, results_table

__all__ = [
    "CocoEvaluator",
    "ErrorKinds",
    "PictureErrors",
    "flat_metrics",
    "mean_ap",
    "format_points",
    "picture_errors",
    "results_table",
]
