"""The update against values worked out by hand, naive loops and PyTorch's optimizers.

`test_kernels` has its kernel against its `perform`.
"""

import numpy as np
import pytest

import engine
import native
import update
from conftest import perform, rates, symbol
from engine import T, theano
from update import CACHES, Update


def step(optimizer, w, *arrays, clipping='value', averaged=False, **given):
    """One update by `perform`, in place: the outputs. arrays: lists of parameters, of each cache, of averages, of gradients."""
    return perform(Update(optimizer, clipping, averaged, len(w)), rates(**{'clip': 5, **given}),
                   np.array(w, arrays[0][0].dtype), *sum(arrays, []))


def ones(*values):
    return [np.array([value], 'float64') for value in values]


# --- By hand -----------------------------------------------------------------------------------------------------------

def test_rmsprop_by_hand():
    """learnrate 0.1, decay 0.75, one parameter at 2 with regcost 0.5, gradients 3, 100, -100; another without.

    Step 1: d = 3 + 0.5 * 2 = 4;          m = 0.25 * 16 = 4;            p = 2 - 0.4 / sqrt(4 + 1e-6)
    Step 2: d = 100 + ... clipped to 5;   m = 0.75 * 4 + 0.25 * 25 = 9.25;     p -= 0.5 / sqrt(9.25 + 1e-6)
    Step 3: d = -100 + ... clipped to -5; m = 0.75 * 9.25 + 6.25 = 13.1875;    p += 0.5 / sqrt(13.1875 + 1e-6)
    The other, gradient 0.002 throughout: m = 1e-6, 1.75e-6, 2.3125e-6; divisors are the roots of m + 1e-6.
    """
    (p, q), (m, n) = ones(2, -1), ones(0, 0)
    wants = [(2 - 0.4 / 4.000001 ** 0.5, 4, 1e-6)]
    wants.append((wants[0][0] - 0.5 / 9.250001 ** 0.5, 9.25, 1.75e-6))
    wants.append((wants[1][0] + 0.5 / 13.187501 ** 0.5, 13.1875, 2.3125e-6))
    other = -1.0
    for gradient, (want_p, want_m, want_n) in zip((3.0, 100.0, -100.0), wants):
        step('rmsprop', [1, 0], [p, q], [m, n], ones(gradient, 0.002), learnrate=0.1, decay=0.75, regcost=0.5)
        other -= 0.0002 / (want_n + 1e-6) ** 0.5
        np.testing.assert_allclose([p[0], m[0], q[0], n[0]], [want_p, want_m, other, want_n], rtol=1e-12)


def test_adam_by_hand():
    """learnrate 0.1, beta1 0.5, beta2 0.75, a parameter at 1, gradients 2, then -2.

    Step 1: g = 1, m = 1;        corrected by 1 - 0.5 = 0.5 and 1 - 0.75 = 0.25: 2 and 4;        p = 1 - 0.1 * 2 / (sqrt(4) + 1e-8)
    Step 2: g = -0.5, m = 1.75;  corrected by 0.75 and 0.4375: -2/3 and 4;                       p += 0.1 * (2/3) / (sqrt(4) + 1e-8)
    """
    p, m, g = ones(1, 0, 0)
    for t, (gradient, wants) in enumerate([(2, (0.9, 1, 1)), (-2, (0.9 + 1 / 30, 1.75, -0.5))]):
        step('adam', [1], [p], [m], [g], ones(gradient), learnrate=0.1, beta1=0.5, beta2=0.75,
             cacheupdates=t, updates=t + 7, weight_decay=9)
        np.testing.assert_allclose([p[0], m[0], g[0]], wants, rtol=1e-8)


def test_adams_epsilon_is_a_hundred_millionth_beside_the_root():
    """A gradient of 1e-8: its corrected mean is 1e-8, so is the root, and the step is half the learning rate."""
    p, m, g = ones(1, 0, 0)
    step('adam', [1], [p], [m], [g], ones(1e-8), learnrate=0.1, beta1=0.9, beta2=0.999)
    np.testing.assert_allclose(p, 0.95, rtol=1e-12)


