"""Arrays as files: they come back bit for bit, take no memory that isn't theirs, and damage is noticed."""
import hashlib
import math
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from arrays import loadarrays, savearrays
from errors import CheckpointError
from storage import FORMAT, filechecksum
from test_storage import ARRAYS, Evil, names, onesentence


@pytest.mark.parametrize('array', [
    np.float32(2.5), np.zeros((0, 3)), np.zeros(()), np.arange(24, dtype=np.int16).reshape(2, 3, 4)[:, ::2],
    np.asfortranarray(np.arange(6.).reshape(2, 3)), np.array([True, False]), np.arange(3, dtype='>f4'),
    np.array([math.nan, -math.inf, -0.0]), np.arange(2**20 * 3, dtype=np.float32).reshape(3, -1)],
    ids=lambda array: f'{array.dtype}{array.shape}')
def test_arrays_come_back_bit_for_bit(tmp_path, array):
    savearrays(tmp_path / 'a.npz', {'x': array, 'E': ARRAYS['E']})
    back = loadarrays(tmp_path / 'a.npz')
    assert list(back) == ['x', 'E'] and back['x'].shape == array.shape and back['x'].dtype == array.dtype.newbyteorder('=')
    assert back['x'].astype(array.dtype).tobytes() == array.tobytes() and back['x'].flags.writeable
    with np.load(tmp_path / 'a.npz') as theirs:
        assert theirs['format'] == FORMAT and theirs['x'].tobytes() == array.tobytes()


@pytest.mark.parametrize('name', ['format', '../x', 'a/b', '', 'x.npy', 3])
def test_names_that_an_archive_cannot_hold_are_refused(tmp_path, name):
    with pytest.raises(ValueError):
        savearrays(tmp_path / 'a.npz', {name: np.zeros(2)})
    assert names(tmp_path) == []


@pytest.mark.parametrize('array', [np.array([{}]), np.array(['x']), np.array(None), np.zeros(2, [('a', 'f4')])])
def test_arrays_of_objects_and_text_are_refused(tmp_path, array):
    with pytest.raises(TypeError, match="'x'"):
        savearrays(tmp_path / 'a.npz', {'x': array})
    assert names(tmp_path) == []


def test_arrays_are_checked_against_what_the_model_needs(tmp_path):
    path, fits = tmp_path / 'a.npz', {'E': ((3, 4), np.float32), 'state': ((1, 2, 4), 'float32')}
    savearrays(path, ARRAYS)
    assert loadarrays(path, fits)['E'].tolist() == ARRAYS['E'].tolist()
    for wrong in ({**fits, 'E': ((4, 3), np.float32)}, {**fits, 'E': ((3, 4), np.float64)}, {**fits, 'W': ((1,), np.float32)},
                  {'E': fits['E']}, {}):
        with pytest.raises(CheckpointError, match='does not fit the model') as err:
            loadarrays(path, wrong)
        assert onesentence(str(err.value)) and str(path) in str(err.value)


def forge(path, descr="'<f4'", shape='(3, 4)', data=b'\0' * 48, order='False', name='E.npy', magic=b'\x93NUMPY\x01\x00',
          compression=zipfile.ZIP_STORED):
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header += b' ' * (-(len(header) + 11) % 64) + b'\n'
    np.savez(path, format=np.int64(FORMAT))
    with zipfile.ZipFile(path, 'a', compression) as archive:
        archive.writestr(name, magic + struct.pack('<H', len(header)) + header + data)


@pytest.mark.parametrize('forged', [
    dict(shape='(100000, 250000)'), dict(shape='(99999999999999999999,)'), dict(shape='(' + '9, ' * 70 + ')'),
    dict(shape='(' + '9' * 5000 + ',)'), dict(shape='(-3, 4)'), dict(shape="__import__('os')"), dict(shape='(3, 5)'),
    dict(shape='(3, 3)'), dict(descr="'|O'"), dict(descr="[('a', '<f4')]"), dict(descr="'<f3'"), dict(descr="'<U4'"),
    dict(order='None'), dict(shape='(' * 3000), dict(magic=b'\x93NUMPY\x03\x00'), dict(magic=b'\x93NUMPX\x01\x00'),
    dict(data=b''), dict(compression=zipfile.ZIP_DEFLATED),
    dict(compression=zipfile.ZIP_DEFLATED, data=bytes(10**7), shape='(1250000,)', descr="'<f8'"),
    dict(name='format.npy'), dict(data=pickle.dumps(Evil('/tmp/never')), descr="'|O'", shape='()')],
    ids=lambda forged: str(forged)[:40])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_forged_header_is_refused_before_memory_is_taken(tmp_path, forged):
    forge(tmp_path / 'a.npz', **forged)
    for expected in None, {'E': ((3, 4), np.float32)}:
        tracemalloc.start()
        with pytest.raises(CheckpointError) as err:
            loadarrays(tmp_path / 'a.npz', expected)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert onesentence(str(err.value)) and peak < 2**22


