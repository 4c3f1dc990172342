"""The networks as Theano graphs: GRUEncode and GRUResize over their common base.

Graph-building methods take and give Theano expressions and compile nothing; the compiled functions are cached
properties, built when they are first asked for. Letters as in `ops`: `T` steps, `B` rows, `H` state size, `V` vocabulary, `L` layers.
"""

import math
import os
import threading
import time
from collections.abc import Mapping
from functools import cached_property

import numpy as np

import engine
import ops
import report
from engine import T, theano
from errors import short
from sampling import SampleText


class ModelParams:
    """A network's parameters, its optimiser's caches and its place in the text; the base of the model types.

    Parameters (get_params, set_params): float32 arrays by name. Per layer l from 0: `U{l}` (inputs, 3H), `W{l}` (H, 3H), `b{l}` (3H,),
    columns in the order z, r, h (see `ops`); the output layer's `V` (H, V) and `c` (V,); a model type adds its own.
    Initial weights are uniform within +-sqrt(1 / number of rows), biases zero (LeCun et al. 1998, Efficient BackProp, 4.6).

    Memory of a training step, bytes: about 4 [T B (8 L H + 8 H) + 4 P], P = number of parameters; with NumPy up to half as much again.
    """

    BIASES = ('a', 'b', 'c')        # first letters of the parameters that are not weight matrices: the cost leaves them out

    def __init__(self, vocab, layers, state_size, seed):
        """vocab: V; layers: L; state_size: H; seed (int): where the initial weights come from. MemoryError for a network beyond this machine."""
        self.vocab, self.layers, self.state_size = vocab, layers, state_size
        self.checkmemory(vocab, layers, state_size)
        self.shapes = self.shapesof(vocab, layers, state_size)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0,))))
        self.params, self.caches = {}, {}
        for name, shape in self.shapes.items():
            bound = shape[0] ** -0.5
            value = (np.zeros(shape, np.float32) if name[0] in self.BIASES
                     else rng.uniform(-bound, bound, shape).astype(np.float32))
            self.params[name] = theano.shared(value, name)
            self.caches[name] = theano.shared(np.zeros(shape, np.float32), 'm' + name)
        self.states = [theano.shared(np.zeros((1, state_size), np.float32), f's{l}') for l in range(layers)]
        self.epoch = self.pos = 0

    @classmethod
    def shapesof(cls, vocab, layers, state_size):
        """Shape of every parameter, by name, in the order in which their initial values are drawn."""
        H = state_size
        shapes = dict(cls._inputshapes(vocab, H))
        for l in range(layers):
            shapes[f'U{l}'] = (vocab if l == 0 and cls.source == 'onehot' else H, 3 * H)
            shapes[f'W{l}'] = (H, 3 * H)
            shapes[f'b{l}'] = (3 * H,)
        return {**shapes, 'V': (H, vocab), 'c': (vocab,)}

    @classmethod
    def count(cls, vocab, layers, state_size):
        """How many numbers training adjusts."""
        return sum(math.prod(shape) for shape in cls.shapesof(vocab, layers, state_size).values())

    @classmethod
    def checkmemory(cls, vocab, layers, state_size, batchsize=1, seq_len=1):
        """MemoryError for a network, or for batches of its training, that this machine can't hold."""
        L, H = layers, state_size
        count = cls.count(vocab, L, H)
        needed = 4 * (batchsize * seq_len * (8 * L * H + 8 * H) + 4 * count)
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        if needed > memory:
            raise MemoryError(f'a network of {L} x {H}, {count:,} parameters, in batches of {batchsize} x {seq_len} characters takes about '
                              f'{needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB: use a smaller state_size, batchsize or '
                              'seq_len, or fewer layers')

    def weights(self):
        """Names of the weight matrices, the parameters that regcost shrinks."""
        return [name for name in self.params if name[0] not in self.BIASES]

    # --- Values -------------------------------------------------------------------------------------------------

    def get_params(self):
        """A dict of name -> float32 array, copies."""
        return {name: shared.get_value() for name, shared in self.params.items()}

    def set_params(self, params):
        """Replace parameters by the arrays of a dict of name -> array; those that it leaves out stay.

        Raises KeyError for a name that isn't a parameter's, ValueError for a wrong shape or values that aren't numbers; then nothing has changed.
        """
        values = {}
        if not isinstance(params, Mapping):
            raise TypeError(f'set_params takes a dict of name -> array, got {short(params)}')
        for name, value in params.items():
            if name not in self.params:
                raise KeyError(f'no parameter {name!r}: this model has {", ".join(self.params)}')
            try:
                value = np.asarray(value)
            except ValueError:                  # lists of unequal lengths
                value = np.array(None)
            if value.dtype.kind not in 'iuf':
                raise ValueError(f'parameter {name} takes an array of real numbers, got {short(params[name])}')
            with np.errstate(over='ignore'):
                value = np.array(value, np.float32, order='C')
            if not np.isfinite(value).all():
                raise ValueError(f'parameter {name} takes numbers that float32 holds, got NaN or infinity')
            if value.shape != self.shapes[name]:
                raise ValueError(f'parameter {name} has shape {self.shapes[name]}, got {value.shape}')
            values[name] = value
        for name, value in values.items():
            self.params[name].set_value(value, borrow=True)

    def get_state(self):
        """The hidden states (L, B, H) that the next step starts from."""
        return np.stack([s.get_value(borrow=True) for s in self.states])

    def set_state(self, state):
        """Start the next step from hidden states (L, B, H), a float32 array; ValueError for another L or H."""
        state = np.asarray(state, np.float32)
        if state.ndim != 3 or (state.shape[0], state.shape[2]) != (self.layers, self.state_size):
            raise ValueError(f'the state has shape ({self.layers}, batch rows, {self.state_size}), got {state.shape}')
        for shared, s in zip(self.states, state):
            shared.set_value(np.array(s, order='C'), borrow=True)

    def arrays(self):
        """Everything that a checkpoint keeps, a dict of name -> array: parameters, caches (`m` + name) and `state` (L, B, H)."""
        caches = {'m' + name: shared.get_value() for name, shared in self.caches.items()}
        return {**self.get_params(), **caches, 'state': self.get_state()}

    @classmethod
    def expected(cls, vocab, layers, state_size, batchsize):
        """Shape and type of each of `arrays()` when a batch has `batchsize` rows: a dict of name -> (shape, dtype)."""
        shapes = cls.shapesof(vocab, layers, state_size)
        shapes.update({'m' + name: shape for name, shape in shapes.items()})
        shapes['state'] = (layers, batchsize, state_size)
        return {name: (shape, 'float32') for name, shape in shapes.items()}

    def set_arrays(self, arrays):
        """Put back what `arrays()` gave; ValueError for a wrong shape, and then nothing has changed."""
        for name, (shape, _) in self.expected(self.vocab, self.layers, self.state_size, arrays['state'].shape[1]).items():
            if arrays[name].shape != shape:
                raise ValueError(f'{name} has shape {shape}, got {arrays[name].shape}')
        self.set_params({name: arrays[name] for name in self.params})
        for name, shared in self.caches.items():
            shared.set_value(np.array(arrays['m' + name], np.float32, order='C'), borrow=True)
        self.set_state(arrays['state'])

    # --- Graphs -------------------------------------------------------------------------------------------------

    def _layer(self, l, source, s0):
        """(S, last) of layer l over `source` (what it reads) from s0 (B, H)."""
        inputs, kind = (self._firstsource(source), self.source) if l == 0 else ([source], 'vectors')
        U, W, b = (self.params[f'{name}{l}'] for name in 'UWb')
        return ops.GRU(kind)(*inputs, s0, U, W, b)[:2]

    def _stack(self, x, s0s):
        """(states, lasts): each layer's S (T, B, H) and last state (B, H), as lists, for x (T, B) and a list of s0 (B, H)."""
        states, lasts = [], []
        for l, s0 in enumerate(s0s):
            S, last = self._layer(l, states[-1] if l else x, s0)
            states.append(S)
            lasts.append(last)
        return states, lasts

    def forward(self, x, s0):
        """Expressions for (logits (T, B, V), laststate (L, B, H)) of characters x (T, B), integers, behind states s0 (L, B, H).

        Differentiable in the parameters and in s0.
        """
        x, s0 = T.as_tensor_variable(x), T.as_tensor_variable(s0)
        states, lasts = self._stack(x, [s0[l] for l in range(self.layers)])
        rows = states[-1].reshape((x.shape[0] * x.shape[1], self.state_size))
        logits = T.dot(rows, self.params['V']) + self.params['c']
        return logits.reshape((x.shape[0], x.shape[1], self.vocab)), T.stack(lasts)

    def loss(self, x, y, s0s, gradients=False):
        """Expressions for (loss, last states): the mean negative log-likelihood of y (T, B) behind x (T, B), nats per character.

        s0s, last states: lists of (B, H), one a layer. `gradients=True` where the loss will be differentiated: the same, faster.
        """
        states, lasts = self._stack(x, s0s)
        loss = ops.SoftmaxLoss(gradients)(states[-1], self.params['V'], self.params['c'], y)
        return (loss[0] if gradients else loss), lasts

    def cost(self, x, y, s0s, regcost):
        """What `trainstep` descends on, to build costs of your own beside: the loss + regcost / 2 * sum of the squared weight matrices / number of characters."""
        squares = sum(T.sum(T.sqr(self.params[name])) for name in self.weights())
        return self.loss(x, y, s0s)[0] + regcost / 2 * squares / (y.shape[0] * y.shape[1])

    # --- Functions ----------------------------------------------------------------------------------------------

    @cached_property
    def trainstep(self):
        """Compiled: (x, y (T, B) int32, learnrate, decay, regcost) -> loss before the update; forward, backward and update of a step.

        The gradient of the cost is Theano's of the loss plus regcost W / (T B), which the update adds as it passes over W.
        """
        x, y = T.matrix('x', dtype='int32'), T.matrix('y', dtype='int32')
        learnrate, decay = T.scalar('learnrate', dtype='float32'), T.scalar('decay', dtype='float32')
        weightcosts = T.vector('weightcosts', dtype='float32')
        loss, lasts = self.loss(x, y, self.states, gradients=True)
        params, caches = list(self.params.values()), list(self.caches.values())
        new = ops.RMSProp(len(params))(learnrate, decay, weightcosts, *params, *caches, *theano.grad(loss, params))
        f = _compiled('training', [x, y, learnrate, decay, weightcosts], [loss],
                      list(zip(params + caches + self.states, new + lasts)))
        isweight = np.array([name in self.weights() for name in self.params], np.float32)

        def trainstep(x, y, learnrate, decay, regcost):
            return float(f(x, y, np.asarray(learnrate, 'float32'), np.asarray(decay, 'float32'),
                           isweight * np.float32(regcost / x.size))[0])
        return trainstep

    @cached_property
    def evaluate(self):
        """Compiled: (x, y (T, B) int32, state (L, B, H)) -> (loss, laststate (L, B, H)); changes nothing."""
        x, y = T.matrix('x', dtype='int32'), T.matrix('y', dtype='int32')
        s0s = [T.matrix(f's{l}', dtype='float32') for l in range(self.layers)]
        loss, lasts = self.loss(x, y, s0s)
        f = _compiled('validation', [x, y, *s0s], [loss, *lasts])

        def evaluate(x, y, state):
            loss, *lasts = f(x, y, *state)
            return float(loss), lasts
        return evaluate

    @cached_property
    def sampletext(self):
        """Compiled: (chars (n,), uniforms (n, steps), temp, top_k, top_p, min_p, allowed (V,), s0 (L, n, H)) -> (indices (n, steps),
        laststates (L, n, H)); see `sampling.SampleText`."""
        inputs = [T.vector('chars', dtype='int32'), T.matrix('uniforms', dtype='float64'), T.scalar('temp', dtype='float64'),
                  T.scalar('top_k', dtype='int64'), T.scalar('top_p', dtype='float64'), T.scalar('min_p', dtype='float64'),
                  T.vector('allowed', dtype='int8'), T.tensor3('s0', dtype='float32')]
        outputs = SampleText(self.source == 'encoded')(*inputs, *self.params.values())
        f = _compiled('generation', inputs, outputs)
        types = [i.type.dtype for i in inputs]
        return lambda *values: f(*(np.asarray(value, dtype) for value, dtype in zip(values, types)))

    @cached_property
    def allstates(self):
        """Compiled: (x (T, B) int32, state (L, B, H)) -> every layer's states, a list of (T, B, H)."""
        x = T.matrix('x', dtype='int32')
        s0s = [T.matrix(f's{l}', dtype='float32') for l in range(self.layers)]
        f = _compiled('neurons', [x, *s0s], self._stack(x, s0s)[0])
        return lambda x, state: f(x, *state)

    def untrainedloss(self, batches):
        """Mean loss over an iterable of batches (x, y), each (T, B), from a zero state, without compiling: by the Ops' NumPy `perform`."""
        x, y = T.matrix('x', dtype='int32'), T.matrix('y', dtype='int32')
        s0s = [T.matrix(f's{l}', dtype='float32') for l in range(self.layers)]
        loss, lasts = self.loss(x, y, s0s)
        losses, state = [], None
        for x_value, y_value in batches:
            if state is None:
                state = [np.zeros((x_value.shape[1], self.state_size), np.float32)] * self.layers
            value, *state = engine.evaluate([loss, *lasts], {x: x_value, y: y_value, **dict(zip(s0s, state))})
            losses.append(float(value))
        return float(np.mean(losses))


