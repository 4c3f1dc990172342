"""The networks and their training against the naive network of conftest and finite differences in float64.

`PYTHONPATH=. python tests/test_layers.py` prints the constants of TRAINED, worked out in float64 without Theano or our Ops.
"""

import gc
import tracemalloc

import numpy as np
import pytest

import engine
import layers
import report
from conftest import assert_needs, naive_logits, naive_nll, naive_sample, naive_states
from engine import T, theano
from hyperparams import HyperParams

TYPES = ('GRUEncode', 'GRUResize')
PLAIN = theano.compile.mode.Mode(linker='py', optimizer=None)       # no C, no rewriting: nothing to wait for


def build(modeltype, V=5, L=2, H=3, seed=1):
    return layers.MODELTYPES[modeltype](V, L, H, seed)


def wild(model, seed=0, scale=1.0):
    """The model with other parameters, biases included, uniform within +-scale."""
    rng = np.random.RandomState(seed)
    model.set_params({name: rng.uniform(-scale, scale, value.shape) for name, value in model.get_params().items()})
    return model


def batch(V=5, steps=3, B=2, seed=0):
    """x, y (T, B) int32."""
    return np.random.RandomState(seed).randint(0, V, (2, steps, B)).astype('int32')


def state(model, B=2, seed=0):
    return np.random.RandomState(seed).uniform(-1, 1, (model.layers, B, model.state_size)).astype('float32')


def step(model, x, y, learnrate, decay, regcost):
    """The loss of a training step."""
    return model.trainstep(x, y, HyperParams(decay=decay, regcost=regcost), learnrate)[0]


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture
def nocompiler(monkeypatch):
    """Compiling anything fails."""
    def fail(*args, **kwargs):
        raise AssertionError('something was compiled')
    monkeypatch.setattr(engine, 'compilefunction', fail)
    monkeypatch.setattr(theano, 'function', fail)


# --- The naive training step -------------------------------------------------------------------------------------

def naive_cost(params, x, y, s0, regcost):
    """DESIGN's cost: (sum of the nats + regcost/2 * sum of the squared E, U, W, V) / number of characters."""
    squares = sum(float((np.asarray(value, np.float64) ** 2).sum()) for name, value in params.items() if name[0] in 'EUWV')
    return (naive_nll(naive_logits(params, x, s0)[0], y) * y.size + regcost / 2 * squares) / y.size


def numerical(f, value, step=1e-5):
    """Gradient of f() in the array `value`, which f reads: central differences."""
    gradient = np.zeros_like(value)
    for index in np.ndindex(*value.shape):
        kept = value[index]
        value[index] = kept + step
        above = f()
        value[index] = kept - step
        gradient[index] = (above - f()) / (2 * step)
        value[index] = kept
    return gradient


def naive_trainstep(params, caches, x, y, s0, learnrate, decay, regcost):
    """One step on float64 dicts `params` and `caches`, in place; (loss before, last state, the gradients before the clip)."""
    logits, last = naive_logits(params, x, s0)
    loss = naive_nll(logits, y)
    gradients = {name: numerical(lambda: naive_cost(params, x, y, s0, regcost), value) for name, value in params.items()}
    for name, gradient in gradients.items():
        g = np.clip(gradient, -5, 5)
        caches[name] = decay * caches[name] + (1 - decay) * g * g
        params[name] -= learnrate * g / np.sqrt(caches[name] + 1e-6)
    return loss, last, gradients


def doubles(model):
    params = {name: value.astype(np.float64) for name, value in model.get_params().items()}
    return params, {name: np.zeros_like(value) for name, value in params.items()}


# --- Parameters ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('L', [1, 2, 4])
def test_gruencode_parameters_have_the_names_and_shapes_of_the_contract(L):
    params = build('GRUEncode', V=7, L=L, H=4).get_params()
    want = {'E': (7, 4), 'a': (4,), 'V': (4, 7), 'c': (7,)}
    for l in range(L):
        want.update({f'U{l}': (4, 12), f'W{l}': (4, 12), f'b{l}': (12,)})
    assert {name: value.shape for name, value in params.items()} == want
    assert all(value.dtype == np.float32 for value in params.values())


