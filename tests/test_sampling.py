"""The sampler and the reader: NumPy against a naive loop, the native kernels against NumPy, and what is refused."""

import numpy as np
import pytest

import native
import sampling
from conftest import kernel, naive_sample, perform, symbol
from hyperparams import HyperParams
from kernelcases import KERNELS, NETWORK, STEERING, lower, named, needskernels, perform_, samplecase, ways
from layers import MODELTYPES

pytestmark = pytest.mark.usefixtures('threads_as_before')
MODELS = [(True, False), (False, False), (True, True)]      # encoded, layernorm
precisions = pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'int8'])


def double(inputs):
    return [np.asarray(i, 'float64') if i.dtype == 'float32' else i for i in inputs]


def changed(inputs, **new):
    """The inputs with some replaced, by name."""
    names = ['chars', 'uniforms', 'temp', 'top_k', 'top_p', 'min_p', 'allowed', 's0']
    return [np.asarray(new.get(name, i), i.dtype) for name, i in zip(names, inputs)] + inputs[NETWORK:]


# --- NumPy against the naive network ----------------------------------------------------------------------------------

@pytest.mark.parametrize('encoded, layernorm', MODELS)
@pytest.mark.parametrize('layers', [1, 2, 3])
@pytest.mark.parametrize('temp, steering', [(0, {}), (0.5, {}), (1.3, {}), (1.3, {'top_k': 3}), (2, {'top_p': 0.7}), (0.9, {'min_p': 0.3}),
                                            (1.5, {'top_k': 4, 'top_p': 0.8, 'min_p': 0.2})])
def test_sampled_indices_and_states_agree_with_the_naive_loop(encoded, layernorm, layers, temp, steering):
    inputs = double(samplecase(encoded, layers, 3, 6, n=3, steps=12, temp=temp, **steering))
    drawn, states = perform(sampling.SampleText(encoded, layernorm=layernorm), *inputs)
    assert drawn.dtype == np.int32 and drawn.shape == (3, 12) and states.shape == (layers, 3, 3)
    for i in range(3):
        want, want_states = naive_sample(named(encoded, inputs), inputs[7][:, i], inputs[0][i], inputs[1][i], temp, inputs[6], layernorm,
                                         **steering)
        assert drawn[i].tolist() == want
        np.testing.assert_allclose(states[:, i], want_states, atol=1e-13)


@pytest.mark.parametrize('encoded', [True, False])
def test_sampling_goes_on_from_the_states_that_it_returns(encoded):
    op, inputs = sampling.SampleText(encoded), double(samplecase(encoded, 2, 3, 6, n=2, steps=20, temp=0.8))
    before = inputs[7].copy()
    whole, end = perform(op, *inputs)
    start, middle = perform(op, *changed(inputs, uniforms=inputs[1][:, :7]))
    rest, end2 = perform(op, *changed(inputs, chars=start[:, -1], uniforms=inputs[1][:, 7:], s0=middle))
    np.testing.assert_array_equal(whole, np.concatenate([start, rest], 1))
    np.testing.assert_allclose(end2, end, atol=1e-14)
    np.testing.assert_array_equal(inputs[7], before)


def test_no_draws_give_no_characters_and_the_states_as_they_were():
    inputs = samplecase(True, n=3, steps=0)
    for how in [perform_, *([kernel] if KERNELS else [])]:
        drawn, states = how(sampling.SampleText(True), inputs)
        assert drawn.shape == (3, 0) and drawn.dtype == np.int32
        np.testing.assert_array_equal(states, inputs[7])


# --- The native sampler against NumPy -----------------------------------------------------------------------------------

SIZES = [(1, 1, 2), (1, 15, 5), (2, 16, 66), (3, 17, 300), (2, 64, 66), (2, 100, 5), (1, 256, 66)]


