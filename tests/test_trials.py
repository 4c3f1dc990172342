"""Trials: the bits of each are those of the same training alone, whatever breaks them off; what is refused; what a person sees."""

import contextlib
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import native
import report
import train
import trials
from checkpoint import WorkDir
from errors import RNGRUError, TextError, WorkDirError
from processes import Processes
from rn_rnn_char import ModelState, tryhyper
from storage import loadfacts
from trial import runtrial

ROOT = Path(__file__).parent.parent
TEXT = ''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(40))
SMALL = {'seq_len': 10, 'state_size': 8, 'batchsize': 8}
RUN = {'train_len': 20, 'num_rounds': 2}
DRAW = trials._draw


class Inline(Executor):
    """Runs what it is given at once, in this process; counts the tasks."""

    def __init__(self):
        self.tasks = []

    def submit(self, function, /, *arguments):
        self.tasks += arguments
        future = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future


class Instead(Processes):
    """Our processes, in which the trial called `name` is carried out by another function."""

    def __init__(self, name, function):
        super().__init__(2)
        self.name, self.function = name, function

    def submit(self, function, /, task):
        return super().submit(self.function if Path(task['directory']).name == self.name else function, task)


def atstep(task, number, action):
    """Carry out a trial, with an action before the step of this number."""
    step, count = train._step, [0]

    def counted(*arguments):
        count[0] += 1
        if count[0] >= number:
            action(count[0])
        return step(*arguments)
    train._step = counted
    return runtrial(task)


def killed(task):
    return atstep(task, 31, lambda count: os.kill(os.getpid(), signal.SIGKILL))


def interrupting(task):
    """Has Ctrl-C come to our caller at step 31, and waits for it to tell us."""
    return atstep(task, 31, lambda count: os.kill(os.getppid(), signal.SIGINT) if count == 31 else time.sleep(0.05))


def outofmemory(task):
    raise MemoryError


@pytest.fixture(autouse=True)
def nopicture(monkeypatch):
    """Matplotlib takes a second."""
    monkeypatch.setattr(trials, '_draw', lambda found: None)


