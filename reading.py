"""Reading a text with a model: the states that it leads to, and how surprising each character was."""

import math
from dataclasses import dataclass

import numpy as np

import report
from errors import checktext

CHUNK = 1000            # characters, of all rows, that are read at a time: their states take memory
SHOWN = 50_000          # characters from which on a person is told how far it is


def readcharacters(model, x, states):
    """Yields every layer's states, a list of (t, B, H), along x (T, B), integers, behind states (L, B, H), a chunk of steps at a time."""
    steps = max(CHUNK // x.shape[1], 1)
    for start in range(0, len(x), steps):
        S = model.allstates(np.ascontiguousarray(x[start:start + steps], np.int32), states)
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
    """How well a model foretold a text: nats and bits per character, and `shares`, each character's, (len(text),) float64 nats."""

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
    V, c = params['V'].astype(np.float64), params['c'].astype(np.float64)
    # The first character: by how often it begins a line in the source, one added to each count, so that none is impossible.
    starts = ms.charset.linestarts + 1.0
    shares = np.empty(len(codes))
    shares[0] = -np.log(starts[codes[0]] / starts.sum())
    progress = report.Progress('Reading', len(codes) - 1, 1) if len(codes) > SHOWN else None
    done, total = 1, 0.0
    try:
        for S in readcharacters(model, codes[:-1, None], np.zeros((model.layers, 1, model.state_size), np.float32)):
            logits = S[-1][:, 0] @ V + c
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


def trackneurons(ms, text):
    """The array of `ModelState.trackneurons`."""
    x = ms.charset.encode(checktext('text', text))[:, None]
    chunks = list(readcharacters(ms.model, x, np.zeros((ms.model.layers, 1, ms.model.state_size), np.float32)))
    return np.stack([np.concatenate([S[l][:, 0] for S in chunks]).T for l in range(ms.model.layers)])
