"""From a text file to batches of character indices: CharSet, DataSet, encodefile.

The text is never whole in memory: `encodefile` reads it twice in chunks (once for the charset, once to encode) and
writes the indices to a .npy file, which `DataSet` maps. No Theano here, and no Python loop over characters.
"""
import codecs
import contextlib
import functools
import operator
import os
import secrets
import stat

import numpy as np

from errors import TextError, WorkDirError

UNKNOWN = '\ufffd'
CHUNK = 1 << 19         # bytes read at a time: large enough for NumPy, small enough for the processor's cache
_POINTS = 0x110000      # number of Unicode code points
_UNKNOWNS = np.append(np.arange(0xD800, 0xE000), ord(UNKNOWN))      # surrogates are no characters

# What decoders put where bytes are undecodable. A lone surrogate, because decoding never gives one otherwise: so
# substitutions can be told from a U+FFFD that stands in the source. Both get index 0.
_MARK = '\udfff'
_ONUNDECODABLE = 'rn-gru-mark'
codecs.register_error(_ONUNDECODABLE, lambda error: (_MARK, error.end))


class CharSet:
    """The characters of a source text and their indices: 0 is U+FFFD, the unknown character, the others follow by code point.

    chars       str of V different characters, chars[0] U+FFFD, the others ascending, no surrogates
    linestarts  (V,) integers: how often each character begins a line in the source. A line begins with the text's first
                character and with every character that follows a line feed (an empty line, then, begins with a line feed).
    hasunknown  whether the source itself holds U+FFFD, as such or for undecodable bytes; if not, it is never drawn

    `len(charset)` is V; `dtype` is the smallest unsigned integer type that holds 0..V-1. Raises TypeError or ValueError
    for anything else than the above.
    """

    def __init__(self, chars, linestarts, hasunknown=False):
        counts = np.asarray(linestarts)
        if not isinstance(chars, str) or counts.dtype.kind not in 'iu' or not isinstance(hasunknown, (bool, np.bool_)):
            raise TypeError(f"a CharSet needs a str, integers and a bool, not {type(chars).__name__}, {counts.dtype}, {hasunknown!r}")
        others = _codepoints(chars[1:]).astype(np.int64)
        if chars[:1] != UNKNOWN or np.any(np.diff(others) <= 0) or np.isin(_UNKNOWNS, others).any():
            raise ValueError(f"chars must be U+FFFD and then different characters by code point, not {_short(chars)}")
        if counts.shape != (len(chars),) or counts.min() < 0 or not counts.any() or counts[0] and not hasunknown:
            raise ValueError(f"linestarts must be {len(chars)} counts, not all 0, and the first one 0 unless hasunknown, "
                             f"not {_short(counts.tolist())}")
        self.chars = chars
        self.linestarts = counts.astype(np.int64)
        self.hasunknown = bool(hasunknown)
        self.dtype = np.min_scalar_type(len(chars) - 1)

    def __len__(self):
        return len(self.chars)

    def __eq__(self, other):
        if not isinstance(other, CharSet):
            return NotImplemented
        return (self.chars == other.chars and self.hasunknown == other.hasunknown
                and np.array_equal(self.linestarts, other.linestarts))

    def __repr__(self):
        return f"CharSet({len(self)} characters as {self.dtype}, unknown included: {_short(self.chars[1:])})"

    @functools.cached_property
    def _points(self):
        """(V,) code points, index -> character."""
        return _codepoints(self.chars)

    @functools.cached_property
    def _table(self):
        """Indices by code point. Its last entry is 0 and stands, by clipping, for all code points beyond."""
        table = np.zeros(max(256, int(self._points[1:].max(initial=0)) + 2), self.dtype)
        table[self._points[1:]] = np.arange(1, len(self))
        return table

    def encode(self, text):
        """The characters' indices, (len(text),) of `dtype`; 0 for characters that the charset lacks."""
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, not {type(text).__name__}")
        if text.isascii() and self.dtype == np.uint8:       # twice as fast as NumPy's lookup
            return np.frombuffer(text.encode().translate(self._table[:256].tobytes()), np.uint8).copy()
        return self._table.take(_codepoints(text), mode='clip')

    def decode(self, indices):
        """The text, a str, that a sequence of indices in 0..V-1 stands for; ValueError if one is outside."""
        indices = np.asarray(indices)
        if indices.shape == (0,):
            return ''
        if indices.ndim != 1 or indices.dtype.kind not in 'iu':
            raise TypeError(f"indices must be a 1-D sequence of integers, not {indices.ndim}-D of {indices.dtype}")
        low, high = indices.min(), indices.max()
        if low < 0 or high >= len(self):
            raise ValueError(f"indices must be in 0..{len(self) - 1}, not {low if low < 0 else high}")
        return self._points.astype('<u4').take(indices).tobytes().decode('utf-32-le')

    def onehot(self, index):
        """The one-hot vector, (V,) float32, of an index in 0..V-1."""
        index = _integer('index', index)
        if not 0 <= index < len(self):
            raise ValueError(f"index must be in 0..{len(self) - 1}, not {index}")
        vector = np.zeros(len(self), np.float32)
        vector[index] = 1
        return vector

    def encodeonehots(self, text):
        """One-hot vectors, (len(text), V) float32, of a text's characters."""
        onehots = np.zeros((len(text), len(self)), np.float32)
        onehots[np.arange(len(text)), self.encode(text)] = 1
        return onehots

    def linestartprobs(self):
        """How often each character begins a line, (V,) float64 with sum 1: what a sample's first character is drawn by."""
        return self.linestarts / self.linestarts.sum()

    def facts(self):
        """The charset as a dict of plain Python values; `fromfacts` makes the charset of it again."""
        return {'chars': self.chars, 'linestarts': self.linestarts.tolist(), 'hasunknown': self.hasunknown}

    @classmethod
    def fromfacts(cls, facts):
        """The charset that `facts()` told of; ValueError, in one sentence, where the facts aren't such."""
        if not isinstance(facts, dict):
            raise ValueError(f"a charset's facts must be a dict, not {type(facts).__name__}")
        for name, kind in (('chars', str), ('linestarts', list), ('hasunknown', bool)):
            if type(facts.get(name)) is not kind:
                raise ValueError(f"a charset's facts must hold {name!r}, a {kind.__name__}, not {_short(facts.get(name))}")
        if not all(type(count) is int and 0 <= count < 2**63 for count in facts['linestarts']):
            raise ValueError("a charset's facts must hold counts in 'linestarts', integers from 0 on")
        return cls(facts['chars'], np.array(facts['linestarts'], np.int64), facts['hasunknown'])


