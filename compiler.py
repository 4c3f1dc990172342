"""The kernels' library: for which instruction set it is compiled, by the engine's C++ compiler, and where it is kept.

`kernels/` becomes one shared library, in the engine's cache directory under a hash of sources, compiler and flags: a changed kernel
always recompiles, an unchanged one never does, two processes may compile at once.

The instruction set is the best that the processor says it has, and that the compiler knows the flags of; not what the compiler takes for
native: compilers older than a processor mistake it.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import engine
import report
from errors import reason

SOURCES = Path(__file__).parent / 'kernels'
FLAGS = ['-O3', '-std=c++17', '-fPIC', '-pthread', '-fvisibility=hidden']

# Instruction sets, best first: (name, the features that the processor must have, the compiler's flags). What comes last every compiler
# knows. 'scalar' leaves vectors to the compiler: any processor has it.
AVX512 = ('avx512f', 'avx512bw', 'avx512dq', 'avx512vl', 'avx2', 'fma')
SCALAR = ('scalar', (), ['-DRNGRU_SHAPE=4'])
FLAGS512 = [f'-m{name}' for name in AVX512]
X86 = [('AMX', (*AVX512, 'avx512_bf16', 'avx512_vnni', 'amx_tile', 'amx_bf16'),
        [*FLAGS512, '-mavx512bf16', '-mavx512vnni', '-mamx-tile', '-mamx-bf16']),
       ('AVX-512', (*AVX512, 'avx512_bf16', 'avx512_vnni'), [*FLAGS512, '-mavx512bf16', '-mavx512vnni']),
       ('AVX-512', (*AVX512, 'avx512_vnni'), [*FLAGS512, '-mavx512vnni']),
       ('AVX-512', AVX512, FLAGS512),
       ('AVX2', ('avx2', 'fma'), ['-mavx2', '-mfma']),
       ('AVX', ('avx',), ['-mavx']),
       ('SSE2', (), ['-msse2']),
       SCALAR]
ARM = [('NEON', (), []), SCALAR]                # 64 bits: NEON is part of the base
NAMES = ('AMX', 'AVX-512', 'AVX2', 'AVX', 'SSE2', 'NEON', 'scalar')


class NoCompiler(OSError):
    """The engine knows no C++ compiler."""


def instructionsets() -> list[str]:
    """Names of the instruction sets that this processor has, best first."""
    return list(dict.fromkeys(name for name, _, _ in _had()))


def named(wanted: str) -> str:
    """The instruction set that the user calls `wanted`, by its name in NAMES.

    Raises ValueError for one that this processor lacks, the compiler doesn't know the flags of, or that there isn't.
    """
    name = next((name for name in NAMES if name.replace('-', '').lower() == wanted.replace('-', '').lower()), None)
    if name is None:
        raise ValueError(f"RN_GRU_KERNELS takes 'native', 'numpy' or an instruction set ({', '.join(NAMES)}), got {wanted!r}: "
                         'correct it or unset it')
    if name not in (had := instructionsets()):
        raise ValueError(f'RN_GRU_KERNELS={wanted!r} is not for this processor, it has {", ".join(had)}: choose one of these or unset it')
    command = _command()

    def isknown(each):
        return any(_knows(command, flags) for one, _, flags in _had() if one == each)
    known = [] if not command or isknown(name) else [each for each in had if isknown(each)]
    if known:                                   # of none at all, compiling will say what is wrong
        raise ValueError(f'RN_GRU_KERNELS={wanted!r} is not for this compiler, {command[0]} knows {", ".join(known)} of what the processor '
                         'has: choose one of these or unset it')
    return name


def compiled(name: str | None = None) -> Path:
    """Path of the library for the best instruction set, or for the one of this name; compiled if it isn't in the cache.

    Raises OSError (NoCompiler without a compiler) or subprocess.CalledProcessError; `why` says in a sentence what that means.
    """
    compiler, command = engine.theano.config.cxx, _command()
    if not command:
        raise NoCompiler
    version = run(*command, '--version')
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in ('.cpp', '.hpp', '.h'))
    contents = [(path.name, path.read_bytes()) for path in sources]
    directory = Path(engine.theano.config.base_compiledir, 'rn-gru')
    *better, last = [flags for each, _, flags in _had() if name in (None, each)]
    for flags in [*better, last]:
        flags = FLAGS + flags
        digest = hashlib.sha256(repr((compiler, version, flags, contents)).encode()).hexdigest()
        path = directory / f'kernels-{digest[:20]}.so'
        if path.exists():
            return path
        if flags[len(FLAGS):] == last or _knows(command, flags):
            break
    directory.mkdir(parents=True, exist_ok=True)
    if _noexec(directory):
        raise OSError(f'{engine.name.upper()}_FLAGS=base_compiledir=... must name a directory where programs may run, unlike {directory}')
    where = f' into {directory}, as {engine.nohome}' if engine.nohome else ''
    report.say(f'Compiling the kernels{where}, once for this machine: some seconds, on a busy one a minute ...')
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=directory) as temporary, ThreadPoolExecutor() as pool:
        def compiled(source):
            target = str(Path(temporary, source.stem + '.o'))
            run(*command, *flags, '-c', str(source), '-o', target)
            return target
        objects = list(pool.map(compiled, (source for source in sources if source.suffix == '.cpp')))
        target = Path(temporary, path.name)
        run(*command, *flags, '-shared', *objects, '-o', str(target))
        os.replace(target, path)                # whole or not at all, whoever else compiles
    report.say(f'Compiled the kernels with {compiler} in {time.perf_counter() - start:.1f} s.')
    return path


def why(error: Exception) -> str:
    """What kept `compiled` from its library, in a sentence."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in (error.stderr or '').splitlines() if 'error' in line] or [f'{error.cmd[0]} ended with {error.returncode}']
        return f'the C++ compiler failed ({textwrap.shorten(lines[0], 200, placeholder=" ...")}).'
    if isinstance(error, NoCompiler):
        return 'there is no C++ compiler. `sudo apt install g++` (Debian, Ubuntu) or `xcode-select --install` (macOS) brings one.'
    return f'the kernels could not be made ready ({reason(error)}).'


