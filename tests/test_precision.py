"""Training and reading in other precisions: what is rounded, that kernel and NumPy agree, and what it does."""

import os
import subprocess
import sys

import numpy as np
import pytest

import compiler
import layers
import native
import ops
from conftest import ROOT, kernel, naive_vectors, perform
from hyperparams import HyperParams
from kernelcases import KERNELS, SOURCES, needskernels
from rn_rnn_char import ModelState
from rounding import bfloat16
from sampling import ReadText

pytestmark = pytest.mark.usefixtures('threads_as_before')


@pytest.fixture
def emulated(monkeypatch):
    """bfloat16 is computed in, whatever the processor."""
    monkeypatch.setattr(native, 'accelerates', lambda precision: KERNELS is not None)


def case(source, T=4, B=3, K=6, H=5, V=7, seed=0):
    """Inputs of a GRU Op, a list of float32 arrays, gates and states well inside their ranges."""
    rng = np.random.RandomState(seed)

    def uniform(*shape, scale=1.0):
        return rng.uniform(-scale, scale, shape).astype(np.float32)
    x = rng.randint(0, V, (T, B)).astype(np.int32)
    first = {'vectors': lambda: [uniform(T, B, K)], 'onehot': lambda: [x], 'encoded': lambda: [x, uniform(V, K), uniform(K)]}[source]()
    return first + [uniform(B, H), uniform(V if source == 'onehot' else K, 3 * H, scale=K ** -0.5), uniform(H, 3 * H, scale=H ** -0.5),
                    uniform(3 * H)]


# --- The GRU -------------------------------------------------------------------------------------------------------------

def bf16(values):
    """To 8 significant bits, number by number: frexp gives a mantissa in [0.5, 1)."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)            # rint: ties to even


def rounding_gru(source, inputs):
    """S in float64 by the formulas of DESIGN with every operand of a product rounded, but the characters' x U."""
    *_, s, U, W, b = (np.asarray(i, np.float64) for i in inputs)
    H = len(W)
    X = naive_vectors(source, inputs[:-4] if source != 'onehot' else [inputs[0], len(U)])
    if source == 'vectors':
        X, U = bf16(X), bf16(U)
    W, S = bf16(W), []
    for x in X:
        into = x @ U + b
        zr = np.clip(0.2 * (into[:, :2 * H] + bf16(s) @ W[:, :2 * H]) + 0.5, 0, 1)
        z, r = zr[:, :H], zr[:, H:]
        h = np.tanh(into[:, 2 * H:] + bf16(r * s) @ W[:, 2 * H:])
        s = (1 - z) * h + z * s
        S.append(s)
    return np.array(S)


@pytest.mark.parametrize('source', SOURCES)
def test_operands_and_nothing_else_are_rounded(source):
    inputs = case(source, T=1)          # of more steps one number on a rounding's edge would show in all that follow
    S = perform(ops.GRU(source, 'bfloat16'), *inputs)[0]
    np.testing.assert_allclose(S, rounding_gru(source, inputs), atol=3e-7)
    assert np.abs(S - perform(ops.GRU(source), *inputs)[0]).max() > 1e-4, 'that would also be so without rounding'


SHAPES = [dict(T=1, B=1, K=1, H=1, V=1), dict(T=5, B=3, K=7, H=5, V=4), dict(T=7, B=5, K=33, H=19, V=50), dict(T=9, B=16, K=64, H=64, V=65),
          dict(T=20, B=13, K=64, H=130, V=9), dict(T=3, B=7, K=256, H=100, V=300), dict(T=33, B=8, K=48, H=48, V=20),
          dict(T=3, B=37, K=33, H=65, V=9), dict(T=2, B=33, K=40, H=640, V=9)]     # more rows than a block, panels than a cache


def close(found, wanted):
    """To float32's rounding but for a few: where a sum lies on the edge between two bfloat16, the next step sees the other one."""
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    scale = np.abs(wanted).max() or 1
    error = np.abs(found - wanted) / scale
    assert error.max() < 4e-3 and np.median(error) < 1e-4, (error.max(), np.median(error))


