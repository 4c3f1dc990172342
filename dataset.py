"""CharSet, the characters of a text and their indices, DataSet, the text as batches of indices, and HeldOut, its end as a test.

encode.py makes the first two from a text file, DataSet.split the last. No Theano here, and no Python loop over characters.
"""
import functools
import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Self

import numpy as np

from errors import WorkDirError, checkint, checkreal, reason, short
from storage import filechecksum, openregular

UNKNOWN = '\ufffd'
UNKNOWNS = np.append(np.arange(0xD800, 0xE000), ord(UNKNOWN))       # code points of index 0: surrogates are no characters


class CharSet:
    """The characters of a source text and their indices: 0 is U+FFFD, the
    unknown character, the others follow by code point.

    chars       str of V different characters, chars[0] U+FFFD, the others
                ascending, no surrogates
    linestarts  (V,) integers: how often each character begins a line in
                the source. A line begins with the text's first character
                and with every character that follows a line feed (an
                empty line, then, begins with a line feed).
    hasunknown  whether the source itself holds U+FFFD, as such or for
                undecodable bytes; if not, it is never drawn

    `len(charset)` is V; `dtype` is the smallest unsigned integer type
    that holds 0..V-1. Raises TypeError or ValueError for anything else
    than the above.
    """

    def __init__(self, chars: str, linestarts: np.ndarray | Sequence[int], hasunknown: bool = False) -> None:
        counts = np.asarray(linestarts)
        if not isinstance(chars, str) or counts.dtype.kind not in 'iu' or not isinstance(hasunknown, (bool, np.bool_)):
            raise TypeError(f"a CharSet needs a str, integers and a bool, not {type(chars).__name__}, {counts.dtype}, {hasunknown!r}")
        others = codepoints(chars[1:]).astype(np.int64)
        if chars[:1] != UNKNOWN or np.any(np.diff(others) <= 0) or np.isin(UNKNOWNS, others).any():
            raise ValueError(f"chars must be U+FFFD and then different characters by code point, not {short(chars)}")
        if counts.shape != (len(chars),) or counts.min() < 0 or not counts.any() or counts[0] and not hasunknown:
            raise ValueError(f"linestarts must be {len(chars)} counts, not all 0, and the first one 0 unless hasunknown, "
                             f"not {short(counts.tolist())}")
        self.chars = chars
        self.linestarts = counts.astype(np.int64)
        self.hasunknown = bool(hasunknown)
        self.dtype = np.min_scalar_type(len(chars) - 1)

    def __len__(self) -> int:
        return len(self.chars)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CharSet):
            return NotImplemented
        return (self.chars == other.chars and self.hasunknown == other.hasunknown
                and np.array_equal(self.linestarts, other.linestarts))

    def __repr__(self) -> str:
        return f"CharSet({len(self)} characters as {self.dtype}, unknown included: {short(self.chars[1:])})"

    @functools.cached_property
    def _points(self):
        """(V,) code points, index -> character."""
        return codepoints(self.chars)

    @functools.cached_property
    def _table(self):
        """Indices by code point. Its last entry is 0 and stands, by clipping, for all code points beyond."""
        table = np.zeros(max(256, int(self._points[1:].max(initial=0)) + 2), self.dtype)
        table[self._points[1:]] = np.arange(1, len(self))
        return table

    def encode(self, text: str) -> np.ndarray:
        """The characters' indices, (len(text),) of `dtype`; 0 for characters
        that the charset lacks."""
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, not {type(text).__name__}")
        if text.isascii():      # whose indices are at most 128, so that a byte holds them: twice as fast as NumPy's lookup
            return np.frombuffer(text.encode().translate(self._table[:256].astype(np.uint8).tobytes()), np.uint8).astype(self.dtype)
        return self._table.take(codepoints(text), mode='clip')

    def decode(self, indices: np.ndarray | Sequence[int]) -> str:
        """The text, a str, that a sequence of indices in 0..V-1 stands for;
        ValueError if one is outside."""
        indices = np.asarray(indices)
        if indices.shape == (0,):
            return ''
        if indices.ndim != 1 or indices.dtype.kind not in 'iu':
            raise TypeError(f"indices must be a 1-D sequence of integers, not {indices.ndim}-D of {indices.dtype}")
        low, high = indices.min(), indices.max()
        if low < 0 or high >= len(self):
            raise ValueError(f"indices must be in 0..{len(self) - 1}, not {low if low < 0 else high}")
        return self._points.astype('<u4').take(indices).tobytes().decode('utf-32-le')

    def onehot(self, index: int) -> np.ndarray:
        """The one-hot vector, (V,) float32, of an index in 0..V-1."""
        vector = np.zeros(len(self), np.float32)
        vector[checkint('index', index, 0, len(self) - 1)] = 1
        return vector

    def encodeonehots(self, text: str) -> np.ndarray:
        """One-hot vectors, (len(text), V) float32, of a text's characters."""
        onehots = np.zeros((len(text), len(self)), np.float32)
        onehots[np.arange(len(text)), self.encode(text)] = 1
        return onehots

    def linestartprobs(self) -> np.ndarray:
        """How often each character begins a line, (V,) float64 with sum 1: what
        a sample's first character is drawn by."""
        return self.linestarts / self.linestarts.sum()

    def facts(self) -> dict:
        """The charset as a dict of plain Python values; `fromfacts` makes the
        charset of it again."""
        return {'chars': self.chars, 'linestarts': self.linestarts.tolist(), 'hasunknown': self.hasunknown}

    @classmethod
    def fromfacts(cls, facts: object) -> Self:
        """The charset that `facts()` told of; ValueError, in one sentence, where
        the facts aren't such."""
        if not isinstance(facts, dict):
            raise ValueError(f"a charset's facts must be a dict, not {type(facts).__name__}")
        for name, kind in (('chars', str), ('linestarts', list), ('hasunknown', bool)):
            if type(facts.get(name)) is not kind:
                raise ValueError(f"a charset's facts must hold {name!r}, a {kind.__name__}, not {short(facts.get(name))}")
        if not all(type(count) is int and 0 <= count < 2**63 for count in facts['linestarts']):
            raise ValueError("a charset's facts must hold counts in 'linestarts', integers from 0 on")
        return cls(facts['chars'], np.array(facts['linestarts'], np.int64), facts['hasunknown'])


