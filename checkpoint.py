"""A working directory on the disk: facts, arrays and checkpoints, written so that no crash tears them and read so
that no file runs code.

    <MODELTYPE>-<layers>x<state_size>-state.p      the model's facts            (savefacts, loadfacts)
    <UTC time>-<loss>-model.p                      a checkpoint's facts         (WorkDir.writecheckpoint)
    <UTC time>-<loss>-model.npz                    the same one's arrays        (savearrays, loadarrays)
    .<name>.<host>-<pid>-<random>.tmp              being written, or left over from a kill

Every name inside is relative: the directory may be moved or copied whole.
"""
import contextlib
import errno
import math
import operator
import os
import pathlib
import pickle
import pickletools
import platform
import re
import secrets
import time
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import numpy as np

from errors import CheckpointError, WorkDirError

FORMAT = 1                  # in every file; a file with a higher one was written by a newer RN-GRU
MAXBYTES = 64 * 2**20       # of a facts file: facts are small, so a larger one is not ours
MAXOPS = 2_000_000          # of its pickle's steps, about two seconds' reading
MAXDEPTH = 50               # of containers within containers
TEMPAGE = 24 * 3600.0       # seconds after which no write can still be under way

_SCALARS = (str, int, float, bool, type(None), bytes)


# ---- one file, whole or not at all

_HOST = f'{zlib.crc32(platform.node().encode()):08x}'       # a process id means something on its own machine only
_TEMP = re.compile(r'\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,9})-[0-9a-f]{8}\.tmp')
_writing = set()                                            # names of this process's temporary files in use


class _Staged:
    """A temporary file beside `path`, open as `.file`, that `publish()` turns into `path` in one step.

    Left without `publish()`, or by an exception, the `with` block removes it: `path` is what it was.
    """

    def __init__(self, path):
        self.path = path
        self.temp = path.with_name(f'.{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp')

    def __enter__(self):
        _sweep(self.path.parent)
        _writing.add(self.temp.name)
        self.file = open(self.temp, 'xb')
        return self

    def publish(self):
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.temp, self.path)
        _syncdir(self.path.parent)

    def __exit__(self, *exc):
        try:
            with contextlib.suppress(OSError):      # on a full disk closing fails as writing did
                self.file.close()
            with contextlib.suppress(OSError):      # published, or left for _sweep
                os.unlink(self.temp)
        finally:
            _writing.discard(self.temp.name)


def _syncdir(path):
    """Make the directory's newest names last through a power loss (Windows can't open directories)."""
    if os.name == 'nt':
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):      # some network file systems have no such call
            raise
    finally:
        os.close(handle)


def _sweep(directory):
    """Remove what killed processes left in `directory`: their temporary files, and the arrays they had not published.

    A checkpoint's temporary facts file exists from before its arrays until after them, so that arrays beside such a
    leftover, without facts, are known to be orphans. Arrays without that evidence may be another's: they stay.
    """
    for entry in directory.iterdir():
        match = _TEMP.fullmatch(entry.name)
        if match and _isdead(entry, match['host'], int(match['pid'])):
            with contextlib.suppress(OSError):
                facts = directory / match['name']
                if facts.name.endswith('-model.p') and not facts.exists():
                    facts.with_suffix('.npz').unlink(missing_ok=True)
                entry.unlink()


def _isdead(temp, host, pid):
    """Whether nobody can be writing the temporary file any more."""
    if host == _HOST and pid == os.getpid():
        return temp.name not in _writing
    if host == _HOST and os.name != 'nt':           # on Windows os.kill(pid, 0) would end the process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):            # it lives, as another user's
            pass
    with contextlib.suppress(OSError):
        return time.time() - temp.stat().st_mtime > TEMPAGE
    return False


# ---- facts: a pickle of plain values