def _noexec(directory):
    """Whether it lies on a file system from which no program may run, as guarded machines mount /home or /tmp: no library loads there."""
    return hasattr(os, 'ST_NOEXEC') and bool(os.statvfs(directory).f_flag & os.ST_NOEXEC)


def _command():
    """The engine's compiler as the words of a command, [] without one."""
    compiler = engine.theano.config.cxx
    command = [compiler] if shutil.which(compiler) else shlex.split(compiler)
    return command if command and shutil.which(command[0]) else []


def run(*command: str) -> str:
    """What a command writes to standard output; subprocess.CalledProcessError where it fails."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace', check=True).stdout


def _knows(command, flags):
    """Whether the compiler takes these flags, asked with an empty source: some 20 ms."""
    try:
        run(*command, *flags, '-fsyntax-only', '-x', 'c++', os.devnull)
    except subprocess.CalledProcessError:
        return False
    return True


def _had():
    """The instruction sets that this processor has."""
    machine = platform.machine().lower()
    if machine in ('x86_64', 'amd64', 'i686'):
        features = _x86features()
        return [each for each in X86 if features.issuperset(each[1])]
    return ARM if machine in ('aarch64', 'arm64') else [SCALAR]


@functools.cache
def _x86features():
    """The processor's features, by Linux's names: those that its kernel lets programs use, and a hypervisor has not hidden."""
    try:
        features = set(re.search(r'^flags\s*:(.*)', Path('/proc/cpuinfo').read_text(), re.M)[1].split())
        return features if 'amx_tile' not in features or _maytile() else features - {'amx_tile'}
    except (OSError, TypeError):                # macOS
        names = ['machdep.cpu.features', 'machdep.cpu.leaf7_features']
        if not shutil.which('sysctl'):
            return set()
        said = subprocess.run(['sysctl', '-n', *names], capture_output=True, text=True).stdout
        return set(said.lower().replace('avx1.0', 'avx').split())


def _maytile():
    """Whether Linux gives this process the tiles of AMX, which it has to be asked for: older ones and some containers don't."""
    ARCH_PRCTL, REQUEST, TILES = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST, TILES) == 0
