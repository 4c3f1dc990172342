"""What a reading gives, against the naive network, and which neurons follow something: planted ones, and none in noise."""

import contextlib
import math

import numpy as np
import pytest

import errors
import inside
import reading
from conftest import naive_layernorm, naive_logits, naive_states
from modelcases import WORDS, varied
from rounding import bfloat16
from test_reading import CHARS, MODELS, STARTS, naive_gates


@pytest.fixture(scope='module', **MODELS)
def ms(request, tmp_path_factory):
    """With parameters so large that gates saturate."""
    modeltype, layernorm = request.param
    return varied(tmp_path_factory.mktemp('model'), modeltype, 5, 1.6, layernorm=layernorm)


def codes(text):
    return np.array([max(CHARS.find(char), 0) for char in text])[:, None]


def test_a_reading_is_the_naive_networks(ms, monkeypatch):
    monkeypatch.setattr(reading, 'CHUNK', 30)
    text = WORDS[:100]
    read = inside.read(ms, text, states=True)
    params = ms.model.get_params()
    states = np.array(naive_states(params, codes(text), np.zeros((2, 1, 5)), ms.hyper.layernorm))[:, :, 0]
    np.testing.assert_allclose(read.states, states.transpose(0, 2, 1), atol=2e-5)
    logits = naive_logits(params, codes(text)[:-1], np.zeros((2, 1, 5)), ms.hyper.layernorm)[0][:, 0]
    first = [(STARTS.get(char, 0) + 1) / 66 for char in CHARS]
    chances = [first] + [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in logits]
    for i, row in enumerate(chances):
        assert read.shares[i] == pytest.approx(-math.log(row[codes(text)[i, 0]]), abs=2e-5)
        ranked = sorted(range(6), key=lambda v: -row[v])[:5]
        if i:                                           # at first, several are equally likely
            assert read.likeliest[i].tolist() == ranked
        np.testing.assert_allclose(read.chances[i], [row[v] for v in ranked], atol=2e-5)
    assert read.likeliest[0].tolist()[:3] == [4, 3, 5] and (read.text, read.chars) == (text, CHARS)


def test_surprise_is_the_score_and_states_are_those_of_trackneurons(ms):
    for text in ('a', 'ab', WORDS * 3):
        assert len(text) < 1000 or len(text) > reading.CHUNK
        read, bare = inside.read(ms, text, states=True), inside.read(ms, text)
        np.testing.assert_allclose(read.shares, ms.score(text).shares, atol=1e-9)
        np.testing.assert_array_equal(bare.shares, ms.score(text).shares)
        np.testing.assert_array_equal(read.states, ms.trackneurons(text))
        assert not len(bare.states) and read.likeliest.shape == read.chances.shape == (len(text), 5)


def test_gates_are_those_of_the_naive_network(ms, monkeypatch):
    monkeypatch.setattr(reading, 'CHUNK', 30)
    text = WORDS[:100]
    gates = inside.gatevalues(ms, text)
    params = ms.model.get_params()
    states = np.array(naive_states(params, codes(text), np.zeros((2, 1, 5)), ms.hyper.layernorm))
    (opened, shut), tenths = gates.saturated(), gates.histogram()
    for l in range(2):
        for g, (values, found) in enumerate(zip(naive_gates(params, states, np.zeros((2, 1, 5)), codes(text), l, ms.hyper.layernorm),
                                                (gates.z[l], gates.r[l]))):
            values = np.array([[min(max(value, 0), 1) for value in row] for row in values[:, 0]]).T
            np.testing.assert_allclose(found, values, atol=2e-5)
            for unit in range(5):
                assert opened[l, g, unit] == sum(value > 0.9 for value in found[unit]) / 100
                assert shut[l, g, unit] == sum(value < 0.1 for value in found[unit]) / 100
            assert tenths[l, g].tolist() == [pytest.approx(sum(k <= 10 * value < k + 1 or value == 1 and k == 9 for row in found
                                                               for value in row) / 500) for k in range(10)]
    both = np.concatenate([gates.z, gates.r])
    assert (both == 1).any() and (both == 0).any()


