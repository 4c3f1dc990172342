"""What a training has done, step by step: history.csv in the working directory, and the table that is read from it.

    History.add, History.flush      write it, one line a step and one a validation
    read                            the Table of it

    pandas.read_csv('book/history.csv')     # is all that pandas needs

The file only grows. Steps that were made again, after a kill or from an earlier checkpoint, stand in it twice; `read` leaves out those
that the later ones replace.
"""

import csv
import io
import math
import os
import stat
import time
from collections import deque
from collections.abc import KeysView
from datetime import datetime, timezone
from typing import overload

import numpy as np

from errors import WorkDirError, checkpath, reason
from storage import syncdir

FILE = 'history.csv'
FORMAT = 1                      # in every row; a row with a higher one was written by a newer RN-GRU
MAXROWS = 100_000               # kept in memory while the disk refuses, about 40 MB; of more, the newest
NEWEST = 1 << 24                # bytes at the file's end in which `rounds` looks
TAIL = 4096                     # bytes read at a time where the file's last line end is looked for

# Each column, what it holds in the file, and how it is written: a loss as exactly as float32 is.
COLUMNS = {
    'time': ('time', None),                     # UTC, ISO 8601
    'kind': ('word', None),                     # 'step' or 'validation'
    'updates': ('count', 'd'),                  # of the parameters so far: a step's number, or of the last step before a validation
    'epoch': ('count', 'd'),
    'position': ('count', 'd'),
    'characters': ('count', 'd'),               # read in training so far
    'loss': ('number', '.9g'),                  # nats per character: a step's, before its update, or a validation's
    'learnrate': ('number', '.9g'),
    'gradnorm': ('number', '.6g'),              # the gradient's Euclidean norm
    'clipped': ('number', '.6g'),               # share of the gradient's numbers that were clipped, 0 .. 1
    'characters_per_second': ('number', '.6g'),
    'seconds': ('number', '.3f'),               # of training so far, all sessions together
    'format': ('count', 'd'),
}
NEEDED = ('kind', 'updates', 'loss')            # what a file must have to be a history


class History:
    """Appends to the file `path`, which it makes where there is none; constructing touches no disk.

    path: of the file, FILE in the working directory. `add` takes a row in memory, in about a microsecond; `flush` writes what was added.
    A last line that a kill has torn is cut off before anything is written behind it. The columns are the file's, so that one
    that was begun by another version stays a table.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        self.rows = deque(maxlen=MAXROWS)       # added and not written yet
        self.end = None                         # the file's size behind what was written, and its columns
        self.columns: list[str] = []

    def add(self, kind: str, updates: int, epoch: int, position: int, characters: int, loss: float, learnrate: float | None,
            gradnorm: float | None = None, clipped: float | None = None, characters_per_second: float | None = None,
            seconds: float | None = None) -> None:
        """Take a row, whose meaning COLUMNS tells, with the time it is now; None where a number is not known."""
        self.rows.append((time.time(), kind, updates, epoch, position, characters, loss, learnrate, gradnorm, clipped,
                          characters_per_second, seconds, FORMAT))

    def flush(self, sync: bool = False) -> None:
        """Write the rows that were added, whole lines in one write; with `sync`, they then last through a power loss.

        Raises OSError where the disk refuses or the file is a link, a pipe or a directory, WorkDirError where it holds something else
        than a history; then the file is as it was and the rows are kept for the next `flush` (the newest MAXROWS of them).
        """
        if not self.rows and (not sync or self.end is None):
            return
        isnew = not os.path.lexists(self.path)
        handle = _opened(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(handle).st_size
            if self.end is None or size != self.end:        # the first time, or somebody else was here
                size = self._mend(handle, size)
            lines = [] if size else [','.join(self.columns) + '\n']
            lines += [_line(row, self.columns) for row in self.rows]
            data = ''.join(lines).encode()
            try:
                written = os.write(handle, data) if data else 0
                while written < len(data):      # a disk that has just filled takes a part, and says why at the next try
                    written += os.write(handle, data[written:])
            except BaseException:
                self.end = None
                os.ftruncate(handle, size)
                raise
            self.end = size + len(data)
            self.rows.clear()
            if sync:
                os.fsync(handle)
                if isnew:
                    syncdir(os.path.dirname(self.path) or '.')
        finally:
            os.close(handle)

    def _mend(self, handle, size):
        """Cut off what stands behind the last line end, find the columns, and give the size that remains."""
        with os.fdopen(os.dup(handle), 'rb') as file:
            head, end = file.readline(TAIL), _lastline(file, size)
        if end == 0:
            self.columns = list(COLUMNS)
            _checktorn(self.path, head)
        else:
            self.columns = _columns(self.path, head)
        if end < size:
            os.ftruncate(handle, end)
        return end


def _opened(path, flags):
    """An open file's handle; OSError where `path` is no regular file: a named pipe would wait for ever, a link lead elsewhere."""
    if os.path.islink(path):
        raise OSError(f"'{path}' is a link, not a file")
    handle = os.open(path, flags | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0), 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"'{path}' is no regular file")
    return handle


