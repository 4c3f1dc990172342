"""How well a model foretells a text, against the naive network, and the states along it."""

import math
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import inside
import reading
import report
from conftest import naive_layernorm, naive_logits, naive_states
from modelcases import WORDS, varied
from rn_rnn_char import ModelState

CHARS = '\ufffd\n abc'
STARTS = {'a': 15, 'b': 30, 'c': 15}        # lines begin with them


MODELS = {'params': [('GRUEncode', False), ('GRUResize', False), ('GRUEncode', True)], 'ids': ['GRUEncode', 'GRUResize', 'layernorm']}


@pytest.fixture(scope='module', **MODELS)
def ms(request, tmp_path_factory):
    modeltype, layernorm = request.param
    return varied(tmp_path_factory.mktemp('model'), modeltype, 5, 1.2, layernorm=layernorm)


def naive_shares(ms, text):
    """-log of each character's probability: number by number, and the first one's by (its line starts + 1) / (all + V)."""
    codes = [max(CHARS.find(char), 0) for char in text]
    shares = [-math.log((STARTS.get(text[0], 0) + 1) / (60 + 6))]
    if len(text) > 1:
        logits, _ = naive_logits(ms.model.get_params(), np.array(codes[:-1])[:, None], np.zeros((2, 1, 5)), ms.hyper.layernorm)
        for row, code in zip(logits[:, 0], codes[1:]):
            shares.append(math.log(sum(math.exp(value) for value in row)) - row[code])
    return shares


def test_each_character_has_the_share_that_the_naive_network_gives(ms):
    assert ms.charset.chars == CHARS
    for text in (WORDS[:150], 'ab', 'cc\n\n', ' '):
        score = ms.score(text)
        assert score.shares.shape == (len(text),) and score.shares.dtype == np.float64
        np.testing.assert_allclose(score.shares, naive_shares(ms, text), atol=2e-5)


@pytest.mark.parametrize('char, probability', [('a', 16 / 66), ('b', 31 / 66), ('c', 16 / 66), (' ', 1 / 66),
                                               ('\n', 1 / 66), ('\ufffd', 1 / 66)])
def test_the_first_character_counts_by_how_often_it_begins_a_line(ms, char, probability):
    assert ms.score(char).nats == pytest.approx(-math.log(probability), rel=1e-12)
    assert ms.score(char + 'ab').shares[0] == pytest.approx(-math.log(probability), rel=1e-12)


def test_nats_are_the_mean_and_bits_the_same_over_ln_2(ms):
    score = ms.score(WORDS[:80])
    assert score.nats == pytest.approx(sum(score.shares) / 80) and isinstance(score.nats, float)
    assert score.bits == pytest.approx(score.nats / 0.6931471805599453) and isinstance(score.bits, float)
    assert repr(score) == f'{score.nats:.4f} nats/char ({score.bits:.4f} bits) over 80 characters'
    assert repr(ms.score('a')) == '1.4171 nats/char (2.0444 bits) over 1 character'         # ln(66 / 16)


def test_probabilities_of_all_that_may_come_next_sum_to_one(ms):
    assert sum(math.exp(-ms.score('ab' + char).shares[2]) for char in CHARS) == pytest.approx(1, abs=1e-6)
    assert sum(math.exp(-ms.score(char).nats) for char in CHARS) == pytest.approx(1, abs=1e-12)


def test_chunks_make_no_difference(ms, monkeypatch):
    text = WORDS * 6                 # 2,970 characters
    assert 2 * reading.CHUNK < len(text)
    score, states = ms.score(text), ms.trackneurons(text)
    np.testing.assert_allclose(score.shares[:300], naive_shares(ms, text[:300]), atol=2e-5)
    for chunk in (1, 7, len(text) - 2, len(text) - 1, 10 ** 6):
        monkeypatch.setattr(reading, 'CHUNK', chunk)
        some = text[:400] if chunk == 1 else text
        np.testing.assert_allclose(ms.score(some).shares, score.shares[:len(some)], atol=1e-5)
        np.testing.assert_allclose(ms.trackneurons(some), states[:, :, :len(some)], atol=1e-5)


