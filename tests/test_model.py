"""What ModelState promises: DESIGN's calls, what they compile and leave on the disk; and what generatestring prints."""

import inspect
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

import engine
import errors
import report
import rn_rnn_char
from checkpoint import Checkpoint, Checkpoints
from conftest import FOXES
from dataset import HeldOut
from generate import Stream, TextState
from history import Table
from info import Info
from look import FoundNeurons, Gates, Neurons, Surprise
from modelcases import TYPES, make, nocompiling, varied
from plot import plot
from reading import Score
from rn_rnn_char import HyperParams, ModelState, RNGRUError, generatestring
from trial import Trial
from trials import Trials

ROOT = Path(__file__).parent.parent


# --- The contract -----------------------------------------------------------------------------------------------------

def test_signatures_are_those_of_the_contract():
    def defaults(function):
        return {name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty}
    assert defaults(ModelState.initfromsrcfile) == {'modeltype': 'GRUEncode', 'seq_len': 100, 'init_checkpoint': True, 'encoding': None,
                                                    'seed': None, 'start_from': None, 'verbose': True}
    assert defaults(HyperParams) == {'layers': 1, 'state_size': 128, 'learnrate': 0.001, 'decay': 0.95, 'regcost': 0.0,
                                     'optimizer': 'rmsprop', 'beta1': 0.9, 'beta2': 0.999, 'momentum': 0.9, 'weight_decay': 0.1,
                                     'clipping': 'value', 'clip': 5.0, 'dropout': 0.0, 'layernorm': False, 'ema': 0.0,
                                     'precision': 'float32', 'init': 'uniform', 'valid_frac': 0.0}
    assert defaults(ModelState.trainmodel) == {'num_rounds': 1, 'batchsize': 16, 'train_len': 0, 'valid_len': 0, 'print_every': 1000,
                                               'clear_state': False, 'minutes': None, 'schedule': 'constant', 'warmup': 0,
                                               'end_learnrate': None, 'patience': None, 'resume': False, 'save_every': 600, 'keep': None,
                                               'watch': None, 'device': None, 'devices': None, 'threads': None, 'verbose': True}
    for writer in (generatestring, ModelState.sample, ModelState.stream):
        assert defaults(writer) == {'numchars': 100, 'temp': 0.5, 'seed': None, 'prime': '', 'top_k': None, 'top_p': None, 'min_p': None,
                                    'until': None, 'n': None, 'state': None}


def helped():
    """(name, object) of what help() shows of the public names, of the classes that their methods give, and of our own exceptions."""
    given = [Checkpoint, Checkpoints, FoundNeurons, Gates, HeldOut, Info, Neurons, Score, Stream, Surprise, Table, TextState, Trial,
             Trials, plot]
    own = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, RNGRUError)]
    for each in [*(getattr(rn_rnn_char, name) for name in rn_rnn_char.__all__), *given, *own]:
        yield each.__name__, each
        if inspect.isclass(each):
            for name, member in vars(each).items():
                described = inspect.isroutine(member) or isinstance(member, (property, cached_property))
                if described and (name == '__init__' or not name.startswith('_')):
                    yield f'{each.__name__}.{name}', member


def test_help_fits_into_80_columns():
    seen = dict(helped())
    assert len(seen) > 60 and {'ModelState.sample', 'ModelState.load', 'ModelState.model', 'Stream', 'Score.bits', 'CharSet.decode',
                               'CheckpointError'} <= set(seen)
    wide = {name: line for name, member in seen.items() for line in (inspect.getdoc(member) or '').splitlines() if len(line) > 70}
    assert not wide                             # 70, as help() indents a method's text by 9


