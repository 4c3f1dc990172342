"""All layers as one Op: its `perform` against the naive network and Theano's gradients of the chain, JAX's waves against `perform`."""

import importlib.util

import numpy as np
import pytest

import engine
import layers
from conftest import naive_layernorm, naive_states, perform, symbol, uniform
from device import CPU, Accelerator
from engine import T, theano
from hyperparams import HyperParams
from kernelcases import SOURCES, assert_close, grucase, truth
from modelcases import PLAIN
from stack import GRUStack, GRUStackGrad
from test_dropout import SEED, UPDATES

needsjax = pytest.mark.skipif(engine.name != 'pytensor' or importlib.util.find_spec('jax') is None,
                              reason='needs PyTensor and JAX (requirements-jax.txt)')
if engine.name == 'pytensor' and importlib.util.find_spec('jax'):
    import jax

    import ops_jax
    import stack_jax
    from test_ops_jax import converted, equations, onjax


def stackcase(op, T=5, B=2, H=7, K=4, V=6, seed=0):
    """Inputs of a GRUStack Op in float32."""
    rng = np.random.RandomState(seed)
    *source, _, U, W, b = grucase(op.source, T, B, H, K, V, seed)
    scale = H ** -0.5
    others = [[uniform(rng, H, 3 * H, scale=scale), uniform(rng, H, 3 * H, scale=scale), uniform(rng, 3 * H)] for _ in range(op.layers - 1)]
    return [*source, *(uniform(rng, B, H) for _ in range(op.layers)), U, W, b, *sum(others, []),
            *([np.float32(0.3), np.int64(SEED), np.int64(UPDATES)] if op.dropout else [])]


def gradcase(op, states=False, **shape):
    """(Inputs of its gradient, what is kept for it being `perform`'s; the same with what may be anything NaN)."""
    inputs, L = stackcase(op, **shape), op.layers
    outputs = perform(op, *inputs)
    top, S, (s, zr, h) = outputs[0], outputs[1:L + 1], outputs[2 * L + 1:]
    rng = np.random.RandomState(9)
    behind = [uniform(rng, *top.shape) for _ in range(1 + L * states)]
    step = np.arange(len(s))[:, None] - np.arange(L)
    nostep = ~((step >= 0) & (step < len(top)))
    anything = [np.where(nostep[:, :, None, None], np.float32(np.nan), gates) for gates in (zr, h)]
    return [*inputs, *S, s, zr, h, *behind], [*inputs, *S, s, *anything, *behind]


def double(inputs):
    return [i.astype('float64') if i.dtype == 'float32' and i.ndim else i for i in inputs]


# --- The Op and its gradient in NumPy ---------------------------------------------------------------------------------

@pytest.mark.parametrize('layernorm', [False, True])
@pytest.mark.parametrize('source, L', [('encoded', 3), ('onehot', 2), ('encoded', 1)])
def test_states_are_those_of_the_naive_network(source, L, layernorm):
    op = GRUStack(source, 'float32', L, layernorm)
    inputs = stackcase(op)
    read, s0s, weights, _ = op.split(inputs)
    params = dict(zip(('E', 'a'), read[1:])) | {f'{name}{l}': value for l, layer in enumerate(weights) for name, value in zip('UWb', layer)}
    top, *outputs = perform(op, *double(inputs))
    expected = naive_states(params, read[0], np.array(s0s), layernorm)
    np.testing.assert_allclose(outputs[:L], expected, atol=1e-9)
    np.testing.assert_array_equal(outputs[L:2 * L], [S[-1] for S in outputs[:L]])
    np.testing.assert_allclose(top, naive_layernorm(expected[-1]) if layernorm else expected[-1], atol=1e-9)


def test_what_is_kept_lies_in_waves():
    """Layer l's step t in wave t + l; s0 before its steps, the last state behind them; s' = (1 - z) h + z s ties the three."""
    op = GRUStack('encoded', 'float32', 3)
    inputs = double(stackcase(op, T=4))
    s0s, S, (s, zr, h) = op.split(inputs)[1], *(lambda out: (out[1:4], out[7:]))(perform(op, *inputs))
    assert s.shape == h.shape == (6, 3, 2, 7) and zr.shape == (6, 3, 2, 14)
    for w, l in np.ndindex(6, 3):
        t = w - l
        np.testing.assert_array_equal(s[w, l], s0s[l] if t <= 0 else S[l][min(t, 4) - 1])
        if 0 <= t < 4:
            z = zr[w, l, :, :7]
            np.testing.assert_allclose((1 - z) * h[w, l] + z * s[w, l], S[l][t], atol=1e-12)


@pytest.mark.parametrize('source, L, layernorm, dropout, behind', [
    ('encoded', 3, False, False, 'top'), ('onehot', 2, True, True, 'top'), ('vectors', 2, True, False, 'all'),
    ('encoded', 2, False, True, 'S'), ('encoded', 2, False, False, 'last'), ('onehot', 1, False, False, 'all')])