def in_int8(x, weights, most):
    """x (n, K) @ weights: these on 127 points a side of each column's greatest, x on 63 of `most`."""
    scales = np.abs(weights).max(0) / 127
    return np.rint(x * 63 / most) * most / 63 @ (np.rint(weights / scales) * scales)


def in_bfloat16(x, weights, most):
    return bfloat16(x) @ bfloat16(weights)


@pytest.mark.parametrize('precision, times', [('bfloat16', in_bfloat16), ('int8', in_int8)])
def test_gates_are_those_of_the_precision_read_in(ms, precision, times):
    ms.model.read(precision)
    try:
        gates, states, params = inside.gatevalues(ms, WORDS[:60]), ms.trackneurons(WORDS[:60]), ms.model.get_params()
    finally:
        ms.model.read(None)
    x, below = codes(WORDS[:60])[:, 0], None
    for l in range(2):
        U, W, b = (params[f'{name}{l}'][..., :10] for name in 'UWb')
        if l:                                   # what layernorm passes up has no bound, states are within 1
            into = times(below, U, np.abs(below).max(1, keepdims=True) if ms.hyper.layernorm else 1)
        else:
            into = np.tanh(params['E'][x] + params['a']) @ U if 'E' in params else U[x]
        before = np.concatenate([np.zeros((1, 5), 'float32'), states[l].T[:-1]])
        naive = np.clip(0.2 * (into + times(before, W, 1) + b) + 0.5, 0, 1)
        found = np.concatenate([gates.z[l], gates.r[l]]).T
        np.testing.assert_allclose(found, naive, atol=2e-3)         # where a sum lies between two steps, it may go to either
        plain = np.clip(0.2 * ((below @ U if l else into) + before @ W + b) + 0.5, 0, 1)
        assert np.abs(found - naive).mean() < 0.1 * np.abs(plain - naive).mean()
        below = naive_layernorm(states[l].T).astype('float32') if ms.hyper.layernorm else states[l].T


def test_what_this_machine_cannot_hold_is_refused_in_one_sentence(ms, monkeypatch):
    monkeypatch.setattr(errors.os, 'sysconf', lambda name: 1000 if name == 'SC_PAGE_SIZE' else 8)
    assert inside.read(ms, WORDS[:90], states=True).states.shape == (2, 5, 90)              # twice 3,600 bytes of 8,000
    for call in (lambda: inside.read(ms, WORDS[:120], states=True), lambda: inside.gatevalues(ms, WORDS[:60])):
        with pytest.raises(MemoryError, match='give a part of the text'):
            call()


@pytest.mark.parametrize('limits, refused', [([], ''), (['max\n'], ''), (['2500000000\n'], '2.5 GB'), (['9223372036854771712\n'], ''),
                                             (['max\n', '500000000\n'], '0.5 GB'), (['nonsense'], '')])
def test_a_container_has_the_memory_that_its_control_group_leaves_it(monkeypatch, tmp_path, limits, refused):
    """On a machine of 4 GB, for 3 GB."""
    monkeypatch.setattr(errors.os, 'sysconf', lambda name: {'SC_PAGE_SIZE': 4096}.get(name, 1_000_000))
    monkeypatch.setattr(errors, 'CONTAINERS', [tmp_path / name for name in ('two', 'one')])
    for path, limit in zip(errors.CONTAINERS, limits):
        path.write_text(limit)
    with pytest.raises(MemoryError, match=f'about 3.0 GB, and this machine has {refused}: wait$') if refused else contextlib.nullcontext():
        errors.checkmemory('it', 3e9, 'wait')


def test_where_nobody_tells_the_memory_nothing_is_refused(monkeypatch, tmp_path):
    """Windows has no sysconf."""
    monkeypatch.delattr(errors.os, 'sysconf')
    monkeypatch.setattr(errors, 'CONTAINERS', [tmp_path / 'none'])
    errors.checkmemory('it', 1e30, 'wait')


# ---- neurons that follow something

def noise(seed, memory=0.8, T=3000):
    """States (2, 20, T) that know nothing of any text, each like its last one."""
    rng, states = np.random.RandomState(seed), np.zeros((2, 20, T))
    for t in range(1, T):
        states[:, :, t] = memory * states[:, :, t - 1] + (1 - memory) * rng.uniform(-1, 1, (2, 20))
    return states.astype('float32')


