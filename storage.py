"""Facts as files, written so that no crash tears them and read so that no file runs code.

    savefacts, loadfacts        a dict of plain values, as a pickle with its SHA-256 behind it
    filechecksum                the SHA-256 of a file, which the facts of what it belongs to hold
    Staged                      any file, whole or not at all; while it is written, and after a kill until somebody writes
                                beside it again, it is called .<name>.<host>-<pid>-<random>.tmp
"""
import contextlib
import errno
import hashlib
import os
import pathlib
import pickle
import pickletools
import platform
import re
import secrets
import stat
import time
import zlib
from io import BufferedReader
from typing import Self

from errors import WorkDirError, reason

FORMAT = 1                  # in every file; a file with a higher one was written by a newer RN-GRU
MAXBYTES = 64 * 2**20       # of a facts file: facts are small, so a larger one is not ours
MAXOPS = 2_000_000          # of its pickle's steps, about two seconds' reading
MAXDEPTH = 50               # of containers within containers
TEMPAGE = 24 * 3600.0       # seconds after which no write can still be under way

# SHA-256: one core does 1.4 GiB/s where the processor has instructions for it (AMD since 2017, Intel since 2019,
# Arm), BLAKE2b 0.75, CRC-32 3.4; but 32 bits let one damaged file in four billions pass, and an .npz holds CRC-32s of its
# own. `sha256sum` checks a file without us.
newdigest = hashlib.sha256
_SEALSIZE = 32      # bytes behind a facts file's pickle
CHUNK = 2**20      # bytes read at a time

_SCALARS = (str, int, float, bool, type(None), bytes)


# ---- one file, whole or not at all

_HOST = f'{zlib.crc32(platform.node().encode()):08x}'       # a process id means something on its own machine only
_TEMP = re.compile(r'\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,9})-[0-9a-f]{8}\.tmp')
_writing = set()                                            # names of this process's temporary files in use


class Staged:
    """A temporary file beside `path`, open as `.file`, that `publish()` turns into `path` in one step.

    Left without `publish()`, or by an exception, the `with` block removes it: `path` is what it was.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.temp = path, _tempfor(path)

    def __enter__(self) -> Self:
        _sweep(self.path.parent)
        _writing.add(self.temp.name)
        self.file = open(self.temp, 'xb')
        return self

    def publish(self) -> None:
        """Give the file its name; when this returns, it is on the disk for good. Raises OSError when the disk refuses."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.temp, self.path)
        syncdir(self.path.parent)

    def __exit__(self, *exc: object) -> None:
        try:
            with contextlib.suppress(OSError):      # on a full disk closing fails as writing did
                self.file.close()
            with contextlib.suppress(OSError):      # published, or left for _sweep
                os.unlink(self.temp)
        finally:
            _writing.discard(self.temp.name)


def _tempfor(path):
    return path.with_name(f'.{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp')


def removepair(facts: pathlib.Path) -> None:
    """Remove a facts file and the arrays beside it; where that is broken off, _sweep finishes it.

    The facts get a temporary file's name first: in one step there is no such checkpoint any more. Raises OSError.
    """
    temp = _tempfor(facts)
    os.replace(facts, temp)
    syncdir(facts.parent)
    facts.with_suffix('.npz').unlink(missing_ok=True)
    temp.unlink()


def syncdir(path: str | os.PathLike) -> None:
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


def isourtemp(name: str) -> bool:
    """Whether `name` is that of a temporary file which this process made."""
    match = _TEMP.fullmatch(name)
    return match is not None and match['host'] == _HOST and int(match['pid']) == os.getpid()


def isanytemp(name: str) -> bool:
    """Whether `name` is that of a temporary file, whoever made it."""
    return bool(_TEMP.fullmatch(name))


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


def openregular(path: str | os.PathLike) -> BufferedReader:
    """The file at `path`, open for reading; OSError where it is no regular file. A named pipe in its place would wait for ever."""
    def opener(path, flags):
        handle = os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(f"'{path}' is no regular file")
        return handle
    return open(path, 'rb', opener=opener)


def filechecksum(path: str | os.PathLike) -> str:
    """The SHA-256, in hexadecimal, of the file at `path`: about a second a GB."""
    with openregular(path) as file:
        return filedigest(file)


def filedigest(file: BufferedReader) -> str:
    """The same, of an open file, from where it stands to its end."""
    digest, buffer = newdigest(), memoryview(bytearray(CHUNK))
    while size := file.readinto(buffer):
        digest.update(buffer[:size])
    return digest.hexdigest()


# ---- facts: a pickle of plain values

def savefacts(path: str | os.PathLike, facts: dict) -> None:
    """Write a dict of plain values to the file `path`, which a crash leaves as it was or as it should be.

    facts: dict with str keys; values dict, list, tuple, str, int, float, bool, None, bytes, nested up to 50 deep;
    'format' is added. Raises TypeError naming the key of anything else (NumPy's numbers too), ValueError
    for facts too large to be read back, OSError when the disk refuses.
    """
    data = dumpfacts(facts)
    with Staged(pathlib.Path(path)) as staged:
        staged.file.write(data)
        staged.publish()


def loadfacts(path: str | os.PathLike) -> dict:
    """The dict that savefacts wrote to `path`, 'format' included; runs nothing, whatever the file holds.

    Raises WorkDirError when it is damaged (one changed bit is enough), not ours or of a newer format, FileNotFoundError
    when there is none.
    """
    try:
        with openregular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(size) if size <= MAXBYTES else None
    except FileNotFoundError:
        raise
    except OSError as err:
        raise WorkDirError(f"'{path}' cannot be read ({reason(err)}): put a good copy in its place") from err
    try:
        if data is not None and data[-_SEALSIZE:] != newdigest(data[:-_SEALSIZE]).digest():
            raise ValueError('its checksum is wrong')
        facts = _readfacts(data and data[:-_SEALSIZE])
        if type(facts) is not dict:
            raise ValueError('it holds no dict')
        checkformat(path, facts.get('format'), WorkDirError)
    except WorkDirError:
        raise
    except Exception as err:    # MemoryError and RecursionError are among what bad bytes can bring about
        raise WorkDirError(f"'{path}' is damaged or no file of RN-GRU's ({reason(err)}): "
                           "put a good copy in its place or use another directory") from err
    return facts


def dumpfacts(facts: dict) -> bytes:
    """The bytes that savefacts writes: a pickle of protocol 4 and its checksum, which unpicklers skip. Raises as savefacts does."""
    if type(facts) is not dict:
        raise TypeError(f'facts must be a dict, not {type(facts).__name__}')
    data = pickle.dumps({**_plain(facts, '', 0), 'format': FORMAT}, protocol=4)
    _readfacts(data)               # what couldn't be read is not written
    return seal(data)


def seal(data: bytes) -> bytes:
    """The bytes with their checksum behind them, as a facts file of any format has it."""
    return data + newdigest(data).digest()


def _plain(value, where, depth):
    """A copy of `value` in which no container occurs twice: that is what _readfacts reads."""
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


def _readfacts(data):
    """The plain value in the pickle `data`; ValueError (or what pickletools raises) for anything else.

    Not pickle.Unpickler: this knows only the steps that dumpfacts's pickles are made of, so there is no class to be
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


def checkformat(path: str | os.PathLike, found: object, error: type[Exception]) -> None:
    if type(found) is not int or not 1 <= found < 2**31:
        raise ValueError('it has no format version')
    if found > FORMAT:
        raise error(f"'{path}' was written by a newer RN-GRU (format {found}, this one reads up to {FORMAT}): "
                    "update RN-GRU to load it")