@pytest.mark.parametrize('L', [1, 2, 4])
def test_gruresize_parameters_have_the_names_and_shapes_of_the_contract(L):
    params = build('GRUResize', V=7, L=L, H=4).get_params()
    want = {'V': (4, 7), 'c': (7,)}
    for l in range(L):
        want.update({f'U{l}': (4 if l else 7, 12), f'W{l}': (4, 12), f'b{l}': (12,)})
    assert {name: value.shape for name, value in params.items()} == want
    assert all(value.dtype == np.float32 for value in params.values())


@pytest.mark.parametrize('modeltype, want', [('GRUEncode', 15 + 3 + 2 * (27 + 27 + 9) + 15 + 5), ('GRUResize', 45 + 3 * 27 + 18 + 15 + 5)])
def test_numparams_counts_every_number(modeltype, want):
    model = build(modeltype)
    assert model.count(model.vocab, model.layers, model.state_size) == want == sum(value.size for value in model.get_params().values())


def test_the_weights_are_the_matrices_and_not_the_biases():
    assert set(build('GRUEncode').weights()) == {'E', 'U0', 'W0', 'U1', 'W1', 'V'}
    assert set(build('GRUResize').weights()) == {'U0', 'W0', 'U1', 'W1', 'V'}


@pytest.mark.parametrize('modeltype', TYPES)
def test_initial_weights_are_uniform_within_the_root_of_one_over_rows_and_biases_zero(modeltype):
    """A uniform distribution within +-bound: mean 0, deviation bound / sqrt(3), a quarter of it above bound / 2."""
    for name, value in build(modeltype, V=70, L=2, H=60).get_params().items():
        if name[0] in 'abc':
            assert not value.any()
            continue
        bound = (1 / value.shape[0]) ** 0.5
        assert 0.99 * bound < np.abs(value).max() <= np.float32(bound)
        assert abs(value.mean()) < 0.05 * bound
        assert abs(value.std() * 3 ** 0.5 / bound - 1) < 0.05
        assert abs((value > bound / 2).mean() - 0.25) < 0.03


@pytest.mark.parametrize('modeltype, rows', [('GRUEncode', 'E'), ('GRUResize', 'U0')])
def test_rows_that_characters_look_up_start_within_one_where_asked_for_and_all_else_as_ever(modeltype, rows):
    params = layers.MODELTYPES[modeltype](70, 2, 60, 1, HyperParams(init='lookup')).get_params()
    plain = layers.MODELTYPES[modeltype](70, 2, 60, 1).get_params()
    assert 0.99 < np.abs(params[rows]).max() <= 1 and abs(params[rows].std() * 3 ** 0.5 - 1) < 0.05
    assert abs(params[rows].mean()) < 0.05
    del params[rows], plain[rows]
    assert same(params, plain)


@pytest.mark.parametrize('modeltype', TYPES)
def test_initial_weights_come_from_the_seed_alone(modeltype):
    first = build(modeltype, seed=5).get_params()
    np.random.seed(3)
    assert same(first, build(modeltype, seed=5).get_params())
    other = build(modeltype, seed=6).get_params()
    assert all(not np.array_equal(first[name], other[name]) for name in first if name[0] not in 'abc')


def test_no_two_weight_matrices_start_the_same():
    params = build('GRUEncode', L=3).get_params()
    assert len({params[name].tobytes() for name in ('U0', 'W0', 'U1', 'W1', 'U2', 'W2')}) == 6


@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('H', [1, 2, 17])
def test_orthogonal_initial_blocks_keep_every_length_and_all_else_starts_as_ever(modeltype, H):
    model = layers.MODELTYPES[modeltype](5, 2, H, 1, HyperParams(init='orthogonal'))
    params, plain = model.get_params(), build(modeltype, H=H).get_params()
    blocks = [params[f'W{l}'][:, i * H:(i + 1) * H].astype('float64') for l in (0, 1) for i in range(3)]
    for W in blocks:
        np.testing.assert_allclose(W.T @ W, np.eye(H), atol=1e-6)
        np.testing.assert_allclose(W @ W.T, np.eye(H), atol=1e-6)
    assert len({W.tobytes() for W in blocks}) == 6 or H == 1
    for name, value in params.items():
        if name[0] in 'abc':
            assert not value.any()
        elif name[0] != 'W':
            assert np.abs(value).max() <= np.float32(value.shape[0] ** -0.5)
    first = next(iter(params))
    np.testing.assert_array_equal(params[first], plain[first])         # drawn before any W
    assert same(params, layers.MODELTYPES[modeltype](5, 2, H, 1, HyperParams(init='orthogonal')).get_params())