def test_adamw_shrinks_weights_by_learnrate_times_decay_before_adams_step_and_no_biases():
    """test_adam_by_hand's steps on p * (1 - 0.1 * 0.5); the bias goes Adam's way; neither cache knows of the decay."""
    (p, q), (m, n), (g, h) = ones(1, 1), ones(0, 0), ones(0, 0)
    wants = [(0.95 - 0.1, 0.9), (0.85 * 0.95 + 1 / 30, 0.9 + 1 / 30)]
    for t, (gradient, want) in enumerate(zip((2, -2), wants)):
        step('adamw', [1, 0], [p, q], [m, n], [g, h], ones(gradient, gradient), learnrate=0.1, beta1=0.5, beta2=0.75,
             weight_decay=0.5, cacheupdates=t)
        np.testing.assert_allclose([p[0], q[0]], want, rtol=1e-8)
        assert m == n and g == h


def test_sgd_by_hand():
    """learnrate 0.1, momentum 0.5, gradients 2, -2, 0: velocities 2, -1, -0.5; a learnrate of 1
    in the last step holds for all of the velocity."""
    p, g = ones(1, 0)
    for gradient, learnrate, want in ((2, 0.1, 0.8), (-2, 0.1, 0.9), (0, 1, 1.4)):
        step('sgd', [1], [p], [g], ones(gradient), learnrate=learnrate, momentum=0.5)
        np.testing.assert_allclose(p, want, rtol=1e-12)


def test_clipping_by_value_counts_what_it_changes_after_the_regcost_is_added():
    """d = 7 - 4 = 3, 4 + 4 = 8, and -5, 5 of a bias: one of four beyond 5. Norm: sqrt(9 + 64 + 25 + 25)."""
    p, q, g, h = np.array([-1.0, 1.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    *_, norm, share = step('sgd', [4, 0], [p, q], [g, h], [np.array([7.0, 4.0]), np.array([-5.0, 5.0])], learnrate=0, regcost=1)
    assert share == 0.25 and norm == 123 ** 0.5
    np.testing.assert_array_equal([g, h], [[3, 5], [-5, 5]])


@pytest.mark.parametrize('clip, scale', [(2.5, 0.5), (5, 1), (6, 1)])
def test_clipping_by_norm_scales_all_parameters_alike(clip, scale):
    """d = 2 + 1 = 3 by regcost; 0, 4 of another: norm 5. Not beyond the bound, nothing is scaled."""
    p, q, g, h = np.array([1.0]), np.zeros(2), np.zeros(1), np.zeros(2)
    *_, norm, share = step('sgd', [1, 0], [p, q], [g, h], [np.array([2.0]), np.array([0.0, 4.0])],
                           clipping='norm', clip=clip, regcost=1, learnrate=1)
    assert norm == 5 and share == (scale < 1)
    np.testing.assert_allclose([*g, *h], [3 * scale, 0, 4 * scale], rtol=1e-12)
    np.testing.assert_allclose([*p, *q], [1 - 3 * scale, 0, -4 * scale], rtol=1e-12)


def test_the_running_mean_by_hand():
    """p goes 1, 2, ... by SGD; of e, steps keep min(ema, (1 + t) / (10 + t)): 1/10, then 2/11 or ema = 0.15, in the end ema.

    e = 0.9 * 1; then 0.9 + 9/11 * (2 - 0.9) = 1.8, or 0.9 + 0.85 * 1.1 = 1.835; e = 10 * 0.9 + 0.1 * 3 with ema 0.9 at t = 1000.
    """
    for ema, updates, p, e, want in ((0.9, 0, 0, 0, 0.9), (0.9, 1, 1, 0.9, 1.8), (0.15, 1, 1, 0.9, 1.835), (0.9, 1000, 2, 10, 9.3)):
        (p, g, e) = ones(p, 0, e)
        step('sgd', [1], [p], [g], [e], ones(-1), averaged=True, learnrate=1, ema=ema, updates=updates, cacheupdates=5)
        np.testing.assert_allclose(e, want, rtol=1e-12)


# --- Against others ------------------------------------------------------------------------------------------------------

SHAPES = [(4, 5), (7,), (1, 1)]


def drawn(dtype, steps=30):
    """(parameters, a list of gradients for each step), these from 1 in size, so that no epsilon counts, and a third of them beyond 5."""
    rng = np.random.RandomState(1)
    params = [rng.normal(size=s).astype(dtype) for s in SHAPES]
    gradients = [[4 * rng.normal(size=s) for s in SHAPES] for _ in range(steps)]
    return params, [[(d + np.sign(d)).astype(dtype) for d in each] for each in gradients]


def torchs(optimizer, clipping, params, gradients, given):
    """The parameters and the norms that PyTorch comes to; only the matrices decay."""
    torch = pytest.importorskip('torch')
    params = [torch.tensor(p, requires_grad=True) for p in params]
    betas, lr = (given['beta1'], given['beta2']), given['learnrate']
    groups = [{'params': [p], 'weight_decay': given['weight_decay'] * (p.ndim == 2)} if optimizer == 'adamw'
              else {'params': [p]} for p in params]
    optim = {'rmsprop': lambda: torch.optim.RMSprop(groups, lr=lr, alpha=given['decay'], eps=0),
             'adam': lambda: torch.optim.Adam(groups, lr=lr, betas=betas), 'adamw': lambda: torch.optim.AdamW(groups, lr=lr, betas=betas),
             'sgd': lambda: torch.optim.SGD(groups, lr=lr, momentum=given['momentum'])}[optimizer]()
    norms = []
    for each in gradients:
        for p, d in zip(params, each):
            p.grad = torch.tensor(d)
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, given['clip'] if clipping == 'norm' else 1e9)))
        if clipping == 'value':
            torch.nn.utils.clip_grad_value_(params, given['clip'])
        optim.step()
    return [p.detach().numpy() for p in params], norms