@pytest.mark.anyengine
@needskernels
@pytest.mark.parametrize('encoded, layernorm', MODELS)
@pytest.mark.parametrize('n, L, H, V', [(1, *size) for size in SIZES] + [(n, *size) for n in (2, 7, 13) for size in SIZES[1:6:2]])
@pytest.mark.parametrize('seeds', [len(STEERING), pytest.param(10, marks=pytest.mark.long)])
def test_the_native_sampler_draws_what_numpy_draws_at_many_seeds(encoded, layernorm, n, L, H, V, seeds):
    op = sampling.SampleText(encoded, layernorm=layernorm)
    for seed in range(seeds):
        # At a scale of 3 a rounding grows along the text: now and then two characters are then as good as equal. Normalised vectors
        # are twice as long.
        inputs = samplecase(encoded, L, H, V, n, seed, scale=1 if layernorm else 2, **STEERING[seed % len(STEERING)])
        (drawn, states), (want, want_states) = kernel(op, inputs), perform(op, *inputs)
        assert drawn.dtype == np.int32 and drawn.tolist() == want.tolist(), seed
        assert states.dtype == np.float32 and states.shape == (L, n, H)
        np.testing.assert_allclose(states, want_states, atol=1e-4)
        assert set(drawn.ravel()) <= set(np.flatnonzero(inputs[6]))


@pytest.mark.anyengine
@needskernels
@pytest.mark.parametrize('encoded, layernorm', MODELS)
@pytest.mark.parametrize('L, H', [(3, 256), (2, 17), (2, 340)])
@precisions
def test_the_text_is_the_same_with_any_number_of_threads_and_in_pieces(encoded, layernorm, L, H, precision):
    """3 x 256 and 2 x 340 are large enough for more than one."""
    op, inputs = sampling.SampleText(encoded, precision, layernorm), samplecase(encoded, L, H, steps=300)
    work, storages = op.kernel(op.make_node(*map(symbol, inputs))), [[None], [None]]
    results = []
    for threads in (1, 2, 3, 5, 1):
        KERNELS.rngru_set_threads(threads)
        for _ in range(2):
            work(inputs, storages)
            results.append([storage[0].tobytes() for storage in storages])
    drawn, pieces, states, chars = storages[0][0], [], inputs[7], inputs[0]
    for start, end in [(0, 1), (1, 2), (2, 120), (120, 300)]:
        work(changed(inputs, chars=chars, uniforms=inputs[1][:, start:end], s0=states), storages)
        pieces.append(storages[0][0])
        chars, states = pieces[-1][:, -1], storages[1][0]
    results.append([np.concatenate(pieces, 1).tobytes(), states.tobytes()])
    assert all(result == results[0] for result in results) and len(set(drawn[0])) > 5


@pytest.mark.anyengine
@needskernels
@pytest.mark.parametrize('encoded, layernorm', MODELS)
@pytest.mark.parametrize('L, H, V', [(3, 256, 66), (2, 17, 5), (1, 100, 301), (2, 33, 40)])
@precisions
def test_a_text_is_bit_for_bit_the_same_alone_and_among_others_with_any_number_of_threads(encoded, layernorm, L, H, V, precision):
    """Its states too, one of them beyond 1. One function draws them all in turn, so that what it keeps is of another number of texts
    each time."""
    n = 33
    op, inputs = sampling.SampleText(encoded, precision, layernorm), samplecase(encoded, L, H, V, n, steps=40, top_p=0.95)
    inputs[7][:, 7] *= 3
    work, storages = op.kernel(op.make_node(*map(symbol, inputs))), [[None], [None]]

    def drawn(rows):
        work(changed(inputs, chars=inputs[0][rows], uniforms=inputs[1][rows], s0=inputs[7][:, rows]), storages)
        return storages[0][0], storages[1][0]
    KERNELS.rngru_set_threads(1)
    chars, states = (np.concatenate(each, axis) for each, axis in zip(zip(*(drawn([i]) for i in range(n))), (0, 1)))
    assert len({row.tobytes() for row in chars}) == n
    for threads in (1, 2, 3, 5):
        KERNELS.rngru_set_threads(threads)
        for rows in ([*range(n)], [7], [3, 32], [*range(5, 18)], [*range(n)][::-1], [0]):
            some, ends = drawn(rows)
            assert some.tobytes() == chars[rows].tobytes(), (threads, rows)
            assert ends.tobytes() == np.ascontiguousarray(states[:, rows]).tobytes(), (threads, rows)


