"""The sampler: NumPy against a naive loop, the native kernel against NumPy, both against distributions worked out by hand."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

import native
import sampling
from conftest import kernel, naive_kept, naive_sample, perform, symbol
from hyperparams import HyperParams
from kernelcases import samplecase
from layers import MODELTYPES
from rounding import rounded

KERNELS = native.library()
needskernels = pytest.mark.skipif(KERNELS is None, reason='there are no native kernels here')
NETWORK = 8                 # of the Op's inputs, the first one of the network
MODELS = [(True, False), (False, False), (True, True)]      # encoded, layernorm
precisions = pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'int8'])
lower = pytest.mark.parametrize('precision', ['bfloat16', 'int8'])


@pytest.fixture(autouse=True)
def threads_as_before():
    yield
    if KERNELS is not None:
        KERNELS.rngru_set_threads(0)


def double(inputs):
    return [np.asarray(i, 'float64') if i.dtype == 'float32' else i for i in inputs]


def named(encoded, inputs):
    """The network as get_params gives it."""
    network = inputs[NETWORK:]
    layers = (len(network) - 2) // 3
    names = ['E', 'a'] * encoded + [f'{name}{l}' for l in range(layers) for name in 'UWb'] + ['V', 'c']
    return dict(zip(names, network))


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


def test_uniforms_at_the_ends_never_pass_the_end():
    rng = np.random.RandomState(6)
    for _ in range(200):
        logits = rng.normal(size=rng.randint(1, 40)) * 10.0 ** rng.randint(-3, 3)
        logits[rng.uniform(size=len(logits)) < 0.3] = -np.inf
        logits[rng.randint(len(logits))] = 1.0
        for number in (0.0, np.nextafter(1, 0)):
            for steering in ((len(logits), 1.0, 0.0), (3, 0.9, 0.1)):
                assert logits[sampling._draw(logits.copy(), number, 0.7, *steering)] > -np.inf


# --- What is drawn, by hand: a network whose logits are its biases, whatever it reads ---------------------------------

def perform_(op, inputs):
    return perform(op, *inputs)


ways = pytest.mark.parametrize('how', [pytest.param(perform_, id='numpy'), pytest.param(kernel, marks=needskernels, id='native')])


def biased(logits, uniforms, temp=1.0, top_k=None, top_p=1.0, min_p=0.0, allowed=None):
    """Inputs of an Op of one unit and one-hot input that draws (n, steps) characters from softmax(logits / temp)."""
    V = len(logits)
    uniforms = np.atleast_2d(np.asarray(uniforms, 'float64'))
    zeros = [np.zeros(shape, 'float32') for shape in ((V, 3), (1, 3), (3,), (1, V))]
    return [np.zeros(len(uniforms), 'int32'), uniforms, np.array(float(temp)), np.array(top_k or V), np.array(float(top_p)),
            np.array(float(min_p)), np.ones(V, 'int8') if allowed is None else np.array(allowed, 'int8'),
            np.zeros((1, len(uniforms), 1), 'float32'), *zeros, np.array(logits, 'float32')]


def kept(how, logits, **steering):
    """The characters that are drawn when the uniforms are spaced evenly, 200 of them."""
    drawn, _ = how(sampling.SampleText(False), biased(logits, (np.arange(200) + 0.5) / 200, **steering))
    return set(drawn[0].tolist())


P = np.log([0.1, 0.4, 0.2, 0.3])        # the characters' ranking: 1, 3, 2, 0
EQUAL = [0.75] * 6
UNLIKELY = np.log([0.9, 0.05, 0.03, 0.02])   # 0 is forbidden where it is used

KEPT = [
    (P, {}, {0, 1, 2, 3}), (P, {'top_k': 1}, {1}), (P, {'top_k': 2}, {1, 3}), (P, {'top_k': 3}, {1, 2, 3}), (P, {'top_k': 4}, {0, 1, 2, 3}),
    (P, {'top_k': 10 ** 9}, {0, 1, 2, 3}),
    # 0.4; 0.4 + 0.3; 0.4 + 0.3 + 0.2
    (P, {'top_p': 5e-324}, {1}), (P, {'top_p': 1e-12}, {1}), (P, {'top_p': 0.39}, {1}), (P, {'top_p': 0.41}, {1, 3}),
    (P, {'top_p': 0.69}, {1, 3}), (P, {'top_p': 0.71}, {1, 2, 3}),
    (P, {'top_p': 0.91}, {0, 1, 2, 3}), (P, {'top_p': 1}, {0, 1, 2, 3}),
    # of the likeliest's: 0.75, 0.5, 0.25
    (P, {'min_p': 0}, {0, 1, 2, 3}), (P, {'min_p': 0.24}, {0, 1, 2, 3}), (P, {'min_p': 0.26}, {1, 2, 3}), (P, {'min_p': 0.51}, {1, 3}),
    (P, {'min_p': 0.76}, {1}), (P, {'min_p': 1}, {1}),
    # top_k first: 0.55 of 0.7 is less than 0.4. top_p first would keep 1 and 3.
    (P, {'top_k': 2, 'top_p': 0.55}, {1}), (P, {'top_k': 2, 'top_p': 0.58}, {1, 3}),
    # top_p before min_p, which alone keeps 1 and 3 and so 0.7, of which 0.55 is less than 0.4.
    (P, {'top_p': 0.55, 'min_p': 0.6}, {1, 3}), (P, {'top_p': 0.75, 'min_p': 0.6}, {1, 3}), (P, {'top_p': 0.3, 'min_p': 0.1}, {1}),
    (P, {'top_k': 3, 'top_p': 0.99, 'min_p': 0.6}, {1, 3}), (P, {'top_k': 1, 'top_p': 0.01, 'min_p': 1}, {1}),
    # The temperature before all: at 0.5 the shares are 0.16, 0.09, 0.04, 0.01 of 0.3; at 2 they are 0.63, 0.55, 0.45, 0.32 of 1.94.
    (P, {'temp': 0.5, 'top_p': 0.5}, {1}), (P, {'temp': 0.5, 'top_p': 0.55}, {1, 3}), (P, {'temp': 0.5, 'min_p': 0.6}, {1}),
    (P, {'temp': 0.5, 'min_p': 0.55}, {1, 3}), (P, {'temp': 2, 'top_p': 0.65}, {1, 2, 3}), (P, {'temp': 2, 'min_p': 0.7}, {1, 2, 3}),
    # Of equals the first count as likelier; a sum that reaches top_p exactly is enough.
    (EQUAL, {'top_k': 3}, {0, 1, 2}), (EQUAL, {'top_k': 1}, {0}), (EQUAL, {'top_p': 0.5}, {0, 1, 2}),
    (EQUAL, {'top_p': 0.51}, {0, 1, 2, 3}),
    (EQUAL, {'min_p': 1}, {0, 1, 2, 3, 4, 5}), (EQUAL, {'top_k': 4, 'top_p': 0.5}, {0, 1}),
    (EQUAL, {'top_k': 4, 'top_p': 0.75, 'min_p': 1}, {0, 1, 2}),
    ([1, 2, 1, 2, 1], {'top_k': 3}, {0, 1, 3}), ([1, 2, 1, 2, 1], {'top_k': 1}, {1}), ([0.0, -0.0, 0.0], {'top_k': 2}, {0, 1}),
    # What is forbidden counts for nothing, however likely.
    (EQUAL, {'top_k': 3, 'allowed': [0, 1, 0, 1, 1, 1]}, {1, 3, 4}), (EQUAL, {'top_p': 0.5, 'allowed': [0, 1, 0, 1, 1, 1]}, {1, 3}),
    (UNLIKELY, {'allowed': [0, 1, 1, 1]}, {1, 2, 3}), (UNLIKELY, {'top_k': 1, 'allowed': [0, 1, 1, 1]}, {1}),
    (UNLIKELY, {'top_p': 0.45, 'allowed': [0, 1, 1, 1]}, {1}),
    (UNLIKELY, {'top_p': 0.55, 'allowed': [0, 1, 1, 1]}, {1, 2}), (UNLIKELY, {'min_p': 0.5, 'allowed': [0, 1, 1, 1]}, {1, 2}),
    (UNLIKELY, {'top_k': 4, 'allowed': [0, 1, 1, 1]}, {1, 2, 3}),
    (UNLIKELY, {'top_k': 2, 'top_p': 0.7, 'min_p': 0.61, 'allowed': [0, 1, 1, 1]}, {1}),
    (UNLIKELY, {'allowed': [0, 0, 0, 1], 'top_k': 2, 'top_p': 0.5, 'min_p': 1}, {3}),
    ([np.nan, 1, 1, np.inf], {'allowed': [0, 1, 1, 0], 'top_k': 3, 'top_p': 0.9, 'min_p': 0.1}, {1, 2}),
    ([-np.inf, 1, 2], {'top_k': 3}, {1, 2}), ([-np.inf, 1, 2], {'top_p': 0.99999, 'min_p': 0.01}, {1, 2}),
    # Tiny temperatures leave the likeliest, huge ones make all the same, by the same ranking.
    (P, {'temp': 1e-300}, {1}), (P, {'temp': 1e-12, 'top_p': 0.9}, {1}), (P, {'temp': 5e-324, 'top_k': 3}, {1}),
    ([2, 1, 2], {'temp': 1e-300}, {0, 2}),
    ([2, 1, 2], {'temp': 1e-300, 'top_p': 0.5}, {0}), ([2, 1, 2], {'temp': 1e-300, 'min_p': 1e-9}, {0, 2}),
    (P, {'temp': 1e300}, {0, 1, 2, 3}), (P, {'temp': 1e300, 'top_k': 2}, {1, 3}), (P, {'temp': 1e300, 'top_p': 0.5}, {1, 3}),
    (P, {'temp': 1e300, 'min_p': 1}, {0, 1, 2, 3}),
    # At 0 the likeliest, whatever else is asked for.
    (P, {'temp': 0}, {1}), (P, {'temp': 0, 'top_k': 3, 'top_p': 0.9, 'min_p': 0.1}, {1}),
    (EQUAL, {'temp': 0, 'allowed': [0, 0, 1, 1, 1, 1]}, {2})]


@ways
@pytest.mark.parametrize('logits, steering, want', KEPT, ids=[f'{i}-{case[1]}' for i, case in enumerate(KEPT)])
def test_the_characters_that_are_kept_are_those_found_by_hand(how, logits, steering, want):
    assert kept(how, logits, **steering) == want


@ways
@pytest.mark.parametrize('count', [3, 9, 10, 25])
def test_of_equals_top_p_keeps_as_many_as_its_share_says(how, count):
    """k / count of `count` equals are k: 0.7 of 10 are 7 and not 8, whatever a sum of ten times 0.7 gives."""
    for k in range(1, count + 1):
        assert kept(how, [0.0] * count, top_p=k / count) == set(range(k)), k


@ways
@pytest.mark.parametrize('temp', [0.3, 1, 2])
def test_evenly_spaced_uniforms_draw_each_character_by_its_share(how, temp):
    """N of them: each character N times its probability, to within one."""
    logits, N = np.array([0.3, -1.0, 2.0, 0.0, -np.inf, 1.1]), 5000
    drawn, _ = how(sampling.SampleText(False), biased(logits, (np.arange(N) + 0.5) / N, temp, allowed=logits > -1.1))
    shares = np.exp(logits / temp)
    assert np.abs(np.bincount(drawn[0], minlength=6) - N * shares / shares.sum()).max() <= 1


DRAWS = [(1, {}, [0.1, 0.2, 0.3, 0.15, 0.25]),
         (0.5, {'top_k': 4, 'top_p': 0.7, 'min_p': 0.1}, [0, 0, 0.09, 0, 0.0625]),
         (0.5, {}, [0.01, 0.04, 0.09, 0.0225, 0.0625]), (1, {'top_k': 3}, [0, 0.2, 0.3, 0, 0.25]),
         (1, {'min_p': 0.45}, [0, 0.2, 0.3, 0.15, 0.25])]


@pytest.mark.anyengine
@pytest.mark.parametrize('how, temp, steering, want', [(perform_, *case) for case in DRAWS[:2]]
                         + [pytest.param(kernel, *case, marks=needskernels) for case in DRAWS])
def test_draws_follow_the_softmax(how, temp, steering, want):
    """Chi-squared at 0.001 with 1 to 4 degrees of freedom."""
    count = 20_000 if how is perform_ else 100_000
    uniforms = np.random.RandomState(3).uniform(size=(count // 1000, 1000))
    drawn, _ = how(sampling.SampleText(False), biased(np.log([0.1, 0.2, 0.3, 0.15, 0.25]), uniforms, temp, **steering))
    counts, wants = np.bincount(drawn.ravel(), minlength=5), count * np.array(want) / sum(want)
    assert (counts[wants == 0] == 0).all()
    counts, wants = counts[wants > 0], wants[wants > 0]
    assert ((counts - wants) ** 2 / wants).sum() < {2: 10.83, 3: 13.82, 4: 16.27, 5: 18.47}[len(wants)]


@ways
def test_forbidden_characters_are_never_drawn(how):
    for temp in (0, 0.01, 1, 100):
        for steering in ({}, {'top_k': 2}, {'top_p': 0.9}, {'min_p': 0.2}, {'top_k': 5, 'top_p': 0.8, 'min_p': 0.01}):
            inputs = samplecase(True, 2, 3, 6, steps=302, temp=temp, **steering)
            inputs[6] = np.array([0, 1, 0, 1, 1, 0], 'int8')
            inputs[-1][inputs[6] == 0] += 50        # they would be the likeliest
            inputs[1][0, :2] = 0.0, np.nextafter(1, 0)
            assert set(how(sampling.SampleText(True), inputs)[0][0].tolist()) <= {1, 3, 4}


@ways
@pytest.mark.parametrize('temp', [0.01, 1, 1e9])
@pytest.mark.parametrize('steering', [{}, {'top_k': 3}, {'top_p': 0.9999999}])
def test_uniforms_at_the_ends_draw_the_first_and_the_last_that_are_kept(how, temp, steering):
    inputs = biased([9, 0.0, -0.01, 9, 0.005, 9], [[0.0, np.nextafter(1, 0)]], temp, allowed=[0, 1, 1, 0, 1, 0], **steering)
    assert how(sampling.SampleText(False), inputs)[0].tolist() == [[1, 4]]


@pytest.mark.anyengine
@ways
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(halves=st.lists(st.integers(-8, 8), min_size=1, max_size=40), temp=st.sampled_from([0.2, 0.5, 1.0, 1.7, 4.0]),
       top_k=st.integers(1, 40), top_p=st.floats(0.01, 1), min_p=st.floats(0, 1), seed=st.integers(0, 999))
def test_the_characters_kept_and_their_shares_are_those_of_the_definition(how, halves, temp, top_k, top_p, min_p, seed):
    """Uniforms just below and just above each boundary between characters: one kept too many or too few, and some are drawn wrongly."""
    logits = np.array(halves, 'float64') / 2
    allowed = np.random.RandomState(seed).rand(len(logits)) < 0.8
    allowed[seed % len(logits)] = True
    # The definition's sums are as inexact as any: where one of them meets top_p or min_p, either is right.
    ranked = np.exp(np.sort((logits[allowed] - logits[allowed].max()) / temp)[::-1])
    assume(top_p == 1 or (abs(np.cumsum(ranked[:top_k]) / ranked[:top_k].sum() - top_p) > 1e-9).all())
    assume((abs(ranked - min_p) > 1e-9).all() or min_p in (0, 1))
    shares = naive_kept(logits, allowed, temp, top_k, top_p, min_p)
    chars, ends = np.array(list(shares)), np.cumsum(list(shares.values()))
    uniforms = np.sort(np.concatenate([[0], ends / ends[-1] - 1e-9, ends[:-1] / ends[-1] + 1e-9]))
    want = [chars[np.flatnonzero(ends > number * ends[-1])[0]] for number in uniforms]
    drawn, _ = how(sampling.SampleText(False), biased(logits, uniforms, temp, top_k, top_p, min_p, allowed))
    assert drawn[0].tolist() == want


# --- The native sampler against NumPy -----------------------------------------------------------------------------------

STEERING = [{}, {'temp': 0.3}, {'temp': 0}, {'top_k': 5}, {'top_p': 0.8}, {'min_p': 0.1},
            {'temp': 0.8, 'top_k': 20, 'top_p': 0.9, 'min_p': 0.05}]
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


@pytest.mark.anyengine
@needskernels
@pytest.mark.parametrize('encoded', [True, False])
@pytest.mark.parametrize('threads, n', [(1, 1), (2, 1), (2, 5)])
@lower
def test_every_parameter_changed_in_place_is_seen_by_the_next_text_of_rounded_weights(encoded, threads, n, precision):
    KERNELS.rngru_set_threads(threads)
    op, inputs = sampling.SampleText(encoded, precision), samplecase(encoded, 3, 240, 40, n, steps=60)
    work, storages = op.kernel(op.make_node(*map(symbol, inputs))), [[None], [None]]
    work(inputs, storages)
    for i in range(NETWORK, len(inputs)):
        before = storages[1][0].tobytes() + storages[0][0].tobytes()
        flat = inputs[i].reshape(-1)
        flat += np.float32(0.05) * np.sign(flat)
        flat[-1] += 1
        work(inputs, storages)
        new, new_states = kernel(sampling.SampleText(encoded, precision), inputs)       # which keeps nothing
        assert storages[0][0].tobytes() == new.tobytes() and storages[1][0].tobytes() == new_states.tobytes()
        assert before != storages[1][0].tobytes() + storages[0][0].tobytes()


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


# --- bfloat16 and int8 --------------------------------------------------------------------------------------------------

def roundedparams(params, precision):
    """get_params' dict as text is generated with it: what multiplies states rounded, the others as they are."""
    return {name: rounded(p, precision) if name[0] in 'UWV' and name != 'U0' else p for name, p in params.items()}


