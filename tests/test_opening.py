"""What ModelState refuses at the door, each in one sentence, with the disk left as it was."""

import pytest

import engine
import errors
import opening
import report
from layers import MODELTYPES
from modelcases import FOXES, make, nocompiling, tree
from rn_rnn_char import HyperParams, ModelState, RNGRUError


@pytest.fixture
def srcfile(tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text(FOXES)
    return path


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