def test_its_gradient_is_theanos_of_the_chain(source, L, layernorm, dropout, behind):
    """Of a cost in what is passed up, in states, in last states, or in all of them."""
    op = GRUStack(source, 'float32', L, layernorm, dropout)
    inputs = double(stackcase(op))
    symbols, rng = [symbol(i) for i in inputs], np.random.RandomState(3)
    wrt = [s for s, isreal in zip(symbols, op.differentiable(len(symbols))) if isreal]
    top, states, lasts, _ = op.chain(*op.split(symbols))
    one = op(*symbols)
    factors = [rng.uniform(-1, 1, shape) for shape in [(5, 2, 7)] * (1 + L) + [(2, 7)] * L]
    counts = {'top': range(1), 'S': range(1, 2), 'last': range(1 + L, 1 + 2 * L), 'all': range(1 + 2 * L)}[behind]
    gradients = [theano.grad(sum(T.sum(outputs[i] * factors[i]) for i in counts), wrt, disconnected_inputs='ignore')
                 for outputs in ([top, *states, *lasts], one)]
    got = theano.function(symbols, sum(gradients, []), mode=PLAIN, accept_inplace=True, on_unused_input='ignore')(*inputs)
    for a, b in zip(got[:len(wrt)], got[len(wrt):]):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-13)
    assert all(np.abs(gradient).max() > 1e-3 for gradient in got[-3 * L:][:3])         # those of layer 0's weights


def test_what_is_kept_has_no_gradient():
    op = GRUStack('encoded', 'float32', 2)
    symbols = [symbol(i) for i in stackcase(op)]
    with pytest.raises((ValueError, theano.gradient.DisconnectedInputError)):
        theano.grad(T.sum(op(*symbols)[-1]), symbols[1])


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="computes in float32 or bfloat16, got 'int8'"):
        GRUStack('encoded', 'int8', 2)


# --- Where networks use it --------------------------------------------------------------------------------------------

@pytest.mark.parametrize('device, L, expected', [
    (CPU, 2, 'GRU'), (Accelerator('jax', None), 2, 'GRUStack'), (Accelerator('jax', None), 1, 'GRU')])
def test_only_graphs_for_accelerators_hold_layers_as_one(device, L, expected):
    """And only those compiled for them: expressions for a cost of the user's own are of the layers' Ops."""
    model = layers.GRUEncode(5, L, 4, 1, HyperParams())
    model.device = device
    x = T.matrix('x', dtype='int32')

    def ops(network):
        loss, lasts = network.loss(x, x, model.states, gradients=True)
        names, left = set(), [loss, *lasts]
        while left:
            node = left.pop().owner
            if node:
                names.add(type(node.op).__name__)
                left += node.inputs
        return names & {'GRU', 'GRUStack'}
    assert ops(model._within('float32')) == {expected} and ops(model) == {'GRU'}


# --- JAX's waves ------------------------------------------------------------------------------------------------------

SHAPES = [dict(L=1), dict(L=2), dict(L=3), dict(L=4, T=2), dict(L=3, T=1, B=1), dict(L=2, T=1, B=1, H=1, K=1, V=2),
          dict(L=2, T=9, B=13, H=33, V=300), dict(L=3, T=6, B=1, H=16)]
