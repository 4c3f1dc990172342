"""Where a text stopped: the state behind each piece of it, and the texts that go on from there."""

import numpy as np
import pytest

import generate
from generate import TextState
from modelcases import TYPES, assert_stands, varied


@pytest.fixture(scope='module', params=TYPES)
def ms(request, tmp_path_factory):
    return varied(tmp_path_factory.mktemp('model'), request.param)


@pytest.fixture(scope='module')
def encode(tmp_path_factory):
    return varied(tmp_path_factory.mktemp('model'), 'GRUEncode')


@pytest.mark.parametrize('options', [{}, {'prime': 'ab'}, {'n': 3}, {'n': 3, 'prime': 'b'}, {'until': 'aab'}, {'n': 5, 'until': 'ab'},
                                     {'n': 4, 'until': '\n', 'prime': 'c'}],
                         ids=str)
def test_the_state_behind_each_piece_is_where_the_network_stands_and_never_changes(ms, monkeypatch, options):
    monkeypatch.setattr(generate, 'FIRST', 3)
    stream = ms.stream(70, 1, seed=8, **options)
    assert stream.state is None
    texts, handed = [''] * options.get('n', 1), []
    for piece in stream:
        texts = [text + more for text, more in zip(texts, piece if 'n' in options else [piece])]
        assert_stands(ms, stream.state, texts)
        handed.append((stream.state, stream.state.states.copy(), stream.state.chars.copy(), list(texts)))
    for state, states, chars, texts in handed:
        np.testing.assert_array_equal(state.states, states)
        np.testing.assert_array_equal(state.chars, chars)
        # Going on, the likeliest characters are those behind the whole text, read anew.
        more = ms.sample(15, 0, state=state)
        for text, rest in zip(texts, more if len(texts) > 1 else [more]):
            assert ms.sample(15, 0, prime=text) == text + rest
    np.testing.assert_array_equal(handed[-1][0].states, handed[-1][1])


def test_two_halves_are_the_whole(ms):
    for options in ({}, {'prime': 'cab'}, {'n': 4}):
        stream = ms.stream(50, 0, seed=1, **options)
        half = [''.join(each) for each in zip(*stream)] if 'n' in options else ''.join(stream)
        whole, rest = ms.sample(100, 0, seed=1, **options), ms.sample(50, 0, state=stream.state)
        assert (whole == [one + two for one, two in zip(half, rest)]) if 'n' in options else (whole == half + rest)


def test_a_state_goes_on_with_a_beginning_of_its_own(ms):
    stream = ms.stream(30, 1, seed=1)
    text = ''.join(stream)
    assert ms.sample(20, 0, prime='cab', state=stream.state) == 'cab' + ms.sample(20, 0, prime=text + 'cab')[33:]
    then = ms.stream(0, prime='c', state=stream.state)
    assert list(then) == ['c']
    assert_stands(ms, then.state, [text + 'c'])
    many = ms.stream(30, 1, seed=1, n=3)
    texts = [''.join(each) for each in zip(*many)]
    then = ms.stream(12, 0, prime='b ', state=many.state)
    assert [''.join(each) for each in zip(*then)] == ['b ' + ms.sample(12, 0, prime=text + 'b ')[32:] for text in texts]
    then = ms.stream(0, prime='b ', state=many.state, n=3)
    assert list(then) == [['b '] * 3]
    assert_stands(ms, then.state, [text + 'b ' for text in texts])


def test_a_state_may_be_of_float64(ms):
    first = ms.stream(30, 1, seed=2)
    list(first)
    double = TextState(first.state.states.astype('float64'), first.state.chars.astype('int64'))
    for more in ({}, {'prime': 'ab c'}, {'n': 2}):
        stream = ms.stream(40, 1, seed=3, state=double, **more)
        pieces = list(stream)
        again = ms.stream(40, 1, seed=3, state=first.state, **more)
        assert pieces == list(again) and stream.state.states.dtype == np.float32
        np.testing.assert_array_equal(stream.state.states, again.state.states)


def test_one_texts_state_is_the_beginning_of_several(ms):
    stream = ms.stream(30, 1, seed=1)
    text = ''.join(stream)
    several = ms.stream(40, 1, seed=6, state=stream.state, n=3)
    texts = [''.join(each) for each in zip(*several)]
    assert texts[0] == ms.sample(40, 1, seed=6, state=stream.state) and len(set(texts)) == 3
    assert_stands(ms, several.state, [text + each for each in texts])
    primed = ms.stream(0, prime='ab', state=stream.state, n=3)
    assert list(primed) == [['ab'] * 3]
    assert_stands(ms, primed.state, [text + 'ab'] * 3)
    assert ms.sample(9, 0, state=stream.state, n=3, prime='a') == [ms.sample(9, 0, state=stream.state, prime='a')] * 3


def test_a_given_state_is_left_as_it_was(ms):
    for n in (1, 3):
        given_ = TextState(np.random.RandomState(0).uniform(-1, 1, (2, n, 6)).astype('float32'), np.arange(1, n + 1, dtype='int32'))
        before = given_.states.copy(), given_.chars.copy()
        for options in ({}, {'until': 'a'}, {'prime': 'ab'}):
            ms.sample(50, 1, state=given_, **options)
            np.testing.assert_array_equal(given_.states, before[0])
            np.testing.assert_array_equal(given_.chars, before[1])


def test_no_characters_are_an_empty_text_or_the_beginning(ms):
    assert ms.sample(0) == '' and ms.sample(0, n=2) == ['', ''] and ms.sample(0, n=1) == [''] and not list(ms.stream(0, n=2))
    assert ms.sample(0, prime='ab') == 'ab' and ms.sample(0, prime='ab', n=2) == ['ab', 'ab']
    assert ms.sample(0, until='a') == '' and ms.sample(0, until='a', prime='a') == 'a'
    stream = ms.stream(5, seed=1, n=2)
    texts = [''.join(each) for each in zip(*stream)]
    then = ms.stream(0, state=stream.state)
    assert [''.join(each) for each in zip([''] * 2, *then)] == ['', ''] == ms.sample(0, state=stream.state)
    assert_stands(ms, then.state, texts)
    assert ms.stream(0).state is None
    stream = ms.stream(5)
    ''.join(stream)
    assert ms.sample(0, state=stream.state) == '' and ms.sample(0, state=stream.state, n=3) == [''] * 3


def test_a_state_says_in_one_line_what_it_is(encode):
    one, many = encode.stream(3), encode.stream(3, n=3)
    list(one), list(many)
    assert repr(one.state) == 'TextState of 1 text' and repr(many.state) == 'TextState of 3 texts'
