"""What training promises: continuity, partial epochs, validation, samples on the way, Ctrl-C."""

import errno
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
import warnings
from pathlib import Path

import numpy as np
import pytest

import device
import report
import saver
import saving
import train
from conftest import between, naive_logits, naive_nll
from rn_rnn_char import ModelState, RNGRUError
from run import Run
from test_storage import diskcalls

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
    read, targets = dict.fromkeys(range(batchsize), ''), dict.fromkeys(range(batchsize), '')

    def trainstep(x, y, *rest):
        for row, number in enumerate(ms.model.get_state()[0, :, 0]):
            read[int(number)] += ms.charset.decode(x[:, row])
            targets[int(number)] += ms.charset.decode(y[:, row])
        return 1.0, 0.0, 0.0
    ms.model.trainstep = trainstep
    epochsteps = -(-numseqs // batchsize)
    assert ms.data.batchepoch(batchsize) == epochsteps
    run = Run(batchsize * epochsteps, epochsteps, batchsize, 1)
    for _ in range(run.steps):
        train._step(ms, run, epochsteps)
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


def test_a_printed_sample_comes_from_seed_epoch_and_position(make, capsys, monkeypatch):
    def samples(name, **options):
        ms = make(name, **options)

        def trainstep(*args):                                           # the network stays, so that the draws alone differ
            ms.model.updates += 1
            return 1.0, 0.0, 0.0
        ms.model.trainstep = trainstep
        monkeypatch.setattr(report, 'verbose', True)
        ms.trainmodel(train_len=2 * ms.data.batchepoch(40), batchsize=40, valid_len=1, print_every=1)
        return re.findall(r'--- sample at step \d+ ---\n(.*?)\n---\n', capsys.readouterr().out, re.S)
    first = samples('first')
    assert len(set(first)) == len(first) == 2 * 4                       # two epochs of four steps
    assert samples('again') == first


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
        before = ms.checkpoints()[number - 1].loss
        change = f'{abs(checkpoint.loss - before):.4f} {"less" if checkpoint.loss < before else "more"} than before'
        assert change + ' training' * (number == 1) + ';' in line
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


def test_a_watched_texts_surprise_is_told_before_training_and_behind_each_round(make, capsys, monkeypatch):
    ms, text, seen = make(), 'some words of no great meaning\n12: some \x1b[31mwords', []
    add = train.Saver.write

    def write(self, *args, **facts):
        seen.append(ms.score(text))
        return add(self, *args, **facts)
    with pytest.warns(UserWarning):
        seen.append(ms.score(text))
        monkeypatch.setattr(train.Saver, 'write', write)
        monkeypatch.setattr(report, 'verbose', True)
        monkeypatch.setattr(report, 'warn', warnings.warn)
        ms.trainmodel(num_rounds=3, train_len=8, batchsize=8, valid_len=1, print_every=0, watch=text)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('Watched')]
    assert len(lines) == len(seen) == 4
    for i, (line, score) in enumerate(zip(lines, seen)):
        shares, at, words = score.shares, 0, {}
        for word in re.split(r'(\s)', text):                        # single blanks
            words[at], at = (sum(shares[at:at + len(word)]), word), at + len(word)
        nats, word = max(each for each in words.values() if each[1].strip())
        change = '' if not i else f', {abs(score.nats - seen[i - 1].nats):.4f} {"less" if score.nats < seen[i - 1].nats else "more"}'
        assert line == f'Watched text: {score!r}{change}; most surprising {word!r}, {nats:.2f} nats'
    assert '\x1b' not in ''.join(lines) and 'less' in lines[1]


def test_a_text_that_is_cut_short_in_mid_training_ends_it_and_training_goes_on_when_it_is_back(make):
    alone, ms = make('alone'), make('cut')
    path = ms.workdir.path / 'text-v1.npy'
    whole = path.read_bytes()
    alone.trainmodel(train_len=4, batchsize=8, valid_len=1, print_every=0)
    between(ms, {3: lambda: os.truncate(path, 0)})
    with pytest.raises(RNGRUError, match='cut short'):
        ms.trainmodel(train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert ms.model.pos == 3
    path.write_bytes(whole)                     # into the same file
    ms.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0)
    np.testing.assert_array_equal(ms.model.get_state(), alone.model.get_state())