class DataSet:
    """A text as n = ceil(numchars / seq_len) sequences of seq_len indices, and the batches an epoch reads of them.

    codes     (n seq_len + 1,) integers, mapped or in memory: the text's indices, then padding from the text's beginning
              up to n seq_len, then the index that comes next there, the last target
    numchars  characters in the text
    seq_len   T, characters in a sequence
    vocab     V, or None: with it, `batch` refuses indices that no character has

    Raises TypeError or ValueError where these don't fit each other.
    """

    def __init__(self, codes, numchars, seq_len, vocab=None):
        self.numchars = _positive('numchars', numchars)
        self.seq_len = _positive('seq_len', seq_len)
        self.vocab = None if vocab is None else _positive('vocab', vocab)
        length = self.numseqs * self.seq_len + 1
        if not isinstance(codes, np.ndarray) or codes.dtype.kind not in 'iu':
            raise TypeError(f"codes must be an array of integers, not {getattr(codes, 'dtype', type(codes).__name__)}")
        if codes.shape != (length,):
            raise ValueError(f"codes must have the shape {(length,)} for {numchars} characters "
                             f"in sequences of {seq_len}, not {codes.shape}")
        self.codes = codes

    @property
    def numseqs(self):
        """n, the number of sequences."""
        return -(-self.numchars // self.seq_len)

    def __repr__(self):
        return f"DataSet({self.numchars} characters, {self.numseqs} sequences of {self.seq_len}, {self.codes.dtype})"

    def batchepoch(self, batchsize):
        """Steps in an epoch, ceil(n / B); ValueError where the text has fewer than `batchsize` sequences."""
        batchsize = _positive('batchsize', batchsize)
        if batchsize > self.numseqs:
            raise ValueError(f"batchsize {batchsize} needs at least {batchsize} sequences, the text gives {self.numseqs}: "
                             f"use a smaller batchsize or seq_len")
        return -(-self.numseqs // batchsize)

    def batch(self, pos, batchsize):
        """The batch of step `pos`, 0 <= pos < batchepoch: inputs and targets, (T, B) int32 each, C-contiguous.

        Column i is sequence (i batchepoch + pos) mod n: each row of the batch reads its own stretch of the text in order,
        and where B doesn't divide n the last ones go on at the text's beginning.
        """
        steps = self.batchepoch(batchsize)
        pos = _integer('pos', pos)
        if not 0 <= pos < steps:
            raise ValueError(f"pos must be in 0..{steps - 1}, the steps of an epoch at batchsize {batchsize}, not {pos}")
        starts = (np.arange(int(batchsize)) * steps + pos) % self.numseqs * self.seq_len
        codes = np.asarray(self.codes)[starts + np.arange(self.seq_len + 1)[:, None]].astype(np.int32)
        if self.vocab is not None and not 0 <= codes.min() <= codes.max() < self.vocab:
            raise WorkDirError(f"the encoded dataset is damaged: it holds the index {codes.max()} where the charset has "
                               f"{self.vocab} characters; make it again from the source text")
        return codes[:-1], codes[1:].copy()     # the two don't share memory

    @classmethod
    def load(cls, path, numchars, seq_len, vocab):
        """The dataset that `encodefile` wrote to `path`, memory-mapped: takes no time and no memory, whatever its size.

        `numchars`, `seq_len` and `vocab` (V) are what the file must fit; WorkDirError where it is missing, damaged or doesn't.
        """
        dtype = np.min_scalar_type(_positive('vocab', vocab) - 1)
        try:
            codes = np.load(path, mmap_mode='r', allow_pickle=False)
        except FileNotFoundError:
            raise WorkDirError(f"the encoded dataset {path} is missing: copy it back or start again from the source text") from None
        except Exception as error:      # whatever a damaged header makes NumPy raise
            raise WorkDirError(f"the encoded dataset {path} can't be read ({_oneline(error)}): "
                               f"copy it back or start again from the source text") from error
        length = -(-_positive('numchars', numchars) // _positive('seq_len', seq_len)) * int(seq_len) + 1
        if not isinstance(codes, np.memmap) or codes.shape != (length,) or codes.dtype != dtype:
            found = f"{codes.dtype} of shape {codes.shape}" if isinstance(codes, np.ndarray) else "an archive"
            raise WorkDirError(f"the encoded dataset {path} doesn't belong to this model: it holds {found}, "
                               f"not {dtype} of shape {(length,)}; copy the right one back or start again from the source text")
        return cls(codes, numchars, seq_len, vocab)


def encodefile(srcfile, outfile, seq_len=100, encoding=None):
    """Encode a text file into the .npy file `outfile` and give (charset, dataset, numundecodable).

    srcfile   path of the text, a regular file of at least `seq_len` characters
    outfile   path of the encoded dataset; appears whole, replacing what was there, or not at all
    seq_len   characters in a sequence
    encoding  a text encoding that Python knows; None: what a byte-order mark says, else UTF-8

    A byte-order mark is dropped, CRLF and a lone CR become LF, undecodable bytes become U+FFFD: `numundecodable` of them,
    as many as Python's errors='replace' makes. The same file always gives the same indices.

    Raises, before anything is written: FileNotFoundError, IsADirectoryError, PermissionError or OSError for paths that
    can't be used, LookupError for an unknown encoding, TypeError or ValueError for a wrong seq_len, and TextError for a text
    that is empty, too short, binary (it holds NUL, or more than a tenth of it is undecodable), or changes meanwhile.

    Costs two passes over the file and some 20 MB of memory, whatever its size.
    """
    seq_len = _positive('seq_len', seq_len)
    srcfile, outfile = os.fsdecode(srcfile), os.fsdecode(outfile)
    _checkencoding(encoding)
    with _opentext(srcfile) as file:
        _checkoutfile(outfile, srcfile)
        before = _fingerprint(file)
        size = before[0]
        codec, skip = _codec(file.read(4), encoding)
        try:
            charset, numchars, numundecodable = _survey(_blocks(file, codec, skip, size), srcfile, size)
        except UnicodeError as error:       # the few codecs that don't know error handlers
            raise TextError(f"{srcfile} can't be decoded as {encoding!r} ({_oneline(error)}): name another encoding") from error
        changed = TextError(f"{srcfile} changed while it was being read: try again when nothing writes to it")
        if _fingerprint(file) != before:
            raise changed
        if numchars < seq_len:
            raise TextError(f"{srcfile} gives {numchars} characters, a sequence needs {seq_len}: "
                            f"use a longer text or a smaller seq_len")
        length = -(-numchars // seq_len) * seq_len + 1
        with _replacing(outfile) as out:
            np.lib.format.write_array_header_1_0(out, {
                'descr': np.lib.format.dtype_to_descr(charset.dtype), 'fortran_order': False, 'shape': (length,)})
            head, missing = [], length - numchars       # the padding is at most seq_len characters, so the text has them
            written = 0
            for text in _blocks(file, codec, skip, size):
                codes = charset.encode(text)
                out.write(codes)
                written += codes.size
                if missing:
                    head.append(codes[:missing].copy())
                    missing -= head[-1].size
            for codes in head:
                out.write(codes)
            if written != numchars or _fingerprint(file) != before:
                raise changed
    return charset, DataSet.load(outfile, numchars, seq_len, len(charset)), numundecodable


def _survey(blocks, srcfile, size):
    """(charset, numchars, numundecodable) of a text given in blocks, or a TextError for one that can't be trained on."""
    seen = np.zeros(_POINTS, bool)
    linestarts = np.zeros(_POINTS, np.int64)
    numchars = numundecodable = 0
    seenascii, newline = b'', True
    for text in blocks:
        points = _codepoints(text)
        if text.isascii():
            new = np.frombuffer(text.encode().translate(None, seenascii), np.uint8)
        else:
            known = seen[points]       # twice as fast as take() before NumPy 2, half as fast since
            new = points[:0] if known.all() else points[~known]
        if new.size:
            seen[new] = True
            seenascii = np.flatnonzero(seen[:128]).astype(np.uint8).tobytes()
        if seen[0]:
            raise TextError(f"{srcfile} holds NUL characters and so is a binary file: "
                            f"give a text file, or name its encoding, such as 'utf-16'")
        numchars += len(text)
        numundecodable += text.count(_MARK) if seen[ord(_MARK)] else 0
        if numundecodable * 10 > size:      # more than a tenth already, as no text has more characters than bytes
            break
        linestarts[points[0]] += newline
        starts = points[np.flatnonzero(points[:-1] == ord('\n')) + 1]
        starts, counts = np.unique(starts.astype(np.uint32), return_counts=True)     # 8 and 16 bits sort more slowly
        linestarts[starts] += counts
        newline = text.endswith('\n')
    if not numchars:
        raise TextError(f"{srcfile} is empty: give a file with text in it")
    if numundecodable * 10 > numchars:
        raise TextError(f"{srcfile} is a binary file or in another encoding, as {numundecodable} of its first {numchars} "
                        f"characters are undecodable: give a text file, or name its encoding, such as 'latin-1'")
    hasunknown = seen[_UNKNOWNS].any()
    seen[_UNKNOWNS] = False
    points = np.flatnonzero(seen)
    chars = UNKNOWN + points.astype('<u4').tobytes().decode('utf-32-le')
    counts = np.append(linestarts[_UNKNOWNS].sum(), linestarts[points])
    return CharSet(chars, counts, hasunknown), numchars, numundecodable


def _blocks(file, codec, skip, size):
    """The text in non-empty strs: decoded, `_MARK` for undecodable bytes, line ends as LF, without byte-order mark."""
    decoder = codecs.getincrementaldecoder(codec)(_ONUNDECODABLE)
    file.seek(skip)
    left, first, heldback = size - skip, skip == 0, ''
    while True:
        data = file.read(min(CHUNK, left))      # never beyond the size found at the start, so a growing file has an end too
        left -= len(data)
        text = decoder.decode(data, final=not data)
        if first and text:
            text, first = text.removeprefix('\ufeff'), False
        text, heldback = heldback + text, ''
        if text.endswith('\r') and data:        # its LF may come with the next chunk
            text, heldback = text[:-1], '\r'
        if '\r' in text:        # io.IncrementalNewlineDecoder does the same, but slowly on U+4E0D, a frequent Chinese character
            text = text.replace('\r\n', '\n').replace('\r', '\n')
        if text:
            yield text
        if not data:
            return


def _codec(head, encoding):
    """(codec, bytes to skip) for a file that begins with `head`, 4 bytes; a remaining mark decodes to U+FEFF."""
    for mark, codec in ((codecs.BOM_UTF32_LE, 'utf-32-le'), (codecs.BOM_UTF32_BE, 'utf-32-be'),    # UTF-32's LE mark
                        (codecs.BOM_UTF16_LE, 'utf-16-le'), (codecs.BOM_UTF16_BE, 'utf-16-be'),    # begins with UTF-16's
                        (codecs.BOM_UTF8, 'utf-8')):
        if head.startswith(mark) and encoding is None:
            return codec, len(mark)
    name = codecs.lookup(encoding or 'utf-8').name
    if name in ('utf-16', 'utf-32'):        # these have the mark decide; spelt out, so that it is dropped once and not twice
        big = head.startswith(codecs.BOM_UTF16_BE if name == 'utf-16' else codecs.BOM_UTF32_BE)
        return name + ('-be' if big else '-le'), 0
    if name.startswith(('utf-16', 'utf-32')):
        return name, 0
    # Encodings that can't spell U+FEFF, such as latin-1, would read UTF-8's mark as three stray characters.
    return ('utf-8' if name == 'utf-8-sig' else name), 3 * head.startswith(codecs.BOM_UTF8)


def _checkencoding(encoding):
    if not isinstance(encoding, (str, type(None))):
        raise TypeError(f"encoding must be a str or None, not {encoding!r}")
    try:
        ''.encode(encoding or 'utf-8')      # refuses what isn't a text encoding, such as base64
        codecs.getincrementaldecoder(encoding or 'utf-8')
    except (LookupError, ValueError):
        raise LookupError(f"unknown text encoding {encoding!r}: use one that Python knows, "
                          f"such as 'utf-8' or 'latin-1'") from None


def _opentext(path):
    """The regular file at `path`, opened for unbuffered reading, or an OSError in one sentence."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):      # asked before it is opened: opening a FIFO would wait for a writer
            return open(path, 'rb', buffering=0)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no text file {path!r}: check the path") from None
    except PermissionError:
        raise PermissionError(f"the text file {path!r} can't be read: change its permissions or copy it") from None
    except (OSError, ValueError) as error:
        raise OSError(f"the text file {path!r} can't be read ({_oneline(error)}): check the path") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path!r} is a directory: give the path of a text file")
    raise OSError(f"{path!r} is not a regular file but a device, pipe or socket: copy its text into a file")


def _checkoutfile(outfile, srcfile):
    """Refuse, before the text is read, an `outfile` that can't be written."""
    directory = os.path.dirname(outfile) or os.curdir
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"there is no directory {directory!r} for the encoded dataset: create it first")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"the directory {directory!r} is read-only: change its permissions or name another")
    if os.path.isdir(outfile):
        raise IsADirectoryError(f"{outfile!r} is a directory: give the path of a file for the encoded dataset")
    if os.path.exists(outfile) and os.path.samefile(outfile, srcfile):
        raise ValueError(f"{outfile!r} is the text itself: name another file for the encoded dataset")


@contextlib.contextmanager
def _replacing(path):
    """A new binary file that takes the place of `path` when the block ends, and vanishes when it raises."""
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:       # Ctrl-C too
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    with contextlib.suppress(OSError):      # the rename itself, where directories can be synchronised
        directory = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _fingerprint(file):
    """(size, time of change): differs when somebody wrote to the file."""
    facts = os.fstat(file.fileno())
    return facts.st_size, facts.st_mtime_ns


def _codepoints(text):
    """A str's code points, (len(text),) uint8, uint16 or uint32 (little-endian), lone surrogates included."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    utf16 = text.encode('utf-16-le', 'surrogatepass')       # a plain copy, where no character takes two units
    if len(utf16) == 2 * len(text):
        return np.frombuffer(utf16, '<u2')
    return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')


def _integer(name, value):
    """`value` as an int; TypeError for bools and for what isn't an integer."""
    if isinstance(value, (bool, np.bool_, np.ndarray)) or not hasattr(value, '__index__'):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    return operator.index(value)


def _positive(name, value):
    value = _integer(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _short(value):
    """`repr(value)`, cut to what a message bears."""
    text = repr(value[:40] if isinstance(value, (str, list)) else value)
    return text if len(text) <= 60 else text[:57] + '...'


def _oneline(error):
    """What an exception says, on one line and without its traceback-like tail."""
    return ' '.join((getattr(error, 'strerror', None) or str(error)).split())[:150] or type(error).__name__