def test_a_program_called_as_one_of_our_modules_and_others_beside_it_are_not_mistaken_for_ours(tmp_path):
    for name in 'report', 'history', 'trial', 'processes', 'plot':
        (tmp_path / f'{name}.py').write_text("raise RuntimeError('a module of the person')")
    (tmp_path / 'text.txt').write_text(FOXES)
    (tmp_path / 'train.py').write_text(
        "import contextlib\nimport sys\nbefore = list(sys.path)\nfrom rn_rnn_char import *\nassert sys.path == before\n"
        "trials = tryhyper('text.txt', 'tries', {'seed': [1]}, layers=1, state_size=4, seq_len=10, train_len=1, batchsize=2)\n"
        "with contextlib.suppress(ImportError):\n    trials.best.load().plot('losses.png')        # may lack matplotlib\n"
        "print(len(trials.best.load().sample(20)))\n")
    done = subprocess.run([sys.executable, 'train.py'], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True,
                          text=True)
    assert done.returncode == 0 and done.stdout.endswith('20\n'), done.stderr


@pytest.mark.parametrize('modeltype', ['GRUEncode', 'GRUResize'])
def test_the_whole_session_in_two_processes(srcfile, modeltype):
    first = f'''
from rn_rnn_char import *
ms = ModelState.initfromsrcfile({str(srcfile)!r}, {str(srcfile.parent / "work")!r}, modeltype={modeltype!r},
                                layers=3, state_size=16, learnrate=0.0005, decay=0.9, regcost=0.2, seq_len=10)
ms.trainmodel(num_rounds=3, batchsize=16, train_len=4, valid_len=2, print_every=100)
generatestring(ms, numchars=30, temp=0.5)
'''
    second = f'''
from rn_rnn_char import *
ms = ModelState.load({str(srcfile.parent / "work")!r})
ms.restore()
names = [c.name for c in ms.checkpoints()]
ms.restore(names[1])
assert len(names) == 4 and ms.model.pos == 4 and len(ms.sample(30)) == 30
ms.trainmodel(train_len=1, valid_len=1, print_every=0)
'''
    for program in (first, second):
        done = subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert '\x1b' not in done.stdout and '\r' not in done.stdout
    assert 'Traceback' not in done.stderr


def test_init_and_load_compile_nothing_and_restore_only_what_generates(srcfile, monkeypatch):
    compiled = []
    original = engine.compilefunction
    monkeypatch.setattr(engine, 'compilefunction', nocompiling)
    make(srcfile)
    ms = ModelState.load(srcfile.parent / 'work')
    assert ms.model.epoch == ms.model.pos == 0 and repr(ms)
    monkeypatch.setattr(engine, 'compilefunction', lambda *args: compiled.append(args) or original(*args))
    ms.restore()
    restored = len(compiled)
    assert restored and 'trainstep' not in vars(ms.model) and 'sampletext' in vars(ms.model)
    ms.sample(5), ms.trackneurons('abc'), ms.restore()
    assert len(compiled) == restored
    ms.trainmodel(train_len=1, valid_len=1, print_every=0)
    assert len(compiled) > restored and 'trainstep' in vars(ms.model)


def test_restore_by_name_goes_back_in_everything(srcfile):
    ms = make(srcfile)
    ms.trainmodel(train_len=3, valid_len=1, print_every=0)
    before, name = ms.model.arrays(), ms.checkpoint.name
    ms.hyper.learnrate = 0.5
    ms.trainmodel(train_len=3, valid_len=1, print_every=0)
    assert not np.array_equal(ms.model.arrays()['V'], before['V']) and ms.checkpoint.facts['hyper']['learnrate'] == 0.5
    ms.restore(name)
    for key, value in ms.model.arrays().items():
        np.testing.assert_array_equal(value, before[key])
    assert (ms.model.pos, ms.hyper.learnrate) == (3, 0.001)


def test_learnrate_needs_no_recompilation_and_stands_in_the_next_checkpoint(srcfile, monkeypatch):
    ms = make(srcfile)
    ms.trainmodel(train_len=1, valid_len=1, print_every=0)
    monkeypatch.setattr(engine, 'compilefunction', nocompiling)
    before = ms.model.get_params()
    ms.hyper.learnrate = 1e-9
    ms.trainmodel(train_len=1, valid_len=1, print_every=0)
    assert max(np.abs(value - before[name]).max() for name, value in ms.model.get_params().items()) < 1e-6
    assert ModelState.load(srcfile.parent / 'work').hyper.learnrate == 1e-9


