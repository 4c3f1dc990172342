"""The native kernels against the Ops' NumPy `perform`; among the long tests, for every instruction set that this processor has."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import compiler
import engine
import native
import ops
from conftest import kernel, perform, rates, symbol
from engine import T, theano
from kernelcases import (KERNELS, LAYOUTS, RULES, SIZES, SOURCES, assert_close, fenced_kernel, gradcase, grucase, laid_out, laid_out_each,
                         losscase, needskernels, truth, updatecase)
from update import RATES, Update

BEST, *OTHERS = compiler.instructionsets()


@pytest.fixture(autouse=True, scope='module', params=[BEST, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def instructionset(request):
    """All of these tests for one set, then for the next."""
    with pytest.MonkeyPatch.context() as patch:
        if KERNELS is not None and request.param != BEST:
            if engine.name == 'theano':
                pytest.skip('the kernels know no engine: the tests on PyTensor compile them all')
            kernels = native.load(request.param)
            patch.setattr(native, 'library', lambda: kernels)
        yield

# --- Values -----------------------------------------------------------------------------------------------------

anyshape = dict(source=st.sampled_from(SOURCES), steps=st.integers(1, 5), B=st.integers(1, 14), H=st.sampled_from(SIZES),
                K=st.integers(1, 40), V=st.integers(1, 70), seed=st.integers(0, 9999))
some = settings(max_examples=50, deadline=None, derandomize=True)


@pytest.mark.anyengine
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


@pytest.mark.anyengine
@needskernels
@some
@given(**anyshape)
def test_gru_agrees_with_numpy_on_any_shape_and_layout(source, steps, B, H, K, V, seed):
    inputs = laid_out_each(grucase(source, steps, B, H, K, V, seed), seed)
    assert_close(fenced_kernel(ops.GRU(source), inputs), truth(ops.GRU(source), inputs))


@pytest.mark.anyengine
@needskernels
@some
@given(**anyshape, saturated=st.sampled_from([0, 0.3, 1]))
def test_gradients_of_gru_agree_with_numpy_on_any_shape_and_layout(source, steps, B, H, K, V, seed, saturated):
    inputs = laid_out_each(gradcase(source, saturated, T=steps, B=B, H=H, K=K, V=V, seed=seed), seed)
    assert_close(fenced_kernel(ops.GRUGrad(source), inputs), truth(ops.GRUGrad(source), inputs))


@pytest.mark.anyengine
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


eachrule = pytest.mark.parametrize('optimizer, clipping, averaged', RULES)


@pytest.mark.anyengine
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
def test_tanh_is_right_to_4e_7_wherever_it_is_taken():
    """With U = (0, 0, 1), no W, and an update gate that is shut, the state is the tanh of what is read."""
    x = np.concatenate([np.linspace(-12, 12, 4001), [1e-6, -1e-6, 1e30, -1e30]]).astype('float32')
    S, _, G = kernel(ops.GRU('vectors'), [x.reshape(1, -1, 1), np.zeros((len(x), 1), 'float32'), np.float32([[0, 0, 1]]),
                                          np.zeros((1, 3), 'float32'), np.float32([-9, 0, 0])])
    assert not G[..., 0].any() and np.abs(S).max() == 1
    np.testing.assert_allclose(S.ravel(), np.tanh(x.astype('float64')), rtol=0, atol=4e-7)


@needskernels
@pytest.mark.parametrize('g', [1e30, -1e30, np.inf, -np.inf, 1e-40, 0, 5, -5, 5.000001, -5.000001])
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
