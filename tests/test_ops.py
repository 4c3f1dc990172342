"""The Ops against naive loops, numerical gradients, and a network that Theano differentiates by itself."""

import importlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import engine
import layers
import native
import ops
from conftest import naive_gru, naive_logits, naive_nll, naive_vectors, perform, symbol, uniform
from engine import T, theano
from modelcases import PLAIN

SOURCES = ('vectors', 'onehot', 'encoded')


def grucase(source, T=3, B=2, H=3, K=4, V=5, dtype='float64', seed=0, scale=0.6, x=None):
    """Inputs of a GRU Op, a list of arrays; K: size of an input vector, V: vocabulary."""
    rng = np.random.RandomState(seed)

    def uniform(*shape):
        return rng.uniform(-scale, scale, shape).astype(dtype)

    if x is None:
        x = rng.randint(0, V, (T, B))
    x = np.asarray(x, 'int32')
    first = {'vectors': lambda: [uniform(T, B, K)], 'onehot': lambda: [x], 'encoded': lambda: [x, uniform(V, K), uniform(K)]}[source]()
    return first + [uniform(B, H), uniform(V if source == 'onehot' else K, 3 * H), uniform(H, 3 * H), uniform(3 * H)]


def naive(source, inputs):
    s0, U, W, b = inputs[-4:]
    first = inputs[:-4] if source != 'onehot' else [inputs[0], len(U)]
    return naive_gru(naive_vectors(source, first), s0, U, W, b)


# --- The GRU's values -----------------------------------------------------------------------------------------

SHAPES = [dict(T=1, B=1, H=1, K=1, V=2), dict(T=1, B=3, H=3, K=2, V=2), dict(T=6, B=1, H=16, K=16, V=7),
          dict(T=2, B=5, H=17, K=3, V=40), dict(T=9, B=2, H=3, K=17, V=2), dict(T=4, B=4, H=1, K=5, V=11)]


@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('shape', SHAPES, ids=lambda s: '-'.join(f'{k}{v}' for k, v in s.items()))
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_gru_agrees_with_the_naive_loop(source, shape, dtype):
    inputs = grucase(source, dtype=dtype, **shape)
    before = [i.copy() for i in inputs]
    S, last, G = perform(ops.GRU(source), *inputs)
    H, steps, B = shape['H'], shape['T'], shape['B']
    assert (S.shape, last.shape, G.shape) == ((steps, B, H), (B, H), (steps, B, 3 * H))
    assert S.dtype == last.dtype == G.dtype == dtype
    np.testing.assert_allclose(S, naive(source, inputs), atol=1e-6 if dtype == 'float32' else 1e-14)
    np.testing.assert_array_equal(last, S[-1])
    for given_, kept in zip(inputs, before):
        np.testing.assert_array_equal(given_, kept)


@settings(max_examples=40, deadline=None)
@given(source=st.sampled_from(SOURCES), steps=st.integers(1, 5), B=st.integers(1, 4), H=st.sampled_from([1, 2, 3, 16, 17]),
       K=st.integers(1, 5), V=st.integers(2, 9), scale=st.sampled_from([0.1, 1, 4]), seed=st.integers(0, 9999))
def test_gru_agrees_with_the_naive_loop_on_any_shape(source, steps, B, H, K, V, scale, seed):
    inputs = grucase(source, steps, B, H, K, V, seed=seed, scale=scale)
    S, last, _ = perform(ops.GRU(source), *inputs)
    np.testing.assert_allclose(S, naive(source, inputs), atol=1e-12)
    np.testing.assert_array_equal(last, S[-1])


@pytest.mark.parametrize('source', ['onehot', 'encoded'])
@pytest.mark.parametrize('x', [[[4, 4], [4, 4], [4, 4]], [[0, 1], [1, 0], [0, 0]], [[4, 3], [2, 1], [0, 4]], [[0, 0], [0, 0], [0, 1]]],
                         ids=['all the same', 'two', 'nearly all different', 'all but one'])
