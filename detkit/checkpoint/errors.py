"""What goes wrong with files of weights."""


class CheckpointError(RuntimeError):
    """A file of weights that cannot be had, read or used; the message names the file."""


class DamagedFileError(CheckpointError):
    """A file whose content is not that of a file of weights: reading it again would end alike."""


class NonFiniteWeightsError(CheckpointError):
    """Weights that are NaN or infinite, and were not saved."""
