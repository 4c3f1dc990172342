"""Rounding of weights and vectors, against numbers worked out by hand, all bfloat16 that there are, and PyTorch."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from rounding import bfloat16, product, rounded


def test_the_nearest_bfloat16_is_taken_and_of_two_the_even_one():
    cases = {1: 1, 1 + 2 ** -8: 1, 1 + 2 ** -8 + 2 ** -20: 1 + 2 ** -7, 1 + 3 * 2 ** -8: 1 + 2 ** -6, -1 - 2 ** -8: -1, 0.3: 0.30078125,
             -0.0: -0.0, 1e-40: 2.0 ** -133, 3.4e38: np.inf, -np.inf: -np.inf}
    got = rounded(np.array([list(cases)], 'float32'), 'bfloat16')
    assert got.dtype == np.float32 and got.shape == (1, len(cases))
    np.testing.assert_array_equal(got[0], np.array(list(cases.values()), 'float32'))
    assert np.signbit(got[0, 6])
    assert np.isnan(rounded(np.array([[np.nan, -np.nan]], 'float32'), 'bfloat16')).all()


def test_rounding_to_bfloat16_agrees_with_pytorch():
    torch = pytest.importorskip('torch')
    rng = np.random.RandomState(0)
    array = (rng.normal(size=(300, 70)) * 10.0 ** rng.randint(-30, 30, (300, 70))).astype('float32')
    want = torch.from_numpy(array).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(rounded(array, 'bfloat16'), want)


def test_int8_weights_lie_on_127_points_of_each_side_by_column():
    array = np.array([[127, 0.5, 0, 1e-31, 1, 1], [-64.4, -1, 0, 0, 1, 1], [0.4, 0.001, 0, 0, 1, np.nan], [-0.6, 0.3, 0, 0, 1, 1]],
                     'float32')
    got = rounded(array, 'int8')
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:, 0], [127, -64, 0, -1])
    np.testing.assert_allclose(got[:, 1], np.array([64, -127, 0, 38]) / 127, rtol=1e-6)     # 63.5 is as near to 63
    np.testing.assert_allclose(got[:, 2:5], [[0, 0, 1]] * 4, rtol=1e-6)
    assert np.isnan(got[:, 5]).all()
    inf = array.copy()
    inf[2, 4] = np.inf
    assert np.isnan(rounded(inf, 'int8')[:, 4]).all()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2 ** 32 - 1), st.floats(1e-20, 1e20))
@settings(max_examples=50, deadline=None)
def test_rounded_weights_are_near_theirs_and_rounding_again_changes_nothing(K, columns, seed, scale):
    array = (np.random.RandomState(seed).normal(size=(K, columns)) * scale).astype('float32')
    assert rounded(array, 'float32').tobytes() == array.tobytes()
    nearest, whole = (rounded(array, precision) for precision in ('bfloat16', 'int8'))
    assert (np.abs(nearest - array) <= 2.0 ** -8 * np.abs(array)).all()
    assert (np.abs(whole - array) <= np.abs(array).max(0) / 127 * 0.501).all()
    np.testing.assert_array_equal(rounded(nearest, 'bfloat16'), nearest)
    np.testing.assert_allclose(rounded(whole, 'int8'), whole, rtol=1e-6)


def test_every_bfloat16_is_its_own_nearest_and_no_other_is_nearer():
    bits = np.arange(0x0080, 0x7f80, dtype=np.uint32)                   # all normal positive ones
    every = (bits << 16).view(np.float32)
    np.testing.assert_array_equal(bfloat16(every), every)
    numbers = np.exp(np.random.RandomState(0).uniform(-80, 80, 5000)).astype(np.float32)
    at = np.clip(np.searchsorted(every, numbers), 1, len(every) - 1)
    below, above = every[at - 1].astype(float), every[at].astype(float)
    distance = np.minimum(numbers - below, above - numbers)
    np.testing.assert_array_equal(np.abs(bfloat16(numbers).astype(float) - numbers), distance)


def test_other_types_are_left_alone():
    numbers = np.array([1 + 2.0 ** -30])
    assert bfloat16(numbers) is numbers


@pytest.mark.parametrize('K, columns, n', [(1, 1, 1), (5, 3, 2), (200, 40, 3)])
def test_a_product_in_int8_is_that_of_the_rounded_operands(K, columns, n):
    rng = np.random.RandomState(K)
    weights, x = rng.normal(size=(K, columns)).astype('float32'), rng.uniform(-1, 1, (n, K)).astype('float32')
    grid = rounded(weights, 'int8').astype(float)
    own = np.abs(x).max(1, keepdims=True).astype(float)
    np.testing.assert_allclose(product(weights, 'int8')(x), np.rint(x * 63 / own) * own / 63 @ grid, rtol=1e-5, atol=1e-5)
    given_ = product(weights, 'int8', np.full((n, 1), 1, 'float32'))
    np.testing.assert_allclose(given_(x), np.rint(x * 63.0) / 63 @ grid, rtol=1e-5, atol=1e-5)


def test_a_product_in_bfloat16_is_that_of_the_rounded_operands():
    rng = np.random.RandomState(0)
    weights, x = rng.normal(size=(20, 7)).astype('float32'), rng.normal(size=(3, 20)).astype('float32')
    wanted = bfloat16(x).astype(float) @ bfloat16(weights).astype(float)
    np.testing.assert_allclose(product(weights, 'bfloat16')(x), wanted, rtol=1e-5, atol=1e-5)