def test_repeated_characters_agree_with_the_naive_loop(source, x):
    inputs = grucase(source, x=x)
    np.testing.assert_allclose(perform(ops.GRU(source), *inputs)[0], naive(source, inputs), atol=1e-14)


@pytest.mark.parametrize('source', SOURCES)
def test_saturated_gates_agree_with_the_naive_loop(source):
    inputs = grucase(source, T=5, B=3, H=4, scale=20)
    S, _, G = perform(ops.GRU(source), *inputs)
    gates = G[:, :, :8]
    assert (gates == 0).any() and (gates == 1).any() and gates.min() >= 0 and gates.max() <= 1
    np.testing.assert_allclose(S, naive(source, inputs), atol=1e-12)


def test_gates_wide_open_and_shut_give_the_states_that_the_formula_says():
    """By hand: z = 1 keeps the state for ever; z = 0 and r = 0 gives tanh(x Uh + bh), whatever the state was."""
    X, s0, U, W, b = grucase('vectors', T=3, B=2, H=2, K=2)
    b[:2] = 1e4
    np.testing.assert_array_equal(perform(ops.GRU(), X, s0, U, W, b)[0], np.stack([s0] * 3))
    b[:4] = -1e4
    np.testing.assert_allclose(perform(ops.GRU(), X, s0, U, W, b)[0], np.tanh(X @ U[:, 4:] + b[4:]), rtol=1e-13)


def test_huge_weights_stay_finite():
    inputs = grucase('encoded', T=6, dtype='float32', scale=1e4)
    S, _, _ = perform(ops.GRU('encoded'), *inputs)
    assert np.isfinite(S).all() and abs(S).max() <= 1e4


def test_an_array_for_which_there_is_no_memory_is_refused_in_one_sentence_that_says_what_to_do():
    """2 ** 58 numbers: more bytes than a processor addresses."""
    storage = [None]
    with pytest.raises(MemoryError, match=r'^there is no memory for an array of 1,152,921,504,607 MB: use a smaller batchsize, seq_len'):
        ops.buffer(storage, (2 ** 29, 2 ** 29), 'float32')
    assert storage == [None]


def test_compiled_gru_reuses_its_buffers_without_touching_what_it_gave_before():
    inputs = [symbol(i) for i in grucase('onehot')]
    f = engine.compilefunction(inputs, ops.GRU('onehot')(*inputs)[:2])
    first, second = grucase('onehot', seed=1), grucase('onehot', seed=2)
    S1, last1 = f(*first)
    S2, last2 = f(*second)
    f(*grucase('onehot', T=7, B=1, seed=3))
    np.testing.assert_allclose(S2, naive('onehot', second), atol=1e-14)
    np.testing.assert_allclose(S1, naive('onehot', first), atol=1e-14)
    np.testing.assert_array_equal(last1, S1[-1])
    np.testing.assert_array_equal(last2, S2[-1])


@pytest.mark.parametrize('how', ['numpy', 'native'])
def test_the_last_state_is_no_part_of_a_buffer_that_the_next_call_writes_again(how):
    """A shared variable may take it as its value, and the next call then reads it while it fills its buffers."""
    if how == 'native' and native.library() is None:
        pytest.skip('no kernels here')
    op, inputs = ops.GRU('onehot'), grucase('onehot', dtype='float32')
    node = op.make_node(*map(symbol, inputs))
    work = op.kernel(node) if how == 'native' else lambda *given: op.perform(node, *given)
    outputs = [[None] for _ in node.outputs]
    work(inputs, outputs)
    S, last = outputs[0][0].copy(), outputs[1][0]
    assert not any(np.shares_memory(last, outputs[i][0]) for i in (0, 2))
    inputs[-4] = last
    work(inputs, outputs)
    np.testing.assert_array_equal(last, S[-1])
    np.testing.assert_allclose(outputs[0][0], naive('onehot', [*inputs[:-4], S[-1], *inputs[-3:]]), atol=1e-6)


