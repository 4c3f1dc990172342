"""Reading a text with a model: the states that it leads to, and how surprising each character was."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import report
from dataset import CharSet
from errors import checktext, short
from rounding import product

if TYPE_CHECKING:
    from layers import ModelParams
    from model import ModelState

CHUNK = 1000            # characters, of all rows, that are read at a time: their states take memory
LOGITS = 1 << 20        # numbers that what may come next takes at a time: of a large vocabulary fewer characters are read
STILL = 1e-3            # spread of a unit's states below which it tells the others nothing; a healthy one's, trained or not, is 0.05 up
SHOWN = 50_000          # characters from which on a person is told how far it is


def readcharacters(model: 'ModelParams', x: np.ndarray, states: np.ndarray | Sequence[np.ndarray], compiled: bool = True,
                   most: int | None = None) -> Iterator[list[np.ndarray]]:
    """Yields every layer's states, a list of (t, B, H), along x (T, B), integers, behind states (L, B, H), a chunk of steps at a time.

    compiled: whether by `model.allstates`, which may have to be compiled first, or by `model.plainstates`. most: steps of a chunk.
    """
    allstates = model.allstates if compiled else model.plainstates
    steps = max(min(CHUNK // x.shape[1], most or CHUNK), 1)
    for start in range(0, len(x), steps):
        S = allstates(np.ascontiguousarray(x[start:start + steps], np.int32), states)
        states = [s[-1] for s in S]
        yield S


def laststates(model: 'ModelParams', x: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The states (L, B, H) behind x (T, B), integers, read behind states (L, B, H)."""
    for S in readcharacters(model, x, states):
        states = np.stack([s[-1] for s in S])
    return states


def warnofunknown(charset: CharSet, text: str, what: str) -> None:
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
    def nats(self) -> float:
        """Mean negative log-likelihood per character: the loss."""
        return float(self.shares.mean())

    @property
    def bits(self) -> float:
        """The same in bits."""
        return self.nats / math.log(2)

    def __repr__(self) -> str:
        return f'{report.lossline(self.nats)} over {report.counted(len(self.shares), "character")}'


def score(ms: 'ModelState', text: str) -> Score:
    """The Score of `ModelState.score`."""
    text = checktext('text', text)
    warnofunknown(ms.charset, text, 'the text')
    return _scored(ms, text)


def _scored(ms: 'ModelState', text: str) -> Score:
    """The same, of a text that is one, without a word on what isn't known in it."""
    codes = ms.charset.encode(text).astype(np.int64)
    return Score(np.concatenate([[-firstchances(ms.charset)[codes[0]]], *(shares for _, _, shares in foretold(ms, codes[:-1], codes[1:]))]))


class Watched:
    """A text whose surprise is told again and again while a model trains."""

    def __init__(self, ms: 'ModelState', text: str) -> None:
        self.ms, self.text = ms, text
        self.before: float | None = None
        warnofunknown(ms.charset, text, 'watch')

    def line(self) -> str:
        """One line: the loss over the text now, its change since the last line, the word that surprises most."""
        score = _scored(self.ms, self.text)
        change = '' if self.before is None else f', {abs(score.nats - self.before):.4f} {"less" if score.nats <= self.before else "more"}'
        self.before = score.nats
        nats, word = max(((score.shares[found.start():found.end()].sum(), found[0]) for found in re.finditer(r'\S+', self.text)),
                         key=lambda each: each[0], default=(0, ''))
        return f'Watched text: {score!r}{change}' + (f'; most surprising {short(word)}, {nats:.2f} nats' if word else '')


def firstchances(charset: CharSet) -> np.ndarray:
    """Log-probabilities (V,) of a text's first character: by how often each begins a line in the source, one added to each count, so that
    none is impossible."""
    starts = charset.linestarts + 1.0
    return np.log(starts / starts.sum())