def test_a_large_vocabulary_is_read_with_few_of_its_probabilities_in_memory(tmp_path):
    """What may come behind 1,000 characters of 10,000 takes 80 MB, and what is made of it as much again; untrained, all are likely."""
    text = ''.join(map(chr, range(0x4e00, 0x4e00 + 9_999)))
    (tmp_path / 'text').write_text(text)
    ms = ModelState.initfromsrcfile(tmp_path / 'text', tmp_path / 'work', seq_len=10, state_size=4, init_checkpoint=False)
    ms.model.allstates = ms.model.plainstates
    tracemalloc.start()
    try:
        read = inside.read(ms, text[:1500])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6 and len(ms.charset) == 10_000
    V = ms.model.get_params()['V']
    np.testing.assert_allclose(read.shares, math.log(10_000), atol=8 * np.abs(V).max())         # |logit| is at most 4 max |V|


def test_last_states_of_several_rows_are_those_of_each_alone(ms, monkeypatch):
    rng = np.random.RandomState(0)
    x, states = rng.randint(0, 6, (23, 3)).astype('int32'), rng.uniform(-1, 1, (2, 3, 5)).astype('float32')
    want = np.array([S[-1] for S in naive_states(ms.model.get_params(), x, states, ms.hyper.layernorm)])
    for chunk in (1, 4, 12, 1000):
        monkeypatch.setattr(reading, 'CHUNK', chunk)
        np.testing.assert_allclose(reading.laststates(ms.model, x, states), want, atol=1e-5)
    np.testing.assert_array_equal(reading.laststates(ms.model, x[:0], states), states)


def test_several_threads_read_and_write_with_one_network_at_a_time(ms):
    def shares(i):
        return [list(ms.score(WORDS[i * 100:][:200 + i]).shares) + [ms.sample(50, 1, seed=i, prime=WORDS[i * 100:][:20 + i])]
                for _ in range(20)]
    want, interval = [shares(i) for i in range(4)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(shares, range(4))) == want
    finally:
        sys.setswitchinterval(interval)


def test_unknown_characters_are_said_and_read_as_the_unknown_one(ms):
    with pytest.warns(UserWarning) as said:
        score = ms.score('aéb中\ud800éb')
    assert len(said) == 1 and r"'\xe9' '\u4e2d' '\ud800'" in str(said[0].message)
    np.testing.assert_allclose(score.shares, naive_shares(ms, 'a\ufffdb\ufffd\ufffd\ufffdb'), atol=2e-5)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        np.testing.assert_array_equal(ms.score('a\ufffdb\ufffd\ufffd\ufffdb').shares, score.shares)
    with pytest.warns(UserWarning) as said:
        ms.score('ABCDEFGHIJ')
    assert str(said[0].message).endswith("'A' 'B' 'C' 'D' 'E' 'F' 'G' 'H' ...")


@pytest.mark.parametrize('text, error', [('', ValueError), (None, TypeError), (b'abc', TypeError), (['a'], TypeError), (3, TypeError)])
def test_what_is_no_text_is_refused_in_one_sentence(ms, text, error):
    for call in (ms.score, ms.trackneurons):
        with pytest.raises(error) as raised:
            call(text)
        assert 'text' in str(raised.value) and '\n' not in str(raised.value) and (text == '' or repr(text) in str(raised.value))


def test_a_long_text_shows_how_far_it_is_only_where_messages_are_wanted(ms, monkeypatch, capsys):
    monkeypatch.setattr(reading, 'SHOWN', 2500)
    monkeypatch.setattr(reading, 'CHUNK', 100)
    ms.score(WORDS * 6)
    assert capsys.readouterr() == ('', '')
    monkeypatch.setattr(report, 'verbose', True)
    score = ms.score(WORDS * 6)
    out, err = capsys.readouterr()
    assert out.startswith('Reading: 2969/2969 ') and f'loss {score.shares[1:].mean():.3f}' in out and err == ''
    ms.score(WORDS)
    assert capsys.readouterr() == ('', '')


def test_a_score_follows_new_parameters_and_moves_nothing(ms):
    params, before, place = ms.model.get_params(), ms.score(WORDS), (ms.model.epoch, ms.model.pos)
    state = ms.model.get_state()
    ms.model.set_params({'V': np.zeros((5, 6)), 'c': np.zeros(6)})
    try:
        np.testing.assert_allclose(ms.score(WORDS).shares[1:], math.log(6), atol=1e-12)
    finally:
        ms.model.set_params(params)
    np.testing.assert_array_equal(ms.score(WORDS).shares, before.shares)
    np.testing.assert_array_equal(ms.model.get_state(), state)
    assert (ms.model.epoch, ms.model.pos) == place