@needskernels
@pytest.mark.parametrize('source', SOURCES)
@pytest.mark.parametrize('shape', SHAPES, ids=lambda s: '-'.join(f'{k}{v}' for k, v in s.items()))
def test_kernel_and_numpy_agree(source, shape):
    inputs = case(source, **shape)
    S, last, G = perform(ops.GRU(source, 'bfloat16'), *inputs)
    for found, wanted in zip(kernel(ops.GRU(source, 'bfloat16'), inputs), (S, last, G)):
        close(found, wanted)
    dS = np.random.RandomState(1).uniform(-1, 1, S.shape).astype(np.float32)
    op, more = ops.GRUGrad(source, 'bfloat16'), [*inputs, S, G, dS]
    for found, wanted in zip(kernel(op, more), perform(op, *more)):
        close(found, wanted)


@needskernels
@pytest.mark.parametrize('source', SOURCES)
def test_gradients_are_those_of_float32_to_three_thousandths(source):
    inputs = case(source, T=30, B=8, K=64, H=64, V=40)
    S, _, G = perform(ops.GRU(source), *inputs)
    dS = np.random.RandomState(1).normal(size=S.shape).astype(np.float32)
    plain = kernel(ops.GRUGrad(source), [*inputs, S, G, dS])
    for found, wanted in zip(kernel(ops.GRUGrad(source, 'bfloat16'), [*inputs, S, G, dS]), plain):
        assert np.linalg.norm(found - wanted) < 6e-3 * np.linalg.norm(wanted)


@needskernels
@pytest.mark.parametrize('source', SOURCES)
def test_results_do_not_depend_on_the_number_of_threads(source):
    inputs = case(source, T=20, B=9, K=100, H=100, V=40)
    found = []
    for threads in (1, 2, 3):
        KERNELS.rngru_set_threads(threads)
        S, _, G = kernel(ops.GRU(source, 'bfloat16'), inputs)
        found.append([S.copy(), G.copy(), *(a.copy() for a in kernel(ops.GRUGrad(source, 'bfloat16'), [*inputs, S, G, np.ones_like(S)]))])
    for other in found[1:]:
        for one, two in zip(found[0], other):
            np.testing.assert_array_equal(one, two)


@needskernels
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_no_number_stays_none(bad):
    inputs = case('vectors')
    inputs[0][1, 1, 2] = bad
    with np.errstate(invalid='ignore'):                 # which an infinity is to some of NumPy's products
        expected = perform(ops.GRU('vectors', 'bfloat16'), *inputs)[0]
    for S in (kernel(ops.GRU('vectors', 'bfloat16'), inputs)[0], expected):
        assert np.isfinite(S[0]).all() and np.isfinite(S[:, 0]).all() and np.isnan(S[-1, 1]).any() == np.isnan(bad)


# --- Training ------------------------------------------------------------------------------------------------------------

def train(precision, steps=60, H=24, V=6, modeltype='GRUEncode'):
    """(losses, model) of training on a text whose next character is (3 this + 1) mod V."""
    model = layers.MODELTYPES[modeltype](V, 2, H, 1, HyperParams(precision=precision))
    rng, hyper, losses = np.random.RandomState(0), HyperParams(optimizer='adam', learnrate=0.01, precision=precision), []
    model.set_state(np.zeros((2, 4, H)))
    for _ in range(steps):
        x = rng.randint(0, V, (10, 4)).astype(np.int32)
        losses.append(model.trainstep(x, (3 * x + 1) % V, hyper)[0])
    return np.array(losses), model


@needskernels
@pytest.mark.parametrize('modeltype', layers.MODELTYPES)
def test_training_learns_as_in_float32(modeltype, emulated):
    plain, _ = train('float32', modeltype=modeltype)
    rounded, _ = train('bfloat16', modeltype=modeltype)
    assert not np.array_equal(plain, rounded)
    np.testing.assert_allclose(rounded, plain, atol=0.02)
    assert rounded[-1] < 0.2 < rounded[0]


