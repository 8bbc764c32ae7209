"""detkit: dense object detection around RetinaNet and the focal loss.

Importing it imports the rooms whose components register, so that every socket is full and every config key known.
"""

from detkit import data, evaluation, modeling, solver

__version__ = "0.1.0"
__all__ = ["__version__", "data", "evaluation", "modeling", "solver"]
