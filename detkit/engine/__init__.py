"""Training, evaluation and prediction: what puts the rooms below together."""

from detkit.engine.evaluate import TestSets
from detkit.engine.predictor import Predictor
from detkit.engine.projects import import_projects
from detkit.engine.train import evaluate_only, train
from detkit.engine.trainer import NonFiniteLossError, Trainer

__all__ = ["NonFiniteLossError", "Predictor", "TestSets", "Trainer", "evaluate_only", "import_projects", "train"]
