"""The update of the parameters in one Op: clipping, RMSProp, Adam, AdamW or SGD, and the running mean of the parameters."""

import math
from types import SimpleNamespace

import numpy as np

import native
from engine import Apply, Op, T

RATES = ('learnrate', 'decay', 'beta1', 'beta2', 'momentum', 'weight_decay', 'clip', 'regcost', 'ema', 'updates', 'cacheupdates')
CACHES = {'rmsprop': 'm', 'adam': 'mg', 'adamw': 'mg', 'sgd': 'g'}         # m: mean squared gradient, g: mean gradient or velocity
BLOCK = 1 << 15                                                             # elements of a pass, so that its arrays stay in the cache


class Update(Op):
    """One update of every parameter, in place.

    Inputs: rates, a float64 vector of the numbers that RATES names: hyperparameters, `regcost` divided by the batch's characters, `updates`
    made before this one, `cacheupdates` made since the caches were zero; w (n,), one factor for each parameter: 1, or 0 where regcost and
    weight_decay leave it alone; then n arrays of each: parameters p, the optimizer's caches (CACHES), averages e if `averaged`,
    gradients d.

    Outputs: parameters, caches and averages, updated where they lie; norm and share, float64 scalars:

        d    += regcost w p                     the gradient of regcost/2 * sum(p^2): added here, it costs no pass over memory
        norm  = sqrt(sum of d^2 over all parameters)
        clipping 'value': d = clip(d, -clip, clip);  share = that of the elements that this changes
        clipping 'norm': where norm > clip, d *= clip / norm and share = 1, else share = 0 (Pascanu et al. 2013, arXiv:1211.5063)

    'rmsprop', Tieleman and Hinton 2012, lecture 6.5:
        m  = decay m + (1 - decay) d^2
        p -= learnrate d / sqrt(m + 1e-6)
    'adam', Kingma and Ba 2015, arXiv:1412.6980, algorithm 1, t = cacheupdates + 1:
        g  = beta1 g + (1 - beta1) d
        m  = beta2 m + (1 - beta2) d^2
        p -= learnrate (g / (1 - beta1^t)) / (sqrt(m / (1 - beta2^t)) + 1e-8)
    'adamw', Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, the decay times learnrate as in PyTorch: before Adam's update
        p -= learnrate weight_decay w p
    'sgd', classical momentum (Polyak 1964) in PyTorch's form, so that a changed learnrate holds at once:
        g  = momentum g + d
        p -= learnrate g

    averages, of the new p; the smaller share at first lets go of the initial parameters (as TensorFlow's ExponentialMovingAverage):
        k  = min(ema, (1 + updates) / (10 + updates))
        e += (1 - k) (p - e)

    A NaN in d stays visible: in norm, and by 'value' in its own element, by 'norm' in all.
    """

    __props__ = ('optimizer', 'clipping', 'averaged', 'n')

    def __init__(self, optimizer, clipping, averaged, n):
        self.optimizer, self.clipping, self.averaged, self.n = optimizer, clipping, averaged, n
        self.kinds = 1 + len(CACHES[optimizer]) + averaged              # of arrays that are updated
        self.destroy_map = {i: [2 + i] for i in range(self.kinds * n)}

    def make_node(self, *inputs):
        inputs = [T.as_tensor_variable(i) for i in inputs]
        return Apply(self, inputs, [i.type() for i in inputs[2:-self.n]] + [T.scalar(dtype='float64'), T.scalar(dtype='float64')])

    def perform(self, node, inputs, outputs):
        rates, w, *arrays = self._taken(inputs)
        pieces = [(float(factor), piece) for factor, *each in zip(w, *arrays) for piece in _pieces(each)]
        scale, squares, changed = None, 0.0, 0
        if self.clipping == 'norm':
            squares = sum(_squares(_slope(p, d, rates.regcost * factor)) for factor, (p, *_, d) in pieces)
            norm = math.sqrt(squares)
            scale = 1.0 if norm <= rates.clip else rates.clip / norm
        for factor, (p, *caches, d) in pieces:
            average = caches.pop() if self.averaged else None
            d = _slope(p, d, rates.regcost * factor)
            if scale is None:
                squares += _squares(d)
                changed += np.count_nonzero(np.abs(d) > rates.clip)
                d = np.minimum(np.maximum(d, -rates.clip), rates.clip)
            else:
                d = d * scale
            getattr(self, '_' + self.optimizer)(rates, factor, p, *caches, d)
            if average is not None:
                average += (1 - min(rates.ema, (1 + rates.updates) / (10 + rates.updates))) * (p - average)
        norm = math.sqrt(squares)
        share = changed / sum(p.size for p in arrays[0]) if scale is None else float(scale != 1)
        for storage, value in zip(outputs, [*sum(arrays[:-1], []), np.asarray(norm), np.asarray(share)]):
            storage[0] = value

    def kernel(self, node):
        def work(inputs, outputs):
            rates, w, *arrays = self._taken(inputs)
            updated = sum(arrays[:-1], [])
            if not all(a.flags.c_contiguous for a in updated):
                return self.perform(node, inputs, outputs)
            caches = dict(zip(CACHES[self.optimizer] + 'e' * self.averaged, arrays[1:]))
            norm, share = native.update(self.optimizer, self.clipping, rates, w, arrays[0], caches, arrays[-1])
            for storage, value in zip(outputs, [*updated, np.asarray(norm), np.asarray(share)]):
                storage[0] = value
        types = [i.type.dtype for i in node.inputs]
        return work if native.library() is not None and types[0] == 'float64' and set(types[1:]) == {'float32'} else None

    def _taken(self, inputs):
        """The inputs, checked: rates by name, w, then a list of n arrays for each kind."""
        rates, w, *arrays = inputs
        n = self.n
        arrays = [list(arrays[i:i + n]) for i in range(0, len(arrays), n)]
        if (rates.shape != (len(RATES),) or w.shape != (n,) or len(arrays) != self.kinds + 1
                or any(len({a.shape for a in each}) > 1 for each in zip(*arrays))):
            raise ValueError(f'Update takes {len(RATES)} rates, {n} factors, and caches and a gradient of the shape of each parameter, got '
                             f'{rates.shape}, {w.shape} and {[[a.shape for a in each] for each in arrays]}')
        return SimpleNamespace(**dict(zip(RATES, rates.tolist()))), w, *arrays

    @staticmethod
    def _rmsprop(rates, factor, p, m, d):
        square = d * d
        square -= m
        square *= 1 - p.dtype.type(rates.decay)
        m += square
        p -= p.dtype.type(rates.learnrate) * (d / np.sqrt(m + 1e-6))

    @staticmethod
    def _adam(rates, factor, p, m, g, d):
        g += (1 - rates.beta1) * (d - g)
        m += (1 - rates.beta2) * (d * d - m)
        first, second = (1 - beta ** (rates.cacheupdates + 1) for beta in (rates.beta1, rates.beta2))
        p -= rates.learnrate * (g / first) / (np.sqrt(m / second) + 1e-8)

    @classmethod
    def _adamw(cls, rates, factor, p, m, g, d):
        p *= 1 - rates.learnrate * rates.weight_decay * factor
        cls._adam(rates, factor, p, m, g, d)

    @staticmethod
    def _sgd(rates, factor, p, g, d):
        g *= rates.momentum
        g += d
        p -= rates.learnrate * g


def _pieces(arrays):
    """The arrays of one parameter in flat pieces that stay in the cache; whole, where a flat view would be a copy, its update lost."""
    if not all(a.flags.c_contiguous for a in arrays[:-1]):
        return [arrays]
    flat = [a.reshape(-1) for a in arrays]
    return [[a[start:start + BLOCK] for a in flat] for start in range(0, len(flat[0]), BLOCK)]


def _slope(p, d, regcost):
    return d + p.dtype.type(regcost) * p if regcost else d


def _squares(d):
    return float(np.square(d, dtype=np.float64).sum())
