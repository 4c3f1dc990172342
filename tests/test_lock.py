"""One trainer in a directory; readers always welcome; no lock that outlives its holder."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lock
import report
from errors import WorkDirError
from lock import LOCKFILE, holder, trainlock
from rn_rnn_char import ModelState

ROOT = Path(__file__).parent.parent
HOLD = '''
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from lock import trainlock
with trainlock(Path({path!r})):
    print('locked', flush=True)
    sys.stdin.read()
'''


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock."""
    process = subprocess.Popen([sys.executable, '-c', HOLD.format(root=str(ROOT), path=str(tmp_path))],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'locked\n'
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_second_process_is_refused_in_one_sentence_that_names_the_first(tmp_path, other):
    with pytest.raises(WorkDirError, match=f'process {other.pid} on .* is training') as raised:
        with trainlock(tmp_path):
            pytest.fail('not refused')
    assert '\n' not in str(raised.value) and str(tmp_path) in str(raised.value)
    assert holder(tmp_path).startswith(f'process {other.pid} on ')


@pytest.mark.parametrize('end', [lambda other: other.kill(), lambda other: other.stdin.close()], ids=['killed', 'done'])
def test_the_lock_ends_with_its_holder(tmp_path, other, end):
    end(other)
    other.wait()
    assert holder(tmp_path) is None
    for _ in range(2):
        with trainlock(tmp_path):
            assert holder(tmp_path).startswith(f'process {os.getpid()} on ')
    assert holder(tmp_path) is None and os.listdir(tmp_path) == [LOCKFILE]


def test_one_process_cannot_train_twice_either(tmp_path):
    with trainlock(tmp_path):
        with pytest.raises(WorkDirError):
            with trainlock(tmp_path):
                pytest.fail('not refused')
        assert holder(tmp_path)


def test_an_error_within_frees_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with trainlock(tmp_path):
            1 / 0
    assert holder(tmp_path) is None


def test_a_lock_file_that_vanishes_or_is_nonsense_does_no_harm(tmp_path):
    assert holder(tmp_path) is None and holder(tmp_path / 'none') is None
    (tmp_path / LOCKFILE).write_bytes(b'\xff' * 10000)
    with trainlock(tmp_path):
        assert (tmp_path / LOCKFILE).stat().st_size < 300
        os.unlink(tmp_path / LOCKFILE)          # as a creation that fails does
        with trainlock(tmp_path):
            pass


@pytest.mark.parametrize('error', [errno.ENOLCK, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_without_locks_is_said_and_no_error(tmp_path, monkeypatch, capsys, error):
    def flock(file, how):
        raise OSError(error, os.strerror(error))
    monkeypatch.setattr(lock.fcntl, 'flock', flock)
    monkeypatch.setattr(report, 'verbose', True)
    with trainlock(tmp_path):
        out = capsys.readouterr().out
    assert os.strerror(error) in out and out.count('\n') == 1 and holder(tmp_path) is None


def test_a_directory_that_is_gone_and_a_system_without_flock_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, 'verbose', True)
    with trainlock(tmp_path / 'gone'):
        assert 'No such file' in capsys.readouterr().out
    monkeypatch.setattr(lock, 'fcntl', None)
    with trainlock(tmp_path):
        assert 'no flock' in capsys.readouterr().out
    assert holder(tmp_path) is None and os.listdir(tmp_path) == []


def test_a_trainer_that_is_refused_leaves_the_directory_alone(tmp_path, text):
    ms = ModelState.initfromsrcfile(text, tmp_path / 'work', seq_len=10, state_size=4)
    with trainlock(tmp_path / 'work'):
        before = os.stat(tmp_path / 'work').st_mtime_ns
        with pytest.raises(WorkDirError, match='is training'):
            ms.trainmodel(train_len=1, batchsize=2, valid_len=1, print_every=0)
        assert os.stat(tmp_path / 'work').st_mtime_ns == before


TRAIN = '''
import sys
sys.path.insert(0, {root!r})
from rn_rnn_char import ModelState
ms = ModelState.load({path!r})
import report
report.verbose = False
ms.model.trainstep
print('ready', flush=True)
ms.trainmodel(num_rounds=1, train_len=10 ** 9, batchsize=8, print_every=0, save_every=1e-9)
'''


def test_readers_see_a_whole_state_while_another_process_trains_and_trainers_are_refused(tmp_path):
    from rn_rnn_char import ModelState
    (tmp_path / 'text.txt').write_text('Some words of no great meaning.\n' * 40)
    path = tmp_path / 'work'
    ModelState.initfromsrcfile(tmp_path / 'text.txt', path, seq_len=10, state_size=8, seed=1)
    process = subprocess.Popen([sys.executable, '-c', TRAIN.format(root=str(ROOT), path=str(path))], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b'ready\n'
        seen, trained, stale = set(), False, None
        while len(seen) < 40:                   # the one slot is replaced all the time
            ms = ModelState.load(path)
            assert len(ms.sample(3)) == 3 if len(seen) % 20 == 0 else ms.model
            kinds = ms.checkpoint.kind, ms.checkpoints()[-1].kind
            assert set(kinds) == {'training'} or not trained, kinds         # old or new, never neither
            trained = trained or kinds[1] == 'training'
            if stale is None and trained:
                stale = ModelState.load(path)
            assert sum(c.kind == 'training' for c in ms.checkpoints()) <= 2
            seen.add(ms.checkpoint.name)
        gone = stale.checkpoint
        assert gone.kind == 'training' and stale.model and stale.checkpoint.counter > gone.counter       # the newest in its place
        with pytest.raises(WorkDirError, match=f'process {process.pid} '):
            ms.trainmodel(train_len=1, valid_len=1)
        with pytest.raises(WorkDirError):
            ModelState.initfromsrcfile(tmp_path / 'text.txt', path)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    ms = ModelState.load(path)
    ms.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0, save_every=1e-9)        # takes with it what the kill left
    assert sum(c.kind == 'training' for c in ms.checkpoints()) <= 1 and not [name for name in os.listdir(path) if name.endswith('.tmp')]


def test_two_that_make_a_model_in_one_directory_do_not_mix(tmp_path):
    from checkpoint import WorkDir
    with WorkDir(tmp_path / 'work').create('data.npy') as work:
        (work.path / 'data.npy').write_bytes(b'x')
        with pytest.raises(WorkDirError):
            with WorkDir(tmp_path / 'work').create('other.npy'):
                pytest.fail('not refused')
        assert sorted(os.listdir(work.path)) == ['data.npy', LOCKFILE]


def test_what_a_killed_making_of_a_model_left_is_made_anew(tmp_path):
    from rn_rnn_char import ModelState
    (tmp_path / 'text.txt').write_text('Some words of no great meaning.\n' * 40)
    program = f'''
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import opening
from rn_rnn_char import ModelState
opening.savefacts = lambda *args: os.kill(os.getpid(), 9)
ModelState.initfromsrcfile({str(tmp_path / 'text.txt')!r}, {str(tmp_path / 'work')!r}, seq_len=10, state_size=8)
'''
    subprocess.run([sys.executable, '-c', program], cwd=ROOT)
    assert 'text-v1.npy' in os.listdir(tmp_path / 'work')
    with pytest.raises(WorkDirError, match='holds no model'):
        ModelState.load(tmp_path / 'work')
    ModelState.initfromsrcfile(tmp_path / 'text.txt', tmp_path / 'work', seq_len=10, state_size=8)
    assert ModelState.load(tmp_path / 'work').checkpoint.kind == 'untrained'


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no such links for everybody')
@pytest.mark.parametrize('what', ['link', 'hard link', 'directory', 'pipe'])
def test_a_lock_file_that_is_another_file_is_refused_and_left_alone(tmp_path, what):
    victim = tmp_path / 'victim'
    victim.write_text('precious')
    path = tmp_path / lock.LOCKFILE
    {'link': lambda: path.symlink_to(victim), 'hard link': lambda: os.link(victim, path), 'directory': path.mkdir,
     'pipe': lambda: os.mkfifo(path)}[what]()
    with pytest.raises(WorkDirError, match='no plain file'):
        with lock.trainlock(tmp_path):
            pass
    assert lock.holder(tmp_path) is None
    assert victim.read_text() == 'precious'