def test_a_loss_of_training_is_what_the_score_says(ms):
    """The text from its second character on, in one sequence, from a zero state."""
    codes = ms.charset.encode(WORDS).astype('int32')
    loss, _ = ms.model.evaluate(codes[:-1, None], codes[1:, None], np.zeros((2, 1, 5), 'float32'))
    assert ms.score(WORDS).shares[1:].mean() == pytest.approx(loss, abs=1e-5)


def test_characters_that_no_probability_is_left_for_have_a_finite_share(ms):
    """Logits of +-1e4: a softmax in float32 would give infinity."""
    params = ms.model.get_params()
    ms.model.set_params({'V': np.zeros((5, 6)), 'c': np.array([0, 0, 0, 1e4, -1e4, 0])})
    try:
        np.testing.assert_allclose(ms.score('aaba').shares[1:], [0, 2e4, 0], atol=1e-9)
    finally:
        ms.model.set_params(params)


# ---- gates

def naive_gates(params, states, before, x, l, layernorm):
    """z and r (T, B, H) of layer l, not yet cut off at 0 and 1: number by number. states, before: (L, T, B, H) and
    what they went out from."""
    below = naive_layernorm(states[l - 1]) if layernorm else states[l - 1]
    H = states.shape[3]
    U, W, b = (params[f'{name}{l}'].astype(float) for name in 'UWb')
    gates = np.zeros((*x.shape, 2 * H))
    for t in range(x.shape[0]):
        for row in range(x.shape[1]):
            if l:
                into = below[t, row]
            elif 'E' in params:
                into = np.tanh(params['E'][x[t, row]].astype(float) + params['a'])
            else:
                into = np.eye(len(params['U0']))[x[t, row]]
            s = before[l, row] if t == 0 else states[l][t - 1, row]
            for i in range(2 * H):
                gates[t, row, i] = 0.5 + 0.2 * (b[i] + sum(into * U[:, i]) + sum(s * W[:, i]))
    return gates[..., :H], gates[..., H:]


@pytest.mark.parametrize('compiled', [True, False])
def test_gates_are_the_shares_of_exactly_0_and_1_of_the_naive_network(ms, monkeypatch, compiled):
    monkeypatch.setattr(reading, 'CHUNK', 20)                               # several chunks
    params, rng = ms.model.get_params(), np.random.RandomState(3)
    loud = {name: value * (2 if name[0] in 'UW' else 1) for name, value in params.items()}      # so that gates are at their ends
    x, before = rng.randint(0, 6, (30, 3)), rng.uniform(-1, 1, (2, 3, 5)).astype('float32')
    ms.model.set_params(loud)
    try:
        found = reading.gates(ms.model, x, before, compiled)
    finally:
        ms.model.set_params(params)
    states = np.array(naive_states(loud, x, before, ms.hyper.layernorm))
    assert len(found) == 2
    for l, layer in enumerate(found):
        z, r = naive_gates(loud, states, before, x, l, ms.hyper.layernorm)
        assert 0.01 < (z >= 1).mean() < 0.6
        for shares, expected in zip(layer, (z >= 1, z <= 0, r >= 1, r <= 0)):
            np.testing.assert_allclose(shares, expected.mean((0, 1)), atol=1e-12)
        np.testing.assert_allclose(layer.spread, np.ptp(states[l], axis=(0, 1)), atol=1e-3)
        assert not layer.stuck.any()


def test_units_are_stuck_whose_update_gate_never_leaves_an_end_or_whose_state_never_varies(ms):
    params = ms.model.get_params()
    stuck = {name: value.copy() for name, value in params.items()}
    stuck['b1'][0], stuck['b1'][1] = 50, -50                                # z of two units
    for name in ('U1', 'W1'):
        stuck[name][:, 10 + 2] = 0                                          # and h of a third one, always 0
    stuck['b1'][10 + 2] = 0
    ms.model.set_params(stuck)
    try:
        first, second = reading.gates(ms.model, np.random.RandomState(0).randint(0, 6, (40, 2)), np.zeros((2, 2, 5)))
    finally:
        ms.model.set_params(params)
    assert not first.stuck.any() and second.stuck.tolist() == [True, True, True, False, False]
    assert (second.zopen[0], second.zshut[0]) == (1, 0) and (second.zopen[1], second.zshut[1]) == (0, 1) and second.spread[2] == 0
