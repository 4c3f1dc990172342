"""What the tests of networks and of ModelState share: small ones, whether two are the same, and what is done to their files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

import layers
from conftest import naive_logits, naive_nll, naive_states
from engine import theano
from hyperparams import HyperParams
from rn_rnn_char import ModelState

TYPES = ('GRUEncode', 'GRUResize')
PLAIN = theano.compile.mode.Mode(linker='py', optimizer=None)       # no C, no rewriting: nothing to wait for
TEXT = ''.join(f'{i}: some words of no great meaning, {i * 7 % 13}.\n' for i in range(40))
WORDS = ''.join(f'{line}\n' for line in ('abc aab', 'baa cab', 'cc ab abba', 'bacca') * 15)


# --- Networks ---------------------------------------------------------------------------------------------------------

def build(modeltype, V=5, L=2, H=3, seed=1):
    return layers.MODELTYPES[modeltype](V, L, H, seed)


def wild(model, seed=0, scale=1.0):
    """The model with other parameters, biases included, uniform within +-scale."""
    rng = np.random.RandomState(seed)
    model.set_params({name: rng.uniform(-scale, scale, value.shape) for name, value in model.get_params().items()})
    return model


def batch(V=5, steps=3, B=2, seed=0):
    """x, y (T, B) int32."""
    return np.random.RandomState(seed).randint(0, V, (2, steps, B)).astype('int32')


def state(model, B=2, seed=0):
    return np.random.RandomState(seed).uniform(-1, 1, (model.layers, B, model.state_size)).astype('float32')


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def step(model, x, y, learnrate, decay, regcost):
    """The loss of a training step."""
    return model.trainstep(x, y, HyperParams(decay=decay, regcost=regcost), learnrate)[0]


def naive_cost(params, x, y, s0, regcost):
    """DESIGN's cost: (sum of the nats + regcost/2 * sum of the squared E, U, W, V) / number of characters."""
    squares = sum(float((np.asarray(value, np.float64) ** 2).sum()) for name, value in params.items() if name[0] in 'EUWV')
    return (naive_nll(naive_logits(params, x, s0)[0], y) * y.size + regcost / 2 * squares) / y.size


def numerical(f, value, step=1e-5):
    """Gradient of f() in the array `value`, which f reads: central differences."""
    gradient = np.zeros_like(value)
    for index in np.ndindex(*value.shape):
        kept = value[index]
        value[index] = kept + step
        above = f()
        value[index] = kept - step
        gradient[index] = (above - f()) / (2 * step)
        value[index] = kept
    return gradient


def naive_trainstep(params, caches, x, y, s0, learnrate, decay, regcost):
    """One step on float64 dicts `params` and `caches`, in place; (loss before, last state, the gradients before the clip)."""
    logits, last = naive_logits(params, x, s0)
    loss = naive_nll(logits, y)
    gradients = {name: numerical(lambda: naive_cost(params, x, y, s0, regcost), value) for name, value in params.items()}
    for name, gradient in gradients.items():
        g = np.clip(gradient, -5, 5)
        caches[name] = decay * caches[name] + (1 - decay) * g * g
        params[name] -= learnrate * g / np.sqrt(caches[name] + 1e-6)
    return loss, last, gradients


def doubles(model):
    params = {name: value.astype(np.float64) for name, value in model.get_params().items()}
    return params, {name: np.zeros_like(value) for name, value in params.items()}


# --- ModelStates ------------------------------------------------------------------------------------------------------

def make(srcfile, name='work', **options):
    """A model of one small layer, beside its text."""
    return ModelState.initfromsrcfile(srcfile, srcfile.parent / name, **{'seq_len': 10, 'state_size': 8, 'seed': 1, **options})


def maker(directory) -> Callable[..., ModelState]:
    """A function that makes models of two small layers there, of TEXT or another text."""
    def make(name='work', text=None, **options):
        (directory / 'text.txt').write_text(text or TEXT)
        return ModelState.initfromsrcfile(directory / 'text.txt', directory / name,
                                          **{'seq_len': 10, 'state_size': 8, 'seed': 1, 'layers': 2, **options})
    return make


def varied(directory, modeltype, state_size=6, scale=1.2, **options):
    """A model of two small layers, of WORDS, whose parameters are drawn between -scale and scale, so that its texts vary."""
    (directory / 'text').write_text(WORDS)
    ms = ModelState.initfromsrcfile(directory / 'text', directory / 'work', modeltype, seq_len=10, layers=2, state_size=state_size, seed=1,
                                    init_checkpoint=False, verbose=False, **options)
    rng = np.random.RandomState(4)
    ms.model.set_params({name: rng.uniform(-scale, scale, value.shape) for name, value in ms.model.get_params().items()})
    return ms


def reread(ms, text):
    """The naive network's states (L, H) behind all of `text` but its last character, and that one's index."""
    codes = [ms.charset.chars.find(char) if char in ms.charset.chars else 0 for char in text]
    states = np.zeros((ms.hyper.layers, ms.hyper.state_size))
    if codes[:-1]:
        states = np.array([S[-1, 0] for S in naive_states(ms.model.get_params(), np.array(codes[:-1])[:, None], states[:, None])])
    return states, codes[-1]


def assert_stands(ms, state, texts):
    """The state is where the network stands that has read the texts from zero."""
    assert state.states.dtype == np.float32 and state.states.shape == (2, len(texts), 6) and state.chars.shape == (len(texts),)
    for i, text in enumerate(texts):
        states, char = reread(ms, text)
        assert state.chars[i] == char
        np.testing.assert_allclose(state.states[:, i], states, atol=1e-4)


def assert_same(one, two):
    for name, value in one.model.arrays().items():
        np.testing.assert_array_equal(two.model.arrays()[name], value, err_msg=name)
    assert (one.model.epoch, one.model.pos) == (two.model.epoch, two.model.pos)


def losses(ms, *values):
    """Have validation give these losses, a round each, whatever the network; it is of one step."""
    values = iter(values)
    ms.model.evaluate = lambda x, y, state: (float(next(values)), state)
    ms.heldout and vars(ms).update(_parts=(ms.data, OneBatch(ms.heldout)))
    return ms


class OneBatch:
    """A held-out part whose validation is one call."""

    def __init__(self, heldout):
        self.numchars = heldout.numchars

    def rows(self, batchsize):
        return 1

    def numsteps(self, batchsize):
        return 1

    def losses(self, evaluate, *rest):
        yield evaluate(None, None, None)[0]


def nocompiling(*args, **kwargs):
    """In the place of engine.compilefunction."""
    raise AssertionError('compiled')


# --- Files ------------------------------------------------------------------------------------------------------------

def tree(directory):
    """Every file below `directory` with its bytes, to see whether the disk is as it was."""
    return {path.relative_to(directory): path.read_bytes() if path.is_file() else None for path in Path(directory).rglob('*')}


def flip(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
