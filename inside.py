"""What goes on in a network while it reads a text, as numbers: surprise and what was likelier, states, gates, and which neurons follow
something that a person can name. `look` shows them. Letters as in `ops`; T: the text's characters.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import reading
import report
from errors import checkmemory, checktext
from properties import properties

if TYPE_CHECKING:
    from model import ModelState

LIKELIEST = 5               # characters that are kept of what might have come
SHUT, OPEN = 0.1, 0.9       # below and above these a gate counts as saturated
BINS = 10                   # of the gates' histograms
CANDIDATES = 3              # neurons that are tried for a property
BLOCK = 32                  # neurons that are turned into float64 at a time
RISK = 0.01                 # chance that among all tries anything that merely looks so is reported
RARE = 10                   # characters, of either half of a text, at which a property must differ from its commonest value
SHORTEST = 200              # characters that findneurons reads at least


@dataclass(repr=False)
class Reading:
    """A text read from a zero state.

    text        str of T characters
    chars       str: the model's characters, which `likeliest` are indices of
    shares      (T,) float64: surprise, each character's negative log-likelihood in nats
    likeliest   (T, K) int: what was likeliest to come there, K = 5 or all there are, likeliest first
    chances     (T, K) float64: its probabilities
    states      (L, H, T) float32: the neurons behind each character; (0, H, T) where they aren't kept
    """

    text: str
    chars: str
    shares: np.ndarray
    likeliest: np.ndarray
    chances: np.ndarray
    states: np.ndarray


def read(ms: 'ModelState', text: str, states: bool = False) -> Reading:
    """The Reading of a text by a ModelState; states: whether to keep them."""
    text, model = checktext('text', text), ms.model
    if states:
        _checkmemory(model, text, 1)
    reading.warnofunknown(ms.charset, text, 'the text')
    codes = ms.charset.encode(text).astype(np.int64)
    first = reading.firstchances(ms.charset)
    shares, ranked = [-first[codes[:1]]], [_likeliest(first[None])]
    kept = np.empty((model.layers if states else 0, model.state_size, len(text)), np.float32)
    done = 0
    for S, logs, known in reading.foretold(ms, codes if states else codes[:-1], codes[1:]):
        shares.append(known)
        ranked.append(_likeliest(logs[:len(known)]))
        if states:
            for l, s in enumerate(S):
                kept[l, :, done:done + len(s)] = s[:, 0].T
        done += len(S[0])
    likeliest, chances = (np.concatenate(each) for each in zip(*ranked))
    return Reading(text, ms.charset.chars, np.concatenate(shares), likeliest, chances, kept)


def _likeliest(logs):
    """(indices, probabilities), (t, K) each, of the K largest of each row of logs (t, V), the largest first."""
    K = min(LIKELIEST, logs.shape[1])
    some = np.sort(np.argpartition(-logs, K - 1, axis=1)[:, :K], axis=1)
    order = np.argsort(-np.take_along_axis(logs, some, 1), axis=1, kind='stable')
    best = np.take_along_axis(some, order, 1)
    return best, np.exp(np.take_along_axis(logs, best, 1))


def _checkmemory(model, text, arrays):
    """MemoryError for a text along which so many float32 arrays of states, and what is made of them, are beyond this machine."""
    L, H = model.layers, model.state_size
    checkmemory(f'what {L} x {H} units do along {len(text):,} characters', 2 * 4 * arrays * L * H * len(text), 'give a part of the text')


# ---- gates

@dataclass(repr=False)
class GateValues:
    """The gates along a text.

    z, r    (L, H, T) float32, update and reset gates, 0 to 1
    """

    z: np.ndarray
    r: np.ndarray

    def saturated(self) -> tuple[np.ndarray, np.ndarray]:
        """(open, shut), (L, 2, H) float64 each: the share of the characters at which a gate was above 0.9 or below 0.1; of z, then r.

        As in Karpathy, Johnson and Li 2015 (arXiv:1506.02078), section 4.2: there, left and right saturated.
        """
        gates = self.z, self.r
        return np.stack([(gate > OPEN).mean(2) for gate in gates], 1), np.stack([(gate < SHUT).mean(2) for gate in gates], 1)

    def histogram(self) -> np.ndarray:
        """(L, 2, 10) float64: the share of all values of z, then r, in each tenth of 0 .. 1."""
        tenths = []
        for gate in (self.z, self.r):
            for layer in gate:
                beyond = [np.count_nonzero(layer >= k / BINS) for k in range(1, BINS)]
                tenths.append(-np.diff([layer.size, *beyond, 0]) / layer.size)
        return np.array(tenths).reshape(2, -1, BINS).swapaxes(0, 1)


def gatevalues(ms: 'ModelState', text: str) -> GateValues:
    """The GateValues of a text read by a ModelState, in the precision in which it reads."""
    text, model = checktext('text', text), ms.model
    _checkmemory(model, text, 2)
    reading.warnofunknown(ms.charset, text, 'the text')
    if len(text) > reading.SHOWN:
        report.say(f'Reading {len(text):,} characters ...')
    L, H, done = model.layers, model.state_size, 0
    values = np.empty((2, L, H, len(text)), np.float32)
    x = ms.charset.encode(text)[:, None]
    for S, gates in reading.gatesalong(model, x, np.zeros((L, 1, H), np.float32), precision=model.reads):
        for l, gate in enumerate(gates):
            zr = np.clip(gate[:, 0].T, 0, 1)
            values[0, l, :, done:done + len(gate)], values[1, l, :, done:done + len(gate)] = zr[:H], zr[H:]
        done += len(S[0])
    return GateValues(*values)


# ---- neurons that follow something

class Found(NamedTuple):
    """A neuron that follows a property of the text.

    property    its name, as properties.properties has it
    layer, neuron   from 0
    r           correlation of the two in the text's second half, -1 to 1
    chosenby    the same in its first half, by which the neuron was chosen
    chance      what |r| reaches by chance
    """

    property: str
    layer: int
    neuron: int
    r: float
    chosenby: float
    chance: float


def find(states: np.ndarray, text: str) -> tuple[list[Found], list[str], list[str]]:
    """(found, nothing, leftout): neurons that follow something named, strongest first; names of what none follows, and of what the text
    has too little of to tell.

    states (L, H, T), text: T characters. The measure is Pearson's correlation r of a neuron's state with a property
    (properties.properties). For each property the 3 neurons with the highest |r| over the text's first half are chosen; r is then measured
    over the second half, which had no part in the choice. Against chance stands the same neuron with the property shifted along the second
    half in a circle, by every number of characters but those nearer to 0 than a tenth of it: shifted, the two have nothing to do with each
    other, but each still varies as slowly as it does. A neuron is found if both r have the same sign and |r| is beyond what chance reaches
    in a share 0.01 / n of such shifts (n: the neurons tried, for all properties; Bonferroni): beyond all but so many of the shifts, and
    beyond a normal distribution of their spread. Where a text repeats itself, shifts fit as well, and less is found.
    """
    L, H, T = states.shape
    half = T // 2
    every = properties(text)
    named = {name: values for name, values in every.items() if _varies(values[:half]) and _varies(values[half:])}
    leftout = [name for name in every if name not in named]
    found, nothing = [], []
    halves = np.array([values[:half] for values in named.values()]).reshape(-1, half)
    firsts = np.concatenate([_correlations(layer[:, :half], halves) for layer in states], 1)
    for first, (name, values) in zip(firsts, named.items()):
        best = np.argsort(-np.abs(first), kind='stable')[:CANDIDATES]
        tries = len(named) * len(best)
        some = []
        for i in best:
            r, chance = _againstshifts(states[i // H, i % H, half:], values[half:], RISK / tries)
            if abs(r) > chance and r * first[i] > 0:
                some.append(Found(name, int(i // H), int(i % H), float(r), float(first[i]), float(chance)))
        found += some
        nothing += [name] * (not some)
    return sorted(found, key=lambda each: -abs(each.r)), nothing, leftout


def _varies(values):
    _, counts = np.unique(values, return_counts=True)
    return len(values) - counts.max() >= RARE


def _standard(values):
    """Values (..., T) with mean 0 and variance 1 along T, float64; zeros where they don't vary."""
    centred = values - values.mean(-1, keepdims=True, dtype=np.float64)
    spread = centred.std(-1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-6)


