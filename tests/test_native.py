"""The Ops on the native kernels: which nodes these compute, what they refuse, and whole trainings."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import engine
import native
import ops
from conftest import ROOT, kernel, perform, symbol
from kernelcases import SOURCES, assert_close, bits, gradcase, grucase, inchild, large, losscase, losses, needskernels, truth, updatecase
from update import Update

# --- Which nodes they compute -----------------------------------------------------------------------------------

def ofkind(case, real='float32', index='int32'):
    return [i.astype(real if i.dtype.kind == 'f' else index) for i in case]


@needskernels
@pytest.mark.parametrize('op, case', [(ops.GRU('encoded'), grucase('encoded')), (ops.GRUGrad('encoded'), gradcase('encoded')),
                                      (ops.SoftmaxLoss(True), losscase())], ids=['GRU', 'GRUGrad', 'SoftmaxLoss'])
def test_other_types_of_numbers_and_of_indices_fall_back_to_numpy(op, case):
    def node(case):
        inputs = [symbol(i) for i in case]
        return engine.Apply(op, inputs, [inputs[-1].type() for _ in range(4)])
    assert op.kernel(node(case)) is not None
    for index in ('int64', 'int16', 'int8', 'uint8', 'uint32'):
        assert op.kernel(node(ofkind(case, index=index))) is None
    assert op.kernel(node(ofkind(case, 'float64'))) is None
    for i in (i for i, value in enumerate(case) if value.dtype == 'float32'):
        mixed = list(case)
        mixed[i] = mixed[i].astype('float64')
        assert op.kernel(node(mixed)) is None


@needskernels
def test_an_update_of_other_types_falls_back_to_numpy():
    case = updatecase([(3,), (2, 2)])
    op = Update('rmsprop', 'value', False, 2)
    assert op.kernel(op.make_node(*map(symbol, case))) is not None
    assert op.kernel(op.make_node(*map(symbol, [np.float32(case[0]), *case[1:]]))) is None
    for i in range(1, len(case)):
        mixed = list(case)
        mixed[i] = np.asarray(mixed[i], 'float64')
        assert op.kernel(op.make_node(*map(symbol, mixed))) is None


@pytest.mark.parametrize('index', ['int64', 'int32', 'uint8'])
@pytest.mark.parametrize('real', ['float32', 'float64'])
def test_a_compiled_function_takes_every_type(real, index):
    case = ofkind(grucase('encoded'), real, index)
    inputs = [symbol(i) for i in case]
    got = engine.compilefunction(inputs, ops.GRU('encoded')(*inputs))(*case)
    assert all(g.dtype == real for g in got)
    assert_close(got, truth(ops.GRU('encoded'), ofkind(grucase('encoded'))), rtol=1e-5 if real == 'float32' else 1e-12)


def test_without_kernels_every_node_falls_back_to_numpy(monkeypatch):
    monkeypatch.setattr(native, 'library', lambda: None)
    for op, case in ((ops.GRU(), grucase('vectors')), (ops.GRUGrad(), gradcase('vectors')), (ops.SoftmaxLoss(True), losscase()),
                     (Update('rmsprop', 'value', False, 1), updatecase([(2,)]))):
        assert op.kernel(op.make_node(*map(symbol, case))) is None


# --- What they refuse -------------------------------------------------------------------------------------------

def changed(case, which, value):
    case = list(case)
    case[which] = np.zeros(value, case[which].dtype) if isinstance(value, tuple) else np.full_like(case[which], value)
    return case


def refusals():
    """(op, inputs) that must be refused."""
    for source in SOURCES:
        case = grucase(source, T=3, B=2, H=4, K=5, V=6)
        for which, shape in ((-4, (3, 4)), (-4, (2, 5)), (-3, (5, 11)), (-2, (4, 11)), (-2, (3, 12)), (-1, (11,)), (-1, (13,)),
                             (0, case[0].shape[:1] + (1,) + case[0].shape[2:]), (0, (0,) + case[0].shape[1:])):
            yield f'GRU {source} input {which} {shape}', ops.GRU(source), changed(case, which, shape)
        if source != 'onehot':
            yield f'GRU {source} U too long', ops.GRU(source), changed(case, -3, (6, 12))
            yield f'GRU {source} U too short', ops.GRU(source), changed(case, -3, (4, 12))
        if source == 'encoded':
            yield 'E too wide', ops.GRU(source), changed(case, 1, (6, 7))
            yield 'a too short', ops.GRU(source), changed(case, 2, (4,))
        if source != 'vectors':
            for character in (-1, 6, 2**31 - 1, -2**31):
                yield f'GRU {source} character {character}', ops.GRU(source), changed(case, 0, character)
    case = losscase(T=3, B=2, H=4, V=6)
    for which, shape in ((0, (3, 2, 5)), (0, (2, 2, 4)), (1, (3, 6)), (1, (4, 7)), (2, (5,)), (2, (7,)), (3, (3, 3)), (3, (2, 2))):
        yield f'SoftmaxLoss input {which} {shape}', ops.SoftmaxLoss(True), changed(case, which, shape)
    for character in (-1, 6, 2**31 - 1, -2**31):
        yield f'SoftmaxLoss character {character}', ops.SoftmaxLoss(True), changed(case, 3, character)


REFUSALS = list(refusals())


@pytest.fixture
def untouched(monkeypatch):
    """The library may not be called."""
    def touched(*arguments):
        raise AssertionError('memory was touched')
    for name in ('gruforward', 'grubackward', 'softmaxloss', 'update'):
        monkeypatch.setattr(native, name, touched)


@needskernels
@pytest.mark.parametrize('op, inputs', [refusal[1:] for refusal in REFUSALS], ids=[refusal[0] for refusal in REFUSALS])
def test_wrong_shapes_and_characters_are_refused_as_numpy_refuses_them(untouched, op, inputs):
    with pytest.raises((ValueError, IndexError)) as numpys:
        perform(op, *inputs)
    node = op.make_node(*map(symbol, inputs))
    storages = [[None] for _ in node.outputs]
    with pytest.raises(numpys.type) as ours:
        op.kernel(node)(inputs, storages)
    assert str(ours.value) == str(numpys.value) and str(ours.value).count('\n') == 0
    assert storages == [[None] for _ in node.outputs]


@needskernels
@pytest.mark.parametrize('which, shape', [(-1, (3, 2, 5)), (-1, (2, 2, 4)), (-1, (3, 1, 4)), (-2, (3, 2, 11)), (-2, (2, 2, 12)),
                                          (-3, (2, 2, 4)), (-3, (3, 2, 3)), (-3, (4, 2, 4)), (-4, (11,)), (-5, (4, 11)),
                                          (-6, (5, 11)), (-7, (1, 4))])
def test_gradients_refuse_wrong_shapes(untouched, which, shape):
    """dS may be anybody's: theano.grad(None, W, known_grads={S: dS})."""
    for source in SOURCES:
        with pytest.raises(ValueError):
            kernel(ops.GRUGrad(source), changed(gradcase(source, T=3, B=2, H=4, K=5, V=6), which, shape))