def test_orthogonal_initial_blocks_favour_no_direction():
    """Haar's measure: elements have mean 0 and variance 1/H, also on the diagonal, which the signs of a plain QR would bend."""
    H, diagonals = 20, []
    for seed in range(60):
        W = layers.MODELTYPES['GRUEncode'](3, 1, H, seed, HyperParams(init='orthogonal')).get_params()['W0']
        diagonals += [np.diag(W[:, i * H:(i + 1) * H]) for i in range(3)]
    diagonals = np.array(diagonals)
    assert abs(diagonals.mean()) < 4 * (1 / H / diagonals.size) ** 0.5 and abs(diagonals.var() * H - 1) < 0.1


@pytest.mark.parametrize('modeltype', TYPES)
def test_set_params_takes_what_get_params_gave(modeltype):
    model, other = build(modeltype, seed=1), build(modeltype, seed=2)
    other.set_params(model.get_params())
    assert same(other.get_params(), model.get_params())


def test_set_params_leaves_out_what_the_dict_leaves_out_and_takes_lists_and_other_types():
    model = build('GRUEncode')
    before = model.get_params()
    model.set_params({'a': [1, 2, 3], 'V': np.asfortranarray(np.arange(15.0).reshape(3, 5)), 'c': np.arange(5, dtype='int64')})
    after = model.get_params()
    np.testing.assert_array_equal(after['a'], [1, 2, 3])
    np.testing.assert_array_equal(after['V'], np.arange(15).reshape(3, 5))
    np.testing.assert_array_equal(after['c'], np.arange(5))
    assert all(np.array_equal(after[name], before[name]) for name in before if name not in 'aVc')
    assert all(value.dtype == np.float32 for value in after.values())


@pytest.mark.parametrize('name, value, error', [('Q', np.zeros(3), KeyError), ('U9', np.zeros((3, 9)), KeyError),
                                                ('a', np.zeros(4), ValueError), ('V', np.zeros((5, 3)), ValueError),
                                                ('c', np.zeros((5, 1)), ValueError),
                                                ('c', 'text', ValueError), ('a', [1, 'x', 2], ValueError), ('a', None, ValueError),
                                                ('a', [1, np.nan, 2], ValueError), ('a', [1, -np.inf, 2], ValueError),
                                                ('a', [1, 1e39, 2], ValueError),            # more than float32 holds
                                                ('a', [[1], [2, 3]], ValueError)])
@pytest.mark.filterwarnings('ignore:Creating an ndarray from ragged')           # what NumPy 1 says first
def test_set_params_refuses_what_does_not_fit_and_then_changes_nothing(name, value, error):
    model = build('GRUEncode')
    before = model.get_params()
    with pytest.raises(error, match=name):
        model.set_params({'E': np.ones((5, 3)), name: value, 'W0': np.ones((3, 9))})
    assert same(before, model.get_params())


@pytest.mark.parametrize('shape', [(1, 4, 3), (3, 4, 3), (2, 4, 4), (4, 3), (2, 3)])
def test_a_state_of_another_number_of_layers_or_units_is_refused_and_changes_nothing(shape):
    model = build('GRUEncode')
    model.set_state(np.ones((2, 4, 3)))
    with pytest.raises(ValueError, match='the state has shape .2, batch rows, 3., got'):
        model.set_state(np.zeros(shape))
    np.testing.assert_array_equal(model.get_state(), np.ones((2, 4, 3)))


def test_parameters_are_handed_out_and_taken_as_copies():
    model = build('GRUEncode')
    before, given = model.get_params(), np.ones((5, 3), np.float32)
    model.get_params()['V'][:] = 9
    assert same(before, model.get_params())
    model.set_params({'E': given})
    given[:] = 7
    np.testing.assert_array_equal(model.get_params()['E'], np.ones((5, 3)))
    given = np.ones((2, 4, 3), np.float32)
    model.set_state(given)
    given[:] = 7
    model.get_state()[:] = 9
    np.testing.assert_array_equal(model.get_state(), np.ones((2, 4, 3)))


