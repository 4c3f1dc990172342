"""Layer normalisation against numbers worked out by hand, the naive loop, PyTorch, finite differences and the naive network."""

import numpy as np
import pytest

import dropout
import engine
import layers
import native
from conftest import (assert_needs, kernel, naive_gru, naive_layernorm, naive_logits, naive_nll, naive_sample, naive_states, naive_vectors,
                      perform)
from engine import T, theano
from hyperparams import HyperParams
from kernelcases import needskernels
from layernorm import LayerNorm, LayerNormGrad, normalised
from modelcases import PLAIN
from rn_rnn_char import ModelState, RNGRUError

pytestmark = pytest.mark.usefixtures('threads_as_before')
SHAPES = [(1, 1, 1), (1, 1, 2), (3, 2, 1), (3, 2, 5), (2, 3, 15), (2, 2, 16), (1, 3, 17), (4, 3, 63), (2, 1, 64), (3, 5, 65), (2, 2, 100),
          (7, 3, 129), (2, 2, 1000)]


def uniform(*shape, seed=0, dtype='float32'):
    return np.random.RandomState(seed).uniform(-1, 1, shape).astype(dtype)


def by_numpy(op, *inputs):
    return perform(op, *inputs)[0]


def by_kernel(op, *inputs):
    return kernel(op, inputs)[0]


ways = pytest.mark.parametrize('way', [pytest.param(by_numpy, id='numpy'), pytest.param(by_kernel, marks=needskernels, id='native')])


def naive_gradient(S, dN, step=1e-4):
    """dS of sum(N dN) in float64, by central differences of the naive loop, Richardson's way (error: step^4)."""
    S, gradient = np.array(S, np.float64), np.empty(S.shape)

    def slope(index, step):
        ends = []
        for sign in (1, -1):
            row = S[index[:2]].copy()
            row[index[2]] += sign * step
            ends.append((naive_layernorm(row) * dN[index[:2]]).sum())
        return (ends[0] - ends[1]) / (2 * step)
    for index in np.ndindex(*S.shape):
        gradient[index] = (4 * slope(index, step / 2) - slope(index, step)) / 3
    return gradient


# --- Its values -----------------------------------------------------------------------------------------------------------

@ways
def test_vectors_get_the_values_worked_out_by_hand(way):
    """1 2 3 4: mean 2.5, variance 1.25. 0 0.006: mean 0.003, variance 0.000009, of which 0.000019 is made. 5 -3: 1, 16."""
    got = way(LayerNorm(), np.array([[[1, 2, 3, 4]]], 'float32'))
    np.testing.assert_allclose(got, [[[-1.3416354, -0.44721180, 0.44721180, 1.3416354]]], rtol=1e-6)
    got = way(LayerNorm(), np.array([[[0, 0.006], [5, -3]]], 'float32'))
    np.testing.assert_allclose(got, [[[-0.68824720, 0.68824720], [0.99999969, -0.99999969]]], rtol=1e-6)


@ways
@pytest.mark.parametrize('shape', SHAPES)
def test_every_row_is_what_the_naive_loop_makes_of_it(way, shape):
    S = uniform(*shape)
    S[..., ::3] += 2
    got = way(LayerNorm(), S)
    assert got.dtype == 'float32' and got.shape == shape
    np.testing.assert_allclose(got, naive_layernorm(S), atol=2e-6)
    np.testing.assert_allclose(normalised(S.reshape(-1, shape[2])), naive_layernorm(S).reshape(-1, shape[2]), atol=2e-6)


@ways
def test_values_and_gradient_are_those_of_pytorch(way):
    torch = pytest.importorskip('torch')
    S, dN = uniform(5, 3, 48), uniform(5, 3, 48, seed=1)
    s = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    N = torch.nn.functional.layer_norm(s, (48,))
    N.backward(torch.tensor(dN, dtype=torch.float64))
    np.testing.assert_allclose(way(LayerNorm(), S), N.detach(), atol=2e-6)
    np.testing.assert_allclose(way(LayerNormGrad(), S, dN), s.grad, atol=1e-5)


@ways
@pytest.mark.parametrize('value', [0, 0.1, -1, 1 / 3, 1e4, 1e16, -3e38])
@pytest.mark.parametrize('H', [1, 7, 16, 100])
def test_equal_elements_become_exactly_0(way, value, H):
    """And the gradient there is that of the mean, over the root of 1e-5: dN less its mean, times 316.23."""
    S, dN = np.full((3, 2, H), value, 'float32'), uniform(3, 2, H)
    assert (way(LayerNorm(), S) == 0).all()
    want = (dN - dN.mean(axis=2, keepdims=True, dtype='float64')) / 1e-5 ** 0.5
    np.testing.assert_allclose(way(LayerNormGrad(), S, dN), want, atol=1e-4)


