"""The figures of the focal loss paper (Lin et al. 2017), each a function that returns a matplotlib figure."""

from detkit.experiments.figures.architecture import Architecture, read_architecture
from detkit.experiments.figures.architecture_drawing import figure_3
from detkit.experiments.figures.cumulative import figure_4, read_loss_distribution
from detkit.experiments.figures.errors import FigureError
from detkit.experiments.figures.losses import figure_1, figure_5, figure_6
from detkit.experiments.figures.speed import SpeedSeries, figure_2, read_speed
from detkit.experiments.figures.star_grid import StarGrid, figure_7, read_star_grid

__all__ = [
    "Architecture",
    "FigureError",
    "SpeedSeries",
    "StarGrid",
    "figure_1",
    "figure_2",
    "figure_3",
    "figure_4",
    "figure_5",
    "figure_6",
    "figure_7",
    "read_architecture",
    "read_loss_distribution",
    "read_speed",
    "read_star_grid",
]