@pytest.mark.parametrize('modeltype', TYPES)
def test_arrays_hold_everything_that_expected_tells_and_put_back_the_same_training(modeltype):
    x, y = batch()
    model, other = build(modeltype, seed=1), build(modeltype, seed=2)
    model.set_state(state(model))
    step(model, x, y, 0.01, 0.9, 0.1)
    kept = model.arrays()
    assert {name: (value.shape, str(value.dtype)) for name, value in kept.items()} == model.expected(
        model.vocab, model.layers, model.state_size, 2)
    assert set(kept) == set(model.params) | {'m' + name for name in model.params} | {'state'}
    losses = [step(model, x, y, 0.01, 0.9, 0.1) for _ in range(3)]
    end = model.arrays()
    assert not same(kept, end)
    for again in (model, other):
        again.set_arrays(kept)
        assert [step(again, x, y, 0.01, 0.9, 0.1) for _ in range(3)] == losses
        assert same(again.arrays(), end)


# --- The graphs ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'uint16', 'int32', 'int64'])
def test_forward_takes_characters_of_any_integer_type(modeltype, dtype):
    model = wild(build(modeltype))
    x_value, s0_value = batch(steps=4)[0], state(model)
    x, s0 = T.matrix(dtype=dtype), T.tensor3(dtype='float32')
    logits, last = model.forward(x, s0)
    assert (logits.ndim, logits.dtype, last.ndim, last.dtype) == (3, 'float32', 3, 'float32')
    got_logits, got_last = theano.function([x, s0], [logits, last], mode=PLAIN)(x_value.astype(dtype), s0_value)
    want_logits, want_last = naive_logits(model.get_params(), x_value, s0_value)
    assert got_logits.shape == (4, 2, 5) and got_last.shape == (2, 2, 3)
    np.testing.assert_allclose(got_logits, want_logits, atol=2e-6)
    np.testing.assert_allclose(got_last, want_last, atol=1e-6)


@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('L, steps, B, H, V', [(1, 1, 1, 1, 2), (3, 2, 1, 17, 3), (2, 5, 3, 4, 30)])
def test_forward_agrees_with_the_naive_network_on_other_sizes(modeltype, L, steps, B, H, V):
    model = wild(build(modeltype, V, L, H))
    x, s0 = batch(V, steps, B)[0], state(model, B)
    got_logits, got_last = theano.function([], list(model.forward(x, s0)), mode=PLAIN)()      # arrays are expressions too
    want_logits, want_last = naive_logits(model.get_params(), x, s0)
    np.testing.assert_allclose(got_logits, want_logits, atol=5e-6)
    np.testing.assert_allclose(got_last, want_last, atol=1e-6)