def test_without_the_instruction_training_is_float32s_and_says_so_once_when_it_may_speak(monkeypatch, capsys):
    import report
    monkeypatch.setattr(native, 'accelerates', lambda precision: False)
    monkeypatch.setattr(native, '_explained', set())
    plain, _ = train('float32', steps=3)
    for verbose in (False, True, True):
        monkeypatch.setattr(report, 'verbose', verbose)
        np.testing.assert_array_equal(train('bfloat16', steps=3)[0], plain)
    line = "Computing in float32: only kernels for AMX, or AMD's AVX-512, are faster in bfloat16 (here: "
    assert capsys.readouterr().out.count(line) == 1


@pytest.mark.parametrize('kernels', ['numpy', pytest.param(compiler.instructionsets()[-2:][0], marks=pytest.mark.anyengine)])   # SSE2
def test_what_computes_in_float32_instead_is_named_and_need_not_be_the_processor(tmp_path, text, kernels):
    """Nor is there a word of training where text is generated."""
    ModelState.initfromsrcfile(text, tmp_path / 'work', state_size=4, seq_len=20, seed=1, precision='bfloat16')
    code = f'from rn_rnn_char import ModelState; ModelState.load({str(tmp_path / "work")!r}).sample(5)'
    out = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'RN_GRU_KERNELS': kernels, 'RN_GRU_THREADS': '1'}, cwd=ROOT,
                         capture_output=True, text=True).stdout
    computes = 'NumPy' if kernels == 'numpy' or KERNELS is None else f'{kernels} kernels, 1 thread'
    assert f'faster in bfloat16 (here: {computes}).' in out and 'raining' not in out


@needskernels
def test_parameters_and_caches_are_float32s_of_full_precision(emulated):
    _, model = train('bfloat16', steps=5)
    for name, array in model.arrays().items():
        assert array.dtype == np.float32
        assert name[-1] in 'acE' or not np.array_equal(bfloat16(array), array), f'{name} was rounded where it is kept'


@pytest.fixture
def text(tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text('the quick brown fox jumps over the lazy dog.\n' * 60)
    return path


@needskernels
def test_a_model_trained_in_one_precision_restores_and_goes_on_in_the_other(tmp_path, text, emulated):
    ms = ModelState.initfromsrcfile(text, tmp_path / 'work', state_size=16, seq_len=20, seed=1, precision='bfloat16')
    ms.trainmodel(train_len=5, valid_len=3, batchsize=4, print_every=0)
    name = ms.checkpoints()[-1].name
    ms = ModelState.load(tmp_path / 'work')
    assert ms.hyper.precision == 'bfloat16'
    ms.hyper.precision = 'float32'
    ms.trainmodel(train_len=5, valid_len=3, batchsize=4, print_every=0)
    plain = ms.model.get_params()
    ms.restore(name)
    assert ms.hyper.precision == 'bfloat16'
    ms.trainmodel(train_len=5, valid_len=3, batchsize=4, print_every=0)
    for name, value in ms.model.get_params().items():
        assert 0 < np.abs(value - plain[name]).max() < 0.01, name


@needskernels
def test_two_rounds_are_one_twice_as_long_in_bfloat16_too(tmp_path, text, emulated):
    found = []
    for rounds in (1, 2):
        ms = ModelState.initfromsrcfile(text, tmp_path / f'work{rounds}', state_size=16, seq_len=20, seed=1, precision='bfloat16')
        ms.trainmodel(num_rounds=rounds, train_len=8 // rounds, valid_len=3, batchsize=4, print_every=0)
        found.append(ms.model.arrays())
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name])


@pytest.mark.parametrize('value, error', [('bf16', ValueError), ('int8', ValueError), (16, TypeError)])
def test_another_precision_is_refused_with_the_names_of_those_that_there_are(value, error):
    with pytest.raises(error, match="precision takes one of 'float32', 'bfloat16', got"):
        HyperParams(precision=value)


# --- Reading and writing ---------------------------------------------------------------------------------------------------

