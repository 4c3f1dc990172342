"""What training writes, and when: checkpoints and the history's rows, on a disk that refuses as well."""

import errno
import os
import re
import signal
import time

import numpy as np
import pytest

import report
import saver
import saving
import train
from conftest import between
from modelcases import assert_same, losses, maker
from rn_rnn_char import ModelState, RNGRUError
from test_storage import diskcalls


@pytest.fixture
def make(tmp_path):
    return maker(tmp_path)


# --- A disk that refuses ----------------------------------------------------------------------------------------------

@pytest.fixture
def disk(monkeypatch):
    """`disk.full = True`: every file that is made from then on can't be."""
    import storage

    class Disk:
        full, number = False, errno.ENOSPC
    realopen = open

    def opening(path, mode, **options):
        if Disk.full and 'x' in mode:
            raise OSError(Disk.number, os.strerror(Disk.number))
        return realopen(path, mode, **options)
    monkeypatch.setattr(storage, 'open', opening, raising=False)
    return Disk


def test_a_full_disk_in_mid_training_is_said_and_the_next_checkpoint_tries_again(make, disk, monkeypatch, capsys):
    ms, straight = make(), make('straight')
    between(ms, {3: lambda: setattr(disk, 'full', True), 9: lambda: setattr(disk, 'full', False)})
    monkeypatch.setattr(report, 'verbose', True)
    ms.trainmodel(num_rounds=3, train_len=4, batchsize=8, valid_len=1, print_every=0)
    out = capsys.readouterr().out
    assert out.count('could not be written (No space left on device)') == 2 and out.count('Checkpoint ') == 1
    assert [c.pos for c in ms.checkpoints()] == [0, 12]
    straight.trainmodel(train_len=12, batchsize=8, valid_len=1, print_every=0)
    assert_same(straight, ModelState.load(ms.workdir.path))


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_that_keeps_the_network(make, disk):
    ms = make()
    between(ms, {3: lambda: setattr(disk, 'full', True)})
    with pytest.warns(UserWarning, match='checkpoint could not be written'), \
            pytest.raises(RNGRUError, match='No space left on device') as raised:
        ms.trainmodel(num_rounds=2, train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert '\n' not in str(raised.value) and len(ms.checkpoints()) == 1
    assert ms.model.pos == 8 and len(ms.sample(5)) == 5
    disk.full = False
    eval(re.search(r'ms\.trainmodel\(.*?\)', str(raised.value))[0])        # as a person would type it
    assert ms.checkpoint == ms.checkpoints()[-1] and ms.checkpoint.pos == 9 and ms.checkpoint.kind == 'validation'
    assert_same(ms, ModelState.load(ms.workdir.path))


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_or_a_quota_that_is_full_never_costs_the_checkpoint_that_the_network_comes_from(make, disk, number):
    """The newest and the best stay too; where it isn't room that is lacking, all of them do."""
    ms, disk.number = losses(make(), 4, 3, 1, 2), number
    ms.trainmodel(num_rounds=4, train_len=2, batchsize=8, valid_len=1, print_every=0)
    untrained, first, second, best, newest = ms.checkpoints()
    ms.restore(second.name)
    losses(ms, 5)
    between(ms, {1: lambda: setattr(disk, 'full', True)})
    with pytest.warns(UserWarning, match='checkpoint could not be written'), pytest.raises(RNGRUError, match=os.strerror(number)):
        ms.trainmodel(train_len=2, batchsize=8, valid_len=1, print_every=0, keep=1)
    assert ms.checkpoints() == ([] if number != errno.EIO else [untrained, first]) + [second, best, newest]


def test_a_disk_that_refuses_from_the_beginning_is_refused_before_a_step_is_made(make, disk):
    ms, disk.full, disk.number = make(), True, errno.EROFS
    ms.model.trainstep = lambda *args: pytest.fail('a step was made')
    with pytest.raises(RNGRUError, match='cannot be used as a working directory .Read-only file system'):
        ms.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=0)


def test_a_checkpoint_that_memory_does_not_suffice_for_is_said_and_the_next_one_tries_again(make, monkeypatch):
    ms, write, calls = make(), saving.write, []

    def scarce(*args, **facts):
        calls.append(ms.model.pos)
        if len(calls) == 1:
            raise MemoryError('no more')
        return write(*args, **facts)
    monkeypatch.setattr(saving, 'write', scarce)
    with pytest.warns(UserWarning, match='checkpoint could not be written .no more.: nothing is lost'):
        ms.trainmodel(num_rounds=2, train_len=3, batchsize=8, valid_len=1, print_every=0)
    assert calls == [3, 6] and [c.pos for c in ms.checkpoints()] == [0, 6]


