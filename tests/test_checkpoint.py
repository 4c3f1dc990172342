"""A working directory loses nothing and keeps what it is told to."""
import dataclasses
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

import checkpoint
import storage
from checkpoint import WorkDir
from errors import CheckpointError, WorkDirError
from storage import loadfacts, savefacts
from test_storage import ARRAYS, crashing, diskcalls, names, onesentence, sametree

STATE = 'GRUEncode-1x8-state.p'


# ---- crashes

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
        assert work.checkpoints()[-1] == last and last.counter == len(found) + 1
        assert len(names(work.path)) == 2 * (len(found) + 1)
        if calls[0] < at:
            break
    assert 10 < at < 99 and not failed


def test_a_power_loss_finds_arrays_before_their_facts_and_of_what_is_removed_the_facts_gone_first(tmp_path, monkeypatch):
    work = WorkDir(tmp_path / 'new' / 'work')
    with diskcalls(monkeypatch, tmp_path) as calls, work.create():
        made = work.writecheckpoint(1, 0, 0, {}, ARRAYS)
    facts, arrays = made.name, made.arrays
    sizes = [(work.path / name).stat().st_size for name in (arrays, facts)]
    said = [call for call in calls if not call.startswith('unlink')]
    assert said[:4] == ['mkdir new', f'fsync {tmp_path.name}/', 'mkdir work', 'fsync new/']
    assert said[-6:] == [f'fsync {arrays}~ {sizes[0]}', f'replace {arrays}~ {arrays}', 'fsync work/',
                         f'fsync {facts}~ {sizes[1]}', f'replace {facts}~ {facts}', 'fsync work/']
    with diskcalls(monkeypatch, tmp_path) as calls:
        assert work.remove([made]) == 1
    assert calls == [f'replace {facts} {facts}~', 'fsync work/', f'unlink {arrays}', f'unlink {facts}~']


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
    for _ in range(4):
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
    assert len(before) > 4 and len(names(tmp_path)) == 2 * (len(before) + 1)


def test_what_another_process_or_machine_is_writing_stays(tmp_path):
    work, host = WorkDir(tmp_path), storage._HOST
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


def test_what_another_users_process_is_writing_stays(tmp_path, monkeypatch):
    def kill(pid, signal):
        raise PermissionError(1, 'Operation not permitted')
    monkeypatch.setattr(os, 'kill', kill)
    theirs = f'.2026-11-24T10-31-05.123456Z-1.0000-model.p.{storage._HOST}-4711-00000000.tmp'
    (tmp_path / theirs).write_bytes(b'x')
    made = WorkDir(tmp_path).writecheckpoint(1, 0, 0, {}, {})
    assert names(tmp_path) == sorted([theirs, made.name, made.arrays])


def test_a_dead_writers_leftover_costs_no_checkpoint_that_is_there(tmp_path):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    work = WorkDir(tmp_path)
    made = work.writecheckpoint(1, 0, 0, {}, ARRAYS)
    (tmp_path / f'.{made.name}.{storage._HOST}-{dead.pid}-00000000.tmp').write_bytes(b'x')
    other = work.writecheckpoint(1, 0, 1, {}, ARRAYS)
    assert names(tmp_path) == sorted([made.name, made.arrays, other.name, other.arrays])


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
    assert [c.counter for c in made] == [1, 2, 3, 4] and work.checkpoints() == made


def test_a_new_checkpoint_is_the_newest_though_others_were_removed_and_the_clock_steps_back(tmp_path, monkeypatch):
    work = WorkDir(tmp_path)
    clock(monkeypatch, NOON, NOON + timedelta(days=1), NOON + timedelta(days=2), NOON - timedelta(days=1))
    first, second, third = (work.writecheckpoint(3, 0, 0, {}, {}) for _ in range(3))
    work.remove([first, second])
    last = work.writecheckpoint(3, 0, 0, {}, {})
    assert last.counter == 4 and work.checkpoints() == [third, last]


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
    assert work.loadarrays(work.checkpoints()[-1])['E'].tolist() == ARRAYS['E'].tolist()
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
    with pytest.warns(UserWarning, match=f'{re.escape(made[2].name)}.*going on with {re.escape(made[1].name)}'):
        assert work.newest(lambda checkpoint: None)[0] == made[1]
    with pytest.raises(CheckpointError, match='damaged'):
        work.checkpoint(made[2].name)
    os.remove(tmp_path / made[1].arrays)
    with pytest.raises(CheckpointError, match='are gone'):
        work.loadarrays(made[1])
    with pytest.warns(UserWarning) as said:
        assert work.newest(lambda checkpoint: None)[0] == made[0]
    assert [name in str(warning.message) for name, warning in zip((made[2].name, made[1].arrays), said, strict=True)] == [True, True]
    (tmp_path / made[0].arrays).write_bytes((tmp_path / made[0].arrays).read_bytes()[:-1] + b'x')
    with pytest.raises(CheckpointError, match='no checkpoint that is whole') as err:
        work.newest(lambda checkpoint: None)
    assert onesentence(str(err.value))
    assert work.writecheckpoint(1, 0, 0, {}, {}).counter > made[1].counter