@pytest.mark.parametrize('source, which', [('vectors', i) for i in range(5)] + [('onehot', i) for i in range(1, 5)]
                         + [('encoded', i) for i in range(1, 7)])
def test_nan_in_an_input_comes_out_of_the_gru(source, which):
    inputs = grucase(source)
    row = inputs[0][0, 0] if (source, which) in (('onehot', 2), ('encoded', 1)) else 0      # of a character that occurs
    inputs[which][row] = np.nan
    S, last, _ = perform(ops.GRU(source), *inputs)
    assert np.isnan(S).any() and np.isnan(last).any()


@pytest.mark.parametrize('source', SOURCES)
def test_nan_in_a_state_gradient_comes_out_of_the_gru_gradient(source):
    inputs = grucase(source)
    S, _, G = perform(ops.GRU(source), *inputs)
    dS = np.zeros_like(S)
    dS[-1, 0, 0] = np.nan
    for gradient in perform(ops.GRUGrad(source), *inputs, S, G, dS):
        assert np.isnan(gradient).any()


# --- Wrong shapes and indices ----------------------------------------------------------------------------------

@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('what, shape', [('s0', (3, 3)), ('s0', (2, 4)), ('U', (4, 8)), ('W', (3, 8)), ('W', (4, 9)), ('b', (8,))])
def test_a_wrong_shape_of_a_gru_layer_is_named(source, what, shape):
    inputs = grucase(source)                    # T 3, B 2, H 3, K 4, V 5
    inputs[{'s0': -4, 'U': -3, 'W': -2, 'b': -1}[what]] = np.zeros(shape)
    with pytest.raises(ValueError, match=str(shape).replace('(', r'\(').replace(')', r'\)')):
        perform(ops.GRU(source), *inputs)


@pytest.mark.parametrize('what, shape', [('E', (5, 6)), ('a', (6,)), ('U', (6, 9))])
def test_a_wrong_size_of_an_encoded_vector_is_named(what, shape):
    inputs = grucase('encoded')
    inputs[{'E': 1, 'a': 2, 'U': -3}[what]] = np.zeros(shape)
    with pytest.raises(ValueError, match=str(shape).replace('(', r'\(').replace(')', r'\)')):
        perform(ops.GRU('encoded'), *inputs)


@pytest.mark.parametrize('K', [2, 3, 8])
def test_a_wrong_size_of_a_vector_is_named(K):
    inputs = grucase('vectors')                 # U has 4 rows
    inputs[0] = np.zeros((3, 2, K))
    with pytest.raises(ValueError, match=rf'\(3, 2, {K}\).*U \(4, 9\)|U \(4, 9\).*\(3, 2, {K}\)'):
        perform(ops.GRU(), *inputs)


def test_no_steps_at_all_are_refused():
    with pytest.raises(ValueError, match='at least one step'):
        perform(ops.GRU('onehot'), *grucase('onehot', T=0, x=np.zeros((0, 2))))


@pytest.mark.parametrize('source', ['onehot', 'encoded'])
@pytest.mark.parametrize('char', [-1, 5, 1000])
def test_a_character_outside_the_vocabulary_is_refused(source, char):
    inputs = grucase(source)
    inputs[0][1, 1] = char
    with pytest.raises(IndexError, match=rf'0 \.\. 4, got .*{char}'):
        perform(ops.GRU(source), *inputs)


def softmaxcase(steps=3, B=2, H=4, V=5, dtype='float64', seed=0, scale=1.0):
    rng = np.random.RandomState(seed)
    S, W, c = (rng.uniform(-scale, scale, shape).astype(dtype) for shape in ((steps, B, H), (H, V), (V,)))
    return S, W, c, rng.randint(0, V, (steps, B)).astype('int32')


@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('which, shape', [(0, (3, 3, 4)), (0, (3, 2, 3)), (0, (3, 2, 5)), (1, (5, 5)), (2, (6,)), (3, (3, 3))])
def test_a_wrong_shape_in_softmaxloss_is_named(gradients, which, shape):
    inputs = list(softmaxcase())
    inputs[which] = np.zeros(shape, inputs[which].dtype)
    with pytest.raises(ValueError, match='SoftmaxLoss takes'):
        perform(ops.SoftmaxLoss(gradients), *inputs)


