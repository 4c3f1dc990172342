"""What the texts promise that a model writes: pieces, many at once, a beginning read first, and an end."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import engine
import generate
import report
from conftest import naive_sample
from generate import TextState
from modelcases import TYPES, WORDS, assert_stands, make, reread, varied
from rn_rnn_char import generatestring

STEERED = [{}, {'temp': 0}, {'temp': 0.9, 'top_k': 4}, {'temp': 1.2, 'top_p': 0.8}, {'min_p': 0.2},
           {'temp': 2, 'top_k': 6, 'top_p': 0.9, 'min_p': 0.05}]


@pytest.fixture(scope='module', params=TYPES)
def ms(request, tmp_path_factory):
    return varied(tmp_path_factory.mktemp('model'), request.param)


@pytest.fixture(scope='module')
def encode(tmp_path_factory):
    return varied(tmp_path_factory.mktemp('model'), 'GRUEncode')


def naive_text(ms, before, uniforms, temp, **steering):
    """What the naive network, having read `before`, draws."""
    states, char = reread(ms, before)
    drawn, _ = naive_sample(ms.model.get_params(), states, char, uniforms, temp, [0] + [1] * (len(ms.charset) - 1), **steering)
    return ''.join(ms.charset.chars[i] for i in drawn)


# --- Pieces and many texts ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('steering', STEERED, ids=str)
def test_the_pieces_of_a_stream_are_the_sample(ms, steering):
    for more in ({}, {'prime': 'ab c'}, {'until': 'ab'}, {'until': '\n', 'prime': 'a\n'}):
        text = ms.sample(300, seed=7, **steering, **more)
        pieces = list(ms.stream(300, seed=7, **steering, **more))
        assert ''.join(pieces) == text and all(isinstance(piece, str) for piece in pieces)
        texts = ms.sample(300, seed=7, n=3, **steering, **more)
        pieces = list(ms.stream(300, seed=7, n=3, **steering, **more))
        assert all(isinstance(piece, list) and len(piece) == 3 for piece in pieces)
        assert [''.join(each) for each in zip(*pieces)] == texts and texts[0] == text


def test_pieces_double(encode):
    assert [len(piece) for piece in encode.stream(1000, prime='ab')] == [66, 128, 256, 512, 40]
    assert [len(piece) for piece in encode.stream(1000)] == [65, 128, 256, 512, 39]


def test_a_piece_never_takes_longer_than_its_work_allows(encode, monkeypatch):
    """(6 L H + V) H products a character: here some hundred a text."""
    H, V = 6, len(encode.charset)
    monkeypatch.setattr(generate, 'WORK', 50 * (12 * H + V) * H)
    monkeypatch.setattr(generate, 'DRAW', 0)
    assert [len(piece) for piece in encode.stream(120, prime='a')] == [51, 50, 20]
    assert [len(piece[4]) for piece in encode.stream(30, prime='a', n=5)] == [11, 10, 10]
    assert [len(piece[0]) for piece in encode.stream(3, prime='a', n=100)] == [2, 1, 1]


def test_a_piece_of_the_smallest_network_is_bounded_too(encode):
    """10^9 products, at least 20,000 a character: 50,000 characters at the most."""
    assert 40_000 < max(len(piece) for piece in encode.stream(300_000)) <= 50_000


@pytest.mark.parametrize('where', [1, 2, 3, 4])
@pytest.mark.parametrize('steering', [{}, {'prime': 'abc'}, {'n': 3, 'until': 'ab'}], ids=['plain', 'prime', 'until'])
def test_a_piece_that_ctrl_c_breaks_off_comes_whole_at_the_next_call(encode, monkeypatch, where, steering):
    monkeypatch.setattr(generate, 'FIRST', 4)
    want = encode.sample(200, 1, seed=7, **steering)
    for broken in ('sampletext', 'laststates'):
        owner = encode.model if broken == 'sampletext' else generate.reading
        work, calls = getattr(owner, broken), []

        def once(*args):
            result = work(*args)
            calls.append(1)
            if len(calls) == where:
                raise KeyboardInterrupt
            return result
        with monkeypatch.context() as patch:
            patch.setattr(owner, broken, once)
            stream, pieces, broke = encode.stream(200, 1, seed=7, **steering), [], 0
            while True:
                try:
                    before = stream.state
                    pieces.append(next(stream))
                except KeyboardInterrupt:
                    broke += 1
                    assert stream.state is before
                except StopIteration:
                    break
        assert broke == (len(calls) >= where)
        assert (''.join(pieces) if isinstance(want, str) else [''.join(each) for each in zip(*pieces)]) == want


def test_the_same_seed_gives_the_same_texts_and_another_one_others(ms):
    assert ms.sample(60, seed=3, n=4) == ms.sample(60, seed=3, n=4) != ms.sample(60, seed=4, n=4)
    assert ms.sample(60, 1, n=2) != ms.sample(60, 1, n=2)


def test_the_first_of_several_texts_is_the_single_one_and_all_are_different(ms):
    one, many = ms.sample(80, 1, seed=5), ms.sample(80, 1, seed=5, n=33)
    assert isinstance(one, str) and isinstance(many, list) and len(many) == 33
    assert many[0] == one and len(set(many)) == 33 and {len(text) for text in many} == {80}
    assert ms.sample(80, 1, seed=5, n=1) == [one] and ms.sample(80, 1, seed=5, n=7) == many[:7]
    # Without a seed too.
    assert len(set(ms.sample(80, 1, n=5))) == 5


def test_texts_of_a_large_vocabulary_are_drawn_some_at_a_time(ms, monkeypatch):
    """Six logits a text here: with room for 3 texts' logits, 33 texts are drawn in 11 groups, and are what they would be in one."""
    options = {'temp': 1, 'seed': 5, 'n': 33, 'until': 'bb'}
    whole, state = ms.sample(80, **options), ms.stream(40, 1, 5, n=33)
    list(state)
    assert len(ms.charset) == 6
    sampletext, sizes = ms.model.sampletext, []
    monkeypatch.setattr(generate, 'LOGITS', 3 * 6 + 5)
    monkeypatch.setattr(ms.model, 'sampletext', lambda chars, *values: sizes.append(len(chars)) or sampletext(chars, *values))
    assert ms.sample(80, **options) == whole and max(sizes) == 3
    again = ms.stream(40, 1, 5, n=33)
    list(again)
    np.testing.assert_allclose(again.state.states, state.state.states, atol=1e-6)
    np.testing.assert_array_equal(again.state.chars, state.state.chars)


