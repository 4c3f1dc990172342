"""The Ops on JAX, for XLA's compilers to processors, GPUs and TPUs: importing this module makes PyTensor's JAX linker know them all.

Each agrees with its `perform` in NumPy but for the rounding of sums, and holds to its formulas, shapes and precisions, which stand there;
letters as in `ops`. What is different here, and why:

- Call what is compiled from them within `jax.enable_x64(True)`. Seeds, rates, the loss and the numbers that a draw compares are of 64 bits,
  as everywhere; arrays stay float32 and indices int32, and nothing here makes more of them.
- Shapes are static: no list of the characters that occur in a batch. Where the vocabulary is no larger than the batch, all of it is
  projected and looked up.
- Rows may lie on several devices, and T and B are never merged: a product contracts both. See `sharded`.
- XLA can't raise, so what `perform` refuses is not checked here. An index outside the vocabulary gives NaN (in a gradient by character it
  is left out), and so a loss that is none; NaN and infinity pass through each Op as through `perform`. Wrong shapes are JAX's errors.
"""

from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax

import dropout_jax  # this and the others of __all__ register their own
import gru_jax
import layernorm_jax
import linker_jax
import ops
import sampling_jax
import stack_jax
from gru_jax import isit
from linker_jax import register, sharded
from rounding_jax import dot
from update import CACHES, RATES, Update

__all__ = ['sharded', 'dropout_jax', 'gru_jax', 'layernorm_jax', 'sampling_jax', 'stack_jax']

LOGITS = 1 << 22        # about how many logits exist at a time


# --- Softmax and loss -----------------------------------------------------------------------------------------------

