"""What ModelState promises: DESIGN's calls, what they compile, and what they leave on the disk."""

import inspect
import os
import shutil
import subprocess
import sys
from datetime import timezone
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

import engine
import errors
import opening
import report
import rn_rnn_char
import saving
import train
from checkpoint import Checkpoint, Checkpoints
from dataset import HeldOut
from generate import Stream, TextState
from history import Table
from info import Info
from layers import MODELTYPES
from lock import trainlock
from look import FoundNeurons, Gates, Neurons, Surprise
from plot import plot
from reading import Score
from rn_rnn_char import CharSet, DataSet, HyperParams, ModelState, RNGRUError, generatestring
from run import Run
from trial import Trial
from trials import Trials

ROOT = Path(__file__).parent.parent
TEXT = ''.join(f'Line {i}: the quick brown fox, {i * i}.\n' for i in range(60))


@pytest.fixture
def srcfile(tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text(TEXT)
    return path


def make(srcfile, name='work', **options):
    return ModelState.initfromsrcfile(srcfile, srcfile.parent / name, **{'seq_len': 10, 'state_size': 8, 'seed': 1, **options})


def tree(directory):
    """Every file below `directory` with its bytes, to see whether the disk is as it was."""
    return {path.relative_to(directory): path.read_bytes() if path.is_file() else None for path in Path(directory).rglob('*')}


def nocompiling(*args, **kwargs):
    raise AssertionError('compiled')


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
    (tmp_path / 'text.txt').write_text(TEXT)
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


def test_first_checkpoint_holds_the_untrained_loss(srcfile):
    ms = make(srcfile)
    checkpoint, = ms.checkpoints()
    # Untrained weights are small: the loss is near that of guessing among all characters.
    assert abs(checkpoint.loss - np.log(len(ms.charset))) < 0.1
    assert (checkpoint.epoch, checkpoint.pos, checkpoint.time.tzinfo) == (0, 0, timezone.utc)
    # 8 rows: each from its own eighth of the text, zero state, all 50 steps or the whole epoch.
    losses, state = [], np.zeros((1, 8, 8), np.float32)
    for pos in range(min(50, ms.data.batchepoch(8))):
        loss, state = ms.model.evaluate(*ms.data.batch(pos, 8), state)
        losses.append(loss)
    assert abs(checkpoint.loss - np.mean(losses)) < 1e-6


def test_without_first_checkpoint_restore_redraws_the_parameters_from_the_seed(srcfile):
    ms = make(srcfile, init_checkpoint=False)
    params = ms.model.get_params()
    assert ms.checkpoints() == []
    again = ModelState.load(srcfile.parent / 'work')
    again.restore()
    assert again.seed == 1
    for name, value in params.items():
        np.testing.assert_array_equal(again.model.get_params()[name], value)


def test_seed_none_draws_one_and_stores_it(srcfile):
    one, two = make(srcfile, 'one', seed=None), make(srcfile, 'two', seed=None)
    assert one.seed != two.seed and ModelState.load(srcfile.parent / 'one').seed == one.seed


def test_charset_and_data_come_back_as_they_were(srcfile):
    ms = make(srcfile)
    again = ModelState.load(srcfile.parent / 'work')
    assert isinstance(again.charset, CharSet) and isinstance(again.data, DataSet)
    assert again.charset == ms.charset and again.charset.chars == '\ufffd' + ''.join(sorted(set(TEXT)))
    np.testing.assert_array_equal(again.data.codes, ms.data.codes)


def test_directory_can_be_moved_while_it_is_not_in_use(srcfile):
    make(srcfile).trainmodel(train_len=2, valid_len=1)
    (srcfile.parent / 'work').rename(srcfile.parent / 'moved elsewhere')
    ms = ModelState.load(srcfile.parent / 'moved elsewhere')
    ms.restore(ms.checkpoints()[0].name)
    ms.trainmodel(train_len=1, valid_len=1)
    assert len(ms.checkpoints()) == 3


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


# --- The optimizer ----------------------------------------------------------------------------------------------------

def test_another_optimizer_is_kept_with_its_caches_and_goes_on_as_if_never_left(srcfile):
    ms, straight = make(srcfile), make(srcfile, 'straight')
    for each in (ms, straight):
        each.trainmodel(train_len=3, valid_len=1, print_every=0)
        each.hyper.optimizer, each.hyper.ema, each.hyper.clipping, each.hyper.clip = 'adam', 0.9, 'norm', 0.3
    before = ms.model.get_params()
    ms.trainmodel(train_len=4, valid_len=1, print_every=0)
    straight.trainmodel(train_len=6, valid_len=1, print_every=0)
    facts = ms.checkpoint.facts
    assert (facts['updates'], facts['cacheupdates'], facts['hyper']['optimizer'], facts['hyper']['ema']) == (7, 4, 'adam', 0.9)
    ms = ModelState.load(srcfile.parent / 'work')
    assert (ms.hyper.optimizer, ms.model.updates, ms.model.cacheupdates) == ('adam', 7, 4)
    ms.trainmodel(train_len=2, valid_len=1, print_every=0)
    for name, value in straight.model.arrays().items():
        np.testing.assert_array_equal(ms.model.arrays()[name], value, err_msg=name)
    assert {'gV', 'mV', 'eV'} < set(ms.model.arrays()) and not np.array_equal(before['V'], ms.model.get_params()['V'])


def test_restore_goes_back_to_another_optimizers_checkpoint_and_its_caches(srcfile):
    ms = make(srcfile)
    ms.trainmodel(train_len=3, valid_len=1, print_every=0)
    before, name, text = ms.model.arrays(), ms.checkpoint.name, ms.sample(40, seed=1)
    ms.hyper.optimizer, ms.hyper.ema, ms.hyper.learnrate = 'sgd', 0.5, 0.5
    ms.trainmodel(train_len=3, valid_len=1, print_every=0)
    assert ms.sample(40, seed=1) != text
    ms.restore(name)
    assert (ms.hyper.optimizer, ms.hyper.ema, ms.model.updates, ms.model.cacheupdates) == ('rmsprop', 0, 3, 3)
    assert ms.model.arrays().keys() == before.keys() and all(np.array_equal(value, before[key]) for key, value in ms.model.arrays().items())
    assert ms.sample(40, seed=1) == text
    ms.restore('latest')
    assert (ms.hyper.optimizer, ms.model.updates, ms.model.cacheupdates) == ('sgd', 6, 3) and 'mV' not in ms.model.arrays()


def test_a_change_of_optimizer_holds_from_the_next_training_on_and_is_said(srcfile, monkeypatch, capsys):
    ms = make(srcfile)
    ms.trainmodel(train_len=1, valid_len=1, print_every=0)
    ms.hyper.optimizer = 'adamw'
    assert 'mV' in ms.model.arrays() and 'gV' not in ms.model.arrays()
    ms.restore()                                # of the same checkpoint: the change stands
    assert ms.hyper.optimizer == 'adamw'
    monkeypatch.setattr(report, 'verbose', True)
    for lines in (1, 0):
        capsys.readouterr()
        ms.trainmodel(train_len=1, valid_len=1, print_every=0)
        assert capsys.readouterr().out.count('The optimizer is adamw now') == lines


def test_a_checkpoint_written_between_a_change_and_a_training_can_be_restored(srcfile):
    ms = make(srcfile)
    ms.hyper.optimizer, ms.hyper.ema = 'adam', 0.9
    saving.write(ms, 3.0, 'validation')
    again = ModelState.load(srcfile.parent / 'work')
    assert again.model.arrays().keys() == ms.model.arrays().keys() and again.hyper.optimizer == 'adam'


def test_without_a_checkpoint_the_seed_gives_the_orthogonal_parameters_back(srcfile):
    ms = make(srcfile, init_checkpoint=False, init='orthogonal', optimizer='adam', ema=0.5)
    before = ms.model.arrays()
    again = ModelState.load(srcfile.parent / 'work')
    again.restore()
    assert all(np.array_equal(value, before[key]) for key, value in again.model.arrays().items())
    W = before['W0'][:, :8]
    np.testing.assert_allclose(W.T @ W, np.eye(8), atol=1e-6)


@pytest.mark.parametrize('count', [-1, 1.5, 'x', None])
@pytest.mark.parametrize('name', ['updates', 'cacheupdates'])
def test_a_checkpoint_whose_count_of_updates_is_none_is_passed_over(srcfile, name, count):
    ms = make(srcfile)
    good = ms.checkpoint.name
    saving.write(ms, 3.0, 'validation', **{name: count})
    with pytest.warns(UserWarning, match=name):
        assert ModelState.load(srcfile.parent / 'work').checkpoint.name == good


# --- Runs in checkpoints ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('damage', [{'batchsize': 17}, {'batchsize': 10 ** 9}, {'valid_len': 0}, {'train_len': 0}, {'warmup': 8},
                                    {'done': -1}, {'schedule': 'x'}, {'halvings': 10 ** 400}, {'best': float('nan')},
                                    {'bestlast': 1}, {'more': 1}, None, 'run', []],
                         ids=lambda damage: repr(damage)[:30])
