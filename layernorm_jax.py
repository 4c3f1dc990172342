"""Layer normalisation on JAX. Letters and formulas as in `layernorm`."""

import jax.numpy as jnp
from jax import lax

from layernorm import EPS, LayerNorm, LayerNormGrad
from linker_jax import register


def normalised(S):
    """What LayerNorm gives, for an array S (..., H)."""
    return _normalise(S)[0]


def _normalise(S):
    """(S (..., H) normalised, 1 / sqrt(variance + 1e-5) (..., 1))."""
    moved = S - S[..., :1]
    moved = moved - moved.mean(axis=-1, keepdims=True)
    scale = lax.rsqrt(jnp.mean(moved * moved, axis=-1, keepdims=True) + EPS)
    return moved * scale, scale


@register(LayerNorm)
def layernorm(op, **kwargs):
    return normalised


@register(LayerNormGrad)
def layernormgrad(op, **kwargs):
    return normalisedgrad


def normalisedgrad(S, dN):
    """The gradient of S (..., H) from that of what LayerNorm gives for it."""
    N, scale = _normalise(S)
    return (dN - dN.mean(axis=-1, keepdims=True) - N * jnp.mean(dN * N, axis=-1, keepdims=True)) * scale