@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('char', [-1, 5])
def test_a_character_to_predict_outside_the_vocabulary_is_refused(gradients, char):
    S, V, c, y = softmaxcase()
    y[0, 1] = char
    with pytest.raises(IndexError, match=r'0 \.\. 4'):
        perform(ops.SoftmaxLoss(gradients), S, V, c, y)


# --- Gradients against finite differences, in float64 ------------------------------------------------------------

def verify(fun, points, seed=0):
    """Theano's verify_grad of `fun` at `points`, to an absolute 1e-6 (its finite differences are no better)."""
    theano.gradient.verify_grad(fun, [np.asarray(p, np.float64) for p in points], rng=np.random.RandomState(seed), n_tests=1,
                                abs_tol=1e-6, rel_tol=1e-6, mode=PLAIN)


def awayfromkinks(inputs, source):
    """Whether no gate lies within 1e-3 of a kink, where finite differences would be wrong."""
    s0, U, W, b = inputs[-4:]
    X = naive_vectors(source, inputs[:-4] if source != 'onehot' else [inputs[0], len(U)])
    S, H = naive(source, inputs), len(W)
    before = np.concatenate([s0[None], S[:-1]])
    gates = 0.2 * (X @ U[:, :2 * H] + before @ W[:, :2 * H] + b[:2 * H]) + 0.5
    return np.abs(gates).min() > 1e-3 and np.abs(gates - 1).min() > 1e-3


GRADIENTS = [dict(), dict(T=1, B=1, H=1, K=1, V=2), dict(T=4, B=1, H=2, K=3, V=3), dict(T=3, B=3, H=3, scale=3)]


@pytest.mark.parametrize('used', ['S', 'last', 'both'])
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('shape', GRADIENTS, ids=['plain', 'ones', 'B1', 'saturated'])
def test_gru_gradient_of_each_input_agrees_with_finite_differences(source, used, shape):
    inputs = grucase(source, seed=3, **shape)
    assert awayfromkinks(inputs, source)
    op, fixed = ops.GRU(source), [i for i in inputs if i.dtype.kind == 'i']
    weights = np.random.RandomState(9).uniform(-1, 1, inputs[-4].shape)

    def fun(*reals):
        S, last, _ = op(*fixed, *reals)
        if used == 'S':
            return S
        return last if used == 'last' else T.sum(S * S) + T.sum(T.tanh(last) * weights)

    points = inputs[len(fixed):]
    verify(fun, points)
    if shape == {}:                             # and alone, where nothing else is asked for
        for i in range(len(points)):
            verify(lambda p: fun(*points[:i], p, *points[i + 1:]), [points[i]])


@pytest.mark.parametrize('source', ['onehot', 'encoded'])
@pytest.mark.parametrize('x', [[[2, 2], [2, 2], [2, 2]], [[4, 3], [2, 1], [0, 4]]], ids=['all the same', 'all'])
def test_gru_gradient_by_character_agrees_with_finite_differences(source, x):
    inputs = grucase(source, x=x)
    verify(lambda *reals: ops.GRU(source)(inputs[0], *reals)[0], inputs[1:])


def test_characters_that_do_not_occur_have_zero_gradient():
    inputs = grucase('onehot', x=[[1, 3], [3, 1]], T=2, V=6)
    symbols = [symbol(i) for i in inputs]
    S, last, _ = ops.GRU('onehot')(*symbols)
    dU, = theano.function(symbols, [theano.grad(T.sum(S), symbols[2])], mode=PLAIN, accept_inplace=True, on_unused_input='ignore')(*inputs)
    assert (dU[[0, 2, 4, 5]] == 0).all() and (dU[[1, 3]] != 0).any(axis=1).all()


