"""The Ops on JAX against their NumPy `perform`, which has its own proofs; a whole network; and what XLA is given to compute."""

import os
import subprocess
import sys

import numpy as np
import pytest

import engine

if engine.name == 'theano':
    pytest.skip("the linker to JAX is PyTensor's", allow_module_level=True)
jax = pytest.importorskip('jax', reason='JAX is not installed')

from pytensor.graph.fg import FunctionGraph
from pytensor.link.jax.dispatch import jax_funcify

import gru_jax  # noqa: F401 (used by code below)
import layers
import ops
import ops_jax
import rounding
import sampling_jax  # noqa: F401 (it makes its Ops known to JAX)
import stack_jax  # noqa: F401
from compiled import DROPOUT
from conftest import ROOT, perform, rates, symbol, uniform
from dropout import Dropout
from engine import T, theano
from hyperparams import HyperParams
from kernelcases import RULES, SOURCES, assert_close, gradcase, grucase, losscase, samplecase, truth, updatecase
from layernorm import LayerNorm, LayerNormGrad
from sampling import ReadText, SampleText
from test_dropout import SEED, UPDATES, naive_word
from update import CACHES, Update


def converted(inputs, outputs):
    """The function of arrays that the JAX linker makes of a graph, before it is compiled."""
    return jax_funcify(FunctionGraph(inputs, outputs, clone=True))


def compiled(op, inputs):
    """The compiled function of arrays like `inputs`, giving a list of NumPy arrays."""
    symbols = [symbol(i) for i in inputs]
    f = jax.jit(converted(symbols, op.make_node(*symbols).outputs))

    def call(*values):
        with jax.enable_x64(True):
            return [np.asarray(output) for output in f(*values)]
    return call


def onjax(op, *inputs):
    return compiled(op, inputs)(*inputs)


def assert_like_numpy(op, inputs, rtol=2e-6):
    """On JAX the Op gives the types and shapes of `perform`, and the values that it gives in float64."""
    inputs = [np.asarray(i) for i in inputs]
    got, like, expected = onjax(op, *inputs), perform(op, *map(np.array, inputs)), truth(op, map(np.array, inputs))
    assert [(g.shape, g.dtype) for g in got] == [(np.shape(a), np.asarray(a).dtype) for a in like]
    assert_close(got, expected, rtol)


def said(code):
    """What a process of its own prints that runs `code` with our modules in reach."""
    done = subprocess.run([sys.executable, '-W', 'error', '-c', f'import os, sys\nsys.path.insert(0, {ROOT!r})\n{code}'],
                          capture_output=True, text=True, env={**os.environ, 'RN_GRU_ENGINE': 'pytensor'})
    assert not done.returncode and not done.stderr, done.stderr
    return done.stdout


def test_importing_the_ops_leaves_floats_of_32_bits_the_default():
    assert said('import ops_jax, jax, pytensor\nprint(jax.config.jax_enable_x64, pytensor.config.floatX)') == 'False float32\n'


# --- GRU ----------------------------------------------------------------------------------------------------------

SHAPES = [dict(T=1, B=1, H=1, K=1, V=2), dict(T=4, B=1, H=16, K=5, V=3), dict(T=3, B=5, H=7, K=4, V=40), dict(T=7, B=50, H=3, K=2, V=300),
          dict(T=2, B=3, H=5, K=9, V=300)]


@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('shape', SHAPES, ids=lambda s: '-'.join(f'{k}{v}' for k, v in s.items()))
def test_gru_and_its_gradient_agree_with_numpy(source, shape):
    assert_like_numpy(ops.GRU(source), grucase(source, **shape))
    assert_like_numpy(ops.GRUGrad(source), gradcase(source, **shape))


@pytest.mark.parametrize('source', SOURCES)
def test_operands_are_rounded_to_bfloat16_where_numpy_rounds_them(source):
    """Two results that round alike differ by some 1e-7, by 1e-5 where a number falls to the other side; from float32's by some 1e-3."""
    case = gradcase(source, T=6, B=13, H=65, K=37, V=40)
    for op, inputs in ((ops.GRU, case[:-3]), (ops.GRUGrad, case)):
        got, rounded, whole = onjax(op(source, 'bfloat16'), *inputs), perform(op(source, 'bfloat16'), *inputs), perform(op(source), *inputs)
        for g, a, b in zip(got, rounded, whole):
            assert np.linalg.norm(g - a) < 0.2 * np.linalg.norm(a - b)


