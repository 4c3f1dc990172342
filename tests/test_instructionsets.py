"""Kernels for every instruction set that this processor has, for the shapes of one that it lacks, by another compiler, under sanitizers,
and for Arm, emulated: against NumPy (all of `test_kernels` among the long tests) and by `kernels.cpp` against plain loops in float64.
"""

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import compiler
import engine
import native
import ops
from conftest import kernel, perform
from kernelcases import (CXX, KERNELS, RULES, SOURCES, assert_close, finished, gradcase, grucase, losscase, needscompiler, process,
                         samplecase, truth, updatecase)
from rounding import PRECISIONS
from sampling import SampleText
from update import Update

pytestmark = [needscompiler, pytest.mark.skipif(KERNELS is None, reason='there are no native kernels here'),
              pytest.mark.skipif(engine.name == 'theano', reason='the kernels know no engine: the tests on PyTensor compile them all')]
DRIVER = Path(__file__).parent / 'kernels.cpp'
BEST, *OTHERS = compiler.instructionsets()
OTHERS = [name if name in ('AVX2', 'SSE2') else pytest.param(name, marks=pytest.mark.long) for name in OTHERS]   # half a minute each
OPTIONS = ['-std=c++17', '-pthread']


@pytest.mark.parametrize('name', OTHERS)
def test_a_set_asked_for_by_name_is_what_computes(name):
    out = finished(process('print(native.describe())', RN_GRU_KERNELS=name.lower(), RN_GRU_THREADS='1'))
    assert out.splitlines()[-1] == f'{name} kernels, 1 thread'


@pytest.mark.parametrize('name', OTHERS)
def test_kernels_for_every_set_agree_with_numpy(monkeypatch, name):
    kernels = native.load(name)
    monkeypatch.setattr(native, 'library', lambda: kernels)
    for seed, shape in enumerate([dict(T=1, B=1, K=1, H=1, V=1), dict(T=4, B=7, K=17, H=33, V=9), dict(T=3, B=13, K=64, H=100, V=70)]):
        for source in SOURCES:
            for op, case in ((ops.GRU(source), grucase), (ops.GRUGrad(source), gradcase)):
                inputs = case(source, seed=seed, **shape)
                assert_close(kernel(op, inputs), truth(op, inputs))
        op, inputs = ops.SoftmaxLoss(True), losscase(*(shape[letter] for letter in 'TBHV'), seed=seed)
        assert_close(kernel(op, inputs), truth(op, inputs), atol=3e-7)
    for optimizer, clipping, averaged in RULES:
        op, inputs = Update(optimizer, clipping, averaged, 2), updatecase([(17, 65), (3,)], 0, 1, optimizer, averaged)
        expected = perform(op, *(i.astype('float64') for i in inputs))
        assert_close(kernel(op, inputs), expected, atol=1e-7)


@pytest.mark.parametrize('name', OTHERS)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_the_sampler_of_every_set_writes_what_numpy_writes(monkeypatch, name, precision):
    """Of rounded weights but for one text at the most: a state between two points may be rounded either way."""
    kernels = native.load(name)
    monkeypatch.setattr(native, 'library', lambda: kernels)
    same, texts = 0, 0
    for seed, (L, H, V, n) in enumerate([(1, 2, 3, 1), (2, 17, 40, 1), (3, 33, 20, 7), (2, 100, 66, 3), (2, 7, 5, 2), (1, 65, 30, 1)]):
        for layernorm in (False, True):
            op = SampleText(seed % 2 == 0, precision, layernorm)
            inputs = samplecase(seed % 2 == 0, L, H, V, n, seed, steps=60, scale=0.7)
            (drawn, states), (want, want_states) = kernel(op, inputs), perform(op, *inputs)
            near = np.abs(states - want_states).max((0, 2)) < (1e-4 if precision == 'float32' else 0.05)
            same, texts = same + ((drawn == want).all(1) & near).sum(), texts + n
    assert same >= texts - (precision != 'float32')


# --- By the driver ------------------------------------------------------------------------------------------------------

def flags(name):
    """The compiler's flags for the instruction set of this name, without those that not every compiler knows."""
    return {each: given for each, _, given in [*compiler.X86, *compiler.ARM]}[name]


def done(command, **options):
    """The output of a command that succeeds."""
    said = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def built(directory, command, *options):
    """The driver with all of the kernels in it, compiled by `command` with these options."""
    def objectfile(source):
        target = directory / f'{source.stem}-{source.parent.name}.o'
        done([*command, *OPTIONS, *options, '-c', source, '-o', target])
        return target
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(objectfile, [DRIVER, *sorted(compiler.SOURCES.glob('*.cpp'))]))
    done([*command, *OPTIONS, *options, *objects, '-o', directory / 'driver'])
    return directory / 'driver'


def passes(command, name, cases, **options):
    assert f'{name} kernels, {cases} cases: all right' in done([*command, cases], timeout=590, **options)


@pytest.fixture(scope='module')
def driver(tmp_path_factory):
    """The driver's own object file."""
    target = tmp_path_factory.mktemp('driver') / 'driver.o'
    done([*shlex.split(CXX), *OPTIONS, '-O1', '-c', DRIVER, '-o', target])
    return target


