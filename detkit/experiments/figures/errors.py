"""The error of what a figure is drawn from."""

from __future__ import annotations


class FigureError(ValueError):
    """What a figure is drawn from is missing or wrong. The message names the file, the place and the value."""
