"""A run that is killed again and again ends bit for bit where the one that was left alone ends."""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import engine
import native
import train
from checkpoint import WorkDir
from rn_rnn_char import ModelState

ROOT = Path(__file__).parent.parent
TEXT = ''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(40))

# Loads, resumes and trains up to step `total`, in rounds of 40 steps, saving as often as it can; each step takes a while.
TRAINER = '''
import sys, time
sys.path.insert(0, {root!r})
import report
report.verbose = False
from rn_rnn_char import ModelState
total, pause, threads = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
ms = ModelState.load(sys.argv[1])
trainstep = ms.model.trainstep
def step(*args):
    time.sleep(pause)
    return trainstep(*args)
ms.model.trainstep = step
print('ready', flush=True)
while left := total - (ms.model.epoch * ms.data.batchepoch(8) + ms.model.pos):
    ms.trainmodel(num_rounds=max(1, left // 40), train_len=min(40, left), batchsize=8, valid_len=2, print_every=0, save_every=0.004, keep=2,
                  threads=threads)
'''


def trainer(path, total, pause=0.0, threads=1, **environment):
    return subprocess.Popen([sys.executable, '-c', TRAINER.format(root=str(ROOT)), str(path), str(total), str(pause), str(threads)],
                            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment})


def done(ms, checkpoint):
    return checkpoint.epoch * ms.data.batchepoch(8) + checkpoint.pos


