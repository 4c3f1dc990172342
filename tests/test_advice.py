"""Advice behind a round: each fault is named in a run that has it, and healthy runs are left alone."""

import io
import math
import re
from contextlib import redirect_stdout

import numpy as np
import pytest

import advice
import history
import report
from advice import Advisor, Point, Text
from rn_rnn_char import ModelState

pytestmark = pytest.mark.anyengine

WORDS = 'the cat sat on a mat and then it ran far away from old dog who had seen him eat some fresh white fish by our door'.split()


def write(seed=0, length=20_000):
    """Lines of words from a small vocabulary, each word drawn by the one before."""
    rng = np.random.RandomState(seed)
    words, at = [], 0
    while sum(map(len, words)) + len(words) < length:
        at = (at * 7 + rng.randint(6)) % len(WORDS)
        words.append(WORDS[at] + ('.\n' if rng.rand() < 0.1 else ''))
    return ' '.join(words)[:length]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(..., hyperparameters) makes a model and trains it; it gives the model and a list of what was advised,
    a line or None a round."""
    monkeypatch.setattr(report, 'verbose', True)

    def train(num_rounds=3, batchsize=16, train_len=150, text=None, modeltype='GRUEncode', seed=1, run=(), change=None, ms=None, **hyper):
        said, original = [], Advisor.round
        monkeypatch.setattr(Advisor, 'round', lambda self, *args: said.append(original(self, *args)) or said[-1])
        with redirect_stdout(io.StringIO()) as printed:
            if ms is None:
                (tmp_path / 'text').write_text(text or write())
                ms = ModelState.initfromsrcfile(tmp_path / 'text', tmp_path / f'work{len(list(tmp_path.iterdir()))}', modeltype, seed=seed,
                                                **{'seq_len': 25, 'state_size': 32, 'valid_frac': 0.1, **hyper})
            if change:
                ms.model.set_params(change(ms.model.get_params()))
            ms.trainmodel(num_rounds, batchsize, train_len, print_every=0, **dict(run))
        monkeypatch.setattr(Advisor, 'round', original)
        for line in filter(None, said):
            assert len(line) <= 160 and '\n' not in line and printed.getvalue().count(line) == 1
        return ms, said
    return train


@pytest.mark.anyengine(False)
def test_advice_that_is_followed_from_left_to_right_stands_behind_it(train):
    ms, _ = train(2, learnrate=0.005)
    ms.hyper.learnrate = 1.0
    said = train(1, ms=ms)[1][0]
    assert said.startswith('Learning rate too high')
    steps = re.search(r"(ms.restore\('best'\)), then try (ms.hyper.learnrate = [\d.]+) \(now 1\)\.$", said)
    with redirect_stdout(io.StringIO()):
        for step in steps.groups():
            exec(step, {'ms': ms})
    assert ms.hyper.learnrate == 0.1 and ms.checkpoint == ms.checkpoints().best      # 0.005, had it been set before the way back


def test_a_held_out_part_of_another_kind_is_told_before_any_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, 'verbose', True)
    prose, verse = write(length=60_000), write(1, 9_000).upper()
    for name, text, isunlike in (('ordered', prose + verse, True), ('mixed', prose[:30_000] + verse + prose[30_000:], False),
                                 ('short', prose[:20_000] + verse[:3_000], False)):
        (tmp_path / 'text').write_text(text)
        ModelState.initfromsrcfile(tmp_path / 'text', tmp_path / name, valid_frac=0.1, state_size=4)
        lines = [line for line in capsys.readouterr().out.splitlines() if 'unlike the rest' in line]
        assert len(lines) == isunlike and all(len(line) <= 160 for line in lines), name
    ModelState.initfromsrcfile(tmp_path / 'text', tmp_path / 'all', state_size=4)
    assert 'unlike' not in capsys.readouterr().out


@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
def test_unlike_is_a_divergence_of_characters_above_a_third_of_a_nat_and_chance(dtype):
    """0.9 ln(0.9 / 0.5) + 0.1 ln(0.1 / 0.5) = 0.368 nats, and with 0.85 and 0.15 0.270."""
    half = np.tile(np.array([0, 1], dtype), 5000)
    assert advice.unlike(half, np.repeat(np.array([0, 1], dtype), [4500, 500]), 2)
    assert not advice.unlike(half, np.repeat(np.array([0, 1], dtype), [4250, 750]), 2)
    long = np.tile(half, 300)                       # 3 million; a kind of its own in its last third
    long[2_000_000:] = 0
    assert not advice.unlike(long, np.tile(np.array([0, 0, 0, 1], dtype), 2000), 2)        # 2/3 and 1/3 against 3/4 and 1/4


@pytest.mark.parametrize('vocab', [60, 3000])
def test_rare_characters_do_not_make_parts_of_one_text_unlike(vocab):
    rng = np.random.RandomState(vocab)
    chances = 1 / np.arange(1, vocab + 1)           # Zipf's law
    for length in (50_000, 300_000):
        codes = rng.choice(vocab, length, p=chances / chances.sum()).astype('uint16')
        assert not advice.unlike(codes[:-length // 10], codes[-length // 10:], vocab)


# --- Runs made to show a fault ------------------------------------------------------------------------------------

def test_a_network_that_learns_200_characters_by_heart_is_told_of_dropout_and_the_best_checkpoint(train):
    ms, said = train(8, 2, 40, text=write(length=200), seq_len=10, state_size=64, learnrate=0.005)
    lines = [line for line in said if line]
    assert lines and len(lines) < 4
    assert re.match(r"Over-fitting: validation has risen for \d+ rounds?, (\d\.\d\d) above the best, while training fell: "
                    r"ms.restore\('best'\), then try dropout=0.2 \(ms.hyper.dropout\).$", lines[0])
    table = ms.history()
    losses = table.validations['loss']
    at = said.index(lines[0])
    assert f'{losses[at] - losses[:at].min():.2f} above the best' in lines[0]


@pytest.mark.anyengine(False)
def test_one_that_has_much_dropout_already_is_told_of_its_size_and_its_time(train):
    lines = [line for line in train(8, 2, 60, text=write(length=200), seq_len=10, state_size=128, learnrate=0.005, dropout=0.5)[1] if line]
    assert lines and lines[0].endswith("ms.restore('best'), then try a smaller network or less time.")


def test_rounds_of_several_calls_are_compared_too(train):
    ms, said = train(1, 2, 40, text=write(length=200), seq_len=10, state_size=64, learnrate=0.005)
    for _ in range(7):
        said += train(1, 2, 40, ms=ms)[1]
    lines = [line for line in said if line]
    assert lines and len(lines) < 4 and all(line.startswith('Over-fitting') for line in lines)


@pytest.mark.parametrize('hyper', [dict(learnrate=0.3), pytest.param(dict(optimizer='adam', learnrate=0.8), marks=pytest.mark.long),
                                   pytest.param(dict(optimizer='sgd', learnrate=8), marks=pytest.mark.long),
                                   dict(optimizer='sgd', learnrate=8, clipping='norm', clip=1.0),
                                   pytest.param(dict(learnrate=0.3, layers=2, modeltype='GRUResize'), marks=pytest.mark.long)])
def test_too_high_a_rate_is_told_with_a_lower_one(train, hyper):
    _, said = train(2, **hyper)
    line = next(filter(None, said))
    assert line.startswith('Learning rate too high: ') and f'now {hyper["learnrate"]:g}' in line
    assert float(re.search(r'ms.hyper.learnrate = (\S+)', line)[1]) < hyper['learnrate'] / 2
    assert ('% of steps clipped' in line) == ('clip' in hyper)


def test_a_rate_raised_too_far_between_two_calls_is_told(train):
    ms, said = train(2, train_len=200, learnrate=0.01)
    assert said == [None, None]
    ms.hyper.learnrate = 0.3
    assert train(1, ms=ms)[1][0].startswith('Learning rate too high: ')


@pytest.mark.parametrize('hyper', [dict(learnrate=1e-5), *(pytest.param(hyper, marks=pytest.mark.long) for hyper in (
    dict(optimizer='adam', learnrate=1e-5), dict(optimizer='sgd', learnrate=1e-4), dict(learnrate=1e-4, layers=3)))])
def test_too_low_a_rate_is_told_with_a_higher_one(train, hyper):
    _, said = train(2, train_len=300, **hyper)
    assert said[0].startswith('Learning slowly: after 300 steps') and said[1] is None
    assert float(re.search(r'ms.hyper.learnrate = (\S+)', said[0])[1]) > hyper['learnrate'] * 2
    assert f'(now {hyper["learnrate"]:g})' in said[0]


@pytest.mark.long
@pytest.mark.parametrize('rate', [0.06, 0.1])
def test_a_rate_that_has_ruined_the_network_is_never_called_too_low(train, rate):
    """Adam's: the loss stays near the letters' frequencies, with all gates stuck."""
    _, said = train(6, train_len=100, optimizer='adam', learnrate=rate, layers=2)
    lines = [line for line in said if line]
    assert lines[0].startswith(('Stuck units', 'Learning rate too high')) and not any('slowly' in line for line in lines)


def test_steps_of_several_calls_count_for_too_low_a_rate(train):
    ms, said = train(1, train_len=100, learnrate=1e-5)
    for _ in range(3):
        said += train(1, train_len=100, ms=ms)[1]
    assert said[:2] == [None, None] and said[2].startswith('Learning slowly: after 300 steps') and said[3] is None
    ms.hyper.learnrate = 2e-5                               # another rate has its own time
    ms.advised.clear()
    assert train(2, train_len=100, ms=ms)[1] == [None, None]


def test_where_a_clip_holds_the_network_back_the_clip_is_named(train):
    _, said = train(1, train_len=300, optimizer='sgd', learnrate=0.1, clipping='norm', clip=0.001)
    assert 'ms.hyper.clip (0.001), which binds 100% of the steps' in said[0]


@pytest.mark.parametrize('bias, words', [(40.0, 'always 1'), pytest.param(-40.0, 'always 0', marks=pytest.mark.long)])
def test_gates_that_are_stuck_are_told_with_their_layer_and_share(train, bias, words):
    def change(params):
        params['b1'][:16] = bias                            # the update gates of half of layer 1's units
        return params
    _, said = train(1, 16, 300, layers=2, learnrate=0.005, change=change)
    assert said[0].startswith('Stuck units: 50% of layer 1, whose update gate is ' + words) and 'ms.hyper.learnrate' in said[0]


@pytest.mark.parametrize('init, isadvised', [('uniform', True), ('lookup', False)])
def test_where_many_different_characters_leave_units_stuck_other_first_weights_are_named(train, init, isadvised, monkeypatch):
    monkeypatch.setattr(advice, 'toohigh', lambda *args: (1.0, 'the loss jumps') if isadvised else None)     # as it does then
    def change(params):
        params['b0'][:16] = 40
        return params
    _, said = train(1, 16, 300, text=''.join(map(chr, range(0x4e00, 0x5050))) + write(), init=init, change=change)
    assert said[0].startswith('Stuck units: 50% of layer 0') and ("a new model with init='lookup'" in said[0]) == isadvised


@pytest.mark.anyengine(False)
def test_a_quarter_of_the_units_may_be_stuck(train):
    def change(params):
        params['b0'][:8] = 40
        return params
    assert train(1, 16, 300, learnrate=0.005, change=change)[1] == [None]


def parts(count, size):
    """A text whose eight letters stand in another order in each of so many parts of so many characters, again and again."""
    rng = np.random.RandomState(3)
    return ''.join((''.join(rng.permutation(list('abcdefgh'))) + '\n') * (size // 9) for _ in range(count))


@pytest.mark.parametrize('batchsize, text, sentence', [(2, (45, 900), 'the 2 places that it reads. Try batchsize=8.'),
                                                       (63, (120, 4500), 'the 63 places that it reads. Try batchsize=252.'),
                                                       (64, (120, 4500), None)])
def test_where_few_rows_follow_a_text_that_changes_on_the_way_more_are_named(train, batchsize, text, sentence):
    ms, said = train(2, batchsize, 150, text=parts(*text), optimizer='adam', learnrate=0.02)
    gap = ms.history().validations['loss'][0] - ms.history().steps['loss'][50:150].mean()
    assert ms.model.epoch == 0 and gap > 0.25 and said[1] is None
    assert said[0] is None if sentence is None else said[0].startswith('Few rows: ') and said[0].endswith(sentence)


@pytest.mark.parametrize('rounds, steps, options, isadvised', [
    (1, 150, {}, False),                                # call by call it may be read to its end
    (1, 150, {'run': {'patience': 9}}, True),
    (2, 99, {}, False),                                 # too few steps to know
    (2, 150, {'valid_frac': 0.0, 'run': {'valid_len': 5}}, False)])
def test_more_rows_are_named_only_where_it_is_known_that_few_are_the_reason(train, rounds, steps, options, isadvised):
    _, said = train(rounds, 2, steps, text=parts(45, 900), **{'optimizer': 'adam', 'learnrate': 0.02, **options})
    assert [bool(line and line.startswith('Few rows')) for line in said] == ([isadvised] + [False] * (rounds - 1))


def test_a_text_that_is_to_be_read_to_its_end_gets_no_more_rows(train):
    ms, said = train(2, 2, 370, text=parts(45, 900), optimizer='adam', learnrate=0.02)          # 37,000 characters of 36,450
    assert ms.history().validations['loss'][0] > ms.history().steps['loss'][270:370].mean() + 0.3 and said[0] is None


# --- Healthy runs -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('modeltype, seed, optimizer, learnrate', [
    ('GRUResize', 1, 'rmsprop', 0.003), ('GRUEncode', 3, 'adam', 0.003), *(pytest.param(modeltype, *run, marks=pytest.mark.long)
        for modeltype in ('GRUEncode', 'GRUResize') for run in (
            (2, 'rmsprop', 0.01), (4, 'adam', 0.01), (5, 'sgd', 0.3), (6, 'sgd', 0.8))),
    pytest.param('GRUEncode', 1, 'rmsprop', 0.003, marks=pytest.mark.long),
    pytest.param('GRUResize', 3, 'adam', 0.003, marks=pytest.mark.long)])
def test_healthy_runs_are_left_alone(train, modeltype, seed, optimizer, learnrate):
    _, said = train(3, seed=seed, text=write(seed), modeltype=modeltype, optimizer=optimizer, learnrate=learnrate)
    assert said == [None] * 3


@pytest.mark.parametrize('more', [
    dict(run=dict(schedule='cosine', warmup=50), layers=2), dict(valid_frac=0.0, train_len=30, num_rounds=8),
    *(pytest.param(more, marks=pytest.mark.long) for more in (
        dict(run=dict(schedule='linear')), dict(dropout=0.3, layers=2), dict(ema=0.99), dict(regcost=0.2), dict(batchsize=1),
        dict(optimizer='sgd', learnrate=1.0, clipping='norm', clip=0.1), dict(batchsize=1, clipping='norm', clip=0.1),
        dict(batchsize=2, seq_len=10), dict(valid_frac=0.0, run=dict(valid_len=3))))])
def test_healthy_runs_of_many_kinds_are_left_alone(train, more):
    _, said = train(**{'num_rounds': 4, 'learnrate': 0.005, 'seed': 7, **more})
    assert said == [None] * len(said)


def test_nothing_is_over_fitted_before_a_text_was_read_once(train):
    """What is held out is of another kind than what is read first: validation rises while training falls."""
    text = write(1, 18_000) + write(2, 4_000).upper()
    ms, said = train(5, 4, 25, text=text, learnrate=0.01)
    losses = ms.history().validations['loss']
    assert losses[-1] > losses.min() + 0.3 and ms.model.epoch == 0 and said == [None] * 5


def test_the_end_of_a_schedule_is_no_low_rate(train):
    """It starts so late that the loss never leaves what the letters' frequencies give."""
    _, said = train(1, train_len=400, learnrate=1e-5, run=dict(schedule='linear'))
    assert said == [None]


