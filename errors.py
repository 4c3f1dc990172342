"""What can go wrong, by name.

Wrong use raises the built-in exception that fits (ValueError, TypeError, FileNotFoundError, ...) or one of
these, always with one sentence that says what is wrong, with what value, and what to do.
"""

import contextlib
import difflib
import math
import numbers
import os
from collections.abc import Iterable, Sequence

# The memory that a container may take, as it sees it: control groups version 2 and 1.
CONTAINERS = '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'


class RNGRUError(Exception):
    """Base of this project's own exceptions: `except RNGRUError` catches
    every one of them."""


class TextError(RNGRUError, ValueError):
    """The source text can't be trained on: empty, binary, or too short for
    the sequences asked for."""


class WorkDirError(RNGRUError):
    """The working directory can't be used as asked: already taken, not one
    of ours, damaged or too new."""


class CheckpointError(WorkDirError):
    """A checkpoint is missing, damaged, or doesn't fit the model."""


def checkint(name: str, value: object, low: int = 0, high: int | None = None) -> int:
    """`value` as an int within low .. high; else TypeError or ValueError in one sentence."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f'{name} takes a whole number, got {short(value)}')
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ValueError(f'{name} must be {f"at least {low}" if high is None else f"from {low} to {high:,}"}, got {short(value)}')
    return number


def checkreal(name: str, value: object, low: float = -math.inf, high: float = math.inf, islowallowed: bool = True,
              ishighallowed: bool = False) -> float:
    """`value` as a float between low and high, of which each counts as in between where it is allowed; else
    TypeError or ValueError in one sentence."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f'{name} takes a number, got {short(value)}')
    try:
        number = float(value)
    except OverflowError:           # of an int with hundreds of digits
        number = -math.inf if value < 0 else math.inf
    if not (low < number < high or number == low and islowallowed or number == high and ishighallowed):
        wanted = f'{"at least" if islowallowed else "more than"} {low}' + (
            f' and {"at most" if ishighallowed else "below"} {high}' if high < math.inf else ' and finite')
        raise ValueError(f'{name} must be {wanted}, got {number}')
    return number


def checkbool(name: str, value: object) -> bool:
    """`value` as a bool; else TypeError in one sentence."""
    if type(value).__name__ not in ('bool', 'bool_'):      # NumPy's too
        raise TypeError(f'{name} takes True or False, got {short(value)}')
    return bool(value)


def checktext(name: str, value: object) -> str:
    """`value`, a str of at least one character; else TypeError or ValueError in one sentence."""
    if not isinstance(value, str):
        raise TypeError(f'{name} takes a str, got {short(value)}')
    if not value:
        raise ValueError(f'{name} is empty: give at least one character')
    return value


def checkpath(name: str, value: object) -> str:
    """`value`, a str or a path, as a str with ~ expanded; else TypeError or ValueError in one sentence."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f'{name} takes a path, got {short(value)}')
    path = os.fsdecode(value)
    if not path or '\0' in path:
        raise ValueError(f'{name} takes a path, got {short(path)}')
    return os.path.expanduser(path)


def checkchoice(name: str, value: object, choices: Sequence[str]) -> str:
    """`value` if it is one of the strings `choices`; TypeError or ValueError names these, and the nearest."""
    if not isinstance(value, str):
        raise TypeError(f'{name} takes one of {", ".join(map(repr, choices))}, got {short(value)}')
    if value not in choices:
        raise ValueError(f'{name} takes one of {", ".join(map(repr, choices))}, got {short(value)}{nearest(value.lower(), choices)}')
    return str(value)


def nearest(name: object, names: Iterable[str]) -> str:
    """', did you mean ...?' with the one of `names` nearest to `name`, or '' where none is near."""
    near = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f', did you mean {near[0]}?' if near else ''


def checkmemory(what: str, needed: float, advice: str) -> None:
    """MemoryError, in one sentence with the advice, where `what` takes more bytes than this machine or container has."""
    memory = _memory()
    if needed > memory:
        raise MemoryError(f'{what} takes about {_gigabytes(needed)}, and this machine has {_gigabytes(memory)}: {advice}')


def _memory():
    """Bytes of memory that this machine has, or its container where that has less."""
    limits = []
    for path in CONTAINERS:
        with contextlib.suppress(OSError, ValueError):              # 'max': no limit
            with open(path) as file:
                limits.append(int(file.read()))
    if hasattr(os, 'sysconf'):                                      # not Windows
        limits.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    return min(limits, default=math.inf)


def _gigabytes(size):
    return f'{size / 1e9:,.{int(size < 1e10)}f} GB'


def short(value: object) -> str:
    """`repr(value)`, however long, in one line of at most 80 characters."""
    try:
        text = ' '.join(line.strip() for line in repr(value).splitlines())
    except ValueError:              # Python refuses to write out an int of thousands of digits
        return 'a number of thousands of digits'
    return text if len(text) <= 80 else text[:60] + ' ...'


def reason(error: BaseException) -> str:
    """What another library's exception says, as a short phrase within a sentence."""
    return ' '.join((getattr(error, 'strerror', None) or str(error)).split())[:120].rstrip('.') or type(error).__name__


def sentence(error: BaseException) -> str:
    """What an exception says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return ': '.join(filter(None, (error.filename and str(error.filename), error.strerror)))
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return ' '.join(text.split()) or ('there is not enough memory' if isinstance(error, MemoryError) else type(error).__name__)
