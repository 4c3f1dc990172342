"""The Ops on JAX, for XLA's compilers to processors, GPUs and TPUs: what PyTensor's JAX linker is told, and the Ops of few lines.

A GRU layer stands in `gru_jax`, all layers side by side in `stack_jax`, the sampler and the reader in `sampling_jax`; to import these three
makes the linker know all Ops. Each agrees with its `perform` in NumPy but for the rounding of sums, and holds to its formulas, shapes and
precisions, which stand there; letters as in `ops`. What is different here, and why:

- Call what is compiled from them within `jax.enable_x64(True)`. Seeds, rates, the loss and the numbers that a draw compares are of 64 bits,
  as everywhere; arrays stay float32 and indices int32, and nothing here makes more of them.
- Shapes are static: no list of the characters that occur in a batch. Where the vocabulary is no larger than the batch, all of it is
  projected and looked up.
- Rows may lie on several devices, and T and B are never merged: a product contracts both. See `sharded`.
- XLA can't raise, so what `perform` refuses is not checked here. An index outside the vocabulary gives NaN (in a gradient by character it
  is left out), and so a loss that is none; NaN and infinity pass through each Op as through `perform`. Wrong shapes are JAX's errors.
"""

import contextlib
import contextvars
from types import SimpleNamespace
from typing import NamedTuple

import engine
import ops
from dropout import MULTIPLIERS, WEYL, Dropout
from layernorm import EPS, LayerNorm, LayerNormGrad
from rounding import LEAST, POINTS
from update import CACHES, RATES, Update

if engine.name != 'pytensor':
    raise ImportError('JAX is reached through PyTensor, and this is classic Theano: install PyTensor, and set no other RN_GRU_ENGINE')

# Behind the engine, by whose flags PyTensor goes, and so what PyTensor sets in JAX.
import jax
import jax.numpy as jnp
from jax import lax
from pytensor.link.jax.dispatch import jax_funcify

register = jax_funcify.register     # (Op class): a decorator of the function (op, node, ...) -> the function of arrays
LOGITS = 1 << 22                    # about how many logits exist at a time


# --- Over which devices a batch is split ------------------------------------------------------------------------------

class Shards(NamedTuple):
    """The mesh axis along which a `shard_map` splits batch rows evenly, and over how many devices."""

    axis: str
    count: int

    def varying(self, array):
        """An array that is the same on all devices, as the start of a sum that won't be."""
        return lax.pcast(array, self.axis, to='varying')


_current = contextvars.ContextVar('shards', default=None)


def current():
    """The Shards of the `sharded` around this call, or None."""
    return _current.get()


@contextlib.contextmanager
def sharded(axis, count):
    """Within it, functions are converted to JAX for a `shard_map` that splits batch rows over `count` devices, along the mesh axis `axis`.

    Dropout then counts its elements in the whole batch, and `ops.AllReduce` takes means over the devices; all else sees but its own rows.
    It has to surround the making of a function, when the linker converts Ops; its calls, which trace it, no longer need it.
    """
    token = _current.set(Shards(axis, count))
    try:
        yield
    finally:
        _current.reset(token)


# --- Products, and what their operands are rounded to: `rounding` holds the same in NumPy -----------------------------

def bfloat16(array):
    """Float32 numbers as the nearest bfloat16 ones; other types, with which gradients are proved, stay as they are."""
    return array.astype(jnp.bfloat16) if array.dtype == jnp.float32 else array


def _asis(array):
    """What float32 makes of an operand: nothing."""
    return array


OPERANDS = {'float32': _asis, 'bfloat16': bfloat16}      # what an operand of a product becomes, as in `rounding`


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


# --- Layer normalisation: formulas as in `layernorm` ------------------------------------------------------------------

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


# --- Dropout: the very mask of `dropout.words`, bit for bit, in integers of 32 bits -----------------------------------

@register(Dropout)
def dropout(op, **kwargs):
    shards = current()

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


# --- Softmax and loss -----------------------------------------------------------------------------------------------

@register(ops.SoftmaxLoss)
def softmaxloss(op, **kwargs):
    shards = current()

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


def isit(x, V):
    """Whether a character of x (T, B) is each of the V: (T, B, V)."""
    return x[..., None] == jnp.arange(V, dtype=x.dtype)


@register(ops.Scale)
def scale(op, **kwargs):
    return lambda array, factor: array * jnp.asarray(factor).astype(array.dtype)


@register(ops.AllReduce)
def allreduce(op, **kwargs):
    shards = current()
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