@pytest.mark.parametrize('source', SOURCES)
def test_gru_in_float64_stays_so(source):
    inputs = [i.astype('float64') if i.dtype == 'float32' else i for i in gradcase(source)]
    for op, case in ((ops.GRU(source), inputs[:-3]), (ops.GRUGrad(source), inputs)):
        for got, expected in zip(onjax(op, *case), perform(op, *case)):
            assert got.dtype == 'float64'
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('source', ['onehot', 'encoded'])
@pytest.mark.parametrize('V', [5, 40])
@pytest.mark.parametrize('char', [-1, 40])
def test_a_character_outside_the_vocabulary_gives_nan_in_its_row(source, V, char):
    inputs = grucase(source, V=V)                   # T 3, B 2: V is less or more than the characters of the batch
    inputs[0][1, 1] = char
    S, last, _ = onjax(ops.GRU(source), *inputs)
    assert np.isnan(S[1:, 1]).all() and np.isnan(last[1]).all() and np.isfinite(S[:, 0]).all() and np.isfinite(S[0]).all()


def test_a_step_has_two_products_forward_and_two_backward():
    for op, inputs in ((ops.GRU(), grucase('vectors')), (ops.GRUGrad(), gradcase('vectors'))):
        symbols = [symbol(i) for i in inputs]
        with jax.enable_x64(True):
            jaxpr = jax.make_jaxpr(converted(symbols, op.make_node(*symbols).outputs))(*inputs).jaxpr
        loop, = (e for e in equations(jaxpr) if e.primitive.name == 'scan')
        assert sum(e.primitive.name == 'dot_general' for e in equations(loop.params['jaxpr'].jaxpr)) == 2


# --- Softmax and loss -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('shape, logits', [(dict(T=1, B=1, H=1, V=2), 1 << 22), (dict(T=10, B=13, H=65, V=67), 1 << 22),
                                           (dict(T=10, B=3, H=5, V=7), 70), (dict(T=8, B=2, H=5, V=7), 56), (dict(T=5, B=2, H=3, V=9), 1)],
                         ids=['ones', 'whole', 'blocks of 3, 3, 3 and 1 step', 'even blocks', 'blocks of 1'])
def test_loss_agrees_with_numpy_whole_and_in_blocks(gradients, shape, logits, monkeypatch):
    monkeypatch.setattr(ops_jax, 'LOGITS', logits)
    assert_like_numpy(ops.SoftmaxLoss(gradients), losscase(**shape))


@pytest.mark.parametrize('logits', [1 << 22, 40])
def test_huge_logits_give_a_finite_loss(logits, monkeypatch):
    monkeypatch.setattr(ops_jax, 'LOGITS', logits)
    assert_like_numpy(ops.SoftmaxLoss(True), losscase(scale=1e4))


@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('logits', [1 << 22, 10])
def test_what_is_no_number_and_no_character_shows_in_the_loss(gradients, logits, monkeypatch):
    monkeypatch.setattr(ops_jax, 'LOGITS', logits)
    call = compiled(ops.SoftmaxLoss(gradients), losscase())
    assert np.isfinite(call(*losscase())[0])
    for which, where, value in ((0, (1, 0, 2), np.nan), (1, (3, 3), np.nan), (2, 3, np.inf), (3, (2, 1), -1), (3, (0, 0), 5)):
        inputs = losscase()                             # T 3, B 2, V 5
        inputs[which][where] = value
        assert np.isnan(call(*inputs)[0])