def test_a_disk_that_refuses_is_tried_again_when_save_every_has_passed_and_not_at_every_step(make, monkeypatch):
    ms, now, tried = make(), [0.0], []
    monkeypatch.setattr(train.time, 'monotonic', lambda: now[0])

    def refused(ms, *args, **facts):
        tried.append(ms.model.pos)
        raise OSError(5, 'Input/output error')
    monkeypatch.setattr(saving, 'write', refused)
    between(ms, dict.fromkeys(range(1, 9), lambda: now.append(now.pop() + 10)))
    with pytest.warns(UserWarning, match='checkpoint could not be written'), pytest.raises(RNGRUError, match='could not be written'):
        ms.trainmodel(train_len=8, batchsize=8, valid_len=1, print_every=0, save_every=30)
    assert tried == [3, 6, 8]


def test_ctrl_c_on_a_full_disk_is_an_error_that_keeps_the_network(make, disk):
    ms = make()
    between(ms, {3: lambda: (setattr(disk, 'full', True), os.kill(os.getpid(), signal.SIGINT), time.sleep(0.01))})
    with pytest.warns(UserWarning, match='checkpoint could not be written'), pytest.raises(RNGRUError, match='ms.trainmodel'):
        ms.trainmodel(train_len=40, batchsize=8, valid_len=1, print_every=0)
    disk.full = False
    ms.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0)
    assert [c.pos for c in ms.checkpoints()] == [0, 4]


def test_a_directory_that_vanishes_in_mid_training_and_comes_back_has_lost_nothing(make):
    ms = make()
    path = ms.workdir.path
    between(ms, {3: lambda: path.rename(path.parent / 'gone'), 7: lambda: (path.parent / 'gone').rename(path)})
    with pytest.warns(UserWarning, match='could not be written .there is no directory') as said:
        ms.trainmodel(num_rounds=2, train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert [str(each.message).split()[1] for each in said] == ['history', 'checkpoint']
    assert_same(ms, ModelState.load(path))
    between(ms, {2: lambda: (path.rename(path.parent / 'gone'), path.mkdir())})         # as where a disk is unplugged
    with pytest.warns(UserWarning, match='could not be written .*holds no model'), pytest.raises(RNGRUError, match='could not be written'):
        ms.trainmodel(train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert ModelState.load(path.parent / 'gone').checkpoint.pos == 8 and not list(path.iterdir())


# --- Checkpoints within a round ---------------------------------------------------------------------------------------

class PowerOff(BaseException):
    """What no code of ours expects, at a moment of the test's choice."""


@pytest.mark.parametrize('at', [1, 4, 10, 11, 19])
def test_a_round_that_is_cut_off_goes_on_from_its_last_save_bit_for_bit(make, at):
    ms, straight = make(regcost=0.1), make('straight', regcost=0.1)
    straight.trainmodel(train_len=25, batchsize=16, valid_len=3, print_every=0, save_every=0)       # 10 steps an epoch

    def poweroff():
        raise PowerOff
    between(ms, {at + 1: poweroff})
    with pytest.raises(PowerOff):
        ms.trainmodel(train_len=25, batchsize=16, valid_len=3, print_every=0, save_every=1e-9)
    ms = ModelState.load(ms.workdir.path)
    assert (ms.checkpoint.kind, ms.checkpoint.epoch * 10 + ms.checkpoint.pos) == ('training', at)
    ms.trainmodel(train_len=25 - at, batchsize=16, valid_len=3, print_every=0)
    assert_same(straight, ModelState.load(ms.workdir.path))
    assert ms.checkpoint.loss == straight.checkpoint.loss


def test_saves_within_a_round_take_turns_in_one_slot_and_run_no_validation(make, monkeypatch):
    ms = make()
    now, seen, losses = [0.0], [], []
    monkeypatch.setattr(train.time, 'monotonic', lambda: now[0])
    trainstep = ms.model.trainstep

    def step(*args):
        now[0] += 10
        seen.append([(c.kind, c.pos) for c in ms.checkpoints()])
        losses.append((done := trainstep(*args))[0])
        return done
    ms.model.trainstep = step
    evaluated = []
    evaluate = ms.model.evaluate
    ms.model.evaluate = lambda *args: evaluated.append(len(losses)) or evaluate(*args)
    ms.trainmodel(num_rounds=2, train_len=8, batchsize=8, valid_len=1, print_every=0, save_every=30)
    first = [('untrained', 0)]
    second = first + [('training', 6), ('validation', 8)]
    assert seen == [first] * 3 + [first + [('training', 3)]] * 3 + [first + [('training', 6)]] * 2 \
        + [second] * 3 + [first + [('validation', 8), ('training', 11)]] * 3 + [first + [('validation', 8), ('training', 14)]] * 2
    assert evaluated == [8, 16]
    assert [c.loss for c in ms.checkpoints() if c.kind == 'training'] == [pytest.approx(np.mean(losses[11:14]))]
    assert len(list(ms.workdir.path.iterdir())) == 4 + 2 * 4


def test_a_long_validation_does_not_keep_steps_unsaved(make, monkeypatch):
    ms, now = make(), [0.0]
    monkeypatch.setattr(train.time, 'monotonic', lambda: now[0])
    evaluate, kinds = ms.model.evaluate, []

    def slow(*args):
        kinds.append(ms.checkpoints()[-1].kind)
        now[0] += 400
        return evaluate(*args)
    ms.model.evaluate = slow
    ms.trainmodel(train_len=3, batchsize=8, valid_len=4, print_every=0)
    assert kinds == ['untrained', 'untrained', 'training', 'training']
    assert [c.pos for c in ms.checkpoints()] == [0, 3, 3]


def test_going_on_from_an_older_checkpoint_is_said(make, monkeypatch, capsys):
    ms = make()
    elsewhere = ModelState.load(ms.workdir.path)
    elsewhere.restore()
    ms.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=0)
    monkeypatch.setattr(report, 'verbose', True)
    elsewhere.trainmodel(train_len=2, batchsize=8, valid_len=1, print_every=0)
    assert f'newer checkpoint, {ms.checkpoint.name}' in capsys.readouterr().out
    elsewhere.trainmodel(train_len=2, batchsize=8, valid_len=1, print_every=0)
    assert 'newer checkpoint' not in capsys.readouterr().out


def test_save_every_0_writes_at_the_rounds_ends_only(make, monkeypatch):
    ms, now = make(), [0.0]
    monkeypatch.setattr(train.time, 'monotonic', lambda: now.append(now[-1] + 10000) or now[-1])
    ms.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=0, save_every=0)
    assert [c.kind for c in ms.checkpoints()] == ['untrained', 'validation']


