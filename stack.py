"""All layers of a network as one Op, for devices where their recurrences run side by side. Letters as in `ops`.

A chain of layers, one after another, waits for L T dependent steps. But layer l can do step t as soon as the layer below has done it: at
wave w all layers are busy, layer l with step w - l, and there are T + L - 1 waves. That takes all layers in one node of the graph;
`stack_jax` computes it so; `perform`, the truth, is the chain.
"""

import numpy as np

import engine
from dropout import Dropout
from engine import Apply, Disconnected, Op, T, isdisconnected
from layernorm import LayerNorm, LayerNormGrad
from ops import GRU, GRUGrad


class GRUStack(Op):
    """Layers of GRUs over a whole sequence, each reading what the one below passes up.

    Inputs: what the first layer reads, by `source` as in `ops.GRU`; each layer's s0 (B, H); each layer's U, W, b, layer by layer; with
    dropout its scalars p, seed, updates. With layernorm a layer's states pass `LayerNorm` on their way up, with dropout then `Dropout`.

    Outputs: top (T, B, H), what the last layer passes up; each layer's S (T, B, H); each layer's last (B, H); and what only the gradient
    reads, by waves: s (T + L - 1, L, B, H), zr (T + L - 1, L, B, 2H) and h (T + L - 1, L, B, H), whose [w, l] is of layer l at step w - l
    the state before it, the gates z and r, and the candidate h. Where that is no step of the layer, the state is its first or last one,
    and gates and candidate are anything.

    Cost: its layers'. Memory: 4 H floats a layer and character for what is kept, H for S.
    """

    __props__ = ('source', 'precision', 'layers', 'layernorm', 'dropout')

    def __init__(self, source, precision, layers, layernorm=False, dropout=False):
        GRU(source, precision)                  # refuses what is no precision
        self.source, self.precision, self.layers, self.layernorm, self.dropout = source, precision, layers, layernorm, dropout

    def split(self, inputs):
        """(what the first layer reads, the s0 of each layer, (U, W, b) of each, the scalars of dropout), lists."""
        scalars = 3 * self.dropout
        inputs, scalars = list(inputs[:len(inputs) - scalars]), list(inputs[len(inputs) - scalars:])
        source, inputs = inputs[:-4 * self.layers], inputs[-4 * self.layers:]
        weights = inputs[self.layers:]
        return source, inputs[:self.layers], [weights[3 * l:3 * l + 3] for l in range(self.layers)], scalars

    def make_node(self, *inputs):
        inputs = [T.as_tensor_variable(i) for i in inputs]
        if self.source != 'vectors':
            inputs[0] = T.cast(inputs[0], 'int32')
        s0s = self.split(inputs)[1]
        dtype = s0s[0].dtype
        return Apply(self, inputs, [*(T.tensor3(dtype=dtype) for _ in range(1 + self.layers)), *(s0.type() for s0 in s0s),
                                    *(T.tensor4(dtype=dtype) for _ in range(3))])

    def perform(self, node, inputs, outputs):
        L = self.layers
        top, states, lasts, gates = self.chain(*self.split(node.inputs))
        values = engine.evaluate([top, *states, *lasts, *gates], dict(zip(node.inputs, inputs)))
        values, gates = values[:-L], values[-L:]
        s0s, H = self.split(inputs)[1], gates[0].shape[2] // 3
        before = _bywaves([np.concatenate([s0[None], S]) for s0, S in zip(s0s, values[1:])], mode='edge')[:-1]
        gates = _bywaves(gates)
        for storage, value in zip(outputs, [*values, before, gates[..., :2 * H], gates[..., 2 * H:]]):
            storage[0] = value

    def pullback(self, inputs, outputs, gradients):
        L = self.layers
        dtop, dS, dlasts, dkept = gradients[0], gradients[1:L + 1], gradients[L + 1:2 * L + 1], gradients[2 * L + 1:]
        if not all(map(isdisconnected, dkept)):
            raise ValueError('what a GRUStack keeps for its gradient has no gradient itself: use S')
        if isdisconnected(dtop):
            dtop = T.zeros_like(outputs[0])
        states = not all(map(isdisconnected, dS + dlasts))
        if states:
            dS = [T.zeros_like(S) if isdisconnected(d) else d for S, d in zip(outputs[1:], dS)]
            dS = [d if isdisconnected(dlast) else T.inc_subtensor(d[-1], dlast) for d, dlast in zip(dS, dlasts)]
        real = GRUStackGrad(self, states)(*inputs, *outputs[1:L + 1], *outputs[2 * L + 1:], dtop, *dS * states)
        isreal, real = self.differentiable(len(inputs)), iter(real)
        return [next(real) if each else Disconnected() for each in isreal]

    def connection_pattern(self, node):
        L = self.layers
        return [[each] * (1 + 2 * L) + [False] * 3 for each in self.differentiable(len(node.inputs))]

    def differentiable(self, count):
        """Whether there are gradients of each of `count` inputs."""
        scalars = 3 * self.dropout
        return [self.source == 'vectors'] + [True] * (count - 1 - scalars) + [False] * scalars

    def chain(self, source, s0s, weights, scalars):
        """The same, layer by layer: (top, each layer's S, each layer's last, each layer's G as of `ops.GRU`), expressions.

        Arguments: expressions, as `split` gives them.
        """
        top, states, lasts, gates = None, [], [], []
        for l, s0 in enumerate(s0s):
            kind, read = (self.source, source) if l == 0 else ('vectors', [top])
            S, last, G = GRU(kind, self.precision)(*read, s0, *weights[l])
            top = self.passed(l, S, scalars)
            states, lasts, gates = [*states, S], [*lasts, last], [*gates, G]
        return top, states, lasts, gates

    def passed(self, l, S, scalars):
        """An expression for what layer l passes up of its states S."""
        S = LayerNorm()(S) if self.layernorm else S
        return Dropout(l)(S, *scalars) if self.dropout else S