KINDS = [dict(), dict(layernorm=True), dict(dropout=True), dict(layernorm=True, dropout=True)]
EVERY = [(source, kind, shape, unroll) for source in SOURCES for kind in KINDS for shape in SHAPES for unroll in (1, 4)]
SOME = [(SOURCES[i % 3], KINDS[i % 4], shape, 1 + 3 * (i // 2 % 2)) for i, shape in enumerate(SHAPES)]


@needsjax
@pytest.mark.parametrize('source, kind, shape, unroll',
                         SOME + [pytest.param(*each, marks=pytest.mark.long) for each in EVERY if each not in SOME])
def test_waves_agree_with_numpy(source, kind, shape, unroll, monkeypatch):
    """The gradient also where all that may be anything in what is kept is NaN."""
    monkeypatch.setitem(stack_jax.UNROLL, 'cpu', unroll)
    shape = dict(shape)
    L = shape.pop('L')
    op = GRUStack(source, 'float32', L, **kind)
    inputs = stackcase(op, **shape)
    got, expected = onjax(op, *inputs), truth(op, double(inputs))
    assert [(g.shape, g.dtype) for g in got] == [(e.shape, 'float32') for e in expected]
    assert_close(got[:2 * L + 2], expected[:2 * L + 2], 2e-6)       # s too, which is of each wave
    for l in range(L):
        steps = slice(l, l + len(got[0]))
        assert_close([kept[steps, l] for kept in got[-2:]], [kept[steps, l] for kept in expected[-2:]], 2e-6)
    states = bool(kind)
    clean, anything = gradcase(op, states, **shape)
    assert_close(onjax(GRUStackGrad(op, states), *anything), truth(GRUStackGrad(op, states), double(clean)), 2e-6)


@needsjax
@pytest.mark.parametrize('source, kind', [('encoded', dict()), ('onehot', dict(layernorm=True, dropout=True))])
def test_waves_in_float64_stay_so(source, kind):
    op = GRUStack(source, 'float32', 3, **kind)
    inputs, (_, behind) = double(stackcase(op)), gradcase(op)
    clean = double(gradcase(op)[0])
    for got, expected in ((onjax(op, *inputs)[:8], perform(op, *inputs)[:8]),
                          (onjax(GRUStackGrad(op), *double(behind)), perform(GRUStackGrad(op), *clean))):
        for g, e in zip(got, expected):
            assert g.dtype == 'float64'
            np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12)


@needsjax
@pytest.mark.parametrize('source, kind', [('encoded', dict()), ('onehot', dict(layernorm=True, dropout=True))])
def test_operands_are_rounded_to_bfloat16_where_numpy_rounds_them(source, kind):
    """Two results that round alike differ by some 1e-7, by 1e-5 where a number falls to the other side; from float32's by some 1e-3."""
    op, whole = (GRUStack(source, precision, 2, **kind) for precision in ('bfloat16', 'float32'))
    case = gradcase(whole, T=6, B=13, H=65, K=37, V=40)[0]
    inputs = stackcase(whole, T=6, B=13, H=65, K=37, V=40)
    for ops, given, count in (((op, whole), inputs, 5), ((GRUStackGrad(op), GRUStackGrad(whole)), case, None)):
        got, rounded, exact = onjax(ops[0], *given)[:count], perform(ops[0], *given)[:count], perform(ops[1], *given)[:count]
        for g, a, b in zip(got, rounded, exact):
            assert np.linalg.norm(g - a) < 0.2 * np.linalg.norm(a - b)


@needsjax
def test_what_overflows_outside_a_layers_steps_reaches_no_result():
    """Layer 0 forgets a state of +-3e38 at once, but before its first step the layer above reads that normalised: inf - inf is NaN."""
    op = GRUStack('encoded', 'float32', 3, layernorm=True)
    inputs = stackcase(op)
    _, s0s, ((_, W, b), *_), _ = op.split(inputs)
    s0s[0][:, ::2], s0s[0][:, 1::2], W[:], b[:14] = 3e38, -3e38, 0, -100
    got, expected = onjax(op, *inputs), perform(op, *inputs)
    assert np.isnan(got[-1]).any() and all(np.isfinite(e).all() for e in expected)
    assert_close(got[:7], expected[:7], 2e-6)
    dtop = uniform(np.random.RandomState(1), *got[0].shape)
    gradients, wanted = (call(GRUStackGrad(op), *inputs, *outputs[1:4], *outputs[-3:], dtop)
                         for call, outputs in ((onjax, got), (perform, expected)))
    assert_close(gradients, wanted, 2e-6)


@needsjax
@pytest.mark.parametrize('source', ['onehot', 'encoded'])
def test_a_character_outside_the_vocabulary_gives_nan_in_its_row(source):
    op = GRUStack(source, 'float32', 3)
    inputs = stackcase(op)
    inputs[0][2, 1] = 6
    top, *S = onjax(op, *inputs)[:4]
    for states in (top, *S):
        assert np.isnan(states[2:, 1]).all() and np.isfinite(states[:, 0]).all() and np.isfinite(states[:2]).all()


@needsjax
@pytest.mark.parametrize('kind, products', [(dict(), (2, 2)), (dict(layernorm=True, dropout=True), (3, 2))])
def test_a_wave_takes_two_products_of_all_layers(kind, products):
    """Three where what a layer passes up isn't its states; and one loop for all layers, of T + L - 1 turns."""
    op = GRUStack('encoded', 'float32', 3, **kind)
    for each, inputs, count in zip((op, GRUStackGrad(op)), (stackcase(op), gradcase(op)[0]), products):
        symbols = [symbol(i) for i in inputs]
        with jax.enable_x64(True):
            jaxpr = jax.make_jaxpr(converted(symbols, each.make_node(*symbols).outputs))(*inputs).jaxpr
        loop, = (e for e in equations(jaxpr) if e.primitive.name == 'scan')
        assert sum(e.primitive.name == 'dot_general' for e in equations(loop.params['jaxpr'].jaxpr)) == count
        assert loop.params['length'] == 7


@needsjax
def test_dropout_of_a_share_of_the_rows_is_that_of_the_whole_batch():
    op = GRUStack('onehot', 'float32', 3, dropout=True)
    x, *others = stackcase(op, B=4)
    symbols = [symbol(i) for i in (x, *others)]
    with ops_jax.sharded('rows', 2):
        f = converted(symbols, op(*symbols)[:1])
    rows = [1, *[0] * 3, *[None] * (len(others) - 3)]
    split = [np.stack(np.split(i, 2, axis), axis) if axis is not None else i for i, axis in zip((x, *others), rows)]
    with jax.enable_x64(True):
        parts, = jax.jit(jax.vmap(lambda *values: f(*values), in_axes=rows, out_axes=1, axis_name='rows'))(*split)
    np.testing.assert_allclose(np.asarray(parts).reshape(5, 4, 7), perform(op, x, *others)[0], atol=1e-6)
