"""What ends a training before its rounds do: the clock, and patience."""

import itertools
import re
import time

import numpy as np
import pytest

import report
import train
from modelcases import assert_same, losses, maker
from rn_rnn_char import ModelState
from run import Run


@pytest.fixture
def make(tmp_path):
    return maker(tmp_path)


@pytest.mark.anyengine
def test_minutes_take_about_that_long_and_timing_the_steps_changes_nothing(make, monkeypatch):
    options = {'valid_frac': 0.2, 'dropout': 0.2, 'ema': 0.9, 'optimizer': 'adam'}
    ms, planned = make(**options), make('planned', **options)
    monkeypatch.setattr(train, 'REPLAN', ())                    # a test of its own is below
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


# Seconds of the step behind so many others, where timing said 0.25; steps, rounds of the plans that changed them, and seconds of the run,
# by hand: planned are 456 steps in 6 rounds of 76, and validations of a second. A share of the way is passed by steps or by time.
PACES = [
    (lambda done: 0.25, 456, [6], 120),
    (lambda done: 0.24609375, 456, [6], 118.21875),     # no time for a seventh round
    (lambda done: 0.5, 232, [6, 4], 120),               # from 15 steps on: 4 s to validate, 116 for steps
    (lambda done: 0.125, 864, [6, 12], 120),            # 12 s to validate
    (lambda done: 0.25 if done < 200 else 0.5, 330, [6, 5], 120),       # behind 60 s and 216 steps 409; behind 90 s and 274: 330
    (lambda done: 0.125 if done < 592 else 0.25, 736, [6, 12, 11, 10], 120),    # 864; behind 90 s, 0.147 s each since 440: 807; 105 s: 736
    (lambda done: 0.25 if done < 240 else 1.0, 296, [6, 4], 120)]       # behind 90 s, 0.783 s each since 229: 304; 105 s, 282 steps: 296


@pytest.mark.parametrize('valid_frac, islate', [(0.2, False), (0.0, False), (0.2, True)])
@pytest.mark.parametrize('cost, steps, rounds, ends', PACES)
def test_a_run_planned_by_time_is_planned_anew_by_the_speed_that_it_has(make, monkeypatch, capsys, cost, steps, rounds, ends, valid_frac,
                                                                        islate):
    """islate: whether a step's loss is told while the next one is under way, as by a device that computes by itself."""
    ms, now, done = make(valid_frac=valid_frac), [0.0], []
    trainstep, losses = ms.model.trainstep, train._losses

    def slow(*args):
        now[0] += cost(len(done))
        done.append(now[0])
        return trainstep(*args)

    def validated(*args):
        now[0] += 1
        return losses(*args)
    ms.model.trainstep = slow
    monkeypatch.setattr(train, '_losses', validated)
    monkeypatch.setattr(train.time, 'monotonic', lambda: now[0])
    # Where nothing is held out, of an epoch; a twentieth of two minutes is one step for each of ten rounds at most.
    monkeypatch.setattr(train, '_measure', lambda *args: (0.25, 1.0, ms.heldout.numsteps(8)) if ms.heldout else (0.25, 19.0, 19))
    monkeypatch.setattr(type(ms.device), 'runson', islate)
    monkeypatch.setattr(report, 'verbose', True)
    ms.trainmodel(minutes=2, batchsize=8, schedule='linear', print_every=0, save_every=0)
    out = capsys.readouterr().out
    said = [f'Planned anew, at the present speed: {after} rounds in all, not {before}.'
            for before, after in itertools.pairwise(rounds)]
    assert [line for line in out.splitlines() if line.startswith('Planned anew')] == said
    # The first plan anew lies in the first round, whose end is told by it.
    assert f'Round 1/{rounds[1] if cost(0) in (0.125, 0.5) else 6}: validation loss' in out
    assert f'Round {rounds[-1]}/{rounds[-1]}: validation loss' in out
    ended = [int(count) for count in re.findall(r'^Round [0-9/]+: (\d+)/\1 steps, ', out, re.MULTILINE)]
    assert len(ended) == rounds[-1] and sum(ended) == steps
    run = Run.fromfacts(ms.checkpoints()[-1].facts['run'])
    assert (len(done), run.rounds, now[0]) == (steps, rounds[-1], ends)
    assert run.isover and run.done == run.steps == steps and run.train_len == 76
    rates = ms.history().steps['learnrate']
    assert rates[-1] == pytest.approx(ms.hyper.learnrate / steps, rel=1e-6) and (np.diff(rates) < 1e-9).all() == (steps < 457)


def test_nothing_is_planned_anew_by_the_speed_of_less_than_a_second_and_a_half(monkeypatch):
    now, run, said = [0.0], Run(12, 12, 8, 0), []
    monkeypatch.setattr(train.time, 'monotonic', lambda: now[0])
    pace = train.Pace(run, 3.0, 0.0)
    while run.left:
        now[0] += 0.25
        run.done += 1
        said.append(pace.replan())
    # A sixteenth, a quarter and half of the time are over behind the seventh, 1.5 s behind the first; then too little is left.
    assert said == [False] * 6 + [True] + [False] * 5


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
