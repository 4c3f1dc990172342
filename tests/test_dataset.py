"""CharSet and DataSet: DESIGN section 2, Charset to Batches."""
import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from conftest import naive_logits, naive_nll
from dataset import CharSet, DataSet, HeldOut, trainchars
from errors import WorkDirError
from layers import GRUEncode

characters = st.characters(blacklist_categories=['Cs'], blacklist_characters='\0\r\ufeff')
anytext = st.text(characters, min_size=1, max_size=60)


# Charset

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


@pytest.mark.parametrize('V', [200, 3000, 70_000])
def test_ascii_text_has_its_indices_in_a_charset_of_any_size(V):
    ascii_ = ''.join(map(chr, range(1, 128)))
    charset = CharSet('\ufffd' + ascii_ + ''.join(chr(0x10000 + i) for i in range(V - 128)), np.ones(V, int), True)
    codes = charset.encode('\0' + ascii_ + 'a')
    assert codes.dtype == charset.dtype and codes.tolist() == [*range(128), ord('a')]       # all of ASCII: code point = index
    codes[0] = 1                                                                            # the caller's own


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


def test_facts_are_plain_and_give_the_charset_back():
    charset = CharSet('\ufffd\né😀', np.array([0, 0, 1, 1]))
    facts = charset.facts()
    assert facts == {'chars': '\ufffd\né😀', 'linestarts': [0, 0, 1, 1], 'hasunknown': False}
    assert {type(value) for value in facts.values()} == {str, list, bool} and type(facts['linestarts'][0]) is int
    assert CharSet.fromfacts(facts) == charset
    assert CharSet.fromfacts(facts).encode('é').tolist() == [2]


def test_charsets_that_differ_are_unequal():
    assert CharSet('\ufffda', [0, 1]) == CharSet('\ufffda', [0, 1])
    for other in CharSet('\ufffdb', [0, 1]), CharSet('\ufffda', [0, 2]), CharSet('\ufffda', [0, 1], True), 'a':
        assert CharSet('\ufffda', [0, 1]) != other


@pytest.mark.parametrize('changed', [
    {'chars': 'ab'}, {'chars': ''}, {'chars': '\ufffdba'}, {'chars': '\ufffdaa'}, {'chars': '\ufffda\ufffd'}, {'chars': b'x'},
    {'chars': '\ufffda\ud800'}, {'linestarts': [0, 1]}, {'linestarts': [0, -1, 3]}, {'linestarts': [0, 0, 0]},
    {'linestarts': [0, True, 1]}, {'linestarts': [0, 1.5, 1]}, {'linestarts': 3}, {'linestarts': [1, 0, 0]},
    {'linestarts': [0, 2**63, 1]}, {'linestarts': [0, 2**70, 1]}, {'hasunknown': 0}, {'hasunknown': None}])
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


# Sequences and batches

def made(n, seq_len=3, short=0):
    """A dataset of n sequences whose text is 0, 1, 2, ..., its last sequence `short` characters short."""
    numchars = n * seq_len - short
    codes = np.array([i % numchars for i in range(n * seq_len + 1)], np.int32)
    return DataSet(codes, numchars, seq_len)


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


# Held-out split