def test_gradients_flow_through_stacked_layers():
    first, second = grucase('encoded', H=3, K=2), grucase('vectors', K=3, H=2, seed=1)

    def fun(E, a, s0, U, W, b, t0, U1, W1, b1):
        S, last, _ = ops.GRU('encoded')(first[0], E, a, s0, U, W, b)
        S1, last1, _ = ops.GRU()(S, t0, U1, W1, b1)
        return T.sum(S1 ** 2) + T.sum(last) + 2 * T.sum(last1 ** 3)

    verify(fun, first[1:] + second[1:])


def test_the_gates_that_a_gru_saves_are_not_to_be_differentiated():
    symbols = [symbol(i) for i in grucase('vectors')]
    G = ops.GRU()(*symbols)[2]
    with pytest.raises((ValueError, theano.gradient.DisconnectedInputError)):
        theano.grad(T.sum(G), symbols[0])


COSTS = {'the loss': lambda loss: loss, '3 * loss': lambda loss: 3 * loss, '-loss ** 2': lambda loss: -loss ** 2,
         'loss / 7 + 1': lambda loss: loss / 7 + 1}


@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('cost', COSTS)
@pytest.mark.parametrize('shape', [(3, 2, 4, 5), (1, 1, 1, 2), (2, 3, 2, 2)])
def test_softmaxloss_gradient_agrees_with_finite_differences(gradients, cost, shape):
    S, V, c, y = softmaxcase(*shape)

    def fun(S, V, c):
        loss = ops.SoftmaxLoss(gradients)(S, V, c, y)
        return COSTS[cost](loss[0] if gradients else loss)

    verify(fun, [S, V, c])


@pytest.mark.parametrize('which', range(3))
def test_softmaxloss_gradient_of_one_input_alone(which):
    *points, y = softmaxcase()
    verify(lambda p: ops.SoftmaxLoss()(*points[:which], p, *points[which + 1:], y), [points[which]])


def test_softmaxloss_gives_its_gradients_as_outputs():
    """The outputs dS, dV, dc against finite differences of the hand-written loss."""
    S, V, c, y = softmaxcase()
    _, *gradients = perform(ops.SoftmaxLoss(True), S, V, c, y)
    for i, got in enumerate(gradients):
        want = np.zeros_like(got)
        for index in np.ndindex(*got.shape):
            ends = []
            for step in (1e-5, -1e-5):
                point = [S.copy(), V.copy(), c.copy()]
                point[i][index] += step
                ends.append(naive_nll(point[0] @ point[1] + point[2], y))
            want[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(got, want, atol=1e-9)


def test_softmaxloss_gives_no_second_derivatives():
    S, V, c, y = map(symbol, softmaxcase())
    dS = ops.SoftmaxLoss(True)(S, V, c, y)[1]
    with pytest.raises((ValueError, theano.gradient.DisconnectedInputError)):
        theano.grad(T.sum(dS), V)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_scale_multiplies_and_keeps_the_type(dtype):
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    for factor in (1.0, 0.0, -2.5):
        got, = perform(ops.Scale(), array, np.float64(factor))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, array * factor)
    assert np.isnan(perform(ops.Scale(), array, np.float64('nan'))[0]).all()


# --- A network that Theano differentiates by itself ------------------------------------------------------------

def unrolled(model, x, s0, steps):
    """(logits, a list of (B, V), one a step; last states, a list of (B, H)) of the network in Theano's elementary operations.

    x: a NumPy array (T, B); s0: an expression (L, B, H). The formulas of DESIGN section 2, gate by gate.
    """
    p, H = model.params, model.state_size

    def gate(v):
        return T.clip(0.2 * v + 0.5, 0, 1)

    states, logits = [s0[l] for l in range(model.layers)], []
    for t in range(steps):
        value = None if 'E' not in p else T.tanh(p['E'][x[t]] + p['a'])
        for l in range(model.layers):
            U, W, b, s = p[f'U{l}'], p[f'W{l}'], p[f'b{l}'], states[l]
            xU = p['U0'][x[t]] if value is None else T.dot(value, U)
            z = gate(xU[:, :H] + T.dot(s, W[:, :H]) + b[:H])
            r = gate(xU[:, H:2 * H] + T.dot(s, W[:, H:2 * H]) + b[H:2 * H])
            h = T.tanh(xU[:, 2 * H:] + T.dot(r * s, W[:, 2 * H:]) + b[2 * H:])
            value = states[l] = (1 - z) * h + z * s
        logits.append(T.dot(value, p['V']) + p['c'])
    return logits, states