def _lastline(file, size):
    """Where the file's last whole line ends."""
    end = size
    while end:
        start = max(0, end - TAIL)
        file.seek(start)
        found = file.read(end - start).rfind(b'\n')
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _line(row, columns):
    """A row as a line of the file; columns that this version doesn't know stay empty."""
    values = dict(zip(COLUMNS, row))
    texts = []
    for name in columns:
        value = values.get(name)
        if value is None:
            texts.append('')
        elif name == 'time':
            texts.append(datetime.fromtimestamp(value, timezone.utc).isoformat(timespec='milliseconds').replace('+00:00', 'Z'))
        else:
            texts.append(value if name == 'kind' else format(value, COLUMNS[name][1]))
    return ','.join(texts) + '\n'


def _checktorn(path, data):
    """WorkDirError where a file without any line end is more than our first line, torn."""
    if not ','.join(COLUMNS).encode().startswith(data.rstrip(b'\0')):
        raise WorkDirError(f"'{path}' holds no history of a training: move it away")


def _columns(path, head):
    """The names in a file's first line."""
    names = head.removeprefix(b'\xef\xbb\xbf').decode('utf-8', 'replace').strip().split(',')
    names = [name.strip('"') for name in names]         # spreadsheets may add quotes
    if not set(NEEDED) <= set(names) or len(set(names)) < len(names):
        raise WorkDirError(f"'{path}' holds no history of a training: move it away")
    return names


# ---- reading

def read(path: str | os.PathLike) -> 'Table':
    """The Table of a history: `path` is a file's or that of the working directory which holds it.

    What a kill or a write under way has left of a last line is passed over. Raises FileNotFoundError where there is none, WorkDirError
    where it is damaged, no history, or was written by a newer RN-GRU.
    """
    path = checkpath('path', path)
    if os.path.isdir(path):
        path = os.path.join(path, FILE)
    try:
        with os.fdopen(_opened(path, os.O_RDONLY), 'rb') as file:
            data = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no history '{path}': training writes it") from None
    except OSError as error:
        raise WorkDirError(f"'{path}' cannot be read ({reason(error)}): put a good copy in its place") from error
    end = data.rfind(b'\n') + 1
    if end == 0:
        _checktorn(path, data)
        return empty(path)
    names = _columns(path, data[:data.index(b'\n')])
    try:
        texts = _texts(data[:end].decode('utf-8-sig'), names)
        newest = _array('count', texts['format']).max(initial=FORMAT)
        if newest > FORMAT:
            raise WorkDirError(f"'{path}' was written by a newer RN-GRU (format {newest}, this one reads up to {FORMAT}): "
                               'update RN-GRU to read it')
        columns = {name: _array(kind, texts[name]) for name, (kind, _) in COLUMNS.items()}
    except (ValueError, OverflowError, csv.Error) as error:
        raise WorkDirError(f"'{path}' is damaged ({reason(error)}): put a good copy in its place or move it away") from error
    return Table(columns, path)[_standing(columns['kind'], columns['updates'])]


def empty(path: str | None = None) -> 'Table':
    """The Table of a history without rows."""
    return Table({name: _array(kind, ()) for name, (kind, _) in COLUMNS.items()}, path)


