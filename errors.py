"""What can go wrong, by name.

Wrong use raises the built-in exception that fits (ValueError, TypeError, FileNotFoundError, ...) or one of
these, always with one sentence that says what is wrong, with what value, and what to do.
"""

import numbers


class RNGRUError(Exception):
    """Base of this project's own exceptions: `except RNGRUError` catches every one of them."""


class TextError(RNGRUError, ValueError):
    """The source text can't be trained on: empty, binary, or too short for the sequences asked for."""


class WorkDirError(RNGRUError):
    """The working directory can't be used as asked: already taken, not one of ours, damaged or too new."""


class CheckpointError(WorkDirError):
    """A checkpoint is missing, damaged, or doesn't fit the model."""


def checkint(name, value, low=0, high=None):
    """`value` as an int within low .. high; else TypeError or ValueError in one sentence."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f'{name} takes a whole number, got {value!r}')
    if value < low or (high is not None and value > high):
        raise ValueError(f'{name} must be {f"at least {low}" if high is None else f"from {low} to {high:,}"}, got {value}')
    return int(value)


def reason(error):
    """What another library's exception says, as a short phrase within a sentence."""
    return ' '.join((getattr(error, 'strerror', None) or str(error)).split())[:120].rstrip('.') or type(error).__name__
