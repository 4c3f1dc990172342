"""The stack of layers as one GPU kernel: when it is used, what is said where it isn't, and on the processor's threads what it computes."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest

import engine

if engine.name == 'theano':
    pytest.skip("the linker to JAX is PyTensor's", allow_module_level=True)
jax = pytest.importorskip('jax', reason='JAX is not installed')

import report
import stack_cuda
from conftest import ROOT, perform
from kernelcases import CXX, assert_close, needscompiler
from stack import GRUStack, GRUStackGrad
from test_ops_jax import onjax
from test_stack import gradcase, stackcase


class Card:
    """A GPU, as far as it is asked anything here."""

    local_hardware_id = 0

    def __init__(self, capability='9.0'):
        self.compute_capability = capability


CARD = Card()


@pytest.fixture(autouse=True)
def switchedon(monkeypatch):
    monkeypatch.setenv(stack_cuda.SWITCH, '1')


@pytest.fixture
def said(monkeypatch):
    """What the library says; and what it has learnt is forgotten, before and behind."""
    lines, known = [], (stack_cuda.library, stack_cuda._tried)
    monkeypatch.setattr(report, 'say', lambda text='': lines.append(text))
    for each in known:
        each.cache_clear()
    yield lines
    for each in known:
        each.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The engine's cache elsewhere."""
    config = SimpleNamespace(base_compiledir=tmp_path / 'cache')
    monkeypatch.setattr(stack_cuda, 'engine', SimpleNamespace(theano=SimpleNamespace(config=config)))


@pytest.fixture
def nvcc(tmp_path, monkeypatch, cache):
    """A function that puts a shell script in nvcc's place, where there is none before."""
    monkeypatch.setenv('CUDA_HOME', str(tmp_path))
    monkeypatch.setattr(shutil, 'which', lambda name, path=None, which=shutil.which: which(name, path=str(tmp_path / 'bin')))

    def put(script):
        (tmp_path / 'bin').mkdir()
        (tmp_path / 'bin/nvcc').write_text('#!/bin/sh\n' + script)
        (tmp_path / 'bin/nvcc').chmod(0o700)
    return put


# --- When it is used --------------------------------------------------------------------------------------------------

WITHOUT = "In bfloat16 the layers run as a loop of XLA's, not as one GPU kernel, which is faster: "


@pytest.mark.parametrize('device', [None, 'cpu', Card('7.5'), Card('gfx90a')])
def test_no_other_device_is_asked_for_nvcc(device, said, monkeypatch):
    device = device or jax.devices('cpu')[0]
    monkeypatch.setattr(stack_cuda, '_compiled', None)
    assert not stack_cuda.usable(device, 2, 16, 32) and not said


@pytest.mark.parametrize('value', [None, '', '0'])
def test_without_the_switch_it_is_left_out(said, monkeypatch, value):
    monkeypatch.setattr(stack_cuda, '_compiled', None)
    monkeypatch.delenv(stack_cuda.SWITCH) if value is None else monkeypatch.setenv(stack_cuda.SWITCH, value)
    assert not stack_cuda.usable(CARD, 2, 16, 32) and not said


def test_without_nvcc_one_line_says_so_once(nvcc, said):
    for L in (2, 3):
        assert not stack_cuda.usable(CARD, L, 16, 32)
    assert said == [WITHOUT + 'there is no nvcc, which the CUDA toolkit brings.']


def test_an_nvcc_that_fails_is_quoted(nvcc, said):
    nvcc('if [ "$1" != --version ]; then echo "in line 1:"; echo "error: no such card" >&2; exit 1; fi\n')
    assert not stack_cuda.usable(CARD, 2, 16, 32)
    assert said == ['Compiling the GPU kernel, once for this machine ...', WITHOUT + 'nvcc failed (error: no such card).']


def test_what_does_not_load_is_compiled_once_more_and_then_said(nvcc, said, tmp_path):
    nvcc(f'if [ "$1" != --version ]; then for last; do :; done; echo junk > "$last"; echo called >> {tmp_path}/calls; fi\n')
    assert not stack_cuda.usable(CARD, 2, 16, 32)
    assert (tmp_path / 'calls').read_text() == 'called\n' * 2
    assert len(said) == 5 and said[-1].startswith(WITHOUT) and '/grustack-' in said[-1]


def test_what_is_in_the_cache_is_not_compiled(nvcc, cache, said, tmp_path):
    nvcc(f'if [ "$1" != --version ]; then for last; do :; done; echo junk > "$last"; echo called >> {tmp_path}/calls; fi\n')
    assert stack_cuda._compiled('9.0') == stack_cuda._compiled('9.0') != stack_cuda._compiled('8.0')
    assert (tmp_path / 'calls').read_text() == 'called\n' * 2


@pytest.mark.parametrize('error, why', [
    (RuntimeError('CUDA_ERROR_OUT_OF_LIGHT: try\nlater'), 'its trial failed (CUDA_ERROR_OUT_OF_LIGHT: try later)'),
    (0.02, 'its trial was wrong by 2.0%'), (float('nan'), 'its trial was wrong by nan%'), (1e-4, None)])
