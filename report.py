"""The one place through which the library speaks to a person: messages and progress.

`report.verbose = False` silences everything; `with report.quiet(True):` does so for a while. `report.messages = 'stderr'` sends all of it
to standard error, so that standard output holds what was asked for only.
"""

import contextlib
import math
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Container, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

import terminal
from errors import sentence

if TYPE_CHECKING:
    from generate import Stream

verbose = True
COMMANDS = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f]')      # control characters but tab and line feed
messages = 'stdout'         # where messages and progress go: that name in `sys`, looked up each time


@contextlib.contextmanager
def quiet(silent: bool = True) -> Iterator[None]:
    """Within the `with` block say nothing, where `silent`."""
    global verbose
    before = verbose
    verbose = verbose and not silent
    try:
        yield
    finally:
        verbose = before


def say(text: str = '', isfolded: bool = True) -> None:
    """Print a message for a person, above a progress bar if one is shown; on a terminal, lines that are too long for it are broken at
    blanks, but not where `isfolded` is False: a text that a model wrote stays as it is."""
    if verbose:
        _put(text, getattr(sys, messages, None), isfolded)


def warn(text: str) -> None:
    """Say what must not go unnoticed: where messages are silenced, as a UserWarning."""
    if verbose:
        say(text)
    else:
        warnings.warn(text, stacklevel=3)


def alarm(text: str) -> None:
    """Say on standard error, whatever is silenced, why the process ends."""
    _put(text, sys.stderr)


def _put(text, file, isfolded=True):
    if file is None:                                    # closed before Python began, or a program without a console
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):  # whoever listened has gone (a closed pipe or terminal): work goes on
        columns = isfolded and _columns(file)
        tqdm.write(printable(terminal.folded(text, columns) if columns else text, file), file=file)
        file.flush()


def complain(ours: Container[str], kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of the interactive shell, where `ours`, the library's files, are given. Of wrong use of the library it says the
    sentence, and where in functions of the person's own it came about; all else is Python's to tell. `traceback.print_last()` tells
    everything, of both (but in Python 3.12.1 and 3.13.0, say, where it never tells anything)."""
    frames = traceback.extract_tb(trace)
    inside = [frame.filename in ours for frame in frames]
    # On purpose: the last line is one of ours that says so. An error that came about is a defect, and its whole traceback wanted.
    if not issubclass(kind, Exception) or not inside or not inside[-1] or not (frames[-1].line or '').startswith('raise '):
        return sys.__excepthook__(kind, error, trace)
    theirs = frames[:inside.index(True)]        # below these, Python's own modules may stand between ours
    lines = traceback.format_list(theirs) if len(theirs) > 1 else []            # one: what was typed
    alarm(''.join(['Traceback (most recent call last):\n'] * bool(lines) + lines) + f'{kind.__name__}: {sentence(error)}')


def write(stream: 'Stream') -> bool:
    """Print the pieces of a text that is being written, or of several, one text after the other; Ctrl-C ends it, and keeps what there is.

    Gives whether it came to the end of the text, without a Ctrl-C.
    """
    kept, iswhole = [], True                    # kept: of several texts, the pieces of those behind the first

    def put(text):
        print(printable(text, sys.stdout), end='', flush=True)
    try:
        for piece in stream:
            if stream.islist:
                if not kept:
                    put(f'--- 1 of {len(piece)} ---\n')
                kept.append(piece)
            put(piece[0] if stream.islist else piece)
    except KeyboardInterrupt:
        iswhole = False
    finally:                                    # of a broken-off text too, whatever broke it off
        put('\n')
        for i, pieces in enumerate(list(zip(*kept))[1:], 2):
            put(f'--- {i} of {len(kept[0])} ---\n{"".join(pieces)}\n')
    return iswhole


def printable(text: str, file: TextIO) -> str:
    """`text` with a question mark for each character that `file` can't show, and on a terminal with a sign for each that would command it:
    a model may write the escape sequences of the text that it learnt, and broken ones."""
    encoding = getattr(file, 'encoding', None) or 'utf-8'
    if terminal.isterminal(file):
        text = COMMANDS.sub(lambda found: terminal.glyph(found[0])[0], text)
    return text.encode(encoding, 'replace').decode(encoding)


class Progress:
    """How far a round of training is: a bar on a terminal, plain lines elsewhere (about ten a round, at most one in 5 seconds)."""

    def __init__(self, title: str, steps: int, unit: int) -> None:
        """steps: how many there are; unit: characters in a step."""
        self.title, self.steps, self.unit = title, steps, unit
        self.done, self.start, self.line = 0, time.monotonic(), time.monotonic()
        self.bar = None
        if verbose and _columns(getattr(sys, messages, None)):     # a bar would show nothing where there is no width
            self.bar = tqdm(total=steps * unit, desc=title, unit='char', unit_scale=True, file=getattr(sys, messages), leave=False,
                            dynamic_ncols=True, bar_format='{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {remaining} left{postfix}')

    def step(self, loss: float, count: int = 1) -> None:
        """So many more steps are done; `loss`: what to show, nats per character."""
        before, self.done = self.done, self.done + count
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.set_postfix_str(f'loss {loss:.3f}', refresh=False)
                self.bar.update(count * self.unit)
        elif verbose:
            now = time.monotonic()
            if self.done == self.steps or (self.done * 10 // self.steps > before * 10 // self.steps and now - self.line > 5):
                self.line = now
                rate = self.done * self.unit / max(now - self.start, 1e-9)
                left = (self.steps - self.done) * self.unit / rate
                say(f'{self.title}: {self.done}/{self.steps} steps, loss {loss:.3f}, {rate:,.0f} characters/s, {left:.0f} s left')

    def resize(self, title: str, steps: int) -> None:
        """It is called so, and there are so many steps, now."""
        self.title, self.steps = title, steps
        if self.bar is not None:
            self.bar.desc, self.bar.total = title, steps * self.unit

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.close()


def _columns(file):
    """Columns of the terminal that a file is; 0 where it is none, or one without a width, as some programs' are."""
    try:
        return os.get_terminal_size(file.fileno()).columns if terminal.isterminal(file) else 0
    except (AttributeError, OSError, ValueError):       # IDLE's shell, say, is a terminal without a file
        return 0


def counted(number: int, thing: str) -> str:
    """'3 rounds', '1 round'."""
    return f'{number:,} {thing}{"s" * (number != 1)}'


def lossline(loss: float) -> str:
    """'1.5432 nats/char (2.2264 bits)'."""
    return f'{loss:.4f} nats/char ({loss / math.log(2):.4f} bits)'