def test_a_text_without_anything_to_learn_is_no_low_rate(train):
    letters = ''.join(np.random.RandomState(1).choice(list('abcdefgh'), 20_000))
    assert train(1, train_len=400, text=letters, learnrate=0.003)[1] == [None]


def test_nothing_is_computed_where_nothing_is_said(train, monkeypatch):
    ms, _ = train(1, train_len=20)

    def fail(*args, **options):
        raise AssertionError
    for name in ('toohigh', 'gates', 'overfitting'):
        monkeypatch.setattr(advice, name, fail)
    monkeypatch.setattr(history, 'rounds', fail)
    ms.trainmodel(1, 16, 20, print_every=0, verbose=False)


def test_a_damaged_history_ends_no_training(train):
    ms, _ = train(2, train_len=30, learnrate=0.005)
    for damage in (b'kind,updates,loss\n1,validation,3\n', b'\xff\x00' * 500, ',validation,\n' * 3):
        (ms.workdir.path / history.FILE).write_bytes(damage if isinstance(damage, bytes) else damage.encode())
        assert train(1, train_len=30, ms=ms)[1] == [None]


# --- Rules, on numbers by hand ------------------------------------------------------------------------------------

TEXT = Text(uniform=4.0, letters=3.0, pairs=2.0)


@pytest.mark.anyengine(False)
def test_the_entropies_of_a_text():
    """a and b in turn: ln 2 a letter, nothing where the one before is known. Drawn at random: ln 2 either way."""
    text = Text.of(np.arange(10_000) % 2, 5)
    assert text.uniform == pytest.approx(math.log(5)) and text.letters == pytest.approx(math.log(2))
    assert text.pairs == pytest.approx(0, abs=1e-3)
    text = Text.of(np.random.RandomState(0).randint(0, 16, 3000), 16)
    assert text.letters == pytest.approx(math.log(16), abs=0.01) and text.pairs == pytest.approx(math.log(16), abs=0.02)