def savefacts(path, facts):
    """Write a dict of plain values to the file `path`, which a crash leaves as it was or as it should be.

    facts: dict with str keys; values dict, list, tuple, str, int, float, bool, None, bytes, nested up to 50 deep;
    'format' is added. Raises TypeError naming the key of anything else (NumPy's numbers too), ValueError
    for facts too large to be read back, OSError when the disk refuses.
    """
    data = _dump(facts)
    with _Staged(pathlib.Path(path)) as staged:
        staged.file.write(data)
        staged.publish()


def loadfacts(path):
    """The dict that savefacts wrote to `path`, 'format' included; runs nothing, whatever the file holds.

    Raises WorkDirError when it is damaged, not ours or of a newer format, FileNotFoundError when there is none.
    """
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size <= MAXBYTES else None
    try:
        facts = _undump(data)
        if type(facts) is not dict:
            raise ValueError('it holds no dict')
        _checkformat(path, facts.get('format'), WorkDirError)
    except WorkDirError:
        raise
    except Exception as err:    # MemoryError and RecursionError are among what bad bytes can bring about
        raise WorkDirError(f"'{path}' is damaged or no file of RN-GRU's ({_reason(err)}): "
                           "put a good copy in its place or use another directory") from err
    return facts


def _dump(facts):
    if type(facts) is not dict:
        raise TypeError(f'facts must be a dict, not {type(facts).__name__}')
    data = pickle.dumps({**_plain(facts, '', 0), 'format': FORMAT}, protocol=4)
    _undump(data)               # what couldn't be read is not written
    return data