class GRUStackGrad(Op):
    """Gradients of `GRUStack`: from its inputs, each layer's S, what it keeps, and dtop (T, B, H) to those of its real inputs, in order.

    With `states` follow gradients dS (T, B, H) of each layer's S, those that come from elsewhere than the layer above.
    Cost: its layers'.
    """

    __props__ = ('stack', 'states')

    def __init__(self, stack, states=False):
        self.stack, self.states = stack, states

    def split(self, inputs):
        """(the stack's inputs, the S of each layer, (s, zr, h), dtop, the dS of each layer or an empty list), lists but dtop."""
        L = self.stack.layers
        dS = list(inputs[len(inputs) - L:]) if self.states else []
        inputs = inputs[:len(inputs) - len(dS)]
        return list(inputs[:-L - 4]), list(inputs[-L - 4:-4]), list(inputs[-4:-1]), inputs[-1], dS

    def make_node(self, *inputs):
        inputs = [T.as_tensor_variable(i) for i in inputs]
        differentiated = self.split(inputs)[0]
        isreal = self.stack.differentiable(len(differentiated))
        return Apply(self, inputs, [i.type() for i, each in zip(differentiated, isreal) if each])

    def perform(self, node, inputs, outputs):
        stack = self.stack
        source, s0s, weights, scalars = stack.split(self.split(node.inputs)[0])
        _, states, _, dpassed, dS = self.split(node.inputs)
        _, zr, h = self.split(inputs)[2]
        givens = dict(zip(node.inputs, inputs))
        first, ds0s, dweights = [], [], []
        for l in reversed(range(stack.layers)):
            G, S = T.tensor3(dtype=zr.dtype), states[l]
            givens[G] = np.concatenate([zr[l:l + len(givens[S]), l], h[l:l + len(givens[S]), l]], axis=2)
            if stack.dropout:
                dpassed = Dropout(l)(dpassed, *scalars)
            if stack.layernorm:
                dpassed = LayerNormGrad()(S, dpassed)
            if dS:
                dpassed = dpassed + dS[l]
            kind, read = (stack.source, source) if l == 0 else ('vectors', [stack.passed(l - 1, states[l - 1], scalars)])
            *first, ds0, dU, dW, db = GRUGrad(kind, stack.precision)(*read, s0s[l], *weights[l], S, G, dpassed)
            dpassed = first[0] if l else None
            ds0s, dweights = [ds0, *ds0s], [dU, dW, db, *dweights]
        for storage, value in zip(outputs, engine.evaluate([*first, *ds0s, *dweights], givens)):
            storage[0] = value


def _bywaves(arrays, mode='constant'):
    """L arrays (T, B, N) side by side, (T + L - 1, L, B, N), that of layer l from wave l on; before and behind, see np.pad."""
    L = len(arrays)
    return np.stack([np.pad(array, ((l, L - 1 - l), (0, 0), (0, 0)), mode) for l, array in enumerate(arrays)], axis=1)
