"""The rules of update and the running mean as trained networks have them: by hand, and what outlives a change."""


import numpy as np
import pytest

import engine
import layers
import report
from conftest import naive_logits, naive_nll, naive_sample, naive_states
from hyperparams import HyperParams
from modelcases import TYPES, batch, build, doubles, naive_trainstep, same, state, wild

KINDS = [('rmsprop', 0, 'm'), ('adam', 0, 'mg'), ('adamw', 0.9, 'mge'), ('sgd', 0, 'g'), ('sgd', 0.5, 'ge'), ('rmsprop', 0.99, 'me')]


def train(model, hyper, steps=1, learnrate=None):
    """The losses of some steps on different batches."""
    return [model.trainstep(*batch(seed=seed), hyper, learnrate)[0] for seed in range(steps)]


@pytest.mark.parametrize('optimizer, ema, kinds', KINDS)
@pytest.mark.parametrize('clipping', ['value', 'norm'])
def test_arrays_of_every_optimizer_put_back_the_same_training(optimizer, ema, kinds, clipping):
    hyper = HyperParams(optimizer=optimizer, ema=ema, clipping=clipping, clip=0.1, learnrate=0.01)
    model, other = (layers.MODELTYPES['GRUEncode'](5, 2, 3, seed, each) for seed, each in ((1, hyper), (2, None)))
    model.set_state(state(model))
    train(model, hyper, 3)
    kept = model.arrays()
    assert set(kept) == set(model.params) | {kind + name for kind in kinds for name in model.params} | {'state'}
    assert {name: (value.shape, str(value.dtype)) for name, value in kept.items()} == model.expected(5, 2, 3, 2, hyper)
    assert all(kept[kind + 'V'].any() for kind in kinds) and (model.updates, model.cacheupdates) == (3, 3)
    losses, end = train(model, hyper, 2), model.arrays()
    for again in (model, other):
        again.set_arrays(kept, hyper, 3, 3)
        assert train(again, hyper, 2) == losses and same(again.arrays(), end)
        assert (again.updates, again.cacheupdates) == (5, 5)


def test_updates_and_those_of_the_caches_are_put_back_apart():
    """By Adam's bias correction: behind caches of zeros its step is learnrate long, whatever number of updates was made before."""
    model, adam = build('GRUEncode'), HyperParams(optimizer='adam')
    model.set_state(state(model))
    model.prepare(adam)
    model.set_arrays(model.arrays(), adam, 7, 0)
    before = model.get_params()
    model.trainstep(*batch(), adam, 0.01)
    assert (model.updates, model.cacheupdates) == (8, 1)
    assert max(np.abs(value - before[name]).max() for name, value in model.get_params().items()) == pytest.approx(0.01, rel=1e-3)


def test_set_arrays_that_do_not_fit_change_nothing():
    model, adam = build('GRUEncode'), HyperParams(optimizer='adam', ema=0.5)
    other = layers.MODELTYPES['GRUEncode'](5, 2, 3, 2, adam)
    other.set_state(state(other))
    before, arrays = model.arrays(), other.arrays()
    with pytest.raises(ValueError, match='gW1'):
        model.set_arrays({**arrays, 'gW1': np.zeros((3, 8), 'float32')}, adam, 9, 9)
    assert same(model.arrays(), before) and model.updates == 0


@pytest.mark.parametrize('modeltype', TYPES)
def test_a_step_tells_the_norm_of_the_gradient_and_the_share_that_clipping_changed(modeltype):
    """Against the gradient of the cost by finite differences, regcost included; the median of its elements
    as the bound clips half of them."""
    for clipping in ('value', 'norm'):
        model = wild(build(modeltype))
        s0, (x, y) = state(model), batch()
        model.set_state(s0)
        params, caches = doubles(model)
        gradients = naive_trainstep(params, caches, x, y, s0, 0.0, 0.0, 3.0)[2]
        elements = np.abs(np.concatenate([g.ravel() for g in gradients.values()]))
        norm, middle = (elements ** 2).sum() ** 0.5, float(np.median(elements))
        for clip, want in ((middle, 0.5 if clipping == 'value' else 1), (norm * 1.01, 0)):
            model.set_state(s0)
            told = model.trainstep(x, y, HyperParams(regcost=3.0, clipping=clipping, clip=clip), 0.0)
            assert all(type(number) is float for number in told)
            np.testing.assert_allclose(told[1], norm, rtol=1e-4)
            assert abs(told[2] - want) < 0.02


