"""Reading and writing weights and the state of a run."""

from detkit.checkpoint.checkpointer import FINAL, Checkpointer, CheckpointError, load_file
from detkit.checkpoint.weights import LoadReport, load_weights

__all__ = ["FINAL", "CheckpointError", "Checkpointer", "LoadReport", "load_file", "load_weights"]