def points(*losses):
    """Points, 100 steps each, of (validation, train)."""
    return [Point(100 * i, 0, *each, 100, 0.01) for i, each in enumerate(losses, 1)]


@pytest.mark.anyengine(False)
@pytest.mark.parametrize('losses, expected', [
    ([(2.0, 1.9), (1.8, 1.6), (1.9, 1.4), (2.0, 1.2)], (2, 0.2)),
    ([(2.0, 1.9), (1.8, 1.6), (1.9, 1.6), (2.0, 1.6)], None),              # training doesn't fall
    ([(2.0, 1.9), (1.8, 1.6), (1.81, 1.5), (1.82, 1.4)], None),            # within what chance does
    ([(2.0, 1.9), (1.8, 1.6), (1.9, 1.4), (1.79, 1.3)], None),             # it fell again
    ([(2.0, 1.9), (1.8, 1.6), (1.9, 1.4)], None),                          # one round may be chance
    ([(2.0, 1.9), (1.8, 1.6), (2.6, 0.9)], (1, 0.8)),                      # so far isn't
    ([(1.5, 0.1), (2.0, 0.05), (2.5, 0.03)], (2, 1.0)),                    # learnt by heart already
    ([(2.0, 1.9)], None)])
def test_over_fitting_is_validation_that_rises_while_training_falls(losses, expected):
    found = advice.overfitting(points(*losses), 10_000, 16, 0.01)
    assert found == (expected and (expected[0], pytest.approx(expected[1])))