def test_a_checkpoint_with_a_nonsense_run_is_refused_in_one_sentence(srcfile, damage):
    ms = make(srcfile)
    good = ms.checkpoint.name
    run = Run(8, 4, 1, 2, done=2).facts()              # the state of an untrained network is one row
    saving.write(ms, 3.0, 'validation', run=run)
    assert ModelState.load(srcfile.parent / 'work').checkpoint.name == ms.checkpoint.name
    ms.workdir.remove([ms.checkpoint])
    saving.write(ms, 3.0, 'validation', run={**run, **damage} if isinstance(damage, dict) else damage)
    with pytest.warns(UserWarning, match='run of training'):
        again = ModelState.load(srcfile.parent / 'work')
    assert again.checkpoint.name == good
    with pytest.raises(RNGRUError, match=f'{ms.checkpoint.name} is damaged.*run of training') as raised:
        again.restore(ms.checkpoint.name)
    assert '\n' not in str(raised.value) and len(str(raised.value)) < 400
    with pytest.raises(ValueError, match='no run to finish'):
        again.trainmodel(resume=True)


# --- Text -------------------------------------------------------------------------------------------------------------

def test_sample_has_exactly_numchars_characters_and_repeats_with_its_seed(srcfile):
    ms = make(srcfile)
    for numchars in (0, 1, 2, 57):
        assert len(ms.sample(numchars)) == numchars
    assert ms.sample(50, seed=3) == ms.sample(50, seed=3) != ms.sample(50, seed=4)
    assert len({ms.sample(50) for _ in range(3)}) == 3
    assert ms.sample(50, temp=1.5, seed=3)[:1] == 'L'          # every line of TEXT begins with it