def test_watching_changes_no_training_and_is_refused_what_is_no_text(make, capsys, monkeypatch):
    alone, watched, resumed = make('alone'), make('watched'), make('resumed')
    alone.trainmodel(num_rounds=2, train_len=4, batchsize=8, valid_len=1, print_every=3)
    watched.trainmodel(num_rounds=2, train_len=4, batchsize=8, valid_len=1, print_every=3, watch='some words')
    assert capsys.readouterr().out == ''
    monkeypatch.setattr(report, 'verbose', True)
    between(resumed, {6: lambda: os.kill(os.getpid(), signal.SIGINT)})
    resumed.trainmodel(num_rounds=2, train_len=4, batchsize=8, valid_len=1, print_every=3, watch='some words')
    capsys.readouterr()
    resumed = ModelState.load(resumed.workdir.path)
    resumed.trainmodel(resume=True, print_every=3, watch=' ')          # a text without words
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('Watched')]
    assert len(lines) == 2 and all(re.fullmatch(r'Watched text: \d\.\d+ nats/char \(\d\.\d+ bits\) over 1 character(, 0\.0+ less)?', line)
                                   for line in lines)
    resumed.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0)
    assert 'Watched' not in capsys.readouterr().out
    assert_same(alone, watched)
    for text, error in (('', ValueError), (3, TypeError), (b'a', TypeError)):
        with pytest.raises(error, match='watch'):
            alone.trainmodel(train_len=1, watch=text)


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


# --- The held-out part ------------------------------------------------------------------------------------------------

def test_the_heldout_part_is_never_trained_on_and_validated_as_a_whole(make):
    ms = make(valid_frac=0.3, dropout=0.1)
    length = int(0.7 * len(TEXT)) // 10 * 10
    assert (ms.data.numchars, ms.heldout.numchars) == (length, len(TEXT) - length)
    assert ms.charset.decode(np.array(ms.data.codes[:length])) == TEXT[:length]
    trainstep, evaluate, trained, evaluated = ms.model.trainstep, ms.model.evaluate, [], []

    def step(x, y, *rest):
        trained.extend(ms.charset.decode(np.append(x[:, i], y[-1, i])) for i in range(x.shape[1]))
        return trainstep(x, y, *rest)
    ms.model.trainstep = step
    ms.model.evaluate = lambda x, y, state: evaluated.append((x.copy(), y.copy())) or evaluate(x, y, state)
    before = ms.model.arrays()
    ms.trainmodel(batchsize=8, print_every=0)
    assert len(trained) == 8 * ms.data.batchepoch(8)
    wrapped = TEXT[:length] + TEXT[0]                                   # the last target is the text's first character
    assert set(trained) == {wrapped[start:start + 11] for start in range(0, length, 10)}
    x, y = (np.concatenate([each[i].T.ravel() for each in evaluated]) for i in (0, 1))
    held = ms.charset.encode(TEXT[length:])
    assert len(y) == len(held) - 1
    assert np.array_equal(np.bincount(y), np.bincount(held[1:])) and np.array_equal(np.bincount(x), np.bincount(held[:-1]))
    # As DataSet's rows are read: eight stretches side by side from a zero state, what is left over behind the last one.
    size, params, total = (len(held) - 1) // 8, ms.model.get_params(), 0.0
    for row in range(8):
        stretch = held[row * size:(row + 1) * size + 1] if row < 7 else held[7 * size:]
        logits, _ = naive_logits(params, stretch[:-1, None], np.zeros((2, 1, 8)))
        total += naive_nll(logits, stretch[1:, None]) * (len(stretch) - 1)
    assert ms.checkpoint.loss == pytest.approx(total / (len(held) - 1), rel=1e-5)
    assert (ms.checkpoint.epoch, ms.checkpoint.pos) == (1, 0) and before.keys() == ms.model.arrays().keys()
    assert ModelState.load(ms.workdir.path).data.numchars == length
    ms.trainmodel(batchsize=8, train_len=1, print_every=0)
    trained = ModelState.load(ms.workdir.path)
    trained.model.pos = ms.data.batchepoch(8)                           # of the training part: beyond it
    saving.write(trained, 1.0, 'validation')
    with pytest.warns(UserWarning, match='beyond an epoch'):
        assert ModelState.load(ms.workdir.path).checkpoint.pos == 1


# --- By the clock, and with patience ----------------------------------------------------------------------------------

@pytest.mark.anyengine
def test_minutes_take_about_that_long_and_timing_the_steps_changes_nothing(make, monkeypatch):
    options = {'valid_frac': 0.2, 'dropout': 0.2, 'ema': 0.9, 'optimizer': 'adam'}
    ms, planned = make(**options), make('planned', **options)
    start = time.monotonic()
    ms.trainmodel(minutes=0.1, batchsize=8, schedule='cosine', warmup=7, print_every=0)
    assert 0.5 * 6 < time.monotonic() - start < 4 * 6           # of a busy machine
    checkpoint = next(c for c in ms.checkpoints() if c.kind == 'validation')
    run = Run.fromfacts(checkpoint.facts['run'])
    assert run.validated == 1 and run.done == run.train_len < run.steps and run.bestlast and run.valid_len == 0
    begun = Run(run.steps, run.train_len, 8, 0, 'cosine', 7, bestlast=True)
    monkeypatch.setattr(train, '_measure', lambda *args: (1, 1, 1))
    monkeypatch.setattr(train, 'planned', lambda *args: begun)
    planned.trainmodel(minutes=0.1, batchsize=8, schedule='cosine', warmup=7, print_every=0)
    assert_same(ms, planned)
    assert [c.loss for c in ms.checkpoints()] == [c.loss for c in planned.checkpoints()]
    assert begun.done == run.steps and not ms.history().steps['updates'][0] > 1


