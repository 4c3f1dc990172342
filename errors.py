"""What can go wrong, by name.

Wrong use raises the built-in exception that fits (ValueError, TypeError, FileNotFoundError, ...) or one of
these, always with one sentence that says what is wrong, with what value, and what to do.
"""


class RNGRUError(Exception):
    """Base of this project's own exceptions: `except RNGRUError` catches every one of them."""


class TextError(RNGRUError, ValueError):
    """The source text can't be trained on: empty, binary, or too short for the sequences asked for."""


class WorkDirError(RNGRUError):
    """The working directory can't be used as asked: already taken, not one of ours, damaged or too new."""


class CheckpointError(WorkDirError):
    """A checkpoint is missing, damaged, or doesn't fit the model."""