def test_a_learnrate_set_before_anything_is_read_stands(srcfile):
    make(srcfile)
    ms = ModelState.load(srcfile.parent / 'work')
    ms.hyper.learnrate = 0.25
    ms.restore()
    ms.trainmodel(train_len=1, valid_len=1, print_every=0)
    assert ms.hyper.learnrate == 0.25


# --- Text -------------------------------------------------------------------------------------------------------------

def test_sample_has_exactly_numchars_characters_and_repeats_with_its_seed(srcfile):
    ms = make(srcfile)
    for numchars in (0, 1, 2, 57):
        assert len(ms.sample(numchars)) == numchars
    assert ms.sample(50, seed=3) == ms.sample(50, seed=3) != ms.sample(50, seed=4)
    assert len({ms.sample(50) for _ in range(3)}) == 3
    assert ms.sample(50, temp=1.5, seed=3)[:1] == 'L'          # every line of FOXES begins with it


def test_sample_never_draws_the_unknown_character_unless_the_source_holds_it(tmp_path):
    (tmp_path / 'plain').write_text('ab\n' * 50)
    (tmp_path / 'broken').write_bytes(b'ab\xff\n' * 50 + b'ab\n' * 500)
    for name, expected in (('plain', False), ('broken', True)):
        ms = ModelState.initfromsrcfile(tmp_path / name, tmp_path / f'{name}-work', seq_len=10, state_size=4, seed=1)
        assert ('\ufffd' in ms.sample(400, temp=1)) is expected


def test_trackneurons_gives_states_along_the_text_from_zero(srcfile):
    ms = make(srcfile, layers=2)
    states = ms.trackneurons('The fox?')
    assert states.shape == (2, 8, 8) and states.dtype == np.float32
    # A state depends on what was read before it only.
    np.testing.assert_allclose(ms.trackneurons('The')[:, :, 2], states[:, :, 2], atol=1e-6)
    # Unknown characters are read as U+FFFD.
    np.testing.assert_array_equal(ms.trackneurons('\u4e2d'), ms.trackneurons('\ufffd'))


def test_repr_is_one_line_that_says_what_it_is(srcfile):
    text = repr(make(srcfile, layers=2))
    assert '\n' not in text and 'GRUEncode 2 x 8' in text and f'{len(FOXES):,} characters' in text and "work'" in text


