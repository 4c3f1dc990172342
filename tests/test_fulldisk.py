"""A real disk that is full, or turns read-only: a small file system in memory, where the tests may mount one.

Elsewhere test_checkpoint.py and test_saver.py have a stand-in that fails at each write in turn.
"""

import os
import shutil
import subprocess

import pytest

import lock
import report
from checkpoint import WorkDir
from conftest import between
from rn_rnn_char import ModelState, RNGRUError

TEXT = 'Some words of no great meaning, and then some more of them.\n' * 40


@pytest.fixture
def disk(tmp_path):
    """Path of a file system of 200 kB."""
    path = tmp_path / 'disk'
    path.mkdir()
    if not hasattr(os, 'geteuid') or os.geteuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=200k', 'none', str(path)],
                                                                    capture_output=True).returncode:
        pytest.skip('no file system may be mounted here')
    yield path
    subprocess.run(['umount', '-l', str(path)], check=True)


def make(disk, tmp_path, **options):
    (tmp_path / 'text.txt').write_text(TEXT)
    return ModelState.initfromsrcfile(tmp_path / 'text.txt', disk / 'work', **{'seq_len': 10, 'state_size': 16, 'seed': 1, **options})


def fill(disk, leave=0):
    """Fill the file system but for `leave` bytes, in whole pages."""
    free = shutil.disk_usage(disk).free
    with open(disk / 'filler', 'ab') as file:
        file.write(bytes(max(free - leave, 0)))


def iswhole(path, count):
    found, bad = WorkDir(path).scan()
    for each in found:
        WorkDir(path).loadarrays(each)
    assert not bad and len(found) == count and not [name for name in os.listdir(path) if name.endswith('.tmp')]
    return True


def test_a_model_on_a_disk_without_room_is_refused_and_leaves_the_disk(disk, tmp_path):
    made = 0
    for pages in range(0, 20):
        fill(disk, pages * 4096)
        before = sorted(disk.rglob('*'))
        try:
            make(disk, tmp_path)
        except (OSError, RNGRUError) as error:
            assert 'No space left' in str(error) and '\n' not in str(error)
            assert sorted(disk.rglob('*')) == before and not made
        else:
            made += 1
            assert iswhole(disk / 'work', 1)
            shutil.rmtree(disk / 'work')
        (disk / 'filler').unlink()
    assert 5 < made < 20


def test_a_disk_that_fills_in_mid_training_ends_nothing(disk, tmp_path, monkeypatch, capsys):
    ms = make(disk, tmp_path)
    monkeypatch.setattr(report, 'verbose', True)
    between(ms, {6: lambda: fill(disk), 14: (disk / 'filler').unlink})
    ms.trainmodel(num_rounds=4, train_len=5, batchsize=8, valid_len=1, print_every=0, save_every=0)
    said = [line for line in capsys.readouterr().out.splitlines() if 'could not be written' in line]
    assert len(said) == 1 and 'No space left on device' in said[0]
    assert [c.pos for c in ms.checkpoints()] == [0, 5, 15, 20] and iswhole(disk / 'work', 4)


def test_a_disk_that_stays_full_loses_no_checkpoint_and_the_network_stays(disk, tmp_path):
    ms = make(disk, tmp_path)
    with pytest.warns(UserWarning, match='checkpoint could not be written'), \
            pytest.raises(RNGRUError, match='could not be written.*No space left on device'):
        ms.trainmodel(num_rounds=20, train_len=3, batchsize=8, valid_len=1, print_every=0, save_every=1e-9)     # more than it holds
    kept = len(ms.checkpoints())
    assert 3 < kept < 20 and iswhole(disk / 'work', kept)
    again = ModelState.load(disk / 'work')
    again.restore()
    assert (again.model.epoch, again.model.pos) == (ms.checkpoint.epoch, ms.checkpoint.pos) and len(again.sample(5)) == 5
    ms.workdir.prune(1)                         # makes room
    ms.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0)
    assert ModelState.load(disk / 'work').checkpoint == ms.checkpoint


