"""encodefile: from a text file to charset and indices, DESIGN section 2, Charset and Sequences."""
import io
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import encode
import storage
from dataset import CharSet
from encode import encodefile, readtext, survey
from errors import TextError


def encoded(directory, source, seq_len=1, encoding=None, **options):
    """(charset, dataset, numundecodable) of a file that holds `source`, bytes."""
    path = pathlib.Path(directory, 'source.txt')
    path.write_bytes(source)
    return encodefile(path, pathlib.Path(directory, 'codes.npy'), seq_len, encoding, **options)


def textof(charset, data):
    return charset.decode(data.codes[:data.numchars])


def tinychunks(monkeypatch, size):
    monkeypatch.setattr(encode, 'CHUNK', size)


def refused(directory, error, words, source, **kwargs):
    """Encoding `source` raises `error` in one line that holds `words`, and writes nothing."""
    with pytest.raises(error) as caught:
        encoded(directory, source, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    for word in words:
        assert word in message
    assert os.listdir(directory) == ['source.txt']


# Charset and indices

def test_unknown_is_index_0_and_the_others_follow_by_code_point(tmp_path):
    charset, data, _ = encoded(tmp_path, 'ba\nc😀é'.encode())
    assert charset.chars == '\ufffd\nabcé😀'
    assert data.codes.tolist() == [3, 2, 1, 4, 6, 5, 3]
    assert len(charset) == 7 and charset.dtype == np.uint8


def test_more_characters_widen_the_charset_and_change_nothing_else(tmp_path, monkeypatch):
    source = 'ba\nc😀é'.encode()
    for morechars in '', 'abc', '\ufffd', '\ufffd\ud800', '😀\n':         # nothing that the text hasn't, or that is no character
        charset, data, _ = encoded(tmp_path, source, morechars=morechars)
        assert charset.chars == '\ufffd\nabcé😀' and charset.hasunknown is False and data.codes.tolist() == [3, 2, 1, 4, 6, 5, 3]
    passes, blocks = [], encode._blocks
    monkeypatch.setattr(encode, '_blocks', lambda *args: passes.append(args) or blocks(*args))
    charset, data, _ = encoded(tmp_path, source, morechars='zA\ufffdaß')
    assert charset.chars == '\ufffd\nAabczßé😀' and charset.hasunknown is False and len(passes) == 2
    assert data.codes.tolist() == [4, 3, 1, 5, 9, 8, 4] and textof(charset, data) == 'ba\nc😀é'
    assert charset.linestarts.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert encoded(tmp_path, b'a\xffbcdefghijk', morechars='z')[0].hasunknown is True
    charset, data, _ = encoded(tmp_path, b'ab', morechars=''.join(map(chr, range(0x4e00, 0x4e00 + 300))))
    assert data.codes.dtype == charset.dtype == np.uint16 and data.codes.tolist() == [1, 2, 1]


def test_linestartprobs_count_the_first_character_and_each_one_after_a_line_feed(tmp_path):
    # lines begin with: a, b, the empty line's own feed, a; nothing follows the last feed
    charset, _, _ = encoded(tmp_path, b'ab\nba\n\nab\n')
    assert charset.chars == '\ufffd\nab'
    assert charset.linestarts.tolist() == [0, 1, 2, 1]
    assert charset.linestartprobs().tolist() == [0, 0.25, 0.5, 0.25]
    assert encoded(tmp_path, b'bab')[0].linestartprobs().tolist() == [0, 0, 1]      # no line ends: the first character


def test_hasunknown_tells_whether_the_source_holds_it(tmp_path):
    assert encoded(tmp_path, b'plain')[0].hasunknown is False
    assert encoded(tmp_path, 'a genuine \ufffd'.encode())[0].hasunknown is True
    assert encoded(tmp_path, '\ufffda'.encode())[0].linestartprobs().tolist() == [1, 0]
    assert encoded(tmp_path, b'an undecodable \xff')[0].hasunknown is True


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40))
def test_the_text_is_padded_from_its_beginning_and_the_last_target_comes_next(numchars, seq_len):
    text = ''.join(chr(ord('0') + i) for i in range(numchars))
    with tempfile.TemporaryDirectory() as directory:
        if numchars < seq_len:
            return refused(directory, TextError, [str(numchars), str(seq_len)], text.encode(), seq_len=seq_len)
        charset, data, _ = encoded(directory, text.encode(), seq_len)
        assert data.numseqs == math.ceil(numchars / seq_len) and data.numchars == numchars
        assert charset.decode(data.codes) == (text + text)[:data.numseqs * seq_len + 1]


