"""CharSet, DataSet and encodefile: DESIGN section 2, Charset to Batches."""
import math
import os
import pathlib
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import dataset
from dataset import CharSet, DataSet, encodefile
from errors import TextError, WorkDirError

characters = st.characters(blacklist_categories=['Cs'], blacklist_characters='\0\r\ufeff')
anytext = st.text(characters, min_size=1, max_size=60)


def encode(directory, source, seq_len=1, encoding=None):
    """(charset, dataset, numundecodable) of a file that holds `source`, bytes."""
    path = pathlib.Path(directory, 'source.txt')
    path.write_bytes(source)
    return encodefile(path, pathlib.Path(directory, 'codes.npy'), seq_len, encoding)


def textof(charset, data):
    return charset.decode(data.codes[:data.numchars])


def tinychunks(monkeypatch, size):
    monkeypatch.setattr(dataset, 'CHUNK', size)


def refused(directory, error, words, source, **kwargs):
    """Encoding `source` raises `error` in one line that holds `words`, and writes nothing."""
    with pytest.raises(error) as caught:
        encode(directory, source, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    for word in words:
        assert word in message
    assert os.listdir(directory) == ['source.txt']


# Charset

def test_unknown_is_index_0_and_the_others_follow_by_code_point(tmp_path):
    charset, data, _ = encode(tmp_path, 'ba\nc😀é'.encode())
    assert charset.chars == '\ufffd\nabcé😀'
    assert data.codes.tolist() == [3, 2, 1, 4, 6, 5, 3]
    assert len(charset) == 7 and charset.dtype == np.uint8


def test_unknown_characters_and_lone_surrogates_map_to_0():
    charset = CharSet('\ufffdab', [0, 1, 0])
    assert charset.encode('axb\ufffd\ud800\U0010ffff\xff').tolist() == [1, 0, 2, 0, 0, 0, 0]
    assert charset.encode('a~\x00b').tolist() == [1, 0, 0, 2]
    assert charset.encode('').shape == (0,)


@given(anytext, anytext)
def test_encode_agrees_with_a_dictionary_and_decode_brings_back_what_is_known(source, text):
    chars = '\ufffd' + ''.join(sorted(set(source) - {'\ufffd'}))
    charset = CharSet(chars, np.ones(len(chars), int), hasunknown=True)
    index = {char: i for i, char in enumerate(chars)}
    codes = charset.encode(text)
    assert codes.tolist() == [index.get(char, 0) for char in text] and codes.dtype == charset.dtype
    assert charset.decode(codes) == ''.join(char if char in index else '\ufffd' for char in text)
    assert charset.decode(charset.encode(source)) == source


@pytest.mark.parametrize('V, dtype', [(2, np.uint8), (256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_indices_have_the_smallest_unsigned_type_that_holds_them(V, dtype):
    points = [p for p in range(0x20000) if not 0xD800 <= p < 0xE000 and p != 0xFFFD][:V - 1]
    charset = CharSet('\ufffd' + ''.join(map(chr, points)), np.ones(V, int), True)
    assert charset.dtype == dtype and len(charset) == V
    codes = charset.encode('a' + chr(points[-1]))
    assert codes.dtype == dtype and codes[1] == V - 1


def test_encoded_arrays_belong_to_the_caller():
    codes = CharSet('\ufffdab', [0, 1, 0]).encode('ab')
    codes[0] = 0
    assert codes.tolist() == [0, 2]


def test_onehots_exist_on_demand():
    charset = CharSet('\ufffdab', [0, 1, 0])
    assert charset.onehot(2).tolist() == [0, 0, 1] and charset.onehot(np.int64(0)).dtype == np.float32
    onehots = charset.encodeonehots('b?a')
    assert onehots.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]] and onehots.dtype == np.float32
    assert charset.encodeonehots('').shape == (0, 3)


@pytest.mark.parametrize('call, error', [
    (lambda c: c.onehot(3), ValueError), (lambda c: c.onehot(-1), ValueError), (lambda c: c.onehot(True), TypeError),
    (lambda c: c.decode([3]), ValueError), (lambda c: c.decode([-1]), ValueError), (lambda c: c.decode([0.5]), TypeError),
    (lambda c: c.encode(b'ab'), TypeError), (lambda c: c.decode([[1]]), TypeError)])
def test_wrong_indices_and_types_are_refused(call, error):
    with pytest.raises(error):
        call(CharSet('\ufffdab', [0, 1, 0]))


def test_linestartprobs_count_the_first_character_and_each_one_after_a_line_feed(tmp_path):
    # lines begin with: a, b, the empty line's own feed, a; nothing follows the last feed
    charset, _, _ = encode(tmp_path, b'ab\nba\n\nab\n')
    assert charset.chars == '\ufffd\nab'
    assert charset.linestarts.tolist() == [0, 1, 2, 1]
    assert charset.linestartprobs().tolist() == [0, 0.25, 0.5, 0.25]


def test_without_line_ends_the_first_character_begins_every_sample(tmp_path):
    charset, _, _ = encode(tmp_path, b'bab')
    assert charset.linestartprobs().tolist() == [0, 0, 1]


def test_unknown_may_begin_lines_where_the_source_holds_it(tmp_path):
    charset, _, _ = encode(tmp_path, '\ufffda'.encode())
    assert charset.hasunknown and charset.linestartprobs().tolist() == [1, 0]


def test_hasunknown_tells_whether_the_source_holds_it(tmp_path):
    assert encode(tmp_path, b'plain')[0].hasunknown is False
    assert encode(tmp_path, 'a genuine \ufffd'.encode())[0].hasunknown is True
    assert encode(tmp_path, b'an undecodable \xff')[0].hasunknown is True


def test_facts_are_plain_and_give_the_charset_back(tmp_path):
    charset, _, _ = encode(tmp_path, 'één\n😀'.encode())
    facts = charset.facts()
    assert facts == {'chars': '\ufffd\nné😀', 'linestarts': [0, 0, 0, 1, 1], 'hasunknown': False}
    assert {type(value) for value in facts.values()} == {str, list, bool} and type(facts['linestarts'][0]) is int
    assert CharSet.fromfacts(facts) == charset
    assert CharSet.fromfacts(facts).encode('é').tolist() == [3]


def test_charsets_that_differ_are_unequal():
    assert CharSet('\ufffda', [0, 1]) == CharSet('\ufffda', [0, 1])
    for other in CharSet('\ufffdb', [0, 1]), CharSet('\ufffda', [0, 2]), CharSet('\ufffda', [0, 1], True), 'a':
        assert CharSet('\ufffda', [0, 1]) != other


@pytest.mark.parametrize('changed', [
    {'chars': 'ab'}, {'chars': ''}, {'chars': '\ufffdba'}, {'chars': '\ufffdaa'}, {'chars': '\ufffda\ufffd'}, {'chars': b'x'},
    {'chars': '\ufffda\ud800'}, {'linestarts': [0, 1]}, {'linestarts': [0, -1, 3]}, {'linestarts': [0, 0, 0]},
    {'linestarts': [0, True, 1]}, {'linestarts': [0, 1.5, 1]}, {'linestarts': 3}, {'linestarts': [1, 0, 0]},
    {'linestarts': [0, 2**70, 1]}, {'hasunknown': 0}, {'hasunknown': None}])
def test_damaged_facts_are_refused_in_one_sentence(changed):
    facts = {'chars': '\ufffdab', 'linestarts': [0, 1, 2], 'hasunknown': False}
    CharSet.fromfacts(facts)
    with pytest.raises(ValueError) as caught:
        CharSet.fromfacts({**facts, **changed})
    assert '\n' not in str(caught.value)


def test_facts_that_are_missing_or_no_dict_are_refused():
    for facts in {}, None, ['\ufffd'], {'chars': '\ufffda', 'linestarts': [0, 1]}:
        with pytest.raises(ValueError):
            CharSet.fromfacts(facts)


def test_repr_is_one_useful_line():
    line = repr(CharSet('\ufffd\nab', [0, 1, 0, 0]))
    assert '4 characters' in line and '\n' not in line


# Reading the source

@pytest.mark.parametrize('chunk', [1, 2, 3, 1000])
def test_crlf_and_lone_cr_become_lf_across_chunk_boundaries(tmp_path, monkeypatch, chunk):
    tinychunks(monkeypatch, chunk)
    charset, data, _ = encode(tmp_path, b'a\r\nb\rc\r\r\n\n\r\nd\r')
    assert textof(charset, data) == 'a\nb\nc\n\n\n\nd\n'


@pytest.mark.parametrize('chunk', [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32', 'utf-16-be'])
def test_any_script_survives_any_chunk_size(tmp_path, monkeypatch, chunk, encoding):
    tinychunks(monkeypatch, chunk)
    text = '不知道\nשלום עולם\nمرحبا\ne\u0301 नमस्ते\n😀👩\u200d🚀\nplain'
    mark = '\ufeff' if encoding == 'utf-16-be' else ''      # the others write theirs, or need none
    charset, data, numundecodable = encode(tmp_path, (mark + text).encode(encoding))
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
    saved, dataset.CHUNK = dataset.CHUNK, chunk
    try:
        with tempfile.TemporaryDirectory() as directory:
            charset, data, numundecodable = encode(directory, source, encoding=encoding)
            assert textof(charset, data) == expected
            assert numundecodable == expected.count('\ufffd') - genuine(source, encoding)
            starts = [char for i, char in enumerate(expected) if i == 0 or expected[i - 1] == '\n']
            assert charset.linestarts.tolist() == [starts.count(char) for char in charset.chars]
    finally:
        dataset.CHUNK = saved


def genuine(source, encoding):
    """How many U+FFFD the source spells out: those that stay when substitutions vanish."""
    return source.decode(encoding, 'ignore').count('\ufffd')


def test_genuine_replacement_characters_are_not_counted_as_undecodable(tmp_path):
    charset, data, numundecodable = encode(tmp_path, 'twenty good ones and \ufffd'.encode() + b'\xff\xe4\xb8')
    assert numundecodable == 2 and data.codes[-4:-1].tolist() == [0, 0, 0]


@pytest.mark.parametrize('encoding, source', [
    (None, b'\xef\xbb\xbfab'), (None, b'\xff\xfea\0b\0'), (None, b'\xfe\xff\0a\0b'), (None, b'\xff\xfe\0\0a\0\0\0b\0\0\0'),
    ('utf-8', b'\xef\xbb\xbfab'), ('utf-8-sig', b'\xef\xbb\xbfab'), ('latin-1', b'\xef\xbb\xbfab'), ('utf-16-le', b'\xff\xfea\0b\0'),
    ('utf-16', b'\xfe\xff\0a\0b'), ('utf-16', b'a\0b\0'), ('utf-32', b'\0\0\xfe\xff\0\0\0a\0\0\0b'), ('gb18030', b'\x84\x31\x95\x33ab')])
def test_a_byte_order_mark_is_dropped_and_says_the_encoding(tmp_path, monkeypatch, encoding, source):
    for chunk in 1, 1000:
        tinychunks(monkeypatch, chunk)
        charset, data, _ = encode(tmp_path, source, encoding=encoding)
        assert charset.chars == '\ufffdab' and data.numchars == 2


def test_only_one_mark_is_dropped(tmp_path):
    for encoding in None, 'utf-8', 'utf-8-sig':
        assert encode(tmp_path, '\ufeff\ufeffab'.encode(), encoding=encoding)[0].chars == '\ufffdab\ufeff'
    assert encode(tmp_path, '\ufeff\ufeffab'.encode('utf-16-le'), encoding='utf-16')[0].chars == '\ufffdab\ufeff'


def test_explicit_encoding_is_used(tmp_path):
    charset, data, numundecodable = encode(tmp_path, b'caf\xe9', encoding='latin-1')
    assert textof(charset, data) == 'café' and numundecodable == 0


def test_thousands_of_characters_take_two_bytes_each(tmp_path):
    text = ''.join(map(chr, range(0x4e00, 0x4e00 + 3000)))
    charset, data, _ = encode(tmp_path, text.encode(), seq_len=100)
    assert data.codes.dtype == np.uint16 and data.codes.tolist() == list(range(1, 3001)) + [1]
    assert len(charset) == 3001


def test_one_character_vocabulary_works(tmp_path):
    charset, data, _ = encode(tmp_path, b'a' * 10, seq_len=4)
    assert len(charset) == 2 and data.codes.tolist() == [1] * 13


def test_the_same_file_always_gives_the_same_indices(tmp_path):
    results = []
    for chunk in 1, 7, 1000:
        dataset.CHUNK, saved = chunk, dataset.CHUNK
        charset, data, _ = encode(tmp_path, 'zebra\nёж'.encode() * 5, seq_len=7)
        dataset.CHUNK = saved
        results.append((charset.facts(), data.codes.tolist()))
    assert results[0] == results[1] == results[2]


# Bad input

def test_binary_files_are_refused(tmp_path):
    refused(tmp_path, TextError, ['source.txt', 'NUL', 'binary'], b'some text\0and more')
    refused(tmp_path, TextError, ['source.txt', 'binary', 'undecodable'], b'12345678\xff')
    refused(tmp_path, TextError, ['source.txt', 'binary', 'undecodable'], b'\xff' * 1000)


def test_a_tenth_undecodable_is_still_a_text(tmp_path):
    assert encode(tmp_path, b'123456789\xff')[2] == 1


def test_empty_and_short_texts_are_refused(tmp_path):
    refused(tmp_path, TextError, ['source.txt', 'empty'], b'')
    refused(tmp_path, TextError, ['source.txt', 'empty'], b'\xef\xbb\xbf')
    refused(tmp_path, TextError, ['gives 57 characters, a sequence needs 100'], b'x' * 57, seq_len=100)
    refused(tmp_path, TextError, ['gives 2 characters'], 'éé'.encode(), seq_len=3)


def test_wrong_arguments_are_refused(tmp_path):
    refused(tmp_path, LookupError, ["'utf-9'"], b'text', encoding='utf-9')
    refused(tmp_path, LookupError, ["'base64'"], b'text', encoding='base64')
    refused(tmp_path, TypeError, ['encoding', '8'], b'text', encoding=8)
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


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_disk_as_it_was(tmp_path, monkeypatch, error):
    encode(tmp_path, b'old text')
    old = (tmp_path / 'codes.npy').read_bytes()

    def fail(file):
        raise error
    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(type(error)):
        encode(tmp_path, b'new text')
    assert sorted(os.listdir(tmp_path)) == ['codes.npy', 'source.txt'] and (tmp_path / 'codes.npy').read_bytes() == old


# Sequences and batches

def made(n, seq_len=3, short=0):
    """A dataset of n sequences whose text is 0, 1, 2, ..., its last sequence `short` characters short."""
    numchars = n * seq_len - short
    codes = np.array([i % numchars for i in range(n * seq_len + 1)], np.int32)
    return DataSet(codes, numchars, seq_len)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40))
def test_the_text_is_padded_from_its_beginning_and_the_last_target_comes_next(numchars, seq_len):
    text = ''.join(chr(ord('0') + i) for i in range(numchars))
    with tempfile.TemporaryDirectory() as directory:
        if numchars < seq_len:
            return refused(directory, TextError, [str(numchars), str(seq_len)], text.encode(), seq_len=seq_len)
        charset, data, _ = encode(directory, text.encode(), seq_len)
        assert data.numseqs == math.ceil(numchars / seq_len) and data.numchars == numchars
        assert charset.decode(data.codes) == (text + text)[:data.numseqs * seq_len + 1]


def test_a_batch_is_time_first_with_targets_shifted_by_one():
    x, y = made(4).batch(1, 2)      # sequences 1 and 3
    assert x.tolist() == [[3, 9], [4, 10], [5, 11]]
    assert y.tolist() == [[4, 10], [5, 11], [6, 0]]
    for array in x, y:
        assert array.dtype == np.int32 and array.flags.c_contiguous and array.flags.writeable
    assert not np.shares_memory(x, y)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2))
