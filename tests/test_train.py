"""What training promises: continuity, partial epochs, validation, samples on the way, Ctrl-C."""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

import report
import train
from rn_rnn_char import ModelState, RNGRUError
from run import Run

ROOT = Path(__file__).parent.parent
TEXT = ''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(40))


@pytest.fixture
def make(tmp_path):
    (tmp_path / 'text.txt').write_text(TEXT)

    def make(name='work', text=None, **options):
        (tmp_path / 'text.txt').write_text(text or TEXT)
        return ModelState.initfromsrcfile(tmp_path / 'text.txt', tmp_path / name,
                                          **{'seq_len': 10, 'state_size': 8, 'seed': 1, 'layers': 2, **options})
    return make


def assert_same(one, two):
    for name, value in one.model.arrays().items():
        np.testing.assert_array_equal(two.model.arrays()[name], value, err_msg=name)
    assert (one.model.epoch, one.model.pos) == (two.model.epoch, two.model.pos)


@pytest.mark.parametrize('numseqs, batchsize', [(12, 3), (12, 4), (11, 3), (10, 4), (5, 1), (6, 6)])
def test_each_state_vector_walks_through_the_whole_source(make, numseqs, batchsize):
    """Each vector carries a number; a step in the network's place writes down what each number's row has read."""
    text = ''.join(chr(0x4e00 + i) for i in range(numseqs * 10 - 3))        # the last sequence is padded with 3 characters
    ms = make(text=text, layers=1)
    padded = text + text[:3]
    ms.model.set_state(np.arange(batchsize)[None, :, None] * np.ones(8))
    read, targets = {i: '' for i in range(batchsize)}, {i: '' for i in range(batchsize)}

    def trainstep(x, y, *rest):
        for row, number in enumerate(ms.model.get_state()[0, :, 0]):
            read[int(number)] += ms.charset.decode(x[:, row])
            targets[int(number)] += ms.charset.decode(y[:, row])
        return 1.0, 0.0, 0.0
    ms.model.trainstep = trainstep
    epochsteps = -(-numseqs // batchsize)
    assert ms.data.batchepoch(batchsize) == epochsteps
    run = Run(batchsize * epochsteps, epochsteps, batchsize, 1)
    saver = train.Saver(ms, run, 0, None)
    for _ in range(run.steps):
        train._step(ms, run, epochsteps, saver, train.Advisor(ms))
    assert (ms.model.epoch, ms.model.pos) == (batchsize, 0)
    for i in range(batchsize):
        # Where B doesn't divide n, the last rows re-read the text's beginning before they wrap to row 0.
        segments = [''.join(padded[(j * epochsteps + p) % numseqs * 10:][:10] for p in range(epochsteps)) for j in range(batchsize)]
        assert read[i] == ''.join(segments[i:] + segments[:i])
        if numseqs % batchsize == 0:
            start = i * epochsteps * 10
            assert read[i] == padded[start:] + padded[:start]
            following = padded[1:] + text[3]        # at the very end: the character that would come next, not the first one
            assert targets[i] == following[start:] + following[:start]


def test_two_rounds_are_one_of_twice_the_length_bit_for_bit(make):
    long, short, resumed = make('long'), make('short'), make('resumed')
    long.trainmodel(train_len=30, batchsize=16, valid_len=3, print_every=0)             # three epochs of 10 steps
    short.trainmodel(num_rounds=2, train_len=15, batchsize=16, valid_len=9, print_every=4)
    resumed.trainmodel(train_len=15, batchsize=16, valid_len=1, print_every=0)
    resumed = ModelState.load(resumed.workdir.path)
    resumed.trainmodel(train_len=15, batchsize=16, valid_len=3, print_every=7)
    assert long.model.epoch == 3
    assert_same(long, short)
    assert_same(long, resumed)


def test_validation_is_the_loss_of_the_next_steps_and_changes_nothing(make):
    ms = make()
    ms.trainmodel(train_len=9, batchsize=16, valid_len=4, print_every=0)                # 10 steps an epoch: crosses the rollover
    before = ms.model.arrays()
    state, losses = ms.model.get_state(), []
    for epoch, pos in ((0, 9), (1, 0), (1, 1), (1, 2)):
        if (epoch, pos) == (1, 0):
            state = np.stack([np.vstack([s[-1:], s[:-1]]) for s in state])              # the roll, by hand
        loss, state = ms.model.evaluate(*ms.data.batch(pos, 16), state)
        losses.append(loss)
    assert ms.checkpoints()[-1].loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert (ms.model.epoch, ms.model.pos) == (0, 9)
    stored = ms.workdir.loadarrays(ms.checkpoints()[-1])
    for name, value in before.items():
        np.testing.assert_array_equal(stored[name], value)


def test_zero_lengths_mean_an_epoch(make):
    ms = make()
    calls = []
    evaluate = ms.model.evaluate
    ms.model.evaluate = lambda *args: calls.append(1) or evaluate(*args)
    ms.trainmodel(batchsize=20, print_every=0)
    assert (ms.model.epoch, ms.model.pos) == (1, 0)
    assert len(calls) == ms.data.batchepoch(20)


def test_samples_come_before_the_first_step_and_every_print_every_steps_across_rounds(make, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    ms = make()
    ms.trainmodel(num_rounds=3, train_len=5, batchsize=8, valid_len=1, print_every=7)
    out = capsys.readouterr().out
    assert [int(n) for n in re.findall(r'sample at step (\d+)', out)] == [0, 7, 14]
    texts = re.findall(r'--- sample at step \d+ ---\n(.*?)\n---\n', out, re.S)
    assert [len(text) for text in texts] == [100] * 3
    ms.trainmodel(train_len=5, batchsize=8, valid_len=1, print_every=0)
    assert 'sample' not in capsys.readouterr().out


def test_what_a_person_sees(make, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    ms = make()
    ms.trainmodel(num_rounds=2, train_len=3, batchsize=8, valid_len=2, print_every=0)
    out = capsys.readouterr().out
    params = sum(value.size for value in ms.model.get_params().values())
    assert f'GRUEncode 2 x 8, {params:,} parameters' in out and f'{len(TEXT):,} characters' in out
    assert f'{ms.data.batchepoch(8)} steps' in out and 'Compiled training' in out and 'third' not in out
    for number, checkpoint in enumerate(ms.checkpoints()[-2:], 1):
        line, = (line for line in out.splitlines() if line.startswith(f'Round {number}/2: validation'))
        assert f'{checkpoint.loss:.4f} nats/char ({checkpoint.loss / np.log(2):.4f} bits)' in line and checkpoint.name in line
        assert re.search(r'\d (less|more) than before( training)?', line)
    ms.trainmodel(train_len=1, batchsize=8, print_every=0)
    assert "about a third of an epoch's training" in capsys.readouterr().out


def test_another_batchsize_starts_the_epoch_again_from_a_zero_state_and_says_so(make, capsys, monkeypatch):
    ms = make()
    ms.trainmodel(train_len=13, batchsize=16, valid_len=1, print_every=0)
    assert (ms.model.epoch, ms.model.pos) == (1, 3)
    monkeypatch.setattr(report, 'verbose', True)
    seen = []
    trainstep = ms.model.trainstep
    ms.model.trainstep = lambda *args: seen.append((ms.model.epoch, ms.model.pos, ms.model.get_state())) or trainstep(*args)
    ms.trainmodel(train_len=2, batchsize=4, valid_len=1, print_every=0)
    assert seen[0][:2] == (1, 0) and seen[0][2].shape == (2, 4, 8) and not seen[0][2].any()
    assert 'batches of 16' in capsys.readouterr().out


def test_clear_state_zeroes_the_state_and_keeps_the_position(make):
    ms = make()
    ms.trainmodel(train_len=3, batchsize=16, valid_len=1, print_every=0)
    seen = []
    trainstep = ms.model.trainstep
    ms.model.trainstep = lambda *args: seen.append((ms.model.pos, ms.model.get_state().any())) or trainstep(*args)
    ms.trainmodel(train_len=1, batchsize=16, valid_len=1, print_every=0)
    ms.trainmodel(train_len=1, batchsize=16, valid_len=1, print_every=0, clear_state=True)
    assert seen == [(3, True), (4, False)]


def test_training_learns(make):
    ms = make(learnrate=0.01)
    ms.trainmodel(num_rounds=2, train_len=80, batchsize=16, valid_len=11, print_every=0)
    losses = [c.loss for c in ms.checkpoints()]
    assert losses[0] > 3 and losses[-1] < 2


def test_a_loss_that_is_no_number_stops_training_without_a_checkpoint(make):
    ms = make()
    ms.model.params['c'].set_value(np.full(len(ms.charset), np.nan, np.float32))
    with pytest.raises(FloatingPointError, match='ms.restore'):
        ms.trainmodel(train_len=3, batchsize=8, print_every=0)
    assert len(ms.checkpoints()) == 1
    ms.restore()
    ms.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=0)


def test_ctrl_c_ends_after_the_step_in_hand_with_a_checkpoint(make):
    ms = make()
    trainstep, losses = ms.model.trainstep, []

    def interrupted(*args):
        losses.append((done := trainstep(*args))[0])
        if len(losses) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return done
    ms.model.trainstep = interrupted
    handler = signal.getsignal(signal.SIGINT)
    ms.trainmodel(num_rounds=5, train_len=50, batchsize=8, valid_len=2, print_every=0)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(losses) == 4 and len(ms.checkpoints()) == 2
    last = ms.checkpoints()[-1]
    assert last.pos == 4 and last.loss == pytest.approx(np.mean(losses)) and last.facts['losskind'] == 'training'
    straight = make('straight')
    straight.trainmodel(train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert_same(straight, ModelState.load(ms.workdir.path))


def test_a_second_ctrl_c_ends_at_once(make):
    ms = make()

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        return 1.0
    ms.model.trainstep = interrupted
    with pytest.raises(KeyboardInterrupt):
        ms.trainmodel(train_len=50, batchsize=8, print_every=0)
    assert len(ms.checkpoints()) == 1


def test_in_a_real_terminal_ctrl_c_gives_the_prompt_back(make, tmp_path):
    """`python3 -i rn_rnn_char.py` in a pseudo-terminal: banner, progress bar, Ctrl-C, prompt, and the checkpoint is there."""
    make('work').trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0)
    leader, follower = pty.openpty()
    termios.tcsetwinsize(leader, (24, 100))
    shell = subprocess.Popen([sys.executable, '-i', 'rn_rnn_char.py'], cwd=ROOT, stdin=follower, stdout=follower, stderr=follower,
                             start_new_session=True, env={**os.environ, 'TERM': 'dumb'},
                             preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(follower)
    seen = ''

    def until(pattern, seconds=30):
        nonlocal seen
        end = time.monotonic() + seconds
        while not re.search(pattern, seen):
            assert select.select([leader], [], [], end - time.monotonic())[0], f'no {pattern!r} in {seen!r}'
            seen += os.read(leader, 65536).decode()
        seen = seen[re.search(pattern, seen).end():]
    try:
        until('(?s)RN-GRU.*>>> ')
        os.write(leader, f'ms = ModelState.load({str(tmp_path / "work")!r})\n'.encode())
        until('>>> ')
        os.write(leader, b'ms.trainmodel(num_rounds=1, train_len=1000000, batchsize=8, print_every=0)\n')
        until(r'Round 1/1.*loss \d')
        os.write(leader, b'\x03')
        until('Stopped in round 1')
        until('>>> ')
        os.write(leader, b'print(len(ms.checkpoints()), ms.checkpoints()[-1].facts["losskind"])\n')
        until('3 training')
    finally:
        shell.kill()
        shell.wait()
        os.close(leader)


def test_printing_and_sampling_change_no_training(make):
    quiet, busy = make('quiet'), make('busy')
    quiet.trainmodel(train_len=6, batchsize=8, valid_len=1, print_every=0)
    report.verbose = True
    busy.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=1)
    busy.sample(20), busy.trackneurons('abc'), busy.sample(5, seed=9)
    busy.trainmodel(train_len=3, batchsize=8, valid_len=1, print_every=2)
    assert_same(quiet, busy)


def test_a_network_that_has_diverged_is_not_saved_over_a_good_one(make):
    ms = make()
    ms.model.trainstep = lambda *args: (1.0, 0.0, 0.0)              # the loss of a step is that before its update
    between(ms, {4: lambda: ms.model.params['c'].set_value(np.full(len(ms.charset), np.inf, np.float32))})
    with pytest.raises(FloatingPointError, match='ms.restore'):
        ms.trainmodel(train_len=9, batchsize=8, valid_len=1, print_every=0, save_every=1e-9)
    assert [c.pos for c in ms.checkpoints()] == [0, 3]
    ms.restore()
    assert ms.model.pos == 3 and len(ms.sample(5)) == 5


# --- A disk that refuses ----------------------------------------------------------------------------------------------

@pytest.fixture
def disk(monkeypatch):
    """`disk.full = True`: every file that is made from then on can't be."""
    import storage

    class Disk:
        full = False
    realopen = open

    def opening(path, mode, **options):
        if Disk.full and 'x' in mode:
            raise OSError(28, 'No space left on device')
        return realopen(path, mode, **options)
    monkeypatch.setattr(storage, 'open', opening, raising=False)
    return Disk


def between(ms, actions):
    """Have `actions[n]` called before the n-th step from now."""
    trainstep, count = ms.model.trainstep, [0]

    def step(*args):
        count[0] += 1
        actions.get(count[0], int)()
        return trainstep(*args)
    ms.model.trainstep = step


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
    with pytest.raises(RNGRUError, match='No space left on device') as raised:
        ms.trainmodel(num_rounds=2, train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert '\n' not in str(raised.value) and len(ms.checkpoints()) == 1
    assert ms.model.pos == 8 and len(ms.sample(5)) == 5
    disk.full = False
    eval(re.search(r'ms\.trainmodel\(.*?\)', str(raised.value))[0])        # as a person would type it
    assert ms.checkpoint == ms.checkpoints()[-1] and ms.checkpoint.pos == 9 and ms.checkpoint.kind == 'validation'
    assert_same(ms, ModelState.load(ms.workdir.path))


def test_ctrl_c_on_a_full_disk_is_an_error_that_keeps_the_network(make, disk):
    ms = make()
    between(ms, {3: lambda: (setattr(disk, 'full', True), os.kill(os.getpid(), signal.SIGINT), time.sleep(0.01))})
    with pytest.raises(RNGRUError, match='ms.trainmodel'):
        ms.trainmodel(train_len=40, batchsize=8, valid_len=1, print_every=0)
    disk.full = False
    ms.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0)
    assert [c.pos for c in ms.checkpoints()] == [0, 4]


def test_a_directory_that_vanishes_in_mid_training_and_comes_back_has_lost_nothing(make):
    ms = make()
    path = ms.workdir.path
    between(ms, {3: lambda: path.rename(path.parent / 'gone'), 7: lambda: (path.parent / 'gone').rename(path)})
    ms.trainmodel(num_rounds=2, train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert_same(ms, ModelState.load(path))
    between(ms, {2: lambda: (path.rename(path.parent / 'gone'), path.mkdir())})         # as where a disk is unplugged
    with pytest.raises(RNGRUError, match='could not be written'):
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