@pytest.fixture
def srcfile(tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text(TEXT)
    return path


def alone(srcfile, directory, run=RUN, **hyper):
    """The model that the same training gives by the library's own calls, in this process."""
    options = {name: SMALL[name] for name in ('seq_len', 'state_size')}
    ms = ModelState.initfromsrcfile(srcfile, directory, seed=1, valid_frac=0.1, **{**options, **hyper})
    ms.trainmodel(batchsize=SMALL['batchsize'], print_every=0, **run)
    return ms


def assert_same(trial, ms):
    assert trial.state == 'done' and trial.loss == ms.checkpoint.loss and ms.checkpoint.kind == 'validation'
    mine = trial.load()
    for name, value in ms.model.arrays().items():
        np.testing.assert_array_equal(mine.model.arrays()[name], value, err_msg=name)
    assert (mine.model.epoch, mine.model.pos) == (ms.model.epoch, ms.model.pos)


def byname(found):
    return {trial.name: trial for trial in found}


# --- The bits -------------------------------------------------------------------------------------------------------------

def test_two_workers_give_bit_for_bit_what_each_setting_gives_alone_and_the_best_goes_on(srcfile, tmp_path):
    found = tryhyper(srcfile, tmp_path / 'tries', {'learnrate': [0.001, 0.02], 'layers': [2]}, workers=2, **SMALL, **RUN)
    losses = {}
    for rate in (0.001, 0.02):
        ms = alone(srcfile, tmp_path / f'{rate}', learnrate=rate, layers=2)
        assert_same(byname(found)[f'layers=2,learnrate={rate}'], ms)
        losses[ms.checkpoint.loss] = rate
    best = losses[min(losses)]
    assert [trial.loss for trial in found] == sorted(losses) and found.best is found[0] and found.best.hyper.learnrate == best
    assert found.best.setting == {'layers': 2, 'learnrate': best}
    assert found.best.workdir == tmp_path / 'tries' / f'layers=2,learnrate={best}'
    ms = found.best.load()
    assert 'Every file is whole' in repr(ms.info()) and ms.heldout.numchars == len(TEXT) - len(TEXT) * 9 // 10 // 10 * 10
    ms.trainmodel(train_len=2, batchsize=8, print_every=0)
    assert ms.model.updates == 42
    # Read again, as it was at the trial's end: the losses stay comparable.
    executor = Inline()
    again = tryhyper(srcfile, tmp_path / 'tries', {'layers': [2], 'learnrate': [0.02, 0.001]}, executor=executor, **SMALL, **RUN)
    assert [trial.loss for trial in again] == [trial.loss for trial in found] and not executor.tasks


@pytest.mark.parametrize('how, state', [
    pytest.param(killed, 'failed', id='killed'), pytest.param(interrupting, 'interrupted', id='interrupted', marks=pytest.mark.long)])
def test_what_was_broken_off_goes_on_to_the_same_bits(srcfile, tmp_path, monkeypatch, how, state):
    grid = {'learnrate': [0.01, 0.02]}
    monkeypatch.setattr(trials, 'Processes', lambda *_: Instead('learnrate=0.01', how))
    longer = {'train_len': 25, 'num_rounds': 8}
    found = byname(tryhyper(srcfile, tmp_path / 'tries', grid, **SMALL, **longer))
    one, two = found['learnrate=0.01'], found['learnrate=0.02']
    assert one.state == state and ('SIGKILL' in one.why) == (how is killed)
    assert WorkDir(one.workdir).scan()[0][1].kind == 'validation' and one.load().model.updates in range(25, 200)
    assert two.state == 'done' or how is interrupting
    executor = Inline()
    again = byname(tryhyper(srcfile, tmp_path / 'tries', grid, executor=executor, **SMALL, **longer))
    assert [Path(task['directory']).name for task in executor.tasks] == [each.name for each in (one, two) if each.state != 'done']
    assert_same(again['learnrate=0.01'], alone(srcfile, tmp_path / 'one', longer, learnrate=0.01))
    if two.state == 'done':
        assert again['learnrate=0.02'].loss == two.loss


@pytest.mark.anyengine
@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='this system has no process groups')
def test_a_terminals_ctrl_c_stops_a_script_without_a_guard_once_and_a_second_call_finishes(srcfile, tmp_path):
    settings = {**SMALL, 'train_len': 25, 'num_rounds': 8}
    grid = {'learnrate': [0.01, 0.02, 0.03]}
    program = tmp_path / 'script.py'
    program.write_text(f'''
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import trials
from test_trials import Instead, slow
from rn_rnn_char import tryhyper
print('imported')
trials.Processes = lambda *_: Instead('learnrate=0.01', slow)
tryhyper({str(srcfile)!r}, {str(tmp_path / "tries")!r}, {grid!r}, **{settings!r})
print('over')
''')
    process = subprocess.Popen([sys.executable, str(program)], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    end = time.monotonic() + 60
    while not (tmp_path / 'slow').exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and out.count('imported') == out.count('over') == 1 and 'Traceback' not in out, out
    last = WorkDir(tmp_path / 'tries' / 'learnrate=0.01').scan()[0][-1]
    assert last.kind == 'training' and last.facts['run']['done'] >= 30          # stopped once, in an orderly way
    found = byname(tryhyper(srcfile, tmp_path / 'tries', grid, executor=Inline(), **settings))
    assert_same(found['learnrate=0.01'], alone(srcfile, tmp_path / 'one', {'train_len': 25, 'num_rounds': 8}, learnrate=0.01))
    assert all(trial.state == 'done' for trial in found.values())


def slow(task):
    """Takes its time from step 31 on, and leaves word of it."""
    def action(count):
        (Path(task['directory']).parent.parent / 'slow').touch()
        time.sleep(0.05)
    return atstep(task, 31, action)


@pytest.mark.anyengine
def test_it_works_in_the_interactive_shell(srcfile, tmp_path):
    call = f'tries = tryhyper({str(srcfile)!r}, {str(tmp_path / "tries")!r}, {{"layers": [1]}}, train_len=3, **{SMALL!r})'
    shell = subprocess.run([sys.executable, '-i', 'rn_rnn_char.py'], cwd=ROOT, input=f'{call}\ntries.best.state\n', capture_output=True,
                           text=True, timeout=60)
    assert shell.returncode == 0 and shell.stdout.endswith("'done'\n") and 'Traceback' not in shell.stderr, shell


# --- Executors and what goes wrong ----------------------------------------------------------------------------------------

def test_an_executor_of_ones_own_runs_them_and_what_goes_wrong_ends_no_other(srcfile, tmp_path):
    executor = Inline()
    grid = [{'learnrate': 3e38}, {'learnrate': 0.02}, {'layers': 2}]
    first = byname(tryhyper(srcfile, tmp_path / 'tries', grid[:2], executor=executor, train_len=20, save_every=0, **SMALL))
    assert [Path(task['directory']).name for task in executor.tasks] == ['learnrate=3e+38', 'learnrate=0.02']
    assert first['learnrate=3e+38'].state == 'diverged' and 'the training has diverged' in first['learnrate=3e+38'].why
    assert first['learnrate=0.02'].state == 'done' and first['learnrate=0.02'].rate > 0
    assert_same(first['learnrate=0.02'], alone(srcfile, tmp_path / 'alone', {'train_len': 20}, learnrate=0.02))
    # Nothing would be gained by letting it diverge again; a new setting is tried.
    found = tryhyper(srcfile, tmp_path / 'tries', grid, executor=executor, train_len=20, **SMALL)
    assert [Path(task['directory']).name for task in executor.tasks[2:]] == ['layers=2']
    assert [trial.state for trial in found] == ['done', 'done', 'diverged'] and math.isnan(found[2].loss)


@pytest.mark.parametrize('pool', [
    pytest.param(lambda: ThreadPoolExecutor(2), id='threads'),
    pytest.param(lambda: ProcessPoolExecutor(2, multiprocessing.get_context('spawn')), id='processes', marks=pytest.mark.long)])
def test_pythons_own_executors_give_the_same_and_are_left_open(srcfile, tmp_path, pool):
    before = report.verbose
    with pool() as executor:
        found = byname(tryhyper(srcfile, tmp_path / 'tries', {'learnrate': [0.01, 0.02, 0.03]}, executor=executor, train_len=20, **SMALL))
        assert executor.submit(int, '7').result(30) == 7
    assert report.verbose is before and {trial.state for trial in found.values()} == {'done'}
    assert_same(found['learnrate=0.02'], alone(srcfile, tmp_path / 'alone', {'train_len': 20}, learnrate=0.02))


def test_a_trial_that_raises_and_an_executor_that_breaks_are_told(srcfile, tmp_path):
    class Broken(Inline):
        def submit(self, function, /, task):
            if len(self.tasks) == 1:
                raise RuntimeError('the pool is broken')
            return super().submit(outofmemory if not self.tasks else function, task)
    executor = Broken()
    (tmp_path / 'tries' / 'seed=3').mkdir(parents=True)                 # as a kill may leave it
    found = byname(tryhyper(srcfile, tmp_path / 'tries', {'seed': [1, 2, 3]}, executor=executor, train_len=2, **SMALL))
    assert {name: (trial.state, trial.why) for name, trial in found.items()} == {
        'seed=1': ('failed', 'there is not enough memory'), 'seed=2': ('failed', 'it could not be begun (the pool is broken)'),
        'seed=3': ('failed', 'it could not be begun (the pool is broken)')}
    found = tryhyper(srcfile, tmp_path / 'tries', {'seed': [1, 2, 3]}, executor=Inline(), train_len=2, **SMALL)
    assert [trial.state for trial in found] == ['done'] * 3 and len({trial.loss for trial in found}) == 3


@pytest.mark.parametrize('spoil, words', [
    (lambda path: (path / 'history.csv').mkdir(), ['history']), (lambda path: (path / 'text-v1.npy').unlink(), ['text-v1.npy'])])
def test_what_a_trial_warns_of_or_fails_by_is_said_with_its_name(srcfile, tmp_path, spoil, words, monkeypatch, capsys):
    def begin(number):
        monkeypatch.setattr(train, '_step', lambda *arguments: os.kill(os.getpid(), signal.SIGINT) or step(*arguments))
        return tryhyper(srcfile, tmp_path / 'tries', {'layers': [1]}, executor=Inline(), train_len=4, **SMALL)
    step = train._step
    assert begin(1)[0].state == 'interrupted'
    monkeypatch.setattr(train, '_step', step)
    path = tmp_path / 'tries' / 'layers=1'
    with contextlib.suppress(FileNotFoundError):
        (path / 'history.csv').unlink()
    spoil(path)
    monkeypatch.setattr(report, 'verbose', True)
    tryhyper(srcfile, tmp_path / 'tries', {'layers': [1]}, executor=Inline(), train_len=4, **SMALL)
    said = [line for line in capsys.readouterr().out.splitlines() if 'layers=1: ' in line]
    assert any(word in line for line in said for word in words), said


def test_ctrl_c_before_the_first_step_interrupts_a_trial_and_leaves_the_others_waiting(srcfile, tmp_path, monkeypatch):
    rounds = train._rounds
    monkeypatch.setattr(train, '_rounds', lambda *arguments: os.kill(os.getpid(), signal.SIGINT) or rounds(*arguments))
    executor = Inline()
    found = tryhyper(srcfile, tmp_path / 'tries', {'seed': [1, 2]}, executor=executor, train_len=4, **SMALL)
    assert [(trial.name, trial.state, trial.why) for trial in found] == [('seed=1', 'interrupted', ''), ('seed=2', 'waiting', '')]
    assert len(executor.tasks) == 1 and os.listdir(tmp_path / 'tries') == ['seed=1'] and found.best is None
    waiting = found[1].history()                # of no rows, and a table all the same
    assert (len(waiting), len(waiting.steps), waiting.best, repr(waiting)) == (0, 0, None, 'No steps yet.')
    monkeypatch.setattr(train, '_rounds', rounds)
    found = tryhyper(srcfile, tmp_path / 'tries', {'seed': [1, 2]}, executor=executor, train_len=4, **SMALL)
    assert_same(byname(found)['seed=1'], alone(srcfile, tmp_path / 'alone', {'train_len': 4}))


# --- What is refused --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('grid, options, error, words', [
    ({'lernrate': [1]}, {}, TypeError, ['did you mean learnrate?']), ({'layers': [1]}, {'print_every': 5}, TypeError, ['print_every']),
    ({'layers': [1]}, {'workers': 0}, ValueError, ['workers']), ({'layers': [1]}, {'threads': 'two'}, TypeError, ['threads']),
    ({'layers': [1]}, {'executor': 3}, TypeError, ['executor', '3']),
    ({'layers': [1]}, {'executor': ThreadPoolExecutor}, TypeError, ['ProcessPoolExecutor(4)', 'got <class']),
    ({'layers': [1]}, {'verbose': 1}, TypeError, ['verbose']),
    ({'layers': [1]}, {'executor': Inline(), 'workers': 2}, ValueError, ['workers=2']),
    ({'batchsize': [8, 500]}, {}, ValueError, ['batchsize 500 needs', 'sequences']),        # what only the text tells
    ({'warmup': [0, 30]}, {'train_len': 30}, ValueError, ['warmup=30']), ({'valid_len': [3]}, {}, ValueError, ['valid_len=3']),
    ({'end_learnrate': [0.0]}, {}, ValueError, ["schedule='constant'"]), ({'valid_frac': [0.9999]}, {}, ValueError, ['valid_frac']),
    ({'schedule': ['linear'], 'learnrate': [0.1, 0.001]}, {'end_learnrate': 0.01}, ValueError, ['0.01 lies above']),
    ({'minutes': [1]}, {'num_rounds': 2}, ValueError, ['minutes']), ({'layers': [100]}, {'state_size': 100_000}, MemoryError, ['GB']),
    ({'layers': [1]}, {'encoding': 'utf-7x'}, LookupError, ['utf-7x'])])