@needskernels
@pytest.mark.parametrize('source', ['onehot', 'encoded'])
@pytest.mark.parametrize('character', [-1, 6])
def test_gradients_refuse_characters_out_of_range(untouched, source, character):
    with pytest.raises(IndexError):
        kernel(ops.GRUGrad(source), changed(gradcase(source, T=3, B=2, H=4, K=5, V=6), 0, character))


@needskernels
@pytest.mark.parametrize('which, shape', [(0, (10,)), (1, (1,)), (1, (3,)), (2, (2, 3)), (4, (2, 3)), (4, (4, 4)), (8, (2, 3)),
                                          (10, (2, 3)), (10, (4, 4)), (10, (3, 1))])
def test_an_update_refuses_wrong_shapes_as_numpy_refuses_them(untouched, which, shape):
    """Inputs: rates (11,), factors (2,), params (3, 3), (2,), two caches, averages, gradients."""
    op, inputs = Update('adam', 'value', True, 2), changed(updatecase([(3, 3), (2,)], 0, 1, 'adam', True), which, shape)
    for work in kernel, lambda op, inputs: perform(op, *inputs):
        with pytest.raises(ValueError, match='Update takes') as raised:
            work(op, inputs)
        assert '\n' not in str(raised.value)


EMPTY = '''
case, op = {'no rows': (lambda: tests.grucase('vectors', B=1), ops.GRU()), 'no inputs': (lambda: tests.grucase('vectors', K=1), ops.GRU()),
            'no units': (lambda: tests.losscase(H=1), ops.SoftmaxLoss(True)),
            'no characters': (lambda: tests.losscase(B=1), ops.SoftmaxLoss(True))}[name]
empty = {'no rows': {0: 1, 1: 0}, 'no inputs': {0: 2, 2: 0}, 'no units': {0: 2, 1: 0}, 'no characters': {0: 1, 3: 1}}[name]
inputs = case()
for which, axis in empty.items():
    inputs[which] = np.delete(inputs[which], range(inputs[which].shape[axis]), axis)
try:
    print('gave', [g.shape for g in tests.kernel(op, inputs)])
except (ValueError, IndexError, ZeroDivisionError) as error:
    print('refused', error)
'''


