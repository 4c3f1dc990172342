"""A stack of layers on JAX, as one recurrence over waves: see `stack`. Letters, shapes and the wave of a step as there.

A wave takes two batched products, of all layers at once, forward and backward: a launch of each instead of one a layer and step, which is
what a step costs on a GPU, and products that fill more of it. At a layer's waves before its first step and behind its last one its state
and its gradient stand still, and whatever else is computed there is read by nothing.

- The first product of a wave multiplies the states by W's columns of z and r and by the next layer's U at once. Where what a layer passes
  up isn't its states, with layer normalisation or dropout, there are two in its place.
- What the first layer reads, and the gradients of the weights, are large products over all steps, before or behind the waves.
- In bfloat16 an NVIDIA GPU does all waves in one launch of its own kernel, where it can: see `stack_cuda`.
"""

import jax
import jax.numpy as jnp
from jax import lax

import ops_jax
import stack_cuda
from gru_jax import projected, readgradients, slope, weightgradients
from ops_jax import OPERANDS, dot, mask, normalised, normalisedgrad, register
from stack import GRUStack, GRUStackGrad

UNROLL = {'cpu': 1}     # waves in one turn of the loop, by platform, else 4: on an NVIDIA H200 a training step takes 5.1 ms, with 1 5.6


@register(GRUStack)
def grustack(op, **kwargs):
    operand, shards = OPERANDS[op.precision], ops_jax.current()

    def forward(*inputs):
        source, s0s, weights, scalars = op.split(inputs)
        first, s0 = projected(op.source, operand, source, weights[0][0], weights[0][2]), jnp.stack(s0s)
        T, (L, B, H) = len(first), s0.shape
        between = _Between(op, scalars, shards, (T, B, H))
        if _inonelaunch(between, op, shards, s0):
            last, (s, zr, h) = stack_cuda.forward(first, *_stacked(weights), s0)
        else:
            last, (s, zr, h) = _forward(between, operand, first, *_stacked(weights), s0)
        states = [jnp.concatenate([s[l + 1:l + T, l], last[l][None]]) for l in range(L)]
        return between.up(states[-1], between.keep), *states, *last, s, zr, h
    return forward


def _forward(between, operand, first, W, U, b, s0):
    """(last (L, B, H), (s, zr, h) as they are kept) from first (T, B, 3H), x U + b of the first layer, and the layers' W, U, b and s0."""
    T, (L, _, H) = len(first), s0.shape
    Wzr, Wh, above = operand(W[:, :, :2 * H]), operand(W[:, :, 2 * H:]), operand(jnp.roll(U, -1, axis=0))
    both = None if between else jnp.concatenate([Wzr, above], axis=2)

    def wave(s, now):
        """s (L, B, H): each layer's state before its step of this wave; then behind it."""
        w, p, keep = now
        if between:
            sums, read = dot('lbh,lhg->lbg', operand(s), Wzr), dot('lbh,lhg->lbg', operand(between.up(s[:-1], keep)), above[:-1])
        else:
            sums = dot('lbh,lhg->lbg', operand(s), both)
            sums, read = sums[:, :, :2 * H], sums[:-1, :, 2 * H:]
        p = jnp.concatenate([p[None], read + b[1:, None]])
        zr = jnp.clip(0.2 * (p[:, :, :2 * H] + sums) + 0.5, 0, 1)
        h = jnp.tanh(p[:, :, 2 * H:] + dot('lbh,lhg->lbg', operand(zr[:, :, H:] * s), Wh))
        return jnp.where(_moves(w, L, T), h + zr[:, :, :H] * (s - h), s), (s, zr, h)
    return lax.scan(wave, s0, (_waves(L, T), _padded(first, 0, L - 1), between.keeps), unroll=_unroll())


@register(GRUStackGrad)
def grustackgrad(op, **kwargs):
    stack = op.stack
    operand, shards = OPERANDS[stack.precision], ops_jax.current()

    def backward(*inputs):
        given, states, (s, zr, h), dtop, dS = op.split(inputs)
        source, s0s, weights, scalars = stack.split(given)
        T, (L, B, H) = len(dtop), s.shape[1:]
        between, failed = _Between(stack, scalars, shards, (T, B, H)), 0
        if _inonelaunch(between, stack, shards, s) and not dS:
            ds0, dG, failed = stack_cuda.backward(*_stacked(weights)[:2], s, zr, h, dtop)
        else:
            dtop = between.down(states[-1], dtop, between.keep)
            ds0, dG = _backward(between, operand, *_stacked(weights)[:2], s, zr, h, dtop, dS)
            dG = [[d[l:l + T, l] for l in range(L)] for d in dG]
        reads, dweights = [], []
        for l, (U, _, b) in enumerate(weights):
            steps, own = slice(l, l + T), [d[l] for d in dG]
            read = [between.up(s[steps, l - 1], None if between.keeps is None else between.keeps[steps, l - 1])] if l else source
            read, dU = readgradients('vectors' if l else stack.source, operand, read, U, own, b.dtype)
            dW, db = weightgradients(operand, s[steps, l], zr[steps, l], own, b.dtype)
            reads, dweights = [*reads, read], [*dweights, dU, dW, db + failed]
        return *reads[0], *ds0, *dweights
    return backward