@given(st.integers(1, 9), st.integers(2, 120), st.fractions(0, 1), st.integers(1, 5))
def test_the_training_part_reads_as_a_dataset_of_that_text_alone(T, numchars, share, B):
    text = np.random.default_rng(numchars).integers(0, 9, numchars)
    valid_frac = min(float(share), 0.99)
    n = -(-numchars // T)
    whole = DataSet(np.array([text[i % numchars] for i in range(n * T + 1)], np.uint8), numchars, T, 9)
    try:
        data, heldout = whole.split(valid_frac)
    except ValueError as error:
        assert '\n' not in str(error) and ('less than one sequence' in str(error) or 'at least 2' in str(error))
        return
    if valid_frac == 0:
        assert data is whole and heldout is None
        return
    part, rest = text[:data.numchars], text[data.numchars:]
    left = (1 - valid_frac) * numchars
    assert data.numchars % T == 0 and left - T - 1e-9 < data.numchars <= left + 1e-9
    assert heldout.codes.tolist() == rest.tolist() and heldout.numchars == len(rest) >= 2
    alone = DataSet(np.array([*part, part[0]], np.uint8), len(part), T, 9)
    if B <= alone.numseqs:
        assert data.batchepoch(B) == alone.batchepoch(B)
        for pos in range(alone.batchepoch(B)):
            for one, other in zip(data.batch(pos, B), alone.batch(pos, B)):
                assert one.tolist() == other.tolist() and one.dtype == other.dtype


def test_the_last_target_of_the_training_part_is_the_texts_first_character():
    data, heldout = made(10, 3, 1).split(0.25)          # of 29 characters 21.75, so 21, are left: 7 sequences
    x, y = data.batch(0, 7)
    assert (data.numchars, data.numseqs, heldout.numchars) == (21, 7, 8)
    assert x[:, 6].tolist() == [18, 19, 20] and y[:, 6].tolist() == [19, 20, 0] and y[-1].tolist() == [3, 6, 9, 12, 15, 18, 0]
    assert heldout.codes.tolist() == [21, 22, 23, 24, 25, 26, 27, 28]        # and not the padding


@pytest.mark.parametrize('numchars, seq_len, valid_frac, length', [
    (1000, 100, 0.9, 100), (1000, 100, 0.1, 900), (1000, 7, 0.3, 700), (1000, 100, 0, 1000), (1050, 100, 0, 1050), (10, 1, 1e-9, None),
    (10, 3, 1e-9, None), (11, 3, 1e-9, 9), (99, 100, 0.01, None), (1000, 100, 0.91, None), (10**12, 100, 0.1, 9 * 10**11)])
def test_the_training_part_is_the_share_as_written_rounded_down_to_whole_sequences(numchars, seq_len, valid_frac, length):
    if length is None:
        with pytest.raises(ValueError, match=f'valid_frac .* {numchars} characters'):
            trainchars(numchars, seq_len, valid_frac)
    else:
        assert trainchars(numchars, seq_len, valid_frac) == length


def test_impossible_splits_are_refused_with_their_values():
    with pytest.raises(ValueError) as caught:
        made(10, 3).split(0.95)
    assert str(caught.value) == ("valid_frac 0.95 leaves 1 of the text's 30 characters to train on, less than one sequence of 3: "
                                 "use a smaller valid_frac or seq_len")
    with pytest.raises(ValueError) as caught:
        made(30, 1).split(0.03)
    assert str(caught.value) == ("valid_frac 0.03 holds out 1 of the text's 30 characters, and a validation needs at least 2: "
                                 "use a larger valid_frac, or 0 for none")
    for wrong, error in (1, ValueError), (-0.1, ValueError), (math.nan, ValueError), ('0.1', TypeError), (True, TypeError):
        with pytest.raises(error, match='valid_frac'):
            made(10).split(wrong)


def test_a_split_copies_nothing_and_stays_mapped(path):
    data = DataSet.load(path, 11, 4, 9)
    for part in data.split(0.3):
        assert np.shares_memory(part.codes, data.codes) and isinstance(part.codes, np.memmap)


class Recorder:
    """Stands for a network: its state is the number of characters that a row has read, its loss what it was told for each target."""

    def __init__(self, losses):
        self.losses, self.read = losses, []

    def __call__(self, x, y, state):
        assert x.shape == y.shape and x.dtype == y.dtype == np.int32 and x.flags.c_contiguous and y.flags.c_contiguous
        assert [s.shape for s in state] == [(x.shape[1], 2)] * 3 and all(s.flags.c_contiguous and s.dtype == np.float32 for s in state)
        for row in range(x.shape[1]):
            for t in range(x.shape[0]):
                self.read.append((int(x[t, row]), int(y[t, row]), int(state[0][row, 0]) + t))
        return float(np.mean(self.losses[y])), [s + np.float32(len(x)) for s in state]


@given(st.integers(2, 90), st.integers(1, 7), st.integers(1, 12))
def test_every_held_out_character_but_the_first_is_predicted_once_from_those_before_it(M, T, B):
    heldout = HeldOut(np.arange(M), T, M)
    losses = np.random.default_rng(M).random(M)
    fake = Recorder(losses)
    means = list(heldout.losses(fake, B, 3, 2))
    assert sorted(target for _, target, _ in fake.read) == list(range(1, M)) and all(y == x + 1 for x, y, _ in fake.read)
    rows = heldout.rows(B)
    assert rows == B if (M - 1) // T >= B else rows == max((M - 1) // T, 1)
    length = (M - 1) // rows
    for x, _, before in fake.read:          # each row begins at zero and goes on, the last one to the end
        assert before == x - min(x // length, rows - 1) * length
    assert means[-1] == pytest.approx(losses[1:].mean(), rel=1e-12) and len(means) == heldout.numsteps(B)
    shapes = [x.shape for x, _ in heldout.batches(B)]
    assert all(t <= T for t, _ in shapes) and sum(t * b for t, b in shapes) == M - 1 and {b for _, b in shapes} <= {rows, 1}


def test_what_is_left_over_goes_on_from_the_last_rows_state():
    batches = [(x.tolist(), y.tolist()) for x, y in HeldOut(np.arange(12), 2).batches(3)]      # 11 predictions: 3 rows of 3, and 2
    assert batches == [([[0, 3, 6], [1, 4, 7]], [[1, 4, 7], [2, 5, 8]]), ([[2, 5, 8]], [[3, 6, 9]]), ([[9], [10]], [[10], [11]])]


def test_the_mean_so_far_follows_each_batch():
    means = list(HeldOut(np.arange(6), 2).losses(Recorder(np.array([9., 1, 2, 3, 4, 10])), 1, 3, 2))
    assert means == [1.5, 2.5, 4]


@pytest.mark.parametrize('B', [1, 3])
def test_a_networks_held_out_loss_is_that_of_the_naive_network(B):
    codes = np.random.default_rng(5).integers(0, 6, 42)
    model = GRUEncode(6, 2, 4, 3)
    got = list(HeldOut(codes.astype(np.uint8), 4, 6).losses(model.evaluate, B, 2, 4))[-1]
    params, total = model.get_params(), 0.0
    for start, end in {1: [(0, 41)], 3: [(0, 13), (13, 26), (26, 41)]}[B]:        # 41 predictions; the last row makes the two left over
        x, y = codes[start:end, None], codes[start + 1:end + 1, None]
        total += naive_nll(naive_logits(params, x, np.zeros((2, 1, 4)))[0], y) * (end - start)
    assert got == pytest.approx(total / 41, rel=1e-5)


def test_held_out_arguments_are_checked():
    for wrong in (np.zeros(1, int), 3), (np.zeros((2, 2), int), 3), (np.zeros(4, int), 0):
        with pytest.raises(ValueError):
            HeldOut(*wrong)
    for wrong in (np.zeros(4), 3), ([1, 2], 3), (np.zeros(4, int), 3.0):
        with pytest.raises(TypeError):
            HeldOut(*wrong)
    heldout = HeldOut(np.array([1, 2, 200], np.uint8), 3, 9)
    with pytest.raises(ValueError, match='batchsize'):
        heldout.rows(0)
    with pytest.raises(WorkDirError, match='index 200'):
        list(heldout.batches(1))


# Loading

@pytest.fixture
def path(tmp_path):
    """A file of 11 characters in sequences of 4, for a charset of 9."""
    np.save(tmp_path / 'codes.npy', np.array(CODES, np.uint8))
    return tmp_path / 'codes.npy'


CODES = [4, 3, 5, 5, 6, 1, 8, 6, 7, 5, 2, 4, 3]


def test_a_loaded_dataset_is_memory_mapped_and_equal(path):
    data = DataSet.load(path, 11, 4, 9)
    assert isinstance(data.codes, np.memmap) and not data.codes.flags.writeable and data.codes.tolist() == CODES
    assert (data.numchars, data.seq_len, data.numseqs) == (11, 4, 3)


def test_missing_damaged_and_foreign_files_are_refused_in_one_sentence(path, tmp_path):
    whole = path.read_bytes()
    np.savez(tmp_path / 'archive.npz', whole)
    objects = tmp_path / 'objects.npy'
    np.save(objects, np.array([None] * 13), allow_pickle=True)
    contents = [b'', b'rubbish', whole[:20], whole[:-1], whole.replace(b"'shape'", b"'shapo'"), whole.replace(b'(13,)', b'(13((')]
    contents += [(tmp_path / 'archive.npz').read_bytes(), objects.read_bytes(), b'PK\x03\x04 no archive']
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(WorkDirError) as caught:
            DataSet.load(path, 11, 4, 9)
        assert '\n' not in str(caught.value) and 'codes.npy' in str(caught.value)
    path.write_bytes(whole)
    for numchars, seq_len, vocab in (13, 4, 9), (11, 5, 9), (11, 4, 300):
        with pytest.raises(WorkDirError, match="doesn't belong"):
            DataSet.load(path, numchars, seq_len, vocab)
    path.unlink()
    with pytest.raises(WorkDirError, match='missing'):
        DataSet.load(path, 11, 4, 9)


def test_indices_beyond_the_charset_never_reach_a_batch(path):
    path.write_bytes(path.read_bytes()[:-1] + b'\xc8')
    data = DataSet.load(path, 11, 4, 9)
    data.batch(0, 1)
    with pytest.raises(WorkDirError, match='index 200'):
        data.batch(2, 1)


@pytest.mark.parametrize('codes', [np.array([0, 1, -1, 2, 0], np.int16), np.array([0, 1, 2**32 - 1, 2, 0], np.uint32),
                                   np.array([0, 1, 2**31, 2, 0], np.uint32)], ids=str)
def test_indices_that_int32_would_make_negative_are_damage(codes):
    with pytest.raises(WorkDirError, match='damaged'):
        DataSet(codes, 4, 4, 70000).batch(0, 1)


def test_a_dataset_with_another_checksum_than_told_is_refused(path):
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    assert DataSet.load(path, 11, 4, 9, checksum).codes.tolist() == CODES
    path.write_bytes(path.read_bytes()[:-1] + b'\x07')
    DataSet.load(path, 11, 4, 9)                        # 7 is an index too
    with pytest.raises(WorkDirError, match='codes.npy is damaged .*checksum'):
        DataSet.load(path, 11, 4, 9, checksum)


def test_a_file_that_is_cut_short_while_it_is_mapped_is_refused_and_does_not_end_the_process(tmp_path):
    path = tmp_path / 'codes.npy'
    codes = np.arange(3 * 4096 + 1) % 9
    np.save(path, codes.astype(np.uint8))
    whole = path.read_bytes()
    data, heldout = DataSet.load(path, 3 * 4096, 4096, 9).split(0.34)
    first, last = data.batch(0, 1)[0].tolist(), next(heldout.batches(1))[0].tolist()
    for length in 0, 1000, len(whole) - 1:
        with open(path, 'r+b') as file:
            file.truncate(length)
        for read in (lambda: data.batch(0, 1), lambda: next(heldout.batches(1))):
            with pytest.raises(WorkDirError, match=f'codes.npy has been cut short .* from 12,417 to {length:,} bytes'):
                read()
        with open(path, 'r+b') as file:
            file.write(whole)
        assert data.batch(0, 1)[0].tolist() == first and next(heldout.batches(1))[0].tolist() == last
