"""The native kernels against the Ops' NumPy `perform`, and what they promise about threads, cache and compiler."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import engine
import native
import ops
import report
from conftest import ROOT, kernel, perform, rates, symbol, uniform
from engine import T, theano
from hyperparams import HyperParams
from rn_rnn_char import ModelState
from update import CACHES, RATES, Update

SOURCES = ('vectors', 'onehot', 'encoded')
SIZES = [1, 15, 16, 17, 63, 64, 65, 100, 256]
CXX = theano.config.cxx
KERNELS = native.library()
needskernels = pytest.mark.skipif(KERNELS is None, reason='there are no native kernels here')
needscompiler = pytest.mark.skipif(not CXX, reason='there is no C++ compiler here')
onlinux = pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system has no affinity')


@pytest.fixture(autouse=True)
def threads_as_before():
    yield
    if KERNELS is not None:
        KERNELS.rngru_set_threads(0)


# --- Cases ------------------------------------------------------------------------------------------------------

def grucase(source, T=3, B=2, H=16, K=4, V=5, seed=0, scale=1.0):
    """Inputs of a GRU Op in float32 whose products stay about `scale`, whatever the sizes."""
    rng = np.random.RandomState(seed)
    x = rng.randint(0, V, (T, B)).astype('int32')
    first = {'vectors': lambda: [uniform(rng, T, B, K)], 'onehot': lambda: [x],
             'encoded': lambda: [x, uniform(rng, V, K), uniform(rng, K)]}[source]()
    rows = V if source == 'onehot' else K
    return first + [uniform(rng, B, H), uniform(rng, rows, 3 * H, scale=scale / (1 if source == 'onehot' else K ** 0.5)),
                    uniform(rng, H, 3 * H, scale=scale / H ** 0.5), uniform(rng, 3 * H, scale=scale)]


def gradcase(source, saturated=0.2, dscale=1.0, seed=0, **shape):
    """Inputs of a GRUGrad Op: states and gates are drawn, a share `saturated` of the gates exactly 0 or 1."""
    inputs = grucase(source, seed=seed, **shape)
    rng = np.random.RandomState(seed + 1)
    (steps, B), H = inputs[0].shape[:2], len(inputs[-2])
    G = uniform(rng, steps, B, 3 * H)
    gates = G[:, :, :2 * H]
    gates[:] = abs(gates)
    closed = rng.rand(*gates.shape) < saturated
    gates[closed] = np.round(gates[closed])
    return inputs + [uniform(rng, steps, B, H), G, uniform(rng, steps, B, H) * np.float32(dscale)]


def losscase(T=3, B=2, H=16, V=5, seed=0, scale=1.0):
    rng = np.random.RandomState(seed)
    return [uniform(rng, T, B, H), uniform(rng, H, V, scale=scale * 3 / H ** 0.5), uniform(rng, V, scale=scale),
            rng.randint(0, V, (T, B)).astype('int32')]


def updatecase(shapes, seed=0, scale=1.0, optimizer='rmsprop', averaged=False, **given):
    """Inputs of an Update Op; gradients within +-4 scale, a regcost in half of the cases."""
    rng = np.random.RandomState(seed)
    params, *caches, gradients = ([uniform(rng, *shape) for shape in shapes] for _ in range(2 + len(CACHES[optimizer]) + averaged))
    if 'm' in CACHES[optimizer]:
        caches[0] = [abs(m) for m in caches[0]]
    given = {'learnrate': 0.01, 'decay': 0.95, 'beta1': 0.9, 'beta2': 0.99, 'momentum': 0.8, 'weight_decay': 0.3, 'ema': 0.9,
             'regcost': float(rng.rand() < 0.5), 'clip': 5, 'cacheupdates': 3, 'updates': 40, **given}
    return [rates(**given), uniform(rng, len(shapes)), *params, *sum(caches, []), *(np.float32(scale) * 4 * d for d in gradients)]


# --- How they are called ----------------------------------------------------------------------------------------

def truth(op, inputs):
    """The same by `perform` in float64, on the same numbers."""
    with np.errstate(all='ignore'):
        return perform(op, *(i.astype('float64') if i.dtype == 'float32' else i for i in inputs))


def assert_close(got, expected, rtol=1e-5, atol=1e-30):
    """Norm-wise: the error's norm is below rtol times that of what is expected. atol, an element:
    where denormals are flushed or sums cancel."""
    assert len(got) == len(expected)
    for i, (g, e) in enumerate(zip(got, expected)):
        assert g.shape == e.shape, i
        e, g = np.asarray(e, 'float64'), np.asarray(g, 'float64')
        assert np.isfinite(e).all() and np.isfinite(g).all(), i
        error, size = np.linalg.norm(g - e), np.linalg.norm(e)
        assert error <= rtol * size + atol * g.size ** 0.5, f'output {i}: {error:g} of {size:g}'


LAYOUTS = ('plain', 'fortran', 'transposed', 'strided', 'reversed', 'offset', 'readonly')


def laid_out(a, layout):
    """The same values in another layout."""
    if a.ndim == 0 or layout == 'plain':
        return a
    if layout == 'fortran':
        return np.asfortranarray(a)
    if layout == 'transposed':
        return np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0)
    if layout == 'strided':
        big = np.full([2 * n for n in a.shape], 77, a.dtype)
        view = big[tuple(slice(1, None, 2) for _ in a.shape)]
        view[...] = a
        return view
    if layout == 'reversed':
        return a[::-1].copy()[::-1]
    if layout == 'offset':
        view = np.full(a.size + 1, 77, a.dtype)[1:].reshape(a.shape)
        view[...] = a
        return view
    a = a.copy()
    a.flags.writeable = False
    return a


def laid_out_each(inputs, seed):
    rng = np.random.RandomState(seed)
    return [laid_out(i, LAYOUTS[rng.randint(len(LAYOUTS))]) for i in inputs]


def fenced(node, shapes):
    """(storages that hold buffers one float off the vectors' boundary between fences, a function that checks the fences)."""
    fence, arrays = 80, []
    for output, shape in zip(node.outputs, shapes):
        arrays.append(np.full(int(np.prod(shape)) + 2 * fence + 1, 12345, output.dtype))
    storages = [[a[fence + 1:-fence].reshape(shape)] for a, shape in zip(arrays, shapes)]

    def check():
        for a in arrays:
            assert (a[:fence + 1] == 12345).all() and (a[-fence:] == 12345).all()
    return storages, check


def fenced_kernel(op, inputs):
    """The kernel's outputs, written between fences; the fences stand and the inputs are as before."""
    node = op.make_node(*map(symbol, inputs))
    before = [i.copy() for i in inputs]
    storages, check = fenced(node, [output.shape for output in truth(op, inputs)])
    got = kernel(op, inputs, storages)
    check()
    for now, then in zip(inputs, before):
        np.testing.assert_array_equal(now, then)
    return got


# --- Values -----------------------------------------------------------------------------------------------------

anyshape = dict(source=st.sampled_from(SOURCES), steps=st.integers(1, 5), B=st.integers(1, 14), H=st.sampled_from(SIZES),
                K=st.integers(1, 40), V=st.integers(1, 70), seed=st.integers(0, 9999))
some = settings(max_examples=50, deadline=None, derandomize=True)


@needskernels
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('H', SIZES)
@pytest.mark.parametrize('shape', [dict(T=1, B=1, K=1, V=1), dict(T=4, B=7, K=17, V=9), dict(T=2, B=13, K=64, V=33)],
                         ids=['ones', 'odd', 'wide'])
def test_gru_and_its_gradients_agree_with_numpy(source, H, shape):
    inputs = grucase(source, H=H, **shape)
    got = fenced_kernel(ops.GRU(source), inputs)
    assert [g.dtype for g in got] == ['float32'] * 3
    np.testing.assert_array_equal(got[1], got[0][-1])
    assert_close(got, truth(ops.GRU(source), inputs))
    inputs = gradcase(source, H=H, **shape)
    assert_close(fenced_kernel(ops.GRUGrad(source), inputs), truth(ops.GRUGrad(source), inputs))


@needskernels
@some
@given(**anyshape)
def test_gru_agrees_with_numpy_on_any_shape_and_layout(source, steps, B, H, K, V, seed):
    inputs = laid_out_each(grucase(source, steps, B, H, K, V, seed), seed)
    assert_close(fenced_kernel(ops.GRU(source), inputs), truth(ops.GRU(source), inputs))


@needskernels
@some
@given(**anyshape, saturated=st.sampled_from([0, 0.3, 1]))
def test_gradients_of_gru_agree_with_numpy_on_any_shape_and_layout(source, steps, B, H, K, V, seed, saturated):
    inputs = laid_out_each(gradcase(source, saturated, T=steps, B=B, H=H, K=K, V=V, seed=seed), seed)
    assert_close(fenced_kernel(ops.GRUGrad(source), inputs), truth(ops.GRUGrad(source), inputs))


@needskernels
@some
@given(gradients=st.booleans(), steps=st.integers(1, 5), B=st.integers(1, 14), H=st.sampled_from(SIZES),
       V=st.integers(1, 40) | st.sampled_from([63, 64, 65, 127, 300]), scale=st.sampled_from([1, 30]), seed=st.integers(0, 9999))
def test_loss_agrees_with_numpy_on_any_shape_and_layout(gradients, steps, B, H, V, scale, seed):
    inputs = laid_out_each(losscase(steps, B, H, V, seed, scale), seed)
    op = ops.SoftmaxLoss(gradients)
    got = fenced_kernel(op, inputs)
    assert len(got) == (4 if gradients else 1) and got[0].shape == () and got[0].dtype == 'float64'
    assert_close(got, truth(op, inputs), atol=3e-7)


@needskernels
@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('V, M', [(1, 1), (5, 4099), pytest.param(70000, 300, marks=pytest.mark.long)])
def test_loss_of_many_rows_agrees_with_numpy(gradients, V, M):
    """More rows than a pass over them takes, or a vocabulary that leaves a pass few."""
    inputs = losscase(M, 1, 17, V)
    assert_close(fenced_kernel(ops.SoftmaxLoss(gradients), inputs), truth(ops.SoftmaxLoss(gradients), inputs), atol=1e-9)


@needskernels
def test_loss_of_more_rows_than_a_pass_agrees_with_numpy():
    inputs = losscase(700, 3, 16, 4200)         # (4 << 20) / 4224 rows are a pass: there are three, the last one short
    assert_close(fenced_kernel(ops.SoftmaxLoss(True), inputs), truth(ops.SoftmaxLoss(True), inputs), atol=1e-9)


RULES = [(optimizer, clipping, averaged) for optimizer in CACHES for clipping in ('value', 'norm') for averaged in (False, True)]
eachrule = pytest.mark.parametrize('optimizer, clipping, averaged', RULES)


@needskernels
@eachrule
@settings(max_examples=10, deadline=None)
@given(shapes=st.lists(st.lists(st.sampled_from([1, 2, 3, 16, 17, 65]), min_size=1, max_size=2), min_size=1, max_size=4),
       layouts=st.lists(st.sampled_from(LAYOUTS[:-1]), min_size=20, max_size=20), scale=st.sampled_from([1e-3, 1, 100]),
       seed=st.integers(0, 9999))
def test_update_agrees_with_numpy_on_any_shape_and_layout(optimizer, clipping, averaged, shapes, layouts, scale, seed):
    inputs, n = updatecase(shapes, seed, scale, optimizer, averaged), len(shapes)
    op = Update(optimizer, clipping, averaged, n)
    expected = perform(op, *(i.astype('float64') for i in inputs))
    inputs[2:] = [laid_out(i, layout) for i, layout in zip(inputs[2:], layouts)]
    kept = [i.copy() for i in inputs]
    got = kernel(op, inputs)
    for output, array in zip(got, inputs[2:-n]):
        assert np.shares_memory(output, array)
    assert_close(got, expected, atol=1e-7)
    for now, then in zip(inputs[:2] + inputs[-n:], kept[:2] + kept[-n:]):
        np.testing.assert_array_equal(now, then)


@needskernels
@pytest.mark.parametrize('optimizer, clipping, averaged', [('rmsprop', 'value', False), ('adamw', 'norm', True), ('sgd', 'value', True)])
@pytest.mark.parametrize('size', [1, 7, 4095, 4096, 4097, 70001])
def test_update_writes_its_arrays_and_nothing_beside_them(size, optimizer, clipping, averaged):
    """Against `perform` in float64, between numbers that stay; the share by counting."""
    op, inputs = Update(optimizer, clipping, averaged, 1), updatecase([(size,)], 1, 2, optimizer, averaged, regcost=0.1)
    memory = np.full((op.kinds, size + 160), 12345, 'float32')
    for i, row in enumerate(memory):
        row[81:-79] = inputs[2 + i]
        inputs[2 + i] = row[81:-79]
    slopes = inputs[-1].astype('float64') + 0.1 * inputs[1].astype('float64') * inputs[2]
    expected = perform(op, *(i.astype('float64') for i in inputs))
    got = kernel(op, inputs)
    for g, e in zip(got, expected):
        np.testing.assert_allclose(g, e, rtol=3e-5, atol=1e-6)
    assert (memory[:, :81] == 12345).all() and (memory[:, -79:] == 12345).all()
    np.testing.assert_allclose(got[-2], (slopes ** 2).sum() ** 0.5, rtol=1e-6)
    assert got[-1] == ((np.abs(slopes) > 5).mean() if clipping == 'value' else (slopes ** 2).sum() > 25)


@needskernels
@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(**{**anyshape, 'steps': st.integers(1, 30), 'B': st.integers(1, 70), 'H': st.integers(1, 300), 'K': st.integers(1, 300),
          'V': st.integers(1, 300)})
def test_everything_agrees_with_numpy_on_large_shapes(source, steps, B, H, K, V, seed):
    inputs = grucase(source, steps, B, H, K, V, seed, scale=0.5)
    assert_close(fenced_kernel(ops.GRU(source), inputs), truth(ops.GRU(source), inputs), atol=3e-7)
    inputs = gradcase(source, T=steps, B=B, H=H, K=K, V=V, seed=seed, scale=0.5)
    assert_close(fenced_kernel(ops.GRUGrad(source), inputs), truth(ops.GRUGrad(source), inputs), atol=3e-7)
    inputs = losscase(steps, B, H, V, seed)
    assert_close(fenced_kernel(ops.SoftmaxLoss(True), inputs), truth(ops.SoftmaxLoss(True), inputs), atol=3e-7)


@needskernels
@pytest.mark.parametrize('op, case', [(ops.GRU(), grucase('vectors')), (ops.GRUGrad(), gradcase('vectors')),
                                      (ops.SoftmaxLoss(True), losscase())],
                         ids=['GRU', 'GRUGrad', 'SoftmaxLoss'])
@pytest.mark.parametrize('layout', ['fortran', 'strided'])
def test_a_buffer_that_is_not_contiguous_is_not_written_as_if_it_were(op, case, layout):
    """The engine's storage may hold another's array; what lies between its elements isn't ours."""
    expected = truth(op, case)
    storages = [[laid_out(np.zeros(e.shape, 'float64' if e.ndim == 0 else 'float32'), layout)] for e in expected]
    bases = [storage[0].base for storage in storages]
    assert_close(kernel(op, case, storages), expected)
    if layout == 'strided':
        for base in bases:
            assert base is None or (base[tuple(slice(0, None, 2) for _ in base.shape)] == 77).all()


@needskernels
@pytest.mark.parametrize('source', SOURCES)
def test_gradient_through_a_compiled_graph_agrees_with_numpy(source):
    """What Theano makes of a cost's gradient: broadcast ones, a last state, buffers of the call before."""
    inputs = [symbol(i) for i in grucase(source)]
    S, last, _ = ops.GRU(source)(*inputs)
    real = inputs[0 if source == 'vectors' else 1:]
    gradients = theano.grad(T.sum(S) + T.sum(last * last), real)
    f = engine.compilefunction(inputs, gradients)
    for shape in (dict(), dict(T=5, B=1, H=17), dict(T=5, B=1, H=17, seed=3), dict(T=1, B=9, H=1)):
        case = grucase(source, **shape)
        states = truth(ops.GRU(source), case)
        dS = np.ones_like(states[0])
        dS[-1] += 2 * states[0][-1]
        expected = perform(ops.GRUGrad(source), *(i.astype('float64') if i.dtype == 'float32' else i for i in case),
                           states[0], states[2], dS)
        assert_close(f(*case), expected)


# --- Saturation, huge, tiny, not a number -----------------------------------------------------------------------

@needskernels
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('H', [1, 17, 64])
def test_saturated_gates_are_exactly_zero_and_one_and_give_the_states_that_the_formula_says(source, H):
    """By hand: z = 1 keeps the state for ever, bit for bit; r = 0 and z = 0 gives tanh(x Uh + bh) whatever the state was."""
    inputs = grucase(source, T=4, B=5, H=H)
    s0, U, W, b = inputs[-4:]
    b[:H], b[H:2 * H] = 1e4, -1e4
    S, last, G = kernel(ops.GRU(source), inputs)
    assert (G[:, :, :H] == 1).all() and (G[:, :, H:2 * H] == 0).all()
    np.testing.assert_array_equal(S, np.stack([s0] * 4))
    gradients = kernel(ops.GRUGrad(source), inputs + [S, G, np.ones_like(S)])
    np.testing.assert_array_equal(gradients[-4], np.full_like(s0, 4))
    for gradient in gradients[:-4] + gradients[-3:]:
        assert (gradient == 0).all()
    b[:H], b[2 * H:] = -1e4, 50
    S, last, G = kernel(ops.GRU(source), inputs)
    assert (G[:, :, :2 * H] == 0).all() and (S == 1).all()
    assert_close(kernel(ops.GRUGrad(source), inputs + [S, G, np.ones_like(S)]),
                 truth(ops.GRUGrad(source), inputs + [S, G, np.ones_like(S)]))


@needskernels
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('H', [15, 64])
def test_states_where_many_gates_saturate_agree_with_numpy(source, H):
    inputs = grucase(source, T=1, B=40, H=H, K=6, V=7, scale=12)
    got = kernel(ops.GRU(source), inputs)
    gates = got[2][:, :, :2 * H]
    assert (gates == 0).mean() > 0.1 and (gates == 1).mean() > 0.1 and gates.min() >= 0 and gates.max() <= 1
    assert abs(got[2]).max() <= 1
    assert_close(got, truth(ops.GRU(source), inputs))


@needskernels
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('which', range(-4, 0))
@pytest.mark.parametrize('value', [1e30, -1e30, 1e-40])
def test_huge_and_tiny_values_agree_with_numpy(source, which, value):
    """One row of an input: the sums that it enters are about 1e30 or none, so that rounding can't turn a gate."""
    inputs = grucase(source, T=3, B=3, H=17, K=5)
    inputs[which][:1] = value
    got = kernel(ops.GRU(source), inputs)
    assert_close(got, truth(ops.GRU(source), inputs), rtol=1e-4, atol=1e-6)
    assert (got[2][:, :, :34] >= 0).all() and (abs(got[2]) <= 1).all()


@needskernels
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('dscale', [1e-42, 1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_any_size_agree_with_numpy(source, dscale):
    """Gradients are linear in dS. Denormals are taken as 0."""
    inputs = gradcase(source, T=4, B=5, H=17, K=5, dscale=dscale)
    assert_close(kernel(ops.GRUGrad(source), inputs), truth(ops.GRUGrad(source), inputs), atol=1e-36)


@needskernels
@pytest.mark.parametrize('value', [1e30, -1e30, 1e-40])
@pytest.mark.parametrize('which', [0, 1, 2])
def test_loss_of_huge_and_tiny_values_agrees_with_numpy(which, value):
    inputs = losscase(H=17, V=33)
    inputs[which][:1] = value
    got, expected = kernel(ops.SoftmaxLoss(True), inputs), truth(ops.SoftmaxLoss(True), inputs)
    assert_close(got, expected, atol=1e-6 * max(1, abs(value)))
    assert np.isfinite(got[0]) and got[0] >= 0


@needskernels
def test_loss_of_certainty_and_of_the_impossible():
    """By hand: a logit 200 above the others costs its character nothing, another one 200 nats; equal ones log V."""
    S, V, c = np.ones((1, 1, 1), 'float32'), np.zeros((1, 5), 'float32'), np.float32([0, 0, 200, 0, 0])
    op = ops.SoftmaxLoss(True)
    loss, dS, dV, dc = kernel(op, [S, V, c, np.int32([[2]])])
    assert loss == 0 and not dc.any()
    loss, dS, dV, dc = kernel(op, [S, V, c, np.int32([[1]])])
    assert loss == 200
    np.testing.assert_allclose(dc, [0, -1, 1, 0, 0], atol=1e-7)
    loss, dS, dV, dc = kernel(op, [S, V, c * 0, np.int32([[1]])])
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-7)
    np.testing.assert_allclose(dc, [0.2, -0.8, 0.2, 0.2, 0.2], rtol=1e-6)


@needskernels
@pytest.mark.parametrize('g', [1e30, -1e30, np.inf, -np.inf, 1e-40, 0])
def test_update_of_huge_and_tiny_gradients_is_clipped(g):
    inputs = [rates(learnrate=0.1, decay=0.5, clip=5), np.float32([0]), np.ones(9, 'float32'),
              np.full(9, 2, 'float32'), np.full(9, g, 'float32')]
    p, m, norm, share = kernel(Update('rmsprop', 'value', False, 1), inputs)
    assert share == (abs(g) > 5)
    np.testing.assert_allclose(norm, 0 if abs(g) < 1e-38 else 3 * abs(float(np.float32(g))), rtol=1e-6)
    clipped = min(max(g, -5), 5)
    np.testing.assert_allclose(m, np.full(9, 1 + clipped ** 2 / 2), rtol=1e-6)
    np.testing.assert_allclose(p, np.full(9, 1 - 0.1 * clipped / np.sqrt(1 + clipped ** 2 / 2 + 1e-6)), rtol=1e-6)


def same_nans(got, expected):
    """NaN in just the same elements."""
    for i, (g, e) in enumerate(zip(got, expected)):
        np.testing.assert_array_equal(np.isnan(g), np.isnan(e), err_msg=f'output {i}')


@needskernels
@some
@given(source=st.sampled_from(SOURCES), which=st.integers(0, 6), H=st.sampled_from([1, 3, 17, 64]), seed=st.integers(0, 9999))
def test_nan_comes_out_of_gru_where_numpy_has_it(source, which, H, seed):
    inputs = grucase(source, H=H, seed=seed)
    reals = [i for i in inputs if i.dtype == 'float32']
    target = reals[which % len(reals)]
    target.flat[np.random.RandomState(seed).randint(target.size)] = np.nan
    same_nans(kernel(ops.GRU(source), inputs), perform(ops.GRU(source), *inputs))


@needskernels
@some
@given(source=st.sampled_from(SOURCES), which=st.integers(0, 9), H=st.sampled_from([1, 3, 17, 64]), seed=st.integers(0, 9999))
def test_nan_is_not_hidden_by_the_gradients_of_gru(source, which, H, seed):
    """No gate is saturated here. In a gate that is, NumPy's 0 * NaN is NaN and the kernel's gradient 0, as the formula says."""
    inputs = gradcase(source, saturated=0, H=H, seed=seed)
    reals = [i for i in inputs if i.dtype == 'float32']
    target = reals[which % len(reals)]
    target.flat[np.random.RandomState(seed).randint(target.size)] = np.nan
    same_nans(kernel(ops.GRUGrad(source), inputs), perform(ops.GRUGrad(source), *inputs))


@needskernels
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('saturated', [0.5, 1])
def test_nan_in_a_gradient_behind_saturated_gates_reaches_every_output(source, saturated):
    inputs = gradcase(source, saturated, T=2, B=2, H=17)
    inputs[-1][-1] = np.nan
    for got, expected in zip(kernel(ops.GRUGrad(source), inputs), perform(ops.GRUGrad(source), *inputs)):
        assert np.isnan(got).any() == np.isnan(expected).any()


@needskernels
@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('which', [0, 1, 2])
@pytest.mark.parametrize('V', [1, 33])
def test_nan_and_infinity_come_out_of_the_loss_where_numpy_has_nan(gradients, value, which, V):
    inputs = losscase(H=17, V=V)
    inputs[which].flat[0] = value
    op = ops.SoftmaxLoss(gradients)
    got = kernel(op, inputs)
    with np.errstate(all='ignore'):
        same_nans(got, perform(op, *inputs))
    if np.isnan(value):
        assert np.isnan(got[0])


@needskernels
@eachrule
@pytest.mark.parametrize('which', ['learnrate', 'regcost', 1, 2, 3, -1])
def test_nan_comes_out_of_the_update_where_numpy_has_it(which, optimizer, clipping, averaged):
    inputs = updatecase([(19,)], 0, 1, optimizer, averaged, regcost=0.1)
    inputs[0 if isinstance(which, str) else which].flat[RATES.index(which) if isinstance(which, str) else 0] = np.nan
    op = Update(optimizer, clipping, averaged, 1)
    expected = perform(op, *(i.copy() for i in inputs))
    same_nans(kernel(op, inputs), expected)


# --- Which nodes they compute -----------------------------------------------------------------------------------

def ofkind(case, real='float32', index='int32'):
    return [i.astype(real if i.dtype.kind == 'f' else index) for i in case]


@needskernels
@pytest.mark.parametrize('op, case', [(ops.GRU('encoded'), grucase('encoded')), (ops.GRUGrad('encoded'), gradcase('encoded')),
                                      (ops.SoftmaxLoss(True), losscase())], ids=['GRU', 'GRUGrad', 'SoftmaxLoss'])
def test_other_types_of_numbers_and_of_indices_fall_back_to_numpy(op, case):
    def node(case):
        inputs = [symbol(i) for i in case]
        return engine.Apply(op, inputs, [inputs[-1].type() for _ in range(4)])
    assert op.kernel(node(case)) is not None
    for index in ('int64', 'int16', 'int8', 'uint8', 'uint32'):
        assert op.kernel(node(ofkind(case, index=index))) is None
    assert op.kernel(node(ofkind(case, 'float64'))) is None
    for i in (i for i, value in enumerate(case) if value.dtype == 'float32'):
        mixed = list(case)
        mixed[i] = mixed[i].astype('float64')
        assert op.kernel(node(mixed)) is None


@needskernels
def test_an_update_of_other_types_falls_back_to_numpy():
    case = updatecase([(3,), (2, 2)])
    op = Update('rmsprop', 'value', False, 2)
    assert op.kernel(op.make_node(*map(symbol, case))) is not None
    assert op.kernel(op.make_node(*map(symbol, [np.float32(case[0]), *case[1:]]))) is None
    for i in range(1, len(case)):
        mixed = list(case)
        mixed[i] = np.asarray(mixed[i], 'float64')
        assert op.kernel(op.make_node(*map(symbol, mixed))) is None


@pytest.mark.parametrize('index', ['int64', 'int32', 'uint8'])
@pytest.mark.parametrize('real', ['float32', 'float64'])
def test_a_compiled_function_takes_every_type(real, index):
    case = ofkind(grucase('encoded'), real, index)
    inputs = [symbol(i) for i in case]
    got = engine.compilefunction(inputs, ops.GRU('encoded')(*inputs))(*case)
    assert all(g.dtype == real for g in got)
    assert_close(got, truth(ops.GRU('encoded'), ofkind(grucase('encoded'))), rtol=1e-5 if real == 'float32' else 1e-12)


def test_without_kernels_every_node_falls_back_to_numpy(monkeypatch):
    monkeypatch.setattr(native, 'library', lambda: None)
    for op, case in ((ops.GRU(), grucase('vectors')), (ops.GRUGrad(), gradcase('vectors')), (ops.SoftmaxLoss(True), losscase()),
                     (Update('rmsprop', 'value', False, 1), updatecase([(2,)]))):
        assert op.kernel(op.make_node(*map(symbol, case))) is None


# --- What they refuse -------------------------------------------------------------------------------------------

def changed(case, which, value):
    case = list(case)
    case[which] = np.zeros(value, case[which].dtype) if isinstance(value, tuple) else np.full_like(case[which], value)
    return case


def refusals():
    """(op, inputs) that must be refused."""
    for source in SOURCES:
        case = grucase(source, T=3, B=2, H=4, K=5, V=6)
        for which, shape in ((-4, (3, 4)), (-4, (2, 5)), (-3, (5, 11)), (-2, (4, 11)), (-2, (3, 12)), (-1, (11,)), (-1, (13,)),
                             (0, case[0].shape[:1] + (1,) + case[0].shape[2:]), (0, (0,) + case[0].shape[1:])):
            yield f'GRU {source} input {which} {shape}', ops.GRU(source), changed(case, which, shape)
        if source != 'onehot':
            yield f'GRU {source} U too long', ops.GRU(source), changed(case, -3, (6, 12))
            yield f'GRU {source} U too short', ops.GRU(source), changed(case, -3, (4, 12))
        if source == 'encoded':
            yield 'E too wide', ops.GRU(source), changed(case, 1, (6, 7))
            yield 'a too short', ops.GRU(source), changed(case, 2, (4,))
        if source != 'vectors':
            for character in (-1, 6, 2**31 - 1, -2**31):
                yield f'GRU {source} character {character}', ops.GRU(source), changed(case, 0, character)
    case = losscase(T=3, B=2, H=4, V=6)
    for which, shape in ((0, (3, 2, 5)), (0, (2, 2, 4)), (1, (3, 6)), (1, (4, 7)), (2, (5,)), (2, (7,)), (3, (3, 3)), (3, (2, 2))):
        yield f'SoftmaxLoss input {which} {shape}', ops.SoftmaxLoss(True), changed(case, which, shape)
    for character in (-1, 6, 2**31 - 1, -2**31):
        yield f'SoftmaxLoss character {character}', ops.SoftmaxLoss(True), changed(case, 3, character)


REFUSALS = list(refusals())


@pytest.fixture
def untouched(monkeypatch):
    """The library may not be called."""
    def touched(*arguments):
        raise AssertionError('memory was touched')
    for name in ('gruforward', 'grubackward', 'softmaxloss', 'update'):
        monkeypatch.setattr(native, name, touched)


@needskernels
@pytest.mark.parametrize('op, inputs', [refusal[1:] for refusal in REFUSALS], ids=[refusal[0] for refusal in REFUSALS])
def test_wrong_shapes_and_characters_are_refused_as_numpy_refuses_them(untouched, op, inputs):
    with pytest.raises((ValueError, IndexError)) as numpys:
        perform(op, *inputs)
    node = op.make_node(*map(symbol, inputs))
    storages = [[None] for _ in node.outputs]
    with pytest.raises(numpys.type) as ours:
        op.kernel(node)(inputs, storages)
    assert str(ours.value) == str(numpys.value) and str(ours.value).count('\n') == 0
    assert storages == [[None] for _ in node.outputs]


@needskernels
@pytest.mark.parametrize('which, shape', [(-1, (3, 2, 5)), (-1, (2, 2, 4)), (-1, (3, 1, 4)), (-2, (3, 2, 11)), (-2, (2, 2, 12)),
                                          (-3, (2, 2, 4)), (-3, (3, 2, 3)), (-3, (4, 2, 4)), (-4, (11,)), (-5, (4, 11)),
                                          (-6, (5, 11)), (-7, (1, 4))])
def test_gradients_refuse_wrong_shapes(untouched, which, shape):
    """dS may be anybody's: theano.grad(None, W, known_grads={S: dS})."""
    for source in SOURCES:
        with pytest.raises(ValueError):
            kernel(ops.GRUGrad(source), changed(gradcase(source, T=3, B=2, H=4, K=5, V=6), which, shape))


@needskernels
@pytest.mark.parametrize('source', ['onehot', 'encoded'])
@pytest.mark.parametrize('character', [-1, 6])
def test_gradients_refuse_characters_out_of_range(untouched, source, character):
    with pytest.raises(IndexError):
        kernel(ops.GRUGrad(source), changed(gradcase(source, T=3, B=2, H=4, K=5, V=6), 0, character))


@needskernels
@pytest.mark.parametrize('which, shape', [(0, (10,)), (1, (1,)), (1, (3,)), (2, (2, 3)), (4, (2, 3)), (4, (4, 4)), (8, (2, 3)),
                                          (10, (2, 3)), (10, (4, 4)), (10, (3, 1))])
def test_an_update_refuses_wrong_shapes_as_numpy_refuses_them(untouched, which, shape):
    """Inputs: rates (11,), factors (2,), params (3, 3), (2,), two caches, averages, gradients."""
    op, inputs = Update('adam', 'value', True, 2), changed(updatecase([(3, 3), (2,)], 0, 1, 'adam', True), which, shape)
    for work in kernel, lambda op, inputs: perform(op, *inputs):
        with pytest.raises(ValueError, match='Update takes') as raised:
            work(op, inputs)
        assert '\n' not in str(raised.value)


EMPTY = '''
case, op = {'no rows': (lambda: tests.grucase('vectors', B=1), ops.GRU()), 'no inputs': (lambda: tests.grucase('vectors', K=1), ops.GRU()),
            'no units': (lambda: tests.losscase(H=1), ops.SoftmaxLoss(True)),
            'no characters': (lambda: tests.losscase(B=1), ops.SoftmaxLoss(True))}[name]
empty = {'no rows': {0: 1, 1: 0}, 'no inputs': {0: 2, 2: 0}, 'no units': {0: 2, 1: 0}, 'no characters': {0: 1, 3: 1}}[name]
inputs = case()
for which, axis in empty.items():
    inputs[which] = np.delete(inputs[which], range(inputs[which].shape[axis]), axis)
try:
    print('gave', [g.shape for g in tests.kernel(op, inputs)])
except (ValueError, IndexError, ZeroDivisionError) as error:
    print('refused', error)
'''


@needskernels
@pytest.mark.parametrize('name', ['no rows', 'no inputs', 'no units', 'no characters'])
def test_an_empty_batch_or_layer_does_not_end_the_process(name):
    """Sizes begin at 1 in kernels/rngru.h: a child, since what has no size may end it."""
    def child(connection):
        import test_native as tests
        space = {'tests': tests, 'ops': ops, 'np': np, 'name': name, 'print': lambda *words: connection.send(words)}
        exec(EMPTY, space)
    said, code = inchild(child)
    assert code == 0 and said[0] in ('gave', 'refused')


# --- Threads ----------------------------------------------------------------------------------------------------

def large():
    """(op, inputs) large enough for several threads, with sizes that no vector divides."""
    for source in SOURCES:
        yield ops.GRU(source), grucase(source, T=6, B=13, H=65, K=37, V=40)
        yield ops.GRUGrad(source), gradcase(source, T=6, B=13, H=65, K=37, V=40)
    yield ops.SoftmaxLoss(False), losscase(T=10, B=13, H=65, V=67)
    yield ops.SoftmaxLoss(True), losscase(T=10, B=13, H=65, V=67)
    for rule in RULES:
        yield Update(*rule, 3), updatecase([(100, 301), (17,), (50, 50)], 0, 1, rule[0], rule[2], regcost=0.1)


def bits(op, inputs):
    """The outputs as bytes, of copies of the inputs: the update works in place."""
    return [np.asarray(output).tobytes() for output in kernel(op, [np.array(i) for i in inputs])]


@needskernels
def test_the_result_is_the_same_bit_for_bit_with_any_number_of_threads_and_each_time():
    for op, inputs in large():
        native.setthreads(1)
        expected = bits(op, inputs)
        for threads in (1, 2, 3):
            native.setthreads(threads)
            for _ in range(3):
                assert bits(op, inputs) == expected, (op, threads)


@needskernels
def test_calls_from_several_python_threads_at_once_give_right_results():
    cases = list(large())
    native.setthreads(2)
    expected = [bits(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for case, got in [(i, pool.submit(bits, *cases[i])) for _ in range(6) for i in range(len(cases))]:
            assert got.result(timeout=60) == expected[case], cases[case][0]


def inchild(function):
    """(what a forked child's function(connection) sent, its exit status); None and a negative status for one that died or hung."""
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe(False)
    process = context.Process(target=function, args=(theirs,))
    process.start()
    theirs.close()
    try:
        said = ours.recv() if ours.poll(30) else None
    except EOFError:
        said = None
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()
    return said, process.exitcode


@needskernels
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_forked_child_computes_the_same():
    cases = list(large())
    native.setthreads(2)
    expected = [bits(*case) for case in cases]

    def child(connection):
        once = [bits(*case) for case in cases]
        native.setthreads(3)
        again = [bits(*case) for case in cases]
        connection.send((once == expected, again == expected))
    assert inchild(child) == ((True, True), 0)
    assert [bits(*case) for case in cases] == expected


@needskernels
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_child_forked_during_a_call_computes_the_same_and_so_does_its_parent():
    case = ops.GRUGrad('encoded'), gradcase('encoded', T=20, B=16, H=100, K=100, V=50)
    native.setthreads(2)
    expected, stop, wrong = bits(*case), threading.Event(), []

    def work():
        while not stop.is_set():
            if bits(*case) != expected:
                wrong.append(True)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            assert inchild(lambda connection: connection.send(bits(*case) == expected)) == (True, 0)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive() and not wrong


@needskernels
def test_idle_threads_sleep():
    native.setthreads(3)
    for case in large():
        bits(*case)
    time.sleep(0.01)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.05


WRONG_THREADS = [0, -1, 1.5, 2.0, True, False, '2', 10**6, float('nan'), [2], b'2']


@pytest.fixture
def nolibrary(monkeypatch):
    """Nothing may be compiled or loaded."""
    def library():
        raise AssertionError('the kernels were asked for')
    monkeypatch.setattr(native, 'library', library)


@pytest.mark.parametrize('threads', WRONG_THREADS, ids=repr)
def test_a_wrong_number_of_threads_is_refused_in_one_sentence_before_anything_is_compiled(nolibrary, threads):
    with pytest.raises((TypeError, ValueError)) as error:
        native.setthreads(threads)
    assert 'threads' in str(error.value) and repr(threads) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('threads', ['0', '-1', '1.5', 'abc', '1e3', 'True', '1000000', '9' * 30])
def test_a_wrong_number_of_threads_in_the_environment_is_refused_in_one_sentence(nolibrary, monkeypatch, threads):
    monkeypatch.setenv('RN_GRU_THREADS', threads)
    with pytest.raises(ValueError) as error:
        native.setthreads()
    assert 'RN_GRU_THREADS' in str(error.value) and threads in str(error.value) and '\n' not in str(error.value)


@needskernels
def test_a_right_number_of_threads_is_what_computes(monkeypatch):
    for threads in (1, 3, np.int64(2)):
        assert native.setthreads(threads) == threads and native.library().rngru_get_threads() == threads
        assert native.describe().endswith(f' kernels, {threads} thread{"s" if threads > 1 else ""}')
    monkeypatch.setenv('RN_GRU_THREADS', ' 3 ')
    assert native.setthreads() == 3 and native.setthreads(2) == 2
    monkeypatch.setenv('RN_GRU_THREADS', '')
    assert native.setthreads() == native.library().rngru_threads_available() >= 1


@pytest.fixture
def text(tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text(''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(300)))
    return path


def test_a_wrong_number_of_threads_reaches_no_training(tmp_path, text, nolibrary, monkeypatch):
    ms = ModelState.initfromsrcfile(text, tmp_path / 'work', state_size=8, seed=1, init_checkpoint=False)
    before = ms.model.arrays()

    def refused(error, call, *arguments, **options):
        with pytest.raises(error):
            call(*arguments, **options)
    for threads in WRONG_THREADS:
        refused((TypeError, ValueError), ms.trainmodel, train_len=1, threads=threads)
        refused((TypeError, ValueError), ms.restore, threads=threads)
    monkeypatch.setenv('RN_GRU_THREADS', 'abc')
    refused(ValueError, ms.trainmodel, train_len=1)
    refused(ValueError, ms.restore)
    assert not {'trainstep', 'evaluate', 'sampletext', 'allstates'} & set(vars(ms.model)) and not ms.checkpoints()
    for name, value in ms.model.arrays().items():
        np.testing.assert_array_equal(value, before[name])


# --- Processes of their own -------------------------------------------------------------------------------------

def process(code, cxx=None, base=None, sources=None, **environment):
    """A started process with `native`, whose engine is but what native asks of it: fast to start, and its cache where we say."""
    env = {key: value for key, value in os.environ.items() if not key.startswith('RN_GRU_')}
    config = f'cxx={cxx or CXX!r}, base_compiledir={str(base or theano.config.base_compiledir)!r}'
    start = (f'import sys, os\nfrom pathlib import Path\nfrom types import SimpleNamespace as N\nsys.path.insert(0, {ROOT!r})\n'
             f'sys.modules["engine"] = N(nohome="", theano=N(config=N({config})))\nimport native\n'
             + (f'native.SOURCES = Path({str(sources)!r})\n' if sources else ''))
    return subprocess.Popen([sys.executable, '-c', start + code], env={**env, **environment}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err, err
    return out


@needskernels
@onlinux
def test_affinity_is_respected():
    one = min(os.sched_getaffinity(0))
    assert finished(process(f'os.sched_setaffinity(0, [{one}])\nprint(native.setthreads(), native.describe())')).endswith('1 thread\n')
    wanted = len(os.sched_getaffinity(0))
    assert finished(process('print(native.setthreads())')).split()[-1] == str(wanted)


@needskernels
@pytest.mark.parametrize('threads', ['1', '3'])
def test_threads_of_the_environment_are_respected_whoever_calls_first(threads):
    """Also where nobody has called setthreads: ModelState.load and trackneurons, or a graph of one's own."""
    assert finished(process('print(native.setthreads(), native.describe())', RN_GRU_THREADS=threads)).split()[-5::3] == [threads, threads]
    assert finished(process('print(native.describe())', RN_GRU_THREADS=threads)).split()[-2] == threads


# --- The cache, with a stand-in for the kernels that compiles at once -------------------------------------------

STANDIN = '''
#include <stdint.h>
#include "standin.h"
#define API extern "C" __attribute__((visibility("default")))
API int rngru_gru_forward(void*) { return 0; }
API int rngru_gru_backward(void*) { return 0; }
API int rngru_softmax_loss() { return 0; }
API int rngru_update() { return 0; }
API int rngru_dropout() { return 0; }
API int rngru_layer_norm() { return 0; }
API int rngru_layer_norm_gradient() { return 0; }
API int rngru_sample() { return 0; }
API long long rngru_sample_kept() { return 0; }
API const char* rngru_isa() { return NAME; }
API int rngru_accelerates(int) { return 0; }
API void rngru_profile(int) {}
API int rngru_set_threads(int n) { return n < 1 ? 1 : n; }
API int rngru_get_threads() { return 1; }
'''


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and sources and a compiler that can be changed; the compiler writes down each call."""
    sources, base, log, compiler = (tmp_path / name for name in ('sources', 'base', 'log', 'compiler'))
    sources.mkdir()
    (sources / 'standin.cpp').write_text(STANDIN)
    (sources / 'other.cpp').write_text('int nothing;\n')
    (sources / 'standin.h').write_text('#define NAME "one"\n')
    (sources / 'notes.txt').write_text('no source\n')

    def setcompiler(body=f'exec {CXX} "$@"'):
        compiler.write_text(f'#!/bin/sh\ncase "$*" in *--version*) ;; *) echo "$*" >> {log};; esac\n{body}\n')
        compiler.chmod(0o755)
    setcompiler()
    config = SimpleNamespace(cxx=str(compiler), base_compiledir=str(base))
    monkeypatch.setattr(native, 'SOURCES', sources)
    monkeypatch.setattr(native, 'engine', SimpleNamespace(theano=SimpleNamespace(config=config), nohome=''))
    said = []
    monkeypatch.setattr(report, 'say', lambda line: said.append(line) if not line.startswith('Compiling the kernels') else None)

    def load():
        """What the library says of itself, freshly looked up; None without one."""
        kernels = native.library.__wrapped__()
        return kernels and kernels.rngru_isa().decode()
    return SimpleNamespace(load=load, setcompiler=setcompiler, config=config, sources=sources, base=base, said=said,
                           files=lambda: sorted(path.name for path in (base / 'rn-gru').iterdir()),
                           runs=lambda: len(log.read_text().splitlines()) if log.exists() else 0)


@needscompiler
def test_an_unchanged_kernel_is_never_compiled_again(cache):
    assert cache.load() == 'one'
    runs, files = cache.runs(), cache.files()
    assert runs == 3 and len(files) == 1 and files[0].endswith('.so')       # two sources and the link
    assert len(cache.said) == 1 and 'Compiled the kernels' in cache.said[0]
    (cache.sources / 'notes.txt').write_text('changed')
    (cache.sources / 'standin.h').touch()
    assert cache.load() == 'one'
    code = 'print(native.library().rngru_isa())'
    assert finished(process(code, cache.config.cxx, cache.base, cache.sources)) == "b'one'\n"
    assert (cache.runs(), cache.files(), len(cache.said)) == (runs, files, 1)


@needscompiler
def test_a_changed_byte_in_a_header_or_source_compiles_again_and_the_old_one_is_still_there(cache):
    cache.load()
    (cache.sources / 'standin.h').write_text('#define NAME "two"\n')
    assert cache.load() == 'two' and len(cache.files()) == 2
    (cache.sources / 'other.cpp').write_text('int nothings;\n')
    assert cache.load() == 'two' and len(cache.files()) == 3
    runs = cache.runs()
    (cache.sources / 'standin.h').write_text('#define NAME "one"\n')
    (cache.sources / 'other.cpp').write_text('int nothing;\n')
    assert cache.load() == 'one' and cache.runs() == runs


@needscompiler
def test_other_flags_and_another_compiler_compile_again(cache, monkeypatch):
    cache.load()
    monkeypatch.setattr(native, 'FLAGS', native.FLAGS + ['-DSOMETHING'])
    assert cache.load() == 'one' and len(cache.files()) == 2
    cache.setcompiler(f'case "$*" in *--version*) echo newer; exit;; esac\nexec {CXX} "$@"')
    assert cache.load() == 'one' and len(cache.files()) == 3


@needscompiler
def test_two_processes_that_compile_at_once_both_succeed_and_leave_no_temporary_files(cache):
    code = 'print(native.library().rngru_isa())'
    both = [process(code, cache.config.cxx, cache.base, cache.sources) for _ in range(3)]
    for one in both:
        assert finished(one).endswith("b'one'\n")
    assert len(cache.files()) == 1 and cache.files()[0].endswith('.so')


@needscompiler
@pytest.mark.parametrize('body, words', [
    ('case "$*" in *--version*) echo 1.0; exit;; esac\necho "kernels.cpp:1: fatal error: no luck today" >&2\nexit 1', ['no luck today']),
    ('case "$*" in *--version*) echo 1.0; exit;; esac\nexit 3', ['ended with 3']),
    ('echo "fatal error: no such licence" >&2\nexit 1', ['no such licence']),
    ('kill -9 $$', ['ended with -9']),
    ('case "$*" in *--version*) echo 1.0; exit;; esac\nprintf "\\\\377 error: bytes that are no text" >&2\nexit 1', ['no text']),
    ('exit 0', [])], ids=['error', 'silent', 'version', 'killed', 'bytes', 'nothing written'])
def test_a_compiler_that_fails_gives_one_line_and_numpy(cache, body, words):
    cache.setcompiler(body)
    assert cache.load() is None
    assert len(cache.said) == 1 and '\n' not in cache.said[0] and 'NumPy' in cache.said[0]
    assert all(word in cache.said[0] for word in words)
    assert not cache.base.exists() or cache.files() == []


@pytest.mark.parametrize('cxx', ['', '/no/such/compiler'])
def test_a_missing_compiler_gives_one_line_that_says_what_to_install(cache, cxx):
    cache.config.cxx = cxx
    assert cache.load() is None
    assert len(cache.said) == 1 and '\n' not in cache.said[0]
    assert 'NumPy' in cache.said[0] and 'install' in cache.said[0] and 'slower' in cache.said[0]


@needscompiler
def test_a_compiler_in_a_directory_with_a_space_in_its_name_is_found(cache, tmp_path):
    """The engine takes config.cxx as one path, too."""
    (tmp_path / 'my tools').mkdir()
    os.rename(cache.config.cxx, tmp_path / 'my tools' / 'compiler')
    cache.config.cxx = str(tmp_path / 'my tools' / 'compiler')
    assert cache.load() == 'one'


@needscompiler
def test_a_cache_that_cannot_be_made_gives_one_line_and_numpy(cache):
    cache.base.write_text('a file')
    assert cache.load() is None
    assert len(cache.said) == 1 and '\n' not in cache.said[0] and 'NumPy' in cache.said[0]


@needscompiler
def test_a_damaged_library_in_the_cache_gives_one_line_or_is_compiled_again(cache):
    """In a process of its own: in this one the library is loaded already."""
    cache.load()
    path = cache.base / 'rn-gru' / cache.files()[0]
    data = path.read_bytes()
    path.unlink()                               # a new file: this process has the old one mapped, and would die of its end
    path.write_bytes(data[:100])
    *said, computes = finished(process('print(native.describe())', cache.config.cxx, cache.base, cache.sources)).splitlines()
    said = said[-1]
    assert 'Compiled' in said and computes == 'one kernels, 1 thread' or 'NumPy' in said and computes == 'NumPy'


@needscompiler
def test_kernels_can_be_switched_off_silently(cache, monkeypatch):
    monkeypatch.setenv('RN_GRU_KERNELS', 'numpy')
    assert cache.load() is None and not cache.said and not cache.runs() and not cache.base.exists()


# --- The engine's own flags -------------------------------------------------------------------------------------

TRAIN = '''
from rn_rnn_char import ModelState
ms = ModelState.initfromsrcfile(TEXT, WORK, seq_len=10, state_size=8, layers=2, seed=1, verbose=False)
ms.trainmodel(train_len=3, batchsize=4, valid_len=1, print_every=2)
ms.trackneurons('some')
print('trained', len(ms.checkpoints()), native.describe())
'''


def engineprocess(code, flags='', **environment):
    """stdout of a finished process with the engine itself."""
    name = f'{engine.name.upper()}_FLAGS'
    env = {key: value for key, value in os.environ.items() if key not in ('RN_GRU_KERNELS', 'RN_GRU_THREADS', name)}
    env.update({name: flags} if flags else {}, PYTHONPATH=ROOT)
    done = subprocess.run([sys.executable, '-c', f'import native, engine\nfrom pathlib import Path\n{code}'], env={**env, **environment},
                          cwd='/', capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize('how', ['missing', 'failing', 'switched off'])
def test_training_works_without_a_compiler(tmp_path, text, how):
    failing = tmp_path / 'failing'
    failing.write_text('#!/bin/sh\ncase "$*" in *version*) echo 1.0; exit;; esac\necho "fatal error: no luck today" >&2\nexit 1\n')
    failing.chmod(0o755)
    code = f'TEXT, WORK = {str(text)!r}, {str(tmp_path / "work")!r}\n' + TRAIN
    if how == 'switched off':
        out = engineprocess(code, RN_GRU_KERNELS='numpy')
    elif how == 'missing':
        out = engineprocess(code, 'cxx=')
    else:
        out = engineprocess(code, f'cxx={failing}')
    assert out.endswith('trained 2 NumPy\n')
    lines = [line for line in out.splitlines() if 'native kernels' in line]
    assert len(lines) == (how != 'switched off')
    if lines:
        assert {'missing': 'install', 'failing': 'no luck today'}[how] in lines[0]


@needscompiler
def test_a_home_that_cannot_be_written_gives_one_line_that_names_the_temporary_directory(tmp_path, cache):
    home, temporary = tmp_path / 'home', tmp_path / 'temporary'
    home.write_text('a file, where nothing can be put, not even by root')
    temporary.mkdir()
    out = engineprocess(f'native.SOURCES = Path({str(cache.sources)!r})\nprint(native.describe())', HOME=str(home), TMPDIR=str(temporary))
    lines = out.splitlines()
    assert len(lines) == 3 and lines[2] == 'one kernels, 1 thread'
    assert str(temporary) in lines[0] and str(home) in lines[0]
    assert list(temporary.glob('*/rn-gru/kernels-*.so'))


# --- Training ---------------------------------------------------------------------------------------------------

def losses(text, workdir, rounds, steps, **options):
    """Training and validation losses of each round, and the arrays, of a model trained end to end."""
    ms = ModelState.initfromsrcfile(text, workdir, **{'seq_len': 10, 'state_size': 17, 'layers': 2, 'seed': 7, **options})
    ms.trainmodel(num_rounds=rounds, train_len=steps, batchsize=5, valid_len=5, print_every=0)
    return np.array([(c.facts['trainloss'], c.loss) for c in ms.checkpoints()[1:]]), ms.model.arrays()


def agree(tmp_path, text, monkeypatch, rounds, steps, **options):
    ours, _ = losses(text, tmp_path / 'native', rounds, steps, **options)
    monkeypatch.setattr(native, 'library', lambda: None)
    numpys, _ = losses(text, tmp_path / 'numpy', rounds, steps, **options)
    assert ours.shape == (rounds, 2) and ours[-1, 0] < 0.8 * ours[0, 0]         # they have learnt something
    np.testing.assert_allclose(ours, numpys, rtol=5e-4)


@needskernels
@pytest.mark.parametrize('modeltype', ['GRUEncode', 'GRUResize'])
def test_200_steps_of_training_agree_with_numpy_in_loss_to_three_digits(tmp_path, text, monkeypatch, modeltype):
    agree(tmp_path, text, monkeypatch, 5, 40, modeltype=modeltype, learnrate=0.003, regcost=0.01)


@needskernels
@pytest.mark.long
@pytest.mark.parametrize('modeltype', ['GRUEncode', 'GRUResize'])
def test_2000_steps_of_training_agree_with_numpy_in_loss_to_three_digits(tmp_path, monkeypatch, modeltype):
    """On a text of many parts, so that the loss isn't soon next to nothing."""
    text = tmp_path / 'text.txt'
    text.write_text(''.join(Path(ROOT, name).read_text() for name in ('ops.py', 'storage.py', 'model.py')))
    agree(tmp_path, text, monkeypatch, 20, 100, modeltype=modeltype, state_size=64)


@needskernels
def test_training_gives_the_same_bits_with_any_number_of_threads(tmp_path, text, monkeypatch):
    results = []
    for threads in ('1', '2', '3'):
        monkeypatch.setenv('RN_GRU_THREADS', threads)
        results.append(losses(text, tmp_path / threads, 1, 10, state_size=65, seq_len=20)[1])
        assert native.library().rngru_get_threads() == int(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert other[name].tobytes() == value.tobytes(), name


# --- The profile ------------------------------------------------------------------------------------------------

@needskernels
def test_the_profile_gives_seconds_by_phase_whose_sum_is_below_the_wall_time():
    native.profile()
    start = time.perf_counter()
    for case in large():
        bits(*case)
    wall = time.perf_counter() - start
    seconds = native.profile()
    assert len(seconds) >= 4 and all(isinstance(name, str) and value >= 0 for name, value in seconds.items())
    assert 0 < sum(seconds.values()) < wall
    assert sum(native.profile().values()) == 0          # nothing has run since
    native.library().rngru_profile(0)


def test_the_profile_without_kernels_is_empty(monkeypatch):
    monkeypatch.setattr(native, 'library', lambda: None)
    assert native.profile() == {}