def test_a_checkpoint_that_vanishes_while_it_is_read_gives_the_newest_then(tmp_path, monkeypatch):
    work = WorkDir(tmp_path)
    old = work.writecheckpoint(1, 0, 0, {}, ARRAYS)
    made = []

    def meanwhile(checkpoint):
        """As a training elsewhere does: a newer one first, then the older one goes."""
        if len(made) < 3:
            made.append(work.writecheckpoint(1, 0, len(made) + 1, {}, ARRAYS))
            work.remove([checkpoint])
    found, arrays = work.newest(meanwhile)
    assert found == made[-1] and found.pos == 3 and arrays['E'].tolist() == ARRAYS['E'].tolist() and old != found
    assert names(tmp_path) == sorted([found.name, found.arrays])


def test_a_checkpoint_that_vanishes_between_listing_and_reading_hides_no_newer_one(tmp_path, monkeypatch):
    work = WorkDir(tmp_path)
    old, read = work.writecheckpoint(1, 0, 0, {}, ARRAYS), WorkDir._read
    made = []

    def meanwhile(self, name):
        if not made:
            made.append(None)
            made[0] = work.writecheckpoint(1, 0, 1, {}, ARRAYS)
            work.remove([old])
        return read(self, name)
    monkeypatch.setattr(WorkDir, '_read', meanwhile)
    assert work.checkpoints() == made


def test_a_link_to_nowhere_is_a_damaged_checkpoint(tmp_path):
    work = WorkDir(tmp_path)
    made = work.writecheckpoint(1, 0, 0, {}, ARRAYS)
    os.symlink('nowhere', tmp_path / f'3{made.name}')
    with pytest.warns(UserWarning, match=f'3{made.name}.*cannot be read'):
        assert work.checkpoints() == [made]


def test_a_removal_broken_off_anywhere_leaves_a_checkpoint_or_nothing_for_long(tmp_path, monkeypatch):
    for at in range(1, 20):
        work = WorkDir(tmp_path / str(at))
        work.path.mkdir()
        keep, old = [work.writecheckpoint(1, 0, i, {}, ARRAYS) for i in range(2)]
        calls = [0]
        with monkeypatch.context() as patch:
            def step(real):
                def call(*args, **kwargs):
                    calls[0] += 1
                    if calls[0] >= at:
                        raise OSError(5, 'Input/output error')
                    return real(*args, **kwargs)
                return call
            for name in 'replace', 'unlink', 'fsync':
                patch.setattr(os, name, step(getattr(os, name)))
            work.remove([old])
        found = work.checkpoints()
        assert found in ([keep, old], [keep])
        assert all(work.loadarrays(each)['E'].tolist() == ARRAYS['E'].tolist() for each in found)
        last = work.writecheckpoint(1, 0, 2, {}, ARRAYS)
        assert len(names(work.path)) == 2 * len(work.checkpoints()) and work.checkpoints()[-1] == last
        if calls[0] < at:
            break
    assert 3 < at < 19 and found == [keep]


@pytest.mark.parametrize('remove, gone', [(WorkDir.prune, [0, 2]), (WorkDir.makeroom, [0, 2])])
def test_what_is_removed_is_neither_the_newest_nor_the_best_nor_what_is_spared(tmp_path, remove, gone):
    work = WorkDir(tmp_path)
    made = [work.writecheckpoint(loss, 0, 0, {'losskind': 'validation'}, ARRAYS) for loss in (3, 4, 5, 1, 2)]
    assert remove(work, 1, made[1].name) == len(gone)
    assert work.checkpoints() == [each for i, each in enumerate(made) if i not in gone]


