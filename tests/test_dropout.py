"""Dropout against Philox worked out in Python's integers, the published vectors of Random123, finite differences and the naive network."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import dropout
import engine
import layers
import native
from conftest import naive_gru, naive_nll, naive_vectors, perform, symbol
from engine import T, theano
from hyperparams import HyperParams
from kernelcases import needskernels
from modelcases import PLAIN

pytestmark = pytest.mark.usefixtures('threads_as_before')
SEED, UPDATES = 0x1234_5678_9ABC_DEF0, 0x1_0000_0003                # both halves of each matter

# Random123's kat_vectors: counter, key, output of philox4x32, 10 rounds.
PUBLISHED = ['00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8',
             'ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd',
             '243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1']


# --- The naive version: Python's integers, one element at a time ----------------------------------------------------

def naive_philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & 0xFFFFFFFF, (first >> 32) ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def naive_word(i, seed, updates, layer):
    return naive_philox((i // 4, layer, updates & 0xFFFFFFFF, updates >> 32), (seed & 0xFFFFFFFF, seed >> 32))[i % 4]


def naive_factors(shape, p, seed=SEED, updates=UPDATES, layer=0):
    """What each element is multiplied by, in float64: 0 or float32(1 / (1 - p))."""
    p = float(np.float32(p))
    factors = [float(np.float32(1 / (1 - p))) if naive_word(i, seed, updates, layer) >= int(p * 2**32) else 0.0
               for i in range(int(np.prod(shape)))]
    return np.array(factors).reshape(shape)


def uniform(*shape, seed=0, dtype='float32'):
    return np.random.RandomState(seed).uniform(-1, 1, shape).astype(dtype)


def dropped(S, p, seed=SEED, updates=UPDATES, layer=0):
    """By `perform`."""
    return perform(dropout.Dropout(layer), S, np.float32(p), np.int64(seed), np.int64(updates))[0]


def kernel(S, p, seed=SEED, updates=UPDATES, layer=0, storage=None):
    """By the native kernel."""
    op, inputs = dropout.Dropout(layer), [S, np.float32(p), np.int64(seed), np.int64(updates)]
    storage = storage or [None]
    op.kernel(op.make_node(*map(symbol, inputs)))(inputs, [storage])
    return storage[0]


def assert_same_bits(one, other):
    assert one.dtype == other.dtype and one.shape == other.shape
    assert one.tobytes() == other.tobytes()


# --- The generator -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('line', PUBLISHED)
def test_philox_gives_the_published_vectors(line):
    numbers = [int(word, 16) for word in line.split()]
    assert [int(word[0]) for word in dropout.philox(numbers[:4], numbers[4:6])] == numbers[6:]
    assert naive_philox(numbers[:4], numbers[4:6]) == numbers[6:]


@needskernels
@pytest.mark.parametrize('n', [4, 150])
def test_the_kernel_keeps_an_element_up_to_its_word_and_drops_it_above(n):
    """Each word to its last bit, the first four of seed, layer and updates 0 the published ones."""
    words = [naive_word(i, 0, 0, 0) for i in range(n)]
    assert words[:4] == [int(word, 16) for word in PUBLISHED[0].split()[6:]]
    S, out = np.ones(n, 'float32'), np.empty(n, 'float32')
    for i, word in enumerate(words):
        native.dropout(S, out, word, 1.0, 0, 0, 0)
        assert out[i] == 1
        native.dropout(S, out, word + 1, 1.0, 0, 0, 0)
        assert out[i] == 0


@pytest.mark.parametrize('n', [1, 3, 4, 5, 100])
@pytest.mark.parametrize('seed, updates, layer', [(0, 0, 0), (1, 0, 0), (SEED, UPDATES, 2), (2**63 - 1, 2**63 - 1, 255),
                                                  (2**32, 2**32 - 1, 7)])
def test_words_are_those_of_element_layer_updates_and_seed(n, seed, updates, layer):
    words = dropout.words(n, seed, updates, layer)
    assert words.dtype == np.uint32
    assert words.tolist() == [naive_word(i, seed, updates, layer) for i in range(n)]


def test_words_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    whole = dropout.words(100, SEED, UPDATES, 1)
    monkeypatch.setattr(dropout, 'BLOCK', 3)
    np.testing.assert_array_equal(dropout.words(100, SEED, UPDATES, 1), whole)


# --- Its mask ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('shape', [(1, 1, 1), (3, 2, 5), (4, 3, 16), (2, 1, 33)])
@pytest.mark.parametrize('p', [0, 0.1, 0.5, 0.9, 0.999999])
def test_dropout_agrees_with_the_naive_mask(shape, p, dtype):
    S = uniform(*shape, dtype=dtype)
    before, factors = S.copy(), naive_factors(shape, p, layer=3)
    got = dropped(S, p, layer=3)
    assert got.dtype == dtype
    assert ((got == 0) == (factors == 0)).all()
    np.testing.assert_allclose(got, S * factors, rtol=1e-7 if dtype == 'float32' else 1e-15)
    np.testing.assert_array_equal(S, before)


def test_half_by_hand():
    """Seed, layer and updates 0: the published words 6627e8d5, e169c58d, bc57ac4c, 9b00dbd8; 80000000 and more is kept, times 2."""
    assert dropped(np.array([[[1.5, -2, 3, 0.25]]], 'float32'), 0.5, 0, 0).tolist() == [[[0, -4, 6, 0.5]]]


@pytest.mark.parametrize('way', [dropped, pytest.param(kernel, marks=needskernels)])
@pytest.mark.parametrize('p', [0.05, 0.3, 0.5, 0.8])
def test_the_share_dropped_is_p_and_the_mean_is_kept_within_5_sigma(p, way):
    """A binomial count of n elements, deviation sqrt(p (1 - p) n); the mean of ones is the share kept / (1 - p)."""
    n = 100 * 16 * 64
    for updates in range(3):
        got = way(np.ones((100, 16, 64), 'float32'), p, updates=updates)
        sigma = (p * (1 - p) / n) ** 0.5
        assert abs((got == 0).mean() - p) < 5 * sigma
        assert abs(got.mean(dtype='float64') - 1) < 5 * sigma / (1 - p)
        assert set(np.unique(got)) == {np.float32(0), np.float32(1 / (1 - np.float64(np.float32(p))))}


def test_no_row_column_or_step_is_dropped_more_often_than_the_others():
    """Each within 5 sigma of p, and neighbours independent: both dropped with probability p^2."""
    p, zero = 0.5, dropped(np.ones((60, 40, 50), 'float32'), 0.5) == 0
    for axes, n in (((0, 1), 2400), ((0, 2), 3000), ((1, 2), 2000)):
        assert abs(zero.mean(axis=axes) - p).max() < 5 * (p * (1 - p) / n) ** 0.5
    for both in (zero[1:] & zero[:-1], zero[:, 1:] & zero[:, :-1], zero[:, :, 1:] & zero[:, :, :-1]):
        # A pair's variance is 3/16, its covariance with each of the two pairs that share an element with it 1/16.
        assert abs(both.mean() - p * p) < 5 * (5 / 16 / both.size) ** 0.5


def test_another_seed_layer_or_number_of_updates_gives_another_mask_and_the_same_the_same():
    S, given_ = np.ones((5, 4, 50), 'float32'), dict(seed=SEED, updates=UPDATES, layer=0)
    mask = dropped(S, 0.5, **given_)
    assert_same_bits(dropped(S, 0.5, **given_), mask)
    others = [dict(layer=1), dict(updates=UPDATES + 1), dict(updates=3), dict(seed=SEED + 1), dict(seed=SEED % 2**32),
              dict(seed=SEED - 2**32)]
    masks = [mask] + [dropped(S, 0.5, **{**given_, **other}) for other in others]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert 0.4 < (one == other).mean() < 0.6         # two coins agree half of the time: 1000 of them, 6 sigma


@pytest.mark.parametrize('way', [dropped, pytest.param(kernel, marks=needskernels)])
def test_p_0_gives_the_input_bit_for_bit(way):
    S = uniform(7, 3, 11)
    S[0, 0, :4] = 0.0, -0.0, np.inf, np.nan
    assert_same_bits(way(S, 0), S)


@pytest.mark.parametrize('way', [dropped, pytest.param(kernel, marks=needskernels)])
def test_nan_and_infinity_come_out_where_they_are_kept_and_0_where_they_are_dropped(way):
    kept = naive_factors((2, 2, 9), 0.5) > 0
    for value in (np.nan, np.inf):
        got = way(np.full((2, 2, 9), value, 'float32'), 0.5)
        np.testing.assert_array_equal(got, np.where(kept, value, 0))


def test_a_probability_of_float64_counts_as_the_float32_that_is_nearest(monkeypatch):
    """0.1 is 13421773 / 2^27 then: word 13421773 * 2^5 is kept, and the one below it dropped."""
    monkeypatch.setattr(dropout, 'words', lambda n, *rest: np.array([13421773 * 32 - 1, 13421773 * 32], np.uint32))
    assert [value > 0 for value in perform(dropout.Dropout(0), np.ones((1, 1, 2), 'float32'), np.float64(0.1), 0, 0)[0][0, 0]] == [0, 1]
    with pytest.raises(ValueError, match='as a float32, below 1, got 1.0'):
        perform(dropout.Dropout(0), np.ones((1, 1, 2), 'float32'), np.float64(1 - 1e-9), 0, 0)


@pytest.mark.parametrize('way', [dropped, pytest.param(kernel, marks=needskernels)])
@pytest.mark.parametrize('p', [-0.1, 1.0, 1.5, 1 - 1e-9, float('nan')])
def test_a_probability_beyond_0_to_1_is_refused(p, way):
    with pytest.raises(ValueError, match='dropout must be at least 0'):
        way(uniform(2, 1, 3), p)


@pytest.mark.parametrize('way', [dropped, pytest.param(kernel, marks=needskernels)])
@pytest.mark.parametrize('what', ['seed', 'updates'])
def test_a_negative_seed_or_number_of_updates_is_refused(what, way):
    with pytest.raises(ValueError, match=f'{what} must be at least 0, got -1'):
        way(uniform(2, 1, 3), 0.5, **{what: -1})


def test_inputs_of_other_types_are_refused():
    S = T.tensor3(dtype='float32')
    for wrong in ([T.vector(), 1, 1], [0.5, 1.5, 1], [0.5, 1, T.scalar(dtype='float32')], [0.5, T.ivector(), 1]):
        with pytest.raises(TypeError, match='Dropout takes three scalars'):
            dropout.Dropout(0)(S, *wrong)


# --- The kernel ----------------------------------------------------------------------------------------------------------

@needskernels
@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 70)), p=st.floats(0, 0.999), seed=st.integers(0, 2**63 - 1),
       updates=st.one_of(st.integers(0, 10), st.integers(0, 2**63 - 1)), layer=st.integers(0, 20))
def test_the_kernel_equals_perform_bit_for_bit_on_any_shape(shape, p, seed, updates, layer):
    S = uniform(*shape, seed=seed % 2**32)
    assert_same_bits(kernel(S, p, seed, updates, layer), dropped(S, p, seed, updates, layer))


@needskernels
@pytest.mark.parametrize('shape', [(100, 16, 256), (50, 50, 127), (3, 1, 40001), (1, 1, 1)])
def test_the_kernel_equals_perform_bit_for_bit_at_any_number_of_threads(shape):
    S = uniform(*shape)
    want = dropped(S, 0.3, layer=1)
    for threads in (1, 2, 3, 8):
        native.library().rngru_set_threads(threads)
        assert_same_bits(kernel(S, 0.3, layer=1), want)


@needskernels
@pytest.mark.parametrize('n', list(range(1, 70)) + [4095, 4096, 4097])
def test_the_kernel_writes_no_element_too_many(n):
    memory, S = np.full(n + 64, 77, 'float32'), uniform(1, 1, n)
    native.dropout(S, memory[:n].reshape(1, 1, n), 2**31, np.float32(2), SEED, UPDATES, 0)
    np.testing.assert_array_equal(memory[:n], dropped(S, 0.5).ravel())
    assert (memory[n:] == 77).all()


@needskernels
def test_the_kernel_takes_any_layout_and_unaligned_memory():
    S = uniform(6, 5, 19)
    want = dropped(S, 0.4)
    unaligned = np.empty(S.size + 1, 'float32')[1:].reshape(S.shape)
    unaligned[:] = S
    readonly = S.copy()
    readonly.flags.writeable = False
    for other in (np.asfortranarray(S), S[::-1].copy()[::-1], unaligned, readonly):
        assert_same_bits(kernel(other, 0.4), want)
        assert_same_bits(dropped(other, 0.4), want)


@needskernels
def test_the_kernel_writes_into_the_memory_of_the_last_call():
    storage = [None]
    first = kernel(uniform(4, 3, 16), 0.5, storage=storage)
    second = kernel(uniform(4, 3, 16, seed=1), 0.5, storage=storage)
    assert second is first
    np.testing.assert_array_equal(second, dropped(uniform(4, 3, 16, seed=1), 0.5))


def test_float64_is_left_to_perform():
    S = T.tensor3(dtype='float64')
    node = dropout.Dropout(0).make_node(S, 0.5, 1, 1)
    assert dropout.Dropout(0).kernel(node) is None


def test_a_compiled_function_takes_another_p_and_number_of_updates_without_another_compilation():
    inputs = [T.tensor3(dtype='float32'), T.scalar(dtype='float32'), T.scalar(dtype='int64'), T.scalar(dtype='int64')]
    f = engine.compilefunction(inputs, [dropout.Dropout(2)(*inputs)])
    S = uniform(3, 2, 17)
    for p, seed, updates in [(0.5, 1, 0), (0.25, 1, 1), (0, 1, 2), (0.9, SEED, UPDATES)]:
        got, = f(S, np.asarray(p, 'float32'), np.asarray(seed), np.asarray(updates))
        np.testing.assert_allclose(got, S * naive_factors(S.shape, p, seed, updates, 2), rtol=1e-7)


# --- Its gradient --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shape', [(1, 1, 1), (3, 2, 5)])
@pytest.mark.parametrize('p', [0, 0.3, 0.8])
def test_the_gradient_agrees_with_finite_differences(shape, p):
    def fun(S):
        return dropout.Dropout(1)(S, p, SEED, UPDATES) ** 3
    theano.gradient.verify_grad(fun, [uniform(*shape, dtype='float64')], rng=np.random.RandomState(0), n_tests=1,
                                abs_tol=1e-6, rel_tol=1e-6, mode=PLAIN)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_the_gradient_is_masked_and_scaled_as_the_output_is(dtype):
    S, weights = uniform(4, 3, 9, dtype=dtype), uniform(4, 3, 9, seed=1, dtype=dtype)
    s = symbol(S)
    p, seed, updates = T.scalar(dtype='float32'), T.scalar(dtype='int64'), T.scalar(dtype='int64')
    gradient = theano.grad(T.sum(dropout.Dropout(5)(s, p, seed, updates) * weights), s)
    f = engine.compilefunction([s, p, seed, updates], [gradient])
    got, = f(S, np.asarray(0.4, 'float32'), np.asarray(SEED), np.asarray(7))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, weights * naive_factors(S.shape, 0.4, updates=7, layer=5), rtol=1e-6)


def test_p_seed_and_updates_have_no_gradient():
    S, p = T.tensor3(dtype='float64'), T.scalar(dtype='float64')
    with pytest.raises(theano.gradient.DisconnectedInputError):
        theano.grad(T.sum(dropout.Dropout(0)(S, p, 1, 1)), p)


# --- The network ------------------------------------------------------------------------------------------------------------

TYPES = ('GRUEncode', 'GRUResize')


def build(modeltype, V=5, L=2, H=3):
    """A model with parameters, biases included, and states drawn within +-1; x and y (3, 2)."""
    model, rng = layers.MODELTYPES[modeltype](V, L, H, 1), np.random.RandomState(4)
    model.set_params({name: rng.uniform(-1, 1, value.shape) for name, value in model.get_params().items()})
    model.set_state(rng.uniform(-1, 1, (L, 2, H)))
    return model, *rng.randint(0, V, (2, 3, 2)).astype('int32')


def naive_dropout_network(params, x, y, s0, p, updates):
    """(loss, last states (L, B, H)) in float64 of conftest's naive network with the mask on every layer's way up."""
    X = (naive_vectors('encoded', (x, params['E'], params['a'])) if 'E' in params else naive_vectors('onehot', (x, len(params['U0']))))
    lasts = []
    for l in range(len(s0)):
        S = naive_gru(X, s0[l], params[f'U{l}'], params[f'W{l}'], params[f'b{l}'])
        lasts.append(S[-1])
        X = S * naive_factors(S.shape, p, updates=updates, layer=l)
    return naive_nll(X @ np.asarray(params['V'], np.float64) + params['c'], y), np.array(lasts)


def doubles(params):
    return {name: value.astype(np.float64) for name, value in params.items()}


@pytest.mark.parametrize('modeltype', TYPES)
def test_the_graph_is_the_naive_network_with_the_mask_on_each_layers_way_up(modeltype):
    """The loss, the last states (which the mask doesn't touch) and every parameter's gradient, by central differences."""
    model, x, y = build(modeltype)
    s0, params, p = model.get_state(), doubles(model.get_params()), 0.4
    assert all(0 < (naive_factors((3, 2, 3), p, updates=9, layer=l) == 0).sum() < 18 for l in range(2))
    want, want_lasts = naive_dropout_network(params, x, y, s0, p, 9)
    assert abs(want - naive_dropout_network(params, x, y, s0, 0, 9)[0]) > 0.01
    for gradients in (False, True):
        scalars = T.scalar(dtype='float32'), T.scalar(dtype='int64'), T.scalar(dtype='int64')
        loss, lasts = model.loss(x, y, model.states, gradients, dropout=scalars)
        f = engine.compilefunction(scalars, [loss, *lasts, *theano.grad(loss, list(model.params.values()))])
        loss, *got = f(np.asarray(p, 'float32'), np.asarray(SEED), np.asarray(9))
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        np.testing.assert_allclose(got[:2], want_lasts, atol=1e-5)
        for (name, value), gradient in zip(params.items(), got[2:]):
            for index in np.ndindex(*value.shape):
                kept, ends = value[index], []
                for step in (1e-5, -1e-5):
                    value[index] = kept + step
                    ends.append(naive_dropout_network(params, x, y, s0, p, 9)[0])
                value[index] = kept
                np.testing.assert_allclose(gradient[index], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-5, err_msg=f'{name} {index}')


def dropoutstep(model, x, y, learnrate, decay, regcost, p, seed, updates):
    """The loss of a training step with dropout that comes behind so many updates."""
    model.seed, model.updates = seed, updates
    return model.trainstep(x, y, HyperParams(decay=decay, regcost=regcost, dropout=p), learnrate)[0]


@pytest.mark.parametrize('modeltype', TYPES)
def test_a_training_step_with_p_nearly_0_is_the_one_without_dropout_bit_for_bit(modeltype):
    (plain, x, y), (with0, _, _) = build(modeltype), build(modeltype)
    for updates in range(3):
        want, *_ = plain.trainstep(x, y, HyperParams(decay=0.9, regcost=0.1), 0.01)
        assert dropoutstep(with0, x, y, 0.01, 0.9, 0.1, 1e-12, SEED, updates) == want          # drops one in a million millions
    for name, value in plain.arrays().items():
        assert_same_bits(with0.arrays()[name], value)


def test_the_training_step_drops_by_seed_and_updates():
    """Losses of the naive network; the learning rate is 0, and the state put back before each step."""
    model, x, y = build('GRUEncode')
    s0, params = model.get_state(), doubles(model.get_params())
    losses = []
    for p, updates in [(0.4, 0), (0.4, 1), (0.7, 1), (0.4, 0)]:
        model.set_state(s0)
        losses.append(dropoutstep(model, x, y, 0.0, 0.9, 0.0, p, SEED, updates))
        want, lasts = naive_dropout_network(params, x, y, s0, p, updates)
        np.testing.assert_allclose(losses[-1], want, rtol=1e-5)
        np.testing.assert_allclose(model.get_state(), lasts, atol=1e-5)
    assert losses[0] == losses[3] and len(set(losses)) == 3


def test_training_stopped_and_taken_up_again_drops_what_it_would_have_dropped():
    """Another model with the arrays after 3 of 6 steps ends with the same bits; one that counts its updates from 0 again doesn't."""
    model, x, y = build('GRUEncode')
    step = (x, y, 0.01, 0.9, 0.1, 0.3, SEED)
    for updates in range(3):
        dropoutstep(model, *step, updates)
    kept = model.arrays()
    ends = []
    for start in (3, 3, 0):
        again, _, _ = build('GRUEncode')
        again.set_arrays(kept, HyperParams(dropout=0.3))
        for updates in range(start, start + 3):
            dropoutstep(again, *step, updates)
        ends.append(again.arrays())
    for updates in range(3, 6):
        dropoutstep(model, *step, updates)
    for name, value in model.arrays().items():
        assert_same_bits(ends[0][name], value)
    assert any((ends[2][name] != value).any() for name, value in model.arrays().items())


def test_the_step_with_numpy_alone_drops_the_same(monkeypatch):
    """Products differ in their last bits; a mask that differed in one element would change the loss by far more."""
    losses = []
    for library in (native.library, lambda: None):
        monkeypatch.setattr(native, 'library', library)
        model, x, y = build('GRUEncode', H=16)
        losses.append([dropoutstep(model, x, y, 0.01, 0.9, 0.1, 0.5, SEED, updates) for updates in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_nothing_but_the_training_step_drops():
    """evaluate, allstates and the plain step hold no Dropout; the two variants of the step are compiled apart, each when asked for."""
    model, x, y = build('GRUEncode')
    loss = model.loss(x, y, model.states, gradients=True)[0]
    assert not any(isinstance(v.owner.op, dropout.Dropout) for v in ancestors(loss) if v.owner)
    scalars = T.scalar(dtype='float32'), T.scalar(dtype='int64'), T.scalar(dtype='int64')
    loss = model.loss(x, y, model.states, gradients=True, dropout=scalars)[0]
    assert len({v for v in ancestors(loss) if v.owner and isinstance(v.owner.op, dropout.Dropout)}) == model.layers


def ancestors(variable):
    """The variable and everything that it is computed from."""
    found, left = set(), [variable]
    while left:
        v = left.pop()
        if v not in found:
            found.add(v)
            left += v.owner.inputs if v.owner else []
    return found