def test_walking_an_epoch_row_by_row_gives_the_padded_text_back(tmp_path):
    text = ''.join(chr(0x3b1 + i % 24) for i in range(115))
    charset, data, _ = encoded(tmp_path, text.encode(), seq_len=10)     # 12 sequences, 5 characters of padding
    rows = [''] * 4
    for pos in range(data.batchepoch(4)):
        x, _ = data.batch(pos, 4)
        rows = [row + charset.decode(column) for row, column in zip(rows, x.T)]
    assert ''.join(rows) == text + text[:5]


# Reading the source

@pytest.mark.parametrize('chunk', [1, 2, 3, 1000])
def test_crlf_and_lone_cr_become_lf_across_chunk_boundaries(tmp_path, monkeypatch, chunk):
    tinychunks(monkeypatch, chunk)
    charset, data, _ = encoded(tmp_path, b'a\r\nb\rc\r\r\n\n\r\nd\r')
    assert textof(charset, data) == 'a\nb\nc\n\n\n\nd\n'


@pytest.mark.parametrize('chunk', [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'utf-16-be'])
def test_any_script_survives_any_chunk_size(tmp_path, monkeypatch, chunk, encoding):
    tinychunks(monkeypatch, chunk)
    text = '不知道\nשלום עולם\nمرحبا\ne\u0301 नमस्ते\n😀👩\u200d🚀\nplain'
    mark = '\ufeff' if encoding == 'utf-16-be' else ''      # the others write theirs, or need none
    charset, data, numundecodable = encoded(tmp_path, (mark + text).encode(encoding))
    assert textof(charset, data) == text and numundecodable == 0
    assert charset.chars == '\ufffd' + ''.join(sorted(set(text)))


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=40).map(lambda b: b.replace(b'\0', b'')), st.integers(1, 7),
       st.sampled_from(['utf-8', 'ascii', 'utf-16-le', 'gb18030', 'shift_jis', 'cp1252']))
def test_undecodable_bytes_become_what_errors_replace_makes_of_them(noise, chunk, encoding):
    source = noise + ('x' * 400).encode(encoding)
    text = source.decode(encoding, 'replace')
    if source.startswith((b'\xef\xbb\xbf', b'\xff\xfe', b'\xfe\xff')) or '\0' in text or text[0] == '\ufeff':
        return
    expected = text.replace('\r\n', '\n').replace('\r', '\n')
    saved, encode.CHUNK = encode.CHUNK, chunk
    try:
        with tempfile.TemporaryDirectory() as directory:
            charset, data, numundecodable = encoded(directory, source, encoding=encoding)
            assert textof(charset, data) == expected
            assert numundecodable == expected.count('\ufffd') - genuine(source, encoding)
            starts = [char for i, char in enumerate(expected) if i == 0 or expected[i - 1] == '\n']
            assert charset.linestarts.tolist() == [starts.count(char) for char in charset.chars]
    finally:
        encode.CHUNK = saved


def genuine(source, encoding):
    """How many U+FFFD the source spells out: those that stay when substitutions vanish."""
    return source.decode(encoding, 'ignore').count('\ufffd')


def test_genuine_replacement_characters_are_not_counted_as_undecodable(tmp_path):
    charset, data, numundecodable = encoded(tmp_path, 'twenty good ones and \ufffd'.encode() + b'\xff\xe4\xb8')
    assert numundecodable == 2 and data.codes[-4:-1].tolist() == [0, 0, 0]


@pytest.mark.parametrize('encoding, source', [
    (None, b'\xef\xbb\xbfab'), (None, b'\xff\xfea\0b\0'), (None, b'\xfe\xff\0a\0b'), (None, b'\xff\xfe\0\0a\0\0\0b\0\0\0'),
    ('utf-8', b'\xef\xbb\xbfab'), ('utf-8-sig', b'\xef\xbb\xbfab'), ('latin-1', b'\xef\xbb\xbfab'), ('utf-16-le', b'\xff\xfea\0b\0'),
    ('utf-16', b'\xfe\xff\0a\0b'), ('utf-16', b'a\0b\0'), ('utf-32', b'\0\0\xfe\xff\0\0\0a\0\0\0b'), ('gb18030', b'\x84\x31\x95\x33ab')])
def test_a_byte_order_mark_is_dropped_and_says_the_encoding(tmp_path, monkeypatch, encoding, source):
    for chunk in 1, 1000:
        tinychunks(monkeypatch, chunk)
        charset, data, _ = encoded(tmp_path, source, encoding=encoding)
        assert charset.chars == '\ufffdab' and data.numchars == 2


def test_only_one_mark_is_dropped(tmp_path):
    for encoding in None, 'utf-8', 'utf-8-sig':
        assert encoded(tmp_path, '\ufeff\ufeffab'.encode(), encoding=encoding)[0].chars == '\ufffdab\ufeff'
    assert encoded(tmp_path, '\ufeff\ufeffab'.encode('utf-16-le'), encoding='utf-16')[0].chars == '\ufffdab\ufeff'


