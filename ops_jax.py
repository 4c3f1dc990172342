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

import dropout_jax      # this, layernorm_jax and sampling_jax register their own
import layernorm_jax
import linker_jax
import ops
import sampling_jax
from linker_jax import register, sharded
from rounding_jax import OPERANDS, dot
from update import CACHES, RATES, Update

__all__ = ['sharded', 'dropout_jax', 'layernorm_jax', 'sampling_jax']

UNROLL = 1              # steps of a recurrence in one turn of its loop; on a processor 4 and 10 were no faster, and take longer to compile
BYPRODUCT = 256         # up to this vocabulary sums by character are a product with one-hot vectors: always in the same order
LOGITS = 1 << 22        # about how many logits exist at a time


# --- GRU ----------------------------------------------------------------------------------------------------------

@register(ops.GRU)
def gru(op, **kwargs):
    operand = OPERANDS[op.precision]

    def forward(*inputs):
        source, (s0, U, W, b) = inputs[:-4], inputs[-4:]
        H = len(W)
        Wzr, Wh = operand(W[:, :2 * H]), operand(W[:, 2 * H:])

        def step(s, p):
            zr = jnp.clip(0.2 * (p[:, :2 * H] + dot('bh,hg->bg', operand(s), Wzr)) + 0.5, 0, 1)
            h = jnp.tanh(p[:, 2 * H:] + dot('bh,hg->bg', operand(zr[:, H:] * s), Wh))
            s = h + zr[:, :H] * (s - h)
            return s, (s, zr, h)
        last, (S, zr, h) = lax.scan(step, s0, _projected(op.source, operand, source, U, b), unroll=UNROLL)
        return S, last, jnp.concatenate([zr, h], axis=2)
    return forward


@register(ops.GRUGrad)
def grugrad(op, **kwargs):
    operand = OPERANDS[op.precision]

    def backward(*inputs):
        *source, s0, U, W, b, S, G, dS = inputs
        H = len(W)
        Wzr, Wh = operand(W[:, :2 * H]), operand(W[:, 2 * H:])
        S_prev = jnp.concatenate([s0[None], S[:-1]])
        zr, h = G[:, :, :2 * H], G[:, :, 2 * H:]        # the very arrays that a forward pass in the same function has joined to G

        def step(ds, now):
            """ds (B, H): the gradient of the state behind a step, from later steps; then of the one before it."""
            zr, h, s, dS = now
            z, r, ds = zr[:, :H], zr[:, H:], ds + dS
            dh = operand((1 - z) * (1 - h * h) * ds)
            drs = dot('bg,hg->bh', dh, Wh)
            dzr = operand(_slope(zr) * jnp.concatenate([(s - h) * ds, s * drs], axis=1))
            return z * ds + r * drs + dot('bg,hg->bh', dzr, Wzr), (dzr, dh)
        ds0, dG = lax.scan(step, jnp.zeros_like(s0), (zr, h, S_prev, dS), reverse=True, unroll=UNROLL)

        def columns(gradient):
            """The gradient of an array with 3H columns, from that of its columns 2H of z and r, and of its H of h."""
            return jnp.concatenate([gradient(d) for d in dG], axis=-1)
        dW = jnp.concatenate([dot('tbh,tbg->hg', operand(s), d) for s, d in zip((S_prev, zr[:, :, H:] * S_prev), dG)], axis=1)
        db = columns(lambda d: d.sum(axis=(0, 1), dtype=b.dtype))
        if op.source == 'vectors':
            X = operand(source[0])
            dX = sum(dot('tbg,kg->tbk', d, operand(u)) for d, u in zip(dG, (U[:, :2 * H], U[:, 2 * H:])))
            return dX, ds0, columns(lambda d: dot('tbk,tbg->kg', X, d)), dW, db
        x = source[0]
        if op.source == 'onehot':
            return ds0, columns(lambda d: _sumbychar(x, d, len(U), b.dtype)), dW, db
        E, a = source[1:]
        if len(E) <= x.size:
            dP = columns(lambda d: _sumbychar(x, d, len(E), b.dtype))           # (V, 3H)
            rows = jnp.tanh(E + a)
            dE = dot('vg,kg->vk', dP, U) * (1 - rows * rows)
            return dE, dE.sum(axis=0), ds0, dot('vk,vg->kg', rows, dP), dW, db
        rows, dP = jnp.tanh(_rows(E, x) + a), columns(lambda d: d.astype(b.dtype))
        drows = dot('tbg,kg->tbk', dP, U) * (1 - rows * rows)
        return _sumbychar(x, drows, len(E), b.dtype), drows.sum(axis=(0, 1)), ds0, dot('tbk,tbg->kg', rows, dP), dW, db
    return backward


def _slope(gate):
    """That of the hard sigmoid where it gave `gate`."""
    return jnp.where((gate > 0) & (gate < 1), jnp.asarray(0.2, gate.dtype), 0)


def _projected(kind, operand, source, U, b):
    """x U + b of every character, (T, B, 3H); of few different ones, as in `ops.GRU`, but all of the vocabulary's."""
    if kind == 'vectors':
        return dot('tbk,kg->tbg', operand(source[0]), operand(U)) + b
    x = source[0]
    if kind == 'onehot':
        return _rows(U, x) + b
    E, a = source[1:]
    if len(E) <= x.size:
        return _rows(dot('vk,kg->vg', jnp.tanh(E + a), U) + b, x)
    return dot('tbk,kg->tbg', jnp.tanh(_rows(E, x) + a), U) + b


def _rows(table, x):
    """Row x of a table (V, K) for every index of x (...): (..., K), NaN for an index outside of 0 .. V - 1."""
    return table.at[x].get(mode='fill', fill_value=jnp.nan, wrap_negative_indices=False)


def _sumbychar(x, d, V, dtype):
    """The sums of the rows of d (T, B, K) by their characters x (T, B): (V, K)."""
    if V <= BYPRODUCT:
        return dot('tbv,tbk->vk', _isit(x, V).astype(d.dtype), d)
    return jnp.zeros((V, d.shape[2]), dtype).at[x].add(d.astype(dtype), mode='drop', wrap_negative_indices=False)


def _isit(x, V):
    """Whether a character of x (T, B) is each of the V: (T, B, V)."""
    return x[..., None] == jnp.arange(V, dtype=x.dtype)


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
    """([sum of negative log-likelihoods] or with gradients [it, dV, dc], dS or None) of some steps (t, B); counts (t,), None: all do."""
    logits = dot('tbh,hv->tbv', S, V) + c
    logits -= logits.max(axis=2, keepdims=True)
    target = _isit(y, len(c))
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