def test_nothing_is_read_twice_in_an_epoch_but_the_wrap_of_fewer_than_B_sequences(n, B, short):
    if B > n:
        return
    data = made(n, 3, short)
    steps = data.batchepoch(B)
    assert steps == math.ceil(n / B)
    read = [int(seq) for pos in range(steps) for seq in naivesequences(data, pos, B)]
    assert set(read) == set(range(n))
    assert len(read) - n == steps * B - n
    if steps * B - n < B:
        assert max(read.count(seq) for seq in read) <= 2


def naivesequences(data, pos, B):
    """Which sequences a batch holds, found by comparing its columns with the text, and checked to hold nothing else."""
    x, y = data.batch(pos, B)
    for i in range(B):
        column = x[:, i].tolist() + y[-1:, i].tolist()
        assert y[:-1, i].tolist() == x[1:, i].tolist()
        seq = column[0] // data.seq_len
        assert column == data.codes[seq * data.seq_len:(seq + 1) * data.seq_len + 1].tolist()
        assert seq == (i * data.batchepoch(B) + pos) % data.numseqs
        yield seq


@given(st.integers(1, 12), st.integers(1, 12))
def test_each_row_goes_on_where_the_row_before_stopped(B, steps):
    data = made(B * steps)
    last, first = data.batch(steps - 1, B)[1], data.batch(0, B)[0]
    assert last[-1, :-1].tolist() == first[0, 1:].tolist()
    assert last[-1, -1] == first[0, 0] == 0