def naive_vector(x, precision, most):
    """What multiplies weights instead of the vector x, number by number, in float64."""
    if precision == 'int8':
        return [round(63 * value / most) * most / 63 for value in x]
    result = []
    for value in x:
        mantissa, exponent = np.frexp(value)
        result.append(np.ldexp(round(np.ldexp(mantissa, 8)), exponent - 8))     # 8 bits; Python rounds halves to even
    return result


def naive_rounded_sample(params, states, char, uniforms, temp, allowed, precision):
    """As conftest.naive_sample: one text of a network whose matrices' vectors are rounded, its matrices being so already."""
    L, H = len(states), len(states[0])
    p = {name: np.asarray(param, 'float64') for name, param in params.items()}
    most, drawn, states = max(1, np.abs(states).max()), [], [np.array(s, 'float64') for s in states]
    for uniform_ in uniforms:
        x = (np.tanh(p['E'][char] + p['a']) @ p['U0'] if 'E' in p else p['U0'][char])
        for l in range(L):
            s = states[l]
            if l:
                x = naive_vector(states[l - 1], precision, most) @ p[f'U{l}']
            W, b = p[f'W{l}'], p[f'b{l}']
            gates = x + b + np.concatenate([naive_vector(s, precision, most) @ W[:, :2 * H], np.zeros(H)])
            z, r = (np.clip(0.2 * gates[part] + 0.5, 0, 1) for part in (slice(H), slice(H, 2 * H)))
            h = np.tanh(gates[2 * H:] + naive_vector(r * s, precision, most) @ W[:, 2 * H:])
            states[l] = (1 - z) * h + z * s
        logits = naive_vector(states[-1], precision, most) @ p['V'] + p['c']
        shares = np.where(np.asarray(allowed) != 0, np.exp(logits / temp), 0)
        char = int(np.argmax(np.cumsum(shares) > uniform_ * shares.sum()))
        drawn.append(char)
    return drawn, states


