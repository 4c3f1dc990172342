"""The networks: parameters, first weights and graphs, against the naive network of conftest."""

import gc
import tracemalloc

import numpy as np
import pytest

import layers
from conftest import assert_needs, naive_logits
from engine import T, theano
from hyperparams import HyperParams
from modelcases import PLAIN, TYPES, batch, build, doubles, naive_cost, numerical, same, state, step, wild

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


# --- Memory -----------------------------------------------------------------------------------------------------------

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