def test_norm_clipping_shortens_the_step_and_keeps_its_direction():
    """SGD without momentum: its steps are the gradient; the clipped one is clip / norm of it."""
    moved = []
    for clip in (1e6, 0.01):
        model = wild(build('GRUEncode'))
        model.set_state(state(model))
        before = model.get_params()
        _, norm, share = model.trainstep(*batch(), HyperParams(optimizer='sgd', momentum=0.0, clipping='norm', clip=clip), 1.0)
        assert share == (clip < 1) and norm > 0.1
        moved.append(np.concatenate([(before[name] - value).ravel() for name, value in model.get_params().items()]).astype('float64'))
    np.testing.assert_allclose([np.linalg.norm(m) for m in moved], [norm, 0.01], rtol=1e-4)
    np.testing.assert_allclose(moved[1] / 0.01, moved[0] / norm, atol=1e-4)


@pytest.mark.parametrize('modeltype', TYPES)
def test_adamw_is_adam_that_shrinks_the_weight_matrices(modeltype):
    """By hand: one step from the same parameters differs by learnrate * weight_decay * W = 0.1 * 0.5 W, and nowhere in the biases."""
    after = {}
    for optimizer in ('adam', 'adamw'):
        model = wild(build(modeltype))
        before = model.get_params()
        model.set_state(state(model))
        train(model, HyperParams(optimizer=optimizer, weight_decay=0.5, learnrate=0.1))
        after[optimizer] = model.get_params()
    for name, value in before.items():
        np.testing.assert_allclose(after['adam'][name] - after['adamw'][name], 0.05 * value * (name[0] in 'EUWV'), atol=1e-6, err_msg=name)
        assert not np.array_equal(after['adam'][name], value)


def test_adams_first_step_has_the_learning_rates_length_in_every_element():
    """Bias correction: g / sqrt(m) is the gradient's sign, where it is far above 1e-8."""
    model = wild(build('GRUEncode'))
    model.set_state(state(model))
    before = model.get_params()
    train(model, HyperParams(optimizer='adam'), learnrate=0.01)
    for name in ('V', 'c'):
        np.testing.assert_allclose(np.abs(model.get_params()[name] - before[name]), 0.01, rtol=1e-3)


def test_the_running_mean_follows_the_parameters_by_its_formula():
    """e keeps min(0.5, (1 + t) / (10 + t)) at step t, of float64 copies of what was trained."""
    model, hyper = wild(build('GRUEncode')), HyperParams(ema=0.5, learnrate=0.05)
    model.prepare(hyper)
    model.set_state(state(model))
    want = {name: value.astype('float64') for name, value in model.get_params().items()}
    assert same(model.get_params(), model.get_params(averaged=False))
    for t in range(12):
        model.trainstep(*batch(seed=t), hyper)
        keep = min(0.5, (1 + t) / (10 + t))
        for name, value in model.get_params(averaged=False).items():
            want[name] = keep * want[name] + (1 - keep) * value
            np.testing.assert_allclose(model.get_params()[name], want[name], atol=1e-6)
    assert not same(model.get_params(), model.get_params(averaged=False))


@pytest.mark.parametrize('modeltype', TYPES)
def test_validation_text_and_states_come_from_the_running_mean_and_training_does_not(modeltype):
    model, hyper = wild(build(modeltype)), HyperParams(ema=0.5, learnrate=0.05)
    plain = wild(build(modeltype))
    for each in (model, plain):
        each.set_state(state(each))
    losses = train(model, hyper, 12)
    assert losses == train(plain, HyperParams(learnrate=0.05), 12)
    assert same(model.get_params(averaged=False), plain.get_params())
    assert same(plain.get_params(), plain.get_params(averaged=False))
    averages, (x, y), s0 = model.get_params(), batch(steps=4), state(model)
    loss, last = model.evaluate(x, y, s0)
    logits, want = naive_logits(averages, x, s0)
    np.testing.assert_allclose(loss, naive_nll(logits, y), rtol=1e-5)
    np.testing.assert_allclose(np.array(last), want, atol=2e-6)
    assert abs(loss - plain.evaluate(x, y, s0)[0]) > 1e-3
    for got, want in zip(model.allstates(x, s0), naive_states(averages, x, s0)):
        np.testing.assert_allclose(got, want, atol=2e-6)
    uniforms, allowed = np.random.RandomState(2).uniform(size=15), np.ones(5, 'int8')
    drawn, _ = model.sampletext([3], uniforms[None], 0.7, len(allowed), 1.0, 0.0, allowed, s0[:, :1])
    assert drawn[0].tolist() == naive_sample(averages, s0[:, 0], 3, uniforms, 0.7, allowed)[0]