def test_what_is_wrong_is_refused_before_anything_is_written_or_started(srcfile, tmp_path, grid, options, error, words, monkeypatch):
    monkeypatch.setattr(trials, '_carryout', lambda *_: pytest.fail('started'))
    with pytest.raises(error) as caught:
        tryhyper(srcfile, tmp_path / 'tries', grid, **{'seq_len': 10, **options})
    assert '\n' not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value
    assert os.listdir(tmp_path) == ['text.txt']


def test_texts_and_directories_that_cannot_be_used_are_refused(srcfile, tmp_path):
    grid = {'layers': [1]}
    (tmp_path / 'binary').write_bytes(b'a\0b' * 100)
    ModelState.initfromsrcfile(srcfile, tmp_path / 'model', init_checkpoint=False)
    (tmp_path / 'others' / 'layers=1').mkdir(parents=True)
    (tmp_path / 'others' / 'layers=1' / 'x-state.p').touch()
    (tmp_path / 'mixed').mkdir()
    (tmp_path / 'mixed' / 'layers=1').touch()
    (tmp_path / 'link').symlink_to(tmp_path / 'gone')
    for source, directory, error, words in [
            ('none', 'tries', FileNotFoundError, 'none'), ('binary', 'tries', TextError, 'binary'),
            ('text.txt', 'text.txt', WorkDirError, 'file'), ('text.txt', 'text.txt/tries', WorkDirError, 'name another directory'),
            ('text.txt', 'long' * 100, WorkDirError, 'name another directory'), ('text.txt', 'link', WorkDirError, 'cannot be used'),
            ('text.txt', 'model', WorkDirError, 'directory of a model'),
            ('text.txt', 'others', WorkDirError, "no trial's directory"), ('text.txt', 'mixed', WorkDirError, 'is a file')]:
        with pytest.raises(error) as caught:
            tryhyper(tmp_path / source, tmp_path / directory, grid, executor=Inline(), **SMALL)
        assert words in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'tries').exists() and not (tmp_path / 'gone').exists()