def test_the_forger_can_write_a_good_file_too(tmp_path):
    forge(tmp_path / 'a.npz')
    assert loadarrays(tmp_path / 'a.npz')['E'].shape == (3, 4)


def test_names_in_the_file_come_out_as_one_sentence(tmp_path):
    forge(tmp_path / 'a.npz', name='E\nstate\x1b[2J.npy')
    with pytest.raises(CheckpointError, match='does not fit the model') as err:
        loadarrays(tmp_path / 'a.npz', {'E': ((3, 4), np.float32)})
    assert onesentence(str(err.value)) and str(err.value).isprintable()


def test_members_that_share_their_bytes_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('E.npy', bytes(5000))
        for i in range(10):
            again = zipfile.ZipInfo(f'E{i}.npy')
            for slot in 'CRC', 'compress_size', 'file_size', 'header_offset', 'external_attr':
                setattr(again, slot, getattr(archive.filelist[0], slot))
            archive.filelist.append(again)
    with pytest.raises(CheckpointError, match='table of contents'):
        loadarrays(tmp_path / 'a.npz')


def test_the_checksum_of_arrays_is_that_of_the_file_and_of_no_other(tmp_path):
    checksum = savearrays(tmp_path / 'a.npz', ARRAYS)
    assert checksum == filechecksum(tmp_path / 'a.npz') == hashlib.sha256((tmp_path / 'a.npz').read_bytes()).hexdigest()
    assert loadarrays(tmp_path / 'a.npz', checksum=checksum)['E'].tolist() == ARRAYS['E'].tolist()
    savearrays(tmp_path / 'b.npz', {**ARRAYS, 'E': ARRAYS['E'] + 1})        # whole, but another's
    for at in range(8 * (tmp_path / 'a.npz').stat().st_size):
        if at % 7 == 0:
            bad = bytearray((tmp_path / 'a.npz').read_bytes())
            bad[at // 8] ^= 1 << at % 8
            (tmp_path / 'c.npz').write_bytes(bad)
            with pytest.raises(CheckpointError, match='checksum'):
                loadarrays(tmp_path / 'c.npz', checksum=checksum)
    with pytest.raises(CheckpointError, match='checksum') as err:
        loadarrays(tmp_path / 'b.npz', checksum=checksum)
    assert onesentence(str(err.value))


def test_damaged_arrays_are_refused_or_unchanged(tmp_path):
    path, rng = tmp_path / 'a.npz', random.Random(2)
    savearrays(path, ARRAYS)
    data = path.read_bytes()
    for trial in range(900):
        bad = bytearray(data)
        if trial < 400:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        elif trial < 700:
            bad = bad[:rng.randrange(len(bad))]
        else:
            at = rng.randrange(len(bad))
            bad[at:at + rng.randrange(30)] = rng.randbytes(rng.randrange(30))
        path.write_bytes(bad)
        try:
            back = loadarrays(path, {name: (array.shape, array.dtype) for name, array in ARRAYS.items()})
            assert all(back[name].tobytes() == array.tobytes() for name, array in ARRAYS.items())
        except CheckpointError as err:
            assert onesentence(str(err))
    for junk in b'', b'PK', pickle.dumps({'E': 1}), bytes(100):
        path.write_bytes(junk)
        with pytest.raises(CheckpointError):
            loadarrays(path)


def test_arrays_of_a_newer_format_are_refused_in_one_sentence_that_says_so(tmp_path):
    np.savez(tmp_path / 'a.npz', format=np.int64(FORMAT + 1), E=np.zeros(3))
    with pytest.raises(CheckpointError, match='written by a newer RN-GRU') as err:
        loadarrays(tmp_path / 'a.npz')
    assert onesentence(str(err.value))
