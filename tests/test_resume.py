"""A run that is killed again and again ends bit for bit where the one that was left alone ends."""

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
    return subprocess.Popen([sys.executable, '-c', TRAINER.format(root=str(ROOT)), str(path), str(total), str(pause), str(threads)], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment})


def done(ms, checkpoint):
    return checkpoint.epoch * ms.data.batchepoch(8) + checkpoint.pos


def killed(tmp_path, kills, total, rng, **environment):
    """Kill a trainer `kills` times and let it end; (how many kills came while it trained, left a temporary file), how far it came by kills."""
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


@pytest.mark.parametrize('kernels', ['', 'numpy'], ids=['native', 'numpy'])
def test_a_run_killed_and_resumed_is_the_run_left_alone(tmp_path, kernels):
    killed(tmp_path, 3, 160, random.Random(4), RN_GRU_KERNELS=kernels)


@pytest.mark.parametrize('hyper', [{'optimizer': 'adam', 'ema': 0.99, 'clipping': 'norm', 'clip': 0.2}, {'optimizer': 'sgd', 'learnrate': 0.1},
                                   {'optimizer': 'adamw', 'weight_decay': 0.1, 'clip': 0.01, 'init': 'orthogonal'}], ids=lambda hyper: hyper['optimizer'])
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


@pytest.mark.long
def test_200_kills_at_random_moments_lose_nothing_and_change_nothing(tmp_path):
    start = time.monotonic()
    training, torn, before = killed(tmp_path, 200, 8000, random.Random(5))
    print(f'\n200 kills in {time.monotonic() - start:.0f} s, {training} of them while it trained, {torn} in the middle of a write; {before} of 8000 '
          'steps done by then; at the end every array bit for bit that of the run left alone')
