"""The kernels against plain loops in float64, in C++ alone (`kernels.cpp`): every instruction set that this processor has, the shapes
of those that it lacks, another compiler, sanitizers, and Arm emulated.
"""

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import compiler
import engine
from kernelcases import CXX, needscompiler

pytestmark = [needscompiler, pytest.mark.skipif(engine.name == 'theano', reason='the driver knows no engine: PyTensor\'s tests run it')]
DRIVER = Path(__file__).parent / 'kernels.cpp'
BEST = compiler.instructionsets()[0]
OPTIONS = ['-std=c++17', '-pthread']


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


@pytest.mark.parametrize('name', compiler.instructionsets())
def test_the_kernels_of_every_instruction_set_agree_with_plain_loops(driver, tmp_path, name):
    """The library as it is used."""
    library = compiler.compiled(name)
    done([*shlex.split(CXX), *OPTIONS, driver, library, f'-Wl,-rpath,{library.parent}', '-o', tmp_path / 'driver'])
    passes([tmp_path / 'driver'], name, 60)


def test_tiles_of_the_widest_vectors_agree_with_plain_loops(tmp_path):
    passes([built(tmp_path, shlex.split(CXX), '-O1', '-DRNGRU_SHAPE=16')], 'emulated', 40)


@pytest.mark.parametrize('name', [BEST] + [pytest.param(name, marks=pytest.mark.long) for name in compiler.instructionsets()[1:]])
def test_kernels_compiled_by_clang_agree_with_plain_loops(tmp_path, name):
    if not shutil.which('clang++'):
        pytest.skip('there is no clang++ here')
    passes([built(tmp_path, ['clang++'], '-O1', *flags(name))], name, 40)


# What a sanitizer finds ends the driver with its report.
SANITIZERS = {'address': ['-fsanitize=address'], 'undefined': ['-fsanitize=undefined', '-fno-sanitize-recover=undefined'],
              'thread': ['-fsanitize=thread']}


@pytest.mark.long
@pytest.mark.parametrize('name', [*compiler.instructionsets(), 'emulated'])
@pytest.mark.parametrize('sanitizer', SANITIZERS)
def test_no_sanitizer_finds_anything(tmp_path, sanitizer, name):
    try:
        done([*shlex.split(CXX), *SANITIZERS[sanitizer], '-shared', '-fPIC', '-x', 'c++', os.devnull, '-o', tmp_path / 'nothing'])
    except AssertionError as error:
        pytest.skip(f'the compiler has no such sanitizer: {str(error).strip().splitlines()[0]}')
    options = ['-O1', '-g', *SANITIZERS[sanitizer], *(['-DRNGRU_SHAPE=16'] if name == 'emulated' else flags(name))]
    environment = {**os.environ, 'ASAN_OPTIONS': 'detect_stack_use_after_return=1', 'TSAN_OPTIONS': 'halt_on_error=1'}
    passes([built(tmp_path, shlex.split(CXX), *options)], name, 150, env=environment)


@pytest.mark.long
def test_the_kernels_for_arm_agree_with_plain_loops_on_an_emulated_processor(tmp_path):
    cross, emulator = 'aarch64-linux-gnu-g++', 'qemu-aarch64-static'
    if not shutil.which(cross) or not shutil.which(emulator):
        pytest.skip(f'there is no {cross} or no {emulator} here')
    passes([emulator, built(tmp_path, [cross], '-O2', '-static')], 'NEON', 100)