def test_a_short_validation_must_rise_further():
    rising = points((1.8, 1.6), (1.87, 1.4), (1.9, 1.2))
    assert advice.overfitting(rising, 10_000, 16, 0.01)
    assert not advice.overfitting(rising, 100, 16, 0.01) and not advice.overfitting(rising, 10_000, 1, 0.01)


def losses(level, scatter=0.05, count=300):
    """Normal ones; a step's noise is 0.05 in what follows."""
    return level + np.random.RandomState(2).normal(0, scatter, count)


def toohigh(losses, lowest=math.inf, clipped=0.0, validation=math.inf, rows=16):
    return advice.toohigh(losses, 0.05, TEXT, lowest, clipped, rows, validation)


def test_a_loss_above_guessing_is_told():
    assert 'worse than guessing (4.00)' in toohigh(losses(4.5))[1]
    assert toohigh(losses(4.1)) is None and toohigh(losses(4.5)[:19]) is None
    assert toohigh(losses(4.5), validation=2.5) is None                     # dropout's doing


def test_a_loss_that_jumps_without_having_learnt_anything_is_told():
    assert 'jumps by 0.2' in toohigh(losses(3.4, 0.22))[1]
    assert toohigh(losses(3.4, 0.06)) is None and toohigh(losses(2.5, 0.15)) is None