def test_the_ctrl_c_checkpoint_takes_the_slot_too(make):
    ms = make()
    between(ms, {4: lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.01))})
    ms.trainmodel(train_len=9, batchsize=8, valid_len=1, print_every=0, save_every=1e-9)
    assert [(c.kind, c.pos) for c in ms.checkpoints()] == [('untrained', 0), ('training', 4)]


# --- The history ------------------------------------------------------------------------------------------------------

def test_the_history_has_a_row_for_each_step_and_each_validation(make):
    ms = make(clipping='norm', clip=0.1)
    trainstep, given = ms.model.trainstep, []
    ms.model.trainstep = lambda *args: given.append(trainstep(*args)) or given[-1]
    ms.trainmodel(num_rounds=2, train_len=7, batchsize=16, valid_len=1, schedule='linear', warmup=2, print_every=0)      # 10 steps an epoch
    table = ms.history()
    steps, validations = table.steps, table.validations
    assert table['kind'].tolist() == (['step'] * 7 + ['validation']) * 2
    assert steps['updates'].tolist() == list(range(1, 15)) and validations['updates'].tolist() == [7, 14]
    # Where the network stands behind the step.
    assert list(zip(steps['epoch'], steps['position'])) == [(0, i) for i in range(1, 10)] + [(1, i) for i in range(5)]
    assert steps['characters'].tolist() == [160 * i for i in range(1, 15)] and validations['characters'].tolist() == [160 * 7, 160 * 14]
    for i, name in enumerate(('loss', 'gradnorm', 'clipped')):
        assert steps[name].tolist() == pytest.approx([each[i] for each in given], rel=1e-5)
    assert set(steps['clipped']) <= {0, 1} and validations['loss'].tolist() == pytest.approx([c.loss for c in ms.checkpoints()[1:]])
    assert steps['learnrate'].tolist() == pytest.approx([0.0005, 0.001] + [0.001 * (12 - i) / 12 for i in range(12)])
    # A validation's is the next step's; behind the run's last one there is none.
    assert validations['learnrate'].tolist() == pytest.approx([0.001 * 7 / 12, np.nan], nan_ok=True)
    assert (np.diff(table['seconds']) >= 0).all() and (steps['characters_per_second'] > 0).all()
    ms = ModelState.load(ms.workdir.path)
    ms.trainmodel(train_len=2, batchsize=16, valid_len=1, print_every=0)
    table = ms.history()
    assert table['updates'].tolist()[-4:] == [14, 15, 16, 16] and table['characters'][-1] == 160 * 16
    assert (np.diff(table['seconds']) >= 0).all()                       # of all sessions together


