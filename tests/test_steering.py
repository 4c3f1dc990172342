"""Which characters are drawn, and how often, by temperature, top_k, top_p and min_p: worked out by hand, in NumPy and natively.

The network's logits are its biases, whatever it reads.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

import sampling
from conftest import kernel, naive_kept
from kernelcases import needskernels, perform_, samplecase, ways


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


def test_uniforms_at_the_ends_never_pass_the_end():
    rng = np.random.RandomState(6)
    for _ in range(200):
        logits = rng.normal(size=rng.randint(1, 40)) * 10.0 ** rng.randint(-3, 3)
        logits[rng.uniform(size=len(logits)) < 0.3] = -np.inf
        logits[rng.randint(len(logits))] = 1.0
        for number in (0.0, np.nextafter(1, 0)):
            for steering in ((len(logits), 1.0, 0.0), (3, 0.9, 0.1)):
                assert logits[sampling._draw(logits.copy(), number, 0.7, *steering)] > -np.inf