def rounds(path: str | os.PathLike, count: int, most: int = 30) -> list[tuple]:
    """The last validations, `most` of them, oldest first: (updates, position, loss, losses of the last `count` steps before, the last
    one's learning rate) of each that stands, in milliseconds however long the history in the working directory `path` is.

    Raises OSError or WorkDirError as `read` does.
    """
    path = os.path.join(path, FILE)
    with os.fdopen(_opened(path, os.O_RDONLY), 'rb') as file:
        head = file.readline(TAIL)
        names = _columns(path, head)
        start = max(len(head), os.fstat(file.fileno()).st_size - NEWEST)
        file.seek(start)
        data = file.read()
    try:
        kind, updates, position, loss, learnrate = map(names.index, ('kind', 'updates', 'position', 'loss', 'learnrate'))
        found, end, least = [], len(data), math.inf
        while len(found) < most and (end := data.rfind(b',validation,', 0, end)) >= 0:
            begin = data.rfind(b'\n', 0, end) + 1
            row = data[begin:data.find(b'\n', end)].split(b',')
            before = max(data.rfind(b',validation,', 0, begin), begin - 200 * count, 0)
            lines = [line.split(b',') for line in data[before:begin].split(b'\n')[-count - 1:-1]]
            steps = [line for line in lines if len(line) == len(names) and line[kind] == b'step']
            if int(row[updates]) < least:           # else later steps have replaced it
                found.append((int(row[updates]), int(row[position]), float(row[loss]), [float(line[loss]) for line in steps],
                              float(steps[-1][learnrate]) if steps else math.nan))
            least = min([least, int(row[updates]), *(int(line[updates]) for line in steps)])
        return found[::-1]
    except (ValueError, IndexError) as error:
        raise WorkDirError(f"'{path}' is damaged ({reason(error)}): put a good copy in its place or move it away") from error


def latest(path: str | os.PathLike) -> tuple[int, float] | None:
    """(updates, loss) of the last whole row in the history of the working directory `path`, whose end alone is read; None without any.

    Raises OSError or WorkDirError as `read` does.
    """
    path = os.path.join(path, FILE)
    with os.fdopen(_opened(path, os.O_RDONLY), 'rb') as file:
        head = file.readline(TAIL)
        file.seek(max(len(head), os.fstat(file.fileno()).st_size - TAIL))
        rows = file.read().split(b'\n')[:-1]
    if not rows:
        return None
    names, row = _columns(path, head), rows[-1].split(b',')
    try:
        return int(row[names.index('updates')]), float(row[names.index('loss')])
    except (ValueError, IndexError) as error:
        raise WorkDirError(f"'{path}' is damaged ({reason(error)}): put a good copy in its place or move it away") from error


def _texts(text, names):
    """A dict of column name -> what a file says there, a sequence of str; columns that it lacks are filled."""
    rows = csv.reader(io.StringIO(text, newline=''))
    next(rows)
    found = []
    for row in rows:
        if len(row) != len(names) and row:
            raise ValueError(f'line {rows.line_num} has {len(row)} columns, not {len(names)}')
        if row:
            found.append(row)
    missing = {'time': '', 'word': '', 'number': '', 'count': '0'}
    columns = {name: [missing[kind]] * len(found) for name, (kind, _) in COLUMNS.items()}
    columns.update(zip(names, zip(*found)))
    return columns


def _array(kind, texts):
    """A column's array of its texts; ValueError or OverflowError where one isn't of that kind."""
    if kind == 'word':
        return np.array(texts, str)
    if kind == 'time':
        return np.array([_milliseconds(text) for text in texts], np.int64).astype('datetime64[ms]')
    if kind == 'number':
        return np.array([float(text) if text else math.nan for text in texts], np.float64)
    values = np.array([int(text) for text in texts], np.int64)
    if values.min(initial=0) < 0:
        raise ValueError(f'{values.min()} is no count')
    return values


def _milliseconds(text):
    """Of an ISO 8601 time, since 1970, or what NumPy takes for no time."""
    if not text:
        return np.iinfo(np.int64).min
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1000)


def _standing(kind, updates):
    """Which rows stand, a mask: a step replaces all earlier rows of its number of updates or more, a validation those of its own."""
    most = np.iinfo(np.int64).max
    steps = np.append(np.where(kind == 'step', updates, most)[1:], most)[:len(updates)]
    standing = updates < np.minimum.accumulate(steps[::-1])[::-1]
    at = np.flatnonzero(standing & (kind == 'validation'))[::-1]            # the newest first, whom np.unique prefers
    standing[np.setdiff1d(at, at[np.unique(updates[at], return_index=True)[1]])] = False
    return standing


