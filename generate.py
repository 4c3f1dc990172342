"""Texts that a model writes, piece by piece: what `ModelState.sample`, `ModelState.stream` and `generatestring` share."""

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

import reading
import report
from errors import checkint, checkreal, short

if TYPE_CHECKING:
    from model import ModelState

MOSTCHARS, MOSTTEXTS = 10 ** 8, 10_000
FIRST = 64              # characters of a stream's first piece; each piece has twice as many as the one before,
WORK = 10 ** 9          # until it takes so many products: some 50 ms, so that Ctrl-C is heard and a person sees it grow
DRAW = 20_000           # products that take as long as drawing one character from its logits
LOGITS = 1 << 22        # numbers that they take at most, of the texts that are drawn side by side


class TextState(NamedTuple):
    """Where n texts stand: `Stream.state`, and what `state=` takes."""

    states: np.ndarray      # (L, n, H) float32, before the last characters are read
    chars: np.ndarray       # (n,) int32, the last characters' indices

    def __repr__(self) -> str:
        return f'TextState of {report.counted(len(self.chars), "text")}'


class Stream:
    """The pieces of a text, or of several, in the order in which a model
    writes them: an iterator.

        stream = ms.stream(1000, prime='ROMEO:')
        for piece in stream:
            print(piece, end='', flush=True)
        more = ms.sample(1000, state=stream.state)

    A piece is a str, with n= a list of n of them ('' where a text has
    ended). `state`: where the texts stand behind the last piece, a
    TextState; None before the first.
    """

    def __init__(self, ms: 'ModelState', numchars: int = 100, temp: float = 0.5, seed: int | np.random.SeedSequence | None = None, *,
                 prime: str = '', top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
                 until: str | None = None, n: int | None = None, state: TextState | None = None) -> None:
        """As ModelState.sample, which see; `seed` may be a
        numpy.random.SeedSequence as well."""
        self._ms, self._model = ms, ms.model
        vocab = len(ms.charset)
        self._left = checkint('numchars', numchars, 0, MOSTCHARS)
        self._steering = (checkreal('temp', temp, 0),
                          vocab if top_k is None else min(checkint('top_k', top_k, 1), vocab),
                          1.0 if top_p is None else checkreal('top_p', top_p, 0, 1, islowallowed=False, ishighallowed=True),
                          0.0 if min_p is None else checkreal('min_p', min_p, 0, 1, ishighallowed=True))
        if not isinstance(prime, str):
            raise TypeError(f'prime takes a str, got {short(prime)}')
        self._until = self._checkuntil(until)
        self.n, self._given = self._checkstate(state, n)
        self.islist = n is not None or self.n > 1
        if not isinstance(seed, np.random.SeedSequence):
            seed = np.random.SeedSequence(None if seed is None else checkint('seed', seed, 0, 2 ** 63 - 1))
        # The first text of several is the one that a single one would be.
        seeds = [seed] + [np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, i)) for i in range(1, self.n)]
        self._rngs = [np.random.Generator(np.random.PCG64(each)) for each in seeds]
        self._allowed = np.ones(vocab, np.int8)
        self._allowed[0] = ms.charset.hasunknown
        self._prime, self._size = prime, 0
        self._live = list(range(self.n))           # the texts that have not met `until`
        self._tails = [''] * self.n                # the last drawn characters, in which `until` may have begun
        self.state: TextState | None = None
        if prime:
            reading.warnofunknown(ms.charset, prime, 'prime')

    def _checkuntil(self, until):
        if until is None:
            return None
        if not isinstance(until, str):
            raise TypeError(f'until takes a str, got {short(until)}')
        if not until:
            raise ValueError("until is empty, and a text would end before it begins: leave it out, or give the text to stop at, as in "
                             "until='\\n'")
        charset = self._ms.charset
        for char in until:
            if char not in charset.chars or (char == charset.chars[0] and not charset.hasunknown):
                raise ValueError(f'until={short(until)} is never written: {short(char)} is not in the text that the model learnt')
        return until

    def _checkstate(self, state, n):
        """(number of texts, the TextState of so many or None)."""
        n = None if n is None else checkint('n', n, 1, MOSTTEXTS)
        if state is None:
            return n or 1, None
        if not isinstance(state, TextState):
            raise TypeError(f"state takes a stream's state, got {short(state)}")
        states, chars = np.asarray(state.states), np.asarray(state.chars)
        L, H, vocab, given = self._model.layers, self._model.state_size, len(self._ms.charset), chars.size
        if (states.shape != (L, given, H) or chars.shape != (given,) or not given or states.dtype.kind != 'f'
                or chars.dtype.kind not in 'iu' or not 0 <= chars.min() <= chars.max() < vocab):
            raise ValueError(f'state is of another model: its states have the shape {states.shape}, this network has {L} layers of {H} '
                             f'units and {vocab} characters')
        with np.errstate(over='ignore'):
            states = states.astype(np.float32)      # of another type after a calculation, say
        if not np.isfinite(states).all():
            raise ValueError('state takes states that are numbers, got NaN, infinity or what float32 cannot hold')
        if given > 1 and n not in (None, given):
            raise ValueError(f'n={n} texts cannot go on from the state of {given}: leave n out')
        return n or given, TextState(np.repeat(states, (n or 1) // given or 1, 1), np.repeat(chars, (n or 1) // given or 1))

    def __repr__(self) -> str:
        return f'Stream of {report.counted(self.n, "text")}, {self._left:,} characters to come'

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The next piece; StopIteration behind the last. A call that Ctrl-C
        breaks off changes nothing: the next one gives the same piece."""
        before = self.state, self._left, self._size, list(self._live), list(self._tails), [rng.bit_generator.state for rng in self._rngs]
        try:
            return self._piece()
        except BaseException:
            self.state, self._left, self._size, self._live, self._tails, drawn = before
            for rng, each in zip(self._rngs, drawn):
                rng.bit_generator.state = each
            raise

    def _piece(self):
        pieces = [''] * self.n
        if self.state is None:
            pieces = self._begin()
        elif not self._left or not self._live:
            raise StopIteration
        if self.state is None:                      # nothing to read or write
            raise StopIteration
        if self._left and self._live:
            self._draw(pieces)
        return pieces if self.islist else pieces[0]

    def _begin(self):
        """Read what the texts begin with, or draw their first characters; their pieces."""
        L, H, n = self._model.layers, self._model.state_size, self.n
        pieces, before = [self._prime] * n, self._given
        if self._until or self._prime:
            self._model.allstates               # compiled now, so that nothing is said in the middle of a text
        if self._prime:
            if len(self._prime) > reading.SHOWN:
                report.say(f'Reading {len(self._prime):,} characters ...')
            x = np.repeat(self._ms.charset.encode(self._prime)[:, None].astype(np.int32), n if before else 1, 1)
            states = before.states if before else np.zeros((L, 1, H), np.float32)
            read = np.concatenate([before.chars[None], x[:-1]]) if before else x[:-1]
            states = reading.laststates(self._model, read, states)
            self.state = TextState(np.repeat(states, n // x.shape[1], 1), np.repeat(x[-1], n // x.shape[1]))
        elif before:
            self.state = before
        elif self._left:
            starts = np.cumsum(self._ms.charset.linestartprobs())
            last = np.searchsorted(starts, starts[-1])
            chars = np.array([min(np.searchsorted(starts, rng.random() * starts[-1], side='right'), last) for rng in self._rngs], np.int32)
            self.state = TextState(np.zeros((L, n, H), np.float32), chars)
            self._left -= 1
            self._take(chars[:, None], self.state, pieces)
        return pieces

    def _draw(self, pieces):
        """Draw some characters of each text that has not ended, and add them to its piece."""
        live, before = list(self._live), self.state
        L, H, vocab = self._model.layers, self._model.state_size, len(self._ms.charset)
        most = max(WORK // (((6 * L * H + vocab) * H + DRAW) * len(live)), 1)
        self._size = min(2 * self._size or FIRST, most)
        steps = min(self._left, self._size)
        uniforms = np.stack([self._rngs[i].random(steps) for i in live])
        rows, parts = max(LOGITS // vocab, 1), []
        for some, theirs in ((live[i:i + rows], uniforms[i:i + rows]) for i in range(0, len(live), rows)):
            parts.append(self._model.sampletext(before.chars[some], theirs, *self._steering, self._allowed, before.states[:, some]))
        drawn, states = (np.concatenate(each, axis) for axis, each in enumerate(zip(*parts)))
        self._left -= steps
        after = TextState(before.states.copy(), before.chars.copy())
        after.states[:, live], after.chars[live] = states, drawn[:, -1]
        self.state = after
        self._take(drawn, before, pieces)

    def _take(self, drawn, before, pieces):
        """Add the drawn characters of the texts that live (rows, steps) to their pieces, as far as `until`; `before`: where they stood."""
        texts, steps = self._ms.charset.decode(drawn.reshape(-1)), drawn.shape[1]
        for k, (i, row) in enumerate(zip(list(self._live), drawn)):
            text = texts[k * steps:(k + 1) * steps]
            if self._until:
                seen = self._tails[i] + text
                end = seen.find(self._until)
                if end >= 0:
                    count = end + len(self._until) - len(self._tails[i])
                    self._end(i, row[:count], steps, before)
                    text = text[:count]
                self._tails[i] = seen[max(len(seen) - len(self._until) + 1, 0):]
            pieces[i] += text

    def _end(self, i, row, steps, before):
        """Text i ends with `row`, the first of `steps` characters drawn behind `before`: its state is the one there."""
        self._live.remove(i)
        if len(row) < steps:
            read = np.concatenate([before.chars[i:i + 1], row[:-1]])
            self.state.states[:, i] = reading.laststates(self._model, read[:, None], before.states[:, i:i + 1])[:, 0]
            self.state.chars[i] = row[-1]