def test_first_characters_are_drawn_by_how_often_they_begin_a_line(ms):
    """a, b, b, c: 600 draws, to within five standard deviations."""
    firsts = [text[0] for text in ms.sample(1, n=600, seed=0)]
    assert set(firsts) == set('abc') and abs(firsts.count('b') - 300) < 62 and abs(firsts.count('a') - 150) < 53


def test_new_parameters_are_used_by_the_next_text_and_by_the_next_piece(tmp_path):
    ms = varied(tmp_path, 'GRUEncode')
    a, b = (ms.charset.chars.index(char) for char in 'ab')
    zeros, vocab = np.zeros((6, len(ms.charset))), np.arange(len(ms.charset))
    ms.model.set_params({'V': zeros, 'c': 90.0 * (vocab == a)})
    stream = ms.stream(150, prime='c')
    assert next(stream) == 'c' + 'a' * 64
    ms.model.set_params({'c': 90.0 * (vocab == b)})
    assert next(stream) == 'b' * 86 and ms.sample(5, prime='a') == 'abbbbb'
    ms.trainmodel(train_len=1, batchsize=4, valid_len=1, print_every=0, verbose=False)
    ms.restore(verbose=False)
    assert ms.sample(5, prime='a') == 'abbbbb'


# --- Priming ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('temp, steering', [(0, {}), (0.8, {}), (1.5, {'top_k': 3}), (2, {'top_p': 0.7}), (1, {'min_p': 0.3})])
def test_a_primed_text_goes_on_as_the_network_that_has_read_its_beginning(ms, temp, steering):
    for prime in ('a', 'ab', 'cab\nb'):
        uniforms = np.random.Generator(np.random.PCG64(np.random.SeedSequence(9))).random(15)
        assert ms.sample(15, temp, 9, prime=prime, **steering) == prime + naive_text(ms, prime, uniforms, temp, **steering)


def test_the_state_behind_a_beginning_is_the_one_that_reading_it_gives(ms):
    for prime in ('c', 'ca', WORDS[:40]):
        for n in (None, 3):
            stream = ms.stream(0, prime=prime, n=n)
            assert list(stream) == [prime if n is None else [prime] * 3]
            assert_stands(ms, stream.state, [prime] * (n or 1))
            if len(prime) > 1:
                np.testing.assert_allclose(stream.state.states, np.repeat(ms.trackneurons(prime)[:, None, :, -2], n or 1, 1), atol=1e-6)


