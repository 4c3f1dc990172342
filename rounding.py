"""Precisions: what weights, and the vectors that they multiply, are rounded to. NumPy's side of it; the kernels do the same."""

from collections.abc import Callable

import numpy as np

PRECISIONS = 'float32', 'bfloat16', 'int8'      # in the order of kernels/rngru.h
LEAST = np.float32(1e-30)       # a column of int8 weights whose greatest is no greater counts as zeros
POINTS = 63                     # of int8 vectors, on each side of 0: two products of 127 x (63 + 64) fit 16 bits, as instructions add them


def rounded(array: np.ndarray, precision: str) -> np.ndarray:
    """A matrix of weights (K, columns) as it multiplies in this precision: float32 of the same shape.

    'bfloat16': each weight the nearest float32 whose lower 16 bits are 0, of two the one with an even upper half. 'int8': the nearest of
    255 points, -127 to 127 times the column's max |w| / 127. A NaN stays one; in int8 it makes its column NaN, as does an infinity.
    """
    array = np.asarray(array, np.float32)
    if precision == 'int8':
        whole, scales = _grid(array)
        return whole.astype(np.float32) * scales
    return bfloat16(array) if precision == 'bfloat16' else array


def bfloat16(array: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 (8 bits of mantissa) of each float32 number, of two the even one, as float32; other types, with which gradients
    are proved, stay as they are."""
    if array.dtype != np.float32:
        return array
    bits = np.ascontiguousarray(array).view(np.uint32)
    nearest = np.where(np.isnan(array), bits | np.uint32(0x400000), bits + (np.uint32(0x7fff) + (bits >> 16 & 1)))
    return (nearest & np.uint32(0xffff0000)).view(np.float32)


def _asis(array: np.ndarray) -> np.ndarray:
    """What float32 makes of an operand: nothing."""
    return array


OPERANDS = {'float32': _asis, 'bfloat16': bfloat16}      # what an operand of a product becomes, element by element


def product(weights: np.ndarray, precision: str, most: np.ndarray | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The function x (n, K) -> x @ weights in this precision, weights (K, columns) float32.

    int8 rounds x to the nearest of 127 points of [-m, m]; most (n, 1): the m of each, no less than |x|; None: its own greatest.
    """
    if precision == 'int8':
        whole, scales = _grid(np.asarray(weights, np.float32))
        if len(whole) * 127 * POINTS < 2 ** 24:             # whole numbers that float32 adds up exactly, twice as fast
            whole = whole.astype(np.float32)

        def multiply(x):
            m = np.maximum(np.abs(x).max(1, keepdims=True), LEAST, dtype=x.dtype) if most is None else most
            return (np.rint(x * (POINTS / m)).astype(whole.dtype) @ whole * (scales * (m / POINTS))).astype(x.dtype)
        return multiply
    operand = OPERANDS[precision]
    weights = operand(np.ascontiguousarray(weights))
    return lambda x: operand(x) @ weights


def _grid(array):
    """(whole numbers from -127 to 127 in float64, the columns' scales in float32) whose product is `rounded`'s int8."""
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        most = np.abs(array).max(0)
        scales = np.where(most > LEAST, most / np.float32(127), 0) + (array * 0).sum(0)
        whole = np.rint(array.astype(np.float64) * np.where(most > LEAST, np.float32(127) / most, 0))
    return np.nan_to_num(whole, posinf=0, neginf=0), scales