def naive_int8(source, inputs):
    """S in float64 by the formulas of DESIGN: weights on 127 points a side by column, states on 63 of [-m, m]."""
    *_, s, U, W, b = (np.asarray(i, np.float64) for i in inputs)
    H, S = len(W), []

    def grid(weights):
        scale = np.abs(weights).max(0) / 127
        return np.rint(weights / scale) * scale

    def points(x, m):
        return np.rint(x * 63 / m) * m / 63
    X = naive_vectors(source, inputs[:-4] if source != 'onehot' else [inputs[0], len(U)])
    W, m = grid(W), np.maximum(np.abs(s).max(1, keepdims=True), 1)
    for x in X:
        into = x @ U + b
        zr = np.clip(0.2 * (into[:, :2 * H] + points(s, m) @ W[:, :2 * H]) + 0.5, 0, 1)
        z, r = zr[:, :H], zr[:, H:]
        s = (1 - z) * np.tanh(into[:, 2 * H:] + points(r * s, m) @ W[:, 2 * H:]) + z * s
        S.append(s)
    return np.array(S)


@pytest.mark.parametrize('source', ['onehot', 'encoded'])
@pytest.mark.parametrize('beyond', [1, 3], ids=['within 1', 'beyond 1'])
def test_a_text_is_read_in_int8_by_the_formulas(source, beyond):
    x, *embedding, s0, U, W, b = inputs = case(source, T=1, H=9)
    s0 *= beyond
    network = [*embedding, U, W, b, np.zeros((9, 7), np.float32), np.zeros(7, np.float32)]
    for how in [lambda op, inputs: perform(op, *inputs), *([kernel] if KERNELS else [])]:
        S, = how(ReadText(source == 'encoded', 'int8'), [x, s0[None], *network])
        np.testing.assert_allclose(S[0], naive_int8(source, inputs), atol=2e-6)


def test_a_layer_in_int8_is_refused_since_nothing_trains_in_it():
    with pytest.raises(ValueError, match="float32 or bfloat16, got 'int8'"):
        ops.GRU('vectors', 'int8')


@pytest.fixture
def ms(tmp_path, text):
    ms = ModelState.initfromsrcfile(text, tmp_path / 'work', layers=2, state_size=32, seq_len=20, seed=1, optimizer='adam', learnrate=0.01)
    ms.trainmodel(train_len=30, valid_len=3, batchsize=4, print_every=0)
    return ms


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'int8'])
def test_reading_a_text_in_a_precision_gives_the_states_that_writing_it_gave(ms, precision):
    ms.restore(precision=precision)
    stream = ms.stream(20, temp=0.5, seed=3, prime='t')
    text = ''.join(stream)
    assert text[0] == 't' and len(text) == 21
    read = ms.trackneurons(text[:-1])[:, :, -1]             # the state's last character is not read yet
    np.testing.assert_allclose(read, stream.state.states[:, 0], atol={'float32': 1e-5, 'bfloat16': 3e-3, 'int8': 0}[precision])


def test_the_loss_in_each_precision_is_near_that_of_float32_and_another(ms):
    text, losses = 'the quick brown fox jumps over the lazy dog.\n' * 4, {}
    for precision in ('float32', 'bfloat16', 'int8'):
        ms.restore(precision=precision)
        losses[precision] = ms.score(text).nats
    ms.restore()
    assert ms.score(text).nats == losses['float32']
    assert 0 < abs(losses['bfloat16'] - losses['float32']) < 0.01 and 0 < abs(losses['int8'] - losses['float32']) < 0.02
    assert len(set(losses.values())) == 3


def test_the_checkpoint_stays_as_it_is_and_training_as_it_was(ms):
    params = ms.model.get_params()
    ms.restore(precision='int8')
    ms.sample(20, seed=1)
    for name, value in ms.model.get_params().items():
        np.testing.assert_array_equal(value, params[name])
    assert ms.model.reads == 'int8'
    ms.trainmodel(train_len=2, valid_len=2, batchsize=4, print_every=1)
    assert ms.model.reads == 'float32' and ms.hyper.precision == 'float32'
    plain = ModelState.load(ms.workdir.path)
    plain.restore()
    assert plain.sample(100, seed=2) == ms.sample(100, seed=2)


@pytest.mark.parametrize('value, error', [('int4', ValueError), ('INT8', ValueError), (8, TypeError)])
def test_restore_refuses_another_precision_and_changes_nothing(ms, value, error):
    ms.restore(precision='int8')
    with pytest.raises(error, match="precision takes one of 'float32', 'bfloat16', 'int8', got"):
        ms.restore(precision=value)
    assert ms.model.reads == 'int8'
