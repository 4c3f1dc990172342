"""The one place through which the library speaks to a person: messages and progress.

`report.verbose = False` silences everything; `with report.quiet(True):` does so for a while. `report.messages = 'stderr'` sends all of it
to standard error, so that standard output holds what was asked for only.
"""

import contextlib
import math
import os
import sys
import time
import warnings

from tqdm import tqdm

verbose = True
messages = 'stdout'         # where messages and progress go: that name in `sys`, looked up each time


@contextlib.contextmanager
def quiet(silent=True):
    """Within the `with` block say nothing, where `silent`."""
    global verbose
    before = verbose
    verbose = verbose and not silent
    try:
        yield
    finally:
        verbose = before


def say(text=''):
    """Print a message for a person, above a progress bar if one is shown."""
    file = getattr(sys, messages)                   # None: closed before Python began, or a program without a console
    if verbose and file is not None:
        with contextlib.suppress(OSError, ValueError):  # whoever listened has gone (a closed pipe or terminal): work goes on
            tqdm.write(printable(text, file), file=file)
            file.flush()


def warn(text):
    """Say what must not go unnoticed: where messages are silenced, as a UserWarning."""
    if verbose:
        say(text)
    else:
        warnings.warn(text, stacklevel=3)


def alarm(text):
    """Say on standard error, whatever is silenced, why the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        tqdm.write(printable(text, sys.stderr), file=sys.stderr)
        sys.stderr.flush()


def write(stream):
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


def printable(text, file):
    """`text` with a question mark for each character that `file` can't show."""
    encoding = getattr(file, 'encoding', None) or 'utf-8'
    return text.encode(encoding, 'replace').decode(encoding)


class Progress:
    """How far a round of training is: a bar on a terminal, plain lines elsewhere (about ten a round, at most one in 5 seconds)."""

    def __init__(self, title, steps, unit):
        """steps: how many there are; unit: characters in a step."""
        self.title, self.steps, self.unit = title, steps, unit
        self.done, self.start, self.line = 0, time.monotonic(), time.monotonic()
        self.bar = None
        if verbose and _onterminal():
            self.bar = tqdm(total=steps * unit, desc=title, unit='char', unit_scale=True, file=getattr(sys, messages), leave=False,
                            dynamic_ncols=True, bar_format='{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {remaining} left{postfix}')

    def step(self, loss, count=1):
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

    def close(self):
        """Take the bar away."""
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.close()


def _onterminal():
    """Whether messages go to a terminal that has a width: some programs' terminals have none, and a bar would show nothing there."""
    try:
        file = getattr(sys, messages)
        return file.isatty() and os.get_terminal_size(file.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):       # IDLE's shell, say, is a terminal without a file
        return False


def counted(number, thing):
    """'3 rounds', '1 round'."""
    return f'{number:,} {thing}{"s" * (number != 1)}'


def lossline(loss):
    """'1.5432 nats/char (2.2264 bits)'."""
    return f'{loss:.4f} nats/char ({loss / math.log(2):.4f} bits)'
