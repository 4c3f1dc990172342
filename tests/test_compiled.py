"""Compiled training, validation, text and states against the naive network of conftest and finite differences in float64.

`PYTHONPATH=. python tests/test_compiled.py` prints the constants of TRAINED, worked out in float64 without Theano or our Ops.
"""

import numpy as np
import pytest

import engine
import report
from conftest import naive_logits, naive_nll, naive_sample, naive_states
from engine import T, theano
from modelcases import PLAIN, TYPES, batch, build, doubles, naive_trainstep, same, state, step, wild

# --- The training step -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('regcost', [0.0, 0.7, 60.0])
def test_a_training_step_is_the_cost_and_the_update_of_the_design(modeltype, regcost):
    """Two steps against finite differences, clip and RMSProp in float64; at regcost 60 many gradients are clipped."""
    model = wild(build(modeltype))
    s0 = state(model)
    model.set_state(s0)
    params, caches = doubles(model)
    clipped = 0
    for seed in (0, 1):
        x, y = batch(seed=seed)
        loss = step(model, x, y, 0.02, 0.9, regcost)
        want_loss, s0, gradients = naive_trainstep(params, caches, x, y, s0, 0.02, 0.9, regcost)
        clipped += sum(int((np.abs(g) > 5).sum()) for g in gradients.values())
        arrays = model.arrays()
        assert isinstance(loss, float)
        np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
        np.testing.assert_allclose(arrays['state'], s0, atol=2e-5)
        for name in params:
            np.testing.assert_allclose(arrays['m' + name], caches[name], rtol=2e-3, atol=1e-8, err_msg=name)
            np.testing.assert_allclose(arrays[name], params[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert (clipped > 20) == (regcost == 60)


@pytest.mark.parametrize('modeltype', TYPES)
def test_regcost_moves_weight_matrices_and_not_biases(modeltype):
    """By hand, decay 0: the cache is g^2, and regcost adds regcost W / (T B) = 0.9 W / 6 to g; where g is of a bias, nothing."""
    (x, y), caches = batch(), []
    for regcost in (0.0, 0.9):
        model = wild(build(modeltype))
        before = model.get_params()
        model.set_state(state(model))
        step(model, x, y, 0.01, 0.0, regcost)
        after, arrays = model.get_params(), model.arrays()
        caches.append({name: np.sqrt(arrays['m' + name]) * np.sign(before[name] - after[name]) for name in before})
    for name in before:
        want = 0.9 * before[name] / 6 if name[0] in 'EUWV' else 0 * before[name]
        np.testing.assert_allclose(caches[1][name] - caches[0][name], want, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('modeltype', TYPES)
def test_the_update_follows_the_gradient_of_the_cost(modeltype):
    """decay 0 makes the cache the squared gradient: Theano's of `model.cost`."""
    model = wild(build(modeltype))
    (x, y), s0 = batch(), state(model)
    before = model.get_params()
    cost = model.cost(T.constant(x), T.constant(y), [T.constant(s) for s in s0], 0.7)
    gradients = theano.function([], theano.grad(cost, list(model.params.values())), mode=PLAIN, accept_inplace=True)()
    model.set_state(s0)
    step(model, x, y, 0.01, 0.0, 0.7)
    arrays = model.arrays()
    for (name, old), gradient in zip(before.items(), gradients):
        np.testing.assert_allclose(arrays['m' + name], gradient ** 2, rtol=1e-3, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(old - arrays[name], 0.01 * gradient / np.sqrt(gradient ** 2 + 1e-6), rtol=2e-3, atol=2e-6, err_msg=name)


@pytest.mark.parametrize('modeltype', TYPES)
def test_the_state_is_carried_to_the_next_step(modeltype):
    """With learnrate 0: the losses of the two halves are the naive network's over the whole, and evaluate's."""
    model = wild(build(modeltype))
    x, y = batch(steps=8)
    s0 = state(model)
    model.set_state(s0)
    first, second = (step(model, x[part], y[part], 0.0, 0.9, 0.0) for part in (slice(0, 4), slice(4, 8)))
    logits, last = naive_logits(model.get_params(), x, s0)
    np.testing.assert_allclose([first, second], [naive_nll(logits[:4], y[:4]), naive_nll(logits[4:], y[4:])], rtol=1e-5)
    np.testing.assert_allclose(model.get_state(), last, atol=1e-6)
    loss1, middle = model.evaluate(x[:4], y[:4], s0)
    loss2, end = model.evaluate(x[4:], y[4:], middle)
    whole, _ = model.evaluate(x, y, s0)
    np.testing.assert_allclose([loss1, loss2, (loss1 + loss2) / 2], [first, second, whole], rtol=1e-6)
    np.testing.assert_array_equal(np.array(end), model.get_state())


@pytest.mark.parametrize('modeltype', TYPES)
def test_the_learning_rate_is_an_argument_and_zero_holds_the_parameters(modeltype):
    model = build(modeltype)
    (x, y), before = batch(), model.get_params()
    model.set_state(state(model))
    step(model, x, y, 0.0, 0.9, 0.5)
    assert same(model.get_params(), before)
    step(model, x, y, 0.01, 0.9, 0.5)
    assert all(not np.array_equal(value, before[name]) for name, value in model.get_params().items())


@pytest.mark.parametrize('modeltype', TYPES)
def test_a_step_that_fails_changes_nothing(modeltype):
    model = build(modeltype)
    model.set_state(state(model))
    x, y = batch()
    before = model.arrays()
    bad = x.copy()
    bad[1, 1] = 5
    for wrong in ((bad, y), (x, bad)):
        with pytest.raises(IndexError, match=r'0 \.\. 4'):
            step(model, *wrong, 0.01, 0.9, 0.1)
        assert same(model.arrays(), before)
    with pytest.raises(ValueError, match=r'\(2, 3\)'):
        step(model, *batch(B=3), 0.01, 0.9, 0.1)
    assert same(model.arrays(), before)


@pytest.mark.parametrize('modeltype', TYPES)
def test_training_goes_down_to_what_can_be_known(modeltype):
    """A text that repeats `abcd` can be known: its loss falls below a tenth of the uniform guess, log 4."""
    model = build(modeltype, V=4, L=1, H=8)
    text = np.arange(41) % 4
    x, y = (text[i:i + 40].reshape(2, 20).T.astype('int32') for i in (0, 1))
    model.set_state(np.zeros((1, 2, 8)))
    losses = [step(model, x, y, 0.01, 0.9, 0.0) for _ in range(150)]
    assert abs(losses[0] - np.log(4)) < 0.3 and losses[-1] < 0.1 * np.log(4)


FIXED = dict(V=6, L=2, H=4, seed=3)
TRAINED = {'GRUEncode': 1.7164669, 'GRUResize': 1.7117172}


def fixedbatch():
    return batch(V=6, steps=5, B=3, seed=8)


def naive_initial(modeltype, V, L, H, seed):
    """The parameters that the seed gives, float64: drawn in the order E, U0, W0, ... V, rounded to float32."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0,))))
    shapes = {'E': (V, H), 'a': (H,)} if modeltype == 'GRUEncode' else {}
    for l in range(L):
        shapes.update({f'U{l}': (V if l == 0 and modeltype == 'GRUResize' else H, 3 * H), f'W{l}': (H, 3 * H), f'b{l}': (3 * H,)})
    shapes.update(V=(H, V), c=(V,))
    return {name: np.zeros(shape) if len(shape) == 1
            else rng.uniform(-shape[0] ** -0.5, shape[0] ** -0.5, shape).astype('float32').astype('float64')
            for name, shape in shapes.items()}


def naive_training(modeltype):
    """Loss on the fixed batch, from the carried state, after 20 naive training steps on it."""
    params = naive_initial(modeltype, **FIXED)
    caches = {name: np.zeros_like(value) for name, value in params.items()}
    (x, y), s = fixedbatch(), np.zeros((2, 3, 4))
    for _ in range(20):
        _, s, _ = naive_trainstep(params, caches, x, y, s, 0.01, 0.9, 0.3)
    return naive_nll(naive_logits(params, x, s)[0], y)


@pytest.mark.parametrize('modeltype', TYPES)
def test_the_loss_after_20_steps_is_the_same_on_both_engines(modeltype):
    """The constants are naive_training's: float64, scalar loops forward, central differences (step 1e-5) of the cost for every
    gradient, clip and RMSProp written out; nothing of Theano nor of ops.py. `PYTHONPATH=. python tests/test_compiled.py` prints them
    (half a minute).
    """
    model = build(modeltype, **FIXED)
    x, y = fixedbatch()
    model.set_state(np.zeros((2, 3, 4)))
    for _ in range(20):
        step(model, x, y, 0.01, 0.9, 0.3)
    loss, _ = model.evaluate(x, y, model.get_state())
    assert abs(loss - TRAINED[modeltype]) < 5e-5


# --- The other functions -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('modeltype', TYPES)
def test_evaluate_gives_the_naive_loss_and_states_and_changes_nothing(modeltype):
    model = wild(build(modeltype))
    (x, y), s0 = batch(steps=4, B=3), state(model, B=3)
    before, kept = model.arrays(), s0.copy()
    loss, last = model.evaluate(x, y, s0)
    logits, want = naive_logits(model.get_params(), x, s0)
    assert isinstance(loss, float)
    np.testing.assert_allclose(loss, naive_nll(logits, y), rtol=1e-5)
    np.testing.assert_allclose(np.array(last), want, atol=1e-6)
    assert same(model.arrays(), before) and np.array_equal(s0, kept)
    again, last2 = model.evaluate(*batch(steps=4, B=3, seed=5), np.array(last))
    np.testing.assert_allclose(np.array(last), want, atol=1e-6)       # what an earlier call gave stays
    assert again != loss


@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int32'])
def test_untrainedloss_compiles_nothing_and_changes_nothing(modeltype, dtype, nocompiler):
    model = build(modeltype)
    before = model.arrays()
    batches = [tuple(part.astype(dtype) for part in batch(steps=4, seed=seed)) for seed in (0, 1, 2)]
    got = model.untrainedloss(iter(batches))
    wants, s = [], np.zeros((2, 2, 3))
    for x, y in batches:
        logits, s = naive_logits(model.get_params(), x, s)
        wants.append(naive_nll(logits, y))
    assert isinstance(got, float)
    np.testing.assert_allclose(got, np.mean(wants), rtol=1e-6)
    assert same(model.arrays(), before)


@pytest.mark.parametrize('modeltype', TYPES)
def test_untrainedloss_equals_evaluate(modeltype):
    model = build(modeltype)
    batches, s, losses = [batch(steps=4, seed=seed) for seed in (0, 1)], np.zeros((2, 2, 3), 'float32'), []
    for x, y in batches:
        loss, s = model.evaluate(x, y, s)
        losses.append(loss)
    np.testing.assert_allclose(model.untrainedloss(batches), np.mean(losses), rtol=1e-7)


@pytest.mark.parametrize('modeltype', TYPES)
def test_allstates_are_the_naive_states_of_every_layer(modeltype):
    model = wild(build(modeltype, L=3))
    x, s0 = batch(steps=6, B=2)[0], state(model)
    got = model.allstates(x, s0)
    wants = naive_states(model.get_params(), x, s0)
    model.allstates(batch(steps=6, B=2, seed=9)[0], s0)         # a second call leaves what the first gave
    assert len(got) == 3
    for S, want in zip(got, wants):
        assert S.shape == (6, 2, 3)
        np.testing.assert_allclose(S, want, atol=2e-6)


@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('temp', [0.0, 0.7])
def test_sampletext_draws_what_the_naive_network_draws(modeltype, temp):
    model = wild(build(modeltype, V=6), scale=1.5)
    s0, uniforms, allowed = state(model), np.random.RandomState(2).uniform(size=(2, 15)), np.array([0, 1, 1, 1, 1, 1], 'int8')
    before = model.arrays()
    drawn, last = model.sampletext([3, 1], uniforms, temp, 4, 0.9, 0.05, allowed, s0[:, :2])
    assert drawn.dtype == np.int32 and last.shape == (2, 2, 3)
    for i, char in enumerate([3, 1]):
        want, want_last = naive_sample(model.get_params(), s0[:, i], char, uniforms[i], temp, allowed, top_k=4, top_p=0.9, min_p=0.05)
        assert drawn[i].tolist() == want
        np.testing.assert_allclose(last[:, i], want_last, atol=2e-6)
    assert same(model.arrays(), before)


def test_sampling_follows_the_parameters_that_training_changes():
    model = build('GRUEncode')
    s0, allowed = np.zeros((2, 1, 3), 'float32'), np.ones(5, 'int8')
    for char in (4, 2):
        model.set_params({'V': np.zeros((3, 5)), 'c': 9.0 * (np.arange(5) == char)})
        assert model.sampletext([0], np.zeros((1, 3)), 0.0, 5, 1.0, 0.0, allowed, s0)[0].tolist() == [[char] * 3]


@pytest.mark.parametrize('what', ['trainstep', 'evaluate', 'sampletext', 'allstates'])
def test_a_function_is_compiled_once_and_says_so(what, monkeypatch, capsys):
    monkeypatch.setattr(report, 'verbose', True)
    model = build('GRUResize')
    assert not capsys.readouterr().out
    function = getattr(model, what)
    said = capsys.readouterr().out
    assert said.startswith('Compiled ') and engine.version in said and said.count('\n') == 1
    assert getattr(model, what) is function
    assert not capsys.readouterr().out


if __name__ == '__main__':
    for modeltype in TYPES:
        print(modeltype, f'{naive_training(modeltype):.7f}')