def test_sample_never_draws_the_unknown_character_unless_the_source_holds_it(tmp_path):
    (tmp_path / 'plain').write_text('ab\n' * 50)
    (tmp_path / 'broken').write_bytes(b'ab\xff\n' * 50 + b'ab\n' * 500)
    for name, expected in (('plain', False), ('broken', True)):
        ms = ModelState.initfromsrcfile(tmp_path / name, tmp_path / f'{name}-work', seq_len=10, state_size=4, seed=1)
        assert ('\ufffd' in ms.sample(400, temp=1)) is expected


def test_generatestring_prints_and_returns_none(srcfile, capsys):
    ms = make(srcfile)
    assert generatestring(ms, numchars=20, temp=0.7) is None
    out = capsys.readouterr().out
    assert len(out) == 21 and out.endswith('\n')


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
    assert '\n' not in text and 'GRUEncode 2 x 8' in text and f'{len(TEXT):,} characters' in text and "work'" in text


def test_undecodable_bytes_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    (tmp_path / 'text').write_bytes(b'hello world\n' * 40 + b'\xff\xfe\n')
    ModelState.initfromsrcfile(tmp_path / 'text', tmp_path / 'work', seq_len=10, state_size=4)
    assert '2 undecodable places' in (line := capsys.readouterr().out.splitlines()[1]) and 'U+FFFD' in line