def test_walking_an_epoch_row_by_row_gives_the_padded_text_back(tmp_path):
    text = ''.join(chr(0x3b1 + i % 24) for i in range(115))
    charset, data, _ = encode(tmp_path, text.encode(), seq_len=10)     # 12 sequences, 5 characters of padding
    rows = [''] * 4
    for pos in range(data.batchepoch(4)):
        x, _ = data.batch(pos, 4)
        rows = [row + charset.decode(column) for row, column in zip(rows, x.T)]
    assert ''.join(rows) == text + text[:5]


def test_too_large_a_batch_says_what_the_text_gives():
    with pytest.raises(ValueError) as caught:
        made(12).batchepoch(64)
    assert str(caught.value) == ('batchsize 64 needs at least 64 sequences, the text gives 12: '
                                 'use a smaller batchsize or seq_len')


def test_batch_arguments_are_checked():
    data = made(12)
    for batchsize in 0, -1:
        with pytest.raises(ValueError, match=str(batchsize)):
            data.batchepoch(batchsize)
    for batchsize in True, 4.0, '4', None, np.bool_(True), np.float32(4):
        with pytest.raises(TypeError, match='batchsize'):
            data.batchepoch(batchsize)
    assert data.batchepoch(np.int32(5)) == 3 and type(data.batchepoch(np.int32(5))) is int
    for pos in -1, 3:
        with pytest.raises(ValueError, match='pos'):
            data.batch(pos, 5)
    with pytest.raises(TypeError):
        data.batch(1.0, 5)