def prose(seed, T=3000):
    """A text of which no stretch is like another: lines and quotes of all lengths."""
    rng, text = np.random.RandomState(seed), ''
    while len(text) < T:
        words = [''.join(rng.choice(list('abcdefgh'), rng.randint(1, 9))) for _ in range(rng.randint(1, 30))]
        words = [word.capitalize() if rng.rand() < 0.2 else word for word in words]
        if rng.rand() < 0.5 and len(words) > 2:
            words[0], words[-1] = '"' + words[0], words[-1] + '"'
        text += ' ' * rng.randint(0, 9) + ' '.join(words) + ('\n' if rng.rand() < 0.8 else ' (\n')
    return text[:T]


def test_a_planted_neuron_is_found_and_named():
    text, states = prose(1), noise(1)
    inquotes, flag = [], False
    for char in text:
        flag ^= char == '"'
        inquotes.append(flag)
    rng = np.random.RandomState(2)
    states[1, 7] = np.where(inquotes, -0.9, 0.1) + rng.uniform(-0.2, 0.2, 3000)
    states[0, 3] = np.array([char.isupper() for char in text]) * 0.5
    found, nothing, leftout = inside.find(states, text)
    # Half of 3,000 is 1,500: the r of the second half, by hand.
    want = np.corrcoef(states[1, 7, 1500:], inquotes[1500:])[0, 1]
    first, second = found
    assert first[:3] == ('upper case', 0, 3) and first.r == pytest.approx(1) and first.chosenby == pytest.approx(1)
    assert second[:3] == ('in quotes', 1, 7) and second.r == pytest.approx(want, abs=1e-6) and want < -0.9
    assert second.chosenby == pytest.approx(np.corrcoef(states[1, 7, :1500], inquotes[:1500])[0, 1], abs=1e-6)
    assert set(nothing) == {'depth of brackets', 'indentation', 'position in the line', 'word ends'} and leftout == ['in a comment']


def test_chance_is_what_shifting_by_every_number_of_characters_gives():
    rng = np.random.RandomState(0)
    # The last: so many standard deviations away that a normal number is beyond them, on either side, in a share `level`.
    for T, level, deviations in ((40, 0.2, 1.2815515655446), (41, 0.0455002638964, 2), (400, 0.0000633424836, 4), (400, 0.3173105, 1)):
        neuron, values = rng.uniform(-1, 1, T), rng.randint(0, 2, T).astype(float)
        near = T // 10
        shifted = sorted(abs(np.corrcoef(neuron, np.roll(values, k))[0, 1]) for k in range(near, T - near + 1))
        r, chance = inside._againstshifts(neuron, values, level)
        assert r == pytest.approx(np.corrcoef(neuron, values)[0, 1])
        spread = math.sqrt(sum(math.atanh(each) ** 2 for each in shifted) / len(shifted))
        assert chance == pytest.approx(max(shifted[-1 - int(level * len(shifted))], math.tanh(deviations * spread)))


@pytest.mark.parametrize('memory', [0.0, 0.8, 0.98])
def test_nothing_is_found_in_noise(memory):
    for seed in range(6):
        found, nothing, leftout = inside.find(noise(seed, memory), prose(seed))
        assert found == [] and len(nothing) == 6 and leftout == ['in a comment']


def test_a_neuron_that_fits_one_half_of_the_text_only_is_none():
    text, states = prose(3), noise(3)
    states[0, 0, :1500] = [char.isupper() for char in text[:1500]]
    states[0, 1] = [char.isupper() * (1 if i < 1500 else -1) for i, char in enumerate(text)]         # and one that turns round
    assert inside.find(states, text)[0] == []


def test_neurons_that_never_change_are_no_error_and_texts_without_variety_are_left_out():
    text, states = prose(4), noise(4)
    states[0] = 0.25
    states[1, :5] = 1
    found, nothing, _ = inside.find(states, text)
    assert found == [] and nothing
    found, nothing, leftout = inside.find(states, 'a' * 3000)
    assert found == [] and nothing == ['position in the line'] and len(leftout) == 6