@register(ops.SoftmaxLoss)
def softmaxloss(op, **kwargs):
    shards = linker_jax.current()

    def forward(S, V, c, y):
        """By blocks of whole steps, as many as keep about LOGITS logits; the last may be filled up with steps that count for nothing."""
        T, B = y.shape
        steps = max(LOGITS // (B * len(c)), 1)
        if steps >= T:
            return _loss(*_ofblock(S, V, c, y, None, T * B, op.gradients), T * B)
        steps = -(-T // -(-T // steps))                 # as many blocks, but evenly filled
        blocks = -(-T // steps)
        filled = blocks * steps - T
        counts = jnp.arange(blocks * steps, dtype=jnp.int32) < T
        S, y = (jnp.pad(a, [(0, filled)] + [(0, 0)] * (a.ndim - 1)) for a in (S, y))
        pieces = [a.reshape(blocks, steps, *a.shape[1:]) for a in (S, y, counts)]

        def block(sums, piece):
            more, dS = _ofblock(piece[0], V, c, *piece[1:], T * B, op.gradients)
            return [a + b for a, b in zip(sums, more)], dS
        zeros = [jnp.zeros((), jnp.float64), *([jnp.zeros_like(V), jnp.zeros_like(c)] if op.gradients else [])]
        if shards:
            zeros = [shards.varying(zero) for zero in zeros]
        sums, dS = lax.scan(block, zeros, pieces)
        return _loss(sums, dS.reshape(-1, *S.shape[1:])[:T] if op.gradients else None, T * B)
    return forward


def _loss(sums, dS, characters):
    nll, *gradients = sums
    return (nll / characters, dS, *gradients) if gradients else nll / characters


def _ofblock(S, V, c, y, counts, characters, gradients):
    """([sum of the negative log-likelihoods] or with gradients [it, dV, dc], dS or None) of some steps (t, B); counts (t,): which count,
    None: all do."""
    logits = dot('tbh,hv->tbv', S, V) + c
    logits -= logits.max(axis=2, keepdims=True)
    target = isit(y, len(c))
    exps = jnp.exp(logits)
    total = exps.sum(axis=2, keepdims=True)
    nll = jnp.log(total[..., 0]) - jnp.where(target, logits, 0).sum(axis=2)
    nll = jnp.where((y >= 0) & (y < len(c)), nll, jnp.nan).sum(axis=1)          # by step in float32, then in float64
    if counts is not None:
        nll = jnp.where(counts, nll, 0)
    nll = nll.sum(dtype=jnp.float64)
    if not gradients:
        return [nll], None
    d = (exps / total - target) / characters
    if counts is not None:
        d = jnp.where(counts[:, None, None], d, 0)
    return [nll, dot('tbh,tbv->hv', S, d), d.sum(axis=(0, 1))], dot('tbv,hv->tbh', d, V)


@register(ops.Scale)
def scale(op, **kwargs):
    return lambda array, factor: array * jnp.asarray(factor).astype(array.dtype)


@register(ops.AllReduce)
def allreduce(op, **kwargs):
    shards = linker_jax.current()
    return lambda array: lax.pmean(array, shards.axis) if shards else array


# --- Update -----------------------------------------------------------------------------------------------------------

@register(Update)
def update(op, **kwargs):
    def step(rates, w, *arrays):
        rates, n = SimpleNamespace(**{name: rates[i] for i, name in enumerate(RATES)}), op.n
        # Not to be worked out anew for each element of the arrays that they scale.
        rates.first, rates.second = lax.optimization_barrier([1 - beta ** (rates.cacheupdates + 1) for beta in (rates.beta1, rates.beta2)])
        each = list(zip(*(arrays[i:i + n] for i in range(0, len(arrays), n))))          # by parameter: p, caches, d
        gradients = [d + _as(d, rates.regcost * w[i]) * p for i, (p, *_, d) in enumerate(each)]
        norm = jnp.sqrt(sum((d * d).sum(axis=-1).sum(dtype=jnp.float64) for d in gradients))    # rows in float32, these in float64
        if op.clipping == 'value':
            changed = sum(jnp.sum(jnp.abs(d) > _as(d, rates.clip), dtype=jnp.int32).astype(jnp.float64) for d in gradients)
            share = changed / sum(d.size for d in gradients)
            gradients = [jnp.clip(d, _as(d, -rates.clip), _as(d, rates.clip)) for d in gradients]
        else:
            shrink = jnp.where(norm <= rates.clip, 1.0, rates.clip / norm)
            share = (shrink != 1).astype(jnp.float64)
            gradients = [d * _as(d, shrink) for d in gradients]
        updated = []
        for i, ((p, *caches, _), d) in enumerate(zip(each, gradients)):
            average = caches.pop() if op.averaged else None
            p, *caches = RULES[op.optimizer](rates, w[i], p, *caches, d)
            if op.averaged:
                kept = jnp.minimum(rates.ema, (1 + rates.updates) / (10 + rates.updates))
                caches.append(average + _as(p, 1 - kept) * (p - average))
            updated.append([p, *caches])
        return *sum((list(kind) for kind in zip(*updated)), []), norm, share
    return step


def _as(array, scalar):
    """A float64 scalar in the array's type."""
    return scalar.astype(array.dtype)


def _rmsprop(rates, factor, p, m, d):
    m = m + (1 - _as(m, rates.decay)) * (d * d - m)
    return p - _as(p, rates.learnrate) * (d / jnp.sqrt(m + 1e-6)), m


def _adam(rates, factor, p, m, g, d):
    g = g + _as(g, 1 - rates.beta1) * (d - g)
    m = m + _as(m, 1 - rates.beta2) * (d * d - m)
    return p - _as(p, rates.learnrate) * (g / _as(g, rates.first)) / (jnp.sqrt(m / _as(m, rates.second)) + 1e-8), m, g


def _adamw(rates, factor, p, m, g, d):
    return _adam(rates, factor, p * _as(p, 1 - rates.learnrate * rates.weight_decay * factor), m, g, d)


def _sgd(rates, factor, p, g, d):
    g = _as(g, rates.momentum) * g + d
    return p - _as(p, rates.learnrate) * g, g


RULES = dict(zip(CACHES, (_rmsprop, _adam, _adamw, _sgd)))