def test_a_trial_of_the_same_name_but_another_text_or_setting_is_refused(srcfile, tmp_path):
    def again(**options):
        return tryhyper(srcfile, tmp_path / 'tries', {'layers': [1]}, executor=Inline(), **{'train_len': 2, **SMALL, **options})
    again()
    assert again(learnrate=0.001, seed=1, valid_frac=0.1)[0].state == 'done'          # the same, spelt out
    for options, words in [({'train_len': 3}, 'train_len=2, not 3'), ({'decay': 0.5}, 'decay=0.95, not 0.5'),
                           ({'seed': 2}, 'seed=1, not 2'), ({'encoding': 'latin-1'}, 'another text')]:
        with pytest.raises(WorkDirError, match=words):
            again(**options)
    srcfile.write_text(TEXT + 'more')
    with pytest.raises(WorkDirError, match='another text'):
        again()


# --- Sharing the cores, and what a person sees ------------------------------------------------------------------------------

@pytest.mark.parametrize('cores, count, asked, expected', [
    (8, 20, (None, None), (8, 1)), (8, 2, (None, None), (2, 4)), (8, 3, (None, None), (3, 2)), (8, 1, (None, None), (1, 8)),
    (2, 3, (None, None), (2, 1)), (8, 20, (2, None), (2, 4)), (8, 20, (3, None), (3, 2)), (4, 20, (6, None), (6, 1)),
    (8, 4, (9, 3), (4, 3)), (1, 5, (None, None), (1, 1)), (512, 1, (None, None), (1, 256))])