@ways
def test_a_layer_of_one_unit_passes_nothing_up_and_no_gradient_back(way):
    S = uniform(4, 3, 1)
    assert (way(LayerNorm(), S) == 0).all() and (way(LayerNormGrad(), S, S + 5) == 0).all()


@ways
def test_huge_values_and_small_differences_beside_a_large_mean_keep_their_digits(way):
    S, small = uniform(3, 2, 40), np.arange(40, dtype='float32').reshape(1, 1, 40) / 8
    np.testing.assert_allclose(way(LayerNorm(), S * np.float32(1e16)), naive_layernorm(S * np.float32(1e16)), atol=2e-6)
    np.testing.assert_allclose(way(LayerNorm(), small + np.float32(100_000)), naive_layernorm(small), atol=2e-6)
    tiny = way(LayerNorm(), S * np.float32(1e-6))       # far below 1e-5: that alone scales
    np.testing.assert_allclose(tiny, (S - S.mean(axis=2, keepdims=True)) * 1e-6 / 1e-5 ** 0.5, atol=1e-9)


@ways
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('at', [0, 1, 18])
def test_what_is_no_number_spoils_its_own_row_and_no_other(way, value, at):
    S = uniform(2, 3, 19)
    want, dN = naive_layernorm(S), uniform(2, 3, 19, seed=1)
    clean = by_numpy(LayerNormGrad(), S, dN)
    S[1, 2, at] = value
    with np.errstate(invalid='ignore'):
        got, gradient = way(LayerNorm(), S), way(LayerNormGrad(), S, dN)
    for array, wanted in ((got, want), (gradient, clean)):
        assert np.isnan(array[1, 2]).all()
        array[1, 2] = wanted[1, 2]
        np.testing.assert_allclose(array, wanted, atol=1e-5)


@ways
def test_what_comes_out_has_mean_0_and_variance_1(way):
    got = way(LayerNorm(), 3 * uniform(6, 5, 200) + 1).astype('float64')
    np.testing.assert_allclose(got.mean(axis=2), 0, atol=1e-6)
    np.testing.assert_allclose(got.var(axis=2), 1, atol=1e-5)


# --- Its gradient -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shape', [(1, 1, 2), (3, 2, 5), (2, 2, 17)])
def test_the_gradient_agrees_with_finite_differences(shape):
    theano.gradient.verify_grad(lambda S: LayerNorm()(S) ** 3, [uniform(*shape, dtype='float64')], rng=np.random.RandomState(0), n_tests=1,
                                abs_tol=1e-5, rel_tol=1e-5, mode=PLAIN)


@ways
@pytest.mark.parametrize('shape', [shape for shape in SHAPES if shape[2] > 2 and np.prod(shape) < 1200])
def test_every_rows_gradient_is_that_of_the_naive_loop(way, shape):
    S, dN = uniform(*shape), uniform(*shape, seed=1) + 1
    np.testing.assert_allclose(way(LayerNormGrad(), S, dN), naive_gradient(S, dN), atol=2e-5)


@ways
@pytest.mark.parametrize('shape', [(2, 3, 15), (2, 2, 1000)])
def test_no_gradient_goes_along_what_normalisation_takes_away(way, shape):
    """Adding to all units changes nothing, and scaling them almost nothing: dS has no sum and is at right angles to S."""
    S = uniform(*shape)
    dS = way(LayerNormGrad(), S, uniform(*shape, seed=1)).astype('float64')
    np.testing.assert_allclose(dS.sum(axis=2), 0, atol=2e-4)
    np.testing.assert_allclose((dS * S).sum(axis=2), 0, atol=2e-3)


def test_the_gradient_of_a_compiled_cost_is_that_of_the_naive_loop():
    S, dN = uniform(4, 3, 9), uniform(4, 3, 9, seed=1)
    s = T.tensor3(dtype='float32')
    got, = engine.compilefunction([s], [theano.grad(T.sum(LayerNorm()(s) * dN), s)])(S)
    assert got.dtype == 'float32'
    np.testing.assert_allclose(got, naive_gradient(S, dN), atol=2e-5)


# --- The kernel --------------------------------------------------------------------------------------------------------------