def test_verbose_false_says_nothing(srcfile, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    ms = make(srcfile, verbose=False)
    ms.restore(verbose=False)
    ms.trainmodel(train_len=2, valid_len=1, print_every=1, verbose=False)
    assert capsys.readouterr() == ('', '')


# --- Bad input --------------------------------------------------------------------------------------------------------

HYPER = [({'learn_rate': 0.1}, TypeError, 'learnrate'), ({'statesize': 5}, TypeError, 'state_size'),
         ({'zzz': 5}, TypeError, 'zzz'), ({'seqlen': 5}, TypeError, 'seq_len'),
         ({'modeltype': ['GRUEncode']}, ValueError, 'GRUEncode'),
         ({'layers': 0}, ValueError, '0'), ({'layers': 2.0}, TypeError, '2.0'), ({'layers': True}, TypeError, 'True'),
         ({'state_size': -1}, ValueError, '-1'), ({'state_size': '64'}, TypeError, '64'), ({'learnrate': 0}, ValueError, '0'),
         ({'learnrate': float('nan')}, ValueError, 'nan'), ({'learnrate': float('inf')}, ValueError, 'inf'),
         ({'learnrate': None}, TypeError, 'None'), ({'decay': 1}, ValueError, '1'), ({'decay': -0.1}, ValueError, '-0.1'),
         ({'regcost': -1}, ValueError, '-1'), ({'regcost': 1j}, TypeError, '1j'), ({'seed': -1}, ValueError, '-1'),
         ({'seed': 1.5}, TypeError, '1.5'), ({'seq_len': 0}, ValueError, '0'), ({'seq_len': 'x'}, TypeError, 'x'),
         ({'modeltype': 'GRUencode'}, ValueError, 'GRUEncode'), ({'modeltype': None}, ValueError, 'None'),
         ({'encoding': 'utf-9'}, LookupError, 'utf-9'), ({'seq_len': 10 ** 6}, ValueError, '1000000'),
         ({'optimizer': 'adamm'}, ValueError, 'did you mean adam'), ({'momentum': 0.5}, ValueError, "optimizer='sgd'"),
         ({'optimizer': 'adam', 'decay': 0.9}, ValueError, "optimizer='rmsprop'"),
         ({'optimizer': 'sgd', 'beta1': 1}, ValueError, 'below 1'),
         ({'optimizer': 'adam', 'weight_decay': 0.1}, ValueError, "optimizer='adamw'"), ({'clip': 0}, ValueError, 'more than 0'),
         ({'valid_frac': 0.999}, ValueError, r'valid_frac 0.999 leaves \d of'),
         ({'valid_frac': 1e-9, 'seq_len': 1}, ValueError, 'valid_frac 1e-09 holds out 1 of'),
         ({'valid_frac': 1}, ValueError, 'below 1'), ({'valid_frac': '0.1'}, TypeError, '0.1'), ({'dropout': 1}, ValueError, 'below 1'),
         ({'learnrate': 10 ** 400}, ValueError, 'inf'), ({'layers': 100, 'state_size': 100_000}, MemoryError, '100 x 100000')]


@pytest.mark.parametrize('options, error, said', HYPER)
def test_wrong_options_are_refused_in_one_sentence_and_leave_the_disk(srcfile, options, error, said, monkeypatch):
    monkeypatch.setattr(engine, 'compilefunction', nocompiling)
    before = tree(srcfile.parent)
    with pytest.raises(error, match=said) as raised:
        make(srcfile, **options)
    assert '\n' not in str(raised.value)
    assert tree(srcfile.parent) == before


def sources(tmp_path):
    (tmp_path / 'empty').write_text('')
    (tmp_path / 'short').write_text('abc')
    (tmp_path / 'binary').write_bytes(bytes(range(256)) * 20)
    return {'missing': FileNotFoundError, 'empty': ValueError, 'short': ValueError, 'binary': ValueError, '.': IsADirectoryError}


@pytest.mark.parametrize('name', ['missing', 'empty', 'short', 'binary', '.'])
def test_a_text_that_is_none_is_refused_and_leaves_the_disk(tmp_path, name):
    error = sources(tmp_path)[name]
    before = tree(tmp_path)
    with pytest.raises(error) as raised:
        ModelState.initfromsrcfile(tmp_path / name, tmp_path / 'deep' / 'work')
    assert '\n' not in str(raised.value) and (name == '.' or name in str(raised.value))
    assert tree(tmp_path) == before


def test_a_directory_that_holds_a_model_is_refused_and_kept(srcfile):
    make(srcfile)
    before = tree(srcfile.parent)
    with pytest.raises(RNGRUError, match='ModelState.load'):
        make(srcfile, modeltype='GRUResize')
    assert tree(srcfile.parent) == before


def test_failing_in_mid_init_leaves_the_disk(srcfile, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')
    before = tree(srcfile.parent)
    for name in ('savefacts', 'encodefile'):
        with monkeypatch.context() as patch:
            patch.setattr(opening, name, full)
            with pytest.raises(OSError):
                make(srcfile)
        assert tree(srcfile.parent) == before


def test_loading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        ModelState.load(tmp_path / 'nowhere')
    with pytest.raises(RNGRUError, match='no model'):
        ModelState.load(tmp_path)


def test_restoring_a_checkpoint_that_is_not_there_lists_those_that_are(srcfile):
    ms = make(srcfile)
    with pytest.raises(RNGRUError, match=ms.checkpoints()[0].name):
        ms.restore('nosuch-model.p')
    for name in ('../other/x-model.p', '/etc/passwd'):
        with pytest.raises(ValueError):
            ms.restore(name)
    assert len(ms.sample(5)) == 5               # and the model is as it was


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


@pytest.mark.parametrize('arguments, error', [((-1,), ValueError), ((1.5,), TypeError), ((5, -1), ValueError),
                                              ((5, float('nan')), ValueError), ((5, float('inf')), ValueError),
                                              ((5, 'hot'), TypeError), ((5, 0.5, -1), ValueError)])
def test_wrong_arguments_of_sample_are_refused(srcfile, arguments, error):
    with pytest.raises(error):
        make(srcfile).sample(*arguments)


def test_hyper_refuses_wrong_names_and_values_when_assigned(srcfile):
    ms = make(srcfile)
    with pytest.raises(AttributeError, match='learnrate'):
        ms.hyper.learn_rate = 0.1
    with pytest.raises(ValueError):
        ms.hyper.learnrate = -1
    with pytest.raises(AttributeError, match='state_size is 8'):
        ms.hyper.state_size = 16
    with pytest.raises(AttributeError, match='init is uniform'):
        ms.hyper.init = 'orthogonal'
    assert ms.hyper == HyperParams(state_size=8)
    for name, value in (('state_size', 16), ('init', 'orthogonal'), ('valid_frac', 0.1)):
        with pytest.raises(ValueError, match=f'{name} is .* for good, got {value}'):
            ms.hyper = HyperParams(**{'state_size': 8, name: value})
    ms.hyper = HyperParams(state_size=8, optimizer='adam', momentum=0.5)


@pytest.mark.parametrize('facts', [{}, {'modeltype': 'LSTM'}, {'modeltype': 'GRUEncode', 'hyper': {'layers': 'x'}}, {'modeltype': 3}])
def test_a_damaged_state_file_is_refused_in_one_sentence(srcfile, facts):
    ms = make(srcfile, init_checkpoint=False)
    opening.savefacts(ms.workdir.statefile(), facts)
    with pytest.raises(RNGRUError, match='state.p'):
        ModelState.load(srcfile.parent / 'work')


# --- Damage -----------------------------------------------------------------------------------------------------------

def flip(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def trained(srcfile):
    """A model with three checkpoints, at positions 0, 1 and 2."""
    ms = make(srcfile)
    ms.trainmodel(num_rounds=2, train_len=1, valid_len=1, print_every=0)
    return ms


@pytest.mark.parametrize('how', [lambda ms: ms.restore(), lambda ms: ms.sample(5), lambda ms: ms.model,
                                 lambda ms: ms.trainmodel(train_len=1, valid_len=1, print_every=0)],
                         ids=['restore', 'sample', 'model', 'trainmodel'])
@pytest.mark.parametrize('which', ['name', 'arrays'])
@pytest.mark.filterwarnings('ignore:.*damaged')             # each listing names it again
def test_a_damaged_checkpoint_gives_way_to_the_newest_whole_one_and_is_named(trained, how, which):
    *_, whole, bad = trained.checkpoints()
    name = getattr(bad, which)
    flip(trained.workdir.path / name)
    with pytest.warns(UserWarning, match=name):
        ms = ModelState.load(trained.workdir.path)
        how(ms)
    assert ms.checkpoint == whole and ms.model.pos == 1 or how.__code__.co_names[0] == 'trainmodel' and ms.model.pos == 2
    with pytest.raises(RNGRUError, match=f'{name}.*damaged') as raised:
        ModelState.load(trained.workdir.path).restore(bad.name)
    assert '\n' not in str(raised.value)


@pytest.mark.filterwarnings('ignore:.*damaged')
def test_the_checkpoint_that_is_fallen_back_to_brings_its_hyperparameters(trained):
    trained.hyper.learnrate = 0.25
    trained.trainmodel(train_len=1, valid_len=1, print_every=0)
    flip(trained.workdir.path / trained.checkpoint.arrays)
    for ms in trained, ModelState.load(trained.workdir.path):
        assert ms.hyper.learnrate == 0.25
        ms.restore()
        assert (ms.model.pos, ms.hyper.learnrate) == (2, 0.001)


def test_a_failed_restore_leaves_the_model_as_it_was(trained):
    *_, middle, last = trained.checkpoints()
    before, hyper = trained.model.arrays(), trained.hyper
    flip(trained.workdir.path / middle.arrays)
    with pytest.raises(RNGRUError, match=middle.arrays):
        trained.restore(middle.name)
    assert trained.checkpoint == last and trained.model.pos == 2 and trained.hyper is hyper
    for name, value in trained.model.arrays().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_fallback_is_said_every_time(trained, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    flip(trained.workdir.path / trained.checkpoint.arrays)
    bad = trained.checkpoint.arrays
    for _ in range(2):
        trained.restore()
        out = capsys.readouterr().out
        assert bad in out and f'going on with {trained.checkpoint.name}' in out and 'position 1.' in out


def test_a_training_that_ends_badly_goes_back_to_the_checkpoint_it_came_from(trained):
    first, middle, last = trained.checkpoints()
    trained.restore(middle.name)
    trained.model.params['c'].set_value(np.full(len(trained.charset), np.nan, np.float32))
    with pytest.raises(FloatingPointError):
        trained.trainmodel(train_len=1, valid_len=1, print_every=0)
    assert trained.model.pos == 1 and trained.checkpoint == middle and np.isfinite(trained.model.get_params()['c']).all()
    trained.workdir.remove([middle])
    vars(trained).pop('model')
    assert trained.model.pos == 2 and trained.checkpoint == last


def test_where_no_checkpoint_is_whole_nothing_is_made_up(trained):
    for checkpoint in trained.checkpoints():
        flip(trained.workdir.path / checkpoint.arrays)
    ms = ModelState.load(trained.workdir.path)
    for call in (ms.restore, ms.sample, ms.trainmodel):
        with pytest.raises(RNGRUError, match='no checkpoint that is whole'):
            call()
    for checkpoint in trained.checkpoints():
        flip(trained.workdir.path / checkpoint.name)
    with pytest.warns(UserWarning):
        ms = ModelState.load(trained.workdir.path)
    with pytest.raises(RNGRUError, match='no checkpoint that is whole'):
        ms.restore()


def test_a_damaged_text_is_refused_before_anything_compiles(trained, monkeypatch):
    data = trained.data
    flip(trained.workdir.path / opening.DATAFILE)
    monkeypatch.setattr(engine, 'compilefunction', nocompiling)
    ms = ModelState.load(trained.workdir.path)
    for call in (ms.restore, ms.trainmodel, trained.restore):
        with pytest.raises(RNGRUError, match=f'{opening.DATAFILE}.*checksum') as raised:
            call()
        assert '\n' not in str(raised.value)
    assert trained.data is data                     # what is in use stays in use


def test_a_damaged_state_file_is_refused_at_load(trained):
    flip(trained.workdir.statefile())
    with pytest.raises(RNGRUError, match='state.p.*checksum'):
        ModelState.load(trained.workdir.path)


def test_the_arrays_of_one_checkpoint_are_not_taken_for_anothers(trained):
    *_, middle, last = trained.checkpoints()
    path = trained.workdir.path
    (path / last.arrays).write_bytes((path / middle.arrays).read_bytes())
    with pytest.raises(RNGRUError, match='checksum'):
        trained.restore(last.name)


def test_a_checkpoint_of_another_network_is_passed_over(trained, srcfile):
    other = make(srcfile, 'other', layers=2)
    other.trainmodel(num_rounds=3, train_len=1, valid_len=1, print_every=0)
    for name in (other.checkpoint.name, other.checkpoint.arrays):
        (trained.workdir.path / name).write_bytes((other.workdir.path / name).read_bytes())
    with pytest.warns(UserWarning, match='layers=2'):
        ms = ModelState.load(trained.workdir.path)
    assert ms.hyper.layers == 1 and ms.checkpoint == trained.checkpoint
    with pytest.warns(UserWarning, match='layers=2'):
        ms.restore()
    assert ms.model.pos == 2
    with pytest.raises(RNGRUError, match='layers=2'):
        ms.restore(other.checkpoint.name)


# --- Living with checkpoints ------------------------------------------------------------------------------------------

def losses(ms, *values):
    """A checkpoint for each loss, at positions from 1 on; (loss, kind) for another kind than 'validation'."""
    for pos, value in enumerate(values, 1):
        ms.model.pos = pos
        loss, kind = value if isinstance(value, tuple) else (value, 'validation')
        saving.write(ms, loss, kind)


def test_checkpoints_show_themselves_as_a_table_with_the_best_starred(srcfile):
    ms = make(srcfile)
    losses(ms, 2.5, 1.25, (0.5, 'training'), 1.75)
    found = ms.checkpoints()
    head, *rows, legend = repr(found).splitlines()
    assert isinstance(found, list) and len(rows) == len(found) == 5
    for checkpoint, row in zip(found, rows):
        columns = row.split()
        assert columns[:3] == [checkpoint.name, str(checkpoint.epoch), str(checkpoint.pos)]
        assert columns[3].rstrip('*') == f'{checkpoint.loss:.4f}' and columns[4] == checkpoint.kind and len(row) <= 80
    assert ['*' in row for row in rows] == [False, False, True, False, False] and 'best' in legend
    assert len({row.index('Z-') for row in rows}) == 1                      # in columns
    assert repr(make(srcfile, 'other', init_checkpoint=False).checkpoints()) == 'No checkpoints yet.'


def test_restore_takes_best_and_latest(srcfile):
    ms = make(srcfile)
    with pytest.raises(RNGRUError, match='validation loss yet'):
        ms.restore('best')
    losses(ms, 2.5, 1.25, 1.25, 3.0, (0.5, 'training'))
    for name, pos in (('best', 3), ('latest', 5), ('best', 3), (None, 5)):  # of equals the newer one
        ms.restore(name)
        assert ms.model.pos == ms.checkpoint.pos == pos
    with pytest.raises(RNGRUError, match='no checkpoint yet'):
        make(srcfile, 'other', init_checkpoint=False).restore('latest')


@pytest.mark.parametrize('keep, kept', [(1, [2, 6]), (2, [2, 5, 6]), (5, [2, 3, 4, 5, 6]), (9, [0, 1, 2, 3, 4, 5, 6]),
                                        (None, [0, 1, 2, 3, 4, 5, 6])])
def test_keep_removes_neither_the_best_nor_the_latest(srcfile, keep, kept, monkeypatch):
    ms = make(srcfile)
    values = iter([3.0, 1.0, 2.0, 2.0, 1.5, 2.5])
    monkeypatch.setattr(train, '_validate', lambda *args: next(values))
    ms.trainmodel(num_rounds=6, train_len=1, valid_len=1, print_every=0, keep=keep)
    assert [c.pos for c in ms.checkpoints()] == kept
    assert len([path for path in ms.workdir.path.iterdir() if path.suffix in ('.p', '.npz')]) == 2 * len(kept) + 1


def test_keep_leaves_the_save_within_a_round(srcfile, monkeypatch):
    ms = make(srcfile)
    losses(ms, 3.0, 2.0, (0.5, 'training'))
    ms.trainmodel(num_rounds=2, train_len=1, valid_len=1, print_every=0, keep=1)
    assert [(c.kind, c.loss < 3) for c in ms.checkpoints()] == [('validation', True), ('training', True), ('validation', False)]


def test_info_says_what_is_there_and_what_is_damaged(srcfile):
    ms = make(srcfile)
    losses(ms, 2.5, 1.25, 2.0)
    (ms.workdir.path / 'notes.txt').write_text('mine')
    (ms.workdir.path / 'history.csv').write_text('time\n' * 100)
    first, best, last = ms.checkpoints()[-3:]
    text = repr(ms.info())
    assert text == str(ms.info()) and isinstance(ms.info(), str)
    for part in ('GRUEncode 1 x 8', str(ms.workdir.path), ms.workdir.statefile().name, opening.DATAFILE, f'latest {last.name}',
                 f'best {best.name}', 'notes.txt', '  history      500 bytes  history.csv', 'Every file is whole.',
                 'Nobody is training here.', 'free on this disk'):
        assert part in text
    flip(ms.workdir.path / first.name), flip(ms.workdir.path / best.arrays), flip(ms.workdir.path / opening.DATAFILE)
    (ms.workdir.path / last.arrays).unlink()
    (ms.workdir.path / f'.x-model.p.{"0" * 8}-1-{"0" * 8}.tmp').write_text('x')
    text = repr(ms.info())
    damaged = [line for line in text.splitlines() if line.startswith('Damaged: ')]
    names = first.name, best.arrays, last.arrays, opening.DATAFILE
    assert [name in line for name, line in zip(names, damaged, strict=True)] == [True] * 4
    assert 'left over' in text and 'Every file is whole' not in text
    with trainlock(ms.workdir.path):
        assert 'is training here.' in repr(ms.info()) and 'Nobody' not in repr(ms.info())


def test_a_checkpoint_of_another_text_is_refused_though_all_its_shapes_fit(srcfile):
    ms = make(srcfile)
    srcfile.write_text(TEXT[::-1])                   # the same characters, another text
    other = make(srcfile, 'other')
    for path in other.workdir.path.glob('*-model.*'):
        shutil.copy(path, ms.workdir.path)
    with pytest.raises(RNGRUError, match='another text'):
        ms.restore(other.checkpoint.name)
    with pytest.warns(UserWarning, match='another text.*going on with'):
        ms.restore()
    assert ms.checkpoint.name != other.checkpoint.name


def test_a_checkpoint_of_the_same_text_in_sequences_of_another_length_is_refused_though_its_encoded_text_is_the_same(srcfile):
    srcfile.write_text(TEXT[:400])                   # whole sequences of 10 as of 20: no padding
    ms, other = make(srcfile), make(srcfile, 'other', seq_len=20)
    assert ms.textchecksum == other.textchecksum
    for path in other.workdir.path.glob('*-model.*'):
        shutil.copy(path, ms.workdir.path)
    with pytest.raises(RNGRUError, match='another text'):
        ms.restore(other.checkpoint.name)


def test_what_ctrl_c_kept_stays_when_another_checkpoint_is_gone_back_to(srcfile):
    ms = make(srcfile)
    losses(ms, 2.5, (1.0, 'training'))
    kept = ms.checkpoint.name
    ms.restore('best')
    losses(ms, (2.0, 'training'), 1.9, (1.8, 'training'))                  # these take turns in a slot of their own
    names = [each.name for each in ms.checkpoints() if each.kind == 'training']
    assert len(names) == 2 and names[0] == kept
    again = ModelState.load(ms.workdir.path)
    losses(again, (1.7, 'training'))
    assert [each.loss for each in again.checkpoints() if each.kind == 'training'] == [1.0, 1.7]


def test_an_old_save_that_a_kill_left_beside_the_new_one_goes_with_it(srcfile, monkeypatch):
    ms = make(srcfile)
    with monkeypatch.context() as patch:
        patch.setattr(ms.workdir, 'remove', lambda checkpoints: None)          # killed before it
        losses(ms, (2.0, 'training'), (1.9, 'training'), 1.8)
    again = ModelState.load(ms.workdir.path)
    losses(again, (1.7, 'training'))
    assert [each.loss for each in again.checkpoints() if each.kind == 'training'] == [1.7]


def test_a_kill_between_the_removals_of_two_old_saves_leaves_none_for_good(srcfile, monkeypatch):
    ms = make(srcfile)
    remove = ms.workdir.remove
    with monkeypatch.context() as patch:
        patch.setattr(ms.workdir, 'remove', lambda checkpoints: None)
        losses(ms, (2.0, 'training'), (1.9, 'training'))
        patch.setattr(ms.workdir, 'remove', lambda checkpoints: remove(list(checkpoints)[:1]))
        losses(ms, (1.8, 'training'))
    assert len(ms.checkpoints()) == 3
    again = ModelState.load(ms.workdir.path)
    losses(again, (1.7, 'training'))
    assert [each.loss for each in again.checkpoints() if each.kind == 'training'] == [1.7]