def symbolic_nll(logits, y):
    """Mean negative log-likelihood of y (T, B), an array, from a list of T expressions (B, V)."""
    total = 0
    for t, rows in enumerate(logits):
        exps = T.exp(rows)
        for row, char in enumerate(y[t]):
            total = total - T.log(exps[row, int(char)] / T.sum(exps[row]))
    return total / y.size


@pytest.mark.parametrize('modeltype', ['GRUEncode', 'GRUResize'])
def test_theano_differentiates_an_unrolled_network_to_the_same_gradients(modeltype):
    steps, B, H, V, L = 4, 2, 3, 5, 2
    model = layers.MODELTYPES[modeltype](V, L, H, seed=11)
    rng = np.random.RandomState(5)
    model.set_params({name: rng.uniform(-1.2, 1.2, value.shape) for name, value in model.get_params().items()})
    x, y = rng.randint(0, V, (2, steps, B)).astype('int32')
    s0_value = rng.uniform(-1, 1, (L, B, H)).astype('float32')
    weights = rng.uniform(-1, 1, (L, B, H)).astype('float32')      # so that the cost depends on the last states too
    s0 = T.tensor3(dtype='float32')
    wrt = list(model.params.values()) + [s0]

    def withlast(loss, lasts):
        return 2 * loss + sum(T.sum(lasts[l] * weights[l]) for l in range(L))

    def values(loss, lasts):
        cost = withlast(loss, lasts)
        return theano.function([s0], [loss, *theano.grad(cost, wrt)], mode=PLAIN, accept_inplace=True)(s0_value)

    logits, lasts = unrolled(model, x, s0, steps)
    loss, *gradients = values(symbolic_nll(logits, y), lasts)
    s0s = [s0[l] for l in range(L)]
    forward_logits, forward_last = model.forward(x, s0)
    ways = {'forward': (symbolic_nll([forward_logits[t] for t in range(steps)], y), forward_last),
            'loss': model.loss(x, y, s0s), 'loss with gradients': model.loss(x, y, s0s, gradients=True)}
    np.testing.assert_allclose(loss, naive_nll(naive_logits(model.get_params(), x, s0_value)[0], y), rtol=1e-5)
    for way, expressions in ways.items():
        got_loss, *got = values(*expressions)
        np.testing.assert_allclose(got_loss, loss, rtol=1e-5, err_msg=way)
        for variable, value, want in zip(wrt, got, gradients):
            assert value.dtype == np.float32 and np.abs(want).max() > 1e-4
            np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-6, err_msg=f'{way}: {variable.name or "s0"}')


