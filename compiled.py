"""What a network compiles: its training step, validation, generation and reading, as functions of arrays. Letters as in `ops`.

They are cached properties, built when they are first asked for, on the device where the network is (`device.py`).
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

import device
import engine
import ops
from engine import T, theano
from sampling import ReadText, SampleText, diverged
from update import CACHES, Update

DROPOUT = 'float32', 'int64', 'int64'           # of a training step's p, seed and updates: see `dropout.Dropout`
STEPS = 64                                      # that a text is written or read in at least, where each length has to be compiled for
READERS = 'sampletext', 'allstates'             # the compiled functions that `ModelParams.read` chooses a precision for


class Settings(NamedTuple):
    """What of the hyperparameters decides which caches there are and what a training step is compiled to."""

    optimizer: str = ''
    clipping: str = ''
    averaged: bool = False
    dropout: bool = False
    precision: str = 'float32'

    @classmethod
    def of(cls, hyper):
        """Those of `hyper`, HyperParams."""
        return cls(hyper.optimizer, hyper.clipping, hyper.ema > 0, hyper.dropout > 0, hyper.precision)

    @property
    def kinds(self):
        """First letters of the caches that there are."""
        return CACHES[self.optimizer] + 'e' * self.averaged


class Compiled:
    """The compiled functions of a network; the base of `layers.ModelParams`, whose graphs they are made of."""

    device = device.CPU

    def __init__(self):
        self._functions = {}                    # compiled, by what they depend on
        self._reads = None

    def place(self, where):
        """Compute on this device (of `device.chosen`) from now on, with the parameters, caches and states of now."""
        if where == self.device:
            return
        for shared in (*self.params.values(), *self.caches.values(), *self.states):
            engine.hold(shared, self._value(shared))
        self.device = where
        self._forget('trainstep', 'evaluate', *READERS)

    def gather(self):
        """Bring the states here, of whose rows several processes may have their shares: all of them have to call it."""
        for shared in self.states:
            engine.hold(shared, self._value(shared))

    def _value(self, shared):
        """A copy of a shared variable's array, wherever it lies."""
        with device.TURN:
            return self.device.fetch(engine.held(shared))

    def _characters(self, names):
        """Symbolic matrices (T, B) of characters, one for each letter of `names`."""
        return [T.matrix(name, dtype=self.device.chartype(self.vocab)) for name in names]

    def _sent(self, *arrays):
        """Arrays of characters as those matrices take them."""
        return [np.asarray(array, self.device.chartype(self.vocab)) for array in arrays]

    def _forget(self, *functions):
        for name in functions:
            vars(self).pop(name, None)

    @cached_property
    def trainstep(self):
        """Compiled: (x, y (T, B) int32, hyper, learnrate=None) -> (loss before the update, norm of the gradient before it is clipped,
        share of its elements that clipping changed, by norm 0 or 1): forward, backward and update of a step. Three numbers, float64; a
        device that computes by itself (`device.runson`) gives them before it has them, and float() waits.

        hyper: HyperParams, any of whose numbers may differ from call to call. Another optimizer, clipping or ema from or to 0 is
        compiled when it is first met, and does as in `prepare`. learnrate: in place of hyper.learnrate.
        The gradient is Theano's of the loss plus regcost W / (T B), which the update adds as it passes over W.
        """
        def trainstep(x, y, hyper, learnrate=None):
            if Settings.of(hyper) != self.settings:
                self.prepare(hyper)
            loss, norm, share = self._training()(*self._sent(x, y), np.array((
                hyper.learnrate if learnrate is None else learnrate, hyper.decay, hyper.beta1, hyper.beta2, hyper.momentum,
                hyper.weight_decay, hyper.clip, hyper.regcost / x.size, hyper.ema, self.updates, self.cacheupdates)),  # as RATES names them
                *(np.array(value, dtype) for value, dtype in zip((hyper.dropout, self.seed, self.updates), DROPOUT) if hyper.dropout))
            self.updates += 1
            self.cacheupdates += 1
            return (loss, norm, share) if self.device.runson else (float(loss), float(norm), float(share))
        self._training()
        return trainstep

    def _training(self):
        """The compiled step of the present settings: (x, y, rates) -> (loss, norm, share)."""
        precision = self.device.trainable(self.settings.precision)
        settings = self.settings._replace(precision=precision)
        key = settings, self.device
        if key in self._functions:
            return self._functions[key]
        x, y = self._characters('xy')
        rates = T.vector('rates', dtype='float64')
        dropout = [T.scalar(dtype=dtype) for dtype in DROPOUT if settings.dropout]
        network = self._within(precision)
        loss, lasts = network.loss(x, y, self.states, gradients=True, dropout=dropout)
        params, caches = list(self.params.values()), [self.caches[name] for name in self._cachenames()]
        isweight = np.array([name in self.weights() for name in self.params], np.float32)
        update = Update(settings.optimizer, settings.clipping, settings.averaged, len(params))
        gradients = theano.grad(loss, params)
        if self.device.count > 1:
            loss, *gradients = (ops.AllReduce()(each) for each in (loss, *gradients))
        *new, norm, share = update(rates, isweight, *params, *caches, *gradients)
        self._functions[key] = self.device.compile('training', [x, y, rates, *dropout], [loss, norm, share],
                                                   list(zip(params + caches + self.states, new + lasts)),
                                                   {x: 1, y: 1, **dict.fromkeys(self.states, 0)})
        return self._functions[key]

    @property
    def reads(self):
        """The precision in which text is generated and read: see `read`."""
        return self._reads or self.device.trainable(self.settings.precision)

    def read(self, precision=None):
        """Generate and read text in this one of `rounding.PRECISIONS`; None: as in training. Validation stays as in training."""
        if precision != self._reads:
            self._reads = precision
            self._forget(*READERS)

    def _reading(self, what, graph, precision):
        """The compiled function that graph(network) gives, for the network that generates text, in a precision: (inputs, outputs, and for a
        batch the axes of its rows)."""
        key = what, self.settings.averaged, precision, self.device
        if key not in self._functions:
            inputs, outputs, *rows = graph(self._reader(precision))
            self._functions[key] = self.device.compile(what, inputs, outputs, (), *rows)
        return self._functions[key]

    @cached_property
    def evaluate(self):
        """Compiled: (x, y (T, B) int32, state (L, B, H)) -> (loss, laststate (L, B, H)); changes nothing."""
        def graph(network):
            x, y = self._characters('xy')
            s0s = [T.matrix(f's{l}', dtype='float32') for l in range(self.layers)]
            loss, lasts = network.loss(x, y, s0s)
            if self.device.count > 1:
                loss = ops.AllReduce()(loss)
            return [x, y, *s0s], [loss, *lasts], {x: 1, y: 1, **dict.fromkeys(s0s + lasts, 0)}
        f = self._reading('validation', graph, self.device.trainable(self.settings.precision))

        def evaluate(x, y, state):
            loss, *lasts = f(*self._sent(x, y), *state)
            return float(loss), lasts
        return evaluate

    @cached_property
    def sampletext(self):
        """Compiled: (chars (n,), uniforms (n, steps), temp, top_k, top_p, min_p, allowed (V,), s0 (L, n, H)) -> (indices (n, steps),
        laststates (L, n, H)); see `sampling.SampleText`. On a device that compiles for each shape, texts and steps are rounded up, and
        what is drawn for a uniform of -1 is nothing."""
        types = ['int32', 'float64', 'float64', 'int64', 'float64', 'float64', 'int8', 'float32']

        def graph(network):
            inputs = [T.TensorType(dtype, (None,) * ndim)() for dtype, ndim in zip(types, (1, 2, 0, 0, 0, 0, 1, 3))]
            return inputs, SampleText(self.source == 'encoded', network.precision, self.layernorm)(*inputs, *network.params.values())
        f = self._reading('generation', graph, self.reads)

        def sampletext(*values):
            chars, uniforms, *steering, s0 = (np.asarray(value, dtype) for value, dtype in zip(values, types))
            n, steps = uniforms.shape
            rows, columns = self.device.roundup(n) - n, self.device.roundup(steps, STEPS) - steps
            if rows or columns:
                chars, s0 = np.pad(chars, (0, rows)), np.pad(s0, ((0, 0), (0, rows), (0, 0)))
                uniforms = np.pad(uniforms, ((0, rows), (0, columns)), constant_values=-1)
            drawn, last = f(chars, uniforms, *steering, s0)
            drawn, last = drawn[:n, :steps], last[:, :n]
            if drawn.size and drawn.min() < 0:          # where a device can't raise
                raise diverged()
            return drawn, last
        if self.device.runson:              # made now for a short text, so that nothing is said in the middle of one
            sampletext([0], -np.ones((1, 1)), 1.0, 1, 1.0, 0.0, np.ones(self.vocab), np.zeros((self.layers, 1, self.state_size)))
        return sampletext

    @cached_property
    def allstates(self):
        """Compiled: (x (T, B) int32, state (L, B, H)) -> every layer's states, a list of (T, B, H)."""
        def read(network):
            x, = self._characters('x')
            if self.reads == 'int8':
                s0 = T.tensor3('s0', dtype='float32')
                return [x, s0], ReadText(self.source == 'encoded', 'int8', self.layernorm)(x, s0, *network.params.values())
            s0s = [T.matrix(f's{l}', dtype='float32') for l in range(self.layers)]
            return [x, *s0s], network._stack(x, s0s)[0]
        f = self._reading('neurons', read, self.reads)

        def allstates(x, state):
            steps, B = x.shape
            more = self.device.roundup(steps, STEPS) - steps, self.device.roundup(B) - B
            if any(more):
                x, state = np.pad(x, ((0, more[0]), (0, more[1]))), np.pad(state, ((0, 0), (0, more[1]), (0, 0)))
            given = [np.asarray(state, np.float32)] if self.reads == 'int8' else state
            return [S[:steps, :B] for S in f(*self._sent(x), *given)]
        if self.device.runson:
            allstates(np.zeros((1, 1), np.int32), np.zeros((self.layers, 1, self.state_size), np.float32))
        return allstates

    def plainstates(self, x, state):
        """What `allstates` gives, without compiling: by the Ops' NumPy `perform`."""
        symbol, s0s = T.matrix('x', dtype='int32'), [T.matrix(f's{l}', dtype='float32') for l in range(self.layers)]
        return engine.evaluate(self._reader()._stack(symbol, s0s)[0], {symbol: x, **dict(zip(s0s, state))})

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