def test_verbose_false_says_nothing(srcfile, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    ms = make(srcfile, verbose=False)
    ms.restore(verbose=False)
    ms.trainmodel(train_len=2, valid_len=1, print_every=1, verbose=False)
    assert capsys.readouterr() == ('', '')


# --- generatestring ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module', params=TYPES)
def ms(request, tmp_path_factory):
    return varied(tmp_path_factory.mktemp('model'), request.param)


@pytest.fixture(scope='module')
def encode(tmp_path_factory):
    return varied(tmp_path_factory.mktemp('model'), 'GRUEncode')


def test_generatestring_prints_and_returns_none(srcfile, capsys):
    ms = make(srcfile)
    assert generatestring(ms, numchars=20, temp=0.7) is None
    out = capsys.readouterr().out
    assert len(out) == 21 and out.endswith('\n')


def test_generatestring_prints_the_sample_and_returns_none(ms, capsys):
    for options in ({}, {'prime': 'ab'}, {'until': 'a', 'prime': 'b'}, {'top_k': 2}, {'numchars': 0}, {'numchars': 0, 'prime': 'ab'}):
        options = {'numchars': 200, 'seed': 3, **options}
        assert generatestring(ms, **options) is None
        assert capsys.readouterr().out == ms.sample(**options) + '\n'


def test_generatestring_prints_several_texts_each_under_its_heading(ms, capsys):
    for options in ({}, {'until': 'ab'}, {'prime': 'c'}):
        generatestring(ms, 200, seed=3, n=3, **options)
        one, two, three = ms.sample(200, seed=3, n=3, **options)
        assert capsys.readouterr().out == f'--- 1 of 3 ---\n{one}\n--- 2 of 3 ---\n{two}\n--- 3 of 3 ---\n{three}\n'
    generatestring(ms, 9, seed=3, n=1)
    assert capsys.readouterr().out == f'--- 1 of 1 ---\n{ms.sample(9, seed=3)}\n'


def test_characters_that_the_terminal_lacks_are_question_marks(encode, monkeypatch, capsys):
    monkeypatch.setattr(report, 'printable', lambda text, file=None: text.encode('ascii', 'replace').decode())
    with pytest.warns(UserWarning):
        generatestring(encode, 0, prime='é\ud800')
    assert capsys.readouterr().out == '??\n'


def test_where_there_is_no_standard_output_everything_works_and_says_nothing(text, tmp_path, monkeypatch, capfd):
    """Closed by `>&-`, or a program without a console: sys.stdout is None then."""
    ms = ModelState.initfromsrcfile(text, tmp_path / 'work', seq_len=10, state_size=8, seed=1)
    monkeypatch.setattr(report, 'verbose', True)
    monkeypatch.setattr(sys, 'stdout', None)
    ms.trainmodel(train_len=2, batchsize=4, valid_len=1, print_every=1)
    generatestring(ms, 20, n=2)
    ms.surprise('some words').show()
    assert ms.checkpoint.pos == 2 and capfd.readouterr() == ('', '')


@pytest.mark.parametrize('n', [None, 3])
def test_ctrl_c_ends_a_text_with_what_there_is_and_a_line_end(encode, monkeypatch, capsys, n):
    """The signal comes while the third piece is being drawn."""
    draw, calls = encode.model.sampletext, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)
        return draw(*arguments)
    want = encode.sample(193, seed=3, n=n)
    monkeypatch.setattr(encode.model, 'sampletext', interrupted)
    generatestring(encode, 5000, seed=3, n=n)
    out = capsys.readouterr().out
    if n is None:
        assert out == want + '\n'
    else:
        assert out == ''.join(f'--- {i} of 3 ---\n{text}\n' for i, text in enumerate(want, 1))
    assert encode.sample(5, seed=3) == want[:5] if n is None else encode.sample(5, seed=3, n=3) == [text[:5] for text in want]


@pytest.mark.parametrize('n', ['None', '3'])
def test_in_a_terminal_text_appears_while_it_is_written_and_ctrl_c_gives_the_prompt_back(tmp_path, n):
    varied(tmp_path, 'GRUEncode')
    program = f'''
import time
from rn_rnn_char import *
ms = ModelState.load({str(tmp_path / "work")!r})
ms.restore()
draw = ms.model.sampletext
def slowly(*arguments):
    time.sleep(0.3)
    return draw(*arguments)
ms.model.sampletext = slowly
print('ready')
generatestring(ms, 10 ** 6, temp=1, seed=3, prime='abba', n={n})
print('then', ms.sample(4, prime='cab', temp=0))
'''
    pid, leader = pty.fork()
    if pid == 0:                # its terminal is the new one, and a \x03 there a SIGINT
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, '-c', program], {**os.environ, 'TERM': 'dumb', 'OPENBLAS_NUM_THREADS': '1'})
    seen = ''
    try:
        def until(pattern, seconds=60):
            nonlocal seen
            end = time.monotonic() + seconds
            while not re.search(pattern, seen):
                assert select.select([leader], [], [], max(end - time.monotonic(), 0))[0], f'no {pattern!r} in {seen!r}'
                seen += os.read(leader, 65536).decode()
        until('(?s)ready\r\n.*abba(.|\r\n){60}')
        first = len(seen)
        until(f'(?s).{{{first + 100},}}')           # and more, long before the end
        os.write(leader, b'\x03')
        until('then cab(.|\r\n){4}')
        said = seen[seen.index('ready'):]
        assert 'Traceback' not in said and 'KeyboardInterrupt' not in said
        assert '\r\nthen cab' in said and len(said) < 10 ** 5
        if n == '3':
            assert [said.count(f'--- {i} of 3 ---\r\nabba') for i in (1, 2, 3)] == [1, 1, 1]
    finally:
        os.close(leader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
