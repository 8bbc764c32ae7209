"""Reading and writing weights and the state of a run."""

from detkit.checkpoint.checkpointer import BEST, FINAL, Checkpointer, refuse_unreadable
from detkit.checkpoint.download import local_file
from detkit.checkpoint.errors import CheckpointError, NonFiniteWeightsError
from detkit.checkpoint.expectations import about_weights
from detkit.checkpoint.reading import load_file
from detkit.checkpoint.report import LoadReport
from detkit.checkpoint.weights import apply_weights, load_weights

__all__ = [
    "BEST",
    "FINAL",
    "CheckpointError",
    "Checkpointer",
    "LoadReport",
    "NonFiniteWeightsError",
    "about_weights",
    "apply_weights",
    "load_file",
    "load_weights",
    "local_file",
    "refuse_unreadable",
]