def test_a_long_beginning_is_read_whole(ms):
    prime = ''.join(np.random.RandomState(0).choice(list('abc \n'), 3000))
    stream = ms.stream(20, 0, prime=prime)
    text = ''.join(stream)
    assert text[:3000] == prime and len(text) == 3020
    start = ms.stream(0, prime=prime)
    next(start)
    np.testing.assert_allclose(start.state.states[:, 0], ms.trackneurons(prime)[:, :, -2], atol=1e-5)
    assert prime + naive_text(ms, prime[-300:], [0] * 20, 0) == text       # what lies 300 characters back is forgotten


def test_a_person_is_told_that_a_long_beginning_is_read(ms, monkeypatch, capsys):
    monkeypatch.setattr(generate.reading, 'SHOWN', 1000)
    monkeypatch.setattr(report, 'verbose', True)
    ms.sample(3, prime='abc ' * 250)
    assert capsys.readouterr() == ('', '')
    ms.sample(3, prime='abc ' * 250 + 'a')
    assert capsys.readouterr() == ('Reading 1,001 characters ...\n', '')


def test_unknown_characters_of_a_beginning_are_said_once_and_kept_in_the_text(ms, monkeypatch, capsys):
    prime = 'aé中a\ud800é'
    with pytest.warns(UserWarning) as said:
        text = ms.sample(30, seed=1, prime=prime)
    assert len(said) == 1 and str(said[0].message).endswith(r"in prime: '\xe9' '\u4e2d' '\ud800'")
    assert text.startswith(prime) and len(text) == len(prime) + 30 and not set(text[len(prime):]) - set(WORDS)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert ms.sample(30, seed=1, prime='a\ufffd\ufffda\ufffd\ufffd')[6:] == text[6:]        # the charset's own unknown character
    with pytest.warns(UserWarning):
        many = ms.sample(30, seed=1, prime=prime, n=3)
    assert many[0] == text
    monkeypatch.setattr(report, 'verbose', True)
    ms.sample(3, prime=prime, n=2)
    out = capsys.readouterr().out
    assert out.count(r"'\xe9'") == 1 and out.count('\n') == 1


# --- until ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def scripted(encode, monkeypatch):
    """scripted(text) makes the model write that text, whatever its parameters; the states tell how far it is."""
    def script(text):
        codes = encode.charset.encode(text).astype(np.int32)

        def sampletext(chars, uniforms, temp, top_k, top_p, min_p, allowed, s0):
            start, (n, steps) = int(np.round(s0[0, 0, 0] / 10)), uniforms.shape            # states of a beginning lie within -1 and 1
            return np.repeat(codes[None, start:start + steps], n, 0), s0 + np.float32(10 * steps)
        monkeypatch.setattr(encode.model, 'sampletext', sampletext)
        return encode
    return script


@pytest.mark.parametrize('first', [1, 2, 3, 5, 64])
def test_until_ends_a_text_behind_its_first_occurrence_among_the_characters_drawn(scripted, monkeypatch, first):
    monkeypatch.setattr(generate, 'FIRST', first)
    for script, until, want in [
            ('abcabc', 'c', 'abc'), ('cabc', 'c', 'c'), ('aaab', 'aab', 'aaab'), ('aaaab', 'aab', 'aaaab'), ('abaabab', 'abab', 'abaabab'),
            ('bbbcabba', 'cabba', 'bbbcabba'), ('abcab', 'abcab', 'abcab'), ('aabbccaabbccab', 'ccaabbcca', 'aabbccaabbcca'),
            ('abab', 'ba', 'aba'), ('aabb', 'c', 'aabb'), ('aabc', 'bcc', 'aabc'), ('a\n\nb', '\n\n', 'a\n\n'), ('ccc', 'cc', 'cc'),
            ('ab' * 90 + 'cc', 'bcc', 'ab' * 90 + 'cc')]:
        ms = scripted(script)
        stream = ms.stream(len(script), prime='a', until=until)
        assert ''.join(stream) == 'a' + want, (script, until)
        assert stream.state.chars.tolist() == [ms.charset.chars.index(want[-1])]
        # The beginning counts for nothing, whether it holds the end or an end's beginning.
        for prime in ('b' + until, until[:-1] or 'b', 'b' + until[:1]):
            assert ms.sample(len(script), prime=prime, until=until) == prime + want, (script, until, prime)
        assert ms.sample(len(script), prime='a', until=until, n=2) == ['a' + want] * 2


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.text('ab', min_size=1, max_size=40), until=st.text('ab', min_size=1, max_size=6),
       prime=st.text('ab', min_size=1, max_size=4), first=st.integers(1, 9), left_out=st.integers(0, 3))