def _backward(between, operand, W, U, s, zr, h, dtop, dS):
    """(ds0 (L, B, H), (dzr (T + L - 1, L, B, 2H), dh (T + L - 1, L, B, H)) before the nonlinearities) from the layers' W and U, what is
    kept, dtop (T, B, H), the gradient of the last layer's states, and a list of others of all layers', or an empty one."""
    T, (L, _, H) = len(dtop), s.shape[1:]
    WU = jnp.concatenate([W, U], axis=1)
    WUzr, WUh = operand(WU[:, :, :2 * H]), operand(WU[:, :, 2 * H:])

    def wave(carried, now):
        """ds (L, B, H): the gradients of the states behind each layer's step of this wave, from its own later steps; below
        (L - 1, B, H), of the same but the last layer's, from the layer above; then both of the states before these steps."""
        (ds, below), (w, top, more, s, zr, h, keep) = carried, now
        z, r = zr[:, :, :H], zr[:, :, H:]
        ds_all = ds + jnp.concatenate([below, top[None]])
        if more is not None:
            ds_all = ds_all + more
        dh = operand((1 - z) * (1 - h * h) * ds_all)
        fromh = dot('lbg,lkg->lbk', dh, WUh)
        drs = fromh[:, :, :H]
        dzr = operand(slope(zr) * jnp.concatenate([(s - h) * ds_all, s * drs], axis=2))
        fromzr = dot('lbg,lkg->lbk', dzr, WUzr)
        ds = jnp.where(_moves(w, L, T), z * ds_all + r * drs + fromzr[:, :, :H], ds)
        return (ds, between.down(s[:-1], fromh[1:, :, H:] + fromzr[1:, :, H:], keep)), (dzr, dh)
    zeros = jnp.zeros_like(s[0])
    waves = _waves(L, T), _padded(dtop, L - 1, 0), _skewed(dS, 0) if dS else None, s, zr, h, between.keeps
    (ds0, _), dG = lax.scan(wave, (zeros, zeros[1:]), waves, reverse=True, unroll=_unroll())
    return ds0, dG


class _Between:
    """What is between layers; true where there is something.

    keep (T, B, H): what dropout keeps of the last layer's output; keeps (T + L - 1, L - 1, B, H): of the others' [w, l], of the step before
    the wave's; None without dropout. Of the arrays `s` of a wave, [:-1] are the states that these belong to.
    """

    def __init__(self, stack, scalars, shards, shape):
        self.layernorm, self.keep, self.keeps = stack.layernorm, None, None
        if stack.dropout:
            layers = jnp.arange(stack.layers, dtype=jnp.uint32)[:, None, None, None]
            (*keeps, self.keep), self.scale = mask(shape, *scalars, layers, shards)
            self.keeps = _skewed(keeps, 1) if keeps else None

    def __bool__(self):
        return self.layernorm or self.keep is not None

    def up(self, S, keep):
        """What is passed up of states S."""
        S = normalised(S) if self.layernorm else S
        return S if keep is None else jnp.where(keep, S * self.scale.astype(S.dtype), 0)

    def down(self, S, d, keep):
        """The gradient of S from that of what is passed up of them."""
        d = d if keep is None else jnp.where(keep, d * self.scale.astype(d.dtype), 0)
        return normalisedgrad(S, d) if self.layernorm else d


def _stacked(weights):
    """W (L, H, 3H), U (L, H, 3H) and b (L, 3H) of all layers; U and b of the first are 0: what it reads is multiplied beforehand."""
    (_, W, b), *others = weights
    first = jnp.zeros_like(W), W, jnp.zeros_like(b)
    U, W, b = (jnp.stack(each) for each in zip(first, *others))
    return W, U, b


def _waves(L, T):
    return jnp.arange(T + L - 1, dtype=jnp.int32)


def _moves(w, L, T):
    """Whether wave w is a step of each layer: (L, 1, 1)."""
    step = w - jnp.arange(L, dtype=jnp.int32)[:, None, None]
    return (step >= 0) & (step < T)


def _padded(array, before, behind):
    """An array with so many rows of zeros more."""
    return jnp.pad(array, [(before, behind)] + [(0, 0)] * (array.ndim - 1))


def _skewed(arrays, first):
    """Arrays (T, B, N), of layer 0 and so on, side by side, each beginning a wave behind the one before, layer 0's at wave `first`."""
    n = len(arrays)
    return jnp.stack([_padded(array, first + l, n - 1 - l) for l, array in enumerate(arrays)], axis=1)


def _device():
    """The device, or the name of the platform, that functions are compiled for."""
    return jax.config.jax_default_device or jax.devices()[0]


def _unroll():
    device = _device()
    return UNROLL.get(getattr(device, 'platform', device), 4)


def _inonelaunch(between, stack, shards, s):
    """Whether all is done by a GPU's own kernel: only in bfloat16, on one device, with nothing between layers."""
    if between or shards or stack.precision != 'bfloat16' or s.dtype != jnp.float32:
        return False
    return stack_cuda.usable(_device(), *s.shape[-3:])
