"""A model that goes on from another's parameters: what it takes over, what it begins afresh, and what it refuses."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import engine
import opening
import report
from conftest import naive_logits
from modelcases import flip, tree
from rn_rnn_char import HyperParams, ModelState, RNGRUError

ROOT = Path(__file__).parent.parent
FIRST, SECOND = 'bd\ndb\nbbdd\n' * 20, 'cab\nac\n' * 30
BOTH = '\ufffd\nabcd'              # the charset of both, the unknown character first
OLD, NEW = [0, 1, 3, 5], [2, 4]     # where in it the first model's \ufffd \n b d are, and a c, which are new


def make(directory, text, name, **options):
    (directory / f'{name}.txt').write_text(text, encoding='utf-8')
    return ModelState.initfromsrcfile(directory / f'{name}.txt', directory / name, seq_len=5, seed=options.pop('seed', 1), **options)


@pytest.fixture(params=['GRUEncode', 'GRUResize'])
def first(tmp_path, request):
    """A trained model of each type, with checkpoints at positions 0, 4 and 8."""
    ms = make(tmp_path, FIRST, 'first', modeltype=request.param, layers=2, state_size=4, learnrate=0.02, decay=0.9, regcost=0.5)
    ms.trainmodel(num_rounds=2, batchsize=4, train_len=4, valid_len=1, print_every=0)
    return ms


@pytest.fixture
def encode(tmp_path):
    """A GRUEncode model with two checkpoints, the first one and one at position 3."""
    ms = make(tmp_path, FIRST, 'first', state_size=4)
    ms.trainmodel(batchsize=4, train_len=3, valid_len=1, print_every=0)
    return ms


# --- Parameters ---------------------------------------------------------------------------------------------------------

def test_parameters_are_moved_by_character_and_new_characters_are_drawn_as_in_a_new_model(first, tmp_path):
    old = first.model.get_params()
    ms = make(tmp_path, SECOND, 'second', seed=7, start_from=first.workdir.path)
    got = ms.model.get_params()
    fresh = make(tmp_path, FIRST + SECOND, 'fresh', modeltype=first.modeltype, layers=2, state_size=4, seed=7).model.get_params()
    assert ms.charset.chars == BOTH and got.keys() == old.keys()
    table = {'GRUEncode': 'E', 'GRUResize': 'U0'}[first.modeltype]
    assert got[table].shape == (6, old[table].shape[1]) and got['V'].shape == (4, 6) and got['c'].shape == (6,)
    for there, here in enumerate(OLD):
        np.testing.assert_array_equal(got[table][here], old[table][there])
        np.testing.assert_array_equal(got['V'][:, here], old['V'][:, there])
        assert got['c'][here] == old['c'][there]
    for here in NEW:
        np.testing.assert_array_equal(got[table][here], fresh[table][here])
        np.testing.assert_array_equal(got['V'][:, here], fresh['V'][:, here])
        assert got['c'][here] == 0 and np.any(got[table][here]) and np.any(got['V'][:, here])
    for name in old.keys() - {table, 'V', 'c'}:
        np.testing.assert_array_equal(got[name], old[name])


def test_a_text_with_a_subset_of_the_characters_changes_no_parameter(first, tmp_path):
    ms = make(tmp_path, 'db\n' * 20, 'second', start_from=first.workdir.path, seed=9)
    assert ms.charset.chars == first.charset.chars
    assert ms.charset.linestarts.tolist() == [0, 0, 0, 20]
    for name, value in first.model.get_params().items():
        np.testing.assert_array_equal(ms.model.get_params()[name], value)


def test_optimiser_states_and_position_start_from_zero(first, tmp_path):
    assert first.model.pos == 8 and any(np.any(value) for name, value in first.model.arrays().items() if name.startswith('m'))
    ms = make(tmp_path, SECOND, 'second', start_from=first.workdir.path)
    for name, value in ms.model.arrays().items():
        assert name in ms.model.params or not np.any(value)
    checkpoint, = ms.checkpoints()
    assert (ms.model.epoch, ms.model.pos, checkpoint.epoch, checkpoint.pos, checkpoint.kind) == (0, 0, 0, 0, 'untrained')


def test_line_starts_and_hasunknown_are_the_new_texts(tmp_path):
    (tmp_path / 'broken.txt').write_bytes(b'b\xff\n' + b'bd\n' * 30)
    ms = ModelState.initfromsrcfile(tmp_path / 'broken.txt', tmp_path / 'first', seq_len=5, state_size=4)
    assert ms.charset.hasunknown
    charset = make(tmp_path, SECOND, 'second', start_from=ms).charset
    # 'cab\nac\n' 30 times: c and a begin 30 lines each.
    assert not charset.hasunknown and charset.linestarts.tolist() == [0, 0, 30, 0, 30, 0]


def test_the_first_text_scores_the_same_but_for_the_new_characters_share(first, tmp_path):
    ms = make(tmp_path, SECOND, 'second', start_from=first.workdir.path)
    text, zero = 'bddb\nbd\n', np.zeros((2, 1, 4))
    there = naive_logits(first.model.get_params(), np.array([2, 3, 3, 2, 1, 2, 3, 1])[:, None], zero)[0][:, 0]
    here = naive_logits(ms.model.get_params(), np.array([3, 5, 5, 3, 1, 3, 5, 1])[:, None], zero)[0][:, 0]
    np.testing.assert_allclose(here[:, OLD], there, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(ms.trackneurons(text), first.trackneurons(text))
    # Of each character but the first: nats by what the new ones take of the probability.
    taken = np.exp(here[:-1, NEW]).sum(1) / np.exp(here[:-1]).sum(1)
    np.testing.assert_allclose(ms.score(text).shares[1:], first.score(text).shares[1:] - np.log(1 - taken), atol=1e-5)


def test_the_first_checkpoint_holds_the_loss_of_the_starting_parameters(tmp_path):
    first = make(tmp_path, FIRST, 'first', state_size=8, learnrate=0.02)
    first.trainmodel(num_rounds=1, batchsize=4, train_len=60, valid_len=1, print_every=0)
    started, fresh = make(tmp_path, FIRST, 'started', start_from=first), make(tmp_path, FIRST, 'fresh', state_size=8)
    assert started.checkpoint.loss < first.checkpoints()[0].loss - 0.2 < fresh.checkpoint.loss
    losses, state = [], np.zeros((1, 8, 8), np.float32)
    for pos in range(started.data.batchepoch(8)):           # fewer than 50 steps
        loss, state = started.model.evaluate(*started.data.batch(pos, 8), state)
        losses.append(loss)
    assert abs(started.checkpoint.loss - np.mean(losses)) < 1e-6


# --- Which parameters -----------------------------------------------------------------------------------------------------

def test_shape_and_hyperparameters_are_the_others_but_for_those_given(first, tmp_path):
    second = make(tmp_path, SECOND, 'second', start_from=first.workdir.path, decay=0.8)
    assert second.modeltype == first.modeltype
    assert second.hyper == HyperParams(layers=2, state_size=4, learnrate=0.02, decay=0.8, regcost=0.5)
    assert second.hyper.facts() == {**first.hyper.facts(), 'decay': 0.8}
    third = make(tmp_path, SECOND, 'third', start_from=first.workdir.path, modeltype=str(first.modeltype), layers=2, state_size=4)
    assert third.hyper == first.hyper and ModelState.load(third.workdir.path).modeltype == first.modeltype


def test_a_directorys_newest_whole_checkpoint_counts(first, tmp_path):
    middle, last = first.checkpoints()[1:]
    expected = first.workdir.loadarrays(middle)
    flip(first.workdir.path / last.arrays)
    with pytest.warns(UserWarning, match=f'going on with {middle.name}'):
        ms = make(tmp_path, SECOND, 'second', start_from=first.workdir.path)
    np.testing.assert_array_equal(ms.model.get_params()['W1'], expected['W1'])
    assert ms.startedfrom == "'first' at epoch 0, position 4"


def test_a_model_in_memory_gives_its_present_parameters(first, tmp_path):
    first.model.set_params({'b0': np.arange(12)})
    first.hyper.learnrate = 0.5
    ms = make(tmp_path, SECOND, 'second', start_from=first)
    assert ms.model.get_params()['b0'].tolist() == list(range(12)) and ms.hyper.learnrate == 0.5
    first.restore(first.checkpoints()[1].name)
    ms = make(tmp_path, SECOND, 'third', start_from=first)
    np.testing.assert_array_equal(ms.model.get_params()['W1'], first.workdir.loadarrays(first.checkpoints()[1])['W1'])
    before = first.model.get_params()
    ms.trainmodel(batchsize=4, train_len=2, valid_len=1, print_every=0)
    for name, value in first.model.get_params().items():
        np.testing.assert_array_equal(value, before[name])


def test_the_other_directory_is_only_read_and_nothing_is_compiled(first, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, 'compilefunction', None)
    before = tree(first.workdir.path)
    make(tmp_path, SECOND, 'second', start_from=first.workdir.path)
    assert tree(first.workdir.path) == before


def test_a_model_needs_the_other_no_longer_and_can_be_started_from_in_turn(first, tmp_path):
    second = make(tmp_path, SECOND, 'second', start_from=first.workdir.path)
    shutil.rmtree(first.workdir.path)
    third = make(tmp_path, 'e\n' * 20, 'third', start_from=second.workdir.path)
    assert third.charset.chars == '\ufffd\nabcde'
    np.testing.assert_array_equal(third.model.get_params()['V'][:, :6], second.model.get_params()['V'])


# --- Training on ----------------------------------------------------------------------------------------------------------

def test_training_goes_on_and_resumes_as_if_it_had_not_stopped(first, tmp_path):
    options = {'batchsize': 4, 'train_len': 5, 'valid_len': 2, 'print_every': 0}
    straight = make(tmp_path, SECOND, 'straight', start_from=first.workdir.path)
    straight.trainmodel(num_rounds=2, **options)
    make(tmp_path, SECOND, 'stopped', start_from=first.workdir.path).trainmodel(**options)
    again = ModelState.load(tmp_path / 'stopped')
    again.trainmodel(**options)
    for name, value in straight.model.arrays().items():
        np.testing.assert_array_equal(again.model.arrays()[name], value)
    assert straight.checkpoint.loss < straight.checkpoints()[0].loss and again.model.pos == 10


def test_another_process_loads_it(first, tmp_path):
    ms = make(tmp_path, SECOND, 'second', start_from=first.workdir.path)
    np.savez(tmp_path / 'expected.npz', **ms.model.get_params())
    program = f'''
import numpy as np
from rn_rnn_char import *
ms = ModelState.load({str(ms.workdir.path)!r})
ms.restore()
assert ms.charset.chars == {BOTH!r} and ms.startedfrom == {ms.startedfrom!r} and len(ms.sample(20, prime='bad cab')) == 27
for name, value in np.load({str(tmp_path / "expected.npz")!r}).items():
    assert np.array_equal(ms.model.get_params()[name], value), name
'''
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_any_checkpoint_no_parameters_are_made_up(first, tmp_path):
    ms = make(tmp_path, SECOND, 'second', start_from=first.workdir.path)
    ms.workdir.remove(ms.checkpoints())
    for call in (ModelState.load(ms.workdir.path).restore, ModelState.load(ms.workdir.path).sample):
        with pytest.raises(RNGRUError, match="second' holds no checkpoint.*'first' at epoch 0, position 8"):
            call()


# --- What is said ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text, said', [
    ('bd\n' * 9, 'no character is new to them'), ('bé\n' * 9, r"1 character is new to them and starts afresh: '\xe9'"),
    (SECOND, "2 characters are new to them and start afresh: 'a', 'c'"),
    ('ABCDEFGHIJ\n' * 9, "10 characters are new to them and start afresh: 'A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', ...")])
def test_it_is_said_what_is_new_in_one_line(encode, tmp_path, text, said, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    ms = make(tmp_path, text, 'second', start_from=encode.workdir.path)
    out = capsys.readouterr().out
    line, = [line for line in out.splitlines() if 'new to them' in line]
    assert "'first' at epoch 0, position 3; " + said in line and 'Starting loss' in out and 'ntrained' not in out
    assert "'first' at epoch 0, position 3" in ms.info() and "first parameters" not in encode.info()
    make(tmp_path, text, 'third', start_from=encode.workdir.path, verbose=False)
    assert capsys.readouterr().out == ''


# --- Bad input ------------------------------------------------------------------------------------------------------------

def nocheckpoint(ms):
    ms.workdir.remove(ms.checkpoints())


def allbad(ms):
    for checkpoint in ms.checkpoints():
        flip(ms.workdir.path / checkpoint.arrays)


def badstate(ms):
    flip(ms.workdir.statefile())


def nostate(ms):
    ms.workdir.statefile().unlink()


def whole(ms):
    pass


@pytest.mark.parametrize('before, options, error, said', [
    (whole, {'start_from': 'nowhere'}, FileNotFoundError, 'nowhere'),
    (whole, {'start_from': 'first.txt'}, NotADirectoryError, 'first.txt.*is a file'),
    (whole, {'start_from': 'nothing'}, RNGRUError, 'nothing.*holds no model'),
    (whole, {'start_from': 5}, TypeError, 'start_from.*5'),
    (whole, {'start_from': True}, TypeError, 'start_from.*True'),
    (whole, {'start_from': ''}, ValueError, 'start_from'),
    (nostate, {}, RNGRUError, 'first.*holds no model'),
    (badstate, {}, RNGRUError, 'state.p.*checksum'),
    (nocheckpoint, {}, RNGRUError, 'no checkpoint to start from'),
    (allbad, {}, RNGRUError, 'no checkpoint that is whole.*or start from another'),
    (whole, {'workdir': 'first'}, RNGRUError, 'first.*directory of start_from'),
    (whole, {'workdir': 'linked'}, RNGRUError, 'directory of start_from'),
    (whole, {'init_checkpoint': False}, ValueError, 'init_checkpoint=False'),
    (whole, {'modeltype': 'GRUResize'}, ValueError, "modeltype='GRUEncode'.*'GRUResize'"),
    (whole, {'layers': 2}, ValueError, 'layers=1.*got 2'),
    (whole, {'state_size': 128}, ValueError, 'state_size=4.*got 128'),
    (whole, {'layers': 1.0}, TypeError, 'layers'),
    (whole, {'startfrom': 'first'}, TypeError, 'start_from'),
    (whole, {'srcfile': 'short.txt'}, RNGRUError, 'short.txt'),
    (whole, {'seq_len': 1000}, RNGRUError, '1000')])
@pytest.mark.filterwarnings('ignore:.*damaged')
def test_what_cannot_be_started_from_is_refused_in_one_sentence_and_leaves_the_disk(encode, tmp_path, before, options, error, said,
                                                                                    monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'nothing').mkdir()
    (tmp_path / 'linked').symlink_to('first')
    (tmp_path / 'short.txt').write_text('abc')
    (tmp_path / 'second.txt').write_text(SECOND)
    before(encode)
    disk = tree(tmp_path)
    with pytest.raises(error, match=said) as raised:
        ModelState.initfromsrcfile(**{'srcfile': 'second.txt', 'workdir': 'deep/second', 'start_from': 'first', 'seq_len': 5, **options})
    assert '\n' not in str(raised.value) and tree(tmp_path) == disk


@pytest.mark.parametrize('name, given', [('GRUResize', 'GRUEncode'), ('GRUEncode', 'GRUResize')])
def test_the_default_model_type_asked_for_by_name_is_an_explicit_one(tmp_path, name, given):
    first = make(tmp_path, FIRST, 'first', modeltype=name, state_size=4)
    with pytest.raises(ValueError, match=f'{name}.*{given}'):
        make(tmp_path, SECOND, 'second', start_from=first, modeltype=given)
    assert not (tmp_path / 'second').exists() and make(tmp_path, SECOND, 'third', start_from=first).modeltype == name


def test_a_hyperparameter_is_judged_by_the_others_optimizer(encode, tmp_path):
    encode.hyper.optimizer = 'sgd'
    assert make(tmp_path, SECOND, 'second', start_from=encode, momentum=0.5).hyper.momentum == 0.5
    for given, said in (({'decay': 0.5}, "optimizer='sgd': leave it out, or set optimizer='rmsprop'"),
                        ({'optimizer': 'adam', 'momentum': 0.5}, 'adam')):
        with pytest.raises(ValueError, match=f'does nothing with .*{said}'):
            make(tmp_path, SECOND, 'third', start_from=encode, **given)
    assert not (tmp_path / 'third').exists()


def test_a_model_in_memory_is_no_place_for_the_new_one(encode, tmp_path):
    with pytest.raises(RNGRUError, match='directory of start_from'):
        make(tmp_path, SECOND, 'first', start_from=encode)


def test_failing_in_mid_start_leaves_the_disk(encode, tmp_path, monkeypatch):
    (tmp_path / 'second.txt').write_text(SECOND)
    before = tree(tmp_path)

    def interrupt(*args):
        raise KeyboardInterrupt
    for where, name in ((opening, 'encodefile'), (opening, 'savefacts'), (opening.startfrom, 'takeover'), (opening.saving, 'write')):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path, SECOND, 'second', start_from=encode.workdir.path)
        assert tree(tmp_path) == before