@pytest.mark.anyengine
@needskernels
@pytest.mark.parametrize('encoded', [True, False])
@pytest.mark.parametrize('threads, n', [(1, 1), (2, 1), (1, 5), (2, 5)])
def test_every_parameter_changed_in_place_is_seen_by_the_next_text(encoded, threads, n):
    KERNELS.rngru_set_threads(threads)
    op, inputs = sampling.SampleText(encoded), samplecase(encoded, 3, 240, 40, n, steps=60)
    work, storages = op.kernel(op.make_node(*map(symbol, inputs))), [[None], [None]]
    work(inputs, storages)
    for i in range(NETWORK, len(inputs)):
        flat = inputs[i].reshape(-1)
        before = storages[1][0].copy(), storages[0][0].copy()
        flat += np.float32(0.05) * np.sign(flat)
        flat[-1] += 1
        work(inputs, storages)
        want, want_states = perform(op, *inputs)
        assert storages[0][0].tolist() == want.tolist()
        np.testing.assert_allclose(storages[1][0], want_states, atol=1e-4)
        assert (before[0] != storages[1][0]).any() or (before[1] != storages[0][0]).any()


@needskernels
@pytest.mark.parametrize('encoded', [True, False])
def test_one_changed_number_of_a_network_of_zeros_is_seen_at_another_number_of_threads_and_texts(encoded):
    """Weights that all are equal look the same however they are cut into parts and panels; the table of inputs doesn't."""
    op, inputs = sampling.SampleText(encoded), samplecase(encoded, 3, 256, 40, 4, steps=30)
    for a in inputs[NETWORK:]:
        if a.ndim == 2 and a is not inputs[-2]:
            a[:] = 0
    work, storages = op.kernel(op.make_node(*map(symbol, inputs))), [[None], [None]]
    for threads, n in ((2, 1), (1, 1), (3, 4), (2, 1), (2, 4), (1, 4), (1, 1), (5, 4)):
        KERNELS.rngru_set_threads(threads)
        some = changed(inputs, chars=inputs[0][:n], uniforms=inputs[1][:n], s0=inputs[7][:, :n])
        work(some, storages)
        want, want_states = perform(op, *some)
        assert storages[0][0].tolist() == want.tolist()
        np.testing.assert_allclose(storages[1][0], want_states, atol=1e-4)


@needskernels
@pytest.mark.parametrize('modeltype', MODELTYPES)
def test_training_and_set_params_between_texts_are_seen(modeltype):
    model, rng = MODELTYPES[modeltype](20, 2, 24, 1), np.random.RandomState(0)
    uniforms, x = rng.rand(2, 80), rng.randint(0, 20, (6, 1)).astype('int32')
    other, seen = MODELTYPES[modeltype](20, 2, 24, 2).get_params(), []
    inputs = [np.array([3, 7], 'int32'), uniforms, np.array(0.7), np.array(15), np.array(0.95), np.array(0.01), np.ones(20, 'int8'),
              np.zeros((2, 2, 24), 'float32')]
    for change in (lambda: None, lambda: model.trainstep(x, x[::-1].copy(), HyperParams(learnrate=0.05, regcost=0.1)),
                   lambda: model.set_params(other),
                   lambda: model.params['V'].set_value(-9 * other['V']),
                   lambda: model.trainstep(x, x[::-1].copy(), HyperParams(learnrate=0.1))):
        change()
        drawn, states = model.sampletext(*inputs)
        want, _ = perform(sampling.SampleText(modeltype == 'GRUEncode'), *inputs, *model.get_params().values())
        assert drawn.tolist() == want.tolist()
        seen.append(drawn.tobytes() + states.tobytes())
    assert len(set(seen)) == len(seen)


@needskernels
@pytest.mark.parametrize('uniforms', [[], [0.0, np.nextafter(1, 0)] * 20])
@pytest.mark.parametrize('n', [1, 3])
def test_the_ends_of_the_uniforms_and_no_draws(uniforms, n):
    op, inputs = sampling.SampleText(True), samplecase(True, n=n)
    inputs[1] = np.array([uniforms] * n, 'float64')
    (drawn, states), (want, want_states) = kernel(op, inputs), perform(op, *inputs)
    assert drawn.tolist() == want.tolist()
    np.testing.assert_allclose(states, want_states, atol=1e-5)