@ways
@lower
@pytest.mark.parametrize('encoded', [True, False])
@pytest.mark.parametrize('L, H, beyond', [(1, 3, 1), (2, 5, 1), (3, 6, 4)])
def test_rounded_weights_give_what_the_naive_loop_gives(how, precision, encoded, L, H, beyond):
    """Step by step from the naive loop's states, since one that lies between two points may be rounded either way: then its
    successors differ by a weight times the points' distance."""
    inputs = samplecase(encoded, L, H, 7, steps=1, scale=1)
    inputs[7] *= beyond
    op, params = sampling.SampleText(encoded, precision), roundedparams(named(encoded, inputs), precision)
    apart, rng = [], np.random.RandomState(0)
    for _ in range(30):
        inputs[1] = rng.uniform(size=(1, 1))
        drawn, states = how(op, inputs)
        want, want_states = naive_rounded_sample(params, inputs[7][:, 0], inputs[0][0], inputs[1][0], 1.0, inputs[6], precision)
        assert drawn[0].tolist() == want
        apart.append(np.abs(states[:, 0] - want_states).max())
        inputs[0][:], inputs[7] = want, np.array(want_states, 'float32')[:, None]
    assert np.median(apart) < 1e-6 and max(apart) < 0.1


@ways
def test_the_points_of_a_texts_states_in_int8_are_not_those_of_the_text_beside_it(how):
    """The greatest state of each decides, here 1 and 5: the first text is what it is alone."""
    op, inputs = sampling.SampleText(False, 'int8'), samplecase(False, 2, 5, 7, n=2, steps=30, scale=1)
    inputs[7][:, 0] = np.clip(inputs[7][:, 0], -1, 1)
    inputs[7][:, 1] *= 5 / np.abs(inputs[7][:, 1]).max()
    drawn, states = how(op, inputs)
    alone = list(inputs)
    alone[0], alone[1], alone[7] = inputs[0][:1], inputs[1][:1], inputs[7][:, :1]
    alone_drawn, alone_states = how(op, alone)
    np.testing.assert_array_equal(drawn[:1], alone_drawn)
    np.testing.assert_allclose(states[:, :1], alone_states, atol=1e-6)