def _plain(value, where, depth):
    """A copy of `value` in which no container occurs twice: that is what _undump reads."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if depth >= MAXDEPTH:
        raise TypeError(f'facts{where} nests more than {MAXDEPTH} deep, or contains itself')
    if kind in (list, tuple):
        return kind([_plain(item, f'{where}[{i}]', depth + 1) for i, item in enumerate(value)])
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f'facts{where} has the key {key!r} of type {type(key).__name__}: keys must be str')
        return {key: _plain(item, f'{where}[{key!r}]', depth + 1) for key, item in value.items()}
    raise TypeError(f'facts{where} is of type {kind.__module__}.{kind.__qualname__}, not a plain Python value: '
                    'convert it (float, int, str, list) first')


_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
_ARGUMENTS = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT', 'SHORT_BINUNICODE', 'BINUNICODE',
              'BINUNICODE8', 'SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8'}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def _undump(data):
    """The plain value in the pickle `data`; ValueError (or what pickletools raises) for anything else.

    Not pickle.Unpickler: this knows only the steps that _dump's pickles are made of, so there is no class to be
    found, no call to be made, no memo slot to be chosen by the file. Keys are strings (hashing a million nested
    tuples overflows C's stack) and only strings and bytes are used twice, so that the result is a tree, no larger
    than the number of steps.
    """
    if data is None or len(data) > MAXBYTES:
        raise ValueError(f'larger than {MAXBYTES >> 20} MB')
    stack, marks, memo = [], [], []

    def take(n=None):
        start = marks.pop() if n is None else len(stack) - n
        items = stack[max(start, 0):]
        del stack[max(start, 0):]
        if n is not None and len(items) != n:
            raise ValueError('its pickle is broken')
        return items

    for step, (op, arg, at) in enumerate(pickletools.genops(data)):
        name = op.name
        if step > MAXOPS:
            raise ValueError(f'more than {MAXOPS} steps')
        if name in _ARGUMENTS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == 'MEMOIZE':
            memo.append(stack[-1])
        elif name in ('BINGET', 'LONG_BINGET'):
            if type(memo[arg]) not in (str, bytes):
                raise ValueError('its pickle uses a container twice')
            stack.append(memo[arg])
        elif name == 'MARK':
            marks.append(len(stack))
        elif name in ('EMPTY_DICT', 'EMPTY_LIST'):
            stack.append({} if name == 'EMPTY_DICT' else [])
        elif name in ('SETITEM', 'SETITEMS'):
            items = take(2 if name == 'SETITEM' else None)
            keys, values = items[::2], items[1::2]
            if type(stack[-1]) is not dict or len(keys) != len(values) or any(type(key) is not str for key in keys):
                raise ValueError('its pickle is broken')
            stack[-1].update(zip(keys, values))
        elif name in ('APPEND', 'APPENDS'):
            items = take(1 if name == 'APPEND' else None)
            if type(stack[-1]) is not list:
                raise ValueError('its pickle is broken')
            stack[-1].extend(items)
        elif name in _TUPLES or name == 'TUPLE':
            stack.append(tuple(take(_TUPLES.get(name))))
        elif name == 'STOP':
            if at != len(data) - 1 or len(stack) != 1 or marks:
                raise ValueError('its pickle is broken')
        elif name not in ('PROTO', 'FRAME'):
            raise ValueError(f'its pickle asks for more than plain facts: {name}')

    level = stack
    for _ in range(MAXDEPTH + 1):
        level = [item for value in level if type(value) in (dict, list, tuple)
                 for item in (value.values() if type(value) is dict else value)]
    if level:
        raise ValueError(f'more than {MAXDEPTH} containers deep')
    return stack[0]


def _checkformat(path, found, error):
    if type(found) is not int or not 1 <= found < 2**31:
        raise ValueError('it has no format version')
    if found > FORMAT:
        raise error(f"'{path}' was written by a newer RN-GRU (format {found}, this one reads up to {FORMAT}): "
                    "update RN-GRU to load it")


def _reason(err):
    """An exception as a short phrase within a sentence."""
    return (' '.join(str(err).split()) or type(err).__name__)[:120].rstrip('.')


# ---- arrays: an uncompressed .npz

# What NumPy writes for plain numbers. Matched, not evaluated: NumPy's own reader hands the text to Python's parser.
_HEADER = re.compile(rb"\{'descr': '([<>|][biufc]\d{1,2})', 'fortran_order': (True|False), "
                     rb"'shape': \(((?:\d+, ?)*\d*)\), \} *\n")
_CHUNK = 2**22      # bytes


def savearrays(path, arrays):
    """Write a dict of name -> array of numbers as an uncompressed .npz that np.load reads too; crash-safe as savefacts.

    Raises TypeError for an array that isn't of booleans or numbers, ValueError for a name that can't be used.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if type(name) is not str or not name.isidentifier() or name == 'format':
            raise ValueError(f'{name!r} cannot name an array: use another identifier')
        if array.dtype.kind not in 'biufc':
            raise TypeError(f'array {name!r} has the type {array.dtype}: only booleans and numbers are stored')
    with _Staged(pathlib.Path(path)) as staged:
        # As np.savez does it, which on older NumPy leaves the archive open, and Python complaining, where the disk is full.
        with zipfile.ZipFile(staged.file, 'w') as archive:
            for name, array in {'format': np.array(FORMAT, np.int64), **arrays}.items():
                with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        staged.publish()


def loadarrays(path, expected=None):
    """The dict of name -> array that savearrays wrote to `path`.

    expected: dict of name -> (shape, dtype) that the file must hold, no more and no fewer; compared, as the sizes in
    the file are with its length, before memory is taken. Raises CheckpointError when the file is damaged, is of a
    newer format or doesn't hold what is expected, FileNotFoundError when there is none.
    """
    with open(path, 'rb') as file:
        try:
            return _readnpz(path, file, expected)
        except CheckpointError:
            raise
        except Exception as err:    # zipfile's and NumPy's readers raise nearly anything on bad bytes
            raise CheckpointError(f"'{path}' is damaged or no file of RN-GRU's ({_reason(err)}): "
                                  "restore another checkpoint") from err


def _readnpz(path, file, expected):
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix('.npy'): info for info in archive.infolist()}
        # Stored members, none twice, are together no larger than the file: so much memory and no more.
        if (len(members) != len(archive.infolist())
                or any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size
                       for info in members.values())
                or sum(info.file_size for info in members.values()) > os.fstat(file.fileno()).st_size):
            raise ValueError('its table of contents is broken')
        if 'format' not in members:
            raise ValueError('it has no format version')
        _checkformat(path, int(_readmember(path, archive, members.pop('format'), 'format', ((), np.int64))),
                     CheckpointError)
        if expected is not None and members.keys() != expected.keys():
            raise CheckpointError(f"'{path}' does not fit the model: it holds the arrays {', '.join(sorted(members))}, "
                                  f"the model needs {', '.join(sorted(expected))}"[:500])
        return {name: _readmember(path, archive, info, name, expected and expected[name])
                for name, info in members.items()}