@pytest.mark.parametrize('optimizer', CACHES)
@pytest.mark.parametrize('clipping', ['value', 'norm'])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_thirty_steps_go_where_pytorchs_go(optimizer, clipping, dtype):
    """PyTorch adds 1e-6 to the norm it divides by; RMSprop's epsilon there stands outside of the root, a difference of 1e-6 of m.

    float32: by the native kernel, where there is one.
    """
    given = dict(learnrate=0.01, decay=0.9, beta1=0.8, beta2=0.95, momentum=0.7, weight_decay=0.3, clip=5.0)
    start, gradients = drawn(dtype)
    want, want_norms = torchs(optimizer, clipping, start, gradients, given)
    params, norms, op = [p.copy() for p in start], [], Update(optimizer, clipping, False, 3)
    caches = [np.zeros(s, dtype) for _ in CACHES[optimizer] for s in SHAPES]
    w = np.array([1, 0, 1], dtype)
    for t, each in enumerate(gradients):
        inputs = [rates(updates=t, cacheupdates=t, **given), w, *params, *caches, *each]
        node = op.make_node(*map(symbol, inputs))
        work, storages = op.kernel(node), [[None] for _ in node.outputs]
        assert (work is not None) == (dtype == 'float32' and native.library() is not None)
        (work or (lambda *rest: op.perform(node, *rest)))(inputs, storages)
        norms.append(float(storages[-2][0]))
    rtol = 1e-4 if optimizer == 'rmsprop' else 2e-5 if dtype == 'float32' else 2e-6 if clipping == 'norm' else 1e-10
    for p, q, first in zip(params, want, start):
        np.testing.assert_allclose(p - first, q - first, rtol=rtol, atol=1e-6 if dtype == 'float32' else rtol * 0.01)
    np.testing.assert_allclose(norms, want_norms, rtol=1e-6)


@pytest.mark.parametrize('block', [1, 3, 4, 24, 25])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_rmsprop_agrees_with_a_naive_loop_whatever_the_block(monkeypatch, block, dtype):
    monkeypatch.setattr(update, 'BLOCK', block)
    rng = np.random.RandomState(1)
    shapes, w = [(4, 6), (5,), (1, 1)], [0.3, 0.0, 2.0]
    params, gradients = ([rng.uniform(-8, 8, s).astype(dtype) for s in shapes] for _ in range(2))
    caches = [rng.uniform(0, 3, s).astype(dtype) for s in shapes]
    kept = [d.copy() for d in gradients]
    wants, squares, changed = [], 0.0, 0
    for p, m, d, k in zip(params, caches, gradients, w):
        for index in np.ndindex(*p.shape):
            slope = float(d[index]) + k * float(p[index])
            squares, changed = squares + slope ** 2, changed + (abs(slope) > 5)
            slope = min(max(slope, -5.0), 5.0)
            cache = 0.9 * float(m[index]) + 0.1 * slope ** 2
            wants.append((float(p[index]) - 0.01 * slope / (cache + 1e-6) ** 0.5, cache))
    *outputs, norm, share = step('rmsprop', w, params, caches, gradients, learnrate=0.01, decay=0.9, regcost=1)
    got = list(zip(np.concatenate([p.ravel() for p in params]), np.concatenate([m.ravel() for m in caches])))
    np.testing.assert_allclose(got, wants, rtol=1e-5 if dtype == 'float32' else 1e-12, atol=1e-6 if dtype == 'float32' else 0)
    np.testing.assert_allclose([norm, share], [squares ** 0.5, changed / 30], rtol=1e-6)
    assert all(out is given_ for out, given_ in zip(outputs, params + caches))
    for d, before in zip(gradients, kept):
        np.testing.assert_array_equal(d, before)