@pytest.mark.anyengine
@needskernels
@lower
@pytest.mark.parametrize('n', [1, pytest.param(2, marks=pytest.mark.long), 5])
@pytest.mark.parametrize('encoded, L, H, V', [(True, 2, 16, 66), (True, 3, 33, 40), (True, 1, 256, 66), (False, 2, 50, 20),
                                              (False, 3, 30, 131), (True, 1, 1, 3), (True, 2, 7, 4)])
def test_texts_of_rounded_weights_agree_with_numpy(precision, n, encoded, L, H, V):
    """A state between two points may be rounded either way, and a text then go another way: one of ten at the most."""
    op, same = sampling.SampleText(encoded, precision), 0
    for seed in range(10):
        inputs = samplecase(encoded, L, H, V, n, seed, scale=0.7, **STEERING[seed % len(STEERING)])
        (drawn, states), (want, want_states) = kernel(op, inputs), perform(op, *inputs)
        same += ((drawn == want).all(1) & (np.abs(states - want_states).max((0, 2)) < 0.05)).sum()
    assert same >= 9 * n


@ways
@lower
@pytest.mark.parametrize('H', [1000, 3000])
def test_long_sums_of_rounded_weights_do_not_overflow(how, precision, H):
    """All gates open, all states 1, all weights 2^-10, signed: h = tanh(+-H / 1024)."""
    inputs = samplecase(False, 1, H, 4, steps=1)
    U, W, b, V, c = inputs[NETWORK:]
    U[:], V[:], W[:, :2 * H], W[:, 2 * H:], b[:H], b[H:2 * H], b[2 * H:] = 0, 0, 0, 2.0 ** -10, -10, 10, 0
    W[:, 2 * H + 1::2] *= -1
    inputs[7][:] = 1
    _, states = how(sampling.SampleText(False, precision), inputs)
    np.testing.assert_allclose(states[0, 0], np.tanh(H / 1024) * (-1) ** np.arange(H), atol=1e-6)