def _correlations(neurons, values):
    """Pearson's r, (P, n), of values (P, T) with neurons (n, T); 0 where one of them doesn't vary."""
    values = _standard(values) / values.shape[1]
    return np.concatenate([values @ _standard(neurons[i:i + BLOCK]).T for i in range(0, len(neurons), BLOCK)], 1)


def _againstshifts(neuron, values, level):
    """(r, chance): the correlation, and the |r| that chance stays below but for a share `level`, judged by the shifts.

    All circular shifts at once, by Fourier transforms: T log T. Those of slow signals are few that differ, and the largest of them is
    passed too often: so chance is also no less than the normal distribution with their root mean square would have it, r transformed as
    Fisher (1915) does.
    """
    T = len(values)
    r = np.fft.irfft(np.fft.rfft(_standard(neuron)) * np.conj(np.fft.rfft(_standard(values))), T) / T
    near = max(T // 10, 1)
    shifted = np.sort(np.abs(r[near:T - near + 1]))
    spread = np.sqrt(np.mean(np.arctanh(np.minimum(shifted, 1 - 1e-9)) ** 2))
    normal = np.tanh(NormalDist().inv_cdf(1 - level / 2) * spread)
    return r[0], max(shifted[max(len(shifted) - 1 - int(level * len(shifted)), 0)], normal)
