"""Facts as files: they come back as they were, run nothing, and no crash tears them."""
import contextlib
import copyreg
import errno
import hashlib
import io
import math
import os
import pickle
import random
import re
import signal
import stat
import struct
import tracemalloc
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import checkpoint
import storage
from errors import RNGRUError, WorkDirError
from storage import FORMAT, dumpfacts, loadfacts, savefacts, seal

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


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text().filter(lambda key: key != 'format'), plain))
def test_any_plain_facts_come_back(facts):
    assert sametree(storage._readfacts(dumpfacts(facts)[:-32]), {**facts, 'format': FORMAT})


def test_facts_files_are_ordinary_pickles_of_protocol_4_with_their_sha256_behind(tmp_path):
    shared = ['a list', 'that occurs twice']
    savefacts(tmp_path / 'f.p', {'one': shared, 'two': shared})
    data = (tmp_path / 'f.p').read_bytes()
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()
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
    for _ in range(storage.MAXDEPTH - 1):
        deep = (deep,)
    savefacts(tmp_path / 'f.p', {'deep': deep})
    assert loadfacts(tmp_path / 'f.p')['deep'] == deep
    with pytest.raises(TypeError, match='more than 50 deep'):
        savefacts(tmp_path / 'f.p', {'deep': (deep,)})
    (tmp_path / 'f.p').write_bytes(seal(pickle.dumps({'deep': (deep,), 'format': FORMAT}, 4)))      # what we wouldn't write
    with pytest.raises(WorkDirError, match='more than 50 containers deep'):
        loadfacts(tmp_path / 'f.p')


def test_facts_too_large_to_be_read_back_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, 'MAXOPS', 100)
    with pytest.raises(ValueError, match='more than 100 steps'):
        savefacts(tmp_path / 'f.p', {'long': list(range(200))})
    assert names(tmp_path) == []


def test_a_newer_format_is_refused_in_one_sentence_that_says_so(tmp_path):
    path = tmp_path / 'f.p'
    path.write_bytes(seal(pickle.dumps({'format': FORMAT + 1}, 4)))
    with pytest.raises(WorkDirError, match='written by a newer RN-GRU') as err:
        loadfacts(path)
    assert onesentence(str(err.value)) and str(path) in str(err.value)


def test_a_file_without_a_format_is_refused(tmp_path):
    path = tmp_path / 'f.p'
    for value in {}, {'format': 0}, {'format': '1'}, {'format': True}, {'format': 10**5000}, [], 'x', None:
        path.write_bytes(seal(pickle.dumps(value, 4)))
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

    def short(text):
        return b'\x8c' + bytes([len(text)]) + text
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
    yield 'build', b'\x80\x02ctest_storage\nCarrier\n)\x81}b.'
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
    yield 'deep lists', b'\x80\x02' + b']' * 100000 + b'a' * 99999 + b'.'
    yield 'deep tuples', b'\x80\x02)' + b'\x85' * 100000 + b'.'
    yield 'deep tuple as a key', b'\x80\x02})' + b'\x85' * 300000 + b'Ns.'
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
            path.write_bytes(seal(data))            # who makes such a file knows how to make its checksum
            with pytest.raises(WorkDirError) as err:
                loadfacts(path)
            assert 'checksum' not in str(err.value) and onesentence(str(err.value)) and str(path) in str(err.value), (name, str(err.value))
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


def test_a_container_that_a_pickle_uses_twice_is_refused_since_a_few_steps_could_build_a_tree_without_end(tmp_path):
    """So what is read is no larger than its steps; `dumpfacts` writes such a container out each time."""
    for shared in [1, 2], {'a': 1}, (1, [2]):
        (tmp_path / 'f.p').write_bytes(seal(pickle.dumps({'format': 1, 'one': shared, 'two': shared}, 4)))
        with pytest.raises(WorkDirError, match='uses a container twice'):
            loadfacts(tmp_path / 'f.p')
    (tmp_path / 'f.p').write_bytes(seal(pickle.dumps({'format': 1, 'one': 'text', 'two': 'text', 'three': [b'x', b'x']}, 4)))
    assert loadfacts(tmp_path / 'f.p')['two'] == 'text'