class GRUEncode(ModelParams):
    """An input layer tanh(E[character] + a), E (V, H), a (H,), then the GRU layers, all of state-sized vectors."""

    source = 'encoded'

    @staticmethod
    def _inputshapes(vocab, state_size):
        return {'E': (vocab, state_size), 'a': (state_size,)}

    def _firstsource(self, x):
        return [x, self.params['E'], self.params['a']]


class GRUResize(ModelParams):
    """The first GRU layer takes the vocabulary-sized one-hot vector itself: its U0 is (V, 3H), and x U0 a row of it."""

    source = 'onehot'

    @staticmethod
    def _inputshapes(vocab, state_size):
        return {}

    def _firstsource(self, x):
        return [x]


MODELTYPES = {cls.__name__: cls for cls in (GRUEncode, GRUResize)}


def _compiled(what, inputs, outputs, updates=()):
    """The compiled function, one thread in it at a time; says what was compiled and how long it took."""
    start = time.perf_counter()
    f = engine.compilefunction(inputs, outputs, updates)
    report.say(f'Compiled {what} with {engine.version} in {time.perf_counter() - start:.1f} s.')
    lock = threading.Lock()             # its inputs and results lie in it during a call, and the kernels let other threads run

    def call(*values):
        with lock:
            return f(*values)
    return call