def test_a_loss_that_rises_is_told():
    rising = losses(2.0) + np.linspace(0, 1.5, 300)
    assert 'has risen from 2.0' in toohigh(rising)[1]
    assert toohigh(rising[::-1]) is None
    assert toohigh(losses(2.65), lowest=2.0) is None and toohigh(losses(2.65), lowest=2.0, clipped=0.9) is not None
    assert toohigh(losses(2.8), lowest=2.0) is not None and toohigh(losses(3.0), lowest=2.0, rows=1) is None


def test_spikes_are_told_where_there_are_several():
    spiky = losses(2.0)
    spiky[[60, 100]] += 1.5
    assert toohigh(spiky) is None
    spiky[[140, 150, 170, 220, 260]] += 1.5
    assert '7 times in 300 steps' in toohigh(spiky)[1] and toohigh(spiky, rows=1) is None


@pytest.mark.parametrize('steps, level, words', [(300, 2.95, 'letter frequencies give 3.00'), (299, 3.5, None), (300, 2.85, None),
                                                 (2000, 2.6, 'pairs of letters give 2.00'), (2000, 2.4, None)])
def test_what_a_network_does_not_know_yet(steps, level, words):
    assert advice.toolow(steps, level, TEXT) == words
    assert advice.toolow(steps, level, TEXT._replace(pairs=2.9)) is None    # nothing to know


@pytest.mark.anyengine(False)
def test_scatter_is_a_standard_deviation_that_neither_trend_nor_leaps_move():
    values = losses(2.0, 0.1, 2000)
    assert advice.scatter(values) == pytest.approx(0.1, rel=0.08)
    values += np.linspace(3, 0, 2000)
    values[::50] += 5
    assert advice.scatter(values) == pytest.approx(0.1, rel=0.12)
    assert advice.scatter([1.0]) == 0


def test_the_same_advice_comes_again_when_it_is_worse_or_after_five_rounds():
    class Ms:
        advised = {}
    advisor = Advisor.__new__(Advisor)
    advisor.ms = Ms
    said = [advisor._news(severity and ('over', severity, 'line')) for severity in (0.1, 0.12, None, 0.25, 0.26, None, None, 0.26, 0.26)]
    assert said == ['line', None, None, 'line', None, None, None, None, 'line']
    assert advisor._news(('low', 0.0, 'another')) == 'another'