def test_rmsprop_in_float32_is_bit_for_bit_what_it_always_was():
    """Trainings that began before there were other optimizers go on as they began: each operation in its old order."""
    (p, *_), gradients = drawn('float32')
    m, rate, decay, k = np.zeros_like(p), np.float32(0.003), np.float32(0.95), np.float32(0.1 / 7)
    q, n = p.copy(), m.copy()
    for d, *_ in gradients:
        step('rmsprop', [1], [q], [n], [d], learnrate=0.003, decay=0.95, regcost=0.1 / 7)
        d = np.minimum(np.maximum(d + k * p, np.float32(-5)), np.float32(5))
        m += (d * d - m) * (1 - decay)
        p -= d / np.sqrt(m + np.float32(1e-6)) * rate
        assert np.array_equal(p, q) and np.array_equal(m, n)


# --- Numbers that are none, memory ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('optimizer', CACHES)
def test_nan_in_a_gradient_comes_out_of_its_element_and_of_the_norm(optimizer):
    p, e, caches = np.ones(2), np.ones(2), [[np.zeros(2)] for _ in CACHES[optimizer]]
    *_, norm, share = step(optimizer, [0], [p], *caches, [e], [np.array([np.nan, 9.0])], averaged=True, learnrate=0.1, ema=0.9)
    assert np.isnan(norm) and share == 0.5
    for array in (p, e, *(each for each, in caches)):
        assert np.isnan(array).tolist() == [True, False]


@pytest.mark.parametrize('optimizer', CACHES)
def test_nan_in_a_gradient_comes_out_everywhere_where_the_norm_is_clipped(optimizer):
    p, q, caches = np.ones(2), np.ones(1), [[np.zeros(2), np.zeros(1)] for _ in CACHES[optimizer]]
    *_, norm, share = step(optimizer, [0, 0], [p, q], *caches, [np.array([np.nan, 1.0]), np.ones(1)], clipping='norm', learnrate=0.1)
    assert np.isnan(norm) and np.isnan(p).all() and np.isnan(q).all()


def test_a_compiled_update_keeps_the_memory_of_shared_variables():
    p, m, e = (theano.shared(np.full((3, 4), value, 'float32')) for value in (1, 0, 1))
    places = [v.get_value(borrow=True).__array_interface__['data'] for v in (p, m, e)]
    d = T.matrix(dtype='float32')
    given = rates(learnrate=0.5, decay=0.75, clip=5, ema=0.5, updates=1000)
    *new, norm, share = Update('rmsprop', 'value', True, 1)(given, np.zeros(1, 'float32'), p, m, e, d)
    f = engine.compilefunction([d], [norm, share], list(zip((p, m, e), new)))
    for _ in range(2):
        np.testing.assert_allclose(f(np.full((3, 4), 2, 'float32')), [48 ** 0.5, 0], rtol=1e-6)
    assert [v.get_value(borrow=True).__array_interface__['data'] for v in (p, m, e)] == places
    first, second = 1 - 1 / 1.000001 ** 0.5, 1 - 1 / 1.000001 ** 0.5 - 1 / 1.750001 ** 0.5
    np.testing.assert_allclose(m.get_value(), 1.75, rtol=1e-6)         # 0.25 * 4, then 0.75 * 1 + 1
    np.testing.assert_allclose(p.get_value(), second, rtol=1e-5)
    np.testing.assert_allclose(e.get_value(), ((1 + first) / 2 + second) / 2, rtol=1e-5)


@pytest.mark.parametrize('optimizer', CACHES)
def test_parameters_in_any_memory_order_are_updated(optimizer):
    given = dict(learnrate=0.5, decay=0.5, beta1=0.5, beta2=0.5, clip=5, ema=0.5)
    results = []
    for order in (np.ascontiguousarray, np.asfortranarray):
        arrays = [[order(np.arange(1.0, 13).reshape(3, 4))] for _ in range(2 + len(CACHES[optimizer]))]
        step(optimizer, [1], *arrays, [np.full((3, 4), 2.0)], averaged=True, **given)
        results.append(arrays)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-12)
    assert not np.array_equal(results[0][0][0], np.arange(1.0, 13).reshape(3, 4))