@needskernels
def test_packed_weights_of_another_precision_or_network_are_not_used():
    def drawn(inputs, precision, packed):
        chars, uniforms, temp, top_k, top_p, min_p, allowed, s0, E, a, U0, W0, b0, U1, W1, b1, V, c = inputs
        states = s0.copy()
        text, packed = native.sample([E, a], [(U0, W0, b0), (U1, W1, b1)], V, c, chars, uniforms, float(temp), len(c), 1.0, 0.0,
                                     (allowed != 0).view(np.uint8), states, packed, precision)
        return text.tobytes() + states.tobytes(), packed
    packed, texts = None, []
    small, large = samplecase(True, 2, 16, 20, 3), samplecase(True, 2, 100, 66, 3)
    for inputs, precision in [(small, 'float32'), (small, 'int8'), (large, 'int8'), (large, 'bfloat16'), (large, 'float32'),
                              (small, 'bfloat16'), (small, 'bfloat16'), (large, 'int8'), (small, 'float32')]:
        text, packed = drawn(inputs, precision, packed)
        assert text == drawn(inputs, precision, None)[0]
        texts.append(text)
    assert len(set(texts)) == 6


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="float32, bfloat16, int8, got 'int4'"):
        sampling.SampleText(True, 'int4')


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


@ways
@lower
@pytest.mark.parametrize('which', range(-5, 0), ids=['U1', 'W1', 'b1', 'V', 'c'])
@pytest.mark.parametrize('where', [0, -1])
def test_one_nan_among_rounded_weights_is_refused(how, precision, which, where):
    """The last column's is of a gate that NaN reaches only by r * s."""
    inputs = samplecase(True, n=3, steps=4)
    inputs[6][:] = 1
    inputs[which].flat[where] = np.nan
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