@pytest.mark.parametrize('cases', [20, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize('name', [BEST, *OTHERS])
def test_the_kernels_of_every_instruction_set_agree_with_plain_loops(driver, tmp_path, name, cases):
    """The library as it is used."""
    library = compiler.compiled(name)
    done([*shlex.split(CXX), *OPTIONS, driver, library, f'-Wl,-rpath,{library.parent}', '-o', tmp_path / 'driver'])
    passes([tmp_path / 'driver'], name, cases)


REFUSING = '#include <errno.h>\nextern "C" long syscall(long, ...) { errno = EPERM; return -1; }\n'


@pytest.mark.skipif(BEST != 'AMX', reason='this processor has no tiles')
def test_where_the_system_refuses_tiles_kernels_do_without(driver, tmp_path):
    """Ours are those of another set; those of AMX, loaded all the same, compute without."""
    assert native.accelerates('bfloat16') and not native.accelerates('int8')
    (tmp_path / 'refusing.cpp').write_text(REFUSING)
    refusing = {'LD_PRELOAD': str(tmp_path / 'refusing.so')}
    done([*shlex.split(CXX), '-shared', '-fPIC', tmp_path / 'refusing.cpp', '-o', refusing['LD_PRELOAD']])
    assert finished(process('print(compiler.instructionsets()[0])', **refusing)) == 'AVX-512\n'
    library = compiler.compiled('AMX')
    done([*shlex.split(CXX), *OPTIONS, driver, library, f'-Wl,-rpath,{library.parent}', '-o', tmp_path / 'driver'])
    passes([tmp_path / 'driver'], 'AMX', 10, env={**os.environ, **refusing})


@pytest.mark.long
@pytest.mark.parametrize('more', [[], ['-DRNGRU_TILES=1']], ids=['vectors', 'AMX'])
def test_tiles_of_the_widest_vectors_agree_with_plain_loops(tmp_path, more):
    passes([built(tmp_path, shlex.split(CXX), '-O1', '-DRNGRU_SHAPE=16', *more)], 'emulated', 20)


@pytest.mark.long
@pytest.mark.parametrize('name', [BEST, *OTHERS])
def test_kernels_compiled_by_clang_agree_with_plain_loops(tmp_path, name):
    if not shutil.which('clang++'):
        pytest.skip('there is no clang++ here')
    passes([built(tmp_path, ['clang++'], '-O1', *flags(name))], name, 20)


# What a sanitizer finds ends the driver with its report.
SANITIZERS = {'address': ['-fsanitize=address'], 'undefined': ['-fsanitize=undefined', '-fno-sanitize-recover=undefined'],
              'thread': ['-fsanitize=thread']}


@pytest.mark.long
@pytest.mark.parametrize('name', [BEST, *OTHERS, 'emulated'])
@pytest.mark.parametrize('sanitizer', SANITIZERS)
def test_no_sanitizer_finds_anything(tmp_path, sanitizer, name):
    """None sees what instructions of AMX read and write: the emulated tiles read and write the same."""
    try:
        done([*shlex.split(CXX), *SANITIZERS[sanitizer], '-shared', '-fPIC', '-x', 'c++', os.devnull, '-o', tmp_path / 'nothing'])
    except AssertionError as error:
        pytest.skip(f'the compiler has no such sanitizer: {str(error).strip().splitlines()[0]}')
    options = ['-O1', '-g', *SANITIZERS[sanitizer], *(['-DRNGRU_SHAPE=16', '-DRNGRU_TILES=1'] if name == 'emulated' else flags(name))]
    environment = {**os.environ, 'ASAN_OPTIONS': 'detect_stack_use_after_return=1', 'TSAN_OPTIONS': 'halt_on_error=1'}
    passes([built(tmp_path, shlex.split(CXX), *options)], name, 80, env=environment)


@pytest.mark.long
def test_the_kernels_for_arm_agree_with_plain_loops_on_an_emulated_processor(tmp_path):
    cross, emulator = 'aarch64-linux-gnu-g++', 'qemu-aarch64-static'
    if not shutil.which(cross) or not shutil.which(emulator):
        pytest.skip(f'there is no {cross} or no {emulator} here')
    passes([emulator, built(tmp_path, [cross], '-O2', '-static')], 'NEON', 40)


@pytest.mark.long
@pytest.mark.parametrize('command', ['g++', 'clang++'])
@pytest.mark.parametrize('given', [given for name, _, given in compiler.X86 if name in ('AMX', 'AVX-512')],
                         ids=['with tiles', 'with bfloat16', 'with int8', 'plain'])
def test_the_kernels_for_avx512_compile(tmp_path, command, given):
    """All that can be said of them on a processor without."""
    if not shutil.which(command) or 'x86_64' not in done([command, '-dumpmachine']):
        pytest.skip(f'there is no {command} for x86 here')
    if not compiler._knows([command], given):
        pytest.skip(f'{command} does not know these flags')
    for source in sorted(compiler.SOURCES.glob('*.cpp')):
        done([command, *compiler.FLAGS, *given, '-c', source, '-o', tmp_path / 'object.o'])