def foretold(ms: 'ModelState', codes: np.ndarray, targets: np.ndarray) -> Iterator[tuple[list[np.ndarray], np.ndarray, np.ndarray]]:
    """Yields, a chunk of t characters of codes (T,) at a time, from a zero state: every layer's states behind them, a list of (t, 1, H);
    the log-probabilities (t, V), float64, of what comes next; and -log-probabilities (t,) of what does come, targets (T,).

    codes, targets: integers; where targets is one shorter, nothing is known to come behind the last character. Of a long text a person is
    told how far it is.
    """
    model = ms.model
    params = model.get_params()
    output, c = product(params['V'], model.reads), params['c'].astype(np.float64)
    if model.reads == 'float32':
        output = product(params['V'].astype(np.float64), 'float32')
    progress = report.Progress('Reading', len(codes), 1) if len(codes) > SHOWN else None
    done, total = 0, 0.0
    zeros, most = np.zeros((model.layers, 1, model.state_size), np.float32), max(LOGITS // len(c), 1)
    try:
        for S in readcharacters(model, codes[:, None], zeros, most=most):
            logs = output(model.passedup(S[-1])[:, 0]) + c
            logs -= logs.max(1, keepdims=True)
            logs -= np.log(np.exp(logs).sum(1, keepdims=True))
            known = targets[done:done + len(logs)]
            shares = -logs[np.arange(len(known)), known]
            done += len(logs)
            total += shares.sum()
            yield S, logs, shares
            if progress:
                progress.step(total / min(done, len(targets)), len(logs))
    finally:
        if progress:
            progress.close()


class GateUse(NamedTuple):
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

    @property
    def stuck(self) -> np.ndarray:
        """Which units never change, remember nothing, or never vary: their update gate has no gradient, or no effect. (H,) of bool."""
        return (self.zopen == 1) | (self.zshut == 1) | (self.spread < STILL)


def gates(model: 'ModelParams', x: np.ndarray, states: np.ndarray | Sequence[np.ndarray], compiled: bool = True) -> list[GateUse]:
    """A GateUse for each layer, along x (T, B), integers, behind states (L, B, H); compiled: as `readcharacters` takes.

    The gates are `hard_sigmoid(x U + s W + b)`, which is exactly 0 or 1 beyond +-2.5, and then passes no gradient back.
    """
    L, B, H = np.shape(states)
    counts, low, high = np.zeros((L, 4, H)), np.full((L, H), np.inf), np.full((L, H), -np.inf)
    for S, chunk in gatesalong(model, x, states, compiled):
        for l, (s, gate) in enumerate(zip(S, chunk)):
            is1, is0 = (gate >= 1).sum((0, 1)), (gate <= 0).sum((0, 1))
            counts[l] += is1[:H], is0[:H], is1[H:], is0[H:]
            low[l], high[l] = np.minimum(low[l], s.min((0, 1))), np.maximum(high[l], s.max((0, 1)))
    return [GateUse._make((*share, spread)) for share, spread in zip(counts / np.size(x), high - low)]


def gatesalong(model: 'ModelParams', x: np.ndarray, states: np.ndarray | Sequence[np.ndarray], compiled: bool = True,
               precision: str = 'float32') -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Yields (S, gates), a chunk of t steps of x (T, B), integers, behind states (L, B, H), at a time: every layer's states (t, B, H), and
    its gates z and r (t, B, 2H) before they are cut off at 0 and 1, lists.

    compiled: as `readcharacters` takes. precision: of the products that give the gates.
    """
    params, states = model.get_params(), np.ascontiguousarray(states, np.float32)
    H, done = states.shape[2], 0
    for S in readcharacters(model, x, states, compiled):
        gates, chars = [], np.asarray(x[done:done + len(S[0])]).reshape(-1)
        done += len(S[0])
        for l, s in enumerate(S):
            U, W, b = params[f'U{l}'][:, :2 * H], params[f'W{l}'][:, :2 * H], params[f'b{l}'][:2 * H]
            if l:
                into = _times(model.passedup(S[l - 1]).reshape(-1, H), U, precision)
            elif model.source == 'onehot':
                into = U[chars]
            else:
                into = np.tanh(params['E'][chars] + params['a']) @ U
            before = np.concatenate([states[l][None], s[:-1]])
            gate = 0.2 * (into + _times(before.reshape(-1, H), W, precision) + b) + 0.5
            gates.append(gate.reshape(*s.shape[:2], 2 * H))
        states = [s[-1] for s in S]
        yield S, gates


def _times(x, weights, precision):
    """x (n, K) @ weights, as texts are read in a precision; x: states, or what `layernorm` makes of them, whose greatest is 1 or more."""
    return product(weights, precision, np.maximum(np.abs(x).max(1, keepdims=True), 1) if precision == 'int8' else None)(x)


def trackneurons(ms: 'ModelState', text: str) -> np.ndarray:
    """The array of `ModelState.trackneurons`."""
    x = ms.charset.encode(checktext('text', text))[:, None]
    chunks = list(readcharacters(ms.model, x, np.zeros((ms.model.layers, 1, ms.model.state_size), np.float32)))
    return np.stack([np.concatenate([S[l][:, 0] for S in chunks]).T for l in range(ms.model.layers)])