@needskernels
def test_a_sampler_of_float64_falls_back_to_numpy():
    op = sampling.SampleText(True)
    assert op.kernel(op.make_node(*map(symbol, double(samplecase(True))))) is None


# --- What is refused ----------------------------------------------------------------------------------------------------

@ways
@pytest.mark.parametrize('temp', [0, 1.0])
@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('which', range(-4, 0), ids=['W1', 'b1', 'V', 'c'])
def test_a_network_that_gives_nan_is_not_sampled_from(how, temp, n, which):
    inputs = samplecase(True, n=n, steps=3, temp=temp)
    inputs[6][:] = 1
    inputs[which].flat[0] = np.nan
    with pytest.raises(FloatingPointError, match='diverged'):
        how(sampling.SampleText(True), inputs)


@needskernels
@pytest.mark.parametrize('encoded', [True, False])
@pytest.mark.parametrize('threads, n', [(1, 1), (2, 1), (2, 5)])
@pytest.mark.parametrize('temp, value', [(0, np.nan), (1, np.inf), (1, -np.inf)])
@precisions
def test_a_network_that_gives_nan_is_refused_by_the_native_sampler_and_the_next_one_is_not(encoded, threads, n, temp, value, precision):
    KERNELS.rngru_set_threads(threads)
    op, inputs = sampling.SampleText(encoded, precision), samplecase(encoded, 3, 256, 20, n, temp=temp, steps=50, scale=0.5)
    work, storages = op.kernel(op.make_node(*map(symbol, inputs))), [[None], [None]]
    for i in range(NETWORK, len(inputs)):
        wrong = [a.copy() for a in inputs]
        wrong[i][...] = np.nan if i < len(inputs) - 1 else value
        with pytest.raises(FloatingPointError, match='diverged'):
            work(wrong, storages)
    work(inputs, storages)
    assert storages[0][0].tolist() == perform(op, *inputs)[0].tolist()


@ways
@precisions
def test_one_text_of_several_whose_state_is_nan_is_refused(how, precision):
    for where in ((slice(None), 3), (0, 3, 5)):
        inputs = samplecase(True, n=5, steps=1)
        inputs[7][where] = np.nan
        with pytest.raises(FloatingPointError, match='diverged'):
            how(sampling.SampleText(True, precision), inputs)


@pytest.fixture
def untouched(monkeypatch):
    """The library may not be called."""
    def touched(*arguments):
        raise AssertionError('memory was touched')
    monkeypatch.setattr(native, '_sampled', touched)


@ways
@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('i', [0, 1, *range(6, 18)])
def test_sizes_that_do_not_agree_are_refused(untouched, how, n, i):
    inputs = samplecase(True, 2, 4, 6, n)
    inputs[i] = inputs[i][:-1]
    with pytest.raises(ValueError, match='SampleText takes') as error:
        how(sampling.SampleText(True), inputs)
    assert '\n' not in str(error.value)


@ways
@pytest.mark.parametrize('name, values', [('temp', [-1, np.nan, -np.inf, np.inf]), ('top_k', [0, -1, -2 ** 63]),
                                          ('top_p', [0, -0.1, 1.1, np.nan]), ('min_p', [-0.1, 1.1, np.nan])])
def test_steering_out_of_range_is_refused(untouched, how, name, values):
    for value in values:
        with pytest.raises(ValueError, match=f'SampleText takes .*{name}'):
            how(sampling.SampleText(True), changed(samplecase(True, 2, 4, 6), **{name: value}))


@ways
def test_characters_out_of_range_and_nothing_allowed_are_refused(untouched, how):
    for char in (-1, 6, 2 ** 31 - 1):
        with pytest.raises(IndexError, match='chars'):
            how(sampling.SampleText(True), changed(samplecase(True, 2, 4, 6, 2), chars=[0, char]))
    with pytest.raises(ValueError, match='SampleText takes'):
        how(sampling.SampleText(True), changed(samplecase(True, 2, 4, 6), allowed=np.zeros(6)))


# --- Reading ------------------------------------------------------------------------------------------------------------