def test_an_encoding_that_is_named_holds_against_another_encodings_mark(tmp_path):
    charset, data, _ = encoded(tmp_path, b'\xff\xfeab', encoding='latin-1')        # UTF-16's mark
    assert textof(charset, data) == '\xff\xfeab'
    charset, data, numundecodable = encoded(tmp_path, b'\xfe\xff' + b'ab' * 10, encoding='utf-8')
    assert textof(charset, data) == '\ufffd\ufffd' + 'ab' * 10 and numundecodable == 2


def test_thousands_of_characters_take_two_bytes_each(tmp_path):
    text = ''.join(map(chr, range(0x4e00, 0x4e00 + 3000)))
    charset, data, _ = encoded(tmp_path, text.encode(), seq_len=100)
    assert data.codes.dtype == np.uint16 and data.codes.tolist() == list(range(1, 3001)) + [1]
    assert len(charset) == 3001


# Bad input

def test_binary_files_are_refused(tmp_path):
    refused(tmp_path, TextError, ['source.txt', 'NUL', 'binary'], b'some text\0and more')
    refused(tmp_path, TextError, ['source.txt', 'binary', 'undecodable'], b'12345678\xff')
    refused(tmp_path, TextError, ['source.txt', 'binary', 'undecodable'], b'\xff' * 1000)


def test_a_binary_file_is_given_up_when_a_tenth_of_its_size_is_undecodable(tmp_path, monkeypatch):
    tinychunks(monkeypatch, 60)
    refused(tmp_path, TextError, ['120 of its first 120 characters are undecodable'], b'\xff' * 1000)         # 60 are no tenth yet


def test_a_tenth_undecodable_is_still_a_text(tmp_path):
    assert encoded(tmp_path, b'123456789\xff')[2] == 1


def test_empty_and_short_texts_are_refused(tmp_path):
    refused(tmp_path, TextError, ['source.txt', 'empty'], b'')
    refused(tmp_path, TextError, ['source.txt', 'empty'], b'\xef\xbb\xbf')
    refused(tmp_path, TextError, ['gives 57 characters, a sequence needs 100'], b'x' * 57, seq_len=100)
    refused(tmp_path, TextError, ['gives 2 characters,'], 'éé'.encode(), seq_len=3)
    refused(tmp_path, TextError, ['gives 1 character,'], b'a', seq_len=3)


def test_wrong_arguments_are_refused(tmp_path):
    refused(tmp_path, LookupError, ["'utf-9'"], b'text', encoding='utf-9')
    refused(tmp_path, LookupError, ["'base64'"], b'text', encoding='base64')
    refused(tmp_path, TypeError, ['encoding', '8'], b'text', encoding=8)
    refused(tmp_path, TypeError, ['morechars', 'list'], b'text', morechars=['a'])
    refused(tmp_path, TextError, ['idna'], b'te\xff' * 9, encoding='idna')
    for seq_len in 0, -3:
        refused(tmp_path, ValueError, ['seq_len', str(seq_len)], b'text', seq_len=seq_len)
    for seq_len in True, 2.0, '2', None:
        refused(tmp_path, TypeError, ['seq_len', repr(seq_len)], b'text', seq_len=seq_len)


def test_paths_that_are_no_readable_files_are_refused_and_never_hang(tmp_path):
    out = tmp_path / 'codes.npy'
    with pytest.raises(FileNotFoundError, match='missing.txt'):
        encodefile(tmp_path / 'missing.txt', out)
    with pytest.raises(IsADirectoryError, match='is a directory'):
        encodefile(tmp_path, out)
    os.mkfifo(tmp_path / 'fifo')
    with pytest.raises(OSError, match='not a regular file'):
        encodefile(tmp_path / 'fifo', out)
    with pytest.raises(OSError, match='not a regular file'):
        encodefile('/dev/zero', out)
    with pytest.raises(OSError, match='check the path'):
        encodefile('nul\0inside', out)
    assert not out.exists()


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / 'source.txt'
    path.write_bytes(b'text')
    path.chmod(0)
    if os.access(path, os.R_OK):        # root reads everything

        def denied(*args, **kwargs):
            raise PermissionError(13, 'Permission denied')
        monkeypatch.setattr('builtins.open', denied)
    with pytest.raises(PermissionError, match="source.txt' can't be read"):
        encodefile(path, tmp_path / 'codes.npy', 1)


def test_output_paths_that_cannot_be_written_are_refused(tmp_path):
    source = tmp_path / 'source.txt'
    source.write_bytes(b'text')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        encodefile(source, tmp_path / 'nowhere' / 'codes.npy', 1)
    with pytest.raises(IsADirectoryError):
        encodefile(source, tmp_path, 1)
    with pytest.raises(ValueError, match='the text itself'):
        encodefile(source, source, 1)
    with pytest.raises(ValueError, match='the text itself'):
        encodefile(source, tmp_path / '..' / tmp_path.name / 'source.txt', 1)
    assert os.listdir(tmp_path) == ['source.txt'] and source.read_bytes() == b'text'