@needskernels
@pytest.mark.parametrize('shape', SHAPES + [(50, 16, 256), (9, 7, 4099)])
def test_the_kernel_gives_what_perform_gives(shape):
    S, dN = uniform(*shape), uniform(*shape, seed=1)
    double = S.astype('float64'), dN.astype('float64')
    np.testing.assert_allclose(by_kernel(LayerNorm(), S), by_numpy(LayerNorm(), double[0]), atol=2e-6)
    # Two units that are almost equal have a gradient of hundreds, of which rounding takes its share.
    np.testing.assert_allclose(by_kernel(LayerNormGrad(), S, dN), by_numpy(LayerNormGrad(), *double), atol=1e-5 if shape[2] > 2 else 1e-3)


@needskernels
@pytest.mark.parametrize('shape', [(100, 16, 256), (3, 3, 70), (2000, 1, 1), (1, 2, 70_000)])
def test_results_are_the_same_bits_with_any_number_of_threads(shape):
    S, dN, results = uniform(*shape), uniform(*shape, seed=1), set()
    for threads in (1, 2, 3, 8):
        native.library().rngru_set_threads(threads)
        results.add((by_kernel(LayerNorm(), S).tobytes(), by_kernel(LayerNormGrad(), S, dN).tobytes()))
    assert len(results) == 1


@needskernels
@pytest.mark.parametrize('H', list(range(1, 70)))
def test_the_kernel_writes_no_element_too_many_and_reads_none(H):
    S, dN = uniform(1, 2, H), uniform(1, 2, H, seed=1)
    memory = np.full((3, 2 * H + 64), np.nan, 'float32')
    rows = memory[:, :2 * H].reshape(3, 1, 2, H)
    rows[0], rows[1] = S, dN
    native.layernorm(rows[0], rows[2])
    np.testing.assert_array_equal(rows[2], by_kernel(LayerNorm(), S))
    native.layernormgrad(rows[0], rows[1], rows[2])
    np.testing.assert_array_equal(rows[2], by_kernel(LayerNormGrad(), S, dN))
    assert np.isnan(memory[:, 2 * H:]).all()


@needskernels
def test_the_kernel_takes_any_layout_and_unaligned_memory():
    S, dN = uniform(6, 5, 19), uniform(6, 5, 19, seed=1)
    want, gradient = by_kernel(LayerNorm(), S), by_kernel(LayerNormGrad(), S, dN)

    def others(array):
        unaligned = np.empty(array.size + 1, 'float32')[1:].reshape(array.shape)
        unaligned[:] = array
        readonly = array.copy()
        readonly.flags.writeable = False
        return np.asfortranarray(array), array[::-1].copy()[::-1], unaligned, readonly
    for s, d in zip(others(S), others(dN)):
        np.testing.assert_array_equal(by_kernel(LayerNorm(), s), want)
        np.testing.assert_array_equal(by_kernel(LayerNormGrad(), s, d), gradient)


@needskernels
def test_the_kernel_writes_into_the_memory_of_the_last_call():
    storage = [None]
    first, = kernel(LayerNorm(), [uniform(4, 3, 16)], [storage])
    second, = kernel(LayerNorm(), [uniform(4, 3, 16, seed=1)], [storage])
    assert second is first
    np.testing.assert_allclose(second, naive_layernorm(uniform(4, 3, 16, seed=1)), atol=2e-6)


def test_float64_is_left_to_perform():
    S = T.tensor3(dtype='float64')
    assert LayerNorm().kernel(LayerNorm().make_node(S)) is None
    assert LayerNormGrad().kernel(LayerNormGrad().make_node(S, S)) is None


@ways
def test_what_has_no_rows_of_units_is_refused(way):
    with pytest.raises(TypeError, match='LayerNorm takes S'):
        LayerNorm()(T.matrix())
    with pytest.raises(ValueError, match=r'at least one element, got \(2, 3, 0\)'):
        way(LayerNorm(), uniform(2, 3, 0))
    with pytest.raises(ValueError, match=r'got \(2, 3, 4\) and \(2, 3, 5\)'):
        way(LayerNormGrad(), uniform(2, 3, 4), uniform(2, 3, 5))


# --- The network --------------------------------------------------------------------------------------------------------------

TYPES = ('GRUEncode', 'GRUResize')
ON = HyperParams(layernorm=True)


def build(modeltype, V=5, L=2, H=3, hyper=ON):
    """A model with parameters, biases included, and states drawn within +-1; x and y (3, 2)."""
    model, rng = layers.MODELTYPES[modeltype](V, L, H, 1, hyper), np.random.RandomState(4)
    model.set_params({name: rng.uniform(-1, 1, value.shape) for name, value in model.get_params().items()})
    model.set_state(rng.uniform(-1, 1, (L, 2, H)))
    return model, *rng.randint(0, V, (2, 3, 2)).astype('int32')