def test_a_trial_that_fails_or_is_wrong_is_said(error, why, said, monkeypatch):
    def trial(*sizes):
        if isinstance(error, Exception):
            raise error
        return error
    monkeypatch.setattr(stack_cuda, '_error', trial)
    monkeypatch.setattr(stack_cuda, 'library', lambda capability: SimpleNamespace(rngru_grustack_fits=lambda *sizes: 1))
    for _ in range(2):
        assert stack_cuda.usable(CARD, 2, 16, 32) == (why is None)
    assert said == ([WITHOUT + why + '.'] if why else [])


@pytest.mark.parametrize('kind, dtype, used', [
    (dict(precision='bfloat16'), 'float32', True), (dict(precision='float32'), 'float32', False),
    (dict(precision='bfloat16'), 'float64', False),
    (dict(precision='bfloat16', layernorm=True), 'float32', False), (dict(precision='bfloat16', dropout=True), 'float32', False)])
def test_it_is_for_plain_stacks_in_bfloat16(kind, dtype, used, monkeypatch):
    """Whatever it is asked for, else the loop gives the results."""
    asked = []
    monkeypatch.setattr(stack_cuda, 'usable', lambda device, *sizes: asked.append(sizes))
    op = GRUStack('encoded', layers=2, **kind)
    inputs = [i.astype(dtype) if i.dtype == 'float32' and i.ndim else i for i in stackcase(op)]
    assert_close(onjax(op, *inputs)[:5], perform(op, *inputs)[:5], 2e-3)
    assert asked == [(2, 2, 7)] * used


# --- What it computes -------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def onthreads(tmp_path_factory):
    """The kernel on the processor's threads, known to XLA."""
    path = tmp_path_factory.mktemp('grustack') / 'grustack.so'
    subprocess.run([*CXX.split(), '-std=c++20', '-O1', '-shared', '-fPIC', '-pthread', '-w', '-I', jax.ffi.include_dir(),
                    os.path.join(ROOT, 'tests', 'grustack.cpp'), '-o', str(path)], check=True)
    return stack_cuda.load(path, 'cpu')


@pytest.mark.long
@needscompiler
@pytest.mark.parametrize('source, shape', [
    ('encoded', dict(L=2, T=5, B=18, H=32)), ('onehot', dict(L=3, T=4, B=3, H=32)), ('encoded', dict(L=1, T=1, B=16, H=32)),
    ('vectors', dict(L=2, T=1, B=20, H=64)), ('onehot', dict(L=4, T=2, B=33, H=64))])
def test_on_threads_it_gives_what_numpy_gives(source, shape, onthreads, monkeypatch):
    """States of every wave too, and gradients through last states. Results that round alike differ by little; float32's by some 1e-3."""
    used = []
    monkeypatch.setattr(stack_cuda, 'usable', lambda device, *sizes: used.append(sizes) or onthreads.rngru_grustack_fits(0, *sizes))
    shape = dict(shape)
    L = shape.pop('L')
    op = GRUStack(source, 'bfloat16', L)
    inputs, case = stackcase(op, **shape), gradcase(op, **shape)[1]
    for each, given, count in ((op, inputs, 2 * L + 2), (GRUStackGrad(op), case, None)):
        assert_close(onjax(each, *given)[:count], perform(each, *given)[:count], 2e-4)
    assert used == [(L, shape['B'], shape['H'])] * 2


@pytest.mark.long
@needscompiler
def test_its_own_trial_passes_on_threads_and_fails_where_a_weight_is_left_out(onthreads, monkeypatch, said):
    device = jax.devices('cpu')[0]
    assert stack_cuda._tried(device, 2, 17, 32) and not said
    whole = stack_cuda.forward
    monkeypatch.setattr(stack_cuda, 'forward', lambda first, W, U, b, s0: whole(first, W, U.at[1, 3].set(0), b, s0))
    assert not stack_cuda._tried(device, 2, 18, 32) and 'its trial was wrong by' in said[0]


@pytest.mark.long
@needscompiler
def test_sizes_that_do_not_fit_are_refused(onthreads):
    """40 blocks of 64 kB: the emulated card."""
    fits = onthreads.rngru_grustack_fits
    assert fits(0, 2, 16, 32) and fits(0, 2, 150, 32)          # 2 x 10 x 2 blocks of 16 x 16
    assert fits(0, 2, 200, 32)                                  # 2 x 13 x 1 of 16 x 32
    assert not fits(0, 2, 33 * 32, 32)                          # too many rows
    assert not fits(0, 1, 16, 40) and not fits(0, 1, 16, 512)   # no multiple of 32; weights larger than the shared memory
    assert not fits(-1, 1, 16, 32)                              # no card


@pytest.mark.long
@pytest.mark.skipif(not shutil.which('nvcc'), reason='there is no nvcc here')
def test_nvcc_compiles_it(cache, said):
    path = stack_cuda._compiled('9.0')
    assert path.exists() and stack_cuda._compiled('9.0') == path and len(said) == 2