@pytest.mark.parametrize('change', [b'text and more', b'tex', b'TEXT'])
def test_a_file_that_changes_between_the_passes_is_refused(tmp_path, monkeypatch, change):
    encodetext = CharSet.encode

    def encodeandchange(self, text):
        (tmp_path / 'source.txt').write_bytes(change)
        os.utime(tmp_path / 'source.txt', ns=(1, 1))        # a clock tick's resolution apart
        return encodetext(self, text)
    monkeypatch.setattr(CharSet, 'encode', encodeandchange)
    refused(tmp_path, TextError, ['source.txt', 'changed'], b'text')


def test_a_file_that_changes_in_the_first_pass_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def changed(*args):
        os.utime(tmp_path / 'source.txt', ns=(1, 1))
        return CharSet(*args)
    monkeypatch.setattr(encode, 'CharSet', changed)
    monkeypatch.setattr(encode, 'Staged', None)
    refused(tmp_path, TextError, ['source.txt', 'changed'], b'text')


def test_a_file_that_grows_as_fast_as_it_is_read_has_an_end(tmp_path, monkeypatch):
    tinychunks(monkeypatch, 4)
    encodetext, calls = CharSet.encode, []

    def encodeandgrow(self, text):
        calls.append(text)
        assert len(calls) < 10
        with open(tmp_path / 'source.txt', 'ab') as file:
            file.write(b'more')
        return encodetext(self, text)
    monkeypatch.setattr(CharSet, 'encode', encodeandgrow)
    refused(tmp_path, TextError, ['source.txt', 'changed'], b'text and more')
    assert ''.join(calls) == 'text and more'


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_disk_as_it_was(tmp_path, monkeypatch, error):
    encoded(tmp_path, b'old text')
    old = (tmp_path / 'codes.npy').read_bytes()

    def fail(file):
        raise error
    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(type(error)):
        encoded(tmp_path, b'new text')
    assert sorted(os.listdir(tmp_path)) == ['codes.npy', 'source.txt'] and (tmp_path / 'codes.npy').read_bytes() == old


def test_what_a_killed_process_left_half_encoded_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    (tmp_path / f'.codes.npy.{storage._HOST}-{dead.pid}-00000000.tmp').write_bytes(b'half')
    encoded(tmp_path, b'text')
    assert sorted(os.listdir(tmp_path)) == ['codes.npy', 'source.txt']


@pytest.mark.parametrize('size', [1, 3, 1 << 19])
@pytest.mark.parametrize('source, encoding, text, numundecodable', [
    (b'\xef\xbb\xbfone\r\ntwo\rthree\n', None, 'one\ntwo\nthree\n', 0),
    ('h\xe9\r\n\u4e0d'.encode('utf-16'), None, 'h\xe9\n\u4e0d', 0),
    (b'h\xe9', 'latin-1', 'h\xe9', 0),
    (b'twenty characters \xff and more', None, 'twenty characters \ufffd and more', 1),
    ('\ufffd stays'.encode(), None, '\ufffd stays', 0)])
def test_readtext_gives_the_text_itself_and_survey_its_size_and_characters(tmp_path, monkeypatch, size, source, encoding, text,
                                                                           numundecodable):
    tinychunks(monkeypatch, size)
    (tmp_path / 'text').write_bytes(source)
    assert readtext(tmp_path / 'text', encoding) == (text, numundecodable)
    reader, writer = os.pipe()
    with open(writer, 'wb') as file:
        file.write(source)
    with open(reader, 'rb') as file:
        assert readtext(file, encoding) == (text, numundecodable)
    charset, *counts = survey(tmp_path / 'text', encoding)
    assert counts == [len(text), numundecodable] and charset.chars == '\ufffd' + ''.join(sorted(set(text) - {'\ufffd'}))


@pytest.mark.parametrize('source, encoding, error, words', [
    (b'', None, TextError, 'empty'), (b'a\0b', None, TextError, 'NUL'),
    (b'\xff' * 20, None, TextError, 'binary file or in another encoding'),
    (b'text', 'martian', LookupError, 'martian')])
def test_readtext_and_survey_refuse_what_encodefile_refuses(tmp_path, source, encoding, error, words):
    (tmp_path / 'text').write_bytes(source)
    for file in tmp_path / 'text', io.BytesIO(source):
        with pytest.raises(error, match=words):
            readtext(file, encoding)
    with pytest.raises(error, match=words):
        survey(tmp_path / 'text', encoding)
    for function in readtext, survey:
        with pytest.raises(IsADirectoryError):
            function(tmp_path)