def test_what_compiling_and_timing_took_is_no_part_of_the_time_that_is_planned(make, monkeypatch):
    ms, now, given = make(), [100.0], []

    def measured(*args):
        now[0] += 20
        return 0.5, 3.0, 10
    monkeypatch.setattr(train.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(train, '_measure', measured)
    monkeypatch.setattr(train, 'planned', lambda run, *times: given.append(times) or Run(1, 1, 8, 1))
    ms.trainmodel(minutes=2, batchsize=8, print_every=0)
    assert given == [(100.0, 0.5, 3.0, 10)]


@pytest.mark.parametrize('valid_frac', [0.0, 0.3])
def test_timed_steps_are_taken_back_from_a_network_that_has_been_trained(make, monkeypatch, valid_frac):
    ms = make(optimizer='adam', ema=0.9, valid_frac=valid_frac)
    ms.trainmodel(train_len=3, batchsize=8, **({} if valid_frac else {'valid_len': 1}), print_every=0)
    ms.hyper.optimizer = 'adamw'                # its caches begin anew: updates that are counted apart
    ms.trainmodel(train_len=2, batchsize=8, **({} if valid_frac else {'valid_len': 1}), print_every=0)
    before, made = ms.model.arrays(), []
    monkeypatch.setattr(train, '_seconds', lambda work, atleast: made.append(work()) or 0.25)
    count = ms.heldout.numsteps(4) if valid_frac else ms.data.batchepoch(4)
    assert train._measure(ms, 4) == (0.25, 0.25 * count, count) and len(made) == 2
    assert (ms.model.updates, ms.model.cacheupdates, ms.model.pos) == (5, 2, 5)
    for name, value in ms.model.arrays().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def losses(ms, *values):
    """Have validation give these losses, a round each, whatever the network; it is of one step."""
    values = iter(values)
    ms.model.evaluate = lambda x, y, state: (float(next(values)), state)
    ms.heldout and vars(ms).update(_parts=(ms.data, OneBatch(ms.heldout)))
    return ms


class OneBatch:
    """A held-out part whose validation is one call."""

    def __init__(self, heldout):
        self.numchars = heldout.numchars

    def rows(self, batchsize):
        return 1

    def numsteps(self, batchsize):
        return 1

    def losses(self, evaluate, *rest):
        yield evaluate(None, None, None)[0]


def test_patience_ends_early_on_the_best_checkpoint_whose_copy_is_the_latest(make, monkeypatch, capsys):
    ms, straight = losses(make(valid_frac=0.2), 3, 2, 2.5, 2, 2.2), losses(make('straight', valid_frac=0.2), 3, 2, 9)
    monkeypatch.setattr(report, 'verbose', True)
    ms.trainmodel(num_rounds=9, train_len=4, batchsize=8, patience=3, print_every=0)
    out = capsys.readouterr().out
    first, second, third, fourth, fifth, copy = [c for c in ms.checkpoints() if c.kind == 'validation']
    assert [c.loss for c in (first, second, third, fourth, fifth, copy)] == [3, 2, 2.5, 2, 2.2, 2]
    # Of equals the newer one is the best: the fourth, after 16 steps.
    for said in 'Stopped early: 3 validations in a row', f'Ended on the best checkpoint, {fourth.name}', f'copy {copy.name} is the latest':
        assert said in out
    assert copy.facts['copyof'] == fourth.name and ms.checkpoint == copy and ms.model.updates == 16
    again = ModelState.load(ms.workdir.path)
    assert again.checkpoint == copy and again.model.updates == 16
    for name, value in again.workdir.loadarrays(fourth).items():
        np.testing.assert_array_equal(again.model.arrays()[name], value)
    straight.trainmodel(num_rounds=2, train_len=4, batchsize=8, print_every=0)
    straight.trainmodel(num_rounds=1, train_len=4, batchsize=8, print_every=0)
    assert straight.model.updates == 12 and not any('copyof' in c.facts for c in straight.checkpoints())    # without patience: the last one


def test_hyperparameters_that_come_back_with_the_best_checkpoint_are_told(make, monkeypatch, capsys):
    ms = losses(make(valid_frac=0.2), 2, 3, 3)
    ms.trainmodel(num_rounds=1, train_len=4, batchsize=8, print_every=0)
    rate, ms.hyper.learnrate, ms.hyper.dropout = ms.hyper.learnrate, 0.25, 0.5
    monkeypatch.setattr(report, 'verbose', True)
    ms.trainmodel(num_rounds=2, train_len=4, batchsize=8, patience=2, print_every=0)
    assert (ms.hyper.learnrate, ms.hyper.dropout) == (rate, 0)
    out = capsys.readouterr().out
    assert f'With it come the hyperparameters that it was trained with: learnrate={rate}, dropout=0.0.' in out
    assert 'Ended on the best checkpoint' in out and 'Stopped early' not in out         # all rounds that were asked for


def test_without_a_heldout_part_patience_ends_early_on_the_last_checkpoint(make):
    ms = losses(make(), 3, 2, 2.5, 2.25)
    ms.trainmodel(num_rounds=9, train_len=4, batchsize=8, valid_len=1, patience=2, print_every=0)
    assert ms.model.updates == 16 and ms.checkpoint.loss == 2.25 and len(ms.checkpoints()) == 5


def test_a_run_that_ends_on_its_best_checkpoint_anyway_writes_no_copy(make):
    ms = losses(make(valid_frac=0.2), 3, 2, 1)
    ms.trainmodel(num_rounds=3, train_len=4, batchsize=8, patience=2, print_every=0)
    assert [c.loss for c in ms.checkpoints()][1:] == [3, 2, 1] and ms.model.updates == 12


def test_best_of_a_run_with_another_batchsize_is_gone_back_to(make):
    ms = losses(make(valid_frac=0.2), 1, 3, 2)
    ms.trainmodel(train_len=4, batchsize=4, print_every=0)
    ms.trainmodel(num_rounds=2, train_len=4, batchsize=8, patience=2, print_every=0)
    again = ModelState.load(ms.workdir.path)
    assert again.checkpoint == ms.checkpoint and again.model.get_state().shape == (2, 4, 8) and again.model.updates == 4


# --- Numbers that are none --------------------------------------------------------------------------------------------

def test_a_loss_that_becomes_nan_names_the_update_and_the_next_use_goes_back(make):
    ms = make()
    trainstep, calls = ms.model.trainstep, [0]

    def step(*args):
        calls[0] += 1
        done = trainstep(*args)
        return (float('nan'), *done[1:]) if calls[0] == 6 else done
    ms.model.trainstep = step
    with pytest.raises(FloatingPointError, match='diverged at update 6, epoch 0, position 5') as raised:
        ms.trainmodel(num_rounds=3, train_len=4, batchsize=8, valid_len=1, print_every=0)
    assert '\n' not in str(raised.value)
    assert [c.pos for c in ms.checkpoints()] == [0, 4] and (ms.model.updates, ms.model.pos) == (4, 4)
    table = ms.history()
    assert table.steps['updates'].tolist() == [1, 2, 3, 4, 5] and np.isfinite(table['loss']).all()
    ms.hyper.learnrate = 0.0001
    ms.trainmodel(resume=True, print_every=0)
    assert ms.model.updates == 12 and ms.history().steps['learnrate'].tolist() == pytest.approx([0.001] * 4 + [0.0001] * 8)


def test_of_steps_that_are_told_of_late_no_checkpoint_and_no_row_is_wrong(make, monkeypatch):
    """As on a device that computes by itself: a checkpoint in mid-round holds all steps made, and the history each of them once."""
    plain, late, saved = make('plain'), make('late'), []
    plain.trainmodel(num_rounds=2, train_len=6, batchsize=8, valid_len=1, print_every=0)
    write = saving.write

    def noting(ms, loss, losskind, **facts):
        saved.append((losskind, ms.model.updates, loss, len(ms.history().steps['loss'])))
        return write(ms, loss, losskind, **facts)
    monkeypatch.setattr(saving, 'write', noting)
    monkeypatch.setattr(device.Processor, 'runson', True)
    late.trainmodel(num_rounds=2, train_len=6, batchsize=8, valid_len=1, print_every=0, save_every=1e-9)
    losses = late.history().steps['loss']
    assert late.history().steps['updates'].tolist() == list(range(1, 13))
    np.testing.assert_array_equal(losses, plain.history().steps['loss'])
    training = [each for each in saved if each[0] == 'training']
    assert len(training) > 2 and all(updates == rows for _, updates, _, rows in saved)
    before = 0
    for kind, updates, loss, _ in saved:
        if kind == 'training':
            assert loss == pytest.approx(losses[before:updates].mean(), abs=1e-7)           # of the steps that no checkpoint held
        before = updates
    assert_same(plain, late)


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