@pytest.mark.parametrize('modeltype', TYPES)
def test_logits_are_differentiable_in_the_parameters_and_in_s0(modeltype):
    """Against central differences of the naive network; the cost reads logits and last states."""
    model = wild(build(modeltype))
    x, s0_value = batch()[0], state(model)
    rng = np.random.RandomState(4)
    for_logits, for_last = (rng.uniform(-1, 1, shape).astype('float32') for shape in ((3, 2, 5), (2, 2, 3)))
    s0 = T.tensor3(dtype='float32')
    logits, last = model.forward(x, s0)
    wrt = [*model.params.values(), s0]
    gradients = theano.function([s0], theano.grad(T.sum(logits * for_logits) + T.sum(last * for_last), wrt), mode=PLAIN,
                                accept_inplace=True)(s0_value)
    params, s0_value = doubles(model)[0], s0_value.astype(np.float64)

    def cost():
        logits, last = naive_logits(params, x, s0_value)
        return (logits * for_logits).sum() + (last * for_last).sum()

    for name, got in zip([*model.params, 's0'], gradients):
        np.testing.assert_allclose(got, numerical(cost, params.get(name, s0_value)), rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('regcost', [0.0, 0.7])
def test_cost_is_the_loss_and_the_squared_weights_a_character(modeltype, regcost):
    model = wild(build(modeltype))
    (x, y), s0 = batch(), state(model)
    xs, ys = T.matrix(dtype='int32'), T.matrix(dtype='int32')
    cost = model.cost(xs, ys, [T.constant(s) for s in s0], regcost)
    assert cost.ndim == 0
    got = theano.function([xs, ys], cost, mode=PLAIN, accept_inplace=True)(x, y)
    np.testing.assert_allclose(got, naive_cost(model.get_params(), x, y, s0, regcost), rtol=1e-5)


@pytest.mark.parametrize('modeltype', TYPES)
def test_building_a_model_and_its_graphs_compiles_nothing(modeltype, nocompiler):
    model = build(modeltype)
    x, y = T.matrix(dtype='int32'), T.matrix(dtype='int32')
    s0 = T.tensor3(dtype='float32')
    model.forward(x, s0)
    theano.grad(model.cost(x, y, [s0[0], s0[1]], 0.1), list(model.params.values()))


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
    gradient, clip and RMSProp written out; nothing of Theano nor of ops.py. `PYTHONPATH=. python tests/test_layers.py` prints them
    (half a minute).
    """
    model = build(modeltype, **FIXED)
    x, y = fixedbatch()
    model.set_state(np.zeros((2, 3, 4)))
    for _ in range(20):
        step(model, x, y, 0.01, 0.9, 0.3)
    loss, _ = model.evaluate(x, y, model.get_state())
    assert abs(loss - TRAINED[modeltype]) < 5e-5


# --- The optimizers, the running mean ----------------------------------------------------------------------------------

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


def test_memory_counts_the_caches(monkeypatch):
    """3 + 2 caches numbers a parameter: 1 x 1000 with 10 characters has 6,033,010 parameters. Besides 9 x 1000 a character, 3,000,000 for a
    checkpoint's largest array, 6,000,000 + 5 x 10,000 of the sampler and 6,000,000 + 8,000 of the backward pass."""
    count = layers.GRUEncode.count(10, 1, 1000)
    assert count == 10 * 1000 + 1000 + 6 * 1000 ** 2 + 3000 + 10 * 1000 + 10
    for optimizer, ema, each in (('rmsprop', 0, 5), ('sgd', 0, 5), ('adam', 0, 7), ('adamw', 0.9, 9)):
        assert_needs(monkeypatch, each * count + 9_000 + 3_000_000 + 6_050_000 + 6_008_000, layers.GRUEncode, 10, 1, 1000,
                     hyper=HyperParams(optimizer=optimizer, ema=ema))


def test_memory_counts_what_dropout_makes(monkeypatch):
    """Of 50 characters and 3 layers of 10 units, with 10 different ones: 9, with dropout 11 numbers a unit and character; the largest
    array's are 300, the sampler's 1,800 + 500, the backward pass's 1,500 + 600 + 500."""
    count = layers.GRUEncode.count(10, 3, 10)
    for dropout, numbers in ((0.0, 13_500), (0.2, 16_500)):
        assert_needs(monkeypatch, 5 * count + numbers + 300 + 2_300 + 2_600, layers.GRUEncode, 10, 3, 10, 5, 10,
                     HyperParams(dropout=dropout))


@pytest.mark.parametrize('vocab, logits', [(10_000, 2 ** 22), (100_000, 25_600_000), (1_000, 2_000_000)])
def test_memory_counts_the_logits_of_a_block_only(monkeypatch, vocab, logits):
    """Of 2,000 characters with so many different ones, 1 x 10: all logits, or of a block."""
    count = layers.GRUResize.count(vocab, 1, 10)
    assert count == 30 * vocab + 300 + 30 + 11 * vocab
    assert_needs(monkeypatch, 5 * count + 180_000 + min(30 * vocab, 2 ** 22) + 600 + 10 * vocab + 20 * vocab + logits,
                 layers.GRUResize, vocab, 1, 10, 20, 100)


def test_the_untrained_loss_keeps_no_batch_in_memory():
    """States and gates of 100 x 50 characters and 16 units take 1.3 MB: 20 batches need no more than one does."""
    model, (x, y) = build('GRUEncode', L=1, H=16), batch(steps=100, B=50)
    model.untrainedloss([(x, y)])
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        model.untrainedloss([(x, y)] * 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert peak < 8e6


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
