"""What a run of training promises: schedules and plans worked out by hand, that it comes back from a checkpoint, and what is refused."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

import engine
import errors
import report
from layers import MODELTYPES
from modelcases import make, nocompiling, tree
from rn_rnn_char import ModelState
from run import Run, planned, requested


def rate(run, done, peak, **changes):
    return replace(run, done=done, **changes).learnrate(peak)


# --- The learning rate --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('schedule, end, expected', [
    ('constant', 0.0, {0: 1, 1: 1, 4: 1, 7: 1}),
    ('linear', 0.0, {0: 1, 1: 0.875, 4: 0.5, 7: 0.125}),
    ('linear', 0.2, {0: 1, 1: 0.9, 4: 0.6, 7: 0.3}),
    ('cosine', 0.0, {0: 1, 2: 0.8535533906, 4: 0.5, 7: 0.0380602337}),          # (1 + cos 45°) / 2, (1 + cos 157.5°) / 2
    ('cosine', 0.2, {0: 1, 2: 0.8828427125, 4: 0.6, 7: 0.2304481870}),
    ('plateau', 0.2, {0: 1, 4: 1, 7: 1})])
def test_schedules_run_from_the_learnrate_to_the_end_that_the_step_behind_the_last_would_have(schedule, end, expected):
    run = Run(8, 8, 4, 1, schedule, end_learnrate=end)
    assert {done: rate(run, done, 1) for done in expected} == pytest.approx(expected, abs=1e-9)
    assert {done: rate(run, done, 0.004) for done in expected if not end} == pytest.approx(
        {done: 0.004 * value for done, value in expected.items() if not end}, abs=1e-12)


@pytest.mark.parametrize('schedule, behind', [('constant', [0.8, 0.8, 0.8]), ('linear', [0.8, 0.4, 0.1]),
                                              ('cosine', [0.8, 0.4, 0.0304481870]), ('plateau', [0.8, 0.8, 0.8])])
def test_warmup_rises_in_equal_steps_to_the_learnrate_and_the_schedule_runs_behind_it(schedule, behind):
    run = Run(12, 12, 4, 1, schedule, warmup=4)
    assert [rate(run, done, 0.8) for done in (0, 1, 2, 3)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert [rate(run, done, 0.8) for done in (4, 8, 11)] == pytest.approx(behind)


def test_a_changed_learnrate_holds_from_the_next_step_on():
    run = Run(10, 10, 4, 1, 'linear')
    assert (rate(run, 5, 1.0), rate(run, 5, 0.5)) == (0.5, 0.25)
    assert rate(Run(10, 10, 4, 1, 'plateau', end_learnrate=0.3, halvings=9), 5, 0.1) == 0.1        # below the end that was asked for


def test_plateau_halves_at_every_second_validation_in_a_row_without_a_lower_loss_and_stops_at_the_end():
    run = Run(100, 10, 4, 1, 'plateau', end_learnrate=0.2)
    seen = []
    for loss in (3, 2, 2, 2.5, 1.9, 1.95, 1.9, 2, 2.1, 2.2):
        run.validate(loss)
        seen.append(run.learnrate(1))
    #                3  2  2  2.5  1.9  1.95 1.9   2     2.1  2.2
    assert seen == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]
    assert (run.best, run.since, run.halvings, run.validated) == (1.9, 5, 3, 10)
    other = Run(100, 10, 4, 1, 'linear')
    for loss in (1, 2, 3):
        other.validate(loss)
    assert other.halvings == 0 and other.learnrate(1) == 1


# --- Rounds -------------------------------------------------------------------------------------------------------------

def test_rounds_are_as_long_as_asked_for_and_the_last_one_is_what_is_left():
    run, seen = Run(10, 4, 4, 1), []
    while not run.isover:
        seen.append((run.rounds, run.round, run.left))
        run.done += run.left
        assert run.left == 0 and not run.isover            # its validation is still to be done
        run.validate(1.0)
    assert seen == [(3, 4, 4), (3, 4, 4), (3, 2, 2)] and run.done == 10
    assert replace(run, validated=1, done=6).left == 2


def test_patience_ends_a_run_after_so_many_validations_in_a_row_without_a_lower_loss():
    run = Run(100, 10, 4, 1, patience=2)
    for loss, isover in ((3, False), (3, False), (2, False), (2.5, False), (2, True)):
        run.validate(loss)
        assert run.isover is isover
    run = Run(100, 10, 4, 1)
    for _ in range(9):
        run.validate(1)
    assert not run.isover


# --- Plans --------------------------------------------------------------------------------------------------------------

# Seconds that there are, of a step, of a validation and its steps; what was asked for; steps, train_len and valid_len.
PLANS = [
    ((100, 0.1, 2, 5), {'bestlast': True}, (960, 480, 0)),              # validations in 5 s: 2 of 2 s; 96 s left for the steps
    ((100, 0.1, 0.5, 5), {'bestlast': True}, (950, 95, 0)),             # 20 would fit: 10 at most
    ((100, 0.1, 60, 5), {'bestlast': True}, (400, 400, 0)),             # one there must be
    ((100, 0.1, 20, 100), {}, (960, 96, 2)),                            # 10 of 0.4 s each, which are 2 steps
    ((100, 0.1, 0.4, 2), {}, (960, 96, 2)),                             # 10 of all of it
    ((100, 0.1, 20, 100), {'valid_len': 50}, (900, 900, 50)),           # as asked for, 10 s: one
    ((100, 0.1, 20, 100), {'train_len': 100}, (960, 100, 2)),           # a round takes 10.4 s: ten, of which nine are whole
    ((100, 0.125, 20, 100), {'train_len': 5000}, (796, 5000, 2)),       # the first round isn't whole
    ((100, 1, 2, 5), {'bestlast': True, 'train_len': 8}, (80, 8, 0)),   # a round takes 10 s
    ((300, 0.0625, 20, 1000), {'bestlast': True, 'train_len': 16}, (224, 16, 0)),   # a round takes 21 s: 14, and 6 s of no use
    ((120, 0.0625, 10, 1000), {'bestlast': True, 'train_len': 16}, (160, 16, 0)),   # 11 s: 10, and 10 s that are too short for 11 s
    ((65, 0.125, 10, 1000), {'bestlast': True, 'train_len': 240}, (360, 240, 0)),   # 40 s: one, and 25 s, of which 15 are steps
    ((0.5, 1, 2, 5), {'bestlast': True}, (1, 1, 0)),                    # less time than a step takes
    ((-7, 1, 2, 5), {}, (1, 1, 1))]                                     # it went for compiling


@pytest.mark.parametrize('times, asked, expected', PLANS)
def test_a_plan_fills_the_time_with_steps_and_a_twentieth_of_it_with_validations(times, asked, expected):
    run = planned(Run(**{'steps': 0, 'train_len': 0, 'batchsize': 4, 'valid_len': 0, 'schedule': 'cosine', **asked}), *times)
    assert (run.steps, run.train_len, run.valid_len) == expected
    assert (run.batchsize, run.schedule, run.done, run.validated) == (4, 'cosine', 0, 0)


@pytest.mark.parametrize('seconds', [2.0 ** 63, math.inf])
def test_a_plan_of_more_steps_than_a_checkpoint_could_be_read_with_is_refused(seconds):
    with pytest.raises(ValueError, match='a run takes at most 9,223,372,036,854,775,807 steps in all, got [0-9]+: ask for fewer') as raised:
        planned(Run(0, 0, 4, 0, bestlast=True), seconds, 1e-3, 1, 5)
    assert '\n' not in str(raised.value)


def test_a_plan_that_warmup_would_fill_is_refused():
    with pytest.raises(ValueError, match='warmup=90 leaves none of the 90 steps') as raised:
        planned(Run(0, 0, 4, 0, warmup=90, bestlast=True), 10, 0.1, 1, 5)
    assert '\n' not in str(raised.value)


# What was planned and where it stands; seconds left, of a step, of a validation; steps and train_len then.
REPLANS = [
    ({'steps': 960, 'train_len': 96, 'done': 60}, (100, 0.25, 0.5), (450, 96)),     # of 115 s 5 rounds of 24.5 s at most: 2.5 s to validate
    ({'steps': 960, 'train_len': 96, 'done': 240, 'validated': 2}, (38, 0.0625, 0.5), (792, 96)),   # of 54 s 9 rounds of 6.5 s at most
    ({'steps': 400, 'train_len': 400, 'done': 100}, (80, 0.25, 60), (180, 180)),    # one round stays one: 45 s of 105 are left for steps
    ({'steps': 796, 'train_len': 5000, 'done': 398}, (700, 0.125, 2), (5966, 5000)),        # as long as asked for: a second one begins
    ({'steps': 960, 'train_len': 96, 'done': 480, 'validated': 4}, (-9, 0.25, 0.5), (480, 96)),     # too late: a validation, and the end
    ({'steps': 400, 'train_len': 400, 'done': 20, 'warmup': 300}, (10, 1, 1), (301, 301)),          # not before warm-up is over
    ({'steps': 400, 'train_len': 100, 'done': 20}, (1e300, 1e-3, 1), (2 ** 62 - 1, 100)),
    ({'steps': 960, 'train_len': 480, 'done': 60}, (94.03, 0.0995, 2), (960, 480)),     # two rounds, and half a second that holds no third
    ({'steps': 960, 'train_len': 480, 'done': 60}, (100.5, 0.125, 2), (832, 480))]      # of 108 s one of 62 s, and 44 + 2 s


@pytest.mark.parametrize('stands, times, expected', REPLANS)
def test_a_plan_made_again_fills_the_time_that_is_left(stands, times, expected):
    run = Run(**{'batchsize': 4, 'valid_len': 0, 'schedule': 'linear', **stands})
    run.replan(*times)
    assert (run.steps, run.train_len) == expected
    assert (run.done, run.validated) == (stands['done'], stands.get('validated', 0))
    assert Run.fromfacts(run.facts()) == run        # one that a checkpoint can be read with


# --- What is asked for --------------------------------------------------------------------------------------------------

def asked(isheldout=False, **options):
    """The Run that trainmodel(**options) asks for, of a text of 30 steps an epoch and a learnrate of 0.001."""
    ms = SimpleNamespace(data=SimpleNamespace(batchepoch=lambda batchsize: 30), hyper=SimpleNamespace(learnrate=0.001),
                         heldout=SimpleNamespace(numchars=1000) if isheldout else None)
    defaults = {'num_rounds': 1, 'batchsize': 4, 'train_len': 0, 'valid_len': 0, 'minutes': None, 'schedule': 'constant', 'warmup': 0,
                'end_learnrate': None, 'patience': None}
    return requested(ms, {**defaults, **options})[0]


def test_a_schedule_may_end_where_it_begins_and_no_higher():
    run = asked(schedule='cosine', end_learnrate=0.001)
    assert [rate(run, done, 0.001) for done in (0, 15, 29)] == [0.001] * 3
    with pytest.raises(ValueError, match='end_learnrate 0.00100001 lies above the learnrate 0.001'):
        asked(schedule='cosine', end_learnrate=0.00100001)


def test_a_run_ends_on_the_best_checkpoint_where_a_part_is_held_out_and_minutes_or_patience_say_when_to_stop():
    assert {(isheldout, minutes, patience): asked(isheldout, minutes=minutes, patience=patience).bestlast
            for isheldout in (False, True) for minutes in (None, 2) for patience in (None, 3)} == {
        (False, None, None): False, (False, None, 3): False, (False, 2, None): False, (False, 2, 3): False,
        (True, None, None): False, (True, None, 3): True, (True, 2, None): True, (True, 2, 3): True}


# --- In a checkpoint ----------------------------------------------------------------------------------------------------

RUN = Run(10, 4, 16, 3, 'plateau', 2, 0.001, 5, True, 6, 1, 2.5, 1, 0)


def test_a_run_comes_back_from_its_facts_which_are_plain_values():
    for run in (RUN, Run(1, 1, 1, 1), Run(10, 4, 16, 3, done=10, validated=3), Run(10, 4, 16, 3, done=4),
                Run(10, 4, 16, 3, done=4, validated=1)):
        facts = run.facts()
        assert {type(value) for value in facts.values()} <= {int, float, str, bool}
        assert Run.fromfacts(facts) == run and Run.fromfacts(facts).facts() == facts


DAMAGE = [{'steps': 0}, {'steps': -1}, {'steps': 10.0}, {'steps': True}, {'steps': 2 ** 63}, {'train_len': 0}, {'batchsize': 0},
          {'batchsize': None},
          {'valid_len': -1}, {'schedule': 'step'}, {'schedule': 3}, {'schedule': 'x' * 10 ** 6}, {'warmup': 10}, {'warmup': 11},
          {'end_learnrate': math.nan},
          {'end_learnrate': math.inf}, {'end_learnrate': -1.0}, {'end_learnrate': 1}, {'patience': -1}, {'bestlast': 1}, {'done': 11},
          {'done': 3},
          {'done': 9}, {'validated': 2, 'done': 11}, {'validated': 4, 'done': 10}, {'validated': 0},
          {'best': math.nan}, {'best': -math.inf}, {'since': 2},
          {'halvings': 2},
          {'halvings': 10 ** 400}, {'halvings': 'x'}, {'another': 1}, {'steps': [1]}]


@pytest.mark.parametrize('damage', DAMAGE, ids=lambda damage: repr(damage)[:40])
def test_facts_that_are_no_runs_are_refused_in_one_sentence(damage):
    with pytest.raises(ValueError, match='run of training') as raised:
        Run.fromfacts({**RUN.facts(), **damage})
    assert '\n' not in str(raised.value) and len(str(raised.value)) < 200


@pytest.mark.parametrize('facts', [None, 3, 'run', [], {}, {'steps': 1}, {1: 2}], ids=repr)
def test_what_is_no_dict_of_a_run_is_refused(facts):
    with pytest.raises(ValueError, match='run of training'):
        Run.fromfacts(facts)


# --- What trainmodel refuses --------------------------------------------------------------------------------------------

TRAINING = [({'num_rounds': 0}, ValueError), ({'num_rounds': 1.5}, TypeError), ({'batchsize': 0}, ValueError),
            ({'batchsize': 10 ** 6}, ValueError), ({'batchsize': '16'}, TypeError), ({'batchsize': True}, TypeError),
            ({'train_len': -1}, ValueError), ({'valid_len': -1}, ValueError), ({'print_every': -5}, ValueError),
            ({'train_len': float('nan')}, TypeError), ({'save_every': -1}, ValueError), ({'save_every': float('inf')}, ValueError),
            ({'save_every': None}, TypeError), ({'save_every': True}, TypeError), ({'keep': 0}, ValueError), ({'keep': '3'}, TypeError),
            ({'minutes': 0}, ValueError), ({'minutes': -1.5}, ValueError), ({'minutes': float('nan')}, ValueError),
            ({'minutes': float('inf')}, ValueError), ({'minutes': '5'}, TypeError), ({'schedule': None}, TypeError),
            ({'warmup': -1}, ValueError), ({'warmup': 0.5}, TypeError), ({'patience': 0}, ValueError), ({'patience': 1.5}, TypeError),
            ({'resume': 1}, TypeError), ({'watch': 5}, TypeError),
            # Above 2^63 - 1, which no checkpoint of the run could be read with again.
            ({'num_rounds': 10 ** 20}, ValueError), ({'train_len': 10 ** 20}, ValueError), ({'valid_len': 10 ** 20}, ValueError),
            ({'patience': 10 ** 20}, ValueError)]


@pytest.mark.parametrize('options, error', TRAINING)
def test_wrong_arguments_of_trainmodel_are_refused_before_anything_happens(srcfile, options, error, monkeypatch):
    make(srcfile)
    ms = ModelState.load(srcfile.parent / 'work')
    monkeypatch.setattr(engine, 'compilefunction', nocompiling)
    before = tree(srcfile.parent)
    with pytest.raises(error) as raised:
        ms.trainmodel(**options)
    assert '\n' not in str(raised.value) and str(*options.values()) in str(raised.value)
    assert tree(srcfile.parent) == before


def test_batches_beyond_this_machine_are_refused_before_anything_happens(srcfile, monkeypatch):
    make(srcfile)
    ms = ModelState.load(srcfile.parent / 'work')
    needed = [MODELTYPES['GRUEncode'].memory(len(ms.charset), 1, 8, batchsize, 10) for batchsize in (8, 16)]
    monkeypatch.setattr(engine, 'compilefunction', nocompiling)
    monkeypatch.setattr(errors.os, 'sysconf', lambda name: 1 if name == 'SC_PAGE_SIZE' else needed[0])
    before = tree(srcfile.parent)
    with pytest.raises(MemoryError, match='in batches of 16 x 10 characters'):
        ms.trainmodel(batchsize=16)
    assert needed[0] < needed[1] and tree(srcfile.parent) == before
    with pytest.raises(AssertionError, match='compiled'):
        ms.trainmodel(batchsize=8)


# What was asked for; of a model with a held-out part; what is said.
CONTRADICTIONS = [
    ({'num_rounds': 10 ** 18, 'train_len': 10 ** 18}, False, 'a run takes at most 9,223,372,036,854,775,807 steps in all, got 10000'),
    ({'schedule': 'cosin'}, False, "schedule takes one of 'constant', 'linear', 'cosine', 'plateau', got 'cosin', did you mean cosine?"),
    ({'schedule': 'zzz'}, False, "got 'zzz'"),
    ({'end_learnrate': 0.0001}, False, "end_learnrate=0.0001 does nothing with schedule='constant': leave it out, or choose 'linear'"),
    ({'end_learnrate': 0}, False, "end_learnrate=0 does nothing with schedule='constant'"),
    ({'end_learnrate': 0.002, 'schedule': 'linear'}, False, 'end_learnrate 0.002 lies above the learnrate 0.001'),
    ({'end_learnrate': -0.1, 'schedule': 'plateau'}, False, 'end_learnrate must be at least 0 and finite, got -0.1'),
    ({'minutes': 5, 'num_rounds': 3}, False, 'num_rounds=3 and minutes=5 both say when to stop'),
    ({'warmup': 10, 'train_len': 5, 'num_rounds': 2}, False, 'warmup=10 leaves none of the 10 steps of the run'),
    ({'warmup': 10 ** 6}, False, 'warmup=1000000 leaves none of the'),
    ({'valid_len': 3}, True, 'valid_len=3 does nothing here, since validation is on all of the')]


@pytest.mark.parametrize('options, isheldout, said', CONTRADICTIONS)
def test_arguments_of_trainmodel_that_contradict_each_other_are_refused_at_the_door(srcfile, options, isheldout, said, monkeypatch, capsys):
    make(srcfile, valid_frac=0.25 * isheldout)
    ms = ModelState.load(srcfile.parent / 'work')
    monkeypatch.setattr(engine, 'compilefunction', nocompiling)
    monkeypatch.setattr(report, 'verbose', True)
    before = tree(srcfile.parent)
    with pytest.raises(ValueError) as raised:
        ms.trainmodel(**options)
    assert '\n' not in str(raised.value) and said in str(raised.value)
    assert tree(srcfile.parent) == before and capsys.readouterr() == ('', '')
