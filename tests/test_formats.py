"""Directories that released versions of RN-GRU wrote load for ever: one of each format and model type lies in tests/fixtures.

Each is a model of a small text (format1-GRUResize: with an undecodable byte), trained for 9 steps of 4 sequences at
two learning rates, the second time cut off by Ctrl-C behind step 4. Nothing there is ever changed; a new format adds its own.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import storage
from rn_rnn_char import ModelState, RNGRUError

FIXTURES = Path(__file__).parent / 'fixtures'
CHARS = {'format1-GRUEncode': '\ufffd\n .DFTcefhlnorstuxä。在狐狸跑',
         'format1-GRUResize': '\ufffd\n .DFTcdefhlnorstuxä。在狐狸跑'}
EXPECTED = {                # kind, epoch, position, loss, learning rate
    'format1-GRUEncode': [('untrained', 0, 0, 3.218190, 0.01), ('validation', 1, 3, 3.090953, 0.01), ('training', 2, 1, 3.074066, 0.02)],
    'format1-GRUResize': [('untrained', 0, 0, 3.268416, 0.001), ('validation', 1, 3, 3.244783, 0.001), ('training', 2, 1, 3.207955, 0.02)]}
V = {'format1-GRUEncode': 25.049444, 'format1-GRUResize': 30.101940}
SAMPLE = {'format1-GRUEncode': 'T狸 狐Feuel\nthDu.f\ne  t.f狸狐sh.\n狸h\nruo。\nhf\n',
          'format1-GRUResize': 'D狸.狸cfäfo\ufffdundxTh e.FuTh跑狸unT 狸n rur狐\nnh\n'}


@pytest.fixture(params=sorted(EXPECTED))
def old(request, tmp_path):
    """(name, path of a copy)"""
    return request.param, shutil.copytree(FIXTURES / request.param, tmp_path / 'old')


def test_every_fixture_is_tested():
    assert sorted(path.name for path in FIXTURES.iterdir()) == sorted(EXPECTED)


def test_an_old_directory_loads_and_goes_on(old):
    name, path = old
    ms = ModelState.load(path)
    assert ms.charset.chars == CHARS[name] and ms.charset.hasunknown == ('Resize' in name) and ms.seed == 7
    for checkpoint, (*facts, loss, rate) in zip(ms.checkpoints(), EXPECTED[name], strict=True):
        assert [checkpoint.kind, checkpoint.epoch, checkpoint.pos] == facts and abs(checkpoint.loss - loss) < 1e-6
        ms.restore(checkpoint.name)
        assert (ms.model.epoch, ms.model.pos, ms.hyper.learnrate) == (*facts[1:], rate)
    assert ms.hyper.layernorm is ms.model.layernorm is False
    assert abs(np.abs(ms.model.get_params()['V']).sum() - V[name]) < 1e-4
    assert ms.sample(40, temp=0.7, seed=1) == SAMPLE[name]
    loss, _ = ms.model.evaluate(*ms.data.batch(1, 4), ms.model.get_state())
    assert 2 < loss < 3.3
    ms.restore('best')
    assert ms.model.pos == 3
    ms.trainmodel(train_len=3, batchsize=4, valid_len=2, print_every=0)
    assert [c.kind for c in ModelState.load(path).checkpoints()] == ['untrained', 'validation', 'training', 'validation']
    assert 'Every file is whole.' in ms.info()


def test_the_seed_of_an_old_directory_draws_the_parameters_that_its_version_drew(old):
    """What restore() goes back to where there is no checkpoint; the untrained one holds them as they were drawn then."""
    name, path = old
    ms = ModelState.load(path)
    ms.restore(ms.checkpoints()[0].name)
    drawn = ms.model.get_params()
    for each in path.glob('*-model.*'):
        each.unlink()
    ms = ModelState.load(path)
    ms.restore()
    assert ms.checkpoint is None and ms.model.get_params().keys() == drawn.keys()
    for name, value in ms.model.get_params().items():
        np.testing.assert_array_equal(value, drawn[name], err_msg=name)


def test_an_old_directory_loads_out_of_a_zip_file(old, tmp_path):
    name, path = old
    shutil.make_archive(tmp_path / 'packed', 'zip', path)
    shutil.unpack_archive(tmp_path / 'packed.zip', tmp_path / 'unpacked, elsewhere')
    ms = ModelState.load(tmp_path / 'unpacked, elsewhere')
    ms.restore()
    assert ms.sample(40, temp=0.7, seed=1) == SAMPLE[name] and 'Every file is whole.' in ms.info()


def test_reading_an_old_directory_changes_nothing_in_it(old):
    name, path = old
    ms = ModelState.load(path)
    ms.restore(), ms.checkpoints(), ms.info(), ms.sample(5), ms.restore('best')
    assert ({each.name: hashlib.sha256(each.read_bytes()).digest() for each in path.iterdir()}
            == {each.name: hashlib.sha256(each.read_bytes()).digest() for each in (FIXTURES / name).iterdir()})


def test_a_newer_format_is_refused_in_one_sentence(old, monkeypatch):
    name, path = old
    state, last = ModelState.load(path).workdir.statefile(), ModelState.load(path).checkpoints()[-1]
    stored = {each: storage.loadfacts(each) for each in (path / last.name, state)}
    with monkeypatch.context() as patch:
        patch.setattr(storage, 'FORMAT', storage.FORMAT + 1)
        for each, facts in stored.items():
            storage.savefacts(each, facts)
    with pytest.raises(RNGRUError, match=f'{state.name}.*newer RN-GRU') as raised:
        ModelState.load(path)
    assert '\n' not in str(raised.value)
    shutil.copy(FIXTURES / name / state.name, state)
    with pytest.warns(UserWarning, match='newer RN-GRU'):
        ms = ModelState.load(path)
    assert ms.checkpoint.kind == 'validation'
    with pytest.warns(UserWarning, match=f'{last.name}.*newer RN-GRU.*: going on with {ms.checkpoint.name}'):
        ms.restore()
    with pytest.raises(RNGRUError, match='newer RN-GRU'):
        ms.restore(last.name)
