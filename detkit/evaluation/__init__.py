"""How good detections are: the COCO measure, its results as text."""

from detkit.evaluation.coco import CocoEvaluator
from detkit.evaluation.tables import flat_metrics, format_points, results_table

__all__ = ["CocoEvaluator", "flat_metrics", "format_points", "results_table"]
