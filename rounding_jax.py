"""Precisions on JAX: products of matrices, and what their operands are rounded to. `rounding` holds the same in NumPy."""

import jax
import jax.numpy as jnp
from jax import lax

from rounding import LEAST, POINTS


def bfloat16(array):
    """Float32 numbers as the nearest bfloat16 ones; other types, with which gradients are proved, stay as they are."""
    return array.astype(jnp.bfloat16) if array.dtype == jnp.float32 else array


def asis(array):
    """What float32 makes of an operand: nothing."""
    return array


OPERANDS = {'float32': asis, 'bfloat16': bfloat16}      # what an operand of a product becomes, as in `rounding`


def dot(subscripts, a, b):
    """The product `einsum(subscripts, a, b)`, summed in float32, or in float64 where the operands are.

    Operands of float32 count in full: accelerators would by themselves take some ten bits of them. A `jax_default_matmul_precision` of the
    user's own, 'tensorfloat32' say, holds.
    """
    if a.dtype == jnp.bfloat16:
        return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
    exact = None if jax.config.jax_default_matmul_precision else lax.Precision.HIGHEST
    return jnp.einsum(subscripts, a, b, precision=exact)


def product(weights, precision, most=None):
    """The function x (n, K) -> x @ weights (K, columns) in this precision: `rounding.product`.

    The whole numbers of int8 multiply as bfloat16, which holds them exactly; a NaN of x so stays one.
    """
    if precision == 'int8':
        whole, scales = _grid(weights)
        whole = whole.astype(jnp.bfloat16)

        def multiply(x):
            m = jnp.maximum(jnp.abs(x).max(1, keepdims=True), LEAST) if most is None else most
            return dot('nk,kc->nc', jnp.rint(x * (POINTS / m)).astype(jnp.bfloat16), whole) * (scales * (m / POINTS))
        return multiply
    operand = OPERANDS[precision]
    weights = operand(weights)
    return lambda x: dot('nk,kc->nc', operand(x), weights)


def _grid(weights):
    """(whole numbers from -127 to 127, the columns' scales) whose product is `rounded`'s int8; both float32."""
    most = jnp.abs(weights).max(0)
    counts = most > LEAST
    scales = jnp.where(counts, most / 127, 0) + (weights * 0).sum(0)            # of a column with a NaN or an infinity: NaN
    whole = jnp.rint(weights * jnp.where(counts, 127 / jnp.where(counts, most, 1), 0))
    return jnp.nan_to_num(whole, posinf=0, neginf=0), scales