def test_until_is_found_wherever_pieces_end(scripted, script, until, prime, first, left_out):
    generate.FIRST, before = first, generate.FIRST
    try:
        ms, count = scripted(script), max(len(script) - left_out, 0)
        end = script[:count].find(until)
        assert ms.sample(count, prime=prime, until=until) == prime + (script[:count] if end < 0 else script[:end + len(until)])
    finally:
        generate.FIRST = before


@pytest.mark.parametrize('first', [1, 2, 3, 64])
@pytest.mark.parametrize('options', [{}, {'prime': 'ab'}])
def test_until_ends_each_of_several_texts_at_its_own_place(ms, monkeypatch, first, options):
    whole = ms.sample(120, 1, seed=11, n=4, **options)
    start = len(options.get('prime', ''))
    monkeypatch.setattr(generate, 'FIRST', first)
    for until in ('a', 'b', '\n', 'ab', whole[2][start:start + 1], whole[2][start + 40:start + 45],
                  whole[3][start + 62:start + 80], 'abcabcabcabc'):
        wants = []
        for text in whole:
            end = text.find(until, start)
            wants.append(text if end < 0 else text[:end + len(until)])
        stream = ms.stream(120, 1, seed=11, n=4, until=until, **options)
        pieces = list(stream)
        assert [''.join(each) for each in zip(*pieces)] == wants, until
        assert any(pieces[-1]) or len(pieces) == 1                  # nothing is drawn once all have ended
        assert ms.sample(120, 1, seed=11, until=until, **options) == wants[0]
        if first == 2:
            assert_stands(ms, stream.state, wants)


def test_the_very_first_drawn_character_may_be_the_end(ms):
    text = ms.sample(50, 1, seed=2)
    stream = ms.stream(50, 1, seed=2, until=text[0])
    assert list(stream) == [text[0]] and not list(stream)
    assert_stands(ms, stream.state, [text[0]])


# --- What is refused ------------------------------------------------------------------------------------------------------

def state(layers=2, n=1, H=6, char=1):
    return TextState(np.zeros((layers, n, H), 'float32'), np.full(n, char, 'int32'))


WRONG = [
    ({'numchars': -1}, ValueError, '-1'), ({'numchars': 1.5}, TypeError, '1.5'), ({'numchars': True}, TypeError, 'True'),
    ({'numchars': None}, TypeError, 'None'),
    ({'numchars': 10 ** 9}, ValueError, '1000000000'), ({'numchars': '5'}, TypeError, "'5'"),
    ({'temp': -0.1}, ValueError, '-0.1'), ({'temp': float('nan')}, ValueError, 'nan'), ({'temp': float('inf')}, ValueError, 'inf'),
    ({'temp': 'hot'}, TypeError, 'hot'),
    ({'temp': None}, TypeError, 'None'), ({'temp': 10 ** 400}, ValueError, 'inf'),
    ({'seed': -1}, ValueError, '-1'), ({'seed': 2.0}, TypeError, '2.0'), ({'seed': 'x'}, TypeError, "'x'"),
    ({'seed': 2 ** 63}, ValueError, str(2 ** 63)),
    ({'prime': 3}, TypeError, '3'), ({'prime': None}, TypeError, 'None'), ({'prime': b'ab'}, TypeError, "b'ab'"),
    ({'prime': ['a']}, TypeError, "['a']"),
    ({'top_k': 0}, ValueError, '0'), ({'top_k': -3}, ValueError, '-3'), ({'top_k': 2.0}, TypeError, '2.0'),
    ({'top_k': True}, TypeError, 'True'),
    ({'top_p': 0}, ValueError, '0'), ({'top_p': 2}, ValueError, '2'), ({'top_p': -0.5}, ValueError, '-0.5'),
    ({'top_p': float('nan')}, ValueError, 'nan'),
    ({'top_p': 'all'}, TypeError, "'all'"), ({'top_p': 1.0000001}, ValueError, '1.0000001'),
    ({'min_p': -1}, ValueError, '-1'), ({'min_p': 2}, ValueError, '2'), ({'min_p': float('nan')}, ValueError, 'nan'),
    ({'min_p': False}, TypeError, 'False'),
    ({'until': ''}, ValueError, 'until'), ({'until': 5}, TypeError, '5'), ({'until': b'a'}, TypeError, "b'a'"),
    ({'until': 'aXb'}, ValueError, "'X'"),
    ({'until': 'a\ufffd'}, ValueError, '\ufffd'), ({'until': '\r\n'}, ValueError, r"'\r'"),
    ({'n': 0}, ValueError, '0'), ({'n': -2}, ValueError, '-2'), ({'n': 2.0}, TypeError, '2.0'), ({'n': True}, TypeError, 'True'),
    ({'n': 10 ** 6}, ValueError, '1000000'),
    ({'state': 'ab'}, TypeError, "'ab'"), ({'state': np.zeros((2, 1, 6))}, TypeError, 'array'), ({'state': (1, 2)}, TypeError, '(1, 2)'),
    ({'state': state(layers=3)}, ValueError, '(3, 1, 6)'), ({'state': state(H=7)}, ValueError, '(2, 1, 7)'),
    ({'state': state(n=0)}, ValueError, '(2, 0, 6)'),
    ({'state': state(char=-1)}, ValueError, 'state'), ({'state': state(char=6)}, ValueError, 'state'),
    ({'state': TextState(np.zeros((2, 3, 6), 'float32'), np.zeros(2, 'int32'))}, ValueError, '(2, 3, 6)'),
    ({'state': TextState(np.zeros((2, 6), 'float32'), np.zeros(1, 'int32'))}, ValueError, '(2, 6)'),
    ({'state': TextState(np.zeros((2, 1, 6), 'float32'), np.int32(1))}, ValueError, 'state'),
    ({'state': TextState(None, None)}, ValueError, 'state'),
    ({'state': TextState(np.zeros((2, 1, 6), 'float32'), np.zeros(1))}, ValueError, 'state'),
    ({'state': TextState(np.full((2, 1, 6), 'x'), np.zeros(1, int))}, ValueError, 'state'),
    ({'state': TextState(np.full((2, 1, 6), np.nan), np.zeros(1, int))}, ValueError, 'NaN'),
    ({'state': TextState(np.full((2, 1, 6), -1e39), np.zeros(1, int))}, ValueError, 'float32'),
    ({'state': state(n=3), 'n': 2}, ValueError, '3'), ({'state': state(n=3), 'n': 1}, ValueError, '1'),
    ({'state': state(n=2), 'n': 4}, ValueError, '4')]


