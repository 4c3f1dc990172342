"""Dropout between layers, by random numbers that are a function of what they are for. Letters as in `ops`.

The mask is the output of Philox4x32-10, a counter-based generator (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3,
SC11): word i belongs to element i, whatever computes it, in which order, on how many threads. No state is kept: the seed and the
number of updates made, which a checkpoint holds, give the mask that a run without a break would have drawn. Words of 32 bits are
all that it takes, so NumPy, the kernels and an accelerator can make it the same bit for bit.
"""

import numpy as np

import native
from engine import Apply, Disconnected, Op, T
from errors import checkint
from ops import buffer

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85                   # what the two words of the key grow by from round to round
BLOCK = 1 << 14                                 # counters of a pass, so that its arrays stay in the cache


class Dropout(Op):
    """A layer's output with each element dropped with probability p, and the others scaled by 1 / (1 - p).

    Srivastava et al. 2014 (JMLR 15), the "inverted" form, whose expectation is S: where nothing is dropped, nothing has to be scaled. It
    belongs on the way up alone, to the next layer and to the output layer; the recurrent path and the state carried on stay whole
    (Zaremba et al. 2014, arXiv:1409.2329; char-rnn). PyTorch's nn.GRU does so too, but leaves out the last layer's output.

    Inputs: S (T, B, H); p, a real scalar in [0, 1), taken as float32; seed and updates, integer scalars in 0 .. 2^63 - 1, updates the
    number of updates made. Output: S (T, B, H), masked and scaled. Element i = (t B + b) H + h becomes S float32(1 / (1 - p)) where
    word i is at least floor(p 2^32), else 0. Word i is word i % 4 of Philox4x32-10 of

        key      (seed's low 32 bits, its high 32 bits)
        counter  (i // 4, layer, updates' low 32 bits, their high 32 bits)

    layer: the layer's number from 0, so that no two have the same mask. From 2^34 elements on it repeats. The kernel gives what `perform`
    does bit for bit, but takes numbers below 1e-38 for 0, as all kernels do.

    The gradient is the same Op on the gradient of the output. It makes the mask again: bits kept from the forward pass would save half
    a percent of a step with the kernels, and cost an Op and an output more.
    Cost: 5 products of 32 by 32 bits and 15 shifts and exclusive ors an element, in lanes of 64 bits: with AVX2 1.6 cycles at the least;
    the kernel takes 2.1, and so 1 to 2 % of a training step. Memory: T B H floats for the output and as many for its gradient.
    """

    __props__ = ('layer',)

    def __init__(self, layer):
        self.layer = layer

    def make_node(self, S, p, seed, updates):
        S, *scalars = (T.as_tensor_variable(i) for i in (S, p, seed, updates))
        if any(i.type.ndim for i in scalars) or any(np.dtype(i.type.dtype).kind not in 'iu' for i in scalars[1:]):
            got = ', '.join(str(i.type) for i in scalars)
            raise TypeError(f'Dropout takes three scalars, p and the integers seed and updates, got {got}')
        return Apply(self, [S, *scalars], [S.type()])

    def perform(self, node, inputs, outputs):
        S, threshold, scale, seed, updates = _taken(inputs)
        out = buffer(outputs[0], S.shape, S.dtype)
        np.multiply(S, scale, out=out)
        out[words(S.size, seed, updates, self.layer).reshape(S.shape) < threshold] = 0

    def kernel(self, node):
        def work(inputs, outputs):
            S, *given = _taken(inputs)
            native.dropout(S, buffer(outputs[0], S.shape, S.dtype), *given, self.layer)
        return work if native.library() is not None and node.inputs[0].type.dtype == 'float32' else None

    def pullback(self, inputs, outputs, gradients):
        return [self(gradients[0], *inputs[1:])] + [Disconnected() for _ in inputs[1:]]

    def connection_pattern(self, node):
        return [[True], [False], [False], [False]]


def _taken(inputs):
    """(S, threshold, scale, seed, updates): the least word that keeps its element, the factor of what is kept; ValueError for others."""
    S, p, seed, updates = inputs
    p = float(np.float32(p))
    if not 0 <= p < 1:
        raise ValueError(f'dropout must be at least 0 and, as a float32, below 1, got {p}')
    return S, int(p * 2**32), np.float32(1 / (1 - p)), checkint('seed', int(seed)), checkint('updates', int(updates))


def words(n, seed, updates, layer):
    """The first n words, uint32 (n,), for a seed, a number of updates and a layer."""
    key, behind = (seed % 2**32, seed >> 32), (layer, updates % 2**32, updates >> 32)
    out = np.empty((-(-n // 4), 4), np.uint32)
    for start in range(0, len(out), BLOCK):
        block = out[start:start + BLOCK]
        counters = np.arange(start, start + len(block), dtype=np.uint64) % 2**32
        block[:] = np.stack(philox((counters, *behind), key), axis=1)
    return out.reshape(-1)[:n]


def philox(counter, key):
    """Philox4x32-10: its four words, arrays of uint32. counter: four integers below 2^32 or arrays (n,) of them; key: two integers."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.atleast_1d(np.asarray(c, np.uint64)) for c in counter))
    for i in range(10):
        k0, k1 = (np.uint64((word + i * step) % 2**32) for word, step in zip(key, WEYL))
        p0, p1 = (c * np.uint64(multiplier) for c, multiplier in zip((c0, c2), MULTIPLIERS))
        c0, c1, c2, c3 = p1 >> high ^ c1 ^ k0, p1 & low, p0 >> high ^ c3 ^ k1, p0 & low
    return [c.astype(np.uint32) for c in (c0, c1, c2, c3)]