def killed(tmp_path, kills, total, rng, **environment):
    """Kill a trainer `kills` times and let it end; (how many kills came while it trained, left a temporary file),
    how far it came by kills."""
    (tmp_path / 'text.txt').write_text(TEXT)
    for name in 'straight', 'killed':
        ms = ModelState.initfromsrcfile(tmp_path / 'text.txt', tmp_path / name, seq_len=10, state_size=8, layers=2, seed=1, regcost=0.1)
    straight = trainer(tmp_path / 'straight', total, **environment)
    path, before, training, torn = tmp_path / 'killed', 0, 0, 0
    for _ in range(kills):
        process = trainer(path, total, 0.003, rng.choice([1, 2]), **environment)
        if rng.random() < 0.9:                  # else at any moment from its start on
            select.select([process.stdout], [], [], 60)
            training += 1
        time.sleep(rng.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, 'it ended before it was killed'
        torn += any(name.endswith('.tmp') for name in os.listdir(path))
        found, bad = WorkDir(path).scan()       # everything there is whole, and nothing of what was there before is lost
        assert not bad and done(ms, found[-1]) >= before and sum(c.kind == 'training' for c in found) <= 2
        for each in found:
            assert WorkDir(path).loadarrays(each)
        before = done(ms, found[-1])
    for process in trainer(path, total, **environment), straight:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    one, two = ModelState.load(tmp_path / 'straight'), ModelState.load(path)
    assert done(ms, one.checkpoint) == done(ms, two.checkpoint) == total
    for name, value in one.model.arrays().items():
        np.testing.assert_array_equal(two.model.arrays()[name], value, err_msg=name)
    assert one.checkpoint.loss == two.checkpoint.loss
    rounds = {done(ms, c): c.loss for c in one.checkpoints()}
    assert all(rounds.get(done(ms, c), c.loss) == c.loss for c in two.checkpoints() if c.kind == 'validation')
    two.trainmodel(train_len=1, batchsize=8, valid_len=1, print_every=0, keep=2)
    assert not [name for name in os.listdir(path) if name.endswith('.tmp')]
    names = os.listdir(path)
    assert sum(name.endswith('.npz') for name in names) == sum(name.endswith('-model.p') for name in names) == len(two.checkpoints())
    return training, torn, before


@pytest.mark.anyengine
@pytest.mark.parametrize('kernels', [pytest.param('', id='native'), pytest.param('numpy', id='numpy', marks=pytest.mark.long)])
def test_a_run_killed_and_resumed_is_the_run_left_alone(tmp_path, kernels):
    killed(tmp_path, 2, 160, random.Random(4), RN_GRU_KERNELS=kernels)


@pytest.mark.parametrize('hyper', [{'optimizer': 'adam', 'ema': 0.99, 'clipping': 'norm', 'clip': 0.2},
                                   pytest.param({'optimizer': 'sgd', 'learnrate': 0.1}, marks=pytest.mark.long),
                                   pytest.param({'optimizer': 'adamw', 'weight_decay': 0.1, 'clip': 0.01, 'init': 'orthogonal'},
                                                marks=pytest.mark.long)],
                         ids=lambda hyper: hyper['optimizer'])
def test_twice_50_steps_in_two_processes_are_100_in_one_bit_for_bit(tmp_path, hyper):
    (tmp_path / 'text.txt').write_text(TEXT)
    for name in 'straight', 'halves':
        ModelState.initfromsrcfile(tmp_path / 'text.txt', tmp_path / name, seq_len=10, state_size=8, layers=2, seed=1, regcost=0.1, **hyper)
    for name, total, threads in ('straight', 100, 1), ('halves', 50, 2), ('halves', 100, 1):
        process = trainer(tmp_path / name, total, threads=threads)
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    one, two = ModelState.load(tmp_path / 'straight'), ModelState.load(tmp_path / 'halves')
    for name, value in one.model.arrays().items():
        np.testing.assert_array_equal(two.model.arrays()[name], value, err_msg=name)
    assert one.checkpoint.loss == two.checkpoint.loss and one.sample(50, seed=1) == two.sample(50, seed=1)
    assert (one.model.updates, one.model.cacheupdates) == (two.model.updates, two.model.cacheupdates) == (100, 100)
    assert one.hyper == two.hyper and 'eV' in one.model.arrays() if 'ema' in hyper else 'gV' in one.model.arrays()


# --- A run that is finished by resume=True ------------------------------------------------------------------------------

EVERYTHING = {'optimizer': 'adamw', 'ema': 0.9, 'clipping': 'norm', 'clip': 0.3, 'dropout': 0.2, 'valid_frac': 0.2, 'regcost': 0.1,
              'learnrate': 0.02}
LINEAR = {'num_rounds': 3, 'batchsize': 8, 'train_len': 12, 'schedule': 'linear', 'warmup': 5, 'end_learnrate': 0.001, 'patience': 3}
PLATEAU = {'num_rounds': 6, 'batchsize': 8, 'train_len': 6, 'schedule': 'plateau', 'end_learnrate': 0.001}     # losses are made to rise


def begun(tmp_path, name, **options):
    (tmp_path / 'text.txt').write_text(TEXT)
    return ModelState.initfromsrcfile(tmp_path / 'text.txt', tmp_path / name, seq_len=10, state_size=8, layers=2, seed=1,
                                      **{**EVERYTHING, **options})


def outcome(path):
    """What a run leaves: arrays, counts, place, hyperparameters, validations, run, the history that stands."""
    ms = ModelState.load(path)
    validations = [(c.loss, c.epoch, c.pos, c.facts['run'], 'copyof' in c.facts) for c in ms.checkpoints() if c.kind == 'validation']
    table = ms.history()
    rows = [table[name].tolist() for name in ('kind', 'updates', 'epoch', 'position', 'characters', 'loss', 'learnrate', 'clipped')]
    return (ms.model.arrays(), (ms.model.updates, ms.model.cacheupdates, ms.model.epoch, ms.model.pos, ms.model.characters), ms.hyper,
            validations, repr(rows))


def assert_same(one, two):
    (one, *others), (two, *theirs) = outcome(one), outcome(two)
    assert others == theirs
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=name)


class PowerOff(BaseException):
    """What no code of ours expects, at a moment of the test's choice."""


def counted(function, action, at):
    """The function, with `action` called before its call number `at`."""
    calls = [0]

    def work(*args, **more):
        calls[0] += 1
        if calls[0] == at:
            action()
        return function(*args, **more)
    return work


def ctrlc():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def poweroff():
    raise PowerOff