class DataSet:
    """A text as n = ceil(numchars / seq_len) sequences of seq_len indices,
    and the batches an epoch reads of them.

    codes     (n seq_len + 1,) integers, mapped or in memory: the text's
              indices, then padding from the text's beginning up to n
              seq_len, then the index that comes next there, the last
              target. What stands right behind the text is never read, it
              is known to be the text's first index: so the first part of
              a longer text is a view of its codes
    numchars  characters in the text
    seq_len   T, characters in a sequence
    vocab     V, or None: with it, `batch` refuses indices that no
              character has

    Raises TypeError or ValueError where these don't fit each other.
    """

    def __init__(self, codes: np.ndarray, numchars: int, seq_len: int, vocab: int | None = None) -> None:
        self.numchars = checkint('numchars', numchars, 1)
        self.seq_len = checkint('seq_len', seq_len, 1)
        self.vocab = None if vocab is None else checkint('vocab', vocab, 1)
        length = self.numseqs * self.seq_len + 1
        if not isinstance(codes, np.ndarray) or codes.dtype.kind not in 'iu':
            raise TypeError(f"codes must be an array of integers, not {getattr(codes, 'dtype', type(codes).__name__)}")
        if codes.shape != (length,):
            raise ValueError(f"codes must have the shape {(length,)} for {numchars} characters "
                             f"in sequences of {seq_len}, not {codes.shape}")
        self.codes = codes

    @property
    def numseqs(self) -> int:
        """n, the number of sequences."""
        return -(-self.numchars // self.seq_len)

    def __repr__(self) -> str:
        return f"DataSet({self.numchars} characters, {self.numseqs} sequences of {self.seq_len}, {self.codes.dtype})"

    def batchepoch(self, batchsize: int) -> int:
        """Steps in an epoch, ceil(n / B); ValueError where the text has fewer
        than `batchsize` sequences."""
        batchsize = checkint('batchsize', batchsize, 1)
        if batchsize > self.numseqs:
            raise ValueError(f"batchsize {batchsize} needs at least {batchsize} sequences, the text gives {self.numseqs}: "
                             f"use a smaller batchsize or seq_len")
        return -(-self.numseqs // batchsize)

    def batch(self, pos: int, batchsize: int) -> tuple[np.ndarray, np.ndarray]:
        """The batch of step `pos`, 0 <= pos < batchepoch: inputs and targets,
        (T, B) int32 each, C-contiguous.

        Column i is sequence (i batchepoch + pos) mod n: each row of the batch
        reads its own stretch of the text in order, and where B doesn't divide
        n the last ones go on at the text's beginning. WorkDirError where the
        mapped file has been cut short or holds what is no index.
        """
        steps = self.batchepoch(batchsize)
        pos = checkint(f"pos at batchsize {batchsize}", pos, 0, steps - 1)
        starts = (np.arange(int(batchsize)) * steps + pos) % self.numseqs * self.seq_len
        at = starts + np.arange(self.seq_len + 1)[:, None]
        at[at == self.numchars] = 0
        return _inputsandtargets(self.codes, at, self.vocab)

    def split(self, valid_frac: float) -> tuple['DataSet', 'HeldOut | None']:
        """(the DataSet to train on, the HeldOut to validate on): the text's end,
        about a share `valid_frac` of it, held out.

        The DataSet behaves as one of its part of the text alone would,
        `trainchars` says how long that is, and the HeldOut is the rest. Both
        are views of the codes: nothing is copied. With valid_frac 0 they are
        this DataSet itself and None. Raises as `trainchars` does.
        """
        length = trainchars(self.numchars, self.seq_len, valid_frac)
        if valid_frac == 0:
            return self, None
        return (DataSet(self.codes[:length + 1], length, self.seq_len, self.vocab),
                HeldOut(self.codes[length:self.numchars], self.seq_len, self.vocab))

    @classmethod
    def load(cls, path: str | os.PathLike, numchars: int, seq_len: int, vocab: int, checksum: str | None = None) -> Self:
        """The dataset that encodefile wrote to `path`, memory-mapped: takes no
        memory, whatever its size.

        `numchars`, `seq_len`, `vocab` (V) and `checksum` (as filechecksum
        gives it, about a second a GB; None: isn't looked at) are what the
        file must fit; WorkDirError where it is missing, damaged or doesn't.
        """
        dtype = np.min_scalar_type(checkint('vocab', vocab, 1) - 1)
        try:
            if checksum is not None and filechecksum(path) != checksum:
                raise ValueError('its checksum is wrong')
            openregular(path).close()
            codes = np.lib.format.open_memmap(path, mode='r')
        except FileNotFoundError:
            raise WorkDirError(f"the encoded dataset {path} is missing: copy it back or start again from the source text") from None
        except Exception as error:      # whatever a damaged header makes NumPy raise
            raise WorkDirError(f"the encoded dataset {path} is damaged or can't be read ({reason(error)}): "
                               f"copy it back or start again from the source text") from error
        length = -(-checkint('numchars', numchars, 1) // checkint('seq_len', seq_len, 1)) * int(seq_len) + 1
        if codes.shape != (length,) or codes.dtype != dtype:
            raise WorkDirError(f"the encoded dataset {path} doesn't belong to this model: it holds {codes.dtype} of shape {codes.shape}, "
                               f"not {dtype} of shape {(length,)}; copy the right one back or start again from the source text")
        return cls(codes, numchars, seq_len, vocab)


class HeldOut:
    """The part of a text that training never reads, M characters, and the
    loss on all of it.

    codes    (M,) integers, M >= 2, mapped or in memory
    seq_len  T, the characters that a batch reads at a time
    vocab    V, or None: with it, indices that no character has are
             refused

    Each character but the first is predicted once, from those before it
    in the held-out part: M - 1 predictions. They are read as
    `rows(batchsize)` stretches of the text side by side, each from a zero
    state and carrying it on, and the fewer than that many which are left
    over then go on from the last row. The fewer rows, the fewer
    predictions are made with nothing yet read.
    Raises TypeError or ValueError where the arguments don't fit each
    other.
    """

    def __init__(self, codes: np.ndarray, seq_len: int, vocab: int | None = None) -> None:
        self.seq_len = checkint('seq_len', seq_len, 1)
        self.vocab = None if vocab is None else checkint('vocab', vocab, 1)
        if not isinstance(codes, np.ndarray) or codes.dtype.kind not in 'iu':
            raise TypeError(f"codes must be an array of integers, not {getattr(codes, 'dtype', type(codes).__name__)}")
        if codes.ndim != 1 or len(codes) < 2:
            raise ValueError(f"codes must have the shape (M,) with M at least 2, not {codes.shape}")
        self.codes = codes
        self.numchars = len(codes)

    def __repr__(self) -> str:
        return f"HeldOut({self.numchars} characters, {self.codes.dtype})"

    def rows(self, batchsize: int) -> int:
        """How many stretches are read side by side: `batchsize`, or fewer where
        they would be shorter than a sequence."""
        return max(1, min(checkint('batchsize', batchsize, 1), (self.numchars - 1) // self.seq_len))

    def numsteps(self, batchsize: int) -> int:
        """How many batches `batches` yields."""
        length, left = divmod(self.numchars - 1, self.rows(batchsize))
        return -(-length // self.seq_len) + -(-left // self.seq_len)

    def batches(self, batchsize: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields inputs and targets, (T, rows) int32 each, C-contiguous: all
        rows' next T characters (fewer at the end); then, (T, 1), what is left
        over behind the last row."""
        rows = self.rows(batchsize)
        length, left = divmod(self.numchars - 1, rows)
        for starts, end in (np.arange(rows) * length, length), (np.array([rows * length]), left):
            for done in range(0, end, self.seq_len):
                at = starts + np.arange(done, min(done + self.seq_len, end) + 1)[:, None]
                yield _inputsandtargets(self.codes, at, self.vocab)

    def losses(self, evaluate: Callable, batchsize: int, layers: int, state_size: int) -> Iterator[float]:
        """Yields, after each of the `numsteps(batchsize)` batches, the mean loss
        of all predictions so far: the last one is the loss.

        evaluate: (x, y (T, B) int32, a list of `layers` states (B,
        state_size) float32) -> (mean loss, the list of last states), as
        layers.ModelParams.evaluate is. Whoever asks for the next one decides
        whether it goes on.
        """
        state = [np.zeros((self.rows(batchsize), state_size), np.float32)] * layers
        total, count = 0.0, 0
        for x, y in self.batches(batchsize):
            if x.shape[1] < len(state[0]):
                state = [np.ascontiguousarray(s[-1:]) for s in state]
            loss, state = evaluate(x, y, state)
            total, count = total + float(loss) * x.size, count + x.size
            yield total / count


def trainchars(numchars: int, seq_len: int, valid_frac: float) -> int:
    """How many characters, from the beginning of a text of `numchars`, are left to train on when a share `valid_frac` is held out.

    That is (1 - valid_frac) numchars, rounded down to whole sequences of seq_len, so that no padding is needed; all of them where
    valid_frac is 0. ValueError where less than a sequence would be left, or less than two characters held out; TypeError
    or ValueError for no number in 0 <= valid_frac < 1.
    """
    valid_frac = checkreal('valid_frac', valid_frac, 0, 1)
    numchars, seq_len = checkint('numchars', numchars, 1), checkint('seq_len', seq_len, 1)
    if valid_frac == 0:
        return numchars
    # As it is written: in floating point (1 - 0.9) * 1000 is less than 100.
    left = math.floor((1 - Fraction(repr(valid_frac))) * numchars)
    length = left // seq_len * seq_len
    if length == 0:
        raise ValueError(f"valid_frac {valid_frac:g} leaves {left} of the text's {numchars} characters to train on, less than one "
                         f"sequence of {seq_len}: use a smaller valid_frac or seq_len")
    if numchars - length < 2:
        raise ValueError(f"valid_frac {valid_frac:g} holds out {numchars - length} of the text's {numchars} characters, and a validation "
                         f"needs at least 2: use a larger valid_frac, or 0 for none")
    return length


def _inputsandtargets(codes, at, vocab):
    """Inputs and targets, (T, B) int32 each, C-contiguous, of the codes at places (T + 1, B); WorkDirError where the charset has no such
    characters, or the codes' file has been cut short."""
    _checkmapped(codes)
    codes = np.asarray(codes)[at].astype(np.int32)
    if vocab is not None and not 0 <= codes.min() <= codes.max() < vocab:
        raise WorkDirError(f"the encoded dataset is damaged: it holds the index {codes.max()} where the charset has "
                           f"{vocab} characters; make it again from the source text")
    return codes[:-1], codes[1:].copy()     # the two don't share memory


def _checkmapped(codes):
    """WorkDirError where the file under mapped codes is shorter than when it was mapped: to read what is gone ends the process (SIGBUS).

    A microsecond a batch. It still ends so where the file is cut in the moment between; the last checkpoint stands then.
    """
    array = codes
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap) and array.size() < len(array):
        raise WorkDirError(f"the encoded dataset {getattr(codes, 'filename', '')} has been cut short while it was in use, from "
                           f"{len(array):,} to {array.size():,} bytes: copy its content back into it, or restore() when the whole file is "
                           "back")


def codepoints(text: str) -> np.ndarray:
    """A str's code points, (len(text),) uint8, uint16 or uint32 (little-endian), lone surrogates included."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    utf16 = text.encode('utf-16-le', 'surrogatepass')       # a plain copy, where no character takes two units
    if len(utf16) == 2 * len(text):
        return np.frombuffer(utf16, '<u2')
    return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
