"""The sampler: characters drawn one after another, a whole text in one Op. Letters as in `ops`."""

import numpy as np

import native
from engine import Apply, Op, T
from ops import checkindices


class SampleText(Op):
    """Characters drawn one after another, each from softmax(logits / temp) behind the one before.

    Inputs: first, the index of the character that is read first; uniforms (n,), numbers in [0, 1) in float64, one a draw; temp,
    a scalar (0: the most likely character); allowed (V,), booleans: what may be drawn; s0 (L, H); then the model: E and a where it is
    `encoded`; U, W, b of each layer; V, c. Outputs: indices (n,) int32, without the first; the state (L, H) before the last drawn one is read.

    Cost: 12 L H^2 + 2 H V FLOP a character, and as many bytes of weights read as 2 L (3 H^2) + H V floats hold: the bytes are the limit.
    """

    __props__ = ('encoded',)

    def __init__(self, encoded=True):
        self.encoded = encoded

    def make_node(self, *inputs):
        inputs = [T.as_tensor_variable(i) for i in inputs]
        return Apply(self, inputs, [T.vector(dtype='int32'), inputs[4].type()])

    def perform(self, node, inputs, outputs):
        first, uniforms, temp, allowed, s0, source, layers, V, c = self._taken(inputs)
        forbidden = np.flatnonzero(~allowed.astype(bool))
        Wzrs = [np.ascontiguousarray(W[:, :2 * len(W)]) for _, W, _ in layers]
        Whs = [np.ascontiguousarray(W[:, 2 * len(W):]) for _, W, _ in layers]
        states = list(s0)
        projections = {}                        # of the characters met so far: x U + b of the first layer
        drawn = np.empty(len(uniforms), np.int32)
        char = int(first)
        for i, uniform in enumerate(uniforms):
            if char not in projections:
                U, _, b = layers[0]
                x = np.tanh(source[0][char] + source[1]) @ U if self.encoded else U[char]
                projections[char] = x + b
            projection = projections[char]
            for l, (_, W, _) in enumerate(layers):
                H, s = len(W), states[l]
                if l:
                    projection = states[l - 1] @ layers[l][0] + layers[l][2]
                zr = np.minimum(np.maximum(0.2 * (projection[:2 * H] + s @ Wzrs[l]) + 0.5, 0), 1)
                h = np.tanh(projection[2 * H:] + (zr[H:] * s) @ Whs[l])
                states[l] = h + zr[:H] * (s - h)
            logits = (states[-1] @ V + c).astype(np.float64)
            logits[forbidden] = -np.inf
            char = _draw(logits, float(temp), uniform)
            drawn[i] = char
        outputs[0][0], outputs[1][0] = drawn, np.array(states, s0.dtype)

    def kernel(self, node):
        kept = [], None                         # shapes, and the packed weights of a network of these

        def work(inputs, outputs):
            nonlocal kept
            first, uniforms, temp, allowed, s0, *network = self._taken(inputs)
            shapes = [i.shape for i in inputs[5:]]
            packed, states = kept[1] if kept[0] == shapes else None, s0[:, None].copy()
            drawn, packed = native.sample(*network, [int(first)], uniforms[None], float(temp), (allowed != 0).view(np.uint8), states, packed)
            if packed is None:
                raise _diverged()
            kept = shapes, packed
            outputs[0][0], outputs[1][0] = drawn[0], states[:, 0]
        types = [i.type.dtype for i in node.inputs]
        return work if native.library() is not None and types[1] == 'float64' and set(types[4:]) == {'float32'} else None

    def _taken(self, inputs):
        """The inputs, checked: first, uniforms, temp, allowed, s0, [E, a] or [], (U, W, b) of each layer, V, c."""
        first, uniforms, temp, allowed, s0, *params = inputs
        source = [params.pop(0), params.pop(0)] if self.encoded else []
        c, V = params.pop(), params.pop()
        layers = [params[i:i + 3] for i in range(0, len(params), 3)]
        if s0.shape != (len(layers), len(V)) or allowed.shape != c.shape or not allowed.any():
            raise ValueError(f'SampleText takes s0 ({len(layers)}, {len(V)}) and allowed ({len(c)},), not all of it 0, '
                             f'got s0 {s0.shape} and allowed {allowed.shape}')
        H, K = len(V), len(source[0].T) if self.encoded else len(c)
        wanted = [(len(c), K), (K,)][:len(source)] + [shape for l in range(len(layers)) for shape in ((H if l else K, 3 * H), (H, 3 * H), (3 * H,))]
        if not H * K * len(layers) or [i.shape for i in inputs[5:]] != wanted + [(H, len(c)), c.shape]:
            raise ValueError(f'SampleText takes a network whose sizes agree, got {", ".join(str(i.shape) for i in inputs[5:])}')
        checkindices('first', first, len(c))
        return first, uniforms, temp, allowed, s0, source, layers, V, c


def _draw(logits, temp, uniform):
    """The character at which the cumulated softmax(logits / temp) (float64) first exceeds `uniform` in [0, 1)."""
    if not np.isfinite(logits.max()):           # NaN too
        raise _diverged()
    if temp == 0:
        return int(logits.argmax())
    with np.errstate(over='ignore'):            # a tiny temp: infinitely unlikely
        cumulated = np.cumsum(np.exp((logits - logits.max()) / temp))
    return int(np.searchsorted(cumulated, uniform * cumulated[-1], side='right'))


def _diverged():
    return FloatingPointError('the network gives numbers that are none any more, so its training has diverged: restore an earlier '
                              'checkpoint (ms.checkpoints() lists them) and train on with a smaller learnrate')
