"""The error of everything that is wrong with a user's data."""

from __future__ import annotations


class DataError(ValueError):
    """A data set, an annotation or a picture cannot be used. The message names the file, the value and the way out."""
