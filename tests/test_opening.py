"""Where a ModelState comes from: made of a text, loaded from its directory, or refused in one sentence, with the disk left as it was."""

from datetime import timezone

import numpy as np
import pytest

import engine
import opening
import report
from conftest import FOXES
from modelcases import make, nocompiling, tree
from rn_rnn_char import CharSet, DataSet, ModelState, RNGRUError

# --- New models -------------------------------------------------------------------------------------------------------

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


def test_undecodable_bytes_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    (tmp_path / 'text').write_bytes(b'hello world\n' * 40 + b'\xff\xfe\n')
    ModelState.initfromsrcfile(tmp_path / 'text', tmp_path / 'work', seq_len=10, state_size=4)
    assert '2 undecodable places' in (line := capsys.readouterr().out.splitlines()[1]) and 'U+FFFD' in line


# --- Loading ----------------------------------------------------------------------------------------------------------

def test_charset_and_data_come_back_as_they_were(srcfile):
    ms = make(srcfile)
    again = ModelState.load(srcfile.parent / 'work')
    assert isinstance(again.charset, CharSet) and isinstance(again.data, DataSet)
    assert again.charset == ms.charset and again.charset.chars == '\ufffd' + ''.join(sorted(set(FOXES)))
    np.testing.assert_array_equal(again.data.codes, ms.data.codes)


def test_directory_can_be_moved_while_it_is_not_in_use(srcfile):
    make(srcfile).trainmodel(train_len=2, valid_len=1)
    (srcfile.parent / 'work').rename(srcfile.parent / 'moved elsewhere')
    ms = ModelState.load(srcfile.parent / 'moved elsewhere')
    ms.restore(ms.checkpoints()[0].name)
    ms.trainmodel(train_len=1, valid_len=1)
    assert len(ms.checkpoints()) == 3


def test_loading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        ModelState.load(tmp_path / 'nowhere')
    with pytest.raises(RNGRUError, match='no model'):
        ModelState.load(tmp_path)


@pytest.mark.parametrize('facts', [{}, {'modeltype': 'LSTM'}, {'modeltype': 'GRUEncode', 'hyper': {'layers': 'x'}}, {'modeltype': 3}])
def test_a_damaged_state_file_is_refused_in_one_sentence(srcfile, facts):
    ms = make(srcfile, init_checkpoint=False)
    opening.savefacts(ms.workdir.statefile(), facts)
    with pytest.raises(RNGRUError, match='state.p'):
        ModelState.load(srcfile.parent / 'work')


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
