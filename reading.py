"""Reading a text with a model: the states that it leads to, and how surprising each character was."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import report
from errors import checktext
from rounding import product

CHUNK = 1000            # characters, of all rows, that are read at a time: their states take memory
SHOWN = 50_000          # characters from which on a person is told how far it is


def readcharacters(model, x, states, compiled=True):
    """Yields every layer's states, a list of (t, B, H), along x (T, B), integers, behind states (L, B, H), a chunk of steps at a time.

    compiled: whether by `model.allstates`, which may have to be compiled first, or by `model.plainstates`.
    """
    allstates = model.allstates if compiled else model.plainstates
    steps = max(CHUNK // x.shape[1], 1)
    for start in range(0, len(x), steps):
        S = allstates(np.ascontiguousarray(x[start:start + steps], np.int32), states)
        states = [s[-1] for s in S]
        yield S


def laststates(model, x, states):
    """The states (L, B, H) behind x (T, B), integers, read behind states (L, B, H)."""
    for S in readcharacters(model, x, states):
        states = np.stack([s[-1] for s in S])
    return states


def warnofunknown(charset, text, what):
    """Say which characters of `text` (called `what`) are not in the charset, if any are not: they are read as the unknown one."""
    unknown = sorted(set(text) - set(charset.chars))
    if unknown:
        listed = ' '.join(map(ascii, unknown[:8])) + (' ...' if len(unknown) > 8 else '')
        report.warn(f'Not in the text that the model learnt, so read as unknown characters in {what}: {listed}')


@dataclass(repr=False)
class Score:
    """How well a model foretold a text: nats and bits per character, and
    `shares`, each character's, (len(text),) float64 nats."""

    shares: np.ndarray

    @property
    def nats(self):
        """Mean negative log-likelihood per character: the loss."""
        return float(self.shares.mean())

    @property
    def bits(self):
        """The same in bits."""
        return self.nats / math.log(2)

    def __repr__(self):
        count = len(self.shares)
        return f'{self.nats:.4f} nats/char ({self.bits:.4f} bits) over {count:,} character{"s" * (count != 1)}'


def score(ms, text):
    """The Score of `ModelState.score`."""
    text = checktext('text', text)
    warnofunknown(ms.charset, text, 'the text')
    model, codes = ms.model, ms.charset.encode(text).astype(np.int64)
    params = model.get_params()
    output, c = product(params['V'], model.reads), params['c'].astype(np.float64)
    if model.reads == 'float32':
        output = product(params['V'].astype(np.float64), 'float32')
    # The first character: by how often it begins a line in the source, one added to each count, so that none is impossible.
    starts = ms.charset.linestarts + 1.0
    shares = np.empty(len(codes))
    shares[0] = -np.log(starts[codes[0]] / starts.sum())
    progress = report.Progress('Reading', len(codes) - 1, 1) if len(codes) > SHOWN else None
    done, total = 1, 0.0
    try:
        for S in readcharacters(model, codes[:-1, None], np.zeros((model.layers, 1, model.state_size), np.float32)):
            logits = output(model.passedup(S[-1])[:, 0]) + c
            highest = logits.max(1)
            targets = codes[done:done + len(logits)]
            shares[done:done + len(logits)] = (highest + np.log(np.exp(logits - highest[:, None]).sum(1))
                                               - logits[np.arange(len(logits)), targets])
            total += shares[done:done + len(logits)].sum()
            done += len(logits)
            if progress:
                progress.step(total / (done - 1), len(logits))
    finally:
        if progress:
            progress.close()
    return Score(shares)


class Gates(NamedTuple):
    """How a layer's gates were along a text, by unit: float64 arrays (H,).

    zopen, zshut    share of the characters at which the update gate was exactly 1 (the state stays) or 0 (the state is replaced)
    ropen, rshut    the same of the reset gate: the candidate reads the whole state, or nothing of it
    spread          highest less lowest state
    """

    zopen: np.ndarray
    zshut: np.ndarray
    ropen: np.ndarray
    rshut: np.ndarray
    spread: np.ndarray

    STILL = 1e-3        # a spread below which a unit tells the others nothing; a healthy one's, trained or not, is 0.05 and more

    @property
    def stuck(self):
        """Which units never change, remember nothing, or never vary: their update gate has no gradient, or no effect. (H,) of bool."""
        return (self.zopen == 1) | (self.zshut == 1) | (self.spread < self.STILL)


def gates(model, x, states, compiled=True):
    """A Gates for each layer, along x (T, B), integers, behind states (L, B, H); compiled: as `readcharacters` takes.

    The gates are `hard_sigmoid(x U + s W + b)`, which is exactly 0 or 1 beyond +-2.5, and then passes no gradient back.
    """
    params, states = model.get_params(), np.ascontiguousarray(states, np.float32)
    L, B, H = states.shape
    counts, low, high = np.zeros((L, 4, H)), np.full((L, H), np.inf), np.full((L, H), -np.inf)
    done = 0
    for S in readcharacters(model, x, states, compiled):
        below, x_chunk = None, np.asarray(x[done:done + len(S[0])])
        done += len(x_chunk)
        for l, s in enumerate(S):
            U, W, b = params[f'U{l}'][:, :2 * H], params[f'W{l}'][:, :2 * H], params[f'b{l}'][:2 * H]
            if l:
                into = below.reshape(-1, H) @ U
            elif model.source == 'onehot':
                into = U[x_chunk.reshape(-1)]
            else:
                into = np.tanh(params['E'][x_chunk.reshape(-1)] + params['a']) @ U
            before = np.concatenate([states[l][None], s[:-1]])
            gate = 0.2 * (into + before.reshape(-1, H) @ W + b) + 0.5
            is1, is0 = ((gate >= 1).sum(0), (gate <= 0).sum(0))
            counts[l] += is1[:H], is0[:H], is1[H:], is0[H:]
            low[l], high[l] = np.minimum(low[l], s.min((0, 1))), np.maximum(high[l], s.max((0, 1)))
            below = model.passedup(s)
        states = [s[-1] for s in S]
    return [Gates(*share, spread) for share, spread in zip(counts / np.size(x), high - low)]


def trackneurons(ms, text):
    """The array of `ModelState.trackneurons`."""
    x = ms.charset.encode(checktext('text', text))[:, None]
    chunks = list(readcharacters(ms.model, x, np.zeros((ms.model.layers, 1, ms.model.state_size), np.float32)))
    return np.stack([np.concatenate([S[l][:, 0] for S in chunks]).T for l in range(ms.model.layers)])