def readcase(encoded, precision, layernorm, how, **shape):
    """(a ReadText, its inputs: texts that SampleText has drawn; the states that it went through, (L, steps, n, H))."""
    write, inputs = sampling.SampleText(encoded, precision, layernorm), samplecase(encoded, **shape)
    drawn, _ = how(write, inputs)
    states = [how(write, changed(inputs, uniforms=inputs[1][:, :step + 1]))[1] for step in range(drawn.shape[1])]
    x = np.concatenate([inputs[0][None], drawn.T[:-1]])
    return sampling.ReadText(encoded, precision, layernorm), [x, *inputs[NETWORK - 1:]], np.stack(states, 1)


@ways
@precisions
@pytest.mark.parametrize('encoded, layernorm', MODELS)
@pytest.mark.parametrize('n, L, H', [(1, 2, 17), (5, 3, 4), (2, 1, 1)])
def test_a_text_is_read_through_the_states_in_which_it_was_written_bit_for_bit(how, precision, encoded, layernorm, n, L, H):
    op, inputs, want = readcase(encoded, precision, layernorm, how, L=L, H=H, V=9, n=n, steps=7)
    before = inputs[1].copy()
    S, = how(op, inputs)
    assert S.shape == (L, 7, n, H) and S.dtype == np.float32
    np.testing.assert_array_equal(S, want)
    np.testing.assert_array_equal(inputs[1], before)


@needskernels
@lower
@pytest.mark.parametrize('encoded, layernorm', MODELS)
@pytest.mark.parametrize('n', [1, 4])
def test_several_threads_read_what_one_writes_and_new_weights_are_seen(precision, encoded, layernorm, n):
    op, inputs, want = readcase(encoded, precision, layernorm, kernel, L=2, H=340, V=20, n=n, steps=6)
    work, storage = op.kernel(op.make_node(*map(symbol, inputs))), [[None]]
    for threads in (1, 2, 3, 2):
        KERNELS.rngru_set_threads(threads)
        work(inputs, storage)
        np.testing.assert_array_equal(storage[0][0], want)
    inputs[-4] *= np.float32(0.5)               # W of the second layer, in place
    work(inputs, storage)
    np.testing.assert_array_equal(storage[0][0], kernel(op, inputs)[0])
    assert np.abs(storage[0][0] - want).max() > 1e-3


@needskernels
@lower
@pytest.mark.parametrize('which', [1, 'U1', 'W1', 'b1'])
def test_states_that_are_no_numbers_are_read_as_numpy_reads_them_and_the_next_ones_too(precision, which):
    op, inputs = sampling.ReadText(True, precision), [np.zeros((4, 2), 'int32'), *samplecase(True, H=5, V=6, n=2)[NETWORK - 1:]]
    none = [i.copy() for i in inputs]
    none[which if which == 1 else ['U1', 'W1', 'b1'].index(which) - 5].flat[-1] = np.nan
    work, storage = op.kernel(op.make_node(*map(symbol, inputs))), [[None]]
    for given_ in (inputs, none, inputs):
        with np.errstate(invalid='ignore'):
            work(given_, storage)
            want, = perform(op, *given_)
        assert np.isnan(want).any() == (given_ is none)
        np.testing.assert_array_equal(np.isnan(storage[0][0]), np.isnan(want))


@ways
@pytest.mark.parametrize('i, shape', [(0, (0, 2)), (0, (4, 0)), (0, (4, 3)), (1, (2, 3, 5)), (1, (1, 2, 5)), (2, (7, 5)), (-1, (7,)),
                                      (-2, (4, 6))])
def test_a_text_of_sizes_that_do_not_agree_is_not_read(untouched, how, i, shape):
    inputs = [np.zeros((4, 2), 'int32'), *samplecase(True, H=5, V=6, n=2)[NETWORK - 1:]]
    inputs[i] = np.zeros(shape, inputs[i].dtype)
    with pytest.raises(ValueError, match='ReadText takes') as raised:
        how(sampling.ReadText(True), inputs)
    assert '\n' not in str(raised.value)


@ways
@pytest.mark.parametrize('char', [-1, 6])
def test_a_text_of_characters_out_of_range_is_not_read(untouched, how, char):
    inputs = [np.full((4, 2), char, 'int32'), *samplecase(True, H=5, V=6, n=2)[NETWORK - 1:]]
    with pytest.raises(IndexError, match='x must lie in 0 .. 5'):
        how(sampling.ReadText(True), inputs)