# Where each break comes: in which function, before which of its calls, how. 12 steps a round, a validation of 5 batches.
BREAKS = {'Ctrl-C in mid-round': [('trainstep', 17, ctrlc)], 'Ctrl-C in the first step': [('trainstep', 1, ctrlc)],
          'Ctrl-C in the last step of a round': [('trainstep', 12, ctrlc)], 'Ctrl-C in validation': [('evaluate', 7, ctrlc)],
          'between last step and validation': [('evaluate', 1, poweroff)], 'in the last validation': [('evaluate', 12, poweroff)],
          'again and again': [('trainstep', 3, ctrlc), ('evaluate', 2, poweroff), ('trainstep', 8, poweroff), ('evaluate', 3, ctrlc)]}


@pytest.mark.parametrize('kernels', ['', 'numpy'], ids=['native', 'numpy'])
@pytest.mark.parametrize('breaks', BREAKS.values(), ids=BREAKS)
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, breaks, kernels, monkeypatch):
    monkeypatch.setattr(native, 'library', native.library if not kernels else lambda: None)
    straight, broken = begun(tmp_path, 'straight'), begun(tmp_path, 'broken')
    assert straight.heldout.numsteps(8) == 5
    straight.trainmodel(**LINEAR, print_every=0)
    arguments = LINEAR
    for name, at, action in breaks:
        setattr(broken.model, name, counted(getattr(broken.model, name), action, at))
        with contextlib.suppress(PowerOff):
            broken.trainmodel(**arguments, print_every=0, save_every=1e-9, threads=1)
        broken, arguments = ModelState.load(broken.workdir.path), {'resume': True}
    broken.trainmodel(resume=True, print_every=5, threads=2)
    assert_same(straight.workdir.path, broken.workdir.path)
    assert [c.kind for c in straight.checkpoints()][:4] == ['untrained', 'validation', 'validation', 'validation']
    for path in straight.workdir.path, broken.workdir.path:
        with pytest.raises(ValueError, match='no run to finish: the last one ended'):
            ModelState.load(path).trainmodel(resume=True)


