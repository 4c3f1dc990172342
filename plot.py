"""Training and validation losses as a picture, by matplotlib, which is only needed here: pip install matplotlib."""

import io
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

import report
from errors import checkbool, checkpath, short
from history import Table, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT = 'training.png'                    # where there is no display to show it on
SUFFIXES = ('.png', '.svg', '.pdf')
SIZE, DOTS = (9, 4), 100                    # inches, and dots per inch: 900 x 400
LINES = 1000                                # a line of more points is drawn as the lowest and the highest of each of so many parts

# Okabe and Ito (2008), Color Universal Design: told apart by colour-blind readers too. Its yellow is too pale for lines.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')


def plot(histories: str | os.PathLike | Table | Sequence[str | os.PathLike | Table], path: str | os.PathLike | None = None, *,
         logx: bool = False) -> 'Figure':
    """Draw training and validation losses over the characters seen and over
    the time of training; the matplotlib Figure.

        plot('book')            # a working directory
        # several, in one picture
        plot(['small', 'large'], 'comparison.svg')

    histories  a working directory, its history file or history.Table, or
               a list of these, each with its colour and its directory's
               name
    path       .png, .svg or .pdf file to write, replacing what is there;
               None: show it, or without a display write training.png into
               the current directory, and say so
    logx       logarithmic x axes

    Pale: each step's loss. The line: its running mean over a fiftieth of
    the steps, at most 1,000. Points: validations, the lowest one ringed
    and told. The left scale is in nats per character, the right one in
    bits. The first fall from the untrained loss runs out at the top, but
    not with logx.
    Raises ImportError without matplotlib, ValueError for a history
    without rows and for another kind of file, and as `history.read` does.
    """
    tables = [_table(each) for each in (histories if isinstance(histories, (list, tuple)) else [histories])]
    logx = checkbool('logx', logx)
    if path is not None:
        path = checkpath('path', path)
        if os.path.splitext(path)[1].lower() not in SUFFIXES:
            raise ValueError(f'path takes a name that ends in {", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got {short(path)}')
    if not tables:
        raise ValueError('histories is an empty list: name at least one working directory')
    for table, label in zip(tables, _labels(tables)):
        if not np.isfinite(table['loss']).any():
            raise ValueError(f'the history of {label} holds no losses yet: train first')
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'plots need matplotlib ({error}): install it with  {sys.executable} -m pip install matplotlib') from error
    with matplotlib.rc_context(STYLE):
        if path is None:
            from matplotlib import pyplot
            figure = pyplot.figure(figsize=SIZE, dpi=DOTS, layout='constrained')
        else:
            figure = Figure(SIZE, DOTS, layout='constrained')       # of no window, whatever the backend
        _draw(figure, tables, logx)
        if path is not None:
            _save(figure, path)
        elif pyplot.get_backend().lower() in ('agg', 'cairo', 'pdf', 'pgf', 'ps', 'svg', 'template'):
            _save(figure, DEFAULT)
            pyplot.close(figure)
            report.say(f'No display here: the plot is in {os.path.abspath(DEFAULT)}')
        else:
            pyplot.show()
            if 'inline' in pyplot.get_backend():
                _shownonce(figure)
    return figure


STYLE = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': '#888888', 'axes.linewidth': 0.8,
         'xtick.color': '#444444', 'ytick.color': '#444444', 'axes.labelcolor': '#222222', 'text.color': '#222222',
         'axes.grid': True, 'grid.color': '#e6e6e6', 'grid.linewidth': 0.8, 'axes.axisbelow': True,
         'legend.framealpha': 0.85, 'legend.edgecolor': 'none', 'legend.facecolor': 'white',
         'figure.facecolor': 'white', 'axes.facecolor': 'white', 'savefig.facecolor': 'white', 'svg.fonttype': 'none'}


def _table(history):
    return history if isinstance(history, Table) else read(history)