def test_cores_are_shared_fairly(monkeypatch, cores, count, asked, expected):
    monkeypatch.delenv('RN_GRU_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)), raising=False)
    assert trials.shares(count, *asked) == expected
    if cores <= native.MAXTHREADS:
        monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(512)))
        monkeypatch.setenv('RN_GRU_THREADS', str(cores))
        assert trials.shares(count, *asked) == expected


def test_what_a_person_sees(srcfile, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, 'verbose', True)
    grid = [{'learnrate': 3e38, 'layers': 1}, {'learnrate': 0.001, 'layers': 1}, {'learnrate': 0.02, 'layers': 1}]
    found = tryhyper(srcfile, tmp_path / 'tries', grid, executor=Inline(), train_len=20, **SMALL)
    out = capsys.readouterr().out
    assert 'Round' not in out and 'Reading' not in out          # a trial's own messages
    for trial in found[:2]:
        assert re.search(rf'^\d/3 {trial.name}: done, validation loss {trial.loss:.4f} nats/char$', out, re.M)
    assert out.endswith(f'{found!r}\n')
    lines = repr(found).splitlines()
    assert lines[0].split() == ['rank', 'loss', 'learnrate', 'characters/s', 'state']       # layers doesn't vary
    assert [line.split() for line in lines[1:4]] == [
        [str(i), f'{trial.loss:.4f}', str(trial.hyper.learnrate), f'{trial.rate:,.0f}', 'done'] for i, trial in enumerate(found[:2], 1)] + [
        ['3e+38', 'diverged']]
    assert lines[-1] == f"The best is in '{found.best.workdir}'." and lines[-2].startswith('layers=1,learnrate=3e+38: the training has')
    tryhyper(srcfile, tmp_path / 'tries', grid, executor=Inline(), train_len=20, verbose=False, **SMALL)
    assert not capsys.readouterr().out
    assert found[0].loss < found[1].loss and repr(trials.Trials([], tmp_path)) == 'No trials.' and trials.Trials([], tmp_path).best is None