def test_a_block_of_logits_is_all_that_exists_of_them():
    S, V, c, y = losscase(T=64, B=128, H=4, V=2000)         # 16 million logits
    symbols = [symbol(i) for i in (S, V, c, y)]
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(converted(symbols, ops.SoftmaxLoss(True).make_node(*symbols).outputs))(S, V, c, y).jaxpr
    sizes = [v.aval.size for e in equations(jaxpr) for v in e.outvars]
    assert 64 * 128 * 2000 / 8 < max(sizes) <= ops_jax.LOGITS


def test_scale_and_allreduce_on_one_device():
    array = uniform(np.random.RandomState(0), 3, 4)
    np.testing.assert_array_equal(onjax(ops.Scale(), array, np.float64(0.75))[0], array * np.float32(0.75))
    np.testing.assert_array_equal(onjax(ops.Scale(), array, np.float64(1))[0], array)
    np.testing.assert_array_equal(onjax(ops.AllReduce(), array)[0], array)
    np.testing.assert_array_equal(perform(ops.AllReduce(), array)[0], array)


# --- Update ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('optimizer, clipping, averaged', RULES)
def test_update_agrees_with_numpy(optimizer, clipping, averaged):
    """Gradients within +-12, of which a clip of 5 changes some and both kinds of clipping all; the caches are new or old."""
    op, shapes = Update(optimizer, clipping, averaged, 3), [(5, 17), (3,), (1, 1)]
    call = compiled(op, updatecase(shapes, optimizer=optimizer, averaged=averaged))
    for seed, given in enumerate([dict(regcost=0.1), dict(regcost=0.0, cacheupdates=0, updates=0), dict(clip=1e3)]):
        inputs = updatecase(shapes, seed, 3.0, optimizer, averaged, **given)
        assert_close(call(*inputs), truth(op, [np.array(i) for i in inputs]), 2e-6)
    inputs[-2][1] = np.nan
    got, expected = call(*inputs), perform(op, *map(np.array, inputs))
    for g, e in zip(got, expected):
        np.testing.assert_array_equal(np.isnan(g), np.isnan(e))
    assert np.isnan(got[-2])


# --- Between layers -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shape', [(1, 1, 1), (3, 4, 8), (3, 5, 7), (2, 3, 6), (5, 4, 65)])
def test_dropout_is_numpys_bit_for_bit(shape):
    S = uniform(np.random.RandomState(0), *shape)
    call = compiled(Dropout(1), [S, np.float32(0), np.int64(0), np.int64(0)])
    for p, seed, updates in ((0, 0, 0), (0.3, SEED, UPDATES), (0.9999999, 2 ** 63 - 1, 2 ** 63 - 1), (0.5, 1, 2 ** 32)):
        inputs = S, np.float32(p), np.int64(seed), np.int64(updates)
        got, expected = call(*inputs)[0], perform(Dropout(1), *inputs)[0]
        assert got.dtype == 'float32' and got.tobytes() == expected.tobytes(), (p, seed, updates)


@pytest.mark.parametrize('H', [4, 7])
def test_dropout_of_a_shard_is_its_part_of_the_whole_batchs(H):
    whole = uniform(np.random.RandomState(0), 3, 8, H)
    inputs = np.float32(0.4), np.int64(SEED), np.int64(UPDATES)
    symbols = [symbol(i) for i in (whole, *inputs)]
    with ops_jax.sharded('rows', 4):
        f = converted(symbols, [Dropout(2)(*symbols)])
    with jax.enable_x64(True):
        parts = jax.jit(jax.vmap(lambda S: f(S, *inputs)[0], in_axes=1, out_axes=1, axis_name='rows'))(whole.reshape(3, 4, 2, H))
    np.testing.assert_array_equal(np.asarray(parts).reshape(whole.shape), perform(Dropout(2), whole, *inputs)[0])