def _labels(tables):
    """The directories' names, with as many of those above as tell them apart."""
    parts = [os.path.abspath(os.path.dirname(table.path)).split(os.sep) if table.path else ['training'] for table in tables]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        labels = [os.sep.join(each[-depth:]) for each in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def _save(figure, path):
    """Draw first, then write: an error leaves the file that is there as it was."""
    image = io.BytesIO()
    figure.savefig(image, format=os.path.splitext(path)[1][1:].lower(), dpi=DOTS)
    with open(path, 'wb') as file:
        file.write(image.getbuffer())


def _shownonce(figure):
    """In a notebook pyplot shows a figure in its cell: as the value of that cell it isn't shown again, as that of a later one it is."""
    from IPython import display, get_ipython
    cell = getattr(get_ipython(), 'execution_count', None)

    def show():
        if get_ipython().execution_count != cell:
            del figure._ipython_display_
            display.display(figure)
    figure._ipython_display_ = show


# ---- drawing

def _draw(figure, tables, logx):
    left, right = figure.subplots(1, 2, sharey=True)
    windows = [max(1, min(1000, len(table.steps) // 50)) for table in tables]
    for axes, column, (scale, unit) in ((left, 'characters', _counts(tables)), (right, 'seconds', _times(tables))):
        for i, (table, window) in enumerate(zip(tables, windows)):
            _curves(axes, table, column, scale, window, COLOURS[i % len(COLOURS)])
        axes.set_xlabel(unit)
        if logx:
            axes.set_xscale('log')
        axes.margins(x=0.02)
    left.set_ylim(*_limits(tables, windows, logx))
    left.set_ylabel('loss, nats per character')
    bits = right.secondary_yaxis('right', functions=(lambda nats: nats / math.log(2), lambda bits: bits * math.log(2)))
    bits.set_ylabel('bits per character')
    bits.spines['right'].set_visible(True)
    if len(tables) == 1:
        left.set_title(_labels(tables)[0], loc='left', fontsize='medium', fontweight='bold')
    _legend(right, tables, _labels(tables), windows)


def _curves(axes, table, column, scale, window, colour):
    """One history's losses over a column, of which `scale` make one of the axis's unit."""
    steps, validations = table.steps, table.validations
    x, y = _finite(steps[column] / scale, steps['loss'])
    if len(x):
        axes.plot(*_thinned(x, y), color=colour, alpha=0.25, linewidth=0.6, solid_joinstyle='bevel', zorder=1)
        axes.plot(*_thinned(x, _smoothed(y, window)), color=colour, linewidth=1.5, marker='.' if len(x) == 1 else None, zorder=2)
    x, y = _finite(validations[column] / scale, validations['loss'])
    if len(x):
        axes.plot(x, y, color=colour, linewidth=0.8, linestyle='--', marker='o', markersize=4 if len(x) < 60 else 2.5,
                  markeredgecolor='white', markeredgewidth=0.6, zorder=3)
        best = table.best
        at = best[column] / scale, best['loss']
        if math.isfinite(at[0]):
            axes.plot(*at, color=colour, marker='o', markersize=9, markerfacecolor='none', markeredgewidth=1.3, zorder=4)
            atend = at[0] > 0.9 * np.nan_to_num(table[column]).max() / scale        # so that the number stays within the axes
            axes.annotate(f"{best['loss']:.3f}", at, (5 if atend else 0, 9), textcoords='offset points', ha='right' if atend else 'center',
                          va='bottom', color=colour, weight='bold', zorder=5,
                          bbox={'boxstyle': 'round,pad=0.15', 'facecolor': 'white', 'alpha': 0.8, 'edgecolor': 'none'})


def _finite(x, y):
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good]


def _smoothed(y, window):
    """The mean of the `window` values around each; at the beginning, where losses fall fast, of fewer; at the end of those there are."""
    sums = np.concatenate([[0], np.cumsum(y)])
    at = np.arange(len(y))
    reach = np.minimum(window // 2, at // 4)
    end = np.minimum(at + reach + 1, len(y))
    return (sums[end] - sums[at - reach]) / (end - at + reach)


def _thinned(x, y):
    """A line's points; of very many, the lowest and the highest of each of LINES stretches, and more at the beginning, for a logarithmic
    axis: it looks the same."""
    size = len(y) // LINES
    if size < 4:
        return x, y
    parts = y[:size * LINES].reshape(LINES, size)
    chosen = np.stack([parts.argmin(1), parts.argmax(1)], 1) + np.arange(LINES)[:, None] * size
    chosen = np.union1d(chosen, np.geomspace(1, len(y), LINES).astype(int) - 1)
    return x[chosen], y[chosen]


def _limits(tables, windows, logx):
    """(low, high) of the losses shown: all of them but the first fall, which would flatten the rest."""
    shown = []
    for table, window in zip(tables, windows):
        losses = table.steps['loss'][np.isfinite(table.steps['loss'])]
        validations = table.validations
        skip = 0 if logx else len(losses) // 50
        raw = losses[skip:]
        if len(raw):
            shown += [_smoothed(losses, window)[skip:].max(), *np.quantile(raw, [0.002, 0.998])]
        late = validations['characters'] >= (0 if logx else 0.02) * table['characters'].max()
        shown += [*validations['loss'][late & np.isfinite(validations['loss'])], *([table.best['loss']] if table.best else [])]
    low, high = min(shown), max(shown)
    room = 0.06 * (high - low) or 0.1
    return max(low - room, 0) if low >= 0 else low - room, high + room


def _counts(tables):
    """(how many characters make one of the axis's unit, its label)."""
    most = max(table['characters'].max() for table in tables)
    for size, name in ((1e9, 'billions of characters'), (1e6, 'millions of characters'), (1e3, 'thousands of characters')):
        if most >= size:
            return size, f'read in training, {name}'
    return 1, 'read in training, characters'


def _times(tables):
    """(how many seconds make one of the axis's unit, its label)."""
    most = max(np.nan_to_num(table['seconds']).max() for table in tables)
    for size, name in ((86400, 'days'), (3600, 'hours'), (60, 'minutes')):
        if most >= 2 * size:
            return size, f'time in training, {name}'
    return 1, 'time in training, seconds'


def _legend(axes, tables, labels, windows):
    """What the lines mean, in the upper right corner, which falling losses leave free."""
    from matplotlib.lines import Line2D
    several = len(tables) > 1
    colour = '#666666' if several else COLOURS[0]
    same = f', mean of {windows[0]:,} steps' if len(set(windows)) == 1 and windows[0] > 1 else ', running mean' if max(windows) > 1 else ''
    entries = []
    if any(len(table.steps) for table in tables):
        entries.append((Line2D([], [], color=colour, linewidth=1.5), f'training{same}'))
    if any(len(table.validations) for table in tables):
        best = '' if several or not tables[0].best else f', best {_both(tables[0].best["loss"])}'
        entries.append((Line2D([], [], color=colour, linewidth=0.8, linestyle='--', marker='o', markersize=4), f'validation{best}'))
    if several:
        for i, (table, label) in enumerate(zip(tables, labels)):
            best = f', best {_both(table.best["loss"])}' if table.best else ''
            entries.append((Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=3), f'{label}{best}'))
    axes.legend(*zip(*entries), loc='upper right', handlelength=1.8)


def _both(nats):
    return f'{nats:.3f} nats ({nats / math.log(2):.3f} bits)'
