"""Texts of rounded weights, bfloat16 and int8: NumPy against a naive loop, the native sampler against NumPy.

Training and reading in other precisions are in test_precision.py.
"""

import numpy as np
import pytest

import native
import sampling
from conftest import kernel, perform, symbol
from kernelcases import KERNELS, NETWORK, STEERING, lower, named, needskernels, samplecase, ways
from rounding import rounded

pytestmark = pytest.mark.usefixtures('threads_as_before')


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


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="float32, bfloat16, int8, got 'int4'"):
        sampling.SampleText(True, 'int4')