def test_set_params_sets_the_trained_parameters_and_their_mean():
    model = layers.MODELTYPES['GRUEncode'](5, 2, 3, 1, HyperParams(ema=0.9))
    model.set_params({'c': np.arange(5), 'V': np.ones((3, 5))})
    for averaged in (True, False):
        params = model.get_params(averaged)
        np.testing.assert_array_equal(params['c'], np.arange(5))
        np.testing.assert_array_equal(params['V'], np.ones((3, 5)))
    model.get_params()['c'][:] = 9
    np.testing.assert_array_equal(model.get_params()['c'], np.arange(5))


def test_another_optimizer_starts_with_caches_of_zeros_and_the_parameters_stay(monkeypatch, capsys):
    """What it then does is what it does in a new network with these parameters, whatever was before; said in one line."""
    monkeypatch.setattr(report, 'verbose', True)
    model, adam = build('GRUEncode'), HyperParams(optimizer='adam', learnrate=0.01)
    model.set_state(state(model))
    train(model, HyperParams(), 5)
    fresh = build('GRUEncode', seed=9)
    fresh.set_params(model.get_params())
    fresh.prepare(adam)
    fresh.set_state(model.get_state())
    before, _ = model.get_params(), capsys.readouterr()
    model.prepare(adam)
    assert capsys.readouterr().out == 'The optimizer is adam now, in place of rmsprop: the parameters stay, its caches start from zero.\n'
    model.prepare(adam)
    assert not capsys.readouterr().out
    assert same(model.get_params(), before) and not any(value.any() for name, value in model.arrays().items() if name[0] in 'mg')
    assert (model.updates, model.cacheupdates) == (5, 0)
    assert train(model, adam, 4) == train(fresh, adam, 4) and same(model.arrays(), fresh.arrays())
    assert (model.updates, model.cacheupdates) == (9, 4)
    train(model, HyperParams(), 1)              # and back: these caches are zeros again, too
    assert (model.updates, model.cacheupdates) == (10, 1) and 'gV' not in model.arrays()


def test_the_running_mean_outlives_a_change_of_optimizer():
    model, adam, sgd = build('GRUEncode'), HyperParams(optimizer='adam', ema=0.9), HyperParams(optimizer='sgd', ema=0.9)
    model.set_state(state(model))
    train(model, adam, 3, 0.1)
    averages = model.get_params()
    assert not same(averages, model.get_params(averaged=False))
    model.prepare(sgd)
    assert same(model.get_params(), averages) and {name[0] for name in model.arrays()} >= {'g', 'e'} and 'mV' not in model.arrays()


def test_a_running_mean_switched_on_later_starts_from_the_parameters_and_switched_off_is_forgotten(monkeypatch, capsys):
    monkeypatch.setattr(report, 'verbose', True)
    model, s0 = build('GRUEncode'), np.zeros((2, 2, 3), 'float32')
    model.set_state(s0)
    train(model, HyperParams(), 3)
    model.evaluate(*batch(), s0), capsys.readouterr()
    model.prepare(HyperParams(ema=0.9))
    assert capsys.readouterr().out.count('\n') == 1 and same(model.get_params(), model.get_params(averaged=False))
    assert model.cacheupdates == 3
    train(model, HyperParams(ema=0.9), 3, 0.1)
    trained, averages = model.get_params(averaged=False), model.get_params()
    losses = [naive_nll(naive_logits(params, batch()[0], s0)[0], batch()[1]) for params in (averages, trained)]
    np.testing.assert_allclose(model.evaluate(*batch(), s0)[0], losses[0], rtol=1e-5)
    capsys.readouterr()
    model.prepare(HyperParams())
    assert capsys.readouterr().out.count('\n') == 1 and same(model.get_params(), trained)
    np.testing.assert_allclose(model.evaluate(*batch(), s0)[0], losses[1], rtol=1e-5)
    assert not same(averages, trained) and not any(name[0] == 'e' for name in model.arrays())


def test_numbers_change_without_a_compilation_and_each_optimizer_compiles_once(monkeypatch):
    compiled, model = [], build('GRUEncode')
    compilefunction = engine.compilefunction
    monkeypatch.setattr(engine, 'compilefunction', lambda *args: compiled.append(args) or compilefunction(*args))
    model.set_state(state(model))
    for hyper in (HyperParams(), HyperParams(learnrate=0.1, decay=0.5, regcost=1, clip=0.1, beta1=0.5, momentum=0, weight_decay=1)):
        train(model, hyper)
    assert len(compiled) == 1
    others = [HyperParams(optimizer='adam'), HyperParams(clipping='norm'), HyperParams(ema=0.5)]
    for hyper in others + [HyperParams(ema=0.6, learnrate=1.0)] + others + [HyperParams()]:
        train(model, hyper)
    assert len(compiled) == 4
