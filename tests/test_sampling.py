"""The sampler against a naive loop and against the shares of a softmax."""

import numpy as np
import pytest

import sampling
from conftest import naive_sample, perform


def samplecase(encoded, L=2, H=3, V=6, seed=0, scale=1.5):
    """(params, a dict in the Op's order; s0 (L, H))."""
    rng = np.random.RandomState(seed)
    shapes = {'E': (V, H), 'a': (H,)} if encoded else {}
    for l in range(L):
        shapes.update({f'U{l}': (H if l or encoded else V, 3 * H), f'W{l}': (H, 3 * H), f'b{l}': (3 * H,)})
    shapes.update(V=(H, V), c=(V,))
    return {name: rng.uniform(-scale, scale, shape) for name, shape in shapes.items()}, rng.uniform(-1, 1, (L, H))


def sample(encoded, params, s0, first, uniforms, temp, allowed=None):
    V = len(params['c'])
    allowed = np.ones(V, 'int8') if allowed is None else np.asarray(allowed, 'int8')
    return perform(sampling.SampleText(encoded), np.int32(first), np.asarray(uniforms, 'float64'), np.float64(temp), allowed, s0,
                   *params.values())


@pytest.mark.parametrize('encoded', [True, False])
@pytest.mark.parametrize('layers_', [1, 2, 3])
@pytest.mark.parametrize('temp', [0, 0.5, 1.3])
def test_sampled_indices_and_state_agree_with_the_naive_loop(encoded, layers_, temp):
    params, s0 = samplecase(encoded, L=layers_)
    uniforms, allowed = np.random.RandomState(1).uniform(size=12), [1, 1, 0, 1, 1, 1]
    drawn, state = sample(encoded, params, s0, 4, uniforms, temp, allowed)
    want, want_state = naive_sample(params, s0, 4, uniforms, temp, allowed)
    assert drawn.dtype == np.int32 and drawn.tolist() == want
    assert state.shape == s0.shape
    np.testing.assert_allclose(state, want_state, atol=1e-13)


@pytest.mark.parametrize('encoded', [True, False])
def test_sampling_goes_on_from_the_state_that_it_returns(encoded):
    params, s0 = samplecase(encoded)
    uniforms, before = np.random.RandomState(2).uniform(size=20), s0.copy()
    whole, end = sample(encoded, params, s0, 1, uniforms, 0.8)
    start, middle = sample(encoded, params, s0, 1, uniforms[:7], 0.8)
    rest, end2 = sample(encoded, params, middle, start[-1], uniforms[7:], 0.8)
    assert whole.tolist() == start.tolist() + rest.tolist()
    np.testing.assert_allclose(end2, end, atol=1e-14)
    np.testing.assert_array_equal(s0, before)


def test_no_draws_give_no_characters_and_the_state_as_it_was():
    params, s0 = samplecase(True)
    drawn, state = sample(True, params, s0, 0, [], 1)
    assert drawn.shape == (0,)
    np.testing.assert_array_equal(state, s0)


@pytest.mark.parametrize('temp', [0.3, 1, 2])
def test_draws_follow_the_softmax(temp):
    """N uniforms evenly spaced: each character is drawn N times its probability, to within one."""
    logits, N = np.array([0.3, -1.0, 2.0, 0.0, -np.inf, 1.1]), 20000
    counts = np.bincount([sampling._draw(logits, temp, (i + 0.5) / N) for i in range(N)], minlength=6)
    shares = np.exp(logits / temp)
    assert np.abs(counts - N * shares / shares.sum()).max() <= 1


def test_random_draws_of_a_network_follow_its_softmax():
    """A network of one unit whose logits are its biases whatever it reads; chi-squared with 4 degrees of freedom: 18.47 at 0.001."""
    params, s0 = samplecase(False, L=1, H=1, V=5)
    params['V'][:] = 0
    params['c'][:] = np.log([0.1, 0.2, 0.3, 0.15, 0.25])
    N = 10000
    for temp in (1, 0.5):
        drawn, _ = sample(False, params, s0, 0, np.random.RandomState(3).uniform(size=N), temp)
        shares = np.array([0.1, 0.2, 0.3, 0.15, 0.25]) ** (1 / temp)
        wants = N * shares / shares.sum()
        assert ((np.bincount(drawn, minlength=5) - wants) ** 2 / wants).sum() < 18.47


def test_forbidden_characters_are_never_drawn():
    params, s0 = samplecase(True)
    allowed = np.array([0, 1, 0, 1, 1, 0])
    params['c'][allowed == 0] += 50             # they would be the likeliest
    uniforms = np.concatenate([[0.0, np.nextafter(1, 0)], np.random.RandomState(4).uniform(size=300)])
    for temp in (0, 0.01, 1, 100):
        drawn, _ = sample(True, params, s0, 0, uniforms, temp, allowed)
        assert set(drawn.tolist()) <= {1, 3, 4}


@pytest.mark.parametrize('temp', [0.01, 1, 1e9])
def test_uniforms_at_the_ends_draw_the_first_and_the_last_allowed(temp):
    logits = np.array([-np.inf, 0.0, -0.01, -np.inf, 0.005, -np.inf])
    assert sampling._draw(logits, temp, 0.0) == 1
    assert sampling._draw(logits, temp, np.nextafter(1, 0)) == 4


def test_the_largest_uniform_never_passes_the_end():
    rng = np.random.RandomState(6)
    for _ in range(200):
        logits = rng.normal(size=rng.randint(1, 40)) * 10.0 ** rng.randint(-3, 3)
        logits[rng.uniform(size=len(logits)) < 0.3] = -np.inf
        logits[rng.randint(len(logits))] = 1.0
        for uniform in (0.0, np.nextafter(1, 0)):
            assert logits[sampling._draw(logits, 0.7, uniform)] > -np.inf


@pytest.mark.parametrize('temp', [0, 1e-300, 1e-12])
def test_a_temperature_at_or_near_zero_draws_the_likeliest(temp):
    with np.errstate(over='ignore'):
        for uniform in (0.0, 0.5, np.nextafter(1, 0)):
            assert sampling._draw(np.array([1.0, 3.0, -2.0, 2.9]), temp, uniform) == 1


@pytest.mark.parametrize('temp', [0, 1.0])
@pytest.mark.parametrize('name', ['E', 'W1', 'V', 'c'])
def test_a_network_that_gives_nan_is_not_sampled_from(temp, name):
    params, s0 = samplecase(True)
    params[name].flat[0] = np.nan
    with pytest.raises(FloatingPointError, match='diverged'):
        sample(True, params, s0, 0, [0.5] * 3, temp)
