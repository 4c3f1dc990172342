"""Layer normalisation of what a layer passes up. Letters as in `ops`.

The states that a layer carries on from step to step stay as they are: it stands between layers, and the GRU's step knows nothing of it.
"""

import numpy as np

import native
from engine import Apply, Op, T
from ops import buffer, haskernel

EPS = 1e-5              # beside the variance, as in PyTorch's layer_norm


class LayerNorm(Op):
    """A layer's output with each vector of H units moved and scaled to mean 0 and variance 1.

    Ba et al. 2016 (arXiv:1607.06450): (S - mean) / sqrt(variance + 1e-5), mean and variance over the units, the variance the mean of the
    squares. Without the gain and bias that the paper adds to it: what reads the vectors, x U + b of the next layer and S V + c of the
    output layer, is linear in them, and has both already. (Tried on a megabyte of Shakespeare, 2 x 256, Adam: after an epoch the
    losses with and without them differ by 0.001, from seed to seed by 0.005.)

    Input: S (T, B, H); output: the same shape. A vector is moved by its first element before its mean is taken, which makes no
    difference in mathematics: so equal elements, however large, give exactly 0, and a large mean takes no digits from small
    differences. Squares of differences must stay finite: elements of 1e16 are right in float32, GRU states lie within +-1.

    Cost: 10 FLOP an element, 24 with the gradient, which is less than reading and writing them takes: 2 floats an element forward,
    3 backward, where mean and variance are made again rather than kept. Memory: T B H floats for the output and as many for its gradient.
    """

    __props__ = ()

    def make_node(self, S):
        S = T.as_tensor_variable(S)
        if S.type.ndim != 3:
            raise TypeError(f'LayerNorm takes S (T, B, H), got {S.type}')
        return Apply(self, [S], [S.type()])

    def perform(self, node, inputs, outputs):
        S, = inputs
        _check(S)
        _normalise(S, buffer(outputs[0], S.shape, S.dtype))

    def kernel(self, node):
        def work(inputs, outputs):
            S, = inputs
            _check(S)
            native.layernorm(S, buffer(outputs[0], S.shape, S.dtype))
        return work if haskernel(node) else None

    def pullback(self, inputs, outputs, gradients):
        return [LayerNormGrad()(inputs[0], gradients[0])]


class LayerNormGrad(Op):
    """The gradient of `LayerNorm`: from S (T, B, H) and dN (T, B, H), that of its output N, to dS (T, B, H).

    By vector: dS = (dN - mean(dN) - N mean(dN N)) / sqrt(variance + 1e-5).
    """

    __props__ = ()

    def make_node(self, S, dN):
        S, dN = T.as_tensor_variable(S), T.as_tensor_variable(dN)
        return Apply(self, [S, dN], [S.type()])

    def perform(self, node, inputs, outputs):
        S, dN = inputs
        _check(S, dN)
        N = np.empty_like(S)
        scale = _normalise(S, N)
        dS = buffer(outputs[0], S.shape, S.dtype)
        N *= np.mean(dN * N, axis=2, keepdims=True)
        np.subtract(dN, dN.mean(axis=2, keepdims=True), out=dS)
        dS -= N
        dS *= scale

    def kernel(self, node):
        def work(inputs, outputs):
            S, dN = inputs
            _check(S, dN)
            native.layernormgrad(S, dN, buffer(outputs[0], S.shape, S.dtype))
        return work if haskernel(node) else None


def normalised(S):
    """What LayerNorm gives, for an array S (..., H)."""
    out = np.empty_like(S)
    _normalise(S, out)
    return out


def _normalise(S, out):
    """Fill `out` with S (..., H) normalised; 1 / sqrt(variance + 1e-5), (..., 1)."""
    np.subtract(S, S[..., :1], out=out)
    out -= out.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(out * out, axis=-1, keepdims=True) + S.dtype.type(EPS))
    out *= scale
    return scale


def _check(S, dN=None):
    if 0 in S.shape or dN is not None and dN.shape != S.shape:
        raise ValueError(f'LayerNorm takes S (T, B, H) of at least one element{"" if dN is None else " and a gradient of that shape"}, got '
                         f'{S.shape}{"" if dN is None else f" and {dN.shape}"}')