def test_a_dataset_whose_parts_do_not_fit_is_refused():
    codes = np.zeros(13, np.uint8)
    DataSet(codes, 11, 3)
    for wrong in ((codes, 13, 3), (codes, 9, 3), (codes.reshape(13, 1), 11, 3), (codes, 0, 3)):
        with pytest.raises(ValueError):
            DataSet(*wrong)
    for wrong in ((codes.astype(float), 11, 3), (codes.tolist(), 11, 3), (codes, 11, 3.0), (codes, True, 3)):
        with pytest.raises(TypeError):
            DataSet(*wrong)


# Loading

def test_a_loaded_dataset_is_memory_mapped_and_equal(tmp_path):
    charset, data, _ = encode(tmp_path, b'hello\nworld', seq_len=4)
    loaded = DataSet.load(tmp_path / 'codes.npy', 11, 4, len(charset))
    assert isinstance(loaded.codes, np.memmap) and isinstance(data.codes, np.memmap)
    assert loaded.codes.tolist() == data.codes.tolist() and not loaded.codes.flags.writeable
    assert (loaded.numchars, loaded.seq_len, loaded.numseqs) == (11, 4, 3)


def test_missing_damaged_and_foreign_files_are_refused_in_one_sentence(tmp_path):
    charset, _, _ = encode(tmp_path, b'hello\nworld', seq_len=4)
    path, V = tmp_path / 'codes.npy', len(charset)
    whole = path.read_bytes()
    np.savez(tmp_path / 'archive.npz', whole)
    objects = tmp_path / 'objects.npy'
    np.save(objects, np.array([None] * 13), allow_pickle=True)
    contents = [b'', b'rubbish', whole[:20], whole[:-1], whole.replace(b"'shape'", b"'shapo'"), whole.replace(b'(13,)', b'(13((')]
    contents += [(tmp_path / 'archive.npz').read_bytes(), objects.read_bytes(), b'PK\x03\x04 no archive']
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(WorkDirError) as caught:
            DataSet.load(path, 11, 4, V)
        assert '\n' not in str(caught.value) and 'codes.npy' in str(caught.value)
    path.write_bytes(whole)
    for numchars, seq_len, vocab in (13, 4, V), (11, 5, V), (11, 4, 300):
        with pytest.raises(WorkDirError, match="doesn't belong"):
            DataSet.load(path, numchars, seq_len, vocab)
    path.unlink()
    with pytest.raises(WorkDirError, match='missing'):
        DataSet.load(path, 11, 4, V)


def test_indices_beyond_the_charset_never_reach_a_batch(tmp_path):
    charset, _, _ = encode(tmp_path, b'hello\nworld', seq_len=4)
    path = tmp_path / 'codes.npy'
    path.write_bytes(path.read_bytes()[:-1] + b'\xc8')
    data = DataSet.load(path, 11, 4, len(charset))
    data.batch(0, 3 - 2)
    with pytest.raises(WorkDirError, match='index 200'):
        data.batch(2, 1)