@pytest.mark.parametrize('name, at', [('trainstep', 16), ('trainstep', 27), ('evaluate', 14)])
def test_a_resumed_plateau_goes_on_halving_where_it_was(tmp_path, name, at):
    rising = [3.0, 3.5, 3.5, 4.0, 4.5, 4.5]                                # halved behind the third and the fifth

    def losses(ms):
        original = ms.model.evaluate

        def evaluate(*args):
            return rising[-(-ms.model.updates // 6) - 1], original(*args)[1]
        ms.model.evaluate = evaluate
        return ms
    straight, broken = (losses(begun(tmp_path, name)) for name in ('straight', 'broken'))
    straight.trainmodel(**PLATEAU, print_every=0)
    setattr(broken.model, name, counted(getattr(broken.model, name), ctrlc, at))
    broken.trainmodel(**PLATEAU, print_every=0)
    broken = losses(ModelState.load(broken.workdir.path))
    broken.trainmodel(resume=True, print_every=0)
    assert_same(straight.workdir.path, broken.workdir.path)
    rates = straight.history().steps['learnrate']
    assert rates.tolist() == pytest.approx([0.02] * 18 + [0.01] * 12 + [0.005] * 6)


def test_a_run_cut_off_before_its_best_checkpoint_became_the_latest_is_finished(tmp_path, monkeypatch):
    def losses(ms):
        original, ms.model.evaluate = ms.model.evaluate, lambda *args: (2.0 if ms.model.updates <= 12 else 3.0, original(*args)[1])
        return ms
    straight, broken = (losses(begun(tmp_path, name)) for name in ('straight', 'broken'))
    straight.trainmodel(**LINEAR, print_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(train, '_endonbest', lambda *args: poweroff())
        with pytest.raises(PowerOff):
            broken.trainmodel(**LINEAR, print_every=0)
    broken = ModelState.load(broken.workdir.path)
    assert broken.model.updates == 36
    broken.trainmodel(resume=True, print_every=0)
    assert broken.model.updates == 12 and 'copyof' in broken.checkpoint.facts
    assert_same(straight.workdir.path, broken.workdir.path)
    with pytest.raises(ValueError, match='no run to finish'):
        broken.trainmodel(resume=True)


# Begins a run, or resumes it, or finds it ended.
RESUMER = '''
import sys, time
sys.path.insert(0, {root!r})
import report
report.verbose = False
from rn_rnn_char import ModelState
pause, threads = float(sys.argv[2]), int(sys.argv[3])
ms = ModelState.load(sys.argv[1])
options = dict(print_every=0, save_every=0.004, threads=threads)
trainstep, evaluate = ms.model.trainstep, ms.model.evaluate
ms.model.trainstep = lambda *args: time.sleep(pause) or trainstep(*args)
ms.model.evaluate = lambda *args: time.sleep(pause) or evaluate(*args)
print('ready', flush=True)
try:
    ms.trainmodel(resume=True, **options)
except ValueError as error:
    if 'begin one' in str(error):
        ms.trainmodel(**{run!r}, **options)
    elif 'ended as it was meant to' not in str(error):
        raise
'''


@pytest.mark.anyengine
@pytest.mark.parametrize('kernels', [pytest.param('', id='native'), pytest.param('numpy', id='numpy', marks=pytest.mark.long)])
def test_a_run_killed_at_random_moments_and_resumed_is_the_unbroken_one(tmp_path, kernels):
    rng, run = random.Random(7), {**LINEAR, 'train_len': 25}

    def process(path, pause=0.0, threads=1):
        return subprocess.Popen([sys.executable, '-c', RESUMER.format(root=str(ROOT), run=run), str(path), str(pause), str(threads)],
                                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'RN_GRU_KERNELS': kernels})
    straight, broken = (begun(tmp_path, name).workdir.path for name in ('straight', 'broken'))
    for _ in range(2):
        killed = process(broken, 0.004, rng.choice([1, 2]))
        select.select([killed.stdout], [], [], 60)
        time.sleep(rng.random() * 0.3)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL, 'it ended before it was killed'
    for path, threads in (broken, 2), (straight, 1):
        ended = process(path, threads=threads)
        errors = ended.communicate()[1]
        assert ended.returncode == 0, errors.decode()
    assert_same(straight, broken)


def test_resume_refuses_other_arguments_nothing_to_finish_and_a_network_that_went_on(tmp_path, monkeypatch):
    ms = begun(tmp_path, 'work', valid_frac=0.0)
    with pytest.raises(ValueError, match='no run to finish: begin one'):
        ms.trainmodel(resume=True)
    ms.model.trainstep = counted(ms.model.trainstep, ctrlc, 4)
    ms.trainmodel(train_len=9, batchsize=8, valid_len=1, print_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(engine, 'compilefunction', lambda *args: pytest.fail('compiled'))
        for name, value in {'num_rounds': 2, 'batchsize': 8, 'train_len': 9, 'valid_len': 1, 'clear_state': True, 'minutes': 1.0,
                            'schedule': 'cosine', 'warmup': 3, 'end_learnrate': 0.0, 'patience': 2}.items():
            with pytest.raises(ValueError, match=f'{name}=.* does nothing with resume=True') as raised:
                ModelState.load(ms.workdir.path).trainmodel(resume=True, **{name: value})
            assert '\n' not in str(raised.value)
        for name, value in {'num_rounds': True, 'train_len': 0.0, 'warmup': False}.items():             # equal to what they are by default
            with pytest.raises(ValueError, match=f'{name}={value} does nothing with resume=True'):
                ms.trainmodel(resume=True, **{name: value})
        with pytest.raises(TypeError, match='resume takes True or False'):
            ms.trainmodel(resume='yes')
    ms.model.trainstep(*ms.data.batch(0, 8), ms.hyper)
    with pytest.raises(ValueError, match=f'not that of its last checkpoint, {ms.checkpoint.name}'):
        ms.trainmodel(resume=True)
    ms.restore()
    ms.trainmodel(resume=True, print_every=0)
    assert ms.checkpoint.kind == 'validation' and ms.model.updates == 9


@pytest.mark.long
def test_200_kills_at_random_moments_lose_nothing_and_change_nothing(tmp_path):
    start = time.monotonic()
    training, torn, before = killed(tmp_path, 200, 8000, random.Random(5))
    print(f'\n200 kills in {time.monotonic() - start:.0f} s, {training} of them while it trained, {torn} in the middle of a write; '
          f'{before} of 8000 steps done by then; at the end every array bit for bit that of the run left alone')