def test_progress_goes_by_the_ends_of_the_histories(srcfile, tmp_path, monkeypatch):
    found = tryhyper(srcfile, tmp_path / 'tries', {'learnrate': [0.001, 0.02]}, executor=Inline(), train_len=20, **SMALL)
    shown = []
    monkeypatch.setattr(report.Progress, 'step', lambda self, loss, count: shown.append((self.steps, self.unit, loss, count)))
    monkeypatch.setattr(trials.time, 'monotonic', iter(range(0, 1000, 2)).__next__)
    for trial in found:
        trial.steps = 20
    history = found[1].workdir / 'history.csv'
    whole = history.read_text().splitlines(keepends=True)
    history.write_text(''.join(whole[:6]) + whole[6][:9])       # five steps, and a line under way
    fifth = float(whole[5].split(',')[6])
    (found[0].workdir / 'history.csv').rename(tmp_path / 'first')
    watch = trials.Monitor(found)
    watch.look()
    assert not shown
    (tmp_path / 'first').rename(found[0].workdir / 'history.csv')
    history.write_text(''.join(whole[:8]))
    watch.look()
    seventh = float(whole[7].split(',')[6])
    assert shown == [(40 - 5, 80, pytest.approx(min(found[0].loss, seventh)), 20 + 2)] and fifth > 0
    history.write_text(''.join(whole[:4]))                      # steps made again don't count back
    watch.look()
    assert len(shown) == 1


@pytest.mark.anyengine
def test_the_curves_of_those_that_learnt_are_drawn(srcfile, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(trials, '_draw', DRAW)
    found = tryhyper(srcfile, tmp_path / 'tries', {'learnrate': [0.001, 1e30, 0.02]}, executor=Inline(), train_len=20, **SMALL)
    assert (tmp_path / 'tries' / 'trials.png').read_bytes().startswith(b'\x89PNG')
    figure = found.plot(tmp_path / 'other.svg')
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert [text.split(',')[0] for text in legend] == ['training', 'validation', 'learnrate=0.02', 'learnrate=0.001']
    assert len(found.plot(tmp_path / 'one.svg', most=1).axes[1].get_legend().get_texts()) == 2
    with pytest.raises(ValueError, match='no trial'):
        trials.Trials([], tmp_path).plot()
    with pytest.raises(RNGRUError):
        (found[0].workdir / 'history.csv').write_text('no history\n')
        found.plot(tmp_path / 'other.svg')
    assert loadfacts(found[0].workdir / 'trial.p')['setting']['learnrate'] == 0.02