def test_the_best_is_the_newest_of_the_lowest_validation_losses_that_are_numbers(tmp_path):
    work = WorkDir(tmp_path)
    for loss in math.nan, -math.inf:
        work.writecheckpoint(loss, 0, 0, {'losskind': 'validation'}, {})
    assert work.checkpoints().best is None
    made = [work.writecheckpoint(loss, 0, 0, {'losskind': kind}, {})
            for loss, kind in ((2.0, 'validation'), (2.0, 'validation'), (1.0, 'training'), (math.nan, 'validation'), (3.0, 'validation'))]
    assert work.checkpoints().best == work.checkpoint('best') == made[1]


def test_a_checkpoint_copied_over_another_or_renamed_is_none(tmp_path):
    work = WorkDir(tmp_path)
    made = [work.writecheckpoint(i, 0, 0, {}, ARRAYS) for i in range(3)]
    shutil.copy(tmp_path / made[1].name, tmp_path / made[2].name)
    with pytest.warns(UserWarning, match=f'{re.escape(made[2].name)}.*of another checkpoint, .{re.escape(made[1].name[:-2])}'):
        assert work.newest(lambda checkpoint: None)[0] == made[1]


def test_checkpoint_facts_of_the_wrong_kind_are_damage(tmp_path):
    work = WorkDir(tmp_path)
    made = work.writecheckpoint(1, 0, 0, {}, {})
    good = loadfacts(tmp_path / made.name)
    for key, value in [('loss', 1), ('epoch', -1), ('pos', True), ('counter', 2**63), ('counter', '1'), ('facts', []),
                       ('time', '2026-11-24'), ('time', 'noon'), ('time', 3), ('time', '2026-11-24T10:31:05+05:00'),
                       ('checksum', None), ('checksum', 3), ('arrays', '../x.npz'), ('arrays', '/etc/passwd'),
                       ('arrays', None), ('arrays', 'C:x')]:
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
    for method in WorkDir.statefile, WorkDir.checkpoints, lambda work: work.checkpoint('x'), lambda work: work.newest(None):
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
    assert work.path == tmp_path / 'a' / 'b' and len(names(work.path)) == 4 and work.statefile().name == STATE


@pytest.mark.parametrize('where, error', [('new', OSError), ('a/b/new', KeyboardInterrupt), ('there', KeyboardInterrupt)])
def test_a_creation_that_fails_leaves_the_disk_as_it_was(tmp_path, where, error):
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
    host = storage._HOST
    theirs = ['theirs.txt', f'.x.{host}-{os.getppid()}-00000000.tmp', f'.x.01234567-{os.getpid()}-00000000.tmp']
    with pytest.raises(OSError):
        with WorkDir(tmp_path).create('data.npy') as work:
            for name in [*theirs, f'.x.{host}-{os.getpid()}-00000000.tmp']:
                (tmp_path / name).write_text('x')
            savefacts(work.path / STATE, {})
            raise OSError
    assert names(tmp_path) == sorted(theirs)


@pytest.mark.parametrize('exists', [True, False])
def test_a_model_that_was_made_between_a_look_and_the_lock_is_refused_and_left_as_it_was(tmp_path, monkeypatch, exists):
    work, other, real = WorkDir(tmp_path / 'work'), WorkDir(tmp_path / 'work'), checkpoint.trainlock
    if exists:
        work.path.mkdir()

    def lockedlater(path):
        savefacts(path / STATE, {'made': 'by another'})
        other.writecheckpoint(1, 0, 0, {}, ARRAYS)
        return real(path)
    monkeypatch.setattr(checkpoint, 'trainlock', lockedlater)
    with pytest.raises(WorkDirError, match='already holds a model'), work.create('data.npy'):
        pytest.fail('went on')
    assert loadfacts(work.statefile())['made'] == 'by another' and len(other.checkpoints()) == 1
    assert other.loadarrays(*other.checkpoints())['E'].tolist() == ARRAYS['E'].tolist()


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

        def refuse(path, mode, **options):
            if 'x' in mode:
                raise PermissionError(13, 'Permission denied')
            return realopen(path, mode, **options)
        monkeypatch.setattr(storage, 'open', refuse, raising=False)
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
