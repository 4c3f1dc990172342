"""The networks as Theano graphs: GRUEncode and GRUResize over their common base.

Graph-building methods take and give Theano expressions and compile nothing; what is compiled of them stands in `compiled`. Letters as in
`ops`: `T` steps, `B` rows, `H` state size, `V` vocabulary, `L` layers.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np

import ops
import report
from compiled import READERS, Compiled, Settings
from engine import Expression, T, theano
from errors import checkmemory, short
from hyperparams import HyperParams
from layernorm import normalised
from stack import GRUStack


class ModelParams(Compiled):
    """A network's parameters, its optimizer's caches and its place in the text; the base of the model types.

    Parameters (get_params, set_params): float32 arrays by name. Per layer l from 0: `U{l}` (inputs, 3H), `W{l}` (H, 3H), `b{l}` (3H,),
    columns in the order z, r, h (see `ops`); the output layer's `V` (H, V) and `c` (V,); a model type adds its own.
    Initial weights are uniform within +-sqrt(1 / number of rows), biases zero (LeCun et al. 1998, Efficient BackProp, 4.6);
    with init='orthogonal' the blocks z, r and h of every W{l} are orthogonal matrices (Saxe et al. 2014, arXiv:1312.6120);
    with 'lookup' the rows that characters look up (E, in GRUResize U0) are within +-1: of a one-hot input a single row counts, however many
    there are, and thousands of rows within 1 / sqrt(V) look alike to the layers above.
    With layernorm=True each layer passes its states up normalised (see `layernorm`), which adds no parameters.

    Caches, as many numbers as parameters each: `m` + name, mean squared gradients (RMSProp, Adam, AdamW); `g` + name, mean gradients (Adam,
    AdamW) or velocities (SGD); `e` + name, with ema the running mean of the parameters, which generates text and is validated.
    `updates` counts the updates that were made, `cacheupdates` those since the optimizer's caches were zero, `characters` what was read in
    training, `seconds` the time that it took.

    Memory of training, bytes, about: 4 [T B H L (9 + 2 D + 3 N) + (3 + 2 C) P + Q + 6 L H^2 + K H V + scratch], P = number of parameters,
    C = how many caches, D, N = 1 with dropout, layernorm, Q = size of the largest parameter, at most 4,194,304, K = 5 in GRUEncode, 1 in
    GRUResize. States, gates and their gradients are 5 of the 9, validation's the rest; parameters, gradients and caches are 2 + C of the P,
    their copies for a checkpoint 1 + C, of which Q are written at a time; then what is kept to draw samples with. The kernels' scratch is
    the larger of the backward pass's, 3 T B H + 6 H^2 + 5 H min(T B, V), and the output layer's, 2 H V and the logits of a block of
    characters: T B V numbers, but no more than the larger of 4,194,304 and 256 V. NumPy takes as much, or where V is large up to two fifths
    less. The text is mapped, and counts as the system's cache. benchmarks/memory.py measures it.
    """

    source: str                     # what the first layer reads, see `ops.GRU`
    BIASES = ('a', 'b', 'c')        # first letters of the parameters that are not weight matrices: the cost leaves them out
    precision = 'float32'           # of the products in the graphs that are built, see `ops`
    inwaves = False                 # whether all layers are one Op in them, see `stack`
    BYCHARACTER = {'V': 1, 'c': 0}  # parameters with an entry for each character, and the axis of it; a model type adds its own

    def __init__(self, vocab: int, layers: int, state_size: int, seed: int, hyper: HyperParams | None = None) -> None:
        """vocab: V; layers: L; state_size: H; seed (int): where the initial weights come from; hyper (HyperParams): init, layernorm and
        what `prepare` reads, None: the defaults. MemoryError for a network beyond this machine.
        """
        super().__init__()
        hyper = hyper or HyperParams()
        self.vocab, self.layers, self.state_size, self.seed = vocab, layers, state_size, seed
        self.layernorm = hyper.layernorm
        self.checkmemory(vocab, layers, state_size, hyper=hyper)
        self.shapes = self.shapesof(vocab, layers, state_size)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0,))))
        self.params, self.caches = {}, {}
        for name, shape in self.shapes.items():
            islookedup = hyper.init == 'lookup' and self.BYCHARACTER.get(name) == 0
            bound = 1.0 if islookedup else shape[0] ** -0.5
            value = (np.zeros(shape, np.float32) if name[0] in self.BIASES
                     else _orthogonal(rng, state_size) if name[0] == 'W' and hyper.init == 'orthogonal'
                     else rng.uniform(-bound, bound, shape).astype(np.float32))
            self.params[name] = theano.shared(value, name)
            for kind in 'mge':
                self.caches[kind + name] = theano.shared(np.empty((0,) * len(shape), np.float32), kind + name)
        self.states = [theano.shared(np.zeros((1, state_size), np.float32), f's{l}') for l in range(layers)]
        self.epoch = self.pos = self.updates = self.cacheupdates = self.characters = 0
        self.seconds = 0.0
        self.settings = Settings()
        self._settle(Settings.of(hyper))

    @staticmethod
    def _inputshapes(vocab, state_size):
        """Shapes of the parameters that come before the first layer's, by name."""
        return {}

    def _firstsource(self, x):
        """What the first layer reads, expressions, of characters x (T, B)."""
        return [x]

    @classmethod
    def shapesof(cls, vocab: int, layers: int, state_size: int) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by name, in the order in which their initial values are drawn."""
        H = state_size
        shapes = dict(cls._inputshapes(vocab, H))
        for l in range(layers):
            shapes[f'U{l}'] = (vocab if l == 0 and cls.source == 'onehot' else H, 3 * H)
            shapes[f'W{l}'] = (H, 3 * H)
            shapes[f'b{l}'] = (3 * H,)
        return {**shapes, 'V': (H, vocab), 'c': (vocab,)}

    @classmethod
    def count(cls, vocab: int, layers: int, state_size: int) -> int:
        """How many numbers training adjusts."""
        return sum(math.prod(shape) for shape in cls.shapesof(vocab, layers, state_size).values())

    @classmethod
    def memory(cls, vocab: int, layers: int, state_size: int, batchsize: int = 1, seq_len: int = 1,
               hyper: HyperParams | None = None) -> int:
        """Bytes that training as `hyper` (HyperParams, None: the defaults) has it takes, by the formula above."""
        V, L, H, characters = vocab, layers, state_size, batchsize * seq_len
        hyper = hyper or HyperParams()
        settings = Settings.of(hyper)
        backward = 3 * characters * H + 6 * H * H + 5 * H * min(characters, V)
        output = 2 * H * V + min(characters * V, max(1 << 22, 256 * V))
        sampler = 6 * L * H * H + (5 if cls.source == 'encoded' else 1) * H * V
        written = min(max(math.prod(shape) for shape in cls.shapesof(V, L, H).values()), 1 << 22)
        return 4 * (characters * H * L * (9 + 2 * settings.dropout + 3 * hyper.layernorm)
                    + (3 + 2 * len(settings.kinds)) * cls.count(V, L, H) + written + sampler + max(backward, output))

    @classmethod
    def checkmemory(cls, vocab: int, layers: int, state_size: int, batchsize: int = 1, seq_len: int = 1,
                    hyper: HyperParams | None = None) -> None:
        """MemoryError for a network, or for batches of its training as `hyper` has it, that this machine can't hold."""
        L, H = layers, state_size
        checkmemory(f'a network of {L} x {H}, {cls.count(vocab, L, H):,} parameters, in batches of {batchsize} x {seq_len} characters',
                    cls.memory(vocab, L, H, batchsize, seq_len, hyper),
                    'use a smaller state_size, batchsize or seq_len, or fewer layers')

    def weights(self) -> list[str]:
        """Names of the weight matrices, the parameters that regcost shrinks."""
        return [name for name in self.params if name[0] not in self.BIASES]

    # --- The optimizer ------------------------------------------------------------------------------------------

    def prepare(self, hyper: HyperParams) -> None:
        """Make the caches those of `hyper`, HyperParams, and say so if that changes them; compiles nothing.

        Another optimizer starts with caches of zeros, ema switched on with the parameters as their own mean; the parameters stay.
        """
        before, now = self.settings, Settings.of(hyper)
        if now == before:
            return
        self._settle(now)
        if now.optimizer != before.optimizer:
            report.say(f'The optimizer is {now.optimizer} now, in place of {before.optimizer}: '
                       'the parameters stay, its caches start from zero.')
        if now.averaged != before.averaged:
            report.say('The running mean of the parameters (ema) starts from the parameters as they are.' if now.averaged
                       else 'Without ema, text comes from the trained parameters again.')

    def _settle(self, settings):
        """Make the caches those of `settings`: what was there is kept where it means the same."""
        before, self.settings = self.settings, settings
        isother = settings.optimizer != before.optimizer
        for name, shape in self.shapes.items():
            for kind in 'mge':
                cache, isused = self.caches[kind + name], kind in settings.kinds
                if kind == 'e' and isused and not before.averaged:
                    cache.set_value(self._value(self.params[name]))
                elif not isused or kind != 'e' and isother:
                    cache.set_value(np.zeros(shape if isused else (0,) * len(shape), np.float32), borrow=True)
        if isother:
            self.cacheupdates = 0
        # Functions of other caches, or that read other parameters now: the next use takes or compiles those that fit.
        read = (settings.averaged, settings.precision) != (before.averaged, before.precision)
        self._forget(*['trainstep'] * (settings != before), *['evaluate', *READERS] * read)

    def _cachenames(self):
        return [kind + name for kind in self.settings.kinds for name in self.params]

    def _reader(self, precision='float32'):
        """The network that generates text and is validated: this one, with ema that of the averaged parameters."""
        reader = self._within(precision)
        if self.settings.averaged:
            reader.params = {name: self.caches['e' + name] for name in self.params}
        return reader

    def _within(self, precision):
        """This network, with the graphs of that precision that suit the device."""
        network = copy.copy(self)
        network.precision, network.inwaves = precision, self.device.inwaves and self.layers > 1
        return network

    # --- Values -------------------------------------------------------------------------------------------------

    def get_params(self, averaged: bool = True) -> dict[str, np.ndarray]:
        """A dict of name -> float32 array, copies, of the parameters that generate text: with ema the averages, or with averaged=False, as
        always without ema, those that training adjusts.
        """
        return {name: self._value(shared) for name, shared in (self._reader() if averaged else self).params.items()}

    def set_params(self, params: Mapping[str, np.ndarray]) -> None:
        """Replace parameters, with ema their averages too, by the arrays of a dict of name -> array; those that it leaves out stay.

        Raises KeyError for a name that isn't a parameter's, ValueError for a wrong shape or values that aren't numbers; then
        nothing has changed.
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
            if self.settings.averaged:
                self.caches['e' + name].set_value(value)

    def get_state(self) -> np.ndarray:
        """The hidden states (L, B, H) that the next step starts from."""
        return np.stack([self._value(s) for s in self.states])

    def set_state(self, state: np.ndarray) -> None:
        """Start the next step from hidden states (L, B, H), a float32 array; ValueError for another L or H."""
        state = np.asarray(state, np.float32)
        if state.ndim != 3 or (state.shape[0], state.shape[2]) != (self.layers, self.state_size):
            raise ValueError(f'the state has shape ({self.layers}, batch rows, {self.state_size}), got {state.shape}')
        for shared, s in zip(self.states, state):
            shared.set_value(np.array(s, order='C'), borrow=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that a checkpoint keeps, a dict of name -> array: parameters, caches (`m`, `g`, `e` + name) and `state` (L, B, H)."""
        caches = {name: self._value(self.caches[name]) for name in self._cachenames()}
        return {**self.get_params(averaged=False), **caches, 'state': self.get_state()}

    @classmethod
    def expected(cls, vocab: int, layers: int, state_size: int, batchsize: int, hyper: HyperParams | None = None) -> dict[str, tuple]:
        """Shape and type of each of `arrays()` when a batch has `batchsize` rows and training is as `hyper` (None: the defaults) has it: a
        dict of name -> (shape, dtype).
        """
        params = cls.shapesof(vocab, layers, state_size)
        shapes = {kind + name: shape for kind in ['', *Settings.of(hyper or HyperParams()).kinds] for name, shape in params.items()}
        shapes['state'] = (layers, batchsize, state_size)
        return {name: (shape, 'float32') for name, shape in shapes.items()}

    def set_arrays(self, arrays: dict[str, np.ndarray], hyper: HyperParams | None = None, updates: int = 0, cacheupdates: int = 0) -> None:
        """Put back what `arrays()` gave where training was as `hyper` (None: the defaults) has it, and the two counts of updates.

        ValueError for a wrong shape, and then nothing has changed.
        """
        hyper = hyper or HyperParams()
        for name, (shape, _) in self.expected(self.vocab, self.layers, self.state_size, arrays['state'].shape[1], hyper).items():
            if arrays[name].shape != shape:
                raise ValueError(f'{name} has shape {shape}, got {arrays[name].shape}')
        self.set_params({name: arrays[name] for name in self.params})
        self._settle(Settings.of(hyper))
        for name in self._cachenames():
            self.caches[name].set_value(np.array(arrays[name], np.float32, order='C'), borrow=True)
        self.set_state(arrays['state'])
        self.updates, self.cacheupdates = updates, cacheupdates

    # --- Graphs -------------------------------------------------------------------------------------------------

    def _stack(self, x, s0s, dropout=None):
        """(states, top, lasts): each layer's S (T, B, H), a list; what the output layer reads (T, B, H); each layer's last state (B, H), a
        list; for x (T, B) and a list of s0 (B, H).

        With layernorm each S passes `LayerNorm` on its way up, to the next layer and to the output layer, and with dropout, its (p, seed,
        updates), then `Dropout`; states and lasts don't.
        """
        L, dropout = self.layers, dropout or []
        stack = GRUStack(self.source, self.precision, L, self.layernorm, bool(dropout))
        source, weights = self._firstsource(x), [[self.params[f'{name}{l}'] for name in 'UWb'] for l in range(L)]
        if not self.inwaves:
            top, states, lasts, _ = stack.chain(source, s0s, weights, dropout)
            return states, top, lasts
        top, *others = stack(*source, *s0s, *sum(weights, []), *dropout)
        return others[:L], top, others[L:2 * L]

    def passedup(self, S: np.ndarray) -> np.ndarray:
        """What the layer above, or the output layer, reads of a layer's states S (..., H), arrays both."""
        return normalised(S) if self.layernorm else S

    def forward(self, x: Expression, s0: Expression) -> tuple[Expression, Expression]:
        """Expressions for (logits (T, B, V), laststate (L, B, H)) of characters x (T, B), integers, behind states s0 (L, B, H).

        Differentiable in the parameters and in s0. What Theano compiles of them takes the parameters from the processor's memory: where the
        network computes on another device, ms.restore(device='cpu') brings them back before.
        """
        x, s0 = T.as_tensor_variable(x), T.as_tensor_variable(s0)
        _, top, lasts = self._stack(x, [s0[l] for l in range(self.layers)])
        rows = top.reshape((x.shape[0] * x.shape[1], self.state_size))
        logits = T.dot(rows, self.params['V']) + self.params['c']
        return logits.reshape((x.shape[0], x.shape[1], self.vocab)), T.stack(lasts)

    def loss(self, x: Expression, y: Expression, s0s: Sequence, gradients: bool = False,
             dropout: Sequence | None = None) -> tuple[Expression, Sequence]:
        """Expressions for (loss, last states): the mean negative log-likelihood of y (T, B) behind x (T, B), nats per character.

        s0s, last states: lists of (B, H), one a layer. `gradients=True` where the loss will be differentiated: the same, faster.
        dropout: None, or scalars (p, seed, updates), see `dropout.Dropout`: each layer's output with a share p of it dropped, for training.
        """
        _, top, lasts = self._stack(x, s0s, dropout)
        loss = ops.SoftmaxLoss(gradients)(top, self.params['V'], self.params['c'], y)
        return (loss[0] if gradients else loss), lasts

    def cost(self, x: Expression, y: Expression, s0s: Sequence, regcost: float) -> Expression:
        """What `trainstep` descends on, to build costs of your own beside: the loss
        + regcost / 2 * sum of the squared weight matrices / number of characters."""
        squares = sum(T.sum(T.sqr(self.params[name])) for name in self.weights())
        return self.loss(x, y, s0s)[0] + regcost / 2 * squares / (y.shape[0] * y.shape[1])