def test_a_facts_file_too_large_is_refused_without_reading_it_all(tmp_path):
    with open(tmp_path / 'f.p', 'wb') as file:
        file.truncate(10 * 2**30)       # sparse
    tracemalloc.start()
    with pytest.raises(WorkDirError, match='larger than 64 MB'):
        loadfacts(tmp_path / 'f.p')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_pickle_of_too_many_steps_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, 'MAXOPS', 1000)
    (tmp_path / 'f.p').write_bytes(seal(b'\x80\x02]' + b'(e' * 600 + b'.'))
    with pytest.raises(WorkDirError, match='more than 1000 steps'):
        loadfacts(tmp_path / 'f.p')


def test_reading_takes_no_memory_that_the_file_does_not_hold(tmp_path):
    for name, data in hostile(str(tmp_path / 'owned')):
        if len(data) < 10000:
            (tmp_path / 'f.p').write_bytes(seal(data))
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
def test_changed_facts_are_refused_and_under_a_right_checksum_give_plain_facts_or_an_error(tmp_path):
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
        bad = bytes(bad)
        path.write_bytes(bad)
        if bad != data:
            with pytest.raises(WorkDirError, match='checksum'):
                loadfacts(path)
        path.write_bytes(seal(bad[:-32]))
        try:
            assert isplain(loadfacts(path))
        except WorkDirError as err:
            assert onesentence(str(err))


def test_every_flipped_bit_of_a_facts_file_is_noticed(tmp_path):
    savefacts(tmp_path / 'f.p', {'x': [1, 'abc']})
    data = (tmp_path / 'f.p').read_bytes()
    for at in range(8 * len(data)):
        bad = bytearray(data)
        bad[at // 8] ^= 1 << at % 8
        (tmp_path / 'f.p').write_bytes(bad)
        with pytest.raises(WorkDirError, match='checksum'):
            loadfacts(tmp_path / 'f.p')


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
        for module in storage, checkpoint:
            patch.setattr(module, 'open', lambda path, mode, **options: File(path, mode) if "x" in mode
                          else realopen(path, mode, **options), raising=False)
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


@contextlib.contextmanager
def diskcalls(monkeypatch, root):
    """What is done under `root`, in order, a list: 'fsync x 52', 52 being the bytes that it has then, 'fsync d/' of a directory,
    'replace x~ x', 'unlink x', 'mkdir d'. x~ is the temporary file of x.
    """
    calls = []

    def named(path):
        path = Path(path)
        match = storage._TEMP.fullmatch(path.name)
        return f'{match["name"]}~' if match else path.name + '/' * path.is_dir()

    def fsync(handle, real=os.fsync):
        status = os.fstat(handle)
        path, = (each for each in (root, *root.rglob('*')) if os.path.samestat(status, each.stat()))
        calls.append(f'fsync {named(path)}' + ('' if path.is_dir() else f' {status.st_size}'))
        real(handle)

    def noted(name):
        real = getattr(os, name)

        def call(*paths, **options):
            paths, others = [path for path in paths if not isinstance(path, int)], [path for path in paths if isinstance(path, int)]
            calls.append(' '.join([name, *map(named, paths)]))
            return real(*paths, *others, **options)
        return call
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', fsync)
        for name in 'replace', 'unlink', 'mkdir':
            patch.setattr(os, name, noted(name))
        yield calls


def test_a_power_loss_finds_facts_on_the_disk_before_their_name_and_the_name_before_the_call_returns(tmp_path, monkeypatch):
    savefacts(tmp_path / 'f.p', {'x': 'old'})
    with diskcalls(monkeypatch, tmp_path) as calls:
        savefacts(tmp_path / 'f.p', {'x': 'new'})
    size = (tmp_path / 'f.p').stat().st_size
    assert calls[:3] == [f'fsync f.p~ {size}', 'replace f.p~ f.p', f'fsync {tmp_path.name}/']


@pytest.mark.skipif(os.name == 'nt', reason='Windows opens no directories')
def test_a_file_system_that_syncs_no_directories_is_written_to_and_one_that_fails_is_not_passed_over(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)
    monkeypatch.setattr(os, 'fsync', fsync)
    for number in errno.EINVAL, errno.ENOTSUP:
        savefacts(tmp_path / 'f.p', {'x': number})
        assert loadfacts(tmp_path / 'f.p')['x'] == number
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        savefacts(tmp_path / 'f.p', {'x': number})


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'directory').mkdir()
    for name in ('pipe', 'directory'):
        for read in (storage.loadfacts, storage.filechecksum):
            with pytest.raises((OSError, RNGRUError), match='no regular file|directory'):
                read(tmp_path / name)