def test_keep_makes_room_on_a_full_disk_before_the_next_checkpoint(disk, tmp_path, monkeypatch, capsys):
    """Four checkpoints without keep; then the disk is full, and keep=2 lets go of all but the newest and the best, so that each round is
    written."""
    ms = make(disk, tmp_path)
    ms.trainmodel(num_rounds=3, train_len=3, batchsize=8, valid_len=1, print_every=0)
    assert [c.pos for c in ms.checkpoints()] == [0, 3, 6, 9]
    gone = 4 - len({ms.checkpoints()[-1].pos, ms.checkpoints().best.pos})
    fill(disk)
    monkeypatch.setattr(report, 'verbose', True)
    ms.trainmodel(num_rounds=4, train_len=3, batchsize=8, valid_len=1, print_every=0, keep=2)
    said = capsys.readouterr().out
    assert f'The disk is full: {gone} older checkpoints made room' in said and 'could not be written' not in said
    found = ms.checkpoints()
    assert [c.pos for c in found][-2:] == [18, 21] and len(found) <= 3 and found.best in found and iswhole(disk / 'work', len(found))


@pytest.mark.filterwarnings('ignore:The checkpoint could not be written')
@pytest.mark.parametrize('keep', [1, 2, 3])
def test_a_full_disk_never_costs_the_newest_nor_the_best_checkpoint(disk, tmp_path, keep):
    ms = make(disk, tmp_path)
    ms.trainmodel(num_rounds=3, train_len=3, batchsize=8, valid_len=1, print_every=0)
    newest, best = ms.checkpoints()[-1], ms.checkpoints().best
    between(ms, {1: lambda: fill(disk)})
    makeroom = WorkDir.makeroom
    try:
        WorkDir.makeroom = lambda *given: makeroom(*given) * (fill(disk) is None)       # others take what becomes free
        with pytest.raises(RNGRUError, match='No space left'):
            ms.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=0, keep=keep)
    finally:
        WorkDir.makeroom = makeroom
    found = ms.checkpoints()
    assert newest in found and best in found and max(keep - 1, 1) <= len(found) <= max(keep, 2) and iswhole(disk / 'work', len(found))


def test_a_full_disk_costs_no_checkpoint_where_the_newest_is_damaged(disk, tmp_path):
    ms = make(disk, tmp_path)
    ms.trainmodel(num_rounds=3, train_len=3, batchsize=8, valid_len=1, print_every=0)
    count, newest = len(ms.checkpoints()), ms.checkpoints()[-1]
    path = disk / 'work' / newest.arrays
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert ms.workdir.makeroom(1) == 0 and len(ms.checkpoints()) == count


@pytest.mark.filterwarnings('ignore:The checkpoint could not be written')
def test_every_amount_of_room_gives_the_old_or_the_new_checkpoint(disk, tmp_path):
    ms = make(disk, tmp_path)
    ms.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0)
    written = 0
    for pages in range(0, 16):
        fill(disk, pages * 4096)
        newest, best = ms.checkpoints()[-1], ms.checkpoints().best
        try:
            ms.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0, keep=1)
            written += 1
        except RNGRUError:
            assert {newest, best} <= set(ms.checkpoints())
        (disk / 'filler').unlink()
        iswhole(disk / 'work', len(ms.checkpoints()))
        if written > 2:
            break
    assert pages > 4 and written == 3


def test_a_directory_that_turns_read_only_is_a_disk_that_refuses(disk, tmp_path, monkeypatch, capsys):
    ms = make(disk, tmp_path)

    def remount(how):
        subprocess.run(['mount', '-o', f'remount,{how}', str(disk)], check=True)
    monkeypatch.setattr(report, 'verbose', True)
    between(ms, {2: lambda: remount('ro'), 8: lambda: remount('rw')})
    with monkeypatch.context() as patch:
        patch.setattr(lock, 'fcntl', None)      # `mount` is politer than a failing disk: it lets no file stay open for writing
        ms.trainmodel(num_rounds=3, train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert 'could not be written (Read-only file system)' in capsys.readouterr().out
    assert [c.pos for c in ms.checkpoints()] == [0, 8, 12] and iswhole(disk / 'work', 3)
    remount('ro')
    with pytest.raises(RNGRUError, match='Read-only'):
        ms.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0)
    ms = ModelState.load(disk / 'work')         # and reading works
    ms.restore()
    assert len(ms.sample(5)) == 5 and 'Every file is whole' in ms.info()
    remount('rw')