def doubles(params):
    return {name: value.astype(np.float64) for name, value in params.items()}


def naive_network(params, x, y, s0, factors=(1, 1)):
    """(loss, last states (L, B, H)) in float64 of the naive network; factors: by layer, what each output is multiplied by behind the
    normalisation."""
    X = naive_vectors('encoded', (x, params['E'], params['a'])) if 'E' in params else naive_vectors('onehot', (x, len(params['U0'])))
    lasts = []
    for l, (s, factor) in enumerate(zip(s0, factors)):
        S = naive_gru(X, s, params[f'U{l}'], params[f'W{l}'], params[f'b{l}'])
        lasts.append(S[-1])
        X = naive_layernorm(S) * factor
    return naive_nll(X @ np.asarray(params['V'], np.float64) + params['c'], y), np.array(lasts)


def slopes(cost, value, step=1e-5):
    """Gradient of cost() in the array `value`, which it reads: central differences."""
    gradient = np.empty_like(value)
    for index in np.ndindex(*value.shape):
        kept, ends = value[index], []
        for end in (kept + step, kept - step):
            value[index] = end
            ends.append(cost())
        value[index], gradient[index] = kept, (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('p', [0.0, 0.4])
def test_a_training_step_follows_the_naive_networks_gradient(modeltype, p):
    """Whole, as it is compiled: SGD without momentum, so that what it takes off is learnrate times the gradient. Dropout comes behind
    the normalisation; the states that are carried on are the layers' own."""
    hyper = HyperParams(layernorm=True, optimizer='sgd', momentum=0, clip=1000, dropout=p)
    model, x, y = build(modeltype, hyper=hyper)
    s0, params = model.get_state(), doubles(model.get_params())
    factors = [perform(dropout.Dropout(l), np.ones((3, 2, 3)), p, np.int64(model.seed), np.int64(0))[0] for l in range(2)]
    assert (p > 0) == any((factor == 0).any() for factor in factors)
    loss, *_ = model.trainstep(x, y, hyper, 0.125)
    want, lasts = naive_network(params, x, y, s0, factors)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(model.get_state(), lasts, atol=1e-5)
    for name, value in model.get_params().items():
        gradient = slopes(lambda: naive_network(params, x, y, s0, factors)[0], params[name])
        np.testing.assert_allclose((params[name] - value) / 0.125, gradient, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('L, H', [(1, 3), (3, 17)])
def test_every_way_to_read_a_text_is_the_naive_network_and_its_states_are_the_layers_own(modeltype, L, H):
    model, x, y = build(modeltype, L=L, H=H)
    s0, params = model.get_state(), model.get_params()
    logits, lasts = naive_logits(params, x, s0, layernorm=True)
    got, got_lasts = theano.function([], list(model.forward(x, s0)), mode=PLAIN)()
    np.testing.assert_allclose(got, logits, atol=1e-4)
    np.testing.assert_allclose(got_lasts, lasts, atol=1e-5)
    assert L == 1 or np.abs(lasts - naive_logits(params, x, s0)[1]).max() > 0.01            # without it they are others
    loss, got_lasts = model.evaluate(x, y, s0)
    np.testing.assert_allclose(loss, naive_nll(logits, y), rtol=1e-5)
    np.testing.assert_allclose(got_lasts, lasts, atol=1e-5)
    for states in model.allstates(x, s0), model.plainstates(x, s0):
        for S, want in zip(states, naive_states(params, x, s0, layernorm=True), strict=True):
            np.testing.assert_allclose(S, want, atol=1e-5)
    zero = np.zeros_like(s0)
    np.testing.assert_allclose(model.untrainedloss([(x, y)]), naive_nll(naive_logits(params, x, zero, layernorm=True)[0], y), rtol=1e-5)


@pytest.mark.parametrize('modeltype', TYPES)
@pytest.mark.parametrize('averaged', [False, True])
def test_it_writes_what_the_naive_network_writes(modeltype, averaged):
    model, *_ = build(modeltype, V=6, hyper=HyperParams(layernorm=True, ema=0.9 * averaged))
    s0, uniforms, allowed = model.get_state(), np.random.RandomState(2).uniform(size=(2, 15)), np.array([0, 1, 1, 1, 1, 1], 'int8')
    drawn, last = model.sampletext([3, 1], uniforms, 0.7, 6, 1.0, 0.0, allowed, s0)
    for i, char in enumerate([3, 1]):
        want, want_last = naive_sample(model.get_params(), s0[:, i], char, uniforms[i], 0.7, allowed, layernorm=True)
        assert drawn[i].tolist() == want
        np.testing.assert_allclose(last[:, i], want_last, atol=5e-6)


def test_the_step_with_numpy_alone_is_the_same(monkeypatch):
    losses = []
    for library in (native.library, lambda: None):
        monkeypatch.setattr(native, 'library', library)
        model, x, y = build('GRUEncode', H=16)
        losses.append([model.trainstep(x, y, ON, 0.01)[0] for _ in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_it_is_off_unless_asked_for_and_adds_no_parameters():
    plain, x, y = build('GRUEncode', hyper=None)
    want = naive_nll(naive_logits(plain.get_params(), x, np.zeros((2, 2, 3)))[0], y)
    np.testing.assert_allclose(plain.untrainedloss([(x, y)]), want, rtol=1e-5)
    assert layers.GRUEncode.expected(5, 2, 3, 2, ON) == layers.GRUEncode.expected(5, 2, 3, 2)


def test_memory_counts_what_it_makes(monkeypatch):
    """As in test_layers, whose numbers stand here: with layernorm 3 more a unit and character, with dropout 2."""
    count = layers.GRUEncode.count(10, 3, 10)
    for hyper, numbers in ((HyperParams(), 13_500), (ON, 18_000), (HyperParams(layernorm=True, dropout=0.1), 21_000)):
        assert_needs(monkeypatch, 5 * count + numbers + 300 + 2_300 + 2_600, layers.GRUEncode, 10, 3, 10, 5, 10, hyper)


# --- The model ----------------------------------------------------------------------------------------------------------------

TEXT = ''.join(f'{i}: some words, {i * 7 % 13}.\n' for i in range(60))


def make(tmp_path, name, **options):
    (tmp_path / 'text.txt').write_text(TEXT)
    return ModelState.initfromsrcfile(tmp_path / 'text.txt', tmp_path / name, **{'seq_len': 10, 'layers': 2, 'state_size': 8, 'seed': 1,
                                                                                 'layernorm': True, **options})


def test_a_model_keeps_it_says_so_and_trains_on_as_if_it_had_not_stopped(tmp_path):
    rates = {'batchsize': 8, 'valid_len': 2, 'print_every': 0}
    whole, halves = (make(tmp_path, name, learnrate=0.01) for name in ('whole', 'halves'))
    assert whole.checkpoint.facts['hyper']['layernorm'] is True
    whole.trainmodel(train_len=20, **rates)
    halves.trainmodel(train_len=10, **rates)
    again = ModelState.load(tmp_path / 'halves')
    assert again.hyper.layernorm is True and again.model.layernorm
    assert 'GRUEncode 2 x 8 with layernorm, ' in repr(again) and 'GRUEncode 2 x 8 with layernorm, ' in again.info()
    again.restore()
    again.trainmodel(train_len=10, **rates)
    for name, value in whole.model.arrays().items():
        np.testing.assert_array_equal(again.model.arrays()[name], value, err_msg=name)
    assert again.sample(50, seed=1) == whole.sample(50, seed=1) and again.checkpoint.loss == whole.checkpoint.loss


def test_it_is_for_good_and_what_starts_from_a_model_has_it_too(tmp_path):
    first = make(tmp_path, 'first')
    with pytest.raises(AttributeError, match='layernorm is True for good.*make a new model for layernorm=False'):
        first.hyper.layernorm = False
    assert make(tmp_path, 'second', start_from=first, layernorm=True).hyper.layernorm
    third = ModelState.initfromsrcfile(tmp_path / 'text.txt', tmp_path / 'third', start_from=first)
    assert third.hyper.layernorm and third.score(TEXT[:50]).nats == first.score(TEXT[:50]).nats
    with pytest.raises(ValueError, match='layernorm=True for good, got False: leave layernorm out'):
        make(tmp_path, 'fourth', start_from=first, layernorm=False)
    assert not (tmp_path / 'fourth').exists()


def test_another_networks_checkpoint_is_refused(tmp_path):
    """Its arrays would fit."""
    one, other = make(tmp_path, 'one'), make(tmp_path, 'other', layernorm=False)
    for name in (other.checkpoint.name, other.checkpoint.arrays):
        (tmp_path / 'one' / name).write_bytes((tmp_path / 'other' / name).read_bytes())
    with pytest.raises(RNGRUError, match='it is of a model with layernorm=False'):
        one.restore(other.checkpoint.name)
