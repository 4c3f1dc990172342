"""The sampler: characters drawn one after another, whole texts in one Op, or read as it reads them. Letters as in `ops`; `n` texts."""

import numpy as np

import native
from engine import Apply, Op, T
from layernorm import normalised
from ops import checkindices
from rounding import PRECISIONS, product


class SampleText(Op):
    """The characters of n texts, drawn one after another, each from softmax(logits / temp) behind the one before.

    Inputs: chars (n,), the indices that are read first; uniforms (n, steps), numbers in [0, 1) in float64, one a draw; temp, a finite
    scalar (0: the most likely character); top_k >= 1, top_p in (0, 1], min_p in [0, 1], scalars that leave unlikely characters out, see
    `_draw` (V, 1 and 0 leave none out); allowed (V,), booleans: what may be drawn; s0 (L, n, H); then the model: E and a where it is
    `encoded`; U, W, b of each layer; V, c. Outputs: indices (n, steps) int32, without the first; the states (L, n, H) before the last
    drawn ones are read. With `layernorm` the layer above, or V, reads a layer's state as LayerNorm passes it on.

    precision: 'float32', 'bfloat16' or 'int8', of every W, every U above the first layer, V (see `rounding.rounded`) and the vectors that
    they multiply: s and r * s, rounded to bfloat16 or, beside int8 weights, to 127 points of [-m, m], m the greatest of 1 and |s0| of the
    text, which no later state exceeds; for what a layer passes up with `layernorm`, m is its own greatest. The first layer's inputs,
    sums, gates and the states themselves are float32.
    Measured on tinyshakespeare, 2 x 128, 1.53 nats a character on held-out text: 0.00003 more in bfloat16, 0.0004 more in int8.

    Natively a text's characters depend, bit for bit, neither on how many others are drawn beside it nor on the number of threads.
    Cost: 12 L H^2 + 2 H V FLOP a character (less 6 H^2: the first layer's inputs are kept by character). One text reads all weights
    for each character, 4 bytes for 2 FLOP, 2 in bfloat16, 1 in int8: the caches' speed is the limit; from about 16 on the arithmetic is.
    """

    __props__ = ('encoded', 'precision', 'layernorm')

    def __init__(self, encoded=True, precision='float32', layernorm=False):
        if precision not in PRECISIONS:
            raise ValueError(f'SampleText takes a precision of {", ".join(PRECISIONS)}, got {precision!r}')
        self.encoded, self.precision, self.layernorm = encoded, precision, layernorm

    def make_node(self, *inputs):
        inputs = [T.as_tensor_variable(i) for i in inputs]
        return Apply(self, inputs, [T.matrix(dtype='int32'), inputs[7].type()])

    def perform(self, node, inputs, outputs):
        chars, uniforms, temp, top_k, top_p, min_p, allowed, s0, source, layers, V, c = self._taken(inputs)
        forbidden = np.flatnonzero(~allowed.astype(bool))
        states, output = list(s0), product(V, self.precision, self._most(s0)[1])
        read, drawn = self._reader(s0, source, layers), np.empty(uniforms.shape, np.int32)
        for step in range(uniforms.shape[1]):
            states = read(chars, states)
            logits = (output(self._passedup(states[-1])) + c).astype(np.float64)
            logits[:, forbidden] = -np.inf
            chars = drawn[:, step] = [_draw(row, uniform, temp, top_k, top_p, min_p) for row, uniform in zip(logits, uniforms[:, step])]
        outputs[0][0], outputs[1][0] = drawn, np.array(states, s0.dtype)

    def _passedup(self, s):
        return normalised(s) if self.layernorm else s

    def _most(self, s0):
        """`product`'s `most` for states that follow s0 (L, n, H), and for what layers pass up."""
        most = np.maximum(np.abs(s0).max((0, 2)), 1)[:, None]       # of all states to come: they are no greater than 1 or those before
        return most, None if self.layernorm else most

    def _reader(self, s0, source, layers):
        """The function (chars (n,), states) -> the states that follow; both lists of (n, H), one a layer."""
        H, (most, mostpassed) = s0.shape[2], self._most(s0)
        Us = [None] + [product(U, self.precision, mostpassed) for U, _, _ in layers[1:]]
        Wzrs, Whs = ([product(W[:, part], self.precision, most) for _, W, _ in layers] for part in (slice(2 * H), slice(2 * H, None)))

        def read(chars, states):
            U, following = layers[0][0], []
            projection = np.tanh(source[0][chars] + source[1]) @ U if self.encoded else U[chars]
            for l, (s, (_, _, b)) in enumerate(zip(states, layers)):
                projection = (Us[l](self._passedup(following[-1])) if l else projection) + b
                zr = np.minimum(np.maximum(0.2 * (projection[:, :2 * H] + Wzrs[l](s)) + 0.5, 0), 1)
                h = np.tanh(projection[:, 2 * H:] + Whs[l](zr[:, H:] * s))
                following.append(h + zr[:, :H] * (s - h))
            return following
        return read

    def kernel(self, node):
        kept = None                             # packed weights

        def work(inputs, outputs):
            nonlocal kept
            chars, uniforms, temp, top_k, top_p, min_p, allowed, s0, *network = self._taken(inputs)
            states = np.array(s0, order='C')
            drawn, packed = native.sample(*network, chars, uniforms, temp, top_k, top_p, min_p, (allowed != 0).view(np.uint8), states,
                                          kept, self.precision, self.layernorm)
            if packed is None:
                raise diverged()
            kept = packed
            outputs[0][0], outputs[1][0] = drawn, states
        types = [i.type.dtype for i in node.inputs]
        return work if native.library() is not None and types[1] == 'float64' and set(types[7:]) == {'float32'} else None

    def _taken(self, inputs):
        """The inputs, checked: chars, uniforms, temp, top_k, top_p, min_p, allowed, s0, [E, a] or [], (U, W, b) of each layer, V, c."""
        chars, uniforms, temp, top_k, top_p, min_p, allowed, s0, *params = inputs
        source, layers, V, c = self._network(params)
        n = len(uniforms)
        if chars.shape != (n,) or s0.shape != (len(layers), n, len(V)) or allowed.shape != c.shape or not allowed.any() or not n:
            raise ValueError(f'SampleText takes chars ({n},) for uniforms {uniforms.shape}, at least one text, s0 '
                             f'({len(layers)}, {n}, {len(V)}) and allowed ({len(c)},), not all of it 0, got chars {chars.shape}, s0 '
                             f'{s0.shape} and allowed {allowed.shape}')
        if not (0 <= temp < np.inf and top_k >= 1 and 0 < top_p <= 1 and 0 <= min_p <= 1):
            raise ValueError('SampleText takes a finite temp >= 0, top_k >= 1, top_p in (0, 1] and min_p in [0, 1], got '
                             f'{temp}, {top_k}, {top_p} and {min_p}')
        checkindices('chars', chars, len(c))
        steering = float(temp), min(int(top_k), len(c)), float(top_p), float(min_p)
        return chars, uniforms, *steering, allowed, s0, source, layers, V, c

    def _network(self, params):
        """The network, checked: [E, a] or [], (U, W, b) of each layer, V, c."""
        *rest, V, c = params
        source, rest = (rest[:2], rest[2:]) if self.encoded else ([], rest)
        layers = [rest[i:i + 3] for i in range(0, len(rest), 3)]
        H, K = len(V), len(source[0].T) if self.encoded else len(c)
        wanted = [(len(c), K), (K,)][:len(source)]
        for l in range(len(layers)):
            wanted += [(H if l else K, 3 * H), (H, 3 * H), (3 * H,)]
        if not H * K * len(layers) or [i.shape for i in params] != wanted + [(H, len(c)), c.shape]:
            raise ValueError(f'{type(self).__name__} takes a network whose sizes agree, got {", ".join(str(i.shape) for i in params)}')
        return source, layers, V, c