@pytest.mark.parametrize('options, error, named', WRONG, ids=[f'{i}-{list(case[0])[-1]}' for i, case in enumerate(WRONG)])
def test_wrong_arguments_are_refused_in_one_sentence_before_anything_happens(encode, monkeypatch, capsys, options, error, named):
    def nocompiling(*arguments, **options):
        raise AssertionError('compiled')
    monkeypatch.setattr(report, 'verbose', True)
    monkeypatch.setattr(engine, 'compilefunction', nocompiling)
    for call in (encode.sample, encode.stream, lambda **options: generatestring(encode, **options)):
        with pytest.raises(error) as raised:
            call(**options)
        said = str(raised.value)
        assert '\n' not in said and named in said and list(options)[-1] in said, said
    # Nor is an unknown character of `prime` said before another argument is refused.
    if 'prime' not in options:
        with pytest.raises(error):
            encode.sample(prime='X', **options)
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('arguments, error', [((-1,), ValueError), ((1.5,), TypeError), ((5, -1), ValueError),
                                              ((5, float('nan')), ValueError), ((5, float('inf')), ValueError),
                                              ((5, 'hot'), TypeError), ((5, 0.5, -1), ValueError)])
def test_wrong_arguments_of_sample_are_refused(srcfile, arguments, error):
    with pytest.raises(error):
        make(srcfile).sample(*arguments)


def test_numbers_of_numpy_are_numbers(encode):
    assert (encode.sample(np.int64(20), np.float32(0.5), np.uint8(3), top_k=np.int32(3), top_p=np.float64(0.5), min_p=np.float32(0.5),
                          n=np.int8(1))
            == encode.sample(20, 0.5, 3, top_k=3, top_p=0.5, min_p=0.5, n=1))


def test_steering_that_leaves_nothing_out_changes_nothing(ms):
    text = ms.sample(100, 1, seed=3)
    for steering in ({'top_k': 10 ** 12}, {'top_k': len(ms.charset)}, {'top_p': 1}, {'min_p': 0},
                     {'top_k': 100, 'top_p': 1.0, 'min_p': 0.0}):
        assert ms.sample(100, 1, seed=3, **steering) == text
    greedy = ms.sample(100, 0, seed=3)
    for steering in ({'top_k': 1}, {'top_p': 1e-9}, {'min_p': 1}):
        assert ms.sample(100, 1, seed=3, **steering) == greedy
