"""Reading and writing weights and the state of a run."""

from detkit.checkpoint.checkpointer import FINAL, Checkpointer, CheckpointError, load_file
from detkit.checkpoint.weights import LoadReport, apply_weights, load_weights

__all__ = ["FINAL", "CheckpointError", "Checkpointer", "LoadReport", "apply_weights", "load_file", "load_weights"]
