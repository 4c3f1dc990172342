"""Arrays of numbers as files: an uncompressed .npz that np.load reads too, crash-safe and safe to read as storage's facts.

    savearrays, loadarrays      a dict of arrays
"""
import math
import os
import pathlib
import re
import zipfile

import numpy as np

from errors import CheckpointError, reason
from storage import CHUNK, FORMAT, Staged, checkformat, filedigest, newdigest, openregular

# What NumPy writes for plain numbers. Matched, not evaluated: NumPy's own reader hands the text to Python's parser.
_HEADER = re.compile(rb"\{'descr': '([<>|][biufc]\d{1,2})', 'fortran_order': (True|False), "
                     rb"'shape': \(((?:\d+, ?)*\d*)\), \} *\n")


def savearrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> str:
    """Write a dict of name -> array of numbers as an uncompressed .npz that np.load reads too; crash-safe as savefacts.

    Returns the file's checksum, made of what was to be written, not of what the disk gives back. Raises TypeError for an
    array that isn't of booleans or numbers, ValueError for a name that can't be used.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if type(name) is not str or not name.isidentifier() or name == 'format':
            raise ValueError(f'{name!r} cannot name an array: use another identifier')
        if array.dtype.kind not in 'biufc':
            raise TypeError(f'array {name!r} has the type {array.dtype}: only booleans and numbers are stored')
    with Staged(pathlib.Path(path)) as staged:
        stream = _Stream(staged.file)
        # As np.savez does it, which on older NumPy leaves the archive open, and Python complaining, where the disk is full.
        with zipfile.ZipFile(stream, 'w') as archive:       # type: ignore[call-overload]  # it never closes what it is given
            for name, array in {'format': np.array(FORMAT, np.int64), **arrays}.items():
                with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        staged.publish()
    return stream.digest.hexdigest()


class _Stream:
    """A file that can only be written on, so that the digest of what was written is the file's."""

    def __init__(self, file):
        self.file, self.digest = file, newdigest()

    def write(self, data):
        self.digest.update(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def loadarrays(path: str | os.PathLike, expected: dict[str, tuple] | None = None, checksum: str | None = None) -> dict[str, np.ndarray]:
    """The dict of name -> array that savearrays wrote to `path`.

    checksum: what savearrays returned, which the file must still have (None: the arrays' own CRC-32s have to do).
    expected: dict of name -> (shape, dtype) that the file must hold, no more and no fewer; compared, as the sizes in
    the file are with its length, before memory is taken. Raises CheckpointError when the file is damaged, is of a
    newer format or doesn't hold what is expected, FileNotFoundError when there is none.
    """
    with openregular(path) as file:
        try:
            if checksum is not None and filedigest(file) != checksum:
                raise ValueError('its checksum is wrong')
            return _readnpz(path, file, expected)
        except CheckpointError:
            raise
        except Exception as err:    # zipfile's and NumPy's readers raise nearly anything on bad bytes
            raise CheckpointError(f"'{path}' is damaged or no file of RN-GRU's ({reason(err)}): "
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
        checkformat(path, int(_readmember(path, archive, members.pop('format'), 'format', ((), np.int64))),
                     CheckpointError)
        if expected is not None and members.keys() != expected.keys():
            raise CheckpointError(f"'{path}' does not fit the model: it holds the arrays {sorted(members)}, "
                                  f"the model needs {sorted(expected)}"[:500])
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
        while chunk := member.read(4 * CHUNK):     # to the end, where zipfile compares the checksum
            data[done:done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
        if done != data.size:
            raise ValueError(f'{name} is cut short')
        return array.astype(dtype, copy=False)