class ReadText(SampleText):
    """The states along n texts that are given, in the arithmetic in which SampleText writes them.

    Inputs: x (T, n), indices; s0 (L, n, H); then the model as in SampleText. Output: the states (L, T, n, H) after each character.
    """

    def make_node(self, *inputs):
        inputs = [T.as_tensor_variable(i) for i in inputs]
        return Apply(self, inputs, [T.tensor4(dtype=inputs[1].dtype)])

    def perform(self, node, inputs, outputs):
        x, s0, source, layers, _, _ = self._taken(inputs)
        read, states, S = self._reader(s0, source, layers), list(s0), np.empty((len(s0), *x.shape, s0.shape[2]), s0.dtype)
        for t, chars in enumerate(x):
            states = read(chars, states)
            S[:, t] = states
        outputs[0][0] = S

    def kernel(self, node):
        kept = None                             # packed weights

        def work(inputs, outputs):
            nonlocal kept
            x, s0, *network = self._taken(inputs)
            S = np.empty((len(s0), *x.shape, s0.shape[2]), np.float32)
            kept = native.read(*network, x, np.array(s0, order='C'), S, kept, self.precision, self.layernorm)
            outputs[0][0] = S
            if kept is None:                    # states that are no numbers: NumPy says which
                self.perform(node, inputs, outputs)
        types = {i.type.dtype for i in node.inputs[1:]}
        return work if native.library() is not None and types == {'float32'} else None

    def _taken(self, inputs):
        """The inputs, checked: x, s0, [E, a] or [], (U, W, b) of each layer, V, c."""
        x, s0, *params = inputs
        source, layers, V, c = self._network(params)
        if not x.size or s0.shape != (len(layers), x.shape[1], len(V)):
            raise ValueError(f'ReadText takes at least one character and s0 ({len(layers)}, {x.shape[1]}, {len(V)}), got x {x.shape} and '
                             f's0 {s0.shape}')
        checkindices('x', x, len(c))
        return x, s0, source, layers, V, c


def _draw(logits, uniform, temp, top_k, top_p, min_p):
    """The character at which the cumulated softmax(logits / temp) (float64) first exceeds `uniform` in [0, 1).

    Of the softmax are kept the top_k likeliest characters; of these the fewest likeliest whose sum is at least top_p of theirs
    (Holtzman et al. 2020, arXiv:1904.09751); of these those at least min_p times as likely as the likeliest (Nguyen et al. 2024,
    arXiv:2407.01082). Of equals the first counts as likelier.
    """
    if not np.isfinite(logits.max()):           # NaN too
        raise diverged()
    if temp == 0:
        return int(logits.argmax())
    with np.errstate(over='ignore'):            # a tiny temp: infinitely unlikely
        shares = np.exp((logits - logits.max()) / temp)
    if top_k < len(shares) or top_p < 1:
        ranking = np.argsort(-logits, kind='stable')[:top_k]
        if top_p < 1:
            cumulated = np.cumsum(shares[ranking])
            ranking = ranking[:np.searchsorted(cumulated / cumulated[-1], top_p) + 1]      # so that of 10 equals 0.7 are 7
        kept = np.zeros_like(shares)
        kept[ranking] = shares[ranking]
        shares = kept
    shares[shares < min_p] = 0
    cumulated = np.cumsum(shares)
    return int(np.searchsorted(cumulated, uniform * cumulated[-1], side='right'))


def diverged():
    return FloatingPointError('the network gives numbers that are none any more, so its training has diverged: restore an earlier '
                              'checkpoint (ms.checkpoints() lists them) and train on with a smaller learnrate')
