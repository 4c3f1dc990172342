"""What checkpoints bring back, which of them, and what is damaged or of another model."""

import shutil

import numpy as np
import pytest

import engine
import opening
import report
import saving
import train
from conftest import FOXES
from lock import trainlock
from modelcases import flip, make, nocompiling
from rn_rnn_char import ModelState, RNGRUError
from run import Run

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


# --- Damage -----------------------------------------------------------------------------------------------------------

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


def test_restoring_a_checkpoint_that_is_not_there_lists_those_that_are(srcfile):
    ms = make(srcfile)
    with pytest.raises(RNGRUError, match=ms.checkpoints()[0].name):
        ms.restore('nosuch-model.p')
    for name in ('../other/x-model.p', '/etc/passwd'):
        with pytest.raises(ValueError):
            ms.restore(name)
    assert len(ms.sample(5)) == 5               # and the model is as it was


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
    srcfile.write_text(FOXES[::-1])                   # the same characters, another text
    other = make(srcfile, 'other')
    for path in other.workdir.path.glob('*-model.*'):
        shutil.copy(path, ms.workdir.path)
    with pytest.raises(RNGRUError, match='another text'):
        ms.restore(other.checkpoint.name)
    with pytest.warns(UserWarning, match='another text.*going on with'):
        ms.restore()
    assert ms.checkpoint.name != other.checkpoint.name


def test_a_checkpoint_of_the_same_text_in_sequences_of_another_length_is_refused_though_its_encoded_text_is_the_same(srcfile):
    srcfile.write_text(FOXES[:400])                   # whole sequences of 10 as of 20: no padding
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
