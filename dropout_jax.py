"""Dropout on JAX: the very mask of `dropout.words`, bit for bit, in integers of 32 bits. Letters and the counting as in `dropout`."""

import jax.numpy as jnp
from jax import lax

import linker_jax
from dropout import MULTIPLIERS, WEYL, Dropout
from linker_jax import register


@register(Dropout)
def dropout(op, **kwargs):
    shards = linker_jax.current()

    def masked(S, p, seed, updates):
        keep, scale = mask(S.shape, p, seed, updates, op.layer, shards)
        return jnp.where(keep, S * scale.astype(S.dtype), 0)
    return masked


def mask(shape, p, seed, updates, layer, shards):
    """(whether each element (T, B, H) is kept, the factor of those that are). Several layers (L, 1, 1, 1) give (L, T, B, H)."""
    p = jnp.asarray(p).astype(jnp.float32)
    threshold = (p * 2**32).astype(jnp.uint32)                                  # exact: p 2^32 is a float32 too, its fraction dropped
    scale = (1 / (1 - p.astype(jnp.float64))).astype(jnp.float32)
    return _words(shape, seed, updates, layer, shards) >= threshold, scale


def _words(shape, seed, updates, layer, shards):
    """The words of the elements (T, B, H) of a layer on this device, or (L, T, B, H) of layers (L, 1, 1, 1), uint32.

    A row (t, b) is the batch's row = t B' + b', and its H words begin with number `row H`: word offset = row H % 4 of counter row H // 4.
    So a row's counters are numbered on from there, and its words are those behind the first `offset` ones. H decides which offsets occur.
    """
    T, B, H = shape
    first, rows = (lax.axis_index(shards.axis).astype(jnp.uint32) * B, shards.count * B) if shards else (jnp.uint32(0), B)
    row = jnp.arange(T, dtype=jnp.uint32)[:, None] * jnp.uint32(rows) + first + jnp.arange(B, dtype=jnp.uint32)
    quarter, rest = row >> 2, row & 3                                           # row H = 4 quarter H + rest H, which fit 32 bits each
    start, offset = quarter * jnp.uint32(H) + (rest * H >> 2), (rest * H & 3)[..., None]
    offsets = sorted({n * H % 4 for n in range(4)})
    counters = -(-(offsets[-1] + H) // 4)                                       # of a row
    counter = start[..., None] + jnp.arange(counters, dtype=jnp.uint32)
    words = jnp.stack(_philox(counter, (jnp.uint32(layer), *_halves(updates)), _halves(seed)), axis=-1)
    words = words.reshape(*words.shape[:-2], 4 * counters)
    chosen = words[..., :H]
    for n in offsets[1:]:
        chosen = jnp.where(offset == n, words[..., n:n + H], chosen)
    return chosen


def _halves(number):
    """The low and the high 32 bits of an integer of up to 64, uint32 both."""
    number = jnp.asarray(number).astype(jnp.int64)
    return (number & 0xFFFFFFFF).astype(jnp.uint32), (number >> 32).astype(jnp.uint32)


def _philox(counter, behind, key):
    """`dropout.philox` of the counters (counter, *behind)."""
    c0, (c1, c2, c3), (k0, k1) = counter, behind, key
    for _ in range(10):
        (high0, low0), (high1, low1) = _times(c0, MULTIPLIERS[0]), _times(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(WEYL[0]), k1 + jnp.uint32(WEYL[1])
    return jnp.broadcast_arrays(c0, c1, c2, c3)


def _times(a, multiplier):
    """The high and the low 32 bits of a product of uint32, by halves of 16 bits, none of whose sums exceeds 32."""
    low, high = a & 0xFFFF, a >> 16
    m_low, m_high = jnp.uint32(multiplier & 0xFFFF), jnp.uint32(multiplier >> 16)
    cross = low * m_high
    middle = (low * m_low >> 16) + (cross & 0xFFFF) + high * m_low
    return high * m_high + (cross >> 16) + (middle >> 16), a * jnp.uint32(multiplier)
