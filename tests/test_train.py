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
import warnings
from pathlib import Path

import numpy as np
import pytest

import device
import report
import saving
import train
from conftest import between, naive_logits, naive_nll
from modelcases import TEXT, assert_same, maker
from rn_rnn_char import ModelState, RNGRUError
from run import Run

ROOT = Path(__file__).parent.parent


@pytest.fixture
def make(tmp_path):
    return maker(tmp_path)


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