class GRUEncode(ModelParams):
    """An input layer tanh(E[character] + a), E (V, H), a (H,), then the GRU layers, all of state-sized vectors."""

    source = 'encoded'
    BYCHARACTER = {**ModelParams.BYCHARACTER, 'E': 0}

    @staticmethod
    def _inputshapes(vocab, state_size):
        return {'E': (vocab, state_size), 'a': (state_size,)}

    def _firstsource(self, x):
        return [x, self.params['E'], self.params['a']]


class GRUResize(ModelParams):
    """The first GRU layer takes the vocabulary-sized one-hot vector itself: its U0 is (V, 3H), and x U0 a row of it."""

    source = 'onehot'
    BYCHARACTER = {**ModelParams.BYCHARACTER, 'U0': 0}


MODELTYPES = {cls.__name__: cls for cls in (GRUEncode, GRUResize)}


def _orthogonal(rng, H):
    """(H, 3H): three orthogonal matrices side by side, each uniform among them all: QR of a normal one,
    with the signs of R (Mezzadri 2007)."""
    blocks = []
    for _ in range(3):
        Q, R = np.linalg.qr(rng.standard_normal((H, H)))
        blocks.append(Q * np.where(np.diag(R) < 0, -1, 1))
    return np.concatenate(blocks, axis=1).astype(np.float32)