@needskernels
@pytest.mark.parametrize('name', ['no rows', 'no inputs', 'no units', 'no characters'])
def test_an_empty_batch_or_layer_does_not_end_the_process(name):
    """Sizes begin at 1 in kernels/rngru.h: a child, since what has no size may end it."""
    def child(connection):
        import kernelcases as tests
        space = {'tests': tests, 'ops': ops, 'np': np, 'name': name, 'print': lambda *words: connection.send(words)}
        exec(EMPTY, space)
    said, code = inchild(child)
    assert code == 0 and said[0] in ('gave', 'refused')


# --- Training ---------------------------------------------------------------------------------------------------

def agree(tmp_path, text, monkeypatch, rounds, steps, **options):
    ours, _ = losses(text, tmp_path / 'native', rounds, steps, **options)
    monkeypatch.setattr(native, 'library', lambda: None)
    numpys, _ = losses(text, tmp_path / 'numpy', rounds, steps, **options)
    assert ours.shape == (rounds, 2) and ours[-1, 0] < 0.8 * ours[0, 0]         # they have learnt something
    np.testing.assert_allclose(ours, numpys, rtol=5e-4)


@needskernels
@pytest.mark.parametrize('modeltype', ['GRUEncode', 'GRUResize'])
def test_200_steps_of_training_agree_with_numpy_in_loss_to_three_digits(tmp_path, text, monkeypatch, modeltype):
    agree(tmp_path, text, monkeypatch, 5, 40, modeltype=modeltype, learnrate=0.003, regcost=0.01)


@needskernels
@pytest.mark.long
@pytest.mark.parametrize('modeltype', ['GRUEncode', 'GRUResize'])
def test_2000_steps_of_training_agree_with_numpy_in_loss_to_three_digits(tmp_path, monkeypatch, modeltype):
    """On a text of many parts, so that the loss isn't soon next to nothing."""
    text = tmp_path / 'text.txt'
    text.write_text(''.join(Path(ROOT, name).read_text() for name in ('ops.py', 'storage.py', 'model.py')))
    agree(tmp_path, text, monkeypatch, 20, 100, modeltype=modeltype, state_size=64)


# --- The profile ------------------------------------------------------------------------------------------------

@needskernels
@pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason="this system doesn't tell a process's peak")
def test_logits_of_a_large_vocabulary_never_exist_whole():
    """4,000 characters of 10,000 take 160 MB of logits; a block of them is 17 MB, and all else here is small."""
    code = """
import pathlib, re
import numpy as np
import native
def memory(name):
    return 1024 * int(re.search(name + r':\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])
def loss(T, V):
    S, y = np.full((T, 20, 16), 0.5, np.float32), np.zeros((T, 20), np.int32)
    weights, c = np.zeros((16, V), np.float32), np.zeros(V, np.float32)
    return native.softmaxloss(S, weights, c, y, [np.empty_like(S), np.empty_like(weights), np.empty_like(c)])
loss(2, 10)
before = memory('VmRSS')
pathlib.Path('/proc/self/clear_refs').write_text('5')
print(loss(200, 10_000), memory('VmHWM') - before)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    loss, peak = map(float, done.stdout.split()[-2:])
    assert abs(loss - 9.2103404) < 1e-5 and peak < 60e6            # ln(10,000): all are equally likely


@needskernels
def test_the_profile_gives_seconds_by_phase_whose_sum_is_below_the_wall_time():
    native.profile()
    start = time.perf_counter()
    for case in large():
        bits(*case)
    wall = time.perf_counter() - start
    seconds = native.profile()
    assert len(seconds) >= 4 and all(isinstance(name, str) and value >= 0 for name, value in seconds.items())
    assert 0 < sum(seconds.values()) < wall
    assert sum(native.profile().values()) == 0          # nothing has run since
    native.library().rngru_profile(0)


def test_the_profile_without_kernels_is_empty(monkeypatch):
    monkeypatch.setattr(native, 'library', lambda: None)
    assert native.profile() == {}