# --- Softmax and its loss -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('shape', [(1, 1, 1, 2), (3, 2, 4, 5), (5, 1, 3, 1), (2, 4, 17, 40)])
def test_softmaxloss_agrees_with_a_hand_written_log_softmax(gradients, dtype, shape):
    S, V, c, y = softmaxcase(*shape, dtype=dtype, scale=2.0)
    loss = perform(ops.SoftmaxLoss(gradients), S, V, c, y)[0]
    assert loss.dtype == np.float64 and loss.shape == ()
    want = naive_nll(S.astype(np.float64) @ V.astype(np.float64) + c, y)
    np.testing.assert_allclose(loss, want, rtol=1e-5 if dtype == 'float32' else 1e-12, atol=1e-12)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    S, V, c, y = softmaxcase(V=7)
    np.testing.assert_allclose(perform(ops.SoftmaxLoss(), S, V * 0, c * 0, y)[0], np.log(7), rtol=1e-14)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_huge_logits_stay_finite(dtype):
    """By hand: logits 1e4 (the first), 0, -1e4: predicting them costs 0, 1e4 and 2e4."""
    S, V = np.ones((3, 1, 1), dtype), np.array([[1e4, 0, -1e4]], dtype)
    loss, dS, dV, dc = perform(ops.SoftmaxLoss(True), S, V, np.zeros(3, dtype), np.array([[0], [1], [2]], 'int32'))
    np.testing.assert_allclose(loss, 1e4, rtol=1e-6)
    np.testing.assert_allclose(dc, [2 / 3, -1 / 3, -1 / 3], rtol=1e-6)
    np.testing.assert_allclose(dV, [[2 / 3, -1 / 3, -1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(dS.ravel(), [0, 1e4 / 3, 2e4 / 3], rtol=1e-6)


@pytest.mark.parametrize('rows', [1, 2, 5, 7, 14, 15])
def test_rows_at_a_time_do_not_change_the_loss_nor_its_gradients(monkeypatch, rows):
    inputs = softmaxcase(7, 2, 3, 4)
    monkeypatch.setattr(ops.SoftmaxLoss, 'ROWS', 10 ** 6)
    whole = perform(ops.SoftmaxLoss(True), *inputs)
    monkeypatch.setattr(ops.SoftmaxLoss, 'ROWS', rows)
    np.testing.assert_allclose(perform(ops.SoftmaxLoss(False), *inputs)[0],
                               naive_nll(inputs[0] @ inputs[1] + inputs[2], inputs[3]), rtol=1e-13)
    for part, want in zip(perform(ops.SoftmaxLoss(True), *inputs), whole):
        np.testing.assert_allclose(part, want, rtol=1e-12, atol=1e-15)
    monkeypatch.setattr(ops.SoftmaxLoss, 'LOGITS', 3)       # less than a row of logits
    for part, want in zip(perform(ops.SoftmaxLoss(True), *inputs), whole):
        np.testing.assert_allclose(part, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('gradients', [False, True])
def test_logits_of_a_large_vocabulary_never_exist_whole(gradients):
    """1,500 characters of 10,000 take 60 MB of logits; a block of them is 16 MB, and all else here is small."""
    rng = np.random.default_rng(0)
    S, V, c = uniform(rng, 75, 20, 4), uniform(rng, 4, 10_000), uniform(rng, 10_000)
    y = rng.integers(0, 10_000, (75, 20), 'int32')
    tracemalloc.start()
    try:
        loss = perform(ops.SoftmaxLoss(gradients), S, V, c, y)[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24e6
    rows = S.reshape(-1, 4).astype('float64') @ V + c
    want = np.log(np.exp(rows).sum(1)) - rows[np.arange(1500), y.ravel()]
    np.testing.assert_allclose(loss, want.mean(), rtol=1e-6)


@pytest.mark.parametrize('which', range(3))
@pytest.mark.parametrize('gradients', [False, True])
def test_nan_in_an_input_comes_out_of_softmaxloss(which, gradients):
    inputs = list(softmaxcase())
    inputs[which].flat[0] = np.nan
    for output in perform(ops.SoftmaxLoss(gradients), *inputs):
        assert np.isnan(output).any()


def test_softmaxloss_leaves_its_inputs_alone():
    inputs = softmaxcase()
    before = [i.copy() for i in inputs]
    perform(ops.SoftmaxLoss(True), *inputs)
    for given_, kept in zip(inputs, before):
        np.testing.assert_array_equal(given_, kept)


def test_the_mean_over_one_device_is_the_array_itself():
    x = T.vector(dtype='float32')
    value = np.array([1, -2.5, 3], 'float32')
    np.testing.assert_array_equal(engine.compilefunction([x], ops.AllReduce()(x * 2))(value), value * 2)


@pytest.mark.skipif(engine.name == 'pytensor', reason='PyTensor has a linker to JAX')
def test_classic_theano_has_no_way_to_jax():
    with pytest.raises(ImportError, match='this is classic Theano'):
        importlib.import_module('ops_jax')