def test_dropout_numbers_rows_beyond_two_to_the_32nd_element():
    """5 words of two rows in each of two shards of a batch of 2^31 rows, against Philox in Python's integers."""
    shards = ops_jax.Shards('rows', 2 ** 30)
    with jax.enable_x64(True):
        got = jax.jit(jax.vmap(lambda _: ops_jax._words((2, 2, 5), SEED, UPDATES, 0, shards), axis_name='rows'))(np.arange(2))
    for n, t, b, h in np.ndindex(2, 2, 2, 5):
        i = (t * 2 ** 31 + 2 * n + b) * 5 + h
        counter = (i // 4 % 2 ** 32) * 4 + i % 4
        assert int(got[n, t, b, h]) == naive_word(counter, SEED, UPDATES, 0)


@pytest.mark.parametrize('shape', [(1, 1, 1), (4, 3, 17), (1, 2, 64)])
def test_layernorm_and_its_gradient_agree_with_numpy(shape):
    rng = np.random.RandomState(0)
    S, dN = uniform(rng, *shape), uniform(rng, *shape)
    assert_like_numpy(LayerNorm(), [S])
    assert_like_numpy(LayerNormGrad(), [S, dN])
    assert (onjax(LayerNorm(), np.full(shape, np.float32(0.1)))[0] == 0).all()


# --- The sampler and the reader -------------------------------------------------------------------------------------

NETWORKS = [(True, 'float32', False), (False, 'float32', True), (False, 'bfloat16', False), (True, 'bfloat16', True),
            (True, 'int8', False), (False, 'int8', True)]
STEERINGS = [dict(), dict(temp=0.3), dict(temp=0), dict(temp=1e-300), dict(top_k=5), dict(top_k=1), dict(top_p=0.7), dict(top_p=1e-9),
             dict(min_p=0.2), dict(top_k=20, top_p=0.5, min_p=0.1)]


@pytest.mark.parametrize('precision', rounding.PRECISIONS)
@pytest.mark.parametrize('most', [None, 1.5])
def test_products_are_those_of_numpy(precision, most):
    """In int8 they are exact but for the scales, so that a number on the wrong point would show; no number stays none."""
    rng = np.random.RandomState(0)
    x, weights = uniform(rng, 5, 300), uniform(rng, 300, 7)
    x[1], weights[:, 2], x[2, 3], weights[4, 5], weights[4, 6] = 0, 0, np.nan, np.nan, np.inf
    most = most and np.full((5, 1), most, 'float32')
    got = np.asarray(ops_jax.product(jax.numpy.asarray(weights), precision, most)(x))
    with np.errstate(invalid='ignore'):
        expected = rounding.product(weights, precision, most)(x)
    assert np.isfinite(expected).sum() == 20 and got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('encoded, precision, layernorm', [*NETWORKS[::2], *(pytest.param(*each, marks=pytest.mark.long)
                                                                                for each in NETWORKS[1::2])])
def test_texts_are_those_that_numpy_draws(encoded, precision, layernorm):
    """Character by character; in int8 a number that falls to the other side of a rounding turns a text, which one in twenty may."""
    op = SampleText(encoded, precision, layernorm)
    shape = dict(n=3, steps=25, H=17, V=31)
    call, same = compiled(op, samplecase(encoded, **shape)), []
    for seed, steering in enumerate(STEERINGS):
        inputs = samplecase(encoded, seed=seed, **shape, **steering)
        (drawn, states), (wanted, wantedstates) = call(*inputs), perform(op, *inputs)
        assert drawn.dtype == wanted.dtype and states.dtype == wantedstates.dtype
        rows = (drawn == wanted).all(axis=1)
        same += list(rows)
        np.testing.assert_allclose(states[:, rows], wantedstates[:, rows], atol=1e-5 if precision == 'float32' else 0.02)
    assert np.mean(same) == 1 if precision == 'float32' else np.mean(same) >= 0.95


def test_equals_are_kept_in_order_of_their_index():
    """By hand: logits are equal for all 10, of which 7 reach 0.7 of the whole and a number just below 1 draws the last that is kept."""
    inputs = samplecase(True, L=1, H=2, V=10, n=1, steps=1)
    inputs[1][:], inputs[6][:], inputs[-2][:], inputs[-1][:] = 1 - 2 ** -53, 1, 0, 0.5
    call = compiled(SampleText(), inputs)
    for which, value, last in ((4, 0.7, 6), (3, 4, 3), (5, 1.0, 9), (2, 0.0, 0)):
        steered = list(inputs)
        steered[which] = np.asarray(value, inputs[which].dtype)
        assert call(*steered)[0].tolist() == [[last]]


def test_no_steps_give_no_characters_and_the_states_as_they_were():
    inputs = samplecase(True, n=2, steps=0, H=3, V=5)
    drawn, states = onjax(SampleText(), *inputs)
    assert (drawn.shape, drawn.dtype) == ((2, 0), np.int32)
    np.testing.assert_array_equal(states, inputs[7])


def test_a_forbidden_character_is_never_drawn():
    """Whatever the number, though the sums behind the last allowed character differ from its by their last bit, or not."""
    inputs = samplecase(True, L=1, H=3, V=200, n=64, steps=4)
    inputs[1][:] = 1 - 2 ** -53
    inputs[6][100:] = 0
    drawn, _ = onjax(SampleText(), *inputs)
    assert (inputs[6][drawn] == 1).all()


@pytest.mark.parametrize('precision', ['float32', *(pytest.param(each, marks=pytest.mark.long) for each in ('bfloat16', 'int8'))])
def test_a_diverged_network_draws_minus_one(precision):
    call = compiled(SampleText(True, precision), divergedcase())
    for number in (8, 11, -2, -1):                      # E, W0, V, c
        inputs = divergedcase()
        inputs[number][:] = np.nan
        assert (call(*inputs)[0] == -1).all()
    inputs = divergedcase()
    inputs[7][1, 1, 3] = np.nan                         # the state of the second text
    drawn, _ = call(*inputs)
    assert (drawn[1] == -1).all() and (drawn[0] >= 0).all()


def divergedcase():
    return samplecase(True, n=2, steps=3, H=5, V=7)


@pytest.mark.parametrize('encoded, precision, layernorm', NETWORKS)
def test_states_along_a_text_agree_with_numpys(encoded, precision, layernorm):
    op, inputs = ReadText(encoded, precision, layernorm), samplecase(encoded, n=3, H=17, V=31)
    s0, params = inputs[7], inputs[8:]
    x = np.random.RandomState(1).randint(0, 31, (9, 3)).astype('int32')
    S, expected = onjax(op, x, s0, *params)[0], perform(op, x, s0, *params)[0]
    assert (S.shape, S.dtype) == (expected.shape, expected.dtype) == ((2, 9, 3, 17), np.float32)
    assert_close([S], [expected], {'float32': 2e-6, 'bfloat16': 1e-3, 'int8': 1e-2}[precision])


# --- A whole network ------------------------------------------------------------------------------------------------

def network(kind=layers.GRUEncode, V=11, L=2, H=16, B=6, steps=7, dropout=0.3, layernorm=True, precision='float32', inwaves=False):
    """(symbols, values, [loss, gradients of the parameters, last states], parameters) of a training step before its update."""
    model = kind(V, L, H, 1, HyperParams(layernorm=layernorm))
    model.precision, model.inwaves = precision, inwaves
    x, y = T.matrix('x', dtype='int32'), T.matrix('y', dtype='int32')
    scalars = [T.scalar(dtype=dtype) for dtype in DROPOUT] if dropout else []
    loss, lasts = model.loss(x, y, model.states, gradients=True, dropout=scalars)
    params, rng = list(model.params.values()), np.random.RandomState(0)
    given = [np.float32(dropout), np.int64(SEED), np.int64(UPDATES)] if dropout else []
    values = [*(rng.randint(0, V, (steps, B)).astype('int32') for _ in 'xy'), *given,
              *(p.get_value() + uniform(rng, *p.get_value().shape, scale=0.3) for p in params), *(uniform(rng, B, H) for _ in range(L))]
    return [x, y, *scalars, *params, *model.states], values, [loss, *theano.grad(loss, params), *lasts], params


@pytest.mark.parametrize('kind', [layers.GRUEncode, layers.GRUResize])
@pytest.mark.parametrize('V, inwaves', [(11, True), (300, False)])
def test_gradients_of_a_network_agree_with_numpy_in_float64(kind, V, inwaves):
    symbols, values, outputs, _ = network(kind, V, inwaves=inwaves)
    with jax.enable_x64(True):
        got = jax.jit(converted(symbols, outputs))(*values)
    precise = [v.astype('float64') if v.dtype == 'float32' and v.ndim else v for v in values]
    assert_close([np.asarray(g) for g in got], engine.evaluate(outputs, dict(zip(symbols, precise))), 1e-5)


@pytest.mark.parametrize('inwaves, check', [(True, True), *(pytest.param(*each, marks=pytest.mark.long)
                                                            for each in [(False, True), (False, False), (True, False)])])
def test_a_network_on_two_devices_gives_the_gradients_of_the_whole_batch(inwaves, check):
    """In a process of its own, since JAX makes its devices once; the loss in blocks; check: whether JAX tracks what differs by device."""
    code = f'''
os.environ['XLA_FLAGS'] += ' --xla_force_host_platform_device_count=2'
sys.path.insert(0, {os.path.join(ROOT, 'tests')!r})
from test_ops_jax import *
from jax.sharding import Mesh, PartitionSpec as P
ops_jax.LOGITS = 3 * 11 * 2
symbols, values, outputs, params = network(H=5, inwaves={inwaves})
gru_jax.BYPRODUCT = 0
n = len(params) + 1
reduced = [ops.AllReduce()(output) for output in outputs[:n]] + outputs[n:]
with ops_jax.sharded('rows', 2):
    f = converted(symbols, reduced)
rows, whole, lasts = P(None, 'rows'), P(), [P('rows')] * 2
with jax.enable_x64(True):
    split = jax.shard_map(f, mesh=Mesh(np.array(jax.devices()), ('rows',)), in_specs=(rows, rows, *[whole] * (3 + len(params)), *lasts),
                          out_specs=(*[whole] * n, *lasts), check_vma={check})
    assert_close([np.asarray(g) for g in jax.jit(split)(*values)],
                 [np.asarray(g) for g in jax.jit(converted(symbols, outputs))(*values)], 2e-6)
print('agree')
'''
    assert said(code) == 'agree\n'


# --- What XLA is given to compute -----------------------------------------------------------------------------------

def equations(jaxpr):
    """Every equation, those of loops and branches too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, 'jaxpr', inner)
                if hasattr(inner, 'eqns'):
                    yield from equations(inner)


def trainingstep(precision='float32', inwaves=True):
    """The equations of a whole training step."""
    symbols, values, (loss, *rest), params = network(V=66, H=64, B=16, steps=20, precision=precision, inwaves=inwaves)
    gradients, lasts = rest[:len(params)], rest[len(params):]
    caches = [p.type() for _ in CACHES['adamw'] for p in params]
    given = T.vector(dtype='float64')
    updated = Update('adamw', 'norm', False, len(params))(given, np.ones(len(params), 'float32'), *params, *caches, *gradients)
    f = converted([*symbols, given, *caches], [loss, *lasts, *updated])
    values += [rates(learnrate=0.1, clip=5), *(np.zeros(p.get_value().shape, 'float32') for _ in CACHES['adamw'] for p in params)]
    with jax.enable_x64(True):
        return list(equations(jax.make_jaxpr(f)(*values).jaxpr))


@pytest.mark.parametrize('precision, inwaves', [('float32', False), ('bfloat16', False), ('bfloat16', True)])
def test_no_array_of_a_training_step_has_elements_of_64_bits(precision, inwaves):
    """But for short ones: a row's sums of squares, the rates."""
    wide = [(v.aval.dtype, v.aval.size) for e in trainingstep(precision, inwaves) for v in e.outvars if v.aval.dtype.itemsize > 4]
    assert any(dtype == 'float64' for dtype, _ in wide)         # the loss, so they have been looked at
    assert max(size for _, size in wide) <= 66, wide


def test_products_count_in_full_unless_the_user_says_otherwise():
    def precisions():
        return {e.params['precision'] for e in trainingstep() if e.primitive.name == 'dot_general'}
    highest = jax.lax.Precision.HIGHEST
    assert precisions() == {(highest, highest)}
    with jax.default_matmul_precision('tensorfloat32'):
        assert (highest, highest) not in precisions()