def test_a_steps_speed_is_its_characters_over_the_time_from_its_beginning_to_its_numbers(make, monkeypatch):
    ms, now = make(), [100.0]
    trainstep, batch = ms.model.trainstep, ms.data.batch

    def took(seconds, function):
        def work(*args):
            now[0] += seconds
            return function(*args)
        return work
    monkeypatch.setattr(train.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(ms.data, 'batch', took(8, batch))               # before a step begins
    ms.model.trainstep = took(2, trainstep)
    ms.trainmodel(train_len=3, batchsize=16, valid_len=1, print_every=0)
    assert ms.history().steps['characters_per_second'].tolist() == [160 / 2] * 3


def test_rows_of_steps_that_are_made_again_are_superseded(make):
    ms, straight = make(), make('straight')
    straight.trainmodel(num_rounds=2, train_len=6, batchsize=8, valid_len=1, print_every=0)

    def poweroff():
        raise PowerOff
    between(ms, {11: poweroff})
    with pytest.raises(PowerOff):
        ms.trainmodel(num_rounds=2, train_len=6, batchsize=8, valid_len=1, print_every=0)
    assert ms.history()['updates'].tolist() == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10]              # flushed at the error
    ms = ModelState.load(ms.workdir.path)
    assert ms.model.updates == 6
    ms.trainmodel(resume=True, print_every=0)
    assert len((ms.workdir.path / 'history.csv').read_text().splitlines()) == 1 + 14 + 4       # it only grows
    for name in ('kind', 'updates', 'epoch', 'position', 'loss', 'learnrate'):
        np.testing.assert_array_equal(ms.history()[name], straight.history()[name])


def test_the_history_is_written_before_each_checkpoint_every_few_seconds_and_at_ctrl_c(make, monkeypatch):
    ms, now, seen = make(), [0.0], []
    monkeypatch.setattr(train.time, 'monotonic', lambda: now[0])

    def look():
        now[0] += 2
        seen.append(len(ms.history()) if (ms.workdir.path / 'history.csv').exists() else 0)
    between(ms, dict.fromkeys(range(1, 100), look))
    write = saving.write
    atcheckpoint = []
    monkeypatch.setattr(saving, 'write', lambda *args, **facts: atcheckpoint.append(len(ms.history())) or write(*args, **facts))
    ms.trainmodel(num_rounds=2, train_len=8, batchsize=8, valid_len=1, print_every=0, save_every=0)
    assert atcheckpoint == [9, 18] and seen[:9] == [0, 0, 0, 3, 3, 3, 6, 6, 9]                  # more than 5 seconds later
    between(ms, {4: lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.01))})
    ms.trainmodel(train_len=50, batchsize=8, valid_len=1, print_every=0)
    assert ms.history()['updates'].max() == 20


def test_a_power_loss_finds_the_rows_of_all_steps_that_a_checkpoint_holds(make, monkeypatch):
    ms = make()
    with diskcalls(monkeypatch, ms.workdir.path) as calls:
        ms.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=0)
    rows, facts = ms.workdir.path / 'history.csv', ms.checkpoint.name
    assert calls.index(f'fsync history.csv {rows.stat().st_size}') < calls.index(f'replace {facts}~ {facts}')


@pytest.mark.parametrize('damage', ['nonsense', 'directory', 'disk'])
def test_a_history_that_cannot_be_written_ends_no_training_and_is_said_once(make, monkeypatch, capsys, damage):
    ms = make()
    path = ms.workdir.path / 'history.csv'
    if damage == 'directory':
        path.mkdir()
    elif damage == 'nonsense':
        path.write_text('a,b,c\n1,2,3\n')
    else:
        def full(*args):
            raise OSError(28, 'No space left on device')
        monkeypatch.setattr(saver.History, 'flush', full)
    monkeypatch.setattr(report, 'verbose', True)
    ms.trainmodel(num_rounds=4, train_len=3, batchsize=8, valid_len=1, print_every=0, save_every=1e-9)
    out = capsys.readouterr().out
    assert out.count('The history could not be written') == 1
    assert [c.pos for c in ms.checkpoints() if c.kind == 'validation'] == [3, 6, 9, 12]
    if damage == 'nonsense':
        assert path.read_text() == 'a,b,c\n1,2,3\n'
        with pytest.raises(RNGRUError, match='holds no history of a training'):
            ms.history()


def test_before_any_training_and_in_an_old_model_there_is_no_history_but_one_begins(make):
    ms = make()
    for call in (ms.history, lambda: ms.plot(ms.workdir.path / 'x.png')):
        with pytest.raises(FileNotFoundError, match='there is no history .*history.csv.*: training writes it') as raised:
            call()
        assert '\n' not in str(raised.value)
    assert not (ms.workdir.path / 'x.png').exists() and 'history' not in ms.info()
    ms.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=0)
    (ms.workdir.path / 'history.csv').unlink()
    ms = ModelState.load(ms.workdir.path)
    ms.trainmodel(train_len=2, batchsize=8, valid_len=1, print_every=0)
    assert ms.history()['updates'].tolist() == [4, 5, 5]
    assert '  history ' in ms.info() and 'others' not in ms.info()