class Table:
    """What a history holds: columns, as arrays, and rows, in the order in
    which they came.

        table['loss']       a column, an array with a number for each
                            row; COLUMNS lists them
        table[-1]           a row, a dict; its 'time' is an aware datetime
        table.steps         the Table of the training steps alone
        table.validations   that of the validations
        table.best          the row of the lowest validation loss, or None
        pandas.DataFrame(dict(table))

    `time` is datetime64[ms], UTC; `kind` is str; updates, epoch,
    position, characters and format are int64, the others float64, NaN
    where nothing is known. The shell shows it as a table of the last
    validations.
    """

    def __init__(self, columns: dict[str, np.ndarray], path: str | None = None) -> None:
        """columns: a dict of name -> array, all of one length; path: of the file
        that they come from, if any."""
        self.columns, self.path = columns, path

    def __len__(self) -> int:
        return len(self.columns['updates'])

    def keys(self) -> KeysView[str]:
        """The columns' names."""
        return self.columns.keys()

    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    @overload
    def __getitem__(self, key: int | np.integer) -> dict: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray) -> 'Table': ...
    def __getitem__(self, key):
        """A column by its name, a row by its number, or a Table of the rows that
        a slice, a mask or an array of numbers chooses."""
        if isinstance(key, str):
            return self.columns[key]
        if isinstance(key, (int, np.integer)):
            if not -len(self) <= key < len(self):
                raise IndexError(f'row {key} of {len(self)}')
            row = {name: column[key].item() for name, column in self.columns.items()}
            return {**row, 'time': row['time'] and row['time'].replace(tzinfo=timezone.utc)}
        return Table({name: column[key] for name, column in self.columns.items()}, self.path)

    @property
    def steps(self) -> 'Table':
        """The Table of the training steps."""
        return self[self['kind'] == 'step']

    @property
    def validations(self) -> 'Table':
        """The Table of the validations."""
        return self[self['kind'] == 'validation']

    @property
    def best(self) -> dict | None:
        """The validation with the lowest loss, a row, the newest of equals; None
        where there is none."""
        validations = self.validations
        finite = np.flatnonzero(np.isfinite(validations['loss']))[::-1]
        return validations[finite[np.argmin(validations['loss'][finite])]] if len(finite) else None

    def __repr__(self) -> str:
        if not len(self):
            return 'No steps yet.'
        steps, validations, best = self.steps, self.validations, self.best
        lines = [f"{self['updates'].max():,} updates, {self['characters'].max():,} characters, "
                 f"{duration(np.nan_to_num(self['seconds']).max())} of training."]
        if not len(validations):
            return '\n'.join(lines + [f"No validation yet; training loss {_mean(steps['loss'][-100:]):.4f} nats/char "
                                      f'over the last {min(len(steps), 100)} steps.'])
        lines.append('   updates  epoch  position   characters  training time  training validation')
        shown = range(max(0, len(validations) - 10), len(validations))
        if shown[0]:
            lines.append('       ...')
        for i in shown:
            row = validations[i]
            before = validations['updates'][i - 1] if i else 0
            new = steps['loss'][(steps['updates'] > before) & (steps['updates'] <= row['updates'])]
            lines.append(f"{row['updates']:10} {row['epoch']:6} {row['position']:9} {row['characters']:12} {duration(row['seconds']):>14} "
                         f"{_mean(new[-100:]):9.4f} {row['loss']:10.4f}{'*' if row['updates'] == (best and best['updates']) else ''}")
        return '\n'.join(lines + ['Loss in nats/char; training: mean of the 100 steps before; * the best.'])


def _mean(losses):
    return float(np.mean(losses)) if len(losses) else math.nan


def duration(seconds: float) -> str:
    """'1 h 02 min', '12 min 30 s' or '4.1 s'."""
    if not math.isfinite(seconds):
        return ''
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f'{hours:,} h {minutes % 60:02} min' if hours else f'{minutes} min {int(seconds % 60):02} s'
