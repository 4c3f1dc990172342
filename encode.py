"""From a text file to its CharSet and DataSet: encodefile; readtext for the text itself.

For encodefile the text is never whole in memory: it is read twice in chunks (once for the charset, once to encode) and its indices are
written to a .npy file, which DataSet maps. No Theano here, and no Python loop over characters.
"""
import codecs
import io
import os
import pathlib
import stat
from typing import BinaryIO

import numpy as np

from dataset import UNKNOWN, UNKNOWNS, CharSet, DataSet, codepoints
from errors import TextError, checkint, reason
from storage import Staged

CHUNK = 1 << 19         # bytes read at a time: large enough for NumPy, small enough for the processor's cache
_POINTS = 0x110000      # number of Unicode code points

# What decoders put where bytes are undecodable. A lone surrogate, because decoding never gives one otherwise: so
# substitutions can be told from a U+FFFD that stands in the source. Both get index 0.
_MARK = '\udfff'
_ONUNDECODABLE = 'rn-gru-mark'
codecs.register_error(_ONUNDECODABLE, lambda error: (_MARK, error.end))      # type: ignore[attr-defined]


def encodefile(srcfile: str | os.PathLike, outfile: str | os.PathLike, seq_len: int = 100, encoding: str | None = None,
               morechars: str = '') -> tuple[CharSet, DataSet, int]:
    """Encode a text file into the .npy file `outfile` and give (charset, dataset, numundecodable).

    srcfile    path of the text, a regular file of at least `seq_len` characters
    outfile    path of the encoded dataset; appears whole, replacing what was there, or not at all
    seq_len    characters in a sequence
    encoding   a text encoding that Python knows; None: what a byte-order mark says, else UTF-8
    morechars  a str of characters, in any order, that the charset gets besides the text's own; nothing else changes by them

    A byte-order mark is dropped, CRLF and a lone CR become LF, undecodable bytes become U+FFFD: `numundecodable` of them,
    as many as Python's errors='replace' makes. The same file always gives the same indices.

    Raises, before anything is written: FileNotFoundError, IsADirectoryError, PermissionError or OSError for paths that
    can't be used, LookupError for an unknown encoding, TypeError or ValueError for a wrong seq_len or morechars, and TextError for a
    text that is empty, too short, binary (it holds NUL, or more than a tenth of it is undecodable), or changes meanwhile.

    Costs two passes over the file and some 20 MB of memory, whatever its size.
    """
    seq_len = checkint('seq_len', seq_len, 1)
    if not isinstance(morechars, str):
        raise TypeError(f"morechars must be a str, not {type(morechars).__name__}")
    srcfile, outfile = os.fsdecode(srcfile), os.fsdecode(outfile)
    _checkencoding(encoding)
    with _opentext(srcfile) as file:
        _checkoutfile(outfile, srcfile)
        before = _fingerprint(file)
        size = before[0]
        codec, skip = _codec(file.read(4), encoding)
        charset, numchars, numundecodable = _surveyed(_blocks(file, codec, skip, size), srcfile, size, encoding, morechars)
        changed = TextError(f"{srcfile} changed while it was being read: try again when nothing writes to it")
        if _fingerprint(file) != before:
            raise changed
        if numchars < seq_len:
            raise TextError(f"{srcfile} gives {numchars:,} character{'s' * (numchars != 1)}, a sequence needs {seq_len}: "
                            f"use a longer text or a smaller seq_len")
        length = -(-numchars // seq_len) * seq_len + 1
        with Staged(pathlib.Path(outfile)) as staged:
            out = staged.file
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
            staged.publish()
    return charset, DataSet.load(outfile, numchars, seq_len, len(charset)), numundecodable


def survey(srcfile: str | os.PathLike, encoding: str | None = None) -> tuple[CharSet, int, int]:
    """(charset, numchars, numundecodable) that `encodefile` would find in a text file: writes nothing, in half its time.

    Raises what encodefile raises for a path, an encoding, and a text that is empty or binary.
    """
    _checkencoding(encoding)
    srcfile = os.fsdecode(srcfile)
    with _opentext(srcfile) as file:
        size, (codec, skip) = _fingerprint(file)[0], _codec(file.read(4), encoding)
        return _surveyed(_blocks(file, codec, skip, size), srcfile, size, encoding)


def readtext(source: str | os.PathLike | BinaryIO, encoding: str | None = None) -> tuple[str, int]:
    """(text, numundecodable) of a whole text in memory, read as encodefile reads one: decoded, line ends as LF, without byte-order mark.

    source: path of a regular file, or a binary file open for reading, such as sys.stdin.buffer, which may be a pipe
    encoding: as encodefile's

    Raises what encodefile raises for a path, an encoding, and a text that is empty or binary.
    """
    _checkencoding(encoding)
    if isinstance(source, (str, bytes, os.PathLike)):
        name = os.fsdecode(source)
        with _opentext(name) as file:
            data = file.read()
    else:
        name, data = getattr(source, 'name', 'the file'), source.read()
    codec, skip = _codec(data[:4], encoding)
    numundecodable = _surveyed(_blocks(io.BytesIO(data), codec, skip, len(data)), name, len(data), encoding)[2]
    return ''.join(_blocks(io.BytesIO(data), codec, skip, len(data))).replace(_MARK, UNKNOWN), numundecodable


def _surveyed(blocks, name, size, encoding, morechars=''):
    """`_survey` of a text that is called `name`, or a TextError where it is in another encoding."""
    try:
        return _survey(blocks, name, size, morechars)
    except UnicodeError as error:       # the few codecs that don't know error handlers
        raise TextError(f"{name} can't be decoded as {encoding!r} ({reason(error)}): name another encoding") from error


def _survey(blocks, srcfile, size, morechars=''):
    """(charset, numchars, numundecodable) of a text given in blocks, or a TextError for one that can't be trained on."""
    seen = np.zeros(_POINTS, bool)
    linestarts = np.zeros(_POINTS, np.int64)
    numchars = numundecodable = 0
    seenascii, newline = b'', True
    for text in blocks:
        points = codepoints(text)
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
    hasunknown = seen[UNKNOWNS].any()
    seen[codepoints(morechars)] = True
    seen[UNKNOWNS] = False
    points = np.flatnonzero(seen)
    chars = UNKNOWN + points.astype('<u4').tobytes().decode('utf-32-le')
    counts = np.append(linestarts[UNKNOWNS].sum(), linestarts[points])
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


def checksource(srcfile: str | os.PathLike, encoding: str | None = None) -> None:
    """Refuse, without reading it, what can be no text: as `encodefile` does."""
    _checkencoding(encoding)
    _opentext(os.fsdecode(srcfile)).close()


def _checkencoding(encoding):
    if encoding == '' or not isinstance(encoding, (str, type(None))):
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
        raise OSError(f"the text file {path!r} can't be read ({reason(error)}): check the path") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path!r} is a directory: give the path of a text file")
    raise OSError(f"{path!r} is not a regular file but a device, pipe or socket: copy its text into a file")


def _checkoutfile(outfile, srcfile):
    """Refuse, before the text is read, an `outfile` that can't be written."""
    directory = os.path.dirname(outfile) or os.curdir
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"there is no directory {directory!r} for the encoded dataset: create it first")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(f"the directory {directory!r} can't be read and written: change its permissions or name another")
    if os.path.isdir(outfile or os.curdir):
        raise IsADirectoryError(f"{outfile!r} is a directory: give the path of a file for the encoded dataset")
    if os.path.exists(outfile) and os.path.samefile(outfile, srcfile):
        raise ValueError(f"{outfile!r} is the text itself: name another file for the encoded dataset")


def _fingerprint(file):
    """(size, time of change): differs when somebody wrote to the file."""
    facts = os.fstat(file.fileno())
    return facts.st_size, facts.st_mtime_ns
