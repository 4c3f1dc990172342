"""A working directory loses nothing, tears nothing, runs nothing."""
import contextlib
import copyreg
import dataclasses
import io
import math
import os
import pickle
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import checkpoint
from checkpoint import FORMAT, Checkpoint, WorkDir, loadarrays, loadfacts, savearrays, savefacts
from errors import CheckpointError, WorkDirError

STATE = 'GRUEncode-1x8-state.p'
FACTS = {'layers': 3, 'learnrate': 0.0005, 'big': -2**80, 'chars': '\ufffd\n aé漢😀', 'none': None, 'yes': True,
         'nested': {'list': [1, [2.5, ()], (3, (4, 'x'), b'\0\xff')], 'empty': {}, 'again': '\ufffd\n aé漢😀'},
         'long': list(range(300)), 'inf': math.inf, 'lone': '\ud800'}
ARRAYS = {'E': np.arange(12, dtype=np.float32).reshape(3, 4), 'state': np.ones((1, 2, 4), np.float32)}


def onesentence(text):
    return '\n' not in text and text.count('. ') == 0 and 20 < len(text) < 900


def names(directory):
    return sorted(os.listdir(directory))


def sametree(a, b):
    """Equal, with equal types throughout."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(sametree(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(sametree, a, b))
    return a == b or a != a and b != b


def isplain(value):
    if type(value) is dict:
        return all(type(key) is str and isplain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(isplain, value))
    return type(value) in (str, int, float, bool, type(None), bytes)


# ---- facts

def test_facts_come_back_equal_and_of_the_same_types(tmp_path):
    savefacts(str(tmp_path / 'f.p'), FACTS)
    assert sametree(loadfacts(tmp_path / 'f.p'), {**FACTS, 'format': FORMAT})
    assert names(tmp_path) == ['f.p']


plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
                     lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
                     max_leaves=12)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != 'format'), plain))
def test_any_plain_facts_come_back(facts):
    assert sametree(checkpoint._undump(checkpoint._dump(facts)), {**facts, 'format': FORMAT})


def test_facts_files_are_ordinary_pickles_of_protocol_4(tmp_path):
    shared = ['a list', 'that occurs twice']
    savefacts(tmp_path / 'f.p', {'one': shared, 'two': shared})
    data = (tmp_path / 'f.p').read_bytes()
    assert data[:2] == b'\x80\x04' and pickle.loads(data) == {'one': shared, 'two': shared, 'format': FORMAT}
    assert loadfacts(tmp_path / 'f.p')['two'] == shared


@pytest.mark.parametrize('value, says', [
    (np.float64(1), 'numpy.float64'), (np.float32(1), 'numpy.float32'), (np.int64(1), 'numpy.int64'),
    (np.bool_(True), 'numpy.bool'), (np.zeros(3), 'numpy.ndarray'), (np.str_('x'), 'numpy.str_'), ({1}, 'set'),
    (1j, 'complex'), (Path('x'), 'Path'), (bytearray(b'x'), 'bytearray'), (print, 'builtin'),
    (datetime(2026, 1, 1), 'datetime'), (signal.SIGINT, 'Signals'), ({1: 2}, 'keys must be str')])
def test_what_is_not_plain_is_refused_by_key_and_nothing_is_written(tmp_path, value, says):
    for facts, where in ({'rate': value}, "['rate']"), ({'deep': {'in': [0, (1, value)]}}, "['deep']['in'][1][1]"):
        with pytest.raises(TypeError, match=re.escape(where)) as err:
            savefacts(tmp_path / 'f.p', facts)
        assert says in str(err.value) and onesentence(str(err.value))
    assert names(tmp_path) == []


def test_facts_that_contain_themselves_or_nest_without_end_are_refused(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(TypeError, match='contains itself'):
        savefacts(tmp_path / 'f.p', {'loop': loop})
    with pytest.raises(TypeError, match='must be a dict'):
        savefacts(tmp_path / 'f.p', [1])
    deep = 'leaf'
    for _ in range(checkpoint.MAXDEPTH - 1):
        deep = (deep,)
    savefacts(tmp_path / 'f.p', {'deep': deep})
    assert loadfacts(tmp_path / 'f.p')['deep'] == deep
    with pytest.raises(TypeError, match='more than 50 deep'):
        savefacts(tmp_path / 'f.p', {'deep': (deep,)})


def test_a_newer_format_is_refused_in_one_sentence_that_says_so(tmp_path):
    path = tmp_path / 'f.p'
    path.write_bytes(pickle.dumps({'format': FORMAT + 1}, 4))
    with pytest.raises(WorkDirError, match='written by a newer RN-GRU') as err:
        loadfacts(path)
    assert onesentence(str(err.value)) and str(path) in str(err.value)
    np.savez(tmp_path / 'a.npz', format=np.int64(FORMAT + 1), E=np.zeros(3))
    with pytest.raises(CheckpointError, match='written by a newer RN-GRU'):
        loadarrays(tmp_path / 'a.npz')


def test_a_file_without_a_format_is_refused(tmp_path):
    path = tmp_path / 'f.p'
    for value in {}, {'format': 0}, {'format': '1'}, {'format': True}, {'format': 10**5000}, [], 'x', None:
        path.write_bytes(pickle.dumps(value, 4))
        with pytest.raises(WorkDirError):
            loadfacts(path)


# ---- hostile pickles

MARK = 'HOSTILE_FACTS_WERE_HERE'


class Evil:
    """Pickles itself as the call os.mkdir(target): harmless proof that something ran."""
    def __init__(self, target, call=os.mkdir):
        self.target, self.call = target, call

    def __reduce__(self):
        return self.call, (self.target,)


class SetState:
    def __reduce__(self):
        return Carrier, (), {'x': 1}


class Carrier:
    def __setstate__(self, state):
        os.environ[MARK] = '1'


class NewObj:
    def __new__(cls, *args, **kwargs):
        if args or kwargs:
            os.environ[MARK] = '1'
        return object.__new__(cls)

    def __getnewargs_ex__(self):
        return (1,), {'x': 1}


class Persistent(pickle._Pickler):
    def persistent_id(self, obj):
        return 'gone' if isinstance(obj, Evil) else None


def hostile(target):
    """(name, bytes) of pickles, each of which does or builds something else than plain facts when pickle.loads reads it."""
    t = target.encode()
    short = lambda text: b'\x8c' + bytes([len(text)]) + text
    for protocol in range(6):
        yield f'reduce{protocol}', pickle.dumps({'format': 1, 'x': Evil(target)}, protocol)
        yield f'eval{protocol}', pickle.dumps({'format': 1, 'x': Evil(f'__import__("os").mkdir({target!r})', eval)}, protocol)
        yield f'setstate{protocol}', pickle.dumps({'format': 1, 'x': SetState()}, protocol)
        if protocol >= 2:
            yield f'newobj_ex{protocol}', pickle.dumps({'format': 1, 'x': NewObj()}, protocol)
        yield f'function{protocol}', pickle.dumps({'format': 1, 'x': os.system}, protocol)
        yield f'array{protocol}', pickle.dumps({'format': 1, 'x': np.zeros(3)}, protocol)
        yield f'set{protocol}', pickle.dumps({'format': 1, 'x': {1, 2}}, protocol)
        copyreg.add_extension(os.mkdir.__module__, 'mkdir', 0x1234)
        try:
            yield f'ext{protocol}', pickle.dumps({'format': 1, 'x': Evil(target)}, protocol)
        finally:
            copyreg.remove_extension(os.mkdir.__module__, 'mkdir', 0x1234)
        if protocol > 0:
            out = io.BytesIO()
            Persistent(out, protocol).dump({'format': 1, 'x': Evil(target)})
            yield f'persistent{protocol}', out.getvalue()
    yield 'global', b'cos\nmkdir\n(V' + t + b'\ntR.'
    yield 'inst', b'(V' + t + b'\nios\nmkdir\n.'
    yield 'obj', b'(cos\nmkdir\nV' + t + b'\no.'
    yield 'newobj', b'\x80\x02cos\nmkdir\nV' + t + b'\n\x85\x81.'
    yield 'newobj_ex', b'\x80\x04cos\nmkdir\n' + short(t) + b'\x85}\x92.'
    yield 'stack_global', b'\x80\x04' + short(b'os') + short(b'mkdir') + b'\x93' + short(t) + b'\x85R.'
    yield 'stack_global dotted', b'\x80\x04' + short(b'os') + short(b'path.os.mkdir') + b'\x93' + short(t) + b'\x85R.'
    yield 'posix', b'cposix\nmkdir\n(V' + t + b'\ntR.'
    yield 'builtins', b'cbuiltins\nexec\n(Vimport os; os.mkdir(' + repr(target).encode() + b')\ntR.'
    yield 'hidden before the facts', b'cos\nmkdir\n(V' + t + b'\ntR0' + pickle.dumps({'format': 1}, 2)[2:]
    yield 'hidden after the facts', pickle.dumps({'format': 1}, 4) + b'cos\nmkdir\n(V' + t + b'\ntR.'
    yield 'build', b'\x80\x02ctest_checkpoint\nCarrier\n)\x81}b.'
    yield 'build on a dict', b'\x80\x02}}b.'
    for code in b'\x82\x01', b'\x83\x34\x12', b'\x84\x34\x12\0\0':
        yield f'ext code {code[0]:x}', b'\x80\x02' + code + b'(V' + t + b'\ntR.'
    yield 'persid', b'Pgone\n.'
    yield 'binpersid', b'\x80\x02U\x04goneQ.'
    yield 'next buffer', b'\x80\x05\x97.'
    yield 'frozenset', b'\x80\x04(\x91.'
    yield 'bytearray', b'\x80\x05\x96' + struct.pack('<Q', 2**62) + b'.'
    yield 'memo bomb', b'\x80\x02}r\xff\xff\xff\x7f.'
    yield 'memo bomb in text', b'}p2000000000\n.'
    yield 'huge string', b'\x80\x04\x8d' + struct.pack('<Q', 2**62) + b'x.'
    yield 'huge bytes', b'\x80\x04\x8e' + struct.pack('<Q', 2**63) + b'x.'
    yield 'huge frame', b'\x80\x04\x95' + struct.pack('<Q', 2**64 - 1) + b'}.' + b'}.'
    yield 'huge int', b'\x80\x02\x8b\xff\xff\xff\x7f.'
    yield 'negative int', b'\x80\x02\x8b\xff\xff\xff\xff.'
    yield 'digits', b'I' + b'9' * 100000 + b'\n.'
    yield 'deep lists', b'\x80\x02' + b']' * 300000 + b'a' * 299999 + b'.'
    yield 'deep tuples', b'\x80\x02)' + b'\x85' * 300000 + b'.'
    yield 'deep tuple as a key', b'\x80\x02})' + b'\x85' * 1000000 + b'Ns.'
    yield 'too many steps', b'\x80\x02]' + b'(e' * 1100000 + b'.'
    yield 'laughs', b'\x80\x04]\x94' + b''.join(b'](' + b'h%c' % i * 10 + b'e\x94' for i in range(50)) + b'.'
    yield 'itself', b'\x80\x04]\x94h\0a.'
    yield 'itself in a dict', b'\x80\x04}\x94\x8c\x01xh\0s.'
    yield 'unhashable key', b'\x80\x02}]Ns.'
    yield 'odd items', b'\x80\x02}(\x8c\x01xu.'
    yield 'append to a dict', b'\x80\x02}Na.'
    yield 'items for a list', b'\x80\x02]\x8c\x01xNs.'
    yield 'empty stack', b'\x80\x02s.'
    yield 'no mark', b'\x80\x02]e.'
    yield 'take too many', b'\x80\x02N\x87.'
    yield 'dup', b'\x80\x02}2.'
    yield 'two values', b'\x80\x02}}.'
    yield 'unknown step', b'\x80\x04\xff.'
    yield 'protocol 9', b'\x80\x09N.'
    yield 'nothing', b''
    yield 'text', b'hello\n'


def test_hostile_pickles_run_nothing_and_give_one_sentence(tmp_path, monkeypatch):
    target, path, ran, tried = str(tmp_path / 'owned'), tmp_path / 'f.p', [], 0
    pickles = list(hostile(target))
    monkeypatch.setattr(os, 'system', lambda command: ran.append(command))
    copyreg.add_extension('os', 'mkdir', 0x1234)
    copyreg.add_extension('os', 'getcwd', 1)
    try:
        for name, data in pickles:
            path.write_bytes(data)
            with pytest.raises(WorkDirError) as err:
                loadfacts(path)
            assert onesentence(str(err.value)) and str(path) in str(err.value), (name, str(err.value))
            assert not os.path.exists(target) and MARK not in os.environ and not ran, name
            tried += 1
    finally:
        copyreg.remove_extension('os', 'mkdir', 0x1234)
        copyreg.remove_extension('os', 'getcwd', 1)
    assert tried > 90


def test_the_hostile_pickles_do_harm_where_they_are_let(tmp_path):
    """So that the test before this one tests something."""
    did = 0
    for name, data in hostile(str(tmp_path / 'owned')):
        if name.startswith(('reduce', 'eval', 'global', 'inst', 'obj', 'stack', 'posix', 'builtins', 'hidden before')):
            pickle.loads(data)
            did += os.path.isdir(tmp_path / 'owned')
            os.rmdir(tmp_path / 'owned')
    assert did >= 20


def test_a_facts_file_too_large_is_refused_without_reading_it_all(tmp_path):
    with open(tmp_path / 'f.p', 'wb') as file:
        file.truncate(10 * 2**30)       # sparse
    tracemalloc.start()
    with pytest.raises(WorkDirError, match='larger than 64 MB'):
        loadfacts(tmp_path / 'f.p')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_reading_takes_no_memory_that_the_file_does_not_hold(tmp_path):
    for name, data in hostile(str(tmp_path / 'owned')):
        if len(data) < 10000:
            (tmp_path / 'f.p').write_bytes(data)
            tracemalloc.start()
            with contextlib.suppress(WorkDirError):
                loadfacts(tmp_path / 'f.p')
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2**22, name


# ---- damage

def test_every_truncation_of_a_facts_file_is_refused(tmp_path):
    savefacts(tmp_path / 'f.p', FACTS)
    data = (tmp_path / 'f.p').read_bytes()
    for length in range(len(data)):
        (tmp_path / 'f.p').write_bytes(data[:length])
        with pytest.raises(WorkDirError):
            loadfacts(tmp_path / 'f.p')


@pytest.mark.filterwarnings('ignore:invalid escape sequence')
def test_flipped_bits_in_facts_give_plain_facts_or_an_error(tmp_path):
    savefacts(tmp_path / 'f.p', FACTS)
    data, rng, path = (tmp_path / 'f.p').read_bytes(), random.Random(1), tmp_path / 'f.p'
    for trial in range(1000):
        bad = bytearray(data)
        if trial < 300:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        elif trial < 700:
            at = rng.randrange(len(bad))
            bad[at:at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
        else:
            bad = rng.randbytes(rng.randrange(60))
        path.write_bytes(bad)
        try:
            assert isplain(loadfacts(path))
        except WorkDirError as err:
            assert onesentence(str(err))


# ---- arrays

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
    dict(data=b''), dict(compression=zipfile.ZIP_DEFLATED), dict(compression=zipfile.ZIP_DEFLATED, data=bytes(10**7), shape='(1250000,)', descr="'<f8'"),
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


# ---- crashes

@contextlib.contextmanager
def crashing(monkeypatch, at, cleanup):
    """The at-th call that touches the disk fails and so does, without cleanup, every one after it: yields the counter."""
    calls = [0]

    def step(real, isundo=False):
        def call(*args, **kwargs):
            if not isundo:
                calls[0] += 1
            if (calls[0] == at and not isundo) or (calls[0] >= at and not cleanup):
                raise OSError(28, 'No space left on device')
            return real(*args, **kwargs)
        return call

    class File:
        def __init__(self, *args):
            self.real = openfile(*args)
            self.write = step(self.real.write)

        def __getattr__(self, name):
            return getattr(self.real, name)

    realopen = open
    openfile = step(realopen)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, 'open', lambda path, mode: File(path, mode) if 'x' in mode else realopen(path, mode),
                      raising=False)
        for name in 'replace', 'fsync':
            patch.setattr(os, name, step(getattr(os, name)))
        patch.setattr(os, 'unlink', step(os.unlink, True))
        yield calls


@pytest.mark.parametrize('cleanup', [True, False], ids=['error', 'power off'])
def test_a_crash_at_any_write_of_facts_leaves_the_old_or_the_new(tmp_path, monkeypatch, cleanup):
    path = tmp_path / 'f.p'
    seen = set()
    for at in range(1, 50):
        savefacts(path, {'version': 'old'})
        with crashing(monkeypatch, at, cleanup) as calls:
            failed = None
            try:
                savefacts(path, {'version': 'new'})
            except OSError as err:
                failed = err
        version = loadfacts(path)['version']
        seen.add(version)
        assert version == 'new' or failed
        if cleanup:
            assert names(tmp_path) == ['f.p']
        savefacts(path, {'version': 'next'})
        assert names(tmp_path) == ['f.p']
        if calls[0] < at:
            break
    assert 4 < at < 49 and not failed and seen == {'old', 'new'}


@pytest.mark.parametrize('cleanup', [True, False], ids=['error', 'power off'])
def test_a_crash_at_any_write_of_a_checkpoint_leaves_the_old_or_the_new(tmp_path, monkeypatch, cleanup):
    for at in range(1, 100):
        work = WorkDir(tmp_path / str(at))
        work.path.mkdir()
        first = work.writecheckpoint(2.0, 0, 0, {}, ARRAYS)
        with crashing(monkeypatch, at, cleanup) as calls:
            failed = None
            try:
                work.writecheckpoint(1.0, 0, 1, {'n': 2}, ARRAYS)
            except OSError as err:
                failed = err
        found = work.checkpoints()
        assert found[0] == first and [c.pos for c in found] in ([0], [0, 1]) and (failed or len(found) == 2)
        for each in found:
            assert work.loadarrays(each)['E'].tolist() == ARRAYS['E'].tolist()
        if cleanup:
            assert len(names(work.path)) == 2 * len(found)
        last = work.writecheckpoint(0.5, 0, 2, {}, ARRAYS)
        assert work.checkpoint() == last and last.counter == len(found) + 1
        assert len(names(work.path)) == 2 * (len(found) + 1)
        if calls[0] < at:
            break
    assert 10 < at < 99 and not failed


WRITER = '''
import sys
sys.path.insert(0, {source!r})
import numpy as np
from checkpoint import WorkDir
work = WorkDir({path!r})
print('ready', flush=True)
n = 0
while True:
    n += 1
    work.writecheckpoint(1 / n, n, n, {{'n': n}}, {{'E': np.full((50, 50), n, np.float32)}})
'''


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_kill_9_while_checkpoints_are_written_loses_none_and_leaves_nothing(tmp_path):
    source = os.path.dirname(os.path.abspath(checkpoint.__file__))
    rng, before, work = random.Random(3), [], WorkDir(tmp_path)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, '-c', WRITER.format(source=source, path=str(tmp_path))],
                                   stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.02 + rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = work.checkpoints()
        assert found[:len(before)] == before
        for each in found[len(before):]:
            assert (work.loadarrays(each, {'E': ((50, 50), np.float32)})['E'] == each.facts['n']).all()
        before = found
    work.writecheckpoint(0, 0, 0, {}, {})
    assert len(before) > 6 and len(names(tmp_path)) == 2 * (len(before) + 1)


def test_what_another_process_or_machine_is_writing_stays(tmp_path):
    work, host = WorkDir(tmp_path), checkpoint._HOST
    keep = [f'.2026-11-24T10-31-05.123456Z-1.0000-model.p.{host}-{os.getppid()}-00000000.tmp',       # alive
            '.x-state.p.01234567-1-00000000.tmp',                                                     # another machine's
            f'.x.{host}-4000000-zzz.tmp', 'notes.tmp', '.x.tmp',                                      # not ours
            '2026-11-24T10-31-05.123456Z-1.0000-model.npz', '2026-11-24T10-31-05.123456Z-3.0000-model.npz']
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    gone = [f'.2026-11-24T10-31-05.123456Z-2.0000-model.p.{host}-{dead.pid}-00000000.tmp',
            '2026-11-24T10-31-05.123456Z-2.0000-model.npz', '.x-state.p.01234567-2-00000000.tmp']
    for name in keep + gone:
        (tmp_path / name).write_bytes(b'x')
    os.utime(tmp_path / gone[2], (time.time() - 90000,) * 2)       # of another machine, but a day old
    made = work.writecheckpoint(1, 0, 0, {}, {})
    assert names(tmp_path) == sorted(keep + [made.name, made.arrays])
    assert work.checkpoints() == [made]


# ---- checkpoints

def clock(monkeypatch, *times):
    left = list(times)
    monkeypatch.setattr(checkpoint, '_now', lambda: left.pop(0) if len(left) > 1 else left[0])


NOON = datetime(2026, 11, 24, 12, 0, 0, 5, timezone.utc)


def test_a_checkpoint_is_named_by_its_time_and_loss(tmp_path, monkeypatch):
    clock(monkeypatch, datetime(2026, 11, 24, 10, 31, 5, 123456, timezone.utc))
    facts = {'loss': 'kept apart', 'name': 1, 'losses': [1.5]}
    made = WorkDir(tmp_path).writecheckpoint(np.float32(1.8234), np.int64(3), 50, facts, ARRAYS)
    assert made.name == '2026-11-24T10-31-05.123456Z-1.8234-model.p'
    assert names(tmp_path) == ['2026-11-24T10-31-05.123456Z-1.8234-model.npz', made.name]
    assert (made.epoch, made.pos, made.counter, made.facts) == (3, 50, 1, facts)
    assert made.loss == pytest.approx(1.8234) and type(made.loss) is float and type(made.epoch) is int
    assert made.time == datetime(2026, 11, 24, 10, 31, 5, 123456, timezone.utc) and made.time.utcoffset() == timedelta(0)
    assert WorkDir(str(tmp_path)).checkpoints() == [made] and hash(made)
    assert str(made) == repr(made) and '\n' not in str(made) and made.name in str(made)
    assert loadfacts(tmp_path / made.name)['arrays'] == '2026-11-24T10-31-05.123456Z-1.8234-model.npz'
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.loss = 0.0


@pytest.mark.parametrize('loss, text', [(math.nan, 'nan'), (math.inf, 'inf'), (4.38202663, '4.3820'), (0, '0.0000'),
                                        (1e300, '1e+300'), (123.45678, '123.4568')])
def test_any_loss_gives_a_name_that_is_legal_everywhere(tmp_path, loss, text):
    made = WorkDir(tmp_path).writecheckpoint(loss, 0, 0, {}, {})
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{6}Z-' + re.escape(text) + r'-model\.p', made.name)
    assert not set(made.name) & set('<>:"/\\|?* ') and len(made.name) < 100
    assert sametree(WorkDir(tmp_path).checkpoint(made.name).loss, float(loss))


def test_checkpoints_are_ordered_by_counter_though_the_clock_steps_back(tmp_path, monkeypatch):
    work = WorkDir(tmp_path)
    clock(monkeypatch, NOON, NOON - timedelta(days=400), NOON + timedelta(days=3), NOON - timedelta(days=1))
    made = [work.writecheckpoint(loss, 0, 0, {}, {}) for loss in (3, 2, 1, 4)]
    assert [c.counter for c in made] == [1, 2, 3, 4] and work.checkpoints() == made and work.checkpoint() == made[-1]


def test_a_clock_that_stands_still_gives_fresh_names(tmp_path, monkeypatch):
    work = WorkDir(tmp_path)
    clock(monkeypatch, NOON)
    made = [work.writecheckpoint(1, 0, i, {}, {'n': np.array(i)}) for i in range(4)]
    assert [c.name for c in made] == [f'2026-11-24T12-00-00.00000{5 + i}Z-1.0000-model.p' for i in range(4)]
    assert [c.time for c in made] == [NOON + timedelta(microseconds=i) for i in range(4)]
    assert [int(work.loadarrays(c)['n']) for c in made] == [0, 1, 2, 3]
    os.remove(tmp_path / made[3].arrays)
    (tmp_path / '2026-11-24T12-00-00.000009Z-1.0000-model.npz').write_bytes(b'not ours')
    assert work.writecheckpoint(1, 0, 0, {}, {}).name == '2026-11-24T12-00-00.000010Z-1.0000-model.p'
    assert (tmp_path / '2026-11-24T12-00-00.000009Z-1.0000-model.npz').read_bytes() == b'not ours'


def test_what_is_refused_writes_nothing(tmp_path):
    work = WorkDir(tmp_path)
    for facts, arrays, error in (({'x': np.float64(1)}, {}, TypeError), ({}, {'x': np.array([None])}, TypeError), (None, {}, TypeError),
                                 ({}, {'format': np.zeros(1)}, ValueError)):
        with pytest.raises(error):
            work.writecheckpoint(1, 0, 0, facts, arrays)
    with pytest.raises(TypeError):
        work.writecheckpoint(1, 0.5, 0, {}, {})
    with pytest.raises(ValueError):
        work.writecheckpoint(1, -1, 0, {}, {})
    assert names(tmp_path) == []


def test_arrays_without_facts_and_files_of_others_are_no_checkpoints(tmp_path):
    work = WorkDir(tmp_path)
    made = work.writecheckpoint(1, 0, 0, {}, ARRAYS)
    shutil.copy(tmp_path / made.arrays, tmp_path / '2026-01-01T00-00-00.000000Z-1.0000-model.npz')
    for name in f'._{made.name}', f'.{made.name}.tmp', 'notes.txt', f'{made.name}.bak':
        (tmp_path / name).write_bytes(b'x')
    assert work.checkpoints() == [made]


def test_a_directory_moved_or_copied_still_loads(tmp_path):
    made = WorkDir(tmp_path / 'a').path
    made.mkdir()
    WorkDir(made).writecheckpoint(1, 2, 3, {'x': 1}, ARRAYS)
    shutil.copytree(made, tmp_path / 'b c' / 'ü')
    shutil.rmtree(made)
    work = WorkDir(tmp_path / 'b c' / 'ü')
    assert work.loadarrays(work.checkpoint())['E'].tolist() == ARRAYS['E'].tolist()
    assert str(tmp_path).encode() not in b''.join((work.path / name).read_bytes() for name in names(work.path))


def test_a_relative_directory_stays_the_same_after_chdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = WorkDir('w')
    os.mkdir('w')
    monkeypatch.chdir('/')
    assert work.path == tmp_path / 'w' and isinstance(work.path, Path) and work.checkpoints() == []


@pytest.mark.parametrize('name', ['a/b', '/etc/passwd', '..', '.', '', '../x-model.p', 'a\\b', 'C:x', 'C:\\x', 'x\0'])
def test_a_name_with_a_directory_in_it_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match='bare file name'):
        WorkDir(tmp_path).checkpoint(name)


def test_a_checkpoint_that_is_not_there_lists_those_that_are(tmp_path):
    work = WorkDir(tmp_path)
    with pytest.raises(CheckpointError, match='no checkpoint yet'):
        work.checkpoint()
    with pytest.raises(CheckpointError, match='none yet'):
        work.checkpoint('x')
    made = [work.writecheckpoint(i, 0, 0, {}, {}) for i in range(12)]
    with pytest.raises(CheckpointError, match='and 2 older') as err:
        work.checkpoint(made[3].name[:-2])
    assert [c.name in str(err.value) for c in made] == [False] * 2 + [True] * 10 and onesentence(str(err.value))
    assert work.checkpoint(made[3].name) == made[3]
    (tmp_path / 'secret').write_bytes(b'x')
    with pytest.raises(CheckpointError, match='has no checkpoint'):
        work.checkpoint('secret')
    with pytest.raises(TypeError):
        work.checkpoint(Path(made[0].name))


def test_a_damaged_checkpoint_is_named_and_the_others_stay_usable(tmp_path):
    work = WorkDir(tmp_path)
    made = [work.writecheckpoint(i, 0, 0, {}, ARRAYS) for i in range(3)]
    (tmp_path / made[2].name).write_bytes(b'torn')
    with pytest.warns(UserWarning, match=re.escape(made[2].name)):
        assert work.checkpoints() == made[:2]
    with pytest.warns(UserWarning, match=re.escape(made[2].name)):
        assert work.checkpoint() == made[1]
    with pytest.raises(CheckpointError, match='damaged'):
        work.checkpoint(made[2].name)
    os.remove(tmp_path / made[1].arrays)
    with pytest.raises(CheckpointError, match='are gone'):
        work.loadarrays(made[1])
    assert work.writecheckpoint(1, 0, 0, {}, {}).counter > made[1].counter


def test_checkpoint_facts_of_the_wrong_kind_are_damage(tmp_path):
    work = WorkDir(tmp_path)
    made = work.writecheckpoint(1, 0, 0, {}, {})
    good = loadfacts(tmp_path / made.name)
    for key, value in [('loss', 1), ('epoch', -1), ('pos', True), ('counter', 2**63), ('counter', '1'), ('facts', []),
                       ('time', '2026-11-24'), ('time', 'noon'), ('time', 3), ('time', '2026-11-24T10:31:05+05:00'),
                       ('arrays', '../x.npz'), ('arrays', '/etc/passwd'), ('arrays', None), ('arrays', 'C:x')]:
        savefacts(tmp_path / made.name, {**good, key: value})
        with pytest.raises(CheckpointError, match='damaged') as err:
            work.checkpoint(made.name)
        assert onesentence(str(err.value))
    for key in good.keys() - {'format'}:
        savefacts(tmp_path / made.name, {k: v for k, v in good.items() if k != key})
        with pytest.raises(CheckpointError):
            work.checkpoint(made.name)


# ---- the directory

def test_the_state_file_is_found(tmp_path):
    work = WorkDir(tmp_path)
    with pytest.raises(WorkDirError, match='holds no model'):
        work.statefile()
    savefacts(tmp_path / STATE, {})
    assert work.statefile() == tmp_path / STATE
    savefacts(tmp_path / 'GRUResize-2x8-state.p', {})
    with pytest.raises(WorkDirError, match='holds 2 models'):
        work.statefile()


def test_no_directory_or_a_file_in_its_place_is_said(tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    for method in WorkDir.statefile, WorkDir.checkpoints, WorkDir.checkpoint:
        with pytest.raises(FileNotFoundError, match='there is no directory'):
            method(WorkDir(tmp_path / 'none'))
        with pytest.raises(NotADirectoryError, match='is a file'):
            method(WorkDir(tmp_path / 'file'))
    assert names(tmp_path) == ['file']
    with pytest.raises(ValueError):
        WorkDir('')
    with pytest.raises(TypeError):
        WorkDir(None)


def test_a_new_model_gets_its_directory_with_parents(tmp_path):
    with WorkDir(tmp_path / 'a' / 'b').create('data.npy') as work:
        savefacts(work.path / STATE, {'x': 1})
        work.writecheckpoint(1, 0, 0, {}, {})
    assert work.path == tmp_path / 'a' / 'b' and len(names(work.path)) == 3 and work.statefile().name == STATE


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('where', ['new', 'a/b/new', 'there'])
def test_a_creation_that_fails_leaves_the_disk_as_it_was(tmp_path, error, where):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there' / 'notes.txt').write_text('mine')
    (tmp_path / 'there' / 'sub').mkdir()
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(error):
        with WorkDir(tmp_path / where).create('data.npy') as work:
            np.save(work.path / 'data.npy', np.zeros(3))
            savefacts(work.path / STATE, {})
            work.writecheckpoint(1, 0, 0, {}, ARRAYS)
            raise error
    assert sorted(tmp_path.rglob('*')) == before and (tmp_path / 'there' / 'notes.txt').read_text() == 'mine'


def test_what_others_put_there_meanwhile_stays(tmp_path):
    with pytest.raises(OSError):
        with WorkDir(tmp_path).create('data.npy') as work:
            (tmp_path / 'theirs.txt').write_text('x')
            savefacts(work.path / STATE, {})
            raise OSError
    assert names(tmp_path) == ['theirs.txt']


def test_a_directory_in_use_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / 'model').mkdir()
    savefacts(tmp_path / 'model' / STATE, {'x': 1})
    WorkDir(tmp_path / 'model').writecheckpoint(1, 0, 0, {}, {})
    (tmp_path / 'rest').mkdir()
    WorkDir(tmp_path / 'rest').writecheckpoint(1, 0, 0, {}, {})
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'data.npy').write_bytes(b'mine')
    (tmp_path / 'file').write_bytes(b'mine')
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')}
    for where, says in (('model', r"already holds a model: ModelState\.load\('.*model'\) loads it"), ('rest', 'name another directory'),
                        ('data', "already has a file 'data.npy'"), ('file', 'is a file'), ('file/sub', 'cannot be used')):
        with pytest.raises(WorkDirError, match=says) as err:
            with WorkDir(tmp_path / where).create('data.npy'):
                pytest.fail('not refused')
        assert onesentence(str(err.value)) and str(tmp_path) in str(err.value)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')} == before


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    there = tmp_path / 'there'
    there.mkdir()
    if os.name == 'nt' or os.geteuid() == 0:        # whom permissions don't bind
        realopen = open

        def refuse(path, mode):
            if 'x' in mode:
                raise PermissionError(13, 'Permission denied')
            return realopen(path, mode)
        monkeypatch.setattr(checkpoint, 'open', refuse, raising=False)
    else:
        there.chmod(0o555)
    try:
        for where in there, there / 'new' / 'er':
            with pytest.raises(WorkDirError, match='cannot be used as a working directory .Permission denied') as err:
                with WorkDir(where).create():
                    pytest.fail('not refused')
            assert onesentence(str(err.value))
            assert names(there) == []
    finally:
        there.chmod(0o755)
