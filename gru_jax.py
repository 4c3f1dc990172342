"""A GRU layer and its gradient on JAX, and of it what a stack of layers shares (`stack_jax`). Letters and formulas as in `ops`."""

import jax.numpy as jnp
from jax import lax

import ops
from ops_jax import OPERANDS, dot, isit, register

UNROLL = 1              # steps of a recurrence in one turn of the loop: fewer turns to start, more to compile; 4 are slower on processors
BYPRODUCT = 256         # up to this vocabulary sums by character are a product with one-hot vectors: a fixed order, and no collisions


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
        last, (S, zr, h) = lax.scan(step, s0, projected(op.source, operand, source, U, b), unroll=UNROLL)
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
            dzr = operand(slope(zr) * jnp.concatenate([(s - h) * ds, s * drs], axis=1))
            return z * ds + r * drs + dot('bg,hg->bh', dzr, Wzr), (dzr, dh)
        ds0, dG = lax.scan(step, jnp.zeros_like(s0), (zr, h, S_prev, dS), reverse=True, unroll=UNROLL)

        dW, db = weightgradients(operand, S_prev, zr, dG, b.dtype)
        first, dU = readgradients(op.source, operand, source, U, dG, b.dtype)
        return *first, ds0, dU, dW, db
    return backward


def slope(gate):
    """That of the hard sigmoid where it gave `gate`."""
    return jnp.where((gate > 0) & (gate < 1), jnp.asarray(0.2, gate.dtype), 0)


def projected(kind, operand, source, U, b):
    """x U + b of every character, (T, B, 3H); of few different ones, as in `ops.GRU`, but all of the vocabulary's."""
    if kind == 'vectors':
        return dot('tbk,kg->tbg', operand(source[0]), operand(U)) + b
    x = source[0]
    if kind == 'onehot':
        return _rowsof(U, x) + b
    E, a = source[1:]
    if len(E) <= x.size:
        return _rowsof(dot('vk,kg->vg', jnp.tanh(E + a), U) + b, x)
    return dot('tbk,kg->tbg', jnp.tanh(_rowsof(E, x) + a), U) + b


def weightgradients(operand, S_prev, zr, dG, dtype):
    """(dW, db) from the states before each step (T, B, H), gates (T, B, 2H) and dG, the gradients before the nonlinearities: those of z and
    r (T, B, 2H), and of h (T, B, H)."""
    H = S_prev.shape[2]
    dW = jnp.concatenate([dot('tbh,tbg->hg', operand(s), d) for s, d in zip((S_prev, zr[:, :, H:] * S_prev), dG)], axis=1)
    return dW, _columns(lambda d: d.sum(axis=(0, 1), dtype=dtype), dG)


def readgradients(kind, operand, source, U, dG, dtype):
    """(gradients of what a layer reads, a list; dU) from that dG."""
    if kind == 'vectors':
        X, H = operand(source[0]), U.shape[1] // 3
        dX = sum(dot('tbg,kg->tbk', d, operand(u)) for d, u in zip(dG, (U[:, :2 * H], U[:, 2 * H:])))
        return [dX], _columns(lambda d: dot('tbk,tbg->kg', X, d), dG)
    x = source[0]
    if kind == 'onehot':
        return [], _columns(lambda d: _sumbychar(x, d, len(U), dtype), dG)
    E, a = source[1:]
    if len(E) <= x.size:
        dP = _columns(lambda d: _sumbychar(x, d, len(E), dtype), dG)              # (V, 3H)
        rows = jnp.tanh(E + a)
        dE = dot('vg,kg->vk', dP, U) * (1 - rows * rows)
        return [dE, dE.sum(axis=0)], dot('vk,vg->kg', rows, dP)
    rows, dP = jnp.tanh(_rowsof(E, x) + a), _columns(lambda d: d.astype(dtype), dG)
    drows = dot('tbg,kg->tbk', dP, U) * (1 - rows * rows)
    return [_sumbychar(x, drows, len(E), dtype), drows.sum(axis=(0, 1))], dot('tbk,tbg->kg', rows, dP)


def _columns(gradient, dG):
    """The gradient of an array with 3H columns, from that of its columns 2H of z and r, and of its H of h."""
    return jnp.concatenate([gradient(d) for d in dG], axis=-1)


def _rowsof(table, x):
    """Row x of a table (V, K) for every index of x (...): (..., K), NaN for an index outside of 0 .. V - 1."""
    return table.at[x].get(mode='fill', fill_value=jnp.nan, wrap_negative_indices=False)


def _sumbychar(x, d, V, dtype):
    """The sums of the rows of d (T, B, K) by their characters x (T, B): (V, K)."""
    if V <= BYPRODUCT:
        return dot('tbv,tbk->vk', isit(x, V).astype(d.dtype), d)
    return jnp.zeros((V, d.shape[2]), dtype).at[x].add(d.astype(dtype), mode='drop', wrap_negative_indices=False)
