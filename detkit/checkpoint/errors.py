"""What goes wrong with files of weights."""


class CheckpointError(RuntimeError):
    """A file of weights that cannot be had, read or used; the message names the file."""