def _readmember(path, archive, info, name, expected):
    with archive.open(info) as member:
        head = member.read(10)
        length = int.from_bytes(head[8:], 'little')
        match = _HEADER.fullmatch(member.read(length))
        if head[:8] != b'\x93NUMPY\x01\x00' or not match:
            raise ValueError(f'{name} is no array of numbers')
        shape = tuple(int(n) for n in re.findall(rb'\d+', match[3]))
        stored = np.dtype(match[1].decode())
        dtype = stored.newbyteorder('=')
        if expected is not None and (shape, dtype) != (tuple(expected[0]), np.dtype(expected[1])):
            raise CheckpointError(f"'{path}' does not fit the model: {name} is {shape} {dtype}, the model needs "
                                  f"{tuple(expected[0])} {np.dtype(expected[1])}")
        if math.prod(shape) * stored.itemsize != info.file_size - len(head) - length:
            raise ValueError(f'{name} has another size than it says')
        array = np.empty(shape, stored, order='F' if match[2] == b'True' else 'C')
        data, done = array.reshape(-1, order='A').view(np.uint8), 0
        while chunk := member.read(_CHUNK):     # to the end, where zipfile compares the checksum
            data[done:done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
        if done != data.size:
            raise ValueError(f'{name} is cut short')
        return array.astype(dtype, copy=False)


# ---- the working directory

@dataclass(frozen=True, repr=False)
class Checkpoint:
    """One saved moment of a model's training, as WorkDir.checkpoints() lists it."""
    name: str           # of its facts file, without directory: what restore() takes
    loss: float         # nats per character
    epoch: int
    pos: int            # step within the epoch
    time: datetime      # aware, UTC
    counter: int        # orders a directory's checkpoints, whatever the clock did
    arrays: str         # name of the file of its arrays, beside it
    facts: dict = field(hash=False)     # everything else that was stored with it

    def __repr__(self):
        return f'<Checkpoint {self.name}: loss {self.loss:.4f}, epoch {self.epoch}, position {self.pos}>'


_FIELDS = {'loss': float, 'epoch': int, 'pos': int, 'time': str, 'counter': int, 'arrays': str, 'facts': dict}


def _now():
    return datetime.now(timezone.utc)


def _isbare(name):
    """Whether `name` is a file's name alone, on any system."""
    return name not in ('', '.', '..') and not any(c in '/\\:\0' for c in name)


def _isstate(name):
    return name.endswith('-state.p') and not name.startswith('.')


def _isfacts(name):
    return name.endswith('-model.p') and not name.startswith('.')


class WorkDir:
    """A model's directory. WorkDir(path) only holds the path (str or Path); every method reads the disk anew."""

    def __init__(self, path):
        if not os.fspath(path):
            raise ValueError("the working directory is '': name one")
        self.path = pathlib.Path(os.path.abspath(path))     # so that a later os.chdir() doesn't move it

    def __repr__(self):
        return f'WorkDir({str(self.path)!r})'

    @contextlib.contextmanager
    def create(self, *names):
        """Make or take this directory for a new model: `with WorkDir(path).create('data.npy'): write its files`.

        names: bare names of the files that the block will write besides state and checkpoints. Should the block
        raise, by Ctrl-C too, the disk is put back as it was: these files, state, checkpoints and the directories made
        here are removed, never what was there before. Raises WorkDirError, before anything is written, when the
        directory holds a model or has a file of one of these names, is no directory or can't be written.
        """
        if not all(map(_isbare, names)):
            raise ValueError(f'{names} are not bare file names')
        before, missing = None, []
        try:
            try:
                if self.path.exists():
                    if not self.path.is_dir():
                        raise WorkDirError(f"'{self.path}' is a file: name a directory for the new model")
                    self._refuseused(os.listdir(self.path), names)
                missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
                for directory in reversed(missing):
                    directory.mkdir()
                    _syncdir(directory.parent)
                before = os.listdir(self.path)          # from here on there is something to undo
                with _Staged(self.path / 'probe'):      # whether a file can be made is known by making one
                    pass
            except OSError as err:
                raise WorkDirError(f"'{self.path}' cannot be used as a working directory ({err.strerror or err}): "
                                   "name one that can be written") from err
            yield self
        except BaseException:
            for name in set(os.listdir(self.path)).difference(before) if before is not None else ():
                if missing or self._isours(name, names):
                    with contextlib.suppress(OSError):          # a directory, say: not made here
                        os.unlink(self.path / name)
            for directory in missing:
                with contextlib.suppress(OSError):              # not empty: another's
                    directory.rmdir()
            raise

    def _refuseused(self, found, names):
        if any(map(_isstate, found)):
            raise WorkDirError(f"'{self.path}' already holds a model: ModelState.load({str(self.path)!r}) loads it, "
                               "or name another directory for the new one")
        if any(map(_isfacts, found)):
            raise WorkDirError(f"'{self.path}' holds the checkpoints of a model whose state file is gone: "
                               "name another directory for the new one")
        if taken := [name for name in names if name in found]:
            raise WorkDirError(f"'{self.path}' already has a file {taken[0]!r}: name another directory")

    @staticmethod
    def _isours(name, names):
        temp = _TEMP.fullmatch(name)
        return (name in names or _isstate(name) or name.endswith(('-model.p', '-model.npz'))
                or bool(temp) and temp['host'] == _HOST and int(temp['pid']) == os.getpid())

    def _names(self):
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no directory '{self.path}': check the name, or make a model in it with "
                                    "ModelState.initfromsrcfile()") from None
        except NotADirectoryError:
            raise NotADirectoryError(f"'{self.path}' is a file: name the model's directory") from None

    def statefile(self):
        """Path of the model's state file; WorkDirError for none or several, FileNotFoundError for no directory."""
        found = sorted(filter(_isstate, self._names()))
        if not found:
            raise WorkDirError(f"'{self.path}' holds no model: name the directory of one, or make one with "
                               "ModelState.initfromsrcfile()")
        if len(found) > 1:
            raise WorkDirError(f"'{self.path}' holds {len(found)} models ({', '.join(found)}): "
                               "move all state files but one elsewhere")
        return self.path / found[0]

    def writecheckpoint(self, loss, epoch, pos, facts, arrays):
        """Store a checkpoint and return it; when this returns, it is on the disk for good.

        loss: nats per character; epoch, pos: int; facts: as savefacts takes; arrays: as savearrays takes.
        Its facts file, which appears last and in one step, is what makes it one: until then the directory is as it
        was. Raises TypeError or ValueError for what can't be stored, OSError when the disk refuses.
        """
        if type(facts) is not dict:
            raise TypeError(f'facts must be a dict, not {type(facts).__name__}')
        counter = 1 + max((known.counter for known in self._scan()[0]), default=0)
        stored = {'loss': float(loss), 'epoch': operator.index(epoch), 'pos': operator.index(pos), 'facts': facts}
        short = f'{stored["loss"]:.4f}' if abs(stored['loss']) < 1e6 else f'{stored["loss"]:.4g}'
        if min(stored['epoch'], stored['pos']) < 0:
            raise ValueError(f'epoch {epoch} and position {pos} must be 0 or more')
        when = _now()
        while True:
            stem = f'{when:%Y-%m-%dT%H-%M-%S.%fZ}-{short}-model'
            factspath, arrayspath = self.path / f'{stem}.p', self.path / f'{stem}.npz'
            data = _dump({**stored, 'time': when.isoformat(), 'counter': counter, 'arrays': arrayspath.name})
            when += timedelta(microseconds=1)       # where this name is taken, the clock stood still or went back
            if factspath.exists() or arrayspath.exists():
                continue
            with _Staged(factspath) as staged:      # before the arrays: see _sweep
                staged.file.write(data)
                try:
                    open(arrayspath, 'xb').close()  # takes the name for good
                except FileExistsError:
                    continue
                try:
                    savearrays(arrayspath, arrays)
                    staged.publish()
                except BaseException:
                    if not factspath.exists():
                        with contextlib.suppress(OSError):
                            arrayspath.unlink()
                    raise
            return self._read(factspath.name)

    def checkpoints(self):
        """List of Checkpoint, oldest first. Of one that can't be read a warning tells, by name."""
        found, bad = self._scan()
        for err in bad:
            warnings.warn(str(err), stacklevel=2)
        return found

    def checkpoint(self, name=None):
        """The Checkpoint of that name, as checkpoints() lists it, or the latest.

        Raises CheckpointError when there is none or it is damaged, ValueError when the name has a directory in it.
        """
        if name is None:
            found, bad = self._scan()
            if not found:
                raise bad[-1] if bad else CheckpointError(
                    f"'{self.path}' holds no checkpoint yet: train the model to make one")
            for err in bad:
                warnings.warn(f'{err}; the latest of the others is used', stacklevel=2)
            return found[-1]
        if type(name) is not str:
            raise TypeError(f'a checkpoint is named by a str, the .name of one of checkpoints(), not by {name!r}')
        if not _isbare(name):
            raise ValueError(f'{name!r} is not a bare file name: give the .name of one of checkpoints()')
        if _isfacts(name) and name in self._names():
            return self._read(name)
        names = [known.name for known in reversed(self._scan()[0])]
        older = f' and {len(names) - 10} older' if len(names) > 10 else ''
        raise CheckpointError(f"'{self.path}' has no checkpoint {name!r}: " + (
            f"it has {', '.join(names[:10])}{older}" if names else 'it has none yet'))

    def loadarrays(self, checkpoint, expected=None):
        """The arrays of a Checkpoint; expected and errors as in loadarrays, a missing file being a CheckpointError."""
        try:
            return loadarrays(self.path / checkpoint.arrays, expected)
        except FileNotFoundError as err:
            raise CheckpointError(f"the arrays of {checkpoint.name!r} are gone ('{self.path / checkpoint.arrays}'): "
                                  "restore another checkpoint") from err

    def _scan(self):
        """(the readable checkpoints, oldest first; CheckpointErrors of the others, oldest name first)."""
        found, bad = [], []
        for name in sorted(filter(_isfacts, self._names())):
            try:
                found.append(self._read(name))
            except CheckpointError as err:
                bad.append(err)
            except FileNotFoundError:       # removed meanwhile
                pass
        return sorted(found, key=lambda known: (known.counter, known.time, known.name)), bad

    def _read(self, name):
        try:
            stored = loadfacts(self.path / name)
        except WorkDirError as err:
            raise CheckpointError(str(err)) from err
        try:
            values = {key: stored[key] for key in _FIELDS}
            values['time'] = datetime.fromisoformat(values['time'])
            if (any(type(stored[key]) is not kind for key, kind in _FIELDS.items())
                    or any(not 0 <= stored[key] < 2**63 for key in ('epoch', 'pos', 'counter'))
                    or values['time'].utcoffset() != timedelta(0) or not _isbare(stored['arrays'])):
                raise ValueError('a fact of the wrong kind')
        except (KeyError, TypeError, ValueError) as err:
            raise CheckpointError(f"'{self.path / name}' is damaged or no checkpoint of RN-GRU's: "
                                  "restore another checkpoint") from err
        return Checkpoint(name, **values)
